"""Checkpoints: written beside, synced, renamed into place; a torn one is passed over.

A checkpoint holds everything the next step reads: weights, optimizer moments, the outlier rule's
window, the data hash and the step. Batches are a function of the step, so there is no data state.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

PATTERN = "step-*.pt"


def save(folder: Path, step: int, content: dict[str, Any]) -> Path:
    """Write `folder/step-<step>.pt` whole, or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{step:08d}.pt"
    beside = path.with_suffix(".tmp")
    try:
        with beside.open("wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return path


def prune(folder: Path, keep_steps: set[int]) -> None:
    """Remove all but the latest two checkpoints and those of `keep_steps` (the points)."""
    paths = sorted(folder.glob(PATTERN))
    for path in paths[:-2]:
        if _step(path) not in keep_steps:
            path.unlink()


def load_latest(folder: Path) -> tuple[dict[str, Any] | None, list[str]]:
    """The newest readable checkpoint (None without one), and a warning for each passed over."""
    warnings: list[str] = []
    for path in sorted(folder.glob(PATTERN), reverse=True):
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
            return content, warnings
        except (OSError, MemoryError):
            raise  # the file may be whole: passing it over would throw its steps away
        except Exception as error:  # a torn file raises many kinds: zip, pickle, key, runtime
            warnings.append(
                f"checkpoint {path.name} cannot be read ({error}); trying the one before"
            )
    return None, warnings


def _step(path: Path) -> int:
    return int(path.stem.split("-")[1])
