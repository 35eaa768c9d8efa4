"""Sweeps on a real Slurm: whatever is done to them, they end with the bits of one left alone."""

import shutil
import signal
import time

import pytest

from sweeps.local import run_all
from sweeps.view import console
from tests.slurm.conftest import (
    SMALL,
    assert_undisturbed,
    ended,
    found,
    job,
    paused,
    said,
    send,
    stopped,
    until,
)

pytestmark = [pytest.mark.slurm, pytest.mark.slow]


def test_two_ranks_on_two_nodes_save_at_their_time_limit_and_go_on(driver, tmp_path):
    # The nodes' names resolve nowhere, so that the ranks are told where to meet.
    meet = "export MASTER_ADDR=localhost MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))"
    process = driver(
        "-m", "mix=gdn", "seed=0,1", *SMALL, "cluster.nodes=2", "cluster.minutes=1",
        "cluster.warn_seconds=25", f"cluster.setup=['{meet}']", "max_parallel=1",
    )  # fmt: skip
    run, other = found(tmp_path, 2)
    # An element of an array is what has to queue itself again; one is enough to train.
    said("scancel", until(lambda: job(other, "i"), "the other's job"))
    with paused(run) as ranks:
        assert len(ranks) == 2
        # Slurm's warning also wakes them.
        step = until(lambda: stopped(run), "both to save at one step")
    # Once is enough to show it, also where another minute would not do for the rest.
    until(lambda: job(run, "T") == "PENDING", "the run to wait again")
    said("scontrol", "update", f"JobId={job(run, 'i')}", "TimeLimit=10")
    text = ended(process, 1)
    assert "1 done, 1 cancelled" in text
    assert f"cancelled {other.name}" in text
    told = run.log.read_text()
    assert "is queued again" in told
    assert f"resumed at step {step}" in told
    manifest = run.read_manifest()
    assert (manifest["device"]["count"], manifest["parallel"]) == (2, "ddp")
    here = tmp_path / "here" / run.name
    here.mkdir(parents=True)
    shutil.copy(run.path / "spec.yaml", here)
    run_all([here], 1, 1, "test", console(), devices=2)
    assert (here / "points.jsonl").read_bytes() == (run.path / "points.jsonl").read_bytes()


def test_a_preempted_run_saves_and_goes_on_when_there_is_room(driver, tmp_path):
    process = driver("mix=transformer", *SMALL, "cluster.partition=low")
    (run,) = found(tmp_path)
    with paused(run):
        said("sbatch", "-p", "high", "-N2", "--gpus-per-node=8", "-o", "/dev/null",
             "--wrap", "sleep 1")  # fmt: skip
        step = until(lambda: stopped(run), "the run to save")
    ended(process)
    assert f"resumed at step {step}" in run.log.read_text()
    assert_undisturbed(run, tmp_path)


def test_cancelled_runs_stay_cancelled_until_they_are_asked_for_again(driver, tmp_path):
    process = driver("-m", "mix=gdn,transformer", *SMALL)
    from_outside, by_driver = found(tmp_path, 2)
    with paused(from_outside), paused(by_driver):
        said("scancel", job(from_outside, "i"))
        until(lambda: stopped(from_outside), "it to save")
        for _ in range(2):
            process.send_signal(signal.SIGINT)
            time.sleep(0.5)
    text = ended(process, 1)
    assert "cancelling: runs save and end" in text
    for run in (from_outside, by_driver):
        assert f"cancelled {run.name}" in text
        assert stopped(run)
        assert job(run, "T") == "CANCELLED"
    assert "nothing to retry" in ended(driver("retry", "default", "--failed", script="status.py"))
    ended(driver("-m", "mix=gdn,transformer", *SMALL))
    for run in (from_outside, by_driver):
        assert "resumed at step" in run.log.read_text()
        assert_undisturbed(run, tmp_path)


def test_a_killed_run_is_named_and_leaves_the_others(driver, tmp_path):
    process = driver("-m", "mix=gdn,transformer", *SMALL)
    victim, other = found(tmp_path, 2)
    with paused(victim) as processes:
        send(processes, signal.SIGKILL)
    text = ended(process, 1)
    assert f"failed  {victim.name}  ended unheard" in text
    assert str(victim.log) in text
    assert "1 failed, 1 done" in text or "1 done, 1 failed" in text
    assert_undisturbed(other, tmp_path)
    # status.py retries it with the code and settings that it was submitted with.
    ended(driver("retry", "default", "--failed", script="status.py"))
    assert_undisturbed(victim, tmp_path)


def test_runs_outlive_drivers_that_detach_or_are_killed(driver, tmp_path):
    command = ("mix=transformer", *SMALL)
    first = driver(*command)
    (run,) = found(tmp_path)
    with paused(run):
        first.send_signal(signal.SIGINT)
        assert "detached: the runs go on" in ended(first, 1)
        second = driver(*command)
        until(lambda: "there already" in second.stdout.readline(), "it to attach")
        second.kill()
        third = driver(*command)
        until(lambda: "there already" in third.stdout.readline(), "it to attach")
    ended(third)
    assert run.log.read_text().count("Slurm job") == 1
    assert_undisturbed(run, tmp_path)
