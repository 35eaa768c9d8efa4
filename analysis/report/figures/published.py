"""Figures of numbers that a table holds, a paper's or one's own; no points are needed."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from analysis.report.figures.axes import (
    DASHED,
    GREY,
    RANGE,
    Drawn,
    in_order,
    legend,
    log_axis,
    mix_handles,
    ratio_axis,
)
from analysis.report.figures.style import DOUBLE_COLUMN_INCHES, caption, drawing, looks

# Mixes of one size stand side by side, this factor of N apart.
APART = 1.06


def savings_of_table(
    table: pd.DataFrame,
    baseline: str = "transformer",
    trained: tuple[float, float] | None = None,
    note: str = "",
    width: float = DOUBLE_COLUMN_INCHES,
) -> Drawn:
    """Token savings over `baseline` against N, as a table has them.

    `table` has columns mix, N (parameters) and value (a ratio), with `low` and `high` where there
    are intervals, and `fit` where there are several fits of a mix: the first is solid, others are
    dashed and hollow. `trained`: the least and the largest N that was trained, which is shaded.
    """
    style = looks(in_order(table["mix"]))
    fits = in_order(table["fit"]) if "fit" in table else [""]
    places = np.arange(len(style)) - (len(style) - 1) / 2
    with drawing(width, 2.9) as figure:
        axes = figure.subplots()
        axes.axhline(1, color="#555555", lw=0.9, zorder=1)
        for (mix, look), place in zip(style.items(), places, strict=True):
            for i, fit in enumerate(fits):
                of_fit = table["fit"] == fit if "fit" in table else True
                own = table[(table["mix"] == mix) & of_fit].sort_values("N")
                N = own["N"] * APART**place
                axes.plot(
                    N, own["value"], color=look.colour, ls=DASHED if i else "-", lw=1.2,
                    marker=look.marker, ms=5, mec=look.colour, mew=0.9,
                    mfc="white" if i else look.colour, zorder=4,
                )  # fmt: skip
                if {"low", "high"} <= set(own):
                    axes.vlines(N, own["low"], own["high"], color=look.colour, lw=1, zorder=3)
        axes.set_yscale("log")
        log_axis(axes, "N, parameters")
        if trained is not None:
            left, right = axes.get_xlim()
            axes.axvspan(*trained, color=RANGE, zorder=0, lw=0)
            axes.set_xlim(min(left, trained[0]), max(right, trained[1]))
            log_axis(axes, "N, parameters")
        ratio_axis(axes)
        axes.set_ylabel(f"token savings over {baseline}")
        others = [
            Line2D([], [], color=GREY, lw=1.2, ls=DASHED if i else "-", label=fit)
            for i, fit in enumerate(fits)
            if fit
        ]
        shaded = [] if trained is None else [Patch(fc=RANGE, label="N trained")]
        mixes = [
            Line2D([], [], color=look.colour, marker=look.marker, ms=5, lw=1.2, label=mix)
            for mix, look in style.items()
        ]
        legend(figure, mixes, [*others, *shaded])
        caption(figure, note)
    columns = ["mix", "fit", "N", "value", "low", "high"]
    return figure, table[[name for name in columns if name in table]]


def excess_parameters(
    counts: pd.DataFrame,
    baseline: str = "transformer",
    note: str = "",
    width: float = DOUBLE_COLUMN_INCHES,
) -> Drawn:
    """How many more parameters than `baseline` each mix has at the same size, in per cent.

    `counts` has columns mix, size and N (parameters). Drawn against the baseline's N.
    """
    of_baseline = counts[counts["mix"] == baseline].set_index("size")["N"]
    shown = counts[counts["size"].isin(of_baseline.index) & (counts["mix"] != baseline)]
    shown = shown.assign(N_baseline=shown["size"].map(of_baseline))
    shown = shown.assign(percent=100 * (shown["N"] / shown["N_baseline"] - 1))
    style = looks(in_order(shown["mix"]))
    with drawing(width, 2.9) as figure:
        axes = figure.subplots()
        axes.axhline(0, color="#555555", lw=0.9, zorder=1)
        for mix, look in style.items():
            own = shown[shown["mix"] == mix].sort_values("N_baseline")
            axes.plot(
                own["N_baseline"], own["percent"], color=look.colour, ls=look.line, lw=1.2,
                marker=look.marker, ms=4, mew=0.7, mfc="white",
            )  # fmt: skip
        log_axis(axes, f"N of {baseline}, parameters")
        axes.set_ylabel(f"parameters beyond {baseline}'s (%)")
        legend(figure, mix_handles(style, fitted=True), beside=True)
        caption(figure, note)
    return figure, shown[["mix", "size", "N", "N_baseline", "percent"]]
