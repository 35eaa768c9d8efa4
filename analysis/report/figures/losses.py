"""Figures of what was measured: held-out loss against tokens and FLOPs, and BPB by domain."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from ablations.records import visible
from analysis.report.figures.axes import (
    CURVE_POINTS,
    GREY,
    Drawn,
    by_size,
    cross_out,
    hollow,
    in_order,
    legend,
    log_axis,
    mix_handles,
    place_handles,
    seed_handles,
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
from analysis.stats.laws import Ray
from analysis.stats.predict import Prediction
from analysis.stats.rays import Axis, flops
from analysis.study.load import common_budget
from models.format import count

AXES = {"N": "N, parameters", "D": "D, training tokens", "C": "C, training FLOPs"}


def loss_against_tokens(
    points: pd.DataFrame, note: str = "", width: float = DOUBLE_COLUMN_INCHES
) -> Drawn:
    """Held-out loss against tokens as measured: seeds one by one, a line through their means."""
    return _loss_against("D", points, note, width)


def loss_against_flops(
    points: pd.DataFrame, note: str = "", width: float = DOUBLE_COLUMN_INCHES
) -> Drawn:
    """The same against training FLOPs, where points carry them (column C)."""
    return _loss_against("C", points[points["C"] > 0], note, width)


def loss_along(
    axis: Axis,
    points: pd.DataFrame,
    laws: dict[str, Ray],
    note: str = "",
    width: float = DOUBLE_COLUMN_INCHES,
) -> Drawn:
    """Held-out loss against C, N or D where the rest is constant, and the law of each mix there."""
    style = looks(laws)
    shown = []
    with drawing(width, 3.2) as figure:
        axes = figure.subplots()
        for mix, law in laws.items():
            own = points[points["mix"] == mix]
            x = flops(own) if axis == "C" else own[axis].to_numpy(float)
            measured = pd.DataFrame({"mix": mix, axis: x, "loss": own["loss"], "kind": "measured"})
            axes.plot(
                measured[axis], measured["loss"], zorder=3, **hollow(style[mix], of=len(points))
            )
            grid = np.geomspace(x.min(), x.max(), CURVE_POINTS)
            curve = pd.DataFrame({"mix": mix, axis: grid, "loss": law.loss(grid)})
            axes.plot(curve[axis], curve["loss"], color=style[mix].colour, ls=style[mix].line)
            shown += [measured, curve.assign(kind="fitted")]
        log_axis(axes, AXES[axis], flops=axis == "C")
        axes.set_ylabel("held-out loss (nats per token)")
        legend(figure, mix_handles(style, fitted=True), beside=True)
        caption(figure, note)
    return figure, pd.concat(shown, ignore_index=True)


def predictions_by_place(
    predictions: list[Prediction], note: str = "", width: float = DOUBLE_COLUMN_INCHES
) -> Drawn:
    """Predicted losses, a row for each place and mix: the law's interval thick, that of one more
    run thin; extrapolated ones are hollow."""
    style = looks(dict.fromkeys(one.mix for one in predictions))
    with drawing(width, 0.9 + 0.25 * len(predictions)) as figure:
        axes = figure.subplots()
        for row, one in enumerate(predictions):
            look = style[one.mix]
            for ends, width_points in ((one.run_interval, 0.8), (one.interval, 2.2)):
                axes.hlines(row, ends.low, ends.high, color=look.colour, lw=width_points)
            axes.plot(
                one.loss, row, ls="", marker=look.marker, ms=5, mec=look.colour,
                mfc=look.colour if one.in_range else "white",
            )  # fmt: skip
        names = [
            f"{visible(one.mix)}, N = {count(one.N, 3)}, D = {count(one.D, 3)}"
            for one in predictions
        ]
        axes.set_yticks(range(len(predictions)), names)
        axes.set_ylim(len(predictions) - 0.5, -0.5)
        axes.set_xlabel("predicted loss (nats per token)")
        handles = [
            Line2D([], [], color=GREY, lw=2.2, label="interval of the law"),
            Line2D([], [], color=GREY, lw=0.8, label="of one more run"),
        ]
        legend(figure, handles, place_handles([one.in_range for one in predictions]))
        caption(figure, note)
    rows = [
        {
            "mix": one.mix, "N": one.N, "D": one.D, "loss": one.loss,
            "low": one.interval.low, "high": one.interval.high,
            "run_low": one.run_interval.low, "run_high": one.run_interval.high,
        }
        for one in predictions
    ]  # fmt: skip
    return figure, pd.DataFrame(rows)


def _loss_against(x: str, points: pd.DataFrame, note: str, width: float) -> Drawn:
    style = looks(in_order(points["mix"]))
    colours, groups = by_size(points, style)
    seeded = bool((points.groupby(["mix", "size", "D"]).size() > 1).any())
    columns = ["mix", "size", "N", "seed", "D", "C", "loss", "state"]
    with drawing(width, 3.0) as figure:
        axes = figure.subplots()
        for (mix, size), own in points.groupby(["mix", "size"], sort=False):
            look, colour = style[str(mix)], colours[str(mix), str(size)]
            mean = own.groupby("D", as_index=False)[["C", "loss"]].mean()
            kind = hollow(look, of=len(points)) | {"mec": colour}
            axes.plot(own[x], own["loss"], zorder=3, **kind)
            axes.plot(
                mean[x], mean["loss"], ls=look.line, lw=1.2, color=colour, zorder=4,
                marker=look.marker if seeded else "", ms=2.6, mew=0,
            )  # fmt: skip
            cross_out(axes, own, x, "loss")
        log_axis(axes, AXES[x], flops=x == "C")
        axes.set_ylabel("held-out loss (nats per token)")
        states = []
        if seeded:
            states = seed_handles(next(iter(style.values())).marker if len(style) == 1 else "o")
        if (points["state"] != "done").any():
            states.append(unfinished_handle())
        legend(figure, *groups, states, beside=True)
        caption(figure, note)
    return figure, points[columns].reset_index(drop=True)


def domains(points: pd.DataFrame) -> list[str]:
    """Names of the validation domains that the points carry."""
    return [str(name).removeprefix("bpb/") for name in points if str(name).startswith("bpb/")]


def bpb_by_domain(
    points: pd.DataFrame, note: str = "", width: float = DOUBLE_COLUMN_INCHES
) -> Drawn:
    """Held-out bits per byte against N at each size's largest common budget, a panel a domain."""
    names = domains(points)
    style = looks(in_order(points["mix"]))
    table = bpb_table(points)
    wide = 3 if len(names) + 1 in (5, 6, 9) else 4
    columns = min(len(names) + 1, wide if width > 4 else 2)
    rows = math.ceil((len(names) + 1) / columns)
    with drawing(width, 0.6 + 1.75 * rows) as figure:
        grid = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes, name in zip(grid, ["mean", *names], strict=False):
            own = table[table["domain"] == name]
            panel_title(axes, "mean of domains" if name == "mean" else name)
            _bpb_panel(axes, own, style)
        for axes in grid[len(names) + 1 :]:
            axes.remove()
        for place, axes in enumerate(grid[: len(names) + 1]):
            lowest = place + columns > len(names)
            log_axis(axes, "N, parameters" if lowest else "")
            axes.tick_params(labelbottom=lowest)
        for axes in grid[::columns]:
            axes.set_ylabel("bits per byte")
        legend(figure, mix_handles(style, fitted=True))
        caption(figure, note)
    return figure, table


def bpb_table(points: pd.DataFrame) -> pd.DataFrame:
    """BPB by mix, size, seed and domain (`mean`: of the domains) at each size's common budget."""
    long = common_budget(points).melt(
        ["mix", "size", "N", "seed", "D", "state"],
        ["bpb", *(f"bpb/{name}" for name in domains(points))],
        var_name="domain", value_name="value",
    )  # fmt: skip
    long["domain"] = long["domain"].str.removeprefix("bpb/").replace("bpb", "mean")
    return long.rename(columns={"value": "bpb"}).dropna(subset="bpb")


def _bpb_panel(axes: Axes, own: pd.DataFrame, style: dict[str, Look]) -> None:
    for mix, ours in own.groupby("mix", sort=False):
        look = style[str(mix)]
        mean = ours.groupby("size", as_index=False)[["N", "bpb"]].mean().sort_values("N")
        axes.plot(ours["N"], ours["bpb"], **hollow(look, 3))
        axes.plot(mean["N"], mean["bpb"], color=look.colour, ls=look.line, lw=1)
        cross_out(axes, ours, "N", "bpb")
    if own.empty:
        axes.text(0.5, 0.5, "not evaluated", ha="center", color=GREY, transform=axes.transAxes)
