"""Token savings of a mix against a baseline, by fitted laws and free of any fit.

Token savings at (N, L*) are D_baseline(N, L*) / D_mix(N, L*); `analysis.stats.other_savings` has
those of parameters, FLOPs and time. Unless a target is given, L* is what the baseline's own law
gives at N and at the largest token budget measured there, so that the baseline's D is a budget that
was really spent (the matched (N, D) convention).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from ablations.records import SettingError, nearest
from analysis.stats.fit import Fit
from analysis.stats.interval import LEVEL, Interval, share_unreachable
from analysis.stats.laws import Array, Chinchilla
from analysis.stats.uncertainty import Draws
from models.format import count

# Rounding of budgets to whole batches and of N to whole MLP units is no extrapolation.
ROUNDING = 1.01
# Points of the interpolated curve between two measured budgets.
FINE = 400


@dataclass(frozen=True)
class CostRatio:
    """Cost of a token, baseline over mix, and the same in each resample: (resamples,), or the value
    where it is known without scatter."""

    value: float
    draws: Array | float


@dataclass(frozen=True)
class Saving:
    """Savings of `mix` at the baseline's N parameters and D tokens.

    `kind` is what is saved, `where` how the two are matched. `N_beyond`, `D_beyond`,
    `D_mix_beyond`: factors by which N, the baseline's D and the mix's D* lie outside what was
    measured (1 inside); `below` names those that lie under it. `unreachable`: share of draws in
    which one of the mixes never reaches the target. Value 0: the mix never reaches it. `draws` is
    the saving in each resample.
    """

    mix: str
    baseline: str
    N: float
    D: float
    target_loss: float
    value: float
    interval: Interval
    p_above_1: float
    unreachable: float
    tokens_mix: float
    N_beyond: float
    D_beyond: float
    D_mix_beyond: float
    model: str
    kind: str = "tokens"
    where: str = "matched"
    N_mix: float = float("nan")
    below: tuple[str, ...] = ()
    draws: Array | None = field(default=None, repr=False, compare=False)

    @property
    def low(self) -> float:
        """Lower end of the interval."""
        return self.interval.low

    @property
    def high(self) -> float:
        """Upper end of the interval."""
        return self.interval.high

    @property
    def row(self) -> dict[str, Any]:
        """Its numbers as the columns of a table."""
        return flat(self)

    @property
    def in_range(self) -> bool:
        """Whether N, the baseline's D and the mix's D* all lie within what was measured."""
        return max(self.N_beyond, self.D_beyond, self.D_mix_beyond) <= ROUNDING

    @property
    def range_words(self) -> str:
        """`in range`, or by what factors it is extrapolated: × above, ÷ below what was measured."""
        factors = {"N": self.N_beyond, "D": self.D_beyond, "the mix's D": self.D_mix_beyond}
        below = {"the mix's D" if name == "D_mix" else name for name in self.below}
        return range_words(factors, below)


def flat(one: Any) -> dict[str, Any]:
    """The fields of a saving, or of a ratio of two, with the interval's ends in its place."""
    row: dict[str, Any] = {}
    for name, value in vars(one).items():
        if isinstance(value, Interval):
            row |= {"low": value.low, "high": value.high}
        elif name != "draws":
            row[name] = value
    return row


def range_words(factors: Mapping[str, float], below: Collection[str]) -> str:
    """`in range`, or which quantities are extrapolated, by what factors, those `below` with ÷."""
    parts = [
        f"{name} {'÷' if name in below else '×'}{count(factor, 3)}"
        for name, factor in factors.items()
        if factor > ROUNDING
    ]
    return "extrapolated: " + ", ".join(parts) if parts else "in range"


def savings_factor(
    baseline: Chinchilla, mix: Chinchilla, N: Array | float, target_loss: Array | float
) -> Array:
    """D_baseline / D_mix at N and the target loss: 0 or infinite where one never reaches it.

    NaN where neither does.
    """
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        return baseline.tokens(N, target_loss) / mix.tokens(N, target_loss)


