"""Points of a sweep, or of a CSV, as a table with one row a point.

A sweep is read through `ablations.records` alone (the contracts are in docs/contracts.md). Measured
seconds are in metrics.jsonl, and are joined to the points by step.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ablations.records import DamagedRecord, RunDirectory, SettingError, read_sweep
from analysis.stats.laws import FLOPS
from analysis.stats.seeds import SAME_SIZE, size_places
from analysis.study import arms, rows
from analysis.study.csv_file import read_rows
from models.format import count

REQUIRED = ("mix", "N", "D", "loss")
NAMES = ("mix", "run", "size", "seed")
NUMBERS = ("N", "N_total", "N_body", "D", "C", "epochs", "chinchilla", "loss", "bpb", "seconds")
POSITIVE = ("C", "seconds")
FRAME = "the DataFrame"
"""What a table from Python is called in a sentence."""
MOST_LEVELS = 12
"""A column of more values than this is a measurement, and no treatment."""


@dataclass(frozen=True)
class Run:
    """What one run directory says beside its points."""

    name: str
    identity: str
    """The same for the same run, in whichever sweep."""
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
    """What was left out of it and why, a clause each: points and runs."""
    incomplete: tuple[str, ...] = ()
    """What the records of runs that are read still lack, a clause each."""
    arms: arms.Arms = field(default_factory=arms.Arms)
    """What the runs varied beside the mix; then a point's and a run's `mix` is an arm's name."""


def load_sweep(sweep_dir: Path, tries: bool = False) -> Sweep:
    """Read a sweep directory.

    Left out and named in `dropped`: points whose loss is not a positive number (a run that
    diverged), runs whose records cannot be relied on, runs that were trained once and lie there
    twice, and tries, which protocol.max_steps ended, unless `tries`. Raises SettingError where
    there is no such sweep, or nothing is left of it.
    """
    recorded: list[dict[str, Any]] = []
    runs: list[Run] = []
    dropped: list[str] = []
    lost: list[str] = []
    for directory in read_sweep(sweep_dir):
        try:
            run, points = _read_run(directory)
        except DamagedRecord as problem:
            dropped.append(f"run {directory.name}: {problem}")
            continue
        if not tries and _mapping(run.spec.get("recipe")).get("ladder_steps") is not None:
            steps = run.spec["recipe"]["steps"]
            dropped.append(
                f"run {run.name}: it is a try of {steps} steps and none of the ladder; "
                f"where=protocol.max_steps={steps} reads it"
            )
            continue
        runs.append(run)
        recorded += points
        lost += [f"run {run.name}: {fault}" for fault in _lost_rows(directory, run, points)]
    if not runs:
        raise SettingError(
            f"sweep={sweep_dir.name} holds no run that can be read: {_first(dropped)}."
            if dropped
            else f"sweep={sweep_dir.name} holds no run yet; start one with python sweeps/run.py."
        )
    if not recorded:
        states = pd.Series([run.state for run in runs]).value_counts()
        told = ", ".join(f"{count} {state}" for state, count in states.items())
        raise SettingError(
            f"sweep={sweep_dir.name} has no points yet ({told}); a run writes its first one at its "
            f"first Chinchilla multiple{'; left out: ' if dropped else ''}{_first(dropped)}."
        )
    table = _tidy(pd.DataFrame(recorded))
    good = _is_positive(table["loss"]) & _is_positive(table["N"]) & _is_positive(table["D"])
    dropped += [
        f"run {row.run} at step {row.step}, as its loss, {row.loss:g}, its N or its D is no "
        "positive number"
        for row in table[~good].itertuples()
    ]
    if not good.any():
        raise SettingError(
            f"sweep={sweep_dir.name} has no point with a finite loss; its runs diverged."
        )
    return without_copies(
        Sweep(
            sweep_dir.name,
            sweep_dir,
            _ordered(table[good]),
            tuple(runs),
            tuple(dropped),
            tuple(lost),
        )
    )


def without_copies(sweep: Sweep) -> Sweep:
    """The sweep with each training counted once.

    A run is its identity, so two folders of one name (in two sweeps) are one. So are two of one mix
    and size that read the same batches to the same losses, to the last bit, whatever they are
    called: a setting that changed no number. The one with most points stays.
    """
    points: dict[str, set[Any]] = {run.name: set() for run in sweep.runs}
    columns = ["run", "mix", "size", "step", "D", "data_hash", "loss"]
    for name, *point in sweep.points[columns].itertuples(index=False):
        points[name].add(tuple(point))
    kept: list[Run] = []
    left_out: dict[str, str] = {}
    for run in sorted(sweep.runs, key=lambda run: (run.state != "done", -run.n_points)):
        for other in kept:
            hashed = all(point[4] for point in points[run.name])
            same = points[run.name] and points[run.name] <= points[other.name] and hashed
            if run.identity == other.identity or same:
                equal = "the same losses" if same else "other losses"
                left_out[run.name] = f"run {run.name}: it is run {other.name}, with {equal}"
                break
        else:
            kept.append(run)
    if not left_out:
        return sweep
    return replace(
        sweep,
        runs=tuple(run for run in sweep.runs if run.name not in left_out),
        points=sweep.points[~sweep.points["run"].isin(list(left_out))].reset_index(drop=True),
        dropped=(*sweep.dropped, *left_out.values()),
    )


