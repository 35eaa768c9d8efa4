"""The embedded corpus: four domains of text, committed compressed, so a ladder runs anywhere.

Tokens are bytes (vocab_size 256) and the separator is the NUL byte. `embedded/manifest.json`
records sources, licences and checksums, the prepared form's included: a plan knows sizes and
fingerprint without decompressing anything. `build_embedded.py` made the files.
"""

import hashlib
import json
import lzma
from pathlib import Path
from typing import Any

from ablations.data.manifest import fingerprint
from ablations.data.prepared import Corpus, open_prepared
from models.errors import SettingError

FOLDER = Path(__file__).resolve().parent / "embedded"
SEPARATOR = 0
"""The byte between documents, which none of them holds."""


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


def embedded_folder(cache_dir: Path) -> Path:
    """Where the embedded corpus is unpacked."""
    return Path(cache_dir) / embedded_manifest()["fingerprint"][:16]


def open_embedded(cache_dir: Path) -> Corpus:
    """Open the embedded corpus, unpacking it on first use into `cache_dir/<fingerprint>/`.

    Processes may do so at the same time: each writes its own folder, one renames it into place,
    and the others open that. Raises SettingError where the committed files are damaged or the
    cache cannot be written.
    """
    manifest = embedded_manifest()
    target = embedded_folder(cache_dir)
    if not target.exists():
        # Here, as a plan opens the corpus without encoding text.
        from ablations.data.encode_embedded import encode, write_embedded

        sources = manifest["sources"]
        domains = {name: encode(read_documents(source)) for name, source in sources.items()}
        try:
            write_embedded(target, domains, {n: source["split"] for n, source in sources.items()})
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
    return lzma.decompress(packed).split(bytes([SEPARATOR]))
