"""What a pilot's points say about the noise, the saving and the law that a plan assumes.

What is given wins over what is learned, and what cannot be learned keeps its default. The noise is
that of repeated seeds (`analysis.stats.seeds`), so that a law's misfit is not taken for it; the
baseline's law is fitted, and the saving is read off at the pilot's largest size and budget, and
taken as constant beyond. Intervals are 95 %.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from ablations.records import SettingError, nearest
from analysis.stats.design import LARGEST_SAVING, LARGEST_SD, LEAST_SAVING, Assumed, Size
from analysis.stats.fit import fit
from analysis.stats.laws import FLOPS, PARAMETERS, Array, Chinchilla
from analysis.stats.mixed import mixed_model
from analysis.stats.noise import lack_of_fit
from analysis.stats.savings import matched_factor, places, token_savings
from analysis.stats.seeds import seed_noise_draws
from analysis.stats.uncertainty import bootstrap
from analysis.study.checks import doubts
from models.format import percent

DRAWS = 200
ENDS = (0.025, 0.5, 0.975)


@dataclass(frozen=True)
class Assumption:
    """One quantity of a plan: `source` is given, learned or default; `words` say what from."""

    name: str
    value: float
    source: str
    low: float | None = None
    high: float | None = None
    words: str = ""


@dataclass(frozen=True)
class Pilot:
    """What a plan assumes, where each quantity came from, and the doubt about what was learned.

    `draws` are assumptions with other noise and savings, as likely as those `assumed`, and the
    same law; empty where nothing was learned. `notes` say
    what the pilot could not tell, a sentence each.
    """

    assumed: Assumed
    given: frozenset[str]
    learned: dict[str, Assumption]
    draws: tuple[Assumed, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def assumptions(self) -> list[Assumption]:
        """One for each quantity of the plan: the saving, the noise, the baseline's law."""
        values = {name: getattr(self.assumed, name) for name in QUANTITIES}
        values |= self.assumed.baseline.as_dict()
        return [
            self.learned.get(name)
            or Assumption(name, float(value), "given" if name in self.given else "default")
            for name, value in values.items()
            if name in (*QUANTITIES, *PARAMETERS)
        ]


QUANTITIES = ("saving", "run_sd", "point_sd", "shared")


def learn(
    points: pd.DataFrame,
    name: str,
    baseline: str,
    mix: str,
    assumed: Assumed,
    given: Collection[str] = (),
) -> Pilot:
    """Put what the points say in place of `assumed`, but for what is `given`.

    Raises SettingError where the points tell nothing that a plan needs, or noise that no plan can
    use.
    """
    there = list(dict.fromkeys(points["mix"]))
    if baseline not in there and mix not in there:
        raise SettingError(
            f"{name} has neither baseline={baseline} nor mix={mix}; {nearest(baseline, there)}"
            f"it has {', '.join(there)}."
        )
    learned: dict[str, Assumption] = {}
    draws: dict[str, Array] = {}
    notes: list[str] = [str(one) for one in doubts(points)]
    wanted = [quantity for quantity in QUANTITIES[1:] if quantity not in given]
    if wanted:
        _learn_noise(points, wanted, learned, draws, notes)
    laws = _learn_laws(points, baseline, mix, "saving" not in given, learned, draws, notes)
    if not learned:
        raise SettingError(f"{name} tells nothing that a plan needs. {' '.join(notes)}")
    for quantity in ("run_sd", "point_sd"):
        if quantity in learned and learned[quantity].value > LARGEST_SD:
            raise SettingError(
                f"{name} has seeds that scatter by {percent(learned[quantity].value, '.0f')} of "
                f"the loss ({quantity}), and a plan takes at most {percent(LARGEST_SD, 'g')}; "
                f"leave out runs that failed, or give {quantity}=."
            )
    values = {key: one.value for key, one in learned.items() if key in QUANTITIES}
    central = replace(assumed, **values)  # type: ignore[arg-type]  # floats, all of them
    if laws is not None:
        central = replace(central, baseline=laws)
    drawn = [
        replace(central, **{key: float(values[i]) for key, values in draws.items()})  # type: ignore[arg-type]
        for i in range(DRAWS if draws else 0)
    ]
    return Pilot(central, frozenset(given), learned, tuple(drawn), tuple(notes))


