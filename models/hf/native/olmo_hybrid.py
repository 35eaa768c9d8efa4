"""Olmo Hybrid: Gated DeltaNet and attention, in any order, with no window."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from models.config import INPUTS, OUTPUTS, LayerKind, ModelConfig
from models.errors import one_of
from models.hf.native.olmo3 import ATTENTION_NAMES, is_olmo_attention
from models.hf.native.record import (
    NativeClass,
    block_is,
    count,
    read_model,
    require,
    rope_theta,
    shared_settings,
    widths,
    windows,
)
from models.hf.native.weights import MLP_NAMES, join_convolutions, split_convolutions
from models.mixers import attn, gdn

GATED_NORM_EPS = 1e-5  # fixed in its code
TYPES = {"attn": "full_attention", "gdn": "linear_attention"}
GDN_NAMES = {
    **{
        f"mixer.{name}.weight": f"linear_attn.{name}.weight"
        for name in ("q_proj", "k_proj", "v_proj", "a_proj", "b_proj", "g_proj", "o_proj")
    },
    "mixer.conv": "linear_attn.conv1d.weight",
    "mixer.A_log": "linear_attn.A_log",
    "mixer.dt_bias": "linear_attn.dt_bias",
    "mixer.o_norm": "linear_attn.o_norm.weight",
    "mixer_norm.weight": "input_layernorm.weight",
    "mlp_norm.weight": "post_attention_layernorm.weight",
    **MLP_NAMES,
}


def expresses(config: ModelConfig) -> bool:
    if not block_is(config, {"attn": OUTPUTS, "gdn": INPUTS}) or any(windows(config)):
        return False
    delta = shared_settings(config, "gdn")
    return (
        is_olmo_attention(shared_settings(config, "attn"))
        and delta is not None
        and delta.output_gate
        and delta.gate_activation == "silu"
        and delta.norm_eps == GATED_NORM_EPS
    )


def settings(config: ModelConfig, _context: int) -> dict[str, Any]:
    attention, delta = shared_settings(config, "attn"), shared_settings(config, "gdn")
    return {
        **widths(config, attention.n_kv_heads),
        "layer_types": [TYPES[config.kind(i).mixer] for i in range(config.n_layers)],
        # A null for all of it would be read as a base of 10,000: no positions is a null inside.
        "rope_parameters": {"rope_type": "default", "rope_theta": attention.rope_theta},
        "linear_num_key_heads": config.n_heads,
        "linear_num_value_heads": config.n_heads,
        "linear_key_head_dim": delta.key_dim,
        "linear_value_head_dim": delta.value_dim,
        "linear_conv_kernel_dim": delta.conv_kernel,
        "linear_allow_neg_eigval": delta.allow_neg_eigval,
    }


def model(library: Mapping[str, Any]) -> ModelConfig:
    d, H = count(library, "hidden_size"), count(library, "num_attention_heads")
    require(
        library,
        {
            "attention_bias": False,
            "head_dim": d // H,
            "linear_num_key_heads": H,
            "linear_num_value_heads": H,
        },
    )
    mixers = {layer_type: mixer for mixer, layer_type in TYPES.items()}
    for layer in library["layer_types"]:
        if layer not in mixers:
            raise one_of("config.json's layer_types", layer, mixers)
    key_dim = library.get("linear_key_head_dim") or int(0.75 * d / H)
    attention = attn.Settings(library.get("num_key_value_heads") or H, rope_theta(library))
    delta = gdn.Settings(
        key_dim=key_dim,
        value_dim=library.get("linear_value_head_dim") or 2 * key_dim,
        allow_neg_eigval=library.get("linear_allow_neg_eigval", True),
        conv_kernel=library.get("linear_conv_kernel_dim", 4),
        norm_eps=GATED_NORM_EPS,
    )
    kinds = {
        "attn": LayerKind("attn", OUTPUTS, attention), "gdn": LayerKind("gdn", INPUTS, delta)
    }  # fmt: skip
    return read_model(
        library, [mixers[layer] for layer in library["layer_types"]], kinds, n_heads=H,
        mlp_hidden=library["intermediate_size"], norm_eps=library["rms_norm_eps"],
    )  # fmt: skip


def split(config: ModelConfig, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The convolution as three, as published checkpoints have it."""
    delta = shared_settings(config, "gdn")
    key, value = config.n_heads * delta.key_dim, config.n_heads * delta.value_dim
    return split_convolutions(weights, key, value)


def join(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names as the class has them: one convolution, and norms by their positions."""
    named = {
        name.replace("attention_layer_norm", "input_layernorm").replace(
            "feedforward_layer_norm", "post_attention_layernorm"
        ): weight
        for name, weight in weights.items()
    }
    return join_convolutions(named)


CLASS = NativeClass(
    model_type="olmo_hybrid",
    name="OlmoHybridForCausalLM",
    expresses=expresses,
    settings=settings,
    model=model,
    layer_names={"attn": ATTENTION_NAMES, "gdn": GDN_NAMES},
    split=split,
    join=join,
)
