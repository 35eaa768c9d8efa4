"""Tables for people: significant digits follow the uncertainty, infinities are words.

Each function returns a frame of cells, which `markdown` writes out; what a paper prints of them
stands in `analysis.report.paper`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from analysis import foreign
from analysis.stats.fit import Fit
from analysis.stats.interaction import Interaction
from analysis.stats.laws import PARAMETERS, Chinchilla
from analysis.stats.noise import Noise
from analysis.stats.problem import EXPONENT_BOUNDS
from analysis.stats.savings import Saving
from analysis.stats.uncertainty import Draws
from analysis.study.arms import Contrast
from models.format import count, percent, probability, with_interval, write_table


def markdown(table: pd.DataFrame) -> str:
    """A GitHub table; the first column and text to the left, the others to the right."""
    head, *rows = (
        [foreign.markdown(str(cell), cell=True) for cell in row]
        for row in (table.columns, *table.to_numpy())
    )
    left = {0, *(i for i, long in enumerate(wraps(table)) if long)}
    return write_table(head, rows, "markdown", left)


# A cell longer than this is text, which may wrap.
LONG_CELL = 32


def wraps(table: pd.DataFrame) -> list[bool]:
    """Which columns hold text that may wrap rather than names and numbers."""
    return [
        bool(len(table)) and max(len(str(cell)) for cell in table.iloc[:, place]) > LONG_CELL
        for place in range(table.shape[1])
    ]


def savings_table(
    savings: list[Saving],
    names: dict[float, str],
    times: dict[tuple[str, float], Saving],
    draws: Draws,
) -> pd.DataFrame:
    """Token savings by mix and place; `names` gives the size at N, `times` the time savings by mix
    and N, where measured."""
    rows = []
    baselines = {one.baseline for one in savings}
    level = percent(draws.level, "g")
    for one in savings:
        time = times.get((one.mix, one.N))
        several = {"baseline": one.baseline} if len(baselines) > 1 else {}
        of = "the baseline" if several else one.baseline
        row = {
            "mix": one.mix,
            **several,
            "size": names.get(one.N, "–"),
            "N": count(one.N),
            f"D of {of}": count(one.D),
            "D of the mix": "∞" if math.isinf(one.tokens_mix) else count(one.tokens_mix),
            "target loss": f"{one.target_loss:.4f}",
            f"token savings [{level}]": with_interval(one.value, one.low, one.high),
            "P(> 1)": probability(one.p_above_1, draws.resamples).removeprefix("= "),
            "never reached": f"{100 * one.unreachable:.1f} %",
            "range": one.range_words,
        }
        if times:
            row[f"time savings [{level}]"] = (
                with_interval(time.value, time.low, time.high) if time else "–"
            )
        rows.append(row)
    return pd.DataFrame(rows)


def interactions_table(found: Sequence[tuple[Contrast, Interaction]], level: float) -> pd.DataFrame:
    """What other treatments do to savings: both savings and their ratio, by arm and size."""
    return pd.DataFrame(
        [
            {
                "mix": by.arm,
                "over": by.reference,
                "N": count(one.N),
                "D": count(one.D),
                "saving": f"{one.saving:.3g}",
                "saving of the other": f"{one.reference_saving:.3g}",
                f"ratio [{percent(level, 'g')}]": with_interval(
                    one.value, one.interval.low, one.interval.high
                ),
                "range": "in range" if one.in_range else f"extrapolated ×{one.beyond:.3g}",
            }
            for by, one in found
        ]
    )


def free_interactions_table(ratios: pd.DataFrame, level: float) -> pd.DataFrame:
    """The same without a fit: the mean over seeds, and each seed's own."""
    rows = []
    for (mix, size), own in ratios.groupby(["mix", "size"], sort=False):
        mean, seeds = own[own["seed"] == "mean"], own[own["seed"] != "mean"]
        if mean.empty:
            continue
        one = mean.iloc[0]
        told = f"{one['value']:.2f}"
        if not math.isnan(one["low"]):
            told = with_interval(one["value"], one["low"], one["high"])
        rows.append(
            {
                "mix": mix,
                "over": one["reference"],
                "size": size,
                "N": count(one["N"]),
                f"ratio, mean of seeds [{percent(level, 'g')}]": told,
                "one seed at a time": ", ".join(f"{value:.2f}" for value in seeds["value"]),
            }
        )
    return pd.DataFrame(rows)


