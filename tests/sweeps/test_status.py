"""What can be read, stopped and retried of a sweep, from its folder alone."""

import json
import subprocess
import sys
import time

import pytest

from ablations.records import RunDirectory
from sweeps import slurm, state, status


@pytest.fixture
def sweep(tmp_path):
    """Three runs: done, failed, and one that says it trains but which nobody has."""

    def make(name, said, **fields):
        run = RunDirectory(tmp_path / "ladder" / name)
        run.write_spec({"mix": {"name": "gdn"}})
        run.write_status(said, **fields)
        run.log.write_text(f"{name} speaks\n")
        return run

    numbers = {"step": 3, "steps": 9, "tokens": 30, "seconds": 2.0}
    make("gdn-50k-s0-aaaa", "done", **numbers)
    make("gdn-50k-s1-bbbb", "failed", **numbers, error="diverged: too bad")
    make("gdn-50k-s2-cccc", "running", **numbers, heartbeat=time.time() - 3600)
    return tmp_path


def command(root, capsys, *arguments):
    code = status.main([*arguments, "--runs", str(root)])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_every_run_is_shown_and_for_programs_as_json(sweep, capsys):
    code, out, _ = command(sweep, capsys, "ladder")
    assert code == 0
    assert "diverged: too bad" in out
    assert str(sweep / "ladder" / "gdn-50k-s1-bbbb" / "log.txt") in out
    assert "1 done, 1 failed, 1 lost" in out
    code, out, _ = command(sweep, capsys, "ladder", "--json")
    rows = json.loads(out)
    assert [row["state"] for row in rows] == ["done", "failed", "lost"]
    assert rows[1]["error"] == "diverged: too bad"
    assert [row["alive"] for row in rows] == [False] * 3


def test_json_is_json_whatever_the_loss(sweep, capsys):
    run = RunDirectory(sweep / "ladder" / "gdn-50k-s1-bbbb")
    run.write_status("failed", loss=float("nan"), eta=float("inf"), step=3)
    rows = json.loads(command(sweep, capsys, "ladder", "--json")[1], parse_constant=pytest.fail)
    assert (rows[1]["loss"], rows[1]["eta"], rows[1]["step"]) == (None, None, 3)
    with pytest.raises(SystemExit) as error:
        status.main(["ladder", "--json", "--watch"])
    assert error.value.code == 2


def test_cancelling_says_what_it_cannot_stop(sweep, capsys):
    run = RunDirectory(sweep / "ladder" / "gdn-50k-s2-cccc")
    with run.lock():
        code, out, _ = command(sweep, capsys, "cancel", "gdn-50k-s2")
    assert code == 1
    assert "by a process that no sweep began" in out


def test_without_a_name_every_sweep_is_counted(sweep, capsys):
    code, out, _ = command(sweep, capsys)
    assert (code, out.strip()) == (0, "ladder: 1 done, 1 failed, 1 lost")


def test_reading_writes_nothing(sweep, capsys):
    before = sorted(str(path) for path in sweep.rglob("*"))
    for arguments in ((), ("ladder",), ("ladder", "--json"), ("logs", "gdn-50k-s0")):
        command(sweep, capsys, *arguments)
    assert sorted(str(path) for path in sweep.rglob("*")) == before


def test_a_run_that_is_trained_is_running_however_long_it_was_silent(sweep, capsys):
    run = RunDirectory(sweep / "ladder" / "gdn-50k-s2-cccc")
    with run.lock() as held:
        assert held
        _, out, _ = command(sweep, capsys, "ladder")
    assert "no heartbeat for 60 min" in " ".join(out.split())


def test_a_run_in_a_queue_says_what_it_waits_for(sweep, capsys, monkeypatch):
    run = RunDirectory(sweep / "ladder" / "gdn-50k-s2-cccc")
    state.write_submission(run, {"launcher": "slurm", "job": "ladder-1", "index": 4})
    pending = slurm.Job("77_4", "PENDING", "Resources", "")
    monkeypatch.setattr(slurm, "jobs", lambda _names: {("ladder-1", 4): pending})
    row = json.loads(command(sweep, capsys, "ladder", "--json")[1])[2]
    assert (row["state"], row["alive"], row["job"]) == ("queued", True, "77_4")
    assert row["note"] == "pending: Resources"
    ended = slurm.Job("77_4", "OUT_OF_MEMORY", "OutOfMemory", "")
    monkeypatch.setattr(slurm, "jobs", lambda _names: {("ladder-1", 4): ended})
    row = json.loads(command(sweep, capsys, "ladder", "--json")[1])[2]
    assert (row["state"], row["alive"]) == ("lost", False)
    assert "OUT_OF_MEMORY" in row["note"]
    monkeypatch.setattr(slurm, "jobs", lambda _names: None)
    row = json.loads(command(sweep, capsys, "ladder", "--json")[1])[2]
    assert (row["state"], row["alive"]) == ("running", None)


def test_a_log_is_found_by_the_beginning_of_a_name(sweep, capsys):
    assert command(sweep, capsys, "logs", "gdn-50k-s1")[:2] == (0, "gdn-50k-s1-bbbb speaks\n")
    code, _, error = command(sweep, capsys, "logs", "gdn")
    assert code == 2
    assert "is 3 runs" in error


def test_what_is_not_there_is_one_sentence(sweep, capsys):
    for arguments in (("nosuch",), ("logs", "nosuch"), ("cancel", "nosuch"), ("retry", "nosuch")):
        code, out, error = command(sweep, capsys, *arguments)
        assert code == 2
        assert out == ""
        assert error.count("\n") == 1
        assert "ladder" in error


def test_where_sweeps_are_may_be_said_first(sweep, capsys):
    assert status.main(["--runs", str(sweep), "logs", "gdn-50k-s1"]) == 0
    assert "speaks" in capsys.readouterr().out


def test_cancelling_what_has_ended_says_so(sweep, capsys):
    code, out, _ = command(sweep, capsys, "cancel", "ladder")
    assert code == 0
    assert "nothing to cancel" in out


def test_reading_a_sweep_loads_neither_torch_nor_pandas():
    code = (
        "import sys, sweeps.status, sweeps.drive; "
        "sys.exit(bool({'torch', 'pandas', 'submitit'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
