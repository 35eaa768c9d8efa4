"""Planning a ladder before it is paid for: the interval it will give, its power, its GPU-hours.

Under an assumed law and noise the covariance of generalised least squares is known without any
data; Student's t adds what few runs do not know of their own noise. `simulate` and `check` do the
same by drawing ladders and analysing them, to hold the formula to account. Nothing here knows the
law's own error: noise as large as the lack of fit that one expects is the honest assumption.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import nct
from scipy.stats import t as student

from analysis.stats.fit import fit
from analysis.stats.interval import LEVEL
from analysis.stats.laws import Array, Chinchilla
from analysis.stats.savings import ROUNDING, matched_factor
from analysis.stats.uncertainty import bootstrap

TOKENS_PER_PARAMETER = 20.0
LEAST_SIZES = LEAST_MULTIPLES = 3
MOST_SIZES = 10
# Coefficients of one mix that runs, and not points within a run, must tell apart: E, A, alpha.
BETWEEN_RUNS = 3
# What a plan takes: savings, and shares of the loss that noise may be.
LEAST_SAVING, LARGEST_SAVING, LARGEST_SD = 0.1, 10.0, 0.1
# Share of draws of the noise in which an interval that is called assured is no wider.
ASSURED = 0.9
# Dense bf16 peak of an H100 or H200 (data sheet), and a share of it that large runs reach.
PEAK_FLOPS, MFU = 989e12, 0.4
# Olmo Hybrid's transformer (Merrill et al. 2026, Table 18), unrounded so that Table 20 comes out.
OLMO_TRANSFORMER = Chinchilla(1.6449, 108.8249, 0.25208, 83.4551, 0.21328)


@dataclass(frozen=True)
class Size:
    """A size: N of both mixes, and training FLOPs a token of the baseline and of the mix."""

    name: str
    N: float
    flops: tuple[float, float]


@dataclass(frozen=True)
class Assumed:
    """What is assumed of the two mixes and of the noise.

    The mix needs `saving` times fewer tokens everywhere. `run_sd` and `point_sd` are relative
    standard deviations of the loss: 1xC reruns of OLMo-ladder differ by 0.0023 nats of 3.4, 0.07 %,
    on the mean of eleven sets (five pairs). `shared` is the correlation of two mixes' runs on the
    same batches.
    """

    baseline: Chinchilla = OLMO_TRANSFORMER
    saving: float = 1.3
    run_sd: float = 0.001
    point_sd: float = 0.0005
    shared: float = 0.0

    @property
    def mix(self) -> Chinchilla:
        return replace(self.baseline, B=self.baseline.B * self.saving**-self.baseline.beta)


@dataclass(frozen=True)
class Ladder:
    """Sizes, Chinchilla multiples of every run's points, and each size's seeds; two mixes."""

    sizes: tuple[Size, ...]
    multiples: tuple[float, ...]
    seeds: tuple[int, ...]

    @property
    def runs(self) -> int:
        return 2 * sum(self.seeds)

    @property
    def flops(self) -> float:
        """Training FLOPs: a run reads its largest multiple once, its other points on the way."""
        tokens = max(self.multiples) * TOKENS_PER_PARAMETER
        pairs = zip(self.sizes, self.seeds, strict=True)
        return sum(seeds * size.N * tokens * sum(size.flops) for size, seeds in pairs)


def simulate(
    ladder: Ladder, base: Chinchilla, mix: Chinchilla, assumed: Assumed, rng: np.random.Generator
) -> pd.DataFrame:
    """Points of a ladder as a training would give them, with columns as `fit` reads them."""
    rows = []
    own = np.sqrt(1 - assumed.shared)
    for size, seeds in zip(ladder.sizes, ladder.seeds, strict=True):
        D = size.N * TOKENS_PER_PARAMETER * np.array(ladder.multiples)
        for seed in range(seeds):
            batches = np.sqrt(assumed.shared) * rng.normal()
            for name, law in (("base", base), ("mix", mix)):
                noise = assumed.run_sd * (batches + own * rng.normal())
                noise = noise + assumed.point_sd * rng.normal(size=len(D))
                loss = law.loss(size.N, D) * np.exp(noise)
                run = f"{name}-{size.name}-s{seed}"
                rows += [
                    (name, size.name, seed, run, size.N, *pair)
                    for pair in zip(D, loss, strict=True)
                ]
    return pd.DataFrame(rows, columns=["mix", "size", "seed", "run", "N", "D", "loss"])


def expected(ladder: Ladder, assumed: Assumed, N: float, D: float) -> tuple[float, float]:
    """Expected half-width of the savings' interval at (N, D), as a factor, and its power.

    Power is the chance that the interval excludes 1. Infinite and 0 where too few runs leave
    nothing to know the noise by.
    """
    pairs = zip(ladder.sizes, ladder.seeds, strict=True)
    parts = [seeds * _information(size, ladder.multiples, assumed) for size, seeds in pairs]
    information = np.sum(parts, axis=0)
    return _width_and_power(information, sum(ladder.seeds), assumed, N, D)


def _width_and_power(
    information: Array, seeds: int, assumed: Assumed, N: float, D: float
) -> tuple[float, float]:
    # Runs that share nothing between mixes know the noise twice, from either mix.
    dof = (seeds - BETWEEN_RUNS) * (2 - assumed.shared)
    if dof < 1:
        return float("inf"), 0.0
    direction = _direction(assumed, N, D)
    sd = float(np.sqrt(direction @ np.linalg.solve(information, direction)))
    reach = float(student.ppf((1 + LEVEL) / 2, dof))
    away = np.log(assumed.saving) / sd
    # scipy's noncentral t gives out where the power is one to many digits.
    power = 1.0 if abs(away) > reach + 20 else nct.sf(reach, dof, away) + nct.cdf(-reach, dof, away)
    return float(np.exp(reach * sd)), float(np.clip(np.nan_to_num(power, nan=1.0), 0, 1))


def _gradient(law: Chinchilla, N: Array | float, D: Array | float) -> Array:
    """Derivatives of the loss (..., 5) by coefficients taken at 100M parameters and 10B tokens.

    There they are far less collinear than at one parameter and one token.
    """
    n, d = np.asarray(N, float), np.asarray(D, float)
    a, b = law.A * n**-law.alpha, law.B * d**-law.beta
    parts = (np.ones_like(a), a, -a * np.log(n / 1e8), b, -b * np.log(d / 1e10))
    return np.stack(np.broadcast_arrays(*parts), axis=-1)


def _direction(assumed: Assumed, N: float, D: float) -> Array:
    """Derivatives (10,) of the log saving at (N, D) by the coefficients of both laws."""
    base, mix = assumed.baseline, assumed.mix
    D_mix = float(mix.tokens(N, base.loss(N, D)))
    slope = -mix.beta * mix.B * D_mix**-mix.beta
    by_base, by_mix = -_gradient(base, N, D), _gradient(mix, N, D_mix)
    return np.concatenate([by_base, by_mix]) / slope


def _information(size: Size, multiples: tuple[float, ...], assumed: Assumed) -> Array:
    """Information (10, 10) of one seed of both mixes at a size: J' V^-1 J of log losses."""
    D = size.N * TOKENS_PER_PARAMETER * np.array(multiples)
    k = len(D)
    jacobian = np.zeros((2 * k, 10))
    for i, law in enumerate((assumed.baseline, assumed.mix)):
        own = slice(i * k, (i + 1) * k)
        jacobian[own, 5 * i : 5 * i + 5] = _gradient(law, size.N, D) / law.loss(size.N, D)[:, None]
    between = np.array([[1, assumed.shared], [assumed.shared, 1]])
    covariance = assumed.run_sd**2 * np.kron(between, np.ones((k, k)))
    covariance += assumed.point_sd**2 * np.eye(2 * k)
    return jacobian.T @ np.linalg.solve(covariance, jacobian)


