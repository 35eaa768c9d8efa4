"""Figures of a sweep: data in, figure out. Each returns the figure and the table it shows."""

from __future__ import annotations

from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter

from analysis.fit import Fit
from analysis.laws import Array
from analysis.savings import matched_factor, token_range
from analysis.style import DOUBLE_COLUMN_INCHES, RC, Look, caption, looks
from analysis.tables import probability
from analysis.uncertainty import Draws, interval

# How far beyond the largest size savings are drawn, as extrapolation.
DRAWN_BEYOND = 4.0
CURVE_POINTS = 60
DASHED = (0, (3, 2))


def loss_against_tokens(
    points: pd.DataFrame, fit: Fit | None, note: str
) -> tuple[Figure, pd.DataFrame]:
    """Held-out loss against tokens, a curve a size; seeds shown one by one, means filled."""
    mixes = list(dict.fromkeys(points["mix"]))
    style = looks(mixes)
    measured = points[["mix", "size", "N", "seed", "D", "loss", "state"]].assign(kind="measured")
    shown = [measured]
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(DOUBLE_COLUMN_INCHES, 3.5), layout="constrained")
        axes = figure.subplots()
        for (mix, size), own in points.groupby(["mix", "size"], sort=False):
            look = style[str(mix)]
            mean = own.groupby("D", as_index=False)["loss"].mean()
            axes.plot(
                own["D"],
                own["loss"],
                look.marker,
                ms=3.6,
                mfc="none",
                mec=look.colour,
                mew=0.6,
                alpha=0.75,
                zorder=3,
            )
            axes.plot(mean["D"], mean["loss"], look.marker, ms=2.2, color=look.colour, zorder=4)
            if fit is None or mix not in fit.mixes:
                axes.plot(mean["D"], mean["loss"], color=look.colour, ls=look.line, lw=0.9)
                continue
            D = np.geomspace(own["D"].min() / 1.15, own["D"].max() * 1.15, CURVE_POINTS)
            curve = fit.mixes[str(mix)].law.loss(own["N"].mean(), D)
            axes.plot(D, curve, color=look.colour, ls=look.line, lw=1.1)
            shown.append(
                pd.DataFrame(
                    {"mix": mix, "size": size, "N": own["N"].mean(), "D": D, "loss": curve}
                ).assign(kind="fitted")
            )
        _name_sizes(axes, points)
        _log_axis(axes, "D, training tokens")
        axes.set_ylabel("held-out loss (nats per token)")
        axes.legend(handles=_handles(style, fitted=fit is not None), loc="upper right")
        caption(figure, note)
    return figure, pd.concat(shown, ignore_index=True)


def _name_sizes(axes: Axes, points: pd.DataFrame) -> None:
    for size, own in points.groupby("size"):
        last = own[own["D"] == own["D"].max()]
        axes.annotate(
            str(size), (last["D"].max() * 1.15, last["loss"].mean()), xytext=(3, 0),
            textcoords="offset points", va="center", fontsize=7, color="#444444",
            bbox={"facecolor": "white", "alpha": 0.8, "lw": 0, "pad": 0.5},
        )  # fmt: skip
    axes.margins(x=0.07)


