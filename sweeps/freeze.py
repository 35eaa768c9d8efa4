"""The code of a sweep, copied at submission into the sweep's folder by a hash of its content.

Workers import that copy: a run that waits in a queue uses the code it was submitted with, whatever
happens in the checkout meanwhile. A package that a mix takes a mixer from is copied along, wherever
it is installed. Revision and diff of the checkout are recorded beside it.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ablations import provenance
from ablations.records import project_root
from models.errors import SettingError
from models.format import byte_count

LARGEST_PACKAGE = 100 * 2**20
DEEPEST = 32
FROZEN = ("models", "ablations", "sweeps", "conf")
SOURCE = (
    *(".py", ".yaml", ".json", ".toml", ".txt", ".md"),
    *(".c", ".cpp", ".h", ".cu", ".cuh"),  # kernels that a package compiles on first use
)


def freeze(into: Path, packages: Iterable[str] = ()) -> Path:
    """Copy the packages that a worker imports, and conf/, to `into/<hash>`; returns that folder.

    packages: names of other packages that it imports, as `packages_of` gives them. Of the checkout,
    what git ignores stays out, and what git does not know yet goes along. Raises OSError where
    the folder cannot be written, and SettingError where a package has no folder to copy.
    """
    root = project_root()
    own = {name: root / name for name in _files(root)}
    sources = dict(own)
    for package in packages:
        sources |= _files_of(package)
    # Read once, so that what is hashed is what is kept, though somebody edits meanwhile.
    files = {name: sources[name].read_bytes() for name in sorted(sources)}
    frozen = into / _hash_of(files)[:12]
    if frozen.is_dir():
        return frozen
    building = into / f"{frozen.name}.{os.getpid()}.tmp"
    try:
        for name, content in files.items():
            # Of a package nobody knows what is written in place.
            _put(content, sources[name], building / name, link=name in own)
        code, diff = provenance.code(root)
        if len(files) > len(own):
            code["packages"] = _hash_of({name: files[name] for name in files if name not in own})
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


def _hash_of(files: Mapping[str, bytes]) -> str:
    digest = hashlib.sha256()
    for name, content in files.items():
        digest.update(os.fsencode(f"{name}\0") + hashlib.sha256(content).digest())
    return digest.hexdigest()


def packages_of(specs: Iterable[Mapping[str, Any]]) -> list[str]:
    """The top packages outside of the project that these specs take mixers from, each once."""
    mixers = {kind["mixer"] for spec in specs for kind in spec["model"]["kinds"].values()}
    tops = {mixer.partition(".")[0] for mixer in mixers if "." in mixer}
    return sorted(tops - {*FROZEN})


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


def _files_of(package: str) -> dict[str, Path]:
    """Name in the copy -> file, of everything in a package's folders; what git ignores goes along,
    as builds often write a part of a package there."""
    spec = importlib.util.find_spec(package)
    folders = [Path(folder) for folder in (spec and spec.submodule_search_locations) or ()]
    files: dict[str, Path] = {}
    for folder in folders:
        for place, below, names in os.walk(folder, followlinks=True):
            below[:] = [name for name in below if not _is_hidden(name)]
            parts = Path(place).relative_to(folder).parts
            if len(parts) > DEEPEST:
                raise SettingError(
                    f"package {package}, which a mix takes a mixer from, has folders in folders "
                    f"without end at {place}; remove the link that leads back."
                )
            for name in names:
                path = Path(place, name)
                if path.is_file() and not _is_hidden(name):
                    files.setdefault("/".join((package, *parts, name)), path)
    if not files:
        raise SettingError(
            f"package {package}, which a mix takes a mixer from, is in no folder that can be "
            "copied for the runs; install it unpacked, or put it in the folder of the command."
        )
    if (size := sum(path.stat().st_size for path in files.values())) > LARGEST_PACKAGE:
        raise SettingError(
            f"package {package}, which a mix takes a mixer from, is {byte_count(size)}, and a "
            "sweep keeps a copy; move what is no code out of it, to at most "
            f"{byte_count(LARGEST_PACKAGE)}."
        )
    return files


def _is_hidden(name: str) -> bool:
    return name == "__pycache__" or name.startswith(".")


def _put(content: bytes, source: Path, target: Path, *, link: bool) -> None:
    """A copy of what people edit; of data, which is replaced and not edited, another link."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if link and source.suffix not in SOURCE:
        with contextlib.suppress(OSError):
            os.link(source.resolve(), target)
            return
    target.write_bytes(content)
