"""Mamba2 (Dao and Gu 2024, section 7): expand 2, one group, biases as published."""

from __future__ import annotations

from dataclasses import dataclass

from models.config import ModelConfig, round_up
from models.mixer import FP32_BYTES, Mixer, Place, at_least, chunk_tokens, not_positive


@dataclass(frozen=True)
class Rules:
    """What a protocol may set."""

    state: int = 128
    """State width, where the model is at least twice as wide; else half the width, rounded up
    to 16, so that a tiny model is not mostly state."""

    def __post_init__(self) -> None:
        at_least(1, state=self.state)


@dataclass(frozen=True)
class Settings:
    """What the layer reads."""

    state: int
    head_dim: int
    conv_kernel: int = 4
    norm_eps: float = 1e-5
    """Of the gated norm before the output projection."""


def settings(_options: object, rules: Rules, place: Place) -> Settings:
    size = place.size
    return Settings(min(rules.state, round_up(size.d_model / 2, 16)), 2 * size.head_dim)


def problem(_config: ModelConfig, s: Settings) -> str:
    return not_positive(s, "state", "head_dim", "conv_kernel", "norm_eps")


def parameters(config: ModelConfig, layer: int) -> int:
    d, H, s = config.d_model, config.n_heads, config.settings(layer)
    inner, K = H * s.head_dim, s.state
    projections = (d + 1) * (2 * inner + 2 * K + H) + (inner + 1) * d  # z x B C dt; out
    convolution = (s.conv_kernel + 1) * (inner + 2 * K)
    return projections + convolution + 3 * H + inner  # A_log, dt_bias, D; norm


def flops(config: ModelConfig, layer: int, context: int) -> float:
    d, H, s = config.d_model, config.n_heads, config.settings(layer)
    inner, K = H * s.head_dim, s.state
    C = chunk_tokens(s.head_dim, context)
    projections = d * (2 * inner + 2 * K + H) + inner * d
    # C·Bᵀ once for all heads, scores times values; then read and write of the state.
    convolution = s.conv_kernel * (inner + 2 * K)
    return 2 * (projections + convolution + C * (K + inner) + 2 * inner * K)


def products(config: ModelConfig, layer: int) -> list[tuple[int, int]]:
    d, H, s = config.d_model, config.n_heads, config.settings(layer)
    inner = H * s.head_dim
    return [(d, 2 * inner + 2 * s.state + H), (inner, d)]  # z x B C dt; out


def decode_bytes(
    config: ModelConfig, layer: int, _context: int, element_bytes: int
) -> tuple[int, int]:
    s = config.settings(layer)
    inner, K = config.n_heads * s.head_dim, s.state
    convolution = (s.conv_kernel - 1) * (inner + 2 * K)
    return inner * K * FP32_BYTES + convolution * element_bytes, 0


def activation_bytes(config: ModelConfig, layer: int, context: int, element_bytes: int) -> float:
    d, H, s = config.d_model, config.n_heads, config.settings(layer)
    inner, K = H * s.head_dim, s.state
    C = chunk_tokens(s.head_dim, context)
    # Input; x, B, C before and after the convolution; z, the operator's output, and what the
    # output projection reads. float32: dt and log decay, a state a chunk.
    elements = d + 2 * (inner + 2 * K) + 3 * inner
    return elements * element_bytes + (2 * H + inner * K / C) * FP32_BYTES


MIXER = Mixer(
    name="mamba2",
    letter="M",
    layer="models.mixers.mamba2.layer:Mamba2",
    norm="inputs",
    rules=Rules,
    saved=Settings,
    settings=settings,
    parameters=parameters,
    flops=flops,
    decode_bytes=decode_bytes,
    activation_bytes=activation_bytes,
    products=products,
    problem=problem,
    undecayed=("A_log", "dt_bias", "D"),
    operators=("models.mixers.mamba2.operator:OPERATOR",),
)
