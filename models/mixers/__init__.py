"""The mixers: one line each, names of what builds a layer and of what counts it.

Names rather than imports, so that counts and matching need no torch. A mixer of one's own is one
file with both, and one line here: docs/mixers.md walks through one.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from models.cost import MixerCost


@dataclass(frozen=True)
class Mixer:
    """Where a mixer's layer and its counts are, each as `module:attribute`."""

    layer: str
    """An nn.Module built as `layer(config, index)`: see docs/mixers.md for its methods."""
    cost: str
    """A models.cost.MixerCost."""


MIXERS = {
    "attn": Mixer("models.mixers.attn.layer:Attention", "models.cost:ATTN"),
    "gdn": Mixer("models.mixers.gdn.layer:GatedDeltaNet", "models.cost:GDN"),
    "mamba2": Mixer("models.mixers.mamba2.layer:Mamba2", "models.cost:MAMBA2"),
}


def layer_class(mixer: str) -> Any:
    """The nn.Module class of a mixer (imports torch)."""
    return _look_up(MIXERS[mixer].layer)


def cost(mixer: str) -> MixerCost:
    """The counts of a mixer."""
    return _look_up(MIXERS[mixer].cost)


def _look_up(name: str) -> Any:
    module, attribute = name.split(":")
    return getattr(importlib.import_module(module), attribute)
