"""Figures of fitted laws over N and D: iso-loss contours, and the compute-optimal frontier."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle

from ablations.records import visible
from analysis.report.figures.axes import (
    CURVE_POINTS,
    GREY,
    RANGE,
    Drawn,
    edges,
    hollow,
    legend,
    log_axis,
    mix_handles,
)
from analysis.report.figures.style import DOUBLE_COLUMN_INCHES, caption, drawing, looks, panel_title
from analysis.stats.fit import Fit
from analysis.stats.interval import percentiles
from analysis.stats.laws import Array, Chinchilla
from analysis.stats.other_savings import flops_factor
from analysis.stats.savings import versus_of
from analysis.stats.solver import Mask
from analysis.stats.uncertainty import Draws

# Contours and frontiers are drawn this far beyond the measured range, in N and D or in C.
BEYOND = 2.0
# Room for the loss at the end of a contour, and what stands beside the axes.
LABEL_INCHES, AXIS_INCHES = 0.36, 0.75
BEYOND_C = 10.0


def iso_loss(
    fit: Fit,
    baseline: str | Mapping[str, str],
    note: str = "",
    width: float = DOUBLE_COLUMN_INCHES,
) -> Drawn:
    """Contours of equal fitted loss in (N, D), a panel a mix beside the baseline, at equal levels.

    Where a mix's contour lies below the baseline's it needs fewer tokens. Points are those
    measured, the box is their range; contours are thin where N or D lies outside what their own mix
    measured (`in_range` of the table).
    """
    versus = versus_of(fit.mixes, baseline)
    others = list(versus)
    columns = min(len(others), 2 if width > 4 else 1)
    rows = -(-len(others) // columns)
    shown = []
    with drawing(width, 0.5 + 3.0 * rows) as figure:
        grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).ravel()
        label = LABEL_INCHES / (width / columns - AXIS_INCHES)
        for axes, mix in zip(grid, others, strict=False):
            shown.append(_contours(axes, fit, versus[mix], mix, label))
        for axes in grid[len(others) :]:
            axes.remove()
        legend(figure, [
            *mix_handles(looks(fit.mixes), fitted=True),
            Patch(fc=RANGE, label="measured range"),
            Line2D([], [], color=GREY, lw=0.6, label="thin: beyond it"),
        ])  # fmt: skip
        caption(figure, note)
    return figure, pd.concat(shown, ignore_index=True).replace(np.inf, np.nan)


def _contours(axes: Axes, fit: Fit, baseline: str, mix: str, label: float) -> pd.DataFrame:
    """Contours of one panel; `label` is the share of its width that a contour's loss takes."""
    both = {name: look for name, look in looks(fit.mixes).items() if name in (baseline, mix)}
    points = fit.points[fit.points["mix"].isin(list(both))]
    (low_n, high_n), (low_d, high_d) = (
        (float(points[name].min()), float(points[name].max())) for name in ("N", "D")
    )
    N = np.geomspace(low_n / BEYOND, high_n * BEYOND, CURVE_POINTS)
    box = (low_n, low_d), high_n - low_n, high_d - low_d
    axes.add_patch(Rectangle(*box, facecolor=RANGE, edgecolor="none", zorder=0))
    rows = []
    for target in _levels(fit.mixes[baseline].law, (low_n, low_d), (high_n, high_d)):
        for name, look in both.items():
            tokens = fit.mixes[name].law.tokens(N, target)
            seen = (tokens >= low_d / BEYOND) & (tokens <= high_d * BEYOND)
            inside = _measured(fit, name, N, tokens)
            for some, weight in ((inside, 1.6), (edges(~inside), 0.6)):
                shown = np.where(seen & some, tokens, np.nan)
                axes.plot(N, shown, color=look.colour, ls=look.line, lw=weight)
            columns = {"against": mix, "mix": name, "loss": target, "N": N, "D": tokens}
            rows.append(pd.DataFrame(columns | {"in_range": inside}))
            if name == baseline and seen.any():
                at = np.flatnonzero(seen)[-1]
                # Above the axis where the contour ends there.
                low = at < len(N) - 1
                axes.annotate(
                    f"{target:.3f}", (N[at], max(tokens[at], low_d / BEYOND)), xytext=(3, 2 * low),
                    va="bottom" if low else "center", textcoords="offset points", fontsize=6.5,
                    color="#444444",
                )  # fmt: skip
    for name, look in both.items():
        own = points[points["mix"] == name]
        axes.plot(own["N"], own["D"], **hollow(look, 3, len(points)))
    axes.set_xlim(N[0], N[-1] * (N[-1] / N[0]) ** (label / (1 - label)))
    axes.set_ylim(low_d / BEYOND, high_d * BEYOND)
    log_axis(axes, "N, parameters")
    log_axis(axes, "D, training tokens", vertical=True)
    panel_title(axes, visible(mix))
    return pd.concat(rows, ignore_index=True)


