"""The maximal update parametrization (muP): how initial values and rates change with the size.

With it a learning rate found at one width and depth is right at others: in every step each
parameter changes what it adds to by an amount that does not depend on the width (Yang et al. 2022,
Tensor Programs V, arXiv 2203.03466), nor on the depth (Dey et al. 2025, CompleteP, arXiv
2505.01618). All is relative to a base (models.config.MupBase), where nothing changes.

Written with r, the growth of a matrix's inputs, m, that of the model's width, L, that of its depth,
and c, a factor of the forward pass; rates are AdamW's:

    parameter                  initial std   rate      eps          published in
    embedding                  1             1         1/m          A; eps: B.3 of A, D
    head                       1/m           1/m       1            A
    final norm                 1             1         1/m          B.1 of A; eps: D
    matrix in a block          c/√r          c/r       1/(m L c)    A; L: D
    gain, bias, convolution,   c             c         1/(m L c)    B.1, B.2 of A; L: D
    decay, step size, skip
      c of the last map of a residual branch, or of the norm behind it: 1/L            D
      c of what makes queries: √(base head width / head width)          B.1 of A

A: Yang et al. 2022, Table 3 and appendix B. D: Dey et al. 2025, Table 1, with their α = 1. What
each mixer's parameters are, and c where they have another, its record says (`roles`), and whether
that is published or derived there.

No factor stands in the forward pass. A parameter that counts c times is drawn c times as large,
and its rate is c, its eps 1/c: under AdamW that is the same training (Yang et al. 2022, Lemma J.1).
So a trained model is a model like any other: decoding and exports know nothing of its
parametrization. Clipping by the norm of all gradients does: that of a last map is L times what it
would be with a factor. For the width a constant threshold is right in this form (ibid., B.3).

Weight decay is decoupled, and rate times decay is the same for all parameters that decay (Dey et
al., Table 1: λ·m where the rate is 1/m).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from models.config import OUTPUTS, ModelConfig, MupBase
from models.errors import SettingError
from models.mixer import Growth, Role
from models.mixers import lookup

PARAMETRIZATIONS = ("standard", "mup")
BASES = {"fan_in": MupBase(32, 16, 4), "normal": MupBase(384, 48, 8)}
"""Initial values (`size.init`) -> the smallest size of the ladder with them: 50k, 60m."""
MLP_RATIOS = {"fan_in": 64 / 32, "normal": 1536 / 384}
"""mlp_hidden over d_model of the transformer there."""


@dataclass(frozen=True)
class Scale:
    """A parameter's share in the rule, 1 at the base."""

    value: float = 1.0
    """Of what its mixer draws, or of the ones that a gain begins with."""
    std: float = 1.0
    """Of a matrix, over the standard one of the model's `init`."""
    lr: float = 1.0
    eps: float = 1.0


UNSCALED = Scale()


def scales(config: ModelConfig) -> Callable[[str], Scale]:
    """The scale of every parameter of a model, by its name.

    Raises SettingError where a mixer has no rule.
    """
    base = config.mup
    if base is None:
        return lambda _name: UNSCALED
    width, depth = config.d_model / base.d_model, config.n_pairs / base.n_layers
    growth = Growth(width, config.head_dim / base.head_dim, base.d_model)
    roles = [_roles(config, layer, growth) for layer in range(config.n_layers)]

    def scale(name: str) -> Scale:
        if name == "embedding.weight" or name == "norm.weight":
            return Scale(eps=1 / width)
        if name == "head.weight":
            std = width**-0.5 if config.init == "fan_in" else 1 / width
            return Scale(std=std, lr=1 / width)
        _, layer, inside = name.split(".", 2)
        role = roles[int(layer)].get(inside)
        if role is None:
            mixer = config.kind(int(layer)).mixer
            raise SettingError(
                f"mixer={mixer} says no role of its parameter {inside.partition('.')[2]}, which "
                "protocol.parametrization=mup needs (docs/mixers.md)."
            )
        factor = role.factor / depth if role.last else role.factor
        # fan_in draws a matrix by its inputs already.
        std = factor if config.init == "fan_in" else factor * role.inputs**-0.5
        eps = 1 / (width * depth * factor)
        return Scale(value=factor, std=std, lr=factor / role.inputs, eps=eps)

    return scale


def check(config: ModelConfig) -> None:
    """Raise SettingError where a model's parametrization has no rule for one of its mixers."""
    scales(config)


def _roles(config: ModelConfig, layer: int, growth: Growth) -> dict[str, Role]:
    """Roles of a block's parameters, by their names in it."""
    kind, roles = config.kind(layer), {}
    behind = kind.norm == OUTPUTS
    if config.has_mixer(layer):
        record = lookup(kind.mixer)
        if record.roles is None:
            raise SettingError(
                f"mixer={kind.mixer} says no roles of its parameters, which "
                "protocol.parametrization=mup needs (docs/mixers.md); give "
                "protocol.parametrization=standard."
            )
        for name, role in record.roles(config, layer, growth).items():
            # Of a branch with a norm behind it, that norm's gain is the last map.
            roles[f"mixer.{name}"] = dataclasses.replace(role, last=role.last and not behind)
        roles["mixer_norm.weight"] = Role(last=behind)
    if config.has_mlp(layer):
        hidden = Role(inputs=growth.width)
        roles |= {"mlp.gate_proj.weight": hidden, "mlp.up_proj.weight": hidden}
        base = config.mup.mlp_hidden if config.mup else None
        inside = growth.width if base is None else config.mlp_hidden / base
        roles["mlp.down_proj.weight"] = Role(inputs=inside, last=not behind)
        roles["mlp_norm.weight"] = Role(last=behind)
    return roles


def parameter_groups(
    named_parameters: Iterable[tuple[str, Any]],
    scale: Callable[[str], Scale],
    *,
    undecayed: Callable[[str], bool],
    weight_decay: float,
    eps: float,
) -> list[dict[str, Any]]:
    """AdamW's parameter groups; each holds as `lr_scale` what the loop multiplies its rate with."""
    groups: dict[tuple[bool, float, float], dict[str, Any]] = {}
    for name, parameter in named_parameters:
        part, decays = scale(name), not undecayed(name)
        group = groups.setdefault(
            (decays, part.lr, part.eps),
            {
                "params": [],
                "weight_decay": weight_decay / part.lr if decays else 0.0,
                "eps": eps * part.eps,
                "lr_scale": part.lr,
            },
        )
        group["params"].append(parameter)
    return list(groups.values())
