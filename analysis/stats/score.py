"""How good a predicted distribution was, once the value is known.

CRPS(F, y) = E|X - y| - E|X - X'| / 2 with X, X' drawn from F (Gneiting and Raftery 2007, eq. 21):
in the units of y, 0 at best, |x - y| for a forecast that is one number x.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Score:
    """A loss beside what was predicted for it."""

    hit: bool
    """Whether the interval held it."""
    z: float
    """Standardised error: (log loss - mean of the predicted log losses) / their sd. NaN where all
    of these are equal."""
    crps: float
    """In nats per token."""


def score(values: Sequence[float], low: float, high: float, loss: float) -> Score:
    """Score a loss (nats per token) against equally likely `values` and their interval."""
    predicted = np.asarray(values, float)
    logs = np.log(predicted)
    sd = float(logs.std())
    return Score(
        hit=low <= loss <= high,
        z=float((np.log(loss) - logs.mean()) / sd) if sd > 0 else float("nan"),
        crps=crps(predicted, loss),
    )


def crps(values: Sequence[float] | np.ndarray, y: float) -> float:
    """Continuous ranked probability score of equally likely `values` for the value y."""
    x = np.sort(np.asarray(values, float))
    n = len(x)
    # E|X - X'| of sorted values: 2 / n² Σ (2 i - n + 1) x_i, i from 0.
    spread = 2 * float(((2 * np.arange(n) - n + 1) * x).sum()) / n**2
    return float(np.abs(x - y).mean()) - spread / 2
