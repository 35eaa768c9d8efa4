"""From points to fits, draws and savings in one place: what `report` and `savings` both need."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import pandas as pd

from ablations.records import SettingError
from analysis.stats.fit import DELTA, Fit, Loss, Model, fit, lacking
from analysis.stats.interaction import Interaction, interaction, interaction_free
from analysis.stats.interval import LEVEL
from analysis.stats.mixed import MixedModel, mixed_model
from analysis.stats.model_choice import Choice, choose
from analysis.stats.noise import LackOfFit, Noise, lack_of_fit, seed_noise
from analysis.stats.other_savings import Question, savings_of
from analysis.stats.savings import Saving, fit_free, places, seconds_per_token
from analysis.stats.uncertainty import Draws, Method, averaged_bootstrap, bootstrap
from analysis.study.arms import Arms, Contrast

# Sharing exponents or E narrows an interval and costs coverage, as a ladder rarely shows that they
# differ (docs/intervals.md): the default leaves each mix its own law, and averages nothing.
Joint = Model | Literal["averaged"]


@dataclass(frozen=True)
class Study:
    """Laws of every mix (or arm) that can be fitted and what is read off them, made when asked for.

    `points` are the baseline's first. Nothing is raised for what is missing: a sweep that still
    runs has something to say.
    """

    points: pd.DataFrame
    baseline: str
    arms: Arms = field(default_factory=Arms)
    resamples: int = 1000
    seed: int = 0
    level: float = LEVEL

    @cached_property
    def mixes(self) -> list[str]:
        """Names of what has points, the baseline's first."""
        return list(dict.fromkeys(self.points["mix"]))

    @property
    def has_baseline(self) -> bool:
        """Whether the baseline, a mix or an arm, has points."""
        return self.baseline in (*self.mixes, *self.arms.mixes(self.mixes))

    @cached_property
    def versus(self) -> dict[str, str]:
        """The baseline of each mix, or arm, that is compared; of none where it has no points."""
        if not self.has_baseline:
            return {}
        return self.arms.versus(self.mixes, self.baseline)

    @cached_property
    def unfitted(self) -> dict[str, str]:
        """Mixes that cannot be fitted, and what they lack."""
        points = self.points.groupby("mix")
        return {str(mix): clause for mix, own in points if (clause := lacking(own))}

    @cached_property
    def free(self) -> pd.DataFrame:
        """Savings without a fit (`analysis.stats.savings.fit_free`)."""
        return fit_free(self.points, self.versus, self.level)

    @cached_property
    def choice(self) -> Choice | None:
        """The joint models by plain least squares."""
        ready = self._fitted_points
        return None if ready.empty else choose(ready)

    @property
    def _least(self) -> Fit | None:
        return self.choice.fits["free"] if self.choice else None

    @cached_property
    def mixed(self) -> MixedModel | None:
        """The noise of points, runs, batches and the misfit."""
        return mixed_model(self._least) if self._least else None

    @property
    def fit(self) -> Fit | None:
        """Each mix's own law, by the model that `draws` are of."""
        return self.mixed.best if self.mixed else None

    @cached_property
    def draws(self) -> Draws | None:
        """Laws refitted to resampled ladders."""
        if self._least is None:
            return None
        return bootstrap(
            self._least, "mixed", self.resamples, self.seed, model=self.mixed, level=self.level
        )

    @cached_property
    def savings(self) -> tuple[Saving, ...]:
        """Token savings at each of the baseline's sizes, by the laws."""
        if self.fit is None or self.draws is None:
            return ()
        return savings_at(self.fit, self.draws, self.compared, self.places_asked)

    @cached_property
    def time_savings(self) -> dict[tuple[str, float], Saving]:
        """Time savings by mix and N, at those of the baseline's sizes that both were timed at."""
        if self.fit is None or self.draws is None:
            return {}
        speeds = seconds_per_token(self.points)
        timed = set(zip(speeds["mix"], speeds["size"], strict=True))
        found: dict[tuple[str, float], Saving] = {}
        for baseline in dict.fromkeys(self.compared.values()):
            for size, N, D in places(self._fitted_points, baseline):
                mixes = [
                    mix
                    for mix, own in self.compared.items()
                    if own == baseline and {(own, size), (mix, size)} <= timed
                ]
                if mixes:
                    question = Question("time", N, D)
                    savings = savings_of(self.fit, self.draws, baseline, question, mixes)
                    found |= {(one.mix, N): one for one in savings}
        return found

    def places_asked(self, baseline: str) -> list[Question]:
        """Where savings over a baseline are read: its sizes, each at its largest budget."""
        return [Question("tokens", N, D) for _, N, D in places(self._fitted_points, baseline)]

    @cached_property
    def compared(self) -> dict[str, str]:
        """The baseline of each mix that has a law, where the baseline has one too."""
        return {
            mix: baseline
            for mix, baseline in self.versus.items()
            if not {mix, baseline} & self.unfitted.keys()
        }

    @property
    def _fitted_points(self) -> pd.DataFrame:
        return self.points[~self.points["mix"].isin(list(self.unfitted))]

    @cached_property
    def contrasts(self) -> list[Contrast]:
        """Pairs of arms that tell what another treatment does to a saving."""
        return self.arms.contrasts(self.versus)

    @cached_property
    def interactions(self) -> tuple[tuple[Contrast, Interaction], ...]:
        """What other treatments do to savings, at each of the baseline's sizes, by the laws."""
        if self.fit is None or self.draws is None:
            return ()
        contrasts = [
            one
            for one in self.contrasts
            if not {one.arm, one.reference, self.versus[one.arm], self.versus[one.reference]}
            & self.unfitted.keys()
        ]
        return interactions_at(self.fit, self.draws, self.versus, contrasts, self.places_asked)

    @cached_property
    def interactions_free(self) -> pd.DataFrame:
        """The same from seeds, without a law (`analysis.stats.interaction.interaction_free`)."""
        pairs = [(one.arm, one.reference) for one in self.contrasts]
        return interaction_free(self.free, pairs, self.level)

    @cached_property
    def noise(self) -> tuple[Noise, ...]:
        """Scatter of seeds beside lack of fit, by mix."""
        return tuple(seed_noise(self._least)) if self._least else ()

    @cached_property
    def lack(self) -> LackOfFit | None:
        """Whether seeds show that the law does not describe the points."""
        return lack_of_fit(self._least) if self._least else None

    @property
    def law_fails(self) -> bool:
        """Whether seeds show that the law does not describe the points."""
        return self.lack is not None and self.lack.found

    def make(self) -> None:
        """Make all of it that can be made."""
        _ = self.savings, self.free, self.interactions, self.interactions_free
        _ = self.noise, self.lack, self.time_savings


