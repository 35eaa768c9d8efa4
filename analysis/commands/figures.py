"""`python -m analysis figures sweep=NAME`: the figures alone, at a paper's column width."""

from __future__ import annotations

import argparse

from ablations.records import SettingError
from analysis.commands.common import known
from analysis.commands.sources import KEYS, find, folder, names, settings

HELP = "figures alone: PDF, PNG, SVG, their data and where they come from"
VALID = (*KEYS, "only", "width", "note")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("settings", nargs="*", metavar="key=value", help=", ".join(VALID))


def run(options: argparse.Namespace) -> str:
    from analysis.report.figures.drawing import check_names, draw
    from analysis.report.figures.style import WIDTHS
    from analysis.report.write import make_writable

    chosen = settings(options.settings, VALID)
    width, noted = chosen.get("width", "double"), chosen.get("note", "true")
    known("width", width, tuple(WIDTHS))
    known("note", noted, ("true", "false"))
    only = names(chosen, "only")
    check_names(only)
    found = find("figures", options.settings, chosen)
    out = folder(chosen) / "figures"
    make_writable(out)
    gallery = draw(found, out, only, WIDTHS[width], noted == "true")
    if not gallery.shown:
        told = "; ".join(f"{name}: {clause}" for name, clause in gallery.lacking.items())
        raise SettingError(f"only={chosen.get('only', '')} cannot be drawn ({told}).")
    missing = [f"not drawn: {name}: {clause}" for name, clause in gallery.lacking.items()]
    return "\n".join([*(f"{one.stem}.pdf" for one in gallery.shown.values()), *missing])