def load_csv(
    path: Path,
    by_compute: bool = False,
    columns: Mapping[str, str] | None = None,
    where: Mapping[str, Any] | None = None,
    treatments: Sequence[str] = (),
) -> pd.DataFrame:
    """Read points from a CSV with columns mix, N, D, loss (see `points_of`). Semicolons, then with
    either decimal mark, and tabs separate columns as commas do.

    Raises SettingError naming the missing columns, or the rows that cannot be used: rows as counted
    under the header, and lines as an editor counts them.
    """
    table = read_rows(path, REQUIRED)
    return points_of(table, f"points={path}", by_compute, columns, where, treatments)


def load_frame(
    frame: pd.DataFrame,
    by_compute: bool = False,
    columns: Mapping[str, str] | None = None,
    where: Mapping[str, Any] | None = None,
    treatments: Sequence[str] = (),
) -> pd.DataFrame:
    """Points of a DataFrame, which stays as it is. Raises SettingError like `load_csv`; rows are
    counted from 1, whatever its index."""
    table = frame.reset_index(drop=True)
    table.attrs = {}
    for place, kind in enumerate(table.dtypes):
        column = table.iloc[:, place]
        if isinstance(kind, pd.CategoricalDtype):
            table.isetitem(place, column.to_numpy(object))
        elif pd.api.types.is_extension_array_dtype(kind) and pd.api.types.is_numeric_dtype(kind):
            whole = pd.api.types.is_integer_dtype(kind) and not column.isna().any()
            values = column.to_numpy(int) if whole else column.to_numpy(float, na_value=np.nan)
            table.isetitem(place, values)
    return points_of(table, FRAME, by_compute, columns, where, treatments)


def points_of(
    table: pd.DataFrame,
    source: str,
    by_compute: bool = False,
    columns: Mapping[str, str] | None = None,
    where: Mapping[str, Any] | None = None,
    treatments: Sequence[str] = (),
) -> pd.DataFrame:
    """A table with columns mix, N, D, loss as points (run, seed, size, C, seconds, weight
    optional; weight multiplies a point's part in what a fit minimises).

    `columns` maps our names to those of the table, `where` chooses rows (`analysis.study.rows`),
    and `treatments` are columns that were varied beside the mix, whose every level is an arm of its
    own (`analysis.study.arms`).
    Without a `run` column, the rows of one mix, size and seed count as one run; without `seed` too
    that is noted in `attrs["runs_assumed"]`, and in `attrs["seeds_assumed"]` that nothing says
    which mixes saw the same batches. Rows with an empty or infinite loss are left out and named in
    `attrs["dropped"]`. `by_compute` takes C in place of N and D, for a law in C alone (N is then 1
    and D is C / 6, noted in `attrs["compute_only"]`).

    Raises SettingError naming `source` and the columns or rows that cannot be used. The index of
    the table is the line of a row in its file, less 2, or its place.
    """
    table.columns = pd.Index([str(name).strip() for name in table.columns])
    table = table.dropna(how="all")
    if table.columns.has_duplicates:
        twice = table.columns[table.columns.duplicated()].unique()
        raise SettingError(f"{source} has more than one column {', '.join(twice)}.")
    table = rows.renamed(table, columns or {}, source)
    # A column with nothing in it was not recorded.
    for name in ("run", "seed", "size"):
        if name in table and len(table) and table[name].isna().all():
            table = table.drop(columns=name)
    compute_only = by_compute and "C" in table and not {"N", "D"} & set(table)
    if compute_only:
        table = table.assign(N=1.0, D=pd.to_numeric(table["C"], errors="coerce") / FLOPS)
    missing = [name for name in REQUIRED if name not in table]
    if missing:
        named = [f"{name}=COLUMN" for name in missing]
        how = f"load(…, {', '.join(named)})" if source == FRAME else f"columns={','.join(named)}"
        mend = f"; name {'it' if len(missing) == 1 else 'them'} by {how}"
        raise SettingError(
            f"{source} has no column {', '.join(missing)}; "
            f"it has {', '.join(table.columns)} and needs {', '.join(REQUIRED)}{mend}."
        )
    if table.empty:
        raise SettingError(f"{source} holds no rows; a law needs at least six points.")
    if "size" in (where or {}) and "size" not in table:
        table = table.assign(size=_size_names(pd.to_numeric(table["N"], errors="coerce")))
    table = rows.chosen(table, where or {}, columns or {}, source)
    table, dropped = _without_loss(table, source)
    if table.empty:
        raise SettingError(f"{source} has no row with a finite loss; its runs diverged.")
    for name in ("N", "D", "loss", *(["weight"] if "weight" in table else [])):
        given = table[name]
        table[name] = pd.to_numeric(given, errors="coerce")
        _refuse_rows(source, table, name, ~_is_positive(table[name]), given)
    for name in NAMES:
        if name in table:
            if not pd.api.types.is_numeric_dtype(table[name]):
                table[name] = table[name].map(_stripped, na_action="ignore")
            _refuse_rows(source, table, name, table[name].isna(), table[name])
    treatments = tuple(dict.fromkeys(treatments))
    if treatments:
        table = arms.by_columns(table, treatments, source)
    unnamed = _unnamed_treatments(table)
    for name in (name for name in NUMBERS if name in table):
        # Empty is not recorded; a word there would be taken for that.
        given = pd.to_numeric(table[name], errors="coerce")
        bad = given.isna() & table[name].notna()
        if name in POSITIVE:
            bad |= table[name].notna() & ~_is_positive(given)
        _refuse_rows(source, table, name, bad, table[name])
    if {"run", "seed"} & set(table):
        again = table.duplicated([name for name in (*NAMES, "N", "D", "loss") if name in table])
        if again.any():
            raise SettingError(
                f"{source} holds rows twice ({_lines(source, table[again])}), and a point "
                "counted twice narrows every interval; leave one of each."
            )
    given_columns = set(table.columns)
    points = _ordered(_tidy(table.reset_index(drop=True)))
    if (points.groupby("run")[["mix", "size"]].nunique() > 1).any(axis=None):
        # One name for runs of several mixes or sizes, such as a seed.
        points["run"] = points["mix"] + "-" + points["size"] + "-" + points["run"]
    for (mix, size), own in points.groupby(["mix", "size"])["N"]:
        if own.max() > SAME_SIZE * own.min():
            raise SettingError(
                f"{source} has mix={mix} at size={size} with N from {own.min():.4g} to "
                f"{own.max():.4g}, and a size has one N; name each, or leave the column out."
            )
    points.attrs |= {
        "runs_assumed": not {"run", "seed"} & given_columns,
        "seeds_assumed": "seed" not in given_columns,
        "compute_only": compute_only,
        "dropped": dropped,
        "unnamed_treatments": unnamed,
    }
    return points


