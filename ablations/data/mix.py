"""Writing a mixture: its sources opened, and held-out text looked for in all of their training."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ablations.data.manifest import SHARDED, read_manifest, write_manifest
from ablations.data.mixture import assemble, open_folder
from ablations.data.overlap import near_duplicates
from ablations.data.prepared import Corpus, open_prepared
from ablations.data.shards import written_beside
from models.errors import SettingError


def mix(sources: Mapping[str, tuple[str, Path]], out: Path, name: str) -> Corpus:
    """Write a mixture and open it.

    sources: {name: (weight as written, prepared folder)}. Raises SettingError where a weight is
    none, or the corpora do not share one tokenizer; nothing is written then.
    """
    if out.exists():
        raise SettingError(f"out={out} exists; name a folder that does not exist yet.")
    if not sources:
        raise SettingError(
            "sources are not given; valid: NAME=WEIGHT:FOLDER, once for each prepared corpus."
        )
    manifest: dict[str, Any] = {
        "format": SHARDED,
        "kind": "mixture",
        "name": name,
        "sources": [
            {
                "name": source,
                "path": str(path.expanduser().resolve()),
                "weight": weight,
                "fingerprint": _opened(source, path.expanduser()).fingerprint,
            }
            for source, (weight, path) in sources.items()
        ],
    }
    manifest["overlap"] = near_duplicates(assemble(manifest, out, "out"))
    with written_beside(out) as beside:
        write_manifest(beside, manifest)
        beside.rename(out)
    return open_folder(out)


def _opened(name: str, path: Path) -> Corpus:
    if read_manifest(path, name).get("kind") == "mixture":
        raise SettingError(
            f"{name}={path} is a mixture itself; valid: prepared corpora, each with its weight."
        )
    return open_prepared(path, setting=name)
