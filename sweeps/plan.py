"""What a sweep will cost and what its mixes will differ in, before anything is spent. No torch.

Hours on this machine come from the measured tokens per second of a run of that mix and size where
there is one under runs/, else from FLOPs and a stated rate; hours on a GPU always from the rate.
Evaluation and the writing of checkpoints are not in them.
"""

import functools
import os
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table

from ablations.confounds import Confound, Facts, baseline_among, conditions, confounds
from ablations.devices import GPUS, gpu_kind
from ablations.records import RunDirectory
from ablations.resources import check_ranks, kept_bytes
from ablations.settings import to_dict
from ablations.spec import RunSpec

TINY = 10_000_000
"""N below which one core a run is the best use of a CPU."""
CORE_FLOPS = {"tiny": 10e9, "large": 40e9}
"""Training FLOP/s a CPU core reaches in eager float32, below and above TINY; low, round figures."""
QUOTED = "H200"
"""The GPU that a plan quotes where none is named."""


@dataclass(frozen=True)
class Estimate:
    """One run's cost. Seconds are of this machine with the plan's parallelism."""

    spec: RunSpec
    N: int
    state: str
    flops: float
    seconds_here: float
    measured: bool
    """Whether seconds_here rests on a run that was measured."""
    gpu_hours: float
    """On one GPU of the plan's kind."""
    gpus: int | None
    """GPUs that train the run together; None where there is none and none was asked for."""
    checkpoint_bytes: int
    """Of the checkpoints that stay when the run is done."""


@dataclass(frozen=True)
class Plan:
    """A sweep's runs and what they need."""

    estimates: tuple[Estimate, ...]
    parallel: int
    threads: int
    """CPU threads a process."""
    devices: int = 1
    """Devices, and so processes, that train one run together."""
    gpu: str = QUOTED
    """The kind of GPU, of ablations.devices.GPUS, that gpu_hours are of."""

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

    The name is a kind of GPUS where it is one of those. Torch is not loaded to plan.
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
    return gpu_kind(found[0]) or found[0], count


def _devices(specs: Sequence[RunSpec], gpus: int, parallel: int) -> int:
    """Devices a run: as set, or for runs one at a time all GPUs that its batch has rows for."""
    fewest = min(spec.recipe.batch_instances for spec in specs)
    wanted = specs[0].resources.devices
    if wanted is None:
        return max(1, min(gpus if parallel == 1 else 1, fewest))
    check_ranks(wanted, fewest)
    return wanted


def cores() -> int:
    """Processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def make_plan(
    specs: Sequence[RunSpec],
    runs_root: Path,
    max_parallel: int | None,
    *,
    gpus: Mapping[str, int] | None = None,
    gpu_kind: str | None = None,
) -> Plan:
    """Estimate every run of a sweep and see which are done already.

    gpus: GPUs a run by size name, and gpu_kind, where a cluster decides them. Raises
    SettingError where a batch has fewer rows than devices.
    """
    tiny = all(spec.counts.N < TINY for spec in specs)
    gpu_here, count = (None, 0) if specs[0].resources.device == "cpu" else gpus_of_this_machine()
    parallel = max_parallel or (cores() if tiny and gpu_here is None else 1)
    parallel = max(1, min(parallel, len(specs)))
    devices = _devices(specs, count, parallel)
    threads = max(1, cores() // (parallel * devices))
    rates = measured_rates(runs_root, "cpu" if gpu_here is None else "cuda", gpu_here or "")
    quoted = gpu_kind or (gpu_here if gpu_here in GPUS else QUOTED)
    gpu_flops = GPUS[quoted].peak_flops * GPUS[quoted].mfu
    here = GPUS.get(gpu_here or "", GPUS["A100"])
    estimates = []
    for spec in specs:
        counts = spec.counts
        flops = counts.flops_per_token * spec.recipe.tokens
        rate = rates.get((spec.mix.name, counts.N, spec.recipe.context))
        core_flops = CORE_FLOPS["tiny" if counts.N < TINY else "large"]
        speed = here.peak_flops * here.mfu if gpu_here else core_flops * threads
        seconds = spec.recipe.tokens / rate if rate else flops / speed
        status = RunDirectory(runs_root / spec.sweep / spec.run_name).read_status()
        on = (gpus or {}).get(spec.size.name, devices if gpu_here else spec.resources.devices)
        estimates.append(
            Estimate(
                spec,
                counts.N,
                status.get("state", "new") if spec.corpus else "no corpus",
                flops,
                seconds / devices,
                rate is not None,
                flops / gpu_flops / 3600,
                on,
                kept_bytes(spec),
            )
        )
    return Plan(tuple(estimates), parallel, threads, devices, quoted)


def measured_rates(
    runs_root: Path, kind: str, device: str = ""
) -> dict[tuple[str, int, int], float]:
    """Mean tokens per second and device of the finished runs under `runs_root`.

    kind: `cpu` or `cuda`; device: a part of its name. By mix name, N and context, as what a
    size's name stands for depends on the corpus.
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
            where = manifest["device"]
            fits = where["kind"] == kind and device in where.get("name", "")
        except (OSError, KeyError, TypeError, ValueError):
            continue  # a run of another version, or half removed
        if fits:
            tokens, seconds = totals.get(key, (0.0, 0.0))
            a_device = status["tokens"] / where.get("count", 1)
            totals[key] = (tokens + a_device, seconds + status["seconds"])
    return {key: tokens / seconds for key, (tokens, seconds) in totals.items()}


