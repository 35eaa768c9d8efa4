"""File × damage × command: a damaged record is said of its run, and takes nothing else down."""

import json
import shutil
import sys
from pathlib import Path

import pytest

from ablations.records import RunDirectory
from analysis.__main__ import main as analysis
from analysis.report.figures.drawing import Gallery
from sweeps import run as sweep
from sweeps import status

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "notebooks" / "records" / "demo"
WHOLE = ("gdn3_attn1-200k-s1-a453f84e", "transformer-200k-s1-133518ba")

SUBMISSION = {"launcher": "local", "job": "demo-1", "host": "nowhere", "how": {}, "code": "c",
              "command": "", "time": 1.0}  # fmt: skip
SAMPLE = {"step": 146, "sample": 0, "prompt": "a", "continuation": "b"}
PROBE = {"step": 146, "probe": "recall", "version": 1, "length": 64, "accuracy": 0.5}
FOLDER = None
ANY_FILE = {
    "empty": b"", "binary": bytes(range(256)) + b"\n", "list": b"[]\n", "null": b"null\n",
    "deep": b"[" * 100_000 + b"\n", "folder": FOLDER,
}  # fmt: skip
# Cut where it hurts, numbers as text, NaN where none may be, nested rubbish.
OF_A_FILE = {
    "spec.yaml": ("sweep: demo\nmix:\n  na", 'seed: "0"', "seed: .nan", "mix: [{a: {b: []}}]"),
    "status.json": ('{"state": "do', '{"state": "done", "step": "146"}', '{"state": NaN}',
                    '{"state": "done", "seconds": {"a": [[]]}}'),
    "manifest.json": ('{"run": "x', '{"compiled": "no"}', '{"device": NaN}',
                      '{"counts": {"N": [[]]}}'),
    "points.jsonl": ('{"mix": "gd', '{"step": 146, "N": "1", "D": 2, "loss": 3}\n',
                     '{"step": NaN, "N": 1, "D": 2, "loss": 3}\n',
                     '{"step": 146, "N": 1, "D": 2, "loss": 3, "domains": {"a": {"loss": {}}}}\n'),
    "metrics.jsonl": ('{"step": 1', '{"step": 146, "seconds": "3"}\n', '{"step": NaN}\n',
                      '{"step": 146, "seconds": [[]]}\n'),
    "probes.jsonl": ('{"st\n', '{"step": "146", "probe": "recall", "length": 64}\n',
                     '{"step": NaN, "probe": "recall", "length": 64}\n',
                     '{"step": 146, "probe": {"a": []}, "length": 64}\n'),
    "samples.jsonl": ('{"st\n',
                      '{"step": "146", "sample": 0, "prompt": "a", "continuation": "b"}\n',
                      '{"step": NaN, "sample": 0, "prompt": "a", "continuation": "b"}\n',
                      '{"step": 146, "sample": 0, "prompt": {"a": []}, "continuation": "b"}\n'),
    "submission.json": ('{"launch', '{"launcher": "local", "job": 7}', '{"launcher": NaN}',
                        '{"launcher": "local", "job": "a", "processes": [[1]]}'),
}  # fmt: skip
EVIDENCE = ("spec.yaml", "status.json", "manifest.json", "points.jsonl")


def put(path, content):
    if path.is_file():
        path.unlink()
    if content is FOLDER:
        path.mkdir()
    else:
        path.write_bytes(content.encode() if isinstance(content, str) else content)


@pytest.fixture(scope="module", params=sorted(OF_A_FILE))
def damaged(request, tmp_path_factory):
    """(the folder of sweeps, the file, run by damage): the demo, each run damaged otherwise but for
    two."""
    runs = tmp_path_factory.mktemp("runs")
    shutil.copytree(DEMO, runs / "demo")
    names = sorted(path.name for path in (runs / "demo").iterdir())
    if request.param == "submission.json":
        for name in names:
            put(runs / "demo" / name / request.param, json.dumps(SUBMISSION))
    if row := {"probes.jsonl": PROBE, "samples.jsonl": SAMPLE}.get(request.param):
        for name in names:
            put(runs / "demo" / name / request.param, json.dumps(row) + "\n")
    damages = ANY_FILE | dict(
        zip(("cut", "types", "nan", "nested"), OF_A_FILE[request.param], strict=True)
    )
    if request.param in ("probes.jsonl", "samples.jsonl"):
        del damages["empty"]  # nothing was asked for, nothing is lost
    by_damage = dict(zip(damages, [n for n in names if n not in WHOLE], strict=False))
    for damage, content in damages.items():
        put(runs / "demo" / by_damage[damage] / request.param, content)
    return runs, request.param, by_damage


