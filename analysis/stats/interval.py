"""Intervals from resamples: their ends, and how often they should hold the truth."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from analysis.stats.laws import Array

LEVEL = 0.95
"""Of every interval, unless another is asked for."""


@dataclass(frozen=True)
class Interval:
    """Ends of an interval that should hold the truth in a share `level` of cases.

    `method` says which resamples it is made of.
    """

    low: float
    high: float
    level: float
    method: str


def percentiles(draws: Array, level: float = LEVEL) -> tuple[float, float]:
    """Percentile interval of draws of a ratio.

    A draw of 0 or infinity (one mix reaches the target with no number of tokens) counts as such.
    A draw where neither does is undefined, and is counted at both ends.
    """
    undefined = np.isnan(draws)
    tail = (1 - level) / 2
    low = _quantile(np.where(undefined, 0.0, draws), tail)
    return low, _quantile(np.where(undefined, np.inf, draws), 1 - tail)


def share_unreachable(draws: Array) -> float:
    """Share of draws of a ratio that are 0, infinite or undefined."""
    return float((np.isnan(draws) | ~np.isfinite(draws) | (draws == 0)).mean())


def _quantile(draws: Array, q: float) -> float:
    # In logs a ratio and its inverse get the same interval; infinite draws stay at the ends.
    with np.errstate(divide="ignore"):
        ordered = np.sort(np.log(draws))
    position = q * (len(ordered) - 1)
    low, high = ordered[int(np.floor(position))], ordered[int(np.ceil(position))]
    if low == high:
        return float(np.exp(low))
    if not np.isfinite(low) or not np.isfinite(high):
        return float(np.exp(low if q < 0.5 else high))
    return float(np.exp(low + (high - low) * (position % 1)))
