"""From points to fits, draws and savings in one place: what `report` and `savings` both need."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from ablations.records import SettingError
from analysis.fit import MODELS, Fit, Loss, Model, fit, lacking
from analysis.model_choice import Choice, choose
from analysis.noise import LackOfFit, Noise, lack_of_fit, seed_noise
from analysis.savings import Saving, check_baseline, fit_free, places, token_savings
from analysis.uncertainty import Draws, Method, averaged_bootstrap, bootstrap


@dataclass(frozen=True)
class Study:
    """Fits of every mix that can be fitted. `unfitted` says of the others what they lack.

    `fit` is the joint model of lowest AICc, `choice` all that were compared, `draws` resamples
    shared out among them by weight.
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

    @property
    def law_fails(self) -> bool:
        """Whether seeds show that the law does not describe the points."""
        return self.lack is not None and self.lack.found

    @property
    def weights(self) -> dict[Model, float]:
        """Akaike weight of each joint model compared."""
        return self.choice.weights if self.choice else {}


def study(
    points: pd.DataFrame,
    baseline: str,
    resamples: int = 1000,
    seed: int = 0,
    method: Method = "parametric",
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
    best = choice.best
    draws = averaged_bootstrap(choice, method, resamples, seed, paired)
    savings: list[Saving] = []
    if baseline in best.mixes:
        for _, N, D in places(ready, baseline):
            if len(best.mixes) > 1:
                savings += token_savings(best, draws, baseline, N, D)
    noise = tuple(seed_noise(best))
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
        lack=lack_of_fit(best),
    )


def savings_at(
    points: pd.DataFrame,
    baseline: str,
    at: list[tuple[float, float]],
    model: Model | None = None,
    loss: Loss = "squares",
    method: Method = "parametric",
    paired: bool = False,
    resamples: int = 1000,
    seed: int = 0,
) -> list[Saving]:
    """Savings at each (N, D), or at each of the baseline's sizes where `at` is empty.

    `model` None compares the joint models by AICc (least squares only). Raises SettingError where a
    mix cannot be fitted, or there is nothing to compare.
    """
    mixes = list(dict.fromkeys(points["mix"]))
    check_baseline(mixes, baseline)
    points = _baseline_first(points, baseline)
    for mix, own in points.groupby("mix"):
        if clause := lacking(own):
            raise SettingError(f"mix={mix} cannot be fitted: it has {clause}.")
    if model is None:
        if loss != "squares":
            raise SettingError(
                f"loss={loss} needs a model, as AICc compares least squares only; "
                f"give --model {', '.join(MODELS)}."
            )
        choice = choose(points)
        best = choice.best
        draws = averaged_bootstrap(choice, method, resamples, seed, paired)
    else:
        best = fit(points, model, loss)
        draws = bootstrap(best, method, resamples, seed, paired)
    spots = at or [(N, D) for _, N, D in places(points, baseline)]
    return [one for N, D in spots for one in token_savings(best, draws, baseline, N, D)]


def _baseline_first(points: pd.DataFrame, baseline: str) -> pd.DataFrame:
    """Tables and legends list the baseline first, then the others as they came."""
    first = points["mix"] != baseline
    return points.assign(_last=first).sort_values("_last", kind="stable").drop(columns="_last")
