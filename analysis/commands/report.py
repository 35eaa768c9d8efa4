"""`python -m analysis report sweep=NAME`: figures, tables and report.md of a sweep."""

from __future__ import annotations

import argparse
from pathlib import Path

from ablations.records import SettingError, one_of, project_root
from analysis.commands.common import whole

HELP = "figures, tables and report.md of a sweep"
KEYS = ("sweep", "runs", "out", "baseline", "resamples", "seed")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("settings", nargs="*", metavar="key=value", help=", ".join(KEYS))


def run(options: argparse.Namespace) -> str:
    from analysis.load import load_sweep
    from analysis.report import write_report

    given = {}
    for setting in options.settings:
        key, equals, value = setting.partition("=")
        if not equals or not value:
            raise SettingError(f"{setting} is not a setting; give key=value, e.g. sweep=NAME.")
        if key not in KEYS:
            raise one_of("key", key, KEYS)
        given[key] = value
    if "sweep" not in given:
        raise SettingError("sweep= is missing; give the name of a sweep, sweep=NAME.")
    root = project_root()
    sweep = load_sweep(root / given.get("runs", "runs") / given["sweep"])
    out = Path(given.get("out", root / "reports" / given["sweep"]))
    answers, written = write_report(
        sweep,
        out,
        baseline=given.get("baseline", "transformer"),
        resamples=whole("resamples", given.get("resamples", "1000"), 20),
        seed=whole("seed", given.get("seed", "0"), 0),
        command=" ".join(["python -m analysis report", *options.settings]),
    )
    told = [answer.replace("**", "") for answer in answers]
    return "\n".join([*told, "", *(str(path) for path in written if path.suffix != ".csv")])
