"""A trace of some steps of a run, by torch.profiler, in Chrome's format.

Kernels, operators and their shapes by time; chrome://tracing and ui.perfetto.dev open it.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, schedule

FILE = "trace.json.gz"
STEPS_BEFORE = 5
"""Steps that a start makes before: they compile and fill the allocator. The profiler itself is
begun in the last of them."""


def _nothing() -> None:
    """After a step of a run that is not traced."""


@contextlib.contextmanager
def traced(
    steps: int | None, folder: Path, device: torch.device, say: Callable[[str], None]
) -> Iterator[Callable[[], None]]:
    """Trace so many steps into `folder`, those after the first few; None: not.

    What it yields is to be called after each step. No number of a run depends on it but measured
    time. A start that ends before has no trace.
    """
    if steps is None:
        yield _nothing
        return
    counted, last = 0, STEPS_BEFORE + steps
    path = folder / FILE
    what = "1 step" if steps == 1 else f"{steps} steps"

    def write(profiler: profile) -> None:
        if counted < last:
            return
        # Kineto compresses by the name's ending.
        with tempfile.TemporaryDirectory(dir=folder, prefix=".trace-") as beside:
            written = Path(beside) / FILE
            profiler.export_chrome_trace(str(written))
            written.replace(path)
        say(f"resources.profile: {FILE} holds {what}, after the first {STEPS_BEFORE}")

    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with profile(
        activities=activities,
        schedule=schedule(wait=STEPS_BEFORE - 1, warmup=1, active=steps, repeat=1),
        on_trace_ready=write,
        record_shapes=True,
        acc_events=True,
    ) as profiler:

        def after_a_step() -> None:
            nonlocal counted
            counted += 1
            profiler.step()

        yield after_a_step
    if counted < last:
        say(f"resources.profile: no trace, as this start ended after step {counted} of {last}")
