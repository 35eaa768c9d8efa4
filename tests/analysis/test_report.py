"""Reports of synthetic sweeps, end to end through the command line."""

from __future__ import annotations

import hashlib
import html
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from synthetic_sweeps import TRUTH, SweepWriter, grid_points, write_ladder

from analysis.__main__ import main
from analysis.report import sections
from analysis.report.document import markdown
from analysis.report.figures import drawing
from analysis.report.figures.drawing import Gallery
from analysis.stats.fit import fit
from analysis.stats.noise import LackOfFit
from analysis.stats.savings import Saving
from analysis.study.answer import answers, headline, noise_doubts
from analysis.study.findings import find
from analysis.study.load import load_sweep
from analysis.study.study import study

EVERY_KIND = ("pdf", "png", "svg", "csv", "json")


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """The folder of a whole report of a finished sweep, and the command that wrote it."""
    folder = tmp_path_factory.mktemp("report")
    write_ladder(SweepWriter(folder / "runs" / "trial"))
    arguments = ["report", "sweep=trial", f"runs={folder}/runs", f"out={folder}/out"]
    arguments.append("resamples=60")
    assert main(arguments) == 0
    return folder / "out", arguments


def said(sweep: SweepWriter, resamples: int = 40, baseline: str = "transformer") -> str:
    """report.md of a sweep, without its figures."""
    found = find(load_sweep(sweep.path), baseline, resamples, 0, "python -m analysis report")
    return markdown(sections.report(found, Gallery()))


def test_a_finished_sweep_opens_with_its_answer(finished: tuple[Path, list[str]]) -> None:
    text = (finished[0] / "report.md").read_text()
    opening = text.split("\n\n")[1]
    assert opening.startswith("**At N = 201k parameters and D = 16.08M tokens, gdn3_attn1 needs 1.")
    assert "95 % interval" in opening
    assert "in range" in opening
    for section in ("Token savings", "What differed", "Fits", "Diagnostics", "Results", "Ladder",
                    "Points", "Runs", "Measured speed", "Reviewers' checklist",
                    "Commands"):  # fmt: skip
        assert f"## {section}\n" in text
    assert "12 of 12 runs finished." in text
    assert "Noise of log loss that intervals rest on" in text
    assert re.search(r"correlation of runs of two mixes on the same batches [+-]0\.\d\d\.", text)
    # Two sizes are no law: only budgets can be left out of three.
    assert re.search(r"\| gdn3_attn1 \| largest D \| 3 \| [+-]", text)
    assert "| largest N |" not in text
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        assert (finished[0] / link).is_file(), link


def test_a_second_run_writes_equal_bytes(finished: tuple[Path, list[str]]) -> None:
    out, arguments = finished
    first = digests(out)
    names = ("loss", "loss_flops", "fits", "savings", "savings_loss", "bpb", "coefficients",
             "iso_loss", "frontier", "stability")  # fmt: skip
    assert {f"figures/{name}.{kind}" for name in names for kind in EVERY_KIND} <= first.keys()
    assert main(arguments) == 0
    assert digests(out) == first


def test_figures_embed_truetype_and_carry_their_data_and_provenance(
    finished: tuple[Path, list[str]],
) -> None:
    figures = finished[0] / "figures"
    for path in figures.glob("*.pdf"):
        assert b"/Type3" not in path.read_bytes()
        assert b"/CIDFontType2" in path.read_bytes()
        facts = json.loads(path.with_suffix(".json").read_text())
        assert facts["sweep"] == "trial"
        assert facts["revision"] == ["0123456789ab"]
        assert facts["confounds"].keys() == {"gdn3_attn1"}
        assert facts["command"].startswith("python -m analysis report sweep=trial")
        csv = path.with_suffix(".csv").read_bytes()
        assert facts["csv_sha256"] == hashlib.sha256(csv).hexdigest()
    shown = pd.read_csv(figures / "loss.csv")
    assert len(shown) == facts["points"] == 36


