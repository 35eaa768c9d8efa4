"""Kimi Delta Attention (Kimi Team 2025, "Kimi Linear", section 3): a decay for each channel of the
keys, low-rank gates."""

from __future__ import annotations

from dataclasses import dataclass

from models.config import ModelConfig, round_up
from models.errors import one_of
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

WIDTHS = ("wide", "square")
GATES = ("sigmoid", "silu")


@dataclass(frozen=True)
class Options:
    """What a mix may set."""

    width: str = "wide"
    """Of the heads: `wide`, keys of 0.75 · d_model / heads and values twice that, as the recurrent
    layers of Olmo Hybrid have them; `square`, both d_model / heads, as in Kimi Linear."""
    gate_activation: str = "sigmoid"
    """Of the output gate: `sigmoid`, as published, or `silu`."""
    allow_neg_eigval: bool = False
    """beta in (0, 2) instead of (0, 1): eigenvalues of the transition down to -1."""

    def __post_init__(self) -> None:
        if self.width not in WIDTHS:
            raise one_of("width", self.width, WIDTHS)
        if self.gate_activation not in GATES:
            raise one_of("gate_activation", self.gate_activation, GATES)


@dataclass(frozen=True)
class Rules:
    """What a protocol may set."""

    key_multiple: int = 16
    """Width of wide keys = 0.75 · d_model / heads, rounded up to this multiple."""

    def __post_init__(self) -> None:
        at_least(1, key_multiple=self.key_multiple)


@dataclass(frozen=True)
class Settings:
    """What the layer reads."""

    key_dim: int
    value_dim: int
    rank: int
    """Inner width of the projections that make decays and output gates."""
    gate_activation: str = "sigmoid"
    allow_neg_eigval: bool = False
    conv_kernel: int = 4
    norm_eps: float = 1e-5
    """Of the gated norm on the heads' outputs."""


def settings(options: Options, rules: Rules, place: Place) -> Settings:
    D = place.size.head_dim
    key_dim = round_up(0.75 * D, rules.key_multiple)
    K, V = (D, D) if options.width == "square" else (key_dim, 2 * key_dim)
    # The rank is a head's width, as published.
    return Settings(K, V, D, options.gate_activation, options.allow_neg_eigval)


def problem(_config: ModelConfig, s: Settings) -> str:
    if s.gate_activation not in GATES:
        return f"gate_activation={s.gate_activation:.60} cannot be used; valid: {', '.join(GATES)}."
    return not_positive(s, "key_dim", "value_dim", "rank", "conv_kernel", "norm_eps")


def products(config: ModelConfig, layer: int) -> list[tuple[int, int]]:
    d, H, s = config.d_model, config.n_heads, config.settings(layer)
    key, value, r = H * s.key_dim, H * s.value_dim, s.rank
    qkv, low_rank = (d, 2 * key + value), [(d, r), (r, key), (d, r), (r, value)]
    return [qkv, (d, H), *low_rank, (value, d)]  # qkv; beta; decay, gate; o


def parameters(config: ModelConfig, layer: int) -> int:
    H, s = config.n_heads, config.settings(layer)
    matrices = sum(inputs * outputs for inputs, outputs in products(config, layer))
    taps = s.conv_kernel * H * (2 * s.key_dim + s.value_dim)
    return matrices + taps + H + H * s.key_dim + s.value_dim  # A_log, dt_bias; norm


def flops(config: ModelConfig, layer: int, context: int) -> float:
    H, s = config.n_heads, config.settings(layer)
    K, V = s.key_dim, s.value_dim
    C = chunk_tokens(V, context)
    matrices = sum(inputs * outputs for inputs, outputs in products(config, layer))
    # A head, a token: k·kᵀ and q·kᵀ over the chunk, forward substitution for K + V columns (half
    # a square), scores times writes; then erase, read and write of the state.
    inside = C * (2 * K + V) + (C - 1) / 2 * (K + V)
    return 2 * (matrices + s.conv_kernel * H * (2 * K + V) + H * (inside + 3 * K * V))


def decode_bytes(
    config: ModelConfig, layer: int, _context: int, element_bytes: int
) -> tuple[int, int]:
    H, s = config.n_heads, config.settings(layer)
    convolution = (s.conv_kernel - 1) * H * (2 * s.key_dim + s.value_dim)
    return H * s.key_dim * s.value_dim * FP32_BYTES + convolution * element_bytes, 0


def activation_bytes(config: ModelConfig, layer: int, context: int, element_bytes: int) -> float:
    d, H, s = config.d_model, config.n_heads, config.settings(layer)
    K, V = s.key_dim, s.value_dim
    C = chunk_tokens(V, context)
    # Input; q, k, v before and after the convolution, q and k normed; inner vectors of decay and
    # gate, what the decay is made of; the operator's output, the gate, and what the output
    # projection reads.
    elements = d + 2 * H * (2 * K + V) + 2 * H * K + 2 * s.rank + H * K + 3 * H * V
    # float32: log decays and write strength, the chunk's inverse, a state a chunk.
    return elements * element_bytes + (H * K + H + H * C + H * K * V / C) * FP32_BYTES


def roles(_config: ModelConfig, _layer: int, growth: Growth) -> dict[str, Role]:
    """Derived here, as Liu and Gu 2026 (arXiv 2606.04048, section 4) derive Gated DeltaNet's: the
    two low-rank products are hidden matrices, the second with as many inputs as a head is wide."""
    hidden, from_rank = Role(inputs=growth.width), Role(inputs=growth.head)
    return {
        **{f"{name}_proj.weight": hidden for name in ("q", "k", "v", "b")},
        **{f"{name}_down.weight": hidden for name in ("f", "g")},
        **{f"{name}_up.weight": from_rank for name in ("f", "g")},
        "o_proj.weight": Role(inputs=growth.width, last=True),
        **vectors("conv", "A_log", "dt_bias", "o_norm"),
    }


MIXER = Mixer(
    name="kda",
    letter="K",
    layer="models.mixers.kda.layer:KimiDeltaAttention",
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
    undecayed=("A_log", "dt_bias"),
    operators=("models.mixers.kda.operator:OPERATOR",),
    confounds=(
        "models.ops.confounds:key_width",
        "models.ops.confounds:gate",
        "models.ops.confounds:eigenvalues",
    ),
)
