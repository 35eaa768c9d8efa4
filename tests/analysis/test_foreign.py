"""Names, errors and cells from elsewhere are text in every format, whatever they hold."""

from __future__ import annotations

import csv
import io
import json
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from synthetic_sweeps import SweepWriter, write_ladder

from ablations.formats import run_name
from ablations.records import visible
from analysis.__main__ import main
from analysis.foreign import csv_cells, literal, unmarked
from analysis.report import latex
from analysis.report.document import Block, Bullets, Code, Heading, Table, Text, markdown
from analysis.report.page import page
from analysis.study.tracking import Keys, LoggedRun, points_of

NASTY = [
    "[x](javascript:alert(1))", "<img src=x onerror=alert(2)>", "**b** `c`", "`", "a|b", "</code>",
    "=cmd|' /C calc'!A0", "+1+1", "-2+3", "@SUM(A1)", "\t=1", "\r=1", "a;=1", "＝1", "$\\frac{1}{$",
    "_x_", "# h", "1. x", "- x", "> q", "    code", "![i](http://e/x.png)", "<!-- ", "&lt;",
    "~~s~~",
    "http://e.example", "www.e.example", "\x1b[31m", "a\nb", "\u202e\ud800", "\U00100041", "\ufffe",
    '" onload="x', "```", "\\", "%s {0}", "[ref]: http://e", "]]>", "*", "<javascript:1>", "x``y",
]  # fmt: skip
hostile = st.text(
    st.sampled_from("*`[]()<>&~|$#@_:!\\=+-.;\"' \t\r\n\x1b\u202e\ud800\U00100041\ufffeab1="),
    min_size=1, max_size=16,
) | st.sampled_from(NASTY)  # fmt: skip
# What a table can hold at all.
IS_TEXT = re.compile("[^\ud800-\udfff]*").fullmatch
LONG = "long enough to wrap whatever stands above"
many = settings(max_examples=80, deadline=None)


