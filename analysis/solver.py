"""Global fits of the Chinchilla law on log residuals, batched over resamples.

Variable projection (Golub & Pereyra 1973): for fixed exponents the law is linear in E, A, B, so a
grid over (alpha, beta) with that small solve inside sees the whole surface; the best grid cells are
then polished by a damped Newton method with analytic first and second derivatives.

Shapes: S problems (resamples x starts), n points, p parameters, M mixes. Parameters of a problem:
(E, ..., log a, ..., log b, ..., alpha, beta), where a = A / N0^alpha and b = B / D0^beta are the
two terms' values at the centre (N0, D0) of the data, which keeps them nearly uncorrelated.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from analysis.laws import Array, Chinchilla, Indices

EXPONENT_BOUNDS = (0.01, 2.0)
GRID = np.geomspace(*EXPONENT_BOUNDS, 24)
# Terms below this share of the loss are at their lower bound: they are not in the data.
SMALLEST_TERM = 1e-8
HALVINGS = 10


@dataclass(frozen=True)
class Problem:
    """Points of M mixes with common exponents; E common to all mixes, or one for each.

    N and D have shape (n,), `mix` (n,) holds indices 0..M-1.
    """

    N: Array
    D: Array
    mix: Indices
    n_mixes: int
    share_E: bool

    @cached_property
    def log_n(self) -> Array:
        return np.log(self.N) - self.centre[0]

    @cached_property
    def log_d(self) -> Array:
        return np.log(self.D) - self.centre[1]

    @cached_property
    def centre(self) -> tuple[float, float]:
        return float(np.log(self.N).mean()), float(np.log(self.D).mean())

    @property
    def n_E(self) -> int:
        return 1 if self.share_E else self.n_mixes

    @property
    def n_parameters(self) -> int:
        return self.n_E + 2 * self.n_mixes + 2

    @cached_property
    def columns(self) -> tuple[Indices, Indices, Indices]:
        """For each point, the index of its E, its log a and its log b."""
        e = np.zeros_like(self.mix) if self.share_E else self.mix
        return e, self.n_E + self.mix, self.n_E + self.n_mixes + self.mix

    def bounds(self, log_loss: Array) -> tuple[Array, Array]:
        """Lower and upper bounds, shape (p,)."""
        top = float(log_loss.max())
        terms = 2 * self.n_mixes
        low = [0.0] * self.n_E + [top + np.log(SMALLEST_TERM)] * terms + [EXPONENT_BOUNDS[0]] * 2
        high = [np.exp(top)] * self.n_E + [top + np.log(10)] * terms + [EXPONENT_BOUNDS[1]] * 2
        return np.array(low), np.array(high)

    def law(self, theta: Array, mix: int) -> Chinchilla:
        """The law of one mix from parameters of shape (..., p)."""
        alpha, beta = theta[..., -2], theta[..., -1]
        log_a = theta[..., self.n_E + mix] + alpha * self.centre[0]
        log_b = theta[..., self.n_E + self.n_mixes + mix] + beta * self.centre[1]
        E = theta[..., 0 if self.share_E else mix]
        return Chinchilla(E, np.exp(log_a), alpha, np.exp(log_b), beta)

    def predict(self, theta: Array) -> tuple[Array, Array, Array]:
        """Loss, its N term and its D term, each (S, n), for parameters (S, p)."""
        e, a, b = self.columns
        n_term = np.exp(theta[:, a] - theta[:, -2:-1] * self.log_n)
        d_term = np.exp(theta[:, b] - theta[:, -1:] * self.log_d)
        return theta[:, e] + n_term + d_term, n_term, d_term

    def jacobian(self, theta: Array) -> Array:
        """Derivatives of log loss by the parameters, (S, n, p)."""
        loss, n_term, d_term = self.predict(theta)
        return self._jacobian(loss, n_term, d_term)

    def _jacobian(self, loss: Array, n_term: Array, d_term: Array) -> Array:
        e, a, b = self.columns
        jacobian = np.zeros((*loss.shape, self.n_parameters))
        rows = np.arange(len(self.N))
        jacobian[:, rows, e] = 1 / loss
        jacobian[:, rows, a] = n_term / loss
        jacobian[:, rows, b] = d_term / loss
        jacobian[:, :, -2] = -self.log_n * n_term / loss
        jacobian[:, :, -1] = -self.log_d * d_term / loss
        return jacobian


def huber(residual: Array, delta: float) -> Array:
    """Huber's loss: r^2/2 within delta, delta (|r| - delta/2) beyond; r^2/2 for delta=inf."""
    size = np.abs(residual)
    if np.isinf(delta):
        return residual**2 / 2
    return np.where(size < delta, residual**2 / 2, delta * (size - delta / 2))


