"""Confounds against published counts, the ladder code's windows, and the law that weighs them."""

import csv
from pathlib import Path

import pytest
import yaml

from ablations.confounds import (
    baseline_among,
    conditions,
    confounds,
    tokens_worth,
)
from ablations.resolve import resolve
from models.confound import Facts

ROOT = Path(__file__).parents[2]
DATA = ROOT / "tests" / "data" / "olmo_hybrid"
SIZES = ("60m", "100m", "190m", "370m", "600m", "760m", "1b")
PUBLISHED = {
    "gdn": "pure_gdn", "gdn1_attn1": "gdn_1to1", "gdn3_attn1": "gdn_3to1",
    "gdn7_attn1": "gdn_7to1", "gdn3_attn1_middle": "gdn_3to1_middle",
}  # fmt: skip


def read(group, name):
    content = yaml.safe_load((ROOT / "conf" / group / f"{name}.yaml").read_text())
    below = [b for b in content.pop("defaults", []) if b != "_self_"]
    return {k: v for b in below for k, v in read(group, b).items()} | content


def facts(mix, size, protocol="olmo_hybrid", **changes):
    """A run as planned, without a corpus unless its size comes with one."""
    composed = {
        "sweep": "test", "seed": 0, "size": read("size", size),
        "mix": mix if isinstance(mix, dict) else read("mix", mix),
        "protocol": read("protocol", protocol) | changes, "train": read("train", "adamw"),
        "data": {"name": "auto", "path": None}, "resources": {}, "logging": {},
    }  # fmt: skip
    spec = resolve(composed, plan_only=True)
    return Facts(spec.plain(), spec.counts.N, spec.counts.flops_per_token)


def named(mix, sizes, protocol="olmo_hybrid", **changes):
    runs = [facts(m, s, protocol, **changes) for m in ("transformer", mix) for s in sizes]
    return {one.name: one for one in confounds(runs, "transformer", mix)}


def rows(file):
    with (DATA / file).open() as handle:
        return list(csv.DictReader(handle))


@pytest.mark.parametrize("mix", PUBLISHED)
def test_the_parameter_excess_is_that_of_the_published_ladder(mix):
    counts = {
        (row["arch"], row["size"].lower()): int(row["n_nonemb_incl_lmhead"])
        for row in rows("param_flop_counts_from_code.csv")
    }
    found = named(mix, SIZES)
    excess = [counts[PUBLISHED[mix], s] / counts["transformer", s] - 1 for s in SIZES]
    assert found["parameters"].sizes == SIZES
    assert found["parameters"].magnitudes == pytest.approx(excess, rel=1e-12)
    if mix == "gdn3_attn1":  # section 4.1: +16 % (1B) to +41 % (370M)
        assert [round(100 * f(excess)) for f in (min, max)] == [16, 41]
        assert found["parameters"].short == "+15.8 to +40.9 %"
    # All mixes of a size read the same tokens (the ladder code's N is the transformer's).
    fewer = [1 / (1 + e) - 1 for e in excess]
    assert found["tokens per parameter"].magnitudes == pytest.approx(fewer, rel=1e-12)


def test_windows_by_layer_index_fall_where_the_ladder_code_puts_them():
    # Attention layers of 16 with a window of 4,096: every fourth is full, and the last.
    sizes = ("370m", "1b")
    every_other = named("gdn1_attn1", sizes)["windows"]
    assert every_other.short == "12 of 16 → 4 of 8"
    assert "window of 4,096 tokens" in every_other.what
    assert "layers 1, 5, 9, 13" in every_other.what
    assert every_other.magnitudes == (-0.25, -0.25)
    middle = named("gdn3_attn1_middle", sizes)["windows"]
    assert middle.short == "12 of 16 → 3 of 5"
    assert "layers 6, 8, 9" in middle.what
    assert named("gdn3_attn1", sizes)["windows"].short == "12 of 16 → 0 of 4"
    assert named("gdn", sizes)["windows"].short == "12 of 16 → no attention"


