"""`python -m analysis report sweep=NAME`: report.html, report.md, figures and tables."""

from __future__ import annotations

import argparse

from analysis.commands.sources import KEYS, find, folder, settings

HELP = "report.html, report.md, figures and tables of a sweep or of points"
VALID = (*KEYS, "wandb")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("settings", nargs="*", metavar="key=value", help=", ".join(VALID))


def run(options: argparse.Namespace) -> str:
    from analysis.foreign import unmarked
    from analysis.report.write import write_report
    from analysis.study.tracking import attach, parse_run

    chosen = settings(options.settings, VALID)
    target = parse_run(chosen["wandb"]) if "wandb" in chosen else None
    # Where a report was sent does not change what is in it.
    given = [setting for setting in options.settings if not setting.startswith("wandb=")]
    found = find("report", given, chosen)
    out = folder(chosen)
    answers, written = write_report(found, out)
    told = [unmarked(answer.replace("**", "")) for answer in answers]
    shown = [str(path) for path in written if path.suffix in (".html", ".md", ".png")]
    shown = [path for path in shown if "/tables/" not in path]
    sent = [attach(target, out)] if target else []
    return "\n".join([*told, "", *shown, str(out / "tables"), *sent])
