"""Granite 4 without experts and attention: Mamba2 alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from models.config import INPUTS, LayerKind, ModelConfig
from models.hf.native.record import (
    NativeClass,
    block_is,
    count,
    read_model,
    require,
    shared_settings,
    widths,
)
from models.mixers.mamba2 import Settings
from models.plain import MOST_LAYERS, positive

MAMBA2_NAMES = {
    **{
        f"mixer.{name}": f"mamba.{name}"
        for name in (
            "in_proj.weight", "in_proj.bias", "out_proj.weight", "out_proj.bias",
            "A_log", "dt_bias", "D",
        )
    },
    "mixer.conv": "mamba.conv1d.weight",
    "mixer.conv_bias": "mamba.conv1d.bias",
    "mixer.o_norm": "mamba.norm.weight",
    "mixer_norm.weight": "input_layernorm.weight",
    "mlp_norm.weight": "post_attention_layernorm.weight",
    "mlp.gate_proj.weight": "shared_mlp.input_linear.weight/0",
    "mlp.up_proj.weight": "shared_mlp.input_linear.weight/1",
    "mlp.down_proj.weight": "shared_mlp.output_linear.weight",
}  # fmt: skip


def expresses(config: ModelConfig) -> bool:
    if not block_is(config, {"mamba2": INPUTS}):
        return False
    mamba2 = shared_settings(config, "mamba2")
    if mamba2 is None or mamba2.groups > 1 or not mamba2.bias:
        return False
    return config.n_heads * mamba2.head_dim % config.d_model == 0


def settings(config: ModelConfig, _context: int) -> dict[str, Any]:
    mamba2 = shared_settings(config, "mamba2")
    # Granite has one eps for all norms, we one for the gated norms and another for the rest. A
    # residual stream c times ours, with eps c² times ours in the norms that read it, gives what
    # those norms gave; so c² is the ratio, and c multiplies all that is added up.
    c = math.sqrt(mamba2.norm_eps / config.norm_eps)
    return {
        **widths(config, config.n_heads),
        "rms_norm_eps": mamba2.norm_eps,
        "embedding_multiplier": c,
        "residual_multiplier": c,
        "attention_multiplier": 1.0,
        "logits_scaling": 1.0,
        "shared_intermediate_size": config.mlp_hidden,
        "num_local_experts": 0,
        "num_experts_per_tok": 0,
        "layer_types": ["linear_attention"] * config.n_layers,
        "position_embedding_type": None,
        "mamba_n_heads": config.n_heads,
        "mamba_d_head": mamba2.head_dim,
        "mamba_n_groups": 1,
        "mamba_d_state": mamba2.state,
        "mamba_d_conv": mamba2.conv_kernel,
        "mamba_expand": config.n_heads * mamba2.head_dim // config.d_model,
        "mamba_chunk_size": 64,
        "mamba_conv_bias": True,
        "mamba_proj_bias": True,
        # Its cache needs an attention layer to count tokens by.
        "use_cache": False,
    }


def model(library: Mapping[str, Any]) -> ModelConfig:
    count(library, "hidden_size")
    H, n = count(library, "mamba_n_heads"), count(library, "num_hidden_layers", MOST_LAYERS)
    c = positive(library["embedding_multiplier"], "config.json's embedding_multiplier")
    eps = positive(library["rms_norm_eps"], "config.json's rms_norm_eps")
    require(
        library,
        {
            "layer_types": ["linear_attention"] * n,
            "num_local_experts": 0,
            "mamba_n_groups": 1,
            "mamba_conv_bias": True,
            "mamba_proj_bias": True,
            "residual_multiplier": c,
            "logits_scaling": 1.0,
        },
    )
    mamba2 = Settings(
        state=library["mamba_d_state"],
        head_dim=library["mamba_d_head"],
        conv_kernel=library["mamba_d_conv"],
        norm_eps=eps,
    )
    return read_model(
        library, ["mamba2"] * n, {"mamba2": LayerKind("mamba2", INPUTS, mamba2)}, n_heads=H,
        mlp_hidden=library["shared_intermediate_size"],
        # The root of ten has more digits than the eps it stands for.
        norm_eps=float(f"{eps / c**2:.12g}"),
    )  # fmt: skip


CLASS = NativeClass(
    model_type="granitemoehybrid",
    name="GraniteMoeHybridForCausalLM",
    expresses=expresses,
    settings=settings,
    model=model,
    layer_names={"mamba2": MAMBA2_NAMES},
)
