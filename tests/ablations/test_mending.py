"""A run whose records were lost or damaged, given to a worker again: what it mends, and what it
says it cannot."""

import json
import shutil
import signal

import pytest

from ablations import tracking
from ablations.records import RunDirectory
from ablations.resolve import resolve
from ablations.train import train
from models.settings import to_dict
from sweeps import state, worker

from .conftest import settings

FILES = ("points.jsonl", "metrics.jsonl", "manifest.json", "status.json")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    spec = resolve(settings("transformer"))
    run = RunDirectory(tmp_path_factory.mktemp("sweep") / spec.run_name)
    run.write_spec(to_dict(spec))
    assert train(run, spec, stop=lambda: False, say=lambda _: None) == "done"
    assert run.problem() == ""
    return run, spec


@pytest.fixture
def run(finished, tmp_path):
    """A copy of a finished run, in another sweep."""
    return RunDirectory(shutil.copytree(finished[0].path, tmp_path / finished[0].name))


@pytest.fixture(autouse=True)
def signals():
    """A worker listens to signals, in its own process."""
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


def again(run, spec):
    """What a sweep does with a run that is not done."""
    run.write_spec(to_dict(spec))
    return worker.main(str(run.path))


def lines(run, file):
    return (run.path / file).read_text().splitlines(keepends=True)


def without_time(rows):
    return [{k: v for k, v in row.items() if k not in ("seconds", "tokens_per_second")}
            for row in rows]  # fmt: skip


EDITS = {
    "lost": lambda _: None,
    "empty": lambda _: [],
    "first lost": lambda rows: rows[1:],
    "middle lost": lambda rows: [rows[0], *rows[2:]],
    "doubled": lambda rows: [*rows, *rows],
    "doubled, with another loss": lambda rows: [*rows, rows[1].replace('"loss": ', '"loss": 1')],
    "cut": lambda rows: [*rows[:-1], rows[-1][:50]],
    "of another seed": lambda rows: [row.replace('"seed": 0', '"seed": 1') for row in rows],
    "of another step": lambda rows: [*rows[:-1], rows[-1].replace('"step": ', '"step": 1')],
    "text for numbers": lambda rows: [rows[0].replace('"N": ', '"N": "x", "M": '), *rows[1:]],
}


@pytest.mark.parametrize("edit", EDITS)
def test_points_that_were_lost_or_edited_are_made_again_to_the_bit(finished, run, edit):
    before = (run.path / "points.jsonl").read_bytes()
    assert len(run.points()) == 3
    edited = EDITS[edit](lines(run, "points.jsonl"))
    (run.path / "points.jsonl").unlink()
    if edited is not None:
        (run.path / "points.jsonl").write_text("".join(edited))
    if edit != "doubled":  # a row that stands there twice is one point
        assert run.state == "damaged"
        assert "points.jsonl" in state.look([run])[0].note
    assert again(run, finished[1]) == 0
    assert (run.path / "points.jsonl").read_bytes() == before
    assert (run.problem(), run.state) == ("", "done")


def test_a_stopped_run_that_lost_its_points_ends_with_all_of_them(finished, tmp_path):
    whole, spec = finished
    run = RunDirectory(tmp_path / whole.name)
    run.write_spec(to_dict(spec))
    second = spec.recipe.milestones[1].step
    stop = lambda: len(list(run.rows("metrics.jsonl"))) > second  # noqa: E731
    assert train(run, spec, stop=stop, say=lambda _: None) == "preempted"
    (run.path / "points.jsonl").unlink()
    assert again(run, spec) == 0
    for file in ("points.jsonl", "metrics.jsonl"):
        assert without_time(run.rows(file)) == without_time(whole.rows(file))


def test_what_no_checkpoint_can_give_back_is_named_and_the_run_is_not_done(finished, run, capsys):
    spec = finished[1]
    step = spec.recipe.milestones[0].step
    shutil.rmtree(run.checkpoints / f"step-{step:08d}")
    (run.path / "points.jsonl").write_text("".join(lines(run, "points.jsonl")[1:]))
    assert again(run, spec) == 1
    (look,) = state.look([run])
    assert look.state == "failed"
    assert look.note.startswith(f"points.jsonl lacks the point of step {step}, and no whole")
    assert len(run.points()) == 2
    # As the sentence says: without its checkpoints it trains from its beginning.
    shutil.rmtree(run.checkpoints)
    assert again(run, spec) == 0
    assert (
        run.path.joinpath("points.jsonl").read_bytes()
        == (finished[0].path / "points.jsonl").read_bytes()
    )


DAMAGES = {"empty": b"", "binary": bytes(range(256)), "null": b"null\n", "folder": None}
DAMAGED = [
    *((file, "folder") for file in (*FILES, "spec.yaml", "probes.jsonl", ".lock")),
    ("points.jsonl", "binary"), ("metrics.jsonl", "empty"), ("manifest.json", "null"),
    ("status.json", "binary"), ("spec.yaml", "empty"), ("probes.jsonl", "binary"),
]  # fmt: skip