def project(problem: Problem, log_loss: Array, weight: Array) -> tuple[Array, Array]:
    """The inner solve at every grid cell, on relative residuals, with E, A, B >= 0.

    log_loss, weight: (R, n). Returns the objective (R, G, G) and parameters (R, G, G, p), axes
    after the first alpha then beta. E is eliminated by its Schur complement, so mixes stay 2 x 2.
    """
    G = len(GRID)
    R = len(log_loss)
    w1 = weight * np.exp(-log_loss)
    w2 = w1 * np.exp(-log_loss)
    pieces = []
    for m in range(problem.n_mixes):
        own = problem.mix == m
        a = np.exp(-problem.log_n[own, None] * GRID)
        b = np.exp(-problem.log_d[own, None] * GRID)
        ab = (a[:, :, None] * b[:, None, :]).reshape(-1, G * G)
        u1, u2 = w1[:, own], w2[:, own]
        row, column = (R, G, 1), (R, 1, G)
        g_aa, g_ea, h_a = (x.reshape(row) for x in (u2 @ a**2, u2 @ a, u1 @ a))
        g_bb, g_eb, h_b = (x.reshape(column) for x in (u2 @ b**2, u2 @ b, u1 @ b))
        g_ab = (u2 @ ab).reshape(R, G, G)
        g_ee, h_e, total = (x.sum(1).reshape(R, 1, 1) for x in (u2, u1, weight[:, own]))
        # A vanishing ridge keeps cells with collinear columns finite; they lose on the objective.
        det = g_aa * g_bb - g_ab**2 + 1e-13 * g_aa * g_bb
        to_a = (g_bb * g_ea - g_ab * g_eb) / det
        to_b = (g_aa * g_eb - g_ab * g_ea) / det
        schur = g_ee - g_ea * to_a - g_eb * to_b + 1e-13 * g_ee
        right = h_e - h_a * to_a - h_b * to_b
        pieces.append((g_aa, g_bb, g_ab, g_ee, g_ea, g_eb, h_a, h_b, h_e, det, schur, right, total))
    if problem.share_E:
        common = np.maximum(sum(p[11] for p in pieces) / sum(p[10] for p in pieces), 0)
    objective: Array = np.zeros((R, G, G))
    theta = np.empty((R, G, G, problem.n_parameters))
    theta[..., -2], theta[..., -1] = GRID[:, None], GRID
    floor = np.exp(log_loss.max()) * SMALLEST_TERM
    for m, piece in enumerate(pieces):
        g_aa, g_bb, g_ab, g_ee, g_ea, g_eb, h_a, h_b, h_e, det, schur, right, total = piece
        E = common if problem.share_E else np.maximum(right / schur, 0)
        r_a, r_b = h_a - g_ea * E, h_b - g_eb * E
        A, B = (g_bb * r_a - g_ab * r_b) / det, (g_aa * r_b - g_ab * r_a) / det
        A, B = np.where(B < 0, r_a / g_aa, A), np.where(A < 0, r_b / g_bb, B)
        A, B = np.maximum(A, floor), np.maximum(B, floor)
        objective += (
            total
            - 2 * (h_e * E + h_a * A + h_b * B)
            + (g_ee * E**2 + g_aa * A**2 + g_bb * B**2)
            + 2 * (g_ea * E * A + g_eb * E * B + g_ab * A * B)
        )
        theta[..., 0 if problem.share_E else m] = E
        theta[..., problem.n_E + m] = np.log(A)
        theta[..., problem.n_E + problem.n_mixes + m] = np.log(B)
    return objective, theta


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
    delta: float = np.inf,
    max_steps: int = 200,
) -> Polished:
    """Minimise sum(weight * huber(log residual)) from each row of `theta`, within the bounds.

    theta (S, p); log_loss and weight (S, n). A problem leaves the batch when the decrease that its
    model promises is below 1e-13 of its objective.
    """
    low, high = problem.bounds(log_loss)
    theta = np.clip(theta, low, high)
    value, gradient, curvature = _model(problem, theta, log_loss, weight, delta, None)
    damping = np.full(len(theta), 1e-3)
    # Far from the optimum Huber's own curvature vanishes; its quadratic majoriser does not.
    near = np.zeros(len(theta), bool)
    norm = np.zeros(len(theta))
    active = np.arange(len(theta))
    for _ in range(max_steps):
        now, slope = theta[active], gradient[active]
        fixed = ((now <= low) & (slope > 0)) | ((now >= high) & (slope < 0))
        norm[active] = np.linalg.norm(np.where(fixed, 0, slope), axis=1)
        step, promised = _inside(problem, now, slope, curvature[active], fixed, damping[active])
        small = promised <= 1e-13 * value[active] + 1e-28
        # A promise kept small by damping alone is no optimum, nor one that the majoriser makes.
        done = small & ((damping[active] <= 1) | (damping[active] >= 1e10))
        done &= near[active] | np.isinf(delta)
        near[active] |= small
        active, step, fixed = active[~done], step[~done], fixed[~done]
        if not len(active):
            break
        trial = np.clip(_to_boundary(problem, theta[active], step, fixed), low, high)
        new, grad, curve = _model(
            problem, trial, log_loss[active], weight[active], delta, near[active]
        )
        better = new <= value[active]
        near[active] |= better & (value[active] - new < 0.02 * value[active])
        damping[active] = np.where(better, damping[active] / 8, damping[active] * 5)
        damping[active] = np.clip(damping[active], 1e-12, 1e12)
        took = active[better]
        theta[took], value[took] = trial[better], new[better]
        gradient[took], curvature[took] = grad[better], curve[better]
    return Polished(theta, value, norm)


