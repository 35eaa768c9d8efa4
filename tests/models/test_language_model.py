"""What control rests on in a whole model: causality, shared starting values, plain losses."""

import math

import pytest
import torch
import torch.nn.functional as F

from models.config import Blueprint
from models.cost import activation_bytes, count, decode_bytes
from models.language_model import LanguageModel
from models.mix import Geometry, Mix, build_config
from models.mixers.mamba2.layer import Mamba2

SIZE = Blueprint("x", 64, 4, 2, 96)
TRANSFORMER = Mix("transformer", ("attn",))
HYBRID = Mix("gdn3_attn1", ("gdn", "gdn", "gdn", "attn"), last="attn")
MAMBA2_HYBRID = Mix("mamba2x3_attn1", ("mamba2", "mamba2", "mamba2", "attn"), last="attn")
ALL = (TRANSFORMER, HYBRID, MAMBA2_HYBRID, Mix("gdn", ("gdn",)), Mix("mamba2", ("mamba2",)))
SLIDING = {"swa": {"mixer": "attn", "letter": "W", "window": 6}}
VARIED = (
    Mix("norms_on_inputs", "G*", norm="inputs"),
    Mix("norms_on_outputs", "GM**", norm="outputs"),
    Mix("squared_relu", "M*", mlp="relu2"),
    Mix("no_mlp", "GM*", last="attn", mlp="none"),
    Mix("norms_per_head", "*", options={"attn_qk_norm": "head"}),
    Mix("no_qk_norm", "GG*", last="attn", norm_eps=1e-2, options={"attn_qk_norm": "none"}),
    Mix("rotary_quarter", "*M", options={"attn_rotary": 0.25}),
    Mix("no_rotary", "*G", mlp="relu2", options={"attn_rotary": 0.0}),
    Mix("sliding", "GW", kinds=SLIDING),
    Mix("sublayers", "M-G-W-*-", mlp="relu2", kinds=SLIDING),
    Mix("gated", "G*", options={"attn_output_gate": True, "gdn_gate_activation": "sigmoid"}),
    Mix("kimi", "K+", options={"kda_width": "square", "kda_gate_activation": "silu"}),
    Mix("groups", "M*", options={"mamba2_groups": 2, "mamba2_bias": False}),
    Mix("mamba1", "S*"),
    Mix("few_mlps", "MG*-", norm="outputs", options={"attn_qk_norm": "head"}),
)
"""Every setting of the block and of mixers away from its default, in some mix."""


def build(mix, seed=0, vocab=256, size=SIZE, geometry=Geometry()):  # noqa: B008
    model = LanguageModel(build_config(mix, size, geometry, vocab))
    model.initialize(seed)
    return model


