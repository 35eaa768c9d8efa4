"""A report as one self-contained page: figures inline as SVG, sortable tables, no network."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Iterator

from markupsafe import Markup

from ablations.records import visible
from analysis.foreign import unmarked
from analysis.report import tables
from analysis.report.document import Block, Figure, spans, written
from analysis.report.figures.drawing import Shown
from analysis.report.words import WORDS, Marker, anchor

SVG = "http://www.w3.org/2000/svg"
XLINK = "http://www.w3.org/1999/xlink"


def page(blocks: Iterable[Block]) -> str:
    """The report as HTML; figures are read from where they were saved."""
    marker = Marker()

    def begins(_: Block) -> str:
        marker.begin()
        return ""

    return written(
        "report.html.jinja",
        blocks,
        begins=begins,
        explained=lambda text: list(_explained(text, marker)),
        grouped=_grouped,
        plain=_plain,
        spans=lambda text: [(tag, _plain(part)) for tag, part in spans(text)],
        svg=_svg,
        word=anchor,
        wraps=tables.wraps,
    )


def _plain(text: str) -> str:
    """Text as it is, marked or not."""
    return visible(unmarked(text))


def _explained(text: str, marker: Marker) -> Iterator[tuple[str, list[tuple[str, str, str]]]]:
    """(element, parts) of each span of a line; parts are (word, its meaning, text)."""
    for tag, part in spans(text):
        inner = [("", part)] if tag == "code" else marker.parts(part)
        yield tag, [(word, WORDS.get(word, ""), _plain(told)) for word, told in inner]


def _grouped(blocks: Iterable[Block]) -> list[list[Block]]:
    """Figures that follow one another as one group, every other block alone."""
    groups: list[list[Block]] = []
    for block in blocks:
        if isinstance(block, Figure) and groups and isinstance(groups[-1][-1], Figure):
            groups[-1].append(block)
        else:
            groups.append([block])
    return groups


def _svg(shown: Shown) -> Markup:
    """A saved figure for a page: without its white ground, ids unique to it."""
    ET.register_namespace("", SVG)
    ET.register_namespace("xlink", XLINK)
    root = ET.parse(shown.stem.with_suffix(".svg")).getroot()
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag == f"{{{SVG}}}metadata" or child.get("id") == "patch_1":
                parent.remove(child)
    for key in ("width", "height"):
        del root.attrib[key]
    for one in root.iter():
        for key in ("id", f"{{{XLINK}}}href", "clip-path"):
            if told := one.get(key):
                one.set(key, re.sub(r"^(#|url\(#)?(.*)$", rf"\g<1>{shown.name}-\2", told))
    root.set("role", "img")
    root.set("aria-label", shown.title)
    text = ET.tostring(root, encoding="unicode")
    name = shown.name
    return Markup(re.sub(r"url\(#(?!" + re.escape(name) + "-)", f"url(#{name}-", text))
