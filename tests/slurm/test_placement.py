"""Sweeps on a real Slurm: where runs go, how many at a time, and nothing is submitted twice."""

import os
import shutil
import signal
import subprocess
import time
from datetime import datetime
from pathlib import Path

import pytest

from ablations.records import read_sweep
from sweeps.state import job_folder, read_submission
from tests.slurm.conftest import (
    PATIENCE_SECONDS,
    SMALL,
    assert_undisturbed,
    ended,
    found,
    job,
    paused,
    said,
    send,
    until,
)

pytestmark = [pytest.mark.slurm, pytest.mark.slow]


def test_a_run_whose_node_goes_down_is_finished_on_another(driver, tmp_path):
    process = driver("mix=transformer", *SMALL)
    (run,) = found(tmp_path)
    with paused(run) as workers:
        node = job(run, "N")
        said("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=test")
        until(lambda: job(run, "T") == "PENDING", "the run to wait again")
        send(workers, signal.SIGKILL)  # with the node went its processes
    ended(process)
    said("scontrol", "update", f"NodeName={node}", "State=RESUME")
    told = run.log.read_text()
    assert f"on {node}" in told
    assert f"on {'test1' if node == 'test2' else 'test2'}" in told
    assert_undisturbed(run, tmp_path)


def test_a_job_runs_the_copy_of_the_code_that_it_was_submitted_with(driver, tmp_path):
    runs = tmp_path / "with a space"
    process = driver("mix=gdn", *SMALL, "cluster.extra=['begin=now+3600']", runs=runs)
    (run,) = found(runs)
    # Until `ended` lets it go, it waits.
    worker = Path(read_submission(run)["code"], "sweeps", "worker.py")
    worker.write_text(worker.read_text() + "\nprint('the copy speaks', flush=True)\n")
    ended(process)
    folder = job_folder(run.path.parent, read_submission(run)["job"])
    assert "the copy speaks" in "".join(p.read_text() for p in folder.glob("*.out"))
    assert run.read_status()["state"] == "done"


def test_of_10_runs_of_two_shapes_4_train_at_a_time_and_all_end_undisturbed(driver, tmp_path):
    seeds = ",".join(map(str, range(5)))
    process = driver(
        "-m", "mix=transformer", "size=50k,100k", f"seed={seeds}", *SMALL[1:],
        "protocol.chinchilla=[0.001]", "max_parallel=4", "++cluster.sizes={100k:{cpus:2}}",
    )  # fmt: skip
    runs = found(tmp_path, 10)
    seen, deadline = 0, time.monotonic() + 4 * PATIENCE_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        now = len(said("squeue", "-h", "-r", "-t", "R,CG", "-o", "%i").split())
        assert now <= 4
        seen = max(seen, now)
        time.sleep(0.2)
    text = ended(process)
    assert "10 done" in text
    assert seen == 4
    # By Slurm's own records, too: a job's first and last second.
    names = ",".join({read_submission(run)["job"] for run in runs})
    told = said("squeue", "-h", "-r", "-t", "all", "-n", names, "-o", "%S %e").split()
    times = [datetime.fromisoformat(word) for word in told]
    spans = list(zip(times[::2], times[1::2], strict=True))
    assert len(spans) == 10
    assert max(sum(a <= begin < b for a, b in spans) for begin, _ in spans) <= 4
    for run in (runs[0], runs[9]):
        assert_undisturbed(run, tmp_path)


def test_each_run_that_fails_is_named_with_its_log(driver, tmp_path):
    process = driver(
        "-m", "mix=gdn", "seed=0,1,2", *SMALL, "cluster.setup=['echo no such module >&2','exit 3']"
    )
    text = ended(process, 1)
    assert "3 failed" in text
    lines = [line for line in text.splitlines() if line.startswith("failed") and "(log: " in line]
    assert len({line.split()[1] for line in lines}) == 3
    log = lines[0].partition("(log: ")[2].rstrip(")")
    assert "no such module" in Path(log).read_text()


def test_two_drivers_at_once_submit_each_run_once(driver, tmp_path):
    both = [driver("-m", "mix=gdn,transformer", *SMALL) for _ in range(2)]
    told = "".join(ended(process) for process in both)
    assert "submitted 2 to Slurm" in told
    assert "submitted 0 to Slurm; 2 are there already" in told
    runs = read_sweep(tmp_path / "default")
    names = {read_submission(run)["job"] for run in runs}
    jobs = said("squeue", "-h", "-r", "-t", "all", "-o", "%j").split()
    assert sum(name in names for name in jobs) == 2
    for run in runs:
        assert_undisturbed(run, tmp_path)


def test_on_a_full_disk_runs_say_so_and_go_on_when_there_is_room(driver, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = ["mount", "-t", "tmpfs", "-o", "size=64m", "none", str(disk)]
    if os.geteuid() or subprocess.run(mounted, check=False, capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        process = driver("mix=gdn", *SMALL, runs=disk)
        (run,) = found(disk)
        with paused(run):
            # What is left holds records and no checkpoint.
            free = shutil.disk_usage(disk).free
            (disk / "filler").write_bytes(bytes(free - 64 * 1024))
        text = ended(process, 1)
        assert "No space left on device" in text
        assert f"failed  {run.name}" in text
        (disk / "filler").unlink()
        ended(driver("mix=gdn", *SMALL, runs=disk))
        assert "resumed at step" in run.log.read_text()
        assert_undisturbed(run, tmp_path)
    finally:
        said("umount", "-l", str(disk))


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("cluster.partition=nope", "partition"),
        ("cluster.gpus=16", "onfiguration is not available"),
        ("cluster.extra=[nosuchoption=1]", "nosuchoption"),
    ],
)
def test_what_slurm_refuses_is_one_sentence_and_leaves_nothing(driver, tmp_path, setting, words):
    extra = ("protocol.batch_multiple=16",) if "gpus=16" in setting else ()
    text = ended(driver("mix=gdn", *SMALL, setting, *extra), 2)
    (error,) = [line for line in text.splitlines() if line.startswith("error: ")]
    assert words in error
    assert text.endswith(error + "\n")
    assert not any(tmp_path.iterdir())