def _straighten(problem: Problem, theta: Array, fixed: NDArray[np.bool_]) -> Array:
    """Derivatives (S, p, p) of the parameters by coordinates in which the valley is straight.

    Data fix the loss at their centre, E + a + b, and its slopes there, a alpha and b beta, far
    better than E or an exponent: along the valley a grows as 1/alpha while E makes room. Steps are
    taken in (loss at the centre, log slopes, log exponents); where E is held at its bound the
    parameters themselves are straight enough.
    """
    p, M = problem.n_parameters, problem.n_mixes
    e = np.zeros(M, np.intp) if problem.share_E else np.arange(M)
    a, b = problem.n_E + np.arange(M), problem.n_E + M + np.arange(M)
    trades = ~fixed[:, e]
    straight = np.zeros((len(theta), p, p))
    straight[:, np.arange(p), np.arange(p)] = 1
    per_mix = M / problem.n_E
    for terms, exponent in ((a, p - 2), (b, p - 1)):
        value = np.where(trades, np.exp(theta[:, terms]), 0) / per_mix
        straight[:, e, terms] = -value
        for m in range(M):
            straight[:, e[m], exponent] += value[:, m]
        straight[:, terms, exponent] = -1.0 * trades
        straight[:, exponent, exponent] = theta[:, exponent]
    return straight