def said_of(text, name, file):
    """Whether some line says of the run what is wrong with the file."""
    return any(name in line and file in line for line in text.splitlines())


def test_status_says_so_of_the_run_and_shows_the_rest(damaged, capsys):
    runs, file, by_damage = damaged
    assert status.main(["demo", "--runs", str(runs)]) == 0
    out = capsys.readouterr().out
    assert status.main(["demo", "--runs", str(runs), "--json"]) == 0
    rows = {row["run"]: row for row in json.loads(capsys.readouterr().out)}
    assert len(rows) == 12
    states = {rows[name]["state"] for name in by_damage.values()}
    assert states == ({"damaged"} if file in EVIDENCE else {"done"})
    assert {rows[name]["state"] for name in WHOLE} == {"done"}
    if file in (*EVIDENCE, "submission.json"):
        for damage, name in by_damage.items():
            assert said_of(out, name, file), (damage, out)
            assert rows[name]["note"].count("\n") == 0


def test_plan_goes_on_and_counts_what_can_be_relied_on(damaged, capsys, monkeypatch):
    runs, file, by_damage = damaged
    arguments = ["-m", "experiment=demo", "size=50k", "sweep=demo", "plan=true", f"runs={runs}"]
    monkeypatch.setattr(sys, "argv", ["sweeps/run.py", *arguments])
    before = {p: p.read_bytes() for p in runs.rglob("*") if p.is_file()}
    assert sweep.main() == 0
    out = capsys.readouterr().out
    lost = sum("-50k-" in name for name in by_damage.values()) if file in EVIDENCE else 0
    assert f"4 runs, {4 - lost} done" in out
    for damage, name in by_damage.items() if lost else ():
        assert said_of(out, name, file), (damage, out)
    assert before == {p: p.read_bytes() for p in runs.rglob("*") if p.is_file()}


@pytest.mark.parametrize("command", ["report", "compare", "savings"])
def test_the_analysis_names_the_run_and_leaves_it_out(
    damaged, command, capsys, tmp_path, monkeypatch
):
    monkeypatch.setattr(
        "analysis.report.write.draw", lambda _found, _out: Gallery()
    )  # takes longest
    runs, file, by_damage = damaged
    given = {
        "report": ["sweep=demo", f"runs={runs}", "resamples=20", f"out={tmp_path}"],
        "compare": ["sweep=demo", f"runs={runs}", "resamples=20"],
        "savings": [str(runs / "demo"), "--baseline", "transformer", "--resamples", "20"],
    }
    # Two runs of one size are no law; all but submission.json and side files leave no more.
    code = 2 if command == "savings" and file in EVIDENCE else 0
    assert analysis([command, *given[command]]) == code
    captured = capsys.readouterr()
    said = captured.out + captured.err
    if command == "report":
        said = (tmp_path / "report.md").read_text()
    for damage, name in by_damage.items() if file != "submission.json" else ():
        assert said_of(said, name, file), (damage, said)


def test_a_run_folder_that_lost_its_spec_is_still_a_run_of_the_sweep(tmp_path, capsys):
    shutil.copytree(DEMO, tmp_path / "demo")
    (tmp_path / "demo" / WHOLE[0] / "spec.yaml").unlink()
    assert RunDirectory(tmp_path / "demo" / WHOLE[0]).problem() == "spec.yaml is missing"
    assert status.main(["demo", "--runs", str(tmp_path)]) == 0
    assert "11 done, 1 damaged" in capsys.readouterr().out


SUMS = '{"step": 146, "N": 1, "D": 2, "loss": 1.0, "domains": {"a": {%s, "loss": 1.0}}}\n'


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("points.jsonl", SUMS % '"nats": null, "tokens": 5'),
        ("points.jsonl", SUMS % '"nats": 5, "tokens": null'),
        ("spec.yaml", "seed: !!bool maybe\n"),
        ("spec.yaml", "seed: !!int ''\n"),
        ("spec.yaml", "seed: !!timestamp foo\n"),
        ("spec.yaml", "seed: 2001-99-99\n"),
    ],
)
def test_what_would_end_in_a_stack_trace_is_said_of_its_run_too(tmp_path, capsys, file, content):
    shutil.copytree(DEMO, tmp_path / "demo")
    put(tmp_path / "demo" / WHOLE[0] / file, content)
    assert status.main(["demo", "--runs", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "11 done, 1 damaged" in out
    assert said_of(out, WHOLE[0], file)
    assert analysis(["compare", "sweep=demo", f"runs={tmp_path}", "resamples=20"]) == 0
    captured = capsys.readouterr()
    assert said_of(captured.out + captured.err, WHOLE[0], file)
