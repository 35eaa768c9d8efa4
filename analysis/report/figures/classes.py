"""Figure of classes of tokens: differences in loss and token savings, one row per class."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.lines import Line2D

from ablations.records import visible
from analysis.report.figures.axes import GREY, Drawn, in_order, legend, ratio_axis
from analysis.report.figures.style import DOUBLE_COLUMN_INCHES, caption, drawing, looks

ROW_INCHES = 0.2
VIEW = (0.1, 10.0)
"""Ends of an interval of savings beyond these factors are cut."""


def loss_by_class(
    table: pd.DataFrame, note: str = "", width: float = DOUBLE_COLUMN_INCHES
) -> Drawn:
    """Difference in loss from the baseline, and token savings, of each class and mix.

    `table` is of `analysis.study.classes.by_class`; bars are its intervals.
    """
    style = looks(in_order(table["mix"]))
    places: dict[tuple[str, str], int] = {}
    gaps: list[int] = []
    for row in table[["partition", "class"]].drop_duplicates().itertuples(index=False):
        partition, name = map(str, row)
        if places and partition not in {one for one, _ in places}:
            gaps.append(len(places) + len(gaps))
        places[partition, name] = len(places) + len(gaps)
    labels = [visible(name if partition == name else f"{partition}: {name}")
              for partition, name in places]  # fmt: skip
    at = np.array([places[key] for key in zip(table["partition"], table["class"], strict=True)])
    with drawing(width, 1.1 + ROW_INCHES * (len(places) + len(gaps))) as figure:
        left, right = figure.subplots(1, 2, sharey=True)
        left.axvline(0, color="#555555", lw=0.9, zorder=1)
        right.axvline(1, color="#555555", lw=0.9, zorder=1)
        for place, (mix, look) in enumerate(style.items()):
            own = (table["mix"] == mix).to_numpy()
            y = at[own] + 0.5 * ((place + 0.5) / len(style) - 0.5)
            ours = table[own]
            mark: dict[str, Any] = {"ls": "", "marker": look.marker, "ms": 3.6}
            mark |= {"color": look.colour, "mew": 0.8}
            left.hlines(y, ours["low"], ours["high"], color=look.colour, lw=0.9)
            left.plot(ours["difference"], y, **mark)
            ends = ours[["saving_low", "saving_high"]].clip(*VIEW)
            right.hlines(y, ends["saving_low"], ends["saving_high"], color=look.colour, lw=0.9)
            saving, bound = ours["saving"].clip(*VIEW), (ours["bound"] != "").to_numpy()
            right.plot(saving[~bound], y[~bound], **mark)
            right.plot(saving[bound], y[bound], **mark, mfc="white")
        left.set_yticks(list(places.values()), labels)
        left.set_ylim(max(places.values()) + 0.7, -0.7)
        right.set_xscale("log")
        ratio_axis(right, vertical=False)
        left.set_xlabel("loss less the baseline's, nats per token")
        right.set_xlabel("token savings")
        for axes in (left, right):
            for gap in gaps:
                axes.axhline(gap, color="#dddddd", lw=0.6, zorder=0)
        handles = [Line2D([], [], ls="", marker=look.marker, color=look.colour, ms=4.5, label=mix)
                   for mix, look in style.items()]  # fmt: skip
        if (table["bound"] != "").any():
            mark = {"ls": "", "marker": "o", "color": GREY, "mfc": "white", "ms": 4.5}
            handles.append(Line2D([], [], label="saving is at least, or at most, that", **mark))
        legend(figure, handles)
        caption(figure, note)
    return figure, table
