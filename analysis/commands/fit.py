"""`python -m analysis fit points.csv`: a scaling law for each mix of a CSV."""

from __future__ import annotations

import argparse

from analysis.commands.common import add_points, known, positive, shown

HELP = "fit a scaling law to each mix of a CSV"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--law", default="chinchilla", choices=["chinchilla"])
    add_points(parser, loss="huber", model="free")


def run(options: argparse.Namespace) -> str:
    from analysis.fit import LOSSES, MODELS, fit
    from analysis.load import load_csv

    known("loss", options.loss, LOSSES)
    known("model", options.model, MODELS)
    positive("delta", options.delta)
    fitted = fit(load_csv(options.points), options.model, options.loss, options.delta)
    mixes = {
        mix: one.law.as_dict()
        | {
            "objective": one.objective,
            "n": one.n,
            "runs": one.n_runs,
            "rms": one.rms,
            "gradient_norm": one.gradient_norm,
            "starts": one.starts,
            "starts_agreeing": one.starts_agreeing,
            "condition": one.condition,
            "at_bound": list(one.at_bound),
        }
        for mix, one in fitted.mixes.items()
    }
    head = {
        "law": options.law,
        "model": fitted.model,
        "loss": fitted.loss,
        "delta": fitted.delta if fitted.loss == "huber" else None,
        "objective": fitted.objective,
    }
    rows = [{"mix": mix} | one for mix, one in mixes.items()]
    return shown(options.format, head | {"mixes": mixes}, rows)
