"""Composing a sweep at once gives what Hydra composes run by run."""

import itertools

import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sweeps.compose import CONF, compose_sweep


def by_hydra(*axes):
    jobs = itertools.product(*axes)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return [OmegaConf.to_container(compose("config", [*job]), resolve=True) for job in jobs]


@pytest.mark.parametrize(
    "axes",
    [
        (["mix=gdn", "mix=mamba2"], ["seed=0", "seed=1", "seed=7"], ["sweep=a"]),
        (["seed=3", "seed=1"], ["size=50k"], ["train.z_loss=0.5", "train.z_loss=2"]),
        (["protocol.chinchilla=[1]", "protocol.chinchilla=[0.5,1]"], ["seed=0", "seed=1"]),
        (["data.eval_tokens=null", "data.eval_tokens=2048"], ["seed=4"]),
        (["data.document_mask=true", "data.document_mask=false"], ["mix=gdn"]),
        (["sweep=one", "sweep=2", "sweep=two"], ["hydra.verbose=true"]),
        (["mix=gdn", "mix=mamba2", "mix=transformer"], ["size=50k", "size=60m"], ["seed=0"],
         ["data=embedded", "data=tokens"]),
        (["protocol=controlled", "protocol=olmo_hybrid"], ["mix=gdn", "mix=mamba2"],
         ["protocol.windows=[8]", "protocol.windows=[]"]),
        (["mix=gdn", "mix=mamba2"], ["mix.name=${size.name}"], ["size=50k", "size=60m"]),
        (["mix.name=a", "mix.name=${size.name}"], ["size=50k", "size=60m"]),
        (["train=adamw", "train=muon"], ["sweep=${train.optim}"], ["mix=gdn", "mix=mamba2"]),
    ],
    ids=["groups and seeds", "values first", "lists", "null", "truth values", "words",
         "several groups", "a group and its key", "a choice that looks elsewhere",
         "one of two that does", "a choice that reaches elsewhere"],
)  # fmt: skip
def test_equal_to_what_hydra_composes(axes):
    given = [
        axis[0].split("=")[0] + "=" + ",".join(a.split("=", 1)[1] for a in axis) for axis in axes
    ]
    assert compose_sweep(given) == by_hydra(*axes)


def test_an_experiment_with_its_own_sweep_values_is_composed():
    runs = compose_sweep(["experiment=demo", "train.z_loss=0.1"])
    jobs = itertools.product(
        ("transformer", "gdn3_attn1"), ("50k", "100k", "200k"), (0, 1)
    )  # as its file says
    with initialize_config_dir(str(CONF), version_base="1.3"):
        expected = [
            OmegaConf.to_container(
                compose("config", ["experiment=demo", f"mix={mix}", f"size={size}", f"seed={seed}",
                                   "train.z_loss=0.1"]), resolve=True)
            for mix, size, seed in jobs
        ]  # fmt: skip
    assert runs == expected


@pytest.mark.parametrize(
    "wrong", [["mix=gdn,nosuch"], ["protocol.nosuch=1,2"], ["seed=0,1", "nosuch=3"], ["=,"]]
)
def test_what_hydra_refuses_is_refused(wrong):
    with pytest.raises((HydraException, OmegaConfBaseException)):
        compose_sweep(wrong)
