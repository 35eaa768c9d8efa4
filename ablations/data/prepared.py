"""The prepared corpus: a folder of raw token files and a manifest that says what they are.

    corpus/
      manifest.json      format, dtype, vocab_size, separator, tokenizer; per file tokens, sha256
      train.bin          token ids, little-endian, no header; each document ends with the separator
      validation-*.bin   one such file a domain
      token_bytes.bin    uint16 [vocab_size]: UTF-8 bytes of each token, 0 for special tokens

Raw files because they are what OLMo and nanoGPT tokenisers write, and a memmap reads them with no
copy. `token_bytes.bin` is what bits per byte need; a corpus of bytes implies it.

Format 1 has one file a stream. Format 2 has a list of `shards`, each {file, tokens, sha256} and:
`documents` and `bytes`; `index`, a file of uint64 [documents, 2], the token at which each document
ends and its UTF-8 bytes; and, where the file is another program's, read as it lies, `offset` (bytes
before its first token), `file_bytes` (the whole file's size), `dtype` and `checksum`.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ablations.data.streams import Shards, Stream, pieces
from models.errors import SettingError, one_of

FORMAT = 1
SHARDED = 2
FORMATS = (FORMAT, SHARDED)
MANIFEST = "manifest.json"
DTYPES = {"uint8": "<u1", "uint16": "<u2", "uint32": "<u4"}
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


def fingerprint(manifest: Mapping[str, Any]) -> str:
    """SHA-256 hex of what determines the tokens and their byte counts in a prepared manifest."""
    if manifest["format"] == SHARDED:
        content = {
            "format": SHARDED,
            "vocab_size": manifest["vocab_size"],
            "separator": manifest["separator"],
            "train": _shard_sums(manifest["train"]),
            "validation": {
                name: {"bytes": part["bytes"], "shards": _shard_sums(part)}
                for name, part in manifest["validation"].items()
            },
            "token_bytes": (manifest.get("token_bytes") or {}).get("sha256"),
        }
    else:
        validation = {
            name: {key: part[key] for key in ("tokens", "bytes", "sha256")}
            for name, part in manifest["validation"].items()
        }
        content = {
            "format": manifest["format"],
            "dtype": manifest["dtype"],
            "vocab_size": manifest["vocab_size"],
            "separator": manifest["separator"],
            "train": {key: manifest["train"][key] for key in ("tokens", "sha256")},
            "validation": validation,
            "token_bytes": (manifest.get("token_bytes") or {}).get("sha256"),
        }
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def _shard_sums(part: Mapping[str, Any]) -> list[list[Any]]:
    return [[shard["tokens"], shard["sha256"]] for shard in part["shards"]]


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

    token_bytes = _token_bytes(path, manifest, verify, setting)
    return Corpus(
        name=manifest["name"],
        vocab_size=vocab_size,
        fingerprint=fingerprint(manifest),
        separator=separator,
        train=tokens(manifest["train"]),
        validation={
            name: ValidationDomain(name, tokens(part), part["bytes"], separator, token_bytes)
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
    if token_bytes is None:
        token_bytes = _implied_token_bytes(tokenizer, vocab_size, separator)
        assert token_bytes is not None, "a corpus that is not of bytes needs token_bytes"
        written_token_bytes = None
    else:
        assert token_bytes.shape == (vocab_size,), token_bytes.shape
        written_token_bytes = token_bytes
    dtype_name = next(n for n, d in DTYPES.items() if vocab_size <= np.iinfo(d).max + 1)
    write = _Writer(np.dtype(DTYPES[dtype_name]), vocab_size, separator, token_bytes)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    beside.mkdir()
    try:
        manifest: dict[str, Any] = {
            "format": FORMAT,
            "name": name,
            "dtype": dtype_name,
            "vocab_size": vocab_size,
            "separator": separator,
            "tokenizer": dict(tokenizer),
            "train": write.stream(beside / "train.bin", train),
            "validation": {
                domain: write.stream(beside / f"validation-{domain}.bin", documents)
                for domain, documents in validation.items()
            },
        }
        if written_token_bytes is not None:
            content = written_token_bytes.astype("<u2").tobytes()
            write_synced(beside / "token_bytes.bin", [content])
            sha256 = hashlib.sha256(content).hexdigest()
            manifest["token_bytes"] = {"file": "token_bytes.bin", "sha256": sha256}
        _check_manifest(manifest, path, "data.path")
        text = json.dumps(manifest, indent=1) + "\n"
        write_synced(beside / MANIFEST, [text.encode()])
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
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return open_prepared(path)


@dataclass(frozen=True)
class _Writer:
    dtype: np.dtype
    vocab_size: int
    separator: int
    token_bytes: np.ndarray

    def stream(self, file: Path, documents: Iterable[np.ndarray]) -> dict[str, Any]:
        """Write documents, each followed by the separator; return the manifest's entry."""
        count = tokens = text_bytes = 0
        digest = hashlib.sha256()
        end = np.array([self.separator], dtype=self.dtype)

        def pieces() -> Iterable[bytes]:
            nonlocal count, tokens, text_bytes
            for document in documents:
                if len(document):
                    low, high = int(document.min()), int(document.max())
                    assert 0 <= low <= high < self.vocab_size, (low, high, self.vocab_size)
                count += 1
                tokens += len(document) + 1
                text_bytes += int(self.token_bytes[document].sum(dtype=np.int64))
                piece = np.concatenate([document.astype(self.dtype), end]).tobytes()
                digest.update(piece)
                yield piece

        write_synced(file, pieces())
        return {
            "file": file.name,
            "tokens": tokens,
            "documents": count,
            "bytes": text_bytes,
            "sha256": digest.hexdigest(),
        }