def fit_with_residuals(fit: Fit, note: str) -> tuple[Figure, pd.DataFrame]:
    """Observed against fitted loss, and residuals in per cent against the fit, D and N."""
    style = looks(fit.mixes)
    table = fit.points[["mix", "size", "N", "seed", "D", "loss"]].copy()
    table["fitted"] = table["loss"] * np.exp(fit.residual)
    table["residual_percent"] = 100 * np.expm1(-fit.residual)
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(DOUBLE_COLUMN_INCHES, 3.7), layout="constrained")
        grid = figure.add_gridspec(2, 2, height_ratios=(1.5, 1), width_ratios=(1.15, 1))
        top = figure.add_subplot(grid[0, 0])
        below = figure.add_subplot(grid[1, 0], sharex=top)
        by_d, by_n = figure.add_subplot(grid[0, 1]), figure.add_subplot(grid[1, 1])
        ends = [table["fitted"].min() * 0.995, table["fitted"].max() * 1.005]
        top.plot(ends, ends, color="#999999", lw=0.8, zorder=1)
        jitter = {mix: 1.02 ** (i - (len(style) - 1) / 2) for i, mix in enumerate(style)}
        for mix, own in table.groupby("mix", sort=False):
            look = style[str(mix)]
            kind: dict[str, Any] = {
                "ls": "",
                "marker": look.marker,
                "ms": 3.2,
                "mfc": "none",
                "mew": 0.7,
            }
            top.plot(own["fitted"], own["loss"], color=look.colour, **kind)
            below.plot(own["fitted"], own["residual_percent"], color=look.colour, **kind)
            by_d.plot(own["D"], own["residual_percent"], color=look.colour, **kind)
            # Mixes stand at one N: side by side they can be told apart.
            by_n.plot(
                own["N"] * jitter[str(mix)], own["residual_percent"], color=look.colour, **kind
            )
        reach = 1.15 * table["residual_percent"].abs().max()
        for axes in (below, by_d, by_n):
            axes.axhline(0, color="#999999", lw=0.8, zorder=1)
            axes.set_ylim(-reach, reach)
            axes.set_ylabel("residual (%)")
        top.tick_params(labelbottom=False)
        top.set_ylabel("observed loss (nats/token)")
        below.set_xlabel("fitted loss (nats/token)")
        for axes, words in ((by_d, "D, training tokens"), (by_n, "N, parameters")):
            _log_axis(axes, words)
        top.legend(handles=_handles(style), loc="upper left")
        caption(figure, note)
    return figure, table


def savings_against_size(
    fit: Fit, draws: Draws, free: pd.DataFrame, baseline: str, note: str, law_fails: bool = False
) -> tuple[Figure, pd.DataFrame]:
    """Token savings against N at the largest tokens per parameter measured, with 95 % bands.

    Where the law fails its test nothing is extrapolated, and chances are those of the seeds.
    """
    style = looks(fit.mixes)
    low_n, high_n = (
        (max if end == 0 else min)(one.N_range[end] for one in fit.mixes.values()) for end in (0, 1)
    )
    margin = (1.0, 1.0) if law_fails else (1.3, DRAWN_BEYOND)
    N = np.geomspace(low_n / margin[0], high_n * margin[1], CURVE_POINTS)
    N = np.unique(np.concatenate([N, [low_n, high_n]]))
    D = token_range(fit.points, baseline, N)[1]
    others = [mix for mix in fit.mixes if mix != baseline]
    shown = []
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(DOUBLE_COLUMN_INCHES, 3.4), layout="constrained")
        axes = figure.subplots()
        axes.axvspan(low_n, high_n, color="#f2f2f2", zorder=0, lw=0)
        axes.axhline(1, color="#555555", lw=0.9, zorder=1)
        for place, mix in enumerate(others):
            curve = _savings_curve(fit, draws, baseline, mix, N, D)
            _draw_savings(axes, curve, style[mix], low_n, high_n)
            shown.append(curve.assign(mix=mix, kind="fitted"))
            chance = _chance(curve, free, mix, high_n, draws.resamples, law_fails)
            text = f"P(savings of {mix} > 1) {chance} at the largest size measured"
            at = (0.012, 0.03 + 0.065 * place)
            axes.annotate(text, at, xycoords="axes fraction", fontsize=7, color=style[mix].colour)
        axes.set_yscale("log")
        axes.set_xscale("log")
        _limit(axes, pd.concat(shown), free, low_n, high_n)
        measured = _draw_fit_free(axes, free, style)
        _log_axis(axes, "N, parameters")
        _ratio_axis(axes)
        axes.set_ylabel(f"token savings over {baseline}")
        axes.text(
            np.sqrt(low_n * high_n),
            0.985,
            "measured range",
            ha="center",
            va="top",
            transform=axes.get_xaxis_transform(),
            fontsize=7,
            color="#777777",
        )
        if law_fails:
            axes.text(
                0.5,
                0.92,
                "The law fits these points badly: no extrapolation drawn",
                ha="center",
                va="top",
                transform=axes.transAxes,
                fontsize=7,
                color="#444444",
            )
        axes.legend(
            handles=_savings_handles(style, others, free, law_fails),
            loc="upper left",
            bbox_to_anchor=(1.0, 1.0),
            borderaxespad=0.2,
        )
        caption(figure, note)
    return figure, pd.concat([*shown, measured], ignore_index=True)


