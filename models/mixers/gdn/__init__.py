"""Gated DeltaNet (Yang, Kautz, Hatamizadeh 2025) as in Olmo Hybrid."""

from __future__ import annotations

from dataclasses import dataclass

from models.config import ModelConfig, round_up
from models.errors import SettingError, one_of
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

GATES = ("silu", "sigmoid")
DT_INITS = ("log_uniform", "ones")


@dataclass(frozen=True)
class Options:
    """What a mix may set."""

    output_gate: bool = True
    allow_neg_eigval: bool = True
    """beta in (0, 2) instead of (0, 1): eigenvalues of the transition down to -1."""
    gate_activation: str = "silu"
    """Of the output gate: `silu`, as published, or `sigmoid`."""
    norm_eps: float = 1e-5
    """Of the gated norm on the heads' outputs."""
    dt_init: str = "log_uniform"
    """Start of dt_bias: softplus(dt_bias) `log_uniform` in [1e-3, 0.1], or dt_bias at `ones` as in
    Qwen3-Next."""

    def __post_init__(self) -> None:
        if self.gate_activation not in GATES:
            raise one_of("gate_activation", self.gate_activation, GATES)
        if self.dt_init not in DT_INITS:
            raise one_of("dt_init", self.dt_init, DT_INITS)
        if not self.norm_eps > 0:
            raise SettingError(f"norm_eps={self.norm_eps:g} must be above 0.")


@dataclass(frozen=True)
class Rules:
    """What a protocol may set."""

    key_multiple: int = 16
    """Key head width = 0.75 · d_model / heads, rounded up to this multiple; values twice that."""

    def __post_init__(self) -> None:
        at_least(1, key_multiple=self.key_multiple)


@dataclass(frozen=True)
class Settings:
    """What the layer reads."""

    key_dim: int
    value_dim: int
    output_gate: bool = True
    allow_neg_eigval: bool = True
    conv_kernel: int = 4
    norm_eps: float = 1e-5
    """Of the gated norm on the heads' outputs."""
    gate_activation: str = "silu"
    dt_init: str = "log_uniform"


def settings(options: Options, rules: Rules, place: Place) -> Settings:
    key_dim = round_up(0.75 * place.size.head_dim, rules.key_multiple)
    return Settings(
        key_dim, 2 * key_dim, options.output_gate, options.allow_neg_eigval,
        norm_eps=options.norm_eps, gate_activation=options.gate_activation,
        dt_init=options.dt_init,
    )  # fmt: skip


def problem(_config: ModelConfig, s: Settings) -> str:
    if s.gate_activation not in GATES:
        return f"gate_activation={s.gate_activation:.60} cannot be used; valid: {', '.join(GATES)}."
    if s.dt_init not in DT_INITS:
        return f"dt_init={s.dt_init:.60} cannot be used; valid: {', '.join(DT_INITS)}."
    return not_positive(s, "key_dim", "value_dim", "conv_kernel", "norm_eps")


def parameters(config: ModelConfig, layer: int) -> int:
    d, H, s = config.d_model, config.n_heads, config.settings(layer)
    key, value = H * s.key_dim, H * s.value_dim
    projections = d * (2 * key + value + 2 * H) + value * d  # q k v a b; o
    gate = d * value if s.output_gate else 0
    taps = s.conv_kernel * (2 * key + value)
    return projections + gate + taps + 2 * H + s.value_dim  # A_log, dt_bias; norm


def flops(config: ModelConfig, layer: int, context: int) -> float:
    d, H, s = config.d_model, config.n_heads, config.settings(layer)
    K, V = s.key_dim, s.value_dim
    C = chunk_tokens(V, context)
    projections = d * H * (2 * K + 2 * V + 2) + (d * H * V if s.output_gate else 0)
    # A head, a token: k·kᵀ and q·kᵀ over the chunk, forward substitution for K + V columns (half
    # a square), scores times writes; then erase, read and write of the state.
    inside = C * (2 * K + V) + (C - 1) / 2 * (K + V)
    return 2 * (projections + s.conv_kernel * H * (2 * K + V) + H * (inside + 3 * K * V))


def products(config: ModelConfig, layer: int) -> list[tuple[int, int]]:
    d, H, s = config.d_model, config.n_heads, config.settings(layer)
    key, value = H * s.key_dim, H * s.value_dim
    gate = [(d, value)] if s.output_gate else []
    return [(d, 2 * key + value), (d, H), (d, H), *gate, (value, d)]  # qkv; a, b; g; o


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
    # Input; q, k, v before and after the convolution, q and k normed; the operator's output, the
    # gate, and what the output projection reads.
    elements = d + 2 * H * (2 * K + V) + 2 * H * K + (3 if s.output_gate else 2) * H * V
    # float32: log decay and write strength, the chunk's inverse, a state a chunk.
    return elements * element_bytes + (2 * H + H * C + H * K * V / C) * FP32_BYTES


def roles(_config: ModelConfig, _layer: int, growth: Growth) -> dict[str, Role]:
    """After Liu and Gu 2026 (arXiv 2606.04048), section 4 and the AdamW groups of their code: all
    projections are hidden matrices, those of decay and write strength too (section 4.4); A_log and
    dt_bias keep their values and their rate.

    Their code scales the rate of the norm's gain and of the convolutions as a hidden matrix's; here
    both act a channel at a time and keep it (Yang et al. 2022, Table 3). Their factor √width before
    the norm of the heads' outputs is left out: that norm takes every factor out again, but for its
    eps.
    """
    hidden = Role(inputs=growth.width)
    return {
        **{f"{name}_proj.weight": hidden for name in ("q", "k", "v", "a", "b", "g")},
        "o_proj.weight": Role(inputs=growth.width, last=True),
        **vectors("conv", "A_log", "dt_bias", "o_norm"),
    }


MIXER = Mixer(
    name="gdn",
    letter="G",
    layer="models.mixers.gdn.layer:GatedDeltaNet",
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
    operators=("models.mixers.gdn.operator:OPERATOR",),
    confounds=(
        "models.ops.confounds:key_width",
        "models.ops.confounds:gate",
        "models.ops.confounds:eigenvalues",
    ),
)
