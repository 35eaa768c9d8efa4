"""Token files of other programs, read as they lie: a manifest that names them, and no copy.

Formats, each told by the file itself:
  raw       headerless uint16 or uint32 ids: OLMo's .npy part files, nanoGPT's .bin
  npy       the same behind NumPy's own header
  megatron  Megatron-LM's .bin with its .idx (MMIDIDX, version 1): uint8, uint16 or int32 ids
  llm.c     256 int32 of header, then uint16 (magic 20240520, version 1) or uint32 (magic 20240801,
            version 7); modded-nanogpt's .bin is the first
"""

import glob
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ablations.data.manifest import DTYPES, SHARDED, write_manifest
from ablations.data.overlap import HeldOutDocuments, file_key, leave_out, near_duplicates
from ablations.data.prepared import Corpus, checksum, open_prepared
from ablations.data.shards import written_beside
from ablations.data.tokenizer import TokenizerFile, record_tokenizer
from ablations.data.widths import misread
from models.errors import SettingError, one_of
from models.format import percent

FORMATS = ("auto", "raw", "npy", "megatron", "llm.c")
CHECKSUMS = ("full", "sample")
INDEX_MAGIC = b"MMIDIDX\x00\x00"
# Codes of its DType; ids are not negative, so int32 reads as uint32 to the same numbers.
MEGATRON_DTYPES = {1: "uint8", 4: "uint32", 8: "uint16"}
LLM_C_HEADER_BYTES = 256 * 4
LLM_C = {(20240520, 1): "uint16", (20240801, 7): "uint32"}
NPY_MAGIC = b"\x93NUMPY"
COUNTS = ("tokens", "documents", "bytes", "held_out_documents")
PIECE = 1 << 24  # tokens read at a time
CHECKED_DOCUMENTS = 1000  # of a Megatron index, for their last token


@dataclass(frozen=True)
class TokenFile:
    """Where the tokens of a file lie."""

    path: Path
    format: str
    dtype: str
    offset: int
    """Bytes before the first token."""
    tokens: int
    ends: np.ndarray | None = None
    """Tokens at which its index says documents end; None without an index."""

    def map(self) -> np.ndarray:
        """Token ids [tokens], memory-mapped."""
        dtype = np.dtype(DTYPES[self.dtype])
        return np.memmap(self.path, dtype, "r", self.offset, (self.tokens,))