def plan_confounds(plan: Plan) -> list[Confound]:
    """What the mixes will differ in against the transformer, or the first mix, beside the mix."""
    runs = [Facts(to_dict(e.spec), e.N, e.spec.counts.flops_per_token) for e in plan.estimates]
    baseline = baseline_among(run.mix for run in runs)
    others = dict.fromkeys(run.mix for run in runs if run.mix != baseline)
    return [one for mix in others for one in confounds(runs, baseline, mix)] + conditions(runs)


COLUMNS = ("mix", "size", "done", "N", "ΔN", "tokens", "epochs", "GPUs")
TOTALS = ("FLOPs", "kept", "here")


def show(plan: Plan, console: Console) -> None:
    """Print the plan: a row a mix and size, seeds together, totals by mix, then confounds."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), header_style="bold")
    for name in (*COLUMNS, *TOTALS, f"{plan.gpu} h"):
        left = name in ("mix", "size")
        table.add_column(name, justify="left" if left else "right", no_wrap=True)
    mixes: dict[str, dict[str, list[Estimate]]] = {}
    for estimate in plan.estimates:
        own = mixes.setdefault(estimate.spec.mix.name, {})
        own.setdefault(estimate.spec.size.name, []).append(estimate)
    for mix, sizes in mixes.items():
        for group in sizes.values():
            table.add_row(*_cells(group))
        if len(sizes) > 1 and len(mixes) > 1:
            every = [e for group in sizes.values() for e in group]
            blank = [""] * (len(COLUMNS) - 3)
            table.add_row(mix, "all", _done(every), *blank, *_totals(every), style="bold")
            table.add_section()
    console.print(table)
    _show_matched(plan, console)
    _show_totals(plan, console)
    if len(mixes) > 1:
        _show_confounds(plan_confounds(plan), baseline_among(mixes), console)


def _cells(group: Sequence[Estimate]) -> list[str]:
    one = group[0]
    epochs = one.spec.epochs
    return [
        one.spec.mix.name,
        one.spec.size.name,
        _done(group),
        _short(one.N),
        f"{one.N / one.spec.recipe.N - 1:+.2%}",
        _short(one.spec.recipe.tokens),
        "–" if epochs is None else f"{epochs:.2f}",
        "–" if one.gpus is None else str(one.gpus),
        *_totals(group),
    ]


def _done(group: Sequence[Estimate]) -> str:
    return f"{sum(e.state == 'done' for e in group)} of {len(group)}"


def _totals(group: Sequence[Estimate]) -> list[str]:
    measured = all(e.measured for e in group)
    return [
        f"{sum(e.flops for e in group):.2e}",
        _bytes(sum(e.checkpoint_bytes for e in group)),
        ("" if measured else "~") + duration(sum(e.seconds_here for e in group)),
        "~" + _hours(sum(e.gpu_hours for e in group)),
    ]


def _show_matched(plan: Plan, console: Console) -> None:
    moved = {(e.spec.mix.name, e.spec.size.name): e.spec.matched for e in plan.estimates}
    changed = [f"{mix} {size}: {what}" for (mix, size), what in moved.items() if "→" in what]
    if changed:
        more = f"; {len(changed) - 6} more by `python -m models`" if len(changed) > 6 else ""
        console.print("matched: " + "; ".join(changed[:6]) + more + ".", style="dim")


def _show_totals(plan: Plan, console: Console) -> None:
    todo = plan.todo
    each = f"{_many(plan.threads, 'thread')} each"
    if plan.devices > 1:
        each = f"{plan.devices} processes a run, {each}"
    begun = sum(e.state in ("running", "preempted", "failed") for e in todo)
    words = f", {begun} begun and going on" if begun else ""
    console.print(
        f"{_many(len(plan.estimates), 'run')}, {len(plan.estimates) - len(todo)} done{words}; to "
        f"go: {_short(sum(e.spec.recipe.tokens for e in todo))} tokens, "
        f"{sum(e.flops for e in todo):.2e} FLOPs, {_bytes(sum(e.checkpoint_bytes for e in todo))} "
        f"of checkpoints, about {duration(plan.hours_here * 3600)} here ({plan.parallel} at a "
        f"time, {each}), {_hours(sum(e.gpu_hours for e in todo))} h on one {plan.gpu}."
    )
    note = (
        "Of one run: N, ΔN (against the size's transformer), tokens, epochs, GPUs. Of all: FLOPs, "
        "checkpoints kept, time."
    )
    if any(e.spec.corpus is None for e in plan.estimates):
        note += " No corpus is named yet, so epochs are not known."
    if not all(e.measured for e in plan.estimates):
        kind = GPUS[plan.gpu]
        note += (
            f" ~ by formula: {CORE_FLOPS['tiny'] / 1e9:g} GFLOP/s a core here "
            f"({CORE_FLOPS['large'] / 1e9:g} from N = {TINY / 1e6:g}M), {kind.mfu:.0%} of "
            f"{kind.peak_flops / 1e12:g} TFLOP/s on one {plan.gpu}; others as measured."
        )
    console.print(note, style="dim")


def _show_confounds(found: Sequence[Confound], baseline: str, console: Console) -> None:
    """A paragraph a confound: its size in every mix, and what it does where it is largest."""
    if not found:
        console.print(f"Confounds against {baseline}: none found.")
        return
    console.print(f"Confounds against {baseline}, by the specs:")
    for name in dict.fromkeys(one.name for one in found):
        own = [one for one in found if one.name == name]
        sizes = "; ".join(" ".join(filter(None, (one.mix, one.short))) for one in own)
        worst = max(own, key=lambda one: max(map(abs, one.magnitudes), default=0.0))
        at_most = f"{worst.mix}, " if len({one.severity for one in own}) > 1 else ""
        console.print(Padding(f"{name}: {sizes}", (0, 0, 0, 2)))
        console.print(Padding(f"{at_most}{worst.severity}", (0, 0, 0, 6)), style="dim")


def _many(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _short(number: float) -> str:
    """Four significant digits with k, M, B or T."""
    return _scaled(number, ((12, "T"), (9, "B"), (6, "M"), (3, "k")), 4)


def _bytes(number: float) -> str:
    return _scaled(number, ((12, " TB"), (9, " GB"), (6, " MB"), (3, " kB")), 3)


def _scaled(number: float, units: Iterable[tuple[int, str]], digits: int) -> str:
    for power, unit in units:
        if number >= 10**power:
            return f"{number / 10**power:.{digits}g}{unit}"
    return f"{number:g}"


def _hours(hours: float) -> str:
    return f"{hours:.3f}" if hours < 0.1 else f"{hours:,.1f}"


def duration(seconds: float) -> str:
    """In the unit that leaves a small number."""
    for size, unit in ((365 * 86400, "years"), (86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= size * (2 if unit in ("years", "days") else 1):
            return f"{seconds / size:,.{0 if seconds >= 100 * size else 1}f} {unit}"
    return f"{seconds:.0f} s"
