"""Compose a sweep with Hydra, show its plan, freeze a spec a run, and run or submit them.

    python sweeps/run.py mix=gdn3_attn1 size=50k                     one run
    python sweeps/run.py -m mix=transformer,gdn3_attn1 size=50k,100k seed=0,1 sweep=first
    python sweeps/run.py -m mix=gdn3_attn1 size=60m,150m,1b cluster=slurm

Hydra only composes: nothing is written before every run of the sweep has been resolved, compared
and found to fit. No torch is imported here.
"""

from __future__ import annotations

import math
import os
import re
import shlex
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

# `python sweeps/run.py` puts only sweeps/ on the path.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
# A mixer's package may be in the folder of the command; last, so that it hides nothing.
sys.path.append("")
# Hydra's own report of an error is several lines and exit code 1; ours is a sentence and 2.
os.environ.setdefault("HYDRA_FULL_ERROR", "1")

from models.errors import SettingError
from models.terminal import readable

if TYPE_CHECKING:
    from rich.console import Console

    from ablations.spec import RunSpec
    from sweeps.cluster import Local, Slurm
    from sweeps.plan import Plan
    from sweeps.submit import Request


LONGEST_NAME, LONGEST_PATH = 200, 3500
OPEN = re.compile(r"(mix|protocol)\.\w+=")


def main() -> int:
    """Exit code 0 when all runs are done, 1 when one is not, 2 on a setting that cannot be used."""
    from sweeps.usage import usage

    return ended(_run, usage)


def _run(arguments: list[str]) -> int:
    settings = composed(arguments)
    given = [a for a in arguments if not a.startswith("dry_run=")]
    return sweep(settings, "python sweeps/run.py " + shlex.join(given)) if settings else 0


def ended(command: Callable[[list[str]], int], usage: Callable[[], str]) -> int:
    """The exit code of a command that starts sweeps: its own, or 2 with a sentence on what the user
    can mend."""
    readable()
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(usage())
        return 0
    try:
        return command(sys.argv[1:])
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        from sweeps.errors import sentence

        text = sentence(error)
        if text is None:
            raise
        print(f"error: {text}", file=sys.stderr)
        return 2


def composed(arguments: list[str]) -> list[dict[str, Any]]:
    """The settings of every run; none where Hydra was asked to show something, and did."""
    from hydra._internal.utils import get_args_parser

    given = get_args_parser().parse_intermixed_args(arguments)
    if given.cfg or given.info or given.hydra_help or given.shell_completion:
        import hydra

        def task(_config: Any) -> None:
            """Hydra finds conf/ by the file that this stands in, and does not come here."""

        hydra.main(version_base="1.3", config_path="../conf", config_name="config")(task)()
        return []
    if given.experimental_rerun:
        raise SettingError("--experimental-rerun is not supported; give the sweep's command again.")
    if given.config_dir and not Path(given.config_dir).is_dir():
        raise SettingError(f"--config-dir {given.config_dir} is not a folder.")
    from sweeps import view
    from sweeps.compose import CONF, compose_sweep
    from sweeps.names import check_names
    from sweeps.sizes import name_by_blueprint

    here = Path(__file__).resolve().parent  # what a relative --config-path begins at
    conf = (here / given.config_path).resolve() if given.config_path else CONF
    beside = Path(given.config_dir).resolve() if given.config_dir else None
    settings = compose_sweep(
        [_open(override) for override in given.overrides],
        several=given.multirun,
        conf=conf,
        name=given.config_name or "config",
        beside=beside,
    )
    check_names(settings)
    for renamed in name_by_blueprint(settings, [beside, conf] if beside else [conf]):
        view.console().print(renamed, soft_wrap=True)
    return settings


def _open(override: str) -> str:
    """A setting of a mix or a protocol that its file does not name needs no + before it: a
    mixer's are not listed there, and what is none is refused with the nearest that are."""
    return f"++{override}" if OPEN.match(override) else override