def _move(problem: Problem, theta: Array, step: Array, fixed: NDArray[np.bool_]) -> Array:
    """The parameters after a step in the straight coordinates."""
    M, n_E = problem.n_mixes, problem.n_E
    e = np.zeros(M, np.intp) if problem.share_E else np.arange(M)
    moved = theta.copy()
    stretch = np.clip(step[:, -2:], -1, 1)
    moved[:, -2:] = np.clip(theta[:, -2:] * np.exp(stretch), *EXPONENT_BOUNDS)
    stretch = np.log(moved[:, -2:] / theta[:, -2:])
    trades = ~fixed[:, e]
    terms = slice(n_E, n_E + 2 * M)
    moved[:, terms] += np.clip(step[:, terms], -5, 5)
    moved[:, terms] -= np.tile(trades, 2) * np.repeat(stretch, M, axis=1)
    before = np.exp(theta[:, terms]).reshape(-1, 2, n_E, M // n_E).sum(1).mean(-1)
    after = np.exp(moved[:, terms]).reshape(-1, 2, n_E, M // n_E).sum(1).mean(-1)
    E = theta[:, :n_E] + step[:, :n_E] + before - after
    moved[:, :n_E] = np.where(fixed[:, :n_E], theta[:, :n_E], E)
    return moved


def _inside(
    problem: Problem,
    theta: Array,
    gradient: Array,
    curvature: Array,
    fixed: NDArray[np.bool_],
    damping: Array,
) -> tuple[Array, Array]:
    """The step and its promise; an E at zero that would leave through its bound joins `fixed`."""
    straight = _straighten(problem, theta, fixed)
    step, promised = _step(gradient, curvature, straight, fixed, damping)
    n_E = problem.n_E
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


def _to_boundary(problem: Problem, theta: Array, step: Array, fixed: NDArray[np.bool_]) -> Array:
    """The parameters after a step, cut short where an E first reaches zero."""
    moved = _move(problem, theta, step, fixed)
    over = np.flatnonzero((moved[:, : problem.n_E] < 0).any(1))
    if not len(over):
        return moved
    # By halving, as E need not fall evenly; the outer end is kept, so that E ends on its bound.
    inside, outside = np.zeros((len(over), 1)), np.ones((len(over), 1))
    for _ in range(HALVINGS):
        middle = (inside + outside) / 2
        trial = _move(problem, theta[over], middle * step[over], fixed[over])
        beyond = (trial[:, : problem.n_E] < 0).any(1, keepdims=True)
        inside, outside = np.where(beyond, inside, middle), np.where(beyond, middle, outside)
    moved[over] = _move(problem, theta[over], outside * step[over], fixed[over])
    return moved


def _model(
    problem: Problem,
    theta: Array,
    log_loss: Array,
    weight: Array,
    delta: float,
    near: Array | None,
) -> tuple[Array, Array, Array]:
    """Objective (S,), gradient (S, p) and curvature (S, p, p)."""
    loss, n_term, d_term = problem.predict(theta)
    residual = np.log(loss) - log_loss
    value = (weight * huber(residual, delta)).sum(1)
    jacobian = problem._jacobian(loss, n_term, d_term)
    slope = weight * np.clip(residual, -delta, delta)
    gradient = np.matmul(slope[:, None, :], jacobian)[:, 0]
    size = np.abs(residual)
    majoriser = weight if np.isinf(delta) else weight * np.minimum(1, delta / (size + 1e-300))
    if near is None:
        near = np.zeros(len(theta), bool)
    exact = weight * (size < delta) - slope
    chosen = np.where(near[:, None], exact, majoriser)
    curvature = np.matmul((jacobian * chosen[:, :, None]).transpose(0, 2, 1), jacobian)
    # Second derivatives of the two power terms (of E there are none).
    share = np.where(near[:, None], slope / loss, 0)
    onehot = problem.mix[:, None] == np.arange(problem.n_mixes)
    for first, exponent, log_x, term in (
        (problem.n_E, -2, problem.log_n, n_term),
        (problem.n_E + problem.n_mixes, -1, problem.log_d, d_term),
    ):
        second = share * term
        own = np.arange(first, first + problem.n_mixes)
        curvature[:, own, own] += second @ onehot
        cross = (second * log_x) @ onehot
        curvature[:, own, exponent] -= cross
        curvature[:, exponent, own] -= cross
        curvature[:, exponent, exponent] += (second * log_x**2).sum(1)
    return value, gradient, curvature


def _step(
    gradient: Array,
    curvature: Array,
    straight: Array,
    fixed: NDArray[np.bool_],
    damping: Array,
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
