"""Whether runs fit what they are given: micro-batches, devices, disk. No torch.

A driver asks before it writes anything: what cannot work is a sentence and not a failed run.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from ablations.records import directory_of
from ablations.spec import RunSpec
from models.cost import TrainingMemory, training_memory
from models.errors import SettingError
from models.format import byte_count

CPU_TOKENS = 8192
"""Tokens of a micro-batch on a CPU: more of them leave the caches and gain nothing."""
KEPT = {
    ("compiled", False): 1.1,
    ("compiled", True): 1.9,
    ("eager", False): 1.8,
    ("eager", True): 2.4,
}
"""What training keeps over what `models.cost.activation_bytes` counts, at most, by how the blocks
run and whether a recurrent operator is in its chunked form. Measured by the sums of what autograd
saves (tests/models/test_activations.py), but for fla's kernels, which no CPU runs."""
KEEP_LATEST = 2
"""Checkpoints kept of a run beside those of its points."""


def micro_batch_rows(wanted: int | None, context: int, rows: int, fit: int | None = None) -> int:
    """Sequences a forward pass takes of a device's `rows`.

    wanted: tokens, None for what there is room for; fit: sequences that a GPU's memory holds, None
    on a CPU. Raises SettingError where `wanted` is not a multiple of the context that divides the
    rows.
    """
    if wanted is None:
        if fit is None:
            return max(1, min(rows, CPU_TOKENS // context))
        return even_rows(rows, fit)
    if wanted % context or not wanted or rows % (wanted // context):
        valid = [context * n for n in range(1, rows + 1) if rows % n == 0]
        shown = ", ".join(map(str, valid[:8])) + (", …" if len(valid) > 8 else "")
        raise SettingError(
            f"resources.micro_batch_tokens={wanted} does not divide a device's {rows} sequences of "
            f"{context} tokens a step; valid: {shown}."
        )
    return wanted // context


def even_rows(rows: int, most: int) -> int:
    """Of `rows` sequences those of one pass, at most `most`, at least 1: a number that divides them
    where one is above half of `most`, as a pass of another size is compiled by itself, else the
    largest power of two.
    """
    most = max(1, min(rows, most))
    divisor = max(n for n in range(1, most + 1) if rows % n == 0)
    return divisor if 2 * divisor > most else 1 << (most.bit_length() - 1)


def memory_of(
    spec: RunSpec, *, bf16: bool, compiled: bool, chunked: bool, parallel: str | None, devices: int
) -> TrainingMemory:
    """Counted bytes of a run's training on each of its GPUs.

    bf16: whether products are; compiled: whether blocks are; chunked: whether a recurrent operator
    is in plain PyTorch; parallel: how the model lies over so many devices.
    """
    return training_memory(
        spec.model,
        spec.recipe.context,
        element_bytes=2 if bf16 else 4,
        kept=KEPT["compiled" if compiled else "eager", chunked],
        recompute=spec.resources.activation_checkpointing,
        muon=spec.train.optim == "muon",
        parallel=parallel,
        shards=devices,
    )


def no_room(spec: RunSpec, rows: int, memory: TrainingMemory, device_bytes: float) -> SettingError:
    """The sentence for a micro-batch of `rows` sequences that a GPU did not hold."""
    context = spec.recipe.context
    ways = []
    if rows > 1:
        ways.append(f"resources.micro_batch_tokens={even_rows(rows, rows // 2) * context}")
    if spec.resources.activation_checkpointing != "true":
        ways.append("resources.activation_checkpointing=true")
    ways.append("more GPUs with resources.parallel=fsdp")
    sequences = "1 sequence" if rows == 1 else f"{rows} sequences"
    return SettingError(
        f"a micro-batch of {sequences} of {context} tokens does not fit a GPU's memory of "
        f"{byte_count(device_bytes)}: by count {byte_count(memory.of(0))} for weights, optimizer "
        f"and logits, and {byte_count(memory.sequence)} a sequence; give {' or '.join(ways)}."
    )


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
        micro_batch_rows(resources.micro_batch_tokens, spec.recipe.context, rows)
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
