"""The front door from Python: equal to the commands and to known laws, and clear about mistakes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from synthetic_sweeps import DATA, TRUTH, SweepWriter, grid_points, write_ladder

import analysis
from ablations.records import project_root
from analysis.__main__ import main

ROOT = project_root()
CSV = DATA / "xlstm_tokenparam.csv"


def printed(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """What a command prints as JSON."""
    assert main([*arguments, "--format", "json"]) == 0
    return json.loads(capsys.readouterr().out)


def assert_same_rows(table: pd.DataFrame, rows: list[dict[str, Any]]) -> None:
    """Every number of a table is that of the command's JSON, to the last bit."""
    assert len(table) == len(rows) > 0
    words = {"inf": float("inf"), "-inf": float("-inf"), None: float("nan")}
    for row, expected in zip(table.to_dict("records"), rows, strict=True):
        assert row.keys() == expected.keys()
        for name, value in expected.items():
            if isinstance(row[name], float):
                value = words.get(value, value)
                assert row[name] == value or (np.isnan(row[name]) and np.isnan(value)), name
            else:
                assert json.loads(json.dumps(row[name])) == value, name


@pytest.mark.parametrize(
    ("options", "settings"),
    [
        ([], {}),
        (["--law", "gamma", "--loss", "absolute"], {"law": "gamma", "loss": "absolute"}),
        (["--model", "shared_E", "--delta", "1e-2"], {"model": "shared_E", "delta": 1e-2}),
        (["--fix", "alpha=0.4"], {"fix": {"alpha": 0.4}}),
        (["--law", "ray", "--ratio", "22"], {"law": "ray", "ratio": 22}),
    ],
)
def test_laws_are_the_commands(
    options: list[str], settings: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    document = printed(["fit", str(CSV), *options], capsys)
    laws = analysis.load(CSV).fit(**settings)
    rows = [{"mix": mix} | one for mix, one in document["mixes"].items()]
    assert_same_rows(laws.table, rows)
    assert document["notes"] == laws.caveats


def test_isoflop_and_ranked_models_are_the_commands(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        (mix, N, C / (6 * N), C, float(law.loss(N, C / (6 * N))))
        for mix, law in TRUTH.items()
        for C in (1e14, 3e14, 1e15)
        for N in np.geomspace(2e5, 2e7, 9)
    ]
    path = tmp_path / "isoflop.csv"
    pd.DataFrame(rows, columns=["mix", "N", "D", "C", "loss"]).to_csv(path, index=False)
    document = printed(["fit", str(path), "--law", "isoflop"], capsys)
    budgets = [
        {"mix": mix} | budget for mix, one in document["mixes"].items() for budget in one["budgets"]
    ]
    assert_same_rows(analysis.load(path).fit("isoflop").table, budgets)
    document = printed(["fit", str(CSV), "--model", "all", "--resamples", "9"], capsys)
    ranked = analysis.load(CSV).fit(model="all", resamples=9)
    assert_same_rows(ranked.table, document["models"])
    assert (ranked.how["resamples"], ranked.how["seed"]) == (9, 0)


@pytest.mark.parametrize(
    ("options", "settings"),
    [
        ([], {}),
        (["--at", "N=1e9,D=2e10", "--projected"], {"at": {"N": 1e9, "D": 2e10}, "projected": True}),
        (["--at", "N=1e9", "--target-loss", "2.6"], {"at": {"N": 1e9}, "target_loss": 2.6}),
        (["--compute-optimal", "C=1e21"], {"compute_optimal": 1e21}),
        (["--isoflop", "C=1e20", "--kind", "parameters"], {"isoflop": 1e20, "kind": "parameters"}),
        (["--method", "run", "--seed", "3"], {"method": "run", "seed": 3}),
        (["--loss", "huber", "--model", "shared_E"], {"loss": "huber", "model": "shared_E"}),
    ],
)
def test_savings_are_the_commands(
    options: list[str], settings: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    document = printed(["savings", str(CSV), "--resamples", "20", *options], capsys)
    savings = analysis.load(CSV).savings(resamples=20, **settings)
    assert_same_rows(savings.table, document["savings"])
    assert document["notes"] == savings.caveats
    assert savings.document["laws"] == document["laws"]


@pytest.mark.parametrize(
    ("options", "settings"),
    [
        (["--at", "N=1e9,D=2e10", "--level", "0.8"], {"at": {"N": 1e9, "D": 2e10}, "level": 0.8}),
        (["--at", "C=1e21", "--at", "N=1e9,D=1e11"], {"at": [{"C": 1e21}, {"N": 1e9, "D": 1e11}]}),
    ],
)
def test_predictions_are_the_commands(
    options: list[str], settings: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    document = printed(["predict", str(CSV), "--resamples", "20", *options], capsys)
    predictions = analysis.load(CSV).predict(resamples=20, **settings)
    assert_same_rows(predictions.table, document["predictions"])
    assert document["notes"] == predictions.caveats
    assert predictions.how["level"] == document["level"]


def test_predictions_from_points_without_noise_are_the_law() -> None:
    ladder = analysis.load(grid_points(TRUTH))
    table = ladder.predict({"N": 1e6, "D": 1e9}, resamples=20).table.set_index("mix")
    for mix, law in TRUTH.items():
        expected = law.E + law.A / 1e6**law.alpha + law.B / 1e9**law.beta
        assert table.loc[mix, "loss"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
def test_a_report_is_the_commands_to_the_byte(
    sweep: SweepWriter, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_ladder(sweep)
    where = [f"sweep={sweep.path.name}", f"runs={sweep.path.parent}"]
    assert main(["report", *where, "resamples=20", f"out={tmp_path / 'a'}"]) == 0
    capsys.readouterr()
    files = analysis.load(sweep.path).report(tmp_path / "b", resamples=20)
    assert files[0] == tmp_path / "b" / "report.html"
    assert all(file.is_file() for file in files)
    out = f"out={tmp_path / 'a'}"
    made = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*") if p.is_file())
    assert len(made) > 20
    for name in made:
        by_command = (tmp_path / "a" / name).read_bytes()
        by_python = (tmp_path / "b" / name).read_bytes()
        if name.suffix in (".csv", ".tex") or "tables" in name.parts:
            assert by_python == by_command, name
        elif name.suffix in (".md", ".json"):
            assert by_python.decode() == by_command.decode().replace(f" {out}", ""), name


def test_the_command_in_a_report_makes_that_report_again(
    sweep: SweepWriter, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_ladder(sweep)
    ladder = analysis.load(sweep.path, where={"seed": [0, 1]})
    findings = ladder.findings("gdn3_attn1", resamples=20, seed=1)
    command = findings.facts["command"].split()
    assert command[:4] == ["python", "-m", "analysis", "report"]
    assert main(["tables", *command[4:], "only=savings", f"out={tmp_path}"]) == 0
    by_python = pd.DataFrame([one.row for one in findings.study.savings])
    by_command = pd.read_csv(tmp_path / "tables" / "savings.csv")
    # The file has eight digits.
    for name in ("N", "D", "value", "low", "high"):
        assert by_command[name].to_numpy() == pytest.approx(by_python[name].to_numpy(), rel=1e-7)


def test_savings_of_known_laws_are_those_worked_out_by_hand() -> None:
    ladder = analysis.load(grid_points(TRUTH))
    laws = ladder.fit().table.set_index("mix")
    for mix, law in TRUTH.items():
        for name in ("E", "A", "alpha", "B", "beta"):
            assert laws.loc[mix, name] == pytest.approx(getattr(law, name), rel=1e-4)
    table = ladder.savings(resamples=20).table
    # gdn3_attn1 has B · 1.3^-β for B, so needs 1.3 times fewer tokens wherever it is asked.
    assert table.loc[table["mix"] == "gdn3_attn1", "value"].to_numpy() == pytest.approx(
        [1.3] * 4, rel=1e-5
    )
    # gdn has A = 66 for 60: of equal loss where 66/N^α + 90/D'^β = 60/N^α + 90/D^β.
    gdn = table[table["mix"] == "gdn"]
    N, D = gdn["N"].to_numpy(), gdn["D"].to_numpy()
    tokens = ((90 / D**0.35 - 6 / N**0.42) / 90) ** (-1 / 0.35)
    assert gdn["value"].to_numpy() == pytest.approx(D / tokens, rel=1e-4)
    assert (gdn["value"] < 1).all()


def test_columns_by_other_names_give_the_points_of_the_csv(tmp_path: Path) -> None:
    points = grid_points(TRUTH, noise=1e-3)
    path = tmp_path / "points.csv"
    points.to_csv(path, index=False)
    by_csv = analysis.load(path)
    names = {"N": "params", "D": "tokens", "loss": "val_loss", "mix": "arch", "seed": "rep"}
    # Ours of the same name are others there: a training loss beside the held-out one.
    frame = points.rename(columns=names).assign(loss=9.0)
    before = frame.copy()
    by_name = analysis.load(frame, N="params", D="tokens", loss="val_loss", mix="arch", seed="rep")
    pd.testing.assert_frame_equal(by_name.points, by_csv.points)
    pd.testing.assert_frame_equal(frame, before)
    pd.testing.assert_frame_equal(
        by_name.savings(resamples=20).table, by_csv.savings(resamples=20).table
    )
    frame.to_csv(path, index=False)
    renamed = analysis.load(path, N="params", D="tokens", loss="val_loss", mix="arch", seed="rep")
    pd.testing.assert_frame_equal(renamed.points, by_csv.points)


def test_columns_and_rows_are_chosen_on_the_command_line_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "points.csv"
    grid_points(TRUTH, noise=1e-3).rename(columns={"N": "params"}).to_csv(path, index=False)
    arguments = ["savings", str(path), "columns=N=params", "where=mix=transformer,mix=gdn"]
    document = printed([*arguments, "--resamples", "20"], capsys)
    ladder = analysis.load(path, N="params", where={"mix": ["transformer", "gdn"]})
    assert_same_rows(ladder.savings(resamples=20).table, document["savings"])
    out = ["resamples=20", f"out={tmp_path / 'out'}"]
    given = [f"points={path}", "columns=N=params", "where=mix=transformer,mix=gdn"]
    assert main(["tables", *given, "only=savings", *out]) == 0
    assert set(pd.read_csv(tmp_path / "out" / "tables" / "savings.csv")["mix"]) == {"gdn"}


def test_frames_of_pandas_own_types_are_read_like_others() -> None:
    points = grid_points(TRUTH)
    typed = points.convert_dtypes().astype({"mix": "category"})
    typed.index = pd.Index([f"row {number}" for number in range(len(typed))])
    pd.testing.assert_frame_equal(analysis.load(typed).points, analysis.load(points).points)


def test_rows_are_chosen_by_value_and_by_list(sweep: SweepWriter) -> None:
    points = grid_points(TRUTH)
    chosen = analysis.load(points, where={"mix": ["gdn", "transformer"], "N": "100000"}).points
    assert set(chosen["mix"]) == {"gdn", "transformer"}
    assert set(chosen["N"]) == {100_000}
    renamed = points.rename(columns={"mix": "arch"})
    assert analysis.load(renamed, mix="arch", where={"arch": "gdn"}).mixes == ["gdn"]
    # A bad row that is not chosen is no fault.
    points.loc[points["mix"] == "gdn", "N"] = np.nan
    assert len(analysis.load(points, where={"mix": "transformer"}).points) == 12
    write_ladder(sweep)
    one = analysis.load(sweep.path, where={"seed": 1, "mix": "transformer"})
    assert set(one.points["seed"]) == {1}
    assert one.mixes == ["transformer"]


def test_a_sweep_at_one_level_of_a_second_treatment(sweep: SweepWriter) -> None:
    for mix in ("transformer", "gdn3_attn1"):
        for size in ("50k", "100k", "200k"):
            for rate in (0.25, 1.0):
                sweep.run(mix, size, 0, protocol={"lr_multiplier": rate})
    both = analysis.load(sweep.path)
    assert (len(both.mixes), len(both.arms)) == (2, 4)
    one = analysis.load(sweep.path, where={"protocol.lr_multiplier": 0.25})
    assert one.points["run"].nunique() == 6
    assert one.arms == one.mixes
    again = analysis.load(sweep.path, where={"protocol.lr_multiplier": [0.25, 1]})
    pd.testing.assert_frame_equal(again.points, both.points)


def frame(**changes: Any) -> pd.DataFrame:
    return grid_points(TRUTH).assign(**changes)


@pytest.mark.parametrize(
    ("made", "settings", "sentence"),
    [
        (frame().drop(columns="loss"), {}, "the DataFrame has no column loss; it has mix, size"),
        (frame().drop(columns="N"), {}, "name it by load(…, N=COLUMN)."),
        (frame(), {"loss": "val_loss"}, "loss=val_loss names no column of the DataFrame; it has"),
        (frame(), {"N": "size", "D": "size"}, "N=size and D=size name one column"),
        (frame(N=np.nan), {}, "needs a positive finite number for N in row 1, 2, 3"),
        (frame(mix=None), {}, "needs a name for mix in row 1"),
        (frame(loss=np.nan), {}, "the DataFrame has no row with a finite loss"),
        (frame(D="many"), {}, "for D in row 1, 2, 3, 4, 5, 6, 7, 8 and 28 more, where it"),
        (frame()[:0], {}, "the DataFrame holds no rows"),
        (frame(), {"where": {"mix": "mamba"}}, "mix=mamba matches no row of the DataFrame; mix "),
        (frame(), {"where": {"color": 1}}, "where=color names no column of the DataFrame; it has"),
        (frame(), {"where": {"mix": []}}, "an empty list chooses nothing"),
        (frame(), {"where": {"mix": "gdn", "run": "transformer-50000"}}, "no row of the DataFrame"),
        (frame(), {"where": "mix=gdn"}, "where='mix=gdn' is no filter; give one like"),
        ("nowhere/points.csv", {}, "points=nowhere/points.csv is not there"),
        (["nowhere"], {}, "points=nowhere is not there"),
        ([CSV, CSV], {}, "is not the folder of a sweep"),
        (3, {}, "load(3): give the folder of a sweep"),
        ([], {}, "load([]): give the folder of a sweep"),
        (ROOT / "notebooks/records/demo", {"N": "params"}, "a sweep has its own"),
        ([ROOT / "notebooks/records/demo"] * 2, {}, "one sweep is given twice"),
    ],
)  # fmt: skip
def test_what_cannot_be_loaded_is_one_sentence(
    made: Any, settings: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(analysis.SettingError) as caught:
        analysis.load(made, **settings)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("method", "settings", "sentence"),
    [
        ("fit", {"law": "kaplan"}, "law=kaplan is not known; valid: "),
        ("fit", {"loss": "cubic"}, "loss=cubic is not known"),
        ("fit", {"fix": {"alpha": "big"}}, "fix alpha=big must be a number."),
        ("fit", {"delta": 0}, "delta=0 must be a positive finite number"),
        ("fit", {"ratio": 20}, "ratio=20 needs law=ray"),
        ("savings", {"baseline": "mamba"}, "baseline=mamba is not among the mixes with points"),
        ("savings", {"at": {"N": 1e9}}, "at=N=1e9 is not a place; give N=1e9,D=2e10"),
        ("savings", {"at": {"N": 1e9, "D": -1}}, "at D=-1 must be a positive finite number"),
        (
            "savings",
            {"at": [1e9, 2e10]},
            "at=1000000000.0 is no mapping; give one like {'N': 1e9, 'D': 2e10}",
        ),
        ("savings", {"kind": "joules"}, "kind=joules is not known"),
        ("savings", {"kind": "time"}, "kind=time needs seconds of every mix"),
        ("savings", {"resamples": 3}, "resamples=3 must be a whole number of at least 20"),
        ("savings", {"resamples": 20.5}, "resamples=20.5 must be a whole number"),
        ("savings", {"isoflop": 1, "at": {"N": 1, "D": 1}}, "isoflop and at exclude one another"),
        ("savings", {"target_loss": 2, "compute_optimal": 1}, "target_loss and compute_optimal"),
        ("predict", {"at": {"N": 1e9}}, "at=N=1e9 is not a place, as N and D go together"),
        ("predict", {"at": []}, "at= is missing; give at=N=1e9,D=2e10 or at=C=1e21."),
        ("predict", {"at": {"C": 1e20}, "level": 95}, "level=95 must be a share above 0"),
        ("report", {"baseline": "mamba", "resamples": 20}, "baseline=mamba is not among the mixes"),
    ],
)
def test_what_cannot_be_asked_is_one_sentence(
    method: str, settings: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    out = [tmp_path / "out"] if method == "report" else []
    with pytest.raises(analysis.SettingError) as caught:
        getattr(analysis.load(frame()), method)(*out, **settings)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_points_of_loss_and_flops_alone_have_a_ray_and_nothing_else(tmp_path: Path) -> None:
    C = np.geomspace(1e15, 1e18, 6)
    points = pd.DataFrame({"mix": "a", "C": C, "loss": 1.5 + 200 / C**0.15})
    ladder = analysis.load(points)
    law = ladder.fit("ray").table.iloc[0]
    assert law[["E", "K", "kappa"]].to_list() == pytest.approx([1.5, 200, 0.15], rel=1e-3)
    for ask in (ladder.fit, ladder.savings, lambda: ladder.report(tmp_path / "out")):
        with pytest.raises(analysis.SettingError, match="C alone"):
            ask()


def test_paths_are_relative_to_the_current_folder_and_else_to_the_checkout(
    sweep: SweepWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_ladder(sweep)
    monkeypatch.chdir(sweep.path)
    assert analysis.load("../trial").name == "trial"
    assert analysis.load(".").name == "trial"
    assert analysis.load("notebooks/records/demo").name == "demo"
    ladder = analysis.load(Path("../trial"))
    monkeypatch.chdir("/")
    # Records of the runs are still found.
    assert len(ladder.findings(resamples=20).metrics) > 0


def test_several_sweeps_are_one_ladder(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 1)):
        write_ladder(SweepWriter(tmp_path / name), seeds=(seed,))
    ladder = analysis.load([tmp_path / "a", tmp_path / "b"])
    assert set(ladder.points["seed"]) == {0, 1}
    assert ladder.name == "a+b"


def test_what_is_not_finished_or_left_out_is_noted(sweep: SweepWriter) -> None:
    write_ladder(sweep)
    sweep.run("transformer", "100k", 2, finished=2)
    ladder = analysis.load(sweep.path)
    assert "1 of 13 runs have not finished." in ladder.notes
    assert "1 of 13 runs have not finished." in ladder.savings(resamples=20).caveats
    assert "have not finished" in repr(ladder)
    points = frame()
    points.loc[3, "loss"] = np.nan
    assert "left out: row 4 (" in analysis.load(points).notes[0]


def test_results_show_tables_caveats_and_how_they_were_made() -> None:
    from matplotlib.figure import Figure

    ladder = analysis.load(ROOT / "notebooks" / "records" / "demo")
    laws, savings = ladder.fit(), ladder.savings(resamples=20, seed=4)
    predictions = ladder.predict({"C": 1e13}, resamples=20)
    for result in (laws, savings, predictions):
        assert isinstance(result.plot(), Figure)
        text, page = repr(result), result._repr_html_()
        assert all(mix in text and mix in page for mix in ("transformer", "gdn3_attn1"))
        assert result.caveats
        assert all(caveat in text for caveat in result.caveats)
        assert {"table", "plot", "how", "caveats", "document"} <= set(dir(result))
    assert savings.how == savings.how | {
        "model": "free", "loss": "squares", "method": "mixed", "seeds": [0, 1],
        "resamples": 20, "seed": 4, "level": 0.95,
    }  # fmt: skip
    assert (laws.how["law"], laws.how["loss"], laws.how["delta"]) == ("chinchilla", "huber", 1e-3)
    assert any("Confounds of gdn3_attn1" in caveat for caveat in savings.caveats)
    for place in ({"kind": "parameters"}, {"compute_optimal": 1e13}):
        assert isinstance(ladder.savings(resamples=20, **place).plot(), Figure)


def test_the_interval_shown_is_that_of_the_table() -> None:
    savings = analysis.load(frame(loss=lambda points: points["loss"] * 1.001)).savings(resamples=20)
    assert len(savings.cells()) == len(savings.table)
    for cell, value in zip(
        savings.cells()["token savings [95 %]"], savings.table["value"], strict=True
    ):
        assert float(cell.split()[0]) == pytest.approx(value, abs=5e-3)


def test_names_from_elsewhere_are_text_in_a_page() -> None:
    points = frame().replace({"mix": {"gdn": "<script>alert(1)</script>\x1b[31m"}})
    ladder = analysis.load(points)
    page = ladder.savings(resamples=20)._repr_html_() + ladder.fit()._repr_html_()
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert "\x1b" not in page + repr(ladder) + repr(ladder.fit())


def test_points_are_a_copy() -> None:
    ladder = analysis.load(frame())
    points = ladder.points
    points["loss"] = 0.0
    assert (ladder.points["loss"] > 0).all()


def test_docstrings_give_units() -> None:
    assert "nats per token" in str(analysis.load.__doc__)
    for method in (analysis.Ladder.fit, analysis.Ladder.savings, analysis.Ladder.predict):
        assert "tokens" in str(method.__doc__)
        assert "FLOPs" in str(method.__doc__)


def python(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter in `folder`, with this project after it on the path."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True,
        check=False,
    )  # fmt: skip


@pytest.mark.parametrize("package", ["analysis", "archladder"])
def test_importing_loads_nothing_heavy(package: str) -> None:
    heavy = {"torch", "scipy", "matplotlib", "pandas", "numpy"}
    done = python(f"import {package}, sys; sys.exit(bool({heavy!r} & set(sys.modules)))", ROOT)
    assert done.returncode == 0, done.stderr


LOADS = f"import archladder; print(archladder.load({str(CSV)!r}).mixes)"


def test_archladder_works_where_analysis_and_models_are_somebody_elses(tmp_path: Path) -> None:
    (tmp_path / "analysis.py").write_text("raise RuntimeError('not this one')\n")
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "__init__.py").write_text("MINE = True\n")
    (tmp_path / "ablations").mkdir()  # of data, and no package
    done = python(LOADS, tmp_path)
    assert done.stdout == "['transformer', 'xlstm']\n", done.stderr
    assert f"no longer gives {tmp_path / 'analysis.py'} in this process" in done.stderr
    assert "'ablations'" not in done.stderr
    after = python("import models; assert models.MINE; import archladder", tmp_path)
    assert "ImportError: archladder needs its own package 'models', and" in after.stderr
    assert python("import models; assert models.MINE", tmp_path).returncode == 0


def test_archladder_has_the_names_of_analysis() -> None:
    import archladder

    assert archladder.__all__ == analysis.__all__
    assert all(getattr(archladder, name) is getattr(analysis, name) for name in analysis.__all__)


def test_the_command_does_what_the_module_does(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from archladder.__main__ import main as command

    arguments = ["fit", str(CSV), "--format", "csv"]
    assert main(arguments) == 0
    expected = capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["archladder", *arguments])
    assert command() == 0
    assert capsys.readouterr().out == expected


@pytest.mark.slow
def test_the_documentation_runs_as_it_is_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    assert len(blocks) >= 6
    # Everything it reads is in the checkout; what it writes goes to a folder beside.
    for name in ("tests", "notebooks"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, "docs/python.md", "exec"), names)
    assert names["one"].mixes == ["xlstm"]
    assert (tmp_path / "report_of_mine" / "report.html").is_file()
    assert (tmp_path / "savings.pdf").is_file()
    assert "the DataFrame has no column" in capsys.readouterr().out
