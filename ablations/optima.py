"""Optima of a setting: response surfaces of mixes, and power laws of their optima in N and D.

Runs of a mix at several values of a setting, from a tuning sweep or a table of anybody's, become a
response surface (ablations/response.py) with an optimum and its interval for each size, and a law
by which sizes that were not tuned are set. No torch here: sweeps and the analysis read this too.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ablations.response import LEVEL, WITHIN, Array, Optimum, Response, fit_response

DRAWS = 2000
LEAST_SPARE = 3
"""Optima beyond a law's terms from which their scatter says how far it can be trusted."""
SAME = 1e-4
"""Relative difference under which two values are one: settings are written in six digits."""


@dataclass(frozen=True)
class Trial:
    """One run of a tuning sweep: `values` of the settings tuned, `loss` (nats per token) at D
    tokens, infinite for a run that diverged; `rules`, the ladder's values there, NaN without."""

    mix: str
    size: str
    N: float
    D: float
    seed: int
    values: tuple[float, ...]
    loss: float
    rules: tuple[float, ...]
    N_ladder: float = math.nan
    """N of the size's transformer, which the rules read."""


@dataclass(frozen=True)
class Cell:
    """A mix's size, or size and budget, that was tuned; `rules` as in `Trial`."""

    size: str
    N: float
    D: float
    N_ladder: float
    rules: tuple[float, ...]
    runs: int
    diverged: int
    values: tuple[tuple[float, ...], ...]
    """What was tried of each setting, rising."""


@dataclass(frozen=True)
class Law:
    """A power law of the optimum, log2 x = intercept + Σ exponent · log2(quantity / middle).

    `scatter`: octaves by which optima lie off the law beside their own errors (DerSimonian & Laird
    1986); intervals of exponents are at `level`.
    """

    quantities: tuple[str, ...]
    middles: tuple[float, ...]
    coefficients: Array
    covariance: Array
    scatter: float
    quantile: float
    """Of Student's t, for intervals."""
    level: float

    @property
    def exponents(self) -> dict[str, tuple[float, float, float]]:
        """(value, low, high) by quantity."""
        reach = self.quantile * np.sqrt(np.diag(self.covariance))
        return {
            name: (float(c), float(c - r), float(c + r))
            for name, c, r in zip(self.quantities, self.coefficients[1:], reach[1:], strict=True)
        }

    @property
    def prefactor(self) -> float:
        """The optimum at N = 1 (and D = 1), as laws are printed."""
        shift = sum(
            c * math.log2(m) for c, m in zip(self.coefficients[1:], self.middles, strict=True)
        )
        return float(2 ** (self.coefficients[0] - shift))

    def at(self, N: float, D: float) -> tuple[float, float, float]:
        """(optimum, low, high) of a size, in the setting's own unit."""
        row = np.array([1.0, *(
            math.log2({"N": N, "D": D}[name] / middle)
            for name, middle in zip(self.quantities, self.middles, strict=True)
        )])  # fmt: skip
        x = float(row @ self.coefficients)
        reach = self.quantile * math.sqrt(float(row @ self.covariance @ row) + self.scatter**2)
        return 2**x, 2 ** (x - reach), 2 ** (x + reach)


@dataclass(frozen=True)
class Tuned:
    """What the runs of one mix say of its optimum; `response` is None where `problem` says why."""

    mix: str
    settings: tuple[str, ...]
    cells: tuple[Cell, ...]
    lost: tuple[Cell, ...]
    """Cells of fewer than two values whose runs ended; the surface is of the others."""
    trials: tuple[Trial, ...]
    response: Response | None
    problem: str
    level: float
    seed: int

    def mean_loss(self, cell: Cell, value: float) -> float | None:
        """Mean measured loss of a cell at a value of the one setting; None where none was."""
        losses = [
            t.loss
            for t in self.trials
            if (t.size, t.D) == (cell.size, cell.D) and abs(t.values[0] / value - 1) < SAME
        ]
        return sum(losses) / len(losses) if losses else None

    @cached_property
    def drawn(self) -> Array:
        """Coefficients of the surface drawn from what the runs leave possible, (draws, p)."""
        assert self.response is not None
        return self.response.drawn(np.random.default_rng(self.seed), DRAWS)

    @cached_property
    def optima(self) -> tuple[Optimum, ...]:
        """One per cell, in octaves; empty without a surface."""
        if self.response is None:
            return ()
        drawn = self.drawn if len(self.settings) > 1 else None
        return tuple(self.response.optimum(k, self.level, drawn) for k in range(len(self.cells)))

    def law(self, s: int = 0) -> Law | None:
        """The law of one setting's optimum over cells; None where fewer than two sizes have one."""
        if self.response is None:
            return None
        kept = [k for k, one in enumerate(self.optima) if not one.edge[s]]
        if len({self.cells[k].N_ladder for k in kept}) < 2:
            return None
        x = np.array([self.optima[k].x[s] for k in kept])
        variance = np.array(
            [self.response.optimum_draws(k, self.drawn)[0][:, s].var() for k in kept]
        )
        # The size's own N, equal for all mixes, by which a size that was not tuned is known too.
        N = np.array([self.cells[k].N_ladder for k in kept])
        D = np.array([self.cells[k].D for k in kept])
        return power_law(x, np.maximum(variance, 1e-6), N, D, self.response.dof, self.level)


