"""What can be read, stopped and retried of a sweep, from its folder alone."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from ablations.records import RunDirectory, read_sweep
from sweeps import slurm, state, status, view


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


def test_json_has_the_fields_that_the_docs_name(sweep, capsys):
    docs = Path(__file__).parents[2] / "docs"
    text = (docs / "cluster.md").read_text()
    told = text.partition("`format=json` prints")[2].partition("A number")[0]
    always = {"run", "state", "alive", "note", "attempts", "job", "path", "log"}
    assert always <= set(re.findall(r"`(\w+)`", told))
    status = (docs / "contracts.md").read_text().partition("## status.json")[2].partition("##")[0]
    for row in json.loads(command(sweep, capsys, "ladder", "--json")[1]):
        assert always <= row.keys()
        assert row.keys() - always <= set(re.findall(r"`(\w+)`", status))


def test_json_is_json_whatever_the_loss(sweep, capsys):
    run = RunDirectory(sweep / "ladder" / "gdn-50k-s1-bbbb")
    run.write_status("failed", loss=float("nan"), eta=float("inf"), step=3)
    rows = json.loads(command(sweep, capsys, "ladder", "--json")[1], parse_constant=pytest.fail)
    assert (rows[1]["loss"], rows[1]["eta"], rows[1]["step"]) == (None, None, 3)
    assert status.main(["ladder", "--json", "--watch"]) == 2
    assert "watch=true and format=json exclude one another" in capsys.readouterr().err
    told = [command(sweep, capsys, "ladder", *words)[1] for words in (["--json"], ["format=json"])]
    assert told[0] == told[1]


def test_cancelling_says_what_it_cannot_stop(sweep, capsys):
    run = RunDirectory(sweep / "ladder" / "gdn-50k-s2-cccc")
    with run.lock():
        code, out, _ = command(sweep, capsys, "cancel", "gdn-50k-s2")
    assert code == 1
    assert "by a process that no sweep began" in out


@pytest.mark.parametrize("before", [None, '{"launcher": 7}'])
def test_cancelling_what_no_submission_tells_of_leaves_it_as_it_is(sweep, capsys, before):
    run = RunDirectory(sweep / "ladder" / "gdn-50k-s2-cccc")
    file = run.path / "submission.json"
    if before:
        file.write_text(before)
    with run.lock():
        code, out, _ = command(sweep, capsys, "cancel", "gdn-50k-s2")
    assert code == 1
    assert "stop that" in out
    assert ("its submission.json has no job" in out) == bool(before)
    assert (file.read_text() if file.exists() else None) == before
    run.write_status("preempted", step=3)
    (look,) = state.look([run])
    assert (look.state, "submission.json" in look.note) == ("preempted", bool(before))


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


def test_a_narrow_terminal_still_tells_run_and_state(sweep, capsys):
    looks = state.look(read_sweep(sweep / "ladder"))
    for width in (30, 60, 80, 200):
        out = Console(width=width, highlight=False, markup=False)
        out.print(view.live_table(looks, out))
        view.summary(looks, out)
        said = capsys.readouterr().out
        assert max(map(len, said.splitlines()[:6])) <= width
        assert "failed" in said
        if width > 30:
            assert "│ gdn-50k-s1-bbbb │ failed" in said
        assert ("attempts" in said) == (width >= 80)


def test_a_run_that_is_starting_shows_its_last_words(sweep, monkeypatch):
    run = RunDirectory(sweep / "ladder" / "gdn-50k-s3-dddd")
    run.write_spec({"mix": {"name": "gdn"}})
    run.write_status("queued")
    run.log.write_text("12:00:00 unpacking\n12:00:01 compiling\n")
    state.write_submission(run, {"launcher": "slurm", "job": "ladder-1", "index": 0})
    job = slurm.Job("77_0", "RUNNING", "None", "node1")
    monkeypatch.setattr(slurm, "jobs", lambda _names: {("ladder-1", 0): job})
    (look,) = state.look([run])
    assert "gdn-50k-s3-dddd 12:00:01 compiling" in view.plain([look])


def test_a_sweep_that_was_moved_is_retried_with_its_own_code(sweep, tmp_path, capsys, monkeypatch):
    run = RunDirectory(sweep / "ladder" / "gdn-50k-s1-bbbb")
    how = {"runs_per_gpu": 1, "parallel": 1, "threads": 1, "devices": 1}
    told = {"launcher": "local", "job": "gone", "how": how, "command": "c"}
    state.write_submission(run, {**told, "code": "/before/ladder/.sweep/code/abc"})
    code, _, error = command(sweep, capsys, "retry", "ladder", "--failed")
    assert code == 2
    assert "is not in /before/ladder/.sweep/code/abc any more; give the sweep's command" in error
    copy = state.machinery(sweep / "ladder") / "code" / "abc"
    copy.mkdir(parents=True)
    used = []
    monkeypatch.setattr("sweeps.drive.on_this_machine", lambda *a: used.append(a[-1]))
    command(sweep, capsys, "retry", "ladder", "--failed")
    assert used == [copy]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "no sweep began it"),
        ("[]", "submission.json holds no fields, so it is not known who was given the run"),
        ('{"launcher": "local", "job": "a"}', "submission.json has no how"),
        (
            '{"launcher": "local", "job": "a", "command": "", "code": "", "how": {}}',
            "how in submission.json has no runs_per_gpu",
        ),
    ],
)
def test_what_cannot_be_retried_is_said_with_the_reason(sweep, capsys, content, reason):
    if content:
        (sweep / "ladder" / "gdn-50k-s1-bbbb" / "submission.json").write_text(content)
    code, out, _ = command(sweep, capsys, "retry", "ladder", "--failed")
    assert code == 1
    assert f"gdn-50k-s1-bbbb cannot be retried by its records ({reason})" in out
    assert "nothing to retry" not in out


def test_a_log_is_found_by_the_beginning_of_a_name(sweep, capsys):
    assert command(sweep, capsys, "logs", "gdn-50k-s1")[:2] == (0, "gdn-50k-s1-bbbb speaks\n")
    code, _, error = command(sweep, capsys, "logs", "gdn")
    assert code == 2
    assert "is 3 runs" in error


def test_what_is_not_there_is_one_sentence(sweep, capsys):
    assert command(sweep, capsys, "--watch")[0] == 2
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


def test_names_and_errors_move_no_cursor(sweep, capsys):
    bad = "\x1b[2J\x1b]0;owned\x07\r\u202e"
    run = RunDirectory(sweep / "ladder" / "gdn-\x1b[31m-s3-dddd")
    run.write_spec({"mix": {"name": "gdn"}})
    run.write_status("failed", step=1, error=f"it {bad} failed :warning: [red]x[/]")
    run.log.write_text(f"log {bad}\tend\n")
    for words in (("ladder",), (), ("logs", "gdn-\x1b"), ("logs", "no-\x1b")):
        _, out, err = command(sweep, capsys, *words)
        assert not set(out + err) & set("\x1b\x07\r\u202e"), words
    _, out, _ = command(sweep, capsys, "ladder")
    assert r"it \x1b[2J\x1b]0;owned\x07\r\u202e failed :warning: [red]x[/]" in out
    assert r"gdn-\x1b[31m-s3-dddd" in out
    _, out, _ = command(sweep, capsys, "logs", "gdn-\x1b")
    assert out == r"log \x1b[2J\x1b]0;owned\x07" + "\n" + r"\u202e" + "\tend\n"
    terminal = view.PlainConsole(force_terminal=True, width=200, markup=False, highlight=False)
    with terminal.capture() as captured:
        view.summary(state.look([run]), terminal)
    assert "\x1b[2J" not in captured.get()
    assert "\x1b]0" not in captured.get()


def test_a_path_is_answered_with_the_setting_that_names_its_folder(sweep, tmp_path, capsys):
    """As printed, the setting shows the sweep."""
    elsewhere = tmp_path / "empty"
    elsewhere.mkdir()
    for path, hint in (
        (sweep / "ladder", f"ladder runs={sweep}"),
        (sweep, f"runs={sweep}"),
    ):
        for words in ([str(path)], ["logs", str(path)], ["cancel", str(path)]):
            code, _, err = command(elsewhere, capsys, *words)
            if path == sweep / "ladder" and words == [str(path)]:
                assert code == 0  # a sweep is read wherever it lies
                continue
            assert code == 2
            assert f"give {hint}" in err
        assert status.main(hint.split()) == 0
        assert "ladder" in capsys.readouterr().out or path != sweep
    code, _, err = command(elsewhere, capsys, "nothing")
    assert code == 2
    assert "for those of another folder give runs=DIR" in err
