"""What runs recorded of probes: in-context tasks by length, and loss by position.

A table holds every recorded row of a checkpoint that is also a point, so that mixes are compared at
equal N and D. docs/probes.md says what is measured.
"""

from collections.abc import Callable

import numpy as np
import pandas as pd

from ablations.records import RunDirectory
from analysis.study.load import Sweep, common_budget

POSITIONS = "positions"
KEY = ["run", "step", "probe", "length", "from"]
RECORDED = (
    "step", "probe", "version", "length", "context", "examples", "predictions", "candidates",
    "chance", "accuracy", "accuracy_se", "nats", "nats_se", "first_accuracy", "first_nats",
    "gain", "gain_se", "digest", "from", "to", "loss", "bpb", "bpb_se",
)  # fmt: skip
CELL = ["probe", "mix", "size", "length"]
Z95 = 1.959964


def read_probes(sweep: Sweep) -> pd.DataFrame:
    """Rows of every run's probes.jsonl: mix, size, seed, state, N, D of the point, `RECORDED`.

    A row measured again counts once, as it was last; of several versions of the examples the
    newest is taken. Empty where nothing was recorded.
    """
    identity = ["run", "mix", "size", "seed", "state", "N", "D"]
    frames = []
    for run in sweep.runs:
        rows = list(RunDirectory(sweep.path / run.name).rows("probes.jsonl"))
        if rows:
            own = pd.DataFrame(rows).reindex(columns=list(RECORDED)).assign(run=run.name)
            frames.append(own.dropna(how="all", axis="columns"))
    if not frames:
        return pd.DataFrame(columns=[*identity, *RECORDED])
    table = pd.concat(frames, ignore_index=True).reindex(columns=["run", *RECORDED])
    table = table.drop_duplicates(KEY, keep="last")
    table = table[table["version"] == table["version"].max()]
    order = sweep.points[[*identity, "step"]]
    return table.merge(order, on=["run", "step"])[[*identity, *RECORDED]]


def accuracies(probes: pd.DataFrame) -> pd.DataFrame:
    """Accuracy by probe, mix, size and length, at each size's largest common budget.

    Columns probe, mix, size, length, N, D, seeds, examples, context, chance, accuracy, nats,
    first_accuracy, first_nats, gain, gain_se, finished, low, high: means over seeds; 95 % by Wilson
    (1927) with as many trials as would have the recorded standard error, but no fewer than
    examples, whose predictions are not independent, and no more than predictions. Of the examples
    alone: how seeds scatter is not in it.
    """
    own = _at_common_budget(probes[probes["probe"] != POSITIONS])
    numbers = own[["accuracy", "accuracy_se", "predictions", "examples"]].astype(float)
    own = own.assign(
        finished=own["state"] == "done",
        trials=trials(*(numbers[name].to_numpy() for name in numbers)),
    )
    cells = own.groupby(CELL, sort=False)
    found = cells.agg(
        N=("N", "mean"), D=("D", "mean"), seeds=("run", "nunique"), examples=("examples", "min"),
        context=("context", "first"), chance=("chance", "first"), accuracy=("accuracy", "mean"),
        nats=("nats", "mean"), first_accuracy=("first_accuracy", "mean"),
        first_nats=("first_nats", "mean"), gain=("gain", "mean"), gain_se=("gain_se", "mean"),
        finished=("finished", "all"), trials=("trials", "mean"),
    ).reset_index()  # fmt: skip
    low, high = wilson(found["accuracy"].to_numpy(float), found["trials"].to_numpy(float))
    return found.drop(columns="trials").assign(low=low, high=high)


def by_position(probes: pd.DataFrame) -> pd.DataFrame:
    """Bits per byte by mix, size and bucket of positions, at each size's largest common budget.

    Columns mix, size, length, from, to, N, D, seeds, context, bpb, bpb_se (of the windows, which
    mixes share), finished; means over seeds.
    """
    own = _at_common_budget(probes[probes["probe"] == POSITIONS])
    cells = own.assign(finished=own["state"] == "done").groupby(
        ["mix", "size", "length", "from", "to"], sort=False
    )
    return cells.agg(
        N=("N", "mean"), D=("D", "mean"), seeds=("run", "nunique"), context=("context", "first"),
        bpb=("bpb", "mean"), bpb_se=("bpb_se", "mean"), finished=("finished", "all"),
    ).reset_index()  # fmt: skip


