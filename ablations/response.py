"""Response surfaces of tuning: loss against the logarithm of a setting, and where it is lowest.

The surface of one mix is a polynomial of log loss in octaves, log2 of the setting, joint over its
cells (sizes, or sizes and budgets): each cell has its own offsets and its own slope, and so its own
optimum, and the curvature, as a share of the loss, is one (Box & Wilson 1951; Myers et al.,
Response Surface Methodology). Seeds of a cell shift its whole curve: runs of one seed see the same
batches at every value.

An interval of the optimum is Fieller's: it ends where the slope of the curve differs from 0 by
Student's t, which is exact for normal noise where the polynomial is right. It stays open on a side
where the runs do not show that the loss rises. No torch here, and no pandas.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Indices = NDArray[np.int64]

LEVEL = 0.95
WITHIN = 0.4
"""Share above a cell's lowest loss up to which values are fitted: far above it, where runs
diverge, a loss does not show where the minimum is."""
LEAST_LEVELS_CUBIC = 4
LEAST_DOF_CUBIC = 3
GRID = {1: 401, 2: 61}
"""Values of each setting at which drawn curves are searched for their lowest."""
FLAT = 1e-9
"""Range of log loss of a curve that is none."""
CENTRINGS = 4
"""Times that a cell's origin is moved to its optimum: a shared cubic term then means one shape."""


@dataclass(frozen=True)
class Optimum:
    """Where the loss of a cell is lowest. Octaves of each setting, (S,).

    `low`, `high`: ends of the interval, infinite where the runs leave it open. `edge`: the side of
    what was tried on which the lowest loss lies, as there is no minimum inside; empty elsewhere.
    """

    x: Array
    low: Array
    high: Array
    edge: tuple[str, ...]

    @property
    def is_minimum(self) -> bool:
        """Whether the runs show a minimum inside what was tried, in every setting."""
        return not any(self.edge)


