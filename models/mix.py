"""A mix: which mixers stand in which layers, and what becomes of a size that it fills.

A pattern is a list of layer kinds or one string of letters. A kind is a mixer's name, or a name
that the mix gives to a mixer with settings of its own. Where `-`, an MLP of its own, occurs in a
pattern, MLPs stand only where written and a layer is one sublayer, as in Megatron's patterns.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from models.config import (
    INPUTS,
    MLP,
    MLPS,
    NORMS,
    Blueprint,
    LayerKind,
    ModelConfig,
)
from models.errors import SettingError, one_of
from models.mixer import Mixer, Place
from models.mixers import MIXERS, lookup
from models.settings import from_dict, open_field, split_defaults, unknown

PLACEMENTS = ("interleaved", "middle")
MLP_LETTER = "-"
RESERVED = ("mixer", "letter")
"""Of a kind's definition, what is no option of its mixer."""
KIND = re.compile(r"[A-Za-z0-9_]+")


def _names(cls: type) -> list[str]:
    return [field.name for field in fields(cls)]


def _under(prefix: str, names: Iterable[str], options: Mapping[str, Any]) -> dict[str, Any]:
    """Those of `names` that are set in `options` behind the prefix."""
    return {name: options[prefix + name] for name in names if prefix + name in options}


def _filled(cls: type, values: Mapping[str, Any], group: str) -> Any:
    """A mixer's options or rules from the values set; `group` is how their names begin."""
    try:
        return from_dict(cls, values, group, joint="_")
    except SettingError as error:
        # A mixer knows what it has to set, and not under which name.
        where = "" if str(error).startswith(group) else f"{group}_"
        raise SettingError(f"{where}{error}") from None


def rule_names(mixers: Iterable[Mixer]) -> list[str]:
    """What a protocol may set of these mixers: `<mixer>_<rule>`."""
    return sorted({f"{m.name}_{rule}" for m in mixers for rule in _names(m.rules)})


def check_rules_of(
    options: Mapping[str, Any], mixers: Iterable[Mixer], valid: Iterable[str] = ()
) -> dict[str, Any]:
    """The rules among `options` that these mixers read.

    valid: the protocol's own settings, to name in an error. Raises SettingError for a rule that
    is neither theirs nor of a mixer that comes with the project, or cannot be what it is set to.
    """
    records = {m.name: m for m in (*MIXERS.values(), *mixers)}
    known = rule_names(records.values())
    for key in options:
        if key not in known:
            raise unknown(key, (*valid, *known), "protocol")
    for record in records.values():
        Geometry(options=options).rules(record)
    read = rule_names(mixers)
    return {key: value for key, value in options.items() if key in read}


@dataclass(frozen=True)
class Geometry:
    """How mixers' widths and windows follow from the blueprint: part of the protocol."""

    windows: tuple[int, ...] = ()
    """Sliding windows by layer index, repeated over the depth, 0 for full; the last layer is
    always full. Empty: full attention everywhere."""
    rope_theta: float = 500_000.0
    options: Mapping[str, Any] = open_field()
    """Rules of mixers, `<mixer>_<rule>`."""

    def rules(self, mixer: Mixer) -> Any:
        """A mixer's rules, those that are not set at their defaults."""
        values = _under(f"{mixer.name}_", _names(mixer.rules), self.options)
        return _filled(mixer.rules, values, f"protocol.{mixer.name}")


