"""Compose a sweep with Hydra, show its plan, freeze a spec a run, and run them.

    python sweeps/run.py mix=gdn3_attn1 size=50k                     one run
    python sweeps/run.py -m mix=transformer,gdn3_attn1 size=50k,100k seed=0,1 sweep=first
    python sweeps/run.py -m mix=gdn3_attn1 size=60m,150m,1b plan=true

Hydra only composes: its task queues settings, and nothing is written before every run of the
sweep has been resolved, compared and found to fit. No torch is imported here.
"""

from __future__ import annotations

import os
import shlex
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

# `python sweeps/run.py` puts only sweeps/ on the path.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
# Hydra's own report of an error is several lines and exit code 1; ours is a sentence and 2.
os.environ.setdefault("HYDRA_FULL_ERROR", "1")

import hydra
from omegaconf import DictConfig, OmegaConf

from models.errors import SettingError
from sweeps.compose import compose_sweep
from sweeps.errors import sentence

if TYPE_CHECKING:
    from rich.console import Console

    from ablations.spec import RunSpec
    from sweeps.plan import Plan

_queue: list[dict[str, Any]] = []


@hydra.main(version_base="1.3", config_path="../conf", config_name="config")
def _compose(config: DictConfig) -> None:
    _queue.append(OmegaConf.to_container(config, resolve=True))  # type: ignore[arg-type]


def main() -> int:
    """Exit code 0 when all runs are done, 1 when one is not, 2 on a setting that cannot be used."""
    try:
        # Hydra insists on writing a multirun.yaml: let it, where nobody looks.
        with tempfile.TemporaryDirectory(prefix="archladder-") as scratch:
            os.environ["ARCHLADDER_SCRATCH"] = scratch
            arguments = sys.argv[1:]
            plain = [a for a in arguments if a not in ("-m", "--multirun")]
            if len(plain) < len(arguments) and not any(a.startswith("-") for a in plain):
                _queue.extend(compose_sweep(plain))
            else:
                _compose()
        return _sweep(_queue) if _queue else 0
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        text = sentence(error)
        if text is None:
            raise
        print(f"error: {text}", file=sys.stderr)
        return 2


def _sweep(composed: list[dict[str, Any]]) -> int:
    # Imported here: --help and a mistyped name answer before numpy is loaded.
    from rich.console import Console

    from ablations.records import project_root
    from ablations.spec import resolve
    from sweeps.local import run_all
    from sweeps.plan import make_plan, show

    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console.width = 120
    driver = composed[0]
    plan_only, treatments = driver["plan"], driver["treatments"]
    if not isinstance(plan_only, bool):
        raise SettingError(f"plan={plan_only} must be true or false.")
    if not isinstance(treatments, list):
        raise SettingError(f"treatments={treatments} must be a list, like [mix].")
    runs_root = project_root() / str(driver["runs"])
    for key in ("max_parallel", "max_local_hours"):
        value = driver[key]
        whole = key == "max_parallel" and not isinstance(value, int)
        if value is not None and (isinstance(value, str | bool) or value <= 0 or whole):
            kind = "whole number" if key == "max_parallel" else "number"
            raise SettingError(f"{key}={value} must be a {kind} above 0, or null.")
    own = ("plan", "treatments", "runs", "max_parallel", "max_local_hours")
    settings = [{k: v for k, v in c.items() if k not in own} for c in composed]

    specs = [resolve(s, plan_only=True) for s in settings]
    _check_unique(specs)
    plan = make_plan(specs, runs_root, driver["max_parallel"])
    show(plan, console)
    if plan_only:
        return 0

    specs = [resolve(s) for s in settings]
    _check_control(specs, runs_root, treatments)
    if not plan.todo:
        return _finish(specs, runs_root, str(driver["runs"]), console)
    limit = driver["max_local_hours"]
    if limit is not None and plan.hours_here > limit:
        raise SettingError(
            f"this sweep would take about {plan.hours_here:,.1f} h on this machine, more than "
            f"max_local_hours={limit}; take smaller sizes or fewer tokens "
            f"(protocol.chinchilla), a machine with a GPU, or set "
            f"max_local_hours={plan.hours_here * 1.2:.0f}."
        )
    paths = _write_specs(plan, runs_root)
    command = "python sweeps/run.py " + shlex.join(sys.argv[1:])
    run_all(paths, plan.parallel, plan.threads, command, console, devices=plan.devices)
    return _finish(specs, runs_root, str(driver["runs"]), console)


