"""Parameter counts and matching against the published tables and against the built models."""

import csv
from pathlib import Path

import pytest
import torch
import yaml

from models.config import Blueprint
from models.cost import activation_bytes, count, decode_bytes, parameters
from models.errors import SettingError
from models.language_model import LanguageModel
from models.matching import match
from models.mix import Geometry, Mix, build_config
from models.settings import from_dict

from .test_language_model import VARIED

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
    return from_dict(Mix, content, "mix")


def load_size(name):
    content = yaml.safe_load((ROOT / "conf" / "size" / f"{name}.yaml").read_text())
    keys = ("name", "d_model", "n_layers", "n_heads", "mlp_hidden")
    return Blueprint(**{k: content[k] for k in keys}), content["vocab_size"]


PUBLISHED = Geometry(options={"gdn_key_multiple": 128})
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
    config = build_config(mix, size, PUBLISHED, vocab)
    N, N_total, N_body = parameters(config)
    # The published count leaves out Mamba2's convolution bias: one a channel.
    left_out = sum(
        size.n_heads * config.settings(i).head_dim + 2 * config.settings(i).state
        for i, kind in enumerate(config.layers)
        if kind == "mamba2"
    )
    assert N - left_out == int(row["n_nonemb_incl_lmhead"])
    assert N_total - left_out == int(row["n_params_total"])
    assert N_body - left_out == int(row["n_body_excl_lmhead"])
    assert config.layers.count("attn") == int(row["n_attn_layers"])


def test_every_layer_mix_of_table_5_has_its_file():
    variants = {"", "_nogate", "_poseig", "_poseig_nogate"}
    ablated = {f"{mix}{variant}" for mix in ("gdn", "gdn3_attn1") for variant in variants}
    assert {*PUBLISHED_NAMES.values(), *ablated} <= set(MIXES)
    for name in ablated:
        mix = load_mix(name)
        assert mix.name == name
        options = mix.options_of("gdn")
        assert options.output_gate == ("nogate" not in name)
        assert options.allow_neg_eigval == ("poseig" not in name)


def test_table_22_to_the_million():
    table = {r["arch"]: r for r in rows("table22_param_counts_M.csv")}
    for arch, name in PUBLISHED_NAMES.items():
        for column in ("60M", "100M", "190M", "370M", "600M", "760M", "1B"):
            size, vocab = load_size(column.lower())
            config = build_config(load_mix(name), size, PUBLISHED, vocab)
            assert round(parameters(config)[0] / 1e6) == int(table[arch][column])


@pytest.mark.parametrize("size_name", SIZES)
@pytest.mark.parametrize("mix_name", MIXES)
def test_counts_equal_the_built_model_and_match_the_transformer(mix_name, size_name):
    size, vocab = load_size(size_name)
    matched = match(load_mix(mix_name), size, Geometry(), vocab, context=256)
    with torch.device("meta"):
        model = LanguageModel(matched.config)
    built = sum(p.numel() for p in model.parameters())
    N, N_total, N_body = parameters(matched.config)
    assert N_total == built
    assert built - model.embedding.weight.numel() == N
    assert N_body == N - model.head.weight.numel()
    transformer = parameters(build_config(load_mix("transformer"), size, Geometry(), vocab))[0]
    assert abs(N / transformer - 1) <= 0.005


@pytest.mark.parametrize(
    ("mix", "size"),
    [
        (Mix("grouped", ("attn",)), Blueprint("x", 64, 2, 4, 96, n_kv_heads=2)),
        (Mix("shared", ("gdn", "attn")), Blueprint("x", 64, 2, 4, 96, n_kv_heads=1)),
        (
            Mix("no_gate", ("gdn",), options={"gdn_output_gate": False}),
            Blueprint("x", 64, 2, 4, 96),
        ),
        (
            Mix("no_positions", ("mamba2", "attn"), options={"attn_rotary": 0.0}),
            Blueprint("x", 64, 2, 4, 96),
        ),
    ],
    ids=lambda x: x.name,
)
def test_counts_of_grouped_heads_and_of_a_mix_without_gate_equal_the_built_model(mix, size):
    config = build_config(mix, size, Geometry(), 300)
    with torch.device("meta"):
        model = LanguageModel(config)
    assert parameters(config)[1] == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("mix", VARIED, ids=lambda m: m.name)
