"""Control: what may differ between the runs of a sweep, checked before anything runs.

Runs of one size may differ in their seed, in a declared treatment (the mix, by default) and in what
follows from it by rule: the model's layers and widths, and what the match moved. Runs of different
sizes differ in the size, and in the recipe and corpus it decides. Anything else stops the sweep, by
field, values and runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ablations.settings import flatten
from models.errors import SettingError

FOLLOWS = ("model", "matched")
"""What a mix decides by rule."""
FREE = ("sweep", "resources", "logging", "data.path", "corpus.name")
"""No part of what a run computes."""


def check(specs: Mapping[str, Mapping[str, Any]], treatments: Sequence[str]) -> None:
    """Raise SettingError where runs differ in what was not declared.

    specs: {run name: spec as plain nested dict}; treatments: dotted names, like `mix` or
    `protocol.lr_multiplier`. Other treatments than the mix may change the recipe by its rules.
    """
    flat = {name: flatten(spec) for name, spec in specs.items()}
    declared = (*treatments, "seed", *FREE, *FOLLOWS)
    # A size decides its recipe and, where data=auto, its corpus; all three are one inside a size.
    by_size = ("size", "recipe", "corpus", "data.name")
    _compare(flat, (*declared, *by_size), treatments, "the sweep")
    sizes: dict[str, dict[str, dict[str, Any]]] = {}
    for name, spec in flat.items():
        sizes.setdefault(spec["size.name"], {})[name] = spec
    by_rule = ("recipe",) if any(t != "mix" for t in treatments) else ()
    for size, runs in sizes.items():
        _compare(runs, (*declared, *by_rule), treatments, f"size={size}")


def _compare(
    runs: Mapping[str, Mapping[str, Any]],
    allowed: Sequence[str],
    treatments: Sequence[str],
    where: str,
) -> None:
    fields = sorted({field for spec in runs.values() for field in spec})
    for field in fields:
        if any(field == a or field.startswith(f"{a}.") for a in allowed):
            continue
        holders: dict[str, str] = {}
        for name, spec in runs.items():
            holders.setdefault(str(spec.get(field)), name)
        if len(holders) > 1:
            (a, run_a), (b, run_b) = list(holders.items())[:2]
            raise SettingError(
                f"{field} differs inside {where} ({a} in {run_a}, {b} in {run_b}) and is no "
                f"declared treatment; give it one value, take another sweep=NAME, or declare "
                f"treatments=[{','.join([*treatments, field])}]."
            )