def _check_unique(specs: list[RunSpec]) -> None:
    seen: dict[tuple[str, str], str] = {}
    for spec in specs:
        key = (spec.sweep, spec.run_name)
        if key in seen:
            raise SettingError(f"run {spec.run_name} is asked for twice; name each value once.")
        seen[key] = spec.run_name


def _check_control(specs: list[RunSpec], runs_root: Path, treatments: list[str]) -> None:
    """The runs asked for, together with those that already lie in their sweep's folder."""
    from ablations.control import check
    from ablations.records import read_sweep
    from ablations.settings import to_dict

    for sweep in {spec.sweep for spec in specs}:
        there: dict[str, Any] = {}
        if (runs_root / sweep).is_dir():
            there = {run.name: run.read_spec() for run in read_sweep(runs_root / sweep)}
        asked = {s.run_name: to_dict(s) for s in specs if s.sweep == sweep}
        check({**there, **asked}, treatments)


def _write_specs(plan: Plan, runs_root: Path) -> list[Path]:
    """Freeze the spec of every run that is not done; longest first, so that none ends alone."""
    from ablations.records import RunDirectory
    from ablations.settings import to_dict

    todo = sorted(plan.todo, key=lambda e: -e.seconds_here)
    paths = [runs_root / e.spec.sweep / e.spec.run_name for e in todo]
    created: list[Path] = []
    try:
        for path, estimate in zip(paths, todo, strict=True):
            run = RunDirectory(path)
            if run.is_locked():  # another driver's worker trains it: its records are its own
                continue
            created.extend(_make(path))
            # Again for a run that stopped: resources and paths may have changed, identity has not.
            run.write_spec(to_dict(estimate.spec))
            status = {k: v for k, v in run.read_status().items() if k not in ("state", "error")}
            run.write_status("queued", **status)
    except OSError as error:
        for made in reversed(created):
            _remove(made)
        raise SettingError(
            f"runs={runs_root} cannot be written ({error.strerror}); give a folder that can."
        ) from error
    return paths


def _make(path: Path) -> list[Path]:
    """Create `path` with its parents; returns what was not there before, outermost first."""
    missing = [p for p in (path, *path.parents) if not p.exists()]
    path.mkdir(parents=True, exist_ok=True)
    return missing[::-1]


def _remove(folder: Path) -> None:
    for file in folder.iterdir() if folder.is_dir() else ():
        if file.is_file():
            file.unlink()
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def _finish(specs: list[RunSpec], runs_root: Path, runs: str, console: Console) -> int:
    from ablations.records import RunDirectory

    states: dict[str, int] = {}
    for spec in specs:
        run = RunDirectory(runs_root / spec.sweep / spec.run_name)
        state = run.read_status().get("state", "new")
        states[state] = states.get(state, 0) + 1
    console.print(", ".join(f"{n} {state}" for state, n in states.items()))
    sweep = specs[0].sweep
    console.print(f"runs: {runs_root / sweep}", soft_wrap=True)
    if states.get("done"):
        where = "" if runs == "runs" else f" runs={runs}"
        console.print(f"next: python -m analysis report sweep={sweep}{where}", soft_wrap=True)
    return 0 if set(states) == {"done"} else 1


if __name__ == "__main__":
    sys.exit(main())
