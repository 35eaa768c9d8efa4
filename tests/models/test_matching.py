"""Matching in parameters and FLOPs, by the MLP's width and by heads."""

import csv
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from models.config import Blueprint
from models.cost import flops_per_token, parameters
from models.errors import SettingError
from models.language_model import LanguageModel
from models.matching import match
from models.mix import TRANSFORMER, Geometry, Mix, build_config

from .test_counts import MIXES, ROOT, SIZES, load_mix, load_size

HYBRID = load_mix("gdn3_attn1")
SMALL = Blueprint("small", 64, 4, 2, 96)
# The published 7B transformer and the shapes its hybrid was given (Olmo Hybrid, Table 9).
SEVEN_B = Blueprint("7b", 4096, 32, 32, 11008)
PUBLISHED = Geometry(windows=(4096, 4096, 4096, 0))


def context_of(size):
    return 256 if load_size(size)[1] == 256 else 8192


# Widths of one depth are there for transfer, where nothing is matched (experiment=mup_transfer).
LADDER = [name for name in SIZES if not name.startswith("width")]


@pytest.mark.parametrize("size_name", LADDER)
@pytest.mark.parametrize("mix_name", MIXES)
def test_every_mix_at_every_size_can_be_given_the_transformers_flops(mix_name, size_name):
    size, vocab = load_size(size_name)
    context = context_of(size_name)
    matched = match(load_mix(mix_name), size, Geometry(), vocab, how="flops", context=context)
    transformer = build_config(TRANSFORMER, size, Geometry(), vocab)
    ratio = flops_per_token(matched.config, context) / flops_per_token(transformer, context)
    assert abs(ratio - 1) <= 0.005
    assert matched.residual == pytest.approx(ratio - 1)
    assert matched.N_target == parameters(transformer)[0]


@pytest.mark.parametrize("how", ["params", "flops"])
@pytest.mark.parametrize("size_name", SIZES)
@pytest.mark.parametrize(
    "mix",
    [
        Mix("squared_relu", "GGG*", mlp="relu2"),
        Mix("sublayers", "M-M-M-*-"),
        Mix("many_mlps", "M-*--*--", mlp="relu2", norm="inputs"),
        Mix("bare", "*", norm="inputs", options={"attn_qk_norm": "none", "attn_rotary": 0.0}),
    ],
    ids=lambda m: m.name,
)
def test_blocks_of_every_form_can_be_matched(mix, size_name, how):
    size, vocab = load_size(size_name)
    context = context_of(size_name)
    matched = match(mix, size, Geometry(), vocab, how=how, context=context)
    transformer = build_config(TRANSFORMER, size, Geometry(), vocab)
    if how == "params":
        with torch.device("meta"):
            built, baseline = (LanguageModel(c) for c in (matched.config, transformer))
        ratio = counted(built) / counted(baseline)
    else:
        ratio = flops_per_token(matched.config, context) / flops_per_token(transformer, context)
    assert abs(ratio - 1) <= 0.005
    assert matched.residual == pytest.approx(ratio - 1)
    assert matched.config.mlp == mix.mlp


def counted(model):
    """Parameters without the embedding."""
    return sum(p.numel() for p in model.parameters()) - model.embedding.weight.numel()


def test_without_an_mlp_there_is_no_width_to_match_by_and_heads_do():
    mix = Mix("bare", "GGG*", mlp="none")
    size = Blueprint("wide", 512, 4, 32, 1024)
    with pytest.raises(SettingError, match=r"mix=bare has no MLP .*knob=mlp_hidden.*knob=heads"):
        match(mix, size, Geometry(), 256)
    matched = match(mix, size, Geometry(), 256, knob="heads", tolerance=0.02)
    assert matched.config.mlp_hidden == 0
    assert matched.config.n_heads > size.n_heads
    assert abs(matched.residual) <= 0.02
    left_alone = match(mix, size, Geometry(), 256, how="blueprint").config
    assert left_alone == build_config(mix, size, Geometry(), 256)


def test_flops_are_matched_under_the_protocols_windows():
    size, vocab = load_size("1b")
    transformer = build_config(TRANSFORMER, size, PUBLISHED, vocab)
    matched = match(HYBRID, size, PUBLISHED, vocab, how="flops", context=8192)
    wanted = flops_per_token(transformer, 8192)
    assert flops_per_token(matched.config, 8192) == pytest.approx(wanted, rel=0.005)
    full = match(HYBRID, size, Geometry(), vocab, how="flops", context=8192)
    assert full.config.mlp_hidden > matched.config.mlp_hidden


