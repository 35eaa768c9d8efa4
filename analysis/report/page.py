"""A report as one self-contained page: figures inline as SVG, sortable tables, no network.

Its style and script are page.css and page.js, set into it whole.
"""

from __future__ import annotations

import html
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from ablations.records import visible
from analysis.foreign import unmarked
from analysis.report import tables
from analysis.report.document import (
    Block,
    Bullets,
    Code,
    Figure,
    Heading,
    Table,
    Text,
    figure_files,
)
from analysis.report.figures.style import NOTE, NOTE_POINTS

HERE = Path(__file__).parent
SVG = "http://www.w3.org/2000/svg"
XLINK = "http://www.w3.org/1999/xlink"


def page(blocks: Iterable[Block]) -> str:
    """The report as HTML; figures are read from where they were saved."""
    blocks = list(blocks)
    heads = [block for block in blocks if isinstance(block, Heading)]
    title = heads[0].text if heads else "Report"
    contents = " ".join(
        f'<a href="#{_anchor(head.text)}">{_inline(head.text)}</a>'
        for head in heads
        if head.level == 2
    )
    body = [_html(block) for block in blocks]
    # Contents stand after the answer, before the first section.
    first = next((i for i, b in enumerate(blocks) if isinstance(b, Heading) and b.level == 2), 0)
    body.insert(first, f'<nav aria-label="Contents">{contents}</nav>')
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{_text(title)}</title>",
            f"<style>\n{(HERE / 'page.css').read_text(encoding='utf-8')}</style>",
            "</head>",
            "<body>",
            *body,
            f"<script>\n{(HERE / 'page.js').read_text(encoding='utf-8')}</script>",
            "</body>",
            "</html>",
            "",
        ]
    )


def _html(block: Block) -> str:
    match block:
        case Heading(text, level):
            # Names stand in headings of other levels, which nothing leads to.
            anchor = f' id="{_anchor(text)}"' if level == 2 else ""
            return f"<h{level}{anchor}>{_inline(text)}</h{level}>"
        case Text(text, lead):
            return f"<p{_lead(lead)}>{_inline(text)}</p>"
        case Bullets(items, lead):
            inner = "".join(f"<li>{_inline(item)}</li>" for item in items)
            return f"<ul{_lead(lead)}>{inner}</ul>"
        case Table(cells, files):
            return _table(cells) + (f'<p class="files">{_links(files)}</p>' if files else "")
        case Figure(shown):
            drawn = _svg(shown.stem.with_suffix(".svg"), shown.name, shown.title)
            told = f"<b>{_text(shown.title)}.</b> {_links(figure_files(shown))}"
            more = f"<details><summary>Data and method</summary>{_text(shown.note)}</details>"
            return (
                f'<figure id="figure-{shown.name}"><div class="wide">{drawn}</div>'
                f"<figcaption>{told}{more}</figcaption></figure>"
            )
        case Code(lines):
            return f"<pre><code>{chr(10).join(map(_text, lines))}</code></pre>"


def _lead(lead: bool) -> str:
    return ' class="lead"' if lead else ""


def _anchor(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def _text(text: str) -> str:
    """Text as it is, marked or not."""
    return html.escape(visible(unmarked(text)), quote=False)


def _links(files: Iterable[str]) -> str:
    """The same as `document.links`."""
    return ", ".join(
        f'<a href="{html.escape(file)}">{html.escape(file.rsplit(".", 1)[-1])}</a>'
        for file in files
    )


def _inline(text: str) -> str:
    """One line of Markdown: bold and code."""
    parts = re.split(r"(`[^`]+`)", html.escape(text, quote=False))
    elements = "".join(
        f"<code>{part[1:-1]}</code>"
        if part.startswith("`") and len(part) > 2
        else re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", part)
        for part in parts
    )
    return unmarked(elements, lambda letter: html.escape(visible(letter), quote=False))


def _table(cells: pd.DataFrame) -> str:
    kind = [' class="long"' if wraps else "" for wraps in tables.wraps(cells)]
    head = "".join(
        f'<th scope="col"{k}><button type="button">{_inline(str(name)) or "&nbsp;"}</button></th>'
        for name, k in zip(cells.columns, kind, strict=True)
    )
    rows = "\n".join(
        "<tr>"
        + "".join(f"<td{k}>{_inline(str(cell))}</td>" for cell, k in zip(row, kind, strict=True))
        + "</tr>"
        for row in cells.to_numpy()
    )
    return (
        f'<div class="table"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>\n{rows}\n</tbody></table></div>"
    )


def _svg(path: Path, name: str, title: str) -> str:
    """A saved figure for a page: without its note and white ground, ids unique to it."""
    ET.register_namespace("", SVG)
    ET.register_namespace("xlink", XLINK)
    root = ET.parse(path).getroot()
    for parent in list(root.iter()):
        for child in list(parent):
            if child.get("id") == NOTE:
                _crop(root, child)
                # Letters that the note's text defines may be used elsewhere.
                kept = ET.Element(f"{{{SVG}}}g")
                kept.extend(child.iter(f"{{{SVG}}}defs"))
                parent[list(parent).index(child)] = kept
            elif child.tag == f"{{{SVG}}}metadata" or child.get("id") == "patch_1":
                parent.remove(child)
    for key in ("width", "height"):
        del root.attrib[key]
    for one in root.iter():
        for key in ("id", f"{{{XLINK}}}href", "clip-path"):
            if told := one.get(key):
                one.set(key, re.sub(r"^(#|url\(#)?(.*)$", rf"\g<1>{name}-\2", told))
    root.set("role", "img")
    root.set("aria-label", title)
    text = ET.tostring(root, encoding="unicode")
    return re.sub(r"url\(#(?!" + re.escape(name) + "-)", f"url(#{name}-", text)


def _crop(root: ET.Element, note: ET.Element) -> None:
    """Cut a figure off where its note begins: at the top of the first line."""
    first = re.search(r"translate\([-\d.]+ ([\d.]+)\)", ET.tostring(note, encoding="unicode"))
    if first is not None:
        left, top, width, _ = root.get("viewBox", "").split()
        root.set("viewBox", f"{left} {top} {width} {float(first[1]) - NOTE_POINTS:g}")
