"""`python -m analysis fit points.csv`: scaling laws of each mix of a CSV or a sweep."""

import argparse

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

HELP = "fit scaling laws to each mix of a CSV or a sweep"
LAWS = ("chinchilla", "gamma", "ray", "N", "D", "isoflop", "envelope")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--law", default="chinchilla", help=", ".join(LAWS))
    add_points(parser, loss="huber", model="free")
    parser.add_argument(
        "--fix",
        default="",
        metavar="alpha=0.22,beta=0.22",
        help="hold E, alpha, beta; of ray, N, D E alone",
    )
    parser.add_argument("--ratio", default="", metavar="D/N", help="law=ray: tokens per parameter")
    parser.add_argument(
        "--resamples", default="499", help="model=all, law=isoflop, envelope: resamples"
    )
    parser.add_argument("--seed", default="0")
    parser.add_argument("--level", default="0.95", help="law=isoflop, envelope: of the intervals")
    parser.add_argument("--minimum", default="parabola", help="law=isoflop: parabola, akima")


def run(options: argparse.Namespace) -> str:
    from analysis.study.law_answer import check_law, law_answer

    known("format", options.format, FORMATS)
    positive("delta", options.delta)
    fixed = held(options.fix)
    ratio = number("ratio", options.ratio) if options.ratio else None
    check_law(options.law, options.model, options.loss, fixed, ratio, options.minimum)
    level = share("level", options.level)
    resamples, seed = whole("resamples", options.resamples, 0), whole("seed", options.seed, 0)
    points = read_points(
        options.points, options.where, options.columns, options.law == "ray", options.treatments
    ).points
    answer = law_answer(
        points, options.law, options.model, options.loss, options.delta, fixed, ratio, resamples,
        seed, level, options.minimum,
    )  # fmt: skip
    return shown(options.format, answer.document, answer.rows, answer.notes)
