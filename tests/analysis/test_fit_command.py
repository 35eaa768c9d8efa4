"""python -m analysis fit as scripts use it: its JSON, its tables, its one-sentence refusals."""

import csv
import io
import json
from pathlib import Path

import pytest
from synthetic_sweeps import DATA, SweepWriter, write_ladder

from analysis.__main__ import main

XLSTM = str(DATA / "xlstm_tokenparam.csv")


def output(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["fit", *arguments]) == 0
    return capsys.readouterr().out


def test_json_holds_each_mix_s_law_and_its_certificate(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("--law", "chinchilla", "--loss", "huber", "--delta", "1e-3", "--format", "json")
    document = json.loads(output(capsys, XLSTM, *arguments))
    assert set(document["mixes"]) == {"transformer", "xlstm"}
    one = document["mixes"]["transformer"]
    assert one["objective"] == pytest.approx(1.385056241e-4, rel=1e-6)
    assert one["n"] == 31
    assert {"E", "A", "alpha", "B", "beta", "starts_agreeing", "gradient_norm"} <= set(one)


def test_json_of_every_joint_model(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("--model", "all", "--resamples", "0", "--format", "json")
    document = json.loads(output(capsys, XLSTM, *arguments))
    assert document["best"] == "shared"
    assert len(document["models"]) == 8
    assert document["models"][0]["p"] is None
    assert set(document["mixes"]) == {"transformer", "xlstm"}


def test_a_sweep_s_folder_takes_the_place_of_a_csv(
    sweep: SweepWriter, capsys: pytest.CaptureFixture[str]
) -> None:
    write_ladder(sweep)
    document = json.loads(output(capsys, str(sweep.path), "--format", "json"))
    assert document["mixes"]["gdn3_attn1"]["runs"] == 6
    ray = json.loads(
        output(capsys, str(sweep.path), "--law", "ray", "--ratio", "20", "--format", "json")
    )
    assert {"E", "K", "kappa", "ratio"} <= set(ray["mixes"]["transformer"])


def test_csv_reads_back_and_a_table_names_what_is_unidentified(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    rows = list(csv.DictReader(io.StringIO(output(capsys, XLSTM, "--format", "csv"))))
    assert [row["mix"] for row in rows] == ["transformer", "xlstm"]
    assert float(rows[1]["E"]) == pytest.approx(1.2627, abs=1e-4)
    few = tmp_path / "few.csv"
    lines = Path(XLSTM).read_text().splitlines()
    kept = [line for line in lines[1:] if float(line.rsplit(",", 1)[1]) <= 100]
    few.write_text("\n".join([lines[0], *kept]))
    table = output(capsys, str(few))
    assert "transformer: E is unidentified: the best fit has it at zero." in table


def test_latex_is_booktabs_tables(capsys: pytest.CaptureFixture[str]) -> None:
    text = output(capsys, XLSTM, "--law", "gamma", "--format", "latex")
    assert text.count(r"\toprule") == text.count(r"\bottomrule") == 2
    assert r"$E$ & $A$ & $\alpha$ & $B$ & $\beta$ & $\gamma$ \\" in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["--law", "kaplan"],
            "law=kaplan is not known; valid: D, N, chinchilla, envelope, gamma, isoflop, ray",
        ),
        (["--model", "other"], "model=other is not known"),
        (["--format", "xml"], "format=xml is not known"),
        (["--law", "gamma", "--model", "shared"], "model=shared needs law=chinchilla"),
        (["--fix", "alpha"], "fix=alpha is not a setting; give one like alpha=0.22"),
        (
            ["--fix", "alpha=0.2", "--law", "ray"],
            "fix=alpha=0.2 holds more than law=ray may have held",
        ),
        (["--ratio", "20"], "ratio=20 needs law=ray"),
        (["--law", "ray", "--ratio", "many"], "ratio=many must be a positive finite number"),
        (["--model", "all", "--resamples", "-1"], "resamples=-1 must be a whole number"),
        (["--law", "isoflop"], "mix=transformer cannot be fitted by law=isoflop"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_sentence(
    capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    assert main(["fit", XLSTM, *arguments]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("rows", "arguments", "words"),
    [
        (["a,1e6,1e7,3"] * 5, [], "mix=a cannot be fitted: it has 5 points, and the law's 5"),
        (["a,1e6,1e7,3"] * 8, [], "it has 1 size(s)"),
        (["a,1e6,1e7,1e300"] * 8, [], "loss=1e+300 is no loss in nats per token"),
        (["a,1e6,1e7,3", "a,2e6,2e7,-1"], [], "for loss in row 2"),
        (
            [f"a,{n}e6,{d}e8,{3 - n / 9 - d / 9}" for n in (1, 2, 4) for d in (1, 2, 4)],
            ["--model", "shared"],
            "model=shared shares coefficients between mixes, and there is one mix only (a)",
        ),
    ],
)
def test_points_that_do_not_suffice_are_said_in_a_sentence(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    rows: list[str],
    arguments: list[str],
    words: str,
) -> None:
    path = tmp_path / "points.csv"
    path.write_text("\n".join(["mix,N,D,loss", *rows]))
    assert main(["fit", str(path), *arguments]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
