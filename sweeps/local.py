"""Run a plan on this machine: so many runs at a time, each a process of its own.

Ctrl-C asks every run to save and stop; the same command goes on from there. A second Ctrl-C ends
them at once. A failed run takes no other down.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.table import Table

from ablations.records import RunDirectory, project_root
from sweeps.worker import ELSEWHERE, RESUMABLE

POLL_SECONDS = 0.25
PLAIN_EVERY_SECONDS = 15.0


@dataclass
class Job:
    """A run directory and the processes that train it, a device each, once it has them."""

    run: RunDirectory
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    code: int | None = None


def run_all(
    runs: list[Path],
    parallel: int,
    threads: int,
    command: str,
    console: Console,
    *,
    devices: int = 1,
) -> dict[str, dict[str, object]]:
    """Train run directories, `parallel` at a time, each by `devices` processes of `threads`
    CPU threads.

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
                    _start(waiting.pop(0), environment, devices)
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
    return bool(job.processes) and job.code is None


def _start(job: Job, environment: dict[str, str], devices: int) -> None:
    port = _free_port() if devices > 1 else 0
    for rank in range(devices):
        ranked = {} if devices == 1 else {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(devices),
            "LOCAL_WORLD_SIZE": str(devices), "MASTER_ADDR": "localhost", "MASTER_PORT": str(port),
        }  # fmt: skip
        with job.run.log.open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "sweeps.worker", str(job.run.path)],
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env={**environment, **ranked},
                cwd=project_root(),
                start_new_session=True,  # Ctrl-C reaches the driver alone, which then asks the runs
            )
        job.processes.append(process)


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return int(found.getsockname()[1])


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
        for process in job.processes:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(number)


def _reap(job: Job, console: Console, asked: bool) -> None:
    if not _alive(job):
        return
    codes = [process.poll() for process in job.processes]
    if all(code is None for code in codes):
        return
    ended = next(code for code in codes if code is not None)
    if None in codes:
        if ended in (0, RESUMABLE):
            return  # the others are about to end as well
        # Ranks wait for one another: one that failed takes its run with it.
        _signal([job], signal.SIGKILL)
        for process in job.processes:
            process.wait()
    # The first rank's word where it has one, else that of the rank that failed.
    job.code = codes[0] if codes[0] is not None else ended
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


COLUMNS = ("step", "tokens", "tokens/s", "loss", "bpb", "LR", "point in", "done in")


def _progress(job: Job) -> dict[str, str]:
    """What a running job says of itself, by column, blanks where not known yet."""
    status = job.run.read_status()
    step, steps = status.get("step", 0), status.get("steps")
    if not steps or not status.get("seconds"):
        return {"step": "starting"}
    rate = status.get("tokens_per_second", status["tokens"] / status["seconds"])
    shown = f"{rate:,.0f}" + (f" ({status['mfu']:.0%} MFU)" if "mfu" in status else "")
    return {
        "step": f"{step:,}/{steps:,}",
        "tokens": f"{status['tokens']:,}",
        "tokens/s": shown,
        "loss": f"{status['loss']:.3f}" if "loss" in status else "",
        "bpb": f"{status['bpb']:.3f}" if "bpb" in status else "",
        "LR": f"{status['lr']:.2e}" if "lr" in status else "",
        "point in": _duration(status.get("eta_point")),
        "done in": _duration(status.get("eta")),
    }


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _table(jobs: list[Job]) -> Table:
    done = sum(job.code == 0 for job in jobs)
    table = Table(title=f"{done} of {len(jobs)} runs done", title_justify="left")
    for name in ("run", *COLUMNS):
        table.add_column(name, justify="left" if name == "run" else "right")
    for job in filter(_alive, jobs):
        progress = _progress(job)
        table.add_row(job.run.name, *(progress.get(name, "") for name in COLUMNS))
    return table


def _plain(jobs: list[Job], console: Console) -> None:
    done = sum(job.code == 0 for job in jobs)
    running = [
        job.run.name
        + "".join(f" {name} {value}" for name, value in _progress(job).items() if value)
        for job in filter(_alive, jobs)
    ]
    console.print(f"{done}/{len(jobs)} done | " + " | ".join(running), soft_wrap=True)
