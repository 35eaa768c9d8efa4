"""wandb on both sides: points from offline runs and from answers of a server, reports sent."""

from __future__ import annotations

import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from ablations.records import SettingError
from ablations.tracking import Wandb
from analysis.__main__ import main
from analysis.study import tracking
from analysis.study.tracking import (
    Keys,
    LoggedRun,
    offline_runs,
    parse_run,
    points_of,
    server_runs,
)

SPEC = {
    "mix": {"name": "gdn3_attn1"}, "size": {"name": "50k"}, "seed": 3, "recipe": {"N": 50_112},
}  # fmt: skip


def written(folder: Path) -> LoggedRun:
    """The one run under a folder, once wandb's own process has written the end of it."""
    for _ in range(100):
        (run,) = offline_runs(folder)
        if run.state != "running":
            return run
        time.sleep(0.2)
    raise AssertionError(f"{run.name} was not written to its end")


@pytest.fixture
def logged(tmp_path: Path) -> Path:
    """A sweep folder with one run that was logged offline as training logs."""
    run = tmp_path / "runs" / "trial" / "gdn3_attn1-50k-s3-01234567"
    run.mkdir(parents=True)
    tracker = Wandb("offline", run, "trial", SPEC)
    for step in range(1, 401):
        tracker.log({"step": step, "tokens": 2048 * step, "loss": 5 - step / 200, "grad_norm": 0.3})
        if step in (200, 400):
            tracker.log({"step": step, "eval/loss": 4 - step / 200, "eval/bpb": 5 - step / 200})
    tracker.finish()
    written(tmp_path)
    return tmp_path / "runs"


def test_offline_runs_become_points(
    logged: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run,) = offline_runs(logged)
    assert (run.state, run.config["seed"]) == ("done", 3)
    assert run.config["mix"] == {"name": "gdn3_attn1"}
    out = tmp_path / "points.csv"
    assert main(["pull", str(logged), f"out={out}"]) == 0
    assert "2 points of 1 runs" in capsys.readouterr().out
    points = pd.read_csv(out)
    assert list(points["D"]) == [200 * 2048, 400 * 2048]
    assert list(points["loss"]) == [3, 2]
    assert list(points["bpb"]) == [4, 3]
    assert set(points["mix"]) == {"gdn3_attn1"}
    assert set(points["N"]) == {50_112}
    assert set(points["run"]) == {"gdn3_attn1-50k-s3-01234567"}


