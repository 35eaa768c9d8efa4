"""The law as a mixed model: noise of points, of runs, and of batches that several mixes saw.

    log loss = log law(N, D) + batch effect (size, seed) + run effect + point noise

Generalised least squares, linear in the law's tangent at its least-squares optimum, with variances
by restricted likelihood (REML; Patterson & Thompson 1971). Few runs know them badly, so they are
drawn, not fixed: from the restricted likelihood on a grid, under Box & Tiao's (1973, 5.2) reference
prior, flat in the logs of the variances of a point and of a run's mean, and a uniform prior on the
correlation of runs that saw the same batches, of either sign.
"""

from dataclasses import dataclass, replace

import numpy as np

from analysis.fit import Fit, moved, weights_of
from analysis.fitting.noise import cluster_ids
from analysis.fitting.solver import polish
from analysis.laws import Array, Indices

# Grid of log variance ratios: a run's mean over a point, and batches over the rest.
STEP = 0.2
RUN_REACH, BATCH_REACH = 12.0, 8.0
# Directions that the law's coefficients hardly move, relative to the one they move most.
NEGLIGIBLE = 1e-9
TRACE = 0.1


@dataclass(frozen=True)
class MixedModel:
    """The posterior of the noise of one fit, on a grid of G cells with p directions of the law.

    `share` (G,) is each cell's probability; `run` and `batch` (G,) are variances over a point's.
    `factor` (G, p, p) is the Cholesky factor of the information, `centre` (G, p) its solution's
    image, `squares` (G,) the generalised residual sum, `basis` (n, p) the tangent's orthonormal
    basis, `dof` what is left of n.
    """

    fit: Fit
    basis: Array
    share: Array
    run: Array
    batch: Array
    factor: Array
    centre: Array
    squares: Array
    dof: int

    @property
    def sds(self) -> tuple[float, float, float]:
        """Posterior means of the sds of a point, a run and a batch effect, of log loss."""
        level = self.squares / self.dof
        parts = (level, level * self.run, level * np.maximum(self.batch, 0))
        return tuple(float(self.share @ np.sqrt(part)) for part in parts)  # type: ignore[return-value]

    @property
    def correlation(self) -> float:
        """Posterior mean correlation between runs of two mixes that saw the same batches."""
        total = np.maximum(self.run + self.batch, 1e-300)
        return float(self.share @ np.clip(self.batch / total, -1, 1))

    @property
    def weighs(self) -> bool:
        """Whether the law is moved to the estimate; a robust or weighted fit stays where it is."""
        return self.fit.loss == "squares" and bool((weights_of(self.fit.points) == 1).all())

    def draw(self, rng: np.random.Generator, resamples: int) -> Array:
        """Log losses (resamples, n) whose least-squares fits are draws of the law."""
        cell = rng.choice(len(self.share), size=resamples, p=self.share)
        level = np.sqrt(self.squares[cell] / rng.chisquare(self.dof, resamples))
        normal = rng.normal(size=self.centre[cell].shape)
        centre = self.centre[cell] if self.weighs else 0.0
        return self._moved(_solved(self.factor[cell], centre + level[:, None] * normal))

    def estimate(self) -> Array:
        """Log losses (1, n) whose least-squares fit is the posterior mean, which draws surround."""
        return self._moved(self.share @ _solved(self.factor, self.centre))

    def _moved(self, along: Array) -> Array:
        """The fitted log losses moved `along` the tangent, (..., p).

        A trace of the residuals orthogonal to it tells a fit, by its size, that it has arrived.
        """
        residual, basis = self.fit.residual, self.basis
        fitted = np.log(self.fit.points["loss"].to_numpy(float)) + residual
        across = basis @ (basis.T @ residual) - residual
        return fitted + TRACE * across + np.atleast_2d(along) @ basis.T


def _solved(factor: Array, image: Array) -> Array:
    """Of each cell the coefficients (G, p) that the transposed factor takes to `image`."""
    return np.asarray(np.linalg.solve(factor.transpose(0, 2, 1), image[:, :, None])[:, :, 0])


def settled(fit: Fit, samples: Array) -> list[Array]:
    """Parameters (R, p) of each block by least squares on `samples` (R, n), near the optimum."""
    found = []
    for block in fit.blocks:
        own = samples[:, block.rows]
        start = np.tile(block.theta, (len(own), 1))
        found.append(polish(block.problem, start, own, np.ones_like(own)).theta)
    return found