def runs_folder(settings: Mapping[str, Any]) -> Path:
    """Where the sweeps lie, of one run's settings as composed."""
    from ablations.records import project_root
    from models.environment import expand

    return project_root() / Path(expand(settings["runs"], "runs")).expanduser()


def sweep(composed: list[dict[str, Any]], command: str, says_next: bool = True) -> int:
    """Plan the runs of a sweep, and start or submit those that are not done.

    composed: settings of every run as composed; command: what goes on with it when given again;
    says_next: whether it ends by naming the next command. The exit code is 0 when all are done.
    """
    # Imported here: a mistyped name answers before numpy is loaded.
    from ablations.resolve import each_its_own, resolve
    from models.environment import expand
    from sweeps import view
    from sweeps.cluster import Slurm, check_ranks, parse
    from sweeps.compose import of_the_run
    from sweeps.plan import make_plan, show, show_arrays
    from sweeps.tuned import with_optima, words_of

    console = view.console()
    driver = composed[0]
    _check_driver(composed)
    _check_data(composed, sys.argv[1:])
    cluster = parse(driver["cluster"])
    if isinstance(cluster, Slurm):
        cluster = replace(cluster, max_gpus=driver["max_gpus"])
    root = expand(driver["runs"], "runs")
    runs_root = runs_folder(driver)
    asked = [of_the_run(c) for c in composed]
    settings = each_its_own(asked)

    specs = [resolve(s, plan_only=True) for s in settings]
    if any(spec.protocol.tuning for spec in specs):
        settings = with_optima(settings, specs, runs_root)
        specs = [resolve(s, plan_only=True) for s in settings]
        for line in words_of(specs):
            console.print(line, soft_wrap=True)
    kept = _each_once(specs, asked, console)
    specs, settings = [specs[i] for i in kept], [settings[i] for i in kept]
    _check_paths(specs, runs_root)
    _say_damaged(specs, runs_root, console)
    at_once = driver["max_parallel"]
    if not isinstance(cluster, Slurm):
        at_once = _fitting(specs, cluster, at_once, driver["max_gpus"])
    else:
        check_ranks(cluster, specs)
    _check_control(specs, runs_root, driver["treatments"])
    there = cluster if isinstance(cluster, Slurm) else None
    plan = make_plan(specs, runs_root, at_once, there, driver["max_gpus"])
    show(plan, console)
    show_arrays(plan, console)
    _check_gpu_hours(plan, driver["max_gpu_hours"])
    if driver["dry_run"] and not driver["plan"]:
        from sweeps.dry import show_dry

        show_dry(plan, runs_root, command, console)
    if driver["plan"] or driver["dry_run"]:
        return 0

    specs = [resolve(s) for s in settings]
    _check_control(specs, runs_root, driver["treatments"])
    requests = _requests(plan, specs, runs_root)
    if requests:
        _check_machine(plan, cluster, runs_root, driver["max_local_hours"])
        if isinstance(cluster, Slurm):
            from sweeps import slurm
            from sweeps.drive import on_slurm

            slurm.check(cluster, {request.size: request.run.name for request in requests})
            _say_new(requests, console)
            on_slurm(requests, cluster, at_once, command, console)
        else:
            from sweeps.drive import on_this_machine

            _say_new(requests, console)
            sizes = plan.parallel, plan.threads, plan.devices
            on_this_machine(requests, cluster, *sizes, command, console)
    return _finish(specs, runs_root, root, console, says_next)


def _requests(plan: Plan, specs: list[RunSpec], runs_root: Path) -> list[Request]:
    """What is not done, longest first, so that none ends alone."""
    from ablations.records import directory_of, record_for
    from sweeps.submit import Request

    seconds = {(e.spec.sweep, e.spec.run_name): e.seconds for e in plan.todo}
    todo = [spec for spec in specs if (spec.sweep, spec.run_name) in seconds]
    todo.sort(key=lambda spec: -seconds[spec.sweep, spec.run_name])
    runs = [directory_of(runs_root, spec) for spec in todo]
    return [Request(run, record_for(run, spec)) for run, spec in zip(runs, todo, strict=True)]