@pytest.mark.parametrize(("file", "damage"), DAMAGED)
def test_a_damaged_file_is_written_anew_and_a_folder_in_its_place_kept(finished, run, file, damage):
    path = run.path / file
    path.unlink(missing_ok=True)
    if damage == "folder":
        path.mkdir()
        (path / "mine.txt").write_text("keep")
    else:
        path.write_bytes(DAMAGES[damage])
    assert again(run, finished[1]) == 0
    assert (run.problem(), run.state) == ("", "done")
    assert (run.path / "points.jsonl").read_bytes() == (
        finished[0].path / "points.jsonl"
    ).read_bytes()
    if file == "metrics.jsonl":
        steps = [milestone.step for milestone in finished[1].recipe.milestones]
        assert [row["step"] for row in run.rows(file)] == steps
        seconds = {row["step"]: row["seconds"] for row in finished[0].rows(file)}
        assert [row["seconds"] for row in run.rows(file)] == [seconds[step] for step in steps]
    if damage == "folder" and file != "probes.jsonl":  # which nothing wrote
        assert (run.path / f"{file}.aside" / "mine.txt").read_text() == "keep"


def test_a_manifest_that_was_lost_is_not_replaced_as_if_nothing_had_been(finished, run):
    (run.path / "manifest.json").write_text("{")
    assert again(run, finished[1]) == 0
    assert run.read_manifest()["earlier"] == [{"revision": "not recorded"}]


def test_a_done_run_keeps_the_manifest_of_its_training(finished, run):
    (run.path / "status.json").unlink()
    before = (run.path / "manifest.json").read_bytes()
    assert again(run, finished[1]) == 0
    assert (run.path / "manifest.json").read_bytes() == before


@pytest.mark.parametrize("kept", [(), (0,)])
@pytest.mark.parametrize("damaged", ["status.json", "manifest.json"])
def test_a_done_run_without_its_last_checkpoint_is_not_trained_again(finished, run, kept, damaged):
    spec = finished[1]
    early = {f"step-{spec.recipe.milestones[i].step:08d}" for i in kept}
    for folder in run.checkpoints.iterdir():
        if folder.name not in early:
            shutil.rmtree(folder)
    measured = run.read_status()
    (run.path / damaged).write_text("")
    before = lines(run, "metrics.jsonl"), lines(run, "points.jsonl")
    assert again(run, spec) == 0
    assert (lines(run, "metrics.jsonl"), lines(run, "points.jsonl")) == before
    assert run.state == "done"
    for key in ("step", "steps", "tokens", "seconds"):
        assert run.read_status()[key] == measured[key] > 0


def test_a_run_killed_before_its_last_checkpoint_was_whole_makes_it(finished, run):
    """Every point is recorded then, and the status is of a step before."""
    spec = finished[1]
    last = run.checkpoints / f"step-{spec.recipe.steps:08d}"
    shutil.rmtree(last)
    status = {**run.read_status(), "state": "running", "step": spec.recipe.steps - 1}
    run.write_status(**status)
    assert again(run, spec) == 0
    assert last.is_dir()
    assert lines(run, "points.jsonl") == lines(finished[0], "points.jsonl")


def test_a_point_made_again_takes_no_probe_with_it_that_is_not_measured_again(finished, run):
    spec = finished[1]
    common = {"probe": "copy", "version": 1, "length": 64, "accuracy": 0.5}
    probed = [{"step": milestone.step, **common} for milestone in spec.recipe.milestones]
    run.write_rows("probes.jsonl", probed)
    (run.path / "points.jsonl").write_text("".join(lines(run, "points.jsonl")[1:]))
    assert again(run, spec) == 0
    assert list(run.rows("probes.jsonl")) == probed
    assert len(run.points()) == 3


def test_a_row_of_another_run_keeps_no_row_of_this_one_from_the_tracker(
    finished, tmp_path, monkeypatch
):
    told = []

    class Heard(tracking.Silent):
        def log(self, row):
            told.append(row)

    monkeypatch.setattr(tracking, "start", lambda *_: Heard())
    whole, spec = finished
    run = RunDirectory(tmp_path / whole.name)
    run.write_spec(to_dict(spec))
    first = spec.recipe.milestones[0].step
    stop = lambda: len(list(run.rows("metrics.jsonl"))) > first  # noqa: E731
    assert train(run, spec, stop=stop, say=lambda _: None) == "preempted"
    for row in list(whole.rows("points.jsonl"))[1:]:
        run.append("points.jsonl", {**row, "seed": 1})
    assert train(run, spec, stop=lambda: False, say=lambda _: None) == "done"
    steps = [row["step"] for row in told if "eval/loss" in row]
    assert steps == [milestone.step for milestone in spec.recipe.milestones]


@pytest.mark.parametrize("where", ["checkpoints", "step", "half"])
def test_a_file_in_a_checkpoints_place_takes_no_run_down(finished, run, where, capsys):
    spec = finished[1]
    last = run.checkpoints / f"step-{spec.recipe.steps:08d}"
    if where == "half":
        path = run.checkpoints / "step-00000001.tmp"
    else:
        path = run.checkpoints if where == "checkpoints" else last
        shutil.rmtree(path)
    path.write_text("none of yours")
    (run.path / "status.json").unlink()
    (run.path / "points.jsonl").write_text("".join(lines(run, "points.jsonl")[:-1]))
    assert again(run, spec) == 0
    assert (run.path / "points.jsonl").read_bytes() == (
        finished[0].path / "points.jsonl"
    ).read_bytes()
    assert run.state == "done"
    assert json.loads((last / "index.json").read_text())["values"]["progress"]["step"]
