"""What figures share: axes with counts in words, marks of a mix, legends."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter
from numpy.typing import NDArray

from analysis.report.figures.style import SINGLE_COLUMN_INCHES, Look
from models.format import count, scientific

Drawn = tuple[Figure, pd.DataFrame]
"""A figure and the table of all that it shows."""

CURVE_POINTS = 60
DASHED = (0, (3, 2))
GREY = "#777777"


def edges(part: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Where `part` of a curve is, and one point more at either end: it meets the rest there."""
    wide = part.copy()
    wide[1:] |= part[:-1]
    wide[:-1] |= part[1:]
    return wide


def log_axis(axes: Axes, label: str, vertical: bool = False, flops: bool = False) -> None:
    """A logarithmic axis with counts in words, or FLOPs; to be called when all is drawn."""
    axis = axes.yaxis if vertical else axes.xaxis
    (axes.set_ylabel if vertical else axes.set_xlabel)(label)
    (axes.set_yscale if vertical else axes.set_xscale)("log")
    low, high = axes.get_ylim() if vertical else axes.get_xlim()
    figure = axes.figure.get_figure(root=True)
    assert isinstance(figure, Figure)
    place, inches = axes.get_position(), figure.get_size_inches()
    long = place.height * inches[1] * 1.6 if vertical else place.width * inches[0]
    # Three labels a decade need about 1.7 inches of it, more where they are as long as FLOPs.
    fine = math.log10(high / low) <= long / (2.6 if flops else 1.7)
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if fine else (1.0,)))
    axis.set_major_formatter(
        FuncFormatter(lambda tick, _: scientific(tick) if flops else count(tick, 3))
    )
    axis.set_minor_formatter(NullFormatter())


def ratio_axis(axes: Axes, vertical: bool = True) -> None:
    """A logarithmic axis of factors, labelled 0.5×, 1×, 2×; the y axis unless not vertical."""
    axis = axes.yaxis if vertical else axes.xaxis
    low, high = axes.get_ylim() if vertical else axes.get_xlim()
    fine = [0.5, 0.6, 0.7, 0.8, 0.9, 1, 1.1, 1.2, 1.3, 1.4, 1.5, 1.75, 2, 2.5]
    coarse = [0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 3, 5, 7, 10, 20]
    ticks = [tick for tick in (fine if high / low < 4 else coarse) if low <= tick <= high]
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_minor_locator(FixedLocator([]))
    axis.set_major_formatter(FuncFormatter(lambda tick, _: f"{tick:g}×"))


def hollow(look: Look, size: float = 3.6) -> dict[str, Any]:
    """How single observations of a mix are marked."""
    return {"ls": "", "marker": look.marker, "ms": size, "mfc": "none", "mec": look.colour,
            "mew": 0.7, "alpha": 0.8}  # fmt: skip


def cross_out(axes: Axes, own: pd.DataFrame, x: str, y: str) -> None:
    """A grey cross over points of runs that have not finished."""
    running = own[own["state"] != "done"]
    axes.plot(running[x], running[y], "x", ms=5, mew=0.7, color=GREY, zorder=6)


def mix_handles(style: dict[str, Look], fitted: bool = False) -> list[Line2D]:
    """A legend entry a mix, with its line where one is drawn."""
    return [
        Line2D([], [], color=look.colour, marker=look.marker, ms=4, mew=0.7, mfc="none",
               ls=look.line if fitted else "", label=mix)
        for mix, look in style.items()
    ]  # fmt: skip


def unfinished_handle() -> Line2D:
    return Line2D([], [], color=GREY, marker="x", ms=4.5, mew=0.7, ls="", label="run not finished")


def published_handle(words: str) -> Line2D:
    return Line2D([], [], color=GREY, marker="o", ms=5, mew=0.9, mfc="white", ls="", label=words)


def legend(axes: Axes, handles: list[Line2D]) -> None:
    """A legend inside the axes on a page's width, under the figure in a single column."""
    figure = axes.figure.get_figure(root=True)
    assert isinstance(figure, Figure)
    if figure.get_size_inches()[0] > SINGLE_COLUMN_INCHES:
        axes.legend(handles=handles, loc="upper right")
    else:
        figure.legend(handles=handles, loc="outside upper left", ncols=2, fontsize=6.5)


def side_legend(axes: Axes, handles: list[Line2D]) -> None:
    """A legend beside the axes, where curves may be anywhere; above them in a single column."""
    figure = axes.figure.get_figure(root=True)
    assert isinstance(figure, Figure)
    if figure.get_size_inches()[0] > SINGLE_COLUMN_INCHES:
        figure.legend(handles=handles, loc="outside right upper")
    else:
        figure.legend(handles=handles, loc="outside upper left", ncols=2, fontsize=6.5)


def in_order(mixes: Iterable[object]) -> list[str]:
    """Names as they first come, each once."""
    return list(dict.fromkeys(str(mix) for mix in mixes))
