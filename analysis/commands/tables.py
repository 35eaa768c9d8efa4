"""`python -m analysis tables sweep=NAME`: tables for LaTeX, Markdown and CSV."""

from __future__ import annotations

import argparse

from ablations.records import one_of
from analysis.commands.common import known
from analysis.commands.sources import KEYS, find, folder, names, settings

HELP = "tables with intervals for LaTeX (booktabs), Markdown and CSV"
VALID = (*KEYS, "only", "format")
FORMATS = ("files", "latex", "markdown", "csv")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("settings", nargs="*", metavar="key=value", help=", ".join(VALID))


def run(options: argparse.Namespace) -> str:
    from analysis.report import tables
    from analysis.report import write as report
    from analysis.report.figures.style import csv_text

    chosen = settings(options.settings, VALID)
    form = chosen.get("format", "files")
    known("format", form, FORMATS)
    only = names(chosen, "only")
    found = find("tables", options.settings, chosen)
    shown, exact = report.cells(found), report.numbers(found)
    for name in only:
        if name not in shown | exact:
            raise one_of("only", name, tuple(shown | exact))
    if form == "files":
        out = folder(chosen) / "tables"
        report.make_writable(out)
        return "\n".join(map(str, report.write_tables(found, out, only)))
    if form == "csv":
        made = shown | exact
        return "\n".join(csv_text(made[name]) for name in only or made).rstrip()
    if form == "markdown":
        return "\n".join(tables.markdown(shown[name]) for name in only or shown if name in shown)
    return "\n".join(
        tables.latex(shown[name], report.CAPTIONS[name], f"tab:{name}")
        for name in only or shown
        if name in shown
    )
