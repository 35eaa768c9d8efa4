"""The maximal update parametrization against the papers' tables, and against factors in the forward
pass, which its initial values and rates stand in for."""

import dataclasses
import math

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrize import register_parametrization

from models.config import Blueprint, MupBase
from models.errors import SettingError
from models.language_model import LanguageModel
from models.mix import Geometry, Mix, build_config
from models.mixer import Growth
from models.mixers import MIXERS
from models.parametrization import BASES, parameter_groups, scales
from models.plain import model_from_plain
from models.settings import from_dict, to_dict

BASE = MupBase(d_model=32, head_dim=16, n_layers=2)
WIDE = Blueprint("wide", 128, 2, 8, 256)
"""Of the base four times the width, at its head width and depth."""
PRENORM = Mix("prenorm", ("attn",), norm="inputs")


def config_of(mix, size=WIDE, base=BASE, init="normal"):
    config = build_config(mix, dataclasses.replace(size, init=init), Geometry(), vocab_size=512)
    return dataclasses.replace(config, mup=base)


def drawn(config, seed=0):
    model = LanguageModel(config)
    model.initialize(seed)
    return dict(model.named_parameters())


# Yang et al. 2022, Table 3 and appendix B.1, written out for a width of four times the base's:
# (parameter, standard deviation over the base's, Adam's learning rate over the base's).
TABLE_3 = [
    ("embedding.weight", 1, 1),
    ("blocks.0.mixer.q_proj.weight", 1 / 2, 1 / 4),
    ("blocks.0.mixer.k_proj.weight", 1 / 2, 1 / 4),
    ("blocks.1.mixer.v_proj.weight", 1 / 2, 1 / 4),
    ("blocks.0.mixer.o_proj.weight", 1 / 2, 1 / 4),
    ("blocks.1.mlp.up_proj.weight", 1 / 2, 1 / 4),
    ("blocks.1.mlp.down_proj.weight", 1 / 2, 1 / 4),
    ("head.weight", 1 / 4, 1 / 4),
]


@pytest.mark.parametrize("init", ["normal", "fan_in"])
@pytest.mark.parametrize(("name", "std", "lr"), TABLE_3)
def test_matrices_are_drawn_and_learn_as_in_tensor_programs_v(name, std, lr, init):
    config = config_of(PRENORM, init=init)
    narrow = config_of(PRENORM, Blueprint("base", 32, 2, 2, 64), init=init)
    ratio = drawn(config)[name].std() / drawn(narrow)[name].std()
    assert ratio.item() == pytest.approx(std, rel=0.06)
    assert scales(config)(name).lr == lr


@pytest.mark.parametrize(
    "name",
    ["norm.weight", "blocks.0.mixer_norm.weight", "blocks.0.mixer.k_norm.weight",
     "blocks.1.mlp_norm.weight"],
)  # fmt: skip
def test_gains_begin_at_one_and_keep_their_rate(name):
    config = config_of(PRENORM)
    assert torch.equal(drawn(config)[name], torch.ones_like(drawn(config)[name]))
    assert scales(config)(name).lr == 1


# The parameter groups of Dey et al. 2025 (Table 1 as in their nanoGPT-mup, branch completep, with
# alpha = 1), width and depth four times the base's, whose factor 1/4 stands in the forward pass:
# (parameter, rate, decay, eps; those of the base are 1).
COMPLETEP = [
    ("embedding.weight", 1, 1, 1 / 4),
    ("blocks.3.mixer_norm.weight", 1, 1, 1 / 16),
    ("blocks.3.mlp.up_proj.weight", 1 / 4, 4, 1 / 16),
    ("blocks.3.mixer.q_proj.weight", 1 / 4, 4, 1 / 16),
    ("norm.weight", 1, 1, 1 / 4),
]


