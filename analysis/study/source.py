"""Where points come from, whatever was given: sweeps, a CSV or a DataFrame, as one `Sweep`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.study import arms, rows
from analysis.study.join import join
from analysis.study.load import Sweep, load_csv, load_frame, load_sweep


def from_sweeps(folders: list[Path], where: Mapping[str, Any] | None = None) -> Sweep:
    """One sweep or several as one, by arms where they vary more than the mix.

    `where` chooses by columns of the points and by settings of the runs, as in
    protocol.lr_multiplier=1: a value or a list of them. protocol.max_steps=N asks for the tries of
    N steps, which are left out otherwise. Raises SettingError where nothing is left.
    """
    tries = "protocol.max_steps" in (where or {})
    sweep = join([load_sweep(folder, tries) for folder in folders])
    by_column = {key: value for key, value in (where or {}).items() if key in sweep.points}
    by_setting = {
        key: [str(one) for one in rows.values_of(value)]
        for key, value in (where or {}).items()
        if key not in by_column
    }
    return arms.with_arms(arms.at_levels(_with_rows(sweep, by_column), by_setting))


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
    treatments: Sequence[str] = (),
) -> Sweep:
    """Points of a CSV, which tell nothing of their runs. Raises SettingError like `load_csv`."""
    points = load_csv(path, by_compute, columns, where, treatments)
    return _by_arms(path.stem, path, points, treatments)


def from_frame(
    frame: pd.DataFrame,
    by_compute: bool = False,
    columns: Mapping[str, str] | None = None,
    where: Mapping[str, Any] | None = None,
    treatments: Sequence[str] = (),
) -> Sweep:
    """Points of a DataFrame. Raises SettingError like `load_frame`."""
    points = load_frame(frame, by_compute, columns, where, treatments)
    return _by_arms("points", Path(), points, treatments)


def _by_arms(name: str, path: Path, points: pd.DataFrame, treatments: Sequence[str]) -> Sweep:
    found = arms.of_points(points, tuple(dict.fromkeys(treatments)))
    if found.treatments:
        points = arms.in_order(points, found)
    return Sweep(name, path, points, (), arms=found)


def notes_of(sweep: Sweep) -> list[str]:
    """What a sweep lacks so far and what was left out of it, a sentence each."""
    running = sum(run.state != "done" for run in sweep.runs)
    return [
        *([f"{running} of {len(sweep.runs)} runs have not finished."] if running else []),
        *(f"left out: {what}." for what in sweep.dropped),
        *(f"incomplete: {what}." for what in sweep.incomplete),
    ]
