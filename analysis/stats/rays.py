"""Laws of the loss along one axis, and across isoFLOP curves.

    L(C) = E + K / C^kappa                        along a ray (power law with an offset)
    L(N) = E + A / N^alpha                        at one D
    L(D) = E + B / D^beta                         at one N
    L = c0 + c1 log N + c2 (log N)^2              at one C: Hoffmann et al. 2022, approach 2
    log L = Akima's interpolation in log N        at one C, instead: Porian et al. 2024
    N* = G_N C^a, D* = G_D C^b                    through the parabolas' minima

C is the column `C` where points have it and 6 N D elsewhere. At fixed C, D is C / (6 N) times a
factor that depends on the mix alone, so b is fitted to the points' own D and not set to 1 - a.
"""

import shlex
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Literal, get_args

import numpy as np
import pandas as pd
from scipy.interpolate import Akima1DInterpolator

from ablations.records import SettingError
from analysis.stats.fit import SAME, MixFit, fit, weights_of
from analysis.stats.laws import FLOPS, Array, Ray
from analysis.stats.losses import DELTA, Criterion, Huber, Loss, Student, criterion
from models.command import as_text

# A parabola less deep than this, relative to the loss, is rounding.
NO_DEPTH = 1e-9
# Points among which a robust parabola looks for the three to start through.
MOST_STARTS, MAX_TURNS = 25, 200
# Values that a sentence lists.
MOST_NAMED = 8
Minimum = Literal["parabola", "akima"]
MINIMA: tuple[Minimum, ...] = get_args(Minimum)


def flops(points: pd.DataFrame) -> Array:
    """Training FLOPs of each point."""
    product = FLOPS * points["N"].astype(float) * points["D"].astype(float)
    own = points.get("C", product)
    return np.asarray(own.where(own > 0).fillna(product), float)


Axis = Literal["C", "N", "D"]
AXIS_LAWS: dict[Axis, str] = {"C": "ray", "N": "N", "D": "D"}
"""The name of the law along each axis, as `law=` takes it."""
COEFFICIENTS: dict[Axis, tuple[str, str]] = {
    "C": ("K", "kappa"),
    "N": ("A", "alpha"),
    "D": ("B", "beta"),
}
"""Factor and exponent of the one term of the law along each axis."""


@dataclass(frozen=True)
class RayFit:
    """The law of one mix along one axis, and the certificate of its fit.

    `constant` is D / N along C, D along N and N along D.
    """

    law: Ray
    constant: float
    terms: MixFit


def fit_rays(
    points: pd.DataFrame,
    ratio: float | None = None,
    loss: Loss = "huber",
    delta: float = DELTA,
    E: float | None = None,
) -> dict[str, RayFit]:
    """L = E + K/C^kappa for each mix, along D / N = `ratio` within 10 %; E held where given.

    Without a ratio all points must lie on one ray; points of C and loss alone are taken to. Raises
    SettingError where they do not, or where a mix has too few points.
    """
    found = {}
    known = not points.attrs.get("compute_only")
    if ratio is not None and not known:
        raise SettingError(f"ratio={ratio:g} chooses points by D / N, and these have C alone.")
    for mix, own in points.groupby("mix", sort=False):
        per_parameter = (own["D"] / own["N"]).to_numpy(float)
        if ratio is None and known and not _is_one(per_parameter):
            best = max(per_parameter, key=lambda one: int(_near(per_parameter, one).sum()))
            told = [f"{one:.3g}" for one in levels(per_parameter)]
            raise _several("C", str(mix), told, f"give one of them, ratio={best:.4g}")
        if ratio is not None:
            own = own[_near(per_parameter, ratio)]
        shown = float(np.exp(np.log(per_parameter).mean())) if ratio is None else ratio
        shown = shown if known else float("nan")
        found[str(mix)] = _along(str(mix), own, flops(own), "C", shown, loss, delta, E)
    return found


