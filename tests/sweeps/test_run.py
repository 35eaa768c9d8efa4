"""The command as a user types it: plans, sentences, and a sweep that survives being stopped."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from ablations.records import RunDirectory, read_sweep
from ablations.resolve import resolve
from models.errors import SettingError
from sweeps import plan, view
from sweeps.cluster import Local
from sweeps.run import _fitting, _say_new
from sweeps.run import main as run_command
from sweeps.submit import Request
from tests.ablations.conftest import settings

ROOT = Path(__file__).parents[2]
SMALL = (
    "size=50k", "size.context=64", "protocol.batch_tokens=256", "data.eval_tokens=2048",
    "protocol.chinchilla=[0.002,0.004]",
    "resources.threads=1",  # beside another test two threads on two cores wait for one another
)  # fmt: skip


def sweep(*arguments, env=None, **options):
    environment = {k: v for k, v in os.environ.items() if k != "ARCHLADDER_DATA"} | (env or {})
    return subprocess.run(
        [sys.executable, "sweeps/run.py", *arguments], cwd=ROOT, capture_output=True, text=True,
        env=environment, check=False, timeout=300, **options,
    )  # fmt: skip


def points(runs, name="default"):
    return {d.name: (d.path / "points.jsonl").read_bytes() for d in read_sweep(runs / name)}


def options(group):
    return ",".join(sorted(p.stem for p in (ROOT / "conf" / group).glob("*.yaml")))


@pytest.mark.parametrize(
    "arguments",
    [(f"mix={options('mix')}", "size=50k"), ("mix=mamba2x3_attn1", f"size={options('size')}"),
     ("protocol=olmo_hybrid", f"mix={options('mix')}", "size=60m")],
    ids=["mixes", "sizes", "olmo_hybrid"],
)  # fmt: skip
def test_every_option_plans_and_nothing_is_written(tmp_path, arguments):
    done = sweep("-m", *arguments, "plan=true", f"runs={tmp_path}/runs")
    assert done.returncode == 0, done.stderr
    runs = max(argument.count(",") + 1 for argument in arguments)
    assert f"{runs} runs, 0 done" in done.stdout
    assert not any(tmp_path.iterdir())


def test_large_sizes_show_their_plan_and_say_how_to_give_a_corpus(tmp_path):
    done = sweep("-m", "mix=gdn3_attn1", "size=60m,150m,1b", f"runs={tmp_path}/runs")
    assert done.returncode == 2
    assert "57.42M" in done.stdout
    assert "204.7B" in done.stdout
    assert done.stderr.count("\n") == 1
    assert "data.path=FOLDER" in done.stderr
    assert not any(tmp_path.iterdir())


def test_days_of_cpu_work_are_refused_with_the_ways_out(tmp_path):
    done = sweep("size=60m", "data=embedded", "protocol.max_epochs=1000", f"runs={tmp_path}/runs")
    assert done.returncode == 2
    assert "max_local_hours" in done.stderr
    assert "18.99M" in done.stdout  # its real N with 256 byte tokens
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["mix=nope"], "mix=nope is not known; valid: gdn, gdn1_attn1"),
        (["mix=gdn3attn1"], "mix=gdn3attn1 is not known; nearest: gdn3_attn1"),
        (["size=2m"], "valid: 100k, 100m"),
        (["experiment=nope"], "experiment=nope is not known; valid: as_published, demo"),
        (["protocol=nope"], "valid: controlled, olmo_hybrid"),
        (["bogus=1"], "bogus is not a setting"),
        (["+mix.nope=1"], "mix.nope is not a setting"),
        (["seed"], "write GROUP=OPTION or KEY=VALUE"),
        (["protocol.chinchilla=[-1]"], "positive multiples"),
        (["protocol.tokens_per_parameter=-20"], "tokens_per_parameter=-20"),
        (["seed=-1"], "seed=-1"),
        (["max_parallel=0"], "max_parallel=0"),
        (["treatments=mix"], "must be a list"),
        (["resources.device=tpu"], "valid: auto, cpu, cuda"),
        (["logging.log_every=0"], "logging.log_every=0"),
        (["protocol.gdn_key_multiple=0"], "gdn_key_multiple=0"),
        (["train.grad_clip=-1"], "grad_clip=-1"),
        (["mix.name=a/b"], "mix.name=a/b"),
        (["-m", "seed=0,0"], "asked for twice"),
        (["mix=gdn,mamba2"], "add -m"),
        (["sweep=a:b"], "sweep='a:b' in runs="),
        (["mix=null"], "mix=null is not known; valid: gdn"),
        (["runs=null"], "runs=None must be a folder"),
        (["-m", "train.weight_decay=0,0.1"], "train.weight_decay differs"),
        (["-m", "cluster.runs_per_gpu=1,2"], "cluster is one for a whole sweep"),
        (["cluster=nope"], "valid: local, slurm"),
        (["cluster.runs_per_gpu=0"], "cluster.runs_per_gpu=0"),
        (["data=tokens", "data.path=/nowhere/at/all"], "data.path=/nowhere/at/all"),
        (["data.path=/my/corpus"], "data.path=/my/corpus would not be read"),
        (["sweep=größe"], "sweep=größe has 'ö', which is outside ASCII"),
        ([f"mix.name={'m' * 300}"], "more than 200"),
        (["hydra.run.dir=here", "plan=true"], "hydra.run.dir=here is a setting of Hydra"),
        (["hydra.output_subdir=here"], "hydra.output_subdir=here is a setting of Hydra"),
        (["sweep=${oc.env:HOME}"], "sweep reads an environment variable"),
        (["data.path=${oc.env:NOT_SET}"], "data.path names the environment variable NOT_SET"),
        (["train.weight_decay=(1"], "cannot read"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(tmp_path, arguments, words):
    done = sweep(f"runs={tmp_path}/runs", *arguments)
    assert done.returncode == 2
    assert words in done.stderr
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr
    assert not any(tmp_path.iterdir())


def test_an_output_that_cannot_be_written_is_said_and_leaves_nothing(tmp_path):
    blocker = tmp_path / "file"
    blocker.write_text("in the way")
    done = sweep(*SMALL, f"runs={blocker}/runs")
    assert done.returncode == 2
    assert "cannot be written" in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.slow
def test_a_sweep_runs_skips_what_is_done_and_refuses_to_mix_protocols(tmp_path):
    command = ("-m", "mix=transformer,gdn3_attn1", *SMALL, f"runs={tmp_path}")
    first = sweep(*command)
    assert first.returncode == 0, first.stdout + first.stderr
    assert "2 done" in first.stdout
    before = points(tmp_path)
    assert len(before) == 2
    again = sweep(*command)
    assert again.returncode == 0
    assert "2 runs, 2 done" in again.stdout
    assert points(tmp_path) == before
    other = sweep("mix=gdn", *SMALL, "protocol.lr_multiplier=2", f"runs={tmp_path}")
    assert other.returncode == 2
    assert "another sweep=NAME" in other.stderr
    assert points(tmp_path) == before


@pytest.mark.slow
def test_a_stopped_sweep_goes_on_to_the_same_bits(tmp_path):
    long = (*SMALL, "protocol.chinchilla=[0.01,0.05]")
    whole = sweep(*long, f"runs={tmp_path}/whole")
    assert whole.returncode == 0, whole.stderr
    command = [sys.executable, "sweeps/run.py", *long, f"runs={tmp_path}/cut"]
    driver = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    metrics = None
    deadline = time.monotonic() + 120
    while metrics is None and time.monotonic() < deadline:
        metrics = next((tmp_path / "cut").glob("*/*/metrics.jsonl"), None)
        time.sleep(0.05)
    assert metrics is not None
    driver.send_signal(signal.SIGINT)
    out, _ = driver.communicate(timeout=120)
    assert driver.returncode == 1, out
    assert RunDirectory(metrics.parent).read_status()["state"] == "preempted"
    assert not (metrics.parent / "points.jsonl").exists() or points(tmp_path / "cut") != points(
        tmp_path / "whole"
    )
    resumed = sweep(*long, f"runs={tmp_path}/cut")
    assert resumed.returncode == 0, resumed.stdout
    assert points(tmp_path / "cut") == points(tmp_path / "whole")


@pytest.mark.slow
def test_a_failed_run_takes_no_other_down_and_is_named(tmp_path):
    command = ("-m", "mix=gdn,transformer", *SMALL, f"runs={tmp_path}", "max_parallel=1")
    # No checkpoint can be written there: only the run's own worker stumbles over it.
    planned = sweep("mix=gdn", *SMALL, f"runs={tmp_path}")
    assert planned.returncode == 0, planned.stdout + planned.stderr
    (victim,) = (tmp_path / "default").glob("gdn-*")
    for file in ("points.jsonl", "status.json"):
        (victim / file).unlink()
    shutil.rmtree(victim / "checkpoints")
    (victim / "checkpoints").symlink_to("/proc")
    done = sweep(*command)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "checkpoints/step-" in done.stdout
    assert RunDirectory(victim).read_status()["state"] == "failed"
    (other,) = (tmp_path / "default").glob("transformer-*")
    assert RunDirectory(other).read_status()["state"] == "done"


def test_a_device_that_is_not_here_is_refused_before_anything_is_written(tmp_path):
    done = sweep(*SMALL, "resources.device=cuda", f"runs={tmp_path}/runs")
    if done.returncode == 0:
        pytest.skip("a CUDA device is there")
    assert done.returncode == 2
    assert "not on this machine" in done.stderr
    assert not any(tmp_path.iterdir())


@pytest.mark.slow
def test_a_second_driver_watches_a_live_run(tmp_path):
    long = (*SMALL, "protocol.chinchilla=[0.5]", f"runs={tmp_path}")
    command = [sys.executable, "sweeps/run.py", *long]
    driver = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("*/*/metrics.jsonl")) and time.monotonic() < deadline:
        time.sleep(0.05)
    second = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    for line in second.stdout:
        if "trained by another process" in line:
            break
    driver.send_signal(signal.SIGTERM)
    driver.communicate(timeout=120)
    told, _ = second.communicate(timeout=120)
    assert second.returncode == 1
    assert "stopped" in told
    (run,) = read_sweep(tmp_path / "default")
    assert run.read_status()["state"] == "preempted"
    assert run.log.read_text().count("steps of") == 1


def test_this_machines_settings_come_from_conf_local(tmp_path):
    shutil.copytree(ROOT / "conf", tmp_path / "conf")
    (tmp_path / "conf" / "local.yaml").write_text("data: {path: /nowhere/at/all}\n")
    done = sweep("--config-path", str(tmp_path / "conf"), "size=60m", f"runs={tmp_path}/runs")
    assert done.returncode == 2
    assert "data.path=/nowhere/at/all" in done.stderr


@pytest.mark.slow
def test_wandb_offline_writes_inside_the_run_and_no_key_anywhere(tmp_path):
    secret = "0123456789abcdef0123456789abcdef01234567"
    done = sweep(*SMALL, "logging.wandb=offline", f"runs={tmp_path}", env={"WANDB_API_KEY": secret})
    assert done.returncode == 0, done.stdout + done.stderr
    run = read_sweep(tmp_path / "default")[0].path
    assert list(run.glob("wandb/offline-run-*/run-*.wandb"))
    held = [p for p in run.rglob("*") if p.is_file() and secret.encode() in p.read_bytes()]
    assert held == []


def test_the_demo_plans_what_the_readme_says():
    done = sweep("-m", "experiment=demo", "plan=true")
    assert done.returncode == 0, done.stderr
    assert "12 runs" in done.stdout
    composed = sweep("experiment=demo", "--cfg", "job")
    assert composed.returncode == 0
    assert "chinchilla" in composed.stdout


def test_help_is_there_at_once():
    code = (
        "import runpy, sys; sys.argv = ['run.py', '--help']\n"
        "try: runpy.run_path('sweeps/run.py', run_name='__main__')\n"
        "except SystemExit as end: assert end.code == 0\n"
        "assert not {'hydra', 'numpy', 'torch'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for words in ("gdn3_attn1", "plan=true", "cluster=slurm", "max_local_hours: 2", "hybrid"):
        assert words in done.stdout
    assert all(len(line) <= 110 for line in done.stdout.splitlines())


def test_a_changed_run_is_named_as_a_new_one(tmp_path, capsys):
    specs = [resolve(settings(train__weight_decay=decay)) for decay in (0.1, 0.2)]
    old, new = (
        Request(RunDirectory(tmp_path / spec.run_name), spec.record()) for spec in specs
    )  # fmt: skip
    old.run.write_spec(old.spec)
    _say_new([new], view.console())
    said = capsys.readouterr().out
    assert f"new run {new.run.name}: differs from {old.run.name} in train.weight_decay" in said
    _say_new([old], view.console())
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("asked", "devices", "most", "expected"),
    [(None, None, None, 4), (None, 2, None, 2), (2, None, None, 2), (5, None, None, "runs_per_gpu"),
     (1, 8, None, "4 GPUs here"), (None, None, 3, 3), (3, None, 2, 2), (2, None, 9, 2),
     (None, 2, 3, 1), (None, 2, 1, "max_gpus=1 is fewer than the 2 GPUs of a run")],
)  # fmt: skip
def test_a_machine_with_gpus_is_given_a_run_on_each(monkeypatch, asked, devices, most, expected):
    monkeypatch.setattr(plan, "gpus_of_this_machine", lambda: ("H100", 4))
    specs = [resolve(settings(seed=s, resources__device="auto")) for s in range(6)]
    specs = [replace(s, resources=replace(s.resources, devices=devices)) for s in specs]
    if isinstance(expected, str):
        with pytest.raises(SettingError, match=expected):
            _fitting(specs, Local("local"), asked, most)
    else:
        assert _fitting(specs, Local("local"), asked, most) == expected


def test_status_of_a_run_is_json_with_its_place(tmp_path):
    done = sweep(*SMALL, f"runs={tmp_path}")
    assert done.returncode == 0, done.stdout + done.stderr
    (run,) = read_sweep(tmp_path / "default")
    status = json.loads((run.path / "status.json").read_text())
    assert status["state"] == "done"
    assert status["step"] == status["steps"]


def planned_here(tmp_path, capsys, *arguments):
    """(exit code, what was printed, what was said of an error) of a plan."""
    given = ["sweeps/run.py", "-m", *arguments, "size=50k", "plan=true", f"runs={tmp_path}"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", given)
        patch.setenv("COLUMNS", "300")
        code = run_command()
    said = capsys.readouterr()
    return code, said.out, said.err


def test_a_rule_that_a_run_does_not_read_makes_no_second_one(tmp_path, capsys):
    swept = ("protocol.gdn_key_multiple=8,32", "treatments=[mix,protocol.gdn_key_multiple]")
    code, out, _ = planned_here(tmp_path, capsys, "mix=transformer,gdn3_attn1", *swept,
                                "protocol.match=blueprint")  # fmt: skip
    assert code == 0
    assert "3 runs, 0 done" in out
    assert re.search(r"transformer-50k-s0-\w+ stands for 2 runs", out)
    # Where a record says one of the values, that is said too.
    swept = ("protocol.gdn_key_multiple=8,16", "treatments=[mix,protocol.gdn_key_multiple]")
    code, out, _ = planned_here(tmp_path, capsys, "mix=gdn3_attn1", *swept)
    assert code == 0
    assert "does not say protocol.gdn_key_multiple=16" in out


@pytest.mark.parametrize("axis", ["resources.precision=fp32,bf16", "evaluation.examples=4,8"])
def test_what_makes_no_other_run_is_no_axis(tmp_path, capsys, axis):
    code, _, err = planned_here(tmp_path, capsys, "mix=transformer", axis)
    assert code == 2
    assert axis.partition("=")[0] in err
    assert "makes no other run" in err


def test_settings_of_mixers_need_no_plus_and_are_for_the_mixes_that_read_them(tmp_path, capsys):
    code, out, err = planned_here(
        tmp_path, capsys, "mix=transformer,gdn3_attn1", "mix.gdn_output_gate=false"
    )
    assert (code, err) == (0, "")
    assert "2 runs, 0 done" in out
    code, _, err = planned_here(tmp_path, capsys, "mix=transformer", "mix.gdn_outputgate=false")
    assert code == 2
    assert "mix.gdn_outputgate is not a setting; nearest" in err
    assert "mix.gdn_output_gate" in err
