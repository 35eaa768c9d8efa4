"""What a mixer says of itself: the record from which everything else in the project learns of it.

A mixer is a folder of models/mixers, or a package of your own, whose module holds a `MIXER`. The
module is plain Python; the layer and the operators, which need torch, are named and not imported,
so that tables and plans load neither. docs/mixers.md writes one.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from models.config import NORMS, Blueprint, ModelConfig
from models.errors import SettingError, one_of

FP32_BYTES = 4


@dataclass(frozen=True)
class NoSettings:
    """For a mixer that has nothing to set."""


@dataclass(frozen=True)
class Place:
    """Where the layers of one kind stand, and what the protocol says of every model."""

    size: Blueprint
    layers: Mapping[int, int]
    """Index of each in `ModelConfig.layers` -> its index among the model's mixers, which differ
    where MLPs are layers of their own."""
    n_layers: int
    n_mixers: int
    windows: tuple[int, ...]
    """The protocol's sliding windows in tokens by index among the mixers, repeated over the depth;
    0 for full."""
    rope_theta: float
    context: int | None = None
    """Tokens that the model is trained on at a time; None where that is not known."""


@dataclass(frozen=True)
class Growth:
    """How many times as large a model is as the base of its parametrization."""

    width: float
    """d_model over the base's; widths of MLPs and of all heads together grow as much."""
    head: float
    """A head's width over the base's."""
    base_width: int
    """The base's d_model."""


@dataclass(frozen=True)
class Role:
    """What models/parametrization.py has to know of a parameter to scale it with the model."""

    inputs: float = 1.0
    """Times as many terms as at the base in each sum that the parameter makes: the growth of a
    matrix's inputs; 1 for gains, biases, convolutions and whatever else acts a channel at a time.
    """
    factor: float = 1.0
    """What the parameter counts in the forward pass, relative to the base."""
    last: bool = False
    """Whether the parameter is of the last linear map, which makes the layer's output."""


def vectors(*names: str) -> dict[str, Role]:
    """Parameters that act a channel at a time, or a head."""
    return {name: Role() for name in names}


@dataclass(frozen=True)
class Mixer:
    """A mixer's facts. Counts hold everything inside of the layer, the norms around it not.

    Every count is called with (config, layer index, …); `config.settings(layer)` is the mixer's.
    """

    name: str
    """Also the prefix of its settings: `mix.<name>_<option>`, `protocol.<name>_<rule>`."""
    layer: str
    """`module:Class` of the nn.Module, built as `Class(config, index)`: docs/mixers.md has its
    methods."""
    norm: str
    """Where the block's norms stand as published, unless a mix says otherwise: `inputs` (before
    mixer and MLP) or `outputs` (behind them)."""
    settings: Callable[[Any, Any, Place], Any]
    """(options, rules, place) -> the frozen dataclass that layer and counts read."""
    parameters: Callable[[ModelConfig, int], int]
    """(config, layer) -> parameters of the layer."""
    flops: Callable[[ModelConfig, int, int], float]
    """(config, layer, context) -> forward FLOPs per token, averaged over a context."""
    decode_bytes: Callable[[ModelConfig, int, int, int], tuple[int, int]]
    """(config, layer, context, element_bytes) -> what decoding one sequence keeps: bytes that do
    not grow with the context (state), and bytes of keys and values after `context` tokens."""
    activation_bytes: Callable[[ModelConfig, int, int, int], float]
    """(config, layer, context, element_bytes) -> bytes per token that the layer keeps for its
    backward pass, by the convention of `models.cost.activation_bytes`."""
    products: Callable[[ModelConfig, int], Sequence[tuple[int, int]]] | None = None
    """(config, layer) -> (inputs, outputs) of each of the layer's projections, for the time that a
    step takes (models/roofline.py); None: all parameters in one product of d_model inputs."""
    options: type = NoSettings
    """Dataclass of what a mix may set, every field with a default."""
    rules: type = NoSettings
    """Dataclass of what a protocol may set, every field with a default."""
    saved: type = NoSettings
    """The dataclass that `settings` returns, to read it back from a record."""
    letter: str | None = None
    """What stands for it in a pattern of letters."""
    problem: Callable[[ModelConfig, Any], str] = lambda _config, _settings: ""
    """(config, settings) -> what in settings read from a file no layer can have, as
    `NAME=VALUE cannot be used; valid: ….`; empty where nothing."""
    attends: bool = False
    """Softmax attention over tokens: the layer has a `window` in tokens, 0 for all, and
    `placement: middle` puts such layers at mid-depth."""
    undecayed: tuple[str, ...] = ()
    """Names of the layer's parameters that take no weight decay."""
    roles: Callable[[ModelConfig, int, Growth], Mapping[str, Role]] | None = None
    """(config, layer, growth) -> the role of every parameter of the layer, by its name; None: the
    mixer has no rule for `protocol.parametrization=mup`, which is then refused."""
    operators: tuple[str, ...] = ()
    """`module:OPERATOR` of each recurrent operator (models.ops.operator) that it computes with."""
    confounds: tuple[str, ...] = ()
    """`module:rule` of each models.confound.Rule about its settings: what a comparison should
    watch."""

    def __post_init__(self) -> None:
        if self.norm not in NORMS:
            raise one_of(f"norm of mixer {self.name}", self.norm, NORMS)

    def layer_class(self) -> Any:
        """The nn.Module class (imports torch)."""
        return attribute(self.layer)


def at_least(least: float, **values: float) -> None:
    """Raise SettingError where an option or a rule is below what it must be."""
    for name, value in values.items():
        if value < least:
            raise SettingError(f"{name}={value} must be at least {least}.")


def not_positive(settings: Any, *names: str) -> str:
    """`NAME=VALUE cannot be used; …` of the first of these numbers that is not above 0."""
    for name in names:
        if (value := getattr(settings, name)) is not None and value <= 0:
            return f"{name}={value} cannot be used; valid: a number above 0."
    return ""


def attribute(path: str) -> Any:
    """What a `module:attribute` names.

    Raises SettingError where there is no such thing.
    """
    module, _, name = path.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise SettingError(
            f"a mixer names {path}, which cannot be imported ({error}); valid: module:attribute."
        ) from error


def chunk_tokens(value_dim: int, context: int) -> int:
    """Tokens a chunk of a recurrent operator is counted with.

    64, as in the published kernels; 32 where value heads are narrower than 64, as in the tiny
    ladder: there a chunk's squares would cost more than all it saves.
    """
    return min(64 if value_dim >= 64 else 32, context)
