"""What the commands share: groups of settings, the points that they read, tables as asked for."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ablations.records import SettingError, home
from models.command import setting, spelled
from models.format import count, flop_count, write_table

if TYPE_CHECKING:
    from analysis.study.findings import Findings
    from analysis.study.load import Sweep

FORMATS = ("table", "csv", "json", "latex")
COLUMNS = ("mix", "N", "D", "C", "loss", "run", "size", "seed", "weight", "seconds", "bpb")
"""Columns of points that a CSV may call something else."""
# Choices stand here as text, as the help should not wait for what computes with them.
LOSSES = ("huber", "absolute", "squares", "student")
MODELS = (
    "free", "shared_E", "shared_exponents", "shared", "only_A", "only_B", "only_E", "pooled",
)  # fmt: skip
LEAST_RESAMPLES = 20
LEAST_COUNTED = 1e4
"""From here on a number of a table is a count: 162.2M and not 1.62221e+08."""
COEFFICIENTS = ("A", "B", "K", "G_N", "G_D")
BASELINE = "the mix that others are compared with, at each level of other treatments, or one arm"
REFERENCE = "levels of other treatments that ratios of savings are over, the first unless given"


@dataclass(frozen=True, kw_only=True)
class Points:
    """Where points come from."""

    sweep: tuple[str, ...] = setting((), "sweeps of one corpus, by name", shape="NAME[,NAME]")
    points: str | None = setting(
        None,
        "CSV with the columns mix, N, D, loss, or the folder of a sweep; points= may be left out",
        shape="FILE.csv",
        position=True,
    )
    runs: str = setting("runs", "where sweeps named by sweep= lie", shape="DIR")
    where: Mapping[str, tuple[str, ...]] = setting(
        {},
        "rows to keep, of one column any of the values given, or levels of a sweep's settings",
        example="protocol.lr_multiplier=1",
    )
    columns: Mapping[str, str] = setting(
        {}, "a CSV's own names of columns", example="N=params", choices=COLUMNS
    )
    treatments: tuple[str, ...] = setting(
        (), "a CSV's columns that were varied on purpose beside the mix", shape="NAME[,NAME]"
    )


@dataclass(frozen=True, kw_only=True)
class Fitting:
    """How a law is fitted."""

    model: str = setting("free", "which coefficients the mixes share", choices=MODELS)
    loss: str = setting("squares", "what is minimised, of log residuals", choices=LOSSES)
    delta: float = setting(1e-3, "Huber's threshold, of log loss", above=0)
    fix: Mapping[str, float] = setting({}, "coefficients to hold", example="alpha=0.22,beta=0.22")
    seed: int = setting(0, "of the resamples", least=0)
    resamples: int = setting(1000, "number of resampled ladders", least=LEAST_RESAMPLES)


@dataclass(frozen=True, kw_only=True)
class Leveled:
    """How sure an interval is."""

    level: float = setting(
        0.95, "share of the intervals that hold the truth", above=0, below=1, example="0.95",
        shape="SHARE",
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Shown:
    """How the answer is printed."""

    format: str = setting("table", "how it is printed", choices=FORMATS)


@dataclass(frozen=True, kw_only=True)
class Studied(Leveled, Points):
    """What reports, figures and tables rest on."""

    out: Path | None = setting(None, "folder to write, reports/ and the name unless given")
    baseline: str = setting("transformer", BASELINE)
    reference: Mapping[str, str] = setting({}, REFERENCE, example="lr_multiplier=1")
    resamples: int = setting(1000, "number of resampled ladders", least=LEAST_RESAMPLES)
    seed: int = setting(0, "of the resamples", least=0)


def source(asked: Points, by_compute: bool = False) -> Sweep:
    """The sweep, sweeps or CSV asked for, at the level that `where` chooses.

    by_compute: whether points of loss and C alone will do.
    """
    from analysis.study.source import from_csv, from_sweeps

    if bool(asked.sweep) == (asked.points is not None):
        raise SettingError(
            "sweep= and points= are both given; give one of them."
            if asked.sweep
            else "sweep= is missing; give the name of a sweep, sweep=NAME, or points=FILE.csv."
        )
    if asked.points is not None and not Path(asked.points).is_dir():
        path = Path(asked.points)
        return from_csv(path, by_compute, asked.columns, asked.where, asked.treatments)
    if asked.columns:
        key, name = next(iter(asked.columns.items()))
        raise SettingError(f"columns={key}={name} names columns of a CSV, and this is a sweep.")
    if asked.treatments:
        raise SettingError(
            f"treatments={','.join(asked.treatments)} names columns of a CSV, and a sweep's runs "
            "say themselves what was varied."
        )
    if asked.points is not None:
        return from_sweeps(sweep_folders(asked), asked.where)
    if len(set(asked.sweep)) < len(asked.sweep):
        raise SettingError(
            f"sweep={','.join(asked.sweep)} names one twice, whose points would count twice; give "
            "sweep=NAME or sweep=A,B."
        )
    return from_sweeps(sweep_folders(asked), asked.where)


def sweep_folders(asked: Points) -> list[Path]:
    """Folders of the sweeps asked for; none where points come from a CSV."""
    if asked.points is not None:
        return [Path(asked.points)] if Path(asked.points).is_dir() else []
    return [home() / asked.runs / name for name in asked.sweep]


def read(asked: Points, by_compute: bool = False) -> Sweep:
    """The points asked for; notes on stderr say what a sweep still lacks."""
    from analysis.study.source import notes_of

    sweep = source(asked, by_compute)
    for note in notes_of(sweep):
        print(f"note: {note}", file=sys.stderr)
    return sweep


def find(
    command: str, asked: Studied, without: tuple[str, ...] = (), compares: bool = True
) -> Findings:
    """Read and study the points asked for.

    The findings name the command and its settings but those of `without`. Unless it `compares`, the
    points need not have the baseline, where none was given.
    """
    from analysis.study.findings import find as find_in

    sweep = source(asked)
    sweep = replace(sweep, arms=sweep.arms.over(asked.reference))
    for what in sweep.dropped:
        print(f"note: left out: {what}.", file=sys.stderr)
    for what in sweep.incomplete:
        print(f"note: incomplete: {what}.", file=sys.stderr)
    told = f"python -m analysis {command} {spelled(asked, without)}"
    compares = compares or asked.baseline != Studied.baseline
    return find_in(sweep, asked.baseline, asked.resamples, asked.seed, told, asked.level, compares)


def folder(asked: Studied) -> Path:
    """Where it is written: out, or reports/ and the sweep's name."""
    if asked.out is not None:
        return asked.out
    name = "+".join(asked.sweep)
    if asked.points is not None:
        path = Path(asked.points)
        name = path.resolve().name if path.is_dir() else path.stem
    name += "".join(f"-{key}={'+'.join(values)}" for key, values in asked.where.items())
    return home() / "reports" / name


