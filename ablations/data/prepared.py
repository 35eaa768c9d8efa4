"""The prepared corpus: a folder of raw token files and a manifest that says what they are.

    corpus/
      manifest.json      format, dtype, vocab_size, separator, tokenizer; per file tokens, sha256
      train.bin          token ids, little-endian, no header; each document ends with the separator
      validation-*.bin   one such file a domain
      token_bytes.bin    uint16 [vocab_size]: UTF-8 bytes of each token, 0 for special tokens

Raw files because they are what OLMo and nanoGPT tokenisers write, and a memmap reads them with no
copy. `token_bytes.bin` is what bits per byte need; a corpus of bytes implies it. Its entry in the
manifest has `prefix_bytes` where the tokenizer sets a space before every document.

Format 1 has one file a stream. Format 2 has a list of `shards`, each {file, tokens, sha256} and:
`documents` and `bytes`; `index`, a file of uint64 [documents, 2], the token at which each document
ends and its UTF-8 bytes; and, where the file is another program's, read as it lies, `offset` (bytes
before its first token), `file_bytes` (the whole file's size), `dtype` and `checksum`.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ablations.data.manifest import (
    DTYPES,
    FORMAT,
    MANIFEST,
    check_manifest,
    files,
    fingerprint,
    read_manifest,
    smallest_dtype,
    write_manifest,
)
from ablations.data.shards import ShardWriter, file_sha256, write_synced, written_beside
from ablations.data.streams import Shards, Stream, pieces
from models.errors import SettingError

BYTE_TOKENIZER: dict[str, Any] = {"name": "bytes", "sha256": None}


@dataclass(frozen=True, eq=False)
class ValidationDomain:
    """One domain's held-out stream: documents, each ended by `separator`."""

    name: str
    tokens: np.ndarray | Shards
    """Token ids [tokens], memory-mapped."""
    bytes: int
    """UTF-8 bytes of the text, separators left out."""
    separator: int
    token_bytes: np.ndarray | None = None
    """UTF-8 bytes of each token id [vocab_size]; None where the corpus does not say."""
    prefix_bytes: int = 0
    """Bytes that `token_bytes` counts at each document's beginning and its text does not have: the
    space that SentencePiece's tokenizers set before it."""
    document_bytes: np.ndarray | Shards | None = None
    """UTF-8 bytes of each document [documents], where there are some to whose bytes tokens do not
    add up; None where there are none, or nothing says."""


@dataclass(frozen=True, eq=False)
class Corpus:
    """A corpus opened for reading."""

    name: str
    vocab_size: int
    fingerprint: str
    """SHA-256 over all that determines the tokens; the name is not part of it."""
    separator: int
    """Token that ends each document."""
    train: Stream
    """Token ids [tokens], memory-mapped."""
    validation: dict[str, ValidationDomain] = field(default_factory=dict)


def open_prepared(path: Path, *, verify: bool = False, setting: str = "data.path") -> Corpus:
    """Open a prepared corpus by memory-mapping its files.

    Sizes are always checked; `verify` also reads every file for its checksum and token range.
    Raises SettingError naming `setting` where the folder cannot be used.
    """
    path = Path(path)
    manifest = read_manifest(path, setting)
    vocab_size, separator = manifest["vocab_size"], manifest["separator"]

    def tokens(part: Mapping[str, Any]) -> np.ndarray | Shards:
        streams = []
        for shard in files(part):
            dtype = np.dtype(DTYPES[shard.get("dtype", manifest["dtype"])])
            stream = _map(path, shard, dtype, shard["tokens"], setting)
            if verify:
                _check_tokens(path, shard, stream, vocab_size, setting)
                _check_index(path, shard, stream, separator, setting)
            streams.append(stream)
        return streams[0] if len(streams) == 1 else Shards(streams)

    def document_bytes(part: Mapping[str, Any]) -> np.ndarray | Shards | None:
        shards = files(part)
        inexact = manifest.get("prepared", {}).get("inexact_documents")
        if not inexact or not all("index" in shard for shard in shards):
            return None
        indices = [document_index(path, shard, setting)[:, 1] for shard in shards]
        return indices[0] if len(indices) == 1 else Shards(indices)

    token_bytes = _token_bytes(path, manifest, verify, setting)
    prefix_bytes = (manifest.get("token_bytes") or {}).get("prefix_bytes", 0)
    if verify and "file" in manifest["tokenizer"]:
        _check_sha256(path, manifest["tokenizer"], setting)
    return Corpus(
        name=manifest["name"],
        vocab_size=vocab_size,
        fingerprint=fingerprint(manifest),
        separator=separator,
        train=tokens(manifest["train"]),
        validation={
            name: ValidationDomain(
                name,
                tokens(part),
                part["bytes"],
                separator,
                token_bytes,
                prefix_bytes,
                document_bytes(part),
            )
            for name, part in manifest["validation"].items()
        },
    )


