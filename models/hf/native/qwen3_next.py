"""Qwen3-Next without experts: Gated DeltaNet and attention with an output gate, in any order, norms
on inputs.

The class packs projections by head and stores the weights of its norms less one, all but those of
the gated norms.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from models.config import INPUTS, LayerKind, ModelConfig
from models.errors import one_of
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
from models.hf.native.weights import MLP_NAMES
from models.mixers import attn, gdn

TYPES = {"attn": "full_attention", "gdn": "linear_attention"}
NORM_NAMES = {
    "mixer_norm.weight": "input_layernorm.weight",
    "mlp_norm.weight": "post_attention_layernorm.weight",
    **MLP_NAMES,
}
ATTENTION_NAMES = {
    **{
        f"mixer.{name}.weight": f"self_attn.{name}.weight"
        for name in ("q_proj", "k_proj", "v_proj", "g_proj", "o_proj", "q_norm", "k_norm")
    },
    **NORM_NAMES,
}
GDN_NAMES = {
    **{f"mixer.{n}_proj.weight": f"linear_attn.{n}_proj.weight" for n in "qkvgab"},
    "mixer.o_proj.weight": "linear_attn.out_proj.weight",
    "mixer.o_norm": "linear_attn.norm.weight",
    "mixer.conv": "linear_attn.conv1d.weight",
    "mixer.A_log": "linear_attn.A_log",
    "mixer.dt_bias": "linear_attn.dt_bias",
    **NORM_NAMES,
}
PACKED = {
    "self_attn.q_proj.weight": ("self_attn", "qg"),
    "linear_attn.in_proj_qkvz.weight": ("linear_attn", "qkvg"),
    "linear_attn.in_proj_ba.weight": ("linear_attn", "ba"),
}
"""The class's tensor -> where our projections lie, and which of them stand by head in it."""
LESS_ONE = ("layernorm.weight", "model.norm.weight", "q_norm.weight", "k_norm.weight")


def expresses(config: ModelConfig) -> bool:
    if not block_is(config, {"attn": INPUTS, "gdn": INPUTS}) or any(windows(config)):
        return False
    attention, delta = shared_settings(config, "attn"), shared_settings(config, "gdn")
    return (
        attention is not None
        and attention.output_gate
        and attention.qk_norm == "head"
        and attention.rope_theta is not None
        and delta is not None
        and delta.output_gate
        and delta.gate_activation == "silu"
        and not delta.allow_neg_eigval
        and delta.norm_eps == config.norm_eps
    )


def settings(config: ModelConfig, _context: int) -> dict[str, Any]:
    attention, delta = shared_settings(config, "attn"), shared_settings(config, "gdn")
    return {
        **widths(config, attention.n_kv_heads),
        "head_dim": config.head_dim,
        "layer_types": [TYPES[config.kind(i).mixer] for i in range(config.n_layers)],
        "num_experts": 0,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": attention.rope_theta,
            "partial_rotary_factor": attention.rotary,
        },
        "linear_num_key_heads": config.n_heads,
        "linear_num_value_heads": config.n_heads,
        "linear_key_head_dim": delta.key_dim,
        "linear_value_head_dim": delta.value_dim,
        "linear_conv_kernel_dim": delta.conv_kernel,
    }


def model(library: Mapping[str, Any]) -> ModelConfig:
    d, H = count(library, "hidden_size"), count(library, "num_attention_heads")
    require(
        library,
        {
            "attention_bias": False,
            "head_dim": d // H,
            "num_experts": 0,
            "linear_num_key_heads": H,
            "linear_num_value_heads": H,
        },
    )
    mixers = {layer_type: mixer for mixer, layer_type in TYPES.items()}
    for layer in library["layer_types"]:
        if layer not in mixers:
            raise one_of("config.json's layer_types", layer, mixers)
    rope = library.get("rope_parameters") or {}
    attention = attn.Settings(
        library.get("num_key_value_heads") or H,
        rope_theta(library),
        rotary=rope.get("partial_rotary_factor", 1.0),
        qk_norm="head",
        output_gate=True,
    )
    delta = gdn.Settings(
        key_dim=library["linear_key_head_dim"],
        value_dim=library["linear_value_head_dim"],
        allow_neg_eigval=False,
        conv_kernel=library["linear_conv_kernel_dim"],
        norm_eps=library["rms_norm_eps"],
        dt_init="ones",
    )
    kinds = {"attn": LayerKind("attn", INPUTS, attention), "gdn": LayerKind("gdn", INPUTS, delta)}
    return read_model(
        library, [mixers[layer] for layer in library["layer_types"]], kinds, n_heads=H,
        mlp_hidden=library["intermediate_size"], norm_eps=library["rms_norm_eps"],
    )  # fmt: skip


def _less_one(name: str) -> bool:
    return name.endswith(LESS_ONE)


def pack(config: ModelConfig, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Projections by head, and norms less one."""
    H = config.n_heads
    out = {}
    taken = set()
    for layer in range(config.n_layers):
        for name, (place, parts) in PACKED.items():
            sources = [f"model.layers.{layer}.{place}.{part}_proj.weight" for part in parts]
            if all(source in weights for source in sources):
                by_head = [weights[source].unflatten(0, (H, -1)) for source in sources]
                out[f"model.layers.{layer}.{name}"] = torch.cat(by_head, 1).flatten(0, 1)
                taken.update(sources)
    for name, weight in weights.items():
        if name not in taken:
            out[name] = weight - 1 if _less_one(name) else weight
    return out


def unpack(config: ModelConfig, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse; a tensor of another shape stays as it is."""
    H = config.n_heads
    out = {}
    for name, weight in weights.items():
        layer, _, rest = name.removeprefix("model.layers.").partition(".")
        if rest not in PACKED or not layer.isdecimal() or int(layer) >= config.n_layers:
            out[name] = weight + 1 if _less_one(name) else weight
            continue
        place, parts = PACKED[rest]
        of_parts = dict.fromkeys("qg", config.head_dim)
        if place == "linear_attn":
            delta = shared_settings(config, "gdn")
            of_parts = {"q": delta.key_dim, "k": delta.key_dim, "a": 1, "b": 1}
            of_parts |= dict.fromkeys("vg", delta.value_dim)
        rows = [of_parts[part] for part in parts]
        if weight.dim() != 2 or weight.shape[0] != H * sum(rows):
            out[name] = weight
            continue
        pieces = weight.unflatten(0, (H, -1)).split(rows, 1)
        for part, piece in zip(parts, pieces, strict=True):
            out[f"model.layers.{layer}.{place}.{part}_proj.weight"] = piece.flatten(0, 1)
    return out


CLASS = NativeClass(
    model_type="qwen3_next",
    name="Qwen3NextForCausalLM",
    expresses=expresses,
    settings=settings,
    model=model,
    layer_names={"attn": ATTENTION_NAMES, "gdn": GDN_NAMES},
    pack=pack,
    unpack=unpack,
)
