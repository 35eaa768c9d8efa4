"""S6, the selective state space of Mamba-1 (Gu and Dao 2023): expand 2, 16 states a channel."""

from __future__ import annotations

from dataclasses import dataclass

from models.config import ModelConfig
from models.mixer import FP32_BYTES, Growth, Mixer, Place, Role, not_positive, vectors

CHUNK = 32
"""Tokens between two states that training keeps."""


@dataclass(frozen=True)
class Settings:
    """What the layer reads."""

    inner: int
    """Channels, twice the model's width."""
    rank: int
    """Of the projection that makes dt."""
    state: int = 16
    """States of a channel."""
    conv_kernel: int = 4


def settings(_options: object, _rules: object, place: Place) -> Settings:
    d = place.size.d_model
    return Settings(inner=2 * d, rank=_rank(d))


def problem(_config: ModelConfig, s: Settings) -> str:
    return not_positive(s, "inner", "rank", "state", "conv_kernel")


def products(config: ModelConfig, layer: int) -> list[tuple[int, int]]:
    d, s = config.d_model, config.settings(layer)
    return [
        (d, 2 * s.inner), (s.inner, s.rank + 2 * s.state), (s.rank, s.inner), (s.inner, d),
    ]  # x z; dt B C; dt; out  # fmt: skip


def parameters(config: ModelConfig, layer: int) -> int:
    s = config.settings(layer)
    matrices = sum(inputs * outputs for inputs, outputs in products(config, layer))
    convolution = (s.conv_kernel + 1) * s.inner
    return matrices + convolution + s.inner * (s.state + 2)  # A_log; dt_bias, D


def flops(config: ModelConfig, layer: int, _context: int) -> float:
    s = config.settings(layer)
    matrices = sum(inputs * outputs for inputs, outputs in products(config, layer))
    # Write and read of the state; decays are no products.
    return 2 * (matrices + s.conv_kernel * s.inner + 2 * s.inner * s.state)


def decode_bytes(
    config: ModelConfig, layer: int, _context: int, element_bytes: int
) -> tuple[int, int]:
    s = config.settings(layer)
    convolution = (s.conv_kernel - 1) * s.inner
    return s.inner * s.state * FP32_BYTES + convolution * element_bytes, 0


def activation_bytes(config: ModelConfig, layer: int, context: int, element_bytes: int) -> float:
    d, s = config.d_model, config.settings(layer)
    # Input; x, z, x after the convolution; inner vector of dt, B, C; the scan's output, what the
    # skip adds to it, and what the output projection reads.
    elements = d + 6 * s.inner + s.rank + 2 * s.state
    # float32: dt, a state a chunk.
    return elements * element_bytes + s.inner * (1 + s.state / min(CHUNK, context)) * FP32_BYTES


def roles(config: ModelConfig, layer: int, growth: Growth) -> dict[str, Role]:
    """Derived here: states are 16 a channel at every width, so that only the matrices grow. Those
    from the channels are hidden matrices, dt's second one with as many inputs as its rank.

    Vankadara et al. 2024 (On Feature Learning in Structured State Space Models) treat states that
    grow with the width, which these do not.
    """
    rank = config.settings(layer).rank
    return {
        **{f"{name}_proj.weight": Role(inputs=growth.width) for name in ("in", "x")},
        "dt_proj.weight": Role(inputs=rank / _rank(growth.base_width)),
        "out_proj.weight": Role(inputs=growth.width, last=True),
        **vectors("conv", "conv_bias", "dt_bias", "A_log", "D"),
    }


def _rank(width: int) -> int:
    """Of dt at a d_model (Gu and Dao 2023, section 3.6)."""
    return -(-width // 16)


MIXER = Mixer(
    name="s6",
    letter="S",
    layer="models.mixers.s6.layer:S6",
    norm="inputs",
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
    operators=("models.mixers.s6.operator:OPERATOR",),
)
