"""The commands of the analysis: `python -m analysis COMMAND key=value …`.

JSON holds no Infinity or NaN: an infinite number is the string "inf", an undefined one null.
"""

from __future__ import annotations

import importlib
import os
import sys

from ablations.records import visible
from models.command import choose, ended

COMMANDS = (
    "report", "figures", "tables", "compare", "pull", "fit", "savings", "predict", "design",
    "ledger", "serving", "classes", "tune",
)  # fmt: skip
"""Each a file of analysis/commands with a dataclass Settings and run(Settings) → text."""
SUMMARY = "What the runs say: fits, savings, reports."


def main(arguments: list[str], program: str = "python -m analysis") -> int:
    """Run one command; 0, or 2 with one sentence on stderr for what the user can mend."""
    return ended(lambda: _command(arguments, program))


def _command(arguments: list[str], program: str) -> None:
    modules = {name: importlib.import_module(f"analysis.commands.{name}") for name in COMMANDS}
    verbs = {name: module.Settings for name, module in modules.items()}
    verb, asked = choose(program, SUMMARY, verbs, arguments)
    output = modules[verb].run(asked)
    try:
        print(visible(output, keep="\n"), flush=True)
    except BrokenPipeError:  # a reader like head has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
