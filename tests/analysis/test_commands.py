"""Commands of the analysis: what they print, what they refuse, and what they do not import."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from synthetic_sweeps import DATA, TRUTH, SweepWriter, grid_points, write_ladder

from ablations.records import project_root
from analysis.__main__ import main

ROOT = project_root()


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one sentence that a refused command leaves on stderr."""
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    return printed.err


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
    # Independent values for this place, all token/parameter runs and each mix its own law: 1.68,
    # and 1.25 to 2.36 as the 95 % interval of a stratified bootstrap of cases.
    arguments = ["savings", str(DATA / "xlstm_tokenparam.csv"), "--baseline", "transformer"]
    arguments += ["--at", "N=1.42e9,D=2.84e10", "--resamples", "400", "--seed", "0"]
    assert main([*arguments, "--format", "json", "--method", "stratified"]) == 0
    (one,) = json.loads(capsys.readouterr().out)["savings"]
    assert {
        "mix", "N", "D", "target_loss", "value", "low", "high", "p_above_1", "in_range", "model",
    } <= one.keys()  # fmt: skip
    assert one["value"] == pytest.approx(1.68, abs=0.01)
    assert one["low"] == pytest.approx(1.25, rel=0.1)
    assert one["high"] == pytest.approx(2.36, rel=0.1)
    assert main([*arguments, "--format", "json"]) == 0
    (mixed,) = json.loads(capsys.readouterr().out)["savings"]
    # One run a point, no shared batches: a mixed model has no business being much narrower.
    assert mixed["low"] < 1.68 < mixed["high"]
    assert math.log(mixed["high"] / mixed["low"]) > 0.7 * math.log(2.36 / 1.25)
    # Runs there begin at 22 tokens per parameter: the place itself is just outside.
    assert one["in_range"] is False
    assert "each mix its own law" in one["model"]


def test_savings_tell_below_from_above_and_what_speaks_against_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    points = grid_points(TRUTH, noise=1e-3)
    path = tmp_path / "points.csv"
    pd.concat([points, points[:2]]).drop(columns=["run", "seed"]).to_csv(path, index=False)
    arguments = ["savings", str(path), "--at", "N=4e5,D=8.1e6", "--at", "N=8e5,D=1e8"]
    assert main([*arguments, "--resamples", "20", "--format", "json"]) == 0
    told = json.loads(capsys.readouterr().out)
    # At 8.1M tokens the baseline is inside, and 1.3 times fewer are below the smallest budget.
    ranges = {(one["mix"], one["N"]): one["range"] for one in told["savings"]}
    assert "the mix's D ÷1." in ranges["gdn3_attn1", 4e5]
    assert "N ×2" in ranges["gdn3_attn1", 8e5]
    repeated, assumed = told["notes"]
    assert "give a column run" in assumed
    assert repeated.startswith("2 point(s) repeat the D")


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
        (["savings", "CSV", "baseline=transfomer"], "; nearest: transformer; give one of them"),
        (["fit", "CSV", "where=mix=xlsmt"], "; nearest: xlstm; mix has transformer, xlstm"),
        (["design", "CSV", "baseline=transfomer"], "; nearest: transformer; it has transformer"),
        (["savings", "CSV", "--at", "N=1e9"], "at=N=1e9 is not a place"),
        (["savings", "CSV", "--at", "N=x,D=1"], "at N=x must be a positive finite number"),
        (["savings", "CSV", "--at", "N=-1,D=1"], "must be a positive finite number"),
        (["fit", "CSV", "--loss", "cubic"], "loss=cubic is not known; valid: absolute, huber"),
        (["savings", "CSV", "--at", "N=1e9,D=1e10,N=2e9"], "at=N=1e9,D=1e10,N=2e9 gives N twice."),
        (["savings", "CSV", "--delta", "-1"], "delta=-1 must be"),
        (["fit", "CSV", "--delta", "-1"], "delta=-1 must be"),
        (["design", "sizes=1e8,2e8,4e8", "shared=1"], "shared=1 must be a correlation"),
        (["fit", "none.csv"], "points=none.csv is not there"),
    ],
)
def test_bad_arguments_are_one_sentence(
    capsys: pytest.CaptureFixture[str], arguments: list[str], sentence: str
) -> None:
    path = str(DATA / "xlstm_tokenparam.csv")
    assert sentence in refused([path if word == "CSV" else word for word in arguments], capsys)