def _savings_curve(
    fit: Fit, draws: Draws, baseline: str, mix: str, N: Array, D: Array
) -> pd.DataFrame:
    rows = []
    for n, d in zip(N, D, strict=True):
        value = float(matched_factor(fit.mixes[baseline].law, fit.mixes[mix].law, n, d))
        factors = matched_factor(draws.laws[baseline], draws.laws[mix], n, d)
        low, high, unreachable = interval(factors)
        above = float((factors > 1).mean())
        rows.append((n, d, value, low, high, above, unreachable))
    columns = ["N", "D", "value", "low", "high", "p_above_1", "unreachable"]
    return pd.DataFrame(rows, columns=columns)


def _draw_savings(axes: Axes, curve: pd.DataFrame, look: Look, low_n: float, high_n: float) -> None:
    inside = curve[(curve["N"] >= low_n) & (curve["N"] <= high_n)]
    axes.fill_between(
        curve["N"],
        curve["low"].clip(1e-3),
        curve["high"].clip(upper=1e3),
        color=look.colour,
        alpha=0.10,
        lw=0,
    )
    axes.fill_between(
        inside["N"],
        inside["low"].clip(1e-3),
        inside["high"].clip(upper=1e3),
        color=look.colour,
        alpha=0.16,
        lw=0,
    )
    axes.plot(inside["N"], inside["value"], color=look.colour, lw=1.7)
    for beyond in (curve[curve["N"] <= low_n], curve[curve["N"] >= high_n]):
        axes.plot(beyond["N"], beyond["value"].clip(1e-3), color=look.colour, ls=DASHED, lw=1.2)


def _chance(
    curve: pd.DataFrame,
    free: pd.DataFrame,
    mix: str,
    high_n: float,
    resamples: int,
    law_fails: bool,
) -> str:
    """P(savings > 1) at the largest size: of the draws, or of the seeds where the law fails."""
    if not law_fails:
        at = curve.iloc[(curve["N"] - high_n).abs().argmin()]
        return probability(float(at["p_above_1"]), resamples)
    own = free[(free["mix"] == mix) & free["p_above_1"].notna()]
    return "not known" if own.empty else f"{probability(own['p_above_1'].iloc[-1], 1000)} by seeds"


def _draw_fit_free(axes: Axes, free: pd.DataFrame, style: dict[str, Look]) -> pd.DataFrame:
    for mix, own in free.groupby("mix", sort=False):
        look = style[str(mix)]
        seeds, mean = own[own["seed"] != "mean"], own[own["seed"] == "mean"]
        axes.plot(
            seeds["N"],
            seeds["value"],
            look.marker,
            ms=3,
            mfc="none",
            mec=look.colour,
            mew=0.6,
            alpha=0.8,
        )
        axes.vlines(mean["N"], mean["low"], mean["high"], color=look.colour, lw=1, zorder=4)
        axes.plot(
            mean["N"],
            mean["value"],
            look.marker,
            ms=5,
            color=look.colour,
            mec="white",
            mew=0.6,
            zorder=5,
        )
        for row in mean[mean["bound"] != ""].itertuples():
            # One mix is past the target at its first point already: the truth lies that way.
            away = 1 if row.bound == "at least" else -1
            axes.annotate(
                "",
                (row.N, row.value),
                xytext=(0, 16 * away),
                textcoords="offset points",
                arrowprops={"arrowstyle": "<|-", "color": look.colour, "lw": 1},
            )
    return free[
        ["mix", "size", "N", "seed", "target_loss", "value", "bound", "low", "high"]
    ].assign(kind="measured", D=free["D_baseline"])


