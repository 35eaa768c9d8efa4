"""Points of a sweep, or of a CSV, as a table with one row a point.

A sweep is read through `ablations.records` alone (the contracts are in docs/contracts.md). Measured
seconds are in metrics.jsonl, and are joined to the points by step.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from ablations.records import RunDirectory, SettingError, read_sweep
from analysis.laws import FLOPS
from analysis.sources.csv_file import read_rows

REQUIRED = ("mix", "N", "D", "loss")
NAMES = ("mix", "run", "size", "seed")
NUMBERS = ("N", "N_total", "N_body", "D", "C", "epochs", "chinchilla", "loss", "bpb", "seconds")
# Two N closer than this are one size: the controlled protocol matches N within 0.5 %.
SAME_SIZE = 1.02


@dataclass(frozen=True)
class Run:
    """What one run directory says beside its points."""

    name: str
    mix: str
    size: str
    seed: int
    state: str
    step: int
    n_points: int
    n_planned: int | None
    error: str
    spec: dict[str, Any] = field(repr=False)
    manifest: dict[str, Any] = field(repr=False)


@dataclass(frozen=True)
class Sweep:
    """A sweep's points (see `read_points` for the columns) and its runs, finished or not."""

    name: str
    path: Path
    points: pd.DataFrame
    runs: tuple[Run, ...]
    dropped: tuple[str, ...] = ()


def load_sweep(sweep_dir: Path) -> Sweep:
    """Read a sweep directory.

    Points whose loss is not a positive number (a run that diverged) are left out and named in
    `dropped`. Raises SettingError where there is no such sweep, nothing has been evaluated yet, or
    a record is damaged.
    """
    rows: list[dict[str, Any]] = []
    runs: list[Run] = []
    for directory in read_sweep(sweep_dir):
        try:
            run, points = _read_run(directory)
        except (ValueError, yaml.YAMLError) as error:
            raise SettingError(
                f"{directory.path} holds a record that cannot be read "
                f"({' '.join(str(error).split())}); mend it, or move that run away."
            ) from None
        runs.append(run)
        rows += points
    if not runs:
        raise SettingError(
            f"sweep={sweep_dir.name} holds no run yet; start one with python sweeps/run.py."
        )
    if not rows:
        states = pd.Series([run.state for run in runs]).value_counts()
        told = ", ".join(f"{count} {state}" for state, count in states.items())
        raise SettingError(
            f"sweep={sweep_dir.name} has no points yet ({told}); a run writes its first one at its "
            "first Chinchilla multiple."
        )
    table = _tidy(pd.DataFrame(rows))
    good = _is_positive(table["loss"]) & _is_positive(table["N"]) & _is_positive(table["D"])
    dropped = tuple(
        f"{row.run} at step {row.step}: loss {row.loss}" for row in table[~good].itertuples()
    )
    if not good.any():
        raise SettingError(
            f"sweep={sweep_dir.name} has no point with a finite loss; its runs diverged."
        )
    return Sweep(sweep_dir.name, sweep_dir, _ordered(table[good]), tuple(runs), dropped)


