"""Watch runs that others train, until they end; write down what those could not say themselves."""

import contextlib
import os
import signal
import time
from collections.abc import Sequence

from rich.console import Console

from ablations.records import RunDirectory
from sweeps import slurm, state, view
from sweeps.state import Look

SECOND_CHANCE_SECONDS = 5.0
"""After a Ctrl-C, in which a second one cancels the runs."""


def follow(runs: Sequence[RunDirectory], poll_seconds: float, out: Console) -> bool:
    """Show runs until none is alive. Ctrl-C detaches and leaves them running, twice cancels them.

    Returns whether they were watched to their end.
    """
    asked: list[int] = []
    seen_dead: dict[str, int] = {}
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
                cancel([look for look in looks if look.alive is not False])
            if time.monotonic() > leave_at or len(asked) > stops:
                return False
    return True


def _just_ended(looks: Sequence[Look], seen_dead: dict[str, int]) -> list[Look]:
    """Those that are seen dead for the second time in a row: a job between two of Slurm's states is
    not dead."""
    for look in looks:
        name = look.run.name
        if seen_dead.get(name, 0) < 2 or look.alive is False:
            seen_dead[name] = seen_dead.get(name, 0) + 1 if look.alive is False else 0
    return [look for look in looks if seen_dead[look.run.name] == 2]


def settle(look: Look) -> Look:
    """A run whose trainer is gone says how it ended, if it could not do so itself."""
    if look.state not in ("lost", "cancelled", "preempted"):
        return look
    run = look.run
    with contextlib.suppress(OSError), state.held(state.machinery(run.path.parent) / "lock"):
        # Another driver may have handed it on meanwhile.
        if state.read_submission(run) != look.submission:
            return state.look([run])[0]
        status = run.read_status()
        was = status.pop("state", None)
        if was == "done":
            return state.look([run])[0]
        job = look.job
        if look.state == "cancelled" or (job and job.state == "CANCELLED"):
            run.write_status("preempted", **{**status, "error": "cancelled"})
            state.write_submission(run, {**look.submission, "cancelled": True})
        elif was == "queued" and not job:
            # Slurm forgets at once an array's element that is cancelled while it waits.
            reason = "left the queue before it began: cancelled there, or long ago"
            run.write_status("preempted", **{**status, "error": reason})
        elif was in ("running", "queued"):
            reason = f"ended unheard; {job}" if job else "its trainer ended unheard"
            run.write_status("failed", **{**status, "error": reason})
    return state.look([run])[0]


def cancel(looks: Sequence[Look]) -> list[str]:
    """Stop runs, which save first, and keep them from being begun. Returns what could not be done,
    a sentence each."""
    problems = []
    for look in looks:
        with contextlib.suppress(OSError):
            told = state.read_submission(look.run)
            state.write_submission(look.run, {**told, "cancelled": True})
    slurm.cancel([look.job.id for look in looks if look.job and look.job.alive])
    for look in looks:
        if look.alive is None:
            problems.append(f"{look.run.name} was handed to Slurm, which does not answer here.")
        if look.job or not look.alive or look.submission.get("launcher") != "local":
            continue
        if look.submission.get("host") != state.here():
            problems.append(
                f"{look.run.name} is trained on {look.submission.get('host')}; cancel it there."
            )
            continue
        for process in state.read_submission(look.run).get("processes", []):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGTERM)
    return problems