def power_law(x: Array, variance: Array, N: Array, D: Array, dof: int, level: float) -> Law:
    """Fit log2 optima x (k,), of given variance (k,), to powers of N and, where D is no function of
    N, of D."""
    from scipy.stats import t as student

    quantities = ["N"] if len(np.unique(N)) > 1 else []
    ladder = np.stack([np.ones(len(N)), np.log2(N), np.log2(np.maximum(D, 1))], 1)
    if (D > 0).all() and len(x) > 3 and np.linalg.matrix_rank(ladder, tol=1e-3) == 3:
        within = np.log2(D) - ladder[:, :2] @ np.linalg.lstsq(ladder[:, :2], np.log2(D))[0]
        quantities += ["D"] if within.std() > 0.1 else []
    values = {"N": N, "D": D}
    middles = [float(np.exp(np.log(values[name]).mean())) for name in quantities]
    columns = [np.log2(values[q] / m) for q, m in zip(quantities, middles, strict=True)]
    design = np.stack([np.ones(len(x)), *columns], 1)
    coefficients, covariance, scatter = _weighted(design, x, variance)
    spare = len(x) - design.shape[1]
    # With one or two optima to spare their scatter is as good as unknown, and so would be t's.
    freedom = spare if scatter > 0 and spare >= LEAST_SPARE else dof
    quantile = float(student.ppf((1 + level) / 2, freedom))
    return Law(
        tuple(quantities), tuple(middles), coefficients, covariance, scatter, quantile, level
    )


def _weighted(design: Array, x: Array, variance: Array) -> tuple[Array, Array, float]:
    """Weighted least squares with a scatter beside the known variances, by their moments."""

    def solved(weight: Array) -> tuple[Array, Array, float]:
        inverse = np.linalg.pinv(design.T @ (weight[:, None] * design))
        coefficients = inverse @ design.T @ (weight * x)
        residual = x - design @ coefficients
        return coefficients, np.asarray(inverse, float), float(weight @ residual**2)

    weight = 1 / variance
    coefficients, inverse, misfit = solved(weight)
    spare = len(x) - design.shape[1]
    if spare < 1 or misfit <= spare:
        return coefficients, inverse, 0.0
    weighted = weight[:, None] * design
    trace = weight.sum() - np.trace(inverse @ (weighted.T @ weighted))
    scatter2 = (misfit - spare) / trace
    coefficients, inverse, _ = solved(1 / (variance + scatter2))
    return coefficients, inverse, math.sqrt(scatter2)


def tuned_of(
    trials: Iterable[Trial],
    settings: Sequence[str],
    level: float = LEVEL,
    within: float = WITHIN,
    seed: int = 0,
) -> dict[str, Tuned]:
    """The surface of each mix, in the order of the trials."""
    by_mix: dict[str, list[Trial]] = {}
    for trial in trials:
        by_mix.setdefault(trial.mix, []).append(trial)
    return {
        mix: _tuned(mix, own, tuple(settings), level, within, seed) for mix, own in by_mix.items()
    }


def _tuned(
    mix: str, trials: list[Trial], settings: tuple[str, ...], level: float, within: float, seed: int
) -> Tuned:
    every = list(dict.fromkeys((t.size, t.D) for t in sorted(trials, key=lambda t: (t.N, t.D))))
    ended = {
        key: {t.values for t in trials if (t.size, t.D) == key and math.isfinite(t.loss)}
        for key in every
    }
    keys = [key for key in every if len(ended[key]) > 1]
    used = [t for t in trials if (t.size, t.D) in keys]
    response, problem = None, ""
    try:
        response = fit_response(
            np.array([keys.index((t.size, t.D)) for t in used], int),
            np.array([t.seed for t in used], int),
            np.log2(np.array([t.values for t in used], float)).reshape(len(used), len(settings)),
            np.array([t.loss for t in used], float),
            within,
        )
    except ValueError as reason:
        problem = str(reason)
    cells = {key: _cell(key, trials, len(settings)) for key in every}
    lost = tuple(cells[key] for key in every if key not in keys)
    kept = tuple(cells[key] for key in keys)
    return Tuned(mix, settings, kept, lost, tuple(trials), response, problem, level, seed)


def _cell(key: tuple[str, float], trials: Sequence[Trial], n_settings: int) -> Cell:
    own = [t for t in trials if (t.size, t.D) == key]
    values = tuple(tuple(sorted({t.values[s] for t in own})) for s in range(n_settings))
    bad = sum(not math.isfinite(t.loss) for t in own)
    known = next((t for t in own if math.isfinite(t.loss)), own[0])
    return Cell(key[0], known.N, key[1], known.N_ladder, known.rules, len(own), bad, values)
