"""isoFLOP exponents over resamples of whole runs, for their intervals.

Runs of a mix are drawn with replacement, as many as it has: all points of a run are drawn together,
because budgets that are read off one training curve share its luck. Shapes: R resamples, n points
of a budget, B budgets.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.stats.fit import DELTA, weights_of
from analysis.stats.laws import Array
from analysis.stats.losses import Criterion, Huber, Loss, Student, criterion
from analysis.stats.noise import cluster_ids
from analysis.stats.rays import (
    MAX_TURNS,
    NO_DEPTH,
    Minimum,
    akima_minimum,
    budgets,
    flops,
    quadratic,
)


@dataclass(frozen=True)
class IsoFlopDraws:
    """Exponents and log coefficients of N* and D* of one mix, (R,); NaN where one has no fit.

    `log_N` (R, B) are the minima of each budget, NaN where one does not lie between its sizes.
    """

    a: Array
    log_G_N: Array
    b: Array
    log_G_D: Array
    log_N: Array

    @property
    def fitted(self) -> int:
        """Number of resamples with two or more budgets whose minimum lies between their sizes."""
        return int(np.isfinite(self.a).sum())

    def minima(self, level: float) -> Array:
        """Bounds (B, 2) of the best N of each budget, by itself: percentiles of the resamples."""
        bounds = [_percentiles(log_N, level) for log_N in self.log_N.T]
        return np.exp(np.array(bounds).reshape(-1, 2))

    def exponents(self, level: float) -> tuple[Array, Array]:
        """Bounds (2,) of a and of b: percentiles of the resamples."""
        return _percentiles(self.a, level), _percentiles(self.b, level)

    def optimum(self, C: float, level: float) -> tuple[Array, Array]:
        """Bounds (2,) of N* (parameters) and D* (tokens) at C FLOPs: percentiles."""
        log_N, log_D = self.log_G_N + self.a * np.log(C), self.log_G_D + self.b * np.log(C)
        return np.exp(_percentiles(log_N, level)), np.exp(_percentiles(log_D, level))


def _percentiles(draws: Array, level: float) -> Array:
    """Bounds (2,) of draws (R,), NaN where half of them or more have no value."""
    known = draws[np.isfinite(draws)]
    # Where most resamples have no fit, those that have one are a selection.
    if 2 * len(known) <= len(draws):
        return np.full(2, np.nan)
    return np.asarray(np.quantile(known, [(1 - level) / 2, (1 + level) / 2]), float)


def draw_isoflop(
    points: pd.DataFrame,
    loss: Loss = "squares",
    delta: float = DELTA,
    minimum: Minimum = "parabola",
    resamples: int = 499,
    seed: int = 0,
) -> dict[str, IsoFlopDraws]:
    """Refit every mix's isoFLOP curves to `resamples` draws of its runs.

    Each mix begins from `seed`, so that its draws do not depend on which other mixes there are.
    Budgets are those of the data. Student's t keeps the scale that it has on the data.
    """
    chosen = criterion(loss, delta)
    points = points.astype({"N": float, "D": float})
    draws = {}
    for mix, mix_points in points.groupby("mix", sort=False):
        C = flops(mix_points)
        _, run = np.unique(cluster_ids(mix_points), return_inverse=True)
        n_runs = int(run.max()) + 1
        rng = np.random.default_rng(seed)
        counts = rng.multinomial(n_runs, np.full(n_runs, 1 / n_runs), size=resamples).astype(float)
        minima = []
        for at in budgets(mix_points, C):
            times_drawn = counts[:, run[at]]
            curve = mix_points[at]
            log_N = (
                _parabola_minima(curve, times_drawn, chosen)
                if minimum == "parabola"
                else _akima_minima(curve, times_drawn)
            )
            log_ND = np.log((curve["N"] * curve["D"]).to_numpy(float))
            total = np.maximum(times_drawn.sum(axis=1), 1)
            minima.append(
                (times_drawn @ np.log(C[at]) / total, log_N, times_drawn @ log_ND / total)
            )
        log_C, log_N, log_ND = (np.stack(one, axis=1) for one in zip(*minima, strict=True))
        a, log_G_N = lines(log_C, log_N)
        b, log_G_D = lines(log_C, log_ND - log_N)
        draws[str(mix)] = IsoFlopDraws(a, log_G_N, b, log_G_D, log_N)
    return draws


def _akima_minima(curve: pd.DataFrame, times_drawn: Array) -> Array:
    """log N* (R,) of the interpolations through the drawn points (R, n); NaN without a minimum."""
    log_N, log_loss = np.log(curve["N"].to_numpy(float)), np.log(curve["loss"].to_numpy(float))
    weights = times_drawn * weights_of(curve)
    return np.array(
        [
            akima_minimum(log_N[drawn], log_loss[drawn], weight[drawn])[0]
            for weight, drawn in zip(weights, times_drawn > 0, strict=True)
        ]
    )


def _parabola_minima(curve: pd.DataFrame, times_drawn: Array, chosen: Criterion) -> Array:
    """log N* (R,) of the parabolas through the drawn points (R, n); NaN without a minimum.

    Robust losses are reweighted from the parabola of all points: Huber's has one minimum.
    """
    log_N, loss = np.log(curve["N"].to_numpy(float)), curve["loss"].to_numpy(float)
    centre, scale = log_N.mean(), np.ptp(log_N) / 2
    x = (log_N - centre) / scale
    powers = np.vander(x, 3)
    relative = powers / loss[:, None]
    weights = times_drawn * weights_of(curve)
    drawn = times_drawn > 0
    size = np.unique(log_N, return_inverse=True)[1]
    n_sizes = sum(drawn[:, size == one].any(axis=1).astype(int) for one in np.unique(size))
    usable = np.asarray(n_sizes >= 3)
    start = quadratic(powers, curve, chosen)
    robust = not (isinstance(chosen, Huber) and np.isinf(chosen.delta))
    if isinstance(chosen, Student):
        chosen = chosen.rescaled(relative @ start - 1, weights_of(curve))
    coefficients = np.tile(start, (len(weights), 1))
    left = np.flatnonzero(usable)
    for _ in range(MAX_TURNS if robust else 1):
        if not len(left):
            break
        off = coefficients[left] @ relative.T - 1
        scaled = weights[left] * chosen.majoriser(off)
        gram = np.einsum("rn,ni,nj->rij", scaled, relative, relative)
        solved = np.linalg.solve(gram, (scaled @ relative)[:, :, None])[:, :, 0]
        change = np.abs(solved - coefficients[left]).max(axis=1)
        coefficients[left] = solved
        left = left[change > 1e-8 * np.abs(solved).max(axis=1)]
    c2, c1 = coefficients[:, 0], coefficients[:, 1]
    low = np.where(drawn, x, np.inf).min(axis=1)
    high = np.where(drawn, x, -np.inf).max(axis=1)
    deep = usable & (c2 * ((high - low) / 2) ** 2 > NO_DEPTH * loss.mean())
    best = -c1 / np.where(deep, 2 * c2, 1)
    return np.where(deep & (low <= best) & (best <= high), centre + scale * best, np.nan)


def lines(x: Array, y: Array) -> tuple[Array, Array]:
    """Slopes and intercepts (R,) of y (R, B) by x where y is finite; NaN of fewer than two."""
    there = np.isfinite(y)
    n = there.sum(axis=1)
    total = np.maximum(n, 1)
    y = np.where(there, y, 0)
    mean_x, mean_y = (there * x).sum(axis=1) / total, y.sum(axis=1) / total
    from_mean = there * (x - mean_x[:, None])
    enough = n >= 2
    square = np.where(enough, (from_mean**2).sum(axis=1), 1)
    slope = np.where(enough, (from_mean * y).sum(axis=1) / square, np.nan)
    return slope, mean_y - slope * mean_x