def write_prepared(
    path: Path,
    *,
    name: str,
    vocab_size: int,
    separator: int,
    train: Iterable[np.ndarray],
    validation: Mapping[str, Iterable[np.ndarray]],
    tokenizer: Mapping[str, Any] = BYTE_TOKENIZER,
    token_bytes: np.ndarray | None = None,
) -> Corpus:
    """Write a prepared corpus and open it.

    `train` and each of `validation` yield the token ids of one document, without separators. All
    is written to a folder beside, synced and renamed, so no reader meets half a corpus. Where
    another process was first with the same corpus, its folder stands and is opened. Raises
    SettingError where `path` holds another corpus, or a stream of this one is empty.
    """
    path = Path(path)
    sizes = token_bytes
    if sizes is None:
        sizes = _implied_token_bytes(tokenizer, vocab_size, separator)
        assert sizes is not None, "a corpus that is not of bytes needs token_bytes"
    assert sizes.shape == (vocab_size,), sizes.shape
    dtype_name = smallest_dtype(vocab_size)
    dtype = np.dtype(DTYPES[dtype_name])
    with written_beside(path) as beside:

        def stream(stem: str, documents: Iterable[np.ndarray]) -> dict[str, Any]:
            writer = ShardWriter(beside, stem, dtype)
            try:
                for document in documents:
                    if len(document):
                        assert 0 <= document.min() <= document.max() < vocab_size, vocab_size
                    tokens = np.empty(len(document) + 1, dtype)
                    tokens[:-1], tokens[-1] = document, separator
                    text_bytes = sizes[document].sum(dtype=np.int64)
                    writer.write(tokens, np.array([len(tokens)]), np.array([text_bytes]))
                writer.finish()
            finally:
                writer.close()
            return writer.entry()

        manifest: dict[str, Any] = {
            "format": FORMAT,
            "name": name,
            "dtype": dtype_name,
            "vocab_size": vocab_size,
            "separator": separator,
            "tokenizer": dict(tokenizer),
            "train": stream("train", train),
            "validation": {
                domain: stream(f"validation-{domain}", documents)
                for domain, documents in validation.items()
            },
        }
        if token_bytes is not None:
            manifest["token_bytes"] = write_token_bytes(beside, token_bytes)
        check_manifest(manifest, path, "data.path")
        write_manifest(beside, manifest)
        try:
            beside.rename(path)
        except OSError:
            if not path.exists():
                raise
            standing = open_prepared(path)
            if standing.fingerprint != fingerprint(manifest):
                raise SettingError(
                    f"data.path={path} holds another corpus already; name a folder that does not "
                    "exist yet."
                ) from None
    return open_prepared(path)


def write_token_bytes(folder: Path, sizes: np.ndarray, prefix_bytes: int = 0) -> dict[str, Any]:
    """Write a tokenizer's bytes a token, as `ValidationDomain` has them; the manifest's entry."""
    file = folder / "token_bytes.bin"
    write_synced(file, sizes.astype("<u2").tobytes())
    entry: dict[str, Any] = {"file": file.name, "sha256": file_sha256(file)}
    return {**entry, "prefix_bytes": prefix_bytes} if prefix_bytes else entry


def _map(
    path: Path, part: Mapping[str, Any], dtype: np.dtype, count: int, setting: str
) -> np.ndarray:
    file = path / part["file"]
    try:
        found = file.stat().st_size
    except FileNotFoundError:
        raise _missing(path, part["file"], setting) from None
    offset = part.get("offset", 0)
    expected = part.get("file_bytes", offset + count * dtype.itemsize)
    if found != expected:
        raise SettingError(
            f"{setting}={path} has {found:,} bytes in {part['file']} where its {MANIFEST} says "
            f"{expected:,}; {_remedy(part, setting)}."
        )
    try:
        return np.memmap(file, dtype=dtype, mode="r", offset=offset, shape=(count,))
    except OSError as error:
        raise SettingError(
            f"{setting}={path} has a {part['file']} that cannot be read ({error.strerror}); valid: "
            "files that may be."
        ) from None


