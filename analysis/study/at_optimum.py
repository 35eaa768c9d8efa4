"""Savings with every mix at its own optimum of a tuned setting, with the doubt about it inside.

A ladder's runs lie above the bottom of their mix's response surface: by little where they were
trained at the optimum as a tuning sweep had it (`protocol=tuned`), by more where all mixes had one
learning rate. Here that excess is taken off each loss, once as the surface has it and once per
resample as draws of the surface have it, and laws and savings follow. So an interval holds the
doubt about the optimum and about the curve's bottom beside all else.

What it rests on: the excess of a mix and size, measured at the tuning sweep's budget, is a share of
the loss that is the same at the ladder's other budgets.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ablations.optima import Tuned, tuned_of
from ablations.records import SettingError
from ablations.response import Array
from ablations.tuning import SETTINGS, check_conditions, read_conditions, read_trials
from analysis.stats.interval import LEVEL
from analysis.stats.savings import Saving, fit_free
from analysis.stats.uncertainty import bootstrap
from analysis.study.load import Run, Sweep, load_sweep
from analysis.study.study import Study, savings_at, study
from models.format import count

EDGE = 0.01
"""Octaves beyond the fitted values that are none, for rounding."""


@dataclass(frozen=True)
class Excess:
    """Shares of the loss by which a mix's runs of one size lie above its bottom.

    `best` as fitted; `draws` (R,); `words` say where the optimum is from.
    """

    best: float
    draws: Array
    multiplier: float
    """The runs' setting, as a multiple of the ladder's rule or, without one, as it is."""
    optimum: float
    low: float
    high: float
    words: str
    runs: int
    """Of the mix in the tuning sweep."""


@dataclass(frozen=True)
class AtOptimum:
    """Savings of each mix at its own optimum. `tuned` names what the optima are from."""

    tuned: str
    setting: str
    level: float
    savings: tuple[Saving, ...]
    free: pd.DataFrame
    """As `analysis.stats.savings.fit_free`, intervals widened by the doubt about the optima."""
    excess: Mapping[tuple[str, str], Excess]
    """By mix and size."""
    left_out: tuple[str, ...]
    """Mixes of the ladder that were not tuned."""
    other_budgets: bool
    """Whether the runs were trained on other budgets than the ladder that they are held against."""
    retrained: bool
    """Whether the runs were trained at their optima; else the excess was taken off."""

    @property
    def table(self) -> pd.DataFrame:
        """Optima by mix and size: what the runs had, the optimum, and the excess in percent."""
        tail = (1 - self.level) / 2
        rows = [
            {
                "mix": mix, "size": size, "setting": self.setting, "trained at": one.multiplier,
                "optimum": one.optimum, "low": one.low, "high": one.high,
                "excess": 100 * one.best, "excess_low": 100 * float(np.quantile(one.draws, tail)),
                "excess_high": 100 * float(np.quantile(one.draws, 1 - tail)), "from": one.words,
            }
            for (mix, size), one in self.excess.items()
        ]  # fmt: skip
        return pd.DataFrame(rows)


def at_optimum(
    sweep: Sweep,
    folder: Path,
    baseline: str,
    setting: str = "lr",
    resamples: int = 1000,
    seed: int = 0,
    level: float = LEVEL,
) -> AtOptimum:
    """Savings of a ladder with every mix at its own optimum.

    folder: a tuning sweep, whose surfaces correct the ladder's losses; or a ladder trained under
    protocol=tuned, which is then the one that is read. Raises SettingError where it is neither, of
    another corpus, or shows no optimum that is needed.
    """
    other = load_sweep(folder)
    _check_corpus(sweep, other)
    retrained = all(_taken(run) for run in other.runs)
    ladder = other if retrained else sweep
    if ladder.arms.treatments:
        raise SettingError(
            f"sweep={ladder.name} varies {ladder.arms.treatments[0].name} beside the mix; choose "
            "one level of it with where=, so that each mix has one ladder."
        )
    rng = np.random.default_rng(seed)
    if retrained:
        excess = _as_trained(ladder, setting, resamples, rng)
        left_out: tuple[str, ...] = ()
    else:
        surfaces = tuned_of(read_trials(folder, (setting,)), (setting,), level)
        conditions = read_conditions(folder)
        for run in _cells(ladder).values():
            check_conditions(conditions, run.spec, (SETTINGS[setting],), folder.name)
        ladder, left_out = _of_tuned(ladder, surfaces, baseline, folder.name)
        excess = _by_surface(ladder, surfaces, setting, folder.name, resamples, rng)
    points = _corrected(ladder.points, {key: one.best for key, one in excess.items()})
    result = study(points, baseline, resamples, seed, ladder.arms, level)
    if not result.versus:
        raise SettingError(
            f"baseline={baseline} and another mix must both be in sweep={ladder.name} for savings "
            "at their optima."
        )
    free = widened(ladder.points, result.free, result.versus, excess, level)
    savings = _savings(result, excess, resamples, seed, level)
    moved = retrained and _budgets(ladder) != _budgets(sweep)
    return AtOptimum(folder.name, setting, level, savings, free, excess, left_out, moved, retrained)


def _budgets(sweep: Sweep) -> dict[str, int]:
    """Tokens of each size's largest budget, in steps of 5 %."""
    largest = sweep.points.groupby("size")["D"].max()
    return {str(size): round(math.log(D) / math.log(1.05)) for size, D in largest.items()}


