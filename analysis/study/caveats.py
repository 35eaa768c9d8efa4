"""What a reader must keep in mind of an answer: short sentences, ranked by what they can change."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum


class Severity(IntEnum):
    """What a caveat can do to the answer, least first."""

    SHADES = 1
    """Part of what was measured is missing, or one number is to be read with care."""
    CONFOUNDS = 2
    """Something beside the mix may have made the difference."""
    WIDENS = 3
    """The interval may be too narrow, or lies where nothing was measured."""
    OVERTURNS = 4
    """The numbers are of something else, or show no saving."""


KINDS = {
    "counts": Severity.OVERTURNS,
    "columns": Severity.OVERTURNS,
    "loss unit": Severity.OVERTURNS,
    "rising": Severity.OVERTURNS,
    "lack of fit": Severity.OVERTURNS,
    "includes 1": Severity.OVERTURNS,
    "copies": Severity.WIDENS,
    "one seed": Severity.WIDENS,
    "extrapolated": Severity.WIDENS,
    "off its points": Severity.WIDENS,
    "three sizes": Severity.WIDENS,
    "one size": Severity.WIDENS,
    "as seeds": Severity.WIDENS,
    "repeated D": Severity.WIDENS,
    "one run": Severity.WIDENS,
    "unnamed": Severity.WIDENS,
    "confounds": Severity.CONFOUNDS,
    "not recorded": Severity.CONFOUNDS,
    "unequal N": Severity.CONFOUNDS,
    "FLOPs": Severity.CONFOUNDS,
    "no twin": Severity.CONFOUNDS,
    "epochs": Severity.SHADES,
    "unfinished": Severity.SHADES,
    "left out": Severity.SHADES,
    "incomplete": Severity.SHADES,
    "coefficients": Severity.SHADES,
}
"""Each kind of caveat with its severity; among equals the kind named first comes first."""
MOST_NAMED = 3


@dataclass(frozen=True)
class Caveat:
    """One sentence, and under `more` what it rests on and what would mend it.

    One caveat speaks of all mixes or arms that it holds for.
    """

    kind: str
    text: str
    more: tuple[str, ...] = ()

    @property
    def severity(self) -> Severity:
        """What it can do to the answer."""
        return KINDS[self.kind]

    def __str__(self) -> str:
        return " ".join((self.text, *self.more))


def ranked(caveats: Iterable[Caveat]) -> list[Caveat]:
    """Each caveat once, the worst first."""
    order = {kind: place for place, kind in enumerate(KINDS)}
    return sorted(dict.fromkeys(caveats), key=lambda one: (-one.severity, order[one.kind]))


def listed(names: Iterable[object], most: int = MOST_NAMED) -> str:
    """Names in a sentence, each once, the first of many."""
    shown = list(dict.fromkeys(map(str, names)))
    more = f" and {len(shown) - most} more" if len(shown) > most else ""
    return ", ".join(shown[:most]) + more


def left_out(clauses: Sequence[str]) -> Iterable[Caveat]:
    """What was left out of the points, rows or runs, in one caveat."""
    if clauses:
        what = "row, point or run" if len(clauses) == 1 else "rows, points or runs"
        more = tuple(f"Left out: {clause}." for clause in clauses)
        yield Caveat("left out", f"Left out: {len(clauses)} {what}.", more)