def frontier(
    sizes: list[Size],
    assumed: Assumed,
    N: float,
    D: float,
    multiples: tuple[float, ...] = (0.5, 1, 2, 4, 8),
    seeds: tuple[int, ...] = (1, 2, 3, 5),
    flops_per_second: float = PEAK_FLOPS * MFU,
) -> pd.DataFrame:
    """Every ladder of three sizes or more and what it buys, cheapest first.

    Tried: subsets of `sizes`, the first three or more of `multiples`, `seeds` at the largest size
    and as many or twice as many at the others. Columns: sizes, chinchilla, seeds, seeds_small,
    runs, flops, gpu_hours (one device of `flops_per_second`), N, D, in_range, width (half-width of
    the 95 % interval, a factor), power, efficient (nothing cheaper is narrower; in range and out of
    it apart).
    """
    rows = []
    for ladder, width, power in _candidates(sizes, assumed, N, D, multiples, seeds):
        rows.append(
            {
                "sizes": ",".join(size.name for size in ladder.sizes),
                "chinchilla": ",".join(f"{m:g}" for m in ladder.multiples),
                "seeds": ladder.seeds[-1],
                "seeds_small": ladder.seeds[0],
                "runs": ladder.runs,
                "flops": ladder.flops,
                "gpu_hours": ladder.flops / flops_per_second / 3600,
                "N": N,
                "D": D,
                "in_range": _in_range(ladder, N, D),
                "width": width,
                "power": power,
            }
        )
    table = pd.DataFrame(rows).sort_values(["gpu_hours", "width"], ignore_index=True)
    best = table.groupby("in_range")["width"].transform(
        lambda width: width.cummin().shift(fill_value=np.inf)
    )
    return table.assign(efficient=table["width"] < best)


