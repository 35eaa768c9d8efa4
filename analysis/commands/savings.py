"""`python -m analysis savings points.csv`: savings with intervals, from a CSV or a sweep."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from analysis.commands.common import (
    BASELINE,
    MODELS,
    REFERENCE,
    Fitting,
    Leveled,
    Points,
    Shown,
    read,
    shown,
)
from models.command import as_text, setting
from models.format import percent

if TYPE_CHECKING:
    from analysis.study.load import Sweep
    from analysis.study.savings_answer import SavingsAnswer

KINDS = ("tokens", "parameters", "flops", "time")
METHODS = ("mixed", "parametric", "wild", "run", "stratified", "case")
COLUMNS = ("mix", "kind", "where", "N", "D", "target_loss", "value", "low", "high", "p_above_1",
           "unreachable", "range")  # fmt: skip
"""What the table shows, and of ratios of savings where another treatment was varied."""
RATIOS = ("mix", "reference", "N", "D", "saving", "reference_saving", "value", "low", "high",
          "p_above_1", "in_range")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Settings(Shown, Leveled, Fitting, Points):
    """Savings of tokens, parameters, FLOPs or time, with intervals.

    Ratios, baseline over mix, at each of the baseline's sizes and its largest budget there, unless
    at, compute_optimal or isoflop says where. docs/intervals.md says how.
    """

    EXAMPLES = (
        "points.csv at=N=1e9,D=2e10", "sweep=demo kind=flops compute_optimal=C=1e21",
        "points.csv at=N=7e9 target_loss=2.474",
    )  # fmt: skip
    baseline: str = setting("transformer", BASELINE)
    reference: Mapping[str, str] = setting({}, REFERENCE, example="lr_multiplier=1")
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
    answer = answered(asked, read(asked))
    rows = answer.rows
    if asked.format == "table":
        interval = f"{percent(asked.level, 'g')}, {answer.draws.words}"
        notes = [f"Model: {answer.fit.words}. Interval: {interval}.", *answer.notes]
        if answer.arms.mixes([*answer.versus, *answer.versus.values()]) == [asked.baseline]:
            notes.append(f"Savings are {answer.arms.reference_words(answer.versus)}.")
        if answer.interactions:
            ratios = [{key: row[key] for key in RATIOS} for row in answer.interaction_rows]
            told = shown("table", {}, ratios)
            over = answer.arms.reference_words(answer.versus)
            head = f"What other treatments do to savings, as ratios of two, {over}:"
            notes = ["", head, told, "", *notes]
        return shown("table", {}, [{key: row[key] for key in COLUMNS} for row in rows], notes)
    if asked.format == "latex":
        from analysis.report.paper import savings_latex

        return savings_latex(answer).rstrip()
    return shown(asked.format, answer.document, rows)


def answered(asked: Settings, sweep: "Sweep") -> "SavingsAnswer":
    """The savings asked for, read off laws of a sweep's points."""
    from analysis.study import savings_answer as study
    from analysis.study.training import timing_words

    arms = sweep.arms.over(asked.reference)
    # A baseline that is not there is said before what is asked of it.
    arms.versus(dict.fromkeys(sweep.points["mix"]), asked.baseline)
    ways = {
        "compute_optimal": asked.compute_optimal, "isoflop": asked.isoflop, "at": asked.at,
        "projected": asked.projected,
    }  # fmt: skip
    study.check_ways(ways, asked.target_loss)
    for place in asked.at:
        study.check_place(as_text(place), place, asked.target_loss, asked.kind)
    answer = study.savings_answer(
        sweep.points,
        asked.baseline,
        model=asked.model,
        loss=asked.loss,
        method=asked.method,
        paired=asked.paired,
        resamples=asked.resamples,
        seed=asked.seed,
        delta=asked.delta,
        fixed=asked.fix,
        arms=arms,
        level=asked.level,
        kind=asked.kind,
        at=[(place.get("N"), place.get("D")) for place in asked.at],
        target_loss=asked.target_loss,
        compute_optimal=asked.compute_optimal.get("C"),
        isoflop_budget=asked.isoflop.get("C"),
        with_projected=asked.projected,
    )
    if asked.kind == "time":
        return replace(answer, notes=[*answer.notes, timing_words(sweep.points)])
    return answer