def generalised(fit: Fit, model: MixedModel) -> Fit:
    """The fit at the mixed model's estimate, so that values and intervals are of one model.

    A robust or weighted fit is left as it is, like its draws. What certifies the optimum
    (`starts`, `gradient_norm`) remains that of the least squares it is reached from.
    """
    if not model.weighs:
        return fit
    log_loss = np.log(fit.points["loss"].to_numpy(float))
    residual, blocks, mixes = fit.residual.copy(), [], dict(fit.mixes)
    for block, theta in zip(fit.blocks, settled(fit, model.estimate()), strict=True):
        low, high = block.problem.bounds(log_loss[block.rows])
        free = (theta[0] > low) & (theta[0] < high)
        blocks.append(replace(block, theta=theta[0], free=free))
        residual[block.rows] = np.log(block.problem.predict(theta)[0][0]) - log_loss[block.rows]
        mixes |= {name: moved(fit.mixes[name], blocks[-1], residual) for name in block.mixes}
    return replace(fit, blocks=tuple(blocks), mixes=mixes, residual=residual, least=fit)


def tangent(fit: Fit) -> Array:
    """Orthonormal basis (n, p) of the directions in which the law's coefficients move log loss."""
    parts = []
    for block in fit.blocks:
        jacobian = block.problem.jacobian(block.theta[None])[0]
        jacobian = jacobian / np.maximum(np.linalg.norm(jacobian, axis=0), 1e-300)
        basis, size, _ = np.linalg.svd(jacobian, full_matrices=False)
        basis = basis[:, size > NEGLIGIBLE * size[0]]
        part = np.zeros((fit.n, basis.shape[1]))
        part[block.rows] = basis
        parts.append(part)
    return np.hstack(parts)


def mixed_model(fit: Fit) -> MixedModel:
    """Estimate the noise of a fit; batches are shared by runs of one size and seed."""
    basis = tangent(fit)
    runs, batches = cluster_ids(fit.points), cluster_ids(fit.points, paired=True)
    return _posterior(fit, basis, runs, batches)


def _grid(points: int, mixes: int) -> tuple[Array, Array, Array]:
    """Variances of run and batch effects over a point's, and the log prior, each (G,).

    `points` a run and `mixes` a batch, the most there are. With one point a run its effect is the
    point's own noise; with one mix a batch its effect is the run's.
    """
    run_log = np.arange(0, RUN_REACH, STEP) if points > 1 else np.zeros(1)
    batch_log = np.arange(-BATCH_REACH, BATCH_REACH, STEP) + STEP / 2 if mixes > 1 else np.zeros(1)
    u, w = (axis.ravel() for axis in np.meshgrid(run_log, batch_log, indexing="ij"))
    run, ratio = np.expm1(u) / points, np.exp(w)
    batch = np.exp(u) * np.expm1(w) / (points * mixes)
    # Uniform in the correlation (ratio - 1) / (ratio + mixes - 1) of run means, by its Jacobian.
    return run, batch, np.log(ratio) - 2 * np.log(ratio + mixes - 1)


def _posterior(fit: Fit, basis: Array, runs: Indices, batches: Indices) -> MixedModel:
    """Within a run, contrasts of points have a point's variance; only run means need a matrix.

    There the covariance is diagonal plus one direction a batch, so that every grid cell's
    information comes from sums over runs and batches.
    """
    (n, p), count = basis.shape, np.bincount(runs)
    owner = np.zeros(len(count), np.intp)
    owner[runs] = batches
    run, batch, prior = _grid(int(count.max()), int(np.bincount(owner).max()))
    columns = np.column_stack([basis, -fit.residual])
    means = np.zeros((len(count), p + 1))
    np.add.at(means, runs, columns)
    means /= np.sqrt(count)[:, None]
    scale = 1 / (1 + run[:, None] * count)
    belongs = np.sqrt(count)[:, None] * (owner[:, None] == np.arange(owner.max() + 1))
    spread = 1 + batch[:, None] * (scale @ belongs**2)
    outer = (means[:, :, None] * means[:, None, :]).reshape(len(count), -1)
    sums = columns.T @ columns - means.T @ means + (scale @ outer).reshape(-1, p + 1, p + 1)
    shared = np.matmul(scale[:, None, :] * belongs.T, means)
    weight = (batch[:, None] / spread)[:, :, None]
    sums -= np.matmul((weight * shared).transpose(0, 2, 1), shared)
    factor = np.linalg.cholesky(sums[:, :p, :p])
    centre = np.linalg.solve(factor, sums[:, :p, p:])[:, :, 0]
    squares = np.maximum(sums[:, p, p] - (centre**2).sum(1), 1e-30)
    log_det = np.log(spread).sum(1) - np.log(scale).sum(1)
    log_det += 2 * np.log(np.einsum("gii->gi", factor)).sum(1)
    dof = max(n - p, 1)
    log_share = prior - log_det / 2 - dof / 2 * np.log(squares)
    share = np.exp(log_share - log_share.max())
    share /= share.sum()
    return MixedModel(fit, basis, share, run, batch, factor, centre, squares, dof)