@pytest.mark.parametrize("kv_heads", [None, 1])
def test_counts_under_every_setting_of_the_block_equal_the_built_model(mix, kv_heads):
    config = build_config(mix, Blueprint("x", 64, 4, 2, 96, kv_heads), Geometry(), 300)
    with torch.device("meta"):
        model = LanguageModel(config)
    built = sum(p.numel() for p in model.parameters())
    table = model.embedding.weight.numel()
    assert parameters(config) == (built - table, built, built - 2 * table)


def test_a_cache_of_any_mix_holds_what_is_counted():
    mix = Mix("all", ("gdn", "mamba2", "attn", "attn"))
    size = Blueprint("x", 64, 4, 4, 96, n_kv_heads=2)
    config = build_config(mix, size, Geometry(windows=(0, 0, 24, 0)), 300)
    with torch.device("meta"):
        model = LanguageModel(config)
        for dtype in (torch.bfloat16, torch.float32):
            cache = model.new_cache(3, 100, dtype)
            held = [tensor for layer in cache.layers for tensor in layer.values()]
            state, kv = decode_bytes(config, 100, dtype.itemsize)
            assert 3 * (state + kv) == sum(t.nbytes for t in held)
            # Keys and values of the windowed layer and of the full one, two heads of 16 each.
            assert kv == 2 * 2 * 16 * (24 + 100) * dtype.itemsize
    assert decode_bytes(config, 10)[1] == 2 * 2 * 16 * (10 + 10) * 2


def test_activations_grow_with_depth_and_element_and_attentions_not_with_the_context():
    def of(mix, context=8192, element_bytes=2, **changes):
        size = Blueprint(**{"name": "x", "d_model": 512, "n_layers": 8, "n_heads": 8,
                            "mlp_hidden": 1024, **changes})  # fmt: skip
        return activation_bytes(build_config(mix, size, Geometry(), 300), context, element_bytes)

    transformer = Mix("transformer", ("attn",))
    ends = 2 * 2 * 512
    assert of(transformer, n_layers=16) - ends == 2 * (of(transformer) - ends)
    assert of(transformer) == of(transformer, context=512)
    # A layer of fused attention and SwiGLU: 7 d for attention, 3 d and 3 hidden around it, and a
    # float32 a head; counted by hand from what the backward formulas read.
    assert of(transformer) == 8 * (2 * (10 * 512 + 3 * 1024) + 4 * 8) + ends
    relu2, no_mlp = (Mix(mlp, "*", mlp=mlp) for mlp in ("relu2", "none"))
    assert of(relu2) == of(transformer) - 8 * 2 * 1024
    assert of(no_mlp) == of(transformer) - 8 * 2 * (2 * 512 + 3 * 1024)
    # Neither normed nor turned, queries and keys are kept once.
    bare = Mix("bare", "*", options={"attn_qk_norm": "none", "attn_rotary": 0.0})
    assert of(bare) == of(transformer) - 8 * 2 * (2 * 512)
    for mix in (Mix("gdn", ("gdn",)), Mix("mamba2", ("mamba2",))):
        assert of(mix, context=1024) == of(mix)
        assert of(mix, element_bytes=4) < 2 * of(mix)  # the states are float32 in any case


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
    assert short.settings(0).windows == (512,) * 7 + (0,)


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
                       how="heads"), "blueprint, flops, params"),
    ],
)  # fmt: skip
def test_impossible_models_are_refused_in_a_sentence(make, words):
    with pytest.raises(SettingError, match=words):
        make()