def checksum(tokens: np.ndarray, how: str = "full") -> str:
    """SHA-256 hex of a file's tokens: of all, or (`sample`) of 256 stretches and the length.

    A sample finds a file that was cut or made again, in seconds whatever its size, and not a few
    tokens that were changed in place.
    """
    raw = tokens.view(np.uint8)
    digest = hashlib.sha256()
    if how == "sample":
        digest.update(f"{len(raw)} ".encode())
        size = 1 << 16
        last = max(0, len(raw) - size)
        for start in np.linspace(0, last, 256).astype(np.int64).tolist():
            digest.update(raw[start : start + size].data)
    else:
        for start in range(0, len(raw), 1 << 26):
            digest.update(raw[start : start + (1 << 26)].data)
    return digest.hexdigest()


def _check_tokens(
    path: Path, shard: Mapping[str, Any], tokens: np.ndarray, vocab_size: int, setting: str
) -> None:
    found = checksum(tokens, shard.get("checksum", "full"))
    if found != shard["sha256"]:
        raise changed(path, shard, shard, found, setting)
    largest = max(int(piece.max()) for piece in pieces(tokens))
    if largest >= vocab_size:
        raise SettingError(
            f"{setting}={path} holds token id {largest} in {shard['file']}, but its "
            f"vocab_size is {vocab_size}; valid ids: 0 to {vocab_size - 1}."
        )


def _check_index(
    path: Path, shard: Mapping[str, Any], tokens: np.ndarray, separator: int, setting: str
) -> None:
    """The document index, where there is one, against the separators."""
    if "index" not in shard:
        return
    index = document_index(path, shard, setting)
    _check_sha256(path, shard["index"], setting)
    starts = np.arange(0, len(tokens), 1 << 24)
    found = [np.flatnonzero(tokens[s : s + (1 << 24)] == separator) + s + 1 for s in starts]
    fits = np.array_equal(index[:, 0], np.concatenate(found))
    if not fits or int(index[:, 1].sum()) != shard["bytes"]:
        raise SettingError(
            f"{setting}={path} has a document index {shard['index']['file']} that does not fit "
            f"the separators in {shard['file']}, or its bytes; prepare the corpus again."
        )


def document_index(path: Path, shard: Mapping[str, Any], setting: str = "data.path") -> np.ndarray:
    """uint64 [documents, 2]: the token of the shard at which each document ends, and its bytes."""
    flat = _map(path, shard["index"], np.dtype("<u8"), 2 * shard["documents"], setting)
    return flat.reshape(-1, 2)


def _check_sha256(path: Path, part: Mapping[str, Any], setting: str) -> None:
    try:
        found = file_sha256(path / part["file"])
    except FileNotFoundError:
        raise _missing(path, part["file"], setting) from None
    if found != part["sha256"]:
        raise changed(path, part, part, found, setting)


def _missing(path: Path, file: str, setting: str) -> SettingError:
    return SettingError(
        f"{setting}={path} has no {file}, which its {MANIFEST} names; copy the folder again or "
        "prepare the corpus again."
    )


def changed(
    path: Path, shard: Mapping[str, Any], part: Mapping[str, Any], found: str, setting: str
) -> SettingError:
    """The error of a file of `shard`, listed as `part`, whose sha256 is another than recorded."""
    return SettingError(
        f"{setting}={path} has a {part['file']} of sha256 {found[:12]} where its {MANIFEST} "
        f"says {part['sha256'][:12]}; {_remedy(shard, setting)}."
    )


def _remedy(shard: Mapping[str, Any], setting: str) -> str:
    """How a damaged file is mended."""
    if setting.startswith("data=embedded"):
        return "remove that folder, and it is unpacked again"
    if "format" in shard:
        return "copy the file again, or adopt the files as they are now"
    return "copy the folder again or prepare the corpus again"


def _token_bytes(
    path: Path, manifest: Mapping[str, Any], verify: bool, setting: str
) -> np.ndarray | None:
    vocab_size = manifest["vocab_size"]
    part = manifest.get("token_bytes")
    if part is None:
        return _implied_token_bytes(manifest["tokenizer"], vocab_size, manifest["separator"])
    sizes = _map(path, part, np.dtype("<u2"), vocab_size, setting)
    if verify:
        _check_sha256(path, part, setting)
    return sizes


def _implied_token_bytes(
    tokenizer: Mapping[str, Any], vocab_size: int, separator: int
) -> np.ndarray | None:
    """A byte is a byte of text, and the separator is none; nothing is implied for other tokens."""
    if tokenizer["name"] != "bytes":
        return None
    sizes = np.ones(vocab_size, dtype=np.uint16)
    sizes[separator] = 0
    return sizes