def load_csv(path: Path, by_compute: bool = False) -> pd.DataFrame:
    """Read points from a CSV with columns mix, N, D, loss (run, seed, size, C, seconds, weight
    optional; weight multiplies a point's part in what a fit minimises). Semicolons, then with
    either decimal mark, and tabs separate columns as commas do.

    Without a `run` column, the rows of one mix, size and seed count as one run; without `seed` too
    that is noted in `attrs["runs_assumed"]`. Rows with an empty or infinite loss are left out and
    named in `attrs["dropped"]`. `by_compute` takes C in place of N and D, for a law in C alone
    (N is then 1 and D is C / 6, noted in `attrs["compute_only"]`).

    Raises SettingError naming the missing columns, or the rows that cannot be used: rows as counted
    under the header, and lines as an editor counts them.
    """
    table = read_rows(path, REQUIRED)
    table.columns = pd.Index([str(name).strip() for name in table.columns])
    table = table.dropna(how="all")
    if table.columns.has_duplicates:
        twice = table.columns[table.columns.duplicated()].unique()
        raise SettingError(f"points={path} has more than one column {', '.join(twice)}.")
    # A column with nothing in it was not recorded.
    for name in ("run", "seed", "size"):
        if name in table and len(table) and table[name].isna().all():
            table = table.drop(columns=name)
    compute_only = by_compute and "C" in table and not {"N", "D"} & set(table)
    if compute_only:
        table = table.assign(N=1.0, D=pd.to_numeric(table["C"], errors="coerce") / FLOPS)
    missing = [name for name in REQUIRED if name not in table]
    if missing:
        raise SettingError(
            f"points={path} has no column {', '.join(missing)}; "
            f"it has {', '.join(table.columns)} and needs {', '.join(REQUIRED)}."
        )
    if table.empty:
        raise SettingError(f"points={path} holds no rows; a law needs at least six points.")
    table, dropped = _without_loss(table)
    if table.empty:
        raise SettingError(f"points={path} has no row with a finite loss; its runs diverged.")
    for name in ("N", "D", "loss", *(["weight"] if "weight" in table else [])):
        given = table[name]
        table[name] = pd.to_numeric(given, errors="coerce")
        _refuse_rows(path, table, name, ~_is_positive(table[name]), given)
    for name in NAMES:
        if name in table:
            if not pd.api.types.is_numeric_dtype(table[name]):
                table[name] = table[name].map(str.strip, na_action="ignore")
            _refuse_rows(path, table, name, table[name].isna(), table[name])
    for name in (name for name in NUMBERS if name in table):
        # Empty is not recorded; a word there would be taken for that.
        given = pd.to_numeric(table[name], errors="coerce")
        _refuse_rows(path, table, name, given.isna() & table[name].notna(), table[name])
    if {"run", "seed"} & set(table):
        again = table.duplicated()
        if again.any():
            lines = [int(index) + 2 for index in table.index[again]]
            raise SettingError(
                f"points={path} holds rows twice (line {_some(lines)} of the file), and a point "
                "counted twice narrows every interval; leave one of each."
            )
    assumed = not {"run", "seed"} & set(table)
    points = _ordered(_tidy(table.reset_index(drop=True)))
    points.attrs |= {"runs_assumed": assumed, "dropped": dropped, "compute_only": compute_only}
    return points


def _without_loss(table: pd.DataFrame) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """The rows whose loss is not empty, NaN or infinite, and the others in words."""
    loss = pd.to_numeric(table["loss"], errors="coerce")
    word = table["loss"].notna() & loss.isna()
    bad = ~np.isfinite(loss) & ~word
    dropped = tuple(
        f"line {int(str(index)) + 2} ({', '.join(f'{name}={row[name]}' for name in named)}): "
        f"loss {'empty' if pd.isna(row['loss']) else row['loss']}"
        for index, row in table[bad].iterrows()
        for named in [[name for name in ("run", "mix", "N", "D") if name in table]]
    )
    return table[~bad], dropped


def _refuse_rows(
    path: Path, table: pd.DataFrame, name: str, bad: pd.Series, given: pd.Series
) -> None:
    if not bad.any():
        return
    rows = [int(place) + 1 for place in np.flatnonzero(bad)]
    lines = [int(index) + 2 for index in table.index[bad]]
    value = given[bad].iloc[0]
    first = "empty" if pd.isna(value) else f"{name}={value}"
    kind = "a positive finite number" if name in (*REQUIRED, "weight") else "a number"
    kind = "a name" if name in NAMES else kind
    raise SettingError(
        f"points={path} needs {kind} for {name} in row {_some(rows)} "
        f"(line {_some(lines)} of the file), where it is {first}"
        f"{' at first' if len(rows) > 1 else ''}."
    )


