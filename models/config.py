"""What a model is: widths, the mixer of every layer, and how the block stands around it. No torch.

A size (`Blueprint`) knows nothing of mixers, a mixer's settings nothing of other mixers. What all
mixers share stands in `ModelConfig` itself, what one mixer reads in a settings object of its own,
and only mixers that are used have one. `models/mix.py` fills a blueprint with a mix.
Sources: Merrill et al. 2026 (Olmo Hybrid), section 4.1 and appendix D.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from models.errors import SettingError, one_of

INITS = ("normal", "fan_in")
INPUTS, OUTPUTS = "inputs", "outputs"
NORMS = (INPUTS, OUTPUTS)
MLPS = {"swiglu": 3, "relu2": 2, "none": 0}
"""Kinds of MLP -> matrices of d_model × mlp_hidden that each holds."""
MLP = "mlp"
"""The layer of `ModelConfig.layers` that is an MLP of its own."""


@dataclass(frozen=True)
class Blueprint:
    """A size: the transformer's widths, which every mix of the size shares."""

    name: str
    d_model: int
    n_layers: int
    """Pairs of a mixer and an MLP."""
    n_heads: int
    mlp_hidden: int
    n_kv_heads: int | None = None
    """Heads of the keys and values, each shared by a group of query heads; None: as n_heads."""
    init: str = "normal"
    """Matrices and embedding: `normal` draws all at 0.02, as Olmo 3 does; `fan_in` matrices at
    1/√inputs and the embedding at 1, for widths at which 0.02 is far too small."""

    def __post_init__(self) -> None:
        if self.init not in INITS:
            raise one_of("size.init", self.init, INITS)
        for setting in ("d_model", "n_layers", "n_heads", "mlp_hidden"):
            if (value := getattr(self, setting)) < 1:
                raise SettingError(f"size.{setting}={value} must be at least 1.")
        if self.d_model % self.n_heads or (self.d_model // self.n_heads) % 2:
            valid = [str(n) for n in range(1, self.d_model // 2 + 1) if self.d_model % (2 * n) == 0]
            step = 2 * self.n_heads
            width = max(round(self.d_model / step), 1) * step
            raise SettingError(
                f"size={self.name}: size.n_heads={self.n_heads} must divide size.d_model="
                f"{self.d_model} into heads of an even width (rotary positions turn pairs); give "
                f"size.d_model={width}"
                + (f", or size.n_heads of {', '.join(valid)}." if valid else ".")
            )
        if self.n_kv_heads is not None and (self.n_kv_heads < 1 or self.n_heads % self.n_kv_heads):
            divisors = [n for n in range(1, self.n_heads + 1) if self.n_heads % n == 0]
            raise one_of("size.n_kv_heads", self.n_kv_heads, divisors)

    @property
    def head_dim(self) -> int:
        return self.d_model // self.n_heads


def size_name(file: Mapping[str, Any], size: Mapping[str, Any]) -> str:
    """The name of a size: as it has it while its blueprint is the file's, and else with what is
    another, like 60m_d_model_64. Fields that the file does not hold are not compared."""
    changed = [
        f"{field.name}_{size[field.name]}"
        for field in fields(Blueprint)
        if field.name in file and size.get(field.name, file[field.name]) != file[field.name]
    ]
    return "_".join([str(size["name"]), *changed])


@dataclass(frozen=True)
class MupBase:
    """The widths and depth at which the maximal update parametrization (models/parametrization.py)
    and the standard one are the same."""

    d_model: int
    head_dim: int
    n_layers: int
    """Pairs of a mixer and an MLP."""
    mlp_hidden: int | None = None
    """Of this mix at the base, matched there too; None: as wide for d_model as the model's."""


@dataclass(frozen=True)
class LayerKind:
    """What the layers of one name in a pattern are."""

    mixer: str
    """A name in models.mixers, or the dotted path of a package with a `MIXER`; `mlp`."""
    norm: str
    """Where the norms of mixer and MLP stand: on their `inputs`, or on their `outputs`."""
    settings: Any = None
    """The mixer's own dataclass; None for a layer that is an MLP."""


@dataclass(frozen=True)
class ModelConfig:
    """Everything that decides a model's parameters and function.

    A field with a default holds it in most models, and stays out of a run's identity there.
    """

    vocab_size: int
    d_model: int
    n_heads: int
    mlp_hidden: int
    """Width of every MLP; 0 where there is none."""
    layers: tuple[str, ...]
    """The kind of every layer: a mixer with its MLP, unless MLPs are layers of their own."""
    kinds: Mapping[str, LayerKind]
    """The kinds that stand in `layers`, and no others."""
    init: str
    mlp: str = "swiglu"
    norm_eps: float = 1e-6
    mup: MupBase | None = None
    """What the maximal update parametrization scales from, which decides initial values and each
    parameter's learning rate; None: the standard parametrization."""

    @property
    def n_layers(self) -> int:
        return len(self.layers)

    @property
    def n_pairs(self) -> int:
        """Pairs of a mixer and an MLP: half the layers where MLPs are layers of their own."""
        return self.n_layers // 2 if MLP in self.kinds else self.n_layers

    @property
    def head_dim(self) -> int:
        return self.d_model // self.n_heads

    @property
    def mixers(self) -> tuple[str, ...]:
        """Names of the mixers in the model, each once."""
        return tuple(dict.fromkeys(k.mixer for k in self.kinds.values() if k.mixer != MLP))

    def kind(self, layer: int) -> LayerKind:
        return self.kinds[self.layers[layer]]

    def settings(self, layer: int) -> Any:
        """The settings object that a layer's mixer reads."""
        return self.kind(layer).settings

    def has_mixer(self, layer: int) -> bool:
        return self.layers[layer] != MLP

    def has_mlp(self, layer: int) -> bool:
        """Whether a layer holds an MLP: all do, unless MLPs are layers of their own or absent."""
        return self.layers[layer] == MLP or (self.mlp != "none" and MLP not in self.kinds)


def round_up(value: float, multiple: int) -> int:
    """The smallest multiple that is not below `value`."""
    return int(-(-value // multiple) * multiple)
