"""Sweeps that vary more than the mix on purpose: one level of the other treatments at a time.

Runs of one mix and size count as seeds, whose scatter becomes the interval. Where they differ in a
learning rate as well, that scatter is the treatment's.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from typing import Any

from ablations.records import SettingError
from analysis.study.load import Run, Sweep
from analysis.study.recorded import flattened
from analysis.study.rows import word

# Not settings of training, or following from others by rule.
NOT_SET = (
    "sweep", "seed", "name", "identity", "hash", "evaluation", "resources", "logging", "paths",
    "model", "recipe", "matched",
)  # fmt: skip


def levels(runs: tuple[Run, ...]) -> dict[str, list[Any]]:
    """Settings in which runs of one mix and size differ beside the seed, with their values."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for run in runs:
        settings = {
            key: value
            for key, value in flattened(run.spec)
            if key.partition(".")[0] not in NOT_SET and not key.endswith(".chinchilla")
        }
        groups[run.mix, run.size].append(settings)
    found: dict[str, list[Any]] = {}
    for own in groups.values():
        for key in sorted({key for settings in own for key in settings}):
            # A run recorded before the setting was there says nothing about it.
            values = {word(settings[key]): settings[key] for settings in own if key in settings}
            if len(values) > 1:
                known = {word(value): value for value in found.get(key, [])}
                found[key] = sorted((known | values).values(), key=_order)
    return found


def at_level(sweep: Sweep, where: dict[str, str]) -> Sweep:
    """The runs of a sweep whose spec has the values of `where`, of one level of every treatment.

    Raises SettingError for a setting or value that no run has, and where runs of one mix and size
    still differ in more than their seed.
    """
    runs = sweep.runs
    for key, wanted in where.items():
        values = {word(dict(flattened(run.spec)).get(key)): None for run in runs}
        if values.keys() == {word(None)}:
            raise SettingError(f"where={key}={wanted} names no setting of sweep={sweep.name}.")
        runs = tuple(run for run in runs if _is_at(run, key, wanted))
        if not runs:
            raise SettingError(
                f"where={key}={wanted} leaves no run of sweep={sweep.name}; it has "
                f"{key}={', '.join(sorted(values))}."
            )
    if len(runs) < len(sweep.runs):
        names = {run.name for run in runs}
        points = sweep.points[sweep.points["run"].isin(names)].reset_index(drop=True)
        if points.empty:
            words = ",".join(f"{key}={value}" for key, value in where.items())
            raise SettingError(f"where={words} leaves runs of sweep={sweep.name} without points.")
        words = ", ".join(f"{key} = {value}" for key, value in where.items())
        sweep = replace(sweep, name=f"{sweep.name}, {words}", points=points, runs=runs)
    if differing := levels(sweep.runs):
        words = "; ".join(
            f"{key}={', '.join(map(word, values))}" for key, values in differing.items()
        )
        example = ",".join(f"{key}={word(values[0])}" for key, values in differing.items())
        raise SettingError(
            f"sweep={sweep.name} has runs of one mix and size that differ in more than the seed "
            f"({words}), and their mean and interval would mix the two; choose one level, "
            f"where={example}."
        )
    return sweep


def _is_at(run: Run, key: str, wanted: str) -> bool:
    """Whether a run is at a level; at every one of a rule that none of its mixers reads."""
    settings = dict(flattened(run.spec))
    if key not in settings and key.startswith("protocol."):
        return True
    return word(settings.get(key)) == word(wanted)


def _order(value: Any) -> tuple[int, float, str]:
    try:
        return 0, float(word(value)), ""
    except ValueError:
        return 1, 0.0, word(value)
