"""What figures share: axes with counts in words, marks of a mix, legends."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Collection, Iterable, Sequence
from itertools import zip_longest
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.textpath import TextPath
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter
from numpy.typing import NDArray

from analysis.report.figures.style import (
    HANDLE_EMS,
    LEGEND_POINTS,
    PAD_EMS,
    SINGLE_COLUMN_INCHES,
    SMALL_LEGEND_POINTS,
    SPACING_EMS,
    Look,
)
from analysis.study.rows import NUMBER
from models.format import count, scientific

Drawn = tuple[Figure, pd.DataFrame]
"""A figure and the table of all that it shows."""

CURVE_POINTS = 60
# More than a logarithmic axis of any length has.
MOST_TICKS = 40
DASHED = (0, (3, 2))
GREY = "#777777"
# The ground where something was measured.
RANGE = "#f0f0f0"
# Marks beyond this number in one axes are drawn smaller and fainter.
MOST_PLAIN = 60
# Entries of the legends of budgets and of sizes; more are thinned out evenly.
MOST_NAMED, MOST_SIZES = 12, 8
# Height of a legend's row, in its type size.
LINE_EMS = 1.45
# Of a figure's width, left free by a legend above.
EDGE_INCHES = 0.05
# Share of a page's width that a legend beside the axes may take.
MOST_BESIDE = 0.36
# Of the map viridis: its last fifth is too light for lines on white.
RAMP = (0.85, 0.0)
# Grey of a colour (ITU-R BT.601), and that of the lightest and the darkest shade of a mix.
LUMA = (0.299, 0.587, 0.114)
LIGHT, DARK = 0.74, 0.4


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
        FuncFormatter(lambda tick, _: power_of_ten(tick) if flops else count(tick, 3))
    )
    if flops:
        for tick in axis.get_major_ticks(MOST_TICKS):
            tick.label1.set_parse_math(True)
    axis.set_minor_formatter(NullFormatter())


def power_of_ten(value: float, digits: int = 1) -> str:
    """`scientific` as mathematics: the font of figures has no superscripts of its own."""
    return re.sub(
        "10([⁻⁰-⁹¹²³]+)$", lambda found: f"$10^{{{unicodedata.normalize('NFKC', found[1])}}}$",
        scientific(value, digits),
    )  # fmt: skip


MOST_RATIOS = 4


def ratio_axis(axes: Axes, vertical: bool = True) -> None:
    """A logarithmic axis of factors, labelled 0.5×, 1×, 2×; the y axis unless not vertical."""
    axis = axes.yaxis if vertical else axes.xaxis
    low, high = axes.get_ylim() if vertical else axes.get_xlim()
    fine = [0.5, 0.6, 0.7, 0.8, 0.9, 1, 1.1, 1.2, 1.3, 1.4, 1.5, 1.75, 2, 2.5]
    coarse = [0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 3, 5, 7, 10, 20]
    ticks = [tick for tick in (fine if high / low < 4 else coarse) if low <= tick <= high]
    if not vertical and len(ticks) > MOST_RATIOS:  # side by side they would touch
        ticks = [tick for tick in ticks if tick in (0.2, 0.5, 0.8, 1, 1.2, 1.5, 2, 5, 10)]
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_minor_locator(FixedLocator([]))
    axis.set_major_formatter(FuncFormatter(lambda tick, _: f"{tick:g}×"))


def hollow(look: Look, size: float = 3.6, of: int = 0) -> dict[str, Any]:
    """How single observations of a mix are marked, `of` so many in the axes: the more, the fainter.

    Beyond MOST_PLAIN their area and ink shrink together, so that a cloud of any number shows where
    it is dense.
    """
    share = min(1.0, MOST_PLAIN / max(of, 1))
    return {"ls": "", "marker": look.marker, "ms": max(size * share**0.25, 1.2), "mfc": "none",
            "mec": look.colour, "mew": max(0.7 * share**0.25, 0.3),
            "alpha": max(0.8 * share**0.25, 0.2)}  # fmt: skip


def cross_out(axes: Axes, own: pd.DataFrame, x: str, y: str) -> None:
    """A grey cross over points of runs that have not finished."""
    running = own[own["state"] != "done"]
    axes.plot(running[x], running[y], "x", ms=5, mew=0.7, color=GREY, zorder=6)


def mix_handles(style: dict[str, Look], fitted: bool = False) -> list[Line2D]:
    """A legend entry a mix, with its line where one is drawn: thin, so that its dashes fit."""
    return [
        Line2D([], [], color=look.colour, marker=look.marker, ms=4, mew=0.7, mfc="none", lw=1.1,
               ls=look.line if fitted else "", label=mix)
        for mix, look in style.items()
    ]  # fmt: skip


def seed_handles(marker: Any = "o") -> list[Line2D]:
    """Legend entries of single seeds, hollow, and of their means, filled."""
    return [
        Line2D([], [], color=GREY, marker=marker, ms=3.6, mew=0.7, mfc="none", ls="",
               label="one seed"),
        Line2D([], [], color=GREY, marker=marker, ms=3, mew=0, lw=1.2, label="mean of seeds"),
    ]  # fmt: skip


def place_handles(in_range: Collection[bool]) -> list[Line2D]:
    """Legend entries of the places there are: filled where measured, hollow where extrapolated."""
    kinds = {True: (GREY, "measured range"), False: ("white", "extrapolated")}
    return [
        Line2D([], [], color=GREY, marker="o", ms=5, mfc=colour, ls="", label=words)
        for place, (colour, words) in kinds.items()
        if place in in_range
    ]


def unfinished_handle() -> Line2D:
    return Line2D([], [], color=GREY, marker="x", ms=4.5, mew=0.7, ls="", label="run not finished")


def published_handle(words: str) -> Line2D:
    return Line2D([], [], color=GREY, marker="o", ms=5, mew=0.9, mfc="white", ls="", label=words)


def legend(
    figure: Figure, *groups: Sequence[Artist], beside: bool = False, title: str = ""
) -> None:
    """A legend outside the axes, read by rows: above them in as many columns as fit.

    Each group begins a row where not all fit into one. Words that are wider than the figure are
    wrapped, and a name that is wider is set smaller. `beside` puts it at the right on a page's
    width, unless its words would take too much of that.
    """
    shown = [group for group in groups if group]
    if not shown:
        return
    inches = figure.get_size_inches()[0]
    points = LEGEND_POINTS if inches > SINGLE_COLUMN_INCHES else SMALL_LEGEND_POINTS
    every = [handle for group in shown for handle in group]
    most = inches - EDGE_INCHES
    for one in every:
        one.set_label(_wrapped(str(one.get_label()), points, most))
    longest = max(_entry_inches(str(one.get_label()), points) for one in every)
    points *= min(1.0, most / longest)
    widths = {id(one): _entry_inches(str(one.get_label()), points) for one in every}
    look: dict[str, Any] = {
        "title": title, "alignment": "left", "fontsize": points, "title_fontsize": points,
    }  # fmt: skip
    if beside and inches > SINGLE_COLUMN_INCHES and max(widths.values()) <= MOST_BESIDE * inches:
        figure.legend(handles=every, loc="outside right upper", **look)
        return

    def fits(rows: Sequence[Sequence[Artist]]) -> bool:
        columns = zip_longest(*rows)
        used = sum(max(widths[id(one)] for one in column if one) for column in columns)
        return used <= most

    def rows_of(group: Sequence[Artist], columns: int) -> list[Sequence[Artist]]:
        return [group[at : at + columns] for at in range(0, len(group), columns)]

    rows: list[Sequence[Artist]] = [every]
    columns = len(every)
    while not fits(rows) and columns > 1:
        columns -= 1
        rows = [row for group in shown for row in rows_of(group, columns)]
    columns = max(map(len, rows))
    # Panels keep their height however many rows stand above them.
    line = points * LINE_EMS / 72
    lines = sum(1 + max(str(one.get_label()).count("\n") for one in row) for row in rows)
    figure.set_size_inches(inches, figure.get_size_inches()[1] + line * max(lines - 2, 0))
    # A legend is filled by columns, and a short row with entries that show nothing.
    full = [[*row, *[Line2D([], [], ls="", label="")] * (columns - len(row))] for row in rows]
    by_column = [one for column in zip(*full, strict=True) for one in column]
    figure.legend(handles=by_column, loc="outside upper left", ncols=columns, **look)


def _wrapped(words: str, points: float, most: float) -> str:
    """Words of a legend's entry in lines of at most `most` inches, where they can be."""
    lines: list[str] = []
    for word in words.split(" "):
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and _entry_inches(longer, points) > most:
            lines.append(word)
        else:
            lines[-1:] = [longer]
    return "\n".join(lines)