def matched_factor(
    baseline: Chinchilla, mix: Chinchilla, N: Array | float, D: Array | float
) -> Array:
    """D / D_mix at the loss that the baseline's law gives at (N, D): 0 where the mix never does."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        return D / mix.tokens(N, baseline.loss(N, D))


def token_savings(
    fit: Fit,
    draws: Draws,
    baseline: str,
    N: float,
    D: float,
    target_loss: float | None = None,
    kind: str = "tokens",
    cost_ratios: Mapping[str, CostRatio] | None = None,
    mixes: Iterable[str] | None = None,
) -> list[Saving]:
    """Savings of `mixes` at N, and D or the target loss (nats per token; D is then unused).

    `mixes` are all others unless given; `cost_ratios` are given where another `kind` than tokens is
    saved. Raises SettingError where the baseline is not among the
    mixes.
    """
    check_baseline(list(fit.mixes), baseline)
    law, drawn = fit.mixes[baseline].law, draws.laws[baseline]
    found = []
    for name in others(fit.mixes, baseline, mixes):
        mix, drawn_mix = fit.mixes[name].law, draws.laws[name]
        if target_loss is None:
            target, tokens, where = float(law.loss(N, D)), D, "matched"
            value = float(matched_factor(law, mix, N, D))
            factors = matched_factor(drawn, drawn_mix, N, D)
        else:
            target, tokens, where = target_loss, float(law.tokens(N, target_loss)), "target loss"
            value = float(savings_factor(law, mix, N, target))
            factors = savings_factor(drawn, drawn_mix, N, target)
        if cost_ratios:
            value, factors = value * cost_ratios[name].value, factors * cost_ratios[name].draws
        places = (N, tokens), (N, float(mix.tokens(N, target)))
        found.append(
            judged(fit, draws, baseline, name, value, factors, target, places, kind, where)
        )
    return found


def others(fitted: Iterable[str], baseline: str, mixes: Iterable[str] | None) -> list[str]:
    """The fitted mixes that are compared with a baseline: those of `mixes`, or all others."""
    chosen = None if mixes is None else set(mixes)
    return [mix for mix in fitted if mix != baseline and (chosen is None or mix in chosen)]


def judged(
    fit: Fit,
    draws: Draws,
    baseline: str,
    mix: str,
    value: float,
    factors: Array,
    target_loss: float,
    places: tuple[tuple[float, float], tuple[float, float]],
    kind: str = "tokens",
    where: str = "matched",
) -> Saving:
    """A saving with the interval of its draws `factors` and how far it lies out of range.

    `places` are (N, D) of the baseline and of the mix.
    """
    (N, D), (N_mix, D_mix) = places
    own, theirs = fit.mixes[baseline].N_range, fit.mixes[mix].N_range
    ends = [token_range(fit.points, *one) for one in ((baseline, N), (mix, N_mix))]
    # Of the two N the one that lies further out.
    N_beyond, N_is_below = max(
        (beyond(N, *own), own[0] > N), (beyond(N_mix, *theirs), theirs[0] > N_mix)
    )
    below = {
        "N": N_is_below,
        "D": ends[0][0] > D,
        "D_mix": ends[1][0] > D_mix,
    }
    return Saving(
        mix=mix,
        baseline=baseline,
        N=N,
        D=D,
        target_loss=target_loss,
        value=value,
        interval=draws.interval(factors),
        p_above_1=float((factors > 1).mean()),
        unreachable=share_unreachable(factors),
        tokens_mix=D_mix,
        N_beyond=N_beyond,
        D_beyond=beyond(D, *map(float, ends[0])),
        D_mix_beyond=beyond(D_mix, *map(float, ends[1])),
        model=fit.words,
        kind=kind,
        where=where,
        N_mix=N_mix,
        below=tuple(name for name, lies in below.items() if lies),
        draws=np.asarray(factors, float),
    )


def versus_of(mixes: Iterable[str], baseline: str | Mapping[str, str]) -> dict[str, str]:
    """The baseline of each of `mixes` that has one: the same for all others, or as given."""
    if not isinstance(baseline, str):
        return {mix: baseline[mix] for mix in mixes if mix in baseline}
    return {mix: baseline for mix in mixes if mix != baseline}


def check_baseline(mixes: list[str], baseline: str) -> None:
    """Raise SettingError where there is nothing to compare, or the baseline is not there."""
    if baseline not in mixes:
        raise SettingError(
            f"baseline={baseline} is not among the mixes with points; {nearest(baseline, mixes)}"
            f"give one of {', '.join(mixes)}."
        )
    if len(mixes) < 2:
        raise SettingError(f"mix={mixes[0]} is the only one; savings compare two mixes or more.")


def beyond(value: float, low: float, high: float) -> float:
    """Factor by which a value lies outside a range, 1 inside."""
    return float(max(value / high, low / value if value else np.inf, 1.0))


def token_range(points: pd.DataFrame, mix: str, N: Array | float) -> tuple[Array, Array]:
    """Smallest and largest D measured for a mix at each N, interpolated in log N between sizes.

    Beyond the sizes measured, tokens per parameter are carried on from the nearest one.
    """
    sizes = (
        points[points["mix"] == mix]
        .groupby("size")
        .agg(N=("N", "mean"), low=("D", "min"), high=("D", "max"))
    )
    sizes = sizes.sort_values("N")
    log_n = np.log(sizes["N"].to_numpy())
    ratios = [np.log((sizes[end] / sizes["N"]).to_numpy()) for end in ("low", "high")]
    low, high = (N * np.exp(np.interp(np.log(N), log_n, ratio)) for ratio in ratios)
    return low, high


def places(points: pd.DataFrame, baseline: str) -> list[tuple[str, float, float]]:
    """Where savings are asked by default: each of the baseline's sizes at its largest budget."""
    own = points[points["mix"] == baseline]
    table = own.groupby("size").agg(N=("N", "mean"), D=("D", "max")).sort_values("N")
    return [(str(size), float(row["N"]), float(row["D"])) for size, row in table.iterrows()]