def _measured(fit: Fit, mix: str, N: Array, D: Array) -> Mask:
    """Whether (N, D) lie in the box of what a mix measured."""
    (low_n, high_n), (low_d, high_d) = fit.mixes[mix].N_range, fit.mixes[mix].D_range
    return (low_n <= N) & (high_n >= N) & (low_d <= D) & (high_d >= D)


def _levels(law: Chinchilla, low: tuple[float, float], high: tuple[float, float]) -> Array:
    worst, best = float(law.loss(*low)), float(law.loss(*high))
    # Evenly spaced in the logarithm of what can be learnt, rounded so that a level can be read.
    levels = law.E + np.geomspace(worst - law.E, max(best - law.E, 1e-9), 8)[1:]
    return np.unique(np.round(levels, 3))


def frontier(fit: Fit, draws: Draws, note: str = "", width: float = DOUBLE_COLUMN_INCHES) -> Drawn:
    """Compute-optimal N, D and loss against training FLOPs, each mix with its own FLOPs per token.

    FLOPs are C = k N D with each mix's measured k, or 6 where none was recorded. Bands are
    intervals. Thick where the optimum's N, D and C all lie within what was measured (`in_range` of
    the table).
    """
    style = looks(fit.mixes)
    per = {mix: flops_factor(fit.points, mix) for mix in fit.mixes}
    C = {mix: per[mix] * fit.points["N"] * fit.points["D"] for mix in fit.mixes}
    low = min(float(c.min()) for c in C.values())
    high = max(float(c.max()) for c in C.values())
    grid = np.geomspace(low, high * BEYOND_C, CURVE_POINTS)
    labels = {"N": "optimal N, parameters", "D": "optimal D, tokens", "loss": "optimal loss"}
    rows = []
    with drawing(width, 2.5 if width > 4 else 6.0) as figure:
        panels = figure.subplots(1, 3) if width > 4 else figure.subplots(3, 1)
        for mix, look in style.items():
            curve = _optimum(fit, draws, mix, grid, per[mix])
            own = fit.mixes[mix]
            inside = (curve["C"] <= high) & curve["N"].between(*own.N_range)
            inside &= curve["D"].between(*own.D_range)
            rows.append(curve.assign(mix=mix, flops_per_N_D=per[mix], in_range=inside))
            edge = edges((~inside).to_numpy())
            for axes, name in zip(panels, labels, strict=True):
                band = curve[f"{name}_low"], curve[f"{name}_high"]
                axes.fill_between(curve["C"], *band, color=look.colour, alpha=0.13, lw=0)
                within, beyond = curve[name].where(inside), curve[name].where(edge)
                axes.plot(curve["C"], within, color=look.colour, ls=look.line)
                axes.plot(curve["C"], beyond, color=look.colour, ls=look.line, lw=0.7, alpha=0.7)
        table = pd.concat(rows, ignore_index=True)
        for axes, (name, label) in zip(panels, labels.items(), strict=True):
            axes.axvline(high, color=GREY, lw=0.7, ls=":")
            middle = table[name]
            if name == "loss":
                axes.set_ylabel(f"{label} (nats/token)")
            else:
                axes.set_ylim(middle.min() / 3, middle.max() * 3)
                log_axis(axes, label, vertical=True)
            log_axis(axes, "C, training FLOPs", flops=True)
        handles = mix_handles(style, fitted=True)
        for handle in handles:
            handle.set_marker("")
        handles.append(Line2D([], [], color=GREY, lw=0.7, label="thin: beyond N, D or C measured"))
        handles.append(Line2D([], [], color=GREY, lw=0.7, ls=":", label="largest C measured"))
        legend(figure, handles)
        caption(figure, note)
    return figure, table


def _optimum(fit: Fit, draws: Draws, mix: str, C: Array, per: float) -> pd.DataFrame:
    columns: dict[str, Array] = {"C": C}
    law, drawn = fit.mixes[mix].law, draws.laws[mix]
    # The law's optimum is for C = 6 N D.
    one, several = law.optimum(6 * C / per), drawn.optimum(6 * C[:, None] / per)
    values = (*one, law.loss(*one)), (*several, drawn.loss(*several))
    for name, best, draw in zip(("N", "D", "loss"), *values, strict=True):
        ends = np.array([percentiles(row, draws.level) for row in draw])
        columns |= {name: best, f"{name}_low": ends[:, 0], f"{name}_high": ends[:, 1]}
    return pd.DataFrame(columns)
