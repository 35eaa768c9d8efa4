"""The driver on one machine: a run by two processes, one of which dies; a GPU each."""

import contextlib
import fcntl
import io
import json
import os
import shutil
import signal
import tempfile
import threading
import time
from pathlib import Path

import pytest
from rich.console import Console

from ablations.records import RunDirectory
from ablations.resolve import resolve
from models.errors import SettingError
from models.settings import to_dict
from sweeps import drive, view
from sweeps.cluster import Local
from sweeps.local import run_all
from sweeps.state import write_submission
from sweeps.submit import Request
from tests.ablations.conftest import settings


def kill_one_worker(run):
    """Kill the newest worker of a run once it has taken a step."""
    while not list(run.rows("metrics.jsonl")):
        time.sleep(0.05)
    workers = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # some end while they are looked at
            if str(run.path).encode() in (process / "cmdline").read_bytes():
                workers.append(int(process.name))
    os.kill(max(workers), signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="finds processes by /proc")
def test_a_rank_that_dies_fails_its_run_which_then_goes_on(tmp_path):
    spec = resolve(settings(protocol__chinchilla=[0.05]))
    run = RunDirectory(tmp_path / "run")
    run.write_spec(to_dict(spec))
    killer = threading.Thread(target=kill_one_worker, args=(run,))
    killer.start()
    console = Console(file=io.StringIO(), markup=False)
    states = run_all([run.path], 1, 1, "test", console, devices=2)
    killer.join()
    assert states["run"]["state"] == "failed", console.file.getvalue()
    states = run_all([run.path], 1, 1, "test", console, devices=2)
    assert states["run"]["state"] == "done"
    steps = [row["step"] for row in run.rows("metrics.jsonl")]
    assert steps == list(range(1, spec.recipe.steps + 1))


WORKER = """
import json, os, pathlib, sys, time
run = pathlib.Path(sys.argv[1])
begun = time.monotonic()
time.sleep(0.4)
gpus = os.environ.get("CUDA_VISIBLE_DEVICES")
(run / "told.json").write_text(json.dumps([gpus, begun, time.monotonic()]))
(run / "environment.json").write_text(json.dumps(dict(os.environ)))
(run / "status.json").write_text(json.dumps({"state": "done"}))
"""


