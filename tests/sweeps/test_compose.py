"""Composing a sweep gives what `hydra.main -m` gives its task, run by run."""

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from sweeps.compose import CONF, compose_sweep

STOCK = Path(__file__).with_name("stock_hydra.py")

# A sweep over a rate, and a decay that follows it, in a file.
FOLLOWING = """\
# @package _global_
defaults:
  - override /mix: gdn
hydra:
  mode: MULTIRUN
  sweeper:
    params:
      protocol.lr_multiplier: 0.5,1
treatments: [mix, protocol.lr_multiplier, train.weight_decay]
sweep: following-${size.name}
train:
  weight_decay: ${protocol.lr_multiplier}
"""
# A size that looks at other groups, and is chosen by one.
LOOKING = """\
defaults:
  - 50k
name: ${mix.name}
d_model: ${oc.select:seed,0}
"""
GROUPED = "# @package _global_\ndefaults:\n  - override /size: ${mix}\nseed: 7\n"


@pytest.fixture(scope="module")
def conf(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep") / "conf"
    shutil.copytree(CONF, folder)
    (folder / "local.yaml").unlink(missing_ok=True)
    (folder / "experiment" / "following.yaml").write_text(FOLLOWING)
    (folder / "experiment" / "grouped.yaml").write_text(GROUPED)
    (folder / "size" / "looking.yaml").write_text(LOOKING)
    for mix in ("gdn", "mamba2"):
        shutil.copy(folder / "size" / "100k.yaml", folder / "size" / f"{mix}.yaml")
    return folder


def stock(conf, cases, scratch):
    """The runs of each case by real `hydra.main`, or the name of what it raised."""
    done = subprocess.run(
        [sys.executable, str(STOCK), str(conf), str(scratch)], input=json.dumps(cases), text=True,
        capture_output=True, check=True, timeout=300,
        env={k: v for k, v in os.environ.items() if k != "ARCHLADDER_DATA"},
    )  # fmt: skip
    return json.loads(done.stdout)


def ours(conf, arguments):
    plain = [a for a in arguments if a != "-m"]
    try:
        return compose_sweep(plain, several="-m" in arguments, conf=conf)
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        return type(error).__name__


GIVEN = [
    ["-m", "mix=transformer", "size=50k", "protocol.lr_multiplier=0.5,1",
     "train.weight_decay=${protocol.lr_multiplier}"],
    ["experiment=following", "protocol.lr_multiplier=2,3", "train.weight_decay=${seed}", "sweep=a"],
    ["-m", "size=looking", "mix=gdn,mamba2", "seed=3,4"],
    ["-m", "experiment=grouped", "mix=gdn,mamba2"],
    ["-m", "train.weight_decay=${train.z_loss}", "train=adamw,muon", "train.z_loss=1,2"],
    ["-m", "seed=1,2", "sweep=${hydra:job.num}-${hydra:job.override_dirname}"],
    ["mix=gdn", "sweep=${hydra:runtime.choices.mix}"],
    ["-m", "mix=glob(gdn_*,exclude=*poseig*)", "seed=range(0,2)"],
    ["-m", "protocol.windows=[8,${seed}]", "seed=1,2", "~data.eval_tokens", "+data.more=a"],
    ["-m", "train={weight_decay:${seed}}", "seed=1,2"],
    ["-m", "data.eval_tokens=null", "sweep=1,two,'3'", "seed=${oc.decode:\"0x10\"}"],
    ["-m", "+size@wide=100k,1m", "seed=${wide.n_layers}"],
    ["-m", "seed=0,1", "seed=2", "mix.name=a,${size.name}"],
    ["-m", "protocol=controlled,olmo_hybrid", "protocol.windows=[8],[]"],
    ["mix=gdn,mamba2"],
    ["-m", "mix=gdn,nosuch"],
    ["-m", "protocol.nosuch=1,2"],
    ["-m", "seed=${nosuch.key},1"],
    ["-m", "seed=0,1", "nosuch=3"],
    ["-m", "~mix", "seed=0,1", "train.optim=${mix.name}"],
]  # fmt: skip
AXES = [
    "mix=gdn,mamba2", "mix=transformer", "size=50k,looking", "size=60m", "train=muon,adamw",
    "protocol=olmo_hybrid", "experiment=grouped", "data=tokens",
    "seed=0,3", "seed=5", "train.weight_decay=0,0.5", "train.z_loss=1", "sweep=a,2",
    "protocol.windows=[1],[${seed},2]", "protocol.chinchilla=null,[${train.z_loss}]",
    "data.document_mask=true,false", "resources.threads=${size.n_layers}", "size.context=64,128",
    "sweep=${mix.name}-${size.name}", "train.weight_decay=${train.z_loss}", "+mix.more=${seed}",
    "protocol.lr_multiplier=${seed},1", "protocol.tolerance=${protocol.lr_multiplier}",
    "size.n_kv_heads=${size.n_heads},null", "mix.name=${size.name},b", "~data.eval_mode",
    "train={grad_clip:${seed}}", "max_parallel=${oc.select:mix.more,2}", "seed=choice(2,4)",
    "mix.pattern=[attn],[gdn,${train.optim}]", "evaluation.lengths=${protocol.windows}",
]  # fmt: skip


def drawn(number):
    """A random sweep of two runs, most often."""
    draw = random.Random(number)
    arguments = draw.sample(AXES, draw.randint(3, 8))
    while sum("," in a.replace("[${seed},2]", "").replace("[gdn,$", "") for a in arguments) > 1:
        arguments.remove(next(a for a in arguments if "," in a))
    # An experiment may be changed in a sweep of another name.
    return ["-m", *arguments, *(["sweep=mine"] if "experiment=grouped" in arguments else [])]


def test_every_sweep_is_composed_as_hydra_composes_it(conf, tmp_path):
    cases = GIVEN + [drawn(number) for number in range(6)]
    for case, expected in zip(cases, stock(conf, cases, tmp_path), strict=True):
        assert ours(conf, case) == expected, case


def test_a_value_that_follows_a_swept_one_differs_from_run_to_run(conf):
    for runs in (ours(conf, GIVEN[0]), ours(conf, ["experiment=following"])):
        assert [run["train"]["weight_decay"] for run in runs] == [0.5, 1]


def test_an_experiment_with_its_own_sweep_values_is_composed(tmp_path):
    case = ["experiment=demo", "train.z_loss=0.1", "size=50k", "mix=gdn"]
    ((*expected,),) = stock(CONF, [case], tmp_path)
    assert len(expected) == 2
    assert compose_sweep(case, several=False) == expected
