"""Handing runs on: the code they were submitted with, all or nothing, nothing twice."""

import contextlib
import json
import os
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest

from ablations import provenance
from ablations.records import RunDirectory
from ablations.resolve import resolve
from models.errors import SettingError
from models.settings import to_dict
from sweeps import drive, follow, freeze, slurm, state, submit, view
from sweeps.cluster import parse
from tests.ablations.conftest import settings
from tests.sweeps.test_cluster import slurm as slurm_settings


def requests(sweep, *seeds, **changed):
    found = []
    for seed in seeds:
        spec = resolve(settings(**changed) | {"seed": seed, "sweep": sweep.name})
        found.append(submit.Request(RunDirectory(sweep / spec.run_name), to_dict(spec)))
    return found


@pytest.fixture
def controller(monkeypatch):
    """A Slurm in a dictionary: {(job, index): state}, and what was asked of each array; `refuse`
    names partitions."""

    controller = SimpleNamespace(jobs={}, arrays={}, refuse=set(), answers=True)

    def put(cluster, shape, job, folder, runs, code, environment, at_once, after):
        if shape.partition in controller.refuse:
            raise SettingError(f"Slurm refuses {shape.partition}.")
        for index, _ in enumerate(runs):
            controller.jobs[job, index] = slurm.Job(f"{job}_{index}", "PENDING", "None", "")
        controller.arrays[job] = (shape, len(runs), at_once, after)
        return job

    def ask(names):
        if not controller.answers:
            return None
        return {key: job for key, job in controller.jobs.items() if key[0] in names}

    def end(ids):
        for key, job in controller.jobs.items():
            if job.id in ids:
                controller.jobs[key] = slurm.Job(job.id, "CANCELLED", "None", "")

    monkeypatch.setattr(slurm, "submit", put)
    monkeypatch.setattr(slurm, "jobs", ask)

    def end_named(names):
        end([job.id for (name, _), job in controller.jobs.items() if name in names])

    monkeypatch.setattr(slurm, "cancel", end)
    monkeypatch.setattr(slurm, "cancel_named", end_named)
    monkeypatch.setattr(slurm, "elements", lambda: 1000)
    return controller


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A project of one package, under git."""
    root = tmp_path / "checkout"
    (root / "models" / "__pycache__").mkdir(parents=True)
    (root / "models" / "__init__.py").write_text("")
    (root / "models" / "answer.py").write_text("VALUE = 1\n")
    (root / "models" / "__pycache__" / "answer.pyc").write_bytes(b"x")
    (root / "models" / "table.bin").write_bytes(b"data")
    (root / ".gitignore").write_text("__pycache__/\nmodels/ignored.py\n")
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init"], ["add", "-A"], ["commit", "-m", "one"]):
        subprocess.run([*git, *command], cwd=root, check=True, capture_output=True)
    (root / "models" / "ignored.py").write_text("VALUE = 3\n")
    (root / "models" / "mine.py").write_text("VALUE = 4\n")
    monkeypatch.setattr(freeze, "project_root", lambda: root)
    return root


def test_a_copy_of_the_code_is_what_was_there_whatever_comes_after(checkout, tmp_path):
    frozen = freeze.freeze(tmp_path / "code")
    (checkout / "models" / "answer.py").write_text("VALUE = 2\n")
    code = "import models.answer as a, models.mine as m; print(a.VALUE, m.VALUE, a.__file__)"
    said = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(frozen)}, cwd=tmp_path,
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert said.split()[:2] == ["1", "4"]
    assert str(frozen) in said
    names = {str(p.relative_to(frozen / "models")) for p in (frozen / "models").rglob("*.*")}
    assert names >= {"__init__.py", "answer.py", "mine.py", "table.bin"}
    assert "ignored.py" not in names
    told, diff = provenance.code(frozen)
    assert told["dirty"]
    assert len(told["revision"]) == 40
    assert "+++ models/mine.py" in diff


def test_names_beyond_ascii_and_links_are_copied_whole(checkout, tmp_path):
    (checkout / "models" / "größe.py").write_text("VALUE = 5\n")
    (tmp_path / "elsewhere.bin").write_bytes(b"far")
    (checkout / "models" / "far.bin").symlink_to("../../elsewhere.bin")
    frozen = freeze.freeze(tmp_path / "code")
    assert (frozen / "models" / "größe.py").read_text() == "VALUE = 5\n"
    assert (frozen / "models" / "far.bin").read_bytes() == b"far"
    assert "+++ models/größe.py" in provenance.code(frozen)[1]


def test_equal_code_is_one_copy_and_changed_code_another(checkout, tmp_path):
    first = freeze.freeze(tmp_path / "code")
    assert freeze.freeze(tmp_path / "code") == first
    (checkout / "models" / "answer.py").write_text("VALUE = 2\n")
    second = freeze.freeze(tmp_path / "code")
    assert second != first
    assert sorted(p.name for p in (tmp_path / "code").iterdir()) == sorted(
        [first.name, second.name]
    )


def test_the_same_again_submits_nothing_and_what_ended_is_resumed(controller, checkout, tmp_path):
    cluster = parse(slurm_settings())
    asked = requests(tmp_path / "sweep", 0, 1)
    assert len(submit.to_slurm(asked, cluster, None, "c").begun) == 2
    again = submit.to_slurm(asked, cluster, None, "c")
    assert (len(again.begun), len(again.alive)) == (0, 2)
    assert len(controller.jobs) == 2
    # One is done, one is lost: only that one goes on, with its own records.
    recipe = asked[0].spec["recipe"]
    for milestone in recipe["milestones"]:
        D = milestone["step"] * recipe["batch_tokens"]
        point = {"step": milestone["step"], "N": 1, "D": D, "loss": 1.0}
        asked[0].run.append("points.jsonl", point)
    asked[0].run.write_status("done", step=5)
    (key,) = [k for k in controller.jobs if k[1] == 1]
    controller.jobs[key] = slurm.Job("x", "NODE_FAIL", "None", "")
    third = submit.to_slurm(asked, cluster, None, "c")
    assert [run.name for run in third.begun] == [asked[1].run.name]
    assert third.alive == []


def gone_from_the_queue(controller, run, *files):
    """Slurm knows a run's job no more, and left these files of it."""
    told = state.read_submission(run)
    del controller.jobs[told["job"], told["index"]]
    folder = state.job_folder(run.path.parent, told["job"])
    folder.mkdir(exist_ok=True)
    for file in files:
        (folder / file).write_text("")
    return state.look([run])[0]