def test_rates_decay_and_eps_follow_completep():
    config = config_of(PRENORM, dataclasses.replace(WIDE, n_layers=8))
    groups = parameter_groups(
        ((name, name) for name in drawn(config)), scales(config),
        undecayed=lambda _: False, weight_decay=1.0, eps=1.0,
    )  # fmt: skip
    of = {name: group for group in groups for name in group["params"]}
    for name, rate, decay, eps in COMPLETEP:
        group = of[name]
        assert (group["lr_scale"], group["weight_decay"], group["eps"]) == (rate, decay, eps), name
    # The last map holds the factor of the residual branch: as much in value and rate as it counts.
    last = of["blocks.3.mlp.down_proj.weight"]
    assert last["lr_scale"] == 1 / 4 / 4
    assert last["lr_scale"] * last["weight_decay"] == 1
    assert last["eps"] == 1 / 16 * 4


class Times(nn.Module):
    """A parameter that counts `factor` times."""

    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return x * self.factor


def trained(model, groups, steps=6):
    """Losses and last logits of a few steps in float64."""
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randint(0, 512, (steps, 2, 25), generator=generator)
    optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.99))
    losses = []
    for batch in tokens:
        for group in optimizer.param_groups:
            group["lr"] = 0.02 * group["lr_scale"]
        logits = model(batch[:, :-1])
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("norm", ["inputs", "outputs"])
def test_values_and_rates_stand_in_for_factors_of_the_forward_pass(norm):
    """Yang et al. 2022, Table 8 and 1/d attention, and the residual factor of Dey et al. 2025, with
    their rates: the same losses, step by step (Lemma J.1)."""
    mix = Mix("x", ("attn",), norm=norm)
    size = Blueprint("x", 128, 4, 2, 256)  # heads of 64, four times the base's, and twice the depth
    config = config_of(mix, size)
    m, depth, to_logits = 4.0, 2.0, 0.5
    folded = LanguageModel(config)
    folded.initialize(0)
    folded.double()
    explicit = LanguageModel(dataclasses.replace(config, mup=None))
    explicit.load_state_dict(folded.state_dict())
    explicit.double()
    factors = {"head": 1 / m}
    for i in range(4):
        factors[f"blocks.{i}.mixer.q_norm"] = to_logits
        last = (
            ("mixer_norm", "mlp_norm") if norm == "outputs" else ("mixer.o_proj", "mlp.down_proj")
        )
        factors |= {f"blocks.{i}.{name}": 1 / depth for name in last}
    for name, factor in factors.items():
        module = explicit.get_submodule(name)
        with torch.no_grad():
            module.weight.div_(factor)
        register_parametrization(module, "weight", Times(factor))
    groups = []
    for name, parameter in explicit.named_parameters():
        matrix = name.startswith("blocks.") and parameter.dim() == 2
        rate = 1 / m if matrix else 1.0
        groups.append({
            "params": [parameter], "lr_scale": rate, "weight_decay": 0.1 / rate,
            "eps": 1e-8 / m / (depth if name.startswith("blocks.") else 1.0),
        })  # fmt: skip
    expected = trained(explicit, groups)
    actual = trained(folded, parameter_groups(
        folded.named_parameters(), scales(config), undecayed=lambda _: False, weight_decay=0.1,
        eps=1e-8,
    ))  # fmt: skip
    assert actual == pytest.approx(expected, rel=1e-9)
    assert expected[-1] != pytest.approx(expected[0], rel=1e-3)


def test_without_a_norm_the_queries_themselves_take_attentions_factor():
    mix = Mix("x", ("attn",), options={"attn_qk_norm": "none"})
    wide_heads = config_of(mix, Blueprint("x", 128, 2, 2, 256))
    name = "blocks.0.mixer.q_proj.weight"
    assert scales(wide_heads)(name).lr == pytest.approx(1 / 4 / 2)  # √(16 / 64)
    ratio = drawn(wide_heads)[name] / drawn(config_of(mix))[name]
    assert torch.allclose(ratio, torch.full_like(ratio, 0.5))