class Page(HTMLParser):
    """Ids, what refers to them, and what a browser would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.inner: list[str] = []
        self.fetched: list[str] = []
        self.headings: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for key, value in attrs:
            told = value or ""
            if key == "id":
                self.ids.append(told)
            elif key in ("href", "xlink:href") and told.startswith("#"):
                self.inner.append(told[1:])
            elif key in ("src", "srcset", "data", "poster", "action") or tag == "link":
                self.fetched.append(told)
            self.inner += re.findall(r"url\(#([^)]+)\)", told)


def test_the_page_holds_all_that_it_needs(finished: tuple[Path, list[str]]) -> None:
    text = (finished[0] / "report.html").read_text()
    page = Page()
    page.feed(text)
    assert page.fetched == []
    assert not re.search(r"@import|url\((?!#)", text)
    assert len(page.ids) == len(set(page.ids))
    assert set(page.inner) <= set(page.ids)
    assert text.count("<svg") == len(list((finished[0] / "figures").glob("*.svg"))) >= 10
    assert text.index('class="lead"') < text.index("<h2")
    # What a figure rests on is said beside it, in the page and in the JSON, and not in the picture.
    assert 'id="note"' not in (finished[0] / "figures" / "savings.svg").read_text()
    told = json.loads((finished[0] / "figures" / "savings.json").read_text())["caption"]
    assert told in html.unescape(text)


def test_an_interval_that_holds_1_is_said_in_words(sweep: SweepWriter) -> None:
    write_ladder(SweepWriter(sweep.path, run_sd=0.05))
    (told,) = answers(study(load_sweep(sweep.path).points, "transformer", resamples=100))
    assert "the interval includes 1: no saving has been shown" in told


def test_a_mix_that_costs_tokens_is_said_to(sweep: SweepWriter) -> None:
    write_ladder(sweep, mixes=("transformer", "gdn"))
    (told,) = answers(study(load_sweep(sweep.path).points, "transformer", resamples=60))
    assert "gdn needs more tokens than transformer" in told
    assert "costs tokens at this size" in told
    assert "extrapolated: the mix's D" in told


def test_where_the_law_fails_the_answer_is_what_seeds_measured(sweep: SweepWriter) -> None:
    write_ladder(sweep)
    for path in sweep.path.glob("*-100k-*/points.jsonl"):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        rows[1]["loss"] *= 1.05
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = said(sweep)
    assert "95 % interval, from seeds, without a fit" in text.split("\n\n")[1]
    assert "The law does not describe these points (lack of fit" in text
    assert "By the fitted laws, which do not describe these points." in text
    assert "| Does the law describe the points? | **no** |" in text


def test_where_the_law_fails_and_no_seeds_measure_the_answer_is_no_verdict(
    sweep: SweepWriter,
) -> None:
    write_ladder(sweep)
    points = load_sweep(sweep.path).points
    bent = points["size"].eq("100k") & points["step"].eq(
        points.groupby("run")["step"].transform("max")
    )
    points["loss"] *= np.where(bent, 1.05, 1.0)
    found = study(points, "transformer", resamples=60)
    assert found.law_fails
    vars(found)["free"] = found.free.assign(low=np.nan, high=np.nan)  # as if without seeds
    (told,) = answers(found)
    assert "the interval" not in told
    assert "not to be read as a measurement. Without a fit, at size 200k" in told


def test_what_keeps_intervals_from_holding_is_told() -> None:
    points = grid_points({name: TRUTH[name] for name in ("transformer", "gdn3_attn1")}, noise=1e-4)
    assert noise_doubts(fit(points), LackOfFit(1.0, 0.4, 0.1, 0.1)) == []
    (again,) = noise_doubts(fit(pd.concat([points, points[:1]])), None)
    assert again.text.startswith("1 point(s) repeat the D of another point of their run")
    bent = points.assign(loss=points["loss"].where(points.index != 4, points["loss"] * 1.03))
    (off,) = noise_doubts(fit(bent), None)
    assert "The law of transformer lies off its own points by" in off.text
    worst = points.iloc[4]
    assert f"N = {worst['N']:.4g}, D = {worst['D']:.4g}" in str(off)


def test_the_headline_stands_where_the_design_supports_it() -> None:
    def saving(N: float, ratio: float) -> Saving:
        return Saving(
            "m", "b", N, ratio * N, 3.0, 1.3, 1.1, 1.5, 0.99, 0, ratio * N / 1.3, 1, 1, 1, ""
        )

    ladder = [saving(N, 160) for N in (1e8, 3e8, 1e9)]
    assert headline(ladder) == (ladder[-1], "")
    # An isoFLOP design: the largest model saw one token per parameter.
    isoflop = [saving(1e8, 100), saving(3e8, 11), saving(1e9, 1)]
    chosen, why = headline(isoflop)
    assert chosen is isoflop[1]
    assert "not at N = 1B, which was trained on 1 tokens per parameter" in why


def test_a_sweep_that_still_runs_says_what_is_missing_and_marks_its_points(
    sweep: SweepWriter,
) -> None:
    write_ladder(sweep)
    sweep.run("gdn3_attn1", "200k", 2, finished=1)
    sweep.run("transformer", "200k", 2, finished=0, state="failed")
    text = said(sweep)
    assert "2 of 14 runs have not finished" in text
    assert "12 of 14 runs finished." in text
    assert "| running | 0 | 1 of 3 |" in text
    assert "| failed | 0 | 0 of 3 |" in text
    assert "3 (1 of a run not finished)" in text
    assert "| Are all runs finished, and all points kept? | **no** |" in text


def test_too_few_points_for_a_law_still_give_a_report(
    sweep: SweepWriter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tuple(one for one in drawing.PICTURES if one.name in ("loss", "savings", "frontier"))
    monkeypatch.setattr(drawing, "PICTURES", kept)
    write_ladder(sweep, sizes=("50k",))
    arguments = ["report", "sweep=trial", f"runs={sweep.path.parent}", f"out={tmp_path}/out"]
    assert main([*arguments, "resamples=40"]) == 0
    text = (tmp_path / "out" / "report.md").read_text()
    assert "token savings of gdn3_attn1 over transformer are 1." in text
    assert "(95 % interval, from seeds, without a fit)" in text
    assert "No law yet, so nothing beyond the sizes measured: " in text
    assert "1 size(s)" in text
    assert "- `savings`, `frontier`: no law can be fitted: " in text
    assert (tmp_path / "out" / "figures" / "loss.png").exists()
    assert not (tmp_path / "out" / "figures" / "savings.png").exists()
    assert "<svg" in (tmp_path / "out" / "report.html").read_text()


def test_one_mix_alone_has_no_savings_and_says_so(sweep: SweepWriter) -> None:
    write_ladder(sweep, mixes=("gdn",))
    text = said(sweep)
    assert "One mix only (gdn): there is nothing to compare" in text
    assert "## Token savings" not in text
    assert "| gdn | 18 | 6 |" in text


def test_one_baseline_point_short_of_a_law_leaves_the_others_fitted(sweep: SweepWriter) -> None:
    write_ladder(sweep, mixes=("gdn", "gdn3_attn1"))
    sweep.run("transformer", "50k", 0)
    text = said(sweep)
    assert "No interval yet for gdn, gdn3_attn1" in text
    assert "No law yet: transformer: 3 points" in text


def test_points_alone_are_reported_with_confounds_unknown(
    tmp_path: Path, sweep: SweepWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drawing, "PICTURES", drawing.PICTURES[2:3])
    write_ladder(sweep)
    path = tmp_path / "mine.csv"
    load_sweep(sweep.path).points[["mix", "size", "seed", "N", "D", "loss"]].to_csv(path)
    assert main(["report", f"points={path}", f"out={tmp_path}/out", "resamples=40"]) == 0
    text = (tmp_path / "out" / "report.md").read_text()
    assert text.startswith("# Points mine\n\n**At N = 201k")
    assert "what else differed between mixes is unknown" in text
    assert "| Nothing else differed? | not recorded |" in text


def test_sweeps_of_one_corpus_are_reported_as_one_and_others_refused(
    tmp_path: Path, sweep: SweepWriter, capsys: pytest.CaptureFixture[str]
) -> None:
    write_ladder(sweep, mixes=("transformer",))
    second = SweepWriter(sweep.path.parent / "second")
    write_ladder(second, mixes=("gdn3_attn1",))
    arguments = ["tables", "sweep=trial,second", f"runs={sweep.path.parent}", "only=savings"]
    arguments += ["format=csv", "resamples=40"]
    assert main(arguments) == 0
    rows = capsys.readouterr().out.splitlines()
    assert [row.split(",")[0] for row in rows[1:]] == ["gdn3_attn1"] * 3
    for path in second.path.glob("*/manifest.json"):
        facts = json.loads(path.read_text())
        facts["data"] = {"name": "other", "fingerprint": "0" * 32, "vocab_size": 50_000}
        path.write_text(json.dumps(facts))
    assert main(arguments) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: sweep=trial,second have different")
    assert told.count("\n") == 1


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (["sweep=none"], "sweep=none is not in"),
        ([], "sweep= is missing"),
        (["sweep=,"], "sweep has no value"),
        (["sweep=trial,trial"], "sweep=trial,trial names one twice"),
        (["sweep=trial", "points=x.csv"], "sweep= and points= are both given"),
        (["points=none.csv"], "points=none.csv is not there"),
        (
            ["sweep=trial", "colour=red"],
            "colour is not a setting; nearest: columns; valid: baseline, columns",
        ),
        (["sweep=trial", "resamples=few"], "resamples=few must be a whole number"),
        (["sweep=trial", "baseline=mamba2"], "baseline=mamba2 is not among the mixes"),
        (["sweep=trial", "baseline=transfomer"], "; nearest: transformer; give one of them"),
        (["sweep=trial", "wandb=mine"], "wandb=mine is not a run; give entity/project/run"),
        (["trial"], "points=trial is not there"),
    ],
)
def test_what_a_user_can_mend_is_one_sentence_and_writes_nothing(
    sweep: SweepWriter, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    settings: list[str], sentence: str,
) -> None:  # fmt: skip
    write_ladder(sweep, sizes=("50k",), seeds=(0,))
    out = tmp_path / "out"
    arguments = ["report", *settings, f"runs={sweep.path.parent}", f"out={out}"]
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert sentence in printed.err
    assert printed.err.count("\n") == 1
    assert printed.out == ""
    assert not out.exists()


def test_a_sweep_without_points_says_what_its_runs_do(
    sweep: SweepWriter, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep.run("transformer", "50k", 0, finished=0)
    assert main(["report", "sweep=trial", f"runs={sweep.path.parent}"]) == 2
    assert "sweep=trial has no points yet (1 running)" in capsys.readouterr().err


def test_an_output_that_cannot_be_written_is_refused(
    sweep: SweepWriter, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_ladder(sweep, sizes=("50k",), seeds=(0,))
    (tmp_path / "file").write_text("")
    arguments = ["report", "sweep=trial", f"runs={sweep.path.parent}", f"out={tmp_path}/file/out"]
    assert main(arguments) == 2
    assert "cannot be written" in capsys.readouterr().err
