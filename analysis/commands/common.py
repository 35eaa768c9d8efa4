"""What the commands share: settings checked in a sentence, and tables shown as asked."""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ablations.records import SettingError, one_of
from models.format import write_table

if TYPE_CHECKING:
    from analysis.study.load import Sweep

FORMATS = ("table", "csv", "json", "latex")
COLUMNS = ("mix", "N", "D", "C", "loss", "run", "size", "seed", "weight", "seconds", "bpb")
"""Columns of points that a CSV may call something else."""


def add_points(
    parser: argparse.ArgumentParser, loss: str, model: str, nargs: str | None = None
) -> None:
    """The arguments of a command that fits points of a CSV, with its own defaults."""
    parser.add_argument(
        "points", type=Path, nargs=nargs, help="CSV with mix, N, D, loss, or a sweep's folder"
    )
    parser.add_argument(
        "--loss", default=loss, help="huber, absolute, squares or student, of log residuals"
    )
    parser.add_argument("--delta", type=float, default=1e-3, help="Huber's threshold")
    parser.add_argument("--model", default=model, help="joint model over the mixes")
    parser.add_argument("--format", default="table", help=", ".join(FORMATS))
    parser.add_argument(
        "--where",
        default="",
        metavar="COLUMN=VALUE",
        help="rows, or one level of a sweep's setting",
    )
    parser.add_argument("--columns", default="", metavar="N=params", help="a CSV's own names")
    parser.add_argument("--treatments", default="", metavar="lr", help="a CSV's, beside the mix")


def pairs(name: str, text: str, example: str) -> dict[str, str]:
    """a=1,b=2 as a mapping. Raises SettingError for a part that is none, or a key given twice."""
    values = several(name, text, example)
    for key, given in values.items():
        if len(given) > 1:
            raise SettingError(f"{name}={text} gives {key} twice.")
    return {key: given[0] for key, given in values.items()}


def several(name: str, text: str, example: str) -> dict[str, list[str]]:
    """a=1,a=2,b=3 as the values of each key. Raises SettingError for a part that is no setting."""
    values: dict[str, list[str]] = {}
    for part in filter(None, text.split(",")):
        key, equals, value = (one.strip() for one in part.partition("="))
        if not equals or not value:
            raise SettingError(f"{name}={part} is not a setting; give one like {example}.")
        values.setdefault(key, []).append(value)
    return values


def where_of(text: str) -> dict[str, list[str]]:
    """mix=gdn,mix=mamba2,seed=0 as the values of each column, of which any will do."""
    return several("where", text, "protocol.lr_multiplier=1")


def columns_of(text: str) -> dict[str, str]:
    """N=params,loss=val_loss as a mapping of our names to those of a CSV."""
    columns = pairs("columns", text, "N=params")
    for key in columns:
        known("columns", key, COLUMNS)
    return columns


def held(text: str) -> dict[str, float]:
    """alpha=0.22,beta=0.22 as numbers."""
    found = {}
    for key, value in pairs("fix", text, "alpha=0.22").items():
        try:
            found[key] = float(value)
        except ValueError:
            raise SettingError(
                f"fix={key}={value} is not a setting; give one like alpha=0.22."
            ) from None
    return found


def read_points(
    path: Path,
    where: str = "",
    columns: str = "",
    by_compute: bool = False,
    treatments: str = "",
) -> Sweep:
    """Points of a CSV or of a sweep's folder; a note on stderr says what a sweep still lacks."""
    from analysis.study.source import from_csv, from_sweeps

    if not path.is_dir():
        varied = tuple(filter(None, treatments.split(",")))
        return from_csv(path, by_compute, columns_of(columns), where_of(where), varied)
    check_no_columns(columns)
    return with_notes(from_sweeps([path], where_of(where)))


def with_notes(sweep: Sweep) -> Sweep:
    """The sweep; notes on stderr say what it still lacks."""
    from analysis.study.source import notes_of

    for note in notes_of(sweep):
        print(f"note: {note}", file=sys.stderr)
    return sweep


def check_no_columns(columns: str) -> None:
    """Raise SettingError where columns of a sweep are named, which has its own."""
    if columns:
        raise SettingError(f"columns={columns} names columns of a CSV, and this is a sweep.")


def number(name: str, text: str) -> float:
    try:
        return positive(name, float(text))
    except ValueError as error:
        if isinstance(error, SettingError):
            raise
        raise SettingError(f"{name}={text} must be a positive finite number.") from None


def positive(name: str, value: float) -> float:
    if not (math.isfinite(value) and value > 0):
        raise SettingError(f"{name}={value:g} must be a positive finite number.")
    return value


def whole(name: str, text: str, least: int) -> int:
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if value < least:
        raise SettingError(f"{name}={text} must be a whole number of at least {least}.")
    return value


def known(name: str, value: str, valid: tuple[str, ...]) -> None:
    if value not in valid:
        raise one_of(name, value, valid)


def shown(
    form: str, document: dict[str, Any], rows: list[dict[str, Any]], notes: list[str] | None = None
) -> str:
    """The document as JSON, or its rows as a table, CSV or LaTeX; `notes` follow a table."""
    known("format", form, FORMATS)
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
        from analysis.report.tables import latex

        return latex(literal(table.map(_cell))).rstrip()
    words = [i for i, name in enumerate(table) if any(isinstance(v, str) for v in table[name])]
    aligned = write_table([*map(str, table)], table.map(_cell).to_numpy(), left=words)
    return "\n".join([aligned.rstrip("\n"), *(notes or [])])


def _joined(value: Any) -> Any:
    return "; ".join(map(str, value)) if isinstance(value, list | tuple) else value


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return "–" if math.isnan(value) else f"{value:.6g}".replace("inf", "∞")
    return str(value)


def _plain(value: Any) -> Any:
    """The same with infinities as the string "inf" and NaN as null, which JSON has no word for."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else ("inf" if value > 0 else "-inf")
    return value
