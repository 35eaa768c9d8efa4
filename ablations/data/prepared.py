"""The prepared corpus: a folder of raw token files and a manifest that says what they are.

    corpus/
      manifest.json      format, dtype, vocab_size, separator, tokenizer; per file tokens, sha256
      train.bin          token ids, little-endian, no header; each document ends with the separator
      validation-*.bin   one such file a domain
      token_bytes.bin    uint16 [vocab_size]: UTF-8 bytes of each token, 0 for special tokens

Raw files because they are what OLMo and nanoGPT tokenisers write, and a memmap reads them with no
copy. `token_bytes.bin` is what bits per byte need; a corpus of bytes implies it.
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

from models.errors import SettingError, one_of

FORMAT = 1
MANIFEST = "manifest.json"
DTYPES = {"uint8": "<u1", "uint16": "<u2", "uint32": "<u4"}
BYTE_TOKENIZER: dict[str, Any] = {"name": "bytes", "sha256": None}


@dataclass(frozen=True, eq=False)
class ValidationDomain:
    """One domain's held-out stream: documents, each ended by `separator`."""

    name: str
    tokens: np.ndarray
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
    train: np.ndarray
    """Token ids [tokens], memory-mapped."""
    validation: dict[str, ValidationDomain] = field(default_factory=dict)


def fingerprint(manifest: Mapping[str, Any]) -> str:
    """SHA-256 hex of what determines the tokens and their byte counts in a prepared manifest."""
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


def open_prepared(path: Path, *, verify: bool = False, setting: str = "data.path") -> Corpus:
    """Open a prepared corpus by memory-mapping its files.

    Sizes are always checked; `verify` also reads every file for its checksum and token range.
    Raises SettingError naming `setting` where the folder cannot be used.
    """
    path = Path(path)
    manifest = _read_manifest(path, setting)
    dtype = np.dtype(DTYPES[manifest["dtype"]])
    vocab_size, separator = manifest["vocab_size"], manifest["separator"]

    def tokens(part: Mapping[str, Any]) -> np.ndarray:
        stream = _map(path, part, dtype, part["tokens"], setting)
        if verify:
            _check_sha256(path, part, setting)
            if (largest := int(stream.max())) >= vocab_size:
                raise SettingError(
                    f"{setting}={path} holds token id {largest} in {part['file']}, but its "
                    f"vocab_size is {vocab_size}; valid ids: 0 to {vocab_size - 1}."
                )
        return stream

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
            _write_synced(beside / "token_bytes.bin", [content])
            sha256 = hashlib.sha256(content).hexdigest()
            manifest["token_bytes"] = {"file": "token_bytes.bin", "sha256": sha256}
        _check_manifest(manifest, path, "data.path")
        text = json.dumps(manifest, indent=1) + "\n"
        _write_synced(beside / MANIFEST, [text.encode()])
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

        _write_synced(file, pieces())
        return {
            "file": file.name,
            "tokens": tokens,
            "documents": count,
            "bytes": text_bytes,
            "sha256": digest.hexdigest(),
        }


def _write_synced(file: Path, pieces: Iterable[bytes]) -> None:
    with file.open("wb") as handle:
        for piece in pieces:
            handle.write(piece)
        handle.flush()
        os.fsync(handle.fileno())


def _read_manifest(path: Path, setting: str) -> dict[str, Any]:
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
    if found != FORMAT:
        raise SettingError(f"{setting}={path} is of format {json.dumps(found)}; valid: {FORMAT}.")
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
        _ = part["file"], part["sha256"]
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
    if found != count * dtype.itemsize:
        raise SettingError(
            f"{setting}={path} has {found:,} bytes in {part['file']} where its {MANIFEST} says "
            f"{count * dtype.itemsize:,}; copy the folder again or prepare the corpus again."
        )
    return np.memmap(file, dtype=dtype, mode="r", shape=(count,))


def _check_sha256(path: Path, part: Mapping[str, Any], setting: str) -> None:
    with (path / part["file"]).open("rb") as handle:
        found = hashlib.file_digest(handle, "sha256").hexdigest()
    if found != part["sha256"]:
        raise SettingError(
            f"{setting}={path} has a {part['file']} of sha256 {found[:12]} where its {MANIFEST} "
            f"says {part['sha256'][:12]}; copy the folder again or prepare the corpus again."
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