class Parsed(HTMLParser):
    """Elements with their attributes, and the text of each td, li, p and h3."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, tuple[tuple[str, str | None], ...]]] = []
        self.texts: list[str] = []
        self.feed(source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, tuple(attrs)))
        if tag in ("td", "li", "p", "h3", "pre"):
            self.texts.append("")

    def handle_data(self, data: str) -> None:
        if self.texts:
            self.texts[-1] += data


def blocks(name: str) -> list[Block]:
    """Every kind of block, with a name where names stand."""
    return [
        Heading("Report", 1), Heading("Results"), Heading(f"{name} against {name}", 3),
        Text(f"**At N, {name} needs 1.** P({name})"), Text(f"Treatment: `{name}`; `a: {name}`."),
        Bullets((f"{name}: one", f"of {name}")),
        Table(
            pd.DataFrame(
                {"mix": [name, LONG], f"D of {name}": [f"**{name}**", f"`{name}` {LONG}"]}
            )
        ),
        Code((name, "second")),
    ]  # fmt: skip


def words(text: str) -> str:
    """Text less the spaces that HTML does not show either."""
    return re.sub(r"[ \u200b]+", " ", text).strip()


@many
@given(hostile)
def test_a_page_has_the_elements_that_it_has_for_a_harmless_name(name: str) -> None:
    made, harmless = Parsed(page(blocks(literal(name)))), Parsed(page(blocks("QQ")))
    assert made.elements == harmless.elements
    assert made.texts == [text.replace("QQ", visible(name)) for text in harmless.texts]


@many
@given(hostile)
@example("http://x y")
def test_a_markdown_report_renders_as_it_does_for_a_harmless_name(name: str) -> None:
    render = MarkdownIt("commonmark").enable(["table", "strikethrough"]).render
    made = Parsed(render(markdown(blocks(literal(name)))))
    harmless = Parsed(render(markdown(blocks("QQ"))))
    assert made.elements == harmless.elements
    for text, plain in zip(made.texts, harmless.texts, strict=True):
        assert words(text) == words(plain.replace("QQ", visible(name)))


@many
@given(hostile, hostile)
def test_marks_keep_names_apart_and_come_off_again(one: str, other: str) -> None:
    assert (literal(one) == literal(other)) == (one == other)
    if "\U00100041" not in one:
        assert unmarked(literal(one), lambda character: character) == one


@many
@given(hostile.filter(IS_TEXT), hostile.filter(IS_TEXT))
def test_tables_keep_their_numbers(one: str, other: str) -> None:
    table = pd.DataFrame({one: [other, 1.5], "n": [1, 2]}, index=[one, "x"])
    marked = literal(table)
    assert marked.columns[0] == literal(one)
    assert marked["n"].dtype == table["n"].dtype


@many
@given(hostile.filter(IS_TEXT))
def test_a_spreadsheet_runs_no_cell_and_reads_one_row_for_each(name: str) -> None:
    table = pd.DataFrame({name: [name, "x"], "value": [-1.5, np.nan], "mixed": [name, -2]})
    text = csv_cells(table).to_csv(index=False, lineterminator="\n")
    text.encode()
    for mark in ",;":  # as it is set to in some countries
        for row in csv.reader(io.StringIO(text), delimiter=mark):
            for cell in row:
                if not cell.lstrip("\"' ").replace(".", "").lstrip("-+").rstrip(",").isdecimal():
                    assert cell.lstrip(' "')[:1] not in (*"=+-@\t\r＝", "\n") or "," in cell
    rows = list(csv.reader(io.StringIO(text)))
    assert [len(row) for row in rows] == [3, 3, 3]
    assert (rows[1][1], rows[2][1:]) == ("-1.5", ["", "-2"])
    again = pd.read_csv(io.StringIO(text))
    assert again["value"].tolist()[0] == -1.5


def test_numbers_stay_numbers_and_formulas_get_an_apostrophe() -> None:
    same = ["-1.5", "+3", "1e-5", "-inf", "+0.12 %", "gdn3_attn1", "a - b", "x; y", "", "0.5×"]
    turned = {
        "=1+1": "'=1+1", "-1+1": "'-1+1", "+a": "'+a", "@x": "'@x", " =1": "' =1", "\t=1": r"\t=1",
        "\r=1": r"\r=1", "a;=1": "a;'=1", "＝1": "'＝1", "-": "'-", "a\nb": r"a\nb",
    }  # fmt: skip
    given = pd.Series([*same, *turned, -1.5, None, 3], dtype=object)
    cells = csv_cells(pd.DataFrame({"c": given}))["c"].tolist()
    assert cells == [*same, *turned.values(), -1.5, None, 3]


def test_latex_takes_no_name_for_a_command() -> None:
    name = r"[x]*{\input{/etc/passwd}}$a_b^c$ % # & ~ `**b**` " + "\x1b"
    assert latex.name(name) == (
        r"\texttt{{[}x]{*}\{\textbackslash{}input\{/etc/passwd\}\}\$a\_b\textasciicircum{}c\$ \% "
        r"\# \& \textasciitilde{} \textasciigrave{}{*}{*}b{*}{*}\textasciigrave{} "
        r"\textbackslash{}x1b}"
    )
    assert latex.name(str(literal(name))) == latex.name(name)
    in_sentence = latex.tex(f"The law of {literal(name)}").replace(r"\allowbreak{}", "")
    assert in_sentence == f"The law of {latex.name(name)[8:-1]}"


MIX = "=[x](javascript:alert(1))<img src=x onerror=alert(2)>**b**`c`|d$\\e$\x1b[31m_"
DOMAIN = "@<b>&\U00100041 `|\u202e\n"
ERROR = "boom\x1b[2J <script>x</script> ![i](http://e/x)\n# h"


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole report of runs whose every foreign field is hostile."""
    folder = tmp_path_factory.mktemp("hostile")
    write_ladder(SweepWriter(folder / "runs" / "trial"), seeds=(0,))
    for run in sorted((folder / "runs" / "trial").iterdir()):
        points = run / "points.jsonl"
        spec = yaml.safe_load((run / "spec.yaml").read_text())
        if spec["mix"]["name"] == "gdn3_attn1":
            spec["mix"]["name"] = MIX
        spec["train"]["optimizer"] += MIX if spec["mix"]["name"] == MIX else ""
        (run / "spec.yaml").write_text(yaml.safe_dump(spec))
        rows = [json.loads(line) for line in points.read_text().splitlines()]
        for row in rows:
            row["mix"] = spec["mix"]["name"]
            row["domains"] = {DOMAIN: row["domains"]["prose"]}
        points.write_text("".join(json.dumps(row) + "\n" for row in rows))
        manifest = json.loads((run / "manifest.json").read_text())
        manifest |= {"command": f"python `x` ``` {ERROR}", "revision": "<i>[r](x:y)</i>"}
        manifest["device"]["name"], manifest["run"] = MIX, run_name(spec)
        (run / "manifest.json").write_text(json.dumps(manifest))
        status: dict[str, Any] = json.loads((run / "status.json").read_text())
        if spec["mix"]["name"] == MIX and "200k" in run.name:
            (run / "status.json").write_text(
                json.dumps(status | {"state": "failed", "error": ERROR})
            )
        # A run is read where its folder has the name that its spec gives it.
        run.rename(run.parent / run_name(spec))
    arguments = [f"runs={folder}/runs", f"out={folder}/out", "resamples=20"]
    assert main(["report", "sweep=trial", *arguments]) == 0
    return folder / "out"


