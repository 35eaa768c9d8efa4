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
    from analysis.stats.fit import LOSSES
    from analysis.stats.noise import lack_of_fit
    from analysis.stats.other_savings import KINDS, savings_of
    from analysis.stats.uncertainty import METHODS
    from analysis.study.answer import noise_doubts
    from analysis.study.study import JOINTS, fitted

    known("loss", options.loss, LOSSES)
    known("model", options.model, JOINTS)
    known("method", options.method, METHODS)
    known("kind", options.kind, KINDS)
    known("format", options.format, FORMATS)
    positive("delta", options.delta)
    resamples, seed = whole("resamples", options.resamples, 20), whole("seed", options.seed, 0)
    points = read_points(options.points, options.where)
    asked = questions(options, points)
    fit, draws = fitted(
        points,
        options.baseline,
        options.model,
        options.loss,
        options.method,
        options.paired,
        resamples,
        seed,
        options.delta,
        held(options.fix),
    )
    found = [one for each in asked for one in savings_of(fit, draws, options.baseline, each)]
    least = fit.least or fit
    notes = list(noise_doubts(fit, lack_of_fit(least)))
    rows = [
        vars(one) | {"in_range": one.in_range, "range": one.range_words, "interval": draws.words}
        for one in found
    ]
    if options.format == "table":
        brief = ("mix", "kind", "where", "N", "D", "target_loss", "value", "low", "high",
                 "p_above_1", "unreachable", "range")  # fmt: skip
        told = f"Model: {fit.words}. Interval: 95 %, {draws.words}."
        return shown(
            "table", {}, [{key: row[key] for key in brief} for row in rows], [told, *notes]
        )
    laws = {
        mix: one.law.as_dict() | {"rms": one.rms, "largest_error": one.largest_error}
        for mix, one in fit.mixes.items()
    }
    return shown(options.format, {"savings": rows, "laws": laws, "notes": notes}, rows)


def questions(options: argparse.Namespace, points: "pd.DataFrame") -> "list[Question]":
    """What is asked, from the options: at places given, or else at each of the baseline's sizes."""
    from analysis.stats.other_savings import Question, isoflop, projected
    from analysis.stats.savings import check_baseline, places

    check_baseline(list(dict.fromkeys(points["mix"])), options.baseline)
    ways = {
        "compute-optimal": options.compute_optimal,
        "isoflop": options.isoflop,
        "at": options.at,
        "projected": options.projected,
    }
    given = [name for name, value in ways.items() if value]
    if len(given) > 1 and set(given) != {"at", "projected"}:
        raise SettingError(f"{' and '.join(f'--{name}' for name in given)} exclude one another.")
    target = number("target-loss", options.target_loss or "1")
    loss = target if options.target_loss else None
    if options.compute_optimal:
        if loss is not None:
            raise SettingError(
                "--target-loss and --compute-optimal exclude one another, as C sets the loss."
            )
        budget = flops("compute-optimal", options.compute_optimal)
        return [Question(options.kind, C=budget)]
    spots: list[tuple[float | None, float | None]]
    if options.isoflop:
        spots = [*isoflop(points, options.baseline, flops("isoflop", options.isoflop))]
    else:
        spots = [place(text, loss, options.kind) for text in options.at]
        if options.projected:
            spots += projected(points, options.baseline)
    if not spots:
        spots = [(N, D) for _, N, D in places(points, options.baseline)]
    return [Question(options.kind, N, D, loss) for N, D in spots]


def place(text: str, target_loss: float | None, kind: str) -> tuple[float | None, float | None]:
    """N and D of `--at`; with a target loss one of them follows from it."""
    given = text.split(",")
    parts = dict(part.partition("=")[::2] for part in given)
    needed = {"N", "D"}
    if target_loss is not None:
        needed = {"D"} if kind == "parameters" else {"N"}
    if not needed <= set(parts) <= {"N", "D"} or len(parts) < len(given):
        example = {"N": "1e9", "D": "2e10"}
        wanted = ",".join(f"{key}={example[key]}" for key in sorted(needed, reverse=True))
        raise SettingError(f"at={text} is not a place; give {wanted}.")
    N, D = (number(f"at {key}", parts[key]) if key in parts else None for key in ("N", "D"))
    return N, D


def flops(name: str, text: str) -> float:
    key, _, value = text.partition("=")
    if key != "C" or not value:
        raise SettingError(f"{name}={text} is not a budget; give C=1e21 (training FLOPs).")
    return number(f"{name} C", value)