def _of_tuned(
    sweep: Sweep, surfaces: Mapping[str, Tuned], baseline: str, name: str
) -> tuple[Sweep, tuple[str, ...]]:
    """The part of a ladder whose mixes were tuned, and the other mixes."""
    there = {mix for mix, own in surfaces.items() if own.response is not None}
    mixes = list(dict.fromkeys(sweep.points["mix"]))
    left_out = tuple(mix for mix in mixes if mix not in there)
    if baseline in left_out or len(left_out) == len(mixes):
        mix = baseline if baseline in left_out else mixes[0]
        why = surfaces[mix].problem if mix in surfaces else f"it has {', '.join(surfaces)}"
        raise SettingError(f"tuned={name} shows no optimum of mix={mix}: {why}.")
    points = sweep.points[~sweep.points["mix"].isin(list(left_out))].reset_index(drop=True)
    runs = tuple(run for run in sweep.runs if run.mix not in left_out)
    return replace(sweep, points=points, runs=runs), left_out


def _check_corpus(sweep: Sweep, other: Sweep) -> None:
    read = [
        {str((run.spec.get("corpus") or {}).get("fingerprint", "")) for run in one.runs}
        for one in (sweep, other)
    ]
    if not sweep.runs:
        raise SettingError("tuned= compares sweeps of runs, and these are points alone.")
    if read[0] != read[1]:
        raise SettingError(
            f"tuned={other.name} was trained on another corpus than sweep={sweep.name}; an optimum "
            "is of one."
        )


def _taken(run: Run) -> list[Mapping[str, Any]]:
    """What a run took from tuning sweeps."""
    return list((run.spec.get("protocol") or {}).get("tuned") or [])


def _cells(sweep: Sweep) -> dict[tuple[str, str], Run]:
    """A run of each mix and size that has points."""
    there = set(zip(sweep.points["mix"], sweep.points["size"], strict=True))
    return {(run.mix, run.size): run for run in sweep.runs if (run.mix, run.size) in there}


def _as_trained(
    sweep: Sweep, setting: str, resamples: int, rng: np.random.Generator
) -> dict[tuple[str, str], Excess]:
    from scipy.stats import t as student

    found = {}
    for (mix, size), run in _cells(sweep).items():
        one = next((one for one in _taken(run) if one["setting"] == setting), None)
        if one is None:
            raise SettingError(f"run {run.name} took no {setting} from a tuning sweep.")
        value = float(one["value"])
        low, high = one["low"] or 0.0, one["high"] or math.inf
        # An open end is taken as far as the other; both open are no minimum, which is refused.
        reach = min(abs(math.log2(end / value)) for end in (low, high) if 0 < end < math.inf)
        error = reach / float(student.ppf((1 + LEVEL) / 2, one["dof"]))
        off = error * student.rvs(one["dof"], size=resamples, random_state=rng)
        rule = _rule(setting, run)
        found[mix, size] = Excess(
            0.0, -np.expm1(-float(one["curvature"]) * off**2), value / rule,
            value / rule, low / rule, high / rule, f"{one['sweep']}, by {one['by']}",
            int(one["runs"]),
        )  # fmt: skip
    return found


