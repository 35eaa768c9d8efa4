"""The loss at a place that nobody has trained, or at a budget, with intervals.

    at (N, D)    L(N, D) = E + A/N^alpha + B/D^beta            (Hoffmann et al. 2022, eq. 2)
    at C         N*(C), D*(C) of least loss at C = k N D       (Hoffmann et al. 2022, eq. 4)

k is 6 (Kaplan et al. 2020), or what the points of the mix record as FLOPs over N D. N in
parameters, D in tokens, C in FLOPs, loss in nats per token.

Two intervals of the loss, both of the mixed model of the noise (`analysis.stats.mixed`). That of
the law: percentiles of the law refitted to resampled ladders, as for savings. That of one more
run: the same draws, each blurred by the noise that a new run has in it, which is run effect, tilt
of its size and point noise. Noise that goes with N is carried on beyond the sizes measured where
that widens the interval, and stays that of the nearest size where it would narrow it. A run of a
measured size shares the tilt of that size, which the law has followed in part; its tilt is taken as
new all the same, so the interval is rather too wide.

At C both intervals are of the loss at the N* and D* that are given, as a run would train these.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import norm

from ablations.records import SettingError
from analysis.stats.fit import DELTA, Fit, Loss, Model, fit, weights_of
from analysis.stats.interval import LEVEL, Interval
from analysis.stats.laws import FLOPS, Array, Chinchilla
from analysis.stats.mixed import MixedModel, mixed_model
from analysis.stats.noise import LackOfFit, lack_of_fit
from analysis.stats.other_savings import flops_factor
from analysis.stats.savings import ROUNDING, beyond, range_words, token_range
from analysis.stats.uncertainty import Draws, bootstrap

# Equally likely values of a standard normal that stand for the noise of a new run in each draw: no
# further random numbers, and an interval that is symmetric around that of the law.
NORMAL_VALUES = 100
RUN_VALUES = 200
"""Equally likely losses that stand for the distribution of a new run's."""


@dataclass(frozen=True)
class Place:
    """Where a loss is asked: N parameters and D tokens, or a budget of C training FLOPs."""

    N: float | None = None
    D: float | None = None
    C: float | None = None


@dataclass(frozen=True)
class Optimum:
    """The N and D of least loss at C = `flops_per_ND` N D FLOPs, with intervals.

    `recorded`: whether the factor is that of the mix's own points, and not the usual 6.
    """

    C: float
    flops_per_ND: float
    recorded: bool
    N: float
    N_interval: Interval
    D: float
    D_interval: Interval


@dataclass(frozen=True)
class Prediction:
    """Loss of a mix at N and D, in nats per token.

    `interval` is that of the law, `run_interval` that of the loss of one more run, `run_values`
    its distribution: equally likely losses, ascending. `N_beyond`
    and `D_beyond` are factors by which the place lies outside what was measured (1 inside), `below`
    names those that lie under it; the range of D is that of tokens per parameter at N. `optimum` is
    set where the place follows from a budget.
    """

    mix: str
    N: float
    D: float
    loss: float
    interval: Interval
    run_interval: Interval
    N_beyond: float
    D_beyond: float
    below: tuple[str, ...] = ()
    optimum: Optimum | None = None
    run_values: tuple[float, ...] = ()

    @property
    def in_range(self) -> bool:
        """Whether N and D lie within what was measured."""
        return max(self.N_beyond, self.D_beyond) <= ROUNDING

    @property
    def range_words(self) -> str:
        """`in range`, or by what factors it is extrapolated: × above, ÷ below what was measured."""
        return range_words({"N": self.N_beyond, "D": self.D_beyond}, self.below)


@dataclass(frozen=True)
class Predictions:
    """Predictions in the order of places, then mixes; the fit they are read off, and its doubts."""

    rows: tuple[Prediction, ...]
    fit: Fit
    draws: Draws
    lack: LackOfFit | None