def not_alike(probes: pd.DataFrame) -> list[str]:
    """Probes whose examples were not the same for all runs of a size, as `recall at 64`."""
    counts = probes.groupby(["size", "probe", "length"], sort=False)["digest"].nunique()
    differing = counts[counts > 1].reset_index()
    pairs = zip(differing["probe"], differing["length"], strict=True)
    return list(dict.fromkeys(f"{probe} at {length:g}" for probe, length in pairs))


def trials(
    share: np.ndarray, se: np.ndarray, predictions: np.ndarray, examples: np.ndarray
) -> np.ndarray:
    """Independent trials that would have the standard error `se`, from examples to predictions.

    Where every example did equally well nothing is known of it: as many as examples.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        wanted = np.where(se > 0, share * (1 - share) / se**2, examples)
    return np.clip(wanted, examples, predictions)


def left_out(probes: pd.DataFrame, means: pd.DataFrame) -> list[str]:
    """Mixes with records of a probe and size at no budget that all its mixes have."""
    keys = ["probe", "size", "mix"]
    shown = set(means[keys].itertuples(index=False, name=None))
    asked = probes[probes["probe"] != POSITIONS][keys].drop_duplicates()
    return [
        f"{mix} at {probe}, size {size}"
        for probe, size, mix in asked.itertuples(index=False, name=None)
        if (probe, size, mix) not in shown
    ]


def wilson(share: np.ndarray, n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """95 % interval of a share of n trials (Wilson 1927); never empty at 0 and 1."""
    middle = (share + Z95**2 / (2 * n)) / (1 + Z95**2 / n)
    reach = Z95 * np.sqrt(share * (1 - share) / n + Z95**2 / (4 * n**2)) / (1 + Z95**2 / n)
    return np.maximum(middle - reach, 0), np.minimum(middle + reach, 1)


def _at_common_budget(own: pd.DataFrame) -> pd.DataFrame:
    """By probe, as the probes of a run may have been measured at different checkpoints."""
    parts = [common_budget(part) for _, part in own.groupby("probe", sort=False)]
    return pd.concat(parts, ignore_index=True) if parts else own


def largest(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of the largest size."""
    return table[table["size"] == table["size"].iloc[int(table["N"].argmax())]]


def accuracy_cells(found: pd.DataFrame) -> pd.DataFrame:
    """A row a probe, size and mix, a column a length: accuracy and its interval; for people."""
    table = _by_length(
        found, lambda one: f"{one['accuracy']:.2f} [{one['low']:.2f}, {one['high']:.2f}]"
    )
    chances = found.groupby(["probe", "size", "mix"], sort=False)["chance"].first()
    table.insert(3, "chance", [f"{chance:.3g}" for chance in chances])
    return table


def gain_cells(found: pd.DataFrame) -> pd.DataFrame:
    """The same of nats per token that a second reading saves, with 95 %; empty without any."""
    twice = found.dropna(subset="gain")
    return _by_length(twice, lambda one: f"{one['gain']:.3f} ± {Z95 * one['gain_se']:.3f}")


def _by_length(found: pd.DataFrame, cell: Callable[[pd.Series], str]) -> pd.DataFrame:
    lengths = sorted(set(found["length"]))
    rows = []
    for (probe, size, mix), own in found.groupby(["probe", "size", "mix"], sort=False):
        at = own.set_index("length")
        told = {t: cell(at.loc[t]) if t in at.index else "–" for t in lengths}
        rows.append({"probe": probe, "size": size, "mix": mix}
                    | {f"{t:g} tokens": words for t, words in told.items()})  # fmt: skip
    return pd.DataFrame(rows)


def beyond_chance(found: pd.DataFrame) -> str:
    """Probes that a mix does better than by chance, and than at the first reading, in words."""
    floor = found[["chance", "first_accuracy"]].astype(float).max(axis=1)
    told = []
    for probe, own in found[found["low"] > floor].groupby("probe", sort=False):
        longest = own.groupby("mix", sort=False)["length"].max()
        each = ", ".join(f"{mix} up to {length:g} tokens" for mix, length in longest.items())
        told.append(f"{probe} ({each})")
    return "; ".join(told)


def is_empty(probes: pd.DataFrame, positions: bool) -> bool:
    """Whether nothing was recorded of loss by position, or of all the other probes."""
    return not ((probes["probe"] == POSITIONS) == positions).any()
