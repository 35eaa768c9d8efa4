"""Floor 2's only door to torch: `python -m sweeps.worker RUN_DIR` trains one run directory.

TERM or INT asks it to save and stop; the same command then goes on where it was. One process a
run directory: a second finds the lock and leaves. Exit code 0 done, 2 a setting that cannot be
used, 75 stopped and to be resumed, 76 trained by another process, 1 failed.

In a job that a driver submitted to Slurm, USR2 says that the time limit is near: the run saves and
has its job queued again. TERM says that the job is preempted or cancelled: the run saves and waits
to be killed. It must not queue itself again, which would bring cancelled jobs back, nor end, which
Slurm counts as failed. In a job of the user's own a worker saves and ends: that job is not its to
queue again.
"""

import contextlib
import logging
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

RESUMABLE = 75  # EX_TEMPFAIL
ELSEWHERE = 76
KILLED_WITHIN_SECONDS = 600
"""Longest grace that Slurm is waited for after a stop."""


def main(run_dir: str, *, submitted: bool = False) -> int:
    """Train the run at `run_dir`; what it says goes to standard output, which the driver logs.

    submitted: whether this is an element of a job array that a driver submitted.
    """
    asked: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2):
        signal.signal(number, lambda received, _frame: asked.append(received))
    # Only now what is slow to import: a stop in the first second is a stop like any other.
    from ablations.distributed import environment
    from ablations.records import RunDirectory, project_root, readable
    from models.errors import SettingError
    from sweeps.freeze import keep_cache

    readable()
    keep_cache(project_root())
    run = RunDirectory(Path(run_dir))
    try:
        first = environment().first
    except SettingError as error:
        _say(f"error: {error}")
        return 2
    patience = 120.0 if submitted else 1.0
    with _lock(run, patience, asked) if first else contextlib.nullcontext(True) as held:
        if held:
            code = _train(run, asked, first)
        elif asked:
            code = RESUMABLE
        else:
            _say("another process trains this run; leaving it alone")
            code = ELSEWHERE
    if code == RESUMABLE and submitted:
        _leave_to_slurm(asked, first)
    return code


def _train(run: Any, asked: list[int], first: bool) -> int:
    """The exit code of a run that this process is to train."""
    from ablations.data.source import by_name
    from ablations.provenance import redact
    from ablations.spec import load
    from ablations.train import TrainingFailed, train
    from models.errors import SettingError

    path: str | None = None
    try:
        spec = load(run.spec_as_written())
        path = spec.data.path
        if _is_whole(run, sorted(milestone.step for milestone in spec.recipe.milestones)):
            if first:
                _say("done already")
            return 0
        if first:
            _say(f"{run.name}: {spec.recipe.steps} steps of {spec.recipe.batch_tokens:,} tokens")
        state = train(run, spec, stop=lambda: bool(asked), say=_say)
        if first:
            _say(state)
        return 0 if state == "done" else RESUMABLE
    except SettingError as error:
        _failed(run, str(SettingError(by_name(error.args[0], path))))
        return 2
    except OSError as error:
        where = error.filename or run.path
        told = by_name(f"{error.strerror or error}: {where}", path)
        _failed(run, f"{told}; the last whole checkpoint is kept")
        return 1
    except TrainingFailed as error:
        _failed(run, str(error))
        return 1
    except Exception as error:
        told = redact(by_name(traceback.format_exc(), path))
        print(told, file=sys.stderr, end="", flush=True)
        _failed(run, by_name(f"{type(error).__name__}: {error}", path))
        return 1


def _is_whole(run: Any, milestones: list[int]) -> bool:
    """Whether a run is done and its records need no mending, so that no rank waits for another."""
    if run.state != "done" or run.faults("points.jsonl") or run.faults("metrics.jsonl"):
        return False
    points, logged = (
        [row.get("step") for row in run.rows(file)] for file in ("points.jsonl", "metrics.jsonl")
    )
    return points == milestones and set(milestones) <= set(logged)


def under_slurm(run_dir: str) -> None:
    """`main` as an element of a job array: says what it says to the run's log.txt."""
    with Path(run_dir, "log.txt").open("ab") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    logging.getLogger("submitit").setLevel(logging.ERROR)
    signal.signal(signal.SIGCONT, signal.SIG_DFL)  # submitit reports each
    _say(f"Slurm job {_slurm_job()} on {os.environ.get('SLURMD_NODENAME')}")
    if code := main(run_dir, submitted=True):
        sys.exit(code)


@contextlib.contextmanager
def _lock(run: Any, patience: float, asked: list[int]) -> Iterator[bool]:
    """Acquire the run's lock, retrying for `patience` seconds or until a stop is asked: status
    checks hold it briefly, and a file server may release a dead node's lock late."""
    until = time.monotonic() + patience
    while True:
        with run.lock() as held:
            if held or asked or time.monotonic() > until:
                yield held
                return
        time.sleep(0.1)


def _leave_to_slurm(asked: list[int], first: bool) -> None:
    """After a stop that saved: queue the job again where its time was up, and wait for the end."""
    from sweeps import slurm

    until = time.monotonic() + KILLED_WITHIN_SECONDS
    requeued = False
    while time.monotonic() < until:
        if first and not requeued and signal.SIGUSR2 in asked and signal.SIGTERM not in asked:
            job = _slurm_job()
            _say(f"time limit near: job {job} is queued again")
            if problem := slurm.requeue(job):
                _say(f"it could not be: {problem}; the same sweep command goes on")
                return
            requeued = True
        if requeued and signal.SIGTERM in asked:
            return  # its place in the queue is safe
        time.sleep(0.1)


def _slurm_job() -> str:
    """This job as scontrol knows it: an element of an array has no number of its own there."""
    env = os.environ
    if "SLURM_ARRAY_TASK_ID" in env:
        return f"{env['SLURM_ARRAY_JOB_ID']}_{env['SLURM_ARRAY_TASK_ID']}"
    return env["SLURM_JOB_ID"]


def _say(text: str) -> None:
    from ablations.provenance import redact

    with contextlib.suppress(OSError):  # a log on a full disk must not hide what went wrong
        print(f"{time.strftime('%H:%M:%S')} {redact(text)}", flush=True)


def _failed(run: Any, error: str) -> None:
    from ablations.provenance import redact

    error = redact(error)
    _say(f"error: {error}")
    try:
        status = run.read_status()
        if status.get("state") == "done":
            return  # what went wrong since takes nothing from it
        run.write_status(**{**status, "state": "failed", "error": error})
    except OSError:
        _say(f"error: could not write {run.path / 'status.json'}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
