"""Where to start: the whole surface of a law seen on a grid, for many resamples at once.

Variable projection (Golub & Pereyra 1973): for fixed exponents the law is linear in E, A, B, so a
grid over the exponents with that small solve inside sees the whole surface. The solve is least
squares on relative residuals, which are the log residuals to first order.
"""

from __future__ import annotations

import numpy as np

from analysis.stats.laws import Array
from analysis.stats.problem import ABSENT, EXPONENT_BOUNDS, SMALLEST_TERM, Problem

GRID = np.geomspace(*EXPONENT_BOUNDS, 24)
# E as a share of the lowest loss, for mixes that share E and not their exponents.
SHARES_OF_E = np.array([0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.94, 0.97])
GAMMAS = np.geomspace(0.1, 10, 7)
COARSE = np.geomspace(0.02, 1.0, 10)
SHARES_OF_A = np.array([0.05, 0.25, 0.5, 0.75, 0.95])
LOCAL_MINIMA = 6
SPREAD = 20


def starts(problem: Problem, log_loss: Array, weight: Array) -> Array:
    """Where to start a fit of one data set: the grid's own minima, and cells spread over it.

    log_loss, weight: (n,). Returns parameters (starts, p).
    """
    from scipy.ndimage import minimum_filter

    objective, theta = surface(problem, log_loss[None], weight[None])
    values, cells = objective[0], theta[0].reshape(-1, problem.n_parameters)
    lowest = values == minimum_filter(values, size=3, mode="nearest")
    minima = np.flatnonzero(lowest.ravel())
    minima = minima[np.argsort(values.ravel()[minima])][:LOCAL_MINIMA]
    step = [max(1, round(length / SPREAD ** (1 / values.ndim))) for length in values.shape]
    chosen = np.zeros(values.shape, bool)
    chosen[tuple(slice(one // 2, None, one) for one in step)] = True
    spread = np.flatnonzero(chosen.ravel())
    return cells[np.concatenate([minima, np.setdiff1d(spread, minima)])]


def best_cells(problem: Problem, log_loss: Array, weight: Array) -> Array:
    """The best cell of each resample on every other line of the grid: (R, n) → (R, p)."""
    objective, theta = surface(problem, log_loss, weight, GRID[1::2])
    R = len(log_loss)
    best = objective.reshape(R, -1).argmin(1)
    return theta.reshape(R, -1, problem.n_parameters)[np.arange(R), best]


def surface(
    problem: Problem, log_loss: Array, weight: Array, grid: Array = GRID
) -> tuple[Array, Array]:
    """Objective (R, *grid) and parameters (R, *grid, p) at every grid cell.

    The grid is over alpha and beta; over E where that alone is shared; over gamma, alpha, beta and
    the share of the N term for the gamma form.
    """
    if problem.gamma:
        return _gamma_surface(problem, log_loss, weight)
    if problem.n_mixes > 1 and not {"alpha", "beta"} <= problem.shared:
        return _shared_E_surface(problem, log_loss, weight)
    return project(problem, log_loss, weight, grid)


class _Normal:
    """The normal equations of one mix at every cell of a grid over (alpha, beta), E, A, B >= 0.

    Axes: resample, alpha, beta. E is eliminated by its Schur complement, so that any number of
    mixes that share it stay 2 x 2.
    """

    def __init__(
        self, problem: Problem, mix: int, w: tuple[Array, Array, Array], alphas: Array, betas: Array
    ) -> None:
        R, own = len(w[0]), problem.mix == mix
        w0, w1, w2 = (one[:, own] for one in w)
        row, column = (R, len(alphas), 1), (R, 1, len(betas))
        a = np.exp(-problem.log_n[own, None] * alphas)
        b = np.exp(-problem.log_d[own, None] * betas)
        self.absent = "A" in problem.pinned
        ab = (a[:, :, None] * b[:, None, :]).reshape(len(a), -1)
        self.ab = (w2 @ ab).reshape(R, len(alphas), len(betas))
        self.aa, self.ea, self.ha = (x.reshape(row) for x in (w2 @ a**2, w2 @ a, w1 @ a))
        self.bb, self.eb, self.hb = (x.reshape(column) for x in (w2 @ b**2, w2 @ b, w1 @ b))
        if self.absent:
            self.aa, self.ea, self.ha, self.ab = np.ones(row), 0 * self.ea, 0 * self.ha, 0 * self.ab
        self.ee, self.he, self.total = (x.sum(1).reshape(R, 1, 1) for x in (w2, w1, w0))
        # A vanishing ridge keeps cells with collinear columns finite; they lose on the objective.
        self.det = self.aa * self.bb - self.ab**2 + 1e-13 * self.aa * self.bb
        to_a = (self.bb * self.ea - self.ab * self.eb) / self.det
        to_b = (self.aa * self.eb - self.ab * self.ea) / self.det
        self.schur = self.ee - self.ea * to_a - self.eb * to_b + 1e-13 * self.ee
        self.right = self.he - self.ha * to_a - self.hb * to_b

    def terms(self, E: Array, floor: float) -> tuple[Array, Array]:
        """A and B (in units of the centre) at the best value for each E, and not below a floor."""
        r_a, r_b = self.ha - self.ea * E, self.hb - self.eb * E
        A = (self.bb * r_a - self.ab * r_b) / self.det
        B = (self.aa * r_b - self.ab * r_a) / self.det
        A, B = np.where(B < 0, r_a / self.aa, A), np.where(A < 0, r_b / self.bb, B)
        return 0 * A if self.absent else np.maximum(A, floor), np.maximum(B, floor)

    def objective(self, E: Array, A: Array, B: Array) -> Array:
        linear = self.he * E + self.ha * A + self.hb * B
        square = self.ee * E**2 + self.aa * A**2 + self.bb * B**2
        return (
            self.total
            - 2 * linear
            + square
            + 2 * (self.ea * E * A + self.eb * E * B + self.ab * A * B)
        )


def _relative(log_loss: Array, weight: Array) -> tuple[Array, Array, Array]:
    """Weights of 1, of the law and of its square in the sum of squared relative residuals."""
    over = np.exp(-log_loss)
    return weight, weight * over, weight * over**2


def _exponents(problem: Problem, grid: Array) -> tuple[Array, Array]:
    alpha, beta = (
        np.array([problem.pinned[name]]) if name in problem.pinned else grid
        for name in ("alpha", "beta")
    )
    return alpha, beta


def project(
    problem: Problem, log_loss: Array, weight: Array, grid: Array = GRID
) -> tuple[Array, Array]:
    """The surface over (alpha, beta), common to all mixes.

    log_loss, weight: (R, n). Returns the objective (R, G, G) and parameters (R, G, G, p). Where A
    or B is shared, it is the mean of the mixes' own.
    """
    w = _relative(log_loss, weight)
    alphas, betas = _exponents(problem, grid)
    mixes = [_Normal(problem, m, w, alphas, betas) for m in range(problem.n_mixes)]
    shape = (len(log_loss), len(alphas), len(betas))
    objective = np.zeros(shape)
    theta = np.empty((*shape, problem.n_parameters))
    place = problem.place
    theta[..., place["alpha"]] = alphas[:, None, None]
    theta[..., place["beta"]] = betas[:, None]
    floor = float(np.exp(log_loss.max()) * SMALLEST_TERM)
    own = [one.right / one.schur for one in mixes]
    if "E" in problem.shared:
        common = sum(one.right for one in mixes) / sum(one.schur for one in mixes)
        own = [common] * problem.n_mixes
    logs: dict[str, list[Array]] = {"A": [], "B": []}
    for m, one in enumerate(mixes):
        E = np.maximum(own[m], 0)
        if "E" in problem.pinned:
            E = np.full_like(E, problem.pinned["E"])
        A, B = one.terms(E, floor)
        objective += one.objective(E, A, B)
        theta[..., place["E"][m]] = E
        logs["A"].append(np.full_like(A, ABSENT) if one.absent else np.log(A))
        logs["B"].append(np.log(B))
    for name, values in logs.items():
        for m in range(problem.n_mixes):
            theta[..., place[name][m]] = (
                np.mean(values, axis=0) if name in problem.shared else values[m]
            )
    return objective, theta


def _shared_E_surface(problem: Problem, log_loss: Array, weight: Array) -> tuple[Array, Array]:
    """The surface over a common E, each mix at its own best exponents for it: (R, K)."""
    w = _relative(log_loss, weight)
    R, K = len(log_loss), len(SHARES_OF_E)
    levels = SHARES_OF_E * np.exp(log_loss.min(1, keepdims=True))
    alphas, betas = _exponents(problem, GRID[1::2])
    objective = np.zeros((R, K))
    theta = np.empty((R, K, problem.n_parameters))
    floor = float(np.exp(log_loss.max()) * SMALLEST_TERM)
    place, rows = problem.place, np.arange(R)
    for m in range(problem.n_mixes):
        one = _Normal(problem, m, w, alphas, betas)
        for k in range(K):
            E = levels[:, k, None, None]
            A, B = one.terms(E, floor)
            values = one.objective(E, A, B).reshape(R, -1)
            best = values.argmin(1)
            objective[:, k] += values[rows, best]
            i, j = np.divmod(best, len(betas))
            theta[:, k, place["alpha"][m]], theta[:, k, place["beta"][m]] = alphas[i], betas[j]
            theta[:, k, place["A"][m]], theta[:, k, place["B"][m]] = (
                np.log(x.reshape(R, -1)[rows, best]) for x in (A, B)
            )
    theta[:, :, place["E"]] = levels[:, :, None]
    return objective, theta


def _gamma_surface(problem: Problem, log_loss: Array, weight: Array) -> tuple[Array, Array]:
    """The surface over (gamma, alpha, beta, share of the N term) of one mix.

    There the law is E + scale * shape(N, D), linear in both.
    """
    alphas, betas = _exponents(problem, COARSE)
    axes = np.meshgrid(GAMMAS, alphas, betas, SHARES_OF_A, indexing="ij")
    gamma, alpha, beta, share = (x.reshape(-1, 1) for x in axes)
    u = gamma * np.log(share) - alpha * problem.log_n
    v = gamma * np.log(1 - share) - beta * problem.log_d
    shape = np.exp(gamma * np.logaddexp(u / gamma, v / gamma)).T
    w0, w1, w2 = _relative(log_loss, weight)
    ee, he = w2.sum(1, keepdims=True), w1.sum(1, keepdims=True)
    es, ss, hs = w2 @ shape, w2 @ shape**2, w1 @ shape
    E = np.maximum((ss * he - es * hs) / (ee * ss - es**2 + 1e-13 * ee * ss), 0)
    if "E" in problem.pinned:
        E = np.full_like(E, problem.pinned["E"])
    scale = np.maximum((hs - es * E) / ss, np.exp(log_loss.max()) * SMALLEST_TERM)
    objective = w0.sum(1, keepdims=True) - 2 * (he * E + hs * scale)
    objective += ee * E**2 + ss * scale**2 + 2 * es * E * scale
    theta = np.empty((*objective.shape, problem.n_parameters))
    columns = {
        "E": E,
        "A": np.log(scale) + (gamma * np.log(share))[:, 0],
        "B": np.log(scale) + (gamma * np.log(1 - share))[:, 0],
        "alpha": alpha[:, 0],
        "beta": beta[:, 0],
        "gamma": np.log(gamma[:, 0]),
    }
    for name, values in columns.items():
        theta[..., problem.place[name][0]] = values
    grid = axes[0].shape
    return objective.reshape(-1, *grid), theta.reshape(len(theta), *grid, -1)
