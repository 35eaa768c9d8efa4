"""Reports and figures of synthetic sweeps, end to end through the command line."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from synthetic_sweeps import DATA, SweepWriter, write_ladder

from ablations.records import project_root
from analysis.__main__ import main
from analysis.answer import answers
from analysis.load import load_sweep
from analysis.study import study

ROOT = project_root()


@pytest.fixture
def report(sweep: SweepWriter, tmp_path: Path) -> Callable[..., str]:
    """Runs the report command, which must succeed, and returns report.md."""

    def run(*settings: str) -> str:
        out = tmp_path / "out"
        runs = f"runs={sweep.path.parent}"
        assert main(["report", f"sweep={sweep.path.name}", runs, f"out={out}", *settings]) == 0
        return (out / "report.md").read_text()

    return run


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one sentence that a refused command leaves on stderr."""
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    return printed.err


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_a_finished_sweep_opens_with_its_answer_and_redraws_to_equal_bytes(
    sweep: SweepWriter, report: Callable[..., str], tmp_path: Path
) -> None:
    write_ladder(sweep)
    text = report("resamples=100")
    opening = text.split("\n\n")[1]
    assert opening.startswith("**At N = 201k parameters and D = 16.08M tokens, gdn3_attn1 needs 1.")
    assert "95 % interval" in opening
    assert "in range" in opening
    for section in ("Token savings", "Figures", "Fits", "Points", "What differed", "Runs",
                    "Measured speed", "Commands"):  # fmt: skip
        assert f"## {section}\n" in text
    assert "Confounds: none found." in text
    assert "12 of 12 runs finished." in text
    first = digests(tmp_path / "out")
    assert {f"figures/{name}.{kind}" for name in ("loss", "fits", "savings")
            for kind in ("pdf", "png", "svg", "csv", "json")} <= first.keys()  # fmt: skip
    report("resamples=100")
    assert digests(tmp_path / "out") == first


def test_figures_embed_truetype_and_carry_their_data_and_provenance(
    sweep: SweepWriter, report: Callable[..., str], tmp_path: Path
) -> None:
    write_ladder(sweep)
    report("resamples=40")
    figures = tmp_path / "out" / "figures"
    for name in ("loss", "fits", "savings"):
        assert b"/Type3" not in (figures / f"{name}.pdf").read_bytes()
        facts = json.loads((figures / f"{name}.json").read_text())
        assert facts["sweep"] == "trial"
        assert facts["revision"] == ["0123456789ab"]
        assert facts["confounds"] == {"gdn3_attn1": []}
        assert facts["command"].startswith("python -m analysis report sweep=trial")
        csv = (figures / f"{name}.csv").read_bytes()
        assert facts["csv_sha256"] == hashlib.sha256(csv).hexdigest()
    shown = pd.read_csv(figures / "loss.csv")
    assert (shown["kind"] == "measured").sum() == 36
    assert (shown["kind"] == "fitted").sum() > 100


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


def test_where_the_law_fails_the_answer_is_what_seeds_measured(
    sweep: SweepWriter, report: Callable[..., str]
) -> None:
    write_ladder(sweep)
    for path in sweep.path.glob("*-100k-*/points.jsonl"):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        rows[1]["loss"] *= 1.05
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = report("resamples=40")
    assert "95 % interval, from seeds, without a fit" in text.split("\n\n")[1]
    assert "The law does not describe these points (lack of fit" in text
    assert "By the fitted laws, which do not describe these points:" in text


def test_a_sweep_that_still_runs_says_what_is_missing(
    sweep: SweepWriter, report: Callable[..., str]
) -> None:
    write_ladder(sweep)
    sweep.run("gdn3_attn1", "200k", 2, finished=1)
    sweep.run("transformer", "200k", 2, finished=0, state="failed")
    text = report("resamples=40")
    assert "2 of 14 runs have not finished" in text
    assert "12 of 14 runs finished." in text
    assert "| running | 0 | 1 of 3 |" in text
    assert "| failed | 0 | 0 of 3 |" in text


def test_too_few_points_for_a_law_still_give_a_figure_and_what_was_measured(
    sweep: SweepWriter, report: Callable[..., str], tmp_path: Path
) -> None:
    write_ladder(sweep, sizes=("50k",))
    text = report()
    assert "No interval yet for gdn3_attn1, as no law can be fitted" in text
    assert "1 size(s)" in text
    assert "Without a fit, at size 50k: token savings of gdn3_attn1 over transformer are 1." in text
    assert (tmp_path / "out" / "figures" / "loss.png").exists()
    assert not (tmp_path / "out" / "figures" / "savings.png").exists()


def test_one_mix_alone_has_no_savings_and_says_so(
    sweep: SweepWriter, report: Callable[..., str]
) -> None:
    write_ladder(sweep, mixes=("gdn",))
    text = report("resamples=40")
    assert "One mix only (gdn): there is nothing to compare" in text
    assert "## Token savings" not in text
    assert "| gdn | 18 | 6 |" in text