def fit_free_table(free: pd.DataFrame, level: float) -> pd.DataFrame:
    """Savings without a fit: the mean over seeds, and each seed's own."""
    rows = []
    for (mix, size), own in free.groupby(["mix", "size"], sort=False):
        mean, seeds = own[own["seed"] == "mean"], own[own["seed"] != "mean"]
        if mean.empty:
            continue
        one = mean.iloc[0]
        rows.append(
            {
                "mix": mix,
                "size": size,
                "N": count(one["N"]),
                "target loss": f"{one['target_loss']:.4f}",
                f"savings, mean of seeds [{percent(level, 'g')}]": (
                    f"{one['bound']} {one['value']:.2f}".strip()
                    if math.isnan(one["low"])
                    else with_interval(one["value"], one["low"], one["high"])
                ),
                "one seed at a time": ", ".join(
                    f"{row.bound} {row.value:.2f}".strip() for row in seeds.itertuples()
                ),
            }
        )
    return pd.DataFrame(rows)


def fits_table(fit: Fit, draws: Draws | None) -> pd.DataFrame:
    """Coefficients of every mix with their intervals, and how well the law fits.

    An end with `≤` or `≥` is the edge of what is searched: nothing in the points ends there.
    """
    rows = []
    for mix, one in fit.mixes.items():
        row: dict[str, str | int] = {"mix": mix, "points": one.n, "runs": one.n_runs}
        for name in PARAMETERS:
            value = float(getattr(one.law, name))
            if draws is None:
                row[name] = f"{value:.4g}"
            else:
                ends = draws.interval(getattr(draws.laws[mix], name))
                low, high = ends.low, ends.high
                told = with_interval(value, low, high)
                if name in one.at_bound:
                    told = f"at its bound [{low:.2g}, {high:.2g}]"
                row[name] = _with_edges(told, *at_edge(name, low, high))
        row |= _optimum_exponents(one.law, draws, mix)
        row["rms residual"] = f"{100 * one.rms:.3f} %"
        row["largest error"] = f"{100 * one.largest_error:.2f} %"
        row["R² of log loss"] = f"{_r_squared(fit, mix):.5f}"
        rows.append(row)
    return pd.DataFrame(rows)


def at_edge(name: str, low: float, high: float) -> tuple[bool, bool]:
    """Whether an interval of a coefficient ends where the search does: of exponents, and E at 0."""
    if name == "E":
        return low <= 0, False
    if name not in ("alpha", "beta"):
        return False, False
    least, most = EXPONENT_BOUNDS
    return low <= least * (1 + 1e-6), high >= most * (1 - 1e-6)


def _with_edges(told: str, low: bool, high: bool) -> str:
    told = told.replace("[", "[≤ ") if low else told
    return ", ≥ ".join(told.rsplit(", ", 1)) if high else told


def _optimum_exponents(law: Chinchilla, draws: Draws | None, mix: str) -> dict[str, str]:
    """a and b of the compute-optimal N* ∝ C^a and D* ∝ C^b."""
    a = float(law.beta / (law.alpha + law.beta))
    if draws is None:
        return {"exponent of N in C": f"{a:.3g}", "exponent of D in C": f"{1 - a:.3g}"}
    drawn = draws.laws[mix]
    ends = draws.interval(np.asarray(drawn.beta / (np.asarray(drawn.alpha) + drawn.beta)))
    low, high = ends.low, ends.high
    return {
        "exponent of N in C": with_interval(a, low, high),
        "exponent of D in C": with_interval(1 - a, 1 - high, 1 - low),
    }


def _r_squared(fit: Fit, mix: str) -> float:
    own = (fit.points["mix"] == mix).to_numpy()
    observed = np.log(fit.points["loss"].to_numpy(float)[own])
    total = float(((observed - observed.mean()) ** 2).sum())
    return 1 - float((fit.residual[own] ** 2).sum()) / total if total else float("nan")


