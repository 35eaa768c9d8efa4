"""What the commands share: settings checked in a sentence, and tables shown as asked."""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ablations.records import SettingError, one_of

if TYPE_CHECKING:
    import pandas as pd

    from analysis.study.load import Sweep

FORMATS = ("table", "csv", "json", "latex")


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
        "--where", default="", metavar="SETTING=VALUE", help="of a sweep, one level"
    )


def pairs(name: str, text: str, example: str) -> dict[str, str]:
    """a=1,b=2 as a mapping. Raises SettingError for a part that is none, or a key given twice."""
    found: dict[str, str] = {}
    for part in filter(None, text.split(",")):
        key, equals, value = (one.strip() for one in part.partition("="))
        if not equals or not value:
            raise SettingError(f"{name}={part} is not a setting; give one like {example}.")
        if key in found:
            raise SettingError(f"{name}={text} gives {key} twice.")
        found[key] = value
    return found


def levels_of(text: str) -> dict[str, str]:
    """protocol.lr_multiplier=1,train.optim=adamw as a mapping."""
    return pairs("where", text, "protocol.lr_multiplier=1")


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


def read_points(path: Path, where: str = "", by_compute: bool = False) -> pd.DataFrame:
    """Points of a CSV or of a sweep's folder; a note on stderr says what a sweep still lacks."""
    from analysis.study.levels import at_level
    from analysis.study.load import load_csv, load_sweep

    if not path.is_dir():
        if where:
            raise SettingError(f"where={where} chooses runs of a sweep, and {path} is a CSV.")
        return load_csv(path, by_compute)
    return points_of(at_level(load_sweep(path), levels_of(where)))


def points_of(sweep: Sweep) -> pd.DataFrame:
    """The points of a sweep; notes on stderr say what it still lacks."""
    running = sum(run.state != "done" for run in sweep.runs)
    if running:
        print(f"note: {running} of {len(sweep.runs)} runs have not finished.", file=sys.stderr)
    for what in sweep.dropped:
        print(f"note: left out: {what}.", file=sys.stderr)
    for what in sweep.incomplete:
        print(f"note: incomplete: {what}.", file=sys.stderr)
    return sweep.points


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
    return "\n".join([_aligned(table), *(notes or [])])


def _joined(value: Any) -> Any:
    return "; ".join(map(str, value)) if isinstance(value, list | tuple) else value


def _cell(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _aligned(table: pd.DataFrame) -> str:
    return table.to_string(index=False, float_format=lambda value: f"{value:.6g}")


def _plain(value: Any) -> Any:
    """The same with infinities as the string "inf" and NaN as null, which JSON has no word for."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else ("inf" if value > 0 else "-inf")
    return value
