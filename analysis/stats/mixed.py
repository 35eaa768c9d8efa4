"""The noise of a fit as a mixed model: points, runs, shared batches, and the law's misfit.

    log loss = log law(N, D) + run effect + tilt (log D - mean log D of the run) + point noise

- The run effect is a run's luck. Runs of two mixes with one size and seed saw the same batches, and
  their effects are correlated.
- The tilt is the law's misfit within a size: the slope in log D by which a mix's curve leaves it,
  the same for all seeds, correlated between the mixes of a size.
- The variances of both go with N as N^slope; that of point noise does not.

The law itself stays where least squares puts it, whatever the correlations: generalised least
squares trades the distance to the points against the correlations it believes in, and leaves the
data where the law is only close. Points are weighted by one over the variance of a point and its
run at that N ("working independence", Liang & Zeger 1986). Tilts do not enter the weights: where
the law misses its points, that is no reason to look at some of them less.

With two points a run, a tilt of its own would leave nothing of the points within it: then there
are no tilts. Points with weights of their own have point noise of variance over weight.

Variances are drawn and not fixed, as few runs know them badly: from the restricted likelihood
(REML; Patterson & Thompson 1971) on a grid. Priors: flat in the logs of the variances of a point
and of a run's mean (Box & Tiao 1973, 5.2), falling off where a run's standard deviation passes
RUN_TO_POINT times a point's; uniform in the correlation of runs; for tilts, which mixes tend to
share, flat in the log ratio that the correlation follows from, above zero; normal for the slope,
around zero.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pandas as pd

from analysis.stats.fit import Fit, moved, weights_of
from analysis.stats.laws import Array, Indices
from analysis.stats.noise import cluster_ids
from analysis.stats.solver import polish

# Ends of the grid: log of 1 + variance ratio (runs, tilts), log of shared over own variance of the
# mean of mixes (their correlation), slope of log variance in log N.
RUN_REACH, SHARED_REACH = 12.0, 6.0
TILT_REACH, TILT_SHARED_REACH = 12.0, 9.0
SLOPE_REACH = 3.0
# Grid lines of (run, run shared, tilt, tilt shared, slope): over all of it, then where mass is, as
# often as it takes until the mass of each axis spans LEAST_LINES. A line has mass above KEPT of the
# axis's highest.
COARSE, FINE = (7, 6, 6, 5, 5), (9, 7, 7, 5, 7)
KEPT, LEAST_LINES, MOST_PASSES = 1e-3, 4, 4
# Three sizes of one seed cannot tell a run effect from the law, so the prior decides how large one
# may be beside a point's noise. Chosen on simulated ladders (docs/intervals.md).
RUN_TO_POINT = 5.0
# Fewer sizes cannot tell noise that depends on N from the law.
LEAST_SIZES_FOR_SLOPE = 4
SLOPE_SD = 1.25
# With one point a run its noise is the run's: the run's variance over what is left to the point.
ALONE = 1e4
# Directions that the law's coefficients hardly move, relative to the one they move most.
NEGLIGIBLE = 1e-9


@dataclass(frozen=True)
class Effect:
    """A random effect with g levels over n points.

    `level` (n,) is each point's level and `value` (n,) what one unit adds to its log loss. Levels
    of one `family` (g,) may be correlated; `log_N` (g,) is centred.
    """

    level: Indices
    value: Array
    family: Indices
    log_N: Array

    def sums(self, columns: Array) -> Array:
        """Sums over each level's points of value times `columns` (n, q): (g, q)."""
        found = np.zeros((len(self.family), columns.shape[1]))
        np.add.at(found, self.level, self.value[:, None] * columns)
        return found

    @cached_property
    def size(self) -> Array:
        """Sum of squared values of each level, (g,)."""
        return np.asarray(np.bincount(self.level, self.value**2), float)

    @cached_property
    def members(self) -> Array:
        """1 where a level is of a family, (g, families)."""
        return (self.family[:, None] == np.arange(self.family.max() + 1)).astype(float)

    @property
    def largest_family(self) -> int:
        return int(np.bincount(self.family).max())

    def subtracted(self, sums: Array, variance: Array, shared: Array) -> tuple[Array, Array]:
        """What the effect takes from sums of squares (G, q, q), and its log determinant (G,).

        With Z the values by level and S the covariance of levels, variance (G, g) with correlation
        `shared` (G,) inside a family, X'(I + Z S Z')^-1 X = X'X - this, by Woodbury's identity.
        """
        q = sums.shape[1]
        own = variance * (1 - shared[:, None])
        inside = 1 + own * self.size
        outer = (sums[:, :, None] * sums[:, None, :]).reshape(len(sums), -1)
        taken = (own / inside @ outer).reshape(-1, q, q)
        # Levels of a family have one N, so one variance.
        first = np.argmax(self.members, axis=0)
        common = (variance * shared[:, None])[:, first]
        left = np.matmul((self.members.T / inside[:, None, :]), sums)
        spread = 1 + common * (self.size / inside @ self.members)
        taken += np.matmul(((common / spread)[:, :, None] * left).transpose(0, 2, 1), left)
        return taken, np.log(inside).sum(1) + np.log(spread).sum(1)

    def drawn(self, rng: np.random.Generator, variance: Array, shared: Array) -> Array:
        """Draws (R, n) with variance (R, g) and the correlation `shared` (R,) inside a family."""
        normal = rng.normal(size=variance.shape)
        count = self.members.sum(0)
        mean = normal @ (self.members / count)
        own = np.sqrt(1 - shared)[:, None]
        together = np.maximum(1 - shared[:, None] + shared[:, None] * count, 0)
        effect = own * normal + ((np.sqrt(together) - own) * mean)[:, self.family]
        return (np.sqrt(variance) * effect)[:, self.level] * self.value


