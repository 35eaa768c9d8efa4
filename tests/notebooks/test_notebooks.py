"""Each notebook runs from start to end, prints the numbers that its text announces, shows figures
and tables that people can read, and is kept without outputs."""

from __future__ import annotations

import ast
import base64
import functools
import importlib.util
import re
import struct
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd
import pytest

from ablations.records import project_root

FOLDER = project_root() / "notebooks"
NAMES = sorted(path.name for path in FOLDER.glob("*.ipynb"))
OWN_CSV = "1_your_own_csv.ipynb"
DPI, LEAST_INCHES = 150, 6.5


@functools.cache
def run(name: str) -> Any:
    """A notebook with the outputs of its cells; raises where a cell fails."""
    client = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    notebook = nbformat.read(FOLDER / name, as_version=4)
    where = {"metadata": {"path": str(FOLDER)}}
    return client.NotebookClient(notebook, timeout=120, resources=where).execute()


def outputs(cells: list[Any], *kinds: str) -> list[str]:
    """What cells put out as these kinds; what they print is text/plain."""
    every = [output for cell in cells for output in cell.get("outputs", [])]
    shown = [output.get("data") or {"text/plain": output.get("text", "")} for output in every]
    return [data[kind] for data in shown for kind in kinds if kind in data]


def words(cells: list[Any]) -> str:
    return "\n".join(outputs(cells, "text/markdown", "text/plain"))


def announced(text: str) -> set[str]:
    """The numbers in a Markdown cell: not of code, headings, references and names."""
    text = re.sub(r"^(#| {4}).*$", "", text, flags=re.MULTILINE)
    text = re.sub(r"`[^`]*`|arXiv:\S+|et al\. \d{4}|(Tables?|[Nn]otebook) \d+|\d:\d", "", text)
    return set(re.findall(r"(?<![\w.])\d+(?:\.\d+)?(?:e[-+]?\d+)?[kMBTmb]?(?!\w)", text))


def sections(notebook: Any) -> list[tuple[Any, list[Any]]]:
    """Each Markdown cell with the code cells beneath it, up to the next."""
    found: list[tuple[Any, list[Any]]] = []
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            found.append((cell, []))
        else:
            found[-1][1].append(cell)
    return found


