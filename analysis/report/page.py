"""A report as one self-contained page: figures inline as SVG, sortable tables, no network."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Iterator

from markupsafe import Markup

from ablations.records import visible
from analysis.foreign import unmarked
from analysis.report import tables
from analysis.report.document import Block, written
from analysis.report.figures.drawing import Shown

SVG = "http://www.w3.org/2000/svg"
XLINK = "http://www.w3.org/1999/xlink"


def page(blocks: Iterable[Block]) -> str:
    """The report as HTML; figures are read from where they were saved."""
    return written(
        "report.html.jinja", blocks, plain=_plain, spans=_spans, svg=_svg, wraps=tables.wraps
    )


def _plain(text: str) -> str:
    """Text as it is, marked or not."""
    return visible(unmarked(text))


def _spans(text: str) -> Iterator[tuple[str, str]]:
    """(element, text) for each part of one line of Markdown, bold and code; no element: neither."""
    for i, part in enumerate(re.split(r"`([^`]+)`", text)):
        if i % 2:
            yield "code", _plain(part)
        else:
            for j, inner in enumerate(re.split(r"\*\*(.+?)\*\*", part)):
                yield "strong" if j % 2 else "", _plain(inner)


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