@dataclass(frozen=True)
class Response:
    """The fitted surface of one mix: S settings, K cells, B blocks (a seed of a cell), p terms.

    `coefficients`: B offsets, K·S slopes, then the shared terms: S(S+1)/2 of second order and, if
    `cubic`, S of third. `covariance` is of the coefficients, by Student's t with `dof` degrees
    of freedom; `sd` is the scatter of one run as a share of its loss.
    """

    n_settings: int
    cubic: bool
    coefficients: Array
    covariance: Array
    dof: int
    sd: float
    centre: Array
    """Origin of each cell, octaves (K, S)."""
    tried: Array
    """Lowest and highest value fitted in each cell, octaves (K, 2, S)."""
    lowest: Array
    """Value with the lowest mean loss in each cell, octaves (K, S)."""
    block_cell: Indices
    """Cell of each block, (B,)."""
    used: NDArray[np.bool_]
    """Which runs were fitted, (n,)."""
    lack_p: float
    """p value of the test that the polynomial describes the losses, by runs of equal values; NaN
    where a seed ran each value once only."""

    @property
    def n_cells(self) -> int:
        return len(self.centre)

    def terms(self, cell: int, x: Array, derivative: int | None = None) -> Array:
        """Rows (m, p) that times the coefficients give the loss of a cell less its offset at x
        (m, S), or its derivative by one setting."""
        rows = np.zeros((len(x), len(self.coefficients)))
        at = len(self.block_cell)
        own, shared = _terms(x - self.centre[cell], self.cubic, derivative)
        rows[:, at + cell * self.n_settings : at + (cell + 1) * self.n_settings] = own
        rows[:, at + self.n_cells * self.n_settings :] = shared
        return rows

    def curve(self, cell: int, x: Array) -> Array:
        """Geometric mean of the loss over a cell's seeds at x (m, S), nats per token."""
        offset = self.coefficients[: len(self.block_cell)][self.block_cell == cell].mean()
        return np.asarray(np.exp(offset + self.terms(cell, x) @ self.coefficients))

    def grid(self, cell: int) -> Array:
        """Values searched for the lowest loss, from end to end of what was tried, (m, S)."""
        low, high = self.tried[cell]
        n = GRID[self.n_settings]
        axes = [np.linspace(low[s], high[s], n) for s in range(self.n_settings)]
        return np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, self.n_settings)

    def log_bottom(self, cell: int) -> float:
        """Lowest log loss of the fitted curve less the cell's offset, as `optimum_draws` has it."""
        return float(self.optimum_draws(cell, self.coefficients[None])[1][0])

    def drawn(self, rng: np.random.Generator, draws: int) -> Array:
        """Coefficients drawn from what the runs leave possible, (draws, p): Student's t."""
        root = _root(self.covariance)
        normal = rng.normal(size=(draws, root.shape[1]))
        spread = np.sqrt(self.dof / np.maximum(rng.chisquare(self.dof, draws), 1e-12))
        return np.asarray(self.coefficients + (normal * spread[:, None]) @ root.T)

    def optimum_draws(self, cell: int, drawn: Array) -> tuple[Array, Array]:
        """(optima (draws, S), their log losses less the cell's offset (draws,)) of drawn curves."""
        grid = self.grid(cell)
        losses = drawn @ self.terms(cell, grid).T
        best = losses.argmin(1)
        return grid[best], losses[np.arange(len(losses)), best]

    def excess_draws(self, cell: int, x: Array, drawn: Array) -> Array:
        """Share of the loss by which drawn curves at x (S,) lie above their lowest, (draws,)."""
        lowest = self.optimum_draws(cell, drawn)[1]
        here = drawn @ self.terms(cell, x[None]).T
        return np.asarray(-np.expm1(-np.maximum(here[:, 0] - lowest, 0.0)))

    def excess(self, cell: int, x: Array) -> float:
        """Share of the loss by which the fitted curve at x (S,) lies above its lowest."""
        grid = self.grid(cell)
        return max(0.0, 1 - float(self.curve(cell, grid).min() / self.curve(cell, x[None])[0]))

    def optimum(self, cell: int, level: float = LEVEL, drawn: Array | None = None) -> Optimum:
        """The optimum of a cell with its interval: Fieller's for one setting; for several, of
        `drawn` coefficients."""
        grid = self.grid(cell)
        curve = self.curve(cell, grid)
        x = grid[curve.argmin()]
        if np.ptp(np.log(curve)) < FLAT:
            open_end = np.full(self.n_settings, np.inf)
            return Optimum(x, -open_end, open_end, ("flat",) * self.n_settings)
        if self.n_settings == 1:
            low, high = self._fieller(cell, float(x[0]), level)
        else:
            assert drawn is not None
            optima = self.optimum_draws(cell, drawn)[0]
            tail = (1 - level) / 2
            low, high = np.quantile(optima, tail, 0), np.quantile(optima, 1 - tail, 0)
            low = np.where(low <= self.tried[cell, 0], -np.inf, low)
            high = np.where(high >= self.tried[cell, 1], np.inf, high)
        return Optimum(x, low, high, self._edges(cell, x, low, high))

    def _edges(self, cell: int, x: Array, low: Array, high: Array) -> tuple[str, ...]:
        edges = []
        for s in range(self.n_settings):
            bottom, top = self.tried[cell, :, s]
            side = ""
            if np.isinf(low[s]) and np.isinf(high[s]):
                side = "flat"
            if x[s] <= bottom or (np.isinf(low[s]) and self.lowest[cell, s] <= bottom):
                side = "low"
            elif x[s] >= top or (np.isinf(high[s]) and self.lowest[cell, s] >= top):
                side = "high"
            edges.append(side)
        return tuple(edges)

    def _fieller(self, cell: int, x: float, level: float) -> tuple[Array, Array]:
        from scipy.stats import t as student

        grid = self.grid(cell)
        rows = self.terms(cell, grid, derivative=0)
        slope = rows @ self.coefficients
        spread = np.sqrt(np.einsum("ij,jk,ik->i", rows, self.covariance, rows))
        reach = float(student.ppf((1 + level) / 2, self.dof)) * spread
        falls = grid[(slope < -reach) & (grid[:, 0] <= x), 0]
        rises = grid[(slope > reach) & (grid[:, 0] >= x), 0]
        low, high = (
            (falls.max() if len(falls) else -np.inf),
            (rises.min() if len(rises) else np.inf),
        )
        return np.array([low]), np.array([high])

    @cached_property
    def curvature(self) -> Array:
        """Share of the loss that an octave off costs at a cell's origin, by setting, (S,): half the
        second derivative of log loss."""
        at = len(self.block_cell) + self.n_cells * self.n_settings
        shared = self.coefficients[at:]
        own = [k for k, (i, j) in enumerate(_pairs(self.n_settings)) if i == j]
        return np.asarray(shared[own])