SHOWS = {
    OWN_CSV: ("xlstm", "token savings [95 %]", "Several seeds everywhere?", "one more run"),
    "2_the_demo_sweep.ipynb": (
        "token savings of gdn3_attn1 over transformer are", "Confounds of gdn3_attn1",
        "time savings [95 %]",
    ),
    "3_published_points.ipynb": ("240 points", "xlstm, 35 points"),
    "4_olmo_hybrid.ipynb": ("41.0 %", "1.89", "4.02"),
    "5_planning.ipynb": ("371.3M", "gpu_hours"),
    "6_adding_a_mixer.ipynb": (
        "mlp_hidden 132 → 104",
        "class Retention",
        "right  decoding in pieces is one pass",
        "norm placement: my_retention 0 of 4 → 3 of 4",
        "memory: my_retention",
    ),
}  # fmt: skip
FIGURES = {
    OWN_CSV: 2, "2_the_demo_sweep.ipynb": 4, "3_published_points.ipynb": 3,
    "4_olmo_hybrid.ipynb": 3, "5_planning.ipynb": 1, "6_adding_a_mixer.ipynb": 0,
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_runs_and_shows_what_it_promises(name: str) -> None:
    shown = words(run(name).cells)
    for told in SHOWS[name]:
        assert told in shown


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_each_number_that_a_text_announces_is_printed_beneath_it(name: str) -> None:
    for text, code in sections(run(name)):
        printed = words(code)
        for number in announced(text.source):
            assert re.search(rf"(?<![\w.]){re.escape(number)}(?!\w|\.\d)", printed), number


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_figures_are_drawn_for_a_screen(name: str) -> None:
    images = outputs(run(name).cells, "image/png")
    assert len(images) == FIGURES[name]
    for image in images:
        # Of a PNG's header: its width in pixels.
        (width,) = struct.unpack(">I", base64.b64decode(image)[16:20])
        assert width >= DPI * LEAST_INCHES


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_no_output_shows_markup_or_numbers_that_nobody_reads(name: str) -> None:
    cells = run(name).cells
    for text in outputs(cells, "text/plain", "text/html"):
        assert "**" not in text
        assert not re.search(r"\d{12}", text)
        assert "\x1b" not in text
        assert "<class" not in text
    # A DataFrame's own representation has digits that mean nothing.
    assert not any("dataframe" in page for page in outputs(cells, "text/html"))


# Besiroglu et al. 2024, table 1 and their script; Beck et al. 2025, their published fits. With how
# far ours may be off (relative): theirs stopped before their optimum.
PUBLISHED = {
    ("E", "1.81686"): 1e-5, ("A", "482.006"): 1e-5, ("B", "2085.434"): 1e-5,
    ("alpha", "0.347813"): 1e-5, ("beta", "0.365854"): 1e-5, ("objective", "0.0010182740"): 1e-7,
    ("objective", "1.38505626e-04"): 1e-7, ("objective", "1.98335934e-04"): 1e-7,
}  # fmt: skip


@pytest.mark.slow
def test_published_numbers_stand_beside_ours_with_their_difference() -> None:
    notebook = run("3_published_points.ipynb")
    told = set().union(*(announced(text.source) for text, _ in sections(notebook)))
    rows = [line.split() for line in words(notebook.cells).splitlines()]
    for (quantity, value), most in PUBLISHED.items():
        assert value in told
        (ours, difference) = next(row[2:] for row in rows if row[:2] == [quantity, value])
        assert abs(float(difference)) <= most * float(value)
        # To the digits shown, of which each of the two has half of the last.
        last = float(re.sub(r"\d(?=(e|$))", "1", re.sub(r"\d(?=.*\d(e|$))", "0", ours)))
        assert float(ours) - float(value) == pytest.approx(float(difference), abs=last)


@pytest.mark.slow
def test_table_20_comes_out_of_the_reconstructed_laws() -> None:
    rows = [line.split() for line in words(run("4_olmo_hybrid.ipynb").cells).splitlines()]
    start = rows.index(["mix", "N", "published", "ours", "difference"])
    compared = rows[start + 1 : start + 13]
    # Table 20 of Merrill et al. 2026: the hybrid's and the pure mixer's savings, by N.
    assert [float(row[2]) for row in compared] == [
        1.32, 0.82, 1.57, 1.13, 1.68, 1.30, 1.75, 1.41, 1.82, 1.56, 1.89, 1.70,
    ]  # fmt: skip
    # Half of the printed digit, and half of the last that the notebook shows.
    assert all(abs(float(row[3]) - float(row[2])) <= 0.005 + 0.0005 for row in compared)
    assert {row[4] for row in compared} == {"0"}


def test_announced_numbers_are_those_of_the_text() -> None:
    text = """# 3 · Title of 12

    code 1.25

The value (`x=2.5`, arXiv:2404.10102v2, Besiroglu et al. 2024, Table 20, gdn3_attn1, 3:1) is
1.8172 and 1.385e-04, at 70B for 41.0 % of 240."""
    assert announced(text) == {"1.8172", "1.385e-04", "70B", "41.0", "240"}


def test_the_first_notebook_takes_a_csv_of_other_columns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notebook = nbformat.read(FOLDER / OWN_CSV, as_version=4)
    load, save, plot = [cell.source for cell in notebook.cells if cell.cell_type == "code"][:3]
    save = save.replace("resamples=200", "resamples=20")
    theirs = {"mix": "arch", "N": "params", "D": "tokens", "loss": "val_loss"}
    points = pd.read_csv(project_root() / "tests" / "data" / "scaling" / "xlstm_tokenparam.csv")
    renamed = points.rename(columns=theirs).replace({"arch": {"transformer": "llama"}})
    renamed.to_csv(tmp_path / "mine.csv", index=False)
    own = re.sub(r"(?m)^CSV = .*$", "CSV = 'mine.csv'", load)
    own = re.sub(r"(?m)^COLUMNS = .*$", f"COLUMNS = {theirs}", own)
    own = re.sub(r"(?m)^BASELINE = .*$", "BASELINE = 'llama'", own)
    # The cells that a user sees first: three, and no other line has to be changed.
    assert [cell.cell_type for cell in notebook.cells[:4]] == ["markdown", *["code"] * 3]
    assert sum(a != b for a, b in zip(load.split("\n"), own.split("\n"), strict=True)) == 3

    def executed(first: str, folder: Path) -> dict[str, Any]:
        monkeypatch.chdir(folder)
        names: dict[str, Any] = {}
        for source in (first, save, plot):
            exec(compile(source, OWN_CSV, "exec"), names)
        return names

    mine, shown = executed(own, tmp_path), executed(load, FOLDER)
    assert mine["ladder"].mixes == ["llama", "xlstm"]
    numbers = ["N", "D", "value", "low", "high"]
    pd.testing.assert_frame_equal(mine["savings"].table[numbers], shown["savings"].table[numbers])


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_stripped_and_its_cells_have_stable_ids(name: str) -> None:
    spec = importlib.util.spec_from_file_location("clean", FOLDER / "clean.py")
    assert spec is not None
    assert spec.loader is not None
    clean = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(clean)
    text = (FOLDER / name).read_text()
    assert clean.cleaned(text) == text
    notebook = nbformat.reads(text, as_version=4)
    nbformat.validate(notebook)
    used = notebook.copy()
    used.cells[1]["outputs"] = [nbformat.v4.new_output("stream", text="seen")]
    used.cells[1]["execution_count"] = 7
    assert clean.cleaned(nbformat.writes(used)) == text


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_imports_the_analysis_and_no_lower_floor(name: str) -> None:
    notebook = nbformat.read(FOLDER / name, as_version=4)
    code = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    tree = ast.parse(code)
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            names = [str(node.module)]
        for imported in names:
            assert imported.split(".")[0] not in ("ablations", "models", "sweeps", "torch")


def test_the_records_are_whole_runs_without_weights() -> None:
    runs = [path for path in (FOLDER / "records" / "demo").iterdir() if path.is_dir()]
    assert len(runs) == 12
    for run_folder in runs:
        assert {path.name for path in run_folder.iterdir()} == {
            "spec.yaml", "manifest.json", "status.json", "metrics.jsonl", "points.jsonl",
        }  # fmt: skip
    assert sum(path.stat().st_size for path in Path(FOLDER).rglob("*") if path.is_file()) < 1e6
