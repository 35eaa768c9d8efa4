"""The code of a sweep, copied at submission into the sweep's folder by a hash of its content.

Workers import that copy: a run that waits in a queue uses the code it was submitted with, whatever
happens in the checkout meanwhile. Revision and diff are recorded beside it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from pathlib import Path

from ablations import provenance
from ablations.records import project_root

FROZEN = ("models", "ablations", "sweeps", "conf")
SOURCE = (".py", ".yaml", ".json", ".toml", ".txt", ".md")


def freeze(into: Path) -> Path:
    """Copy the packages that a worker imports, and conf/, to `into/<hash>`; returns that folder.

    What git ignores stays out; what it does not know yet goes along. Raises OSError where the
    folder cannot be written.
    """
    root = project_root()
    # Read once, so that what is hashed is what is kept, though somebody edits meanwhile.
    files = {name: (root / name).read_bytes() for name in _files(root)}
    digest = hashlib.sha256()
    for name, content in files.items():
        digest.update(os.fsencode(f"{name}\0") + hashlib.sha256(content).digest())
    frozen = into / digest.hexdigest()[:12]
    if frozen.is_dir():
        return frozen
    building = into / f"{frozen.name}.{os.getpid()}.tmp"
    try:
        for name, content in files.items():
            _put(content, root / name, building / name)
        code, diff = provenance.code(root)
        (building / provenance.RECORD).write_text(json.dumps(code) + "\n", encoding="utf-8")
        (building / provenance.DIFF).write_text(diff, encoding="utf-8")
        # Decompressed corpora are shared by all copies of the code, where the checkout lets them.
        with contextlib.suppress(OSError):
            (root / ".cache").mkdir(exist_ok=True)
            (building / ".cache").symlink_to(root / ".cache")
        with contextlib.suppress(FileExistsError):
            building.rename(frozen)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return frozen


def keep_cache(code: Path) -> None:
    """Give a copy of the code a cache of its own where the checkout's, which it shared, is gone."""
    cache = code / ".cache"
    if cache.is_symlink() and not cache.exists():
        # Another worker may be doing the same.
        with contextlib.suppress(FileNotFoundError):
            cache.unlink()
        with contextlib.suppress(FileExistsError):
            cache.mkdir()


def _files(root: Path) -> list[str]:
    # -z: names as they are; else git writes those beyond ASCII in quotes and escapes.
    listed = provenance.git(root, "ls-files", "-zco", "--exclude-standard", "--", *FROZEN)
    if listed:
        names = {os.fsdecode(name) for name in listed.split(b"\0")} - {""}
    else:
        names = {
            str(path.relative_to(root))
            for room in FROZEN
            for path in (root / room).rglob("*")
            if "__pycache__" not in path.parts
        }
    return sorted(name for name in names if (root / name).is_file())


def _put(content: bytes, source: Path, target: Path) -> None:
    """A copy of what people edit; of data, which is replaced and not edited, another link."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.suffix not in SOURCE:
        with contextlib.suppress(OSError):
            os.link(source.resolve(), target)
            return
    target.write_bytes(content)
