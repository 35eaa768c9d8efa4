"""Scaling-law fits of one mix or of several together, with a certificate of the optimum.

The law is L = E + A/N^alpha + B/D^beta. Minimised is the plain sum over points of Huber's loss of
the log residual, log L_fit - log L (Hoffmann et al. 2022, eq. 3, delta 1e-3), or the plain sum of
its square. Joint models over mixes, from most to least free: `free`, `shared_exponents` (one alpha
and beta), `shared` (one alpha, beta and E: only A and B differ).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ablations.records import SettingError
from analysis.laws import Array, Chinchilla, Indices
from analysis.solver import GRID, Polished, Problem, polish, project

Model = Literal["free", "shared_exponents", "shared"]
MODELS: tuple[Model, ...] = get_args(Model)
MODEL_WORDS = {
    "free": "each mix its own law",
    "shared_exponents": "alpha and beta shared by the mixes",
    "shared": "alpha, beta and E shared by the mixes",
}
Loss = Literal["huber", "squares"]
LOSSES: tuple[Loss, ...] = get_args(Loss)
DELTA = 1e-3
# Condition number of the column-scaled Jacobian above which coefficients trade against each other
# so freely that their separate values say nothing (Belsley, Kuh & Welsch 1980 call 30 strong).
ILL_CONDITIONED = 300.0


@dataclass(frozen=True)
class MixFit:
    """One mix's law and what certifies it. `objective` is this mix's part of the plain sum."""

    mix: str
    law: Chinchilla
    n: int
    n_runs: int
    objective: float
    rms: float
    gradient_norm: float
    starts: int
    starts_agreeing: float
    condition: float
    at_bound: tuple[str, ...]
    N_range: tuple[float, float]
    D_range: tuple[float, float]

    @property
    def identified(self) -> bool:
        """Whether the five coefficients can be read one by one."""
        return not self.at_bound and self.condition < ILL_CONDITIONED


@dataclass(frozen=True)
class Block:
    """Mixes fitted together: the problem, its optimum (p,), and its rows of the points table."""

    problem: Problem
    mixes: tuple[str, ...]
    rows: Indices
    theta: Array
    free: NDArray[np.bool_]


@dataclass(frozen=True)
class Fit:
    """A joint model fitted to points. `residual` is log L_fit - log L, in the order of `points`."""

    model: Model
    loss: Loss
    delta: float
    points: pd.DataFrame
    blocks: tuple[Block, ...]
    mixes: dict[str, MixFit]
    objective: float
    n_parameters: int
    residual: Array

    @property
    def n(self) -> int:
        return len(self.residual)

    @property
    def rms(self) -> float:
        """Root mean square of the log residuals, corrected for the parameters fitted."""
        return float(np.sqrt((self.residual**2).sum() / max(self.n - self.n_parameters, 1)))

    @property
    def words(self) -> str:
        """The model in words, for tables and captions."""
        loss = "least squares" if self.loss == "squares" else f"Huber, delta {self.delta:g},"
        if len(self.mixes) == 1:
            return f"{loss} on log residuals"
        return f"{MODEL_WORDS[self.model]}; {loss} on log residuals"

    @property
    def threshold(self) -> float:
        return self.delta if self.loss == "huber" else np.inf


def lacking(points: pd.DataFrame) -> str:
    """What one mix's points lack for a fit of the law, as a clause, or an empty string."""
    sizes, budgets = points["size"].nunique(), points["D"].nunique()
    if len(points) < 6:
        return f"{len(points)} points, and the law's five coefficients need six or more"
    if sizes < 3:
        return f"{sizes} size(s), and A, alpha and E cannot be told apart with fewer than three"
    if budgets < 3:
        return f"{budgets} values of D, and B, beta and E need three or more"
    return ""


def fit(
    points: pd.DataFrame, model: Model = "free", loss: Loss = "huber", delta: float = DELTA
) -> Fit:
    """Fit the law to every mix in `points` (columns mix, size, run, N, D, loss).

    Raises SettingError where a mix has too few points, sizes or token budgets.
    """
    for mix, own in points.groupby("mix"):
        if clause := lacking(own):
            raise SettingError(f"mix={mix} cannot be fitted: it has {clause}.")
    points = points.reset_index(drop=True)
    names = tuple(dict.fromkeys(points["mix"]))
    groups = [(name,) for name in names] if model == "free" else [names]
    blocks: list[Block] = []
    mixes: dict[str, MixFit] = {}
    residual = np.zeros(len(points))
    for group in groups:
        rows = np.flatnonzero(points["mix"].isin(group).to_numpy())
        block, fits, part = _fit_block(points.loc[rows], rows, group, model, loss, delta)
        blocks.append(block)
        mixes |= fits
        residual[rows] = part
    k = sum(block.problem.n_parameters for block in blocks)
    return Fit(
        model=model,
        loss=loss,
        delta=delta,
        points=points,
        blocks=tuple(blocks),
        mixes={name: mixes[name] for name in names},
        objective=sum(one.objective for one in mixes.values()),
        n_parameters=k,
        residual=residual,
    )