def predict(
    points: pd.DataFrame,
    places: Sequence[Place],
    model: Model = "free",
    loss: Loss = "squares",
    delta: float = DELTA,
    fixed: Mapping[str, float] | None = None,
    resamples: int = 1000,
    seed: int = 0,
    level: float = LEVEL,
) -> Predictions:
    """Predict every mix of `points` (columns as of `fit`) at every place.

    Values are those of the fit that savings are read off: least squares, weighted by the noise at
    each size. `level` is the share of intervals that should hold the truth. Raises SettingError
    where a mix cannot be fitted, or a budget has no optimum.
    """
    least = fit(points, model, loss, delta, held=fixed)
    noise = mixed_model(least)
    draws = bootstrap(least, "mixed", resamples, seed, model=noise, level=level)
    rows = tuple(_predict(noise, draws, mix, at) for at in places for mix in least.mixes)
    return Predictions(rows, noise.best, draws, lack_of_fit(least))


def _predict(noise: MixedModel, draws: Draws, mix: str, at: Place) -> Prediction:
    best, drawn = noise.best.mixes[mix], draws.laws[mix]
    points = noise.fit.points[noise.fit.points["mix"] == mix]
    optimum = None if at.C is None else _optimum(points, best.law, draws, at.C)
    N, D = (optimum.N, optimum.D) if optimum else (float(at.N or 0), float(at.D or 0))
    losses = drawn.loss(N, D)
    sds = noise.new_run_sds(
        np.random.default_rng(draws.seed),
        draws.resamples,
        N,
        np.log(D) - _middle_log_D(points, N),
        float(1 / (1 / weights_of(points)).mean()),
    )
    D_low, D_high = map(float, token_range(points, mix, N))
    below = {"N": best.N_range[0] > N, "D": D_low > D}
    blurred = _with_noise(losses, sds)
    return Prediction(
        mix=mix,
        N=N,
        D=D,
        loss=float(best.law.loss(N, D)),
        interval=draws.interval(losses),
        run_interval=draws.interval(blurred),
        N_beyond=beyond(N, *best.N_range),
        D_beyond=beyond(D, D_low, D_high),
        below=tuple(name for name, lies in below.items() if lies),
        optimum=optimum,
        run_values=_equally_likely(blurred),
    )


def _equally_likely(losses: Array) -> tuple[float, ...]:
    """RUN_VALUES quantiles at the middles of equal shares, ascending."""
    shares = (np.arange(RUN_VALUES) + 0.5) / RUN_VALUES
    ordered = np.sort(losses)  # no interpolation, as some may be infinite
    return tuple(float(value) for value in ordered[(shares * len(ordered)).astype(int)])


def _with_noise(losses: Array, sds: Array) -> Array:
    """Losses (R,) of laws as those of runs, whose log loss scatters with `sds` (R,): (R * K,)."""
    normal = norm.ppf((np.arange(NORMAL_VALUES) + 0.5) / NORMAL_VALUES)
    normal /= normal.std()
    with np.errstate(over="ignore"):
        return np.asarray(losses[:, None] * np.exp(sds[:, None] * normal)).ravel()


def _middle_log_D(points: pd.DataFrame, N: float) -> float:
    """Mean log D of a run of N parameters: tokens per parameter interpolated as `token_range`."""
    logs = pd.DataFrame({name: np.log(points[name]) for name in ("N", "D")})
    sizes = logs.groupby(points["size"]).mean().sort_values("N")
    ratios = (sizes["D"] - sizes["N"]).to_numpy()
    return float(np.log(N) + np.interp(np.log(N), sizes["N"].to_numpy(), ratios))


def _optimum(points: pd.DataFrame, law: Chinchilla, draws: Draws, C: float) -> Optimum:
    mix = str(points["mix"].iloc[0])
    k = flops_factor(points, mix)
    product = C * FLOPS / k
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        N, D = (float(one) for one in law.optimum(product))
        if not (0 < N < np.inf and 0 < D < np.inf):
            raise SettingError(
                f"at C={C:g} has no optimum by the law of {mix} (N* = {N:g}, D* = {D:g}); ask for "
                "N and D, at=N=1e9,D=2e10."
            )
        ends = [draws.interval(one) for one in draws.laws[mix].optimum(product)]
    recorded = "C" in points and bool((points["C"] > 0).any())
    return Optimum(C, k, recorded, N, ends[0], D, ends[1])