def _limit(
    axes: Axes, curves: pd.DataFrame, free: pd.DataFrame, low_n: float, high_n: float
) -> None:
    """Fit the view to what was measured; bands that leave it are cut, not the message."""
    inside = curves[(curves["N"] >= low_n) & (curves["N"] <= high_n)]
    shown = [inside[["value", "low", "high"]], curves[["value"]], free[["value", "low", "high"]]]
    everything = np.concatenate([table.to_numpy(float).ravel() for table in shown] + [[1.0]])
    good = everything[np.isfinite(everything) & (everything > 0)]
    low, high = max(good.min() / 1.2, 0.05), min(good.max() * 1.15, 20.0)
    axes.set_ylim(min(low, 0.8), max(high, 1.25))
    axes.set_xlim(min(curves["N"].min(), low_n / 1.3), max(curves["N"].max(), high_n * 1.3))


def _ratio_axis(axes: Axes) -> None:
    low, high = axes.get_ylim()
    fine = [0.5, 0.6, 0.7, 0.8, 0.9, 1, 1.1, 1.2, 1.3, 1.4, 1.5, 1.75, 2, 2.5]
    coarse = [0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 3, 5, 7, 10, 20]
    ticks = [tick for tick in (fine if high / low < 4 else coarse) if low <= tick <= high]
    axes.yaxis.set_major_locator(FixedLocator(ticks))
    axes.yaxis.set_minor_locator(FixedLocator([]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda tick, _: f"{tick:g}×"))


def _log_axis(axes: Axes, label: str) -> None:
    """A logarithmic x axis with counts in words; to be called when all is drawn."""
    axes.set_xlabel(label)
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0,) if high / low > 1000 else (1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda tick, _: count_words(tick)))
    axes.xaxis.set_minor_formatter(NullFormatter())


def count_words(count: float) -> str:
    """A count of parameters or tokens in short: 57M, 1.3B, 400k."""
    for unit, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= unit * 0.9995:
            return f"{count / unit:.3g}{letter}"
    return f"{count:.3g}"


def _handles(style: dict[str, Look], fitted: bool = False) -> list[Line2D]:
    found = [
        Line2D([], [], color=look.colour, marker=look.marker, ms=4, mew=0.7, mfc="none",
               ls=look.line if fitted else "", label=mix)
        for mix, look in style.items()
    ]  # fmt: skip
    if fitted:
        found.append(
            Line2D([], [], color="#888888", marker="o", ms=2.2, ls="", label="mean of seeds")
        )
    return found


def _savings_handles(
    style: dict[str, Look], others: list[str], free: pd.DataFrame, law_fails: bool
) -> list[Line2D]:
    found = [
        Line2D([], [], color=style[mix].colour, lw=1.7, marker=style[mix].marker, ms=4.5,
               mec="white", mew=0.6, label=mix)
        for mix in others
    ]  # fmt: skip
    grey = "#777777"
    found.append(Line2D([], [], color=grey, lw=6, alpha=0.3, label="95 % interval"))
    if not law_fails:
        found.append(Line2D([], [], color=grey, lw=1.2, ls=DASHED, label="extrapolated"))
    if len(free):
        mark: dict[str, Any] = {"marker": "o", "ls": "", "color": grey}
        found.append(Line2D([], [], ms=4.5, label="no fit, seed mean", **mark))
        found.append(Line2D([], [], ms=3, mfc="none", label="no fit, one seed", **mark))
        if (free["bound"] == "at least").any():
            found.append(
                Line2D([], [], **mark | {"marker": "$\\uparrow$", "ms": 6}, label="at least that")
            )
        if (free["bound"] == "at most").any():
            found.append(
                Line2D([], [], **mark | {"marker": "$\\downarrow$", "ms": 6}, label="at most that")
            )
    return found
