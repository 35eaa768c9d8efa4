"""`python -m analysis pull entity/project`: runs logged to wandb, as a CSV of points."""

from __future__ import annotations

import argparse
from pathlib import Path

from ablations.records import SettingError, write_atomic

HELP = "runs logged to wandb, or offline, as a CSV of points"
VALID = ("out", "mix", "size", "seed", "N", "D", "loss", "bpb")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", help="entity/project, or a folder that holds offline runs")
    parser.add_argument("settings", nargs="*", metavar="key=value", help=", ".join(VALID))


def run(options: argparse.Namespace) -> str:
    from analysis.commands.sources import settings
    from analysis.report.figures.style import csv_text
    from analysis.study.tracking import Keys, offline_runs, points_of, server_runs

    chosen = settings(options.settings, VALID)
    out = Path(chosen.pop("out", "points.csv"))
    folder = Path(options.source)
    if not folder.is_dir() and options.source.count("/") != 1:
        raise SettingError(
            f"{options.source} is neither a folder of offline runs nor entity/project of wandb."
        )
    runs = offline_runs(folder) if folder.is_dir() else server_runs(options.source)
    points, empty = points_of(runs, Keys(**chosen))
    if points.empty:
        loss = Keys(**chosen).loss
        raise SettingError(
            f"{options.source} has no run with a value of {loss} in its history "
            f"({len(empty)} runs); name the held-out loss that they log, loss=NAME."
        )
    write_atomic(out, csv_text(points))
    told = [f"{len(points)} points of {points['run'].nunique()} runs in {out}"]
    if empty:
        told.append(f"without a point: {', '.join(empty)}")
    told.append(f"next: python -m analysis report points={out}")
    return "\n".join(told)
