"""Watch runs that others train, until they end; write down what those could not say themselves."""

import contextlib
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from ablations.records import RunDirectory
from sweeps import slurm, state, view
from sweeps.state import Look

SECOND_CHANCE_SECONDS = 5.0
"""After a Ctrl-C, in which a second one cancels the runs."""


def follow(runs: Sequence[RunDirectory], poll_seconds: float, out: Console) -> bool:
    """Show runs until none is alive. Ctrl-C detaches and leaves them running, twice cancels them.

    Returns False where it left runs behind that go on.
    """
    asked: list[int] = []
    seen_dead: dict[Path, int] = {}
    looks: list[Look] = []
    looked, leave_at, cancelled = float("-inf"), float("inf"), False
    with view.Display(out) as display, view.listening(asked):
        while sum(times > 1 for times in seen_dead.values()) < len(runs):
            time.sleep(0.1)
            if time.monotonic() - looked > poll_seconds:
                looks, looked = state.look(runs), time.monotonic()
                for look in _just_ended(looks, seen_dead):
                    out.print(view.line(settle(look)), soft_wrap=True)
            if display.is_due(poll_seconds):
                display.show(looks)
            stops = asked.count(signal.SIGINT)
            if stops == 1 and leave_at == float("inf"):
                leave_at = time.monotonic() + SECOND_CHANCE_SECONDS
                out.print(
                    f"detaching; Ctrl-C again within {SECOND_CHANCE_SECONDS:.0f} s cancels the runs"
                )
            elif stops > 1 and not cancelled:
                cancelled, leave_at = True, float("inf")
                out.print("cancelling: runs save and end")
                for problem in cancel([look for look in looks if look.alive is not False]):
                    out.print(problem, soft_wrap=True)
            elif stops > 2:
                return True
            if time.monotonic() > leave_at or len(asked) > stops:
                return False
    return True


def _just_ended(looks: Sequence[Look], seen_dead: dict[Path, int]) -> list[Look]:
    """Those that are seen dead for the second time in a row: a job between two of Slurm's states is
    not dead."""
    for look in looks:
        path = look.run.path
        if seen_dead.get(path, 0) < 2 or look.alive is False:
            seen_dead[path] = seen_dead.get(path, 0) + 1 if look.alive is False else 0
    return [look for look in looks if seen_dead[look.run.path] == 2]


def settle(look: Look) -> Look:
    """A run whose trainer is gone says how it ended, if it could not do so itself."""
    if look.state not in ("lost", "cancelled", "preempted"):
        return look
    run = look.run
    with contextlib.suppress(OSError), state.held(state.lock(run.path.parent)):
        # Another driver may have handed it on meanwhile.
        if state.read_submission(run) != look.submission:
            return state.look([run])[0]
        status = run.read_status()
        was = status.pop("state", None)
        if was == "done":
            return state.look([run])[0]
        job = look.job
        if look.state == "cancelled":
            reason = "cancelled" if job else look.note or "cancelled"
            run.write_status("preempted", **{**status, "error": reason})
            state.write_submission(run, {**look.submission, "cancelled": True})
        elif was == "queued" and look.submission.get("launcher") != "slurm":
            reason = "its driver ended before its turn came"
            run.write_status("preempted", **{**status, "error": reason})
        elif was in ("running", "queued"):
            reason = f"ended unheard; {job}" if job else "its trainer ended unheard"
            run.write_status("failed", **{**status, "error": reason})
    return state.look([run])[0]


def cancel(looks: Sequence[Look]) -> list[str]:
    """Stop runs, which save first, and keep them from being begun. Returns what could not be done,
    a sentence each."""
    with contextlib.ExitStack() as locks:
        for sweep in sorted({look.run.path.parent for look in looks}):
            with contextlib.suppress(OSError):  # in a folder that cannot be written
                locks.enter_context(state.held(state.lock(sweep)))
        # As they are now: a driver may have handed them on or begun them since.
        looks = [look for look in state.look([k.run for k in looks]) if look.alive is not False]
        # What no sweep began has none, and a damaged one is kept for who mends it.
        for look in filter(lambda look: look.submission, looks):
            with contextlib.suppress(OSError):
                state.write_submission(look.run, {**look.submission, "cancelled": True})
        problems = [problem for look in looks if (problem := _stop(look))]
        if said := slurm.cancel([look.job.id for look in looks if look.job and look.job.alive]):
            problems.append(f"Slurm cancels nothing: {said}.")
        return problems


def _stop(look: Look) -> str | None:
    """Ask a run's processes on this machine to save and end; or why that cannot be done here."""
    name, told = look.run.name, look.submission
    if look.alive is None:
        return f"{name} was handed to Slurm, which does not answer here."
    if look.job:
        return None
    if not told and (problem := state.submission_problem(look.run)):
        return f"{name} is trained, and its {problem}; stop that process."
    if told.get("launcher") != "local":
        return f"{name} is trained by a process that no sweep began; stop that one."
    if told.get("host") != state.here():
        return f"{name} is trained on {told.get('host')}; cancel it there."
    for process in told.get("processes", []):
        with contextlib.suppress(ProcessLookupError):
            try:
                os.kill(process, signal.SIGTERM)
            except PermissionError:
                return f"{name} is trained by another user, who alone can cancel it."
    return None
