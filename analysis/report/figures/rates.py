"""The figure of what a learning rate does to the loss, and where its best value lies."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.lines import Line2D

from analysis.report.figures.axes import (
    GREY,
    Drawn,
    by_size,
    in_order,
    legend,
)
from analysis.report.figures.style import DOUBLE_COLUMN_INCHES, caption, drawing, looks
from analysis.stats.laws import Array
from analysis.study.arms import MARK, Arms
from analysis.study.load import common_budget

NAMES = ("lr_multiplier", "lr", "learning_rate", "peak_lr")
"""How a setting of a learning rate is called, after its last dot."""


def loss_by_rate(points: pd.DataFrame, arms: Arms) -> tuple[pd.DataFrame, str]:
    """Loss by learning rate, at each size's largest budget that all arms reached, and its setting.

    Columns mix (with levels of other treatments), size, N, D, seed, rate, loss. Empty where no
    treatment is a learning rate.
    """
    columns = ["mix", "size", "N", "D", "seed", "rate", "loss"]
    found = [
        (one, setting)
        for one in arms.treatments
        for setting in one.settings
        if setting.rpartition(".")[2] in NAMES and _numbers(one.levels)
    ]
    if not found:
        return pd.DataFrame(columns=columns), ""
    treatment, setting = found[0]
    own = common_budget(points)
    rows = own[[treatment.name in arms.arm(str(mix)).levels for mix in own["mix"]]]
    levels = [arms.arm(str(mix)) for mix in rows["mix"]]
    rates = [float(one.levels[treatment.name]) for one in levels]
    names = []
    for one in levels:
        others = [f"{key}={value}" for key, value in one.levels.items() if key != treatment.name]
        names.append(one.mix + (f"{MARK}{','.join(others)}" if others else ""))
    return rows.assign(mix=names, rate=rates)[columns].reset_index(drop=True), setting


def _numbers(words: tuple[str, ...]) -> bool:
    try:
        return all(float(word) > 0 for word in words)
    except ValueError:
        return False


def best_rate(rates: Array, losses: Array) -> tuple[float, float] | None:
    """Rate and loss at the least of the parabola in log rate through the lowest loss and the two
    beside it; None where the lowest is at an end."""
    order = np.argsort(rates)
    log_rate, loss = np.log(np.asarray(rates, float)[order]), np.asarray(losses, float)[order]
    at = int(loss.argmin())
    if not 0 < at < len(loss) - 1:
        return None
    # Around the middle rate, where a parabola through three points is well conditioned.
    x, y = log_rate[at - 1 : at + 2] - log_rate[at], loss[at - 1 : at + 2] - loss[at]
    square, linear, _ = np.polyfit(x, y, 2)
    if square <= 0:
        return None
    return (
        float(np.exp(log_rate[at] - linear / (2 * square))),
        float(loss[at] - linear**2 / (4 * square)),
    )


def loss_against_rate(
    table: pd.DataFrame, setting: str, note: str = "", width: float = DOUBLE_COLUMN_INCHES
) -> Drawn:
    """Loss against the learning rate, a line a mix and size through means, bars ± sd of seeds.

    `table` is of `loss_by_rate`. A diamond marks the least of a parabola (`best_rate`).
    """
    style = looks(in_order(table["mix"]))
    colours, groups = by_size(table, style)
    scattered, shown = False, []
    with drawing(width, 3.0) as figure:
        axes = figure.subplots()
        for (mix, size), own in table.groupby(["mix", "size"], sort=False):
            look, colour = style[str(mix)], colours[str(mix), str(size)]
            mean = own.groupby("rate")["loss"].agg(["mean", "std", "count"]).reset_index()
            scattered |= bool((mean["count"] > 1).any())
            axes.errorbar(
                mean["rate"], mean["mean"], yerr=mean["std"], color=colour, ls=look.line, lw=1.2,
                elinewidth=0.8, capsize=1.5,
                marker=look.marker, ms=3.6, mfc="none", mew=0.7,
            )  # fmt: skip
            columns = {"mix": mix, "size": size, "N": own["N"].mean(), "D": own["D"].mean()}
            measured = {"rate": mean["rate"], "loss": mean["mean"], "sd": mean["std"]}
            shown.append(pd.DataFrame(columns | measured | {"seeds": mean["count"]}))
            if best := best_rate(mean["rate"].to_numpy(), mean["mean"].to_numpy()):
                axes.plot(*best, "D", ms=4, color=colour, mec="white", mew=0.5, zorder=6)
                least = columns | {"rate": best[0], "loss": best[1]}
                shown.append(pd.DataFrame([least]).assign(kind="parabola"))
        axes.set_xscale("log")
        rates = sorted(set(table["rate"]))
        axes.set_xlim(rates[0] / 1.15, rates[-1] * 1.15)
        axes.set_xticks(rates, [f"{rate:g}" for rate in rates])
        axes.set_xticks([], minor=True)
        axes.set_xlabel(setting)
        axes.set_ylabel("held-out loss (nats per token)")
        marks = []
        if scattered:
            marks.append(Line2D([], [], color=GREY, ls="", marker="|", ms=7, label="± sd of seeds"))
        if any("kind" in part for part in shown):
            words = "least of a parabola"
            marks.append(Line2D([], [], color=GREY, ls="", marker="D", ms=4, label=words))
        legend(figure, *groups, marks, beside=True)
        caption(figure, note)
    joined = pd.concat(shown, ignore_index=True)
    kind = joined["kind"].fillna("measured") if "kind" in joined else "measured"
    return figure, joined.assign(kind=kind)
