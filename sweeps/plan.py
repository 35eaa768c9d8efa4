"""What a sweep will cost and what its mixes will differ in, before anything is spent. No torch.

Hours where the sweep runs, on this machine or on a cluster, come from the measured tokens per
second of a run of that mix and size on such a device where there is one under runs/, else from
FLOPs and a stated rate, on a GPU a share of what a model of the step allows; quoted hours on a
GPU always from the rate. They hold training, evaluation by its FLOPs and, on a CPU, what a run
takes to start. The writing of checkpoints, waiting in a queue, and on a GPU starting and compiling,
which are not measured, are not in them.
"""

import functools
import importlib.util
import os
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table

from ablations.confounds import Confound, Facts, baseline_among, conditions, confounds
from ablations.data.source import held_out_tokens
from ablations.evaluate import budget
from ablations.records import RunDirectory, directory_of
from ablations.resources import check_ranks, cost_of_operators, kept_bytes
from ablations.spec import RunSpec, too_many_epochs
from models import roofline
from models.devices import GPUS, Gpu, gpu_kind
from models.format import byte_count, count, duration, flop_count, percent
from models.mixers import lookup
from sweeps.arrays import Array, arrays, makespan, time_of
from sweeps.cluster import Slurm
from sweeps.view import fitted

TINY = 10_000_000
"""N below which one core a run is the best use of a CPU."""
CORE_FLOPS = ((10_000_000, 40e9), (500_000, 25e9), (150_000, 16e9), (75_000, 11e9), (0, 8e9))
"""(N, training FLOP/s a CPU core reaches in eager float32 from that N on): up to 1m the slower of
two mixes on the slower of two machines of docs/performance.md, beyond it low, round figures."""
IMPORT_SECONDS = 6.0
"""Of a CPU core to import torch and all else that a run needs: docs/performance.md."""
START_SECONDS = 1.0
"""Then to open the corpus and build a tiny model."""
QUOTED = "H200"
"""The GPU that a plan quotes where none is named."""


@dataclass(frozen=True)
class Estimate:
    """One run's cost."""

    spec: RunSpec
    N: int
    state: str
    flops: float
    seconds: float
    """Where it will run: here with the plan's parallelism, or as its cluster shapes it."""
    measured: bool
    """Whether seconds rests on a run that was measured."""
    gpu_hours: float
    """On one GPU of the plan's kind."""
    gpus: int | None
    """GPUs that train the run together; None where there is none and none was asked for."""
    checkpoint_bytes: int
    """Of the checkpoints that stay when the run is done."""
    on_gpus: bool = False
    """Whether it trains on GPUs where it will run."""
    evaluation_flops: float = 0.0
    """Of all its points, which `flops` are without; 0 where no corpus is named yet."""
    mfu: float = 0.0
    """Share of the peak that gpu_hours take."""


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
    """The kind of GPU, of models.devices.GPUS, that gpu_hours are of."""
    cluster: Slurm | None = None
    """Where the runs go; None for this machine."""
    before_seconds: float = 0.0
    """Until the first runs can begin: what is imported once for all."""

    @property
    def todo(self) -> list[Estimate]:
        return [e for e in self.estimates if e.state != "done"]

    @property
    def hours(self) -> float:
        """Wall-clock hours where the runs go, `parallel` at a time and none waiting for a node."""
        seconds = [e.seconds for e in self.todo]
        if self.cluster:
            return makespan(self.arrays, seconds) / 3600
        if not seconds:
            return 0.0
        return (max(sum(seconds) / self.parallel, *seconds) + self.before_seconds) / 3600

    @property
    def arrays(self) -> list[Array]:
        """What would be asked of Slurm for what is not done; none on this machine."""
        runs = []
        for e in self.todo if self.cluster else ():
            shape = self.cluster.shape(e.spec.size.name)  # type: ignore[union-attr]
            recipe = e.spec.recipe
            runs.append((e.spec.sweep, shape, time_of(recipe.N, recipe.tokens, shape)))
        return arrays(runs, self.parallel, max_gpus=self.cluster.max_gpus if self.cluster else None)

    @property
    def hours_of_gpus(self) -> float:
        """GPU-hours that what is not done takes where it runs: 0 on CPUs."""
        return sum(e.seconds * (e.gpus or 0) for e in self.todo if e.on_gpus) / 3600


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
    return gpu_kind(found[0]) or found[0], len(visible.split(",") if visible else found)


