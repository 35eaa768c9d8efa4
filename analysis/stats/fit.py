"""Scaling-law fits of one mix or of several together, with a certificate of the optimum.

Minimised is the plain sum over points, times `weight` where the points have one, of a loss of the
log residual log L_fit - log L (see `losses`). The laws are in `laws`; joint models over mixes, from
most to least free, in `MODELS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, TypeVar, get_args

import numpy as np
import pandas as pd

from ablations.records import SettingError
from analysis.stats.grid import best_cells, starts
from analysis.stats.laws import PARAMETERS, Array, Chinchilla, Indices
from analysis.stats.losses import DELTA, LOSSES, Criterion, Loss, Student, criterion
from analysis.stats.problem import EXPONENT_BOUNDS, Problem
from analysis.stats.solver import Mask, Polished, polish

__all__ = [
    "DELTA", "LOSSES", "MODELS", "MODEL_WORDS", "Fit", "Loss", "Model", "each_mix", "fit", "refit",
]  # fmt: skip

T = TypeVar("T")

Model = Literal[
    "free", "shared_E", "shared_exponents", "shared", "only_A", "only_B", "only_E", "pooled"
]
MODELS: tuple[Model, ...] = get_args(Model)
MODEL_WORDS: dict[Model, str] = {
    "free": "each mix its own law",
    "shared_E": "E shared by the mixes",
    "shared_exponents": "alpha and beta shared by the mixes",
    "shared": "alpha, beta and E shared by the mixes",
    "only_A": "all shared by the mixes but A",
    "only_B": "all shared by the mixes but B",
    "only_E": "all shared by the mixes but E",
    "pooled": "one law for all mixes",
}
# That an exponent alone differs is no model: with A equal, it would depend on the unit of N.
_ALL = frozenset(("E", "A", "B", "alpha", "beta"))
SHARED: dict[Model, frozenset[str]] = {
    "free": frozenset(),
    "shared_E": frozenset({"E"}),
    "shared_exponents": frozenset({"alpha", "beta"}),
    "shared": frozenset({"alpha", "beta", "E"}),
    "only_A": _ALL - {"A"},
    "only_B": _ALL - {"B"},
    "only_E": _ALL - {"E"},
    "pooled": _ALL,
}
Law = Literal["chinchilla", "gamma"]
# Condition number of the column-scaled Jacobian above which coefficients trade against each other
# so freely that their separate values say nothing (Belsley, Kuh & Welsch 1980 call 30 strong).
ILL_CONDITIONED = 300.0
SAME_OBJECTIVE = 1e-6
ONE_CURVE = 0.1
# Points within this factor of one another in N, in D, in D / N or in C count as equal.
SAME = 1.1
# Weights further apart leave nothing of the lightest points in double precision.
WEIGHTS_APART = 1e12
MAX_TURNS = 200
# No model is as bad, nor as good: a uniform guess among a million tokens costs 14 nats.
LARGEST_LOSS, LEAST_LOSS = 1e3, 1e-6


@dataclass(frozen=True)
class MixFit:
    """One mix's law and what certifies it. `objective` is this mix's part of the plain sum.

    `starts_agreeing` is the share of starts that end within 1e-6 of the lowest objective,
    `gradient_norm` the projected gradient's there, by (E, log A, log B, alpha, beta), `condition`
    the condition number of the column-scaled Jacobian, `E_error` the standard error of E as if
    points were independent: it tells whether E is there, and is no interval to quote. `rms` and
    `largest_error` are of the law on its own points: the root mean square of log residuals, and the
    largest of |predicted / measured - 1|.
    """

    mix: str
    law: Chinchilla
    n: int
    n_runs: int
    objective: float
    rms: float
    largest_error: float
    gradient_norm: float
    starts: int
    starts_agreeing: float
    condition: float
    at_bound: tuple[str, ...]
    N_range: tuple[float, float]
    D_range: tuple[float, float]
    E_error: float = 0.0

    @property
    def caveats(self) -> tuple[str, ...]:
        """What keeps the coefficients from being read one by one, a clause each."""
        found = []
        if "E" in self.at_bound:
            found.append("E is unidentified: the best fit has it at zero")
        elif self.E_error and 2 * self.E_error > self.law.E:
            found.append(
                f"E is unidentified: {self.law.E:.3g} ± {self.E_error:.2g}, one standard error"
            )
        if others := [name for name in self.at_bound if name != "E"]:
            found.append(f"{', '.join(others)} at the bound of what is searched")
        if self.condition >= ILL_CONDITIONED:
            found.append(
                f"the coefficients trade against each other (condition number {self.condition:.0f})"
            )
        return tuple(found)

    @property
    def certificate(self) -> dict[str, object]:
        """What says how far the optimum can be trusted, by name."""
        return {
            "objective": self.objective,
            "n": self.n,
            "runs": self.n_runs,
            "rms": self.rms,
            "largest_error": self.largest_error,
            "gradient_norm": self.gradient_norm,
            "starts": self.starts,
            "starts_agreeing": self.starts_agreeing,
            "condition": self.condition,
            "at_bound": list(self.at_bound),
            "caveats": list(self.caveats),
        }


@dataclass(frozen=True)
class Block:
    """Mixes fitted together: the problem, its optimum (p,), and its rows of the points table.

    `free` (p,) tells the parameters that are neither at a bound nor held; `weight` (n,) multiplies
    the points' losses.
    """

    problem: Problem
    mixes: tuple[str, ...]
    rows: Indices
    theta: Array
    free: Mask
    weight: Array


Posed = tuple[Problem, tuple[str, ...], Indices, Array, Array]
Part = tuple[Block, Polished, Array]


@dataclass(frozen=True)
class Fit:
    """A joint model fitted to points. `residual` is log L_fit - log L, in the order of `points`.

    `least`: where points are weighted by the noise at their size, the plain least squares that this
    one was reached from (`analysis.stats.mixed.MixedModel.best`).
    """

    model: Model
    loss: Loss
    delta: float
    points: pd.DataFrame
    blocks: tuple[Block, ...]
    mixes: dict[str, MixFit]
    residual: Array
    threshold: Criterion
    fixed: dict[str, float]
    least: Fit | None = None

    @property
    def n(self) -> int:
        return len(self.residual)

    @cached_property
    def objective(self) -> float:
        return sum(one.objective for one in self.mixes.values())

    @cached_property
    def n_parameters(self) -> int:
        return sum(block.problem.n_free for block in self.blocks)

    @property
    def rms(self) -> float:
        """Root mean square of the log residuals, corrected for the parameters fitted."""
        return float(np.sqrt((self.residual**2).sum() / max(self.n - self.n_parameters, 1)))

    @property
    def words(self) -> str:
        """The model in words, for tables and captions."""
        weighted = " weighted by the noise at each size" if self.least else ""
        loss = f"{self.threshold.words}{weighted} on log residuals"
        if self.fixed:
            held = ", ".join(f"{name} = {value:g}" for name, value in self.fixed.items())
            loss = f"{held} held; {loss}"
        return loss if len(self.mixes) == 1 else f"{MODEL_WORDS[self.model]}; {loss}"


def lacking(
    points: pd.DataFrame,
    law: Law = "chinchilla",
    held: Iterable[str] = (),
    shared: Iterable[str] = (),
) -> str:
    """What one mix's points lack for a fit of the law, as a clause, or an empty string.

    `held` coefficients are given, `shared` ones known from the other mixes: a mix of two sizes has
    a law of its own where alpha, beta and E are shared.
    """
    own = {"E", "A", "alpha", "B", "beta"} - set(held) - set(shared)
    if law == "gamma":
        own.add("gamma")
    sizes, budgets = points["N"].nunique(), points["D"].nunique()
    sizes = points["size"].nunique() if "size" in points else sizes
    # What one axis says of the loss can be fitted where the other is constant.
    enough = not shared and len(points) > 3
    law_D = ", or fit law=D" if enough and sizes == 1 and budgets >= 3 else ""
    law_N = ", or fit law=N" if enough and budgets == 1 and sizes >= 3 else ""
    if len(points) < len(own) + (not shared):
        need = len(own) + (not shared)
        return (
            f"{len(points)} points, and the law's {len(own)} coefficients need {need} or more; "
            f"evaluate more checkpoints or train more sizes{law_D}{law_N}"
        )
    by_size, by_budget = own & {"E", "A", "alpha"}, own & {"E", "B", "beta"}
    if sizes < len(by_size):
        return (
            f"{sizes} size(s), and {_listed(by_size)} cannot be told apart with fewer than "
            f"{len(by_size)}; train another size{law_D}"
        )
    if not shared and {"A", "alpha", "B", "beta"} <= own and _on_one_curve(points):
        ratio = points["D"] / points["N"]
        law_C = ", or fit law=ray" if ratio.max() <= SAME**2 * ratio.min() else ""
        return (
            "D given by N, within 10 %: what N and what D does to the loss cannot be told apart; "
            f"train a size for more than one budget{law_N or law_C}"
        )
    if budgets < len(by_budget):
        return (
            f"{budgets} value(s) of D, and {_listed(by_budget)} cannot be told apart with fewer "
            f"than {len(by_budget)}; evaluate at more token budgets{law_N}"
        )
    return ""


def refusal(mix: str, clause: str) -> str:
    """The sentence for a mix that `lacking` says something of."""
    return f"mix={mix} cannot be fitted: it has {clause}."


def each_mix(
    points: pd.DataFrame, fit_one: Callable[[pd.DataFrame], Mapping[str, T]]
) -> tuple[dict[str, T], dict[str, str]]:
    """`fit_one` of each mix's points by itself, and of mixes that it refuses the sentences.

    Raises SettingError, that of the first mix, where it refuses all.
    """
    fits: dict[str, T] = {}
    refused: dict[str, SettingError] = {}
    for mix, own in points.groupby("mix", sort=False):
        try:
            fits |= fit_one(own)
        except SettingError as error:
            refused[str(mix)] = error
    if not fits:
        raise next(iter(refused.values()))
    return fits, {mix: str(error) for mix, error in refused.items()}


def _on_one_curve(points: pd.DataFrame) -> bool:
    """Whether log D is a parabola in log N, within a standard deviation of ONE_CURVE."""
    log_N, log_D = (np.log(points[name].to_numpy(float)) for name in ("N", "D"))
    powers = np.vander(log_N - log_N.mean(), 3)
    left = log_D - powers @ np.linalg.lstsq(powers, log_D, rcond=None)[0]
    return float(left.std()) < ONE_CURVE


def _listed(names: Iterable[str]) -> str:
    *first, last = sorted(names, key=(*PARAMETERS,).index)
    return f"{', '.join(first)} and {last}" if first else last


def fit(
    points: pd.DataFrame,
    model: Model = "free",
    loss: Loss = "huber",
    delta: float = DELTA,
    law: Law = "chinchilla",
    held: Mapping[str, float] | None = None,
) -> Fit:
    """Fit the law to every mix in `points` (columns mix, size, run, N, D, loss; weight optional).

    `held` gives E, alpha or beta a value instead of fitting it (of the gamma form E alone), and A
    the value 0 for a law of D alone. Raises SettingError where a mix has too few points, sizes or
    token budgets, or the settings contradict each other.
    """
    held = dict(held or {})
    names = tuple(dict.fromkeys(points["mix"]))
    _check(points, names, model, law, held)
    points = points.reset_index(drop=True)
    groups = [(name,) for name in names] if model == "free" else [names]
    problems = [_problem(points, group, model, law, held) for group in groups]
    chosen = criterion(loss, delta)
    parts = [_minimise(*one, chosen) for one in problems]
    if isinstance(chosen, Student):
        chosen = _scaled(problems, parts, chosen)
        parts = [_minimise(*one, chosen) for one in problems]
    residual = np.zeros(len(points))
    for block, _, part in parts:
        residual[block.rows] = part
    blocks = tuple(block for block, _, _ in parts)
    mixes = {
        name: _mix_fit(points, block, polished, residual, chosen, m)
        for block, polished, _ in parts
        for m, name in enumerate(block.mixes)
    }
    return Fit(
        model, loss, delta, points, blocks, {name: mixes[name] for name in names},
        residual, chosen, held,
    )  # fmt: skip


def _check(
    points: pd.DataFrame, names: tuple[str, ...], model: Model, law: Law, held: dict[str, float]
) -> None:
    if model != "free" and len(names) < 2:
        raise SettingError(
            f"model={model} shares coefficients between mixes, and there is one mix only "
            f"({names[0]}); give model=free, or points of a second mix."
        )
    if law == "gamma" and model != "free":
        raise SettingError(f"model={model} is not there for law=gamma; give model=free.")
    if (largest := float(points["loss"].max())) > LARGEST_LOSS:
        raise SettingError(f"loss={largest:g} is no loss in nats per token; it must be below 1000.")
    if (lowest := float(points["loss"].min())) < LEAST_LOSS:
        raise SettingError(f"loss={lowest:g} is no loss in nats per token; it must be above 1e-6.")
    weights = weights_of(points)
    if weights.max() > WEIGHTS_APART * weights.min():
        raise SettingError(
            f"weight goes from {weights.min():g} to {weights.max():g}; the largest must be at most "
            f"{WEIGHTS_APART:g} times the smallest."
        )
    may_be_held = ("E",) if law == "gamma" else ("E", "alpha", "beta")
    for name, value in held.items():
        if name == "A" and value == 0 and "alpha" in held:
            continue
        if name not in may_be_held:
            raise SettingError(
                f"fix={name} cannot be held with law={law}; valid: {', '.join(may_be_held)}."
            )
        low, high = (0.0, lowest) if name == "E" else EXPONENT_BOUNDS
        if not low <= value <= high or value == lowest:
            raise SettingError(f"fix {name}={value:g} must lie between {low:g} and {high:g}.")
    shared = SHARED[model]
    clauses = {str(mix): lacking(own, law, held) for mix, own in points.groupby("mix")}
    if shared and not all(clauses.values()):
        # What is shared is known from a mix that could be fitted alone.
        clauses = {
            str(mix): lacking(own, law, held, shared) if clauses[str(mix)] else ""
            for mix, own in points.groupby("mix")
        }
    for mix, clause in clauses.items():
        if clause:
            raise SettingError(refusal(mix, clause))


def weights_of(points: pd.DataFrame) -> Array:
    """The points' weights in the objective, (n,): one where there is no such column."""
    if "weight" not in points:
        return np.ones(len(points))
    return points["weight"].to_numpy(float)


