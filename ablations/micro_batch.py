"""How many sequences a forward pass takes on a GPU: by counted bytes, and tried before they train.

The count (models/cost.py) says what should fit. One micro-batch, forward and backward with a run's
own shapes, says whether it does; if not, half as many are tried. A batch is the same batch in any
number of passes, whose sums round differently: docs/control.md, placement.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

from ablations.distributed import World
from ablations.hardware import Hardware
from ablations.resources import even_rows, memory_of, micro_batch_rows
from ablations.spec import RunSpec
from models.cost import TrainingMemory
from models.ops import backend
from models.ops.operator import operators_of


def counted(
    spec: RunSpec, hardware: Hardware, parallel: str | None, world: World
) -> TrainingMemory:
    """Bytes of a run on each of its devices, as it is run here."""
    names, forms = operators_of(spec.model.mixers), backend.in_use()
    return memory_of(
        spec,
        bf16=hardware.precision == "bf16",
        compiled=hardware.compiled,
        chunked=any(forms[name] != "fla" for name in names),
        parallel=parallel,
        devices=world.size,
    )


def choose_rows(
    spec: RunSpec,
    share: int,
    hardware: Hardware,
    memory: TrainingMemory,
    world: World,
    before: Mapping[str, Any],
) -> int:
    """Sequences of a pass, of a device's `share` of a batch: as set, as the run was begun on such
    devices, or by memory.

    before: the manifest of the run's last start, empty where there is none.
    """
    context, wanted = spec.recipe.context, spec.resources.micro_batch_tokens
    there = hardware.memory_bytes
    if wanted is not None or there is None:
        return micro_batch_rows(wanted, context, share)
    rows = micro_batch_rows(None, context, share, memory.rows_in(there))
    # Sums in the same order, and so the same bits, for a run that goes on as it was begun.
    device = before.get("device", {})
    if (device.get("name"), device.get("count")) == (hardware.name, world.size):
        rows = min(share, before.get("micro_batch_rows") or rows)
    return min(world.gather(rows))


def rows_that_run(
    rows: int, share: int, attempt: Callable[[int], None], anywhere: Callable[[bool], bool]
) -> int:
    """The first of `rows`, half of them, … whose `attempt` does not run out of memory; 0 for none.

    share: a device's sequences a step; anywhere: whether a flag is true on any rank, as all are to
    take the same number.
    """
    while True:
        failed = False
        try:
            attempt(rows)
        except torch.OutOfMemoryError:
            failed = True  # and what the attempt held is let go with its frames
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if not anywhere(failed):
            return rows
        if rows == 1:
            return 0
        rows = even_rows(share, rows // 2)


@contextlib.contextmanager
def as_in_training(
    model: torch.nn.Module, optimizers: Sequence[torch.optim.Optimizer]
) -> Iterator[None]:
    """Memory as full as in any later step meanwhile: with gradients, and with the optimizers' state
    where they have none yet. No gradient is left behind."""
    device = next(model.parameters()).device
    held = []
    for optimizer in optimizers:
        numbers = 1 if isinstance(optimizer, torch.optim.Muon) else 2
        for group in optimizer.param_groups:
            new = sum(p.nbytes for p in group["params"] if not optimizer.state.get(p))
            held.append(torch.empty(numbers * new, dtype=torch.uint8, device=device))
    try:
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        yield
    finally:
        for parameter in model.parameters():
            parameter.grad = None
        held.clear()
