"""Which coefficients differ between mixes: every joint model, fitted, ranked and tested.

Least squares on log residuals. A likelihood ratio of a model against the freest one is
n log(SS_model / SS_free); its p value is the share of ladders simulated from the model, with its
residuals' noise between and within runs, whose ratio is as large (parametric bootstrap: with few
runs and a bent surface the ratio is not chi-squared).
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from ablations.records import SettingError
from analysis.stats.fit import MODELS, Fit, Model, fit, refit
from analysis.stats.laws import Array
from analysis.stats.model_choice import aicc, bic, model_weights, run_to_point, standardised
from analysis.stats.noise import cluster_ids, hat_matrix, noise_components

# Resamples fitted at a time: bounds the memory of the grid stage.
BATCH = 250


@dataclass(frozen=True)
class Rung:
    """One joint model. `ratio` and `p` are against `free`, NaN for `free` itself.

    `bound`: coefficients at their bound, which a ratio takes for fitted ones.
    """

    model: Model
    fit: Fit
    aicc: float
    bic: float
    weight: float
    ratio: float
    p: float
    bound: tuple[str, ...]

    def as_dict(self) -> dict[str, object]:
        return {
            "model": self.model,
            "parameters": self.fit.n_parameters,
            "objective": self.fit.objective,
            "rms": self.fit.rms,
            "aicc": self.aicc,
            "bic": self.bic,
            "weight": self.weight,
            "likelihood_ratio": self.ratio,
            "p": self.p,
            "at_bound": list(self.bound),
        }


def ladder(points: pd.DataFrame, resamples: int = 499, seed: int = 0) -> list[Rung]:
    """Every joint model over the mixes of `points`, from most to least free.

    `resamples` 0 leaves p at NaN. AICc and BIC count a run effect, as large as the freest model's
    residuals show. Raises SettingError like `fit`, and where there is one mix only.
    """
    if points["mix"].nunique() < 2:
        raise SettingError(
            f"model=all compares mixes, and there is one only ({points['mix'].iloc[0]}); "
            "give points of a second mix."
        )
    fits: dict[Model, Fit] = {model: fit(points, model, "squares") for model in MODELS}
    freest = fits["free"]
    criteria = {model: _criteria(one, run_to_point(freest)) for model, one in fits.items()}
    weights = model_weights({model: pair[0] for model, pair in criteria.items()})
    rungs = []
    for model, one in fits.items():
        ratio = p = float("nan")
        if model != "free":
            ratio = float(_ratio(_square(one), _square(freest), one.n))
            p = p_value(one, freest, resamples, seed) if resamples else p
        bound = sorted({name for mix in one.mixes.values() for name in mix.at_bound})
        rungs.append(Rung(model, one, *criteria[model], weights[model], ratio, p, tuple(bound)))
    return rungs


def _criteria(one: Fit, run_to_point: float) -> tuple[float, float]:
    """AICc and BIC."""
    common = standardised(one), one.n_parameters, cluster_ids(one.points), run_to_point
    return aicc(*common), bic(*common)


def p_value(null: Fit, freest: Fit, resamples: int, seed: int) -> float:
    """Share of resamples from `null` whose likelihood ratio is at least that of the data."""
    rng = np.random.default_rng(seed)
    clusters = cluster_ids(null.points)
    point, run, _ = noise_components(freest.residual, hat_matrix(freest), clusters)
    law = np.log(null.points["loss"].to_numpy(float)) + null.residual
    observed = _ratio(_square(null), _square(freest), null.n)
    larger = 0
    for start in range(0, resamples, BATCH):
        R = min(BATCH, resamples - start)
        noise = np.sqrt(point) * rng.normal(size=(R, null.n))
        noise += np.sqrt(run) * rng.normal(size=(R, clusters.max() + 1))[:, clusters]
        sample = law + noise
        ratio = _ratio(_squares_of(null, sample), _squares_of(freest, sample), null.n)
        larger += int((ratio >= observed).sum())
    return (1 + larger) / (1 + resamples)


def _square(one: Fit) -> float:
    return float((standardised(one) ** 2).sum())


def _squares_of(one: Fit, sample: Array) -> Array:
    """Weighted sums of squared log residuals of a model fitted to samples (R, n)."""
    total = np.zeros(len(sample))
    for block in one.blocks:
        own = sample[:, block.rows]
        total += 2 * refit(block, own, np.ones_like(own), np.inf)[1]
    return total


def _ratio(null: Array | float, freest: Array | float, n: int) -> Array:
    return np.maximum(n * np.log(null / np.maximum(freest, 1e-300)), 0)
