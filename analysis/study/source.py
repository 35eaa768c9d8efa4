"""Where points come from, whatever was given: sweeps, a CSV or a DataFrame, as one `Sweep`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from ablations.records import SettingError
from analysis.study import rows
from analysis.study.join import join
from analysis.study.levels import at_level
from analysis.study.load import Sweep, load_csv, load_frame, load_sweep


def from_sweeps(folders: list[Path], where: Mapping[str, Any] | None = None) -> Sweep:
    """One sweep or several as one, at one level of what they vary beside the mix.

    `where` chooses by columns of the points (a value or a list of them) and by settings of the runs
    (one value, as in protocol.lr_multiplier=1). protocol.max_steps=N asks for the tries of N steps,
    which are left out otherwise. Raises SettingError where nothing is left, and
    where runs of one mix and size still differ in more than their seed.
    """
    tries = "protocol.max_steps" in (where or {})
    sweep = join([load_sweep(folder, tries) for folder in folders])
    by_column = {key: value for key, value in (where or {}).items() if key in sweep.points}
    by_setting: dict[str, str] = {}
    for key, value in (where or {}).items():
        if key in by_column:
            continue
        values = rows.values_of(value)
        if len(values) > 1:
            raise SettingError(
                f"where={key} has {len(values)} values, and runs are compared at one level of a "
                f"setting; give one, where={key}={values[0]}."
            )
        by_setting[key] = str(values[0])
    return at_level(_with_rows(sweep, by_column), by_setting)


def _with_rows(sweep: Sweep, where: Mapping[str, Any]) -> Sweep:
    if not where:
        return sweep
    points = rows.chosen(sweep.points, where, {}, f"sweep={sweep.name}").reset_index(drop=True)
    runs = sweep.runs
    for key in set(where) & {"mix", "size", "seed", "state"}:
        values = {rows.word(value) for value in rows.values_of(where[key])}
        runs = tuple(run for run in runs if rows.word(getattr(run, key)) in values)
    if "run" in where:
        runs = tuple(run for run in runs if run.name in set(points["run"]))
    words = ", ".join(
        f"{key} = {'+'.join(map(rows.word, rows.values_of(value)))}" for key, value in where.items()
    )
    return replace(sweep, name=f"{sweep.name}, {words}", points=points, runs=runs)


def from_csv(
    path: Path,
    by_compute: bool = False,
    columns: Mapping[str, str] | None = None,
    where: Mapping[str, Any] | None = None,
) -> Sweep:
    """Points of a CSV, which tell nothing of their runs. Raises SettingError like `load_csv`."""
    return Sweep(path.stem, path, load_csv(path, by_compute, columns, where), ())


def from_frame(
    frame: pd.DataFrame,
    by_compute: bool = False,
    columns: Mapping[str, str] | None = None,
    where: Mapping[str, Any] | None = None,
) -> Sweep:
    """Points of a DataFrame. Raises SettingError like `load_frame`."""
    return Sweep("points", Path(), load_frame(frame, by_compute, columns, where), ())


def notes_of(sweep: Sweep) -> list[str]:
    """What a sweep lacks so far and what was left out of it, a sentence each."""
    running = sum(run.state != "done" for run in sweep.runs)
    return [
        *([f"{running} of {len(sweep.runs)} runs have not finished."] if running else []),
        *(f"left out: {what}." for what in sweep.dropped),
        *(f"incomplete: {what}." for what in sweep.incomplete),
    ]