Part = tuple[Array, Effect, Effect]
"""What is fitted and, last, the residual (n, p + 1), each over a point's sd; runs; tilts."""


@dataclass(frozen=True)
class MixedModel:
    """The posterior of the noise of one fit, on a grid of G cells.

    `share` (G,) is each cell's probability; `run` and `tilt` (G,) are variances at the mean of
    log N over a point's, `run_shared` and `tilt_shared` their correlations between mixes, `slope`
    of both variances in log N; `squares` (G,) the generalised residual sum of squares, on `dof`
    degrees of freedom.
    """

    fit: Fit
    runs: Effect
    tilts: Effect
    share: Array
    run: Array
    run_shared: Array
    tilt: Array
    tilt_shared: Array
    slope: Array
    squares: Array
    dof: int

    @property
    def alone(self) -> bool:
        """Whether each run has one point, so that the noise of points and of runs are one."""
        return len(self.runs.family) == self.fit.n

    @property
    def has_batches(self) -> bool:
        """Whether runs of two mixes are known to have seen the same batches."""
        return self.runs.largest_family > 1

    @property
    def sds(self) -> tuple[float, float, float]:
        """Posterior mean sds of a point, a run at the mean log N, and the misfit, of log loss.

        The misfit is that of the law's slope: the rms over points of what tilts add.
        """
        level = self.squares / self.dof
        point, run = (1 + self.run, 0 * self.run) if self.alone else (1 + 0 * self.run, self.run)
        misfit = self.tilt * float((self.tilts.value**2).mean())
        sds = self.share @ np.sqrt(level[:, None] * np.column_stack([point, run, misfit]))
        return float(sds[0]), float(sds[1]), float(sds[2])

    @property
    def correlation(self) -> float:
        """Posterior mean correlation between runs of two mixes that saw the same batches."""
        return float(self.share @ self.run_shared)

    def slope_interval(self, level: float = 0.95) -> tuple[float, float, float]:
        """Posterior mean of the slope of log variance in log N, and its central interval."""
        lines, place = np.unique(self.slope, return_inverse=True)
        share = np.bincount(place, self.share)
        # Each grid line stands for what lies around it.
        low, high = np.interp([(1 - level) / 2, (1 + level) / 2], share.cumsum() - share / 2, lines)
        return float(self.share @ self.slope), float(low), float(high)

    def _variances(self, effect: Effect, variance: Array, cells: Indices | slice) -> Array:
        return variance[cells, None] * np.exp(self.slope[cells, None] * effect.log_N)

    def draw(self, rng: np.random.Generator, resamples: int) -> Array:
        """Noise of log loss (resamples, n): that of another ladder of the same design."""
        cell, level = self._levels(rng, resamples)
        noise = rng.normal(size=(resamples, self.fit.n)) / np.sqrt(weights_of(self.fit.points))
        for effect, variance, shared in (
            (self.runs, self.run, self.run_shared),
            (self.tilts, self.tilt, self.tilt_shared),
        ):
            if variance.any():
                known = self._variances(effect, variance, cell)
                noise += effect.drawn(rng, known, shared[cell])
        return level[:, None] * noise

    def _levels(self, rng: np.random.Generator, resamples: int) -> tuple[Indices, Array]:
        """Cells of the grid (resamples,), and standard deviations of a point of weight 1."""
        cell = rng.choice(len(self.share), size=resamples, p=self.share)
        return cell, np.sqrt(self.squares[cell] / rng.chisquare(self.dof, resamples))

    def new_run_sds(
        self, rng: np.random.Generator, resamples: int, N: float, from_middle: float, weight: float
    ) -> Array:
        """Standard deviations (resamples,) of the log loss of a run that is not in the ladder.

        Run effect, tilt and point noise together, at N parameters; `from_middle` is log D less the
        mean log D of the run's points, `weight` the point's. A generator in the state that `draw`
        was given yields the variances of the same resamples.
        """
        cell, level = self._levels(rng, resamples)
        log_N = np.log(self.fit.points["N"].to_numpy(float))
        # Beyond the sizes measured noise may grow as it did inside, and is not taken to vanish.
        nearest = np.clip(np.log(N), log_N.min(), log_N.max())
        by_size = np.maximum(
            *(
                np.exp(self.slope[cell] * (place - mean_log_N(self.fit.points)))
                for place in (np.log(N), nearest)
            )
        )
        effects = (self.run[cell] + self.tilt[cell] * from_middle**2) * by_size
        return np.asarray(level * np.sqrt(1 / weight + effects))

    @cached_property
    def weights(self) -> Array:
        """One over the posterior mean variance of a point at its N (n,), their geometric mean 1."""
        if not self.slope.any():
            return np.ones(self.fit.n)
        level = self.share * self.squares
        run = (level @ self._variances(self.runs, self.run, slice(None)))[self.runs.level]
        variance = level.sum() + run
        return np.asarray(np.exp(np.log(variance).mean()) / variance)

    @cached_property
    def best(self) -> Fit:
        """The fit that values are read off: least squares weighted by `weights`.

        A robust fit, or one whose points have weights of their own, stays as it is. What certifies
        the optimum (`starts`, `gradient_norm`) remains that of the unweighted one, in `least`.
        """
        fit = self.fit
        robust, weighted = fit.loss != "squares", np.ptp(weights_of(fit.points)) > 0
        if robust or weighted or not self.slope.any():
            return fit
        log_loss = np.log(fit.points["loss"].to_numpy(float))
        residual, blocks, mixes = fit.residual.copy(), [], dict(fit.mixes)
        for block in fit.blocks:
            own, weight = log_loss[block.rows], self.weights[block.rows]
            polished = polish(block.problem, block.theta[None].copy(), own[None], weight[None])
            theta = polished.theta[0]
            low, high = block.problem.bounds(own)
            free = (theta > low) & (theta < high)
            blocks.append(replace(block, theta=theta, free=free, weight=weight))
            residual[block.rows] = np.log(block.problem.predict(theta[None])[0][0]) - own
            mixes |= {name: moved(fit.mixes[name], blocks[-1], residual) for name in block.mixes}
        return replace(fit, blocks=tuple(blocks), mixes=mixes, residual=residual, least=fit)

    def refitted(self, noise: Array) -> list[Array]:
        """Parameters (R, p) of each block, fitted to `best` with `noise` (R, n) added."""
        found = []
        for block in self.best.blocks:
            samples = np.log(block.problem.predict(block.theta[None])[0]) + noise[:, block.rows]
            start = np.tile(block.theta, (len(noise), 1))
            weight = np.tile(block.weight, (len(noise), 1))
            found.append(polish(block.problem, start, samples, weight).theta)
        return found


