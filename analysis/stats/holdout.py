"""Errors on points that a fit did not see: the largest size, and the largest budget of every run.

Signed, as a law that bends the wrong way is wrong on one side; beside each, the error of a straight
line in logs through the two nearest points that were kept, with nothing fitted.
"""

import numpy as np
import pandas as pd

from analysis.stats.fit import fit, lacking
from analysis.stats.laws import Array

COLUMNS = ["mix", "left_out", "size", "N", "D", "loss", "predicted", "error", "line", "line_error"]


def holdout(points: pd.DataFrame) -> pd.DataFrame:
    """Predictions of what was left out, each mix by its own law, over means of seeds.

    Columns: mix, left_out (`largest N` or `largest D`), size, N, D, loss, predicted, error
    (predicted over loss, less 1), line, line_error (the same without a fit; NaN where fewer than
    two points were kept beside it). A mix that cannot be fitted without them has no rows.
    """
    rows = []
    for mix, own in points.groupby("mix", sort=False):
        largest = own["N"].groupby(own["size"]).mean().idxmax()
        last = own["D"] >= own.groupby("run")["D"].transform("max")
        for label, out in (("largest N", own["size"] == largest), ("largest D", last)):
            kept = own[~out]
            if out.all() or lacking(kept):
                continue
            law = fit(kept, "free", "squares").mixes[str(mix)].law
            line = _line_in_N if label == "largest N" else _line_in_D
            for _, cell in own[out].groupby(["size", "D"]):
                size, D = str(cell["size"].iloc[0]), float(cell["D"].iloc[0])
                N, measured = float(cell["N"].mean()), float(np.exp(np.log(cell["loss"]).mean()))
                guess = line(kept, size, N, D)
                predicted = float(law.loss(N, D))
                rows.append(
                    (mix, label, size, N, D, measured, predicted, predicted / measured - 1,
                     guess, guess / measured - 1)
                )  # fmt: skip
    return pd.DataFrame(rows, columns=COLUMNS)


def _line_in_D(kept: pd.DataFrame, size: str, _N: float, D: float) -> float:
    """Carried on from a size's two largest budgets that are left."""
    own = kept[kept["size"] == size]
    logs = np.log(own["loss"]).groupby(own["D"]).mean()
    return _carried_on(np.log(logs.index.to_numpy(float)), logs.to_numpy(), np.log(D))


def _line_in_N(kept: pd.DataFrame, _size: str, N: float, D: float) -> float:
    """Carried on from the two largest sizes left, each read at the same tokens per parameter."""
    sizes, losses = [], []
    for _, own in kept.groupby("size"):
        logs = np.log(own["loss"]).groupby(np.log(own["D"] / own["N"])).mean()
        sizes.append(float(np.log(own["N"].mean())))
        losses.append(float(np.interp(np.log(D / N), logs.index.to_numpy(float), logs.to_numpy())))
    return _carried_on(np.array(sizes), np.array(losses), np.log(N))


def _carried_on(x: Array, y: Array, at: float) -> float:
    if len(x) < 2:
        return float("nan")
    first, second = np.argsort(x)[-2:]
    slope = (y[second] - y[first]) / (x[second] - x[first])
    return float(np.exp(y[second] + slope * (at - x[second])))