def fit_response(
    cell: Indices, seed: Indices, x: Array, loss: Array, within: float = WITHIN
) -> Response:
    """Fit the surface of one mix.

    cell: (n,) from 0; seed: (n,); x: octaves of each setting, (n, S); loss: (n,), nats per token,
    not finite for a run that diverged; within: see `WITHIN`. Raises ValueError, a clause, where the
    runs are too few.
    """
    if not np.isfinite(loss).any():
        raise ValueError("no run ended with a loss")
    used = _near(cell, x, loss, within)
    if min(_freedom(cell[used], seed[used], x[used])) < 1:
        used = _near(cell, x, loss, math.inf)
    levels, dof = _freedom(cell[used], seed[used], x[used])
    cell, seed, x, y = cell[used], seed[used], x[used], np.log(loss[used])
    if min(levels, dof) < 1:
        raise ValueError(
            f"{len(y)} runs that ended cannot show a curve and its noise; it takes three values or "
            "more, and more runs than the curve has terms"
        )
    n_cells, n_settings = int(cell.max()) + 1, x.shape[1]
    blocks, block = np.unique(np.stack([cell, seed]), axis=1, return_inverse=True)
    block = np.asarray(block).reshape(-1)
    cubic = levels >= LEAST_LEVELS_CUBIC and dof - n_settings >= LEAST_DOF_CUBIC
    means = np.array([_lowest(x[cell == k], y[cell == k]) for k in range(n_cells)])
    tried = np.array([[x[cell == k].min(0), x[cell == k].max(0)] for k in range(n_cells)])
    centre = means
    for _ in range(CENTRINGS):
        response = _fitted(cell, block, blocks[0], x, y, cubic, centre, tried, means, used)
        centre = np.array([
            response.grid(k)[response.curve(k, response.grid(k)).argmin()] for k in range(n_cells)
        ])  # fmt: skip
    return response


def _fitted(
    cell: Indices, block: Indices, block_cell: Indices, x: Array, y: Array, cubic: bool,
    centre: Array, tried: Array, lowest: Array, used: NDArray[np.bool_],
) -> Response:  # fmt: skip
    n_cells, n_settings = centre.shape
    own, shared = _terms(x - centre[cell], cubic)
    slopes = np.zeros((len(y), n_cells * n_settings))
    for s in range(n_settings):
        slopes[np.arange(len(y)), cell * n_settings + s] = own[:, s]
    design = np.hstack([np.eye(len(block_cell))[block], slopes, shared])
    coefficients, _, rank, _ = np.linalg.lstsq(design, y, rcond=None)
    residual = y - design @ coefficients
    dof = len(y) - int(rank)
    variance = float(residual @ residual) / dof if dof else math.nan
    covariance = variance * np.linalg.pinv(design.T @ design)
    lack_p = _lack_of_fit(residual, y, dof, cell, block, x)
    return Response(
        n_settings, cubic, coefficients, covariance, dof, math.sqrt(variance), centre, tried,
        lowest, block_cell, used, lack_p,
    )  # fmt: skip


