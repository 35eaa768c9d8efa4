"""A report as blocks, written as Markdown here and as a page in `analysis.report.page`.

Text in blocks is Markdown of one line, **bold** and `code`; what comes from elsewhere is marked as
text in it (`analysis.foreign`). Links lead to files of the report and to its sections alone. How
each block is written in either format stands in templates/.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from analysis import foreign
from analysis.report import tables
from analysis.report.figures.drawing import Shown
from models.format import fence

KINDS = ("pdf", "png", "svg", "csv", "json")


@dataclass(frozen=True)
class Heading:
    text: str
    level: int = 2

    @property
    def anchor(self) -> str:
        """What a link within the report leads to, as GitHub makes it of a heading."""
        return re.sub(r"[^a-z0-9]+", "-", self.text.lower()).strip("-")


@dataclass(frozen=True)
class Text:
    text: str
    lead: bool = False


@dataclass(frozen=True)
class Bullets:
    items: tuple[str, ...]
    lead: bool = False


@dataclass(frozen=True)
class Linked:
    """Sentences, each with the section that shows what it says."""

    items: tuple[tuple[str, Heading], ...]


@dataclass(frozen=True)
class Words:
    """What words of the report mean, by the word."""

    meanings: dict[str, str]


@dataclass(frozen=True)
class Table:
    """Cells, and under them the files that hold them, relative to the report."""

    cells: pd.DataFrame
    files: tuple[str, ...] = ()


@dataclass(frozen=True)
class Figure:
    shown: Shown

    @property
    def path(self) -> str:
        """Where the figure's files lie, relative to the report, less their kinds."""
        return f"{self.shown.stem.parent.name}/{self.shown.name}"

    @property
    def files(self) -> list[str]:
        return [f"{self.path}.{kind}" for kind in KINDS]


@dataclass(frozen=True)
class Code:
    lines: tuple[str, ...] = ()


Block = Heading | Text | Bullets | Linked | Words | Table | Figure | Code


def prose(blocks: Iterable[Block]) -> Iterator[str]:
    """Sentences and names of columns: what may hold a word that a reader does not know."""
    for block in blocks:
        if isinstance(block, Text):
            yield block.text
        elif isinstance(block, Bullets):
            yield from block.items
        elif isinstance(block, Linked):
            yield from (text for text, _ in block.items)
        elif isinstance(block, Table):
            yield from map(str, block.cells.columns)


def spans(text: str) -> Iterator[tuple[str, str]]:
    """(element, text) for each part of one line of Markdown, bold and code; no element: neither."""
    for i, part in enumerate(re.split(r"`([^`]+)`", text)):
        if i % 2:
            yield "code", part
        else:
            for j, inner in enumerate(re.split(r"\*\*(.+?)\*\*", part)):
                yield "strong" if j % 2 else "", inner


def markdown(blocks: Iterable[Block]) -> str:
    """The report as GitHub's Markdown."""
    return written(
        "report.md.jinja",
        blocks,
        fence=fence,
        markdown=foreign.markdown,
        plain=foreign.unmarked,
        table=tables.markdown,
    )


def written(template: str, blocks: Iterable[Block], **filters: Callable[..., Any]) -> str:
    """The blocks as a file of templates/ writes them, with these filters.

    All that a page (.html.jinja) shows is escaped, but for what a filter returns as Markup.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=jinja2.select_autoescape(["html.jinja"]),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= filters
    return environment.get_template(template).render(blocks=list(blocks))
