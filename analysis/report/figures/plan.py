"""The figure of experiment design: what an interval of a wanted width costs."""

from __future__ import annotations

import pandas as pd
from matplotlib.lines import Line2D

from analysis.report.figures.axes import GREY, Drawn, legend, log_axis, ratio_axis
from analysis.report.figures.style import DOUBLE_COLUMN_INCHES, SPARE, caption, drawing


def design_frontier(
    ladders: pd.DataFrame,
    target_width: float | None = None,
    note: str = "",
    width: float = DOUBLE_COLUMN_INCHES,
) -> Drawn:
    """Expected interval of the savings factor against GPU-hours, a mark a candidate ladder.

    `ladders` is of `analysis.stats.design.frontier`: columns sizes, chinchilla, seeds, gpu_hours,
    width (value ×/÷ width), efficient, in_range. Efficient ladders are filled and joined, those
    that hold the place asked for apart from those that would extrapolate to it.
    """
    seeds = sorted(set(ladders["seeds"]))
    with drawing(width, 3.2) as figure:
        axes = figure.subplots()
        handles = []
        for in_range, style, words in (
            (True, "-", "nothing cheaper is narrower"),
            (False, "--", "the same, extrapolating"),
        ):
            best = ladders[ladders["efficient"] & (ladders["in_range"] == in_range)]
            best = best.sort_values("gpu_hours")
            if len(best):
                axes.plot(best["gpu_hours"], best["width"], style, color="#333333", lw=1, zorder=2)
                handles.append(Line2D([], [], color="#333333", lw=1, ls=style, label=words))
        for place, count in enumerate(seeds):
            look = SPARE[place % len(SPARE)]
            marker = "osD^vP"[place % 6]
            for filled in (False, True):
                own = ladders[(ladders["seeds"] == count) & (ladders["efficient"] == filled)]
                axes.plot(
                    own["gpu_hours"], own["width"], marker, ms=4.5 if filled else 3.5, mew=0.7,
                    mec=look.colour, mfc=look.colour if filled else "none",
                    alpha=1 if filled else 0.6, zorder=3,
                )  # fmt: skip
            handles.append(
                Line2D([], [], color=look.colour, marker=marker, ms=4.5, ls="",
                       label=f"{count} seed(s)")
            )  # fmt: skip
        if target_width is not None:
            axes.axhline(target_width, color=GREY, lw=0.8, ls=":")
            handles.append(Line2D([], [], color=GREY, lw=0.8, ls=":", label="wanted"))
        axes.set_yscale("log")
        log_axis(axes, "GPU-hours of the ladder, both mixes")
        axes.set_ylim(0.98, None)
        ratio_axis(axes)
        axes.set_ylabel("expected 95 % interval: value ×/÷")
        legend(figure, handles, beside=True)
        caption(figure, note)
    return figure, ladders
