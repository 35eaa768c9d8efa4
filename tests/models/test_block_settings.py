"""Settings of the block against transformers' classes: logits, and every parameter's gradient."""

import re
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from models.config import Blueprint
from models.language_model import LanguageModel
from models.mix import Geometry, Mix, build_config

transformers = pytest.importorskip("transformers")

SIZE = Blueprint("x", 64, 4, 4, 96, n_kv_heads=2, init="fan_in")
EPS, THETA, WINDOW = 1e-3, 10_000.0, 7
COMMON = {
    "vocab_size": 256, "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 16, "pad_token_id": None, "bos_token_id": None, "eos_token_id": None,
    "tie_word_embeddings": False,
}  # fmt: skip
ATTENTION = COMMON | {
    "intermediate_size": 96, "num_hidden_layers": 4, "rms_norm_eps": EPS, "use_cache": False,
    "rope_parameters": {"rope_type": "default", "rope_theta": THETA},
}  # fmt: skip
QUARTER = {"rope_type": "default", "rope_theta": THETA, "partial_rotary_factor": 0.25}
# Our names -> those of the Llama family.
LLAMA = (
    ("embedding", "model.embed_tokens"), ("head", "lm_head"), ("norm", "model.norm"),
    (r"blocks\.(\d+)\.mixer_norm", r"model.layers.\1.input_layernorm"),
    (r"blocks\.(\d+)\.mlp_norm", r"model.layers.\1.post_attention_layernorm"),
    (r"blocks\.(\d+)\.mixer", r"model.layers.\1.self_attn"),
    (r"blocks\.(\d+)\.mlp", r"model.layers.\1.mlp"),
)  # fmt: skip
NEMOTRON = (
    ("embedding", "model.embeddings"), ("head", "lm_head"), ("norm", "model.norm_f"),
    (r"blocks\.(\d+)\.m(?:ixer|lp)_norm", r"model.layers.\1.norm"),
    (r"blocks\.(\d+)\.mixer\.conv", r"model.layers.\1.mixer.conv1d.weight"),
    (r"blocks\.(\d+)\.mixer\.conv_bias", r"model.layers.\1.mixer.conv1d.bias"),
    (r"blocks\.(\d+)\.mixer\.o_norm", r"model.layers.\1.mixer.norm.weight"),
    (r"blocks\.(\d+)\.m(?:ixer|lp)", r"model.layers.\1.mixer"),
)  # fmt: skip


def renamed(name, names):
    for pattern, replacement in names:
        if match := re.match(rf"{pattern}(?=\.|$)", name):
            return match.expand(replacement) + name[match.end() :]
    raise KeyError(name)


def as_llama(tensors):
    return {renamed(name, LLAMA): value for name, value in tensors.items()}