def tangent(fit: Fit) -> Array:
    """Orthonormal basis (n, p) of the directions in which the law's coefficients move log loss.

    Those that are held move nothing. One at a bound may leave it with other noise, and does.
    """
    parts = []
    for block in fit.blocks:
        jacobian = block.problem.jacobian(block.theta[None])[0]
        held = [block.problem.place[name] for name in block.problem.pinned]
        jacobian = np.delete(jacobian, np.concatenate(held) if held else [], axis=1)
        jacobian = jacobian / np.maximum(np.linalg.norm(jacobian, axis=0), 1e-300)
        basis, size, _ = np.linalg.svd(jacobian, full_matrices=False)
        basis = basis[:, size > NEGLIGIBLE * size[0]]
        part = np.zeros((fit.n, basis.shape[1]))
        part[block.rows] = basis
        parts.append(part)
    return np.hstack(parts)


def mean_log_N(points: pd.DataFrame) -> float:
    """Mean over runs of log N: where variances that go with N have the value of their cell."""
    log_N = np.log(points["N"].to_numpy(float))
    return float(np.unique(np.column_stack([cluster_ids(points), log_N]), axis=0)[:, 1].mean())


def effects_of(points: pd.DataFrame) -> tuple[Effect, Effect]:
    """The effects of runs and of tilts, a tilt for each mix at each size."""
    runs, batches = cluster_ids(points), cluster_ids(points, paired=True)
    curves = np.asarray(points.groupby(["mix", "size"], sort=False).ngroup(), np.intp)
    sizes = np.asarray(pd.factorize(points["size"])[0], np.intp)
    log_D, weight = np.log(points["D"].to_numpy(float)), weights_of(points)
    # Centred by weight, so that a run and its tilt stay orthogonal.
    within = log_D - (np.bincount(runs, weight * log_D) / np.bincount(runs, weight))[runs]
    log_N = np.log(points["N"].to_numpy(float))
    centre = mean_log_N(points)

    def effect(level: Indices, value: Array, family: Indices) -> Effect:
        count = np.bincount(level)
        owner = np.zeros(len(count), np.intp)
        owner[level] = family
        # One N for a family, so that its levels have one variance.
        mean = np.bincount(family, log_N) / np.bincount(family)
        return Effect(level, value, owner, mean[owner] - centre)

    return effect(runs, np.ones(len(points)), batches), effect(curves, within, sizes)