def test_a_window_as_long_as_the_context_cuts_nothing():
    assert "windows" not in named("gdn1_attn1", ("1b",), windows=[8192])


def test_key_heads_are_128_at_every_size_of_the_published_ladder():
    table = rows("ladder_hparams_from_code.csv")
    excess = [int(r["gdn_head_k"]) / (0.75 * int(r["head_dim"])) - 1 for r in table]
    assert named("gdn3_attn1", SIZES)["key width"].magnitudes == pytest.approx(excess)


def test_recurrent_layers_bring_their_norms_before_the_sublayers():
    found = named("gdn3_attn1", ("60m", "1b"), "controlled")["norm placement"]
    assert found.magnitudes == (0.75, 0.75)
    assert found.short == "0 of 16 → 12 of 16"


def test_a_mix_with_the_baselines_norms_has_no_norm_placement_against_it():
    runs = [
        facts(m, s, "controlled") for m in ("transformer_prenorm", "gdn") for s in ("50k", "1b")
    ]
    found = {one.name for one in confounds(runs, "transformer_prenorm", "gdn")}
    assert "norm placement" not in found
    assert "MLP width" in found


@pytest.mark.parametrize(
    ("changes", "name", "short"),
    [
        ({"mlp": "relu2"}, "MLP", "swiglu → relu2"),
        ({"norm_eps": 1e-5}, "norm eps", "1e-06 → 1e-05"),
        ({"attn_qk_norm": "head"}, "QK-norm", "full → head"),
        ({"attn_rotary": 0}, "positions", "rotary 100 % → none"),
        ({"attn_rotary": 0.5}, "positions", "rotary 100 % → rotary 50 %"),
        ({"norm": "inputs"}, "norm placement", "0 of 4 → 4 of 4"),
    ],
)
def test_a_setting_of_the_block_is_a_confound_of_its_own(changes, name, short):
    other = read("mix", "transformer") | {"name": "other"} | changes
    runs = [facts("transformer", "50k", "controlled"), facts(other, "50k", "controlled")]
    found = {one.name: one for one in confounds(runs, "transformer", "other")}
    assert found[name].short == short
    assert found.keys() <= {name, "FLOPs", "MLP width", "parameters"}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {"output gate": "silu → sigmoid"}),
        ({"kda_gate_activation": "silu"}, {}),
        (
            {"kda_gate_activation": "silu", "kda_allow_neg_eigval": False},
            {"eigenvalues": "-1 to 1 → 0 to 1"},
        ),
    ],
)
def test_choices_that_any_recurrent_layer_has_are_confounds_between_mixers(changes, expected):
    other = read("mix", "kda3_attn1") | {"name": "other"} | changes
    runs = [facts(mix, "1m", "controlled") for mix in ("gdn3_attn1", other)]
    found = {one.name: one.short for one in confounds(runs, "gdn3_attn1", "other")}
    choices = {name: found[name] for name in ("output gate", "eigenvalues") if name in found}
    assert choices == expected
    # Within one mixer they are what the mixes were made to differ in.
    own = [other | {"name": "own", "kda_gate_activation": "silu"}, other]
    runs = [facts(mix, "1m", "controlled") for mix in own]
    found = {one.name for one in confounds(runs, "own", "other")}
    assert not found & {"output gate", "eigenvalues"}


def test_kimi_delta_attention_has_the_key_width_of_gated_delta_networks():
    gdn, kda = (named(mix, ("1m", "60m"), "controlled") for mix in ("gdn3_attn1", "kda3_attn1"))
    assert kda["key width"].magnitudes == gdn["key width"].magnitudes
    assert kda["key width"].what.startswith("kda key heads")