def _fit_block(
    points: pd.DataFrame,
    rows: Indices,
    group: tuple[str, ...],
    model: Model,
    loss: Loss,
    delta: float,
) -> tuple[Block, dict[str, MixFit], Array]:
    places = [group.index(mix) for mix in points["mix"]]
    index = np.array(places, dtype=np.intp)
    N, D = points["N"].to_numpy(float), points["D"].to_numpy(float)
    problem = Problem(N, D, index, len(group), share_E=model == "shared")
    log_loss = np.log(points["loss"].to_numpy(float))
    threshold = delta if loss == "huber" else np.inf
    polished = _multistart(problem, log_loss, threshold)
    best = int(polished.objective.argmin())
    theta, lowest = polished.theta[best], polished.objective[best]
    agreeing = float((polished.objective <= lowest * (1 + 1e-6) + 1e-24).mean())
    low, high = problem.bounds(log_loss[None])
    free = (theta > low) & (theta < high)
    residual = np.log(problem.predict(theta[None])[0][0]) - log_loss
    each = _pointwise(residual, threshold)
    block = Block(problem, group, rows, theta, free)
    condition = _condition(problem.jacobian(theta[None])[0][:, free])
    fits = {}
    for m, name in enumerate(group):
        own = index == m
        fits[name] = MixFit(
            mix=name,
            law=problem.law(theta, m),
            n=int(own.sum()),
            n_runs=points["run"][own].nunique(),
            objective=float(each[own].sum()),
            rms=float(np.sqrt((residual[own] ** 2).mean())),
            gradient_norm=float(polished.gradient_norm[best]),
            starts=len(polished.objective),
            starts_agreeing=agreeing,
            condition=condition,
            at_bound=_bounds_met(problem, m, free),
            N_range=(float(N[own].min()), float(N[own].max())),
            D_range=(float(D[own].min()), float(D[own].max())),
        )
    return block, fits, residual


def _pointwise(residual: Array, threshold: float) -> Array:
    """Each point's part of the objective: its Huber value, or its plain square."""
    if np.isinf(threshold):
        return residual**2
    size = np.abs(residual)
    return np.where(size < threshold, residual**2 / 2, threshold * (size - threshold / 2))


def _multistart(problem: Problem, log_loss: Array, threshold: float) -> Polished:
    """Polish from the grid's own minima and from cells spread over the whole of it."""
    one = np.ones_like(log_loss)[None]
    objective, cells = project(problem, log_loss[None], one)
    flat = cells[0].reshape(-1, problem.n_parameters)
    padded = np.pad(objective[0], 1, constant_values=np.inf)
    G = len(GRID)
    around = [
        padded[1 + i : 1 + i + G, 1 + j : 1 + j + G]
        for i in (-1, 0, 1)
        for j in (-1, 0, 1)
        if i or j
    ]
    minima = np.flatnonzero((objective[0] < np.min(around, axis=0)).ravel())
    minima = minima[np.argsort(objective[0].ravel()[minima])][:6]
    spread = cells[0][2::5, 2::5].reshape(-1, problem.n_parameters)
    starts = np.concatenate([flat[minima], spread])
    S = len(starts)
    return polish(
        problem, starts, np.tile(log_loss, (S, 1)), np.ones((S, len(log_loss))), threshold
    )


def refit(block: Block, log_loss: Array, weight: Array, threshold: float) -> tuple[Array, Array]:
    """Fit resamples of a block: log_loss and weight (R, n). Returns parameters (R, p), objective.

    Each starts from its own best grid cell and from the optimum of the data, and keeps the better.
    """
    R = len(log_loss)
    objective, cells = project(block.problem, log_loss, weight)
    flat = cells.reshape(R, -1, block.problem.n_parameters)
    best = flat[np.arange(R), objective.reshape(R, -1).argmin(1)]
    starts = np.concatenate([best, np.tile(block.theta, (R, 1))])
    polished = polish(
        block.problem, starts, np.tile(log_loss, (2, 1)), np.tile(weight, (2, 1)), threshold
    )
    value = polished.objective.reshape(2, R)
    better = value.argmin(0)
    theta = polished.theta.reshape(2, R, -1)[better, np.arange(R)]
    return theta, value.min(0)


def _condition(jacobian: Array) -> float:
    scaled = jacobian / np.maximum(np.linalg.norm(jacobian, axis=0), 1e-300)
    values = np.linalg.svd(scaled, compute_uv=False)
    return float(values[0] / max(values[-1], 1e-300))


def _bounds_met(problem: Problem, mix: int, free: NDArray[np.bool_]) -> tuple[str, ...]:
    at = {
        "E": 0 if problem.share_E else mix,
        "A": problem.n_E + mix,
        "B": problem.n_E + problem.n_mixes + mix,
        "alpha": -2,
        "beta": -1,
    }
    return tuple(name for name, index in at.items() if not free[index])
