"""Nemotron-H without experts: Mamba2 without biases, attention without positions and squared-ReLU
MLPs, a layer each, norms on inputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from models.config import INPUTS, MLP, LayerKind, ModelConfig
from models.errors import one_of
from models.hf.native.record import (
    NativeClass,
    count,
    read_model,
    require,
    shared_settings,
    windows,
)
from models.mixers import attn, mamba2

TYPES = {"attn": "full_attention", "mamba2": "linear_attention", MLP: "mlp"}
SMALLEST_STEP = 1e-30
"""The class clamps dt from below at time_step_min in one pass and not a token at a time."""
ATTENTION_NAMES = {
    **{f"mixer.{n}_proj.weight": f"mixer.{n}_proj.weight" for n in "qkvo"},
    "mixer_norm.weight": "norm.weight",
}
MAMBA2_NAMES = {
    "mixer.in_proj.weight": "mixer.in_proj.weight",
    "mixer.out_proj.weight": "mixer.out_proj.weight",
    "mixer.conv": "mixer.conv1d.weight",
    "mixer.conv_bias": "mixer.conv1d.bias",
    "mixer.A_log": "mixer.A_log",
    "mixer.dt_bias": "mixer.dt_bias",
    "mixer.D": "mixer.D",
    "mixer.o_norm": "mixer.norm.weight",
    "mixer_norm.weight": "norm.weight",
}
MLP_NAMES = {
    "mlp.up_proj.weight": "mixer.up_proj.weight",
    "mlp.down_proj.weight": "mixer.down_proj.weight",
    "mlp_norm.weight": "norm.weight",
}


def expresses(config: ModelConfig) -> bool:
    kinds = {kind.mixer for kind in config.kinds.values()}
    if kinds != set(TYPES) or config.mlp != "relu2" or any(windows(config)):
        return False
    attention, ssm = shared_settings(config, "attn"), shared_settings(config, "mamba2")
    return (
        all(kind.norm == INPUTS for kind in config.kinds.values())
        and attention is not None
        and attention.rope_theta is None
        and attention.qk_norm == "none"
        and not attention.output_gate
        and ssm is not None
        and not ssm.bias
        and ssm.norm_eps == config.norm_eps
    )


def settings(config: ModelConfig, _context: int) -> dict[str, Any]:
    attention, ssm = shared_settings(config, "attn"), shared_settings(config, "mamba2")
    return {
        "hidden_size": config.d_model,
        "intermediate_size": config.mlp_hidden,
        "layers_block_type": [TYPES[config.kind(i).mixer] for i in range(config.n_layers)],
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": attention.n_kv_heads,
        "head_dim": config.head_dim,
        "layer_norm_epsilon": config.norm_eps,
        "mlp_hidden_act": "relu2",
        "ssm_state_size": ssm.state,
        "mamba_num_heads": config.n_heads,
        "mamba_head_dim": ssm.head_dim,
        "n_groups": ssm.groups,
        "conv_kernel": ssm.conv_kernel,
        "chunk_size": 64,
        "time_step_min": SMALLEST_STEP,
        "use_conv_bias": True,
        "use_bias": False,
        "mamba_proj_bias": False,
    }


def model(library: Mapping[str, Any]) -> ModelConfig:
    d, H = count(library, "hidden_size"), count(library, "num_attention_heads")
    require(
        library,
        {
            "attention_bias": False,
            "mlp_bias": False,
            "use_bias": False,
            "mamba_proj_bias": False,
            "use_conv_bias": True,
            "mlp_hidden_act": "relu2",
            "mamba_hidden_act": "silu",
            "head_dim": d // H,
            "mamba_num_heads": H,
        },
    )
    mixers = {layer_type: mixer for mixer, layer_type in TYPES.items()}
    # transformers keeps the list under either name.
    types = library.get("layers_block_type") or library.get("layer_types") or []
    for layer in types:
        if layer not in mixers:
            raise one_of("config.json's layers_block_type", layer, mixers)
    eps = library["layer_norm_epsilon"]
    attention = attn.Settings(
        library.get("num_key_value_heads") or H, rope_theta=None, qk_norm="none"
    )
    ssm = mamba2.Settings(
        state=library["ssm_state_size"],
        head_dim=library["mamba_head_dim"],
        conv_kernel=library["conv_kernel"],
        norm_eps=eps,
        groups=library["n_groups"],
        bias=False,
    )
    kinds = {
        "attn": LayerKind("attn", INPUTS, attention),
        "mamba2": LayerKind("mamba2", INPUTS, ssm),
        MLP: LayerKind(MLP, INPUTS),
    }
    return read_model(
        library, [mixers[layer] for layer in types], kinds, n_heads=H,
        mlp_hidden=library["intermediate_size"], norm_eps=eps, mlp="relu2",
    )  # fmt: skip


CLASS = NativeClass(
    model_type="nemotron_h",
    name="NemotronHForCausalLM",
    expresses=expresses,
    settings=settings,
    model=model,
    layer_names={"attn": ATTENTION_NAMES, "mamba2": MAMBA2_NAMES, MLP: MLP_NAMES},
    top_names={
        "embedding.weight": "model.embeddings.weight",
        "norm.weight": "model.norm_f.weight",
        "head.weight": "lm_head.weight",
    },
)