def test_what_slurm_forgets_was_cancelled_only_where_it_never_began(controller, checkout, tmp_path):
    cluster = parse(slurm_settings())
    asked = requests(tmp_path / "sweep", 0, 1, 2)
    runs = [request.run for request in asked]
    submit.to_slurm(asked, cluster, None, "c")
    # The first began: its log is no word of the second. The third was never taken by Slurm.
    files = ("7_submission.sh", "7_0_0_log.out")
    assert gone_from_the_queue(controller, runs[0], *files).state == "lost"
    waited = gone_from_the_queue(controller, runs[1])
    assert (waited.state, waited.alive) == ("cancelled", False)
    assert view.log(state.look([runs[0]])[0]).name == "7_0_0_log.out"
    assert view.log(waited) == runs[1].log
    assert follow.settle(waited).state == "cancelled"
    assert "before it began" in runs[1].read_status()["error"]
    assert state.read_submission(runs[1])["cancelled"]
    other = requests(tmp_path / "other", 0)
    submit.to_slurm(other, cluster, None, "c")
    assert gone_from_the_queue(controller, other[0].run).state == "lost"
    # Asked for again, it goes on.
    assert runs[1] in submit.to_slurm(asked, cluster, None, "c").begun


def test_cancelling_stops_the_job_that_a_run_has_now(controller, checkout, tmp_path):
    cluster, asked = parse(slurm_settings()), requests(tmp_path / "sweep", 0)
    run = asked[0].run
    submit.to_slurm(asked, cluster, None, "c")
    seen, first = state.look([run]), state.read_submission(run)["job"]
    controller.jobs[first, 0] = slurm.Job("x", "NODE_FAIL", "None", "")
    submit.to_slurm(asked, cluster, None, "c")
    assert follow.cancel(seen) == []
    told = state.read_submission(run)
    assert told["cancelled"]
    assert told["job"] != first
    assert controller.jobs[told["job"], 0].state == "CANCELLED"


def test_runs_of_one_name_in_two_sweeps_are_two(controller, checkout, tmp_path):
    asked = [*requests(tmp_path / "a", 0), *requests(tmp_path / "b", 0)]
    assert asked[0].run.name == asked[1].run.name
    submit.to_slurm(asked, parse(slurm_settings()), None, "c")
    looks = state.look([request.run for request in asked])
    assert len({look.job.id for look in looks}) == 2
    follow.cancel(looks)
    assert {job.state for job in controller.jobs.values()} == {"CANCELLED"}


