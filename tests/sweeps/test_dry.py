"""A dry run prints what a submission would give sbatch, and leaves nothing behind."""

import os
import re
import sys
from dataclasses import replace

import pytest

from models.errors import SettingError
from sweeps import slurm
from sweeps.cluster import parse, restore, to_dict
from sweeps.run import main as run_command
from tests.sweeps.test_cluster import slurm as slurm_settings


@pytest.fixture
def typed(tmp_path, capsys, monkeypatch):
    """The command as typed: (exit code, output, errors); nothing may be written by it."""
    monkeypatch.delenv("ARCHLADDER_DATA", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["run.py", "-m", *arguments, f"runs={tmp_path}/runs"])
        code = run_command()
        said = capsys.readouterr()
        assert not any(tmp_path.iterdir())
        return code, said.out, said.err

    return run


LADDER = ("mix=transformer", "size=60m,1b", "seed=0,1", "cluster=slurm", "sweep=big")


def test_each_script_is_shown_with_its_environment_and_runs(typed, monkeypatch):
    monkeypatch.setenv("SLURM_PROCID", "7")
    code, out, err = typed(*LADDER, "dry_run=true", "cluster.account=mine", "max_gpus=8")
    assert (code, err) == (0, "")
    assert out.count("#!/bin/bash") == 2
    assert len(re.findall(r"^#   transformer-(60m|1b)-s[01]-HASH$", out, re.MULTILINE)) == 4
    for line in ("#SBATCH --account=mine", "#SBATCH --gpus-per-node=8", "#SBATCH --array=0-1%1",
                 "#SBATCH --dependency=afterany:big-JOB1", "export PYTHONSAFEPATH=1"):  # fmt: skip
        assert line in out
    assert "less SLURM_PROCID" in out
    assert "dry_run" not in out.partition("ARCHLADDER_COMMAND")[2].partition("\n")[0]


def test_what_is_shown_is_what_sbatch_is_given(tmp_path, monkeypatch):
    """Against the script that submitit writes for a submission."""
    kept = tmp_path / "script.sh"
    for tool in ("sbatch", "srun"):
        (tmp_path / tool).write_text(f"#!/bin/sh\ncp $1 {kept}\necho Submitted batch job 77\n")
        (tmp_path / tool).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    cluster = parse(slurm_settings(gpus=4, account="mine", extra=["exclude=node7"]))
    given = (cluster, cluster.default, "job", tmp_path / "jobs")
    runs = [tmp_path / "a", tmp_path / "b"]
    environment = {"ARCHLADDER_COMMAND": "x y"}
    assert slurm.submit(*given, runs, tmp_path / "code", environment, 2, after="5") == "77"
    prepared = slurm.prepare(*given, tmp_path / "code", environment, 2, after="5")
    assert slurm.script(prepared, len(runs)) == kept.read_text()


def test_processes_of_this_machine_are_shown_with_their_environment(typed):
    code, out, _ = typed("mix=gdn", "size=50k", "seed=0,1", "dry_run=true", "max_parallel=2")
    assert code == 0
    assert len(re.findall(r"-m sweeps\.worker \S+/gdn-50k-s[01]-[0-9a-f]{8}$", out, re.M)) == 2
    assert "export OMP_NUM_THREADS=" in out
    assert "export ARCHLADDER_RUNS_AT_ONCE=2" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["max_gpu_hours=10"], "cluster.gpu_kind is null; name one of GB300"),
        (["max_gpu_hours=10", "cluster.gpu_kind=A100"], "more than max_gpu_hours=10; take smaller"),
        (["max_gpus=4"], "max_gpus=4 is fewer than the 8 GPUs of a run of size=1b"),
        (["max_gpus=1.5"], "max_gpus=1.5 must be a whole number above 0"),
        (["max_gpu_hours=none"], "max_gpu_hours=none must be a number above 0"),
        (["dry_run=1"], "dry_run=1 must be true or false"),
    ],
)
def test_what_a_bound_does_not_allow_is_one_sentence(typed, arguments, words):
    code, _, err = typed(*LADDER, *arguments)
    assert code == 2
    assert words in err
    assert err.count("\n") == 1


def test_a_bound_that_holds_and_one_without_gpus_refuse_nothing(typed):
    code, _, _ = typed(*LADDER, "max_gpu_hours=1e6", "cluster.gpu_kind=A100", "plan=true")
    assert code == 0
    bound = ("max_gpu_hours=0.001", "plan=true")
    assert typed("size=1m", "resources.device=cpu", "resources.devices=2", *bound)[0] == 0
    on_cpus = ("cluster=slurm", "++cluster.gpus=0", "++cluster.sizes={}")
    assert typed("size=1m", *on_cpus, *bound)[0] == 0


def test_a_limit_on_gpus_is_recorded_to_retry_by():
    cluster = replace(parse(slurm_settings()), max_gpus=16)
    assert restore(to_dict(cluster)).max_gpus == 16
    older = to_dict(cluster)
    del older["max_gpus"]
    assert restore(older).max_gpus is None
    with pytest.raises(SettingError):
        parse(slurm_settings(max_gpu=3))