def test_a_sweep_is_a_group_of_its_mixes_charted_against_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a server would be sent, and that nothing which may hold a secret is in it."""
    from wandb.proto import wandb_internal_pb2 as messages

    secret = "f00dfeedf00dfeedf00dfeedf00dfeedf00dfeed"
    monkeypatch.setattr("sys.argv", ["worker", f"token={secret}"])
    monkeypatch.setenv("WANDB_API_KEY", secret)
    repository = tmp_path / "checkout"
    address = f"https://me:{secret}@example.org/x.git"
    repository.mkdir()
    for words in (["init", "-q"], ["remote", "add", "origin", address]):
        subprocess.run(["git", *words], cwd=repository, check=True)
    monkeypatch.chdir(repository)
    run = tmp_path / "gdn3_attn1-50k-s3-01234567"
    run.mkdir()
    tracker = Wandb("offline", run, "trial", SPEC)
    tracker.log({"step": 1, "tokens": 2048, "loss": 5.0})
    tracker.summarize({"at 1x/loss": 3.5})
    tracker.finish()
    written(run)
    sent: dict[str, list[Any]] = {}
    for data in tracking._records(next(run.rglob("*.wandb")).read_bytes()):
        record = messages.Record.FromString(data)  # type: ignore[attr-defined]
        kind = record.WhichOneof("record_type")
        sent.setdefault(kind, []).append(getattr(record, kind))
    begun = sent["run"][0]
    assert (begun.run_group, begun.job_type) == ("trial", "gdn3_attn1")
    assert {(one.glob_name, one.step_metric) for one in sent["metric"]} >= {("*", "tokens")}
    told = [tracking._items(one.update) for one in sent["summary"]]
    assert {"at 1x/loss": 3.5} in told
    files = [path for path in run.rglob("*") if path.is_file()]
    assert [path for path in files if secret.encode() in path.read_bytes()] == []


def test_a_file_cut_by_a_kill_gives_what_is_whole(logged: Path) -> None:
    (file,) = logged.rglob("*.wandb")
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2])
    (run,) = offline_runs(logged)
    assert run.state == "running"
    assert 10 < len(run.history) < 402


# Rows as a wandb server's run.scan_history() gives them.
RECORDED = [
    {"_step": 0, "tokens": 1e6, "train/loss": 3.2},
    {"_step": 1, "tokens": 2e6, "val": 3.0, "train/loss": 3.1},
    {"_step": 2, "tokens": 4e6, "val": "NaN", "train/loss": 2.9},
    {"_step": 3, "tokens": 4e6, "val": 2.8, "train/loss": None},
]


@dataclass
class ServerRun:
    name: str
    state: str
    config: dict[str, Any]
    rows: list[dict[str, Any]] = field(default_factory=lambda: RECORDED)

    def scan_history(self) -> list[dict[str, Any]]:
        return self.rows


@dataclass
class Server:
    answer: list[ServerRun]

    def runs(self, project: str) -> list[ServerRun]:
        assert project == "lab/ladder"
        return self.answer


KEYS = Keys(mix="arch", size="width", N="model.params", loss="val")


def test_runs_of_a_server_become_points_by_the_names_that_they_use() -> None:
    config = {"arch": "mamba", "seed": 1, "width": 64, "model": {"params": 1e6}}
    server = Server([ServerRun("one", "finished", config), ServerRun("two", "crashed", {}, [])])
    points, empty = points_of(server_runs("lab/ladder", server), KEYS)
    assert list(points["loss"]) == [3.0, 2.8]
    assert list(points["D"]) == [2e6, 4e6]
    assert points[["mix", "size", "seed", "N", "state"]].iloc[0].tolist() == [
        "mamba", 64, 1, 1e6, "done",
    ]  # fmt: skip
    assert empty == ["two"]


def test_what_a_run_does_not_carry_is_named() -> None:
    server = Server([ServerRun("one", "finished", {"arch": "mamba"})])
    with pytest.raises(SettingError, match=r"no N \(N=model.params\); name where"):
        points_of(server_runs("lab/ladder", server), KEYS)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nowhere"], "nowhere is neither a folder of offline runs nor entity/project"),
        (["FOLDER"], "holds no offline runs"),
        (["FOLDER", "colour=red"], "colour is not a setting; valid: D, N, bpb, loss"),
    ],
)
def test_what_cannot_be_pulled_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], sentence: str
) -> None:
    given = [str(tmp_path) if word == "FOLDER" else word for word in arguments]
    assert main(["pull", *given]) == 2
    printed = capsys.readouterr()
    assert sentence in printed.err
    assert printed.err.count("\n") == 1


def test_a_server_that_refuses_is_one_sentence() -> None:
    class Refusing:
        def runs(self, _project: str) -> list[ServerRun]:
            raise ValueError("Could not find project ladder\nand more")

    with pytest.raises(SettingError, match=r"cannot be read from wandb \(Could not find project"):
        list(server_runs("lab/ladder", Refusing()))


def test_a_report_is_attached_to_a_run_with_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    (tmp_path / "figures").mkdir()
    (tmp_path / "report.html").write_text("<!doctype html><p>answer</p>")
    from PIL import Image

    Image.new("RGB", (4, 4)).save(tmp_path / "figures" / "loss.png")
    told = tracking.attach(parse_run("lab/ladder/abc123"), tmp_path)
    assert told.startswith("attached to wandb run ladder/abc123 (kept for")
    shown = written(tmp_path / "wandb").history[-1]
    assert shown["report/_type"] == "html-file"
    assert shown["figures/loss/_type"] == "image-file"
    page = next((tmp_path / "wandb").rglob("report*.html"))
    assert page.read_text() == "<!doctype html><p>answer</p>"


def test_a_damaged_offline_run_is_one_sentence(tmp_path: Path) -> None:
    import struct

    from wandb.proto import wandb_internal_pb2 as messages

    record = messages.Record()
    record.history.item.add(key="loss", value_json="{")
    for data in (b"\xff" * 9, b"\x12\x7f", record.SerializeToString()):
        header = struct.pack("<IHB", 0, len(data), tracking.WHOLE)
        (tmp_path / "run-x.wandb").write_bytes(b":W&B\0\0\0" + header + data)
        with pytest.raises(SettingError, match=r"run-x\.wandb is no offline run of wandb"):
            offline_runs(tmp_path)