def _check_driver(composed: list[dict[str, Any]]) -> None:
    from sweeps.compose import DRIVER

    driver = composed[0]
    for key in DRIVER:
        if any(repr(other[key]) != repr(driver[key]) for other in composed):
            raise SettingError(f"{key} is one for a whole sweep; give it one value.")
    treatments = driver["treatments"]
    for key in ("plan", "dry_run"):
        if not isinstance(driver[key], bool):
            raise SettingError(f"{key}={driver[key]} must be true or false.")
    if not isinstance(treatments, list):
        raise SettingError(f"treatments={treatments} must be a list, like [mix].")
    if not isinstance(driver["runs"], str) or not driver["runs"].strip():
        raise SettingError(f"runs={driver['runs']} must be a folder.")
    counts = ("max_parallel", "max_gpus")
    for key in (*counts, "max_local_hours", "max_gpu_hours"):
        value = driver[key]
        whole = key in counts and not isinstance(value, int)
        if value is not None and (not isinstance(value, int | float) or value <= 0 or whole
                                  or isinstance(value, bool)):  # fmt: skip
            kind = "whole number" if key in counts else "number"
            raise SettingError(f"{key}={value} must be a {kind} above 0, or null.")


def _check_data(composed: list[dict[str, Any]], arguments: list[str]) -> None:
    """A folder named on the command line is read, or the command is refused. One named for the
    whole machine, in conf/local.yaml or the environment, waits for the sizes that read it."""
    given = [a for a in arguments if a.lstrip("+").startswith("data.path=")]
    for settings in composed:
        data, size = settings["data"], settings["size"]
        if given and data["path"] and data["name"] == "auto" and size["corpus"] == "embedded":
            raise SettingError(
                f"{given[-1]} would not be read: size={size['name']} trains on the embedded text "
                "unless data=tokens is given too."
            )


def _check_gpu_hours(plan: Plan, limit: float | None) -> None:
    """Raise SettingError where the sweep would take more GPU-hours than it may, or where its GPUs
    are not named, on which the hours depend."""
    if limit is None:
        return
    if plan.cluster and plan.cluster.gpu_kind is None and plan.hours_of_gpus:
        from models.devices import GPUS

        raise SettingError(
            f"max_gpu_hours={limit:g} depends on the GPUs, and cluster.gpu_kind is null; name one "
            f"of {', '.join(GPUS)}."
        )
    if plan.hours_of_gpus > limit:
        more = math.ceil(plan.hours_of_gpus * 1.1)
        raise SettingError(
            f"this sweep would take about {_hours(plan.hours_of_gpus)} GPU-hours, more than "
            f"max_gpu_hours={limit:g}; take smaller sizes, fewer runs or fewer tokens "
            f"(protocol.chinchilla), or allow a tenth more, {more:,}."
        )


def _hours(hours: float) -> str:
    return f"{hours:,.0f}" if hours >= 100 else f"{hours:.3g}"