def fit_axis(
    points: pd.DataFrame,
    axis: Literal["N", "D"],
    loss: Loss = "huber",
    delta: float = DELTA,
    E: float | None = None,
) -> dict[str, RayFit]:
    """L = E + A/N^alpha at one D, or L = E + B/D^beta at one N, for each mix; E held where given.

    Raises SettingError where the other of N and D is not constant within 10 %, or where a mix has
    too few points.
    """
    found = {}
    for mix, own in points.groupby("mix", sort=False):
        other = own["D" if axis == "N" else "N"].to_numpy(float)
        if not _is_one(other):
            told = [as_text(float(one)) for one in np.unique(other)]
            raise _several(axis, str(mix), told, f"choose one of them, {_choice(own, axis)}")
        constant = float(np.exp(np.log(other).mean()))
        x = own[axis].to_numpy(float)
        found[str(mix)] = _along(str(mix), own, x, axis, constant, loss, delta, E)
    return found


def _is_one(values: Array) -> bool:
    """Whether what is constant along an axis is so, within 10 %."""
    return bool(values.max() <= SAME**2 * values.min())


def _near(values: Array, one: float) -> Array:
    return np.abs(np.log(values / one)) < np.log(SAME)


def _several(axis: Axis, mix: str, told: list[str], remedy: str) -> SettingError:
    """The refusal of points of several values of what must be constant along an axis."""
    constant = {"C": "D / N", "N": "D", "D": "N"}[axis]
    more = f" and {len(told) - MOST_NAMED} more" if len(told) > MOST_NAMED else ""
    return SettingError(
        f"law={AXIS_LAWS[axis]} needs points of one {constant}, and those of mix={mix} have "
        f"{', '.join(told[:MOST_NAMED])}{more}; {remedy}."
    )


def _choice(own: pd.DataFrame, axis: Literal["N", "D"]) -> str:
    """`where=` as one types it for the D, or the size, at which most values of N, or of D, lie."""
    other = "D" if axis == "N" else "N"
    groups = [own[own[other].between(one, one * SAME**2)] for one in np.unique(own[other])]
    best = max(groups, key=lambda group: group[axis].nunique())
    if axis == "D" and "size" in own:
        best = max((group for _, group in best.groupby("size")), key=lambda group: len(group))
        if "," not in (size := str(best["size"].iloc[0])):  # which parts values in where=
            return shlex.quote(f"where=size={size}")
    values = tuple(float(one) for one in np.unique(best[other]))
    return f"where={as_text({other: values})}"


def _along(
    mix: str,
    own: pd.DataFrame,
    x: Array,
    axis: Axis,
    constant: float,
    loss: Loss,
    delta: float,
    E: float | None,
) -> RayFit:
    """The law of one mix along x: that in N and D with x for D and no N term."""
    need = 4 if E is None else 3
    names = COEFFICIENTS[axis]
    if len(own) < need or len(levels(x, 1.001)) < need - 1:
        few = "four at three" if E is None else "three at two"
        listed = f"{'E, ' if E is None else ''}{names[0]} and {names[1]}"
        raise SettingError(
            f"mix={mix} cannot be fitted by law={AXIS_LAWS[axis]}: it has {len(own)} points "
            f"at {len(levels(x, 1.001))} values of {axis}, and {listed} need {few}."
        )
    held = {"A": 0.0, "alpha": 1.0} | ({} if E is None else {"E": E})
    terms = next(iter(fit(own.assign(N=1.0, D=x), "free", loss, delta, held=held).mixes.values()))
    law = Ray(float(terms.law.E), float(terms.law.B), float(terms.law.beta))
    called = dict(zip(("B", "beta"), names, strict=True))
    terms = replace(terms, at_bound=tuple(called.get(name, name) for name in terms.at_bound))
    return RayFit(law, constant, terms)


@dataclass(frozen=True)
class Parabola:
    """The best size at one C, NaN where the curve has no minimum.

    `inside`: whether it lies between the sizes measured. `rms` and
    `largest_error` are of its relative residuals.
    """

    C: float
    n: int
    N: float
    D: float
    loss: float
    inside: bool
    rms: float
    largest_error: float


@dataclass(frozen=True)
class IsoFlop:
    """N* = G_N C^a and D* = G_D C^b of one mix, through its parabolas' minima.

    a_error, b_error: standard errors of the two slopes; NaN with two budgets.
    """

    parabolas: tuple[Parabola, ...]
    a: float
    a_error: float
    G_N: float
    b: float
    b_error: float
    G_D: float

    def optimum(self, C: Array | float) -> tuple[Array, Array]:
        """N* (parameters) and D* (tokens) at C FLOPs."""
        return np.asarray(self.G_N * C**self.a), np.asarray(self.G_D * C**self.b)


