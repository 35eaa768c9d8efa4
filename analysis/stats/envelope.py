"""The lower envelope of training curves: Hoffmann et al. 2022 (arXiv 2203.15556), approach 1.

Each run's loss is a curve over training FLOPs, interpolated in logs between its points. At each of
many budgets C the run of least loss says the best N, and how far it has come by then the best D;
N* = G_N C^a and D* = G_D C^b are fitted to these in logs. Shapes: m runs, B budgets, R resamples.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from ablations.records import SettingError
from analysis.stats.isoflop_draws import IsoFlopDraws, lines
from analysis.stats.laws import Array, Indices
from analysis.stats.noise import cluster_ids
from analysis.stats.rays import flops
from analysis.stats.seeds import size_places
from analysis.stats.solver import Mask

# Logarithmically spaced budgets (Hoffmann et al. 2022, 3.1).
BUDGETS = 1500


@dataclass(frozen=True)
class Curves:
    """Curves of one mix over budgets C (B,): log loss and log D, (m, B), NaN outside of a run.

    Runs go from small to large: N (m,), and `size` (m,), the place of their size.
    """

    C: Array
    N: Array
    size: Indices
    log_loss: Array
    log_D: Array


@dataclass(frozen=True)
class Envelope:
    """N* = G_N C^a and D* = G_D C^b of one mix, through the least of its curves.

    At each budget C (B,): `run`, the one of least loss among the curves, its N, D and loss, and
    whether it is `inside`, of a size between the smallest and the largest whose curve reaches this
    budget. The fit is to these.
    """

    curves: Curves
    C: Array
    run: Indices
    N: Array
    D: Array
    loss: Array
    inside: Mask
    a: float
    G_N: float
    b: float
    G_D: float

    def optimum(self, C: Array | float) -> tuple[Array, Array]:
        """N* (parameters) and D* (tokens) at C FLOPs."""
        return np.asarray(self.G_N * C**self.a), np.asarray(self.G_D * C**self.b)


def fit_envelope(points: pd.DataFrame) -> dict[str, Envelope]:
    """The envelope of each mix, and the exponents through it.

    A budget counts where three or more sizes' curves reach it and the least loss is neither the
    smallest's nor the largest's: there a size beyond those might be better still. Raises
    SettingError for a mix of less than two sizes, of runs with one point each, or without two best
    sizes at such budgets.
    """
    points = points.astype({"N": float, "D": float})
    found = {}
    for mix, mix_points in points.groupby("mix", sort=False):
        curves = _curves(mix_points, str(mix))
        best, inside = _least(curves, np.ones(len(curves.N), bool))
        if len(np.unique(curves.size[best[inside]])) < 2:
            raise SettingError(
                f"mix={mix} cannot be fitted by law=envelope: at no two budgets C, reached by the "
                "curves of three or more sizes, is the least loss of two different sizes that lie "
                "between others; train more sizes, or each for longer."
            )
        shown = np.isfinite(curves.log_loss).any(axis=0)
        at = np.flatnonzero(shown)
        log_C = np.log(curves.C)[None]
        log_N = np.where(inside, np.log(curves.N)[best], np.nan)
        log_D = np.where(inside, curves.log_D[best, np.arange(len(best))], np.nan)
        (a,), (log_G_N,) = lines(log_C, log_N[None])
        (b,), (log_G_D,) = lines(log_C, log_D[None])
        found[str(mix)] = Envelope(
            curves, curves.C[at], best[at], curves.N[best[at]], np.exp(curves.log_D[best[at], at]),
            np.exp(curves.log_loss[best[at], at]), inside[at],
            float(a), float(np.exp(log_G_N)), float(b), float(np.exp(log_G_D)),
        )  # fmt: skip
    return found


def draw_envelope(
    fits: dict[str, Envelope], resamples: int = 499, seed: int = 0
) -> dict[str, IsoFlopDraws]:
    """Refit each mix's envelope to `resamples` draws of its runs, with replacement.

    A run drawn twice has the same curve, so that a resample is an envelope of fewer runs. Each mix
    begins from `seed`.
    """
    draws = {}
    for mix, fitted in fits.items():
        curves = fitted.curves
        m, at = len(curves.N), np.arange(len(curves.C))
        rng = np.random.default_rng(seed)
        drawn = rng.multinomial(m, np.full(m, 1 / m), size=resamples) > 0
        log_N, log_D = np.full((2, resamples, len(curves.C)), np.nan)
        for row, runs in enumerate(drawn):
            best, inside = _least(curves, runs)
            if len(np.unique(curves.size[best[inside]])) < 2:
                continue
            log_N[row] = np.where(inside, np.log(curves.N)[best], np.nan)
            log_D[row] = np.where(inside, curves.log_D[best, at], np.nan)
        log_C = np.log(curves.C)[None]
        a, log_G_N = lines(log_C, log_N)
        b, log_G_D = lines(log_C, log_D)
        draws[mix] = IsoFlopDraws(a, log_G_N, b, log_G_D, log_N)
    return draws


def _curves(own: pd.DataFrame, mix: str) -> Curves:
    """The curves of a mix's runs that have two or more points."""
    own = own.assign(_C=flops(own))
    runs = [
        run.groupby("_C")[["N", "D", "loss"]].mean()
        for _, run in own.groupby(cluster_ids(own), sort=False)
        if run["_C"].nunique() > 1
    ]
    refused = f"mix={mix} cannot be fitted by law=envelope: "
    if not runs:
        raise SettingError(
            f"{refused}its runs have one point each, and the envelope is that of training curves; "
            "name the runs by a column run, evaluate each at several D, or fit law=isoflop."
        )
    N = np.array([run["N"].mean() for run in runs])
    order = np.argsort(N, kind="stable")
    runs, N = [runs[i] for i in order], N[order]
    size = size_places(N)
    if size[-1] < 1:
        raise SettingError(
            f"{refused}its curves are of one size, N = {N[0]:.4g}, and N* needs several; "
            "train other sizes."
        )
    C = np.geomspace(min(run.index[0] for run in runs), max(run.index[-1] for run in runs), BUDGETS)
    log_C = np.log(C)
    log_loss, log_D = np.full((2, len(runs), BUDGETS), np.nan)
    for row, run in enumerate(runs):
        seen = np.log(run.index.to_numpy(float))
        for curve, name in ((log_loss, "loss"), (log_D, "D")):
            known = np.log(run[name].to_numpy(float))
            curve[row] = np.interp(log_C, seen, known, left=np.nan, right=np.nan)
    return Curves(C, N, size, log_loss, log_D)


def _least(curves: Curves, runs: Mask) -> tuple[Indices, Mask]:
    """At each budget the run of least loss among `runs` (m,), and whether its size is inside."""
    there = np.isfinite(curves.log_loss) & runs[:, None]
    best = np.where(there, curves.log_loss, np.inf).argmin(axis=0)
    smallest = np.where(there, curves.size[:, None], len(curves.N)).min(axis=0)
    largest = np.where(there, curves.size[:, None], -1).max(axis=0)
    size = curves.size[best]
    return best, (smallest < size) & (size < largest)
