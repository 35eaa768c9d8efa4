"""Parameter counts and matching against the published tables and against the built models."""

import csv
from pathlib import Path

import pytest
import torch
import yaml

from models.config import Blueprint, Geometry, Mix, build_config
from models.cost import count, parameters
from models.errors import SettingError
from models.language_model import LanguageModel
from models.matching import match

ROOT = Path(__file__).parents[2]
DATA = ROOT / "tests" / "data" / "olmo_hybrid"
PUBLISHED_NAMES = {
    "transformer": "transformer",
    "pure_gdn": "gdn",
    "pure_mamba2": "mamba2",
    "gdn_1to1": "gdn1_attn1",
    "gdn_3to1": "gdn3_attn1",
    "gdn_7to1": "gdn7_attn1",
    "mamba2_3to1": "mamba2x3_attn1",
    "gdn_3to1_middle": "gdn3_attn1_middle",
}


def load_mix(name):
    content = yaml.safe_load((ROOT / "conf" / "mix" / f"{name}.yaml").read_text())
    return Mix(**{**content, "pattern": tuple(content["pattern"])})


def load_size(name):
    content = yaml.safe_load((ROOT / "conf" / "size" / f"{name}.yaml").read_text())
    keys = ("name", "d_model", "n_layers", "n_heads", "mlp_hidden")
    return Blueprint(**{k: content[k] for k in keys}), content["vocab_size"]


MIXES = sorted(p.stem for p in (ROOT / "conf" / "mix").glob("*.yaml"))
SIZES = sorted(p.stem for p in (ROOT / "conf" / "size").glob("*.yaml"))


def rows(name):
    with (DATA / name).open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("row", rows("param_flop_counts_from_code.csv"),
                         ids=lambda r: f"{r['arch']}-{r['size']}")  # fmt: skip
def test_blueprint_counts_equal_the_published_ladder_to_the_parameter(row):
    size, vocab = load_size(row["size"].lower())
    mix = load_mix(PUBLISHED_NAMES[row["arch"]])
    config = build_config(mix, size, Geometry(gdn_key_multiple=128), vocab)
    N, N_total, N_body = parameters(config)
    # The published count leaves out Mamba2's convolution bias: one a channel.
    channels = size.n_heads * config.mamba2_head_dim + 2 * config.mamba2_state
    left_out = channels * config.layers.count("mamba2")
    assert N - left_out == int(row["n_nonemb_incl_lmhead"])
    assert N_total - left_out == int(row["n_params_total"])
    assert N_body - left_out == int(row["n_body_excl_lmhead"])
    assert config.layers.count("attn") == int(row["n_attn_layers"])


def test_table_22_to_the_million():
    table = {r["arch"]: r for r in rows("table22_param_counts_M.csv")}
    for arch, name in PUBLISHED_NAMES.items():
        for column in ("60M", "100M", "190M", "370M", "600M", "760M", "1B"):
            size, vocab = load_size(column.lower())
            config = build_config(load_mix(name), size, Geometry(gdn_key_multiple=128), vocab)
            assert round(parameters(config)[0] / 1e6) == int(table[arch][column])


@pytest.mark.parametrize("size_name", SIZES)
@pytest.mark.parametrize("mix_name", MIXES)
def test_counts_equal_the_built_model_and_match_the_transformer(mix_name, size_name):
    size, vocab = load_size(size_name)
    matched = match(load_mix(mix_name), size, Geometry(), vocab)
    with torch.device("meta"):
        model = LanguageModel(matched.config)
    built = sum(p.numel() for p in model.parameters())
    N, N_total, N_body = parameters(matched.config)
    assert N_total == built
    assert built - model.embedding.weight.numel() == N
    assert N_body == N - model.head.weight.numel()
    transformer = parameters(build_config(load_mix("transformer"), size, Geometry(), vocab))[0]
    assert abs(N / transformer - 1) <= 0.005


@pytest.mark.parametrize(("name", "within"), [("50k", 0.01), ("1m", 0.01), ("60m", 0.1)])
def test_size_names_are_the_transformers_N(name, within):
    size, vocab = load_size(name)
    N = parameters(build_config(load_mix("transformer"), size, Geometry(), vocab))[0]
    stated = float(name[:-1]) * {"k": 1e3, "m": 1e6, "b": 1e9}[name[-1]]
    assert abs(N / stated - 1) < within


def test_training_flops_of_a_wide_transformer_approach_six_per_parameter():
    size, vocab = load_size("1b")
    config = build_config(load_mix("transformer"), size, Geometry(), vocab)
    counts = count(config, 1024)
    attention = 3 * 2 * 2 * size.d_model * (1024 + 1) / 2 * size.n_layers
    assert counts.flops_per_token - attention == pytest.approx(6 * counts.N, rel=1e-3)


def test_a_window_costs_what_it_spans():
    size, vocab = load_size("60m")
    mix = load_mix("transformer")
    full = build_config(mix, size, Geometry(), vocab)
    windowed = build_config(mix, size, Geometry(windows=(8192,)), vocab)
    short = build_config(mix, size, Geometry(windows=(512,)), vocab)
    assert count(windowed, 8192) == count(full, 8192)
    assert count(short, 8192).flops_per_token < count(full, 8192).flops_per_token
    assert short.windows == (512,) * 7 + (0,)


@pytest.mark.parametrize(
    ("name", "depth", "attention"),
    [
        ("gdn3_attn1", 12, (3, 7, 11)),
        ("gdn7_attn1", 12, (7, 11)),
        ("gdn1_attn1", 8, (1, 3, 5, 7)),
        ("gdn3_attn1_middle", 16, (6, 7, 8, 9, 15)),
        ("gdn", 8, ()),
    ],
)
def test_where_attention_stands(name, depth, attention):
    layers = load_mix(name).layers(depth)
    assert tuple(i for i, m in enumerate(layers) if m == "attn") == attention


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Mix("x", ("attn", "rwkv")), "rwkv"),
        (lambda: Mix("x", ()), "empty"),
        (lambda: Mix("x", ("gdn", "attn"), placement="top"), "interleaved, middle"),
        (lambda: Mix("x", ("gdn",), placement="middle"), "attn"),
        (lambda: Mix("x", ("gdn", "gdn", "attn")).layers(8), "multiple of the 3"),
        (lambda: Blueprint("x", 100, 4, 3, 8), "n_heads=3"),
        (lambda: Blueprint("x", 64, 0, 2, 8), "n_layers=0"),
        (lambda: match(Mix("gdn", ("gdn",)), Blueprint("x", 64, 4, 2, 8), Geometry(), 256),
         "cannot be matched"),
        (lambda: match(Mix("gdn", ("gdn",)), Blueprint("x", 64, 4, 2, 8), Geometry(), 256,
                       how="heads"), "blueprint, params"),
    ],
)  # fmt: skip
def test_impossible_models_are_refused_in_a_sentence(make, words):
    with pytest.raises(SettingError, match=words):
        make()
