"""What is compared of two mixes, and what a confound between them is: the words of its rules.

A mixer names rules about its own settings (`Mixer.confounds`); ablations/confounds.py has those
that concern every model, and applies all of them. Plain values from specs and counts, no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

EQUAL = 0.005
"""Relative difference that counts as equal: the controlled protocol's tolerance on N."""
NOTABLE = 0.02
"""Relative difference from which a width is named."""


@dataclass(frozen=True)
class Facts:
    """What is compared of one run: its spec as a plain nested dict, and its counts."""

    spec: Mapping[str, Any]
    N: float
    flops_per_token: float

    @property
    def mix(self) -> str:
        return str(self.get("mix.name"))

    @property
    def size(self) -> str:
        return str(self.get("size.name"))

    @property
    def layers(self) -> list[Mapping[str, Any]]:
        """The kind of every layer, as `model.kinds` has it; empty where it was not recorded."""
        kinds, layers = self.get("model.kinds"), self.get("model.layers")
        if not isinstance(kinds, Mapping) or not isinstance(layers, list | tuple):
            return []
        return [kinds.get(kind) or {} for kind in layers]

    def get(self, field: str) -> Any:
        """A field of the spec by its dotted name; None where it was not recorded."""
        value: Any = self.spec
        for key in field.split("."):
            value = value.get(key) if isinstance(value, Mapping) else None
        return value


@dataclass(frozen=True)
class Confound:
    """One thing that differs between a mix and the baseline of its size."""

    name: str
    baseline: str
    mix: str
    """Empty for what concerns every mix of the sweep alike."""
    sizes: tuple[str, ...]
    """Where it was found, smallest first."""
    magnitudes: tuple[float, ...]
    """A size each: (mix - baseline) / baseline, the difference of two shares of layers, or 1 for a
    choice, which is another or not."""
    short: str
    """How much, for a caption."""
    what: str
    """What differs, from what to what, and where."""
    severity: str
    """What it does to a comparison."""
    fields: tuple[str, ...] = ()
    """Fields of the spec that it stands for."""

    def __str__(self) -> str:
        return f"{self.name}: {self.short}"


Pair = tuple[Facts, Facts]
"""The baseline and the mix at one size."""
Rule = Callable[[Sequence[Pair]], "Confound | None"]
"""A rule looks at the pairs of every size, smallest first; None where nothing differs."""


def differs(
    name: str,
    value: Callable[[Facts], Any],
    severity: str,
    fields: tuple[str, ...] = (),
) -> Rule:
    """A rule for a choice that should be the same in both; `value` is None where there is none."""

    def rule(pairs: Sequence[Pair]) -> Confound | None:
        other = []
        for pair in pairs:
            of_baseline, of_mix = (value(run) for run in pair)
            if None not in (of_baseline, of_mix) and of_baseline != of_mix:
                other.append((*pair, f"{of_baseline} → {of_mix}"))
        if not other:
            return None
        words = " / ".join(dict.fromkeys(change for *_, change in other))
        sizes = tuple(of_baseline.size for of_baseline, _, _ in other)
        where = places(sizes, len(other) == len(pairs))
        return Confound(
            name, other[0][0].mix, other[0][1].mix, sizes, (1.0,) * len(sizes), words,
            f"{name}: {words} at size {where}", severity, fields,
        )  # fmt: skip

    return rule


def span(values: Sequence[float]) -> str:
    ends = dict.fromkeys(f"{100 * end:+.1f}" for end in (min(values), max(values)))
    return f"{' to '.join(ends)} %"


def places(sizes: Sequence[str], everywhere: bool) -> str:
    if everywhere and len(sizes) > 3:
        return f"{sizes[0]} to {sizes[-1]}"
    return ", ".join(sizes)
