"""What made a run: code revision, versions, device. Written to manifest.json before training."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

WHAT_RUNS = ("models/*.py", "ablations/*.py", "sweeps/*.py", "conf/*.yaml", "constraints.txt")
SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSW", re.IGNORECASE)
RECORD, DIFF = "revision.json", "code.diff"
"""In a copy of the code: what `code` said of the checkout it was copied from."""
PACKAGES = ("torch", "numpy", "hydra-core", "flash-linear-attention", "triton")


def code(root: Path) -> tuple[dict[str, Any], str]:
    """({revision, dirty, diff_sha256}, diff) of the checkout; revision None without git.

    A copy of the code, as sweeps keep one, says of itself what its checkout said.
    """
    if (root / RECORD).exists():
        told = (root / DIFF).read_text(encoding="utf-8")
        return json.loads((root / RECORD).read_text(encoding="utf-8")), told
    revision = git(root, "rev-parse", "HEAD")
    diff = (git(root, "diff", "HEAD", "--", *WHAT_RUNS) or b"").decode(errors="replace")
    # Files that git does not know yet change a run as well.
    new = git(root, "ls-files", "-z", "--others", "--exclude-standard", "--", *WHAT_RUNS) or b""
    for name in filter(None, new.split(b"\0")):
        content = (root / os.fsdecode(name)).read_bytes()
        diff += f"\n+++ {name.decode(errors='replace')}\n{content.decode(errors='replace')}"
    diff = redact(diff)
    return {
        "revision": revision.decode().strip() if revision else None,
        "dirty": bool(diff),
        "diff_sha256": hashlib.sha256(diff.encode()).hexdigest() if diff else None,
    }, diff


def redact(text: str) -> str:
    """`text` without the values of environment variables that are named like secrets."""
    for name, value in os.environ.items():
        if SECRET.search(name) and len(value) >= 8:
            text = text.replace(value, f"<{name}>")
    return text


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide a run's numbers, where installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def cpu_name() -> str:
    """The processor's name, as the system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def git(root: Path, *arguments: str) -> bytes | None:
    """What git prints in `root`; None where it cannot."""
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=root, capture_output=True, timeout=30, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