def _problem(
    points: pd.DataFrame, group: tuple[str, ...], model: Model, law: Law, held: dict[str, float]
) -> Posed:
    """A group of mixes as a problem, with its rows of the points, their log losses and weights."""
    rows = np.flatnonzero(points["mix"].isin(group).to_numpy())
    own = points.loc[rows]
    index = np.array([group.index(mix) for mix in own["mix"]], dtype=np.intp)
    N, D = own["N"].to_numpy(float), own["D"].to_numpy(float)
    problem = Problem(N, D, index, len(group), SHARED[model], law == "gamma", held)
    return problem, group, rows, np.log(own["loss"].to_numpy(float)), weights_of(own)


def _minimise(
    problem: Problem,
    group: tuple[str, ...],
    rows: Indices,
    log_loss: Array,
    weight: Array,
    chosen: Criterion,
    first: Array | None = None,
) -> Part:
    """A block, its polished starts (from the grid, or `first`), and the residuals of its rows."""
    first = starts(problem, log_loss, weight) if first is None else first
    S = len(first)
    polished = polish(problem, first, np.tile(log_loss, (S, 1)), np.tile(weight, (S, 1)), chosen)
    theta = polished.theta[int(polished.objective.argmin())]
    low, high = problem.bounds(log_loss)
    free = (theta > low) & (theta < high)
    residual = np.log(problem.predict(theta[None])[0][0]) - log_loss
    return Block(problem, group, rows, theta, free, weight), polished, residual


