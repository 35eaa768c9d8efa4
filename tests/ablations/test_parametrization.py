"""protocol.parametrization in runs: what it changes, what it leaves as it was, what it refuses."""

import dataclasses

import pytest
import torch

from ablations.control import check
from ablations.ladder import peak_lr
from ablations.optim import build_optimizers, set_rate
from ablations.resolve import resolve
from models.checkpoint_files import read_model
from models.config import MupBase
from models.errors import SettingError
from models.language_model import LanguageModel
from models.mixers import MIXERS
from models.parametrization import scales
from models.settings import to_dict

from .conftest import settings
from .test_train import final, finish, rows, without_time

MUP = {"protocol__parametrization": "mup"}


def test_the_default_is_in_no_identity():
    spec = resolve(settings("gdn3_attn1"))
    assert "mup" not in spec.record()["model"]
    assert spec.record()["defaults"]["model"]["mup"] is None
    without = dataclasses.replace(
        spec, protocol=dataclasses.replace(spec.protocol, parametrization="other")
    )
    assert without.identity == spec.identity
    written = resolve(settings("gdn3_attn1", protocol__parametrization="standard"))
    assert written == spec


def test_what_is_scaled_from_is_in_the_identity_and_the_record():
    specs = [
        resolve(settings("gdn3_attn1", size="400k", **MUP, **changes))
        for changes in ({}, {"protocol__mup_base_width": 64}, {"protocol__mup_base_layers": 2})
    ]
    assert len({spec.identity for spec in specs}) == 3
    assert specs[0].record()["model"]["mup"] == to_dict(MupBase(32, 16, 4, 27))
    assert specs[1].model.mup.d_model == 64
    assert specs[2].model.mup.n_layers == 2


def test_at_the_base_a_run_is_the_standard_one_to_the_bit(make_run):
    """Points, logged steps and the weights at the end: the size is the base."""
    results = []
    for name, changes in (("standard", {}), ("mup", MUP)):
        run, spec = make_run("gdn3_attn1", name=name, **changes)
        finish(run, spec)
        points = (run.path / "points.jsonl").read_bytes()
        results.append(([*map(without_time, rows(run))], points, read_model(run.checkpoints)))
    assert spec.model.mup is not None
    (*standard, weights), (*mup, others) = results
    assert standard == mup
    assert all(torch.equal(weight, others[name]) for name, weight in weights.items())


@pytest.mark.slow
def test_a_wider_run_with_mup_resumes_to_the_bit(make_run):
    whole, spec = make_run("gdn3_attn1", name="whole", size="100k", **MUP)
    finish(whole, spec)
    cut, _ = make_run("gdn3_attn1", name="cut", size="100k", **MUP)
    finish(cut, spec, stop_at=(4,))
    standard, other = make_run("gdn3_attn1", name="standard", size="100k")
    finish(standard, other)
    assert final(whole) == final(cut) != final(standard)


def test_the_rate_is_the_ladders_at_the_base_and_batches_those_of_the_size():
    standard, mup = (
        resolve(settings("gdn", size="width128", protocol__batch_tokens=None, **changes))
        for changes in ({}, MUP)
    )
    assert mup.recipe.peak_lr == peak_lr(49_696)  # conf/size/50k.yaml, of the base's widths
    assert standard.recipe.peak_lr == peak_lr(standard.recipe.N) < mup.recipe.peak_lr
    same = ("batch_tokens", "steps", "warmup_steps", "N", "milestones")
    assert all(getattr(standard.recipe, n) == getattr(mup.recipe, n) for n in same)
    assert not standard.recipe.by_hand
    assert "N = 49,696, the base of parametrization=mup" in mup.recipe.by_hand[0]


@pytest.mark.parametrize("mix", ["transformer", "gdn", "kda3_mla1", "mamba2", "samba"])
def test_every_parameter_has_a_group_and_its_share_of_the_rate(mix):
    spec = resolve(settings(mix, size="width64", protocol__match="blueprint", **MUP))
    model = LanguageModel(spec.model)
    (adamw,) = build_optimizers(model, spec.recipe)
    set_rate(adamw, 0.5)
    of = {id(p): group for group in adamw.param_groups for p in group["params"]}
    assert of.keys() == {id(p) for p in model.parameters()}
    for name, parameter in model.named_parameters():
        group = of[id(parameter)]
        inside = name.startswith("blocks.") and parameter.dim() == 2 and name.endswith("weight")
        if inside and not name.endswith("up.weight") and "kv_b" not in name:
            assert group["lr"] == 0.25, name  # twice the base's width
        if name.endswith("A_log"):
            assert (group["lr"], group["weight_decay"]) == (0.5, 0.0)
        if group["weight_decay"]:
            assert group["weight_decay"] * group["lr"] == pytest.approx(0.1 * 0.5)
    assert of[id(model.embedding.weight)]["weight_decay"] == 0.0


def test_declared_as_a_treatment_it_may_differ():
    pair = [resolve(settings("gdn", size="100k", **c)) for c in ({}, MUP)]
    specs = {spec.run_name: spec.plain() for spec in pair}
    check(specs, ["mix", "protocol.parametrization"])
    with pytest.raises(SettingError, match=r"^protocol\.parametrization differs"):
        check(specs, ["mix"])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"protocol__parametrization": "sp"}, "protocol.parametrization=sp .*mup, standard"),
        ({**MUP, "train__optim": "muon"}, "rates for train.optim=adamw alone"),
        ({"protocol__mup_base_width": 64}, "are read with protocol.parametrization=mup alone"),
        ({**MUP, "protocol__mup_base_width": 40}, "mup_base_head_width=16 must be even and divide"),
        ({**MUP, "protocol__mup_base_layers": 0}, "protocol.mup_base_layers=0 must be at least 1"),
    ],
)
def test_what_cannot_be_is_a_sentence(changes, words):
    with pytest.raises(SettingError, match=words):
        resolve(settings("gdn", **changes))


def test_a_mixer_that_says_no_roles_is_refused_before_anything_runs(monkeypatch):
    monkeypatch.setitem(MIXERS, "gdn", dataclasses.replace(MIXERS["gdn"], roles=None))
    with pytest.raises(SettingError, match="mixer=gdn says no roles"):
        resolve(settings("gdn", **MUP))
    resolve(settings("gdn"))


@pytest.mark.parametrize("mix", ["transformer", "gdn3_attn1"])
def test_every_size_has_one_base(mix):
    """The rate is the base's at every size, and that of an MLP's last map falls with its inputs."""
    made = [
        resolve(settings(mix, size, protocol__parametrization="mup"))
        for size in ("50k", "100k", "200k")
    ]
    assert len({spec.recipe.peak_lr for spec in made}) == 1
    hidden = [spec.model.mlp_hidden for spec in made]
    for spec, width in zip(made, hidden, strict=True):
        scale = scales(spec.model)
        one = scale("blocks.3.mlp.down_proj.weight")
        # The last map's 1/L is 1 at four layers; its rate is 1/r with r its inputs' growth.
        assert one.lr == pytest.approx(hidden[0] / width)
