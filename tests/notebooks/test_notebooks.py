"""Each notebook runs from start to end, shows what it promises, and is kept without outputs."""

from __future__ import annotations

import ast
import importlib.util
import re
from pathlib import Path
from typing import Any

import nbformat
import pytest

from ablations.records import project_root

FOLDER = project_root() / "notebooks"
NAMES = sorted(path.name for path in FOLDER.glob("*.ipynb"))


def run(name: str) -> str:
    """All that a notebook's cells put out, as text; raises where a cell fails."""
    client = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    notebook = nbformat.read(FOLDER / name, as_version=4)
    where = {"metadata": {"path": str(FOLDER)}}
    client.NotebookClient(notebook, timeout=120, resources=where).execute()
    return "\n".join(
        shown
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        for shown in _texts(output)
    )


def _texts(output: Any) -> list[str]:
    data = output.get("data", {})
    kinds = [kind for kind in ("image/png",) if kind in data]
    texts = [data.get(kind, "") for kind in ("text/markdown", "text/plain")]
    return [*kinds, *texts, output.get("text", "")]


SHOWS = {
    "1_quickstart.ipynb": ("token savings of gdn3_attn1 over transformer are", "image/png"),
    # Besiroglu et al. 2024, and Beck et al. 2025.
    "2_published_points.ipynb": ("1.81721", "0.34731", "0.000139   0.000198", "image/png"),
    "3_olmo_hybrid.ipynb": ("41.0", "1.89", "0.67  4.02        True"),
    "4_token_savings.ipynb": ("token savings [95 %]", "Confounds of gdn3_attn1", "image/png"),
    "5_planning.ipynb": ("370993664", "gpu_hours", "image/png"),
    "6_adding_a_mixer.ipynb": (
        "mlp_hidden 132 → 104",
        "class Retention",
        "right  decoding in pieces is one pass",
        "norm placement: my_retention 0 of 4 → 3 of 4",
        "memory: my_retention",
    ),  # fmt: skip
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_runs_and_shows_what_it_promises(name: str) -> None:
    shown = run(name)
    for told in SHOWS[name]:
        assert told in shown
    if name == "3_olmo_hybrid.ipynb":
        # Table 20's column and what the reconstructed laws give stand side by side.
        assert_table_20_comes_out()


def assert_table_20_comes_out() -> None:
    from analysis.study import published
    from analysis.stats.laws import Chinchilla
    from analysis.stats.savings import savings_factor

    laws = {
        row.mix: Chinchilla(row.E, row.A, row.alpha, row.B, row.beta)
        for row in published.table("table18_reconstructed").itertuples()
    }
    table = published.table("table20_savings")
    for row in table.itertuples():
        factor = savings_factor(laws["transformer"], laws[row.mix], row.N, 2.474)
        assert round(float(factor), 2) == row.value


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
    tree = ast.parse(re.sub(r"^%.*$", "", code, flags=re.MULTILINE))
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
