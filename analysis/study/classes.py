"""Which tokens pay: loss, difference from the baseline and token savings by class of token.

Classes partition the held-out targets (docs/contracts.md). A class's loss at a point is the mean
over domains of its nats per token, as the overall loss is. Domains with fewer than `FEWEST` of its
tokens are left out, unless all have fewer: one bracket must not weigh as much as a thousand.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from ablations.records import RunDirectory, SettingError, one_of
from analysis.stats.interval import LEVEL
from analysis.stats.savings import fit_free
from analysis.study.load import Sweep, common_budget
from models.format import count

ALL = "all"
"""The partition of one class, for comparison."""
FEWEST = 32
POINT = ["run", "mix", "size", "seed", "state", "N", "D", "step"]
CLASS = ["partition", "class"]
SUMS = ["domain", *CLASS, "nats", "tokens", "bytes"]
COLUMNS = (
    *CLASS, "mix", "baseline", "size", "N", "D", "seeds", "share", "loss_baseline", "loss", "bpb",
    "difference", "low", "high", "part", "saving", "saving_low", "saving_high", "bound",
)  # fmt: skip


def read_classes(sweep: Sweep) -> pd.DataFrame:
    """Sums of every point by domain and class: columns `POINT` and `SUMS`, with `ALL`.

    Empty where no point has classes, as older records and points of a CSV.
    """
    rows = []
    for run in sweep.runs:
        for point in RunDirectory(sweep.path / run.name).rows("points.jsonl"):
            for domain, sums in (point.get("domains") or {}).items():
                if not (partitions := sums.get("classes")):
                    continue
                whole = {ALL: {ALL: [sums[name] for name in ("nats", "tokens", "bytes")]}}
                for partition, classes in (whole | partitions).items():
                    for name, own in classes.items():
                        rows.append((run.name, point["step"], domain, partition, name, *own))
    table = pd.DataFrame(rows, columns=["run", "step", *SUMS])
    table["bytes"] = table["bytes"].astype(float)
    table = sweep.points[POINT].merge(table, on=["run", "step"])
    order = _order(table)
    key = pd.Series(zip(table["partition"], table["class"], strict=True), table.index)
    return table.iloc[np.argsort(key.map(order.index).to_numpy(int), kind="stable")].reset_index(
        drop=True
    )


def _order(table: pd.DataFrame) -> list[tuple[str, str]]:
    """Classes as they were recorded, those of the domain that has most of them first."""
    found: list[tuple[str, str]] = []
    for _, own in table.groupby("partition", sort=False):
        seen = [list(one[CLASS].drop_duplicates().itertuples(index=False, name=None))
                for _, one in own.groupby("domain", sort=False)]  # fmt: skip
        for classes in sorted(seen, key=len, reverse=True):
            found += [one for one in classes if one not in found]
    return found


def chosen(table: pd.DataFrame, only: Sequence[str]) -> pd.DataFrame:
    """The rows of some partitions (`repeat`) or classes (`repeat/16+`).

    Raises SettingError for one that no held-out target is in.
    """
    kept = pd.Series(not only, table.index)
    partitions = [str(name) for name in dict.fromkeys(table["partition"]) if name != ALL]
    for asked in only:
        partition, _, name = asked.partition("/")
        if partition not in partitions:
            raise one_of("only", partition, partitions)
        of_partition = table["partition"] == partition
        classes = [str(one) for one in dict.fromkeys(table["class"][of_partition])]
        if name and name not in classes:
            raise SettingError(
                f"only={asked} is a class without held-out tokens; {partition} has "
                f"{', '.join(classes)}."
            )
        kept |= of_partition & (table["class"].eq(name) if name else True)
    return table[kept]


def by_point(table: pd.DataFrame) -> pd.DataFrame:
    """Means over domains of `read_classes`, one row per point and class.

    Columns `POINT`, `CLASS`, loss (nats per token of the class), bpb, share (of all tokens) and
    part (its nats per token of all: parts of a partition add up to the overall loss).
    """
    whole = table[table["partition"] == ALL].set_index(["run", "step", "domain"])["tokens"]
    domains = whole.groupby(["run", "step"]).size()
    at = pd.MultiIndex.from_frame(table[["run", "step", "domain"]])
    n = domains.reindex(pd.MultiIndex.from_frame(table[["run", "step"]])).to_numpy()
    tokens = whole.reindex(at).to_numpy(float)
    enough = table["tokens"] >= FEWEST
    some = enough.groupby([table[name] for name in (*CLASS, "run", "step")]).transform("any")
    nats = table["nats"].where(enough | ~some)
    table = table.assign(
        loss=nats / table["tokens"],
        bpb=nats / math.log(2) / table["bytes"].where(table["bytes"] > 0),
        share=table["tokens"] / tokens / n,
        part=table["nats"] / tokens / n,
    )
    cells = table.groupby([*CLASS, *POINT], sort=False)
    return cells.agg(
        loss=("loss", "mean"), bpb=("bpb", "mean"), share=("share", "sum"), part=("part", "sum")
    ).reset_index()


def by_class(table: pd.DataFrame, versus: Mapping[str, str], level: float = LEVEL) -> pd.DataFrame:
    """Each class of `read_classes` by mix, at the largest size that it and its baseline have.

    Columns `COLUMNS`: at the largest budget of that size that both reached, means over the seeds
    that both have; difference is loss less loss_baseline, its interval by Student's t on
    differences of seeds, whose scatter is pooled over sizes; saving as in
    `analysis.stats.savings.fit_free`, of the same points with the class's loss. NaN where seeds or
    budgets are too few.
    """
    points = by_point(table)
    rows: list[dict[str, Any]] = []
    for (partition, name), own in points.groupby(CLASS, sort=False):
        free = fit_free(own, versus, level)
        free = free[free["seed"] == "mean"].set_index(["mix", "size"])
        for mix, baseline in versus.items():
            found = _compared(own, mix, baseline, level)
            if not found:
                continue
            row = {"partition": partition, "class": name, "mix": mix, "baseline": baseline} | found
            if (mix, found["size"]) in free.index:
                one = free.loc[(mix, found["size"])]
                row |= {"saving": one["value"], "saving_low": one["low"],
                        "saving_high": one["high"], "bound": one["bound"]}  # fmt: skip
            rows.append(row)
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    return table.assign(bound=table["bound"].fillna(""))


def _compared(points: pd.DataFrame, mix: str, baseline: str, level: float) -> dict[str, Any]:
    from scipy.stats import t as student

    ours, theirs = (points[points["mix"] == name] for name in (baseline, mix))
    both = set(ours["size"]) & set(theirs["size"])
    pair = points[points["mix"].isin([mix, baseline]) & points["size"].isin(list(both))]
    pair = common_budget(pair)
    if pair.empty:
        return {}
    measures = ["loss", "bpb", "share", "part", "N", "D"]
    ours, theirs = (
        pair[pair["mix"] == name].groupby(["size", "seed"])[measures].mean()
        for name in (baseline, mix)
    )
    seeds = ours.index.intersection(theirs.index)
    if not len(seeds):
        return {}
    ours, theirs = ours.loc[seeds], theirs.loc[seeds]
    differences = pd.DataFrame({"loss": theirs["loss"] - ours["loss"]}).reset_index()
    at = differences.groupby("size").agg(
        mean=("loss", "mean"), var=("loss", "var"), count=("loss", "count")
    )
    dof = int((at["count"] - 1).sum())
    size = str(ours.groupby("size")["N"].mean().idxmax())
    middle, n, reach = float(at["mean"][size]), float(at["count"][size]), math.nan
    if dof:
        variance = float((at["var"].fillna(0) * (at["count"] - 1)).sum() / dof)
        reach = float(student.ppf((1 + level) / 2, dof)) * math.sqrt(variance / n)
    a, b = (own[own.index.get_level_values("size") == size].mean() for own in (ours, theirs))
    return {
        "size": size, "N": a["N"], "D": a["D"], "seeds": int(n), "share": b["share"],
        "loss_baseline": a["loss"], "loss": b["loss"], "bpb": b["bpb"], "difference": middle,
        "low": middle - reach, "high": middle + reach, "part": b["part"] - a["part"],
    }  # fmt: skip


def cells(table: pd.DataFrame) -> pd.DataFrame:
    """`by_class` for people: one row per class and mix."""
    rows = []
    for one in table.to_dict("records"):
        saving = "–"
        if not math.isnan(one["saving"]):
            saving = {"at least": "≥ ", "at most": "≤ "}.get(one["bound"], "")
            saving += f"{one['saving']:.3g}"
            if not math.isnan(one["saving_low"]):
                saving += f" [{one['saving_low']:.3g}, {one['saving_high']:.3g}]"
        told = f"{one['difference']:+.4f}"
        if not math.isnan(one["low"]):
            told += f" [{one['low']:+.4f}, {one['high']:+.4f}]"
        rows.append(
            {
                "partition": one["partition"], "class": one["class"], "mix": one["mix"],
                "share": f"{100 * one['share']:.1f} %", "loss": f"{one['loss']:.4f}",
                "difference": told, "part of the difference": f"{one['part']:+.4f}",
                "token savings": saving,
            }
        )  # fmt: skip
    return pd.DataFrame(rows)


def place_words(table: pd.DataFrame) -> str:
    """At which size and budget the rows of `by_class` stand, in words."""
    places = table[["size", "D"]].drop_duplicates().itertuples(index=False)
    return " and ".join(f"size {size}, {count(float(str(D)))} tokens" for size, D in places)