def _scaled(problems: list[Posed], parts: list[Part], chosen: Student) -> Student:
    """Student's t at its scale of highest likelihood, that and the law fitted in turn."""
    for _ in range(MAX_TURNS):
        residual = np.concatenate([part for _, _, part in parts])
        weight = np.concatenate([block.weight for block, _, _ in parts])
        before, chosen = chosen, chosen.rescaled(residual, weight)
        if abs(chosen.scale - before.scale) <= 1e-7 * before.scale or chosen.scale < 1e-12:
            break
        parts = [
            _minimise(*one, chosen, block.theta[None])
            for one, (block, _, _) in zip(problems, parts, strict=True)
        ]
    return chosen


def _mix_fit(
    points: pd.DataFrame,
    block: Block,
    polished: Polished,
    residual: Array,
    chosen: Criterion,
    m: int,
) -> MixFit:
    problem, own = block.problem, block.problem.mix == m
    r, N, D = residual[block.rows][own], problem.N[own], problem.D[own]
    best = int(polished.objective.argmin())
    lowest = polished.objective[best]
    agreeing = polished.objective <= lowest + SAME_OBJECTIVE * abs(lowest) + 1e-24
    return MixFit(
        mix=block.mixes[m],
        n=int(own.sum()),
        n_runs=points["run"].iloc[block.rows[own]].nunique(),
        objective=float((block.weight[own] * chosen.reported(r)).sum()),
        gradient_norm=float(polished.gradient_norm[best]),
        starts=len(polished.objective),
        starts_agreeing=float(agreeing.mean()),
        N_range=(float(N.min()), float(N.max())),
        D_range=(float(D.min()), float(D.max())),
        **_here(block, residual, m),
    )