def test_savings_heed_the_threshold_of_huber_s_loss(capsys: pytest.CaptureFixture[str]) -> None:
    values = []
    for delta in ("1e-4", "1"):
        arguments = ["savings", str(DATA / "xlstm_tokenparam.csv"), "--at", "N=1e9,D=2e10"]
        arguments += ["--loss", "huber", "--delta", delta, "--resamples", "20"]
        assert main([*arguments, "--format", "json"]) == 0
        values.append(json.loads(capsys.readouterr().out)["savings"][0]["value"])
    assert values[0] != pytest.approx(values[1], rel=1e-3)


def test_points_of_a_sweep_that_still_runs_come_with_a_note(
    sweep: SweepWriter, capsys: pytest.CaptureFixture[str]
) -> None:
    write_ladder(sweep)
    sweep.run("transformer", "100k", 2, finished=2)
    assert main(["savings", str(sweep.path), "--resamples", "20", "--format", "json"]) == 0
    printed = capsys.readouterr()
    assert printed.err == "note: 1 of 13 runs have not finished.\n"
    assert json.loads(printed.out)["savings"]


def sweep_arguments(sweep: SweepWriter, tmp_path: Path, command: str) -> list[str]:
    name, *given = command.split()
    return [name, *given, f"runs={sweep.path.parent}", f"out={tmp_path}/out", "resamples=40"]


def test_figures_alone_are_drawn_at_a_column_s_width_and_with_a_note_if_asked(
    sweep: SweepWriter, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_ladder(sweep)
    command = "figures sweep=trial only=loss,throughput width=single"
    assert main(sweep_arguments(sweep, tmp_path, command)) == 0
    printed = capsys.readouterr().out.splitlines()
    folder = tmp_path / "out" / "figures"
    assert printed[0] == str(folder / "loss.pdf")
    assert printed[1].startswith("not drawn: throughput: one context length only (256)")
    assert {path.name for path in folder.iterdir()} == {
        f"loss.{kind}" for kind in ("pdf", "png", "svg", "csv", "json")
    }
    assert 'id="note"' not in (folder / "loss.svg").read_text()
    # Without the note in the figure, confounds and command stay beside it.
    assert "Confounds:" in json.loads((folder / "loss.json").read_text())["caption"]
    assert main(sweep_arguments(sweep, tmp_path, f"{command} note=true")) == 0
    assert 'id="note"' in (folder / "loss.svg").read_text()


def test_tables_are_printed_or_written_in_each_form(
    sweep: SweepWriter, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_ladder(sweep)
    for form, told in (("latex", r"\toprule"), ("markdown", "| :-- |"), ("csv", "mix,model,E,A")):
        command = f"tables sweep=trial only=fits format={form}"
        assert main(sweep_arguments(sweep, tmp_path, command)) == 0
        assert told in capsys.readouterr().out
    assert not (tmp_path / "out").exists()
    assert main(sweep_arguments(sweep, tmp_path, "tables sweep=trial only=fits,ladder")) == 0
    assert {path.name for path in (tmp_path / "out" / "tables").iterdir()} == {
        f"{name}.{kind}" for name in ("fits", "ladder") for kind in ("tex", "md", "csv")
    }


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        ("figures sweep=trial only=pie", "only=pie is not known; valid: bpb, classes, "),
        ("figures sweep=trial only=fits", "only=fits cannot be drawn (fits: no law can be fitted"),
        ("figures sweep=trial width=wide", "width=wide is not known; valid: double, single"),
        (
            "tables sweep=trial only=fits",
            "only=fits cannot be made of these points; they allow",
        ),
        ("tables sweep=trial only=chekclist", "only=chekclist is not known; nearest: checklist; "),
        ("figures sweep=trial only=savngs", "only=savngs is not known; nearest: savings, savings_"),
        ("tables sweep=trial format=docx", "format=docx is not known; valid: csv, files"),
    ],
)
def test_figures_and_tables_that_cannot_be_are_one_sentence(
    sweep: SweepWriter, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    command: str, sentence: str,
) -> None:  # fmt: skip
    write_ladder(sweep, sizes=("50k",))
    assert sentence in refused(sweep_arguments(sweep, tmp_path, command), capsys)