def diagnostics_table(fit: Fit, noise: list[Noise]) -> pd.DataFrame:
    """What certifies each optimum, and the seeds' scatter beside the lack of fit."""
    by_mix = {one.mix: one for one in noise}
    rows = []
    for mix, one in fit.mixes.items():
        seeds = by_mix[mix]
        rows.append(
            {
                "mix": mix,
                "starts": one.starts,
                "agree": f"{100 * one.starts_agreeing:.0f} %",
                "gradient norm": f"{one.gradient_norm:.0e}",
                "condition number": f"{one.condition:.3g}",
                "seed-to-seed sd": (
                    f"{100 * seeds.seed_sd:.3f} % ({seeds.seed_dof} repeated run(s))"
                    if seeds.seed_dof
                    else "not measured (one seed)"
                ),
                "lack of fit (rms of seed means)": f"{100 * seeds.lack_of_fit:.3f} %",
            }
        )
    return pd.DataFrame(rows)


def holdout_table(holdout: pd.DataFrame) -> pd.DataFrame:
    """Signed errors on what was left out, of the law and of a straight line in logs."""
    rows = []
    for (mix, label), own in holdout.groupby(["mix", "left_out"], sort=False):
        row = {"mix": mix, "left out": label, "means of seeds": str(len(own))}
        for column, name in (("error", "law"), ("line_error", "straight line")):
            errors = 100 * own[column].dropna()
            row[f"{name}: mean error"] = f"{errors.mean():+.2f} %" if len(errors) else "–"
            row[f"{name}: from, to"] = (
                f"{errors.min():+.2f} %, {errors.max():+.2f} %" if len(errors) else "–"
            )
        rows.append(row)
    return pd.DataFrame(rows)


def sealed_table(scores: pd.DataFrame) -> pd.DataFrame:
    """Sealed predictions beside the runs that came after them, losses in nats per token."""
    rows = []
    for one in scores.to_dict("records"):
        waits = one["run"] == ""
        rows.append(
            {
                "sealed as": one["sealed"],
                "mix": one["mix"],
                "N": count(one["N"]),
                "D": count(one["D"]),
                f"one more run [{percent(one['level'], 'g')}]": with_interval(
                    one["predicted"], one["low"], one["high"]
                ),
                "run": one["run"] or "to come",
                "loss": "–" if waits else f"{one['loss']:.4f}",
                "in its interval": "–" if waits else "yes" if one["hit"] else "**no**",
                "z": "–" if math.isnan(one["z"]) else f"{one['z']:+.2f}",
                "CRPS": "–" if waits else f"{one['crps']:.4f}",
            }
        )
    return pd.DataFrame(rows)


def points_table(points: pd.DataFrame) -> pd.DataFrame:
    """Held-out loss and BPB by mix, size and budget: mean over seeds, with their sd."""
    keys = ["mix", "size", "D"]
    cells = points.groupby(keys, sort=False)
    table = cells.agg(
        N=("N", "mean"), chinchilla=("chinchilla", "mean"), C=("C", "mean"),
        seeds=("run", "nunique"), open=("state", lambda states: int((states != "done").sum())),
        loss=("loss", "mean"), sd=("loss", "std"),
        bpb=("bpb", "mean"), epochs=("epochs", "mean"),
    ).reset_index()  # fmt: skip
    order = table["mix"].map({mix: i for i, mix in enumerate(dict.fromkeys(table["mix"]))})
    table = table.assign(order=order).sort_values(["order", "N", "D"])
    return pd.DataFrame(
        {
            "mix": table["mix"],
            "size": table["size"],
            "N": table["N"].map(count),
            "D": table["D"].map(count),
            "× Chinchilla": table["chinchilla"].map(lambda v: "–" if math.isnan(v) else f"{v:g}"),
            "C (FLOP)": table["C"].map(lambda v: "–" if math.isnan(v) else f"{v:.3g}"),
            "epochs": table["epochs"].map(lambda v: "–" if math.isnan(v) else f"{v:.3g}"),
            "seeds": [
                f"{seeds}" + (f" ({running} of a run not finished)" if running else "")
                for seeds, running in zip(table["seeds"], table["open"], strict=True)
            ],
            "loss (nats/token)": [
                f"{loss:.4f}" + ("" if math.isnan(sd) else f" ± {sd:.4f}")
                for loss, sd in zip(table["loss"], table["sd"], strict=True)
            ],
            "BPB": table["bpb"].map(lambda v: "–" if math.isnan(v) else f"{v:.4f}"),
        }
    )
