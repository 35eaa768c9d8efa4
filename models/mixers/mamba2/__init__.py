"""Mamba2 (Dao and Gu 2024, section 7): expand 2, by default one group and biases as published."""

from __future__ import annotations

from dataclasses import dataclass

from models.config import ModelConfig, round_up
from models.mixer import (
    FP32_BYTES,
    Growth,
    Mixer,
    Place,
    Role,
    at_least,
    chunk_tokens,
    not_positive,
    vectors,
)

FEWEST_HEADS = 4
"""Of a group, where there are several; Nemotron-H has 16. Each group has a B and C to project."""


@dataclass(frozen=True)
class Options:
    """What a mix may set."""

    groups: int = 1
    """Groups of heads that share a B and C, and of channels that the gated norm takes together: the
    largest number up to this that makes groups of four heads or more."""
    bias: bool = True
    """Of the projections; the convolution always has its own."""

    def __post_init__(self) -> None:
        at_least(1, groups=self.groups)


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
    groups: int = 1
    bias: bool = True


def settings(options: Options, rules: Rules, place: Place) -> Settings:
    size = place.size
    state = min(rules.state, round_up(size.d_model / 2, 16))
    most = max(1, min(options.groups, size.n_heads // FEWEST_HEADS))
    groups = max(n for n in range(1, most + 1) if size.n_heads % n == 0)
    return Settings(state, 2 * size.head_dim, groups=groups, bias=options.bias)


def problem(config: ModelConfig, s: Settings) -> str:
    if words := not_positive(s, "state", "head_dim", "conv_kernel", "norm_eps", "groups"):
        return words
    if config.n_heads % s.groups:
        return f"groups={s.groups} cannot be used; valid: what divides n_heads={config.n_heads}."
    return ""


def parameters(config: ModelConfig, layer: int) -> int:
    d, H, s = config.d_model, config.n_heads, config.settings(layer)
    inner, K = H * s.head_dim, s.groups * s.state
    bias = 1 if s.bias else 0
    projections = (d + bias) * (2 * inner + 2 * K + H) + (inner + bias) * d  # z x B C dt; out
    convolution = (s.conv_kernel + 1) * (inner + 2 * K)
    return projections + convolution + 3 * H + inner  # A_log, dt_bias, D; norm


def flops(config: ModelConfig, layer: int, context: int) -> float:
    d, H, s = config.d_model, config.n_heads, config.settings(layer)
    inner, K = H * s.head_dim, s.groups * s.state
    C = chunk_tokens(s.head_dim, context)
    projections = d * (2 * inner + 2 * K + H) + inner * d
    # C·Bᵀ once for each group, scores times values; then read and write of the state.
    convolution = s.conv_kernel * (inner + 2 * K)
    return 2 * (projections + convolution + C * (K + inner) + 2 * inner * s.state)


def products(config: ModelConfig, layer: int) -> list[tuple[int, int]]:
    d, H, s = config.d_model, config.n_heads, config.settings(layer)
    inner = H * s.head_dim
    return [(d, 2 * inner + 2 * s.groups * s.state + H), (inner, d)]  # z x B C dt; out


def decode_bytes(
    config: ModelConfig, layer: int, _context: int, element_bytes: int
) -> tuple[int, int]:
    s = config.settings(layer)
    inner = config.n_heads * s.head_dim
    convolution = (s.conv_kernel - 1) * (inner + 2 * s.groups * s.state)
    return inner * s.state * FP32_BYTES + convolution * element_bytes, 0


def activation_bytes(config: ModelConfig, layer: int, context: int, element_bytes: int) -> float:
    d, H, s = config.d_model, config.n_heads, config.settings(layer)
    inner, K = H * s.head_dim, s.groups * s.state
    C = chunk_tokens(s.head_dim, context)
    # Input; x, B, C before and after the convolution; z, the operator's output, and what the
    # output projection reads. float32: dt and log decay, a state a chunk.
    elements = d + 2 * (inner + 2 * K) + 3 * inner
    return elements * element_bytes + (2 * H + inner * s.state / C) * FP32_BYTES


def roles(config: ModelConfig, layer: int, growth: Growth) -> dict[str, Role]:
    """Derived here. One matrix makes gate, inputs, B, C and dt: a hidden matrix for all of them.

    What the recurrence reads, C·(Σ B x), is a sum over the state's K channels and grows as K, as
    B and C are behind a SiLU and so have a mean. Attention has 1/K for such a sum; here the skip
    D·x beside it is multiplied by K instead, as the norm that follows takes out a factor of both.
    """
    hidden = growth.width
    return {
        "in_proj.weight": Role(inputs=hidden),
        "out_proj.weight": Role(inputs=hidden, last=True),
        "out_proj.bias": Role(last=True),
        "D": Role(factor=_state_growth(config, layer, growth)),
        **vectors("in_proj.bias", "conv", "conv_bias", "A_log", "dt_bias", "o_norm"),
    }


def _state_growth(config: ModelConfig, layer: int, growth: Growth) -> float:
    """The state's width over the base's, which by `settings` is half of d_model up to a limit."""
    K = config.settings(layer).state
    at_base = round_up(growth.base_width / 2, 16)
    limited = round_up(config.d_model / 2, 16) != K
    return K / (min(K, at_base) if limited else at_base)


MIXER = Mixer(
    name="mamba2",
    letter="M",
    layer="models.mixers.mamba2.layer:Mamba2",
    norm="inputs",
    options=Options,
    rules=Rules,
    saved=Settings,
    settings=settings,
    parameters=parameters,
    flops=flops,
    decode_bytes=decode_bytes,
    activation_bytes=activation_bytes,
    products=products,
    problem=problem,
    roles=roles,
    undecayed=("A_log", "dt_bias", "D"),
    operators=("models.mixers.mamba2.operator:OPERATOR",),
)
