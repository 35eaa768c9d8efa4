"""Run a sweep on this machine: so many runs at a time, each a process of its own, a GPU each.

Ctrl-C asks every run to save and stop; the same command goes on from there. A second Ctrl-C ends
them at once. A failed run takes no other down.
"""

import contextlib
import fcntl
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from rich.console import Console

from ablations.records import RunDirectory, project_root
from sweeps import state, view
from sweeps.environment import of_this_machine
from sweeps.starter import Fork, Starter
from sweeps.worker import ELSEWHERE, RESUMABLE

POLL_SECONDS = 0.25
LOOK_SECONDS = 1.0


@dataclass
class Gpu:
    """A place on a GPU for one run. The lock spans every driver of this machine, and a worker
    inherits it, so that the place is taken for as long as either lives."""

    name: str
    lock: IO[bytes]


@dataclass
class Job:
    """A run directory and the processes that train it, a device each, once it has them."""

    run: RunDirectory
    processes: list[subprocess.Popen[bytes] | Fork] = field(default_factory=list)
    gpus: list[Gpu] = field(default_factory=list)
    code: int | None = None

    @property
    def alive(self) -> bool:
        return bool(self.processes) and self.code is None


def run_all(
    runs: list[Path],
    parallel: int,
    threads: int,
    command: str,
    console: Console,
    *,
    devices: int = 1,
    gpus: Sequence[str] = (),
    runs_per_gpu: int = 1,
    code: Path | None = None,
) -> dict[str, dict[str, object]]:
    """Train run directories, `parallel` at a time, each by `devices` processes of `threads`
    CPU threads.

    gpus: names for CUDA_VISIBLE_DEVICES, none for a machine without; each is given to
    `runs_per_gpu` runs at a time, whichever driver of this user they belong to. code: the copy of
    the project that workers import. Returns each run's last status by name. Runs are begun in the
    order given.
    """
    jobs = [Job(RunDirectory(path)) for path in runs]
    root = code or project_root()
    environment = worker_environment(root, threads, parallel, command, of_this_machine(os.environ))
    places = [f"{gpu}.{place}" for place in range(runs_per_gpu) for gpu in gpus]
    waiting, heard = list(jobs), 0
    # Forks hold no places on GPUs, and a run by itself has nothing to share.
    forks = len(jobs) > 1 and devices == 1 and not gpus
    starter = Starter(environment) if forks else None
    asked: list[int] = []
    with view.Display(console) as display, view.listening(asked):
        try:
            while waiting or any(job.alive for job in jobs):
                while waiting and not asked and sum(job.alive for job in jobs) < parallel:
                    if starter and starter.alive and not starter.ready:
                        break
                    if (taken := _take(places, devices)) is None:
                        display.once("waiting for a GPU that another sweep uses")
                        break
                    if not _start(waiting[0], environment, devices, taken, starter):
                        _not_begun(waiting[0], "cancelled")
                        console.print(f"cancelled {waiting[0].run.name}", soft_wrap=True)
                    waiting.pop(0)
                time.sleep(POLL_SECONDS)
                for job in jobs:
                    _reap(job, console, bool(asked))
                if len(asked) > heard:
                    heard += 1
                    for job in waiting:
                        _not_begun(job, "stopped before its turn came")
                    waiting.clear()
                    _signal(jobs, signal.SIGTERM if heard == 1 else signal.SIGKILL)
                    if heard == 1:
                        console.print("stopping: runs save and end; Ctrl-C again to kill them")
                if display.is_due(LOOK_SECONDS):
                    display.show(state.look([job.run for job in jobs]))
        finally:
            # Whatever ends the driver, no run is left training behind its back.
            _signal(jobs, signal.SIGTERM)
            if starter:
                starter.close()
    return {job.run.name: dict(job.run.read_status()) for job in jobs}


def worker_environment(
    code: Path, threads: int, parallel: int, command: str, inherited: Mapping[str, str]
) -> dict[str, str]:
    """What a worker's process gets: `inherited` and what the driver decides."""
    return {
        **inherited,
        "PYTHONPATH": os.pathsep.join(filter(None, [str(code), os.environ.get("PYTHONPATH")])),
        # The copy of the code, not what lies in the folder that the command was typed in.
        "PYTHONSAFEPATH": "1",
        # Two runs with a pool of threads each on two cores would wait for one another.
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "ARCHLADDER_COMMAND": command,
        "ARCHLADDER_RUNS_AT_ONCE": str(parallel),
    }