def _by_surface(
    sweep: Sweep,
    surfaces: Mapping[str, Tuned],
    setting: str,
    name: str,
    resamples: int,
    rng: np.random.Generator,
) -> dict[tuple[str, str], Excess]:
    found = {}
    drawn: dict[str, Array] = {}
    for (mix, size), run in _cells(sweep).items():
        own = surfaces[mix]
        assert own.response is not None
        if mix not in drawn:
            drawn[mix] = own.response.drawn(rng, resamples)
        value, rule = SETTINGS[setting].value(run.spec), _rule(setting, run)
        places = [k for k, cell in enumerate(own.cells) if cell.size == size]
        if places:
            k = places[-1]
            best, draws = _measured(own, k, value, drawn[mix], name)
            ends = [float(2.0 ** end[0]) for end in (own.optima[k].x, own.optima[k].low,
                                                     own.optima[k].high)]  # fmt: skip
            words = f"{name}, by size"
        else:
            law = own.law()
            if law is None:
                raise SettingError(
                    f"tuned={name} does not hold size={size} of mix={mix}, nor optima at two sizes "
                    "for a law; tune that size."
                )
            recipe = run.spec["recipe"]
            ends = list(law.at(float(recipe["N"]), float(recipe["tokens"])))
            error = abs(math.log2(ends[2] / ends[0])) / law.quantile
            at = math.log2(ends[0]) + error * rng.standard_normal(resamples)
            curvature = float(own.response.curvature[0])
            best = -math.expm1(-curvature * (math.log2(value / ends[0])) ** 2)
            draws = -np.expm1(-curvature * (math.log2(value) - at) ** 2)
            words = f"{name}, by law"
        found[mix, size] = Excess(
            best, np.minimum(draws, 0.5), value / rule,
            ends[0] / rule, ends[1] / rule, ends[2] / rule, words, len(own.trials),
        )  # fmt: skip
    return found


def _measured(own: Tuned, k: int, value: float, drawn: Array, name: str) -> tuple[float, Array]:
    """Shares by which a cell's runs at a value lie above its bottom: the fitted one, and drawn.

    Beyond the values that the curve was fitted to, from the losses measured there. Raises
    SettingError where the cell shows no minimum, or nothing was measured at such a value.
    """
    assert own.response is not None
    cell, one, x = own.cells[k], own.optima[k], np.array([math.log2(value)])
    if one.edge[0]:
        raise SettingError(
            f"tuned={name} shows no minimum of mix={own.mix} at size={cell.size}; "
            "sweeps/tune.py goes on with more values."
        )
    low, high = own.response.tried[k, :, 0]
    if low - EDGE <= x[0] <= high + EDGE:
        return own.response.excess(k, x), own.response.excess_draws(k, x, drawn)
    loss = own.mean_loss(cell, value)
    if loss is None or not math.isfinite(loss):
        raise SettingError(
            f"tuned={name} says nothing of mix={own.mix} size={cell.size} at {value:.3g}, where "
            f"these runs were trained: its curve is of {2**low:.3g} to {2**high:.3g}; tune there "
            "too."
        )
    bottom = float(own.response.curve(k, one.x[None])[0])
    fitted_bottom = own.response.log_bottom(k)
    drawn_bottom = bottom * np.exp(own.response.optimum_draws(k, drawn)[1] - fitted_bottom)
    return max(0.0, 1 - bottom / loss), np.maximum(1 - drawn_bottom / loss, 0.0)


def _rule(setting: str, run: Run) -> float:
    one = SETTINGS[setting]
    return one.ruled(run.spec) if one.rule else 1.0


def _corrected(points: pd.DataFrame, share: Mapping[tuple[str, str], float]) -> pd.DataFrame:
    """Points with a share of each loss taken off, by mix and size."""
    keys = list(zip(points["mix"], points["size"], strict=True))
    return points.assign(loss=points["loss"] * [1 - share[key] for key in keys])


def _savings(
    result: Study, excess: Mapping[tuple[str, str], Excess], resamples: int, seed: int, level: float
) -> tuple[Saving, ...]:
    if result.fit is None or result.mixed is None:
        return ()
    points = result.mixed.fit.points
    keys = zip(points["mix"], points["size"], strict=True)
    shift = np.stack(
        [np.log1p(-excess[key].draws) - math.log1p(-excess[key].best) for key in keys], 1
    )
    draws = bootstrap(
        result.mixed.fit, "mixed", resamples, seed, model=result.mixed, level=level, shift=shift
    )
    return savings_at(result.fit, draws, result.compared, result.places_asked)