def fit_isoflop(
    points: pd.DataFrame,
    loss: Loss = "squares",
    delta: float = DELTA,
    minimum: Minimum = "parabola",
) -> dict[str, IsoFlop]:
    """Parabolas at each training budget of each mix, and the exponents through their minima.

    Points whose C differ by less than 10 % are one budget; a robust `loss` keeps one that diverged
    from moving its parabola. `minimum="akima"` reads each minimum off an interpolation through the
    mean loss of each size (Porian et al. 2024), and no loss is minimised. Raises SettingError where
    a mix has fewer than two budgets of three or more sizes with their minimum between those sizes.
    """
    chosen = criterion(loss, delta)
    points = points.astype({"N": float, "D": float})  # whole numbers wrap around above 9.2e18
    found = {}
    for mix, own in points.groupby("mix", sort=False):
        C = flops(own)
        parabolas = []
        for at in budgets(own, C):
            parabolas.append(
                _parabola(own[at], C[at], chosen)
                if minimum == "parabola"
                else _interpolated(own[at], C[at])
            )
        good = [one for one in parabolas if one.inside]
        if len(good) < 2:
            raise SettingError(
                f"mix={mix} cannot be fitted by law=isoflop: it has {len(parabolas)} budgets C "
                f"with three or more sizes, {len(good)} of them with the lowest loss between its "
                "sizes, and a and b need two."
            )
        log_C = np.log([one.C for one in good])
        a, a_error, G_N = _line(log_C, np.log([one.N for one in good]))
        b, b_error, G_D = _line(log_C, np.log([one.D for one in good]))
        found[str(mix)] = IsoFlop(tuple(parabolas), a, a_error, G_N, b, b_error, G_D)
    return found


def budgets(own: pd.DataFrame, C: Array) -> list[Array]:
    """Which points (n,) of one mix are at each budget of three or more sizes, from the lowest C."""
    near = [np.abs(np.log(C / level)) < np.log(SAME) for level in levels(C)]
    return [at for at in near if own["N"][at].nunique() >= 3]


def _parabola(own: pd.DataFrame, C: Array, chosen: Criterion) -> Parabola:
    log_N, budget = np.log(own["N"].to_numpy(float)), float(np.exp(np.log(C).mean()))
    centre, loss = log_N.mean(), own["loss"].to_numpy(float)
    powers = np.vander(log_N - centre, 3)
    c2, c1, c0 = coefficients = quadratic(powers, own, chosen)
    off = powers @ coefficients / loss - 1
    errors = float(np.sqrt((off**2).mean())), float(np.abs(off).max())
    reach = np.ptp(log_N) / 2
    if c2 * reach**2 <= NO_DEPTH * loss.mean():
        return Parabola(budget, len(own), np.nan, np.nan, np.nan, False, *errors)
    best = -c1 / (2 * c2)
    N = float(np.exp(centre + best))
    # D by N at this budget: C / (6 N), times what the mix's FLOPs per token are beside 6 N.
    D = float(np.exp(np.log(own["N"] * own["D"]).mean())) / N
    inside = bool(log_N.min() <= centre + best <= log_N.max())
    return Parabola(budget, len(own), N, D, float(c0 - c1**2 / (4 * c2)), inside, *errors)


def _interpolated(own: pd.DataFrame, C: Array) -> Parabola:
    log_N, log_loss = np.log(own["N"].to_numpy(float)), np.log(own["loss"].to_numpy(float))
    weights = weights_of(own)
    best, lowest = akima_minimum(log_N, log_loss, weights)
    budget = float(np.exp(np.log(C).mean()))
    _, size = np.unique(log_N, return_inverse=True)
    means = np.bincount(size, weights * log_loss) / np.bincount(size, weights)
    off = np.exp(means[size] - log_loss) - 1
    errors = float(np.sqrt((off**2).mean())), float(np.abs(off).max())
    if np.isnan(best):
        return Parabola(budget, len(own), np.nan, np.nan, np.nan, False, *errors)
    N = float(np.exp(best))
    D = float(np.exp(np.log(own["N"] * own["D"]).mean())) / N
    return Parabola(budget, len(own), N, D, float(np.exp(lowest)), True, *errors)


