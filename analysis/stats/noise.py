"""What the residuals of a fit say about the noise: between runs, within them, between seeds.

A fit absorbs part of the noise, the more the fewer runs there are; everything here gives it back by
the fit's own projection.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.stats.fit import Fit
from analysis.stats.laws import Array, Indices

# Seeds whose log losses differ by less are copies of one another, or were not trained.
NO_SCATTER = 1e-9


def cluster_ids(points: pd.DataFrame, paired: bool = False) -> Indices:
    """For each point, the index of its run, or of the runs of all mixes that saw its batches, (n,).

    A run is of one mix and size, whatever else has its name. Runs of one size and seed saw the same
    batches. Where a mix has several of them, or no seeds were given, nothing says which run of
    another mix saw the same, and each stands alone.
    """
    names = [name for name in ("mix", "size", "run") if name in points]
    runs = points.groupby(names, sort=False).ngroup().to_numpy()
    if not paired:
        return np.asarray(runs, np.intp)
    pair = points.groupby(["size", "seed"], sort=False).ngroup()
    repeats = pd.Series(runs, points.index).groupby([points["mix"], pair]).transform("nunique")
    alone = (repeats.groupby(pair).transform("max") > 1) | bool(points.attrs.get("seeds_assumed"))
    family = np.where(alone.to_numpy(), -1 - runs, pair.to_numpy())
    return np.asarray(pd.factorize(family)[0], np.intp)


def hat_matrix(fit: Fit) -> Array:
    """Projection onto what the fit can absorb, (n, n), linearised at its optimum.

    A parameter at a bound absorbs nothing.
    """
    hat = np.zeros((fit.n, fit.n))
    for block in fit.blocks:
        jacobian = block.problem.jacobian(block.theta[None])[0][:, block.free]
        basis = np.linalg.svd(jacobian / np.linalg.norm(jacobian, axis=0), full_matrices=False)[0]
        hat[np.ix_(block.rows, block.rows)] = basis @ basis.T
    return hat


def noise_components(residual: Array, hat: Array, clusters: Indices) -> tuple[float, float, float]:
    """Variances of a point's own noise and of a cluster's, and the latter's degrees of freedom.

    Residuals are (I - H) times the noise, so each sum of squares is a known mix of the two
    variances; the two equations are solved, a negative variance being none (Henderson's method III;
    degrees of freedom after Satterthwaite 1946).
    """
    n = len(residual)
    together = (clusters[:, None] == clusters).astype(float)
    forms = [np.eye(n), together]
    left = np.eye(n) - hat
    seen = [left @ form for form in forms]
    squares = np.array([residual @ form @ residual for form in forms])
    expected = np.array([[np.sum(a * b.T) for b in seen] for a in seen])
    one_each = clusters.max() + 1 == n
    if one_each or abs(np.linalg.det(expected / expected.max())) < 1e-12:
        point, run = squares[0] / max(expected[0, 0], 1e-300), 0.0
    else:
        point, run = np.linalg.solve(expected, squares)
        if run < 0:
            point, run = squares[0] / expected[0, 0], 0.0
        elif point < 0:
            point, run = 0.0, squares[1] / expected[1, 1]
    covariance = left @ (point * forms[0] + run * forms[1]) @ left
    product = covariance @ forms[1]
    dof = np.trace(product) ** 2 / max(np.sum(product * product.T), 1e-300)
    return float(point), float(run), float(max(dof, 0.5))


def inflate(residual: Array, hat: Array, clusters: Indices) -> Array:
    """Residuals of each cluster times (I - H_cc)^(-1/2), the bias-reduced CR2 correction.

    Bell & McCaffrey 2002: least squares pulls the law towards each run, the more so the fewer runs
    there are, and residuals are smaller than the noise by as much.
    """
    out = residual.copy()
    for cluster in range(clusters.max() + 1):
        own = np.flatnonzero(clusters == cluster)
        values, vectors = np.linalg.eigh(np.eye(len(own)) - hat[np.ix_(own, own)])
        # A direction that the fit absorbs wholly shows no residual, and none can be made of it.
        scale = 1 / np.sqrt(np.maximum(values, 0.05))
        out[own] = vectors @ (scale * (vectors.T @ residual[own]))
    return out


@dataclass(frozen=True)
class Noise:
    """Scatter of one mix's loss, relative: between seeds at equal size and D, and about the law.

    `seed_sd` is NaN where no size has two seeds. `seed_dof` counts repeated runs: points of one run
    move together, and know its scatter once. `lack_of_fit` is the rms residual of seed means.
    """

    mix: str
    seed_sd: float
    seed_dof: int
    lack_of_fit: float


def seed_noise(fit: Fit) -> list[Noise]:
    """Seed-to-seed standard deviation of log loss beside the lack of fit, mix by mix."""
    table = fit.points.assign(residual=fit.residual, log_loss=np.log(fit.points["loss"]))
    found = []
    for mix in fit.mixes:
        own = table[table["mix"] == mix]
        cells = own.groupby(["size", "D"])
        spread, count = cells["log_loss"].var(ddof=1), cells["log_loss"].count()
        pairs = int((count - 1).sum())
        sd = float(np.sqrt((spread.fillna(0) * (count - 1)).sum() / max(pairs, 1)))
        dof = int((own.groupby("size")["run"].nunique() - 1).sum()) if pairs else 0
        sd = sd if dof else float("nan")
        lack = float(np.sqrt((cells["residual"].mean() ** 2).mean()))
        found.append(Noise(mix, sd, dof, lack))
    return found


@dataclass(frozen=True)
class LackOfFit:
    """F test of the law against seeds: what seed means leave over, beside the scatter of seeds.

    `scatter` and `leftover` are standard deviations of log loss of one run: between seeds, and as
    it would have to be for the residuals of seed means to be chance.
    """

    F: float
    p: float
    scatter: float
    leftover: float

    @property
    def found(self) -> bool:
        """Whether the law fails to describe the points (5 % level)."""
        return self.p < 0.05


def lack_of_fit(fit: Fit) -> LackOfFit | None:
    """Test for lack of fit by pure error (Draper & Smith 1998, 2.1); None without repeated seeds.

    Points of one run move together, so the scatter of seeds has no more degrees of freedom than
    there are repeated runs: fewer than points would give, which errs towards finding nothing.
    Seeds of equal losses are no measure of anything, and have no test.
    """
    from scipy.stats import f as f_distribution

    table = fit.points.assign(residual=fit.residual)
    cells = table.groupby(["mix", "size", "D"])["residual"]
    count = cells.count()
    dof_lack = len(count) - fit.n_parameters
    groups = table.groupby(["mix", "size"])["run"].nunique()
    dof_seeds = int((groups - 1).sum())
    repeats = int((count - 1).sum())
    if dof_lack < 1 or dof_seeds < 1 or repeats < 1:
        return None
    scatter = float(((table["residual"] - cells.transform("mean")) ** 2).sum() / repeats)
    leftover = float((count * cells.mean() ** 2).sum() / dof_lack)
    if scatter < NO_SCATTER**2:
        return None
    F = leftover / scatter
    p = float(f_distribution.sf(F, dof_lack, dof_seeds))
    return LackOfFit(F, p, float(np.sqrt(scatter)), float(np.sqrt(leftover)))
