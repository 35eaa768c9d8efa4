"""Run a plan on this machine: so many runs at a time, each a process of its own.

Ctrl-C asks every run to save and stop; the same command goes on from there. A second Ctrl-C ends
them at once. A failed run takes no other down.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.table import Table

from ablations.records import RunDirectory, project_root
from sweeps.worker import ELSEWHERE

POLL_SECONDS = 0.25
PLAIN_EVERY_SECONDS = 15.0


@dataclass
class Job:
    """A run directory and the process that trains it, once it has one."""

    run: RunDirectory
    process: subprocess.Popen[bytes] | None = None
    code: int | None = None


def run_all(
    runs: list[Path], parallel: int, threads: int, command: str, console: Console
) -> dict[str, dict[str, object]]:
    """Train run directories, `parallel` at a time with `threads` CPU threads each.

    Returns each run's last status by name. Runs are begun in the order given.
    """
    jobs = [Job(RunDirectory(path)) for path in runs]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(project_root()), os.environ.get("PYTHONPATH", "")]),
        # Two runs with a pool of threads each on two cores would wait for one another.
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "ARCHLADDER_COMMAND": command,
        "ARCHLADDER_RUNS_AT_ONCE": str(parallel),
    }
    waiting, heard = list(jobs), 0
    asked: list[int] = []
    last_plain = time.monotonic()
    with _display(console) as live, _listening(asked):
        try:
            while waiting or any(map(_alive, jobs)):
                while waiting and not asked and sum(map(_alive, jobs)) < parallel:
                    _start(waiting.pop(0), environment)
                time.sleep(POLL_SECONDS)
                for job in jobs:
                    _reap(job, console, bool(asked))
                if len(asked) > heard:
                    heard += 1
                    waiting.clear()
                    _signal(jobs, signal.SIGTERM if heard == 1 else signal.SIGKILL)
                    if heard == 1:
                        console.print("stopping: runs save and end; Ctrl-C again to kill them")
                if live:
                    live.update(_table(jobs))
                elif time.monotonic() - last_plain > PLAIN_EVERY_SECONDS:
                    last_plain = time.monotonic()
                    _plain(jobs, console)
        finally:
            # Whatever ends the driver, no run is left training behind its back.
            _signal(jobs, signal.SIGTERM)
    return {job.run.name: dict(job.run.read_status()) for job in jobs}


def _alive(job: Job) -> bool:
    return job.process is not None and job.code is None


def _start(job: Job, environment: dict[str, str]) -> None:
    with job.run.log.open("ab") as log:
        job.process = subprocess.Popen(
            [sys.executable, "-m", "sweeps.worker", str(job.run.path)],
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env=environment,
            cwd=project_root(),
            start_new_session=True,  # Ctrl-C reaches the driver alone, which then asks the runs
        )


@contextlib.contextmanager
def _listening(asked: list[int]) -> Iterator[None]:
    """Ctrl-C, TERM and a closed terminal become entries of `asked`."""
    before = {
        number: signal.signal(number, lambda received, _frame: asked.append(received))
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _signal(jobs: list[Job], number: int) -> None:
    for job in filter(_alive, jobs):
        assert job.process is not None
        with contextlib.suppress(ProcessLookupError):
            job.process.send_signal(number)


def _reap(job: Job, console: Console, asked: bool) -> None:
    if not _alive(job):
        return
    assert job.process is not None
    job.code = job.process.poll()
    if job.code is None:
        return
    status = job.run.read_status()
    if job.code == 0:
        points = list(job.run.rows("points.jsonl"))
        result = f", loss {points[-1]['loss']:.4f}" if points else ""
        console.print(f"done    {job.run.name}  {status.get('seconds', 0):.0f} s{result}")
        return
    if job.code == ELSEWHERE:
        console.print(f"running {job.run.name}  is trained by another process")
        return
    if status.get("state") in ("running", "queued"):
        # Killed from outside: it could not say so itself.
        status["state"] = "preempted" if asked else "failed"
        if not asked:
            status["error"] = f"ended with code {job.code}"
        job.run.write_status(**status)
    word = "stopped" if status.get("state") == "preempted" else "failed "
    reason = f"  {status['error']}" if status.get("error") else ""
    console.print(f"{word} {job.run.name}{reason}  (log: {job.run.log})", soft_wrap=True)


@contextlib.contextmanager
def _display(console: Console) -> Iterator[Live | None]:
    if not console.is_terminal:
        yield None
        return
    with Live(console=console, refresh_per_second=4, transient=True) as live:
        yield live


def _progress(job: Job) -> tuple[str, str, str, str]:
    """(share done, tokens/s, loss, ETA) of a running job, blanks where not known."""
    status = job.run.read_status()
    step, steps = status.get("step", 0), status.get("steps")
    if not steps or not status.get("seconds"):
        return "starting", "", "", ""
    rate = status["tokens"] / status["seconds"]
    eta = (steps - step) / max(step, 1) * status["seconds"]
    loss = f"{status['loss']:.3f}" if "loss" in status else ""
    return f"{step / steps:.0%}", f"{rate:,.0f}", loss, f"{eta:.0f} s"


def _table(jobs: list[Job]) -> Table:
    done = sum(job.code == 0 for job in jobs)
    table = Table(title=f"{done} of {len(jobs)} runs done", title_justify="left")
    for name in ("run", "done", "tokens/s", "loss", "ETA"):
        table.add_column(name, justify="left" if name == "run" else "right")
    for job in filter(_alive, jobs):
        table.add_row(job.run.name, *_progress(job))
    return table


def _plain(jobs: list[Job], console: Console) -> None:
    done = sum(job.code == 0 for job in jobs)
    running = [
        f"{job.run.name} {share} {rate} tok/s loss {loss} eta {eta}"
        for job in filter(_alive, jobs)
        for share, rate, loss, eta in [_progress(job)]
    ]
    console.print(f"{done}/{len(jobs)} done | " + " | ".join(running), soft_wrap=True)