def worker_command(run: Path) -> list[str]:
    """The command of each process that trains a run."""
    return [sys.executable, "-m", "sweeps.worker", str(run)]


def _take(places: Sequence[str], devices: int) -> list[Gpu] | None:
    """Places on as many different GPUs as a run takes; None where there are not so many free."""
    taken: dict[str, Gpu] = {}
    for place in places:
        name = place.split(".")[0]
        if name in taken or len(taken) == devices:
            continue
        # Slurm may number the GPUs of every job from 0, and gives no two jobs the same one.
        job = os.environ.get("SLURM_JOB_ID", "")
        file = f"archladder-{os.getuid()}{job and f'-job-{job}'}-gpu-{place}.lock"
        path = Path(tempfile.gettempdir(), file)
        lock = path.open("ab")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
        else:
            taken[name] = Gpu(name, lock)
    if places and len(taken) < devices:
        _give_back(list(taken.values()))
        return None
    return list(taken.values())


def _give_back(gpus: Sequence[Gpu]) -> None:
    for gpu in gpus:
        gpu.lock.close()


def _start(
    job: Job,
    environment: dict[str, str],
    devices: int,
    gpus: list[Gpu],
    starter: Starter | None,
) -> bool:
    """Begin a run, unless somebody cancelled it before its turn came."""
    # Whoever cancels holds this lock: it comes first, or finds the processes to stop.
    with state.held(state.lock(job.run.path.parent)):
        submission = state.read_submission(job.run)
        if submission.get("cancelled"):
            _give_back(gpus)
            return False
        job.gpus = gpus
        if starter and (fork := starter.start(job.run.path)):
            job.processes = [fork]
        else:
            _spawn(job, environment, devices, gpus)
        if submission:
            numbers = [process.pid for process in job.processes]
            with contextlib.suppress(OSError):
                state.write_submission(job.run, {**submission, "processes": numbers})
    return True


def _spawn(job: Job, environment: dict[str, str], devices: int, gpus: list[Gpu]) -> None:
    if gpus:
        environment = {**environment, "CUDA_VISIBLE_DEVICES": ",".join(gpu.name for gpu in gpus)}
    port = _free_port() if devices > 1 else 0
    for rank in range(devices):
        ranked = {} if devices == 1 else {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(devices),
            "LOCAL_WORLD_SIZE": str(devices), "MASTER_ADDR": "localhost", "MASTER_PORT": str(port),
        }  # fmt: skip
        with job.run.log.open("ab") as log:
            process = subprocess.Popen(
                worker_command(job.run.path),
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env={**environment, **ranked},
                start_new_session=True,  # Ctrl-C reaches the driver alone, which then asks the runs
                pass_fds=[gpu.lock.fileno() for gpu in gpus],
            )
        job.processes.append(process)


def _not_begun(job: Job, reason: str) -> None:
    """Write down why a run that waited for its turn is left as it is."""
    status = {k: v for k, v in job.run.read_status().items() if k != "state"}
    with contextlib.suppress(OSError):  # on a full disk: the summary says it was lost
        job.run.write_status("preempted", **{**status, "error": reason})
    job.code = RESUMABLE


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return int(found.getsockname()[1])


def _signal(jobs: list[Job], number: int) -> None:
    for job in (job for job in jobs if job.alive):
        for process in job.processes:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(number)


def _reap(job: Job, console: Console, asked: bool) -> None:
    if not job.alive:
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
    _give_back(job.gpus)
    status = job.run.read_status()
    if job.code == ELSEWHERE:
        console.print(f"running {job.run.name}  is trained by another process")
        return
    if status.get("state") in ("running", "queued"):
        # Killed from outside: it could not say so itself.
        status["state"] = "preempted" if asked else "failed"
        if not asked:
            status["error"] = f"ended with code {job.code}"
        with contextlib.suppress(OSError):  # on a full disk: the summary says it was lost
            job.run.write_status(**status)
    console.print(view.line(state.look([job.run])[0]), soft_wrap=True)
