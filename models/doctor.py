"""Whether the operators are right on this machine: `python -m models.doctor [--format markdown]`.

Forward and backward of every backend that runs here, in float32 and bfloat16, against the
definition in float64 at shapes as in training; then the backend that `auto` takes, and why.
Exit code 0 where that one is right, 1 where none is, 2 for a mistake in the arguments.
"""

from __future__ import annotations

import argparse
import sys

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from models.errors import SettingError
from models.ops import backend, preflight
from models.terminal import readable


def examine(device: torch.device) -> list[preflight.Verdict]:
    """Every backend of every operator in every dtype; none is taken from the cache."""
    return [
        preflight.examine(operator, name, device, dtype)
        for operator in preflight.OPERATORS
        for name in ("naive", "chunked", "fla")
        for dtype in preflight.FORWARD
        if name != "fla" or not preflight.cannot_run(name, device)
    ]


def table(verdicts: list[preflight.Verdict], markdown: bool) -> Table:
    tensors = preflight.TENSORS["gated_delta_rule"]
    made = Table(box=box.MARKDOWN if markdown else box.SIMPLE)
    for column in ("operator", "backend", "inputs"):
        made.add_column(column)
    for column in (*tensors, "right"):
        made.add_column(column, justify="right")
    for v in verdicts:
        errors = (f"{v.errors[t]:.1e}" if t in v.errors else "" for t in tensors)
        made.add_row(v.operator, v.backend, v.dtype, *errors, "no" if v.problem else "yes")
    return made


def main(arguments: list[str] | None = None) -> int:
    readable()
    parser = argparse.ArgumentParser(prog="python -m models.doctor", description=__doc__)
    parser.add_argument("--format", choices=("table", "markdown"), default="table")
    parser.add_argument("--device", help="cuda where there is one, else cpu, unless given")
    options = parser.parse_args(arguments)
    try:
        device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        print(f"--device {options.device}: {str(error).splitlines()[0]}", file=sys.stderr)
        return 2

    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(", ".join(f"{k} {v}" for k, v in preflight.versions(device).items()), "\n")
    console.print("Norm of the error over the norm of the definition's tensor in float64:")
    verdicts = examine(device)
    console.print(table(verdicts, options.format == "markdown"))
    for v in verdicts:
        if v.problem:
            console.print(f"{v.operator} in {v.dtype}: {v.problem}.")
    try:
        choice = backend.choose(device)
    except SettingError as error:
        console.print(str(error))
        return 1
    console.print(
        f"auto takes {choice.gated_delta_rule} for the gated delta rule and {choice.ssd} for ssd "
        f"({choice.reason.rstrip('.')})."
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
