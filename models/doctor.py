"""Whether the operators are right on this machine: `python -m models.doctor`.

Forward and backward of every backend that runs here, in float32 and bfloat16, against the
definition in float64 at shapes as in training; then the backend that `auto` takes, and why.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console

from models import contract
from models.command import ended, parse, setting
from models.errors import SettingError
from models.format import write_table
from models.ops import backend, preflight
from models.ops.operator import FORMS, Operator, operators_of


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


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Whether the operators are right on this machine, and which of them are taken.

    Exit code 0 where the backend that is taken is right, 1 where none is or a layer is wrong, 2 for
    a setting that cannot be used.
    """

    EXAMPLES = ("", "mixer=my_package.retention", "format=json")
    format: str = setting("table", "how it is printed", choices=("table", "markdown", "json"))
    device: str | None = setting(None, "cuda where there is one, else cpu, unless given")
    mixer: tuple[str, ...] = setting(
        (), "examine these mixers alone and hold their layers to docs/mixers.md; one of your own "
        "by the dotted path of its package",
    )  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    words = sys.argv[1:] if arguments is None else arguments
    return ended(lambda: _examine(parse(Settings, words, "python -m models.doctor")))


def _examine(asked: Settings) -> int:
    try:
        device = torch.device(asked.device or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise SettingError(f"device={asked.device} cannot be used: {reason}.") from None
    operators = operators_of(asked.mixer or None)
    checks = {mixer: contract.check(mixer) for mixer in asked.mixer}
    kept = all(line.right for lines in checks.values() for line in lines)
    if asked.format == "json":
        document, right = _document(operators, device)
        layers = {
            mixer: [{"line": str(line), "right": line.right} for line in lines]
            for mixer, lines in checks.items()
        }
        print(json.dumps({"layers": layers} | document, indent=1))
        return 0 if kept and right else 1
    for mixer, lines in checks.items():
        print(f"The layer of {mixer}, small and on the CPU:", *lines, "", sep="\n")
    if not operators:
        print(f"mixer={','.join(asked.mixer)}: no recurrent operator, so no other form to examine")
        return 0 if kept else 1

    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(", ".join(f"{k} {v}" for k, v in preflight.versions(device).items()), "\n")
    console.print("Norm of the error over the norm of the definition's tensor in float64:")
    verdicts = examine(operators, device)
    print(table(operators, verdicts, asked.format))
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


def _document(
    operators: Mapping[str, Operator], device: torch.device
) -> tuple[dict[str, Any], bool]:
    """What JSON holds of the operators, and whether a right one is there to take."""
    verdicts = [
        {
            "operator": v.operator, "backend": v.backend, "inputs": v.dtype,
            "errors": {k: e if math.isfinite(e) else None for k, e in v.errors.items()},
            "problem": v.problem or None,
        }
        for v in examine(operators, device)
    ]  # fmt: skip
    document = {"versions": preflight.versions(device), "operators": verdicts}
    if not operators:
        return document | {"auto": {}, "reason": None}, True
    try:
        choice = backend.choose(device, operators=operators)
    except SettingError as error:
        return document | {"auto": None, "reason": str(error)}, False
    return document | {"auto": dict(choice.backends), "reason": choice.reason}, True


if __name__ == "__main__":
    sys.exit(main())
