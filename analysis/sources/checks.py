"""What speaks against comparing the mixes of a table of points as they stand: units, runs."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pandas as pd

# Bits over nats. Mixes of one ladder differ by a few per cent, so this far off is another unit.
BITS = 1 / math.log(2)
NEAR = 0.06
# No ladder spreads its mixes this far apart in tokens per parameter.
UNLIKE = 300.0
# Fewer parameters than this train no language model: N is in thousands, millions or billions.
LEAST_N = 1000.0


def doubts(points: pd.DataFrame) -> Iterator[str]:
    """A sentence for each doubt about the points themselves, whatever is fitted to them."""
    if points.attrs.get("runs_assumed"):
        several = points.groupby("run")["D"].nunique()
        if (several > 1).any():
            yield (
                f"No column says which rows are one run: the {int(several.max())} budgets of a mix "
                "at one size count as checkpoints of one run, which share its luck. Where each was "
                "a training of its own, give a column run with a name for each."
            )
    for what in points.attrs.get("dropped", ()):
        yield f"Left out: {what}."
    yield from _units(points)


def _units(points: pd.DataFrame) -> Iterator[str]:
    if (points["N"] < LEAST_N).any() and not points.attrs.get("compute_only"):
        small = sorted(set(points.loc[points["N"] < LEAST_N, "mix"]))
        yield (
            f"N of mix={', '.join(small)} goes down to {points['N'].min():g}: N is counted in "
            "single parameters, and so few look like millions or billions of them."
        )
    if points["mix"].nunique() < 2:
        return
    ratio = pd.Series(np.log(points["D"] / points["N"])).groupby(points["mix"]).median()
    for mix, value in ratio.items():
        away = float(value - ratio.drop(mix).median())
        if abs(away) > math.log(UNLIKE) and abs(away) >= float(
            (ratio - ratio.median()).abs().max()
        ):
            yield (
                f"mix={mix} has {math.exp(abs(away)):.0f} times {'more' if away > 0 else 'fewer'} "
                "tokens per parameter than the others: its N or D looks counted in another unit."
            )
            return
    for mix, factor in _levels_of_loss(points).items():
        for unit, of in (("bits", BITS), ("nats", 1 / BITS)):
            if abs(math.log(factor / of)) < NEAR:
                other = "nats" if unit == "bits" else "bits"
                yield (
                    f"The loss of mix={mix} lies {factor:.2f} times that of the others at equal N "
                    f"and D, and ln 2 is 0.69: it looks counted in {unit}, theirs in {other}. All "
                    "must be nats per token."
                )
                if points["mix"].nunique() == 2:
                    return


def _levels_of_loss(points: pd.DataFrame) -> dict[str, float]:
    """Each mix's loss over that of the others, by a regression of log loss on log N and log D."""
    logs = np.log(points[["N", "D", "loss"]].to_numpy(float))
    found = {}
    for mix in dict.fromkeys(points["mix"]):
        own = (points["mix"] == mix).to_numpy(float)
        columns = np.column_stack([np.ones(len(logs)), own, logs[:, :2] - logs[:, :2].mean(0)])
        solved, _, rank, _ = np.linalg.lstsq(columns, logs[:, 2], rcond=None)
        if rank >= 2:
            found[str(mix)] = float(np.exp(solved[1]))
    return found