def evaluation_flops(spec: RunSpec, held_out: Iterable[int]) -> float:
    """FLOPs of the held-out text, the probes and the samples at all points of a run, a third of
    training's a token.

    held_out: tokens of each domain.
    """
    read = sum(min(n, spec.data.eval_tokens or n) for n in held_out)
    a_point = read * spec.counts.flops_per_token / 3
    a_point += budget.flops(spec.evaluation, spec.model, spec.recipe.context)
    return a_point * len(spec.recipe.milestones)


def assumed_mfu(spec: RunSpec, gpu: Gpu, devices: int = 1) -> float:
    """Share of a GPU's peak that a run's training is taken to reach on so many of them: what a
    model of the step allows, times an efficiency."""
    step = roofline.step(
        spec.model,
        spec.recipe.context,
        gpu,
        batch_tokens=spec.recipe.batch_tokens,
        gpus=devices,
        recompute=spec.resources.activation_checkpointing == "true",
    )
    return step.mfu * gpu.efficiency


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
    cluster: Slurm | None = None,
    max_gpus: int | None = None,
) -> Plan:
    """Estimate every run of a sweep and see which are done already.

    cluster: where the runs go; None for this machine, of whose GPUs they have max_gpus at most.
    Raises SettingError where a batch has fewer
    rows than devices.
    """
    gpu_here, gpus_here = (None, 0)
    if cluster is None and specs[0].resources.device != "cpu":
        gpu_here, gpus_here = gpus_of_this_machine()
        gpus_here = min(gpus_here, max_gpus or gpus_here)
    if cluster is None:
        tiny = all(spec.counts.N < TINY for spec in specs)
        parallel = max_parallel or (cores() if tiny and gpu_here is None else 1)
    else:
        parallel = max_parallel or len(specs)
    parallel = max(1, min(parallel, len(specs)))
    devices = 1 if cluster else _devices(specs, gpus_here, parallel)
    threads = max(1, cores() // (parallel * devices))
    quoted = (cluster and cluster.gpu_kind) or (gpu_here if gpu_here in GPUS else QUOTED)
    on_gpus = quoted if cluster else gpu_here
    rates = {
        "cpu": measured_rates(runs_root, "cpu"),
        "cuda": measured_rates(runs_root, "cuda", on_gpus) if on_gpus else {},
    }
    here = GPUS.get(on_gpus or "", GPUS["A100"])
    corpora = {(spec.data.name, spec.data.path) for spec in specs if spec.corpus}
    held_out = {corpus: held_out_tokens(*corpus) for corpus in corpora}
    forked = cluster is None and gpu_here is None and devices == 1
    estimates = []
    for spec in specs:
        counts = spec.counts
        flops = counts.flops_per_token * spec.recipe.tokens
        gpus, ranks, cpus = spec.resources.devices, devices, threads
        if cluster:
            shape = cluster.shape(spec.size.name)
            gpus, ranks, cpus = shape.all_gpus, shape.ranks, shape.cpus
        elif gpu_here:
            gpus = devices
        by_gpu = bool(gpus) if cluster else gpu_here is not None
        rate = rates["cuda" if by_gpu else "cpu"].get(
            (spec.mix.name, counts.N, spec.recipe.context)
        )
        core_flops = next(rate for least, rate in CORE_FLOPS if least <= counts.N)
        speed = core_flops * cpus
        if by_gpu:
            speed = here.peak_flops * assumed_mfu(spec, here, ranks)
        mfu = assumed_mfu(spec, GPUS[quoted])
        tokens = held_out.get((spec.data.name, spec.data.path))
        evaluation = evaluation_flops(spec, tokens.values()) if tokens else 0.0
        more = 1 + evaluation / flops
        seconds = spec.recipe.tokens * more / rate if rate else (flops + evaluation) / speed
        start = 0.0 if by_gpu else START_SECONDS if forked else IMPORT_SECONDS + START_SECONDS
        run = directory_of(runs_root, spec)
        estimates.append(
            Estimate(
                spec,
                counts.N,
                run.state if spec.corpus else "no corpus",
                flops,
                seconds / ranks + start,
                rate is not None,
                (flops + evaluation) / (GPUS[quoted].peak_flops * mfu) / 3600,
                gpus or None,
                kept_bytes(spec),
                by_gpu,
                evaluation,
                mfu,
            )
        )
    before = IMPORT_SECONDS if forked else 0.0
    return Plan(tuple(estimates), parallel, threads, devices, quoted, cluster, before)


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
        if status.get("state") != "done" or not (status.get("seconds") and status.get("tokens")):
            continue
        try:
            spec, manifest = run.read_spec(), run.read_manifest()
            key = (spec["mix"]["name"], manifest["counts"]["N"], spec["recipe"]["context"])
            where = manifest["device"]
            fits = where["kind"] == kind and device in where.get("name", "")
            a_device = status["tokens"] / where.get("count", 1)
        except (OSError, KeyError, TypeError, ValueError, ZeroDivisionError):
            continue  # a run of another version, or half removed
        if fits:
            tokens, seconds = totals.get(key, (0.0, 0.0))
            totals[key] = (tokens + a_device, seconds + status["seconds"])
    return {key: tokens / seconds for key, (tokens, seconds) in totals.items()}


def plan_confounds(plan: Plan) -> list[Confound]:
    """What the mixes will differ in against the transformer, or the first mix, beside the mix."""
    runs = [Facts(e.spec.plain(), e.N, e.spec.counts.flops_per_token) for e in plan.estimates]
    baseline = baseline_among(run.mix for run in runs)
    others = dict.fromkeys(run.mix for run in runs if run.mix != baseline)
    return [one for mix in others for one in confounds(runs, baseline, mix)] + conditions(runs)


COLUMNS = ("mix", "size", "done", "N", "ΔN", "tokens", "epochs", "GPUs")
TOTALS = ("FLOPs", "kept")
LEAST = ("epochs", "ΔN", "kept", "FLOPs", "GPUs", "done", "tokens", "N")
"""Columns that a narrow terminal goes without, first to last."""


def show(plan: Plan, console: Console) -> None:
    """Print the plan: a row a mix and size, seeds together, totals by mix, then confounds."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), header_style="bold")
    place = "on Slurm" if plan.cluster else "here"
    for name in (*COLUMNS, *TOTALS, place, f"{plan.gpu} h"):
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
    console.print(fitted(table, console, LEAST))
    for problem in dict.fromkeys(too_many_epochs(e.spec) for e in plan.estimates):
        if problem:
            console.print(f"would be refused: {problem}", soft_wrap=True)
    _show_matched(plan, console)
    _show_tries(plan, console)
    _show_operators(plan, console)
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
        count(one.N),
        percent(one.N / one.spec.recipe.N - 1, "+.2f"),
        count(one.spec.recipe.tokens),
        "–" if epochs is None else f"{epochs:.2f}",
        "–" if one.gpus is None else str(one.gpus),
        *_totals(group),
    ]


def _done(group: Sequence[Estimate]) -> str:
    return f"{sum(e.state == 'done' for e in group)} of {len(group)}"


def _totals(group: Sequence[Estimate]) -> list[str]:
    measured = all(e.measured for e in group)
    return [
        flop_count(sum(e.flops for e in group)),
        byte_count(sum(e.checkpoint_bytes for e in group)),
        ("" if measured else "~") + duration(sum(e.seconds for e in group)),
        "~" + _gpu_hours(group),
    ]


def _gpu_hours(group: Sequence[Estimate]) -> str:
    return count(round(sum(e.gpu_hours for e in group), 2), 3)


def _show_matched(plan: Plan, console: Console) -> None:
    moved = {(e.spec.mix.name, e.spec.size.name): e.spec.matched for e in plan.estimates}
    changed = [f"{mix} {size}: {what}" for (mix, size), what in moved.items() if "→" in what]
    if changed:
        more = f"; {len(changed) - 6} more by `python -m models`" if len(changed) > 6 else ""
        console.print("matched: " + "; ".join(changed[:6]) + more + ".", style="dim")


def _show_operators(plan: Plan, console: Console) -> None:
    """Which forms the recurrent operators will have, as far as that is known without the device."""
    recurrent = [e for e in plan.estimates if any(lookup(m).operators for m in e.spec.model.mixers)]
    for on_gpu, wanted in dict.fromkeys((e.on_gpus, e.spec.resources.backend) for e in recurrent):
        likely, why = wanted, "as asked for"
        if wanted == "auto":
            installed = importlib.util.find_spec("fla") is not None
            likely = "fla" if on_gpu and installed else "chunked"
            why = "the form for a CPU"
            if on_gpu:
                why = "where a check on the node finds it right, else chunked"
                why = why if installed else "as fla is not installed here"
        slow = cost_of_operators([likely], on_gpu)
        words = f"{likely}, {why}" + (f"; {slow}" if slow else "")
        console.print(f"recurrent operators: {words}.", soft_wrap=True)


def _show_tries(plan: Plan, console: Console) -> None:
    tries = [e.spec for e in plan.estimates if e.spec.recipe.ladder_steps is not None]
    sizes = ", ".join(dict.fromkeys(spec.size.name for spec in tries))
    some = f" ({sizes})" if len(tries) < len(plan.estimates) else ""
    for number in sorted({spec.recipe.steps for spec in tries}):
        console.print(f"tries{some}: {_many(number, 'step')}, no point of the ladder.")


def _show_totals(plan: Plan, console: Console) -> None:
    todo = plan.todo
    place = f"here ({plan.parallel} at a time, {_many(plan.threads, 'thread')} each)"
    if plan.devices > 1:
        place = place.replace("time, ", f"time, {plan.devices} processes a run, ")
    if plan.cluster:
        most = plan.cluster.max_gpus
        together = f"{plan.parallel} at a time" if most is None else f"on at most {most} GPUs"
        place = f"on Slurm ({together}, beside waiting in its queue)"
    begun = sum(e.state in ("running", "preempted", "failed", "damaged") for e in todo)
    words = f", {begun} begun and going on" if begun else ""
    console.print(
        f"{_many(len(plan.estimates), 'run')}, {len(plan.estimates) - len(todo)} done{words}; to "
        f"go: {count(sum(e.spec.recipe.tokens for e in todo))} tokens, "
        f"{flop_count(sum(e.flops for e in todo))} FLOPs, "
        f"{byte_count(sum(e.checkpoint_bytes for e in todo))} of checkpoints, about "
        f"{duration(plan.hours * 3600)} {place}, {_gpu_hours(todo)} h on one {plan.gpu}."
    )
    note = (
        "Of one run: N, ΔN (against the size's transformer), tokens, epochs, GPUs. Of all: FLOPs, "
        "checkpoints kept, time."
    )
    if any(e.spec.corpus is None for e in plan.estimates):
        note += " No corpus is named yet, so epochs are not known."
    note += f" Time holds {_in_the_time(plan)}."
    if not all(e.measured for e in plan.estimates):
        note += f" ~ by formula: {_by_formula(plan)}; others as measured."
    if plan.cluster and plan.cluster.gpu_kind is None and any(e.gpus for e in plan.estimates):
        note += f" GPUs are taken for {plan.gpu}s, as cluster.gpu_kind names no other."
    console.print(note, style="dim")


def _in_the_time(plan: Plan) -> str:
    """What the hours are of, beside training."""
    evaluation, training = (
        sum(getattr(e, name) for e in plan.estimates) for name in ("evaluation_flops", "flops")
    )
    words = f"training, evaluation ({evaluation / training:.2g} of training's FLOPs)"
    if not evaluation:
        words = "training, and evaluation only once a corpus is named"
    if any(e.on_gpus for e in plan.estimates):
        return f"{words}; not starting and compiling, which no GPU has been measured for"
    if plan.before_seconds:
        return (
            f"{words}, {START_SECONDS:g} s to start a run, and once {plan.before_seconds:g} s of "
            "imports"
        )
    return f"{words} and {IMPORT_SECONDS + START_SECONDS:g} s to start a run"


def _by_formula(plan: Plan) -> str:
    """The rates that stand in for what was not measured."""
    kind = GPUS[plan.gpu]
    low, high = (percent(f(e.mfu for e in plan.estimates), ".0f") for f in (min, max))
    share = low if low == high else f"{low} to {high}"
    gpu = (
        f"{share} of {kind.peak_flops / 1e12:g} TFLOP/s on one {plan.gpu}, "
        f"{percent(kind.efficiency, '.0f')} of what a model of the step allows (python -m "
        "models.roofline)"
    )
    if plan.cluster and all(e.gpus for e in plan.estimates):
        return gpu
    *larger, (_, least) = CORE_FLOPS
    others = ", ".join(f"{rate / 1e9:g} from N = {count(N)}" for N, rate in reversed(larger))
    where = "there" if plan.cluster else "here"
    return f"{least / 1e9:g} GFLOP/s a core {where} ({others}), {gpu}"


def show_arrays(plan: Plan, console: Console) -> None:
    """Print what would be asked of Slurm for what is not done, a line an array."""
    todo, planned = plan.todo, plan.arrays
    names = [
        ", ".join(dict.fromkeys(todo[i].spec.size.name for i in array.members)) for array in planned
    ]
    for array, name in zip(planned, names, strict=True):
        words = f"{len(array.members)} × ({array.shape}) for {name}, {array.at_once} at a time"
        if array.after is not None:
            words += f" once {names[array.after]} has ended"
        longest = max(todo[i].seconds for i in array.members)
        if longest > array.shape.minutes * 60:
            words += f"; up to {duration(longest)} each, queued again at every time limit"
        console.print(f"Slurm: {words}.", soft_wrap=True)
    if len(planned) > 1 and plan.cluster and plan.cluster.max_gpus is not None:
        console.print(f"Slurm: at most {plan.cluster.max_gpus} GPUs at a time in all.")
    if len(planned) > 1 and plan.parallel < len(todo):
        console.print(f"Slurm: at most {plan.parallel} runs at a time in all.", soft_wrap=True)


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
