"""`python -m analysis savings points.csv`: savings with intervals, from a CSV or a sweep."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from analysis.commands.common import MODELS, Fitting, Points, Shown, read_points, shown
from models.command import as_text, setting

if TYPE_CHECKING:
    import pandas as pd

    from analysis.stats.other_savings import Kind
    from analysis.study.savings_answer import SavingsAnswer

KINDS = ("tokens", "parameters", "flops", "time")
METHODS = ("mixed", "parametric", "wild", "run", "stratified", "case")
COLUMNS = ("mix", "kind", "where", "N", "D", "target_loss", "value", "low", "high", "p_above_1",
           "unreachable", "range")  # fmt: skip
"""What the table shows."""


@dataclass(frozen=True, kw_only=True)
class Settings(Shown, Fitting, Points):
    """Savings of tokens, parameters, FLOPs or time, with intervals.

    Ratios, baseline over mix, at each of the baseline's sizes and its largest budget there, unless
    at, compute_optimal or isoflop says where. docs/intervals.md says how.
    """

    EXAMPLES = (
        "points.csv at=N=1e9,D=2e10", "sweep=demo kind=flops compute_optimal=C=1e21",
        "points.csv at=N=7e9 target_loss=2.474",
    )  # fmt: skip
    baseline: str = setting("transformer", "the mix that others are compared with")
    at: tuple[Mapping[str, float], ...] = setting(
        (), "a place, parameters and tokens of the baseline; any number of times", above=0,
        example="N=1e9,D=2e10", repeat=True,
    )  # fmt: skip
    kind: str = setting("tokens", "what is saved", choices=KINDS)
    target_loss: float | None = setting(
        None, "loss to reach, nats per token, in place of D (kind=parameters: of N)", above=0
    )
    compute_optimal: Mapping[str, float] = setting(
        {}, "training FLOPs, each mix at its cheapest N and D for the loss", above=0,
        example="C=1e21", choices=("C",),
    )  # fmt: skip
    isoflop: Mapping[str, float] = setting(
        {}, "training FLOPs, at each of the baseline's sizes", above=0,
        example="C=1e21", choices=("C",),
    )  # fmt: skip
    projected: bool = setting(False, "at 3B to 70B parameters too, which is extrapolation")
    model: str = setting(
        "free", "which coefficients the mixes share", choices=(*MODELS, "averaged")
    )
    method: str = setting("mixed", "how the ladder is resampled", choices=METHODS)
    paired: bool = setting(False, "resample mixes of one size and seed together")


def run(asked: Settings) -> str:
    answer = answered(asked, read_points(asked))
    rows = answer.rows
    if asked.format == "table":
        made = f"Model: {answer.fit.words}. Interval: 95 %, {answer.draws.words}."
        brief = [{key: row[key] for key in COLUMNS} for row in rows]
        return shown("table", {}, brief, [made, *answer.notes])
    return shown(asked.format, answer.document, rows)


def answered(asked: Settings, points: "pd.DataFrame") -> "SavingsAnswer":
    """The savings asked for, read off laws of these points."""
    from analysis.stats.savings import check_baseline
    from analysis.study import savings_answer as study

    # A baseline that is not there is said before what is asked of it.
    check_baseline(list(dict.fromkeys(points["mix"])), asked.baseline)
    ways = {
        "compute_optimal": asked.compute_optimal, "isoflop": asked.isoflop, "at": asked.at,
        "projected": asked.projected,
    }  # fmt: skip
    study.check_ways(ways, asked.target_loss)
    for place in asked.at:
        study.check_place(as_text(place), place, asked.target_loss, asked.kind)
    questions = study.questions(
        points,
        asked.baseline,
        cast("Kind", asked.kind),
        [(place.get("N"), place.get("D")) for place in asked.at],
        asked.target_loss,
        asked.compute_optimal.get("C"),
        asked.isoflop.get("C"),
        asked.projected,
    )
    return study.savings_answer(
        points, asked.baseline, questions, asked.model, asked.loss, asked.method, asked.paired,
        asked.resamples, asked.seed, asked.delta, asked.fix,
    )  # fmt: skip