@pytest.fixture
def pretend(tmp_path, monkeypatch):
    """Runs whose workers say which GPU they were given, and when."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / "code" / "sweeps").mkdir(parents=True)
    (tmp_path / "code" / "sweeps" / "__init__.py").write_text("")
    (tmp_path / "code" / "sweeps" / "worker.py").write_text(WORKER)

    def train(number, parallel, **options):
        runs = [tmp_path / "sweep" / f"run{i}" for i in range(number)]
        for run in runs:
            run.mkdir(parents=True)
        console = Console(file=io.StringIO(), markup=False)
        run_all(runs, parallel, 1, "test", console, code=tmp_path / "code", **options)
        return [json.loads((run / "told.json").read_text()) for run in runs]

    return train


def at_once(told, gpu):
    mine = [(begin, end) for given, begin, end in told if gpu in given.split(",")]
    return max(sum(a <= begin < b for a, b in mine) for begin, _ in mine)


def test_each_run_has_a_gpu_of_its_own(pretend):
    told = pretend(6, 6, gpus=["2", "5"])
    assert {gpu for gpu, _, _ in told} == {"2", "5"}
    assert at_once(told, "2") == at_once(told, "5") == 1


def test_runs_share_a_gpu_only_where_that_is_asked_for(pretend):
    told = pretend(4, 4, gpus=["0"], runs_per_gpu=2)
    assert at_once(told, "0") == 2


def test_a_run_of_two_devices_has_two_different_gpus(pretend):
    for given, _, _ in pretend(2, 2, gpus=["0", "1", "2"], devices=2):
        assert len(set(given.split(","))) == 2


def test_a_gpu_that_another_driver_uses_is_left_to_it(pretend, tmp_path):
    with (tmp_path / f"archladder-{os.getuid()}-gpu-0.0.lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        told = pretend(3, 3, gpus=["0", "1"])
    assert {gpu for gpu, _, _ in told} == {"1"}


def test_jobs_of_slurm_on_one_node_do_not_wait_for_one_anothers_gpus(
    pretend, tmp_path, monkeypatch
):
    monkeypatch.setenv("SLURM_JOB_ID", "7")  # whose only GPU is number 0, as that of another job is
    with (tmp_path / f"archladder-{os.getuid()}-job-6-gpu-0.0.lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert [gpu for gpu, *_ in pretend(1, 1, gpus=["0"])] == ["0"]


def test_workers_know_only_the_ranks_that_their_driver_made(pretend, tmp_path, monkeypatch):
    placed = {
        "SLURM_PROCID": "0", "SLURM_NTASKS": "2", "SLURM_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "1",
        "RANK": "1", "WORLD_SIZE": "8", "MASTER_ADDR": "elsewhere", "GROUP_RANK": "3",
        "TORCHELASTIC_USE_AGENT_STORE": "True", "OMPI_COMM_WORLD_RANK": "1", "PMI_RANK": "1",
    }  # fmt: skip
    for name, value in {**placed, "NCCL_DEBUG": "INFO"}.items():
        monkeypatch.setenv(name, value)
    pretend(1, 1)
    told = json.loads((tmp_path / "sweep" / "run0" / "environment.json").read_text())
    assert not placed.keys() & told.keys()
    assert told["NCCL_DEBUG"] == "INFO"
    shutil.rmtree(tmp_path / "sweep")
    pretend(1, 1, devices=2)
    told = json.loads((tmp_path / "sweep" / "run0" / "environment.json").read_text())
    assert (told["WORLD_SIZE"], told["MASTER_ADDR"]) == ("2", "localhost")
    assert told["RANK"] in ("0", "1")
    assert not {"GROUP_RANK", "TORCHELASTIC_USE_AGENT_STORE", "SLURM_JOB_ID"} & told.keys()


def test_a_driver_under_nohup_outlives_its_terminal():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        asked = []
        with view.listening(asked):
            os.kill(os.getpid(), signal.SIGHUP)
            os.kill(os.getpid(), signal.SIGTERM)
        assert asked == [signal.SIGTERM]
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_run_cancelled_before_its_turn_is_not_begun(pretend, tmp_path):
    run = RunDirectory(tmp_path / "sweep" / "run0")
    run.path.mkdir(parents=True)
    run.write_status("queued")
    write_submission(run, {"launcher": "local", "job": "j", "cancelled": True})
    console = Console(file=io.StringIO(), markup=False)
    states = run_all([run.path], 1, 1, "test", console, code=tmp_path / "code", gpus=["0"])
    assert states["run0"]["error"] == "cancelled"
    assert not (run.path / "told.json").exists()


def test_runs_that_a_stop_leaves_unbegun_say_so(pretend, tmp_path):
    runs = [tmp_path / "sweep" / f"run{i}" for i in range(3)]
    for run in runs:
        run.mkdir(parents=True)
        RunDirectory(run).write_status("queued")
    console = Console(file=io.StringIO(), markup=False)
    stop = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM))
    stop.start()
    states = run_all(runs, 1, 1, "test", console, code=tmp_path / "code")
    assert states["run2"] == {"state": "preempted", "error": "stopped before its turn came"}


def test_a_retry_on_fewer_gpus_is_refused_and_does_not_wait_for_them(tmp_path, monkeypatch):
    monkeypatch.setattr(drive, "gpus_of_this_machine", lambda: ("H100", 1))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    spec = {"resources": {"device": "auto"}}
    request = Request(RunDirectory(tmp_path / "sweep" / "run"), spec)
    console = Console(file=io.StringIO())
    with pytest.raises(SettingError, match="on 2 GPUs, and 1 are here"):
        drive.on_this_machine([request], Local("local"), 1, 1, 2, "c", console)
    assert not (tmp_path / "sweep").exists()


def test_without_gpus_none_is_named(pretend, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert pretend(1, 1)[0][0] is None