def fit_free(
    points: pd.DataFrame, baseline: str | Mapping[str, str], level: float = LEVEL
) -> pd.DataFrame:
    """Savings read off the measured losses, size by size, without a law.

    `baseline` is one for all mixes, or each one's own. At each size both mixes' losses are
    interpolated in log D (monotone cubic, of log loss) and compared at the lowest loss that both
    reach. Rows for each seed that both have, and one (`seed` "mean") for the mean over those seeds.
    Columns: mix, size, N, seed, target_loss, D_baseline, D_mix, value, bound ("", or "at least"
    where the mix is below the target at its first point already, or "at most" where the baseline
    is), and on the means low, high (of `level`), p_above_1: by Student's t on the seeds' log
    savings, whose scatter is pooled over sizes. NaN with one seed.
    """
    rows = []
    versus = versus_of(dict.fromkeys(points["mix"]), baseline)
    for size, at_size in points.groupby("size"):
        for mix, own in versus.items():
            ours = at_size[at_size["mix"] == own]
            theirs = at_size[at_size["mix"] == mix]
            seeds = sorted(set(ours["seed"]) & set(theirs["seed"]))
            for label, chosen in [("mean", seeds)] + [(str(s), [s]) for s in seeds]:
                found = _crossing(_curve(ours, chosen), _curve(theirs, chosen))
                if found:
                    N = float(ours["N"].mean())
                    rows.append({"mix": mix, "size": size, "N": N, "seed": label} | found)
    columns = ["mix", "size", "N", "seed", "target_loss", "D_baseline", "D_mix", "value", "bound"]
    table = pd.DataFrame(rows, columns=columns).sort_values(["mix", "N", "seed"], ignore_index=True)
    return pd.concat(
        [with_seed_interval(own, level) for _, own in table.groupby("mix")]
        or [with_seed_interval(table, level)]
    )


def with_seed_interval(table: pd.DataFrame, level: float = LEVEL) -> pd.DataFrame:
    """One mix's rows (size, seed, value, bound) with low, high and p_above_1 on means of seeds."""
    from scipy.stats import t as student

    table = table.assign(low=np.nan, high=np.nan, p_above_1=np.nan)
    single = table[(table["seed"] != "mean") & (table["bound"] == "")]
    logs = np.log(single["value"]).groupby(single["size"])
    count = logs.count()
    dof = int((count - 1).sum())
    if dof < 1:
        return table
    sd = np.sqrt(((logs.var(ddof=1).fillna(0)) * (count - 1)).sum() / dof)
    means = table.index[(table["seed"] == "mean") & (table["bound"] == "")]
    for row in means:
        seeds = int(count.get(table["size"][row], 0))
        if not seeds:
            continue
        middle, error = float(np.log(table["value"][row])), float(sd / np.sqrt(seeds))
        reach = student.ppf((1 + level) / 2, dof) * error
        table.loc[row, ["low", "high"]] = np.exp([middle - reach, middle + reach])
        table.loc[row, "p_above_1"] = student.cdf(middle / max(error, 1e-300), dof)
    return table