def spread(model, seed=1):
    """Weights large enough that every part shows in the logits."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2 and "conv" not in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.15)
            elif "norm" in name:
                parameter.copy_(1 + 0.2 * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.mark.slow
def test_mamba2_layer_equals_transformers():
    modeling = pytest.importorskip("transformers.models.mamba2.modeling_mamba2")
    config = build_config(MAMBA2_HYBRID, SIZE, Geometry(), 256)
    settings = config.settings(0)
    theirs = modeling.Mamba2Mixer(
        modeling.Mamba2Config(
            hidden_size=config.d_model, num_heads=config.n_heads, head_dim=settings.head_dim,
            state_size=settings.state, n_groups=1, expand=2, conv_kernel=4, chunk_size=16,
            use_bias=True, use_conv_bias=True, layer_norm_epsilon=settings.norm_eps,
            hidden_act="silu",
        ),
        layer_idx=0,
    )  # fmt: skip
    model = spread(build(MAMBA2_HYBRID))
    ours = model.blocks[0].mixer
    assert isinstance(ours, Mamba2)
    names = {"conv": "conv1d.weight", "conv_bias": "conv1d.bias", "o_norm": "norm.weight"}
    wanted = dict(theirs.named_parameters())
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            target = wanted.pop(names.get(name, name))
            target.copy_(parameter.view_as(target))
    assert not wanted
    x = torch.randn(2, 45, config.d_model, generator=torch.Generator().manual_seed(3))
    expected = theirs(x)
    torch.testing.assert_close(ours(x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("mix", [*ALL, *VARIED], ids=lambda m: m.name)
def test_no_mix_sees_the_future(mix):
    model = spread(build(mix))
    tokens = torch.randint(0, 256, (1, 50), generator=torch.Generator().manual_seed(0))
    changed = tokens.clone()
    changed[0, 30:] = (changed[0, 30:] + 1) % 256
    with torch.no_grad():
        before, after = model(tokens), model(changed)
    torch.testing.assert_close(before[:, :30], after[:, :30], rtol=1e-5, atol=1e-5)
    assert (before[:, 30:] - after[:, 30:]).abs().max() > 1e-2


def test_a_window_hides_what_lies_further_back():
    model = spread(build(TRANSFORMER, geometry=Geometry(windows=(8,))))
    # Layers 0 to 2 see 7 back each; the last is full, so look at what it reads.
    model.blocks = model.blocks[:1]
    tokens = torch.randint(0, 256, (1, 40), generator=torch.Generator().manual_seed(0))
    changed = tokens.clone()
    changed[0, 10] = (changed[0, 10] + 1) % 256
    with torch.no_grad():
        moved = (model(tokens) - model(changed)).abs().amax(-1)[0] > 1e-6
    assert moved.nonzero().flatten().tolist() == list(range(10, 18))


def test_a_kind_with_a_window_hides_what_lies_further_back_in_the_last_layer_too():
    mix = Mix("sliding", "W", kinds=SLIDING)
    model = spread(build(mix, size=Blueprint("x", 64, 1, 2, 96)))
    tokens = torch.randint(0, 256, (1, 40), generator=torch.Generator().manual_seed(0))
    changed = tokens.clone()
    changed[0, 10] = (changed[0, 10] + 1) % 256
    with torch.no_grad():
        moved = (model(tokens) - model(changed)).abs().amax(-1)[0] > 1e-6
    assert moved.nonzero().flatten().tolist() == list(range(10, 16))


@pytest.mark.parametrize("norm", ["inputs", "outputs"])
@pytest.mark.parametrize("mlp", ["swiglu", "relu2"])
def test_a_layer_is_its_mixer_and_its_mlp_as_two_sublayers(norm, mlp):
    """The same function, counts and windows, where an MLP is a layer of its own."""
    geometry = Geometry(windows=(5, 0, 9))
    whole = spread(build(Mix("a", "GM**", norm=norm, mlp=mlp), geometry=geometry))
    halves = build(Mix("b", "G-M-*-*-", norm=norm, mlp=mlp), geometry=geometry)
    weights = {}
    for name, value in whole.state_dict().items():
        path = name.split(".")
        if path[0] == "blocks":
            path[1] = str(2 * int(path[1]) + path[2].startswith("mlp"))
        weights[".".join(path)] = value
    halves.load_state_dict(weights)
    tokens = torch.randint(0, 256, (2, 40), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(whole(tokens), halves(tokens))
    assert count(whole.config, 40) == count(halves.config, 40)
    assert decode_bytes(whole.config, 40) == decode_bytes(halves.config, 40)
    assert activation_bytes(whole.config, 40) == activation_bytes(halves.config, 40)


def test_one_seed_gives_two_mixes_the_same_shared_parameters():
    a, b = (dict(build(mix).named_parameters()) for mix in (TRANSFORMER, HYBRID))
    shared = [n for n in a if n in b and a[n].shape == b[n].shape]
    assert {"embedding.weight", "head.weight", "blocks.0.mlp.up_proj.weight"} <= set(shared)
    assert all(torch.equal(a[n], b[n]) for n in shared)
    assert not torch.equal(a["head.weight"], build(TRANSFORMER, seed=1).head.weight)


def test_initial_statistics_by_role():
    """Normal matrices, and the published draws of A, dt and the convolution, by their moments."""
    size = Blueprint("x", 1024, 4, 64, 2048)
    layers = build(Mix("four", ("gdn", "mamba2", "kda", "attn")), size=size)
    parameters = dict(layers.named_parameters())
    for name, parameter in parameters.items():
        role = name.rsplit(".", 1)[-1]
        if role == "weight" and parameter.dim() == 2:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.05), name
            assert abs(parameter.mean().item()) < 1e-3, name
        elif role in ("weight", "o_norm", "D"):
            assert (parameter == 1).all(), name
        elif role in ("bias", "conv_bias"):
            assert (parameter == 0).all(), name
        elif role == "conv":  # U(-1/2, 1/2) over four taps
            assert parameter.abs().max() <= 0.5, name
            assert parameter.std().item() == pytest.approx(12**-0.5, rel=0.05), name
        else:
            assert role in ("A_log", "dt_bias"), name
    for layer, low in ((0, 0.0), (1, 1.0), (2, 1.0)):
        A = parameters[f"blocks.{layer}.mixer.A_log"].exp()
        assert low <= A.min() <= A.max() <= 16
        # 64 heads: the mean of U(low, 16) within three standard errors.
        assert A.mean().item() == pytest.approx((low + 16) / 2, abs=3 * (16 - low) / 768**0.5)
        log_dt = F.softplus(parameters[f"blocks.{layer}.mixer.dt_bias"]).log10()
        assert ((log_dt > -3.01) & (log_dt < -0.99)).all()
        assert log_dt.mean().item() == pytest.approx(-2, abs=3 * 2 / 768**0.5)


def test_initial_statistics_of_kimi_delta_attention_and_of_qwen3_next():
    size = Blueprint("x", 1024, 2, 64, 256)
    mix = Mix("two", ("kda", "gdn"), options={"gdn_dt_init": "ones"})
    parameters = dict(build(mix, size=size).named_parameters())
    A = parameters["blocks.0.mixer.A_log"].exp()
    assert 1 <= A.min() <= A.max() <= 16
    assert A.mean().item() == pytest.approx(8.5, abs=3 * 15 / 768**0.5)
    log_dt = F.softplus(parameters["blocks.0.mixer.dt_bias"]).log10()
    assert ((log_dt > -3.01) & (log_dt < -0.99)).all()
    assert log_dt.mean().item() == pytest.approx(-2, abs=3 * 2 / (12 * len(log_dt)) ** 0.5)
    for name in ("f_down", "f_up", "g_down", "g_up", "b_proj"):
        weight = parameters[f"blocks.0.mixer.{name}.weight"]
        assert weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert (parameters["blocks.1.mixer.dt_bias"] == 1).all()


@pytest.mark.parametrize("mixer", ["gdn", "kda"])
def test_a_gate_by_silu_is_that_by_sigmoid_times_what_the_gate_is_made_of(mixer):
    x = torch.randn(2, 40, SIZE.d_model, generator=torch.Generator().manual_seed(0))
    gated = {}
    for activation in ("silu", "sigmoid"):
        options = {f"{mixer}_gate_activation": activation}
        layer = build(Mix("x", (mixer,), options=options)).blocks[0].mixer
        layer.o_proj.register_forward_pre_hook(
            lambda _, inputs, activation=activation: gated.update({activation: inputs[0]})
        )
        layer(x)
    gate = layer.g_proj(x) if mixer == "gdn" else layer.g_up(layer.g_down(x))
    torch.testing.assert_close(gated["silu"], gated["sigmoid"] * gate, rtol=1e-5, atol=1e-9)


def test_fresh_models_predict_about_uniformly():
    tokens = torch.randint(0, 256, (2, 65), generator=torch.Generator().manual_seed(0))
    for mix in (*ALL, *VARIED):
        nll, _ = build(mix).losses(tokens[:, :-1], tokens[:, 1:])
        assert nll.mean().item() == pytest.approx(math.log(256), abs=0.1)
