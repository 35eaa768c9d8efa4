"""A mix made as large, or as expensive, as the transformer of its size, by one knob.

`params` equates N (without the input embedding, LM head in), `flops` the training FLOPs per token
at the training context, `blueprint` nothing. The knob that moves is the MLP's width, or the heads
as in Olmo Hybrid 7B (Merrill et al. 2026): heads of constant width are removed, and with them the
model's width, d_model = heads · head width. The transformer it is compared with is that of the
untouched blueprint under the protocol's own windows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from models.config import Blueprint, ModelConfig
from models.cost import flops_per_token, parameters
from models.errors import SettingError, one_of
from models.mix import TRANSFORMER, Geometry, Mix, build_config

MATCHES = ("blueprint", "flops", "params")
KNOBS = ("heads", "mlp_hidden")
COARSEST = 64
"""Widths of an MLP are multiples of this where that comes near enough."""
MOST_WIDTHS = 64
"""Widths of a model that are tried for the sentence on one that cannot be matched."""


@dataclass(frozen=True)
class Matched:
    """A model and how it came to its size."""

    config: ModelConfig
    N_target: int
    """The transformer's N, whatever was matched: budget, batch and learning rate follow it."""
    residual: float
    """What is left: (mix - transformer) / transformer in `quantity`."""
    quantity: str
    """What was matched, `N` or `FLOPs per token`; `N` where nothing was."""
    moved: str
    """What the match changed, in words."""

    def __str__(self) -> str:
        left = f" ({self.quantity} {self.residual:+.3%})" if self.residual else ""
        return self.moved + left


def match(
    mix: Mix,
    size: Blueprint,
    geometry: Geometry,
    vocab_size: int,
    *,
    how: str = "params",
    knob: str = "mlp_hidden",
    tolerance: float = 0.005,
    context: int | None = None,
    with_help: bool = True,
) -> Matched:
    """The mix at a size, matched to the size's transformer by `knob`.

    context: training sequence length in tokens; `flops` needs it, and no window of the geometry
    may be longer. Raises SettingError where no setting of the knob comes within `tolerance`
    (relative), saying how near the nearest came and, `with_help`, which settings would do.
    """
    check_rules(how, knob)
    if context is not None:
        check_windows(geometry, size, context)
    elif how == "flops":
        raise ValueError("flops are matched at a context; give match() one")
    plain = build_config(mix, size, geometry, vocab_size, context)
    transformer = build_config(TRANSFORMER, size, geometry, vocab_size)
    if context is not None:
        _check_own_windows(mix, plain, context)
    N_target = parameters(transformer)[0]

    def measure(config: ModelConfig) -> float:
        return flops_per_token(config, context or 0) if how == "flops" else parameters(config)[0]

    target = measure(transformer)
    quantity = "FLOPs per token" if how == "flops" else "N"

    def residual(config: ModelConfig) -> float:
        return (measure(config) - target) / target

    if mix.mlp == "none" and how != "blueprint" and knob == "mlp_hidden":
        raise SettingError(
            f"mix={mix.name} has no MLP (mix.mlp=none), so protocol.knob=mlp_hidden cannot match "
            "it; give protocol.knob=heads, or protocol.match=blueprint."
        )
    if how == "blueprint" or measure(plain) == target:
        return Matched(plain, N_target, residual(plain), quantity, "nothing")
    if knob == "heads":
        config = _nearest_heads(mix, size, geometry, vocab_size, context, residual)
        moved = (
            f"heads {size.n_heads} → {config.n_heads}, d_model {size.d_model} → {config.d_model}"
        )
        setting = f"{config.n_heads} heads"
        if config.n_heads == size.n_heads:
            moved = "nothing"
    else:
        config = _nearest_mlp(plain, residual, tolerance)
        moved = f"mlp_hidden {size.mlp_hidden} → {config.mlp_hidden}"
        if config.mlp_hidden == size.mlp_hidden:
            moved = "nothing"
        setting = f"mlp_hidden={config.mlp_hidden}"
    left = residual(config)
    if abs(left) > tolerance:
        helps: list[str] = []
        if with_help:
            helps = _helps(mix, size, geometry, vocab_size, how, knob, tolerance, context)
        raise SettingError(
            f"mix={mix.name} at size={size.name} cannot be matched to the transformer's "
            f"{quantity} = {target:,.0f} within {tolerance:.2%}: the nearest, {setting}, leaves "
            f"{left:+.2%}; give {''.join(f'{one}, ' for one in helps)}protocol.tolerance="
            f"{_ceiling(abs(left))} or more, or protocol.match=blueprint, which matches nothing."
        )
    return Matched(config, N_target, left, quantity, moved)


