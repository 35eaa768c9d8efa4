"""Seeded bootstraps of a fit that know which points belong together.

Points of one run share its luck, so resampling them one by one is far too sure. Offered: `wild`
(default; Cameron, Gelbach & Miller 2008: all residuals of a run flip sign together), `run` (whole
runs drawn with replacement), `case` (points drawn one by one; to show what it hides).

Paired: runs of several mixes with one size and seed saw the same batches, and move together in a
resample. That assumes no correlation between them: a common sign keeps the products of their
residuals as they were observed, so noise that they share cancels in a ratio, and noise or lack of
fit of one mix alone does not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import pandas as pd

from analysis.fit import Fit, refit
from analysis.laws import Array, Chinchilla

Method = Literal["wild", "run", "case"]
METHODS: tuple[Method, ...] = get_args(Method)
METHOD_WORDS = {
    "wild": "wild bootstrap by run",
    "run": "bootstrap of whole runs",
    "case": "bootstrap of single points",
}
# Resamples fitted at a time: bounds the memory of the grid stage to tens of megabytes.
BATCH = 250


@dataclass(frozen=True)
class Draws:
    """Laws of every mix over resamples: each coefficient an array of shape (resamples,)."""

    laws: dict[str, Chinchilla]
    method: Method
    paired: bool
    resamples: int
    seed: int
    n_clusters: int
    dof: float

    @property
    def words(self) -> str:
        pairs = ", mixes of one size and seed drawn together" if self.paired else ""
        return f"{METHOD_WORDS[self.method]}{pairs}, {self.resamples} resamples, seed {self.seed}"


def bootstrap(
    fit: Fit,
    method: Method = "wild",
    resamples: int = 1000,
    seed: int = 0,
    paired: bool = True,
) -> Draws:
    """Refit `fit` to `resamples` resamples of its points; the same seed gives the same draws."""
    rng = np.random.default_rng(seed)
    clusters = cluster_ids(fit.points, method, paired)
    log_loss = np.log(fit.points["loss"].to_numpy(float))
    n_clusters = int(clusters.max()) + 1
    dof = float("nan")
    if method == "wild":
        hat = hat_matrix(fit)
        dof = degrees_of_freedom(hat, clusters)
        residual = inflate(-fit.residual, hat, clusters)
        multiplier = wild_multipliers(rng, resamples, n_clusters, dof)[:, clusters]
        samples = log_loss + fit.residual + multiplier * residual
        weights = np.ones_like(samples)
    else:
        samples = np.tile(log_loss, (resamples, 1))
        weights = _counts(rng, fit.points, clusters, resamples)
    laws: dict[str, Chinchilla] = {}
    for block in fit.blocks:
        parts = []
        for start in range(0, resamples, BATCH):
            some = slice(start, start + BATCH)
            parts.append(
                refit(block, samples[some, block.rows], weights[some, block.rows], fit.threshold)[0]
            )
        theta = np.concatenate(parts)
        for m, name in enumerate(block.mixes):
            laws[name] = block.problem.law(theta, m)
    laws = {name: laws[name] for name in fit.mixes}
    return Draws(laws, method, paired, resamples, seed, n_clusters, dof)


def cluster_ids(points: pd.DataFrame, method: Method = "wild", paired: bool = True) -> Array:
    """For each point, the index of the cluster that moves together, shape (n,)."""
    if method == "case":
        return np.arange(len(points))
    if not paired:
        return pd.factorize(points["run"])[0]
    pair = points["size"].astype(str) + "/" + points["seed"].astype(str)
    # Two runs of one mix with one size and seed are repeats, which share nothing across mixes.
    repeat = points.groupby(["mix", pair])["run"].transform(lambda runs: pd.factorize(runs)[0])
    return pd.factorize(pair + "/" + repeat.astype(str))[0]


def hat_matrix(fit: Fit) -> Array:
    """Projection onto what the fit can absorb, (n, n), linearised at its optimum.

    A parameter at a bound absorbs nothing.
    """
    hat = np.zeros((fit.n, fit.n))
    for block in fit.blocks:
        jacobian = block.problem.jacobian(block.theta[None])[0][:, block.free]
        basis = np.linalg.svd(jacobian / np.linalg.norm(jacobian, axis=0), full_matrices=False)[0]
        hat[np.ix_(block.rows, block.rows)] = basis @ basis.T
    return hat


def degrees_of_freedom(hat: Array, clusters: Array) -> float:
    """How many cluster-level residuals the fit leaves free: trace of U'(I - H)U.

    U holds the clusters' indicator columns at unit length. At least one half, for a saturated fit.
    """
    indicator = (clusters[:, None] == np.arange(clusters.max() + 1)).astype(float)
    indicator /= np.linalg.norm(indicator, axis=0)
    left = indicator.shape[1] - np.einsum("ic,ij,jc->", indicator, hat, indicator)
    return float(max(left, 0.5))


def inflate(residual: Array, hat: Array, clusters: Array) -> Array:
    """Residuals of each cluster times (I - H_cc)^(-1/2), the bias-reduced CR2 correction.

    Bell & McCaffrey 2002: least squares pulls the law towards each run, the more so the fewer runs
    there are, and residuals are smaller than the noise by as much.
    """
    out = residual.copy()
    for cluster in range(clusters.max() + 1):
        own = np.flatnonzero(clusters == cluster)
        values, vectors = np.linalg.eigh(np.eye(len(own)) - hat[np.ix_(own, own)])
        # A direction that the fit absorbs wholly shows no residual, and none can be made of it.
        scale = 1 / np.sqrt(np.maximum(values, 0.05))
        out[own] = vectors @ (scale * (vectors.T @ residual[own]))
    return out


def wild_multipliers(
    rng: np.random.Generator, resamples: int, n_clusters: int, dof: float
) -> Array:
    """Signs per cluster times a common factor per resample, sqrt(dof / chi2(dof)).

    The factor is the uncertainty of the noise level itself, known from few runs only: with it the
    resamples spread like Student's t rather than like a normal of known width.
    """
    signs = rng.choice([-1.0, 1.0], size=(resamples, n_clusters))
    level = np.sqrt(dof / np.maximum(rng.chisquare(dof, size=(resamples, 1)), 1e-12))
    return signs * level


def _counts(
    rng: np.random.Generator, points: pd.DataFrame, clusters: Array, resamples: int
) -> Array:
    """How often each point is drawn, (resamples, n): clusters with replacement, within each mix.

    Clusters that span the mixes are drawn once for all of them.
    """
    n_clusters = int(clusters.max()) + 1
    owner = points.groupby(clusters)["mix"].agg(lambda mixes: "/".join(sorted(set(mixes))))
    counts = np.zeros((resamples, n_clusters))
    for _, own in owner.groupby(owner):
        k = len(own)
        counts[:, own.index.to_numpy()] = rng.multinomial(k, np.full(k, 1 / k), size=resamples)
    return counts[:, clusters]


def interval(draws: Array, level: float = 0.95) -> tuple[float, float, float]:
    """Percentile interval of draws of a ratio, and the share that is not finite.

    A draw of 0 or infinity (one mix reaches the target with no number of tokens) counts as such.
    A draw where neither does is undefined, and is counted at both ends.
    """
    undefined = np.isnan(draws)
    tail = (1 - level) / 2
    low = _quantile(np.where(undefined, 0.0, draws), tail)
    high = _quantile(np.where(undefined, np.inf, draws), 1 - tail)
    unreachable = undefined | ~np.isfinite(draws) | (draws == 0)
    return low, high, float(unreachable.mean())


def _quantile(draws: Array, q: float) -> float:
    # In logs a ratio and its inverse get the same interval; infinite draws stay at the ends.
    with np.errstate(divide="ignore", invalid="ignore"):
        ordered = np.sort(np.log(draws))
        position = q * (len(ordered) - 1)
        low, high = ordered[int(np.floor(position))], ordered[int(np.ceil(position))]
        if low == high:
            return float(np.exp(low))
        if not np.isfinite(low) or not np.isfinite(high):
            return float(np.exp(low if q < 0.5 else high))
        return float(np.exp(low + (high - low) * (position % 1)))


@dataclass(frozen=True)
class Noise:
    """Scatter of the loss in relative terms: between seeds, and about the fitted law."""

    mix: str
    seed_sd: float
    seed_dof: int
    lack_of_fit: float


def seed_noise(fit: Fit) -> list[Noise]:
    """Seed-to-seed standard deviation of log loss at equal (size, D), beside the fit's rms.

    NaN where no size has two seeds. `lack_of_fit` is the rms residual of the seeds' means.
    """
    table = fit.points.assign(residual=fit.residual, log_loss=np.log(fit.points["loss"]))
    found = []
    for mix in fit.mixes:
        own = table[table["mix"] == mix]
        cells = own.groupby(["size", "D"])
        spread, count = cells["log_loss"].var(ddof=1), cells["log_loss"].count()
        dof = int((count - 1).sum())
        sd = float(np.sqrt((spread.fillna(0) * (count - 1)).sum() / dof)) if dof else float("nan")
        lack = float(np.sqrt((cells["residual"].mean() ** 2).mean()))
        found.append(Noise(mix, sd, dof, lack))
    return found