def shown(
    form: str, document: dict[str, Any], rows: list[dict[str, Any]], notes: list[str] | None = None
) -> str:
    """The document as JSON, or its rows as a table, CSV or LaTeX; `notes` follow a table."""
    if form == "json":
        return json.dumps(_plain(document), indent=1, allow_nan=False)
    import pandas as pd

    from analysis.foreign import csv_cells, literal

    # A caveat is a sentence: it has no place in a column.
    table = pd.DataFrame(rows).drop(columns="caveats" if form != "csv" else [], errors="ignore")
    table = table.map(_joined)
    if form == "csv":
        return csv_cells(table).to_csv(index=False, float_format="%.10g").rstrip()
    if form == "latex":
        from analysis.report.paper import number, other_latex

        return other_latex(literal(table.map(number)), notes=notes or ()).rstrip()
    words = [i for i, name in enumerate(table) if any(isinstance(v, str) for v in table[name])]
    cells = [[_cell(str(name), value) for value in table[name]] for name in table]
    aligned = write_table([*map(str, table)], list(zip(*cells, strict=True)), left=words)
    return "\n".join([aligned.rstrip("\n"), *(notes or [])])


def _joined(value: Any) -> Any:
    return "; ".join(map(str, value)) if isinstance(value, list | tuple) else value


def _cell(column: str, value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    if math.isnan(value):
        return "–"
    if not math.isfinite(value) or abs(value) < LEAST_COUNTED or column in COEFFICIENTS:
        return f"{value:.6g}".replace("inf", "∞")
    return flop_count(value) if column == "C" else count(value)


def _plain(value: Any) -> Any:
    """The same with infinities as the string "inf" and NaN as null, which JSON has no word for."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else ("inf" if value > 0 else "-inf")
    return value
