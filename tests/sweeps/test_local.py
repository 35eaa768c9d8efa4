"""The driver on one machine: a run by two processes, one of which dies."""

import contextlib
import io
import os
import signal
import threading
import time
from pathlib import Path

import pytest
from rich.console import Console

from ablations.records import RunDirectory
from ablations.settings import to_dict
from ablations.spec import resolve
from sweeps.local import run_all
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
