"""What speaks against comparing the mixes of a table of points as they stand: units, runs."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pandas as pd

# A mix in bits beside one in nats lies off by 1.44, less or more by what they truly differ. No mix
# of one ladder is better than another by a fifth of the loss.
AS_BITS = (1.2, 1.75)
# No ladder spreads its mixes this far apart in tokens per parameter.
UNLIKE = 300.0
# Fewer parameters train no language model, and fewer tokens no law.
LEAST = 1000.0
# Tokens per parameter that nobody trains to.
FEWEST = 0.1
# FLOPs differ from 6 N D by attention, by the head and by conventions, and not by more.
APART_FLOPS = 30.0
# Mixes of one size need not have one N, and nominal sizes do not.
UNLIKE_N = 1.02


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
    for name in points.attrs.get("unnamed_treatments", ()):
        yield (
            f"Rows of one mix, N and D differ in the column {name}, and count as repetitions of "
            f"one training: where {name} numbers repetitions, columns=seed={name} says so; where "
            f"it was varied on purpose, treatments={name} compares the mixes at each of its values."
        )
    for what in points.attrs.get("dropped", ()):
        yield f"Left out: {what}."
    yield from _seeds(points)
    yield from _sizes(points)
    yield from _units(points)


def _seeds(points: pd.DataFrame) -> Iterator[str]:
    cells = points.groupby(["mix", "size", "D"])
    equal = (cells["run"].transform("nunique") > 1) & (cells["loss"].transform("nunique") == 1)
    if equal.any():
        own = points[equal].iloc[0]
        yield (
            f"Runs of mix={own['mix']} at size={own['size']} have the same loss to the last digit: "
            "copied rows are no seeds, and narrow every interval."
        )


def _sizes(points: pd.DataFrame) -> Iterator[str]:
    N = points.groupby(["size", "mix"])["N"].mean()
    for size, own in N.groupby("size"):
        if own.max() > UNLIKE_N * own.min():
            mixes = own.index.get_level_values("mix")
            words = ", ".join(f"{value:.4g} ({mix})" for mix, value in zip(mixes, own, strict=True))
            yield (
                f"size={size} stands for N = {words}: what is read off without a law compares "
                "mixes at that size, so at different N."
            )


def _units(points: pd.DataFrame) -> Iterator[str]:
    if points.attrs.get("compute_only"):
        return
    yield from _counts(points)
    rising = [str(mix) for mix, own in points.groupby("mix", sort=False) if _rises(own)]
    for mix in rising:
        yield f"The loss of mix={mix} does not fall with D: no law and no saving describes it."
    if points["mix"].nunique() < 2 or rising:
        return
    levels = _levels_of_loss(points)
    mix = max(levels, key=lambda one: abs(math.log(levels[one])))
    factor = levels[mix]
    if AS_BITS[0] < max(factor, 1 / factor) < AS_BITS[1]:
        unit, other = ("bits", "nats") if factor > 1 else ("nats", "bits")
        yield (
            f"The loss of mix={mix} lies {factor:.2f} times that of the others at equal N and D, "
            f"as if it were counted in {unit} and theirs in {other} (ln 2 is 0.69). All must be "
            "nats per token."
        )


def _counts(points: pd.DataFrame) -> Iterator[str]:
    for name, what in (("N", "parameters"), ("D", "tokens")):
        if (points[name] < LEAST).any():
            small = sorted(set(points.loc[points[name] < LEAST, "mix"]))
            yield (
                f"{name} of mix={', '.join(small)} goes down to {points[name].min():g}: it is "
                f"counted in single {what}, and so few look like thousands, millions or billions."
            )
    ratio = (points["D"] / points["N"]).groupby(points["mix"]).median()
    if (ratio < FEWEST).all():
        yield (
            f"D is {ratio.max():.2g} times N: tokens per parameter are seldom below {FEWEST:g}. "
            "Are N and D in each other's column?"
        )
    C = points["C"] if "C" in points else pd.Series(np.nan, points.index)
    flops = (C / (6 * points["N"] * points["D"])).groupby(points["mix"]).median()
    for mix, factor in flops.dropna().items():
        if not 1 / APART_FLOPS < factor < APART_FLOPS:
            yield f"C of mix={mix} is {factor:.2g} times 6 N D: C is counted in single FLOPs."
    if len(ratio) < 2:
        return
    logs = {str(mix): math.log(value) for mix, value in ratio.items()}
    # Of two mixes neither is the odd one; the second is named.
    middle = float(np.median([*logs.values()])) if len(logs) > 2 else next(iter(logs.values()))
    mix = max(logs, key=lambda one: abs(logs[one] - middle))
    away = logs[mix] - middle
    if abs(away) > math.log(UNLIKE):
        yield (
            f"mix={mix} has {math.exp(abs(away)):.0f} times {'more' if away > 0 else 'fewer'} "
            "tokens per parameter than the others: an N or D looks counted in another unit."
        )


def _rises(own: pd.DataFrame) -> bool:
    """Whether losses of one mix do not fall with D within its runs."""
    logs = pd.DataFrame({name: np.log(own[name]) for name in ("D", "loss")})
    within = logs - logs.groupby(own["run"]).transform("mean")
    spread = float((within["D"] ** 2).sum())
    return spread > 0 and float((within["D"] * within["loss"]).sum()) / spread > -1e-9


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
