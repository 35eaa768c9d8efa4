"""The mixers: one line each, names of what builds a layer and of what counts it.

Names rather than imports, so that counts and matching need no torch. A mixer of one's own is one
file with both, and one line here: docs/mixers.md walks through one.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from models.errors import SettingError

if TYPE_CHECKING:
    from models.cost import MixerCost


@dataclass(frozen=True)
class Mixer:
    """Where a mixer's layer and its counts are, each as `module:attribute`."""

    layer: str
    """An nn.Module built as `layer(config, index)`: see docs/mixers.md for its methods."""
    cost: str
    """A models.cost.MixerCost."""
    operators: tuple[str, ...] = ()
    """Its recurrent operators, models.ops.operator.Operator each."""


MIXERS = {
    "attn": Mixer("models.mixers.attn.layer:Attention", "models.cost:ATTN"),
    "gdn": Mixer(
        "models.mixers.gdn.layer:GatedDeltaNet",
        "models.cost:GDN",
        operators=("models.mixers.gdn.operator:OPERATOR",),
    ),
    "mamba2": Mixer(
        "models.mixers.mamba2.layer:Mamba2",
        "models.cost:MAMBA2",
        operators=("models.mixers.mamba2.operator:OPERATOR",),
    ),
}


def lookup(name: str) -> Mixer:
    """The record of a mixer: a name in MIXERS, or the dotted path of a package with MIXER."""
    if name in MIXERS:
        return MIXERS[name]
    valid = f"valid: {', '.join(MIXERS)}, or the dotted path of a package that has MIXER"
    if "." not in name.strip("."):
        raise SettingError(f"mixer={name} is not known; {valid}.")
    try:
        mixer = getattr(importlib.import_module(name), "MIXER", None)
    except (ImportError, TypeError) as error:  # TypeError: a path that begins with a dot
        raise SettingError(f"mixer={name} cannot be imported ({error}); {valid}.") from error
    if not isinstance(mixer, Mixer):
        raise SettingError(f"mixer={name} has no MIXER; {valid}.")
    return mixer


def layer_class(mixer: str) -> Any:
    """The nn.Module class of a mixer (imports torch)."""
    return _look_up(MIXERS[mixer].layer)


def cost(mixer: str) -> MixerCost:
    """The counts of a mixer."""
    return _look_up(MIXERS[mixer].cost)


def _look_up(name: str) -> Any:
    module, attribute = name.split(":")
    return getattr(importlib.import_module(module), attribute)
