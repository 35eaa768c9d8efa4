"""How far sweeps are, from anywhere that sees their folder; and to stop, retry or read them.

    python sweeps/status.py                              every sweep, a line each
    python sweeps/status.py SWEEP [watch=true]           every run of a sweep
    python sweeps/status.py cancel SWEEP|RUN…            runs save and end
    python sweeps/status.py retry SWEEP [failed=true]    what stopped goes on, or only what failed
    python sweeps/status.py logs RUN [follow=true]       what a run said

Reading needs no Slurm; where there is one, it is asked for what waits and why.
"""

import json
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# `python sweeps/status.py` puts only sweeps/ on the path.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from rich.console import Console

from ablations import formats
from ablations.records import RunDirectory, project_root, read_sweep, visible
from models.command import ended, parse, setting
from models.errors import SettingError
from sweeps import state, view
from sweeps.follow import cancel
from sweeps.state import Look

WATCH_SECONDS = 2.0


@dataclass(frozen=True, kw_only=True)
class Where:
    """Where sweeps are."""

    runs: Path = setting(Path("runs"), "where sweeps are, from the project's root", shape="DIR")


@dataclass(frozen=True, kw_only=True)
class Show(Where):
    """Every run of a sweep, or without a name every sweep, a line each.

    cancel SWEEP|RUN…, retry SWEEP and logs RUN do what they say; each has a --help of its own. RUN
    may be the beginning of a run's name.
    """

    EXAMPLES = ("", "demo watch=true", "demo format=json", "cancel demo", "retry demo failed=true")
    sweep: str | None = setting(None, "a sweep; without it, all of them", position=True)
    watch: bool = setting(False, "until every run has ended")
    format: str = setting(
        "table", "how it is printed; json is an object a run", choices=("table", "json"),
        also={"json": "json"},
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Cancel(Where):
    """Runs save and end."""

    names: tuple[str, ...] = setting(position=True, repeat=True, shape="SWEEP|RUN")


@dataclass(frozen=True, kw_only=True)
class Retry(Where):
    """What stopped goes on."""

    sweep: str = setting(position=True, shape="SWEEP")
    failed: bool = setting(False, "only runs that failed")


@dataclass(frozen=True, kw_only=True)
class Logs(Where):
    """What a run said."""

    run: str = setting(help="the beginning of its name will do", position=True, shape="RUN")
    follow: bool = setting(False, "go on as it grows")


def main(arguments: Sequence[str]) -> int:
    """Exit code 0, 1 where what was asked could not all be done, 2 on a name that is not there."""
    try:
        return ended(lambda: _command(list(arguments)))
    except (KeyboardInterrupt, BrokenPipeError):
        return 130


def _command(words: list[str]) -> int:
    # runs= may stand before the action as well as after it.
    first = 2 if words[:1] == ["--runs"] else 1 if words and "runs=" in words[0] else 0
    program, action = "python sweeps/status.py", "show"
    if words[first : first + 1] and words[first] in ACTIONS:
        action = words.pop(first)
        program = f"{program} {action}"
    settings, work = ACTIONS[action]
    given = parse(settings, words, program)
    return work(given, (project_root() / given.runs).resolve(), view.console())


def _show(given: Show, root: Path, out: Console) -> int:
    if given.watch and given.format == "json":
        raise SettingError("watch=true and format=json exclude one another.")
    if given.sweep is None:
        if given.watch:
            raise SettingError(
                "watch=true is for one sweep: python sweeps/status.py SWEEP watch=true."
            )
        return _show_sweeps(given, root, out)
    runs = _sweep(root, given.sweep)
    if not given.watch:
        looks = state.look(runs)
        if given.format == "json":
            print(json.dumps([_row(look) for look in looks], indent=1))
        else:
            _print(looks, out)
        return 0
    with view.Display(out) as display:
        looks = state.look(runs)
        display.show(looks)
        while any(look.alive for look in looks):
            time.sleep(0.1)
            if display.is_due(WATCH_SECONDS):
                looks = state.look(runs)
                display.show(looks)
    _print(looks, out)
    return 0


def _print(looks: Sequence[Look], out: Console) -> None:
    if all(look.alive is False for look in looks):
        view.summary(looks, out)
        out.print(view.counted([look.state for look in looks]))
    else:
        out.print(view.live_table(looks, out), soft_wrap=True)


def _show_sweeps(given: Show, root: Path, out: Console) -> int:
    folders = [path for path in sorted(root.glob("*")) if path.is_dir()]
    found = {path.name: state.look(read_sweep(path)) for path in folders}
    if given.format == "json":
        print(json.dumps({name: [_row(k) for k in looks] for name, looks in found.items()}))
    for name, looks in found.items():
        if looks and given.format != "json":
            out.print(f"{name}: {view.counted([look.state for look in looks])}")
    if not any(found.values()) and given.format != "json":
        out.print(f"no sweep has been run in {root}")
    return 0


def _row(look: Look) -> dict[str, Any]:
    return {
        # A loss that is no number is null: JSON has no other word for it.
        **{
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in look.status.items()
        },
        "run": look.run.name,
        "state": look.state,
        "alive": look.alive,
        "note": look.note,
        "attempts": look.attempts,
        "job": look.job.id if look.job else None,
        "path": str(look.run.path),
        "log": str(view.log(look)),
    }


def _cancel(given: Cancel, root: Path, out: Console) -> int:
    runs = [run for name in given.names for run in _named(root, name)]
    looks = [look for look in state.look(runs) if look.alive is not False]
    problems = cancel(looks)
    for look in looks:
        out.print(f"cancelling {look.run.name}", soft_wrap=True)
    for problem in problems:
        out.print(problem, soft_wrap=True)
    if not looks:
        out.print("nothing to cancel: none of these runs is waiting or running")
    return 1 if problems else 0


def _retry(given: Retry, root: Path, out: Console) -> int:
    from sweeps import cluster as clusters
    from sweeps.drive import hand_to_slurm, on_this_machine, watch_slurm
    from sweeps.submit import Request

    looks = state.look(_sweep(root, given.sweep))
    again = [
        look for look in looks if not look.alive
        and (look.state in ("failed", "lost") if given.failed else look.state != "done")
    ]  # fmt: skip
    lost = {look.run.name: reason for look in again if (reason := _cannot_retry(look))}
    for name, reason in lost.items():
        out.print(
            f"{name} cannot be retried by its records ({reason}); give the sweep's "
            "command again, which writes them anew",
            soft_wrap=True,
        )
    again = [look for look in again if look.run.name not in lost]
    if lost and not again:
        return 1
    if not again:
        out.print(f"nothing to retry: {view.counted([look.state for look in looks])}")
        return 0
    groups: dict[str, list[Look]] = {}
    for look in again:
        told = [look.submission[name] for name in ("launcher", "how", "command")]
        groups.setdefault(json.dumps([*told, str(_code(look))]), []).append(look)
    submitted: list[RunDirectory] = []
    # Slurm's first: they run while those of this machine do.
    for alike, group in sorted(groups.items(), key=lambda item: json.loads(item[0])[0] != "slurm"):
        launcher, how, command, code = json.loads(alike)
        requests = [Request(look.run, look.run.spec_as_written()) for look in group]
        if launcher == "slurm":
            cluster = clusters.restore(how["cluster"])
            assert isinstance(cluster, clusters.Slurm)
            given_to = cluster, how["at_once"], command, out, Path(code)
            submitted += hand_to_slurm(requests, *given_to)
            poll_seconds = cluster.poll_seconds
        else:
            local = clusters.Local("local", how["runs_per_gpu"])
            sizes = how["parallel"], how["threads"], how["devices"]
            if not on_this_machine(requests, local, *sizes, command, out, Path(code)):
                break
    else:
        if submitted:
            watch_slurm(submitted, poll_seconds, out)
    looks = state.look([look.run for look in again])
    view.summary(looks, out)
    return 1 if lost or any(look.state != "done" for look in looks) else 0


def _cannot_retry(look: Look) -> str:
    """Why not, a clause; empty where a run's spec is its own, and its submission says how it was
    begun."""
    told = look.submission
    if problem := look.run.spec_problem() or state.submission_problem(look.run):
        return problem
    if not told:
        return "no sweep began it"
    for key in ("how", "command", "code"):
        if key not in told:
            return f"submission.json has no {key}"
    kinds = formats.HOW[told["launcher"]]
    fault = formats.fault_of(told["how"], kinds, tuple(kinds))
    return f"how in submission.json {fault}" if fault else ""


def _code(look: Look) -> Path:
    """The copy of the code that a run was submitted with, also where its sweep was moved since."""
    told = Path(look.submission["code"])
    here = state.machinery(look.run.path.parent) / "code" / told.name
    for code in (here, told):
        if code.is_dir():
            return code
    raise SettingError(
        f"the code of {look.run.name} is not in {told} any more; give the sweep's command again, "
        "which goes on with the code as it is now."
    )


def _logs(given: Logs, root: Path, _out: Console) -> int:
    runs = _named(root, given.run)
    if len(runs) != 1:
        names = ", ".join(run.name for run in runs[:6])
        raise SettingError(f"run={given.run} is {len(runs)} runs ({names}, …); name one.")
    (look,) = state.look(runs)
    path = view.log(look)
    if not path.is_file():
        raise SettingError(f"run={look.run.name} has not said anything yet ({look.state}).")
    with path.open(encoding="utf-8", errors="replace") as file:
        while True:
            sys.stdout.write(visible(file.read(), keep="\n\t"))
            sys.stdout.flush()
            if not given.follow or not state.look(runs)[0].alive:
                sys.stdout.write(visible(file.read(), keep="\n\t"))
                return 0
            time.sleep(1.0)


def _sweep(root: Path, name: str) -> list[RunDirectory]:
    """The runs of a sweep. Raises SettingError, saying how one of another folder is named."""
    try:
        runs = read_sweep(root / name)
    except SettingError as error:
        raise SettingError(f"{str(error).rstrip('.')}; {_elsewhere(root, name)}.") from None
    if not runs and any(read_sweep(path) for path in (root / name).glob("*") if path.is_dir()):
        raise SettingError(f"{name} is no sweep; {_elsewhere(root, name)}.")
    return runs


def _elsewhere(root: Path, name: str) -> str:
    """How a sweep, or all, of another folder than `root` are asked for, a clause."""
    for path in (Path(name).expanduser().absolute(), root / name):
        if path.is_dir():
            if read_sweep(path):
                return f"for that of another folder give {path.name} runs={path.parent}"
            if any(read_sweep(one) for one in path.glob("*") if one.is_dir()):
                return f"for the sweeps in it give runs={path}"
    return "for those of another folder give runs=DIR"


def _named(root: Path, name: str) -> list[RunDirectory]:
    """The runs of a sweep, or those whose name begins so, in any sweep."""
    if (root / name).is_dir() and os.sep not in name:
        return read_sweep(root / name)
    sweeps = [path for path in sorted(root.glob("*")) if path.is_dir()]
    runs = [run for sweep in sweeps for run in read_sweep(sweep)]
    found = [run for run in runs if run.name == name] or [
        run for run in runs if run.name.startswith(name)
    ]
    if not found:
        there = ", ".join(path.name for path in sweeps) or "none"
        raise SettingError(
            f"{name} is no sweep and no run in {root}; sweeps there: {there}; "
            f"{_elsewhere(root, name)}."
        )
    return found


ACTIONS: dict[str, tuple[Any, Callable[[Any, Path, Console], int]]] = {
    "show": (Show, _show),
    "cancel": (Cancel, _cancel),
    "retry": (Retry, _retry),
    "logs": (Logs, _logs),
}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