def akima_minimum(log_N: Array, log_loss: Array, weights: Array) -> tuple[float, float]:
    """log N and log loss at the lowest point of Akima's interpolation (Akima 1970) in log-log.

    It passes through the weighted mean of each size. NaN, NaN where the lowest point is the
    smallest or largest size, or where there are fewer than three sizes.
    """
    if len(sizes := np.unique(log_N)) < 3:
        return np.nan, np.nan
    curve = _akima(log_N, log_loss, weights)
    turns = np.asarray(curve.derivative().roots(extrapolate=False), float)
    # A flat piece gives NaN beside its left end.
    places = np.concatenate([sizes, turns[np.isfinite(turns)]])
    values = curve(places)
    lowest = int(np.argmin(values))
    if places[lowest] in (sizes[0], sizes[-1]):
        return np.nan, np.nan
    return float(places[lowest]), float(values[lowest])


def _akima(log_N: Array, log_loss: Array, weights: Array) -> Akima1DInterpolator:
    sizes, index = np.unique(log_N, return_inverse=True)
    return Akima1DInterpolator(
        sizes, np.bincount(index, weights * log_loss) / np.bincount(index, weights)
    )


def curve_at(
    N: Array, own: pd.DataFrame, loss: Loss, delta: float, minimum: Minimum = "parabola"
) -> Array:
    """Loss at sizes N of the parabola, or the interpolation, through the points of one budget."""
    log_N = np.log(own["N"].to_numpy(float))
    if minimum == "akima":
        through = _akima(log_N, np.log(own["loss"].to_numpy(float)), weights_of(own))
        return np.asarray(np.exp(through(np.log(N))), float)
    centre = log_N.mean()
    coefficients = quadratic(np.vander(log_N - centre, 3), own, criterion(loss, delta))
    return np.asarray(np.vander(np.log(N) - centre, 3) @ coefficients, float)


def quadratic(powers: Array, own: pd.DataFrame, chosen: Criterion) -> Array:
    """Coefficients (3,) of the parabola of least `chosen` loss of its relative residuals.

    `powers` (n, 3) are those of centred log N; points count by their weights where they have them.
    A robust loss starts from the parabola through three points that leaves the least absolute
    residuals, which no single point can pull away, and is reached by reweighting.
    """
    relative = powers / own["loss"].to_numpy(float)[:, None]
    root = np.sqrt(weights_of(own))

    def solved(scale: Array) -> Array:
        columns = relative * scale[:, None]
        return np.asarray(np.linalg.lstsq(columns, scale, rcond=None)[0], float)

    coefficients = solved(root)
    if isinstance(chosen, Huber) and np.isinf(chosen.delta):
        return coefficients
    x = powers[:, 1]
    spread = np.linspace(0, len(x) - 1, min(len(x), MOST_STARTS)).round().astype(int)
    some = np.argsort(x, kind="stable")[spread]
    triples = [list(one) for one in combinations(some, 3) if len(set(x[list(one)])) == 3]
    if triples:
        through = [np.linalg.solve(relative[one], np.ones(3)) for one in triples]
        coefficients = min(through, key=lambda c: float((root**2 * np.abs(relative @ c - 1)).sum()))
    for _ in range(MAX_TURNS):
        off = relative @ coefficients - 1
        if isinstance(chosen, Student):
            chosen = chosen.rescaled(off, root**2)
        before = coefficients
        coefficients = solved(root * np.sqrt(chosen.majoriser(off)))
        if np.abs(coefficients - before).max() <= 1e-10 * np.abs(before).max():
            break
    return coefficients


def _line(x: Array, y: Array) -> tuple[float, float, float]:
    """Slope, its standard error, and the exponential of the intercept."""
    slope, intercept = np.polyfit(x, y, 1)
    spare = len(x) - 2
    residual = y - slope * x - intercept
    error = np.sqrt(residual @ residual / spare / ((x - x.mean()) ** 2).sum()) if spare else np.nan
    return float(slope), float(error), float(np.exp(intercept))


def levels(values: Array, factor: float = SAME) -> list[float]:
    """Values told apart by more than a factor, each the geometric mean of its neighbours."""
    ordered = np.sort(values)
    group = np.cumsum(np.diff(np.log(ordered), prepend=-np.inf) > np.log(factor))
    return [float(np.exp(np.log(ordered[group == one]).mean())) for one in np.unique(group)]
