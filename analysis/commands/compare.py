"""`python -m analysis compare sweep=NAME`: what differed, and what a reviewer asks, answered."""

from __future__ import annotations

import argparse

from analysis.commands.common import known, shown
from analysis.commands.sources import KEYS, find, settings

HELP = "what differed between mixes beside the mix, joint models, and a reviewer's checklist"
VALID = (*(key for key in KEYS if key != "out"), "format")
FORMATS = ("markdown", "latex", "json")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("settings", nargs="*", metavar="key=value", help=", ".join(VALID))


def run(options: argparse.Namespace) -> str:
    import pandas as pd

    from analysis import foreign
    from analysis.report import tables
    from analysis.report.checklist import checklist
    from analysis.study.compare import control_table

    chosen = settings(options.settings, VALID)
    form = chosen.get("format", "markdown")
    known("format", form, FORMATS)
    found = find("compare", options.settings, chosen)
    found = found if form == "json" else found.literal
    parts = {
        f"{one.mix} against {one.baseline}": control_table(one) for one in found.comparisons
    } | {"What a reviewer asks": checklist(found)}
    if found.sweep.dropped:
        parts["Left out"] = pd.DataFrame({"what": found.sweep.dropped})
    if form == "json":
        document = {title: table.to_dict("records") for title, table in parts.items()}
        return shown("json", document, [])
    if form == "latex":
        return "\n".join(tables.latex(table, title) for title, table in parts.items())
    return "\n\n".join(
        f"## {foreign.markdown(title)}\n\n{tables.markdown(table) if len(table) else 'Nothing.'}"
        for title, table in parts.items()
    )