def _some(numbers: list[int]) -> str:
    told = ", ".join(map(str, numbers[:8]))
    return told + (f" and {len(numbers) - 8} more" if len(numbers) > 8 else "")


def _is_positive(values: pd.Series) -> pd.Series:
    numbers = pd.to_numeric(values, errors="coerce")
    return np.isfinite(numbers) & (numbers > 0)


def _read_run(directory: RunDirectory) -> tuple[Run, list[dict[str, Any]]]:
    spec = _mapping(directory.read_spec())
    status = directory.read_status()
    try:
        manifest = _mapping(directory.read_manifest())
    except FileNotFoundError:
        manifest = {}
    seconds = {
        row["step"]: row["seconds"]
        for row in directory.rows("metrics.jsonl")
        if "step" in row and "seconds" in row
    }
    by_step = {row["step"]: row for row in directory.rows("points.jsonl") if "step" in row}
    identity: dict[str, Any] = {
        "run": directory.name,
        "mix": str(_name(spec, "mix")),
        "size": str(_name(spec, "size")),
        "seed": spec.get("seed", 0),
        "state": status.get("state", "queued"),
    }
    points = [
        identity | dict(_flat(row)) | {"seconds": seconds.get(step, np.nan)}
        for step, row in sorted(by_step.items())
    ]
    planned = _mapping(spec.get("recipe")).get("milestones")
    run = Run(
        name=directory.name,
        mix=identity["mix"],
        size=identity["size"],
        seed=int(identity["seed"]),
        state=str(identity["state"]),
        step=int(status.get("step") or 0),
        n_points=len(points),
        n_planned=len(planned) if isinstance(planned, list | tuple | dict) else None,
        error=str(status.get("error") or ""),
        spec=spec,
        manifest=manifest,
    )
    return run, points


def _flat(row: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in row.items():
        if name != "domains":
            yield name, value
            continue
        for domain, sums in _mapping(value).items():
            for measure in ("loss", "bpb"):
                if measure in sums:
                    yield f"{measure}/{domain}", sums[measure]


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _name(spec: dict[str, Any], key: str) -> Any:
    value = spec.get(key, "?")
    return value.get("name", "?") if isinstance(value, dict) else value


def _tidy(table: pd.DataFrame) -> pd.DataFrame:
    """Fill what is optional, so that all else can rely on the columns."""
    table = table.copy()
    for name in NUMBERS:
        # As floats: products of whole numbers above 9.2e18 would wrap around.
        given = table[name] if name in table else pd.Series(np.nan, table.index)
        table[name] = pd.to_numeric(given, errors="coerce").astype(float)
    table["mix"] = table["mix"].astype(str)
    table["seed"] = table.get("seed", 0)
    if "size" not in table:
        table["size"] = _size_names(table["N"])
    table["size"] = table["size"].astype(str)
    if "run" not in table:
        table["run"] = table["mix"] + "-" + table["size"] + "-s" + table["seed"].astype(str)
    table["run"] = table["run"].astype(str)
    for name, default in (("step", 0), ("state", "done"), ("data_hash", ""), ("skipped_steps", 0)):
        if name not in table:
            table[name] = default
    return table


def _size_names(N: pd.Series) -> pd.Series:
    """Name sizes by N, giving one name to values within 2 % of a size's smallest."""
    names: dict[float, str] = {}
    start = 0.0
    for value in sorted(N.dropna().unique()):
        if value > start * SAME_SIZE:
            start = value
        names[value] = f"{start:.4g}"
    return N.map(names)


def _ordered(table: pd.DataFrame) -> pd.DataFrame:
    first = ["run", "mix", "size", "seed", "step", "chinchilla", "N", "N_total", "N_body", "D", "C"]
    first += ["epochs", "loss", "bpb", "seconds", "skipped_steps", "data_hash", "state"]
    rest = [name for name in table.columns if name not in first]
    return table[first + rest].sort_values(["mix", "N", "seed", "D"]).reset_index(drop=True)
