"""Figures of probes: accuracy against length, and loss by position in a long window."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from analysis.report.figures.axes import (
    GREY,
    Drawn,
    hollow,
    in_order,
    legend,
    mix_handles,
    unfinished_handle,
)
from analysis.report.figures.style import (
    DOUBLE_COLUMN_INCHES,
    Look,
    caption,
    drawing,
    looks,
    panel_title,
)

FIRST_READING = (0, (4, 1, 1, 1))
MOST_LENGTHS = 6
"""Longer axes name every other length."""


def probe_accuracy(
    means: pd.DataFrame,
    runs: pd.DataFrame,
    note: str = "",
    width: float = DOUBLE_COLUMN_INCHES,
) -> Drawn:
    """Accuracy against length, a panel a probe: means of seeds with 95 % over examples.

    `means` is of `analysis.study.probes.accuracies` and `runs` of `read_probes`, both at one
    size; hollow marks are single seeds where there are several. The table is `means`.
    """
    style = looks(in_order(means["mix"]))
    names = in_order(means["probe"])
    columns = min(len(names), 4 if width > 4 else 2)
    rows = math.ceil(len(names) / columns)
    with drawing(width, 0.75 + 1.75 * rows) as figure:
        grid = figure.subplots(rows, columns, squeeze=False, sharey=True).ravel()
        for axes, name in zip(grid, names, strict=False):
            panel_title(axes, name)
            own = means[means["probe"] == name]
            _accuracies(axes, own, runs[runs["probe"] == name], style)
            _lengths(axes, own["length"], "length (tokens)")
            _training_context(axes, own["context"])
            axes.axhline(own["chance"].iloc[0], color=GREY, lw=0.9, ls=":")
            axes.set_ylim(-0.03, 1.03)
        for axes in grid[len(names) :]:
            axes.remove()
        for axes in grid[::columns]:
            axes.set_ylabel("accuracy")
        handles = [*mix_handles(style, fitted=True), _line("chance", ":")]
        handles.append(_line("training context", "--"))
        if means["first_accuracy"].notna().any():
            handles.append(
                Line2D([], [], color=GREY, lw=0.7, ls=FIRST_READING, label="first reading")
            )
        if not means["finished"].all():
            handles.append(unfinished_handle())
        legend(figure, handles)
        caption(figure, note)
    return figure, means


def loss_by_position(
    buckets: pd.DataFrame, note: str = "", width: float = DOUBLE_COLUMN_INCHES
) -> Drawn:
    """Bits per byte against position in a window longer than the training context.

    `buckets` is of `analysis.study.probes.by_position` at one size; bars are 95 % over windows,
    which mixes share, so that mixes differ by less noise than bars suggest.
    """
    style = looks(in_order(buckets["mix"]))
    with drawing(width, 2.7 if width > 4 else 3.0) as figure:
        axes = figure.subplots()
        for place, (mix, own) in enumerate(buckets.groupby("mix", sort=False)):
            look = style[str(mix)]
            own = own.sort_values("from")
            # A bucket stands at the middle of its positions.
            at = _beside((own["from"] + own["to"]) / 2, place, len(style))
            reach = 1.959964 * own["bpb_se"].astype(float)
            axes.errorbar(
                at, own["bpb"], yerr=reach, color=look.colour, ls=look.line, marker=look.marker,
                ms=3.6, mfc="none", mew=0.7, elinewidth=0.7, lw=1.1,
            )  # fmt: skip
            _cross(axes, at, own, "bpb")
        ends = sorted(set(buckets["to"]))
        _lengths(axes, pd.Series(ends), "position in the window (tokens)")
        axes.set_xlim(min(ends) / 2.6, max(ends) * 1.1)
        _training_context(axes, buckets["context"])
        axes.set_ylabel("bits per byte")
        handles = [*mix_handles(style, fitted=True), _line("training context", "--")]
        if not buckets["finished"].all():
            handles.append(unfinished_handle())
        legend(figure, handles)
        caption(figure, note)
    return figure, buckets


def _accuracies(axes: Axes, own: pd.DataFrame, runs: pd.DataFrame, style: dict[str, Look]) -> None:
    for place, (mix, ours) in enumerate(own.groupby("mix", sort=False)):
        look = style[str(mix)]
        ours = ours.sort_values("length")
        at = _beside(ours["length"], place, len(style))
        sides = [ours["accuracy"] - ours["low"], ours["high"] - ours["accuracy"]]
        axes.errorbar(
            at, ours["accuracy"], yerr=np.maximum(sides, 0), color=look.colour, ls=look.line,
            marker=look.marker, ms=3.4, mfc="none", mew=0.7, elinewidth=0.7, lw=1.1,
        )  # fmt: skip
        _cross(axes, at, ours, "accuracy")
        if (ours["seeds"] > 1).any():
            seeds = runs[runs["mix"] == mix].merge(ours[["length", "D"]], on=["length", "D"])
            at = _beside(seeds["length"], place, len(style))
            axes.plot(at, seeds["accuracy"], **hollow(look, 2.2))
        first = ours.dropna(subset="first_accuracy")
        axes.plot(
            first["length"], first["first_accuracy"], color=look.colour, lw=0.8, ls=FIRST_READING
        )


def _beside(at: pd.Series, place: int, mixes: int) -> pd.Series:
    """Bars of mixes at one length side by side."""
    return at * 1.05 ** (place - (mixes - 1) / 2)


def _cross(axes: Axes, at: pd.Series, own: pd.DataFrame, y: str) -> None:
    running = ~own["finished"].astype(bool)
    axes.plot(at[running], own[y][running], "x", ms=5, mew=0.7, color=GREY, zorder=6)


def _lengths(axes: Axes, lengths: pd.Series, label: str) -> None:
    every = sorted(set(lengths))
    axes.set_xscale("log")
    axes.set_xlim(every[0] / 1.25, every[-1] * 1.25)
    axes.xaxis.set_major_locator(FixedLocator(every[:: 1 + (len(every) > MOST_LENGTHS)]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda tick, _: _tokens(tick)))
    axes.set_xlabel(label)


def _tokens(length: float) -> str:
    """A length as it is known: 1024, 32k."""
    return f"{length / 1024:g}k" if length >= 8192 and length % 1024 == 0 else f"{length:g}"


def _training_context(axes: Axes, contexts: pd.Series) -> None:
    for context in sorted(set(contexts)):
        axes.axvline(context, color=GREY, lw=0.8, ls="--", zorder=1)


def _line(label: str, style: str) -> Line2D:
    return Line2D([], [], color=GREY, lw=0.9, ls=style, label=label)
