"""Savings at the places asked for, with the laws they are read off and what speaks against them.

`python -m analysis savings` prints what stands here; `analysis.Ladder.savings` shows it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import pandas as pd

from ablations.records import SettingError
from analysis.stats.fit import DELTA, Fit, Loss
from analysis.stats.interaction import Interaction
from analysis.stats.interval import LEVEL
from analysis.stats.noise import lack_of_fit
from analysis.stats.other_savings import Kind, Question, isoflop, projected
from analysis.stats.savings import Saving, places
from analysis.stats.uncertainty import Draws, Method
from analysis.study.answer import noise_doubts, twinless
from analysis.study.arms import Arms, Contrast
from analysis.study.caveats import ranked
from analysis.study.study import Joint, fitted, interactions_at, savings_at

Place = tuple[float | None, float | None]
"""N (parameters) and D (tokens); with a target loss one of them follows from it."""


@dataclass(frozen=True)
class SavingsAnswer:
    """Savings of every other mix at every place; `notes` are sentences to keep in mind.

    `versus` names the baseline of each mix, `interactions` what other treatments do to savings.
    """

    savings: tuple[Saving, ...]
    fit: Fit
    draws: Draws
    notes: list[str]
    versus: dict[str, str]
    law_fails: bool = False
    """Whether seeds show that the law does not describe the points."""
    arms: Arms = field(default_factory=Arms)
    interactions: tuple[tuple[Contrast, Interaction], ...] = ()

    @property
    def rows(self) -> list[dict[str, Any]]:
        """One row per saving: its fields, whether it is in range, and how its interval was made."""
        return [
            one.row
            | {"in_range": one.in_range, "range": one.range_words, "interval": one.interval.method}
            | self._of_arm(one.mix)
            for one in self.savings
        ]

    def _of_arm(self, name: str) -> dict[str, Any]:
        if not self.arms.treatments:
            return {}
        arm = self.arms.arm(name)
        levels = {one.name: arm.levels.get(one.name) for one in self.arms.treatments}
        return {"of_mix": arm.mix} | levels

    @property
    def interaction_rows(self) -> list[dict[str, Any]]:
        """One row per ratio of two savings."""
        return [interaction_row(contrast, one) for contrast, one in self.interactions]

    @property
    def document(self) -> dict[str, Any]:
        """What JSON holds: savings, laws, notes, level, and interactions where there are arms."""
        laws = {
            mix: one.law.as_dict() | {"rms": one.rms, "largest_error": one.largest_error}
            for mix, one in self.fit.mixes.items()
        }
        found = {"savings": self.rows, "laws": laws, "notes": self.notes, "level": self.draws.level}
        if self.arms.treatments:
            found["interactions"] = self.interaction_rows
        return found


def interaction_row(contrast: Contrast, one: Interaction) -> dict[str, Any]:
    """What a treatment does to a saving as the columns of a table."""
    return {
        "treatment": contrast.treatment.name,
        "level": contrast.level,
        "reference_level": contrast.reference_level,
    } | one.row


def questions(
    points: pd.DataFrame,
    baseline: str,
    kind: Kind = "tokens",
    at: Sequence[Place] = (),
    target_loss: float | None = None,
    compute_optimal: float | None = None,
    isoflop_budget: float | None = None,
    with_projected: bool = False,
) -> list[Question]:
    """Where savings over a baseline with points are asked: at the places given, or else at each of
    its sizes.

    `compute_optimal` and `isoflop_budget` are training FLOPs, `with_projected` adds sizes of 3B to
    70B.
    """
    if compute_optimal is not None:
        return [Question(kind, C=compute_optimal)]
    asked: list[Place] = list(at)
    if isoflop_budget is not None:
        asked = [*isoflop(points, baseline, isoflop_budget)]
    elif with_projected:
        asked += projected(points, baseline)
    if not asked:
        asked = [(N, D) for _, N, D in places(points, baseline)]
    return [Question(kind, N, D, target_loss) for N, D in asked]


def check_place(text: str, names: Collection[str], target_loss: float | None, kind: str) -> None:
    """Raise SettingError unless a place, written as `text`, names N and D; with a target loss one
    of them follows from it."""
    needed = {"N", "D"}
    if target_loss is not None:
        needed = {"D"} if kind == "parameters" else {"N"}
    if not needed <= set(names) <= {"N", "D"}:
        example = {"N": "1e9", "D": "2e10"}
        wanted = ",".join(f"{key}={example[key]}" for key in sorted(needed, reverse=True))
        raise SettingError(f"at={text} is not a place; give {wanted}.")


def check_ways(ways: Mapping[str, object], target_loss: float | None) -> None:
    """Raise SettingError where more than one way of saying where is given.

    `ways` maps compute_optimal, isoflop, at and projected to what was given.
    """
    given = [name for name, value in ways.items() if value]
    if len(given) > 1 and set(given) != {"at", "projected"}:
        raise SettingError(f"{' and '.join(given)} exclude one another.")
    if target_loss is not None and "compute_optimal" in given:
        raise SettingError(
            "target_loss and compute_optimal exclude one another, as C sets the loss."
        )


def savings_answer(
    points: pd.DataFrame,
    baseline: str,
    *,
    model: str = "free",
    loss: str = "squares",
    method: str = "mixed",
    paired: bool = False,
    resamples: int = 1000,
    seed: int = 0,
    delta: float = DELTA,
    fixed: Mapping[str, float] | None = None,
    arms: Arms | None = None,
    level: float = LEVEL,
    **asked: Any,
) -> SavingsAnswer:
    """Fit all mixes, resample, and read savings off wherever is asked (settings of `questions`).

    `baseline` names a mix, whose arms are compared with those of the other mixes at each level of
    the other treatments, or one arm. Raises SettingError where a mix cannot be fitted, or there is
    nothing to compare.
    """
    arms = arms or Arms()
    mixes = list(dict.fromkeys(points["mix"]))
    versus = arms.versus(mixes, baseline)
    if not versus:
        raise SettingError(f"mix={mixes[0]} is the only one; savings compare two mixes or more.")
    fit, draws = fitted(
        points, baseline, cast(Joint, model), cast(Loss, loss), cast(Method, method), paired,
        resamples, seed, delta, fixed, arms, level,
    )  # fmt: skip

    def where(own: str) -> list[Question]:
        return questions(points, own, **asked)

    savings = savings_at(fit, draws, versus, where)
    interactions = interactions_at(fit, draws, versus, arms.contrasts(versus), where)
    lack = lack_of_fit(fit.least or fit)
    law_fails = lack is not None and lack.found
    against = ranked([*noise_doubts(fit, lack), *twinless(arms, mixes, baseline)])
    notes = [str(one) for one in against]
    return SavingsAnswer(savings, fit, draws, notes, versus, law_fails, arms, interactions)
