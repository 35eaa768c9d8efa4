"""Scaling laws of the mixes of a table of points, in whichever form is asked for, and what to say.

`python -m analysis fit` prints what stands here; `analysis.Ladder.fit` shows it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, cast, get_args

import numpy as np
import pandas as pd

from ablations.records import SettingError, one_of
from analysis.stats.envelope import Envelope, draw_envelope, fit_envelope
from analysis.stats.fit import (
    DELTA,
    LOSSES,
    MODELS,
    SAME,
    Fit,
    Loss,
    MixFit,
    Model,
    each_mix,
    fit,
    lacking,
    refusal,
)
from analysis.stats.interval import LEVEL
from analysis.stats.isoflop_draws import IsoFlopDraws, draw_isoflop
from analysis.stats.joint import ladder
from analysis.stats.laws import Ray
from analysis.stats.rays import (
    AXIS_LAWS,
    COEFFICIENTS,
    MINIMA,
    Axis,
    IsoFlop,
    Minimum,
    RayFit,
    fit_axis,
    fit_isoflop,
    fit_rays,
)
from analysis.stats.seeds import size_places
from analysis.stats.uncertainty import METHOD_WORDS
from analysis.study.caveats import ranked
from analysis.study.checks import doubts, merged
from analysis.study.said import said_once
from models.format import percent

Form = Literal["chinchilla", "gamma", "ray", "N", "D", "isoflop", "envelope"]
FORMS: tuple[Form, ...] = get_args(Form)


@dataclass(frozen=True)
class LawAnswer:
    """Laws of every mix.

    `document` is what JSON holds of them, `rows` the same as a table, a mix or a budget a row, and
    `notes` are sentences to keep in mind. `fit` is there for laws in N and D, `rays` for those
    along the `axis` C, N or D, `parabolas` for law=isoflop and `envelopes` for law=envelope, both
    with their `draws` and the `level` of intervals; all but `fit` with the `points` that they were
    fitted to. `made` says with which resamples and seed p values of models, or intervals of law=
    isoflop and law=envelope, came out.
    """

    document: dict[str, Any]
    rows: list[dict[str, Any]]
    notes: list[str]
    fit: Fit | None = None
    rays: dict[str, Ray] | None = None
    axis: Axis = "C"
    parabolas: dict[str, IsoFlop] | None = None
    envelopes: dict[str, Envelope] | None = None
    draws: dict[str, IsoFlopDraws] = field(default_factory=dict)
    level: float = LEVEL
    points: pd.DataFrame | None = None
    made: dict[str, Any] = field(default_factory=dict)
    unfitted: dict[str, str] = field(default_factory=dict)
    """Mixes that cannot be fitted, with the sentence that says why."""


def law_answer(
    points: pd.DataFrame,
    law: str = "chinchilla",
    *,
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
    those of model=all, law=isoflop and law=envelope; intervals of the latter two have `level`, and
    law=isoflop's `minimum` of a budget is that of a parabola or of Akima's interpolation. A mix
    that cannot be fitted is left out and named, unless it shares coefficients with the others.
    Raises SettingError where settings contradict each other or no mix can be fitted.
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
        fits, refused = each_mix(
            points, lambda own: fit_rays(own, ratio, chosen, delta, fixed.get("E"))
        )
        if ratio is not None:
            points = points[np.abs(np.log(points["D"] / points["N"] / ratio)) < np.log(SAME)]
        return _rays(points, head, fits, refused, "C")
    if law in ("N", "D"):
        axis = cast(Literal["N", "D"], law)
        fits, refused = each_mix(
            points, lambda own: fit_axis(own, axis, chosen, delta, fixed.get("E"))
        )
        return _rays(points, head, fits, refused, axis)
    if law == "envelope":
        return _envelope(points, head, resamples, seed, level)
    if law == "isoflop":
        return _isoflop(points, head, chosen, delta, cast(Minimum, minimum), resamples, seed, level)
    ready, refused = points, {}
    if model == "free":
        ready, refused = _ready(points, law, fixed)
    fitted = fit(ready, cast(Model, model), chosen, delta, cast(Any, law), fixed)
    mixes = {mix: one.law.as_dict() | one.certificate for mix, one in fitted.mixes.items()}
    head |= {
        "model": fitted.model,
        "fixed": fitted.fixed,
        "objective": fitted.objective,
        "parameters": fitted.n_parameters,
    }
    caveats = _caveats(fitted.mixes)
    notes = [f"{fitted.words}.", *refused.values(), *caveats, *map(str, doubts(points))]
    document = head | _mixes(mixes, refused) | {"notes": notes}
    return LawAnswer(document, _rows(mixes), notes, fitted, unfitted=refused)


def _ready(
    points: pd.DataFrame, law: str, fixed: dict[str, float]
) -> tuple[pd.DataFrame, dict[str, str]]:
    """The points of mixes that can be fitted, and of others the sentence; all where none can."""
    lacks = {
        str(mix): refusal(str(mix), clause)
        for mix, own in points.groupby("mix", sort=False)
        if (clause := lacking(own, cast(Any, law), fixed))
    }
    if len(lacks) == points["mix"].nunique():
        return points, {}
    return points[~points["mix"].isin(list(lacks))], lacks


def _caveats(fits: dict[str, MixFit]) -> list[str]:
    """What keeps coefficients from being read, each once with the mixes that it holds for."""
    return said_once((mix, f"{told}.") for mix, one in fits.items() for told in one.caveats)


def _mixes(mixes: dict[str, dict[str, Any]], refused: dict[str, str]) -> dict[str, Any]:
    """What JSON holds of mixes, those without a law apart where there are any."""
    return {"mixes": mixes} | ({"unfitted": refused} if refused else {})


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
    one_axis = law in AXIS_LAWS.values()
    if (one_axis or law in ("isoflop", "envelope", "gamma")) and model != "free":
        raise SettingError(f"model={model} needs law=chinchilla; law={law} is free.")
    if fixed and law in ("isoflop", "envelope"):
        raise SettingError(f"fix={held} has nothing to hold in law={law}.")
    if fixed and model == "all":
        raise SettingError(f"fix={held} needs one model, not model=all.")
    if fixed and one_axis and fixed.keys() - {"E"}:
        raise SettingError(f"fix={held} holds more than law={law} may have held: E.")
    if ratio is not None and law != "ray":
        raise SettingError(f"ratio={ratio:g} needs law=ray, not {law}.")
    if minimum != "parabola" and law != "isoflop":
        raise SettingError(f"minimum={minimum} needs law=isoflop, not {law}.")


def _rays(
    points: pd.DataFrame,
    head: dict[str, Any],
    fits: dict[str, RayFit],
    refused: dict[str, str],
    axis: Axis,
) -> LawAnswer:
    factor, exponent = COEFFICIENTS[axis]
    constant = {"C": "ratio", "N": "D", "D": "N"}[axis]
    mixes = {
        mix: {"E": one.law.E, factor: one.law.K, exponent: one.law.kappa, constant: one.constant}
        | one.terms.certificate
        for mix, one in fits.items()
    }
    caveats = _caveats({mix: one.terms for mix, one in fits.items()})
    notes = [*refused.values(), *caveats, *map(str, doubts(points))]
    laws = {mix: one.law for mix, one in fits.items()}
    document = head | _mixes(mixes, refused) | {"notes": notes}
    return LawAnswer(
        document, _rows(mixes), notes, rays=laws, axis=axis, points=points, unfitted=refused
    )


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
    fits, refused = each_mix(points, lambda own: fit_isoflop(own, loss, delta, minimum))
    fitted = points[points["mix"].isin(list(fits))]
    draws = draw_isoflop(fitted, loss, delta, minimum, resamples, seed)
    mixes = {mix: _isoflop_mix(one, draws[mix], level) for mix, one in fits.items()}
    rows = [{"mix": mix} | budget for mix, one in mixes.items() for budget in one["budgets"]]
    errors = {
        mix: f"; standard errors {one.a_error:.2g}, {one.b_error:.2g}" for mix, one in fits.items()
    }
    lacks = "two budgets with the lowest loss between their sizes"
    made = _made(resamples, seed, level)
    notes = [
        *refused.values(),
        *_exponent_notes(fits, errors, mixes, draws, resamples, lacks),
        *_outside_notes(rows),
        *_interval_notes(points, made),
        *map(str, doubts(points)),
    ]
    if minimum == "akima":
        head = head | {"loss": None, "delta": None}
    made = {"minimum": minimum} | made
    document = head | made | _mixes(mixes, refused) | {"notes": notes}
    return LawAnswer(
        document, rows, notes, parabolas=fits, draws=draws, level=level, points=points, made=made,
        unfitted=refused,
    )  # fmt: skip


def _envelope(
    points: pd.DataFrame, head: dict[str, Any], resamples: int, seed: int, level: float
) -> LawAnswer:
    fits, refused = each_mix(points, fit_envelope)
    draws = draw_envelope(fits, resamples, seed)
    mixes = {mix: _envelope_mix(one, draws[mix], level) for mix, one in fits.items()}
    rows = [{"mix": mix} | step for mix, one in mixes.items() for step in one["steps"]]
    lacks = "two best sizes that lie between others"
    made = _made(resamples, seed, level)
    # Whatever its sizes are called, the envelope tells them apart by N.
    by_N = points.groupby("mix")["N"].transform(lambda N: size_places(N.to_numpy(float)))
    notes = [
        *refused.values(),
        *_exponent_notes(fits, {}, mixes, draws, resamples, lacks),
        *_interval_notes(points, made),
        "Every point of a curve counts as trained to its budget. That holds for a constant "
        "learning rate and for WSD-S, which decays it before each budget; points in the middle of "
        "a cosine schedule lie above what a schedule of their own would reach.",
        "Where runs scatter by more than 0.1 % of the loss the envelope keeps the lucky ones, and "
        "its exponents are biased by more than the interval says (docs/statistics.md).",
        *map(str, ranked([*doubts(points), *merged(points, by_N)])),
    ]
    document = head | {"loss": None, "delta": None} | made | _mixes(mixes, refused)
    document |= {"notes": notes}
    return LawAnswer(
        document, rows, notes, envelopes=fits, draws=draws, level=level, points=points, made=made,
        unfitted=refused,
    )  # fmt: skip


def _outside_notes(rows: list[dict[str, Any]]) -> list[str]:
    """Budgets at which N* of the power law lies outside its own interval, by mix."""
    outside: dict[str, list[str]] = {}
    for row in rows:
        if row["N_star"] < row["N_star_low"] or row["N_star"] > row["N_star_high"]:
            outside.setdefault(str(row["mix"]), []).append(f"{row['C']:.3g}")
    return [
        f"{mix}: at C = {', '.join(budgets)} N* lies outside its interval, which is of refits that "
        "leave runs out: the minima depend on which sizes are there, and the interval is not to be "
        "read."
        for mix, budgets in outside.items()
    ]


def _exponent_notes(
    fits: dict[str, IsoFlop] | dict[str, Envelope],
    errors: dict[str, str],
    mixes: dict[str, dict[str, Any]],
    draws: dict[str, IsoFlopDraws],
    resamples: int,
    lacks: str,
) -> list[str]:
    """The two power laws of each mix, then their intervals or why there is none."""
    notes = [
        f"{mix}: N* = {one.G_N:.4g} C^{one.a:.4f}, D* = {one.G_D:.4g} C^{one.b:.4f}"
        f"{errors.get(mix, '')}."
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
                f"{lacks}."
            )
    return notes


def _made(resamples: int, seed: int, level: float) -> dict[str, Any]:
    if not resamples:
        return {}
    return {"method": "run", "resamples": resamples, "seed": seed, "level": level}


def _interval_notes(points: pd.DataFrame, made: dict[str, Any]) -> list[str]:
    if not made:
        return []
    assumed = points.attrs.get("runs_assumed")
    taken = "; points of one mix and size are taken as one run" if assumed else ""
    return [
        f"Intervals of {percent(made['level'], 'g')}: {METHOD_WORDS['run']}, {made['resamples']} "
        f"resamples, seed {made['seed']}{taken}."
    ]


def _isoflop_mix(law: IsoFlop, draws: IsoFlopDraws, level: float) -> dict[str, Any]:
    """What JSON holds of one mix: N_star and D_star are those of the power laws at each C."""
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
    (a_low, a_high), (b_low, b_high) = (map(float, one) for one in draws.exponents(level))
    return {
        "a": law.a, "a_error": law.a_error, "a_low": a_low, "a_high": a_high, "G_N": law.G_N,
        "b": law.b, "b_error": law.b_error, "b_low": b_low, "b_high": b_high, "G_D": law.G_D,
        "resamples_fitted": draws.fitted, "budgets": budgets,
    }  # fmt: skip


def _envelope_mix(law: Envelope, draws: IsoFlopDraws, level: float) -> dict[str, Any]:
    """What JSON holds of one mix: a step for each stretch of budgets with one best run."""
    starts = np.flatnonzero(np.diff(law.run, prepend=-1))
    steps = []
    for start, end in zip(starts, [*starts[1:], len(law.C)], strict=True):
        last = end - 1
        steps.append(
            {
                "N": float(law.N[start]), "C_from": float(law.C[start]), "C_to": float(law.C[last]),
                "D_from": float(law.D[start]), "D_to": float(law.D[last]),
                "loss_from": float(law.loss[start]), "loss_to": float(law.loss[last]),
                "budgets": int(end - start), "budgets_used": int(law.inside[start:end].sum()),
            }
        )  # fmt: skip
    (a_low, a_high), (b_low, b_high) = (map(float, one) for one in draws.exponents(level))
    return {
        "a": law.a, "a_low": a_low, "a_high": a_high, "G_N": law.G_N,
        "b": law.b, "b_low": b_low, "b_high": b_high, "G_D": law.G_D,
        "resamples_fitted": draws.fitted, "steps": steps,
    }  # fmt: skip


def _all_models(points: pd.DataFrame, law: str, resamples: int, seed: int) -> LawAnswer:
    rungs = ladder(points, resamples, seed)
    rows = [one.as_dict() for one in rungs]
    best = max(rungs, key=lambda one: one.weight)
    notes = [
        f"Lowest AICc: {best.model}. Least squares on log residuals; likelihood ratios against "
        f"free, p by parametric bootstrap, {resamples} resamples, seed {seed}.",
        *map(str, doubts(points)),
    ]
    mixes = {mix: one.law.as_dict() | one.certificate for mix, one in best.fit.mixes.items()}
    document = {"law": law, "loss": "squares", "best": best.model, "models": rows, "mixes": mixes}
    made = {"method": "parametric", "resamples": resamples, "seed": seed}
    return LawAnswer(document, rows, notes, best.fit, made=made)


def _rows(mixes: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"mix": mix} | one for mix, one in mixes.items()]