Asked = Callable[[str], list[Question]]
"""Where savings over a baseline are asked."""


def savings_at(
    fit: Fit, draws: Draws, versus: Mapping[str, str], asked: Asked
) -> tuple[Saving, ...]:
    """Savings of each mix over its baseline, by baseline, then place, then mix."""
    savings: list[Saving] = []
    for baseline in dict.fromkeys(versus.values()):
        mixes = [mix for mix, own in versus.items() if own == baseline]
        for question in asked(baseline):
            savings += savings_of(fit, draws, baseline, question, mixes)
    return tuple(savings)


def interactions_at(
    fit: Fit,
    draws: Draws,
    versus: Mapping[str, str],
    contrasts: Iterable[Contrast],
    asked: Asked,
) -> tuple[tuple[Contrast, Interaction], ...]:
    """Ratios of savings where those over the reference's baseline are asked, by contrast."""
    return tuple(
        (contrast, interaction_at(fit, draws, versus, contrast, question))
        for contrast in contrasts
        for question in asked(versus[contrast.reference])
    )


def interaction_at(
    fit: Fit, draws: Draws, versus: Mapping[str, str], one: Contrast, question: Question
) -> Interaction:
    """What a treatment does to a saving at one place."""
    both = [
        savings_of(fit, draws, versus[arm], question, [arm])[0] for arm in (one.arm, one.reference)
    ]
    return interaction(both[0], both[1], draws)


def study(
    points: pd.DataFrame,
    baseline: str,
    resamples: int = 1000,
    seed: int = 0,
    arms: Arms | None = None,
    level: float = LEVEL,
) -> Study:
    """What can be said of points; see `Study`. Nothing is computed yet."""
    arms = arms or Arms()
    return Study(_baseline_first(points, baseline, arms), baseline, arms, resamples, seed, level)


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
    arms: Arms | None = None,
    level: float = LEVEL,
) -> tuple[Fit, Draws]:
    """Fit all mixes and resample. `averaged` shares resamples out by Akaike weight.

    Raises SettingError where a mix cannot be fitted.
    """
    points = _baseline_first(points, baseline, arms or Arms())
    if model != "averaged":
        one = fit(points, model, loss, delta, held=fixed)
        noise = mixed_model(one) if method == "mixed" else None
        draws = bootstrap(one, method, resamples, seed, paired, noise, level)
        return (noise.best if noise else one), draws
    if fixed:
        raise SettingError("fix= needs one model, and model=averaged is several; give model=free.")
    if loss != "squares":
        raise SettingError(
            f"loss={loss} needs a model, as AICc compares least squares only; give model=free."
        )
    choice = choose(points)
    draws = averaged_bootstrap(choice, method, resamples, seed, paired, level)
    best = choice.best
    return (mixed_model(best).best if method == "mixed" else best), draws


def _baseline_first(points: pd.DataFrame, baseline: str, arms: Arms) -> pd.DataFrame:
    """Tables and legends list the baseline first, then the others as they came."""
    last = points["mix"].map(lambda name: baseline not in (name, arms.arm(name).mix))
    return points.assign(_last=last).sort_values("_last", kind="stable").drop(columns="_last")