def test_the_controlled_protocol_pays_for_equal_parameters_with_the_mlp():
    found = named("gdn3_attn1", ("60m", "1b"), "controlled")
    assert found.keys() == {"FLOPs", "norm placement", "MLP width", "key width"}
    assert found["MLP width"].magnitudes == pytest.approx((1144 / 1536 - 1, 7168 / 8192 - 1))
    heads = named("gdn3_attn1", ("1b",), "controlled", knob="heads", tolerance=0.1)
    assert "model width" in heads
    assert "MLP width" not in heads


def test_a_mix_has_no_confound_against_itself_or_another_gate():
    assert named("transformer", ("60m",)) == {}
    runs = [facts(m, "370m") for m in ("gdn3_attn1", "gdn3_attn1_poseig")]
    assert confounds(runs, "gdn3_attn1", "gdn3_attn1_poseig") == []


def test_hybrids_differ_in_what_their_mix_files_say():
    found = named("mamba2_swa1", ("50k", "60m"), "controlled")
    assert found["windows"].magnitudes == (1.0, 1.0)
    assert "4,096 tokens" in found["windows"].what
    assert "attention's output gate" in named("gdn3_gattn1", ("60m",), "controlled")
    mixes = ("gdn3_attn1", "kda3_attn1")
    runs = [facts(mix, "60m", "controlled") for mix in mixes]
    between = {one.name: one for one in confounds(runs, *mixes)}
    assert between["output gate"].short == "silu → sigmoid"
    assert "eigenvalues" not in between
    assert "key width" not in between
    shares = named("nemotron_h", ("50k", "60m", "1b"), "controlled")["attention share"]
    assert shares.short == "25 % → 6 %"
    kimi = {one.name for one in confounds([runs[0], facts("kimi_linear", "60m", "controlled")],
                                          "gdn3_attn1", "kimi_linear")}  # fmt: skip
    assert {"eigenvalues", "positions", "QK-norm", "norm placement"} <= kimi


@pytest.mark.parametrize(("N", "more"), [(57e6, 1.27), (371e6, 1.41), (1.28e9, 1.16), (1e9, 0.9)])
def test_parameters_are_weighed_by_the_law_of_table_18(N, more):
    def loss(N, D):  # the transformer, exponents fixed: E 1.55, A 66.63, B 94.85
        return 1.55 + 66.63 / N**0.22 + 94.85 / D**0.22

    D = 160 * N
    worth = tokens_worth(N, more * N, D)
    assert loss(N, worth * D) == pytest.approx(loss(more * N, D), rel=1e-12)
    assert tokens_worth(50_000, 60_000, 1e6) is None  # no law of bytes and tiny models


def test_what_bends_the_ladder_for_every_mix_is_told():
    ladder = {
        c.name: c for c in conditions([facts("gdn", s, "controlled") for s in ("50k", "60m")])
    }
    assert ladder.keys() == {"corpus", "vocabulary", "context", "init"}
    assert ladder["context"].what == "context differs by size: 256 at 50k; 8192 at 60m"
    assert conditions([facts("gdn", s, "controlled") for s in SIZES]) == []
    repeated = facts("gdn", "3m", "controlled", chinchilla=[2])
    (epochs,) = conditions([repeated])
    tokens = repeated.get("recipe.tokens") / repeated.get("corpus.train_tokens")
    assert epochs.magnitudes == (tokens,)
    assert tokens > 1


def test_the_transformer_is_the_baseline_where_it_is_there():
    assert baseline_among(["gdn", "transformer"]) == "transformer"
    assert baseline_among(["gdn", "mamba2"]) == "gdn"
    with pytest.raises(ValueError, match="no mix"):
        baseline_among([])


def test_what_a_spec_does_not_record_is_left_out():
    bare = [
        Facts({"mix": {"name": m}, "size": {"name": "x"}}, n, 1.0) for m, n in (("a", 1), ("b", 2))
    ]
    assert [one.name for one in confounds(bare, "a", "b")] == ["parameters"]
