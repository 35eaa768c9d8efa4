"""A mix: which mixers stand in which layers, and what becomes of a size that it fills.

A pattern is a list of layer kinds or one string of letters. A kind is a mixer's name, or a name
that the mix gives to a mixer with settings of its own. Where `-`, an MLP of its own, occurs in a
pattern, MLPs stand only where written and a layer is one sublayer, as in Megatron's patterns.
"""

from __future__ import annotations

import contextlib
import math
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
from models.settings import from_dict, open_field, to_dict, unknown

PLACEMENTS = ("interleaved", "middle", "spread")
MLP_LETTER = "-"
RESERVED = ("mixer", "letter")
"""Of a kind's definition, what is no option of its mixer."""
KIND = re.compile(r"[A-Za-z0-9_]+")


def _names(cls: type) -> list[str]:
    return [field.name for field in fields(cls) if not field.metadata.get("open")]


def _behind(prefix: str, error: SettingError) -> SettingError:
    """The error of a mixer, which knows its settings and not the name they are set under."""
    named = str(error).startswith(("mix.", "protocol.", "size."))
    return error if named else SettingError(f"{prefix}{error}")


def _under(prefix: str, names: Iterable[str], options: Mapping[str, Any]) -> dict[str, Any]:
    """Those of `names` that are set in `options` behind the prefix."""
    return {name: options[prefix + name] for name in names if prefix + name in options}


def _filled(cls: type, values: Mapping[str, Any], group: str) -> Any:
    """A mixer's options or rules from the values set; `group` is how their names begin."""
    try:
        return from_dict(cls, values, group, joint="_")
    except SettingError as error:
        raise _behind(f"{group}_", error) from None


def rule_names(mixers: Iterable[Mixer]) -> list[str]:
    """What a protocol may set of these mixers: `<mixer>_<rule>`."""
    return sorted({f"{m.name}_{rule}" for m in mixers for rule in _names(m.rules)})


def readable_settings(mix: Mapping[str, Any]) -> tuple[set[str], set[str]]:
    """(what a mix's file may hold as options, what a protocol may hold as rules) of its mixers.

    mix: as composed. Nothing is refused here: what is wrong with a kind, `Mix` says.
    """
    records = dict(MIXERS)
    kinds = mix.get("kinds")
    for kind, content in kinds.items() if isinstance(kinds, Mapping) else ():
        with contextlib.suppress(SettingError, TypeError, AttributeError):
            records[kind] = lookup(content.get("mixer"))
    options = {f"{kind}_{n}" for kind, record in records.items() for n in _names(record.options)}
    return options, set(rule_names(records.values()))


