"""Whether runs fit what they are given: micro-batches, devices, disk. No torch.

A driver asks before it writes anything: what cannot work is a sentence and not a failed run.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from ablations.records import directory_of
from ablations.spec import RunSpec
from models.errors import SettingError
from models.format import byte_count

MICRO_BATCH_TOKENS = {"cpu": 8192, "cuda": 32768}
KEEP_LATEST = 2
"""Checkpoints kept of a run beside those of its points."""


def micro_batch_rows(wanted: int | None, context: int, rows: int, kind: str) -> int:
    """Sequences a forward pass takes of a device's `rows`.

    wanted: tokens, None for what the kind of device usually holds. Raises SettingError where it
    is not a multiple of the context that divides the rows.
    """
    if wanted is None:
        return max(1, min(rows, MICRO_BATCH_TOKENS[kind] // context))
    if wanted % context or not wanted or rows % (wanted // context):
        valid = [context * n for n in range(1, rows + 1) if rows % n == 0]
        shown = ", ".join(map(str, valid[:8])) + (", …" if len(valid) > 8 else "")
        raise SettingError(
            f"resources.micro_batch_tokens={wanted} does not divide a device's {rows} sequences of "
            f"{context} tokens a step; valid: {shown}."
        )
    return wanted // context


def check_ranks(ranks: int, rows: int) -> None:
    """Raise SettingError where a batch of `rows` sequences leaves a rank without any."""
    if ranks > rows:
        raise SettingError(
            f"a batch of {rows} sequences leaves some of {ranks} devices without one; set "
            f"resources.devices (on Slurm cluster.gpus and cluster.nodes) to {rows} or fewer."
        )


def checkpoint_bytes(spec: RunSpec) -> int:
    """Bytes of one checkpoint: weights and optimizer state in float32.

    AdamW keeps two numbers a weight, Muon one for the blocks' matrices.
    """
    counts = spec.counts
    # A body is matrices, but for norms and gates.
    return 4 * (3 * counts.N_total - (counts.N_body if spec.train.optim == "muon" else 0))


def kept_bytes(spec: RunSpec) -> int:
    """Bytes of all checkpoints that a finished run keeps: one a point, and the latest."""
    points = {milestone.step for milestone in spec.recipe.milestones}
    every = spec.logging.checkpoint_every
    between = range(every, spec.recipe.steps + 1, every)
    saved = sorted(points | set(between[-KEEP_LATEST:]))
    return checkpoint_bytes(spec) * len(points | set(saved[-KEEP_LATEST:]))


def cost_of_operators(backends: Iterable[str], on_gpu: bool) -> str:
    """What the slow forms of recurrent operators cost, a clause; empty where none is in use."""
    if "naive" in backends:
        # docs/performance.md: the two operators' forward and backward passes on a CPU.
        return "naive, the definition a token at a time, takes 10 to 30 times as long as chunked"
    if on_gpu and "chunked" in backends:
        return (
            "chunked is plain PyTorch, slower on a GPU than fla's kernels by what `python "
            "benchmarks/operators.py` measures there (install them: pip install '.[gpu]')"
        )
    return ""


def check_here(specs: Sequence[RunSpec], devices: int, gpus: int, folder: Path) -> None:
    """Raise SettingError for what the runs ask of this machine and it does not have.

    devices: that train a run together; gpus: of this machine; folder: where the runs are written.
    """
    for spec in specs:
        resources = spec.resources
        if resources.device == "cuda" and not gpus:
            raise SettingError(
                "resources.device=cuda is not on this machine; valid here: auto, cpu."
            )
        check_ranks(devices, spec.recipe.batch_instances)
        rows = -(-spec.recipe.batch_instances // devices)
        micro_batch_rows(resources.micro_batch_tokens, spec.recipe.context, rows, "cpu")
    check_room(specs, folder)


def check_room(specs: Sequence[RunSpec], folder: Path) -> None:
    """Raise SettingError where the disk of `folder` cannot hold what these runs will keep.

    What a stopped run has written already counts towards what it needs.
    """
    needed = sum(
        max(kept_bytes(spec) - _held(directory_of(folder, spec).path), checkpoint_bytes(spec))
        for spec in specs
    )
    there = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    free = shutil.disk_usage(there).free
    if needed > free:
        raise SettingError(
            f"runs={folder} has {byte_count(free)} free, and the checkpoints of these runs take "
            f"{byte_count(needed)}; make room, name a folder on another disk, or run fewer at a "
            "time."
        )


def _held(run: Path) -> int:
    return sum(f.stat().st_size for f in run.glob("checkpoints/step-*/*") if f.is_file())
