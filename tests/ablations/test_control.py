"""Runs of a sweep differ in what was declared and in what follows from it; all else stops it."""

import copy

import pytest

from ablations.control import check
from ablations.resolve import resolve
from models.errors import SettingError

from .conftest import settings


def specs_of(*composed):
    made = [resolve(c) for c in composed]
    return {spec.run_name: spec.plain() for spec in made}


def at(size, mix="transformer", **changes):
    return settings(mix, size=size, **changes)


def test_mix_size_and_seed_may_differ_and_what_follows_from_them():
    cells = [settings(m, seed=s) for m in ("transformer", "gdn3_attn1") for s in (0, 1)]
    check(specs_of(*cells, at("100k", "gdn3_attn1")), ["mix"])


def test_where_and_how_a_run_is_told_may_differ():
    here = settings("gdn", resources__threads=2, logging__log_every=7)
    check(specs_of(settings("transformer"), here), ["mix"])


def test_a_rule_of_a_mixer_is_compared_between_the_runs_that_read_it():
    wide = settings("gdn3_attn1", protocol__gdn_key_multiple=8)
    check(specs_of(settings("transformer"), wide), ["mix"])
    with pytest.raises(SettingError, match=r"^protocol\.gdn_key_multiple differs"):
        check(specs_of(settings("gdn1_attn1"), wide), ["mix"])


@pytest.mark.parametrize(
    ("field", "value"),
    [("train__weight_decay", 0.0), ("protocol__lr_multiplier", 2.0), ("data__eval_tokens", 4096),
     ("protocol__chinchilla", [0.002]), ("size__init", "normal"), ("size__n_heads", 1),
     ("protocol__match", "blueprint"), ("protocol__rope_theta", 1e4), ("size__context", 128),
     ("train__optim", "muon"), ("protocol__parametrization", "mup"), ("data__document_mask", True),
     ("size__mlp_hidden", 80)],
)  # fmt: skip
def test_an_undeclared_difference_stops_the_sweep_by_name_values_and_runs(field, value):
    pair = specs_of(settings("transformer"), settings("gdn3_attn1", **{field: value}))
    dotted = field.replace("__", ".")
    with pytest.raises(SettingError, match=f"^{dotted} differs .*no declared treatment") as told:
        check(pair, ["mix"])
    for run in pair:
        assert run in str(told.value)
    assert str(value) in str(told.value)
    assert f"treatments=[mix,{dotted}" in str(told.value)
    check(pair, ["mix", dotted])


def test_a_recipe_that_differs_by_the_mix_alone_stops_the_sweep():
    pair = specs_of(settings("transformer"), settings("gdn3_attn1"))
    next(iter(pair.values()))["recipe"]["peak_lr"] *= 2
    with pytest.raises(SettingError, match=r"recipe\.peak_lr differs"):
        check(pair, ["mix"])


def test_a_treatment_of_the_recipe_frees_no_mix_from_it():
    cells = [settings(m, protocol__lr_multiplier=lr) for m in ("gdn", "mamba2") for lr in (1.0, 2)]
    runs = specs_of(*cells)
    check(runs, ["mix", "protocol.lr_multiplier"])
    next(iter(runs.values()))["recipe"]["steps"] += 1
    with pytest.raises(SettingError, match=r"recipe\.steps differs between runs of the same"):
        check(runs, ["mix", "protocol.lr_multiplier"])


def test_one_mix_and_size_that_came_to_two_models_stop_the_sweep():
    pair = specs_of(settings("gdn", seed=0), settings("gdn", seed=1))
    next(iter(pair.values()))["model"]["mlp_hidden"] += 1
    with pytest.raises(SettingError, match=r"model\.mlp_hidden differs .*another version"):
        check(pair, ["mix"])


def test_a_name_stands_for_one_mix():
    pair = specs_of(settings("gdn"), settings("gdn", mix__pattern=["gdn", "attn"]))
    with pytest.raises(SettingError, match=r"mix\.pattern differs .*mix=gdn .*mix\.name=NAME"):
        check(pair, ["mix"])
    gates = specs_of(settings("gdn"), settings("gdn", mix__gdn_output_gate=False))
    check(gates, ["mix.gdn_output_gate"])


def test_a_mix_is_no_treatment_unless_it_is_declared_one():
    with pytest.raises(SettingError, match=r"mix\.\w+ differs"):
        check(specs_of(settings("gdn"), settings("mamba2")), ["seed"])


def test_sizes_of_one_corpus_read_the_same_text():
    runs = specs_of(at("50k"), at("100k"))
    name = next(n for n in runs if "100k" in n)
    runs[name]["corpus"]["fingerprint"] = "0" * 64
    with pytest.raises(SettingError, match=r"corpus\.fingerprint differs .*corpus=embedded"):
        check(runs, ["mix"])
    # Sizes that are named for different corpora: each its own.
    runs[name]["size"]["corpus"] = "tokens"
    check(runs, ["mix"])


def test_a_field_that_an_older_run_did_not_have_is_named():
    pair = specs_of(settings("gdn"), settings("mamba2"))
    older = next(iter(pair))
    del pair[older]["data"]["eval_mode"]
    with pytest.raises(SettingError, match=rf"data\.eval_mode differs .*absent in {older}"):
        check(pair, ["mix"])


@pytest.mark.parametrize("spec", [None, {}, [], {"mix": {"name": "gdn"}}, {"mix": None}])
def test_a_folder_without_a_usable_spec_is_named(spec):
    runs = specs_of(settings("gdn")) | {"left-over": copy.deepcopy(spec)}
    with pytest.raises(SettingError, match=r"run left-over.*another sweep=NAME"):
        check(runs, ["mix"])


@pytest.mark.parametrize("treatment", ["mixx", "protocol.lr", "", 3, None])
def test_a_treatment_that_is_no_setting_is_refused(treatment):
    with pytest.raises(SettingError, match="which is no setting of a run"):
        check(specs_of(settings("gdn")), ["mix", treatment])


def test_a_try_lies_in_no_sweep_of_the_ladder():
    tried = settings("gdn", protocol__max_steps=3)
    with pytest.raises(SettingError, match=r"^protocol\.max_steps differs .*take another sweep"):
        check(specs_of(settings("transformer"), tried), ["mix"])