def check_rules_of(
    options: Mapping[str, Any], mixers: Iterable[Mixer], valid: Iterable[str] = ()
) -> dict[str, Any]:
    """All rules that these mixers read, as `options` set them or at their defaults.

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
    return {
        f"{mixer.name}_{rule}": value
        for mixer in mixers
        for rule, value in to_dict(Geometry(options=options).rules(mixer)).items()
    }


@dataclass(frozen=True)
class Geometry:
    """How mixers' widths and windows follow from the blueprint: part of the protocol."""

    windows: tuple[int, ...] = ()
    """Sliding windows by layer index, repeated over the depth, 0 for full; the last layer is
    always full. Empty: full attention everywhere."""
    rope_theta: float = 500_000.0
    options: Mapping[str, Any] = open_field()
    """Rules of mixers, `<mixer>_<rule>`."""

    def __post_init__(self) -> None:
        if any(window < 0 for window in self.windows):
            raise SettingError(
                f"protocol.windows={list(self.windows)} must be tokens, or 0 for full attention."
            )
        if not self.rope_theta > 0:
            raise SettingError(f"protocol.rope_theta={self.rope_theta:g} must be above 0.")

    def rules(self, mixer: Mixer) -> Any:
        """A mixer's rules, at their defaults where they are not set."""
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
    mid-depth, and one last; `spread` takes a mixer, attention and an MLP of its own, each once, and
    spreads a share `attention` of the layers evenly, as Nemotron-H does."""
    attention: float | None = None
    """Share of all layers that attend, with `placement: spread`."""
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
        known, letters = self._known_kinds(), self._letters()
        if isinstance(self.pattern, str):
            object.__setattr__(self, "pattern", self._from_letters(self.pattern, letters, known))
        self._check_pattern(known)
        self._check_options(known)

    def _check_pattern(self, known: Mapping[str, Mixer]) -> None:
        if not self.pattern:
            raise SettingError(f"mix.pattern of {self.name} is empty; give a list of mixers.")
        for kind in self.pattern:
            if kind not in known and kind != MLP:
                raise one_of("mixer", kind, known)
        if set(self.pattern) == {MLP}:
            raise SettingError(f"mix.pattern of {self.name} has no mixer.")
        if self.last is not None and self.last not in known and self.last not in self.pattern:
            raise one_of("mix.last", self.last, {*known, *self.pattern})
        if (self.attention is not None) != (self.placement == "spread"):
            raise SettingError(
                "mix.attention and mix.placement=spread go together; "
                f"mix={self.name} has one of them."
            )
        if self.placement == "spread":
            self._check_spread(known)
        elif MLP in self.pattern:
            self._check_mlps()
        elif self.placement == "middle":
            self._check_middle(known)

    def _check_mlps(self) -> None:
        """What does not go with MLPs that are layers of their own."""
        if self.mlp == "none":
            raise SettingError(
                f"mix.mlp=none, but mix.pattern of {self.name} has MLPs of its own ({MLP_LETTER}); "
                "leave them out, or give mix.mlp a kind."
            )
        if self.placement == "middle":
            raise SettingError(
                f"mix.placement=middle has no place for MLPs of their own ({MLP_LETTER}) in "
                f"mix.pattern of {self.name}; write the pattern out."
            )
        if self.last not in (None, MLP):
            raise SettingError(
                f"mix.last={self.last} would take the place of an MLP of its own ({MLP_LETTER}) in "
                f"mix.pattern of {self.name}; write the pattern out to its end."
            )

    def _check_spread(self, known: Mapping[str, Mixer]) -> None:
        kinds = [k for k in self.pattern if k != MLP]
        attends = [known[kind].attends for kind in kinds]
        if len(self.pattern) != 3 or sorted(attends) != [False, True] or self.last is not None:
            raise SettingError(
                f"mix.placement=spread needs a mixer, attention and an MLP of its own "
                f"({MLP_LETTER}), each once, and no mix.last; mix={self.name} has "
                f"mix.pattern={list(self.pattern)}."
            )
        if self.mlp == "none":
            raise SettingError("mix.mlp=none leaves mix.placement=spread no MLPs; give it a kind.")
        if self.attention is not None and not 0 < self.attention <= 0.5:
            raise SettingError(f"mix.attention={self.attention:g} must be above 0, at most 0.5.")

    def _spread(self, n: int) -> list[str]:
        """The kinds of n layers: pairs of the mixer and an MLP, and attention before the MLPs of
        some pairs. The number of attention layers is the nearest to the share that leaves pairs."""
        assert self.attention is not None
        (mixer,) = [k for k in self.pattern if k != MLP and not self.mixer(k).attends]
        (attends,) = [k for k in self.pattern if k != MLP and self.mixer(k).attends]
        count = max(2 * round(self.attention * n / 2), 2)
        pairs = (n - count) // 2
        if pairs < count:
            raise SettingError(
                f"size.n_layers={n // 2} leaves mix={self.name} too few pairs ({pairs}) for "
                f"{count} attention layers; give a deeper size."
            )
        before = {i * pairs // (count + 1) for i in range(1, count + 1)}  # as in the 8B model
        return [
            kind
            for pair in range(1, pairs + 1)
            for kind in ((mixer, attends, MLP) if pair in before else (mixer, MLP))
        ]

    def _check_middle(self, known: Mapping[str, Mixer]) -> None:
        if all(known[kind].attends for kind in self.pattern):
            raise SettingError(
                f"mix.placement=middle needs other layers than attention in "
                f"mix.pattern={list(self.pattern)}."
            )
        if not any(known[kind].attends for kind in self._mixers()):
            attention = ", ".join(kind for kind, record in known.items() if record.attends)
            raise SettingError(
                f"mix.placement=middle needs an attention layer ({attention}) in "
                f"mix.pattern={list(self.pattern)}."
            )

    def _check_options(self, known: Mapping[str, Mixer]) -> None:
        options = [f"{kind}_{n}" for kind, record in known.items() for n in _names(record.options)]
        for key in self.options:
            if key not in options:
                raise unknown(key, (*_names(Mix), *sorted(options)), "mix")
        for kind, record in known.items():
            self._options(kind, record)
        for key in sorted(options):
            if options.count(key) > 1 or key in _names(Mix):
                raise SettingError(
                    f"mix.{key} could be set of two things in mix={self.name}; give a kind in "
                    "mix.kinds another name."
                )
        named = dict(MIXERS)
        for kind, record in known.items():
            if named.setdefault(record.name, record) is not record:
                raise SettingError(
                    f"mix.kinds.{kind}.mixer={self.path(kind)} has the name {record.name}, and so "
                    "has another mixer; give its MIXER a name of its own."
                )

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
        if self.placement == "spread":
            return tuple(self._spread(n))
        if self.placement == "middle":
            # Olmo Hybrid, "middle": n/r attention layers centred, and the final one.
            attention = [k for k in pattern if k != MLP and self.mixer(k).attends]
            others = [k for k in pattern if k not in attention]
            n_centre = n * len(attention) // period
            ends = self.last is not None and self.last != MLP and self.mixer(self.last).attends
            if not n_centre and not ends:
                raise SettingError(
                    f"mix.placement=middle leaves mix={self.name} no attention in {n} layers; give "
                    f"mix.pattern at most {n} layers for each of attention, or set mix.last."
                )
            first = (n - n_centre) // 2
            layers = [others[i % len(others)] for i in range(n)]
            layers[first : first + n_centre] = [
                attention[i % len(attention)] for i in range(n_centre)
            ]
        else:
            if n % period and self.last is None:
                raise self._does_not_divide(n_layers)
            layers = [pattern[i % period] for i in range(n)]
        if self.last is not None:
            layers[-1] = self.last
        return tuple(layers)

    def reads(self) -> Mix:
        """The mix with all that it reads written out, and no more: the options of kinds in its
        pattern, set or not, in one place and without letters."""
        options: dict[str, Any] = {}
        kinds: dict[str, Any] = {}
        for kind in self._mixers():
            values = to_dict(self.options_of(kind))
            if kind in self.kinds:
                kinds[kind] = {"mixer": self.path(kind), **values}
            else:
                options |= {f"{kind}_{name}": value for name, value in values.items()}
        return replace(self, kinds=kinds, options=options)

    def _mixers(self) -> list[str]:
        """Kinds of the pattern that hold a mixer, each once."""
        return [k for k in dict.fromkeys((*self.pattern, self.last)) if k and k != MLP]

    def path(self, kind: str) -> str:
        """The name or dotted path of a kind's mixer."""
        path: str = self.kinds[kind]["mixer"] if kind in self.kinds else kind
        own = path.removeprefix("models.mixers.")
        return own if own in MIXERS else path

    def _known_kinds(self) -> dict[str, Mixer]:
        known = dict(MIXERS)
        for kind, content in self.kinds.items():
            if not isinstance(content, Mapping) or not isinstance(content.get("mixer"), str):
                raise SettingError(
                    f"mix.kinds.{kind}={content!r} must name a mixer and what is set of it, like "
                    "{mixer: NAME}."
                )
            named = isinstance(kind, str) and KIND.fullmatch(kind)
            if not named or kind == MLP or kind in MIXERS:
                raise SettingError(
                    f"mix.kinds.{kind} must be a name of its own, of letters, digits and "
                    f"underscores; {', '.join((*MIXERS, MLP))} stand for themselves."
                )
            known[kind] = lookup(self.path(kind))
        return known

    def _letters(self) -> dict[str, str]:
        """Letter -> the kind that it stands for in a pattern."""
        letters = {m.letter: kind for kind, m in MIXERS.items() if m.letter}
        letters[MLP_LETTER] = MLP
        for kind, content in self.kinds.items():
            if "letter" not in content:
                continue
            letter = content["letter"]
            if not isinstance(letter, str) or len(letter) != 1 or letter in letters:
                taken = ", ".join(f"{letter} {kind}" for letter, kind in letters.items())
                raise SettingError(
                    f"mix.kinds.{kind}.letter={letter!r} must be one character that stands for no "
                    f"other kind; taken: {taken}."
                )
            letters[letter] = kind
        return letters

    def options_of(self, kind: str) -> Any:
        """A kind's options: those of its definition, and those set under its name."""
        return self._options(kind, self.mixer(kind))

    def _options(self, kind: str, record: Mixer) -> Any:
        definition = self.kinds.get(kind, {})
        values = {key: value for key, value in definition.items() if key not in RESERVED}
        values |= _under(f"{kind}_", _names(record.options), self.options)
        return _filled(record.options, values, f"mix.{kind}")

    @staticmethod
    def _from_letters(
        pattern: str, letters: Mapping[str, str], known: Iterable[str]
    ) -> tuple[str, ...]:
        for letter in pattern:
            if letter not in letters:
                valid = ", ".join(f"{letter} {kind}" for letter, kind in letters.items())
                raise SettingError(
                    f"mix.pattern={pattern} has the letter {letter}; valid: {valid}, or a list of "
                    f"{', '.join(known)}."
                )
        return tuple(letters[letter] for letter in pattern)

    def _does_not_divide(self, n_layers: int) -> SettingError:
        period = len(self.pattern)
        what, step = f"the {period} layers of mix={self.name}", period
        if MLP in self.pattern:
            what = f"the {period} sublayers of mix={self.name}, two a layer"
            step = period // math.gcd(period, 2)
        below = n_layers - n_layers % step
        depths = f"{below} or {below + step}" if below else f"{step}"
        return SettingError(
            f"size.n_layers={n_layers} is not a multiple of {what}; give {depths}, or set mix.last."
        )