def _fitting(
    specs: list[RunSpec], cluster: Local, at_once: int | None, max_gpus: int | None
) -> int | None:
    """Runs at a time that this machine's GPUs hold; as asked, or null, where it has none."""
    from sweeps.plan import gpus_of_this_machine

    wanted = specs[0].resources
    name, gpus = gpus_of_this_machine() if wanted.device != "cpu" else (None, 0)
    if name is None:
        return at_once
    devices = wanted.devices or 1
    if devices > gpus:
        raise SettingError(f"resources.devices={devices} is more than the {gpus} GPUs here.")
    if max_gpus is not None and devices > max_gpus:
        raise SettingError(
            f"max_gpus={max_gpus} is fewer than the {devices} GPUs of a run (resources.devices)."
        )
    room = gpus // devices * cluster.runs_per_gpu
    if max_gpus is not None:
        # Runs that could share a GPU may lie on one each.
        room = min(room, max_gpus // devices)
        at_once = None if at_once is None else min(at_once, room)
    if at_once is not None and at_once > room:
        raise SettingError(
            f"max_parallel={at_once} is more than {gpus} GPUs hold, {devices} a run and "
            f"{cluster.runs_per_gpu} on each; set cluster.runs_per_gpu to let more share one."
        )
    return min(room, len(specs)) if at_once is None and len(specs) > 1 else at_once


def _check_machine(
    plan: Plan, cluster: Local | Slurm, runs_root: Path, limit: float | None
) -> None:
    """Refuse, before anything is written, what this machine cannot do or would take too long for;
    for a cluster, what the disk cannot hold."""
    from ablations.resources import check_here, check_room
    from models.format import duration
    from sweeps.cluster import Local
    from sweeps.plan import gpus_of_this_machine

    specs = [estimate.spec for estimate in plan.todo]
    if not isinstance(cluster, Local):
        check_room(specs, runs_root)
        return
    if limit is not None and plan.hours > limit:
        raise SettingError(
            f"this sweep would take about {duration(plan.hours * 3600)} on this machine, more "
            f"than max_local_hours={limit}; take a cluster (cluster=slurm), smaller sizes or fewer "
            f"tokens (protocol.chinchilla), or set max_local_hours={math.ceil(plan.hours * 1.1)}."
        )
    check_here(specs, plan.devices, gpus_of_this_machine()[1], runs_root)


def _each_once(specs: list[RunSpec], asked: list[dict[str, Any]], console: Console) -> list[int]:
    """Indexes of the runs, one of those that differ in nothing but rules they do not read.

    Raises SettingError where one run is asked for twice, or with two values of what is no part of
    its identity.
    """
    from models.settings import flatten

    first: dict[tuple[str, str], int] = {}
    merged: dict[str, list[str]] = {}
    for i, spec in enumerate(specs):
        key = (spec.sweep, spec.run_name)
        if key not in first:
            first[key] = i
            continue
        ours, again = flatten(specs[first[key]].plain()), flatten(spec.plain())
        differing = [field for field in ours | again if ours.get(field) != again.get(field)]
        if asked[i] == asked[first[key]]:
            raise SettingError(f"run {spec.run_name} is asked for twice; name each value once.")
        unread = {"mix", "protocol", "size", "matched"}
        if {field.partition(".")[0] for field in differing} - unread:
            raise SettingError(
                f"run {spec.run_name} is asked for with two values of {differing[0]}, which makes "
                "no other run of it; give it one value, or take another sweep=NAME for the other."
            )
        merged.setdefault(spec.run_name, []).append(
            ", ".join(f"{field}={again[field]}" for field in differing if field in again)
        )
    for name, others in merged.items():
        words = (
            f"{name} stands for {len(others) + 1} runs: what they differ in changes nothing in it"
        )
        if recorded := "; ".join(filter(None, others)):
            words += f". Its record does not say {recorded}: where= by that leaves it out"
        console.print(words, soft_wrap=True)
    return list(first.values())


def _check_paths(specs: list[RunSpec], runs_root: Path) -> None:
    """The code of a sweep lies in its folder, and Slurm writes its logs there."""
    for spec in specs:
        name, path = spec.run_name, os.fsencode(runs_root / spec.sweep / spec.run_name)
        if len(name) > LONGEST_NAME:
            raise SettingError(
                f"mix.name, size.name and seed make the folder's name {name[:40]}… of {len(name)} "
                f"letters, more than {LONGEST_NAME}; file systems take 255, with what is written "
                "beside it. Use shorter ones."
            )
        if len(path) > LONGEST_PATH:
            raise SettingError(
                f"runs={str(runs_root)[:40]}… makes the path of a run {len(path)} bytes long, more "
                f"than {LONGEST_PATH}; Linux takes 4096, with the files in it. Use a shorter one."
            )
    for sweep in {spec.sweep for spec in specs}:
        odd = [c for c in str(runs_root / sweep) if c in ":%\\" or not c.isprintable()]
        if odd:
            raise SettingError(
                f"sweep={sweep!r} in runs={runs_root} has {odd[0]!r} in its path, which Python or "
                "Slurm would read as something else; give names without it."
            )


def _check_control(specs: list[RunSpec], runs_root: Path, treatments: list[str]) -> None:
    """The runs asked for, together with those that already lie in their sweep's folder."""
    from ablations.control import check, check_same
    from ablations.records import directory_of, read_sweep

    planned = all(spec.corpus for spec in specs)  # else there is nothing yet to hold beside runs
    for sweep in {spec.sweep for spec in specs}:
        there: dict[str, Any] = {}
        if planned and (runs_root / sweep).is_dir():
            runs = read_sweep(runs_root / sweep)
            there = {run.name: run.read_spec() for run in runs if not run.spec_problem()}
        asked = {directory_of(runs_root, s).name: s.plain() for s in specs if s.sweep == sweep}
        check({**there, **asked}, treatments)
        for name in there.keys() & asked.keys():
            check_same(name, there[name], asked[name])


def _say_damaged(specs: list[RunSpec], runs_root: Path, console: Console) -> None:
    """Name the runs of the sweeps whose records cannot be relied on, and what becomes of them."""
    from ablations.records import directory_of, read_sweep

    asked = {(spec.sweep, directory_of(runs_root, spec).name) for spec in specs}
    for sweep in dict.fromkeys(spec.sweep for spec in specs):
        runs = read_sweep(runs_root / sweep) if (runs_root / sweep).is_dir() else []
        for run in runs:
            if problem := run.problem():
                goes_on = "goes on from what it has kept"
                words = goes_on if (sweep, run.name) in asked else "counts nowhere"
                console.print(f"damaged: {run.name}: {problem}; it {words}", soft_wrap=True)


def _say_new(requests: list[Request], console: Console) -> None:
    """Name the runs that differ from one already there in no more than its settings."""
    from ablations.records import read_sweep
    from ablations.spec import completed
    from models.settings import flatten

    for request in requests:
        if request.run.path.exists() or not request.sweep.is_dir():
            continue
        stem = request.run.name.rpartition("-")[0]
        for other in read_sweep(request.sweep):
            if other.name.rpartition("-")[0] == stem and not other.spec_problem():
                mine, theirs = flatten(completed(request.spec)), flatten(other.read_spec())
                changed = [k for k in mine if mine[k] != theirs.get(k)]
                shown = [k for k in changed if not k.startswith(("recipe.", "resources."))]
                console.print(
                    f"new run {request.run.name}: differs from {other.name} in "
                    f"{', '.join(shown[:4]) or ', '.join(changed[:4])}",
                    soft_wrap=True,
                )


def _finish(
    specs: list[RunSpec], runs_root: Path, root: str, console: Console, says_next: bool
) -> int:
    from ablations.records import directory_of
    from sweeps import state, view

    runs = [directory_of(runs_root, spec) for spec in specs]
    looks = state.look(runs)
    states = [look.state for look in looks]
    view.summary(looks, console)
    console.print(view.counted(states))
    if set(states) & {"preempted", "cancelled", "lost", "failed", "damaged"}:
        console.print("The same command again goes on from their last checkpoints.")
    if "done" in states and says_next:
        sweep = runs[0].path.parent.name
        where = "" if root == "runs" else f" runs={root}"
        if tries := {s.recipe.steps for s in specs if s.recipe.ladder_steps is not None}:
            where += f" where=protocol.max_steps={min(tries)}"
        console.print(f"next: python -m analysis report sweep={sweep}{where}", soft_wrap=True)
    return 0 if set(states) == {"done"} else 1


if __name__ == "__main__":
    sys.exit(main())
