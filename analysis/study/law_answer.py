"""Scaling laws of the mixes of a table of points, in whichever form is asked for, and what to say.

`python -m analysis fit` prints what stands here; `analysis.Ladder.fit` shows it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, cast, get_args

import numpy as np
import pandas as pd

from ablations.records import SettingError, one_of
from analysis.stats.fit import DELTA, LOSSES, MODELS, Fit, Loss, Model, fit
from analysis.stats.isoflop_draws import IsoFlopDraws, draw_isoflop
from analysis.stats.joint import ladder
from analysis.stats.laws import Ray
from analysis.stats.rays import MINIMA, SAME, IsoFlop, Minimum, fit_isoflop, fit_rays
from analysis.stats.uncertainty import LEVEL, METHOD_WORDS
from analysis.study.checks import doubts
from models.format import percent

Form = Literal["chinchilla", "gamma", "ray", "isoflop"]
FORMS: tuple[Form, ...] = get_args(Form)


@dataclass(frozen=True)
class LawAnswer:
    """Laws of every mix.

    `document` is what JSON holds of them, `rows` the same as a table, a mix or a budget a row, and
    `notes` are sentences to keep in mind. `fit` is there for laws in N and D, `rays` for law=ray,
    with the `points` that they were fitted to; `made` says with which
    resamples and seed p values of models, or intervals of law=isoflop, came out.
    """

    document: dict[str, Any]
    rows: list[dict[str, Any]]
    notes: list[str]
    fit: Fit | None = None
    rays: dict[str, Ray] | None = None
    points: pd.DataFrame | None = None
    made: dict[str, Any] = field(default_factory=dict)


def law_answer(
    points: pd.DataFrame,
    law: str = "chinchilla",
    model: str = "free",
    loss: str = "huber",
    delta: float = DELTA,
    fixed: dict[str, float] | None = None,
    ratio: float | None = None,
    resamples: int = 499,
    seed: int = 0,
    level: float = LEVEL,
    minimum: str = "parabola",
) -> LawAnswer:
    """Fit `law` to every mix in `points`.

    `model`: which coefficients the mixes share, or `all` for every such model, ranked. `fixed`
    holds coefficients, `ratio` (tokens per parameter) chooses a ray, `resamples` and `seed` are
    those of model=all and of law=isoflop, whose intervals have `level`, and whose `minimum` of a
    budget is that of a parabola or of Akima's interpolation. Raises SettingError where settings
    contradict each other or a mix cannot be fitted.
    """
    check_law(law, model, loss, fixed, ratio, minimum)
    fixed = fixed or {}
    head: dict[str, Any] = {"law": law, "loss": loss, "delta": delta if loss == "huber" else None}
    if law != "ray" and points.attrs.get("compute_only"):
        raise SettingError(f"law={law} needs columns N and D, and these points have C alone.")
    if model == "all":
        return _all_models(points, law, resamples, seed)
    chosen = cast(Loss, loss)
    if law == "ray":
        return _rays(points, head, chosen, delta, fixed.get("E"), ratio)
    if law == "isoflop":
        return _isoflop(points, head, chosen, delta, cast(Minimum, minimum), resamples, seed, level)
    fitted = fit(points, cast(Model, model), chosen, delta, cast(Any, law), fixed)
    mixes = {mix: one.law.as_dict() | one.certificate for mix, one in fitted.mixes.items()}
    head |= {
        "model": fitted.model,
        "fixed": fitted.fixed,
        "objective": fitted.objective,
        "parameters": fitted.n_parameters,
    }
    caveats = [f"{mix}: {one}." for mix, fit in fitted.mixes.items() for one in fit.caveats]
    notes = [f"{fitted.words}.", *caveats, *doubts(points)]
    return LawAnswer(head | {"mixes": mixes, "notes": notes}, _rows(mixes), notes, fitted)


def check_law(
    law: str,
    model: str,
    loss: str,
    fixed: dict[str, float] | None,
    ratio: float | None,
    minimum: str = "parabola",
) -> None:
    """Raise SettingError for settings that are not known, or not of one another."""
    for name, value, valid in (
        ("law", law, FORMS), ("loss", loss, LOSSES), ("model", model, (*MODELS, "all")),
        ("minimum", minimum, MINIMA),
    ):  # fmt: skip
        if value not in valid:
            raise one_of(name, value, valid)
    held = ",".join(f"{name}={value:g}" for name, value in (fixed or {}).items())
    if law in ("ray", "isoflop", "gamma") and model != "free":
        raise SettingError(f"model={model} needs law=chinchilla; law={law} is free.")
    if fixed and law == "isoflop":
        raise SettingError(f"fix={held} has nothing to hold in law=isoflop.")
    if fixed and model == "all":
        raise SettingError(f"fix={held} needs one model, not model=all.")
    if fixed and law == "ray" and fixed.keys() - {"E"}:
        raise SettingError(f"fix={held} holds more than law=ray may have held: E.")
    if ratio is not None and law != "ray":
        raise SettingError(f"ratio={ratio:g} needs law=ray, not {law}.")
    if minimum != "parabola" and law != "isoflop":
        raise SettingError(f"minimum={minimum} needs law=isoflop, not {law}.")


def _rays(
    points: pd.DataFrame,
    head: dict[str, Any],
    loss: Loss,
    delta: float,
    E: float | None,
    ratio: float | None,
) -> LawAnswer:
    fits = fit_rays(points, ratio, loss, delta, E)
    mixes = {
        mix: one.law.as_dict() | {"ratio": one.ratio} | one.terms.certificate
        for mix, one in fits.items()
    }
    notes = [f"{mix}: {caveat}." for mix, one in fits.items() for caveat in one.terms.caveats]
    notes += doubts(points)
    laws = {mix: one.law for mix, one in fits.items()}
    if ratio is not None:
        points = points[np.abs(np.log(points["D"] / points["N"] / ratio)) < np.log(SAME)]
    document = head | {"mixes": mixes, "notes": notes}
    return LawAnswer(document, _rows(mixes), notes, rays=laws, points=points)


def _isoflop(
    points: pd.DataFrame,
    head: dict[str, Any],
    loss: Loss,
    delta: float,
    minimum: Minimum,
    resamples: int,
    seed: int,
    level: float,
) -> LawAnswer:
    fits = fit_isoflop(points, loss, delta, minimum)
    draws = draw_isoflop(points, loss, delta, minimum, resamples, seed)
    mixes = {mix: _isoflop_mix(one, draws[mix], level) for mix, one in fits.items()}
    rows = [{"mix": mix} | budget for mix, one in mixes.items() for budget in one["budgets"]]
    notes = [
        f"{mix}: N* = {one.G_N:.4g} C^{one.a:.4f}, D* = {one.G_D:.4g} C^{one.b:.4f}; "
        f"standard errors {one.a_error:.2g}, {one.b_error:.2g}."
        for mix, one in fits.items()
    ]
    for mix, one in mixes.items():
        if np.isfinite(one["a_low"]):
            notes.append(
                f"{mix}: a from {one['a_low']:.4f} to {one['a_high']:.4f}, b from "
                f"{one['b_low']:.4f} to {one['b_high']:.4f}."
            )
        elif resamples:
            notes.append(
                f"{mix}: no interval, as only {draws[mix].fitted} of {resamples} resamples have "
                "two budgets with the lowest loss between their sizes."
            )
    made: dict[str, Any] = {}
    if resamples:
        made = {"method": "run", "resamples": resamples, "seed": seed, "level": level}
        assumed = points.attrs.get("runs_assumed")
        taken = "; points of one mix and size are taken as one run" if assumed else ""
        notes.append(
            f"Intervals of {percent(level, 'g')}: {METHOD_WORDS['run']}, {resamples} resamples, "
            f"seed {seed}{taken}."
        )
    notes += doubts(points)
    if minimum == "akima":
        head = head | {"loss": None, "delta": None}
    made = {"minimum": minimum} | made
    head = head | made
    return LawAnswer(head | {"mixes": mixes, "notes": notes}, rows, notes, made=made)


def _isoflop_mix(law: IsoFlop, draws: IsoFlopDraws, level: float) -> dict[str, Any]:
    """What JSON holds of one mix: N_star and D_star are those of the power laws at each C."""
    (a_low, a_high), (b_low, b_high) = (map(float, one) for one in draws.exponents(level))
    budgets = []
    for parabola in law.parabolas:
        N_star, D_star = law.optimum(parabola.C)
        N_bounds, D_bounds = draws.optimum(parabola.C, level)
        budgets.append(
            vars(parabola)
            | {"N_star": float(N_star)}
            | dict(zip(("N_star_low", "N_star_high"), map(float, N_bounds), strict=True))
            | {"D_star": float(D_star)}
            | dict(zip(("D_star_low", "D_star_high"), map(float, D_bounds), strict=True))
        )
    return {
        "a": law.a, "a_error": law.a_error, "a_low": a_low, "a_high": a_high, "G_N": law.G_N,
        "b": law.b, "b_error": law.b_error, "b_low": b_low, "b_high": b_high, "G_D": law.G_D,
        "resamples_fitted": draws.fitted, "budgets": budgets,
    }  # fmt: skip


def _all_models(points: pd.DataFrame, law: str, resamples: int, seed: int) -> LawAnswer:
    rungs = ladder(points, resamples, seed)
    rows = [one.as_dict() for one in rungs]
    best = max(rungs, key=lambda one: one.weight)
    notes = [
        f"Lowest AICc: {best.model}. Least squares on log residuals; likelihood ratios against "
        f"free, p by parametric bootstrap, {resamples} resamples, seed {seed}.",
        *doubts(points),
    ]
    mixes = {mix: one.law.as_dict() | one.certificate for mix, one in best.fit.mixes.items()}
    document = {"law": law, "loss": "squares", "best": best.model, "models": rows, "mixes": mixes}
    made = {"method": "parametric", "resamples": resamples, "seed": seed}
    return LawAnswer(document, rows, notes, best.fit, made=made)


def _rows(mixes: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"mix": mix} | one for mix, one in mixes.items()]
