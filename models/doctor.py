"""Whether the operators are right on this machine: `python -m models.doctor [--format markdown]`.

--mixer NAME[,NAME] examines these mixers alone, and holds their layers to what docs/mixers.md asks
of them (models/contract.py); one of your own is named by the dotted path of its package.

Forward and backward of every backend that runs here, in float32 and bfloat16, against the
definition in float64 at shapes as in training; then the backend that `auto` takes, and why.
Exit code 0 where that one is right, 1 where none is or a layer is wrong, 2 for a mistake in the
arguments.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping

import torch
from rich.console import Console

from models import contract
from models.errors import SettingError
from models.format import write_table
from models.ops import backend, preflight
from models.ops.operator import FORMS, Operator, operators_of
from models.terminal import readable


def examine(operators: Mapping[str, Operator], device: torch.device) -> list[preflight.Verdict]:
    """Every backend of every operator in every dtype; none is taken from the cache."""
    return [
        preflight.examine(operator, name, device, dtype)
        for operator in operators.values()
        for name in FORMS
        for dtype in preflight.FORWARD
        if not preflight.cannot_run(operator, name, device)
    ]


def table(operators: Mapping[str, Operator], verdicts: list[preflight.Verdict], form: str) -> str:
    tensors = tuple(dict.fromkeys(t for operator in operators.values() for t in operator.tensors))
    rows = [
        (
            *(v.operator, v.backend, v.dtype),
            *(f"{v.errors[t]:.1e}" if t in v.errors else "" for t in tensors),
            "no" if v.problem else "yes",
        )
        for v in verdicts
    ]
    return write_table(("operator", "backend", "inputs", *tensors, "right"), rows, form, (0, 1, 2))


def main(arguments: list[str] | None = None) -> int:
    readable()
    parser = argparse.ArgumentParser(prog="python -m models.doctor", description=__doc__)
    parser.add_argument("--format", choices=("table", "markdown"), default="table")
    parser.add_argument("--device", help="cuda where there is one, else cpu, unless given")
    parser.add_argument("--mixer", help="NAME[,NAME]: all that come with the project unless given")
    options = parser.parse_args(arguments)
    try:
        device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        print(f"--device {options.device}: {str(error).splitlines()[0]}", file=sys.stderr)
        return 2
    mixers = options.mixer.split(",") if options.mixer else None
    try:
        operators = operators_of(mixers)
        checks = {mixer: contract.check(mixer) for mixer in mixers or ()}
    except SettingError as error:
        print(error, file=sys.stderr)
        return 2
    for mixer, lines in checks.items():
        print(f"The layer of {mixer}, small and on the CPU:", *lines, "", sep="\n")
    kept = all(line.right for lines in checks.values() for line in lines)
    if not operators:
        print(f"--mixer {options.mixer}: no recurrent operator, so no other form to examine")
        return 0 if kept else 1

    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(", ".join(f"{k} {v}" for k, v in preflight.versions(device).items()), "\n")
    console.print("Norm of the error over the norm of the definition's tensor in float64:")
    verdicts = examine(operators, device)
    print(table(operators, verdicts, options.format))
    for v in verdicts:
        if v.problem:
            console.print(f"{v.operator} in {v.dtype}: {v.problem}.")
    try:
        choice = backend.choose(device, operators=operators)
    except SettingError as error:
        console.print(str(error))
        return 1
    taken = " and ".join(f"{name} for {operator}" for operator, name in choice.backends.items())
    console.print(f"auto takes {taken} ({choice.reason.rstrip('.')}).")
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
