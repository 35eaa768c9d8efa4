"""Figures of fits: against what they were shown and what they were not, and coefficients."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.lines import Line2D
from matplotlib.markers import CARETLEFTBASE, CARETRIGHTBASE, MarkerStyle
from matplotlib.ticker import MaxNLocator

from ablations.records import visible
from analysis.report.figures.axes import (
    GREY,
    Drawn,
    hollow,
    legend,
    log_axis,
    mix_handles,
    published_handle,
)
from analysis.report.figures.style import (
    DOUBLE_COLUMN_INCHES,
    caption,
    drawing,
    looks,
    panel_title,
)
from analysis.report.tables import at_edge
from analysis.stats.fit import Fit
from analysis.stats.laws import PARAMETERS
from analysis.stats.uncertainty import Draws
from models.format import count, percent

# Their bases stand on the end, their tips beyond it.
ARROWS = (CARETLEFTBASE, CARETRIGHTBASE)
# Ticks of a coefficient's axis; a letter of a name beside it, and the share of the figure's width
# that names may take there.
MOST_TICKS, NAME_INCHES, MOST_BESIDE = 3, 0.06, 0.3
NAMES = {"E": "E", "A": "A", "alpha": "α", "B": "B", "beta": "β"}


def fit_with_residuals(fit: Fit, note: str = "", width: float = DOUBLE_COLUMN_INCHES) -> Drawn:
    """Observed against fitted loss, and residuals in per cent against the fit, D and N."""
    style = looks(fit.mixes)
    table = fit.points[["mix", "size", "N", "seed", "D", "loss"]].copy()
    table["fitted"] = table["loss"] * np.exp(fit.residual)
    table["residual_percent"] = 100 * np.expm1(-fit.residual)
    wide = width > 4
    with drawing(width, 3.4 if wide else 5.2) as figure:
        places: tuple[Any, ...]
        if wide:
            grid = figure.add_gridspec(2, 2, height_ratios=(1.5, 1), width_ratios=(1.15, 1))
            places = (grid[0, 0], grid[1, 0], grid[0, 1], grid[1, 1])
        else:
            grid = figure.add_gridspec(4, 1, height_ratios=(1.6, 1, 1, 1))
            places = tuple(grid[row] for row in range(4))
        top = figure.add_subplot(places[0])
        below = figure.add_subplot(places[1], sharex=top)
        by_d, by_n = (figure.add_subplot(place) for place in places[2:])
        ends = [table["fitted"].min() * 0.995, table["fitted"].max() * 1.005]
        top.plot(ends, ends, color="#999999", lw=0.8, zorder=1)
        jitter = {mix: 1.02 ** (i - (len(style) - 1) / 2) for i, mix in enumerate(style)}
        for mix, own in table.groupby("mix", sort=False):
            kind = hollow(style[str(mix)], 3.2, len(table))
            residual = own["residual_percent"]
            top.plot(own["fitted"], own["loss"], **kind)
            below.plot(own["fitted"], residual, **kind)
            by_d.plot(own["D"], residual, **kind)
            # Mixes stand at one N: side by side they can be told apart.
            by_n.plot(own["N"] * jitter[str(mix)], residual, **kind)
        reach = 1.15 * table["residual_percent"].abs().max()
        for axes in (below, by_d, by_n):
            axes.axhline(0, color="#999999", lw=0.8, zorder=1)
            axes.set_ylim(-reach, reach)
            axes.set_ylabel("residual (%)")
        top.tick_params(labelbottom=False)
        top.set_ylabel("observed loss (nats/token)")
        below.set_xlabel("fitted loss (nats/token)")
        for axes, words in ((by_d, "D, training tokens"), (by_n, "N, parameters")):
            log_axis(axes, words)
        legend(figure, mix_handles(style))
        top.text(
            0.98, 0.03, fitted_range(fit), ha="right", va="bottom", transform=top.transAxes,
            fontsize=7, color="#666666", linespacing=1.05,
        )  # fmt: skip
        caption(figure, note)
    return figure, table


def fitted_range(fit: Fit) -> str:
    """Where the law was fitted, in words."""
    spans = []
    for name in ("N", "D"):
        low, high = fit.points[name].min(), fit.points[name].max()
        spans.append(f"{name} {count(low, 3)} to {count(high, 3)}")
    return f"fitted to {fit.n} points:\n" + "\n".join(spans)


def heldout(holdout: pd.DataFrame, note: str = "", width: float = DOUBLE_COLUMN_INCHES) -> Drawn:
    """Signed errors of predictions on what was left out: of the law, and of a line in logs.

    In per cent against the measured loss, on one scale for both; the largest size is filled, each
    run's largest budget hollow. `holdout` is that of `analysis.stats.holdout`.
    """
    style = looks(dict.fromkeys(holdout["mix"]))
    ways = {"error": "the law", "line_error": "a straight line in logs"}
    wide = width > 4
    with drawing(width, 2.8 if wide else 4.4) as figure:
        shape = (1, 2) if wide else (2, 1)
        panels = figure.subplots(*shape, sharex=True, sharey=True)
        for axes, (column, words) in zip(panels, ways.items(), strict=True):
            axes.axhline(0, color="#999999", lw=0.8, zorder=1)
            for (mix, label), own in holdout.groupby(["mix", "left_out"], sort=False):
                kind = hollow(style[str(mix)], 4, len(holdout))
                if label == "largest N":
                    kind |= {"mfc": style[str(mix)].colour}
                axes.plot(own["loss"], 100 * own[column], **kind)
            errors = 100 * holdout[column].dropna()
            off = f", rms {np.sqrt((errors**2).mean()):.2g} %" if len(errors) else ""
            panel_title(axes, f"{words}{off}")
        reach = 1.1 * 100 * np.nanmax(np.abs(holdout[list(ways)].to_numpy(float)))
        panels[0].set_ylim(-reach, reach)
        for axes in panels if not wide else panels[:1]:
            axes.set_ylabel("predicted / measured − 1 (%)")
        for axes in panels if wide else panels[1:]:
            axes.set_xlabel("measured loss (nats/token)")
        parts = {"largest N": GREY, "largest D": "none"}
        handles = mix_handles(style) + [
            Line2D([], [], ls="", marker="o", ms=4, mew=0.7, mec=GREY, mfc=colour,
                   label=f"left out: {part}")
            for part, colour in parts.items()
            if (holdout["left_out"] == part).any()
        ]  # fmt: skip
        legend(figure, handles)
        caption(figure, note)
    return figure, holdout


def coefficients(
    fit: Fit,
    draws: Draws,
    note: str = "",
    width: float = DOUBLE_COLUMN_INCHES,
    published: pd.DataFrame | None = None,
) -> Drawn:
    """Each coefficient of each mix with its interval; published ones hollow beside them.

    A hollow arrowhead marks an end that is the edge of what is searched (E at 0, exponents).
    `published` has columns mix, coefficient, value, low, high.
    """
    style = looks(fit.mixes)
    rows = []
    for mix, one in fit.mixes.items():
        for name in PARAMETERS:
            drawn = draws.interval(np.asarray(getattr(draws.laws[mix], name), float))
            low, high = drawn.low, drawn.high
            rows.append((mix, name, float(getattr(one.law, name)), low, high, "fitted"))
    table = pd.DataFrame(rows, columns=["mix", "coefficient", "value", "low", "high", "kind"])
    if published is not None:
        table = pd.concat([table, published.assign(kind="published")], ignore_index=True)
        table = table[table["mix"].isin(list(style))]
    columns = 5 if width > 4 else 2
    n_rows = -(-len(PARAMETERS) // columns)
    bounded = False
    with drawing(width, (0.75 + 0.24 * len(style)) * n_rows + 0.3) as figure:
        grid = figure.subplots(n_rows, columns, squeeze=False, sharey=True).ravel()
        for axes, name in zip(grid, PARAMETERS, strict=False):
            own = table[table["coefficient"] == name]
            for shown in own.to_dict("records"):
                look, ours = style[shown["mix"]], shown["kind"] == "fitted"
                height = list(style).index(shown["mix"]) + (0 if ours else 0.3)
                axes.hlines(
                    height, shown["low"], shown["high"], color=look.colour, lw=1.4 if ours else 0.8
                )
                # An end that only the search has set goes on.
                ends = at_edge(name, shown["low"], shown["high"]) if ours else (False, False)
                for end, mark, bound in zip(("low", "high"), ARROWS, ends, strict=True):
                    bounded |= bound
                    if bound:
                        axes.plot(
                            shown[end], height, marker=mark, ms=8, mfc="white", mec=look.colour,
                            mew=0.8, clip_on=False, ls="",
                        )  # fmt: skip
                axes.plot(
                    shown["value"], height, ls="", marker=look.marker, ms=4.5,
                    mec=look.colour, mew=0.8,
                    mfc=look.colour if ours else "white",
                )  # fmt: skip
            axes.set_title(NAMES[name])
            axes.xaxis.set_major_locator(MaxNLocator(MOST_TICKS))
            finite = own[["low", "high"]].to_numpy()
            if name in "AB" and (finite > 0).all() and finite.max() > 20 * finite.min():
                log_axis(axes, "", flops=True)
        for axes in grid[len(PARAMETERS) :]:
            axes.remove()
        # Long names would leave the panels no room.
        beside = max(map(len, style)) * NAME_INCHES < MOST_BESIDE * width
        grid[0].set_yticks(range(len(style)), [visible(mix) if beside else "" for mix in style])
        grid[0].set_ylim(len(style) - 0.5, -0.5)
        handles = [Line2D([], [], color=GREY, marker="o", ms=4.5, lw=1.4,
                          label=f"fitted, {percent(draws.level, 'g')} interval")]  # fmt: skip
        if bounded:
            arrow = MarkerStyle(ARROWS[1])
            words = "set by the search"
            handles.append(Line2D([], [], mec=GREY, mfc="white", mew=0.8, marker=arrow, ms=8, ls="",
                                  label=words))  # fmt: skip
        if published is not None:
            handles.append(published_handle("published"))
        legend(figure, [] if beside else mix_handles(style), handles)
        caption(figure, note)
    return figure, table
