"""`python -m analysis fit points.csv`: scaling laws of each mix of a CSV or a sweep."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from analysis.commands.common import (
    LOSSES,
    MODELS,
    Fitting,
    Leveled,
    Points,
    Shown,
    read,
    shown,
)
from models.command import setting

if TYPE_CHECKING:
    import pandas as pd

    from analysis.study.law_answer import LawAnswer

LAWS = ("chinchilla", "gamma", "ray", "N", "D", "isoflop", "envelope")


@dataclass(frozen=True, kw_only=True)
class Settings(Shown, Leveled, Fitting, Points):
    """Fit scaling laws to each mix of a CSV or a sweep.

    docs/statistics.md says how, and how far the answer can be trusted.
    """

    EXAMPLES = (
        "points.csv", "sweep=demo format=json", "points.csv law=gamma loss=student",
        "points.csv law=ray ratio=20", "points.csv model=all",
    )  # fmt: skip
    law: str = setting("chinchilla", "the law", choices=LAWS)
    model: str = setting(
        "free",
        "which coefficients the mixes share; all ranks each choice",
        choices=(*MODELS, "all"),
    )
    loss: str = setting("huber", "what is minimised, of log residuals", choices=LOSSES)
    fix: Mapping[str, float] = setting(
        {}, "hold E, alpha, beta; of a ray E", example="alpha=0.22,beta=0.22"
    )
    ratio: float | None = setting(None, "law=ray: tokens per parameter", above=0)
    resamples: int = setting(
        499, "model=all, law=isoflop, law=envelope: number of resamples", least=0
    )
    minimum: str = setting(
        "parabola", "law=isoflop: the best size at one C", choices=("parabola", "akima")
    )


def run(asked: Settings) -> str:
    from analysis.study.law_answer import check_law

    check_law(asked.law, asked.model, asked.loss, dict(asked.fix), asked.ratio, asked.minimum)
    answer = answered(asked, read(asked, by_compute=asked.law == "ray").points)
    if asked.format in ("csv", "latex"):  # which have no place for sentences
        for told in answer.unfitted.values():
            print(f"note: {told}", file=sys.stderr)
    if asked.format == "latex":
        from analysis.report.paper import law_latex

        return law_latex(answer).rstrip()
    return shown(asked.format, answer.document, answer.rows, answer.notes)


def answered(asked: Settings, points: "pd.DataFrame") -> "LawAnswer":
    """The laws asked for, of these points."""
    from analysis.study.law_answer import law_answer

    return law_answer(
        points,
        asked.law,
        model=asked.model,
        loss=asked.loss,
        delta=asked.delta,
        fixed=dict(asked.fix),
        ratio=asked.ratio,
        resamples=asked.resamples,
        seed=asked.seed,
        level=asked.level,
        minimum=asked.minimum,
    )
