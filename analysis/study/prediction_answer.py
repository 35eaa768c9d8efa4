"""Predicted losses as rows and as JSON, with what speaks against them.

`python -m analysis predict` prints what stands here; `analysis.Ladder.predict` shows it.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from ablations.records import SettingError
from analysis.stats.predict import Prediction, Predictions
from analysis.study.answer import prediction_doubts

EXAMPLE = "at=N=1e9,D=2e10 or at=C=1e21"


@dataclass(frozen=True)
class PredictionAnswer:
    """What is said of predictions."""

    predictions: Predictions

    @property
    def rows(self) -> list[dict[str, Any]]:
        """One row per place and mix."""
        return [_row(one) for one in self.predictions.rows]

    @property
    def notes(self) -> list[str]:
        """Sentences to keep in mind."""
        return list(prediction_doubts(self.predictions))

    @property
    def document(self) -> dict[str, Any]:
        """What JSON holds."""
        made = self.predictions
        laws = {mix: one.law.as_dict() | one.certificate for mix, one in made.fit.mixes.items()}
        return {
            "predictions": self.rows,
            "level": made.draws.level,
            "model": made.fit.words,
            "interval": made.draws.words,
            "laws": laws,
            "notes": self.notes,
        }


def check_place(text: str, names: Collection[str]) -> None:
    """Raise SettingError unless a place, written as `text`, names N and D, or C."""
    if unknown := [key for key in names if key not in ("N", "D", "C")]:
        raise SettingError(f"at={text} has {unknown[0]}, which is no place; give {EXAMPLE}.")
    if set(names) not in ({"N", "D"}, {"C"}):
        reason = "C sets N and D" if "C" in names else "N and D go together"
        raise SettingError(f"at={text} is not a place, as {reason}; give {EXAMPLE}.")


def _row(one: Prediction) -> dict[str, Any]:
    """One prediction as the columns of a table; what only a budget has is NaN elsewhere."""
    best, nan = one.optimum, math.nan
    return {
        "mix": one.mix,
        "N": one.N,
        "D": one.D,
        "loss": one.loss,
        "low": one.interval.low,
        "high": one.interval.high,
        "run_low": one.run_interval.low,
        "run_high": one.run_interval.high,
        "in_range": one.in_range,
        "range": one.range_words,
        "N_beyond": one.N_beyond,
        "D_beyond": one.D_beyond,
        "below": list(one.below),
        "C": best.C if best else nan,
        "flops_per_ND": best.flops_per_ND if best else nan,
        "N_star": best.N if best else nan,
        "N_star_low": best.N_interval.low if best else nan,
        "N_star_high": best.N_interval.high if best else nan,
        "D_star": best.D if best else nan,
        "D_star_low": best.D_interval.low if best else nan,
        "D_star_high": best.D_interval.high if best else nan,
    }
