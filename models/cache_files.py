"""What is remembered for a machine's user between runs: small JSON files in a cache folder."""

import contextlib
import json
import os
import tempfile
import uuid
from pathlib import Path
from typing import Any


def cache_folder() -> Path:
    """`archladder` in XDG_CACHE_HOME, or in ~/.cache where that is not set."""
    if root := os.environ.get("XDG_CACHE_HOME", ""):
        return Path(root) / "archladder"
    try:
        return Path.home() / ".cache" / "archladder"
    except RuntimeError:  # a user without a home, as in some containers
        return Path(tempfile.gettempdir()) / f"archladder-{os.getuid()}"


def read_cache(path: Path) -> dict[str, Any]:
    """The content of a cache file; nothing where it is missing or damaged."""
    with contextlib.suppress(OSError, ValueError):
        known = json.loads(path.read_text())
        if isinstance(known, dict):
            return known
    return {}


def write_cache(path: Path, known: dict[str, Any]) -> None:
    """Replaced whole, for several runs may start at once; a cache that cannot be kept is not."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
        try:
            beside.write_text(json.dumps(known, indent=1))
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)
