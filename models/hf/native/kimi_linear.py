"""Kimi Linear without experts: Kimi Delta Attention with square heads and latent attention, in any
order, norms on inputs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from models.config import INPUTS, LayerKind, ModelConfig
from models.errors import SettingError, one_of
from models.hf.native.record import (
    NativeClass,
    block_is,
    count,
    read_model,
    require,
    shared_settings,
    widths,
)
from models.hf.native.weights import MLP_NAMES, join_convolutions, split_convolutions
from models.mixers import kda, mla

LATENT_NORM_EPS = 1e-6  # fixed in its code, whatever the block's is
DECAY = re.compile(r"self_attn\.(f_a_proj|f_b_proj|dt_bias|A_log)\b")
TYPES = {"mla": "full_attention", "kda": "linear_attention"}
NORM_NAMES = {
    "mixer_norm.weight": "input_layernorm.weight",
    "mlp_norm.weight": "post_attention_layernorm.weight",
    **MLP_NAMES,
}
MLA_NAMES = {
    "mixer.q_proj.weight": "self_attn.q_proj.weight",
    "mixer.kv_a_proj.weight": "self_attn.kv_a_proj_with_mqa.weight",
    "mixer.kv_norm.weight": "self_attn.kv_a_layernorm.weight",
    "mixer.kv_b_proj.weight": "self_attn.kv_b_proj.weight",
    "mixer.o_proj.weight": "self_attn.o_proj.weight",
    **NORM_NAMES,
}
KDA_NAMES = {
    **{
        f"mixer.{ours}.weight": f"self_attn.{theirs}.weight"
        for ours, theirs in (
            ("q_proj", "q_proj"), ("k_proj", "k_proj"), ("v_proj", "v_proj"), ("b_proj", "b_proj"),
            ("f_down", "forget_gate.f_a_proj"), ("f_up", "forget_gate.f_b_proj"),
            ("g_down", "g_a_proj"), ("g_up", "g_b_proj"), ("o_proj", "o_proj"),
        )
    },
    "mixer.conv": "self_attn.conv1d.weight",
    "mixer.A_log": "self_attn.forget_gate.A_log",
    "mixer.dt_bias": "self_attn.forget_gate.dt_bias",
    "mixer.o_norm": "self_attn.o_norm.weight",
    **NORM_NAMES,
}  # fmt: skip


def expresses(config: ModelConfig) -> bool:
    if not block_is(config, {"kda": INPUTS, "mla": INPUTS}):
        return False
    delta, latent = shared_settings(config, "kda"), shared_settings(config, "mla")
    return (
        latent is not None
        and not any(latent.windows)
        and latent.latent_eps == LATENT_NORM_EPS
        and delta is not None
        and delta.key_dim == delta.value_dim == delta.rank
        and delta.gate_activation == "sigmoid"
        and not delta.allow_neg_eigval
        and delta.norm_eps == config.norm_eps
    )


def settings(config: ModelConfig, _context: int) -> dict[str, Any]:
    delta, latent = shared_settings(config, "kda"), shared_settings(config, "mla")
    return {
        **widths(config, config.n_heads),
        # Its own default leaves attention out of a model of four layers.
        "layer_types": [TYPES[config.kind(i).mixer] for i in range(config.n_layers)],
        "mlp_layer_types": ["dense"] * config.n_layers,
        "q_lora_rank": None,
        "kv_lora_rank": latent.latent_dim,
        "qk_nope_head_dim": latent.key_dim,
        "qk_rope_head_dim": latent.shared_dim,
        "v_head_dim": latent.value_dim,
        "linear_num_heads": config.n_heads,
        "linear_head_dim": delta.key_dim,
        "linear_conv_kernel_dim": delta.conv_kernel,
    }


def model(library: Mapping[str, Any]) -> ModelConfig:
    H = count(library, "num_attention_heads")
    n = len(library["layer_types"])
    require(
        library,
        {
            "mlp_layer_types": ["dense"] * n,
            "q_lora_rank": None,
            "num_key_value_heads": H,
            "linear_num_heads": H,
            "attention_bias": False,
        },
    )
    if library.get("q_lora_rank") is not None:
        raise SettingError(
            f"config.json's q_lora_rank={library['q_lora_rank']} cannot be ours; valid: null."
        )
    mixers = {layer_type: mixer for mixer, layer_type in TYPES.items()}
    for layer in library["layer_types"]:
        if layer not in mixers:
            raise one_of("config.json's layer_types", layer, mixers)
    width = count(library, "linear_head_dim")
    delta = kda.Settings(
        key_dim=width,
        value_dim=width,
        rank=width,
        conv_kernel=library["linear_conv_kernel_dim"],
        norm_eps=library["rms_norm_eps"],
    )
    latent = mla.Settings(
        key_dim=library["qk_nope_head_dim"],
        shared_dim=library["qk_rope_head_dim"],
        value_dim=library["v_head_dim"],
        latent_dim=library["kv_lora_rank"],
        latent_eps=LATENT_NORM_EPS,
    )
    kinds = {"kda": LayerKind("kda", INPUTS, delta), "mla": LayerKind("mla", INPUTS, latent)}
    return read_model(
        library, [mixers[layer] for layer in library["layer_types"]], kinds, n_heads=H,
        mlp_hidden=library["intermediate_size"], norm_eps=library["rms_norm_eps"],
    )  # fmt: skip


def split(config: ModelConfig, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The convolution as three, the decay's parameters beside the others, A_log with dimensions of
    1: as published checkpoints have them."""
    key = config.n_heads * shared_settings(config, "kda").key_dim
    return {
        name.replace("forget_gate.", ""): (
            weight.view(1, 1, -1, 1) if name.endswith("A_log") else weight
        )
        for name, weight in split_convolutions(weights, key, key).items()
    }


def join(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names and shapes as the class has them."""
    return {
        DECAY.sub(r"self_attn.forget_gate.\1", name): weight
        for name, weight in join_convolutions(weights).items()
    }


CLASS = NativeClass(
    model_type="kimi_linear",
    name="KimiLinearForCausalLM",
    expresses=expresses,
    settings=settings,
    model=model,
    layer_names={"kda": KDA_NAMES, "mla": MLA_NAMES},
    split=split,
    join=join,
)
