"""A report as blocks, written as Markdown here and as a page in `analysis.report.page`.

Text in blocks is Markdown of one line, **bold** and `code`; what comes from elsewhere is marked as
text in it (`analysis.foreign`). Only files of the report are links.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import pandas as pd

from analysis import foreign
from analysis.report import tables
from analysis.report.figures.drawing import Shown

KINDS = ("pdf", "png", "svg", "csv", "json")


@dataclass(frozen=True)
class Heading:
    text: str
    level: int = 2


@dataclass(frozen=True)
class Text:
    text: str
    lead: bool = False


@dataclass(frozen=True)
class Bullets:
    items: tuple[str, ...]
    lead: bool = False


@dataclass(frozen=True)
class Table:
    """Cells, and under them the files that hold them, relative to the report."""

    cells: pd.DataFrame
    files: tuple[str, ...] = ()


@dataclass(frozen=True)
class Figure:
    shown: Shown


@dataclass(frozen=True)
class Code:
    lines: tuple[str, ...] = field(default=())


Block = Heading | Text | Bullets | Table | Figure | Code


def links(files: Iterable[str]) -> str:
    """Files by their kinds, each a link of Markdown."""
    return ", ".join(f"[{file.rsplit('.', 1)[-1]}]({file})" for file in files)


def figure_files(shown: Shown) -> list[str]:
    """Where a figure's files lie, relative to the report."""
    return [f"{shown.stem.parent.name}/{shown.name}.{kind}" for kind in KINDS]


def markdown(blocks: Iterable[Block]) -> str:
    """The report as GitHub's Markdown."""
    return "\n".join(_markdown(block) for block in blocks).rstrip() + "\n"


def _markdown(block: Block) -> str:
    match block:
        case Heading(text, level):
            return f"{'#' * level} {foreign.markdown(text)}\n"
        case Text(text):
            return f"{foreign.markdown(text)}\n"
        case Bullets(items):
            return "\n".join(f"- {foreign.markdown(item)}" for item in items) + "\n"
        case Table(cells, files):
            under = f"\n{links(files)}\n" if files else ""
            return tables.markdown(cells) + under
        case Figure(shown):
            png = f"{shown.stem.parent.name}/{shown.name}.png"
            told = f"*{shown.title}.* {links(figure_files(shown))}"
            return f"![{shown.title}]({png})\n\n{told}\n"
        case Code(lines):
            text = "\n".join(map(foreign.unmarked, lines))
            around = foreign.fence(text, least=3)
            return f"{around}\n{text}\n{around}\n"
