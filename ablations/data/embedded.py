"""The embedded corpus: four domains of text, committed compressed, so a ladder runs anywhere.

Tokens are bytes (vocab_size 256) and the separator is the NUL byte. `embedded/manifest.json`
records sources, licences and checksums, the prepared form's included: a plan knows sizes and
fingerprint without decompressing anything. `build_embedded.py` made the files.
"""

from __future__ import annotations

import hashlib
import json
import lzma
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ablations.data.prepared import Corpus, fingerprint, open_prepared, write_prepared
from models.errors import SettingError

FOLDER = Path(__file__).resolve().parent / "embedded"
NAME = "embedded"
VOCAB_SIZE = 256
SEPARATOR = 0


def embedded_manifest() -> dict[str, Any]:
    """What a plan needs to know of the embedded corpus, without decompressing it.

    Keys: name, vocab_size, separator, fingerprint, train_tokens, validation {domain: {tokens,
    bytes, documents}} and sources {domain: source, version, licence, sizes and checksums}.
    """
    manifest = json.loads((FOLDER / "manifest.json").read_text(encoding="utf-8"))
    prepared = manifest["prepared"]
    return {
        "name": prepared["name"],
        "vocab_size": prepared["vocab_size"],
        "separator": prepared["separator"],
        "fingerprint": fingerprint(prepared),
        "train_tokens": prepared["train"]["tokens"],
        "validation": {
            domain: {key: part[key] for key in ("tokens", "bytes", "documents")}
            for domain, part in prepared["validation"].items()
        },
        "sources": manifest["domains"],
    }


def open_embedded(cache_dir: Path) -> Corpus:
    """Open the embedded corpus, unpacking it on first use into `cache_dir/<fingerprint>/`.

    Processes may do so at the same time: each writes its own folder, one renames it into place,
    and the others open that. Raises SettingError where the committed files are damaged or the
    cache cannot be written.
    """
    manifest = embedded_manifest()
    target = Path(cache_dir) / manifest["fingerprint"][:16]
    if not target.exists():
        train, validation = _split(manifest["sources"])
        try:
            write_prepared(
                target,
                name=NAME,
                vocab_size=VOCAB_SIZE,
                separator=SEPARATOR,
                train=train,
                validation=validation,
            )
        except OSError as error:
            raise SettingError(
                f"data=embedded cannot be unpacked: {cache_dir} cannot be written "
                f"({error.strerror}); make that folder writable, with room for 37 MB."
            ) from None
    corpus = open_prepared(target, setting="data=embedded, unpacked at")
    if corpus.fingerprint != manifest["fingerprint"]:
        raise SettingError(
            f"data=embedded: {cache_dir} holds a damaged copy of the embedded corpus; remove "
            f"{target}, and it is unpacked again."
        )
    return corpus


def read_documents(source: dict[str, Any]) -> list[bytes]:
    """A domain's documents as UTF-8 bytes, in file order, from its committed `.xz`."""
    try:
        packed = (FOLDER / source["xz"]["file"]).read_bytes()
    except FileNotFoundError:
        packed = b""
    if hashlib.sha256(packed).hexdigest() != source["xz"]["sha256"]:
        raise SettingError(
            f"data=embedded: {source['xz']['file']} is not the file that its manifest records "
            "(by sha256); restore it with git checkout."
        )
    return lzma.decompress(packed).split(b"\0")


def is_validation(document: bytes, validation_permille: int, max_document_bytes: int) -> bool:
    """Whether a document is held out: a rule on its content alone, so equal documents agree.

    Documents over `max_document_bytes` always train: one of them would be most of a validation
    set.
    """
    if len(document) > max_document_bytes:
        return False
    return int.from_bytes(hashlib.sha256(document).digest()[:8]) % 1000 < validation_permille


def _split(
    sources: dict[str, Any],
) -> tuple[Iterator[np.ndarray], dict[str, Iterator[np.ndarray]]]:
    """Token ids of the training documents, domain after domain, and of each validation domain."""
    documents = {domain: read_documents(source) for domain, source in sources.items()}
    return split(documents, {domain: source["split"] for domain, source in sources.items()})


def split(
    documents: dict[str, list[bytes]], rules: dict[str, dict[str, int]]
) -> tuple[Iterator[np.ndarray], dict[str, Iterator[np.ndarray]]]:
    """Byte tokens of training documents, domain after domain, and of each validation domain.

    `rules`: the arguments of `is_validation` by domain.
    """

    def part(domain: str, held_out: bool) -> Iterator[np.ndarray]:
        for document in documents[domain]:
            if is_validation(document, **rules[domain]) == held_out:
                yield np.frombuffer(document, dtype=np.uint8)

    train = (tokens for domain in documents for tokens in part(domain, held_out=False))
    return train, {domain: part(domain, held_out=True) for domain in documents}