def test_one_baseline_point_short_of_a_law_leaves_the_others_fitted(
    sweep: SweepWriter, report: Callable[..., str]
) -> None:
    write_ladder(sweep, mixes=("gdn", "gdn3_attn1"))
    sweep.run("transformer", "50k", 0)
    text = report("resamples=40")
    assert "No interval yet for gdn, gdn3_attn1" in text
    assert "No law yet: transformer: 3 points" in text


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (["sweep=none"], "sweep=none is not in"),
        ([], "sweep= is missing"),
        (["sweep=trial", "colour=red"], "key=colour is not known; valid: baseline, out"),
        (["sweep=trial", "resamples=few"], "resamples=few must be a whole number"),
        (["sweep=trial", "baseline=mamba2"], "baseline=mamba2 is not among the mixes"),
        (["trial"], "trial is not a setting"),
    ],
)
def test_what_a_user_can_mend_is_one_sentence_and_writes_nothing(
    sweep: SweepWriter, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    settings: list[str], sentence: str,
) -> None:  # fmt: skip
    write_ladder(sweep, sizes=("50k",), seeds=(0,))
    out = tmp_path / "out"
    arguments = ["report", *settings, f"runs={sweep.path.parent}", f"out={out}"]
    assert sentence in refused(arguments, capsys)
    assert not out.exists()


def test_an_output_that_cannot_be_written_is_refused(
    sweep: SweepWriter, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_ladder(sweep, sizes=("50k",), seeds=(0,))
    (tmp_path / "file").write_text("")
    arguments = ["report", "sweep=trial", f"runs={sweep.path.parent}", f"out={tmp_path}/file/out"]
    assert "cannot be written" in refused(arguments, capsys)


def test_fit_prints_the_contracted_json(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["fit", str(DATA / "xlstm_tokenparam.csv"), "--law", "chinchilla"]
    assert main([*arguments, "--loss", "huber", "--delta", "1e-3", "--format", "json"]) == 0
    mixes = json.loads(capsys.readouterr().out)["mixes"]
    assert {"E", "A", "alpha", "B", "beta", "objective", "n"} <= mixes["xlstm"].keys()
    # Beck et al. 2025, all token/parameter runs.
    assert mixes["transformer"]["objective"] == pytest.approx(1.3850562570e-4, rel=1e-6)
    assert mixes["xlstm"]["objective"] == pytest.approx(1.9833593378e-4, rel=1e-6)
    assert (mixes["transformer"]["n"], mixes["xlstm"]["n"]) == (31, 35)


def test_savings_prints_the_contracted_json(capsys: pytest.CaptureFixture[str]) -> None:
    # Independent values for this place, all token/parameter runs and shared alpha and
    # beta: 1.62 with a 95 % interval of 1.28 to 2.17 by a stratified bootstrap of cases.
    arguments = ["savings", str(DATA / "xlstm_tokenparam.csv"), "--baseline", "transformer"]
    arguments += ["--at", "N=1.42e9,D=2.84e10", "--resamples", "200", "--seed", "0"]
    assert main([*arguments, "--format", "json"]) == 0
    (one,) = json.loads(capsys.readouterr().out)["savings"]
    assert {
        "mix", "N", "D", "target_loss", "value", "low", "high", "p_above_1", "in_range", "model",
    } <= one.keys()  # fmt: skip
    assert one["value"] == pytest.approx(1.62, abs=0.01)
    assert one["low"] == pytest.approx(1.28, rel=0.1)
    assert one["high"] == pytest.approx(2.17, rel=0.1)
    # Runs there begin at 22 tokens per parameter: the place itself is just outside.
    assert one["in_range"] is False
    assert "shared by the mixes" in one["model"]


def test_infinite_values_are_words_in_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = ["mix,N,D,loss"]
    for mix, floor in (("transformer", 1.0), ("worse", 2.5)):
        for N in (1e6, 2e6, 4e6):
            rows += [
                f"{mix},{N},{D},{floor + 300 / N**0.4 + 500 / D**0.4}" for D in (2e7, 4e7, 8e7)
            ]
    path = tmp_path / "points.csv"
    path.write_text("\n".join(rows))
    arguments = ["savings", str(path), "--at", "N=4e6,D=8e9", "--resamples", "20"]
    assert main([*arguments, "--model", "free", "--format", "json"]) == 0
    (one,) = json.loads(capsys.readouterr().out)["savings"]
    assert one["value"] == 0
    assert one["tokens_mix"] == "inf"
    assert one["unreachable"] == 1


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["savings", "CSV", "--baseline", "none"], "baseline=none is not among the mixes"),
        (["savings", "CSV", "--at", "N=1e9"], "at=N=1e9 is not a place"),
        (["savings", "CSV", "--at", "N=x,D=1"], "at N=x is not a number"),
        (["savings", "CSV", "--at", "N=-1,D=1"], "must be a positive finite number"),
        (["savings", "CSV", "--loss", "huber"], "loss=huber needs a model"),
        (["fit", "CSV", "--loss", "absolute"], "loss=absolute is not known; valid: huber, squares"),
        (["fit", "CSV", "--delta", "-1"], "delta=-1 must be"),
        (["fit", "none.csv"], "points=none.csv is not there"),
    ],
)
def test_bad_arguments_are_one_sentence(
    capsys: pytest.CaptureFixture[str], arguments: list[str], sentence: str
) -> None:
    path = str(DATA / "xlstm_tokenparam.csv")
    assert sentence in refused([path if word == "CSV" else word for word in arguments], capsys)


def test_the_analysis_needs_no_torch_and_its_help_no_scipy_or_matplotlib() -> None:
    everything = "import sys, analysis.report, analysis.figures, analysis.study; "
    everything += "sys.exit('torch' in sys.modules)"
    helped = "import sys, runpy; sys.argv = ['analysis', '--help']\n"
    helped += "try: runpy.run_module('analysis', run_name='__main__')\n"
    helped += "except SystemExit: pass\n"
    helped += "sys.exit(bool({'torch', 'scipy', 'matplotlib', 'pandas'} & sys.modules.keys()))"
    for code in (everything, helped):
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, env=os.environ, capture_output=True
        )
        assert done.returncode == 0, done.stderr.decode()
