"""Sweeps begun inside a job of a real Slurm, or in a shell that speaks to its commands."""

import shlex
import sys

import pytest

from sweeps.environment import of_this_machine
from tests.slurm.conftest import (
    ROOT,
    SMALL,
    ended,
    found,
    job,
    said,
    steps,
    until,
)

pytestmark = [pytest.mark.slurm, pytest.mark.slow]


def test_a_local_sweep_in_a_job_of_two_tasks_trains_and_can_be_stopped(slurm, tmp_path):
    command = [sys.executable, "sweeps/run.py", "mix=transformer", *SMALL, "cluster=local"]
    local = [a for a in command if not a.startswith("cluster.")]
    script = tmp_path / "script.sh"
    script.write_text(f"#!/bin/sh\nexec {shlex.join(local)} runs={shlex.quote(str(tmp_path))}\n")
    asked = ("--ntasks=2", "--requeue", "--chdir", str(ROOT), "-o", str(tmp_path / "job.txt"))
    number = said("sbatch", *asked, str(script)).split()[-1]
    (run,) = found(tmp_path)
    until(lambda: steps(run) > 5, "the run to train")
    said("scancel", "--signal=TERM", "--batch", number)
    # A worker that waited for its job to be ended would keep it running.
    until(
        lambda: "FAILED" in said("squeue", "-h", "-t", "all", "-j", number, "-o", "%T"), "its end"
    )
    assert run.read_status()["state"] == "preempted"


def test_nothing_that_slurm_tells_a_task_is_handed_on(slurm):
    told = said("srun", "--ntasks=2", "--label", "env")
    names = {line[3:].partition("=")[0] for line in told.splitlines() if line.startswith("1: ")}
    assert {"SLURM_PROCID", "SLURM_STEP_ID", "SLURMD_NODENAME"} <= names
    kept = of_this_machine(dict.fromkeys(names, ""))
    assert [name for name in kept if "SLURM" in name] == ["SLURM_CONF"]


def test_what_the_shell_says_to_sbatch_is_obeyed_or_told(driver, tmp_path, monkeypatch):
    tiny = ("mix=transformer", *SMALL, "protocol.chinchilla=[0.001]")
    with monkeypatch.context() as shell:
        shell.setenv("SBATCH_PARTITION", "low")
        shell.setenv("SBATCH_JOB_NAME", "mine")
        shell.setenv("SQUEUE_PARTITION", "high")
        shell.setenv("RANK", "1")
        shell.setenv("WORLD_SIZE", "2")
        process = driver(*tiny)
        (run,) = found(tmp_path)
    text = ended(process)
    assert "not read: SBATCH_JOB_NAME" in text
    assert job(run, "P") == "low"
    assert run.read_status()["state"] == "done"
