"""The noise of runs and of points as seeds show it, whatever the law.

Runs of one mix and size that differ in their seed alone have one expected loss at each budget. What
is left when that is taken away holds noise and nothing of a law's misfit. The variances are those
of `analysis.stats.mixed`, from the same restricted likelihood with the same priors; they are one
for all sizes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from analysis.stats.fit import weights_of
from analysis.stats.laws import Array, Indices
from analysis.stats.mixed import ALONE, RUN_REACH, SHARED_REACH, effects_of, on_grid
from analysis.stats.noise import NO_SCATTER, cluster_ids

SAME_SIZE = 1.02
"""N within this factor of a size's smallest is of that size.

The controlled protocol matches N within 0.5 %; steps of published ladders are 3 % or more."""
# Grid lines of (run, run shared, tilt, tilt shared, slope). Two axes vary, so that lines as close
# as this cost little, and the ends of an interval need them.
LINES = (13, 9, 1, 1, 1), (41, 31, 1, 1, 1)


@dataclass(frozen=True)
class SeedNoise:
    """Draws of the noise of log loss given the seeds of a ladder, each (draws,).

    `point_sd` is NaN where each run has one point, whose noise is then in `run_sd`; `shared`, the
    correlation of runs of two mixes on the same batches, where no seeds tell it. `repeats` is the
    number of runs beyond the first of a mix and size, `paired` the same of batches that several
    mixes saw.
    """

    run_sd: Array
    point_sd: Array
    shared: Array
    repeats: int
    paired: int


def size_places(N: Array) -> Indices:
    """The place of each N's size among all, from small to large, (n,); see `SAME_SIZE`."""
    values, inverse = np.unique(N, return_inverse=True)
    places, smallest, place = np.zeros(len(values), np.intp), 0.0, -1
    for i, value in enumerate(values):
        if value > smallest * SAME_SIZE:
            smallest, place = value, place + 1
        places[i] = place
    return places[inverse]


def repeated(points: pd.DataFrame) -> pd.DataFrame:
    """The points of budgets that two runs or more of one mix and size have."""
    cells = [points["mix"], points["size"], points["D"]]
    runs = pd.Series(cluster_ids(points), points.index).groupby(cells).transform("nunique")
    return points[runs > 1].reset_index(drop=True)


def seed_noise_draws(points: pd.DataFrame, draws: int = 2000) -> SeedNoise | None:
    """The noise that repeated seeds show (columns mix, size, run, seed, N, D, loss).

    None where no mix and size has two runs with a budget in common, or all such runs are copies.
    """
    points = repeated(points)
    if points.empty:
        return None
    log_loss = np.log(points["loss"].to_numpy(float))
    cells = points.groupby(["mix", "size", "D"]).ngroup().to_numpy()
    residual = log_loss - (np.bincount(cells, log_loss) / np.bincount(cells))[cells]
    if float(np.sqrt((residual**2).mean())) < NO_SCATTER:
        return None
    root = np.sqrt(weights_of(points))
    parts, paired = [], 0
    # Sizes share neither runs nor batches.
    for rows in points.groupby("size").indices.values():
        runs, tilts = effects_of(points.iloc[rows])
        runs = replace(runs, value=runs.value * root[rows])
        means = (cells[rows, None] == np.unique(cells[rows])) * root[rows, None]
        basis = means / np.linalg.norm(means, axis=0)
        parts.append((np.column_stack([basis, residual[rows] * root[rows]]), runs, tilts))
        paired += max(int((np.bincount(runs.family) > 1).sum()) - 1, 0)
    most = int(np.bincount(cluster_ids(points)).max())
    run_ends = (0.0, RUN_REACH) if most > 1 else (np.log1p(ALONE),) * 2
    shared_ends = (-SHARED_REACH, SHARED_REACH) if paired else (0.0, 0.0)
    ends = np.array([run_ends, shared_ends, (0.0, 0.0), (0.0, 0.0), (0.0, 0.0)])
    dof = len(points) - len(np.unique(cells))
    (run, run_shared, *_), squares, share = on_grid(parts, ends, dof, most, 0.0, LINES)
    rng = np.random.default_rng(0)
    cell = rng.choice(len(share), size=draws, p=share)
    point_sd = np.sqrt(squares[cell] / rng.chisquare(dof, draws))
    return SeedNoise(
        run_sd=point_sd * np.sqrt(run[cell]),
        point_sd=point_sd if most > 1 else np.full(draws, np.nan),
        shared=run_shared[cell] if paired else np.full(draws, np.nan),
        repeats=int((points.groupby(["mix", "size"])["run"].nunique() - 1).sum()),
        paired=paired,
    )
