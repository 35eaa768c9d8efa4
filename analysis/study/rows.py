"""Columns of a table by the names that its writer gave them, and rows by a filter."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import pandas as pd

from ablations.records import SettingError, nearest

# What `float` takes besides (1_0, nan, inf) are words.
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.IGNORECASE)
NONE = "none"
"""An empty cell as a word."""
MOST_SHOWN = 12
"""Values of a column that a sentence lists."""


def renamed(table: pd.DataFrame, columns: Mapping[str, str], source: str) -> pd.DataFrame:
    """The table with each column `columns[ours]` named `ours`; another of that name goes.

    Raises SettingError for a column that is not there, or that is given two names.
    """
    columns = {ours: str(theirs) for ours, theirs in columns.items()}
    for ours, theirs in columns.items():
        if theirs not in table:
            raise SettingError(
                f"{ours}={theirs} names no column of {source}; it has {', '.join(table.columns)}."
            )
    by_column: dict[str, str] = {}
    for ours, theirs in columns.items():
        if theirs in by_column:
            raise SettingError(
                f"{by_column[theirs]}={theirs} and {ours}={theirs} name one column; give each its "
                "own."
            )
        by_column[theirs] = ours
    replaced = [ours for ours in columns if ours in table and ours not in by_column]
    return table.drop(columns=replaced).rename(columns=by_column)


def chosen(
    table: pd.DataFrame, where: Mapping[str, Any], columns: Mapping[str, str], source: str
) -> pd.DataFrame:
    """The rows whose columns have the values of `where`: one value, or a list of which any will do.

    A column goes by its name in the source or by ours. 1, 1.0 and "1" are one value, and an empty
    cell is "none". Raises SettingError for a column or value that is not there, and where no row is
    left.
    """
    by_column = {str(theirs): ours for ours, theirs in columns.items()}
    kept = pd.Series(True, table.index)
    for key, wanted in where.items():
        name = by_column.get(key, key)
        if name not in table:
            raise SettingError(
                f"where={key} names no column of {source}; it has {', '.join(table.columns)}."
            )
        words = table[name].map(_cell_word)
        values = {_cell_word(value) for value in values_of(wanted)}
        if lost := sorted(values - set(words)):
            raise SettingError(
                f"where: {key}={', '.join(lost)} matches no row of {source}; "
                f"{nearest(lost[0], words)}{key} has {some(dict.fromkeys(words))}."
            )
        kept &= words.isin(list(values))
    if not kept.any():
        asked = ", ".join(
            f"{key}={some(map(_cell_word, values_of(value)))}" for key, value in where.items()
        )
        raise SettingError(f"where: no row of {source} has {asked}; leave one of them out.")
    return table[kept]


def values_of(wanted: Any) -> list[Any]:
    """The values of one entry of a filter. Raises SettingError for an empty list."""
    values = list(wanted) if pd.api.types.is_list_like(wanted) else [wanted]
    if not values:
        raise SettingError("where: an empty list chooses nothing; give a value or leave it out.")
    return values


def some(words: Any) -> str:
    """Words in a list, the first of many."""
    listed = list(words)
    more = f" and {len(listed) - MOST_SHOWN} more" if len(listed) > MOST_SHOWN else ""
    return ", ".join(listed[:MOST_SHOWN]) + more


def is_empty(cell: Any) -> bool:
    """Whether a cell of a table holds nothing."""
    return (
        cell is None
        or cell is pd.NA
        or cell is pd.NaT
        or (isinstance(cell, float) and math.isnan(cell))
    )


def _cell_word(cell: Any) -> str:
    return NONE if is_empty(cell) else word(cell)


def word(value: Any) -> str:
    """One spelling for a value, however it was written: 1.0 as 1, True as true, None as null."""
    text = "null" if value is None else str(value).strip()
    if text.lower() in ("true", "false"):
        return text.lower()
    if not NUMBER.fullmatch(text):
        return text
    number = float(text)
    return str(int(number)) if number.is_integer() and abs(number) < 1e15 else repr(number)
