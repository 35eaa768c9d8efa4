"""Olmo 3: attention alone, with rotary positions and at most one width of window."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from models.config import OUTPUTS, LayerKind, ModelConfig
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
from models.mixers.attn import Settings

TYPES = ("full_attention", "sliding_attention")
ATTENTION_NAMES = {
    **{
        f"mixer.{name}.weight": f"self_attn.{name}.weight"
        for name in ("q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm")
    },
    "mixer_norm.weight": "post_attention_layernorm.weight",
    "mlp_norm.weight": "post_feedforward_layernorm.weight",
    **MLP_NAMES,
}


def is_olmo_attention(settings: Settings | None) -> bool:
    """Whether attention is Olmo's: QK-norm over the full projection, whole heads turned."""
    return (
        settings is not None
        and settings.qk_norm == "full"
        and settings.rotary == 1.0
        and not settings.output_gate
    )


def expresses(config: ModelConfig) -> bool:
    if not block_is(config, {"attn": OUTPUTS}):
        return False
    attention = shared_settings(config, "attn")
    one_width = len({window for window in windows(config) if window}) <= 1
    return is_olmo_attention(attention) and attention.rope_theta is not None and one_width


def settings(config: ModelConfig, context: int) -> dict[str, Any]:
    attention = shared_settings(config, "attn")
    rope = {"rope_type": "default", "rope_theta": attention.rope_theta}
    return {
        **widths(config, attention.n_kv_heads),
        "layer_types": [TYPES[window > 0] for window in windows(config)],
        # Read for a mask even where no layer slides.
        "sliding_window": max(windows(config)) or context,
        "rope_parameters": {"full_attention": rope, "sliding_attention": rope},
    }


def model(library: Mapping[str, Any]) -> ModelConfig:
    d, H = count(library, "hidden_size"), count(library, "num_attention_heads")
    require(library, {"attention_bias": False, "head_dim": d // H})
    types = library["layer_types"]
    for layer in types:
        if layer not in TYPES:
            raise one_of("config.json's layer_types", layer, TYPES)
    slides = [library["sliding_window"] if layer == TYPES[1] else 0 for layer in types]
    attention = Settings(
        n_kv_heads=library.get("num_key_value_heads") or H,
        rope_theta=rope_theta(library),
        windows=tuple(slides) if any(slides) else (),
    )
    return read_model(
        library, ["attn"] * len(types), {"attn": LayerKind("attn", OUTPUTS, attention)},
        n_heads=H, mlp_hidden=library["intermediate_size"], norm_eps=library["rms_norm_eps"],
    )  # fmt: skip


CLASS = NativeClass(
    model_type="olmo3",
    name="Olmo3ForCausalLM",
    expresses=expresses,
    settings=settings,
    model=model,
    layer_names={"attn": ATTENTION_NAMES},
)
