"""Which values of a setting to train next: a response surface decides, a few runs at a time.

A search begins with three values around the ladder's rule. Where the lowest loss lies at the end of
what was tried, it goes on by a factor of two beyond that end. Else it adds the value, on a grid of
half octaves, that makes the interval of the optimum narrowest by the surface fitted so far
(c-optimal design: Atkinson, Donev & Tobias 2007). benchmarks/tuning.py counts the runs that this
needs beside Optuna's samplers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ablations.optima import Cell, Tuned
from ablations.response import Response

STEP = 0.5
"""Octaves between values that a search may add."""
REACH = 2.0
"""Octaves from the optimum as fitted within which values are added."""
FURTHEST = 4.0
"""Octaves beyond the first values at which a search ends without a minimum."""


@dataclass(frozen=True)
class Wanted:
    """When a search of a cell ends: its interval's ends within a factor, or so many values."""

    width: float = 1.6
    values: int = 6


LEAST_VALUES = 5
"""Values before an interval may end a search: with fewer the curve's skew is not known."""


def next_value(tuned: Tuned, cell: Cell, wanted: Wanted, first: Sequence[float]) -> float | None:
    """The value, octaves, that a cell of a mix is to be trained at next; None where its search is
    over. One setting only. first: octaves that the search of this cell began with."""
    tried = [math.log2(value) for value in cell.values[0]]
    if len(tried) >= wanted.values:
        return None
    if tuned.response is None or cell not in tuned.cells:
        return _without_surface(tuned, cell, first)
    place = tuned.cells.index(cell)
    response, optimum = tuned.response, tuned.optima[place]
    lowest = float(response.lowest[place, 0])
    if lowest <= min(tried) + 1e-9 or optimum.edge[0] == "low":
        return _untried(tried, min(tried) - 1, min(first) - FURTHEST, max(first) + FURTHEST)
    if lowest >= max(tried) - 1e-9 or optimum.edge[0] == "high":
        return _untried(tried, max(tried) + 1, min(first) - FURTHEST, max(first) + FURTHEST)
    narrow = optimum.high[0] - optimum.low[0] <= math.log2(wanted.width)
    if narrow and len(tried) >= min(LEAST_VALUES, wanted.values):
        return None
    return _narrowest(response, place, tried, float(optimum.x[0]))


def _without_surface(tuned: Tuned, cell: Cell, first: Sequence[float]) -> float | None:
    """By the means alone: beyond the end that is lowest, downwards where nothing ended, else half
    way from the lowest to its better neighbour."""
    values = list(cell.values[0])
    tried = [math.log2(value) for value in values]
    means = [tuned.mean_loss(cell, value) for value in values]
    losses = [math.inf if mean is None else mean for mean in means]
    best = losses.index(min(losses))
    ends = min(first) - FURTHEST, max(first) + FURTHEST
    if best == 0:
        return _untried(tried, tried[0] - 1, *ends)
    if best == len(tried) - 1:
        return _untried(tried, tried[-1] + 1, *ends)
    side = best - 1 if losses[best - 1] < losses[best + 1] else best + 1
    return _untried(tried, (tried[best] + tried[side]) / 2, *ends)


def _untried(tried: Sequence[float], value: float, low: float, high: float) -> float | None:
    within = low - 1e-9 <= value <= high + 1e-9
    return value if within and min(abs(value - one) for one in tried) > 1e-6 else None


def _narrowest(response: Response, cell: int, tried: Sequence[float], x: float) -> float | None:
    """Of the values near the optimum that were not tried, the one after which the slope there is
    known best."""
    start = min(tried, key=lambda value: abs(value - x))
    steps = round(REACH / STEP)
    offered = [start + STEP * k for k in range(-steps, steps + 1)]
    offered = [one for one in offered if min(abs(one - value) for value in tried) > STEP / 2]
    if not offered or not response.sd > 0:
        return None
    slope = response.terms(cell, np.array([[x]]), derivative=0)[0]
    information = np.linalg.pinv(response.covariance / response.sd**2)
    blocks = np.flatnonzero(response.block_cell == cell)

    def variance(value: float) -> float:
        rows = np.repeat(response.terms(cell, np.array([[value]])), len(blocks), 0)
        rows[np.arange(len(blocks)), blocks] = 1  # each seed of the cell is trained
        after = np.linalg.pinv(information + rows.T @ rows)
        return float(slope @ after @ slope)

    return min(offered, key=variance)
