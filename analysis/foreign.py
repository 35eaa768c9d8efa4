"""Text from elsewhere in reports, tables and CSVs: shown as it is, obeyed by nobody.

Names of mixes, sizes and domains, errors, devices and commands come out of files that others
wrote. `literal` moves each of their characters that Markdown, a page or a terminal would obey to
a mark of its own, so that only this project's words hold markup; whoever writes a format out
gives the marked characters back in that format's own way. Marks are U+100000 and the character.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from dataclasses import is_dataclass
from typing import Any

import pandas as pd

from ablations.records import HIDDEN, visible
from models.format import fence

FIRST_MARK = 0x100000
_MARKS = re.compile("[\U00100000-\U0010ffff]")
# Where a character does nothing it stays, so that common names need no backslash.
_MARKUP = re.compile(
    rf"[{HIDDEN}\\*`\[\]<>&~|$#@]"
    r"|(?<![^\W_])_|_(?![^\W_])"  # not inside a word, as in gdn3_attn1
    r"|:(?=//)|(?<=www)\."  # addresses, which GitHub's Markdown makes links of
    r"|^[-+=](?!\d)|^\s|\s$",  # lists, rules, code blocks, ends of bold
    re.IGNORECASE,
)
_NUMBERED = re.compile(r"^(\d+)([.)])(?=\s|$)")


def literal(value: Any) -> Any:
    """A copy of a string, table, container or dataclass in which no string holds any markup.

    Different strings stay different, so that they can still be keys.
    """
    if isinstance(value, str):
        marked = _MARKUP.sub(lambda found: _mark(found[0]), value)
        return _NUMBERED.sub(lambda found: found[1] + _mark(found[2]), marked)
    if isinstance(value, pd.DataFrame):
        made = _words_mapped(value, literal)
        made.attrs = literal(value.attrs)
        return made
    if isinstance(value, dict):
        return {literal(key): literal(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple | set):
        return type(value)(literal(inner) for inner in value)
    if is_dataclass(value) and not isinstance(value, type):
        copied = copy.copy(value)
        for name, inner in vars(value).items():  # what it has computed and kept as well
            object.__setattr__(copied, name, literal(inner))
        return copied
    return value


def _mark(character: str) -> str:
    if ord(character) >= FIRST_MARK:  # would be taken for a mark
        return _mark("\\") + visible(character)[1:]
    return chr(FIRST_MARK + ord(character))


def unmarked(text: str, write: Callable[[str], str] = visible) -> str:
    """`text` with each marked character as `write` writes it."""
    return _MARKS.sub(lambda mark: write(chr(ord(mark[0]) - FIRST_MARK)), text)


def markdown(text: str, *, cell: bool = False) -> str:
    """One line of our Markdown, **bold** and `code`, with marked characters as text in it.

    cell: of a table, where a bar would end it.
    """
    return "".join(
        _code(unmarked(part[1:-1]), cell)
        if part.startswith("`") and len(part) > 2
        else unmarked(part.replace("|", r"\|") if cell else part, _escaped)
        for part in re.split(r"(`[^`]+`)", text)
    )


def _escaped(character: str) -> str:
    # Spaces take no backslash; what `visible` escapes begins with one, which takes another.
    return (
        f"&#{ord(character)};"
        if character.isspace() and visible(character) == character
        else ("\\" + visible(character))
    )


def _code(text: str, cell: bool) -> str:
    # A space on both sides is no part of what they enclose.
    bare = not (text.startswith(("`", " ")) or text.endswith(("`", " ")))
    ends, space = fence(text), "" if bare else " "
    text = text.replace("|", r"\|") if cell else text
    return f"{ends}{space}{text}{space}{ends}"


# Also as letters of full width, which spreadsheets read alike.
_FORMULA = re.compile(r"\s*[=+\-@＝＋－＠]")
_NUMBER = re.compile(r"\s*[+-]?((\d+\.?\d*|\.\d+)(e[+-]?\d+)?|inf|nan)\s*%?\s*", re.IGNORECASE)


def csv_cells(table: pd.DataFrame) -> pd.DataFrame:
    """A table whose words no spreadsheet takes for a formula: an apostrophe stands before those.

    Numbers stay numbers, as text too; control characters are escaped, as a line end would begin
    a cell. A semicolon begins one where spreadsheets are set to it.
    """
    return _words_mapped(table, _csv_cell)


def _csv_cell(value: Any) -> Any:
    if value is None or pd.api.types.is_number(value) or value is pd.NaT or value is pd.NA:
        return value
    parts = visible(unmarked(str(value))).split(";")
    return ";".join(
        f"'{part}" if _FORMULA.match(part) and not _NUMBER.fullmatch(part) else part
        for part in parts
    )


def _words_mapped(table: pd.DataFrame, change: Callable[[Any], Any]) -> pd.DataFrame:
    """A table with its words and the names of its rows and columns changed, and its numbers not."""
    made = table.copy()
    for place, kind in enumerate(table.dtypes):
        if not pd.api.types.is_numeric_dtype(kind):
            made.isetitem(place, [change(word) for word in table.iloc[:, place]])
    made.columns = table.columns.map(change)
    if not pd.api.types.is_numeric_dtype(table.index.dtype):
        made.index = table.index.map(change)
    return made