def mixed_model(fit: Fit, slope_mean: float = 0.0) -> MixedModel:
    """Estimate the noise of a fit. `slope_mean` displaces the prior of the slope in N."""
    runs, tilts = effects_of(fit.points)
    # Scaled so that every point's own noise has one variance.
    root = np.sqrt(weights_of(fit.points))
    seen_runs, seen_tilts = (replace(one, value=one.value * root) for one in (runs, tilts))
    columns = np.column_stack([np.linalg.qr(tangent(fit) * root[:, None])[0], -fit.residual * root])
    dof = max(fit.n - columns.shape[1] + 1, 1)
    most = int(np.bincount(runs.level).max())
    has_tilts = most > 2 and bool(seen_tilts.size.max() > 1e-9)
    sizes = fit.points["size"].nunique()
    # The axes of the grid: their ends, equal where there is nothing to vary.
    ends = np.array(
        [
            (0.0, RUN_REACH) if most > 1 else (np.log1p(ALONE), np.log1p(ALONE)),
            (-SHARED_REACH, SHARED_REACH) if runs.largest_family > 1 else (0.0, 0.0),
            (0.0, TILT_REACH) if has_tilts else (0.0, 0.0),
            (0.0, TILT_SHARED_REACH) if has_tilts and tilts.largest_family > 1 else (0.0, 0.0),
            (-SLOPE_REACH, SLOPE_REACH) if sizes >= LEAST_SIZES_FOR_SLOPE else (0.0, 0.0),
        ]
    )
    cells, squares, share = on_grid(
        [(columns, seen_runs, seen_tilts)], ends, dof, most, slope_mean, (COARSE, FINE)
    )
    run, run_shared, tilt, tilt_shared, slope = cells
    return MixedModel(
        fit, runs, tilts, share, run, run_shared, tilt, tilt_shared, slope, squares, dof
    )


def on_grid(
    parts: list[Part],
    ends: Array,
    dof: int,
    most: int,
    slope_mean: float,
    lines: tuple[tuple[int, ...], tuple[int, ...]],
) -> tuple[tuple[Array, ...], Array, Array]:
    """Cells of the grid (run, run shared, tilt, tilt shared, slope), their generalised residual
    sums of squares and their posterior probabilities, each (G,).

    `parts` share no run and no batches; `ends` (5, 2) are those of the axes, equal where there is
    nothing to vary; `most` points has a run; `lines` of each axis, over all of it and where mass
    is.
    """
    for number in range(MOST_PASSES):
        axes = [
            np.linspace(low, high, count) if high > low else np.array([low])
            for (low, high), count in zip(ends, lines[bool(number)], strict=True)
        ]
        cells, squares, log_share = _posterior(parts, axes, dof, most, slope_mean)
        share = np.exp(log_share - log_share.max())
        share /= share.sum()
        ends, spanned = _where_mass_is(share.reshape([len(axis) for axis in axes]), axes)
        if number and spanned >= LEAST_LINES:
            break
    return cells, squares, share


