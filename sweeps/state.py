"""How far each run of a sweep is, and whether anything trains it or will.

A run that was handed to someone has a submission.json beside its spec, naming a job: a driver on
this machine, or an element of a Slurm job array. Jobs are named before they are submitted, so that
a driver killed in between leaves nothing that another could submit twice.

    runs/<sweep>/.sweep/
      lock           held while a driver looks and submits
      code/<hash>/   the code that workers import
      jobs/<job>/    of Slurm its scripts and logs; of a local driver the lock that it holds
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from ablations import formats
from ablations.records import DamagedRecord, RunDirectory
from models.format import duration
from sweeps import slurm

UNENDED = ("queued", "running", "preempted")
"""What a run may say of itself that is not its end."""
SILENT_SECONDS = 120.0
"""A running run without a heartbeat for so long is looked at twice."""


@dataclass(frozen=True)
class Look:
    """One run as it was found."""

    run: RunDirectory
    state: str
    """One of records.STATES, or new, starting, cancelled, lost, damaged."""
    alive: bool | None
    """Whether something trains it or will; None where that cannot be known from here."""
    note: str = ""
    job: slurm.Job | None = None
    status: dict[str, Any] = field(default_factory=dict)
    submission: dict[str, Any] = field(default_factory=dict)

    @property
    def attempts(self) -> int:
        """Times it has begun training."""
        try:
            return len(self.run.read_manifest()["earlier"]) + 1
        except (OSError, KeyError, DamagedRecord):
            return 0


def machinery(sweep: Path) -> Path:
    """The folder of a sweep that holds what is no run."""
    return sweep / ".sweep"


def lock(sweep: Path) -> Path:
    """What is held by whoever hands runs on, begins or cancels them."""
    return machinery(sweep) / "lock"


def new_job(sweep: Path) -> str:
    """A name for a job that no other has."""
    return re.sub(r"[^A-Za-z0-9_.-]", "-", f"{sweep.name}-{os.urandom(4).hex()}")


def job_folder(sweep: Path, job: str) -> Path:
    return machinery(sweep) / "jobs" / job


@contextlib.contextmanager
def held(file: Path) -> Iterator[int]:
    """An exclusive lock on `file`, waited for, as long as the block lasts."""
    while True:
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            handle = file.open("a")
        except FileNotFoundError:  # its folder was removed again
            continue
        with handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            # Whoever held it may have removed it, as it does when it takes a submission back.
            if _is_at(handle, file):
                yield handle.fileno()
                return


def _is_at(handle: IO[str], file: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle.fileno()), file.stat())
    except FileNotFoundError:
        return False


def _is_held(file: Path) -> bool:
    try:
        with file.open("rb") as handle:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def driver_lock(sweep: Path, job: str) -> Path:
    """What a local driver holds while it lives."""
    return job_folder(sweep, job) / "driver"


def read_submission(run: RunDirectory) -> dict[str, Any]:
    """submission.json, or `{}` where the run was never handed to anyone, or where `look` says what
    is wrong with it."""
    return _submission(run)[0]


def submission_problem(run: RunDirectory) -> str:
    """Why a run's submission.json cannot be used, a clause; empty where it can, or is none."""
    return _submission(run)[1]


def _submission(run: RunDirectory) -> tuple[dict[str, Any], str]:
    """(submission.json, what is wrong with it): nothing of what was copied from another run."""
    path = run.path / "submission.json"
    if run.is_of_another:
        return {}, ""
    try:
        kinds, needed = formats.SUBMISSION, ("launcher", "job")
        return formats.read_object(path, formats.parse_json, kinds, needed), ""
    except (FileNotFoundError, NotADirectoryError):
        return {}, ""
    except DamagedRecord as fault:
        return {}, f"{fault}, so it is not known who was given the run"


def write_submission(run: RunDirectory, submission: dict[str, Any]) -> None:
    run.write("submission.json", json.dumps(submission, indent=1) + "\n")


