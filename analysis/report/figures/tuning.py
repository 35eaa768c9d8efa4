"""Figure of tuned settings: loss against the setting by size, and the optimum against N."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from ablations.optima import Tuned
from ablations.records import visible
from analysis.report.figures.axes import Drawn, in_order, legend
from analysis.report.figures.style import (
    DOUBLE_COLUMN_INCHES,
    Look,
    caption,
    drawing,
    looks,
    panel_title,
)

MOST_PANELS = 3
"""Sizes whose surfaces are drawn, the largest ones; then the optima of all."""


def response_surfaces(
    tuned: dict[str, Tuned], note: str = "", width: float = DOUBLE_COLUMN_INCHES
) -> Drawn:
    """Surfaces of each mix at its largest sizes, with runs and optima, and the optima against N.

    One setting. The table has a row per run shown (kind `run`), per step of a curve (`curve`) and
    per optimum (`optimum`, with low and high).
    """
    table = _table(tuned)
    style = looks(in_order(pd.Series(list(tuned))))
    cells = table[["size", "D", "N"]].drop_duplicates(["size", "D"]).sort_values(["N", "D"])
    panels = list(cells.tail(MOST_PANELS)[["size", "D"]].itertuples(index=False, name=None))
    setting = next(iter(tuned.values())).settings[0]
    with drawing(width, 2.4) as figure:
        axes = np.atleast_1d(figure.subplots(1, len(panels) + 1))
        for place, (size, D) in zip(axes, panels, strict=False):
            own = table[(table["size"] == size) & (table["D"] == D)]
            for mix, look in style.items():
                mine = own[own["mix"] == mix]
                curve, runs, best = (mine[mine["kind"] == kind] for kind in
                                     ("curve", "run", "optimum"))  # fmt: skip
                place.plot(curve["value"], curve["loss"], color=look.colour, lw=1.1)
                place.plot(runs["value"], runs["loss"], ls="", marker=look.marker,
                           color=look.colour, ms=2.6, alpha=0.6)  # fmt: skip
                for row in best.itertuples():
                    low = row.low if row.low > 0 else curve["value"].min()
                    high = row.high if math.isfinite(row.high) else curve["value"].max()
                    place.hlines(row.loss, low, high, color=look.colour, lw=2.6, alpha=0.35)
            place.set_xscale("log")
            panel_title(place, visible(str(size)))
            place.set_xlabel(setting)
        axes[0].set_ylabel("loss, nats per token")
        _optima(axes[-1], table, style, setting)
        handles = [Line2D([], [], marker=look.marker, color=look.colour, lw=1.1, ms=4, label=mix)
                   for mix, look in style.items()]  # fmt: skip
        legend(figure, handles)
        caption(figure, note)
    return figure, table


def _optima(axes: Axes, table: pd.DataFrame, style: dict[str, Look], setting: str) -> None:
    best = table[table["kind"] == "optimum"]
    for mix, look in style.items():
        own = best[best["mix"] == mix].sort_values("N")
        N = own["N"]
        low = np.where(own["low"] > 0, own["low"], own["value"] / 4)
        high = np.where(np.isfinite(own["high"]), own["high"], own["value"] * 4)
        axes.vlines(N, low, high, color=look.colour, lw=0.9)
        axes.plot(N, own["value"], marker=look.marker, color=look.colour, ms=3.6, lw=0.8)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("N")
    axes.set_ylabel(f"optimal {setting}")


def _table(tuned: dict[str, Tuned]) -> pd.DataFrame:
    rows: list[dict[str, object]] = []
    for mix, own in tuned.items():
        if own.response is None:
            continue
        for k, cell in enumerate(own.cells):
            where = {"mix": mix, "size": cell.size, "N": cell.N, "D": cell.D}
            rows += [
                where | {"kind": "run", "value": t.values[0], "loss": t.loss, "seed": t.seed}
                for t in own.trials
                if (t.size, t.D) == (cell.size, cell.D) and math.isfinite(t.loss)
            ]
            grid = own.response.grid(k)[::8]
            for x, loss in zip(grid[:, 0], own.response.curve(k, grid), strict=True):
                rows.append(where | {"kind": "curve", "value": 2.0**x, "loss": float(loss)})
            best = own.optima[k]
            if not best.edge[0]:
                rows.append(where | {
                    "kind": "optimum", "value": float(2.0 ** best.x[0]),
                    "loss": float(own.response.curve(k, best.x[None])[0]),
                    "low": float(2.0 ** best.low[0]), "high": float(2.0 ** best.high[0]),
                })  # fmt: skip
    columns = ["mix", "size", "N", "D", "kind", "value", "loss", "seed", "low", "high"]
    return pd.DataFrame(rows, columns=columns)
