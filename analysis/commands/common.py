"""What the commands share: settings checked in a sentence, and tables shown as asked."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ablations.records import SettingError, one_of

if TYPE_CHECKING:
    import pandas as pd

FORMATS = ("table", "csv", "json")


def add_points(parser: argparse.ArgumentParser, loss: str, model: str) -> None:
    """The arguments of a command that fits points of a CSV, with its own defaults."""
    parser.add_argument("points", type=Path, help="CSV with columns mix, N, D, loss")
    parser.add_argument("--loss", default=loss, help="huber or squares, of log residuals")
    parser.add_argument("--delta", type=float, default=1e-3, help="Huber's threshold")
    parser.add_argument("--model", default=model, help="joint model over the mixes")
    parser.add_argument("--format", default="table", choices=FORMATS)


def number(name: str, text: str) -> float:
    try:
        return positive(name, float(text))
    except ValueError as error:
        if isinstance(error, SettingError):
            raise
        raise SettingError(f"{name} is not a number; give one like 1e9.") from None


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


def shown(form: str, document: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    if form == "json":
        return json.dumps(_plain(document), indent=1, allow_nan=False)
    import pandas as pd

    table = pd.DataFrame(rows)
    if form == "csv":
        return table.to_csv(index=False, float_format="%.10g").rstrip()
    return _aligned(table)


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
