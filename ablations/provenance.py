"""What made a run: code revision, versions, device. Written to manifest.json before training."""

from __future__ import annotations

import hashlib
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "numpy", "hydra-core", "flash-linear-attention", "triton")


def code(root: Path) -> tuple[dict[str, Any], str]:
    """({revision, dirty, diff_sha256}, diff) of the checkout; revision None without git."""
    revision = _git(root, "rev-parse", "HEAD")
    diff = _git(root, "diff", "HEAD", "--", "*.py", "*.yaml", "*.toml", "*.txt") or ""
    return {
        "revision": revision.strip() if revision else None,
        "dirty": bool(diff),
        "diff_sha256": hashlib.sha256(diff.encode()).hexdigest() if diff else None,
    }, diff


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


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=root, capture_output=True, text=True, timeout=30, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