def adopt(
    *,
    train: str,
    validation: Mapping[str, str],
    tokenizer: TokenizerFile,
    out: Path,
    name: str,
    dtype: str | None = None,
    format: str = "auto",
    how: str = "full",
    held_out_tokens: int = 0,
    trust_dtype: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> Corpus:
    """Write the manifest of a corpus whose files stay where they are; returns it opened.

    train, validation: paths or patterns of token files; dtype: of raw files, None for the smallest
    of uint16 and uint32 that holds the vocabulary; how: `full` reads every token once, for its
    checksum and its range, `sample` 256 stretches of each file; held_out_tokens: about this many
    last tokens of the training files become the validation domain `name`, cut after a document;
    trust_dtype: take `dtype` where the bytes of a file look like another, and record it.
    Raises SettingError, one sentence, on what cannot be read; nothing is written then.
    """
    if format not in FORMATS:
        raise one_of("format", format, FORMATS)
    if how not in CHECKSUMS:
        raise one_of("checksum", how, CHECKSUMS)
    if out.exists():
        raise SettingError(f"out={out} exists; name a folder that does not exist yet.")
    if dtype is None:
        dtype = "uint16" if tokenizer.vocab_size <= 1 << 16 else "uint32"
    if dtype not in DTYPES:
        raise one_of("dtype", dtype, DTYPES)
    if tokenizer.vocab_size > (most := int(np.iinfo(DTYPES[dtype]).max) + 1):
        raise SettingError(
            f"dtype={dtype} holds {most:,} ids, and tokenizer={tokenizer.name} has "
            f"{tokenizer.vocab_size:,}; valid: a wider dtype, or the tokenizer of these files."
        )
    if not validation and not held_out_tokens:
        raise SettingError(
            "validation is not given, which leaves nothing to judge by; give validation.NAME=PATH, "
            "or held_out_tokens=N to hold out the end of the training files."
        )
    if held_out_tokens and name in validation:
        raise SettingError(
            f"name={name} is the domain held out and validation.{name} another; give one of them "
            "another name."
        )
    found = {"train": _find("train", train, dtype, format)}
    for domain, path in validation.items():
        found[domain] = _find(f"validation.{domain}", path, dtype, format)
    trusted: list[str] = []
    held_out = {
        file_key(file.path): f"validation.{domain}"
        for domain in validation
        for file in found[domain]
    }
    keys = [file_key(file.path) for file in found["train"]]
    found["train"], left_out = leave_out("train", train, found["train"], held_out, keys)
    for stream, files in found.items():
        for file in files:
            trusted += _trusted(stream, file, tokenizer, trust_dtype)
            _check_documents(stream, file, tokenizer)
    streams = {
        stream: [(file, 0, file.tokens) for file in files] for stream, files in found.items()
    }
    if held_out_tokens:
        streams["train"], streams[name] = _hold_out(
            found["train"], held_out_tokens, tokenizer.separator
        )
    # Held-out documents first, so that copies of them are found among the others.
    order = [*(stream for stream in streams if stream != "train"), "train"]
    entries, documents = {}, HeldOutDocuments()
    for stream in order:
        ranges = streams[stream]
        say(f"reading {stream}: {len(ranges)} files, {sum(r[2] - r[1] for r in ranges):,} tokens")
        entries[stream] = entry = _entry(stream, ranges, tokenizer, how, documents)
        if 2 * entry.get("documents", 0) > entry["tokens"]:
            share = percent(entry["documents"] / entry["tokens"], ".0f")
            say(
                f"{stream}: {share} of the tokens are the separator {tokenizer.separator}, as in "
                "padding; see that separator= and dtype= are right"
            )
    sums = {
        (shard["tokens"], shard["sha256"]): f"validation.{domain}"
        for domain in validation
        for shard in entries[domain]["shards"]
    }
    training = entries.pop("train")
    same = [(shard["tokens"], shard["sha256"]) for shard in training["shards"]]
    training["shards"], copied = leave_out("train", train, training["shards"], sums, same)
    names = [*(str(file.path) for file in left_out), *(shard["file"] for shard in copied)]
    for file in names:
        say(f"train: {file} is held out too, and is left out of training")
    manifest: dict[str, Any] = {
        "format": SHARDED,
        "name": name,
        "dtype": dtype,
        "vocab_size": tokenizer.vocab_size,
        "separator": tokenizer.separator,
        "adopted": sorted({file.format for files in found.values() for file in files}),
        **({"trusted_dtype": trusted} if trusted else {}),
        **({"left_out_of_training": names} if names else {}),
        "train": _summed(training["shards"]),
        "validation": entries,
    }
    with written_beside(out) as beside:
        manifest |= record_tokenizer(beside, tokenizer)
        write_manifest(beside, manifest)
        manifest["overlap"] = near_duplicates(open_prepared(beside, setting="out"))
        write_manifest(beside, manifest)
        beside.rename(out)
    return open_prepared(out)


def read_token_file(setting: str, path: Path, dtype: str, format: str = "auto") -> TokenFile:
    """Where a file's tokens lie, by its format.

    dtype: of raw files. Raises SettingError naming `setting` where the file is not what it says.
    """
    size = path.stat().st_size
    with path.open("rb") as handle:
        head = handle.read(LLM_C_HEADER_BYTES)
    if format == "auto":
        format = _format(path, head)
    if format == "megatron":
        return _megatron(setting, path, size)
    if format == "npy":
        try:
            array = np.load(path, mmap_mode="r")
        except (ValueError, EOFError) as error:  # cut, or of pickled objects
            raise SettingError(
                f"{setting}: {path} is no NumPy file of numbers ({error}); copy it again."
            ) from None
        known = [np.dtype(code) for code in DTYPES.values()]  # little-endian
        if array.ndim != 1 or array.dtype not in known or not isinstance(array, np.memmap):
            raise SettingError(
                f"{setting}: {path} holds {array.dtype} of shape {array.shape}; valid: one "
                f"dimension of {', '.join(DTYPES)}."
            )
        return TokenFile(path, format, array.dtype.name, array.offset, len(array))
    if format == "llm.c":
        magic, version, tokens = struct.unpack("<3i", head[:12]) if len(head) >= 12 else (0, 0, 0)
        if (magic, version) not in LLM_C:
            raise SettingError(
                f"{setting}: {path} begins with magic {magic} and version {version}; valid: "
                f"{', '.join(f'{m} with version {v}' for m, v in LLM_C)}."
            )
        dtype = LLM_C[magic, version]
        offset = LLM_C_HEADER_BYTES
        expected = offset + tokens * np.dtype(DTYPES[dtype]).itemsize
        if size != expected:
            raise SettingError(
                f"{setting}: {path} has {size:,} bytes where its header says {expected:,} "
                f"({tokens:,} tokens); copy it again."
            )
        return TokenFile(path, format, dtype, offset, tokens)
    if (header := _format(path, head)) in ("npy", "llm.c"):
        raise SettingError(
            f"{setting}: {path} has the header of format {header}, which format=raw would read as "
            "tokens; valid: format=auto."
        )
    item = np.dtype(DTYPES[dtype]).itemsize
    if size % item:
        raise SettingError(
            f"{setting}: {path} has {size:,} bytes, no whole number of {dtype}; copy it again, or "
            "give another dtype."
        )
    return TokenFile(path, format, dtype, 0, size // item)


def _format(path: Path, head: bytes) -> str:
    if path.suffix == ".bin" and path.with_suffix(".idx").exists():
        return "megatron"
    if head.startswith(NPY_MAGIC):
        return "npy"
    if len(head) >= 8 and struct.unpack("<2i", head[:8]) in LLM_C:
        return "llm.c"
    return "raw"


def _megatron(setting: str, path: Path, size: int) -> TokenFile:
    index = path.with_suffix(".idx")
    if not index.exists():
        raise SettingError(f"{setting}: {path} has no {index.name} beside it; copy both files.")
    with index.open("rb") as handle:
        header = handle.read(34)
    if not header.startswith(INDEX_MAGIC) or len(header) < 34:
        raise SettingError(f"{setting}: {index} is no Megatron index (MMIDIDX); copy it again.")
    version, code, sequences, documents = struct.unpack("<QBQQ", header[9:])
    if version != 1 or code not in MEGATRON_DTYPES:
        raise SettingError(
            f"{setting}: {index} is of version {version} and dtype code {code}; valid: version 1 "
            "and codes 1 (uint8), 4 (int32) and 8 (uint16)."
        )
    found, expected = index.stat().st_size, 34 + 12 * sequences + 8 * documents
    # A multimodal index has one more byte a sequence.
    if found not in (expected, expected + sequences):
        raise SettingError(
            f"{setting}: {index} has {found:,} bytes where its header says {expected:,}; copy it "
            "again."
        )
    dtype = MEGATRON_DTYPES[code]
    item = np.dtype(DTYPES[dtype]).itemsize
    lengths = np.memmap(index, "<i4", "r", 34, (sequences,)) if sequences else np.empty(0, "<i4")
    ends = np.cumsum(lengths, dtype=np.int64)
    tokens = int(ends[-1]) if sequences else 0
    if size != tokens * item:
        raise SettingError(
            f"{setting}: {path} has {size:,} bytes where {index.name} says {tokens * item:,}; the "
            "two are not of one corpus, or one was cut: copy both again."
        )
    pointers = np.memmap(index, "<i8", "r", 34 + 4 * sequences, (sequences,)) if sequences else ends
    marks = np.memmap(index, "<i8", "r", 34 + 12 * sequences, (documents,)) if documents else ends
    if not np.array_equal(pointers, (ends - lengths) * item) or (
        documents and (int(marks[-1]) != sequences or int(marks.min()) < 0)
    ):
        raise SettingError(
            f"{setting}: {index} has pointers that do not follow from its lengths; write it again."
        )
    document_ends = ends[np.asarray(marks[marks > 0]) - 1] if documents else ends
    return TokenFile(path, "megatron", dtype, 0, tokens, document_ends)


def _find(setting: str, pattern: str, dtype: str, format: str) -> list[TokenFile]:
    path = Path(pattern).expanduser()
    if path.is_dir():
        paths = [p for p in path.rglob("*") if p.suffix in (".npy", ".bin")]
    else:
        paths = [Path(p) for p in glob.glob(str(path), recursive=True)]  # noqa: PTH207
        paths = [p for p in paths if p.is_file() and p.suffix != ".idx"]
    if not paths:
        raise SettingError(
            f"{setting}={pattern} names no file; valid: a token file, a pattern, or a folder with "
            ".npy or .bin files."
        )
    paths = sorted((p.resolve() for p in paths), key=lambda p: p.as_posix())
    files = [read_token_file(setting, p, dtype, format) for p in paths]
    if empty := [file.path for file in files if not file.tokens]:
        raise SettingError(f"{setting}: {empty[0]} holds no token; leave it out.")
    return files


Range = tuple[TokenFile, int, int]


def _hold_out(
    files: list[TokenFile], tokens: int, separator: int
) -> tuple[list[Range], list[Range]]:
    """Ranges to train on, and the end of the last file, cut after a document."""
    last = files[-1]
    start = max(0, last.tokens - tokens)
    stream = last.map()
    borders = np.flatnonzero(stream[:start] == separator)[-1:] + 1
    if not len(borders) or tokens > last.tokens // 2:
        raise SettingError(
            f"held_out_tokens={tokens} is not the end of whole documents in {last.path}, which has "
            f"{last.tokens:,} tokens; valid: at most half of them, or validation.NAME=PATH."
        )
    border = int(borders[0])
    train: list[Range] = [(file, 0, file.tokens) for file in files[:-1]]
    return [*train, (last, 0, border)], [(last, border, last.tokens)]


def _entry(
    stream: str,
    ranges: list[Range],
    tokenizer: TokenizerFile,
    how: str,
    held_out: HeldOutDocuments,
) -> dict[str, Any]:
    """A stream's entry in the manifest, its ids checked against the vocabulary.

    held_out: given the documents of a validation domain; those of training are looked for in it.
    """
    shards = []
    for file, start, stop in ranges:
        tokens = file.map()[start:stop]
        documents = text_bytes = copies = begin = 0
        whole = how == "full" or stream != "train"
        spots = range(0, len(tokens), PIECE)
        if not whole:
            spots = np.linspace(0, max(0, len(tokens) - 4096), 256).astype(np.int64).tolist()
        for spot in spots:
            piece = tokens[spot : spot + (PIECE if whole else 4096)]
            if (largest := int(piece.max())) >= tokenizer.vocab_size:
                raise SettingError(
                    f"{stream}: {file.path} holds token id {largest}, but tokenizer="
                    f"{tokenizer.name} has vocab_size {tokenizer.vocab_size}; valid: the tokenizer "
                    "it was made with, the dtype it was written in, or a larger vocab_size."
                )
            ends = np.flatnonzero(piece == tokenizer.separator) + spot + 1
            documents += len(ends)
            text_bytes += int(tokenizer.token_bytes[piece].sum(dtype=np.int64))
            if whole and len(ends):
                starts = np.concatenate([[begin], ends[:-1]])
                begin = int(ends[-1])
                if stream == "train":
                    copies += held_out.copies(tokens, starts, ends)
                else:
                    held_out.add(tokens, starts, ends)
        text_bytes -= tokenizer.prefix_bytes * documents
        if not documents:
            raise SettingError(
                f"{stream}: {file.path} never holds the separator {tokenizer.separator}, so its "
                "documents cannot be told apart; valid: separator=TOKEN, the one they end with."
            )
        item = np.dtype(DTYPES[file.dtype]).itemsize
        shard: dict[str, Any] = {
            "file": str(file.path),
            "format": file.format,
            "dtype": file.dtype,
            "offset": file.offset + start * item,
            "file_bytes": file.path.stat().st_size,
            "tokens": len(tokens),
            "checksum": how,
            "sha256": checksum(np.ascontiguousarray(tokens), how),
        }
        if whole:
            shard |= {"documents": documents, "bytes": text_bytes}
        if whole and stream == "train":
            shard["held_out_documents"] = copies
        shards.append(shard)
    return _summed(shards)


def _summed(shards: list[dict[str, Any]]) -> dict[str, Any]:
    """A stream's entry in the manifest: what all its shards know, and the shards."""
    keys = [k for k in COUNTS if all(k in shard for shard in shards)]
    return {**{k: sum(shard[k] for shard in shards) for k in keys}, "shards": shards}


def _trusted(
    stream: str, file: TokenFile, tokenizer: TokenizerFile, trust_dtype: bool
) -> list[str]:
    """What speaks against the dtype of a file without a header, where the user insists on it.

    Raises SettingError with it where not, or where the ids of that dtype cannot be.
    """
    if file.format != "raw":
        return []
    found = misread(file.path, file.offset, file.dtype, tokenizer.vocab_size, tokenizer.separator)
    if found is None:
        return []
    remedy = f"dtype={found.fits}"
    if found.fits not in DTYPES:
        remedy = f"the file written again as little-endian {file.dtype}"
    sentence = (
        f"{stream}: {file.path} read as {file.dtype} looks like {found.fits}: {found.why}, and as "
        f"{found.fits} all of those sampled are below vocab_size {tokenizer.vocab_size}; valid: "
        f"{remedy}"
    )
    if trust_dtype and found.possible:
        return [f"{sentence}."]
    insist = ", or trust_dtype=true where it is so" if found.possible else ""
    raise SettingError(f"{sentence}{insist}.")


def _check_documents(stream: str, file: TokenFile, tokenizer: TokenizerFile) -> None:
    """An index's documents end with the separator, or the separator is another one."""
    if file.ends is None:
        return
    tokens = file.map()
    ends = file.ends[file.ends > 0][:CHECKED_DOCUMENTS]
    wrong = np.flatnonzero(tokens[ends - 1] != tokenizer.separator)
    if len(wrong):
        raise SettingError(
            f"{stream}: document {int(wrong[0])} of {file.path} ends with token "
            f"{int(tokens[ends[wrong[0]] - 1])}, not with the separator {tokenizer.separator}; "
            "valid: separator=TOKEN, the one that preprocess_data.py --append-eod wrote."
        )
