"""What a class of transformers says of itself, and what several of them share. No transformers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from models.config import LayerKind, ModelConfig
from models.errors import SettingError
from models.plain import LARGEST, checked, whole_number

WHERE = "config.json"
TOP_NAMES = {
    "embedding.weight": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "head.weight": "lm_head.weight",
}


@dataclass(frozen=True)
class NativeClass:
    """A class of transformers that is exactly our model, for some patterns and blocks."""

    model_type: str
    name: str
    expresses: Callable[[ModelConfig], bool]
    """Whether the class is this model: its pattern, its mixers' settings and its block."""
    settings: Callable[[ModelConfig, int], dict[str, Any]]
    """(config, context) -> the class's own part of config.json."""
    model: Callable[[Mapping[str, Any]], ModelConfig]
    """config.json with transformers' defaults -> our model. Raises SettingError naming what our
    model cannot be."""
    layer_names: Mapping[str, Mapping[str, str]]
    """Mixer -> our name of each weight in a block -> theirs in a layer; `NAME/0` and `NAME/1` are
    the halves of one tensor."""
    top_names: Mapping[str, str] = field(default_factory=lambda: TOP_NAMES)
    """Our names outside of the layers -> theirs."""
    pack: Callable[[ModelConfig, Mapping[str, Tensor]], dict[str, Tensor]] = lambda _, w: dict(w)
    """Weights by the names of `layer_names` -> the class's own tensors, where it joins several or
    stores another number."""
    unpack: Callable[[ModelConfig, Mapping[str, Tensor]], dict[str, Tensor]] = lambda _, w: dict(w)
    """The inverse; what it does not know passes through."""
    split: Callable[[ModelConfig, dict[str, Tensor]], dict[str, Tensor]] = lambda _, weights: (
        weights
    )
    """Weights under the class's names -> as published folders hold them."""
    join: Callable[[Mapping[str, Tensor]], dict[str, Tensor]] = dict
    """The inverse."""


def block_is(config: ModelConfig, norms: Mapping[str, str]) -> bool:
    """Whether the model has just these mixers, their norms there, and a SwiGLU beside each."""
    kinds = {(kind.mixer, kind.norm) for kind in config.kinds.values()}
    return config.mlp == "swiglu" and kinds == set(norms.items())


def shared_settings(config: ModelConfig, mixer: str) -> Any:
    """The settings that all layers of a mixer have, windows aside; None where they differ."""
    kinds = [kind.settings for kind in config.kinds.values() if kind.mixer == mixer]
    if mixer == "attn":
        kinds = [dataclasses.replace(settings, windows=()) for settings in kinds]
    return kinds[0] if all(settings == kinds[0] for settings in kinds) else None


def windows(config: ModelConfig) -> list[int]:
    """Tokens that each layer's attention sees, 0 for all and for other mixers."""
    attention = [config.kind(layer).mixer == "attn" for layer in range(config.n_layers)]
    return [
        config.settings(layer).window(layer) if attends else 0
        for layer, attends in enumerate(attention)
    ]


def widths(config: ModelConfig, n_kv_heads: int) -> dict[str, Any]:
    """What every class's config.json says of widths and norms."""
    return {
        "hidden_size": config.d_model,
        "intermediate_size": config.mlp_hidden,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": n_kv_heads,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_eps,
        "attention_bias": False,
    }


def read_model(
    library: Mapping[str, Any],
    layers: list[str],
    kinds: Mapping[str, LayerKind],
    *,
    n_heads: int,
    mlp_hidden: Any,
    norm_eps: Any,
    mlp: str = "swiglu",
) -> ModelConfig:
    """Our model of a config.json; of `kinds`, those that stand in `layers`."""
    if not layers:
        raise SettingError(f"{WHERE} has no layers; a model has at least one.")
    config = ModelConfig(
        vocab_size=library["vocab_size"],
        d_model=library["hidden_size"],
        n_heads=n_heads,
        mlp_hidden=mlp_hidden,
        layers=tuple(layers),
        kinds={kind: kinds[kind] for kind in dict.fromkeys(layers)},
        init="normal",
        mlp=mlp,
        norm_eps=norm_eps,
    )
    return checked(config, WHERE)


def require(library: Mapping[str, Any], required: Mapping[str, Any]) -> None:
    """SettingError naming the first of config.json's values that our model cannot have."""
    for key, value in {"tie_word_embeddings": False, "hidden_act": "silu", **required}.items():
        if library.get(key, value) not in (value, None):
            raise SettingError(f"{WHERE}'s {key}={library[key]} cannot be ours; valid: {value}.")


def count(library: Mapping[str, Any], key: str, most: int = LARGEST) -> int:
    return whole_number(library.get(key), f"{WHERE}'s {key}", most)


def rope_theta(library: Mapping[str, Any]) -> float | None:
    """The base of the rotary angles, None for attention without positions."""
    rope = library.get("rope_parameters") or {}
    types = ("full_attention", "sliding_attention")
    by_type = [rope[t] for t in types if t in rope]
    # Beside entries by type transformers keeps others, and reads nothing of them.
    if rest := {key: value for key, value in rope.items() if key not in types}:
        by_type.append(rest)
    unscaled = [
        r for r in by_type if isinstance(r, dict) and r.get("rope_type", "default") == "default"
    ]
    bases = [r.get("rope_theta") for r in unscaled]
    if len(unscaled) < len(by_type) or any(base != bases[0] for base in bases):
        raise SettingError(
            f"{WHERE}'s rope_parameters={rope} cannot be ours; valid: one rope_theta, "
            "and rope_type default."
        )
    return bases[0] if bases else None