def widened(
    points: pd.DataFrame,
    free: pd.DataFrame,
    versus: Mapping[str, str],
    excess: Mapping[tuple[str, str], Excess],
    level: float = LEVEL,
) -> pd.DataFrame:
    """Savings without a law, those of means of seeds, with intervals from draws of the seeds' luck
    and of each mix's excess, to first order in the latter.

    points: as trained; free: `fit_free` of them with `excess` taken off; versus: each baseline.
    """
    from scipy.stats import norm

    free = free[free["seed"] == "mean"].reset_index(drop=True)
    if free.empty:
        return free
    place = pd.MultiIndex.from_frame(free[["mix", "size"]])
    means = _corrected(points, {key: one.best for key, one in excess.items()})
    means = means.groupby(["mix", "size", "D"], as_index=False).agg(
        N=("N", "mean"), loss=("loss", "mean")
    )

    def logs(moved: str) -> Array:
        """Log savings where one mix's excess is a standard deviation larger."""
        more = {key: float(one.draws.std()) if key[0] == moved else 0.0
                for key, one in excess.items()}  # fmt: skip
        own = fit_free(_corrected(means, more).assign(seed=0), versus, level)
        value = own[own["seed"] == "mean"].set_index(["mix", "size"])["value"]
        return np.asarray(np.log(value.reindex(place).to_numpy(float)))

    still = logs("")
    slopes = {mix: logs(mix) - still for mix in dict.fromkeys(mix for mix, _ in excess)}
    tail = (1 - level) / 2
    rng = np.random.default_rng(0)
    ends = []
    for k, row in enumerate(free.to_dict("records")):
        middle = math.log(row["value"])
        spread = (math.log(row["high"]) - math.log(row["low"])) / (2 * float(norm.ppf(1 - tail)))
        drawn = middle + spread * rng.standard_normal(len(next(iter(excess.values())).draws))
        for mix in (row["mix"], versus[row["mix"]]):
            one = excess.get((mix, row["size"]))
            if one is not None and one.draws.std() > 0:
                drawn += slopes[mix][k] * (one.draws - one.best) / one.draws.std()
        ends.append(np.exp(np.quantile(drawn, [tail, 1 - tail])))
    low, high = np.array(ends).T
    return free.assign(low=low, high=high)


def cells(found: AtOptimum, before: pd.DataFrame) -> pd.DataFrame:
    """For people: savings at one setting for all (`before`, as `fit_free`) and each mix at its own,
    by mix and size."""
    rows = []
    one_rate = before[before["seed"] == "mean"].set_index(["mix", "size"])
    by_law = {(one.mix, round(one.N)): one for one in found.savings}
    for row in found.free.to_dict("records"):
        key = row["mix"], row["size"]
        law = by_law.get((row["mix"], round(row["N"])))
        rows.append({
            "mix": row["mix"], "size": row["size"], "N": count(row["N"]),
            "one setting for all": _interval(one_rate.loc[key]) if key in one_rate.index else "–",
            "each at its own": _interval(row),
            "each at its own, by the laws": (
                f"{law.value:.2f} [{law.low:.2f}, {law.high:.2f}]" if law else "–"
            ),
        })  # fmt: skip
    return pd.DataFrame(rows)


def _interval(row: Any) -> str:
    bound = {"at least": "≥ ", "at most": "≤ "}.get(row["bound"], "")
    ends = "" if math.isnan(row["low"]) else f" [{row['low']:.2f}, {row['high']:.2f}]"
    return f"{bound}{row['value']:.2f}{ends}"


def optimum_cells(found: AtOptimum) -> pd.DataFrame:
    """For people: each mix's optimum by size, and what its runs lost by not being there."""
    rows = []
    for row in found.table.to_dict("records"):
        ends = [f"{row[end]:.2f}" if 0 < row[end] < math.inf else "open" for end in ("low", "high")]
        rows.append({
            "mix": row["mix"], "size": row["size"], "trained at": f"× {row['trained at']:.2f}",
            "optimum": f"× {row['optimum']:.2f} [{', '.join(ends)}]",
            "above its lowest loss": (
                f"{row['excess']:.2f} % [{row['excess_low']:.2f}, {row['excess_high']:.2f}]"
            ),
            "from": row["from"],
        })  # fmt: skip
    return pd.DataFrame(rows)
