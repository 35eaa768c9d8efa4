"""`python -m analysis predict points.csv at=N=1e9,D=2e10`: losses at places and at budgets."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from ablations.records import SettingError
from analysis.commands.common import (
    Fitting,
    Leveled,
    Points,
    Shown,
    read,
    shown,
    sweep_folders,
)
from models.command import as_text, setting, spelled
from models.format import percent

if TYPE_CHECKING:
    import pandas as pd

    from analysis.stats.fit import Loss, Model
    from analysis.study.load import Sweep
    from analysis.study.prediction_answer import PredictionAnswer

# What the table shows; of the budget's columns none where no budget is asked.
COLUMNS = ("mix", "N", "D", "loss", "low", "high", "run_low", "run_high", "range")
OPTIMUM_COLUMNS = ("C", "N_star_low", "N_star_high", "D_star_low", "D_star_high")


@dataclass(frozen=True, kw_only=True)
class Settings(Shown, Leveled, Fitting, Points):
    """Losses at N and D, or N* and D* at C FLOPs, with intervals.

    Of the law, and of one more run. docs/statistics.md says how.
    """

    EXAMPLES = (
        "points.csv at=N=1e9,D=2e10", "sweep=demo at=N=1e6,D=4e7 at=C=1e14 level=0.9",
        "sweep=demo at=N=4e5,D=2e6 seal=demo_400k",
    )  # fmt: skip
    at: tuple[Mapping[str, float], ...] = setting(
        (), "a place, parameters and tokens, or a budget, C=1e21 FLOPs; any number of times",
        above=0, example="N=1e9,D=2e10", repeat=True,
    )  # fmt: skip
    seal: str | None = setting(
        None, "name to freeze it under, in results/sealed, before its run", shape="NAME"
    )


def run(asked: Settings) -> str:
    check_places(asked)
    sweep = read(asked)
    answer = answered(asked, sweep.points)
    if asked.seal is not None:
        _seal(asked, answer, sweep)
    found, rows = answer.predictions, answer.rows
    if asked.format == "table":
        has_budgets = any(one.optimum for one in found.rows)
        columns = (*COLUMNS[:-1], *(OPTIMUM_COLUMNS if has_budgets else ()), COLUMNS[-1])
        words = (
            f"Model: {found.fit.words}. low, high: the law; run_low, run_high: one more run, its "
            f"luck included. Intervals: {percent(asked.level, 'g')}, {found.draws.words}."
        )
        brief = [{name: row[name] for name in columns} for row in rows]
        return shown("table", {}, brief, [words, *answer.notes])
    if asked.format == "latex":
        from analysis.report.paper import predictions_latex

        return predictions_latex(found).rstrip()
    return shown(asked.format, answer.document, rows)


def _seal(asked: Settings, answer: "PredictionAnswer", sweep: "Sweep") -> None:
    from analysis.study import sealed

    question = {"command": f"python -m analysis predict {spelled(asked, ('seal', 'format'))}"}
    path = sealed.write_seal(str(asked.seal), answer, sweep, sweep_folders(asked), question)
    print(
        f"note: sealed in {path}; commit it before the run starts, as the commit is its date.",
        file=sys.stderr,
    )


def check_places(asked: Settings) -> None:
    """Raise SettingError unless at least one place, and only places, are asked for."""
    from analysis.study.prediction_answer import EXAMPLE, check_place

    if not asked.at:
        raise SettingError(f"at= is missing; give {EXAMPLE}.")
    for place in asked.at:
        check_place(as_text(place), place)


def answered(asked: Settings, points: "pd.DataFrame") -> "PredictionAnswer":
    """The losses asked for, by laws of these points."""
    from analysis.stats.predict import Place, predict
    from analysis.study.prediction_answer import PredictionAnswer

    return PredictionAnswer(
        predict(
            points, [Place(**place) for place in asked.at], cast("Model", asked.model),
            cast("Loss", asked.loss), asked.delta, dict(asked.fix), asked.resamples, asked.seed,
            asked.level,
        )
    )  # fmt: skip