@dataclass(frozen=True)
class Mix:
    """A layer pattern over mixers, and the block around them."""

    name: str
    pattern: str | tuple[str, ...]
    """Layer kinds in order, repeated over the depth (`interleaved`), or their letters."""
    placement: str = "interleaved"
    """`interleaved` repeats the pattern; `middle` puts its attention layers side by side at
    mid-depth, and one last."""
    last: str | None = None
    """Kind that the last layer is made to be, whatever the pattern says (None: as it falls)."""
    norm: str | None = None
    """Norms of all layers on their `inputs` or their `outputs`; None: each mixer's own place, and
    inputs for an MLP of its own."""
    mlp: str = "swiglu"
    """`swiglu`, `relu2` (squared ReLU, two matrices) or `none`."""
    norm_eps: float = 1e-6
    """Of the norms around mixers and MLPs, of queries and keys, and before the head."""
    kinds: Mapping[str, Any] = field(default_factory=dict)
    """Names of the mix's own for a mixer with settings: {name: {mixer: …, letter: …, option: …}}.
    The mixer may be the dotted path of a module that holds one."""
    options: Mapping[str, Any] = open_field()
    """Settings of mixers, `<kind>_<option>`."""

    def __post_init__(self) -> None:
        for setting, valid in (("placement", PLACEMENTS), ("mlp", tuple(MLPS))):
            if getattr(self, setting) not in valid:
                raise one_of(f"mix.{setting}", getattr(self, setting), valid)
        if self.norm is not None and self.norm not in NORMS:
            raise one_of("mix.norm", self.norm, NORMS)
        if not self.norm_eps > 0:
            raise SettingError(f"mix.norm_eps={self.norm_eps:g} must be above 0.")
        known = self._known_kinds()
        if isinstance(self.pattern, str):
            object.__setattr__(self, "pattern", self._from_letters(self.pattern, known))
        if not self.pattern:
            raise SettingError(f"mix.pattern of {self.name} is empty; give a list of mixers.")
        for kind in (*self.pattern, *([self.last] if self.last else [])):
            if kind not in known and kind != MLP:
                raise one_of("mixer", kind, known)
        if MLP in self.pattern and self.mlp == "none":
            raise SettingError(
                f"mix.mlp=none, but mix.pattern of {self.name} has MLPs of its own ({MLP_LETTER}); "
                "leave them out, or give mix.mlp a kind."
            )
        if set(self.pattern) == {MLP}:
            raise SettingError(f"mix.pattern of {self.name} has no mixer.")
        if self.placement == "middle" and MLP in self.pattern:
            raise SettingError(
                f"mix.placement=middle has no place for MLPs of their own ({MLP_LETTER}) in "
                f"mix.pattern of {self.name}; write the pattern out."
            )
        if self.placement == "middle" and not any(known[k].attends for k in self._mixers()):
            raise SettingError(
                f"mix.placement=middle needs an attention layer in "
                f"mix.pattern={list(self.pattern)}."
            )
        options = [f"{kind}_{n}" for kind, record in known.items() for n in _names(record.options)]
        for key in self.options:
            if key not in options:
                raise unknown(key, (*_names(Mix), *options), "mix")
        for kind, record in known.items():
            self._options(kind, record)

    def mixer(self, kind: str) -> Mixer:
        """The mixer that layers of a kind have."""
        return lookup(self.path(kind))

    def mixers(self) -> list[Mixer]:
        """The mixers of the pattern, each once."""
        return list({m.name: m for m in map(self.mixer, self._mixers())}.values())

    def layers(self, n_layers: int) -> tuple[str, ...]:
        """The kind of every layer of `n_layers` pairs of a mixer and an MLP.

        Where MLPs are layers of their own these are twice as many. Raises SettingError where the
        pattern does not divide.
        """
        pattern, period = self.pattern, len(self.pattern)
        n = 2 * n_layers if MLP in pattern else n_layers
        if self.placement == "middle":
            # Olmo Hybrid, "middle": n/r attention layers centred, and the final one.
            attention = [k for k in pattern if k != MLP and self.mixer(k).attends]
            others = [k for k in pattern if k not in attention]
            n_centre = n * len(attention) // period
            first = (n - n_centre) // 2
            layers = [others[i % len(others)] for i in range(n)]
            layers[first : first + n_centre] = [
                attention[i % len(attention)] for i in range(n_centre)
            ]
        else:
            if n % period and self.last is None:
                raise self._does_not_divide(n_layers, n)
            layers = [pattern[i % period] for i in range(n)]
        if self.last is not None:
            layers[-1] = self.last
        return tuple(layers)

    def reads(self) -> Mix:
        """The mix less what makes no difference to it: kinds that are not in its pattern, their
        options, and options at their defaults."""
        options = {
            f"{kind}_{name}": value
            for kind in self._mixers()
            for name, value in split_defaults(self.options_of(kind))[0].items()
            if f"{kind}_{name}" in self.options
        }
        kinds = {kind: self.kinds[kind] for kind in self._mixers() if kind in self.kinds}
        return replace(self, kinds=kinds, options=options)

    def _mixers(self) -> list[str]:
        """Kinds of the pattern that hold a mixer, each once."""
        return [k for k in dict.fromkeys((*self.pattern, self.last)) if k and k != MLP]

    def path(self, kind: str) -> str:
        """The name or dotted path of a kind's mixer."""
        return self.kinds[kind]["mixer"] if kind in self.kinds else kind

    def _known_kinds(self) -> dict[str, Mixer]:
        known = dict(MIXERS)
        for kind, content in self.kinds.items():
            if not isinstance(content, Mapping) or not isinstance(content.get("mixer"), str):
                raise SettingError(
                    f"mix.kinds.{kind}={content!r} must name a mixer and what is set of it, like "
                    "{mixer: NAME}."
                )
            if kind == MLP or kind in MIXERS or not KIND.fullmatch(kind):
                raise SettingError(
                    f"mix.kinds.{kind} must be a name of its own, of letters, digits and "
                    f"underscores; {', '.join((*MIXERS, MLP))} stand for themselves."
                )
            known[kind] = lookup(content["mixer"])
        return known

    def options_of(self, kind: str) -> Any:
        """A kind's options: those of its definition, and those set under its name."""
        return self._options(kind, self.mixer(kind))

    def _options(self, kind: str, record: Mixer) -> Any:
        definition = self.kinds.get(kind, {})
        values = {key: value for key, value in definition.items() if key not in RESERVED}
        values |= _under(f"{kind}_", _names(record.options), self.options)
        return _filled(record.options, values, f"mix.{kind}")

    def _from_letters(self, letters: str, known: Mapping[str, Mixer]) -> tuple[str, ...]:
        kinds = {m.letter: kind for kind, m in known.items() if m.letter and kind in MIXERS}
        kinds |= {
            content["letter"]: kind for kind, content in self.kinds.items() if "letter" in content
        }
        kinds[MLP_LETTER] = MLP
        for letter in letters:
            if letter not in kinds:
                valid = ", ".join(f"{letter} {kind}" for letter, kind in kinds.items())
                raise SettingError(
                    f"mix.pattern={letters} has the letter {letter}; valid: {valid}, or a list of "
                    f"{', '.join(known)}."
                )
        return tuple(kinds[letter] for letter in letters)

    def _does_not_divide(self, n_layers: int, n: int) -> SettingError:
        period = len(self.pattern)
        below = n - n % period
        depths = [d for d in (below, below + period) if d and not (MLP in self.pattern and d % 2)]
        if MLP in self.pattern:
            depths = [d // 2 for d in depths]
            what = f"the {period} sublayers of mix={self.name}, two a layer"
        else:
            what = f"the {period} layers of mix={self.name}"
        ways = f"give {' or '.join(map(str, depths))}" if depths else "give another pattern"
        return SettingError(
            f"size.n_layers={n_layers} is not a multiple of {what}; {ways}, or set mix.last."
        )


TRANSFORMER = Mix("transformer", (next(iter(MIXERS)),))
"""Softmax attention in every layer: what every mix of a size is matched to."""


def build_config(
    mix: Mix,
    size: Blueprint,
    geometry: Geometry,
    vocab_size: int,
    *,
    mlp_hidden: int | None = None,
) -> ModelConfig:
    """Fill a blueprint with a mix. `mlp_hidden` overrides the blueprint's, as matching does."""
    layers = mix.layers(size.n_layers)
    mixers = [i for i, kind in enumerate(layers) if kind != MLP]
    kinds = {}
    for kind in dict.fromkeys(layers):
        if kind == MLP:
            kinds[kind] = LayerKind(MLP, mix.norm or INPUTS)
            continue
        record = mix.mixer(kind)
        place = Place(
            size,
            {i: index for index, i in enumerate(mixers) if layers[i] == kind},
            len(layers),
            len(mixers),
            geometry.windows,
            geometry.rope_theta,
        )
        settings = record.settings(mix.options_of(kind), geometry.rules(record), place)
        kinds[kind] = LayerKind(mix.path(kind), mix.norm or record.norm, settings)
    width = size.mlp_hidden if mlp_hidden is None else mlp_hidden
    return ModelConfig(
        vocab_size=vocab_size,
        d_model=size.d_model,
        n_heads=size.n_heads,
        mlp_hidden=0 if mix.mlp == "none" else width,
        layers=layers,
        kinds=kinds,
        init=size.init,
        mlp=mix.mlp,
        norm_eps=mix.norm_eps,
    )