def write_synced(file: Path, pieces: Iterable[bytes]) -> None:
    with file.open("wb") as handle:
        for piece in pieces:
            handle.write(piece)
        handle.flush()
        os.fsync(handle.fileno())


def files(part: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The files of one stream of a manifest, in order."""
    return part.get("shards", [part])


def read_manifest(path: Path, setting: str) -> dict[str, Any]:
    """A prepared folder's manifest, checked for what reading it needs."""
    if not path.is_dir():
        raise SettingError(
            f"{setting}={path} is not a folder; valid: a prepared corpus, that is a folder with "
            f"{MANIFEST} and token files."
        )
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SettingError(
            f"{setting}={path} has no {MANIFEST}; valid: a folder with {MANIFEST} and token files."
        ) from None
    except OSError as error:
        raise SettingError(
            f"{setting}={path} cannot be read ({error.strerror}); valid: a folder that may be."
        ) from None
    except ValueError:
        raise SettingError(
            f"{setting}={path} has a {MANIFEST} that is not JSON; prepare the corpus again."
        ) from None
    found = manifest.get("format") if isinstance(manifest, dict) else None
    if found not in FORMATS:
        raise SettingError(
            f"{setting}={path} is of format {json.dumps(found)}; valid: "
            f"{', '.join(map(str, FORMATS))}."
        )
    if manifest.get("kind") == "mixture":
        return manifest
    try:
        _check_manifest(manifest, path, setting)
    except (KeyError, TypeError, AttributeError) as error:
        raise SettingError(
            f"{setting}={path} has a {MANIFEST} with a missing or misshapen entry ({error}); "
            "valid: name, dtype, vocab_size, separator, tokenizer {name}, train and validation "
            "{domain} {file, tokens, bytes, sha256}."
        ) from None
    return manifest


def _check_manifest(manifest: dict[str, Any], path: Path, setting: str) -> None:
    """Refuse what cannot be read; KeyError, TypeError and AttributeError tell of missing parts."""
    if manifest["dtype"] not in DTYPES:
        raise one_of(f"{setting}={path}: dtype", manifest["dtype"], DTYPES)
    largest = int(np.iinfo(DTYPES[manifest["dtype"]]).max) + 1
    if not 2 <= manifest["vocab_size"] <= largest:
        raise SettingError(
            f"{setting}={path} has vocab_size {manifest['vocab_size']} in {manifest['dtype']}; "
            f"valid: 2 to {largest}."
        )
    if not 0 <= manifest["separator"] < manifest["vocab_size"]:
        raise SettingError(
            f"{setting}={path} has separator {manifest['separator']}; valid: a token id, "
            f"0 to {manifest['vocab_size'] - 1}."
        )
    _ = manifest["name"], manifest["tokenizer"]["name"]
    if not manifest["validation"]:
        raise SettingError(
            f"{setting}={path} has no validation domain; valid: one or more under validation."
        )
    named = [(f"validation domain {name}", part) for name, part in manifest["validation"].items()]
    for part_name, part in [("train", manifest["train"]), *named]:
        for shard in files(part):
            _ = shard["file"], shard["sha256"]
            if shard.get("dtype", manifest["dtype"]) not in DTYPES:
                raise one_of(f"{setting}={path}: dtype", shard["dtype"], DTYPES)
        if sum(shard["tokens"] for shard in files(part)) != part["tokens"]:
            raise SettingError(
                f"{setting}={path} says {part['tokens']:,} tokens of {part_name}, but its shards "
                "say another sum; prepare the corpus again."
            )
        if part["tokens"] < 2 or (part_name != "train" and part["bytes"] < 1):
            raise SettingError(
                f"{setting}={path} has nothing to predict in {part_name} ({part['tokens']} "
                "tokens); valid: two tokens or more, and some text to validate on."
            )


def _map(
    path: Path, part: Mapping[str, Any], dtype: np.dtype, count: int, setting: str
) -> np.ndarray:
    file = path / part["file"]
    try:
        found = file.stat().st_size
    except FileNotFoundError:
        raise SettingError(
            f"{setting}={path} has no {part['file']}, which its {MANIFEST} names; copy the folder "
            "again or prepare the corpus again."
        ) from None
    offset = part.get("offset", 0)
    expected = part.get("file_bytes", offset + count * dtype.itemsize)
    if found != expected:
        raise SettingError(
            f"{setting}={path} has {found:,} bytes in {part['file']} where its {MANIFEST} says "
            f"{expected:,}; copy the folder again or prepare the corpus again."
        )
    return np.memmap(file, dtype=dtype, mode="r", offset=offset, shape=(count,))


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
        raise _changed(path, shard["file"], found, shard["sha256"], setting)
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
    if not np.array_equal(index[:, 0], np.concatenate(found)):
        raise SettingError(
            f"{setting}={path} has a document index {shard['index']['file']} that does not fit "
            f"the separators in {shard['file']}; prepare the corpus again."
        )


def document_index(path: Path, shard: Mapping[str, Any], setting: str = "data.path") -> np.ndarray:
    """uint64 [documents, 2]: the token of the shard at which each document ends, and its bytes."""
    flat = _map(path, shard["index"], np.dtype("<u8"), 2 * shard["documents"], setting)
    return flat.reshape(-1, 2)


def _check_sha256(path: Path, part: Mapping[str, Any], setting: str) -> None:
    with (path / part["file"]).open("rb") as handle:
        found = hashlib.file_digest(handle, "sha256").hexdigest()
    if found != part["sha256"]:
        raise _changed(path, part["file"], found, part["sha256"], setting)


def _changed(path: Path, file: str, found: str, expected: str, setting: str) -> SettingError:
    return SettingError(
        f"{setting}={path} has a {file} of sha256 {found[:12]} where its {MANIFEST} "
        f"says {expected[:12]}; copy the folder again or prepare the corpus again."
    )


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