def moved(one: MixFit, block: Block, residual: Array) -> MixFit:
    """A mix's part of a least-squares fit at other parameters, those of `block`."""
    m = block.mixes.index(one.mix)
    r = residual[block.rows][block.problem.mix == m]
    return replace(one, objective=float((r**2).sum()), **_here(block, residual, m))


def _here(block: Block, residual: Array, m: int) -> dict[str, Any]:
    """What a mix's fit is at a block's parameters, however they were found."""
    problem, theta = block.problem, block.theta
    r, root = residual[block.rows], np.sqrt(block.weight)
    jacobian = problem.jacobian(theta[None])[0][:, block.free] * root[:, None]
    place = {name: int(where[m]) for name, where in problem.place.items()}
    bound = [name for name in place if name not in problem.pinned and not block.free[place[name]]]
    return {
        "law": problem.law(theta, m),
        "rms": float(np.sqrt((r[problem.mix == m] ** 2).mean())),
        "largest_error": float(np.abs(np.expm1(r[problem.mix == m])).max()),
        "condition": _condition(jacobian),
        "at_bound": tuple(bound),
        "E_error": _error(jacobian, root * r, block.free, place["E"]),
    }


def refit(
    block: Block, log_loss: Array, weight: Array, threshold: Criterion | float
) -> tuple[Array, Array]:
    """Fit resamples of a block: log_loss and weight (R, n). Returns parameters (R, p), objective.

    Each starts from its own best grid cell and from the optimum of the data, and keeps the better.
    """
    R = len(log_loss)
    weight = weight * block.weight
    best = best_cells(block.problem, log_loss, weight)
    both = np.concatenate([best, np.tile(block.theta, (R, 1))])
    polished = polish(
        block.problem, both, np.tile(log_loss, (2, 1)), np.tile(weight, (2, 1)), threshold
    )
    value = polished.objective.reshape(2, R)
    better = value.argmin(0)
    theta = polished.theta.reshape(2, R, -1)[better, np.arange(R)]
    return theta, value.min(0)


def _condition(jacobian: Array) -> float:
    scaled = jacobian / np.maximum(np.linalg.norm(jacobian, axis=0), 1e-300)
    values = np.linalg.svd(scaled, compute_uv=False)
    return float(values[0] / max(values[-1], 1e-300))


def _error(jacobian: Array, residual: Array, free: Mask, place: int) -> float:
    """Standard error of one free parameter by the linearised fit; 0 where it is not free."""
    if not free[place]:
        return 0.0
    column = int(free[:place].sum())
    inverse = np.linalg.pinv(jacobian.T @ jacobian)
    spare = max(len(residual) - jacobian.shape[1], 1)
    return float(np.sqrt(max(inverse[column, column], 0) * (residual @ residual) / spare))
