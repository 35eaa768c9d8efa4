"""The rows of a CSV that somebody else wrote: how its bytes are text, and its lines are rows."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pandas as pd

from ablations.records import SettingError

# Far above what points have; tables of millions of columns take minutes to refuse.
MOST_COLUMNS = 10_000
# What a file begins with that says how it is encoded; UTF-32's begins as UTF-16's does.
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_UTF32 = (b"\xff\xfe\x00\x00", b"\x00\x00\xfe\xff")


def read_rows(path: Path, required: tuple[str, ...]) -> pd.DataFrame:
    """A CSV as a table whose index is the line of each row in the file, less 2; blank lines stay.

    UTF-8 or UTF-16, any line ends, columns separated by commas, semicolons (then with either
    decimal mark) or tabs. Raises SettingError for what is no such text, or has a row of more or
    fewer cells than its first line names.
    """
    try:
        text = _text(path, path.read_bytes())
    except FileNotFoundError:
        raise SettingError(
            f"points={path} is not there; give a CSV with columns {', '.join(required)}, "
            "or the folder of a sweep."
        ) from None
    except OSError as error:
        raise SettingError(f"points={path} cannot be read ({error.strerror}).") from None
    head = text.partition("\n")[0]
    # Spreadsheets write semicolons where the comma is the decimal mark.
    mark = max(",;\t", key=head.count)
    try:
        lines = _lines(path, text, mark)
        table = pd.read_csv(
            io.StringIO(text), sep=mark, decimal="," if mark == ";" else ".",
            skip_blank_lines=False, skipinitialspace=True, index_col=False,
        )  # fmt: skip
    except (csv.Error, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        reason = " ".join(str(error).split())
        raise SettingError(
            f"points={path} is not a CSV ({reason}); its first line must name columns "
            f"{', '.join(required)}."
        ) from None
    if len(lines) == len(table):  # cells that hold line ends make the two counts differ
        table.index = pd.Index(lines)
    return table


def _text(path: Path, data: bytes) -> str:
    encoding = "utf-8-sig"
    if data.startswith(_UTF16):
        encoding = "utf-32" if data.startswith(_UTF32) else "utf-16"
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise SettingError(
            f"points={path} is not text in UTF-8 (line {line}); save it as a CSV in UTF-8."
        ) from None
    if "\0" in text:
        raise SettingError(
            f"points={path} holds NUL bytes, so it is no text, or UTF-16 that does not say so; "
            "save it as a CSV in UTF-8."
        )
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _lines(path: Path, text: str, mark: str) -> list[int]:
    """The line, less 2, that each row under the header begins in."""
    reader = csv.reader(io.StringIO(text), delimiter=mark, skipinitialspace=True, strict=True)
    named = len(next(reader, ()))
    if named > MOST_COLUMNS:
        raise csv.Error(f"{named:,} columns")
    lines, begun = [], reader.line_num
    for row in reader:
        if any(row) and len(row) != named:
            raise SettingError(
                f"points={path} has {len(row)} cells in line {begun + 1}, and its first line names "
                f"{named} columns."
            )
        lines.append(begun - 1)
        begun = reader.line_num
    return lines
