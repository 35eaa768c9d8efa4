"""Samples in the report: the last of each mix at the largest size, and their text is text."""

from __future__ import annotations

from html.parser import HTMLParser

from synthetic_sweeps import SweepWriter, write_ladder

from ablations.records import RunDirectory
from analysis.report import sections
from analysis.report.document import markdown
from analysis.report.figures.drawing import Gallery
from analysis.report.page import page
from analysis.study.findings import Findings, find
from analysis.study.load import load_sweep

HOSTILE = "<script>alert(1)</script> | **b** `c` [x](javascript:y)\n# h\n| --- |\x1b[2J ![i](//z)"


def sampled(sweep: SweepWriter, text: str) -> Findings:
    """Samples at every point of both seeds; the hybrid's last is not there yet."""
    write_ladder(sweep, sizes=("50k", "100k"))
    for run in load_sweep(sweep.path).runs:
        directory = RunDirectory(sweep.path / run.name)
        steps = [point["step"] for point in directory.rows("points.jsonl")]
        for step in steps[:-1] if run.mix != "transformer" else [*steps, 10**9]:
            words = f"{run.mix} {run.size} seed {run.seed} at {step}: {text}"
            directory.append(
                "samples.jsonl",
                {"step": step, "sample": 0, "prompt": text, "continuation": words},
            )
    return find(load_sweep(sweep.path), "transformer", 20, 0, "python -m analysis report")


def test_each_mix_is_shown_once_at_the_largest_size_and_the_last_common_budget(
    sweep: SweepWriter,
) -> None:
    found = sampled(sweep, "once upon")
    assert list(found.samples["mix"]) == ["transformer", "gdn3_attn1"]
    assert set(found.samples["size"]) == {"100k"}
    assert set(found.samples["seed"]) == {0}
    assert found.samples["D"].nunique() == 1
    (run,) = [r for r in load_sweep(sweep.path).runs if r.name == found.samples["run"][1]]
    points = list(RunDirectory(sweep.path / run.name).rows("points.jsonl"))
    assert found.samples["step"][1] == points[-2]["step"]
    text = markdown(sections.report(found, Gallery()))
    assert "## Samples" in text
    assert f"| once upon | gdn3_attn1 | gdn3_attn1 100k seed 0 at {points[-2]['step']}" in text


def test_a_report_without_samples_has_no_section(sweep: SweepWriter) -> None:
    write_ladder(sweep, sizes=("50k",))
    found = find(load_sweep(sweep.path), "transformer", 20, 0, "python -m analysis report")
    assert found.samples.empty
    assert "## Samples" not in markdown(sections.report(found, Gallery()))


class Elements(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.seen: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, _attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)


def test_what_a_model_writes_is_no_markup(sweep: SweepWriter) -> None:
    found = sampled(sweep, HOSTILE).literal
    made = list(sections.report(found, Gallery()))
    tame = sampled(SweepWriter(sweep.path.parent / "tame"), "x " * len(HOSTILE)).literal
    html, harmless = (Elements(page(sections._samples(one))).seen for one in (found, tame))
    assert html == harmless
    assert "<script>alert" not in page(made)
    rows = [line for line in markdown(made).splitlines() if "javascript" in line]
    assert len(rows) == 2
    for row in rows:
        assert row.startswith("| ")
        assert "\x1b" not in row
        assert "<script>" not in row.replace("\\<", "")
        assert "[x](" not in row.replace("\\[", "")
