"""`python -m analysis savings points.csv`: token savings with intervals, from a CSV."""

from __future__ import annotations

import argparse

from ablations.records import SettingError
from analysis.commands.common import add_points, known, number, shown, whole

HELP = "token savings with intervals, from a CSV"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--baseline", default="transformer")
    parser.add_argument("--at", action="append", default=[], metavar="N=1e9,D=2e10")
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--method", default="parametric")
    parser.add_argument("--paired", action="store_true", help="mixes of one size and seed together")
    add_points(parser, loss="squares", model="auto")


def run(options: argparse.Namespace) -> str:
    from analysis.fit import LOSSES, MODELS
    from analysis.load import load_csv
    from analysis.study import savings_at
    from analysis.uncertainty import METHODS

    known("loss", options.loss, LOSSES)
    known("model", options.model, ("auto", *MODELS))
    known("method", options.method, METHODS)
    found = savings_at(
        load_csv(options.points),
        options.baseline,
        [place(text) for text in options.at],
        model=None if options.model == "auto" else options.model,
        loss=options.loss,
        method=options.method,
        paired=options.paired,
        resamples=whole("resamples", str(options.resamples), 20),
        seed=whole("seed", str(options.seed), 0),
    )
    rows = [vars(one) | {"in_range": one.in_range} for one in found]
    return shown(options.format, {"savings": rows}, rows)


def place(text: str) -> tuple[float, float]:
    parts = dict(part.partition("=")[::2] for part in text.split(","))
    if set(parts) != {"N", "D"}:
        raise SettingError(f"at={text} is not a place; give N=1e9,D=2e10.")
    return number(f"at N={parts['N']}", parts["N"]), number(f"at D={parts['D']}", parts["D"])
