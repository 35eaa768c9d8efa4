"""Runs forked from a process that has imported torch: the same workers, begun sooner."""

import io
import json
import os
import shutil
import signal
import time

import pytest
from rich.console import Console

from ablations.records import RunDirectory
from ablations.resolve import resolve
from sweeps import local, starter
from sweeps.local import run_all
from sweeps.starter import Starter
from tests.ablations.conftest import settings

WORKER = """
import json, os, pathlib, signal, sys, time
def main(run):
    run = pathlib.Path(run)
    print("said")
    told = {"pid": os.getpid(), "session": os.getsid(0), "parent": os.getppid()}
    (run / "told.json").write_text(json.dumps(told))
    if (run / "fails").exists():
        raise RuntimeError("as it was told to")
    while (run / "waits").exists():
        time.sleep(0.02)
    (run / "status.json").write_text(json.dumps({"state": "done"}))
    return int((run / "code").read_text()) if (run / "code").exists() else 0
"""


@pytest.fixture
def code(tmp_path):
    """A project whose workers do as files in their run's folder say, and whose torch is empty."""
    folder = tmp_path / "code"
    for package in ("sweeps", "ablations", "torch"):
        (folder / package).mkdir(parents=True)
        (folder / package / "__init__.py").write_text("")
    for module in ("torch/_dynamo.py", "ablations/train.py"):
        (folder / module).write_text("")
    shutil.copy(starter.__file__, folder / "sweeps/starter.py")
    (folder / "sweeps/worker.py").write_text(WORKER)
    return folder


@pytest.fixture
def begin(code, tmp_path):
    """Begin a run whose folder holds these files; the starter, its forks killed, ends after."""
    one = Starter({**os.environ, "PYTHONPATH": str(code), "PYTHONSAFEPATH": "1"})
    begun = []

    def run(name, **files):
        (tmp_path / name).mkdir()
        for file, text in files.items():
            (tmp_path / name / file).write_text(text)
        begun.append(one.start(tmp_path / name))
        return begun[-1]

    run.starter = one
    yield run
    for fork in begun:
        if fork is not None:
            fork.send_signal(signal.SIGKILL)
    one.close()


def told(run):
    file = run / "told.json"
    until = time.monotonic() + 30
    while not file.exists() or not file.read_text():
        assert time.monotonic() < until
        time.sleep(0.02)
    return json.loads(file.read_text())


def test_a_fork_s_exit_code_is_its_worker_s(begin):
    forks = [begin(f"run{code}", code=str(code)) for code in (0, 75, 76, 2)]
    assert [fork.wait() for fork in forks] == [0, 75, 76, 2]
    assert [fork.poll() for fork in forks] == [0, 75, 76, 2]


def test_what_a_worker_raises_is_in_its_log_and_takes_no_other_down(begin, tmp_path):
    waits = begin("other", waits="")
    assert begin("run", fails="").wait() == 1
    log = (tmp_path / "run/log.txt").read_text()
    assert "said" in log
    assert "RuntimeError: as it was told to" in log
    assert waits.poll() is None
    (tmp_path / "other/waits").unlink()
    assert waits.wait() == 0


def test_a_fork_has_a_session_of_its_own_and_hears_signals(begin, tmp_path):
    fork = begin("run", waits="")
    seen = told(tmp_path / "run")
    assert seen["pid"] == seen["session"] == fork.pid
    fork.send_signal(signal.SIGTERM)
    assert fork.wait() == -signal.SIGTERM
    fork.send_signal(signal.SIGTERM)  # to one that has ended: nothing


def test_runs_outlive_their_starter(begin, tmp_path):
    fork = begin("run", waits="")
    os.kill(told(tmp_path / "run")["parent"], signal.SIGKILL)
    assert begin("late") is None
    assert fork.poll() is None
    (tmp_path / "run/waits").unlink()
    assert fork.wait() == 1  # how it ended is not known any more, its records say so
    assert json.loads((tmp_path / "run/status.json").read_text())["state"] == "done"


def test_where_the_starter_does_not_start_each_run_has_a_process_of_its_own(code, tmp_path):
    (code / "sweeps/starter.py").write_text("raise ImportError")
    with (code / "sweeps/worker.py").open("a") as file:
        file.write("\nmain(sys.argv[1])\n")
    runs = [tmp_path / name for name in ("a", "b", "c")]
    for run in runs:
        run.mkdir()
    run_all(runs, 2, 1, "test", Console(file=io.StringIO()), code=code)
    assert {told(run)["parent"] for run in runs} == {os.getpid()}


@pytest.mark.slow
def test_a_fork_trains_to_the_bits_of_a_process_of_its_own(tmp_path, monkeypatch):
    runs = {}
    for name, mix in (("a", "gdn3_attn1"), ("b", "gdn3_attn1"), ("alone", "gdn3_attn1")):
        run = runs[name] = RunDirectory(tmp_path / name)
        spec = resolve(settings(mix, protocol__chinchilla=[0.01], data__eval_tokens=512))
        run.write_spec(spec.record())
    console = Console(file=io.StringIO(), markup=False)
    with monkeypatch.context() as patched:
        patched.setattr(local, "_spawn", None)  # every run is forked
        run_all([runs["a"].path, runs["b"].path], 2, 1, "test", console)
    run_all([runs["alone"].path], 1, 1, "test", console)
    timed = ("seconds", "tokens_per_second")
    rows = {
        name: [
            {key: value for key, value in row.items() if key not in timed}
            for file in ("metrics.jsonl", "points.jsonl")
            for row in run.rows(file)
        ]
        for name, run in runs.items()
    }
    assert len(rows["alone"]) > 3
    assert rows["a"] == rows["b"] == rows["alone"]
    assert runs["a"].read_manifest()["device"] == {
        **runs["alone"].read_manifest()["device"], "runs_at_once": 2,
    }  # fmt: skip
