"""`python -m analysis fit points.csv`: scaling laws of each mix of a CSV or a sweep."""

import argparse
from typing import TYPE_CHECKING, Any

from ablations.records import SettingError
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

if TYPE_CHECKING:
    import pandas as pd

HELP = "fit scaling laws to each mix of a CSV or a sweep"
LAWS = ("chinchilla", "gamma", "ray", "isoflop")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--law", default="chinchilla", help=", ".join(LAWS))
    add_points(parser, loss="huber", model="free")
    parser.add_argument(
        "--fix", default="", metavar="alpha=0.22,beta=0.22", help="hold E, alpha, beta; of a ray E"
    )
    parser.add_argument("--ratio", default="", metavar="D/N", help="law=ray: tokens per parameter")
    parser.add_argument("--resamples", default="499", help="model=all: ladders simulated for p")
    parser.add_argument("--seed", default="0")


def run(options: argparse.Namespace) -> str:
    from analysis.stats.fit import LOSSES, MODELS

    known("law", options.law, LAWS)
    known("loss", options.loss, LOSSES)
    known("model", options.model, (*MODELS, "all"))
    known("format", options.format, FORMATS)
    positive("delta", options.delta)
    if options.law in ("ray", "isoflop", "gamma") and options.model != "free":
        raise SettingError(
            f"model={options.model} needs law=chinchilla; law={options.law} is free."
        )
    if options.fix and options.law == "isoflop":
        raise SettingError(f"fix={options.fix} has nothing to hold in law=isoflop.")
    if options.fix and options.model == "all":
        raise SettingError(f"fix={options.fix} needs one model, not model=all.")
    if options.ratio and options.law != "ray":
        raise SettingError(f"ratio={options.ratio} needs law=ray, not {options.law}.")
    if options.model == "all":
        return _joint(options)
    return {"ray": _rays, "isoflop": _isoflop}.get(options.law, _fit)(options)


def _fit(options: argparse.Namespace) -> str:
    from analysis.stats.fit import fit

    points = read_points(options.points, options.where)
    fitted = fit(points, options.model, options.loss, options.delta, options.law, held(options.fix))
    mixes = {mix: one.law.as_dict() | one.certificate for mix, one in fitted.mixes.items()}
    head = _head(options) | {
        "model": fitted.model,
        "fixed": fitted.fixed,
        "objective": fitted.objective,
        "parameters": fitted.n_parameters,
    }
    notes = [f"{mix}: {one}." for mix, fit in fitted.mixes.items() for one in fit.caveats]
    return _shown(options, head, mixes, [f"{fitted.words}.", *notes, *_doubts(points)])


def _rays(options: argparse.Namespace) -> str:
    from analysis.stats.rays import fit_rays

    ratio = number("ratio", options.ratio) if options.ratio else None
    fixed = held(options.fix)
    if fixed.keys() - {"E"}:
        raise SettingError(f"fix={options.fix} holds more than law=ray may have held: E.")
    points = read_points(options.points, options.where, by_compute=True)
    found = fit_rays(points, ratio, options.loss, options.delta, fixed.get("E"))
    mixes = {
        mix: one.law.as_dict() | {"ratio": one.ratio} | one.terms.certificate
        for mix, one in found.items()
    }
    notes = [f"{mix}: {told}." for mix, one in found.items() for told in one.terms.caveats]
    return _shown(options, _head(options), mixes, [*notes, *_doubts(points)])


def _isoflop(options: argparse.Namespace) -> str:
    from analysis.stats.rays import fit_isoflop

    points = read_points(options.points, options.where)
    found = fit_isoflop(points, options.loss, options.delta)
    mixes = {
        mix: {name: getattr(one, name) for name in ("a", "a_error", "G_N", "b", "b_error", "G_D")}
        | {"budgets": [vars(parabola) for parabola in one.parabolas]}
        for mix, one in found.items()
    }
    rows = [{"mix": mix} | budget for mix, one in mixes.items() for budget in one["budgets"]]
    notes = [
        f"{mix}: N* = {one.G_N:.4g} C^{one.a:.4f}, D* = {one.G_D:.4g} C^{one.b:.4f}; "
        f"standard errors {one.a_error:.2g}, {one.b_error:.2g}."
        for mix, one in found.items()
    ]
    notes += _doubts(points)
    return shown(options.format, _head(options) | {"mixes": mixes, "notes": notes}, rows, notes)


def _joint(options: argparse.Namespace) -> str:
    from analysis.stats.joint import ladder

    resamples = whole("resamples", options.resamples, 0)
    points = read_points(options.points, options.where)
    rungs = ladder(points, resamples, whole("seed", options.seed, 0))
    rows = [one.as_dict() for one in rungs]
    best = max(rungs, key=lambda one: one.weight)
    notes = [
        f"Lowest AICc: {best.model}. Least squares on log residuals; likelihood ratios against "
        f"free, p by parametric bootstrap, {resamples} resamples, seed {options.seed}.",
        *_doubts(points),
    ]
    document = {"law": options.law, "loss": "squares", "best": best.model, "models": rows}
    mixes = {mix: one.law.as_dict() | one.certificate for mix, one in best.fit.mixes.items()}
    return shown(options.format, document | {"mixes": mixes}, rows, notes)


def _head(options: argparse.Namespace) -> dict[str, Any]:
    return {
        "law": options.law,
        "loss": options.loss,
        "delta": options.delta if options.loss == "huber" else None,
    }


def _shown(
    options: argparse.Namespace, head: dict[str, Any], mixes: dict[str, Any], notes: list[str]
) -> str:
    rows = [{"mix": mix} | one for mix, one in mixes.items()]
    return shown(options.format, head | {"mixes": mixes, "notes": notes}, rows, notes)


def _doubts(points: "pd.DataFrame") -> list[str]:
    from analysis.study.checks import doubts

    return list(doubts(points))
