"""One run directory's worker: what is done stays done, and whose job it may queue again."""

import os
import signal
import socket
import threading

import numpy as np
import pytest

from ablations.data.prepared import write_prepared
from ablations.data.source import by_name
from ablations.records import RunDirectory
from ablations.resolve import resolve
from sweeps import slurm, worker
from tests.ablations.conftest import settings


@pytest.fixture
def run(tmp_path):
    """A run that is queued, and has a budget of two steps."""
    spec = resolve(settings(protocol__chinchilla=[0.0002]))
    run = RunDirectory(tmp_path / spec.run_name)
    run.write_spec(spec.record())
    run.write_status("queued")
    return run


@pytest.fixture(autouse=True)
def _handlers():
    """A worker keeps signals to itself: give them back."""
    before = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def files(run):
    return {p: p.read_bytes() for p in run.path.rglob("*") if p.is_file() and p.name != ".lock"}


def test_a_done_run_stays_done_whatever_is_started_on_it_again(run, monkeypatch):
    assert worker.main(str(run.path)) == 0
    before = files(run)
    assert worker.main(str(run.path)) == 0
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("WORLD_SIZE", "2")
        assert worker.main(str(run.path)) == 0
    assert files(run) == before
    # A start that fails takes nothing from it either.
    (run.path / "spec.yaml").write_text("{}")
    assert worker.main(str(run.path)) != 0
    assert run.read_status()["state"] == "done"


def test_a_rank_that_waits_for_another_can_be_stopped(run, monkeypatch):
    knocked = socket.create_server(("localhost", 0))

    def stop_once_it_waits():
        with knocked:
            knocked.accept()[0].close()
        os.kill(os.getpid(), signal.SIGINT)

    place = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost"}
    for name, value in {**place, "MASTER_PORT": str(knocked.getsockname()[1])}.items():
        monkeypatch.setenv(name, value)
    stopper = threading.Thread(target=stop_once_it_waits)
    stopper.start()
    assert worker.main(str(run.path)) == worker.RESUMABLE
    stopper.join()
    assert run.read_status()["state"] == "queued"  # the first rank writes the records


def test_the_first_rank_says_that_it_was_stopped_while_it_waited(run, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setenv("MASTER_PORT", "0")

    def wait_no_more(world, stop):
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop()

    monkeypatch.setattr("ablations.distributed._meet", wait_no_more)
    monkeypatch.setenv("SLURM_JOB_ID", "7")  # the user's own job: left to its user
    monkeypatch.setattr(worker, "_leave_to_slurm", None)
    run.write_status("failed", step=3, error="earlier")
    assert worker.main(str(run.path)) == worker.RESUMABLE
    assert run.read_status() == {"state": "preempted", "step": 3}


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (None, "scontrol is not found here"),
        ("#!/bin/sh\necho 'slurm error: Requested operation not allowed' >&2\nexit 1\n",
         "slurm error: Requested operation not allowed"),
        ("#!/bin/sh\nexec /bin/sleep 9\n", "scontrol said nothing for 0.3 s"),
    ],
)  # fmt: skip
def test_a_job_that_cannot_be_queued_again_says_so_and_ends(
    tmp_path, monkeypatch, capsys, lines, words
):
    if lines:
        (tmp_path / "scontrol").write_text(lines)
        (tmp_path / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setattr(slurm, "ASK_SECONDS", 0.3)
    worker._leave_to_slurm([signal.SIGUSR2], first=True)
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.endswith(f"it could not be: {words}; the same sweep command goes on")


@pytest.mark.parametrize("file", ["train.bin", "validation-v.bin"])
def test_a_damaged_corpus_is_recorded_with_the_variable_and_not_what_it_holds(
    file, tmp_path, monkeypatch, capfd
):
    """Training files are verified beside training, held-out text before it."""
    held = tmp_path / "hunter2\u200e"  # a mark that sentences show escaped
    monkeypatch.setenv("MINE", str(held))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    text = [np.random.default_rng(0).integers(1, 255, 3000).astype(np.uint8)] * 8
    held.mkdir()
    write_prepared(
        held / "c", name="c", vocab_size=256, separator=0, train=text, validation={"v": text}
    )
    spec = resolve(settings(
        protocol__chinchilla=[0.0002], data__name="tokens", data__path="${oc.env:MINE}/c",
    ))  # fmt: skip
    run = RunDirectory(tmp_path / spec.run_name)
    run.write_spec(spec.record())
    raw = bytearray((held / "c" / file).read_bytes())
    raw[100] ^= 1
    (held / "c" / file).write_bytes(raw)
    assert worker.main(str(run.path)) == 2
    assert f"data.path=${{oc.env:MINE}}/c has a {file} of" in run.read_status()["error"]
    out, err = capfd.readouterr()
    assert "hunter2" not in (run.path / "status.json").read_text() + out + err


def test_the_variables_of_a_path_are_named_wherever_a_sentence_has_what_they_hold(monkeypatch):
    path = "${oc.env:MINE}/c"
    for held, text, named in (
        ("/data/x", "cannot be read: /data/x/c/train.bin", f"cannot be read: {path}/train.bin"),
        ("/data/x", "source a=/data/x/b, /data/xy", "source a=${oc.env:MINE}/b, /data/xy"),
        ("a", "data.path=a/c has a train.bin", f"data.path={path} has a train.bin"),
        (".", "data.path=c is not. A", f"data.path={path} is not. A"),
    ):
        monkeypatch.setenv("MINE", held)
        assert by_name(text, path) == named
        assert by_name(text, held) == text
    monkeypatch.delenv("MINE")
    assert by_name("as it is", path) == "as it is"


def test_no_secret_of_the_environment_reaches_a_log_or_a_record(run, monkeypatch, capsys):
    secret = "f00dfeedf00dfeedf00dfeed"
    monkeypatch.setenv("WANDB_API_KEY", secret)

    def refused(*_arguments, **_more):
        raise RuntimeError(f"the server refused {secret}")

    monkeypatch.setattr("ablations.train.train", refused)
    assert worker.main(str(run.path)) == 1
    told = capsys.readouterr()
    assert "the server refused <WANDB_API_KEY>" in told.out
    assert run.read_status()["error"] == "RuntimeError: the server refused <WANDB_API_KEY>"
    assert secret not in told.out + told.err