def test_a_whole_page_makes_nothing_of_foreign_text(report: Path) -> None:
    parsed = Parsed((report / "report.html").read_text(encoding="utf-8"))
    assert {tag for tag, _ in parsed.elements} <= {
        "html", "head", "meta", "title", "style", "body", "h1", "h2", "h3", "p", "strong", "code",
        "ul", "li", "nav", "a", "div", "table", "thead", "tr", "th", "button", "tbody", "td", "pre",
        "figure", "svg", "defs", "g", "path", "use", "clippath", "rect", "figcaption", "b",
        "details", "summary", "script", "lineargradient", "stop", "image", "main", "ol", "abbr",
        "dl", "dt", "dd",
    }  # fmt: skip
    assert [tag for tag, _ in parsed.elements].count("script") == 1
    for tag, attributes in parsed.elements:
        for key, value in attributes:
            assert not key.startswith("on"), (tag, key)
            assert "javascript" not in (value or ""), (tag, key)
            if tag == "a" and key == "href":
                target = str(value)
                assert target.startswith("#") or (report / target).is_file(), target
    assert any(visible(MIX) in text for text in parsed.texts)
    assert any("boom\\x1b[2J <script>x</script>" in text for text in parsed.texts)


def test_a_whole_markdown_report_makes_nothing_of_foreign_text(report: Path) -> None:
    text = (report / "report.md").read_text(encoding="utf-8")
    render = MarkdownIt("commonmark").enable(["table", "strikethrough"]).render
    parsed = Parsed(render(text))
    assert {tag for tag, _ in parsed.elements} <= {
        "h1", "h2", "h3", "p", "strong", "em", "code", "ul", "li", "a", "img", "table", "thead",
        "tr", "th", "tbody", "td", "pre",
    }  # fmt: skip
    for tag, attributes in parsed.elements:
        for key, value in attributes:
            if tag == "a" and str(value).startswith("#"):
                assert value in {f"#{name}" for name in ("diagnostics", "fits", "points", "runs",
                    "token-savings", "what-differed")}  # fmt: skip
            elif key in ("href", "src"):
                assert (report / str(value)).is_file(), (tag, value)
    assert any(words(visible(MIX)) in words(text) for text in parsed.texts)


def test_tables_and_figures_of_foreign_text_can_be_read(report: Path) -> None:
    for path in sorted(report.rglob("*.csv")):
        rows = list(csv.reader(io.StringIO(path.read_text(encoding="utf-8"))))
        assert len({len(row) for row in rows}) == 1, path
        assert not [cell for row in rows for cell in row if cell[:1] in ("=", "@", "\t", "\r")], (
            path
        )
    assert "'" + visible(MIX) in (report / "tables" / "points.csv").read_text()
    for path in sorted(report.rglob("*.svg")):
        ET.parse(path)
    names = {path.name for path in report.rglob("*")}
    assert not [name for name in names if not re.fullmatch(r"[\w.]+", name)]
    for path in sorted(report.rglob("*.tex")):
        assert "\x1b" not in path.read_text(encoding="utf-8")


def test_names_pulled_from_wandb_are_cells(tmp_path: Path) -> None:
    config = {"mix.name": "=cmd", "size.name": {"a": 1}, "seed": -1, "recipe.N": 10**400}
    run = LoggedRun("+run\r", "done", config, [{"recipe.N": 1e6, "tokens": 5, "eval/loss": 2}])
    points, _ = points_of([run], Keys())
    text = csv_cells(points).to_csv(index=False)
    assert text.splitlines()[1] == "'+run\\r,'=cmd,{'a': 1},-1,1000000.0,5.0,2.0,,done"


def test_sentences_and_tables_in_a_terminal_move_no_cursor(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "points.csv"
    name = "m\x1b]0;x\x07"
    rows = [f"{name},{N},{D},{1 + 1 / N**0.1 + 1 / D**0.1}" for N in (1, 2, 3) for D in (4, 5, 6)]
    path.write_text("\n".join(["mix,N,D,loss", *rows]))
    assert main(["fit", str(path)]) == 0
    path.write_text(f"mix,N,D,loss\n{name},1,2,{name}\n")
    assert main(["fit", str(path)]) == 2
    said = capsys.readouterr()
    assert "\x1b" not in said.out + said.err
    assert r"m\x1b]0;x\x07" in said.out
    assert r"loss=m\x1b]0;x\x07" in said.err
