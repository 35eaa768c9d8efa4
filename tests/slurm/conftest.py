"""A Slurm of two nodes for the tests of one process, and hands to disturb its jobs with."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ablations.records import RunDirectory, read_sweep
from ablations.spec import load
from ablations.train import train
from sweeps.state import read_submission

ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).parent / "cluster.sh"
SMALL = (
    "size=50k", "size.context=64", "protocol.batch_tokens=256", "data.eval_tokens=2048",
    "protocol.chinchilla=[0.01,0.03]", "resources.threads=1", "logging.log_every=1",
    "logging.checkpoint_every=10", "cluster=slurm", "cluster.cpus=1", "cluster.poll_seconds=0.5",
)  # fmt: skip
PATIENCE_SECONDS = 150


@pytest.fixture(scope="session")
def slurm(tmp_path_factory):
    """The folder of a running Slurm; SLURM_CONF names it to every command of these tests."""
    if not all(map(shutil.which, ("slurmctld", "slurmd", "sbatch"))):
        pytest.skip("Slurm is not installed: tests/slurm/cluster.sh install")
    folder = tmp_path_factory.mktemp("slurm")
    started = subprocess.run([SCRIPT, "start", folder], capture_output=True, text=True, check=False)
    if started.returncode:
        subprocess.run([SCRIPT, "stop", folder], check=False, capture_output=True)
        pytest.skip(f"Slurm does not start here: {started.stderr.strip()}")
    before = os.environ.get("SLURM_CONF")
    os.environ["SLURM_CONF"] = str(folder / "slurm.conf")
    yield folder
    subprocess.run([SCRIPT, "stop", folder], check=False, capture_output=True)
    del os.environ["SLURM_CONF"]
    if before is not None:
        os.environ["SLURM_CONF"] = before


@pytest.fixture
def driver(slurm, tmp_path):
    """Start `sweeps/run.py` with arguments, its runs under tmp_path; those left over are killed."""
    begun = []

    def start(*arguments, script="run.py", runs=tmp_path):
        where = (f"runs={runs}",) if script == "run.py" else ("--runs", str(runs))
        process = subprocess.Popen(
            [sys.executable, f"sweeps/{script}", *arguments, *where], cwd=ROOT, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        begun.append(process)
        return process

    yield start
    for process in begun:
        if process.poll() is None:
            process.kill()
        process.communicate()
    said("scancel", "--user", str(os.getuid()))


def ended(process, code=0):
    """What a driver printed, once it has ended with this code. Meanwhile jobs that were queued
    again are let go: Slurm holds them back for two minutes."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        for line in said("squeue", "-h", "-r", "-t", "PD", "-o", "%i %r").splitlines():
            if line.endswith("BeginTime"):
                said("scontrol", "update", f"JobId={line.split()[0]}", "StartTime=now")
        with contextlib.suppress(subprocess.TimeoutExpired):
            text, _ = process.communicate(timeout=1)
            assert process.returncode == code, text
            return text
    raise AssertionError(said("squeue", "-t", "all"))


def said(*command):
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def until(condition, what):
    """Wait for a condition, and return what it found."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (found := condition()):
        assert time.monotonic() < deadline, f"waited for {what}\n{said('squeue', '-t', 'all')}"
        time.sleep(0.02)
    return found


def found(runs, number=1):
    """The runs of the sweep, as soon as so many are there."""

    def there():
        folder = runs / "default"
        seen = read_sweep(folder) if folder.is_dir() else []
        return seen if len(seen) == number and all(map(read_submission, seen)) else None

    return until(there, f"{number} runs")


def workers(run):
    """Process ids of a run's ranks, on whichever node."""
    submission = read_submission(run)
    wanted = {f"SLURM_JOB_NAME={submission['job']}", f"SLURM_ARRAY_TASK_ID={submission['index']}"}
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # some end while they are looked at
            if b"submitit.core._submit" not in (process / "cmdline").read_bytes():
                continue
            names = set((process / "environ").read_bytes().decode().split("\0"))
            alone = f"SLURM_JOB_NAME={submission['job']}" in names and not any(
                name.startswith("SLURM_ARRAY_TASK_ID=") for name in names
            )
            if (wanted <= names or alone) and b"srun" not in (process / "cmdline").read_bytes():
                found.append(int(process.name))
    return found


def steps(run):
    return len(list(run.rows("metrics.jsonl")))


def send(processes, number):
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, number)


@contextlib.contextmanager
def paused(run, step=15):
    """A run held in mid-training for as long as the block lasts, however fast this machine is."""
    until(lambda: steps(run) >= step or stopped(run), f"step {step} of {run.name}")
    held = workers(run)
    send(held, signal.SIGSTOP)
    try:
        yield held
    finally:
        send(held, signal.SIGCONT)


def job(run, field):
    """A field of a run's job by squeue's letter, like T for its state."""
    submission = read_submission(run)
    shown = said("squeue", "-h", "-r", "-t", "all", "-n", submission["job"], "-o", f"%K|%{field}")
    fields = dict(line.split("|", 1) for line in shown.splitlines())
    return fields.get(str(submission["index"])) or fields.get("N/A")


def stopped(run):
    """The step at which a run saved and stopped, once it has."""
    status = run.read_status()
    return status["step"] if status.get("state") == "preempted" else None


def undisturbed(run, tmp_path):
    """points.jsonl of the same run, trained here in one go."""
    alone = RunDirectory(tmp_path / "undisturbed" / run.name)
    alone.write_spec(run.spec_as_written())
    assert train(alone, load(run.read_spec()), stop=lambda: False, say=lambda _: None) == "done"
    return (alone.path / "points.jsonl").read_bytes()


def assert_undisturbed(run, tmp_path):
    assert run.read_status()["state"] == "done"
    assert (run.path / "points.jsonl").read_bytes() == undisturbed(run, tmp_path)
    rows = [row["step"] for row in run.rows("metrics.jsonl")]
    assert rows == list(range(1, len(rows) + 1))  # nothing lost, nothing twice
