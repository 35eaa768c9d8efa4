"""benchmarks/gpu.py on a CPU at toy sizes: its cells, their order, resumption. No time is held."""

import json

import pytest
import torch

from ablations.records import project_root
from models.ops import backend

WORDS = ["size=50k", "context=32", "device=cpu", "seconds=0", "tokens=64", "new=2", "threads=1",
         "resources.backend=naive"]  # fmt: skip


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.syspath_prepend(project_root() / "benchmarks")
    import gpu

    return gpu


def test_cells_are_measured_once_and_failures_recorded(gpu, tmp_path, monkeypatch, capsys):
    out = tmp_path / "results.json"
    words = [*WORDS, "mix=gdn", f"out={out}"]
    decode_cell, timed, forms = gpu.decode_cell, gpu.timed, []

    def without_memory(cell, asked):
        raise torch.OutOfMemoryError

    def spy(training, passes):
        forms.append(backend.in_use()["gated_delta_rule"])
        return timed(training, passes)

    monkeypatch.setattr(gpu, "decode_cell", without_memory)
    monkeypatch.setattr(gpu, "timed", spy)
    assert gpu.main(words) == 0
    train, peer, decode = json.loads(out.read_text())["cells"]
    assert [train["kind"], train["state"]] == ["train", "done"]
    assert train["backends"] == {"gated_delta_rule": "naive"}
    assert set(forms) == {"naive"}, "steps compute with the operators that the cell names"
    assert train["tokens"] == 64
    assert train["tokens_per_second"] == 64 / train["seconds"]
    assert train["mfu"] is train["possible_mfu"] is None, "not known of a CPU"
    assert peer["error"] == "no class of transformers expresses mix=gdn."
    assert decode["error"] == "the device's memory did not hold it."

    monkeypatch.setattr(gpu, "train_cell", None)
    monkeypatch.setattr(gpu, "decode_cell", None)
    assert gpu.main(words) == 0, "nothing is measured again"
    monkeypatch.setattr(gpu, "decode_cell", decode_cell)
    page = tmp_path / "page.md"
    page.write_text(f"before\n{gpu.ENDS[0]}\nold\n{gpu.ENDS[1]}\nafter\n")
    assert gpu.main([*words, "only=decode", "retry=true", f"into={page}"]) == 0
    capsys.readouterr()
    lines = page.read_text().splitlines()
    assert (lines[0], lines[-1]) == ("before", "after")
    assert "old" not in lines
    assert sum(line.startswith("| gdn | 50k | 32 |") for line in lines) == 3, "training, 2 batches"


def test_the_cells_that_matter_most_come_first(gpu):
    cells = gpu.cells_of(gpu.Settings(device="cpu"))
    first = [cell for cell in cells if cell.kind == "train"][:9]
    assert [(c.context, c.size, c.mix) for c in first[:8]] == [
        (context, size, mix)
        for context in (8192, 32768)
        for size in ("1b", "60m")
        for mix in ("transformer", "gdn3_attn1")
    ]
    assert first[8].context == 2048
    assert len(set(cells)) == len(cells)
    assert cells[-1].kind == "decode"


def test_words_that_cannot_be_are_refused_before_any_cell(gpu, tmp_path, capsys):
    out = tmp_path / "results.json"
    for word in ("mix=nothing", "tokens=1x", "context=0", f"into={out}"):
        assert gpu.main([word, "device=cpu", f"out={out}"]) == 2
        assert word in capsys.readouterr().err
    assert not out.exists()
    out.write_text("{}")
    assert gpu.main([*WORDS, f"out={out}"]) == 2
    assert "holds no results" in capsys.readouterr().err
