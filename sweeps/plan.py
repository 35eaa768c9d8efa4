"""What a sweep will cost, before it costs anything: runs, N, tokens, FLOPs, hours. No torch.

Hours on this machine come from the measured tokens per second of a run of that mix and size where
there is one under runs/, else from FLOPs and a stated rate; hours on a GPU always from the rate.
"""

from __future__ import annotations

import functools
import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from ablations.devices import GPU_PEAK_FLOPS
from ablations.records import RunDirectory
from ablations.spec import RunSpec
from models.errors import SettingError

TINY = 10_000_000
"""N below which one core a run is the best use of a CPU."""
CORE_FLOPS = {"tiny": 10e9, "large": 40e9}
"""Training FLOP/s a CPU core reaches in eager float32, below and above TINY; low, round figures."""
GPU_NAME, GPU_MFU = "H200", 0.40
"""The GPU that a plan quotes, and the share of its peak assumed."""


@dataclass(frozen=True)
class Estimate:
    """One run's cost. Hours are of this machine with the plan's parallelism, or of one GPU."""

    spec: RunSpec
    state: str
    flops: float
    seconds_here: float
    measured: bool
    gpu_hours: float


@dataclass(frozen=True)
class Plan:
    """A sweep's runs and what they need."""

    estimates: tuple[Estimate, ...]
    parallel: int
    threads: int
    """CPU threads a process."""
    devices: int = 1
    """Devices, and so processes, that train one run together."""

    @property
    def todo(self) -> list[Estimate]:
        return [e for e in self.estimates if e.state != "done"]

    @property
    def hours_here(self) -> float:
        """Wall-clock hours on this machine, `parallel` runs at a time."""
        seconds = [e.seconds_here for e in self.todo]
        return max(sum(seconds) / self.parallel, max(seconds, default=0.0)) / 3600


