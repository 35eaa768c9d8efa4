"""Seeded bootstraps of fits that know which points belong together.

Points of one run share its luck, so resampling them one by one is far too sure. Offered:

- `parametric` (default): the noise is a run effect plus a point's own, both estimated from the
  residuals with what the fit absorbed given back; its level, known from few runs only, is drawn too
- `wild`: all residuals of a run flip sign together (Cameron, Gelbach & Miller 2008)
- `run`: whole runs drawn with replacement
- `case`: points drawn one by one, to show what that hides

Paired, runs of several mixes with one size and seed, which saw the same batches, are one cluster.
That assumes no correlation between them, it lets the residuals say: noise that they share cancels
in a ratio, noise or lack of fit of one mix alone does not. Fewer clusters say less, so it pays only
with many.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import pandas as pd

from analysis.fit import Fit, Model, refit
from analysis.laws import PARAMETERS, Array, Chinchilla

Method = Literal["parametric", "wild", "run", "case"]
METHODS: tuple[Method, ...] = get_args(Method)
METHOD_WORDS = {
    "parametric": "parametric bootstrap with a run effect",
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

    @property
    def words(self) -> str:
        pairs = ", mixes of one size and seed drawn together" if self.paired else ""
        return f"{METHOD_WORDS[self.method]}{pairs}, {self.resamples} resamples, seed {self.seed}"


def bootstrap(
    fit: Fit,
    method: Method = "parametric",
    resamples: int = 1000,
    seed: int = 0,
    paired: bool = False,
) -> Draws:
    """Refit `fit` to `resamples` resamples of its points; the same seed gives the same draws."""
    rng = np.random.default_rng(seed)
    clusters = cluster_ids(fit.points, method, paired)
    log_loss = np.log(fit.points["loss"].to_numpy(float))
    samples, weights = np.tile(log_loss, (resamples, 1)), np.ones((resamples, fit.n))
    if method == "parametric":
        samples += fit.residual + _parametric_noise(rng, fit, clusters, resamples)
    elif method == "wild":
        samples += fit.residual + _wild_noise(rng, fit, clusters, resamples)
    else:
        weights = _counts(rng, fit.points, clusters, resamples)
    laws: dict[str, Chinchilla] = {}
    for block in fit.blocks:
        theta = np.empty((resamples, block.problem.n_parameters))
        for start in range(0, resamples, BATCH):
            some = slice(start, start + BATCH)
            theta[some], _ = refit(
                block, samples[some, block.rows], weights[some, block.rows], fit.threshold
            )
        for m, name in enumerate(block.mixes):
            laws[name] = block.problem.law(theta, m)
    return Draws({name: laws[name] for name in fit.mixes}, method, paired, resamples, seed)


def model_weights(fits: dict[Model, Fit]) -> dict[Model, float]:
    """Akaike weights of joint models, exp(-AICc/2) scaled to one (Buckland et al. 1997)."""
    aicc = np.array([one.aicc for one in fits.values()])
    if not np.isfinite(aicc).any():
        # Nothing can be compared: all of it goes to the least free model.
        raw = np.array([float(model == list(fits)[-1]) for model in fits])
    else:
        raw = np.exp(-(aicc - aicc.min()) / 2)
    return dict(zip(fits, (raw / raw.sum()).tolist(), strict=True))


def averaged_bootstrap(
    fits: dict[Model, Fit],
    method: Method = "parametric",
    resamples: int = 1000,
    seed: int = 0,
    paired: bool = False,
) -> Draws:
    """Resamples shared out among joint models by their Akaike weights.

    The interval then holds the doubt about which model is right, beside that within each.
    """
    weights = model_weights(fits)
    shares = np.array(list(weights.values())) * resamples
    counts = np.floor(shares).astype(int)
    # Largest remainders get what rounding down left over.
    counts[np.argsort(counts - shares, kind="stable")[: resamples - counts.sum()]] += 1
    parts = [
        bootstrap(one, method, int(count), seed + 1_000_003 * i, paired)
        for i, (one, count) in enumerate(zip(fits.values(), counts, strict=True))
        if count
    ]
    laws = {
        mix: Chinchilla(
            *(np.concatenate([getattr(part.laws[mix], name) for part in parts])
              for name in PARAMETERS)
        )
        for mix in parts[0].laws
    }
    return Draws(laws, method, paired, resamples, seed)


def cluster_ids(points: pd.DataFrame, method: Method = "parametric", paired: bool = False) -> Array:
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


def noise_components(residual: Array, hat: Array, clusters: Array) -> tuple[float, float, float]:
    """Variances of a point's own noise and of a cluster's, and the latter's degrees of freedom.

    Residuals are (I - H) times the noise, so each sum of squares is a known mix of the two
    variances; the two equations are solved, a negative variance being none (Henderson's method III;
    degrees of freedom after Satterthwaite 1946).
    """
    n = len(residual)
    together = (clusters[:, None] == clusters).astype(float)
    forms = [np.eye(n), together]
    left = np.eye(n) - hat
    seen = [left @ form for form in forms]
    squares = np.array([residual @ form @ residual for form in forms])
    expected = np.array([[np.sum(a * b.T) for b in seen] for a in seen])
    one_each = np.linalg.matrix_rank(together) == n
    if one_each or abs(np.linalg.det(expected / expected.max())) < 1e-12:
        point, run = squares[0] / max(expected[0, 0], 1e-300), 0.0
    else:
        point, run = np.linalg.solve(expected, squares)
        if run < 0:
            point, run = squares[0] / expected[0, 0], 0.0
        elif point < 0:
            point, run = 0.0, squares[1] / expected[1, 1]
    covariance = left @ (point * forms[0] + run * forms[1]) @ left
    product = covariance @ forms[1]
    dof = np.trace(product) ** 2 / max(np.sum(product * product.T), 1e-300)
    return float(point), float(run), float(max(dof, 0.5))


def _parametric_noise(
    rng: np.random.Generator, fit: Fit, clusters: Array, resamples: int
) -> Array:
    point, run, dof = noise_components(fit.residual, hat_matrix(fit), clusters)
    noise = np.sqrt(point) * rng.normal(size=(resamples, fit.n))
    noise += np.sqrt(run) * rng.normal(size=(resamples, clusters.max() + 1))[:, clusters]
    return noise * _level(rng, resamples, dof)


def _wild_noise(rng: np.random.Generator, fit: Fit, clusters: Array, resamples: int) -> Array:
    hat = hat_matrix(fit)
    _, _, dof = noise_components(fit.residual, hat, clusters)
    signs = rng.choice([-1.0, 1.0], size=(resamples, clusters.max() + 1))
    noise = signs[:, clusters] * inflate(fit.residual, hat, clusters)
    return noise * _level(rng, resamples, dof)


def _level(rng: np.random.Generator, resamples: int, dof: float) -> Array:
    """sqrt(dof / chi2) per resample, (resamples, 1): how badly so few runs know the noise level.

    With it the resamples spread like Student's t rather than like a normal of known width.
    """
    return np.sqrt(dof / np.maximum(rng.chisquare(dof, size=(resamples, 1)), 1e-12))


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


def _counts(
    rng: np.random.Generator, points: pd.DataFrame, clusters: Array, resamples: int
) -> Array:
    """How often each point is drawn, (resamples, n): clusters with replacement, within each mix.

    Clusters that span the mixes are drawn once for all of them.
    """
    owner = points.groupby(clusters)["mix"].agg(lambda mixes: "/".join(sorted(set(mixes))))
    counts = np.zeros((resamples, len(owner)))
    for _, own in owner.groupby(owner):
        k = len(own)
        counts[:, own.index.to_numpy()] = rng.multinomial(k, np.full(k, 1 / k), size=resamples)
    return counts[:, clusters]


def interval(draws: Array, level: float = 0.95) -> tuple[float, float, float]:
    """Percentile interval of draws of a ratio, and the share that is 0, infinite or undefined.

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
    with np.errstate(divide="ignore"):
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
    """Scatter of one mix's loss, relative: between seeds at equal size and D, and about the law.

    `seed_sd` is NaN where no size has two seeds; `lack_of_fit` is the rms residual of seed means.
    """

    mix: str
    seed_sd: float
    seed_dof: int
    lack_of_fit: float


def seed_noise(fit: Fit) -> list[Noise]:
    """Seed-to-seed standard deviation of log loss beside the lack of fit, mix by mix."""
    table = fit.points.assign(residual=fit.residual, log_loss=np.log(fit.points["loss"]))
    found = []
    for mix in fit.mixes:
        cells = table[table["mix"] == mix].groupby(["size", "D"])
        spread, count = cells["log_loss"].var(ddof=1), cells["log_loss"].count()
        dof = int((count - 1).sum())
        sd = float(np.sqrt((spread.fillna(0) * (count - 1)).sum() / dof)) if dof else float("nan")
        lack = float(np.sqrt((cells["residual"].mean() ** 2).mean()))
        found.append(Noise(mix, sd, dof, lack))
    return found