def test_a_run_finds_its_corpus_from_any_folder(controller, checkout, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (request,) = requests(tmp_path / "sweep", 0)
    request.spec["data"]["path"] = "corpora/mine"
    submit.to_slurm([request], parse(slurm_settings()), None, "c")
    assert request.run.read_spec()["data"]["path"] == str(tmp_path / "corpora" / "mine")


def test_two_drivers_at_once_submit_nothing_twice(controller, checkout, tmp_path):
    cluster, claims = parse(slurm_settings()), []
    asked = requests(tmp_path / "sweep", 0, 1, 2)
    threads = [
        threading.Thread(
            target=lambda: claims.append(submit.to_slurm(asked, cluster, None, "c"))
        )
        for _ in range(4)
    ]  # fmt: skip
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(len(claim.begun) for claim in claims) == [0, 0, 0, 3]
    assert len(controller.jobs) == 3


def test_a_refusal_of_the_second_array_takes_the_first_back(controller, checkout, tmp_path):
    other = {"400k": {"partition": "full"}}
    cluster = parse(slurm_settings(sizes=other))
    small = requests(tmp_path / "sweep", 0)
    large = requests(tmp_path / "sweep", 0, size__name="400k")
    controller.refuse = {"full"}
    with pytest.raises(SettingError, match="Slurm refuses full"):
        submit.to_slurm([*small, *large], cluster, None, "c")
    assert {job.state for job in controller.jobs.values()} == {"CANCELLED"}
    assert not (tmp_path / "sweep").exists()
    # Where a run was there before, its records come back.
    controller.refuse = set()
    submit.to_slurm(small, cluster, None, "c")
    follow.cancel(state.look([small[0].run]))
    before = {p.name: p.read_bytes() for p in small[0].run.path.iterdir()}
    controller.refuse = {"full"}
    with pytest.raises(SettingError):
        submit.to_slurm([*small, *large], cluster, None, "c")
    assert {p.name: p.read_bytes() for p in small[0].run.path.iterdir()} == before
    assert not large[0].run.path.exists()


@pytest.mark.parametrize("full_from", [1, 2, 3])
def test_records_are_whole_where_the_disk_is_full_from_the_nth_on(
    controller, checkout, tmp_path, monkeypatch, full_from
):
    """The old ones come back, though there is no room to write them."""
    cluster, (asked,) = parse(slurm_settings()), requests(tmp_path / "sweep", 0)
    submit.to_slurm([asked], cluster, None, "before")
    follow.cancel(state.look([asked.run]))
    before = {path.name: path.read_bytes() for path in asked.run.path.iterdir()}
    sync, written = os.fsync, []

    def full(handle):
        written.append(handle)
        if len(written) >= full_from:
            raise OSError(28, "No space left on device")
        sync(handle)

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(SettingError, match="cannot be written"):
            submit.to_slurm([asked], cluster, None, "after")
    assert {path.name: path.read_bytes() for path in asked.run.path.iterdir()} == before


def test_a_refusal_leaves_no_record_where_there_was_none(controller, checkout, tmp_path):
    (asked,) = requests(tmp_path / "sweep", 0)
    asked.run.write_spec(asked.spec)
    controller.refuse = {"gpu", None}
    with pytest.raises(SettingError):
        submit.to_slurm([asked], parse(slurm_settings()), None, "c")
    assert [path.name for path in asked.run.path.iterdir()] == ["spec.yaml"]


def test_where_slurm_does_not_answer_nothing_is_submitted(controller, checkout, tmp_path):
    cluster, asked = parse(slurm_settings()), requests(tmp_path / "sweep", 0)
    submit.to_slurm(asked, cluster, None, "c")
    controller.answers = False
    with pytest.raises(SettingError, match="does not answer"):
        submit.to_slurm(asked, cluster, None, "c")
    (look,) = state.look([asked[0].run])
    assert (look.state, look.alive) == ("queued", None)


def test_arrays_are_cut_to_what_the_site_takes_and_share_the_limit(
    controller, checkout, tmp_path, monkeypatch
):
    monkeypatch.setattr(slurm, "elements", lambda: 2)
    asked = requests(tmp_path / "sweep", *range(5))
    submit.to_slurm(asked, parse(slurm_settings()), 4, "c")
    assert sorted(index for _, index in controller.jobs) == [0, 0, 0, 1, 1]
    assert sorted(limit for *_, limit, _ in controller.arrays.values()) == [1, 1, 2]


def test_the_limit_holds_for_all_shapes_of_a_submission(controller, checkout, tmp_path):
    shapes = {"100k": {"cpus": 2}, "200k": {"cpus": 3}}
    cluster = parse(slurm_settings(sizes=shapes))
    asked = [
        request
        for size in ("50k", "100k", "200k")
        for request in requests(tmp_path / "sweep", 0, 1, size__name=size)
    ]
    submit.to_slurm(asked, cluster, 4, "c")
    assert sum(limit for *_, limit, _ in controller.arrays.values()) == 4
    assert {after for *_, after in controller.arrays.values()} == {None}
    follow.cancel(state.look([request.run for request in asked]))
    controller.arrays.clear()
    # Fewer at a time than shapes: the third follows one of the others.
    submit.to_slurm(asked, cluster, 2, "c")
    first, second, third = controller.arrays.items()
    assert [limit for _, (*_, limit, _) in (first, second, third)] == [1, 1, 1]
    assert (first[1][-1], second[1][-1]) == (None, None)
    assert third[1][-1] in (first[0], second[0])


def test_a_submission_that_is_stopped_midway_is_taken_back(controller, checkout, tmp_path):
    cluster = parse(slurm_settings(sizes={"100k": {"cpus": 2}}))
    asked = [
        *requests(tmp_path / "sweep", 0), *requests(tmp_path / "sweep", 0, size__name="100k")
    ]  # fmt: skip
    with pytest.raises(KeyboardInterrupt):
        submit.to_slurm(asked, cluster, None, "c", stopped=lambda: True)
    assert len(controller.jobs) == 1
    assert {job.state for job in controller.jobs.values()} == {"CANCELLED"}
    assert not (tmp_path / "sweep").exists()


def test_what_slurm_does_not_cancel_is_told(controller, checkout, tmp_path, monkeypatch):
    monkeypatch.setattr(slurm, "cancel", lambda _: "no controller")
    monkeypatch.setattr(slurm, "cancel_named", lambda _: "no controller")
    cluster = parse(slurm_settings())
    asked = requests(tmp_path / "sweep", 0, 1)
    submit.to_slurm(asked[:1], cluster, None, "c")
    (problem,) = follow.cancel(state.look([asked[0].run]))
    assert problem == "Slurm cancels nothing: no controller."
    # Not even where the driver was stopped does it say that nothing is submitted.
    monkeypatch.setattr(view, "listening", lambda asked: contextlib.nullcontext(asked.append(2)))
    with pytest.raises(SettingError, match=r"could not be taken back \(no controller\)") as error:
        drive.hand_to_slurm(asked[1:], cluster, None, "c", view.console())
    (job,) = {job for job, _ in controller.jobs} - {state.read_submission(asked[0].run)["job"]}
    assert job in str(error.value)


def test_a_copy_of_the_code_outlives_the_checkout(checkout, tmp_path):
    frozen = freeze.freeze(tmp_path / "code")
    freeze.keep_cache(frozen)
    assert (frozen / ".cache").is_symlink()  # shared as long as it is there
    checkout.rename(tmp_path / "elsewhere")
    freeze.keep_cache(frozen)
    (frozen / ".cache" / "corpora").mkdir()


def test_a_checkout_that_cannot_be_written_is_frozen_without_its_cache(checkout, tmp_path):
    (checkout / ".cache").write_text("in the way")
    frozen = freeze.freeze(tmp_path / "code")
    assert (frozen / "models" / "answer.py").exists()


def test_a_local_driver_claims_its_runs_as_long_as_it_lives(checkout, tmp_path):
    asked = requests(tmp_path / "sweep", 0, 1)
    with submit.to_this_machine(asked, {}, "c") as mine:
        assert len(mine.begun) == 2
        with submit.to_this_machine(asked, {}, "c") as other:
            assert (len(other.begun), len(other.alive)) == (0, 2)
        assert [look.state for look in state.look(mine.begun)] == ["queued", "queued"]
    assert [look.state for look in state.look(mine.begun)] == ["lost", "lost"]
    with submit.to_this_machine(asked, {}, "c") as later:
        assert len(later.begun) == 2


def test_no_secret_is_written_with_a_submission(controller, checkout, tmp_path, monkeypatch):
    monkeypatch.setenv("SOME_TOKEN", "hunter2hunter2")
    asked = requests(tmp_path / "sweep", 0)
    submit.to_slurm(asked, parse(slurm_settings()), None, "run.py x=hunter2hunter2")
    for file in asked[0].run.path.iterdir():
        assert "hunter2hunter2" not in file.read_text()
    assert json.loads((asked[0].run.path / "submission.json").read_text())["launcher"] == "slurm"


def test_a_lock_that_was_removed_meanwhile_is_no_lock(tmp_path):
    lock = tmp_path / "a" / "lock"
    order = []
    with state.held(lock):
        waiter = threading.Thread(target=lambda: [order.append(1) for _ in [enter(lock)]])
        waiter.start()
        lock.unlink()
    waiter.join(10)
    assert order == [1]


def enter(lock):
    with contextlib.ExitStack() as stack:
        stack.enter_context(state.held(lock))
        assert lock.exists()