TRANSFORMER = Mix("transformer", (next(iter(MIXERS)),))
"""Softmax attention in every layer: what every mix of a size is matched to."""


def build_config(
    mix: Mix,
    size: Blueprint,
    geometry: Geometry,
    vocab_size: int,
    context: int | None = None,
) -> ModelConfig:
    """Fill a blueprint with a mix.

    context: tokens that the model is trained on at a time, for settings that are a share of it.
    """
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
            context,
        )
        options, rules = mix.options_of(kind), geometry.rules(record)
        try:
            settings = record.settings(options, rules, place)
        except SettingError as error:
            raise _behind(f"mix.{kind}_", error) from None
        except Exception as error:  # of a mixer that is not ours
            raise SettingError(
                f"mixer={mix.path(kind)} raises {type(error).__name__} for its settings at "
                f"size={size.name} ({' '.join(str(error).split())})."
            ) from error
        # As it comes back from a record: a width worked out as 24.0 is 24 there.
        settings = from_dict(record.saved, to_dict(settings), f"saved of mixer {record.name}")
        kinds[kind] = LayerKind(mix.path(kind), mix.norm or record.norm, settings)
    return ModelConfig(
        vocab_size=vocab_size,
        d_model=size.d_model,
        n_heads=size.n_heads,
        mlp_hidden=0 if mix.mlp == "none" else size.mlp_hidden,
        layers=layers,
        kinds=kinds,
        init=size.init,
        mlp=mix.mlp,
        norm_eps=mix.norm_eps,
    )
