"""Reading sweeps and CSVs: what is joined, what is left out, what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from synthetic_sweeps import SweepWriter, write_ladder

from ablations.records import SettingError
from analysis.commands.common import read_points
from analysis.load import load_csv, load_sweep


def test_a_sweep_becomes_a_row_a_point_with_seconds_joined_by_step(sweep: SweepWriter) -> None:
    write_ladder(sweep, sizes=("50k",))
    loaded = load_sweep(sweep.path)
    assert len(loaded.points) == 2 * 2 * 3
    assert len(loaded.runs) == 4
    assert np.allclose(loaded.points["seconds"], loaded.points["D"] / 5e4)
    assert np.allclose(loaded.points["loss/prose"], loaded.points["loss"])
    assert set(loaded.points["state"]) == {"done"}
    assert {run.n_planned for run in loaded.runs} == {3}


def test_unfinished_runs_and_cut_lines_are_read_as_far_as_they_go(sweep: SweepWriter) -> None:
    run = sweep.run("transformer", "50k", 0, finished=2)
    with (run.path / "points.jsonl").open("a") as file:
        file.write('{"mix": "transformer", "si')
    loaded = load_sweep(sweep.path)
    assert list(loaded.points["chinchilla"]) == [1, 2]
    assert loaded.runs[0].state == "running"
    assert (loaded.runs[0].n_points, loaded.runs[0].n_planned) == (2, 3)


def test_points_that_diverged_are_left_out_and_named(sweep: SweepWriter) -> None:
    run = sweep.run("transformer", "50k", 0)
    row = list(run.rows("points.jsonl"))[-1]
    run.append("points.jsonl", row | {"step": 9999, "loss": float("nan")})
    loaded = load_sweep(sweep.path)
    assert len(loaded.points) == 3
    assert "at step 9999" in loaded.dropped[0]


def test_a_sweep_without_points_says_what_its_runs_do(sweep: SweepWriter) -> None:
    sweep.run("transformer", "50k", 0, finished=0)
    with pytest.raises(SettingError, match=r"sweep=trial has no points yet \(1 running\)"):
        load_sweep(sweep.path)


def test_a_sweep_that_is_not_there_is_named_with_those_that_are(sweep: SweepWriter) -> None:
    sweep.run("transformer", "50k", 0)
    with pytest.raises(SettingError, match=r"sweep=other is not in .*trial"):
        load_sweep(sweep.path.parent / "other")


def test_a_csv_without_runs_takes_mix_size_and_seed_for_one(tmp_path: Path) -> None:
    path = tmp_path / "points.csv"
    path.write_text("mix,N,D,loss\na,1e6,1e7,3\na,1.005e6,2e7,2.8\nb,1e6,1e7,3.1\nb,3e6,1e7,3\n")
    points = load_csv(path)
    assert points["run"].nunique() == 3
    assert points["size"].nunique() == 2


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("mix,N,loss\na,1,2\n", "has no column D; it has mix, N, loss"),
        ("mix,N,D,loss\n", "holds no rows"),
        (
            "mix,N,D,loss\na,1e6,0,3\na,1e6,1e7,3\n",
            r"a positive finite number for D in row 1 \(line 2 of the file\), where it is D=0\.",
        ),
        ("mix,N,D,loss\na,1e6,1e7,3\na,-1,1e7,3\n", r"for N in row 2 \(line 3 .*it is N=-1\."),
        (
            "mix,N,D,loss\na,1e6,1e7,0\na,1e6,1e7,word\n",
            r"for loss in row 1, 2 \(line 2, 3 of the file\), where it is loss=0 at first",
        ),
        ("mix,N,D,loss\na,1e6,1e7,three\n", r"for loss in row 1 .*loss=three"),
        ("mix,N,D,loss\na,1e6,inf,3\n", r"for D in row 1 .*D=inf"),
        ("mix,N,D,loss\n\na,1e6,1e7,3\n\na,1e6,1e7,-3\n", r"in row 2 \(line 5 of the file\)"),
        ("mix,N,D,loss\n,1e6,1e7,3\n", "a name for mix in row 1"),
        ("mix,run,N,D,loss\na,,1e6,1e7,3\na,r,1e6,2e7,3\n", "a name for run in row 1"),
        ("mix,N,D,loss,weight\na,1e6,1e7,3,0\n", "a positive finite number for weight in row 1"),
        ("mix|N|D|loss\na|1|2|3\n", r"has no column mix, N, D, loss; it has mix\|N\|D"),
        ("mix,N,D,loss\n" + "a,1,1,-1\n" * 12, "row 1, 2, 3, 4, 5, 6, 7, 8 and 4 more"),
        ("", "is not a CSV"),
        ("mix,N,N ,D,loss\na,1e6,1e6,1e7,3\n", "has more than one column N"),
        ("mix,N,D,loss,seed\na,1e6,1e7,3,\na,1e6,2e7,3,0\n", "a name for seed in row 1"),
        ("mix,N,D,loss,C\na,1e6,1e7,3,much\n", r"a number for C in row 1 .*it is C=much"),
        (
            "mix,N,D,loss,seed\na,1e6,1e7,3,0\na,1e6,2e7,3,0\na,1e6,1e7,3,0\n",
            r"holds rows twice \(line 4 of the file\)",
        ),
    ],
)
def test_a_csv_that_cannot_be_used_is_refused_in_a_sentence(
    tmp_path: Path, text: str, sentence: str
) -> None:
    path = tmp_path / "points.csv"
    path.write_text(text)
    with pytest.raises(SettingError, match=sentence) as caught:
        load_csv(path)
    assert str(caught.value).count("\n") == 0


def test_spaces_around_names_and_numbers_do_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "points.csv"
    path.write_text("mix, N, D , loss\na, 1e6, 2e7, 3\n\n")
    assert load_csv(path)[["N", "D", "loss"]].to_numpy().tolist() == [[1e6, 2e7, 3.0]]


@pytest.mark.parametrize(("mark", "decimal"), [(";", ","), (";", "."), ("\t", "."), (",", ".")])
def test_columns_may_be_separated_as_spreadsheets_do(
    tmp_path: Path, mark: str, decimal: str
) -> None:
    rows = [("mix", "N", "D", "loss"), ("transformer ", "1e6", "2.5e7", "3.25")]
    rows.append((" gdn", "1000000", "25000000", "3.125"))
    path = tmp_path / "points.csv"
    text = "\r\n".join(mark.join(row).replace(".", decimal) for row in rows)
    path.write_text(text, encoding="utf-8-sig")
    points = load_csv(path).set_index("mix")
    assert points.loc["transformer", ["N", "D", "loss"]].tolist() == [1e6, 2.5e7, 3.25]
    assert points.loc["gdn", ["N", "D", "loss"]].tolist() == [1e6, 2.5e7, 3.125]


def test_points_come_from_a_csv_or_from_the_folder_of_a_sweep(
    sweep: SweepWriter, tmp_path: Path
) -> None:
    write_ladder(sweep, sizes=("50k",))
    points = read_points(sweep.path)
    assert len(points) == 12
    points.to_csv(tmp_path / "points.csv", index=False)
    again = read_points(tmp_path / "points.csv")
    assert np.allclose(again["loss"], points["loss"])


def test_points_without_seeds_may_be_equal(tmp_path: Path) -> None:
    path = tmp_path / "points.csv"
    path.write_text("mix,N,D,loss\na,1e6,1e7,3\na,1e6,1e7,3\n")
    assert len(load_csv(path)) == 2


def test_a_damaged_record_is_named(sweep: SweepWriter) -> None:
    write_ladder(sweep, sizes=("50k",), seeds=(0,))
    (spec, *_) = sorted(sweep.path.glob("*/spec.yaml"))
    spec.write_text("mix: [")
    with pytest.raises(SettingError, match=f"{spec.parent.name} holds a record that cannot"):
        load_sweep(sweep.path)


def test_a_csv_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="is not there"):
        load_csv(tmp_path / "none.csv")