def test_at_the_base_nothing_changes():
    for mix in MIXERS:
        size = Blueprint("base", 32, 2, 2, 64, init="fan_in")
        config = config_of(Mix("x", (mix,)), size, init="fan_in")
        standard = drawn(dataclasses.replace(config, mup=None))
        for name, parameter in drawn(config).items():
            assert torch.equal(parameter, standard[name]), name
            scale = scales(config)(name)
            assert (scale.value, scale.std, scale.lr, scale.eps) == (1, 1, 1, 1), name


def test_recurrent_scalars_and_convolutions_are_drawn_as_published_at_any_width():
    """A_log, dt_bias and taps: Liu and Gu 2026, section 4.4, keep them whatever the width."""
    mix = Mix("x", ("gdn", "kda", "s6", "mamba2"))
    config = config_of(mix, Blueprint("x", 128, 4, 8, 256))
    standard = drawn(dataclasses.replace(config, mup=None))
    for name, parameter in drawn(config).items():
        if name.endswith(("A_log", "dt_bias", "conv", "dt_proj.weight")):
            assert torch.equal(parameter, standard[name]), name


@pytest.mark.parametrize("gate", ["a_proj", "b_proj"])
def test_gates_of_the_delta_rule_are_hidden_matrices(gate):
    """Liu and Gu 2026, section 4.4: variance 1/d; AdamW's rate d_base/d, by their code's groups."""
    config = config_of(Mix("x", ("gdn",)))
    name = f"blocks.0.mixer.{gate}.weight"
    assert drawn(config)[name].std().item() == pytest.approx(0.02 / 2, rel=0.1)
    assert scales(config)(name).lr == 1 / 4


def test_a_skip_as_large_as_the_state_keeps_its_share_of_what_is_read():
    """B and C that repeat themselves read twice as much from twice the state; with D twice as
    large, what leaves the norm is as before."""
    size = Blueprint("x", 64, 1, 4, 64)
    record = MIXERS["mamba2"]
    rules = from_dict(record.rules, {"state": 16}, "")
    narrow = build_config(Mix("x", ("mamba2",)), size, Geometry(options={"mamba2_state": 16}), 16)
    wide = build_config(Mix("x", ("mamba2",)), size, Geometry(options={"mamba2_state": 32}), 16)
    assert rules.state == narrow.settings(0).state == wide.settings(0).state // 2
    one, two = (record.layer_class()(config, 0).double() for config in (narrow, wide))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in one.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
        weights = one.state_dict()
        inner, K = one.inner, one.state
        x, B, C = slice(0, inner), slice(inner, inner + K), slice(inner + K, inner + 2 * K)

        def doubled(channels):
            return torch.cat([channels[part] for part in (x, B, B, C, C)])

        for name in ("in_proj.weight", "in_proj.bias"):
            z, convolved, dt = weights[name].split([inner, inner + 2 * K, one.n_heads])
            weights[name] = torch.cat([z, doubled(convolved), dt])
        weights["conv"], weights["conv_bias"] = (doubled(weights[n]) for n in ("conv", "conv_bias"))
        growth = Growth(width=2.0, head=1.0, base_width=32)  # a state of 16 at the base, 32 here
        factor = record.roles(wide, 0, growth)["D"].factor
        assert factor == 2
        weights["D"] = weights["D"] * factor
        two.load_state_dict(weights)
        read = torch.randn(2, 40, 64, generator=generator, dtype=torch.float64)
        assert torch.allclose(one(read), two(read), rtol=1e-4, atol=1e-4)