def test_the_analysis_needs_no_torch_and_its_help_no_scipy_or_matplotlib() -> None:
    everything = "import sys, analysis.report.write, analysis.study.study; "
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


def test_compare_names_what_differed_and_answers_a_reviewer(
    capsys: pytest.CaptureFixture[str],
) -> None:
    records = Path(__file__).parents[2] / "notebooks" / "records"
    arguments = ["compare", "sweep=demo", f"runs={records}", "resamples=20"]
    assert main([*arguments, "format=json"]) == 0
    told = json.loads(capsys.readouterr().out)
    confounds = {row["confound"] for row in told["gdn3_attn1 against transformer"]}
    assert {"FLOPs", "norm placement", "MLP width"} <= confounds
    answers = {row["question"]: row["answer"] for row in told["What a reviewer asks"]}
    assert answers["The same batches in the same order?"] == "yes"
    assert main([*arguments, "format=pdf"]) == 2
    assert "format=pdf" in capsys.readouterr().err


def test_a_reader_that_has_enough_is_no_error() -> None:
    script = "from analysis.__main__ import main; import sys; sys.exit(main(sys.argv[1:]))"
    arguments = ["fit", str(DATA / "xlstm_tokenparam.csv"), "--format", "csv"]
    with subprocess.Popen(
        [sys.executable, "-c", script, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        said = process.stderr.read()
    assert process.returncode == 0
    assert said == b""


@pytest.mark.parametrize("only", ["loss", "fits", "coefficients", "frontier", "isoflop"])
def test_figures_that_compare_nothing_need_no_baseline(
    only: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    laws = {"dense": TRUTH["transformer"], "sparse": TRUTH["gdn"]}
    rows = [
        (mix, N, C / (6 * N), float(law.loss(N, C / (6 * N))))
        for mix, law in laws.items()
        for C in (1e13, 1e14)
        for best in [float(law.optimum(C)[0])]
        for N in (best / 4, best / 2, best, 2 * best, 4 * best)
    ]
    path = tmp_path / "points.csv"
    pd.DataFrame(rows, columns=["mix", "N", "D", "loss"]).to_csv(path, index=False)
    asked = ["figures", str(path), f"out={tmp_path / 'out'}", "resamples=20"]
    assert main([*asked, f"only={only}"]) == 0
    assert (tmp_path / "out" / "figures" / f"{only}.png").is_file()
    capsys.readouterr()
    told = refused([*asked, "only=savings"], capsys)
    assert "baseline=transformer is not among the mixes (dense, sparse)" in told
    # A baseline that was given is not passed over.
    assert "baseline=mamba2 is not among" in refused(
        [*asked, "only=loss", "baseline=mamba2"], capsys
    )


def test_tables_that_compare_nothing_need_no_baseline(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "points.csv"
    laws = {"dense": TRUTH["transformer"], "sparse": TRUTH["gdn"]}
    grid_points(laws, 1e-3).to_csv(path, index=False)
    assert main(["tables", str(path), "only=fits", "format=markdown", "resamples=20"]) == 0
    assert "| dense |" in capsys.readouterr().out
    assert "is not among" in refused(["report", str(path)], capsys)
