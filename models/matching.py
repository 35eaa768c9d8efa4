"""Equal parameters for every mix of a size, by the width of the MLP.

The target is the transformer's N at the same blueprint and vocabulary. The width is the coarsest
multiple (64 down to 1) that comes within a fifth of the tolerance, else the single width nearest.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from models.config import Blueprint, Geometry, Mix, ModelConfig, build_config
from models.cost import parameters
from models.errors import SettingError, one_of

MATCHES = ("params", "blueprint")
TRANSFORMER = Mix("transformer", ("attn",))


@dataclass(frozen=True)
class Matched:
    """A model and how it came to its size."""

    config: ModelConfig
    N_target: int
    residual: float
    """(N - N_target) / N_target."""
    moved: str
    """What the match changed, in words."""


def match(
    mix: Mix,
    size: Blueprint,
    geometry: Geometry,
    vocab_size: int,
    *,
    how: str = "params",
    tolerance: float = 0.005,
) -> Matched:
    """The mix at a size: `params` moves mlp_hidden to the transformer's N, `blueprint` nothing.

    Raises SettingError where no width reaches the tolerance, saying how near it came.
    """
    if how not in MATCHES:
        raise one_of("protocol.match", how, MATCHES)
    plain = build_config(mix, size, geometry, vocab_size)
    target = parameters(build_config(TRANSFORMER, size, geometry, vocab_size))[0]
    N = parameters(plain)[0]
    per_width = 3 * size.d_model * size.n_layers
    ideal = size.mlp_hidden - (N - target) / per_width
    if how == "blueprint" or target == N:
        return Matched(plain, target, (N - target) / target, "nothing")

    def residual_at(width: int) -> float:
        return (N + (width - size.mlp_hidden) * per_width - target) / target

    multiple = 64
    width = round(ideal / multiple) * multiple
    while multiple > 1 and (width < 1 or abs(residual_at(width)) > tolerance / 5):
        multiple //= 2
        width = round(ideal / multiple) * multiple
    if width < 1 or abs(residual_at(width)) > tolerance:
        near = residual_at(max(width, 1))
        raise SettingError(
            f"mix={mix.name} at size={size.name} cannot be matched to the transformer's "
            f"N = {target:,} within {tolerance:.1%}: mlp_hidden={max(width, 1)} leaves "
            f"{near:+.1%}; use protocol.match=blueprint, or a size with a wider MLP."
        )
    return Matched(
        replace(plain, mlp_hidden=width),
        target,
        residual_at(width),
        f"mlp_hidden {size.mlp_hidden} → {width}",
    )
