"""Figures of training itself: gradient norms and their spikes, and speed against context."""

from __future__ import annotations

import pandas as pd

from analysis.report.figures.axes import (
    Drawn,
    by_size,
    hollow,
    in_order,
    legend,
    log_axis,
    mix_handles,
)
from analysis.report.figures.style import DOUBLE_COLUMN_INCHES, caption, drawing, looks, panel_title
from analysis.study.training import SIGMAS, WINDOW, spikes, stability


def training_stability(
    metrics: pd.DataFrame,
    sizes: dict[str, float],
    note: str = "",
    width: float = DOUBLE_COLUMN_INCHES,
) -> Drawn:
    """Gradient norms of the largest size with spikes ringed; spikes and skipped steps by N.

    `metrics` is of `analysis.study.training.read_metrics`, `sizes` gives N by size. The table
    holds the shares by run.
    """
    style = looks(in_order(metrics["mix"]))
    metrics = metrics.dropna(subset="grad_norm")
    shares = stability(metrics).assign(N=lambda table: table["size"].map(sizes))
    largest = max(set(metrics["size"]) & set(sizes), key=lambda size: sizes[size])
    wide = width > 4
    with drawing(width, 2.9 if wide else 5.0) as figure:
        grid = figure.add_gridspec(
            *((2, 2) if wide else (3, 1)), width_ratios=(1.6, 1) if wide else None
        )
        trace = figure.add_subplot(grid[:, 0] if wide else grid[0])
        panels = [figure.add_subplot(grid[row, 1] if wide else grid[row + 1]) for row in (0, 1)]
        for mix, at_size in metrics[metrics["size"] == largest].groupby("mix", sort=False):
            look = style[str(mix)]
            for _, own in at_size.groupby("run", sort=False):
                trace.plot(own["tokens"], own["grad_norm"], color=look.colour, lw=0.6, alpha=0.8)
                far = own[spikes(own["grad_norm"])]
                trace.plot(far["tokens"], far["grad_norm"], **hollow(look, 5))
        panel_title(trace, f"gradient norm at size {largest}; marked: spikes")
        log_axis(trace, "training tokens")
        log_axis(trace, "", vertical=True)
        columns = {"spike_percent": "spikes (%)", "skipped_percent": "skipped steps (%)"}
        for axes, (column, words) in zip(panels, columns.items(), strict=True):
            for place, (mix, own) in enumerate(shares.groupby("mix", sort=False)):
                # Mixes stand at one N: side by side they can be told apart.
                axes.plot(own["N"] * 1.04**place, own[column], **hollow(style[str(mix)], 4))
            # Too short a run has no share of spikes, and its size still stands on the axis.
            axes.set_xscale("log")
            axes.set_xlim(shares["N"].min() / 1.2, shares["N"].max() * 1.2)
            axes.set_ylabel(words)
            axes.set_ylim(-0.05 * max(axes.get_ylim()[1], 0.2), max(axes.get_ylim()[1], 0.2))
            log_axis(axes, "N, parameters")
        panel_title(panels[0], f"≥ {SIGMAS:g} sd from the {WINDOW} rows before")
        legend(figure, mix_handles(style))
        caption(figure, note)
    return figure, shares


def throughput_against_context(
    speeds: pd.DataFrame,
    sizes: dict[str, float],
    measured_on: str,
    note: str = "",
    width: float = DOUBLE_COLUMN_INCHES,
) -> Drawn:
    """Training tokens per second against context length, a line a mix and size.

    `sizes` gives N by size.
    """
    style = looks(in_order(speeds["mix"]))
    colours, groups = by_size(speeds.assign(N=speeds["size"].map(sizes)), style)
    with drawing(width, 3.0) as figure:
        axes = figure.subplots()
        for (mix, size), own in speeds.groupby(["mix", "size"], sort=False):
            look, colour = style[str(mix)], colours[str(mix), str(size)]
            mean = own.groupby("context", as_index=False)["tokens_per_second"].mean()
            kind = hollow(look, of=len(speeds)) | {"mec": colour}
            axes.plot(own["context"], own["tokens_per_second"], **kind)
            axes.plot(mean["context"], mean["tokens_per_second"], color=colour, ls=look.line)
        log_axis(axes, f"context (tokens); {measured_on}")
        axes.set_xticks(sorted(set(speeds["context"])))
        log_axis(axes, "training tokens per second", vertical=True)
        legend(figure, *groups, beside=True)
        caption(figure, note)
    return figure, speeds