def _unnamed_treatments(table: pd.DataFrame) -> tuple[str, ...]:
    """Columns in which rows differ that would count as one run, or as seeds, at one N and D."""
    given = [name for name in ("mix", "seed", "N", "D") if name in table]
    known = {*REQUIRED, *NAMES, *NUMBERS, "weight", "step", "state", "data_hash", "skipped_steps"}
    cells = table.groupby(given, sort=False)
    several = cells["loss"].transform("size") > 1
    if "run" in table and "seed" not in table:
        return ()  # runs without seeds are the repetitions themselves
    columns = [
        str(name) for name in table if name not in known and not str(name).startswith("loss/")
    ]
    return tuple(
        str(name) for name in columns
        if name != arms.OF_MIX
        and (several & (cells[name].transform("nunique") > 1)).any()
        and table[name].nunique() <= MOST_LEVELS
    )  # fmt: skip


def _without_loss(table: pd.DataFrame, source: str) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """The rows whose loss is not empty, NaN or infinite, and the others in words."""
    loss = pd.to_numeric(table["loss"], errors="coerce")
    word = table["loss"].notna() & loss.isna()
    bad = ~np.isfinite(loss) & ~word
    dropped = []
    for index, row in table[bad].iterrows():
        named = ", ".join(f"{name}={row[name]}" for name in ("run", "mix", "N", "D") if name in row)
        value = "empty" if pd.isna(row["loss"]) else row["loss"]
        line = f"row {int(str(index)) + 1}" if source == FRAME else f"line {int(str(index)) + 2}"
        dropped.append(f"{line} ({named}), as its loss is {value}")
    return table[~bad], tuple(dropped)


def _refuse_rows(
    source: str, table: pd.DataFrame, name: str, bad: pd.Series, given: pd.Series
) -> None:
    if not bad.any():
        return
    places = f"row {_some([int(place) + 1 for place in np.flatnonzero(bad)])} "
    places = "" if source == FRAME else places
    lines = _lines(source, table[bad])
    value = given[bad].iloc[0]
    first = "empty" if pd.isna(value) else f"{name}={value}"
    kind = "a positive finite number" if name in (*REQUIRED, *POSITIVE, "weight") else "a number"
    kind = "a name" if name in NAMES else kind
    raise SettingError(
        f"{source} needs {kind} for {name} in {places}{f'({lines})' if places else lines}, "
        f"where it is {first}{' at first' if bad.sum() > 1 else ''}."
    )


