"""From points to fits, draws and savings in one place: what `report` and `savings` both need."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import pandas as pd

from ablations.records import SettingError
from analysis.stats.fit import DELTA, MODELS, Fit, Loss, Model, fit, lacking
from analysis.stats.mixed import MixedModel, mixed_model
from analysis.stats.model_choice import Choice, choose
from analysis.stats.noise import LackOfFit, Noise, lack_of_fit, seed_noise
from analysis.stats.savings import Saving, check_baseline, fit_free, places, token_savings
from analysis.stats.uncertainty import Draws, Method, averaged_bootstrap, bootstrap

# Sharing exponents or E narrows an interval and costs coverage, as a ladder rarely shows that they
# differ (docs/intervals.md): the default leaves each mix its own law, and averages nothing.
Joint = Model | Literal["averaged"]


@dataclass(frozen=True)
class Study:
    """Fits of every mix that can be fitted. `unfitted` says of the others what they lack.

    `fit` is each mix's own law, by the model that `draws` are of; `choice` holds the joint models
    by plain least squares beside it, `mixed` the noise of points, runs, batches and the misfit.
    """

    points: pd.DataFrame
    baseline: str
    fit: Fit | None
    choice: Choice | None
    draws: Draws | None
    unfitted: dict[str, str]
    savings: tuple[Saving, ...]
    free: pd.DataFrame
    noise: tuple[Noise, ...]
    lack: LackOfFit | None
    mixed: MixedModel | None = None

    @property
    def law_fails(self) -> bool:
        """Whether seeds show that the law does not describe the points."""
        return self.lack is not None and self.lack.found


def study(
    points: pd.DataFrame,
    baseline: str,
    resamples: int = 1000,
    seed: int = 0,
    method: Method = "mixed",
    paired: bool = False,
) -> Study:
    """Fit what can be fitted, and take savings at each of the baseline's sizes.

    Nothing is raised for what is missing: a sweep that still runs has something to say.
    """
    unfitted = {str(mix): clause for mix, own in points.groupby("mix") if (clause := lacking(own))}
    points = _baseline_first(points, baseline)
    ready = points[~points["mix"].isin(list(unfitted))]
    free = fit_free(points, baseline)
    if ready.empty:
        return Study(points, baseline, None, None, None, unfitted, (), free, (), None)
    choice = choose(ready)
    least = choice.fits["free"]
    mixed = mixed_model(least)
    draws = bootstrap(least, method, resamples, seed, paired, mixed)
    best = mixed.best if method == "mixed" else least
    savings: list[Saving] = []
    if baseline in best.mixes:
        for _, N, D in places(ready, baseline):
            if len(best.mixes) > 1:
                savings += token_savings(best, draws, baseline, N, D)
    noise = tuple(seed_noise(least))
    return Study(
        points=points,
        baseline=baseline,
        fit=best,
        choice=choice,
        draws=draws,
        unfitted=unfitted,
        savings=tuple(savings),
        free=free,
        noise=noise,
        lack=lack_of_fit(least),
        mixed=mixed,
    )


def fitted(
    points: pd.DataFrame,
    baseline: str,
    model: Joint = "free",
    loss: Loss = "squares",
    method: Method = "mixed",
    paired: bool = False,
    resamples: int = 1000,
    seed: int = 0,
    delta: float = DELTA,
    fixed: Mapping[str, float] | None = None,
) -> tuple[Fit, Draws]:
    """Fit all mixes and resample. `averaged` shares resamples out by Akaike weight.

    Raises SettingError where a mix cannot be fitted, or there is nothing to compare.
    """
    check_baseline(list(dict.fromkeys(points["mix"])), baseline)
    points = _baseline_first(points, baseline)
    if model != "averaged":
        one = fit(points, model, loss, delta, held=fixed)
        noise = mixed_model(one) if method == "mixed" else None
        draws = bootstrap(one, method, resamples, seed, paired, noise)
        return (noise.best if noise else one), draws
    if fixed:
        raise SettingError(
            "fix= needs one model, and model=averaged is several; give --model free."
        )
    if loss != "squares":
        raise SettingError(
            f"loss={loss} needs a model, as AICc compares least squares only; "
            f"give --model {', '.join(MODELS)}."
        )
    choice = choose(points)
    draws = averaged_bootstrap(choice, method, resamples, seed, paired)
    best = choice.best
    return (mixed_model(best).best if method == "mixed" else best), draws


def _baseline_first(points: pd.DataFrame, baseline: str) -> pd.DataFrame:
    """Tables and legends list the baseline first, then the others as they came."""
    first = points["mix"] != baseline
    return points.assign(_last=first).sort_values("_last", kind="stable").drop(columns="_last")
