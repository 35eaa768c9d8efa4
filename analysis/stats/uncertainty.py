"""Seeded resamples of fits that know which points belong together.

Points of one run share its luck, so resampling them one by one is far too sure. Offered:

- `mixed` (default): other ladders of the same design, drawn from a mixed model with effects of
  runs, of batches that mixes share and of the law's misfit, their variances drawn too
  (`analysis.stats.mixed`)
- `parametric`: the noise is a run effect plus a point's own, both estimated from the residuals
  with what the fit absorbed given back; its level, known from few runs only, is drawn too
- `wild`: all residuals of a run flip sign together (Cameron, Gelbach & Miller 2008)
- `run`: whole runs drawn with replacement, within each mix
- `stratified`: points drawn one by one within each mix and size
- `case`: points drawn one by one within each mix, to show what that hides

Paired, runs of several mixes with one size and seed, which saw the same batches, are one cluster
(`mixed` estimates what they share, and needs no telling). benchmarks/coverage.py says how often the
intervals of each hold the truth; docs/intervals.md, what came out.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import pandas as pd

from analysis.stats.fit import Fit, refit
from analysis.stats.interval import LEVEL, Interval, percentiles
from analysis.stats.laws import PARAMETERS, Array, Chinchilla, Indices
from analysis.stats.mixed import MixedModel, mixed_model
from analysis.stats.model_choice import Choice
from analysis.stats.noise import cluster_ids, hat_matrix, inflate, noise_components

Method = Literal["mixed", "parametric", "wild", "run", "stratified", "case"]
METHODS: tuple[Method, ...] = get_args(Method)
METHOD_WORDS = {
    "mixed": "mixed model with effects of runs, shared batches and misfit",
    "parametric": "parametric bootstrap with a run effect",
    "wild": "wild bootstrap by run",
    "run": "bootstrap of whole runs",
    "stratified": "bootstrap of single points by size",
    "case": "bootstrap of single points",
}
# Resamples fitted at a time: bounds the memory of the grid stage to tens of megabytes.
BATCH = 250


@dataclass(frozen=True)
class Draws:
    """Laws of every mix over resamples: each coefficient an array of shape (resamples,).

    `level` is that of the intervals that are taken of them.
    """

    laws: dict[str, Chinchilla]
    method: Method
    paired: bool
    resamples: int
    seed: int
    level: float = LEVEL

    @property
    def words(self) -> str:
        pairs = ", mixes of one size and seed drawn together" if self.paired else ""
        return f"{METHOD_WORDS[self.method]}{pairs}, {self.resamples} resamples, seed {self.seed}"

    def interval(self, values: Array) -> Interval:
        """Percentile interval of what was read off each resample, (resamples,) or more."""
        return Interval(*percentiles(values, self.level), self.level, self.words)


def bootstrap(
    fit: Fit,
    method: Method = "mixed",
    resamples: int = 1000,
    seed: int = 0,
    paired: bool = False,
    model: MixedModel | None = None,
    level: float = LEVEL,
    shift: Array | None = None,
) -> Draws:
    """Refit `fit` to `resamples` resamples of its points; the same seed gives the same draws.

    `shift` (resamples, n) is added to the log losses of each resample of `mixed`: a doubt that is
    not the ladder's own noise. `model` is the fit's mixed model where it has been made already; its
    draws surround its `best`.
    """
    rng = np.random.default_rng(seed)
    if method == "mixed":
        model = model or mixed_model(fit)
        noise = model.draw(rng, resamples)
        drawn = _laws_of(fit, model.refitted(noise if shift is None else noise + shift))
        return Draws(drawn, method, False, resamples, seed, level)
    clusters = cluster_ids(fit.points, paired)
    if method in ("case", "stratified"):
        clusters = np.arange(fit.n)
    log_loss = np.log(fit.points["loss"].to_numpy(float))
    samples, weights = np.tile(log_loss, (resamples, 1)), np.ones((resamples, fit.n))
    if method == "parametric":
        samples += fit.residual + _parametric_noise(rng, fit, clusters, resamples)
    elif method == "wild":
        samples += fit.residual + _wild_noise(rng, fit, clusters, resamples)
    else:
        strata = ["mix", "size"] if method == "stratified" else ["mix"]
        weights = _counts(rng, fit.points, clusters, resamples, strata)
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
    laws = {name: laws[name] for name in fit.mixes}
    return Draws(laws, method, paired, resamples, seed, level)


def _laws_of(fit: Fit, found: list[Array]) -> dict[str, Chinchilla]:
    """Laws by mix from the parameters (R, p) of each block."""
    laws = {
        name: block.problem.law(theta, m)
        for block, theta in zip(fit.blocks, found, strict=True)
        for m, name in enumerate(block.mixes)
    }
    return {name: laws[name] for name in fit.mixes}


def averaged_bootstrap(
    choice: Choice,
    method: Method = "mixed",
    resamples: int = 1000,
    seed: int = 0,
    paired: bool = False,
    level: float = LEVEL,
) -> Draws:
    """Resamples shared out among joint models by their Akaike weights.

    The interval then holds the doubt about which model is right, beside that within each.
    """
    shares = np.array(list(choice.weights.values())) * resamples
    counts = np.floor(shares).astype(int)
    # Largest remainders get what rounding down left over.
    counts[np.argsort(counts - shares, kind="stable")[: resamples - counts.sum()]] += 1
    parts = [
        bootstrap(choice.fits[model], method, int(count), seed + 1_000_003 * i, paired)
        for i, (model, count) in enumerate(zip(choice.weights, counts, strict=True))
        if count
    ]
    laws = {
        mix: Chinchilla(
            *(
                np.concatenate([getattr(part.laws[mix], name) for part in parts])
                for name in PARAMETERS
            )
        )
        for mix in parts[0].laws
    }
    return Draws(laws, method, paired, resamples, seed, level)


def _parametric_noise(
    rng: np.random.Generator, fit: Fit, clusters: Indices, resamples: int
) -> Array:
    point, run, dof = noise_components(fit.residual, hat_matrix(fit), clusters)
    noise = np.sqrt(point) * rng.normal(size=(resamples, fit.n))
    noise += np.sqrt(run) * rng.normal(size=(resamples, clusters.max() + 1))[:, clusters]
    return noise * _level(rng, resamples, dof)


def _wild_noise(rng: np.random.Generator, fit: Fit, clusters: Indices, resamples: int) -> Array:
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


def _counts(
    rng: np.random.Generator,
    points: pd.DataFrame,
    clusters: Indices,
    resamples: int,
    strata: list[str],
) -> Array:
    """How often each point is drawn, (resamples, n): clusters with replacement, within strata.

    Clusters that span several strata are drawn once for all of them.
    """
    label = points[strata].astype(str).agg("/".join, axis=1)
    owner = label.groupby(clusters).agg(lambda labels: "+".join(sorted(set(labels))))
    counts = np.zeros((resamples, len(owner)))
    for _, own in owner.groupby(owner):
        k = len(own)
        counts[:, own.index.to_numpy()] = rng.multinomial(k, np.full(k, 1 / k), size=resamples)
    return counts[:, clusters]
