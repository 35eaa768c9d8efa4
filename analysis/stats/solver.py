"""A damped Newton method for scaling laws on log residuals, batched over resamples and starts.

First and second derivatives are analytic; shapes and parameters are those of `problem`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from analysis.stats.laws import Array
from analysis.stats.losses import Criterion, Huber
from analysis.stats.problem import EXPONENT_BOUNDS, GAMMA_BOUNDS, Problem

Mask = NDArray[np.bool_]
HALVINGS = 10
MAX_STEPS = 500


@dataclass(frozen=True)
class Polished:
    """Optima of S problems: parameters (S, p), objective (S,), projected gradient norm (S,)."""

    theta: Array
    objective: Array
    gradient_norm: Array


def polish(
    problem: Problem,
    theta: Array,
    log_loss: Array,
    weight: Array,
    criterion: Criterion | float = np.inf,
) -> Polished:
    """Minimise sum(weight * loss(log residual)) from each row of `theta`, within the bounds.

    theta (S, p); log_loss and weight (S, n); a number for the criterion is Huber's delta. A problem
    leaves the batch when the decrease that its model promises is below 1e-13 of its objective.
    """
    last = Huber(criterion) if isinstance(criterion, int | float) else criterion
    for stage in last.path():
        polished = _polish(problem, theta, log_loss, weight, stage)
        theta = polished.theta
    return polished


def _polish(
    problem: Problem,
    theta: Array,
    log_loss: Array,
    weight: Array,
    criterion: Criterion,
) -> Polished:
    low, high = problem.bounds(log_loss)
    theta = np.clip(theta, low, high)
    quadratic = isinstance(criterion, Huber) and np.isinf(criterion.delta)
    # Far from the optimum a robust loss's own curvature vanishes; its majoriser does not.
    near = np.zeros(len(theta), bool)
    value, gradient, curvature = _model(problem, theta, log_loss, weight, criterion, near)
    damping = np.full(len(theta), 1e-3)
    norm = np.zeros(len(theta))
    active = np.arange(len(theta))
    for _ in range(MAX_STEPS):
        now, slope = theta[active], gradient[active]
        fixed = ((now <= low) & (slope > 0)) | ((now >= high) & (slope < 0)) | (low == high)
        norm[active] = np.linalg.norm(np.where(fixed, 0, slope), axis=1)
        step, promised = _inside(problem, now, slope, curvature[active], fixed, damping[active])
        small = promised <= 1e-13 * value[active] + 1e-28
        # A promise kept small by damping alone is no optimum, nor one that the majoriser makes.
        done = small & ((damping[active] <= 1) | (damping[active] >= 1e10))
        done &= near[active] | quadratic
        near[active] |= small
        if done.any():
            on = ~done
            active, step, fixed, now = active[on], step[on], fixed[on], now[on]
            log_loss, weight = log_loss[on], weight[on]
        if not len(active):
            break
        trial = np.clip(_to_boundary(problem, now, step, fixed), low, high)
        new, grad, curve = _model(problem, trial, log_loss, weight, criterion, near[active])
        better = new <= value[active]
        near[active] |= better & (value[active] - new < 0.02 * value[active])
        damping[active] = np.where(better, damping[active] / 8, damping[active] * 5)
        damping[active] = np.clip(damping[active], 1e-12, 1e12)
        took = active[better]
        theta[took], value[took] = trial[better], new[better]
        gradient[took], curvature[took] = grad[better], curve[better]
    return Polished(theta, value, norm)


def _straighten(problem: Problem, theta: Array, fixed: Mask) -> Array:
    """Derivatives (S, p, p) of the parameters by coordinates in which the valley is straight.

    With x and y the two parts of the reducible loss at the centre (a and b where gamma is 1), data
    fix the loss there, E + x + y, and its slopes, x alpha and y beta, far better than E, gamma or
    an exponent: along the valley x grows as 1/alpha while E makes room. Steps are taken in (loss at
    the centre, log slopes, log exponents, log gamma); where E is held at its bound x and y stand in
    for the slopes.
    """
    p, place = problem.n_parameters, problem.place
    trades = ~fixed[:, place["E"]]
    straight = np.zeros((len(theta), p, p))
    straight[:, np.arange(p), np.arange(p)] = 1
    total, *parts = problem.centre_terms(theta)
    pairs = [("A", "alpha"), ("B", "beta")]
    for (term, exponent), part in zip(pairs, parts, strict=True):
        steps = zip(place["E"], place[term], place[exponent], strict=True)
        for m, (e, t, x) in enumerate(steps):
            value = np.where(trades[:, m], part[:, m], 0) * problem.members[e, m]
            straight[:, e, t] -= value
            straight[:, e, x] += value
            straight[:, t, x] = -1.0 * trades[:, m]
            straight[:, x, x] = theta[:, x]
    if problem.gamma:
        # log a = gamma log x + (1 - gamma) log(x + y), and log b likewise.
        rows = [place[name][0] for name in ("A", "B")]
        g = place["gamma"][0]
        gamma = np.exp(theta[:, g])
        shares = [part[:, 0] / total[:, 0] for part in parts]
        by_x, by_y = straight[:, rows[0]].copy(), straight[:, rows[1]].copy()
        mean = shares[0][:, None] * by_x + shares[1][:, None] * by_y
        for row, own, share in zip(rows, (by_x, by_y), shares, strict=True):
            straight[:, row] = gamma[:, None] * own + (1 - gamma)[:, None] * mean
            straight[:, row, g] = gamma * np.log(np.maximum(share, 1e-300))
    return straight


def _move(problem: Problem, theta: Array, step: Array, fixed: Mask) -> Array:
    """The parameters after a step in the straight coordinates."""
    trades = ~fixed[:, problem.place["E"]]
    moved = theta.copy()
    before, *parts = problem.centre_terms(theta)
    logs = []
    for (term, exponent), part in zip((("A", "alpha"), ("B", "beta")), parts, strict=True):
        x, _ = problem.own[exponent]
        new = theta[:, x] * np.exp(_within(step[:, x], 1))
        new = np.minimum(np.maximum(new, EXPONENT_BOUNDS[0]), EXPONENT_BOUNDS[1])
        moved[:, x] = np.where(fixed[:, x], theta[:, x], new)
        # Mixes that share a term share its exponent too.
        t, mixes = problem.own[term]
        slope = problem.place[exponent][mixes]
        stretch = np.log(moved[:, slope] / theta[:, slope])
        change = _within(step[:, t], 5) - trades[:, mixes] * stretch
        moved[:, t] += change
        if problem.gamma:
            logs.append(np.log(np.maximum(part, 1e-300)) + change)
    if problem.gamma:
        g = problem.place["gamma"]
        moved[:, g] = np.clip(theta[:, g] + _within(step[:, g], 1), *np.log(GAMMA_BOUNDS))
        gamma = np.exp(moved[:, g])
        total = np.logaddexp(*logs)
        for term, log in zip(("A", "B"), logs, strict=True):
            moved[:, problem.place[term]] = gamma * log + (1 - gamma) * total
    e, _ = problem.own["E"]
    E = theta[:, e] + step[:, e] + (before - problem.centre_terms(moved)[0]) @ problem.members.T
    moved[:, e] = np.where(fixed[:, e], theta[:, e], E)
    return moved


def _within(values: Array, most: float) -> Array:
    return np.minimum(np.maximum(values, -most), most)


def _inside(
    problem: Problem, theta: Array, gradient: Array, curvature: Array, fixed: Mask, damping: Array
) -> tuple[Array, Array]:
    """The step and its promise; an E at zero that would leave through its bound joins `fixed`."""
    straight = _straighten(problem, theta, fixed)
    step, promised = _step(gradient, curvature, straight, fixed, damping)
    n_E = len(problem.members)
    leaves = (theta[:, :n_E] <= 0) & ~fixed[:, :n_E]
    leaves &= np.matmul(straight[:, :n_E], step[:, :, None])[:, :, 0] < 0
    again = np.asarray(leaves.any(1))
    if again.any():
        fixed[:, :n_E] |= leaves
        held = fixed[again]
        straight = _straighten(problem, theta[again], held)
        step[again], promised[again] = _step(
            gradient[again], curvature[again], straight, held, damping[again]
        )
    return step, promised


def _to_boundary(problem: Problem, theta: Array, step: Array, fixed: Mask) -> Array:
    """The parameters after a step, cut short where an E first reaches zero."""
    moved = _move(problem, theta, step, fixed)
    n_E = len(problem.members)
    over = np.flatnonzero((moved[:, :n_E] < 0).any(1))
    if not len(over):
        return moved
    # By halving, as E need not fall evenly; the outer end is kept, so that E ends on its bound.
    inside, outside = np.zeros((len(over), 1)), np.ones((len(over), 1))
    for _ in range(HALVINGS):
        middle = (inside + outside) / 2
        trial = _move(problem, theta[over], middle * step[over], fixed[over])
        beyond = (trial[:, :n_E] < 0).any(1, keepdims=True)
        inside, outside = np.where(beyond, inside, middle), np.where(beyond, middle, outside)
    moved[over] = _move(problem, theta[over], outside * step[over], fixed[over])
    return moved


def _model(
    problem: Problem,
    theta: Array,
    log_loss: Array,
    weight: Array,
    criterion: Criterion,
    near: Mask,
) -> tuple[Array, Array, Array]:
    """Objective (S,), gradient (S, p) and curvature (S, p, p), which is exact where `near`."""
    loss, by_a, by_b = problem.predict(theta)
    residual = np.log(loss) - log_loss
    value = (weight * criterion.value(residual)).sum(1)
    jacobian = problem.jacobian_of(theta, loss, by_a, by_b)
    slope = weight * criterion.slope(residual)
    gradient = np.matmul(jacobian, slope[:, :, None])[:, :, 0]
    if near.all():
        chosen = weight * criterion.curvature(residual) - slope
    else:
        chosen = weight * criterion.majoriser(residual)
        exact = weight[near] * criterion.curvature(residual[near]) - slope[near]
        chosen[near] = exact
    curvature = np.matmul(jacobian * chosen[:, None], jacobian.transpose(0, 2, 1))
    if near.any():
        share = slope / loss
        share[~near] = 0
        problem.add_second_derivatives(curvature, share, theta, by_a, by_b)
    return value, gradient, curvature


def _step(
    gradient: Array, curvature: Array, straight: Array, fixed: Mask, damping: Array
) -> tuple[Array, Array]:
    """A damped Newton step in the straight coordinates (S, p), and the decrease it promises."""
    across = straight.transpose(0, 2, 1)
    gradient = np.matmul(across, gradient[:, :, None])[:, :, 0]
    curvature = np.matmul(np.matmul(across, curvature), straight)
    p = gradient.shape[1]
    free = ~fixed
    diagonal = np.abs(curvature[:, np.arange(p), np.arange(p)])
    scale = 1 / np.sqrt(np.maximum(diagonal, 1e-12 * diagonal.max(1, keepdims=True) + 1e-300))
    g = np.where(free, gradient, 0) * scale
    H = curvature * scale[:, :, None] * scale[:, None, :]
    H *= free[:, :, None] & free[:, None, :]
    H[:, np.arange(p), np.arange(p)] += fixed
    values, vectors = np.linalg.eigh(H)
    along = np.matmul(g[:, None, :], vectors)[:, 0]
    # |eigenvalue|: a saddle is left downhill, not sought.
    stiffness = np.abs(values)
    stiffness = stiffness + damping[:, None] * np.maximum(stiffness.max(1, keepdims=True), 1e-300)
    step = -np.matmul(vectors, (along / stiffness)[:, :, None])[:, :, 0] * scale
    return np.where(free, step, 0), (along**2 / stiffness).sum(1) / 2