def _lack_of_fit(
    residual: Array, y: Array, dof: int, cell: Indices, block: Indices, x: Array
) -> float:
    """p value of the F test of misfit against the scatter of seeds.

    The scatter is what is left of the losses once each cell has a mean for every value and a shift
    for every seed.
    """
    from scipy.stats import f

    values = np.unique(np.hstack([cell[:, None], np.round(x, 9)]), axis=0, return_inverse=True)[1]
    values = np.asarray(values).reshape(-1)
    saturated = np.hstack([np.eye(values.max() + 1)[values], np.eye(block.max() + 1)[block]])
    fitted, _, rank, _ = np.linalg.lstsq(saturated, y, rcond=None)
    pure = y - saturated @ fitted
    pure_dof = len(y) - int(rank)
    if pure_dof < 1 or dof <= pure_dof:
        return math.nan
    misfit = float(residual @ residual - pure @ pure) / (dof - pure_dof)
    noise = float(pure @ pure) / pure_dof
    return float(f.sf(misfit / noise, dof - pure_dof, pure_dof)) if noise > 0 else math.nan


def _freedom(cell: Indices, seed: Indices, x: Array) -> tuple[int, int]:
    """(values in the cell and setting with fewest, 0 where one has fewer than three anywhere;
    degrees of freedom that second order leaves)."""
    n_settings = x.shape[1]
    levels = 0
    for s in range(n_settings):
        counts = [len(np.unique(np.round(x[cell == k, s], 6))) for k in np.unique(cell)]
        most = max(counts, default=0)
        levels = min(levels or most, most) if min(counts, default=0) >= 2 and most >= 3 else 0
        if not levels:
            break
    blocks = len(np.unique(np.stack([cell, seed]), axis=1).T)
    shared = n_settings * (n_settings + 1) // 2
    return levels, len(x) - blocks - len(np.unique(cell)) * n_settings - shared


def _near(cell: Indices, x: Array, loss: Array, within: float) -> NDArray[np.bool_]:
    """Runs at values whose mean loss lies within reach of their cell's lowest, and finite."""
    used = np.isfinite(loss)
    for k in np.unique(cell):
        means: dict[tuple[float, ...], float] = {}
        for value in {tuple(row) for row in x[cell == k]}:
            at = (cell == k) & (x == np.array(value)).all(1)
            means[value] = float(loss[at].mean()) if np.isfinite(loss[at]).all() else math.inf
        bar = (1 + within) * min(means.values(), default=math.inf)
        far = [value for value, mean in means.items() if not mean <= bar]
        for value in far:
            used &= ~((cell == k) & (x == np.array(value)).all(1))
    return used


def _lowest(x: Array, loss: Array) -> Array:
    values, place = np.unique(x, axis=0, return_inverse=True)
    place = np.asarray(place).reshape(-1)
    return np.asarray(values[(np.bincount(place, loss) / np.bincount(place)).argmin()])


def _pairs(n_settings: int) -> list[tuple[int, int]]:
    return [(i, j) for i in range(n_settings) for j in range(i, n_settings)]


def _terms(u: Array, cubic: bool, derivative: int | None = None) -> tuple[Array, Array]:
    """(a cell's own terms (m, S), shared terms (m, S(S+1)/2 + S if cubic)) at u (m, S), octaves
    from the cell's origin; or their derivative by one setting."""
    n_settings = u.shape[1]
    if derivative is None:
        shared = [u[:, i] * u[:, j] for i, j in _pairs(n_settings)]
        shared += [u[:, s] ** 3 for s in range(n_settings)] if cubic else []
        return u, np.stack(shared, 1)
    s = derivative
    own = np.zeros_like(u)
    own[:, s] = 1
    shared = [(i == s) * u[:, j] + (j == s) * u[:, i] for i, j in _pairs(n_settings)]
    if cubic:
        shared += [3 * u[:, k] ** 2 * (k == s) for k in range(n_settings)]
    return own, np.stack(shared, 1)


def _root(covariance: Array) -> Array:
    """A matrix whose product with its transpose is the covariance, which may be singular."""
    values, vectors = np.linalg.eigh((covariance + covariance.T) / 2)
    return np.asarray(vectors * np.sqrt(np.maximum(values, 0)))