@functools.cache
def gpus_of_this_machine() -> tuple[str | None, int]:
    """The name of the NVIDIA GPUs here, by their driver's tool, and how many; (None, 0) without.

    The name is a kind of GPU_PEAK_FLOPS where it is one of those. Torch is not loaded to plan.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible == "":
        return None, 0
    try:
        asked = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        names = subprocess.run(asked, capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None, 0
    found = names.strip().splitlines()
    if not found:
        return None, 0
    count = len(visible.split(",")) if visible else len(found)
    return next((kind for kind in GPU_PEAK_FLOPS if kind in names), found[0]), count


def _devices(specs: Sequence[RunSpec], gpus: int, parallel: int) -> int:
    """Devices a run: as set, or for a run alone as many GPUs as its batch divides over."""
    batches = {spec.recipe.batch_instances for spec in specs}
    wanted = specs[0].resources.devices
    if wanted is None:
        most = gpus if parallel == 1 else 1
        return max(n for n in range(1, max(most, 1) + 1) if not any(b % n for b in batches))
    for rows in batches:
        if rows % wanted:
            raise SettingError(
                f"resources.devices={wanted} does not divide the batch of {rows} sequences; set "
                f"protocol.batch_multiple={wanted}, the same for every mix of the sweep, or "
                "resources.devices to a divisor."
            )
    return wanted


def _core_flops(spec: RunSpec) -> float:
    return CORE_FLOPS["tiny" if spec.counts.N < TINY else "large"]


def cores() -> int:
    """Processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def make_plan(specs: Sequence[RunSpec], runs_root: Path, max_parallel: int | None) -> Plan:
    """Estimate every run of a sweep and see which are done already."""
    tiny = all(spec.counts.N < TINY for spec in specs)
    gpu_here, gpus = (None, 0) if specs[0].resources.device == "cpu" else gpus_of_this_machine()
    parallel = max_parallel or (cores() if tiny and gpu_here is None else 1)
    parallel = max(1, min(parallel, len(specs)))
    devices = _devices(specs, gpus, parallel)
    threads = max(1, cores() // (parallel * devices))
    rates = measured_rates(runs_root, "cpu" if gpu_here is None else "cuda")
    estimates = []
    for spec in specs:
        flops = spec.counts.flops_per_token * spec.recipe.tokens
        rate = rates.get((spec.mix.name, spec.counts.N, spec.recipe.context))
        gpu_speed = GPU_PEAK_FLOPS.get(gpu_here or GPU_NAME, GPU_PEAK_FLOPS["A100"]) * GPU_MFU
        speed = devices * (gpu_speed if gpu_here else _core_flops(spec) * threads)
        seconds = spec.recipe.tokens / rate if rate else flops / speed
        status = RunDirectory(runs_root / spec.sweep / spec.run_name).read_status()
        estimates.append(
            Estimate(
                spec,
                status.get("state", "new") if spec.corpus else "no corpus",
                flops,
                seconds,
                rate is not None,
                flops / (GPU_PEAK_FLOPS[GPU_NAME] * GPU_MFU) / 3600,
            )
        )
    return Plan(tuple(estimates), parallel, threads, devices)


def measured_rates(runs_root: Path, device: str) -> dict[tuple[str, int, int], float]:
    """Mean tokens per second of the finished runs under `runs_root` on a kind of device.

    By mix name, N and context: what a size's name stands for depends on the corpus.
    """
    totals: dict[tuple[str, int, int], tuple[float, float]] = {}
    for status_file in runs_root.glob("*/*/status.json"):
        run = RunDirectory(status_file.parent)
        status = run.read_status()
        if status.get("state") != "done" or not status.get("seconds"):
            continue
        try:
            spec, manifest = run.read_spec(), run.read_manifest()
            key = (spec["mix"]["name"], manifest["counts"]["N"], spec["recipe"]["context"])
            kind = manifest["device"]["kind"]
        except (OSError, KeyError, TypeError):
            continue  # a run of another version, or half removed
        if kind == device:
            tokens, seconds = totals.get(key, (0.0, 0.0))
            totals[key] = (tokens + status["tokens"], seconds + status["seconds"])
    return {key: tokens / seconds for key, (tokens, seconds) in totals.items()}


def show(plan: Plan, console: Console) -> None:
    """Print the plan: a row a mix and size, seeds together, then totals."""
    table = Table(title="Plan", title_justify="left", header_style="bold")
    columns = ("mix", "size", "runs", "done", "N", "ΔN", "tokens", "epochs", "FLOPs", "h here")
    for name in (*columns, f"h {GPU_NAME}"):
        left = name in ("mix", "size")
        table.add_column(name, justify="left" if left else "right", no_wrap=True)
    groups: dict[tuple[str, str], list[Estimate]] = {}
    for estimate in plan.estimates:
        groups.setdefault((estimate.spec.mix.name, estimate.spec.size.name), []).append(estimate)
    for (mix, size), group in groups.items():
        spec = group[0].spec
        epochs = spec.epochs
        table.add_row(
            mix,
            size,
            str(len(group)),
            str(sum(e.state == "done" for e in group)),
            _short(spec.counts.N),
            f"{spec.counts.N / spec.recipe.N - 1:+.2%}",
            _short(spec.recipe.tokens),
            "no corpus" if epochs is None else f"{epochs:.2f}",
            f"{sum(e.flops for e in group):.2e}",
            ("" if group[0].measured else "~") + _hours(sum(e.seconds_here for e in group) / 3600),
            "~" + _hours(sum(e.gpu_hours for e in group)),
        )
    console.print(table)
    moved = {(e.spec.mix.name, e.spec.size.name): e.spec.matched for e in plan.estimates}
    changed = [f"{mix} {size}: {what}" for (mix, size), what in moved.items() if "→" in what]
    if changed:
        more = f"; {len(changed) - 6} more by `python -m models`" if len(changed) > 6 else ""
        console.print("matched: " + "; ".join(changed[:6]) + more + ".", style="dim")
    todo = plan.todo
    each = f"{_many(plan.threads, 'thread')} each"
    if plan.devices > 1:
        each = f"{plan.devices} processes a run, {each}"
    console.print(
        f"{_many(len(plan.estimates), 'run')}, {len(plan.estimates) - len(todo)} done; to go: "
        f"{_short(sum(e.spec.recipe.tokens for e in todo))} tokens, "
        f"{sum(e.flops for e in todo):.2e} FLOPs, about {_hours(plan.hours_here)} h here "
        f"({plan.parallel} at a time, {each}), "
        f"{_hours(sum(e.gpu_hours for e in todo))} h on one {GPU_NAME}."
    )
    if not all(e.measured for e in plan.estimates):
        console.print(
            f"~ by formula: {CORE_FLOPS['tiny'] / 1e9:g} GFLOP/s a core here "
            f"({CORE_FLOPS['large'] / 1e9:g} from N = {TINY / 1e6:g}M), {GPU_MFU:.0%} of "
            f"{GPU_PEAK_FLOPS[GPU_NAME] / 1e12:g} TFLOP/s on one {GPU_NAME}; others as measured.",
            style="dim",
        )


def _many(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _short(number: float) -> str:
    """Four significant digits with k, M, B or T."""
    for power, unit in ((12, "T"), (9, "B"), (6, "M"), (3, "k")):
        if number >= 10**power:
            return f"{number / 10**power:.4g}{unit}"
    return f"{number:g}"


def _hours(hours: float) -> str:
    return f"{hours:.3f}" if hours < 0.1 else f"{hours:,.1f}"