def test_heads_come_out_as_they_did_for_the_published_7b():
    path = Path(ROOT) / "tests" / "data" / "olmo_hybrid" / "table9_train_throughput.csv"
    with path.open() as file:
        table = {int(r["heads"]): r for r in csv.DictReader(file) if r["model"] == "Hybrid"}
    for heads, row in table.items():
        width = int(row["d_model"])
        config = build_config(HYBRID, Blueprint("x", width, 32, heads, 11008), Geometry(), 100352)
        assert round(parameters(config)[0] / 1e9, 1) == float(row["params_B"])
    matched = match(HYBRID, SEVEN_B, PUBLISHED, 100352, knob="heads", tolerance=0.03, context=8192)
    config = matched.config
    assert (config.n_heads, config.d_model, config.mlp_hidden) == (30, 3840, 11008)
    gdn = config.kinds["gdn"].settings
    assert (config.head_dim, gdn.key_dim, gdn.value_dim) == (128, 96, 192)
    assert matched.moved == "heads 32 → 30, d_model 4096 → 3840"
    N = parameters(config)[0]
    assert matched.residual == pytest.approx(N / matched.N_target - 1)
    assert str(matched) == f"{matched.moved} (N {matched.residual:+.3%})"


def test_heads_leave_grouped_keys_and_values_whole():
    size = Blueprint("grouped", 512, 4, 16, 1024, n_kv_heads=4)
    config = match(HYBRID, size, Geometry(), 1000, knob="heads", tolerance=0.2).config
    assert config.kinds["attn"].settings.n_kv_heads == 4
    assert config.n_heads % 4 == 0
    assert config.head_dim == size.head_dim


def test_a_blueprint_stays_as_it_is_and_the_residual_says_by_how_much_it_differs():
    plain = build_config(HYBRID, SMALL, Geometry(), 256)
    matched = match(HYBRID, SMALL, Geometry(), 256, how="blueprint")
    assert matched.config == plain
    assert matched.moved == "nothing"
    assert matched.residual == pytest.approx(parameters(plain)[0] / matched.N_target - 1)


@pytest.mark.parametrize("how", ["params", "flops"])
def test_where_no_width_reaches_the_error_says_how_near_it_came(how):
    gdn, geometry = Mix("gdn", ("gdn",)), Geometry(options={"gdn_key_multiple": 128})
    with pytest.raises(SettingError) as error:
        match(gdn, SMALL, geometry, 256, how=how, context=256)
    config = replace(build_config(gdn, SMALL, geometry, 256), mlp_hidden=1)
    transformer = build_config(TRANSFORMER, SMALL, geometry, 256)
    measure = {"params": lambda c: parameters(c)[0], "flops": lambda c: flops_per_token(c, 256)}
    left = measure[how](config) / measure[how](transformer) - 1
    assert f"mlp_hidden=1, leaves {left:+.2%};" in str(error.value)
    # The tolerance it names is enough.
    named = float(str(error.value).split("tolerance=")[1].split()[0])
    assert match(
        gdn, SMALL, geometry, 256, how=how, context=256, tolerance=named
    ).residual == pytest.approx(left)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"how": "size"}, "protocol.match=size is not known; valid: blueprint, flops, params"),
        ({"knob": "depth"}, "protocol.knob=depth is not known; valid: heads, mlp_hidden"),
        ({"knob": "heads"}, "3 heads, leaves|2 heads, leaves|1 heads, leaves"),
        ({"context": 2048}, r"windows=\[4096, 4096, 4096, 0\].*context=2048.*at most 2048"),
    ],
)
def test_what_cannot_be_is_one_sentence_with_what_can(changes, words):
    with pytest.raises(SettingError, match=words) as error:
        match(HYBRID, SMALL, PUBLISHED, 256, **{"context": 8192, **changes})
    assert "\n" not in str(error.value)
    assert str(error.value).endswith(".")


@pytest.mark.parametrize("width", [48])
def test_the_width_that_a_refusal_gives_is_the_nearest_that_matches(width):
    size, asked = replace(load_size("50k")[0], d_model=width), {"tolerance": 0.002}
    mix = load_mix("gdn")
    with pytest.raises(SettingError, match="cannot be matched") as refused:
        match(mix, size, Geometry(), 256, **asked)
    told = str(refused.value).partition("; give ")[2]
    nearest = int(re.match(r"size\.d_model=(\d+), ", told)[1])
    for other in range(4, 2 * width + 1, 4):
        if abs(other - width) < abs(nearest - width):
            with pytest.raises(SettingError):
                match(mix, replace(size, d_model=other), Geometry(), 256, **asked)
    match(mix, replace(size, d_model=nearest), Geometry(), 256, **asked)
    if heads := re.search(r"size\.n_heads=(\d+), ", told):
        match(mix, replace(size, n_heads=int(heads[1])), Geometry(), 256, **asked)
    enough = float(re.search(r"protocol\.tolerance=([\d.]+)", told)[1])
    match(mix, size, Geometry(), 256, tolerance=enough)


def test_the_other_knob_is_given_where_it_matches_and_only_there():
    size = load_size("50k")[0]
    with pytest.raises(SettingError, match=r"; give protocol\.knob=mlp_hidden, protocol\.tol"):
        match(load_mix("gdn"), size, Geometry(), 256, knob="heads")
    match(load_mix("gdn"), size, Geometry(), 256, knob="mlp_hidden")
    wide = replace(size, d_model=48)
    for tolerance in (0.002, 0.0):
        with pytest.raises(SettingError) as refused:
            match(load_mix("gdn"), wide, Geometry(), 256, tolerance=tolerance)
        assert "protocol.knob=heads" not in str(refused.value)