def _where_mass_is(share: Array, axes: list[Array]) -> tuple[Array, int]:
    """Ends of each axis's part with mass, a grid line beyond it on either side, (axes, 2); and the
    fewest lines with mass on an axis of several."""
    ends, spanned = [], []
    for place, axis in enumerate(axes):
        mass = share.sum(tuple(i for i in range(len(axes)) if i != place))
        kept = np.flatnonzero(mass > KEPT * mass.max())
        ends.append((axis[max(kept[0] - 1, 0)], axis[min(kept[-1] + 1, len(axis) - 1)]))
        if len(axis) > 1:
            spanned.append(len(kept))
    return np.array(ends), min(spanned, default=LEAST_LINES)


def _correlation(log_ratio: Array, mixes: int) -> Array:
    """Correlation of the effects of `mixes` from the log of e^x = (1 + (m - 1) r) / (1 - r)."""
    return np.expm1(log_ratio) / (np.exp(log_ratio) + mixes - 1)


def _posterior(
    parts: list[Part], axes: list[Array], dof: int, most: int, slope_mean: float
) -> tuple[tuple[Array, ...], Array, Array]:
    """Cells of the grid (run, run shared, tilt, tilt shared, slope), each (G,), their generalised
    residual sums of squares (G,) and log posterior (G,).

    Runs and tilts are orthogonal within a run, so what each takes from the sums of squares adds.
    """
    run_axis, run_ratio, tilt_axis, tilt_ratio, slopes = axes
    mixes = max(runs.largest_family for _, runs, _ in parts)
    u, w = (one.ravel() for one in np.meshgrid(run_axis, run_ratio, indexing="ij"))
    t, v = (one.ravel() for one in np.meshgrid(tilt_axis, tilt_ratio, indexing="ij"))
    tilt_size = max(tilts.size.max() for _, _, tilts in parts)
    run, tilt = np.expm1(u) / most, np.expm1(t) / max(tilt_size, 1e-300)
    run_shared = _correlation(w, mixes)
    tilt_shared = _correlation(v, max(tilts.largest_family for _, _, tilts in parts))
    prior_run = np.zeros_like(u)
    if mixes > 1:
        # Uniform in the correlation, by its Jacobian.
        prior_run += w - 2 * np.log(np.exp(w) + mixes - 1)
    if len(run_axis) > 1:
        prior_run -= np.log1p(run / RUN_TO_POINT**2)
    moments = [
        (columns.T @ columns, runs, runs.sums(columns), tilts, tilts.sums(columns))
        for columns, runs, tilts in parts
    ]

    def along(slope: float) -> tuple[Array, Array]:
        squares = log_det = np.zeros(len(run) * len(tilt))
        for total, runs, by_run, tilts, by_tilt in moments:
            p = len(total) - 1
            taken, of_effects = runs.subtracted(
                by_run, run[:, None] * np.exp(slope * runs.log_N), run_shared
            )
            sums = (total - taken)[:, None]
            of_effects = of_effects[:, None]
            if tilt.any():
                taken, extra = tilts.subtracted(
                    by_tilt, tilt[:, None] * np.exp(slope * tilts.log_N), tilt_shared
                )
                sums, of_effects = sums - taken, of_effects + extra
            sums = sums.reshape(-1, p + 1, p + 1)
            factor = np.linalg.cholesky(sums[:, :p, :p])
            image = np.linalg.solve(factor, sums[:, :p, p:])[:, :, 0]
            squares = squares + (sums[:, p, p] - (image**2).sum(1))
            of_law = 2 * np.log(np.einsum("gii->gi", factor)).sum(1)
            log_det = log_det + (of_effects.ravel() + of_law)
        squares = np.maximum(squares, 1e-30)
        prior = np.repeat(prior_run, len(t)) - ((slope - slope_mean) / SLOPE_SD) ** 2 / 2
        return squares, prior - log_det / 2 - dof / 2 * np.log(squares)

    found = [along(float(slope)) for slope in slopes]
    # The slope varies slowest in `found` and fastest in the axes' order.
    squares, log_share = (
        np.stack([one[part] for one in found], axis=-1).ravel() for part in (0, 1)
    )
    return tuple(_cells(run, run_shared, tilt, tilt_shared, slopes)), squares, log_share


def _cells(
    run: Array, run_shared: Array, tilt: Array, tilt_shared: Array, slopes: Array
) -> Iterator[Array]:
    """The cells' values in the order of the axes, each (G,)."""
    shape = (len(run), len(tilt), len(slopes))
    for values, place in ((run, 0), (run_shared, 0), (tilt, 1), (tilt_shared, 1), (slopes, 2)):
        index = [None, None, None]
        index[place] = slice(None)  # type: ignore[call-overload]
        yield np.broadcast_to(values[tuple(index)], shape).ravel()