def _helps(
    mix: Mix,
    size: Blueprint,
    geometry: Geometry,
    vocab_size: int,
    how: str,
    knob: str,
    tolerance: float,
    context: int | None,
) -> list[str]:
    """Settings that would match within the tolerance: the nearest width, the nearest number of
    heads, the other knob."""

    def matches(by: str, **changes: Any) -> bool:
        try:
            match(
                mix, replace(size, **changes), geometry, vocab_size, how=how, knob=by,
                tolerance=tolerance, context=context, with_help=False,
            )  # fmt: skip
        except SettingError:
            return False
        return True

    step = 2 * size.n_heads
    widths = sorted(range(step, 2 * size.d_model + 1, step), key=lambda d: abs(d - size.d_model))
    heads = sorted(
        (n for n in range(1, size.d_model // 2 + 1) if size.d_model % (2 * n) == 0),
        key=lambda n: abs(n - size.n_heads),
    )
    other = next(one for one in KNOBS if one != knob)
    d_models = (f"size.d_model={d}" for d in widths[:MOST_WIDTHS] if matches(knob, d_model=d))
    n_heads = (f"size.n_heads={n}" for n in heads if matches(knob, n_heads=n))
    knobs = [f"protocol.knob={other}"] if matches(other) else []
    return [*islice(d_models, 1), *islice(n_heads, 1), *knobs]


def check_rules(how: str, knob: str) -> None:
    """Raise SettingError where there is no such match or knob."""
    if how not in MATCHES:
        raise one_of("protocol.match", how, MATCHES)
    if knob not in KNOBS:
        raise one_of("protocol.knob", knob, KNOBS)


def check_windows(geometry: Geometry, size: Blueprint, context: int) -> None:
    """Raise SettingError where a sliding window is longer than the context it slides over."""
    longest = max(geometry.windows, default=0)
    if longest > context:
        raise SettingError(
            f"protocol.windows={list(geometry.windows)} has a window longer than the "
            f"context={context} of size={size.name}; give windows of at most {context} tokens "
            f"([] for full attention), or a size with a context of at least {longest}."
        )


def _check_own_windows(mix: Mix, config: ModelConfig, context: int) -> None:
    """Raise SettingError where a mix sets a window longer than the context."""
    for layer in range(config.n_layers):
        windows = getattr(config.settings(layer), "windows", ()) or (0,) * config.n_layers
        if windows[layer] > context:
            kind = config.layers[layer]
            raise SettingError(
                f"mix.{kind}_window={windows[layer]} of mix={mix.name} is longer than the "
                f"context={context}; give at most that, or 0 for full attention."
            )


def _nearest_mlp(
    plain: ModelConfig, residual: Callable[[ModelConfig], float], tolerance: float
) -> ModelConfig:
    """The coarsest width (multiples of 64 down to 1) within a fifth of the tolerance, else the
    single nearest. N and FLOPs are both linear in the width, so the ideal one is solved for."""
    start = residual(plain)
    per_width = residual(replace(plain, mlp_hidden=plain.mlp_hidden + 1)) - start
    ideal = plain.mlp_hidden - start / per_width
    multiple = COARSEST
    while True:
        config = replace(plain, mlp_hidden=max(1, round(ideal / multiple) * multiple))
        if multiple == 1 or (
            config.mlp_hidden >= multiple and abs(residual(config)) <= tolerance / 5
        ):
            return config
        multiple //= 2


def _nearest_heads(
    mix: Mix,
    size: Blueprint,
    geometry: Geometry,
    vocab_size: int,
    context: int | None,
    residual: Callable[[ModelConfig], float],
) -> ModelConfig:
    """The number of heads that comes nearest, keys and values keeping theirs."""
    step = size.n_kv_heads or 1
    configs = [
        build_config(
            mix, replace(size, n_heads=n, d_model=n * size.head_dim), geometry, vocab_size, context
        )
        for n in range(step, 2 * size.n_heads + 1, step)
    ]
    return min(configs, key=lambda config: abs(residual(config)))


def _ceiling(residual: float) -> str:
    """The smallest tolerance in thousandths that would hold."""
    return f"{int(residual * 1000) / 1000 + 0.001:g}"