def look(runs: Sequence[RunDirectory]) -> list[Look]:
    """Each run's state now. Asks Slurm once, where a run that is not done was handed to it."""
    read = [(run, run.read_status(), _submission(run)) for run in runs]
    names = {
        submission["job"]
        for _, status, (submission, _) in read
        if submission.get("launcher") == "slurm" and status.get("state") != "done"
    }
    jobs = slurm.jobs(names) if names else {}
    return [_look(run, status, *handed, jobs) for run, status, handed in read]


def _look(
    run: RunDirectory,
    status: dict[str, Any],
    submission: dict[str, Any],
    unsubmitted: str,
    jobs: dict[tuple[str, int], slurm.Job] | None,
) -> Look:
    state, job = status.get("state", "new"), None
    problem = run.problem()
    if (state == "done" and not problem) or not run.path.exists():
        return Look(run, state, False, unsubmitted, None, status, submission)
    if submission.get("launcher") == "slurm":
        if jobs is not None:
            job = jobs.get((submission["job"], submission.get("index", 0)))
        alive: bool | None = None if jobs is None else job is not None and job.alive
    else:
        own = submission.get("job", "")
        alive = bool(own) and _is_held(driver_lock(run.path.parent, own))
        # A driver that has seen a run end does not begin it again.
        alive = alive and state in ("queued", "running")
    if not alive and _is_held(run.path / ".lock"):
        alive = True
    note = _note(state, status, job)
    left = alive is False and submission.get("launcher") == "slurm" and job is None
    if left and state in UNENDED and not submission.get("cancelled"):
        note = "Slurm does not know its job any more"
    if left and state == "queued" and _was_taken(run, submission):
        # Slurm forgets at once an array's element that is cancelled while it waits.
        state, note = "cancelled", "cancelled in Slurm's queue before it began"
    if alive is False and job and job.state == "CANCELLED" and state in UNENDED:
        state = "cancelled"
    if alive is False and state in ("queued", "running"):
        state = "lost"
    if alive is not True and submission.get("cancelled"):
        state = "cancelled"
    elif job and job.alive and job.state == "PENDING" and state in ("running", "preempted"):
        state = "queued"
    elif state == "queued" and alive and (job.state == "RUNNING" if job else _begun(submission)):
        state = "starting"
    if problem and alive is False and state in ("new", "done"):
        state = "damaged"
    note = "; ".join(filter(None, (note, problem, unsubmitted)))
    return Look(run, state, alive, note, job, status, submission)


def slurm_log(run: RunDirectory, submission: dict[str, Any]) -> Path | None:
    """Where Slurm wrote what a run's job said; None where it never began."""
    index = submission.get("index", 0)
    # A job that is no array has no index in its name.
    named = re.compile(rf"\d+_{index}_0_log\.out" + (r"|\d+_0_log\.out" if index == 0 else ""))
    folder = job_folder(run.path.parent, submission["job"])
    found = sorted(path for path in folder.glob("*_log.out") if named.fullmatch(path.name))
    return found[-1] if found else None


def _was_taken(run: RunDirectory, submission: dict[str, Any]) -> bool:
    """Whether Slurm accepted a run's job and never began it."""
    folder = job_folder(run.path.parent, submission["job"])
    taken = any(folder.glob("*_submission.sh"))  # so named once sbatch has said its number
    return taken and slurm_log(run, submission) is None


def _begun(submission: dict[str, Any]) -> bool:
    return bool(submission.get("processes"))


def _note(state: str, status: dict[str, Any], job: slurm.Job | None) -> str:
    if job and job.alive and job.state != "RUNNING":
        return job.state.lower() + (f": {job.reason}" if job.reason != "None" else "")
    if state == "failed":
        return str(status.get("error", ""))
    if job and not job.alive and state in UNENDED:
        return str(job)
    silent = time.time() - status.get("heartbeat", time.time())
    if state == "running" and silent > SILENT_SECONDS:
        return f"no heartbeat for {duration(silent)}"
    return ""


def here() -> str:
    """The name of this machine, as submissions record it."""
    return socket.gethostname()
