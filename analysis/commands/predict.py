"""`python -m analysis predict points.csv --at N=1e9,D=2e10`: losses at places and at budgets."""

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING

from ablations.records import SettingError
from analysis.commands.common import (
    FORMATS,
    add_points,
    held,
    known,
    number,
    pairs,
    positive,
    read_points,
    shown,
    whole,
    with_notes,
)
from models.format import percent

if TYPE_CHECKING:
    import pandas as pd

    from analysis.stats.predict import Place

HELP = "losses at N and D, or N* and D* at C FLOPs, with intervals"
EXAMPLE = "at=N=1e9,D=2e10 or at=C=1e21"
# What the table shows; of the budget's columns none where no budget is asked.
COLUMNS = ("mix", "N", "D", "loss", "low", "high", "run_low", "run_high", "range")
OPTIMUM_COLUMNS = ("C", "N_star_low", "N_star_high", "D_star_low", "D_star_high")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--at", action="append", default=[], metavar="N=1e9,D=2e10 | C=1e21")
    parser.add_argument("--level", default="0.95", help="share of intervals that hold the truth")
    parser.add_argument("--resamples", default="1000")
    parser.add_argument("--seed", default="0")
    parser.add_argument("--fix", default="", metavar="E=1.7", help="hold E, alpha, beta")
    parser.add_argument("--sweep", default="", metavar="NAME[,NAME]", help="in place of points")
    parser.add_argument("--points", default="", metavar="FILE.csv", dest="points_file")
    parser.add_argument("--runs", default="", metavar="DIR", help="where sweeps lie")
    add_points(parser, loss="squares", model="free", nargs="?")


def run(options: argparse.Namespace) -> str:
    from analysis.stats.predict import predict
    from analysis.study.prediction_answer import PredictionAnswer, check_predict

    check_predict(options.loss, options.model)
    known("format", options.format, FORMATS)
    positive("delta", options.delta)
    places = [place(text) for text in options.at]
    if not places:
        raise SettingError(f"at= is missing; give {EXAMPLE}.")
    level = share("level", options.level)
    found = predict(
        _points(options),
        places,
        options.model,
        options.loss,
        options.delta,
        held(options.fix),
        whole("resamples", options.resamples, 20),
        whole("seed", options.seed, 0),
        level,
    )
    answer = PredictionAnswer(found)
    rows, notes = answer.rows, answer.notes
    if options.format == "table":
        has_budgets = any(one.optimum for one in found.rows)
        columns = (*COLUMNS[:-1], *(OPTIMUM_COLUMNS if has_budgets else ()), COLUMNS[-1])
        words = (
            f"Model: {found.fit.words}. low, high: the law; run_low, run_high: one more run, its "
            f"luck included. Intervals: {percent(level, 'g')}, {found.draws.words}."
        )
        brief = [{name: row[name] for name in columns} for row in rows]
        return shown("table", {}, brief, [words, *notes])
    return shown(options.format, answer.document, rows)


def place(text: str) -> "Place":
    """`N=1e9,D=2e10` or `C=1e21`. Raises SettingError for what is neither."""
    from analysis.stats.predict import Place
    from analysis.study.prediction_answer import check_place

    given = pairs("at", text, EXAMPLE.removeprefix("at="))
    check_place(text, given)
    return Place(**{key: number(f"at {key}", value) for key, value in given.items()})


def share(name: str, text: str) -> float:
    """A number above 0 and below 1. Raises SettingError for what is none."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < 1:
        raise SettingError(f"{name}={text} must be a share above 0 and below 1, such as 0.95.")
    return value


def _points(options: argparse.Namespace) -> "pd.DataFrame":
    from analysis.commands.sources import source

    given = {"sweep": options.sweep, "points": options.points_file, "runs": options.runs}
    chosen = {key: value for key, value in given.items() if value}
    if options.points is not None:
        if chosen:
            names = " and ".join(f"{key}=" for key in chosen)
            raise SettingError(f"{names} and {options.points} are both given; give one of them.")
        return read_points(
            options.points, options.where, options.columns, treatments=options.treatments
        ).points
    if "points" in chosen and "sweep" not in chosen:
        return read_points(
            Path(chosen["points"]), options.where, options.columns, treatments=options.treatments
        ).points
    more = {"where": options.where, "columns": options.columns}
    return with_notes(source(chosen | {key: value for key, value in more.items() if value})).points