def _in_range(ladder: Ladder, N: float, D: float) -> bool:
    """Whether N and tokens per parameter lie between those of the ladder, but for rounding."""
    trained = [size.N for size in ladder.sizes]
    ratio = D / N / TOKENS_PER_PARAMETER
    ends = (N, min(trained), max(trained)), (ratio, min(ladder.multiples), max(ladder.multiples))
    return all(low / ROUNDING <= value <= high * ROUNDING for value, low, high in ends)


def _candidates(
    sizes: list[Size],
    assumed: Assumed,
    N: float,
    D: float,
    multiples: tuple[float, ...],
    seeds: tuple[int, ...],
) -> Iterator[tuple[Ladder, float, float]]:
    ordered = sorted(sizes, key=lambda size: size.N)
    budgets = sorted(multiples)
    for last in range(LEAST_MULTIPLES, len(budgets) + 1):
        points = tuple(budgets[:last])
        each = {size.name: _information(size, points, assumed) for size in ordered}
        for count in range(LEAST_SIZES, len(ordered) + 1):
            for chosen in combinations(ordered, count):
                for top in seeds:
                    for more in (1, 2):
                        plan = (*[more * top] * (count - 1), top)
                        pairs = zip(chosen, plan, strict=True)
                        total = np.sum([k * each[size.name] for size, k in pairs], axis=0)
                        found = _width_and_power(total, sum(plan), assumed, N, D)
                        yield Ladder(chosen, points, plan), *found


def cheapest(table: pd.DataFrame, target_width: float) -> pd.Series | None:
    """The cheapest row of a `frontier` in range whose interval is ×/÷ (1 + target_width), or None.

    A ladder that has to extrapolate to (N, D) leans on the law, and is not proposed.
    """
    narrow = table[table["in_range"] & (table["width"] <= 1 + target_width)]
    return None if narrow.empty else narrow.iloc[0]


def ladder_of(row: Mapping[str, Any], sizes: list[Size]) -> Ladder:
    """The ladder of a row of a `frontier` of `sizes`."""
    names = row["sizes"].split(",")
    own = tuple(size for name in names for size in sizes if size.name == name)
    seeds = (*[int(row["seeds_small"])] * (len(own) - 1), int(row["seeds"]))
    return Ladder(own, tuple(float(part) for part in row["chinchilla"].split(",")), seeds)


def assured(ladder: Ladder, draws: Sequence[Assumed], N: float, D: float) -> tuple[float, float]:
    """The width at (N, D) that ASSURED of `draws` keep, and the mean power over them."""
    widths, powers = zip(*(expected(ladder, one, N, D) for one in draws), strict=True)
    return float(np.quantile(widths, ASSURED, method="higher")), float(np.mean(powers))


@dataclass(frozen=True)
class Checked:
    """What simulated ladders gave: share covered, median half-width (a factor), share that tell."""

    ladders: int
    coverage: float
    width: float
    power: float


def check(
    ladder: Ladder,
    assumed: Assumed,
    N: float,
    D: float,
    ladders: int = 100,
    resamples: int = 400,
) -> Checked:
    """Draw ladders and analyse them as a sweep's: the default interval, each mix its own law."""
    found = []
    for i in range(ladders):
        rng = np.random.default_rng([0, i])
        points = simulate(ladder, assumed.baseline, assumed.mix, assumed, rng)
        draws = bootstrap(fit(points, "free", "squares"), resamples=resamples, seed=i)
        ends = draws.interval(matched_factor(draws.laws["base"], draws.laws["mix"], N, D))
        found.append((ends.low, ends.high))
    low, high = np.array(found).T
    return Checked(
        ladders=ladders,
        coverage=float(((low <= assumed.saving) & (assumed.saving <= high)).mean()),
        width=float(np.median(np.sqrt(high / np.maximum(low, 1e-300)))),
        power=float(((low > 1) | (high < 1)).mean()),
    )