def _lines(source: str, table: pd.DataFrame) -> str:
    """Where the rows of a table stand in what it was read from."""
    if source == FRAME:
        return f"row {_some([int(index) + 1 for index in table.index])}"
    return f"line {_some([int(index) + 2 for index in table.index])} of the file"


def _stripped(name: Any) -> str:
    return str(name).strip()


def _some(numbers: list[int]) -> str:
    told = ", ".join(map(str, numbers[:8]))
    return told + (f" and {len(numbers) - 8} more" if len(numbers) > 8 else "")


def _is_positive(values: pd.Series) -> pd.Series:
    numbers = pd.to_numeric(values, errors="coerce")
    return np.isfinite(numbers) & (numbers > 0)


def _read_run(directory: RunDirectory) -> tuple[Run, list[dict[str, Any]]]:
    """Raises DamagedRecord where the records cannot be relied on."""
    if problem := directory.problem():
        raise DamagedRecord(problem)
    spec = directory.read_spec()
    if not {"mix", "size", "seed"} <= spec.keys():
        raise DamagedRecord("spec.yaml names no mix, size and seed")
    if protocol := _mapping(spec.get("protocol")):
        # A run recorded before the setting was there is none that it ended.
        spec = {**spec, "protocol": {"max_steps": None, **protocol}}
    status = directory.read_status()
    try:
        manifest = directory.read_manifest()
    except FileNotFoundError:
        manifest = {}
    seconds = {
        row["step"]: row["seconds"] for row in directory.rows("metrics.jsonl") if "seconds" in row
    }
    identity: dict[str, Any] = {
        "run": directory.name,
        "mix": spec["mix"]["name"],
        "size": spec["size"]["name"],
        "seed": spec["seed"],
        "state": status.get("state", "queued"),
    }
    points = [
        identity | dict(_flat(row)) | {"seconds": seconds.get(step, np.nan)}
        for step, row in directory.points().items()
    ]
    planned = _mapping(spec.get("recipe")).get("milestones")
    run = Run(
        name=directory.name,
        identity=directory.name,
        mix=identity["mix"],
        size=identity["size"],
        seed=identity["seed"],
        state=str(identity["state"]),
        step=int(status.get("step") or 0),
        n_points=len(points),
        n_planned=len(planned) if isinstance(planned, list | tuple | dict) else None,
        error=str(status.get("error") or ""),
        spec=spec,
        manifest=manifest,
    )
    return run, points


def _lost_rows(directory: RunDirectory, run: Run, points: list[dict[str, Any]]) -> list[str]:
    """What is missing beside the points of a run that can be used, a clause each."""
    faults = []
    for file in ("metrics.jsonl", "probes.jsonl", "samples.jsonl"):
        own = directory.faults(file)
        more = f", and {len(own) - 1} more" if len(own) > 1 else ""
        faults += [f"{own[0]}{more}"] if own else []
    untimed = [str(point["step"]) for point in points if not point["seconds"] > 0]
    if untimed and (directory.path / "metrics.jsonl").exists():
        faults.append(f"metrics.jsonl has no time of step {', '.join(untimed)}")
    for what in ("probes", "samples"):
        if _mapping(run.spec.get("evaluation")).get(what):
            file = f"{what}.jsonl"
            there = {row["step"] for row in directory.rows(file)}
            lacking = [str(point["step"]) for point in points if point["step"] not in there]
            faults += [f"{file} has no row of step {', '.join(lacking)}"] if lacking else []
    return faults


def _first(clauses: Sequence[str]) -> str:
    more = f"; and {len(clauses) - 3} more" if len(clauses) > 3 else ""
    return "; ".join(clauses[:3]) + more


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
    """Name sizes by the smallest N of each, 60M."""
    smallest = N.groupby(size_places(N.to_numpy(float))).transform("min")
    return smallest.map(count)


def _ordered(table: pd.DataFrame) -> pd.DataFrame:
    first = ["run", "mix", "size", "seed", "step", "chinchilla", "N", "N_total", "N_body", "D", "C"]
    first += ["epochs", "loss", "bpb", "seconds", "skipped_steps", "data_hash", "state"]
    rest = [name for name in table.columns if name not in first]
    return table[first + rest].sort_values(["mix", "N", "seed", "D"]).reset_index(drop=True)


def common_budget(points: pd.DataFrame) -> pd.DataFrame:
    """The points at each size's largest budget that all its mixes reached."""
    reached = points.groupby(["size", "mix"])["D"].max().groupby("size").min()
    # Budgets are whole batches: two that are one within a thousandth are the same.
    return points[(points["D"] / points["size"].map(reached)).between(0.999, 1.001)]
