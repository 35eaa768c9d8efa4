"""Figures of token savings: against size, and against the target loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.markers import MarkerStyle
from matplotlib.patches import Patch
from scipy.interpolate import CubicHermiteSpline, PchipInterpolator

from ablations.records import visible
from analysis.report.figures.axes import (
    CURVE_POINTS,
    DASHED,
    GREY,
    RANGE,
    Drawn,
    edges,
    legend,
    log_axis,
    place_handles,
    published_handle,
    ratio_axis,
)
from analysis.report.figures.style import (
    DOUBLE_COLUMN_INCHES,
    Look,
    caption,
    drawing,
    looks,
    panel_title,
)
from analysis.stats.fit import Fit
from analysis.stats.interaction import Interaction
from analysis.stats.interval import percentiles, share_unreachable
from analysis.stats.laws import Array
from analysis.stats.savings import (
    Saving,
    matched_factor,
    places,
    savings_factor,
    token_range,
    versus_of,
)
from analysis.stats.uncertainty import Draws
from analysis.study.arms import MARK
from models.format import count, percent, probability

# Made here, as no text is mathematics while a figure is drawn.
UPWARD, DOWNWARD = MarkerStyle(r"$\uparrow$"), MarkerStyle(r"$\downarrow$")

# Characters that fit along the axis at the usual size.
LABEL = 36
# How far beyond the largest size savings are drawn, as extrapolation.
DRAWN_BEYOND = 4.0
# Ends of an interval beyond these factors are cut.
VIEW = (0.02, 50.0)


def savings_against_size(
    fit: Fit,
    draws: Draws,
    free: pd.DataFrame,
    baseline: str | Mapping[str, str],
    note: str = "",
    law_fails: bool = False,
    width: float = DOUBLE_COLUMN_INCHES,
    published: pd.DataFrame | None = None,
) -> Drawn:
    """Token savings against N at the largest tokens per parameter measured, with their intervals.

    `baseline` is one for all mixes, or each one's own.
    Where the law fails its test nothing is extrapolated, and chances are those of the seeds.
    `published` (columns mix, N, value, low, high) is drawn hollow.
    """
    # Marks without a fit are there for mixes that have no law yet, too.
    style = looks(dict.fromkeys([*fit.mixes, *free["mix"]]))
    low_n, high_n = (
        (max if end == 0 else min)(one.N_range[end] for one in fit.mixes.values()) for end in (0, 1)
    )
    margin = (1.0, 1.0) if law_fails else (1.3, DRAWN_BEYOND)
    N = np.geomspace(low_n / margin[0], high_n * margin[1], CURVE_POINTS)
    N = np.unique(np.concatenate([N, [low_n, high_n]]))
    versus = versus_of(fit.mixes, baseline)
    others = list(versus)
    shown, chances = [], {}
    with drawing(width, 3.1 if width > 4 else 3.4) as figure:
        axes = figure.subplots()
        axes.axvspan(low_n, high_n, color=RANGE, zorder=0, lw=0)
        axes.axhline(1, color="#555555", lw=0.9, zorder=1)
        for mix in others:
            D = _budgets(fit.points, versus[mix], N)
            curve = _savings_curve(fit, draws, versus[mix], mix, N, D)
            inside = (curve["N"] >= low_n) & (curve["N"] <= high_n)
            _draw_band(axes, curve, "N", inside, style[mix])
            shown.append(curve.assign(mix=mix, kind="fitted"))
            chance = _chance(curve, free, mix, high_n, draws.resamples, law_fails)
            chances[mix] = f"{mix}, P(savings > 1) {chance}"
        axes.set_yscale("log")
        axes.set_xscale("log")
        _limit(axes, pd.concat(shown), free, low_n, high_n)
        measured = _draw_fit_free(axes, free, style)
        shown += _draw_published(axes, published, style)
        log_axis(axes, "N, parameters")
        ratio_axis(axes)
        _label_over(axes, versus)
        if law_fails:
            panel_title(axes, "the law fits these points badly: no extrapolation")
        mixes, handles = _savings_handles(style, chances, free, not law_fails, draws.level)
        handles.append(Patch(fc=RANGE, label="measured range"))
        if published is not None:
            handles.append(published_handle("published"))
        legend(figure, mixes, handles)
        caption(figure, note)
    return figure, pd.concat([*shown, measured], ignore_index=True)


def savings_against_loss(
    fit: Fit,
    draws: Draws,
    baseline: str | Mapping[str, str],
    N: float,
    note: str = "",
    law_fails: bool = False,
    width: float = DOUBLE_COLUMN_INCHES,
) -> Drawn:
    """Token savings at N parameters against the target loss, with their intervals.

    Solid where both mixes' budgets for that loss were measured, dashed outside; where the law fails
    its test, losses beyond the baseline's budgets are not drawn.
    """
    style = looks(fit.mixes)
    versus = versus_of(fit.mixes, baseline)
    others = list(versus)
    margin = (1.0, 1.0) if law_fails else (1.5, DRAWN_BEYOND)
    shown = []
    with drawing(width, 3.1 if width > 4 else 3.4) as figure:
        axes = figure.subplots()
        axes.axhline(1, color="#555555", lw=0.9, zorder=1)
        for mix, own in versus.items():
            low_d, high_d = (float(end) for end in token_range(fit.points, own, N))
            budgets = np.geomspace(low_d / margin[0], high_d * margin[1], CURVE_POINTS)
            targets = fit.mixes[own].law.loss(N, budgets)
            curve = _curve_of_targets(fit, draws, own, mix, N, targets)
            low_m, high_m = (float(end) for end in token_range(fit.points, mix, N))
            inside = curve["D_baseline"].between(low_d / 1.01, high_d * 1.01)
            inside &= curve["D_mix"].between(low_m / 1.01, high_m * 1.01)
            _draw_band(axes, curve, "target_loss", inside, style[mix])
            shown.append(curve.assign(mix=mix, in_range=inside))
        table = pd.concat(shown, ignore_index=True)
        axes.set_yscale("log")
        good = table.loc[table["in_range"] | (table["value"] > 0), ["value", "low", "high"]]
        seen = good.to_numpy()[np.isfinite(good.to_numpy()) & (good.to_numpy() > 0)]
        axes.set_ylim(max(min(seen.min() / 1.1, 0.8), 0.05), min(max(seen.max() * 1.1, 1.25), 20))
        axes.invert_xaxis()
        axes.set_xlabel(f"target loss at N = {count(N, 3)} (nats per token)")
        ratio_axis(axes)
        _label_over(axes, versus)
        none = pd.DataFrame({"bound": []})
        named = {mix: mix for mix in others}
        beyond = not table["in_range"].all()
        handles = _savings_handles(style, named, none, beyond, draws.level)
        legend(figure, *handles, beside=True)
        caption(figure, note)
    return figure, table


def savings_by_place(
    savings: list[Saving], note: str = "", width: float = DOUBLE_COLUMN_INCHES
) -> Drawn:
    """Savings of any kind with their intervals, a row for each mix and place; extrapolated ones are
    hollow."""
    style = looks(dict.fromkeys(one.mix for one in savings))
    with drawing(width, 0.9 + 0.25 * len(savings)) as figure:
        axes = figure.subplots()
        axes.axvline(1, color="#555555", lw=0.9, zorder=1)
        for row, one in enumerate(savings):
            look = style[one.mix]
            ends = np.clip([one.low, one.high], *VIEW)
            axes.hlines(row, *ends, color=look.colour, lw=1.4)
            axes.plot(
                np.clip(one.value, *VIEW), row, ls="", marker=look.marker, ms=5, mec=look.colour,
                mfc=look.colour if one.in_range else "white",
            )  # fmt: skip
        names = [
            f"{visible(one.mix)}, N = {count(one.N, 3)}, D = {count(one.D, 3)}" for one in savings
        ]
        axes.set_yticks(range(len(savings)), names)
        axes.set_ylim(len(savings) - 0.5, -0.5)
        axes.set_xscale("log")
        ratio_axis(axes, vertical=False)
        axes.set_xlabel(f"savings of {savings[0].kind} over {visible(savings[0].baseline)}")
        legend(figure, place_handles([one.in_range for one in savings]))
        caption(figure, note)
    columns = ("mix", "kind", "where", "N", "D", "target_loss", "value", "low", "high")
    return figure, pd.DataFrame([{name: one.row[name] for name in columns} for one in savings])


def ratios_of_savings(
    interactions: list[tuple[str, Interaction]],
    note: str = "",
    width: float = DOUBLE_COLUMN_INCHES,
) -> Drawn:
    """What other treatments do to savings, a row for each (words, ratio); extrapolated ones are
    hollow."""
    style = looks(dict.fromkeys(one.mix for _, one in interactions))
    with drawing(width, 0.9 + 0.25 * len(interactions)) as figure:
        axes = figure.subplots()
        axes.axvline(1, color="#555555", lw=0.9, zorder=1)
        for row, (_, one) in enumerate(interactions):
            look = style[one.mix]
            ends = np.clip([one.interval.low, one.interval.high], *VIEW)
            axes.hlines(row, *ends, color=look.colour, lw=1.4)
            axes.plot(
                np.clip(one.value, *VIEW), row, ls="", marker=look.marker, ms=5, mec=look.colour,
                mfc=look.colour if one.in_range else "white",
            )  # fmt: skip
        names = [f"{visible(words)}, N = {count(one.N, 3)}" for words, one in interactions]
        axes.set_yticks(range(len(interactions)), names)
        axes.set_ylim(len(interactions) - 0.5, -0.5)
        axes.set_xscale("log")
        ratio_axis(axes, vertical=False)
        axes.set_xlabel("ratio of two token savings")
        legend(figure, place_handles([one.in_range for _, one in interactions]))
        caption(figure, note)
    rows = [{"comparison": words} | one.row for words, one in interactions]
    return figure, pd.DataFrame(rows)


def _label_over(axes: Axes, versus: Mapping[str, str]) -> None:
    baselines = list(dict.fromkeys(versus.values()))
    one = baselines[0] if len(baselines) == 1 else f"{baselines[0].partition(MARK)[0]}, by level"
    words = f"token savings over {one}"
    if len(words) > LABEL:
        words = f"token savings\nover {one}"
    longest = max(map(len, words.split("\n")))
    axes.set_ylabel(words, fontsize=9 * min(1, LABEL / longest))


def _curve_of_targets(
    fit: Fit, draws: Draws, baseline: str, mix: str, N: float, targets: Array
) -> pd.DataFrame:
    laws = fit.mixes[baseline].law, fit.mixes[mix].law
    rows = []
    for target in targets:
        value = float(savings_factor(*laws, N, target))
        factors = savings_factor(draws.laws[baseline], draws.laws[mix], N, target)
        tokens = [float(law.tokens(N, target)) for law in laws]
        ends = percentiles(factors, draws.level)
        rows.append((N, float(target), *tokens, value, *ends, share_unreachable(factors)))
    columns = ["N", "target_loss", "D_baseline", "D_mix", "value", "low", "high", "unreachable"]
    return pd.DataFrame(rows, columns=columns)


def _draw_band(axes: Axes, curve: pd.DataFrame, x: str, inside: pd.Series, look: Look) -> None:
    """A curve with its band: strong and solid inside what was measured, pale and dashed outside."""
    for some, strength in ((curve, 0.10), (curve[inside], 0.16)):
        low, high = some["low"].clip(1e-3), some["high"].clip(upper=1e3)
        axes.fill_between(some[x], low, high, color=look.colour, alpha=strength, lw=0)
    axes.plot(curve[x], curve["value"].where(inside), color=look.colour, lw=1.7)
    # The dashes begin where the solid line ends.
    edge = edges((~inside).to_numpy())
    beyond = curve["value"].clip(1e-3).where(edge)
    axes.plot(curve[x], beyond, color=look.colour, ls=DASHED, lw=1.2)


def _draw_published(
    axes: Axes, published: pd.DataFrame | None, style: dict[str, Look]
) -> list[pd.DataFrame]:
    if published is None:
        return []
    own = published[published["mix"].isin(list(style))]
    for one in own.to_dict("records"):
        look = style[one["mix"]]
        axes.vlines(one["N"], one["low"], one["high"], color=look.colour, lw=0.7, ls=(0, (1, 1.5)))
        axes.plot(
            one["N"],
            one["value"],
            ls="",
            marker=look.marker,
            ms=5.5,
            mfc="white",
            mec=look.colour,
            zorder=6,
        )
    high = max(axes.get_xlim()[1], own["N"].max() * 1.3)
    axes.set_xlim(axes.get_xlim()[0], high)
    return [own.assign(kind="published")]


def _budgets(points: pd.DataFrame, baseline: str, N: Array) -> Array:
    """Largest D measured for the baseline at each N, smooth in logarithms between its sizes.

    `token_range` joins the same tokens per parameter by straight lines, which would put a kink into
    the curve at every size. Beyond the sizes they stay those of the nearest, as there.
    """
    _, sizes, largest = zip(*places(points, baseline), strict=True)
    log_n, ratio = np.log(sizes), np.log(largest) - np.log(sizes)
    if len(sizes) == 1:
        return N * np.exp(ratio[0])
    # Slopes that never overshoot a measured ratio, and level ends to go on from.
    slopes = PchipInterpolator(log_n, ratio).derivative()(log_n)
    slopes[[0, -1]] = 0
    inside = np.clip(np.log(N), log_n[0], log_n[-1])
    return N * np.exp(CubicHermiteSpline(log_n, ratio, slopes)(inside))


def _savings_curve(
    fit: Fit, draws: Draws, baseline: str, mix: str, N: Array, D: Array
) -> pd.DataFrame:
    rows = []
    for n, d in zip(N, D, strict=True):
        value = float(matched_factor(fit.mixes[baseline].law, fit.mixes[mix].law, n, d))
        factors = matched_factor(draws.laws[baseline], draws.laws[mix], n, d)
        above = float((factors > 1).mean())
        ends = percentiles(factors, draws.level)
        rows.append((n, d, value, *ends, above, share_unreachable(factors)))
    columns = ["N", "D", "value", "low", "high", "p_above_1", "unreachable"]
    return pd.DataFrame(rows, columns=columns)


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
    return "not known" if own.empty else probability(own["p_above_1"].iloc[-1], 1000)


def _draw_fit_free(axes: Axes, free: pd.DataFrame, style: dict[str, Look]) -> pd.DataFrame:
    for mix, own in free.groupby("mix", sort=False):
        look = style[str(mix)]
        seeds, mean = own[own["seed"] != "mean"], own[own["seed"] == "mean"]
        axes.plot(
            seeds["N"],
            seeds["value"],
            ls="",
            marker=look.marker,
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
            ls="",
            marker=look.marker,
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


def _savings_handles(
    style: dict[str, Look],
    words: Mapping[str, str],
    free: pd.DataFrame,
    dashed: bool,
    level: float,
) -> tuple[list[Line2D], list[Artist]]:
    mixes = [
        Line2D([], [], color=style[mix].colour, lw=1.7, marker=style[mix].marker if len(free) else
               "", ms=4.5, mec="white", mew=0.6, label=label)
        for mix, label in words.items()
    ]  # fmt: skip
    found: list[Artist] = [Patch(fc=GREY, alpha=0.3, label=f"{percent(level, 'g')} interval")]
    if dashed:
        found.append(Line2D([], [], color=GREY, lw=1.2, ls=DASHED, label="extrapolated"))
    if len(free):
        mark: dict[str, Any] = {"marker": "o", "ls": "", "color": GREY}
        if (free["seed"] == "mean").any():
            found.append(Line2D([], [], ms=4.5, label="no fit, mean of seeds", **mark))
        if (free["seed"] != "mean").any():
            found.append(Line2D([], [], ms=3, mfc="none", label="no fit, one seed", **mark))
        if (free["bound"] == "at least").any():
            found.append(
                Line2D([], [], **mark | {"marker": UPWARD, "ms": 6}, label="at least that")
            )
        if (free["bound"] == "at most").any():
            found.append(
                Line2D([], [], **mark | {"marker": DOWNWARD, "ms": 6}, label="at most that")
            )
    return mixes, found