def _learn_noise(
    points: pd.DataFrame,
    wanted: list[str],
    learned: dict[str, Assumption],
    draws: dict[str, Array],
    notes: list[str],
) -> None:
    noise = seed_noise_draws(points)
    if noise is None:
        notes.append(
            "No mix of the pilot has two seeds of different losses at one size and budget, so it "
            f"cannot tell {_listed(wanted)}."
        )
        return
    runs = f"{noise.repeats} repeated run(s)"
    found = {
        "run_sd": (noise.run_sd, runs),
        "point_sd": (noise.point_sd, f"points of {runs}"),
        # What batches share cannot be less than nothing.
        "shared": (np.maximum(noise.shared, 0), f"{noise.paired} repeated pair(s) on same batches"),
    }
    why = {
        "point_sd": "The pilot's runs have one budget each that seeds share, so it cannot tell "
        "point_sd, which is in run_sd.",
        "shared": "No mixes of the pilot have two seeds or more of one size on the same batches, "
        "so it cannot tell shared.",
    }
    for quantity in wanted:
        values, words = found[quantity]
        if np.isnan(values).any():
            notes.append(why[quantity])
        else:
            learned[quantity] = _learned(quantity, values, words)
            draws[quantity] = values[:DRAWS]


def _learn_laws(
    points: pd.DataFrame,
    baseline: str,
    mix: str,
    with_saving: bool,
    learned: dict[str, Assumption],
    draws: dict[str, Array],
    notes: list[str],
) -> Chinchilla | None:
    """Learn the baseline's law, which is returned, and the saving where the mix is there too."""
    own = points[points["mix"].isin([baseline, mix])]
    missing = [name for name in (baseline, mix) if name not in set(own["mix"])]
    if missing:
        untold = "law" if baseline in missing else "saving"
        notes.append(f"The pilot has no points of {' and '.join(missing)}: no {untold} is learned.")
    if baseline in missing:
        return None
    try:
        least = fit(own, "free", "squares")
    except SettingError as problem:
        notes.append(f"No law is learned, as {str(problem).rstrip('.')}.")
        return None
    model = mixed_model(least)
    best = model.best
    if bounds := best.mixes[baseline].at_bound:
        notes.append(
            f"No law is learned, as {' and '.join(bounds)} of {baseline} ends at a bound of what "
            "is searched."
        )
        return None
    lack = lack_of_fit(least)
    if (lack and lack.found) or (lack is None and "run_sd" not in learned):
        notes.append(
            f"The law leaves {percent(best.rms)} of the pilot's losses; the plan has no error "
            f"of the law, and run_sd={best.rms:.2g} would hold it."
        )
    resampled = bootstrap(least, resamples=DRAWS, model=model)
    law = best.mixes[baseline].law
    for name, value in law.as_dict().items():
        if name in PARAMETERS:
            learned[name] = _learned(
                name, getattr(resampled.laws[baseline], name), f"fit of {baseline}", value
            )
    if not missing and with_saving:
        _, N, D = places(own, baseline)[-1]
        (saving,) = token_savings(best, resampled, baseline, N, D)
        if LEAST_SAVING <= saving.value <= LARGEST_SAVING:
            words = f"fits at N = {N:.3g}, D = {D:.3g}"
            learned["saving"] = Assumption(
                "saving", saving.value, "learned", saving.low, saving.high, words
            )
            drawn_laws = resampled.laws[baseline], resampled.laws[mix]
            factors = np.nan_to_num(matched_factor(*drawn_laws, N, D), nan=1.0)
            draws["saving"] = np.clip(factors, LEAST_SAVING, LARGEST_SAVING)
        else:
            notes.append(
                f"The pilot's saving of {saving.value:.3g} is none to plan with "
                f"({LEAST_SAVING:g} to {LARGEST_SAVING:g})."
            )
    return law


def _learned(name: str, values: Array, words: str, value: float | None = None) -> Assumption:
    low, middle, high = (float(one) for one in np.quantile(values, ENDS))
    return Assumption(name, middle if value is None else value, "learned", low, high, words)


def _listed(names: list[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} or {last}" if first else last


def sizes_of(points: pd.DataFrame, baseline: str, mix: str) -> list[Size]:
    """The pilot's sizes with training FLOPs a token of both mixes: of its column C, or 6 N."""
    counted = points.assign(flops=FLOPS * points["N"])
    if "C" in points:
        counted["flops"] = (points["C"] / points["D"]).fillna(counted["flops"])
    found = []
    for size, rows in counted.groupby("size"):
        N = float(rows["N"].mean())
        each = [rows.loc[rows["mix"] == one, "flops"].mean() for one in (baseline, mix)]
        flops = [FLOPS * N if np.isnan(value) else float(value) for value in each]
        # A ladder's sizes are listed with commas.
        found.append(Size(f"{N:g}" if "," in str(size) else str(size), N, (flops[0], flops[1])))
    # Two names of one N are one size to plan with.
    return sorted({size.N: size for size in reversed(found)}.values(), key=lambda size: size.N)


def rows_of(assumptions: list[Assumption]) -> list[dict[str, Any]]:
    """Assumptions as rows of a table, empty where there is no interval."""
    return [
        {
            "assumed": one.name,
            "value": one.value,
            "source": one.source,
            "low": one.low,
            "high": one.high,
            "from": one.words,
        }
        for one in assumptions
    ]
