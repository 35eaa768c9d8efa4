"""What speaks against comparing the mixes of a table of points as they stand: units, runs."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator

import numpy as np
import pandas as pd

from ablations.confounds import EQUAL
from analysis.stats.seeds import repeated
from analysis.study.caveats import Caveat, left_out, listed, ranked
from models.format import count, percent

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
# Sentences of one kind that are listed.
MOST_ALIKE = 6
# Values of N this close are one number, written or read off a figure twice.
ROUNDING = 1e-5


def doubts(points: pd.DataFrame) -> list[Caveat]:
    """The doubts about the points themselves, whatever is fitted to them, the worst first."""
    return ranked(
        [
            *_as_given(points),
            *left_out(points.attrs.get("dropped", ())),
            *_seeds(points),
            *merged(points, points["size"]),
            *_sizes(points),
            *_units(points),
        ]
    )


def _as_given(points: pd.DataFrame) -> Iterator[Caveat]:
    """What had to be assumed, as no column says it."""
    if points.attrs.get("runs_assumed"):
        several = points.groupby("run")["D"].nunique()
        if (several > 1).any():
            yield Caveat(
                "one run",
                f"No column says which rows are one run: the {int(several.max())} budgets of a mix "
                "at one size count as checkpoints of one run.",
                (
                    "Checkpoints of one run share its luck; where each was a training of its own, "
                    "give a column run with a name for each.",
                ),
            )
    for name in points.attrs.get("unnamed_treatments", ()):
        yield Caveat(
            "unnamed",
            f"Rows of one mix, N and D differ in the column {name}, and count as repetitions of "
            "one training.",
            (
                f"Where {name} numbers repetitions, columns=seed={name} says so; where it was "
                f"varied on purpose, treatments={name} compares the mixes at each of its values.",
            ),
        )


def _seeds(points: pd.DataFrame) -> Iterator[Caveat]:
    cells = points.groupby(["mix", "size", "D"])
    equal = (cells["run"].transform("nunique") > 1) & (cells["loss"].transform("nunique") == 1)
    if equal.any():
        own = points[equal].iloc[0]
        yield Caveat(
            "copies",
            f"Runs of mix={own['mix']} at size={own['size']} have the same loss to the last digit: "
            "copied rows are no seeds.",
            ("Copied rows narrow every interval.",),
        )
    if points.attrs.get("runs_assumed") or not points.attrs.get("seeds_assumed"):
        return
    again = repeated(points)
    told = dict.fromkeys(
        f"Runs {listed(own['run'], 4)} of mix={mix} at size={size} count as seeds."
        for (mix, size, _), own in again.groupby(["mix", "size", "D"], sort=False)
    )
    if told:
        yield Caveat(
            "as seeds",
            f"{again['run'].nunique()} runs of other names, but of one mix, size and D, count as "
            "seeds of one training.",
            (*_some(told), "A column mix that tells them apart, or treatments=, compares them."),
        )


def merged(points: pd.DataFrame, sizes: pd.Series) -> Iterator[Caveat]:
    """Different N of one mix that count as one of `sizes`, and so as checkpoints or seeds of it."""
    told, worst = [], 0.0
    for (mix, _), own in points["N"].groupby([points["mix"], sizes], sort=False):
        values = sorted(own.unique())
        if values[-1] > (1 + ROUNDING) * values[0]:
            apart = values[-1] / values[0] - 1
            worst = max(worst, apart)
            told.append(
                f"N = {_told_apart(values)} of mix={mix} count as one size (they differ by "
                f"{percent(apart)})."
            )
    if told:
        head, *others = told
        yield Caveat(
            "one size",
            head
            if not others
            else f"N that differ by up to {percent(worst)} count as one size, at {len(told)} sizes "
            "of a mix.",
            (
                *(_some(told) if others else ()),
                "What else differs between them counts as noise; a column size with a name for "
                "each, or another mix=, keeps them apart.",
            ),
        )


def _some(sentences: Collection[str]) -> list[str]:
    """The first sentences of many alike."""
    more = len(sentences) - MOST_ALIKE
    return [*list(sentences)[:MOST_ALIKE], *([f"And so for {more} more."] if more > 0 else [])]


def _told_apart(values: list[float]) -> str:
    """Counts to so many digits that they differ."""
    shown = [count(value) for value in values]
    if len(set(shown)) < len(values):
        shown = [f"{value:,.0f}" for value in values]
    return f"{', '.join(shown[:-1])} and {shown[-1]}"


def _sizes(points: pd.DataFrame) -> Iterator[Caveat]:
    N = points.groupby(["size", "mix"])["N"].mean()
    apart = {
        str(size): own.droplevel("size")
        for size, own in N.groupby("size")
        if own.max() > (1 + EQUAL) * own.min()
    }
    if not apart:
        return
    size = max(apart, key=lambda one: apart[one].max() / apart[one].min())
    yield Caveat(
        "unequal N",
        f"size={size} stands for N = {count(apart[size].min())} to {count(apart[size].max())}: "
        "savings without a law compare mixes at different N.",
        tuple(
            f"size={size}: N = "
            + ", ".join(f"{count(value)} ({mix})" for mix, value in own.items())
            + "."
            for size, own in apart.items()
        ),
    )


def _units(points: pd.DataFrame) -> Iterator[Caveat]:
    if points.attrs.get("compute_only"):
        return
    yield from _counts(points)
    rising = [str(mix) for mix, own in points.groupby("mix", sort=False) if _rises(own)]
    if rising:
        yield Caveat(
            "rising",
            f"The loss of mix={listed(rising)} does not fall with D: no law and no saving "
            "describes it.",
        )
    if points["mix"].nunique() < 2 or rising:
        return
    levels = _levels_of_loss(points)
    mix = max(levels, key=lambda one: abs(math.log(levels[one])))
    factor = levels[mix]
    if AS_BITS[0] < max(factor, 1 / factor) < AS_BITS[1]:
        unit, other = ("bits", "nats") if factor > 1 else ("nats", "bits")
        yield Caveat(
            "loss unit",
            f"The loss of mix={mix} lies {factor:.2f} times that of the others, as if it were "
            f"counted in {unit} and theirs in {other}.",
            ("That is at equal N and D (ln 2 is 0.69); all must be nats per token.",),
        )


def _counts(points: pd.DataFrame) -> Iterator[Caveat]:
    for name, what in (("N", "parameters"), ("D", "tokens")):
        if (points[name] < LEAST).any():
            small = sorted(set(points.loc[points[name] < LEAST, "mix"]))
            yield Caveat(
                "counts",
                f"{name} of mix={listed(small)} goes down to {points[name].min():g}, which looks "
                f"like thousands, millions or billions: it is counted in single {what}.",
            )
    ratio = (points["D"] / points["N"]).groupby(points["mix"]).median()
    if (ratio < FEWEST).all():
        yield Caveat(
            "columns",
            f"D is {ratio.max():.2g} times N: are N and D in each other's column?",
            (f"Tokens per parameter are seldom below {FEWEST:g}.",),
        )
    C = points["C"] if "C" in points else pd.Series(np.nan, points.index)
    flops = (C / (6 * points["N"] * points["D"])).groupby(points["mix"]).median().dropna()
    flops = flops[~flops.between(1 / APART_FLOPS, APART_FLOPS, inclusive="neither")]
    if len(flops):
        yield Caveat(
            "counts",
            f"C of mix={listed(flops.index)} is {flops.iloc[0]:.2g} times 6 N D: C is counted in "
            "single FLOPs.",
        )
    if len(ratio) < 2:
        return
    logs = {str(mix): math.log(value) for mix, value in ratio.items()}
    # Of two mixes neither is the odd one; the second is named.
    middle = float(np.median([*logs.values()])) if len(logs) > 2 else next(iter(logs.values()))
    mix = max(logs, key=lambda one: abs(logs[one] - middle))
    away = logs[mix] - middle
    if abs(away) > math.log(UNLIKE):
        yield Caveat(
            "counts",
            f"mix={mix} has {math.exp(abs(away)):.0f} times {'more' if away > 0 else 'fewer'} "
            "tokens per parameter than the others: an N or D looks counted in another unit.",
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
