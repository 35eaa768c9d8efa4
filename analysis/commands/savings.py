"""`python -m analysis savings points.csv`: savings with intervals, from a CSV or a sweep."""

import argparse
from typing import TYPE_CHECKING

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

if TYPE_CHECKING:
    import pandas as pd

    from analysis.stats.other_savings import Question

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
    parser.add_argument("--method", default="mixed", help="how the law is resampled")
    parser.add_argument("--paired", action="store_true", help="mixes of one size and seed together")
    parser.add_argument("--fix", default="", metavar="E=1.7", help="hold E, alpha, beta")
    add_points(parser, loss="squares", model="free")


def run(options: argparse.Namespace) -> str:
    from analysis.study.savings_answer import check_savings, savings_answer

    check_savings(options.loss, options.model, options.method, options.kind)
    known("format", options.format, FORMATS)
    positive("delta", options.delta)
    resamples, seed = whole("resamples", options.resamples, 20), whole("seed", options.seed, 0)
    points = read_points(options.points, options.where, options.columns)
    answer = savings_answer(
        points,
        options.baseline,
        asked(options, points),
        options.model,
        options.loss,
        options.method,
        options.paired,
        resamples,
        seed,
        options.delta,
        held(options.fix),
    )
    rows = answer.rows
    if options.format == "table":
        brief = ("mix", "kind", "where", "N", "D", "target_loss", "value", "low", "high",
                 "p_above_1", "unreachable", "range")  # fmt: skip
        made = f"Model: {answer.fit.words}. Interval: 95 %, {answer.draws.words}."
        return shown(
            "table", {}, [{key: row[key] for key in brief} for row in rows], [made, *answer.notes]
        )
    return shown(options.format, answer.document, rows)


def asked(options: argparse.Namespace, points: "pd.DataFrame") -> "list[Question]":
    """What is asked, from the options."""
    from analysis.stats.savings import check_baseline
    from analysis.study.savings_answer import check_ways, questions

    # A baseline that is not there is said before what is asked of it.
    check_baseline(list(dict.fromkeys(points["mix"])), options.baseline)
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
    return questions(
        points,
        options.baseline,
        options.kind,
        [place(text, loss, options.kind) for text in options.at],
        loss,
        budgets["compute-optimal"],
        budgets["isoflop"],
        options.projected,
    )


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