def test_the_width_of_a_limited_state_grows_no_more():
    record = MIXERS["mamba2"]
    for width, state, growth in ((64, 32, 2.0), (256, 128, 8.0), (1024, 128, 8.0)):
        config = config_of(Mix("x", ("mamba2",)), Blueprint("x", width, 2, width // 16, 64))
        assert config.settings(0).state == state
        assert record.roles(config, 0, Growth(width / 32, 1.0, 32))["D"].factor == growth


@pytest.mark.parametrize("norm", ["inputs", "outputs"])
def test_a_branch_of_a_deeper_model_counts_the_less(norm):
    """Dey et al. 2025, eq. 3 with alpha = 1: at the start, every branch adds 1/4 as much in a model
    of four times the depth."""
    mix = Mix("x", tuple(MIXERS), norm=norm)
    n = len(MIXERS)
    deep = config_of(mix, Blueprint("x", 32, n, 2, 64), MupBase(32, 16, 1), init="fan_in")
    plain = dataclasses.replace(deep, mup=None)
    models = [LanguageModel(config) for config in (deep, plain)]
    x = torch.randn(1, 20, 32, generator=torch.Generator().manual_seed(0))
    for model in models:
        model.initialize(0)
    for block, other in zip(*(model.blocks for model in models), strict=True):
        # The mixer alone, and the MLP behind what the mixer left.
        added = [_branches(b, x) for b in (block, other)]
        for scaled, full in zip(*added, strict=True):
            assert torch.allclose(scaled * n, full, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def _branches(block, x):
    if block.norm_output:
        return block.mixer_norm(block.mixer(x)), block.mlp_norm(block.mlp(x))
    return block.mixer(block.mixer_norm(x)), block.mlp(block.mlp_norm(x))


def test_mlps_that_are_layers_of_their_own_do_not_double_the_depth():
    mix = Mix("x", "G-*-")
    config = config_of(mix, Blueprint("x", 32, 2, 2, 64))
    assert config.n_layers == 4
    assert scales(config)("blocks.1.mlp.down_proj.weight").value == 1


def test_the_bases_are_the_smallest_sizes_of_the_ladder():
    import yaml

    from models.named import CONF

    for name, init in (("50k", "fan_in"), ("60m", "normal")):
        size = yaml.safe_load((CONF / "size" / f"{name}.yaml").read_text())
        assert size["init"] == init
        head_dim = size["d_model"] // size["n_heads"]
        assert BASES[init] == MupBase(size["d_model"], head_dim, size["n_layers"])


def test_decoding_is_one_pass_and_a_model_comes_back_from_its_record():
    config = config_of(Mix("x", ("gdn", "attn")), init="fan_in")
    assert model_from_plain(to_dict(config), "record") == config
    model = LanguageModel(config)
    model.initialize(0)
    tokens = torch.randint(0, 512, (2, 12), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        cache = model.new_cache(2, 12)
        for token in tokens.split(1, 1):
            logits = model.extend(token, cache)
        assert torch.allclose(logits, model(tokens)[:, -1], atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"d_model": 0}, "mup.d_model=0"),
        ({"n_layers": 2.5}, "n_layers"),
        ({"heads": 2}, "heads is not a setting"),
    ],
)
def test_a_base_read_from_a_file_that_no_model_has_is_a_sentence(changes, words):
    plain = to_dict(config_of(PRENORM))
    plain["mup"] |= changes
    with pytest.raises(SettingError, match=words):
        model_from_plain(plain, "record")


def test_a_mixer_without_roles_is_refused(monkeypatch):
    monkeypatch.setitem(MIXERS, "gdn", dataclasses.replace(MIXERS["gdn"], roles=None))
    with pytest.raises(SettingError, match="mixer=gdn says no roles of its parameters"):
        scales(config_of(Mix("x", ("gdn",))))
    monkeypatch.setitem(MIXERS, "gdn", dataclasses.replace(MIXERS["gdn"], roles=lambda *_: {}))
    with pytest.raises(SettingError, match="mixer=gdn says no role of its parameter conv"):
        LanguageModel(config_of(Mix("x", ("gdn",)))).initialize(0)


def test_initial_values_are_finite_at_any_growth():
    config = config_of(Mix("x", tuple(MIXERS)), Blueprint("x", 16, 6, 2, 16), MupBase(256, 64, 2))
    assert all(math.isfinite(p.abs().max().item()) for p in drawn(config).values())
