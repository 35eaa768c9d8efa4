"""Savings of parameters, FLOPs and time beside tokens, wherever the two mixes are matched.

A saving is the baseline's amount over the mix's, at one loss. Of tokens, FLOPs and seconds at equal
N (the latter two are token savings times the ratio of costs a token); of parameters at equal D; or,
compute-optimal, between the cheapest (N, D) with which each mix reaches the loss that the baseline
reaches with C FLOPs.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import pandas as pd

from ablations.records import SettingError
from analysis.stats.fit import Fit
from analysis.stats.laws import FLOPS, Array, Chinchilla
from analysis.stats.savings import (
    CostRatio,
    Saving,
    check_baseline,
    judged,
    others,
    places,
    seconds_per_token,
    timing_draws,
    token_range,
    token_savings,
)
from analysis.stats.uncertainty import Draws

Kind = Literal["tokens", "parameters", "flops", "time"]
KINDS: tuple[Kind, ...] = get_args(Kind)
# Sizes that others have trained, far beyond most ladders: always extrapolation there.
PROJECTED = {"3B": 3e9, "7B": 7e9, "13B": 13e9, "30B": 30e9, "70B": 70e9}


@dataclass(frozen=True)
class Question:
    """What is asked: a kind, and a place.

    (N, D) matches the loss of the baseline there; N (for parameters, D) with `target_loss` asks for
    that loss (nats per token); C asks what is compute-optimal at so many FLOPs of the baseline.
    """

    kind: Kind = "tokens"
    N: float | None = None
    D: float | None = None
    target_loss: float | None = None
    C: float | None = None


def savings_of(
    fit: Fit,
    draws: Draws,
    baseline: str,
    question: Question,
    mixes: Iterable[str] | None = None,
) -> list[Saving]:
    """The answer for `mixes`, or for every other mix than the baseline.

    Raises SettingError where the place is not one for this kind, or costs were not measured.
    """
    check_baseline(list(fit.mixes), baseline)
    asked = others(fit.mixes, baseline, mixes)
    if question.C is not None:
        return _compute_optimal(fit, draws, baseline, question.kind, question.C, asked)
    if question.kind == "parameters":
        return _parameters(fit, draws, baseline, question, asked)
    if question.N is None or (question.D is None and question.target_loss is None):
        raise SettingError(
            f"kind={question.kind} needs N and D, or N and a target loss; give at=N=1e9,D=2e10."
        )
    N, kind, ratios = question.N, question.kind, None
    if kind != "tokens":
        ratios = _cost_ratios(fit.points, draws, baseline, asked, kind, N)
    return token_savings(
        fit, draws, baseline, N, question.D or 0, question.target_loss, kind, ratios, asked
    )


def _cost_ratios(
    points: pd.DataFrame, draws: Draws, baseline: str, mixes: list[str], kind: Kind, N: float
) -> dict[str, CostRatio]:
    """FLOPs or measured seconds a token, baseline over each mix, at N: interpolated in log N.

    Beyond the sizes measured it stays what it is at the nearest. Draws of seconds hold the scatter
    of runs; FLOPs have none. Raises SettingError where a mix has none recorded.
    """
    column = "seconds" if kind == "time" else "C"
    if kind == "time":
        table = seconds_per_token(points).rename(columns={"seconds": "cost"})
        errors = timing_draws(points, draws.resamples, draws.seed)
    else:
        known = points[points["C"] > 0]
        cells = known.assign(cost=known["C"] / known["D"]).groupby(["mix", "size"])
        table = cells[["N", "cost"]].mean().reset_index()
        errors = np.zeros((len(table), 1))

    def log_cost(name: str) -> tuple[float, Array]:
        """At N, and its errors (resamples,)."""
        own = table[table["mix"] == name].sort_values("N")
        if own.empty:
            raise SettingError(
                f"kind={kind} needs {column} of every mix, and the points of {name} have none; "
                f"give points with a column {column}."
            )
        sizes = np.log(own["N"].to_numpy(float))
        shares = np.array([np.interp(np.log(N), sizes, one) for one in np.eye(len(own))])
        cost = float(np.interp(np.log(N), sizes, np.log(own["cost"])))
        return cost, shares @ errors[own.index]

    found = {}
    log, off = log_cost(baseline)
    for mix in mixes:
        other, other_off = log_cost(mix)
        value = float(np.exp(log - other))
        found[mix] = CostRatio(value, value * np.exp(off - other_off) if kind == "time" else value)
    return found


def _parameters(
    fit: Fit, draws: Draws, baseline: str, question: Question, mixes: list[str]
) -> list[Saving]:
    law, drawn, D = fit.mixes[baseline].law, draws.laws[baseline], question.D
    if D is None or (question.N is None and question.target_loss is None):
        raise SettingError(
            "kind=parameters needs D and N, or D and a target loss; give at=N=1e9,D=2e10."
        )
    found = []
    for name in mixes:
        mix = fit.mixes[name].law
        if question.target_loss is None:
            N, where = float(question.N or 0), "matched"
            target, targets, drawn_N = float(law.loss(N, D)), drawn.loss(N, D), np.asarray(N)
        else:
            target, where = question.target_loss, "target loss"
            targets, drawn_N = np.asarray(target), drawn.parameters(D, target)
            N = float(law.parameters(D, target))
        N_mix = float(mix.parameters(D, target))
        with np.errstate(divide="ignore", invalid="ignore"):
            factors = np.asarray(drawn_N / draws.laws[name].parameters(D, targets))
        spots = (N, D), (N_mix, D)
        value = N / N_mix
        found.append(
            judged(fit, draws, baseline, name, value, factors, target, spots, "parameters", where)
        )
    return found


def flops_factor(points: pd.DataFrame, mix: str) -> float:
    """FLOPs over N D: the geometric mean of what was recorded, 6 where nothing was."""
    own = points[(points["mix"] == mix) & (points["C"] > 0)] if "C" in points else points[:0]
    return float(np.exp(np.log(own["C"] / (own["N"] * own["D"])).mean())) if len(own) else FLOPS


def cheapest(law: Chinchilla, target_loss: Array | float) -> tuple[Array, Array]:
    """(N, D) of least N D that reaches a loss: the terms are as beta to alpha there.

    Hoffmann et al. 2022, eq. 4, solved for the loss. Infinite where it is out of reach.
    """
    both = np.asarray(law.alpha) + law.beta
    N = law.parameters(np.inf, target_loss) * (both / law.beta) ** (1 / np.asarray(law.alpha))
    return N, law.tokens(np.inf, target_loss) * (both / law.alpha) ** (1 / np.asarray(law.beta))


def _compute_optimal(
    fit: Fit, draws: Draws, baseline: str, kind: Kind, C: float, mixes: list[str]
) -> list[Saving]:
    if kind == "time":
        raise SettingError(
            "kind=time is not known compute-optimally, as time was measured at the ladder's own "
            "sizes alone; valid: tokens, parameters, flops."
        )
    k = flops_factor(fit.points, baseline)
    product = C * FLOPS / k
    law, drawn = fit.mixes[baseline].law, draws.laws[baseline]

    def ratio(base: Chinchilla, mix: Chinchilla, cost: float) -> tuple[Array, Array, Array, Array]:
        N, D = base.optimum(product)
        N_mix, D_mix = cheapest(mix, base.loss(N, D))
        with np.errstate(divide="ignore", invalid="ignore"):
            amounts = {"tokens": D / D_mix, "parameters": N / N_mix}
            saved = amounts.get(kind, np.asarray(N * D * k / (N_mix * D_mix * cost)))
        return saved, N_mix, D_mix, base.loss(N, D)

    found = []
    for name in mixes:
        cost = flops_factor(fit.points, name)
        value, N_mix, D_mix, target = ratio(law, fit.mixes[name].law, cost)
        factors = ratio(drawn, draws.laws[name], cost)[0]
        N, D = law.optimum(product)
        spots = (float(N), float(D)), (float(N_mix), float(D_mix))
        where = f"compute-optimal, C = {C:.3g} FLOP" + (
            " = 6 N D" if np.allclose((k, cost), FLOPS) else ""
        )
        found.append(
            judged(
                fit,
                draws,
                baseline,
                name,
                float(value),
                factors,
                float(target),
                spots,
                kind,
                where,
            )
        )
    return found


def isoflop(points: pd.DataFrame, baseline: str, C: float) -> list[tuple[float, float]]:
    """(N, D) of each of the baseline's sizes trained for C FLOPs, as recorded or else 6 N D."""
    k = flops_factor(points, baseline)
    return [(N, C / (k * N)) for _, N, _ in places(points, baseline)]


def projected(points: pd.DataFrame, baseline: str) -> list[tuple[float, float]]:
    """(N, D) of `PROJECTED` sizes at the tokens per parameter of the largest size's last budget."""
    largest = max(N for _, N, _ in places(points, baseline))
    ratio = float(token_range(points, baseline, largest)[1]) / largest
    return [(N, ratio * N) for N in PROJECTED.values()]
