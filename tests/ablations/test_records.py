"""The run directory: append-only, atomically replaced, and never half read."""

import json

import pytest

from ablations.records import RunDirectory, SettingError, move_aside, read_sweep


def test_a_line_cut_by_a_kill_is_skipped_and_does_not_spoil_the_next(tmp_path):
    run = RunDirectory(tmp_path / "r")
    run.append("points.jsonl", {"step": 1, "loss": 2.0})
    with (run.path / "points.jsonl").open("a") as file:
        file.write('{"step": 2, "lo')
    assert [r["step"] for r in run.rows("points.jsonl")] == [1]
    run.append("points.jsonl", {"step": 3, "loss": 1.0})
    assert [r["step"] for r in run.rows("points.jsonl")] == [1, 3]
    run.write_rows("points.jsonl", [r for r in run.rows("points.jsonl") if r["step"] == 1])
    assert [r["step"] for r in run.rows("points.jsonl")] == [1]


def test_replacing_leaves_nothing_beside_and_a_failure_leaves_the_old(tmp_path, monkeypatch):
    run = RunDirectory(tmp_path / "r")
    run.write_status("running", step=1)

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(OSError, match="No space left"):
            run.write_status("running", step=2)
    assert run.read_status()["step"] == 1
    assert [p.name for p in run.path.iterdir()] == ["status.json"]


def test_numbers_survive_to_the_last_bit(tmp_path):
    run = RunDirectory(tmp_path / "r")
    value = 0.1 + 0.2
    run.append("points.jsonl", {"step": 1, "loss": value})
    assert next(run.rows("points.jsonl"))["loss"] == value
    assert json.loads((run.path / "points.jsonl").read_text())["loss"] == value


def test_a_sweep_that_is_not_there_is_named_with_those_that_are(tmp_path):
    RunDirectory(tmp_path / "first" / "a").write_spec({"x": 1})
    assert [r.name for r in read_sweep(tmp_path / "first")] == ["a"]
    with pytest.raises(SettingError, match=r"sweep=second .*first"):
        read_sweep(tmp_path / "second")


def test_what_is_moved_aside_replaces_nothing(tmp_path):
    for content in ("first", "second"):
        (tmp_path / "checkpoints").write_text(content)
        move_aside(tmp_path / "checkpoints")
    kept = [(tmp_path / f"checkpoints.aside{n}").read_text() for n in ("", 1)]
    assert kept == ["first", "second"]
