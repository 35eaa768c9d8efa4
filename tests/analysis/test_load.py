"""Reading sweeps and CSVs: what is joined, what is left out, what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from synthetic_sweeps import SweepWriter, write_ladder

from ablations.records import SettingError
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
        ("mix,N,D,loss\na,1e6,0,3\na,1e6,1e7,3\n", "positive finite number for D on line 2"),
        ("mix,N,D,loss\na,1e6,1e7,3\na,-1,1e7,3\n", "positive finite number for N on line 3"),
        ("mix,N,D,loss\na,1e6,1e7,\na,1e6,1e7,nan\n", "for loss on line 2, 3"),
        ("mix,N,D,loss\na,1e6,1e7,three\n", "for loss on line 2"),
        ("mix,N,D,loss\n,1e6,1e7,3\n", "a name for mix on line 2"),
        ("", "is not a CSV"),
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


def test_a_csv_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="is not there"):
        load_csv(tmp_path / "none.csv")
