"""Tables of a ladder by mix and size: results, parameters, and the paper's beside ours."""

from __future__ import annotations

import numpy as np
import pandas as pd

from analysis.report.figures.losses import bpb_table
from analysis.stats.interval import LEVEL
from analysis.study import published
from analysis.study.findings import Findings
from analysis.study.load import common_budget
from models.format import count, with_interval


def at_last_budget(points: pd.DataFrame, measure: str, level: float = LEVEL) -> pd.DataFrame:
    """Means over seeds at each size's largest budget that all its mixes reached.

    Columns mix, size, N, D, seeds, value, low, high: of `level` by Student's t on log values, the
    seeds' scatter pooled over all cells. NaN ends where no cell has two seeds.
    """
    from scipy.stats import t as student

    table = common_budget(points).dropna(subset=[measure])
    logs = np.log(table[measure])
    cells = table.assign(log=logs).groupby(["mix", "size"], sort=False)
    found = cells.agg(
        N=("N", "mean"), D=("D", "mean"), seeds=("log", "count"), middle=("log", "mean"),
        spread=("log", "var"),
    ).reset_index()  # fmt: skip
    dof = int((found["seeds"] - 1).sum())
    reach = np.full(len(found), np.nan)
    if dof:
        variance = (found["spread"].fillna(0) * (found["seeds"] - 1)).sum() / dof
        reach = student.ppf((1 + level) / 2, dof) * np.sqrt(variance / found["seeds"])
    found = found.assign(
        value=np.exp(found["middle"]),
        low=np.exp(found["middle"] - reach),
        high=np.exp(found["middle"] + reach),
    )
    return found.drop(columns=["middle", "spread"])


def results_table(found: Findings, measure: str = "bpb") -> pd.DataFrame:
    """A row a mix, a column a size, as Table 5 of the Olmo Hybrid paper; the lowest in bold."""
    table = at_last_budget(found.points, measure, found.study.level)
    lowest = table.loc[table.groupby("size")["value"].idxmin()]
    best = set(zip(lowest["mix"], lowest["size"], strict=True))
    rows = []
    for mix in dict.fromkeys(table["mix"]):
        own = table[table["mix"] == mix].set_index("size")
        row = {"mix": str(mix)}
        for size in found.sizes:
            row[size] = "–"
            if size in own.index:
                one = own.loc[size]
                told = f"{one['value']:.4f}"
                if np.isfinite(one["low"]):
                    told = with_interval(one["value"], one["low"], one["high"])
                row[size] = f"**{told}**" if (mix, size) in best else told
        rows.append(row)
    return pd.DataFrame(rows)


def domains_table(found: Findings) -> pd.DataFrame:
    """Bits per byte by domain, means over seeds, at each size's largest common budget."""
    long = bpb_table(found.points)
    long = long[long["domain"] != "mean"]
    wide = long.pivot_table("bpb", ["mix", "size"], "domain", sort=False).reset_index()
    order = [*dict.fromkeys(found.points["mix"]), *found.sizes]
    wide = wide.sort_values(["mix", "size"], key=lambda column: column.map(order.index))
    for name in wide.columns[2:]:
        wide[name] = wide[name].map(lambda value: f"{value:.4f}")
    return wide.rename_axis(columns=None)


def ladder_table(found: Findings) -> pd.DataFrame:
    """Shapes and N of each mix and size, as Table 22: from specs and counts of the runs."""
    runs = found.sweep.runs
    rows: list[dict[str, str]] = []
    shapes = (("d_model", "d_model"), ("n_heads", "heads"), ("layers", "layers"))
    for field, name in shapes:
        row = {"mix": name}
        for size in found.sizes:
            values = {_shape(run.spec, field) for run in runs if run.size == size} - {""}
            row[size] = "/".join(sorted(values)) or "–"
        rows.append(row)
    counts = found.points.groupby(["mix", "size"])["N"].unique().to_dict()
    for mix in dict.fromkeys(found.points["mix"]):
        row = {"mix": f"N of {mix}"}
        for size in found.sizes:
            different = sorted(counts.get((mix, size), [np.nan]))
            row[size] = "/".join(dict.fromkeys(count(one) for one in different))
        rows.append(row)
    shown = [row for row in rows if any(cell != "–" for key, cell in row.items() if key != "mix")]
    return pd.DataFrame(shown).rename(columns={"mix": ""})


def _shape(spec: dict[str, object], field: str) -> str:
    model = spec.get("model")
    value = model.get(field, "") if isinstance(model, dict) else ""
    return str(len(value)) if isinstance(value, list | tuple) else str(value)


def published_table(found: Findings) -> pd.DataFrame | None:
    """Ours and the paper's side by side at the sizes of its ladder: N (Table 22), BPB (Table 5).

    None where the sweep shares no size and mix with it. The paper's BPB is of task suites, ours of
    held-out text: they can be compared in order of mixes, not in value.
    """
    N, theirs = published.parameters(found.sweep), published.bpb(found.sweep)
    if N is None or theirs is None:
        return None
    ours = at_last_budget(found.points, "bpb").set_index(["mix", "size"])
    both = N.merge(theirs, on=["mix", "size"], how="left")
    rows = []
    for one in both.to_dict("records"):
        if (one["mix"], one["size"]) not in ours.index:
            continue
        own = ours.loc[(one["mix"], one["size"])]
        rows.append(
            {
                "mix": one["mix"],
                "size": one["size"],
                "N": count(own["N"]),
                "N, paper": count(one["N"]),
                "BPB, held-out text": f"{own['value']:.4f}",
                "BPB, paper's suites": "–" if np.isnan(one["bpb"]) else f"{one['bpb']:.3f}",
            }
        )
    return pd.DataFrame(rows) if rows else None
