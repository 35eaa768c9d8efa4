"""`python -m analysis savings points.csv`: savings with intervals, from a CSV or a sweep."""

import argparse
from typing import Any

from ablations.records import SettingError
from analysis.commands.common import (
    FORMATS,
    add_points,
    held,
    known,
    number,
    positive,
    read_points,
    shown,
    whole,
)
from analysis.commands.predict import share

HELP = "savings of tokens, parameters, FLOPs or time, with intervals"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--baseline", default="transformer")
    parser.add_argument("--at", action="append", default=[], metavar="N=1e9,D=2e10")
    parser.add_argument("--kind", default="tokens", help="tokens, parameters, flops or time")
    parser.add_argument("--target-loss", default="", metavar="2.474", help="nats per token")
    parser.add_argument("--compute-optimal", default="", metavar="C=1e21", help="FLOPs")
    parser.add_argument("--isoflop", default="", metavar="C=1e21", help="at each size, C FLOPs")
    parser.add_argument("--projected", action="store_true", help="3B to 70B, extrapolated")
    parser.add_argument("--resamples", default="1000")
    parser.add_argument("--seed", default="0")
    parser.add_argument("--level", default="0.95", help="share of intervals that hold the truth")
    parser.add_argument("--method", default="mixed", help="how the law is resampled")
    parser.add_argument("--paired", action="store_true", help="mixes of one size and seed together")
    parser.add_argument("--fix", default="", metavar="E=1.7", help="hold E, alpha, beta")
    add_points(parser, loss="squares", model="free")


def run(options: argparse.Namespace) -> str:
    from analysis.study.savings_answer import check_savings, savings_answer

    check_savings(options.loss, options.model, options.method, options.kind)
    level = share("level", options.level)
    known("format", options.format, FORMATS)
    positive("delta", options.delta)
    resamples, seed = whole("resamples", options.resamples, 20), whole("seed", options.seed, 0)
    sweep = read_points(
        options.points, options.where, options.columns, treatments=options.treatments
    )
    # A baseline that is not there is said before what is asked of it.
    sweep.arms.versus(list(dict.fromkeys(sweep.points["mix"])), options.baseline)
    answer = savings_answer(
        sweep.points,
        options.baseline,
        options.model,
        options.loss,
        options.method,
        options.paired,
        resamples,
        seed,
        options.delta,
        held(options.fix),
        sweep.arms,
        level,
        **asked(options),
    )
    rows = answer.rows
    if options.format == "table":
        brief = ("mix", "kind", "where", "N", "D", "target_loss", "value", "low", "high",
                 "p_above_1", "unreachable", "range")  # fmt: skip
        words = f"{100 * level:g} %, {answer.draws.words}"
        made = [f"Model: {answer.fit.words}. Interval: {words}."]
        if ratios := answer.interaction_rows:
            columns = ("mix", "reference", "N", "D", "saving", "reference_saving", "value", "low",
                       "high", "p_above_1", "in_range")  # fmt: skip
            told = [{key: row[key] for key in columns} for row in ratios]
            made += ["", "What other treatments do to savings (ratio of two):",
                     shown("table", {}, told), ""]  # fmt: skip
        return shown(
            "table", {}, [{key: row[key] for key in brief} for row in rows], [*made, *answer.notes]
        )
    return shown(options.format, answer.document, rows)


def asked(options: argparse.Namespace) -> dict[str, Any]:
    """What is asked, from the options."""
    from analysis.study.savings_answer import check_ways

    ways = {
        "compute-optimal": options.compute_optimal,
        "isoflop": options.isoflop,
        "at": options.at,
        "projected": options.projected,
    }
    target = number("target-loss", options.target_loss or "1")
    loss = target if options.target_loss else None
    check_ways(ways, loss, "--")
    budgets = {
        name: flops(name, text) if text else None
        for name, text in (
            ("compute-optimal", options.compute_optimal), ("isoflop", options.isoflop),
        )
    }  # fmt: skip
    return {
        "kind": options.kind,
        "at": [place(text, loss, options.kind) for text in options.at],
        "target_loss": loss,
        "compute_optimal": budgets["compute-optimal"],
        "isoflop_budget": budgets["isoflop"],
        "with_projected": options.projected,
    }


def place(text: str, target_loss: float | None, kind: str) -> tuple[float | None, float | None]:
    """N and D of `--at`; with a target loss one of them follows from it."""
    from analysis.study import savings_answer

    given = text.split(",")
    parts = dict(part.partition("=")[::2] for part in given)
    savings_answer.check_place(text, parts, len(given), target_loss, kind)
    N, D = (number(f"at {key}", parts[key]) if key in parts else None for key in ("N", "D"))
    return N, D


def flops(name: str, text: str) -> float:
    key, _, value = text.partition("=")
    if key != "C" or not value:
        raise SettingError(f"{name}={text} is not a budget; give C=1e21 (training FLOPs).")
    return number(f"{name} C", value)
