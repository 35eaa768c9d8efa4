"""Figures of the best N at each C: isoFLOP parabolas, or the envelope of training curves."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ablations.records import visible
from analysis.report.figures.axes import (
    CURVE_POINTS,
    GREY,
    Drawn,
    hollow,
    legend,
    log_axis,
    power_of_ten,
    ramp,
    thinned,
)
from analysis.report.figures.style import (
    DOUBLE_COLUMN_INCHES,
    caption,
    drawing,
    looks,
    panel_title,
)
from analysis.stats.envelope import Envelope
from analysis.stats.isoflop_draws import IsoFlopDraws
from analysis.stats.laws import Array
from analysis.stats.losses import DELTA, Loss
from analysis.stats.rays import IsoFlop, Minimum, budgets, curve_at, flops, levels
from models.format import count, percent, with_interval

# Colour of minima and of the least loss.
BEST = "#222222"
# Characters of a panel's title at its usual size; longer names are set smaller.
TITLE = 22
# Share of the panel's height that a mix's exponent takes.
EXPONENT = 0.12
# The power law is drawn this far beyond the budgets it was fitted to.
BEYOND = 1.5


def isoflop(
    points: pd.DataFrame,
    fits: Mapping[str, IsoFlop],
    draws: Mapping[str, IsoFlopDraws],
    level: float,
    loss: Loss = "huber",
    delta: float = DELTA,
    minimum: Minimum = "parabola",
    note: str = "",
    width: float = DOUBLE_COLUMN_INCHES,
) -> Drawn:
    """Loss against N at each budget, a panel a mix, and the best N against C with its power law.

    Minima are marked with the interval of each by itself; a curve without one between its sizes is
    thin, and losses far above the minima are cut off. `loss`, `delta` and `minimum` are those of
    the fits.
    """
    style = looks(fits)
    seen = levels(np.array([one.C for fit in fits.values() for one in fit.parabolas]))
    colours = ramp(len(seen))
    shown = []
    with drawing(width, _height(len(fits), width)) as figure:
        panels = _panels(figure, len(fits), width)
        for axes, (mix, fit) in zip(panels[:-1], fits.items(), strict=True):
            own = points[points["mix"] == mix].astype({"N": float, "D": float})
            C = flops(own)
            bounds = draws[mix].minima(level)
            for at, one, ends in zip(budgets(own, C), fit.parabolas, bounds, strict=True):
                colour = colours[int(np.argmin(np.abs(np.log(seen) - np.log(one.C))))]
                budget = own[at]
                axes.plot(
                    budget["N"],
                    budget["loss"],
                    **hollow(style[mix], 2.8, len(own)) | {"mec": colour},
                )
                N = np.geomspace(budget["N"].min(), budget["N"].max(), CURVE_POINTS)
                curve = curve_at(N, budget, loss, delta, minimum)
                axes.plot(N, curve, color=colour, lw=1.1 if one.inside else 0.6)
                columns = {"mix": mix, "C": one.C}
                shown.append(budget[["N", "loss"]].assign(mix=mix, C=one.C, kind="measured"))
                shown.append(pd.DataFrame(columns | {"N": N, "loss": curve, "kind": "fitted"}))
                if one.inside:
                    axes.hlines(one.loss, *ends, color=BEST, lw=1.6, zorder=5)
                    axes.plot(one.N, one.loss, "D", ms=3, color=BEST, mew=0, zorder=6)
                    row = columns | {"N": one.N, "low": ends[0], "high": ends[1]}
                    shown.append(pd.DataFrame([row | {"loss": one.loss, "kind": "minimum"}]))
            minima = [one.loss for one in fit.parabolas if one.inside]
            _near(axes, own["loss"].min(), max(minima), own["loss"].max())
            _title(axes, mix, width)
            log_axis(axes, "N, parameters")
            axes.set_ylabel("held-out loss (nats/token)")
        for mix, fit in fits.items():
            good = np.array([one.inside for one in fit.parabolas])
            C_best, N_best = (
                np.array([getattr(one, name) for one in fit.parabolas])[good] for name in "CN"
            )
            low, high = draws[mix].minima(level)[good].T
            panels[-1].vlines(C_best, low, high, color=style[mix].colour, lw=0.8)
            panels[-1].plot(C_best, N_best, zorder=4, **hollow(style[mix]))
        shown += _power_laws(panels[-1], fits, draws, level)
        handles = [
            Line2D([], [], color=colour, marker="o", ms=3, mfc="none", lw=1.1,
                   label=power_of_ten(C, 3))
            for C, colour in zip(seen, colours, strict=True)
        ]  # fmt: skip
        _key(figure, handles, "C, training FLOPs", [
            Line2D([], [], color=BEST, marker="D", ms=3, mew=0, lw=1.6,
                   label=f"minimum, {percent(level, 'g')} interval"),
            *([Line2D([], [], color=GREY, lw=0.6, label="no minimum between sizes")]
              if any(not one.inside for fit in fits.values() for one in fit.parabolas) else []),
        ])  # fmt: skip
        caption(figure, note)
    return figure, pd.concat(shown, ignore_index=True)


def envelope(
    fits: Mapping[str, Envelope],
    draws: Mapping[str, IsoFlopDraws],
    level: float,
    note: str = "",
    width: float = DOUBLE_COLUMN_INCHES,
) -> Drawn:
    """Loss against C, a curve a run and a panel a mix, with the least of them; and the best N.

    The envelope is thick where it counts: where the best size lies between others.
    """
    style = looks(fits)
    seen = levels(np.concatenate([fit.curves.N for fit in fits.values()]))
    colours = ramp(len(seen))
    shown = []
    with drawing(width, _height(len(fits), width)) as figure:
        panels = _panels(figure, len(fits), width)
        for axes, (mix, fit) in zip(panels[:-1], fits.items(), strict=True):
            curves = fit.curves
            place = np.abs(np.log(curves.N)[:, None] - np.log(seen)).argmin(axis=1)
            for run, log_loss in enumerate(curves.log_loss):
                axes.plot(curves.C, np.exp(log_loss), color=colours[place[run]], lw=0.8)
            axes.plot(fit.C, fit.loss, color=BEST, lw=0.6, zorder=5)
            counted = np.where(fit.inside, fit.loss, np.nan)
            axes.plot(fit.C, counted, color=BEST, lw=2, zorder=6)
            top = float(np.nanmax(np.exp(curves.log_loss)))
            _near(axes, fit.loss.min(), fit.loss[fit.inside].max(), top)
            _title(axes, mix, width)
            log_axis(axes, "C, training FLOPs", flops=True)
            axes.set_ylabel("held-out loss (nats/token)")
            best = {"mix": mix, "C": fit.C, "N": fit.N, "D": fit.D, "loss": fit.loss}
            shown.append(pd.DataFrame(best | {"counts": fit.inside, "kind": "envelope"}))
            steps = np.where(fit.inside, fit.N, np.nan)
            panels[-1].plot(fit.C, steps, color=style[mix].colour, lw=2.2, alpha=0.45)
        shown += _power_laws(panels[-1], fits, draws, level)
        handles = [
            Line2D([], [], color=colour, lw=1.1, label=count(N, 3))
            for N, colour in zip(seen, colours, strict=True)
        ]
        _key(figure, handles, "N, parameters", [
            Line2D([], [], color=BEST, lw=2, label="least loss, best N between others"),
            Line2D([], [], color=BEST, lw=0.6, label="elsewhere"),
        ])  # fmt: skip
        caption(figure, note)
    return figure, pd.concat(shown, ignore_index=True)


def _near(axes: Axes, lowest: float, highest_best: float, highest: float) -> None:
    """Cut off what lies far above the least losses: models that have hardly trained."""
    span = highest_best - lowest
    axes.set_ylim(lowest - 0.08 * span, min(highest + 0.08 * span, highest_best + 0.5 * span))


def _title(axes: Axes, mix: str, width: float) -> None:
    panel_title(axes, visible(mix))
    if width > 4 and len(mix) > TITLE:
        axes.set_title(visible(mix), loc="left", color="#333333", fontsize=8 * TITLE / len(mix))


def _power_laws(
    axes: Axes,
    fits: Mapping[str, IsoFlop] | Mapping[str, Envelope],
    draws: Mapping[str, IsoFlopDraws],
    level: float,
) -> list[pd.DataFrame]:
    """N* = G_N C^a of each mix with its band, and a with its interval in a legend."""
    style = looks(fits)
    width = float(axes.figure.get_figure(root=True).get_size_inches()[0])
    # On one line where the panel is as wide as a column.
    flat = width <= 4 and max(map(len, fits)) <= TITLE + 6
    shown, handles = [], []
    for mix, fit in fits.items():
        used = _used(fit)
        C = np.geomspace(used.min() / BEYOND, used.max() * BEYOND, CURVE_POINTS)
        N = fit.optimum(C)[0]
        low, high = np.array([draws[mix].optimum(one, level)[0] for one in C]).T
        look = style[mix]
        axes.fill_between(C, low, high, color=look.colour, alpha=0.15, lw=0)
        axes.plot(C, N, color=look.colour, ls=look.line, lw=1.1, zorder=3)
        words = with_interval(fit.a, *draws[mix].exponents(level)[0])
        handles.append(
            Line2D([], [], color=look.colour, ls=look.line, lw=1.1, ms=4, mfc="none", mew=0.7,
                   marker=look.marker if isinstance(fit, IsoFlop) else "",
                   label=f"{visible(mix)}{', ' if flat else chr(10)}a = {words}")
        )  # fmt: skip
        columns = {"mix": mix, "C": C, "N": N, "low": low, "high": high, "kind": "power law"}
        shown.append(pd.DataFrame(columns))
    words = f"$N^* \\propto C^a$ [{100 * level:g} %]"
    axes.set_title(words, loc="left", color="#333333", parse_math=True)
    drawn = pd.concat(shown)[["low", "high", "N"]].to_numpy()
    bottom, top = np.log(np.nanmin(drawn)), np.log(np.nanmax(drawn))
    beside = (len(fits) + 1) % _columns(len(fits), width) > 0
    # Exponents stand above the lines, not on them, or in the empty place beside the panel.
    room = 0.05 if beside else min(EXPONENT * len(fits) * (0.75 if flat else 1) + 0.05, 0.6)
    bottom -= 0.05 * (top - bottom)
    axes.set_ylim(np.exp(bottom), np.exp(bottom + (top - bottom) / (1 - room)))
    log_axis(axes, "C, training FLOPs", flops=True)
    log_axis(axes, "best N, parameters", vertical=True)
    exponents = axes.legend(
        handles=handles, loc="upper left", fontsize=7, labelspacing=0.35, borderpad=0,
        bbox_to_anchor=(1.08, 1) if beside else None,
    )  # fmt: skip
    exponents.set_in_layout(not beside)
    for text in exponents.get_texts():
        text.set_linespacing(1.05)
    return shown


def _used(fit: IsoFlop | Envelope) -> Array:
    """Budgets that the power laws were fitted to."""
    if isinstance(fit, Envelope):
        return fit.C[fit.inside]
    return np.array([one.C for one in fit.parabolas if one.inside])


def _columns(mixes: int, width: float) -> int:
    if width <= 4:
        return 1
    return 2 if mixes in (1, 3) else 3


def _height(mixes: int, width: float) -> float:
    return 0.5 + 2.3 * -(-(mixes + 1) // _columns(mixes, width))


def _panels(figure: Figure, mixes: int, width: float) -> list[Axes]:
    """A panel a mix and one for the best N, which is the last."""
    columns = _columns(mixes, width)
    grid = figure.subplots(-(-(mixes + 1) // columns), columns, squeeze=False).ravel()
    for axes in grid[mixes + 1 :]:
        axes.remove()
    return list(grid[: mixes + 1])


def _key(figure: Figure, ramped: list[Line2D], title: str, others: list[Line2D]) -> None:
    """The ramp in order under its title, then what else is marked."""
    shown = thinned(ramped)
    legend(figure, shown, others, title=title)
    for text in figure.legends[0].get_texts():
        text.set_parse_math(True)