def _entry_inches(words: str, points: float) -> float:
    """Width of a legend's entry with the space to the next."""
    around = (HANDLE_EMS + PAD_EMS + SPACING_EMS) * points
    lines = words.split("\n")
    longest = max(TextPath((0, 0), line or " ", points).get_extents().width for line in lines)
    return float(longest + around) / 72


def thinned(handles: list[Line2D], most: int = MOST_NAMED) -> list[Line2D]:
    """A ramp's handles, or `most` of them evenly with both ends."""
    if len(handles) <= most:
        return handles
    kept = np.linspace(0, len(handles) - 1, most).round().astype(int)
    return [handles[place] for place in kept]


def ramp(count: int) -> list[str]:
    """So many colours from light to dark, evenly apart to the eye."""
    colours = matplotlib.colormaps["viridis"]
    return [to_hex(colours(place)) for place in np.linspace(*RAMP, max(count, 2))[-count:]]


def shades(colour: str, count: int) -> list[str]:
    """So many shades of a colour from light to dark, all plain on white and told apart in grey."""
    base = np.array(to_rgb(colour))
    grey = float(base @ LUMA)
    light = base + (1 - base) * max(0.0, (LIGHT - grey) / (1 - grey))
    dark = base * min(1.0, DARK / max(grey, 1e-9))
    steps = np.linspace(0, 1, max(count, 2))[-count:]
    return [to_hex((1 - step) * light + step * dark) for step in steps]