def as_phi3(tensors):
    """Queries, keys and values are one matrix there, and so are the MLP's gate and its input."""
    named = as_llama(tensors)
    for joined, parts in (
        ("self_attn.qkv_proj", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
        ("mlp.gate_up_proj", ("mlp.gate_proj", "mlp.up_proj")),
    ):
        for layer in range(SIZE.n_layers):
            matrices = [named.pop(f"model.layers.{layer}.{part}.weight") for part in parts]
            named[f"model.layers.{layer}.{joined}.weight"] = torch.cat(matrices)
    return named


def as_nemotron(tensors):
    """The class has no biases of the projections."""
    named = {renamed(name, NEMOTRON): value for name, value in tensors.items()}
    return {
        name: value.unsqueeze(1) if "conv1d.weight" in name else value
        for name, value in named.items()
        if not re.search(r"(in|out)_proj\.bias$", name)
    }


BARE = {"norm": "inputs", "norm_eps": EPS}
CASES = {
    "inputs": (
        Mix("x", "*", **BARE, options={"attn_qk_norm": "none"}),
        lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**ATTENTION)),
        as_llama,
    ),
    "norms_per_head": (
        Mix("x", "*", **BARE, options={"attn_qk_norm": "head"}),
        lambda: transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**ATTENTION)),
        as_llama,
    ),
    "rotary_quarter": (
        Mix("x", "*", **BARE, options={"attn_qk_norm": "none", "attn_rotary": 0.25}),
        lambda: transformers.Phi3ForCausalLM(
            transformers.Phi3Config(**ATTENTION | {"rope_parameters": QUARTER})
        ),
        as_phi3,
    ),
    "window": (
        Mix(
            "x", "W", **BARE, kinds={"swa": {"mixer": "attn", "letter": "W", "window": WINDOW}},
            options={"swa_qk_norm": "none"},
        ),
        lambda: transformers.MistralForCausalLM(
            transformers.MistralConfig(**ATTENTION, sliding_window=WINDOW)
        ),
        as_llama,
    ),
    "sublayers": (
        Mix(
            "x", "M-M-M-*-", norm="inputs", mlp="relu2", norm_eps=1e-5,
            options={"attn_qk_norm": "none", "attn_rotary": 0.0},
        ),
        lambda: transformers.NemotronHForCausalLM(
            transformers.NemotronHConfig(
                **COMMON, intermediate_size=96, use_cache=False,
                layers_block_type=[*["linear_attention", "mlp"] * 3, "full_attention", "mlp"],
                ssm_state_size=32, mamba_num_heads=4, mamba_head_dim=32, n_groups=1, chunk_size=16,
                time_step_min=1e-30,  # the class clamps steps from below at this in one pass
            )
        ),
        as_nemotron,
    ),
}  # fmt: skip


def varied(config):
    """A model of which every parameter and eps shows in the logits.

    No norm is one, what the first norms read is small, and the biases that Nemotron-H does not
    have are zero.
    """
    model = LanguageModel(config)
    model.initialize(0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1 and not name.endswith("_proj.bias"):
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
        model.embedding.weight.mul_(0.05)
    return model


@pytest.mark.parametrize("case", CASES)
def test_a_block_equals_transformers_in_logits_and_gradients(case):
    mix, published, translate = CASES[case]
    ours = varied(build_config(mix, SIZE, Geometry(rope_theta=THETA), 256))
    theirs = published()
    weights = translate(dict(ours.named_parameters()))
    assert set(weights) == {name for name, _ in theirs.named_parameters()}
    theirs.load_state_dict({name: value.detach() for name, value in weights.items()})
    ids = torch.randint(0, 256, (2, 50), generator=torch.Generator().manual_seed(2))
    actual, expected = ours(ids), theirs(ids).logits
    assert actual.std() > 0.3
    assert (actual - expected).abs().max() < 1e-4
    targets = ids[:, 1:].flatten()
    F.cross_entropy(expected[:, :-1].flatten(0, 1), targets).backward()
    ours.losses(ids[:, :-1], ids[:, 1:])[0].mean().backward()
    gradients = translate({name: p.grad for name, p in ours.named_parameters()})
    for name, parameter in theirs.named_parameters():
        scale = parameter.grad.abs().max()
        assert scale > 0, name
        assert (gradients[name] - parameter.grad).abs().max() / scale < 1e-3, name


@pytest.mark.parametrize(
    ("case", "changes"),
    [
        ("inputs", {"norm": "outputs"}),
        ("inputs", {"norm_eps": 1e-6}),
        ("norms_per_head", {"norm_eps": 1e-6}),
        ("rotary_quarter", {"options": {"attn_qk_norm": "none", "attn_rotary": 0.5}}),
        ("window", {"options": {"swa_qk_norm": "none", "swa_window": WINDOW + 1}}),
        ("sublayers", {"options": {"attn_qk_norm": "none"}}),
        ("sublayers", {"norm": "outputs"}),
    ],
)
def test_each_setting_shows_far_above_that_difference(case, changes):
    mix = CASES[case][0]
    ours = varied(build_config(mix, SIZE, Geometry(rope_theta=THETA), 256))
    other = LanguageModel(
        build_config(replace(mix, **changes), SIZE, Geometry(rope_theta=THETA), 256)
    )
    other.load_state_dict(ours.state_dict())
    ids = torch.randint(0, 256, (2, 50), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        assert (ours(ids) - other(ids)).abs().max() > 1e-2