def _curve(points: pd.DataFrame, seeds: list[int]) -> pd.Series:
    """Log loss by log D, averaged over `seeds`, at the budgets that all of them have."""
    own = points[points["seed"].isin(seeds)]
    cells = np.log(own["loss"]).groupby(np.log(own["D"]))
    mean, count = cells.mean(), cells.count()
    return mean[count == len(seeds)]


def _crossing(baseline: pd.Series, mix: pd.Series) -> dict[str, float | str] | None:
    if len(baseline) < 2 or len(mix) < 2:
        return None
    target = max(baseline.min(), mix.min())
    at_baseline, first_baseline = _first_below(baseline, target)
    at_mix, first_mix = _first_below(mix, target)
    if first_baseline and first_mix:
        return None
    return {
        "target_loss": float(np.exp(target)),
        "D_baseline": float(np.exp(at_baseline)),
        "D_mix": float(np.exp(at_mix)),
        "value": float(np.exp(at_baseline - at_mix)),
        "bound": "at least" if first_mix else "at most" if first_baseline else "",
    }


def _first_below(curve: pd.Series, target: float) -> tuple[float, bool]:
    """Where the interpolated curve first falls to the target, and whether that is its start."""
    from scipy.interpolate import PchipInterpolator

    x, y = curve.index.to_numpy(float), curve.to_numpy(float)
    if y[0] <= target:
        return float(x[0]), True
    fine = np.unique(np.concatenate([np.linspace(x[0], x[-1], FINE * (len(x) - 1) + 1), x]))
    smooth = PchipInterpolator(x, y)(fine)
    after = int(np.argmax(smooth <= target + 1e-12))
    drop = smooth[after - 1] - smooth[after]
    part = min((smooth[after - 1] - target) / drop, 1.0)
    return float(fine[after - 1] + part * (fine[after] - fine[after - 1])), False


def seconds_per_token(points: pd.DataFrame) -> pd.DataFrame:
    """Median measured training seconds per token by mix and size: columns mix, size, N, seconds,
    runs (their number).

    A run's own value is that of its last point. Empty where no time was recorded.
    """
    cells = _timed_runs(points).groupby(["mix", "size"])
    table = cells.agg(N=("N", "mean"), seconds=("seconds", "median"), runs=("seconds", "size"))
    return table.reset_index().sort_values(["mix", "N"], ignore_index=True)


def _timed_runs(points: pd.DataFrame) -> pd.DataFrame:
    """The last timed point of each run, with `seconds` per token."""
    timed = points[points["seconds"] > 0]
    last = timed.sort_values("D").groupby("run").tail(1)
    return last.assign(seconds=last["seconds"] / last["D"])


@dataclass(frozen=True)
class TimingScatter:
    """How much log seconds per token scatter from run to run of one mix and size.

    `sd` is pooled over all mixes and sizes, on `dof` degrees of freedom; NaN on none.
    """

    sd: float
    dof: int


def timing_scatter(points: pd.DataFrame) -> TimingScatter:
    """The pooled standard deviation of log seconds per token within mixes and sizes."""
    runs = _timed_runs(points)
    logs = np.log(runs["seconds"]).groupby([runs["mix"], runs["size"]])
    dof = int((logs.count() - 1).sum())
    if dof < 1:
        return TimingScatter(float("nan"), 0)
    square = (logs.var(ddof=1).fillna(0) * (logs.count() - 1)).sum()
    return TimingScatter(float(np.sqrt(square / dof)), dof)


def timing_draws(points: pd.DataFrame, resamples: int, seed: int) -> Array:
    """Errors of the log seconds of `seconds_per_token` in each resample, (rows, resamples).

    Each is the error of a median of as many runs, whose scatter is that of `timing_scatter` times
    sqrt(dof / chi2 on dof), so that few repeated runs give the tails of Student's t. Nothing where
    no mix and size was timed in two runs, as the scatter is then unknown.
    """
    counts = seconds_per_token(points)["runs"]
    scatter = timing_scatter(points)
    errors = np.zeros((len(counts), resamples))
    if not scatter.dof:
        return errors
    # Apart from the numbers that the laws were drawn with.
    rng = np.random.default_rng([seed, 1])
    sds = scatter.sd * np.sqrt(scatter.dof / rng.chisquare(scatter.dof, resamples))
    for row, runs in enumerate(counts):
        errors[row] = sds * np.median(rng.normal(size=(resamples, runs)), axis=1)
    return errors