def by_size(
    points: pd.DataFrame, style: dict[str, Look]
) -> tuple[dict[tuple[str, str], str], list[list[Line2D]]]:
    """The colour of each mix and size, light for small, and the legend's groups: mixes, sizes.

    A mix's own colour darkens with size; one mix alone has the ramp.
    """
    sizes = [str(size) for size in points.groupby("size")["N"].median().sort_values().index]
    if len(sizes) == 1:
        return {(mix, sizes[0]): look.colour for mix, look in style.items()}, [
            mix_handles(style, fitted=True)
        ]
    one = len(style) == 1
    colours = {
        (mix, size): colour
        for mix, look in style.items()
        for size, colour in zip(
            sizes, ramp(len(sizes)) if one else shades(look.colour, len(sizes)), strict=True
        )
    }
    words = size_words(sizes)
    named = [
        Line2D([], [], color=colour, lw=2, label=f"size {words[size]}")
        for size, colour in zip(
            sizes, ramp(len(sizes)) if one else shades("#000000", len(sizes)), strict=True
        )
    ]
    return colours, [[] if one else mix_handles(style, fitted=True), thinned(named, MOST_SIZES)]


def size_words(sizes: Iterable[str]) -> dict[str, str]:
    """How sizes are shown: by their names, and where a name is a number, with its unit.

    No two are shown alike.
    """
    names = list(dict.fromkeys(sizes))
    for digits in (3, 4, 6, 9):
        shown = {
            name: count(float(name), digits) if NUMBER.fullmatch(name) else name for name in names
        }
        if len(set(shown.values())) == len(names):
            return shown
    return {name: name for name in names}


def in_order(mixes: Iterable[object]) -> list[str]:
    """Names as they first come, each once."""
    return list(dict.fromkeys(str(mix) for mix in mixes))
