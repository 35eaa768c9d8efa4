"""Several devices: the same run as on one, by two gloo ranks on the CPU."""

import contextlib
import os
import socket
import subprocess
import sys
import threading
from datetime import timedelta

import pytest
import torch.distributed as dist

from ablations import distributed
from ablations.data.source import decoder, open_corpus
from ablations.distributed import World, _first_host, _meet, choose_parallel, environment
from ablations.evaluate.samples import Samples
from ablations.records import project_root
from ablations.train import train
from models.checkpoint_files import read_model
from models.errors import SettingError
from models.language_model import LanguageModel

from .conftest import settings


def ranks(words, n=2):
    """`python -m words` by n processes that know of each other as torchrun's would."""
    with socket.socket() as found:
        found.bind(("localhost", 0))
        port = found.getsockname()[1]
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", *words],
            env={
                **os.environ, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(n),
                "MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1",
            },
            cwd=project_root(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(n)
    ]  # fmt: skip
    said = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * n, said


# 50k: 20 steps of 4 sequences; points at 7, 14 and 20.
BUDGET = {
    "protocol__chinchilla": [0.0018, 0.0036, 0.00515],
    # Five examples: some ranks have one, or none, and compute another for nothing.
    "evaluation__probes": ["copy", "repeat", "positions"], "evaluation__examples": 5,
    "evaluation__lengths": [64], "evaluation__max_share": 100.0,
    "evaluation__samples": 2, "evaluation__sample_tokens": 3,
}  # fmt: skip


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    from ablations.records import RunDirectory
    from ablations.resolve import resolve

    spec = resolve(settings("gdn3_attn1", **BUDGET))
    run = RunDirectory(tmp_path_factory.mktemp("alone") / "run")
    run.write_spec(spec.record())
    assert train(run, spec, stop=lambda: False, say=lambda _: None) == "done"
    return run


@pytest.mark.slow
@pytest.mark.parametrize(("how", "n"), [("ddp", 2), ("fsdp", 3)])
def test_ranks_give_the_losses_of_one(make_run, alone, how, n):
    """Also three, of which one has two of the four sequences of a batch and the others one."""
    run, spec = make_run(
        "gdn3_attn1", name=how, resources__parallel=how, resources__micro_batch_tokens=64, **BUDGET
    )
    assert spec.recipe.steps == 20
    ranks(["sweeps.worker", str(run.path)], n)
    ours, theirs = (list(r.rows("metrics.jsonl")) for r in (run, alone))
    assert len(ours) == len(theirs) == 20
    for a, b in zip(ours, theirs, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-4)
    for a, b in zip(run.rows("points.jsonl"), alone.rows("points.jsonl"), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
        assert a["data_hash"] == b["data_hash"]
        for domain, sums in a["domains"].items():
            for partition, classes in sums["classes"].items():
                assert sum(own[0] for own in classes.values()) == pytest.approx(sums["nats"])
                for name, own in b["domains"][domain]["classes"][partition].items():
                    assert classes[name] == pytest.approx(own, rel=1e-4)
    ours, theirs = (list(r.rows("probes.jsonl")) for r in (run, alone))
    assert len(ours) == len(theirs) == 3 * (2 + 4)
    for a, b in zip(ours, theirs, strict=True):
        assert (a["probe"], a.get("digest")) == (b["probe"], b.get("digest"))
        for name in ("nats", "nats_se", "first_nats") if "nats" in a else ("loss", "bpb"):
            assert a[name] == pytest.approx(b[name], rel=1e-4)
    # One process with the weights that the ranks kept continues as they did together.
    samples = list(run.rows("samples.jsonl"))
    assert len(samples) == 3 * 2
    model = LanguageModel(spec.model)
    model.load_state_dict(read_model(run.checkpoints, spec.recipe.steps))
    corpus = open_corpus("embedded", None, project_root() / ".cache" / "corpora")
    decode = decoder("embedded", None)
    expected = Samples(spec.evaluation, corpus, decode, contextlib.nullcontext).rows(model)
    assert samples[-2:] == [{"step": spec.recipe.steps, **row} for row in expected]
    assert run.read_manifest()["device"]["count"] == n
    assert (run.read_manifest()["micro_batch_rows"], alone.read_manifest()["micro_batch_rows"]) == (
        1, 4,
    )  # fmt: skip
    assert run.read_manifest()["parallel"] == how
    if (how, n) == ("fsdp", 2):
        before = (run.path / "points.jsonl").read_bytes()
        (run.path / "points.jsonl").write_bytes(b"".join(before.splitlines(keepends=True)[1:]))
        ranks(["sweeps.worker", str(run.path)], n)
        assert (run.path / "points.jsonl").read_bytes() == before, "made again by both ranks"


@pytest.mark.slow
def test_what_is_sharded_computes_what_one_device_computes():
    """bf16 gathers beside float32's, and Muon; by FSDP and HSDP, with shards of unequal size."""
    ranks(["tests.ablations.sharded_rank"], 4)


def test_who_a_process_is_by_torchrun_and_by_slurm(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    assert environment() == World()
    # A batch script is told the tasks of its job and is none of them.
    job = {"PROCID": 0, "NTASKS": 8, "LOCALID": 0, "NNODES": 2}
    for name, value in job.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    assert environment() == World()
    step = {"PROCID": 5, "STEP_NUM_TASKS": 8, "LOCALID": 1, "STEP_NUM_NODES": 2}
    for name, value in step.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    assert environment() == World(5, 8, 1, 4)
    torchrun = {"RANK": 3, "WORLD_SIZE": 4, "LOCAL_RANK": 1, "LOCAL_WORLD_SIZE": 2}
    for name, value in torchrun.items():
        monkeypatch.setenv(name, str(value))
    assert environment() == World(3, 4, 1, 2)
    for rank, words in (("4", "rank 4 is none of 4 ranks"), ("", "RANK='' must be a whole")):
        monkeypatch.setenv("RANK", rank)
        with pytest.raises(SettingError, match=words):
            environment()


@pytest.fixture
def port(monkeypatch):
    """A free port that the ranks of this process meet at."""
    with socket.socket() as found:
        found.bind(("localhost", 0))
        number = found.getsockname()[1]
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setenv("MASTER_PORT", str(number))
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    return number


def meet(size, stops=(), come=None):
    """What each rank of `size` that comes is told, `stops` being the ranks that are stopped."""
    told = {}

    def rank(number):
        told[number] = _meet(World(number, size), lambda: number in stops)

    threads = [threading.Thread(target=rank, args=(n,)) for n in come or range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    return told


def test_ranks_that_all_come_meet_also_at_the_store_that_torchrun_keeps(port, monkeypatch):
    told = meet(3)
    told[0].set("word", "heard")
    assert told[2].get("word") == b"heard"
    del told
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    agent = dist.TCPStore("localhost", port, None, True, wait_for_workers=False)
    told = meet(2)
    told[1].set("word", "heard")
    assert told[0].get("word") == b"heard"
    assert agent.num_keys() > 0


@pytest.mark.parametrize(("stops", "come"), [((1,), (0, 1)), ((0,), (0, 1)), ((1,), (1,))])
def test_a_stop_of_one_rank_before_all_have_come_ends_the_wait_of_all(port, stops, come):
    assert meet(3, stops, come) == dict.fromkeys(come)


def test_ranks_that_never_come_are_named(port, monkeypatch):
    monkeypatch.setattr(distributed, "PATIENCE", timedelta(seconds=0.5))
    for rank in (0, 1):
        with pytest.raises(SettingError, match=rf"rank {rank} waited .*:{port} for .* the 2 that"):
            _meet(World(rank, 2), lambda: False)
    with socket.create_server(("", port)), pytest.raises(SettingError, match="cannot be listened"):
        _meet(World(0, 2), lambda: False)


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("gpu[003-006,009],login1", "gpu003"), ("gpu[12,15]", "gpu12"), ("node1,node2", "node1")],
)
def test_the_first_host_of_a_slurm_node_list(nodes, first):
    assert _first_host(nodes) == first


@pytest.mark.parametrize("n", [4, 10, 12, 91])
def test_ranks_share_a_batch_evenly_and_none_is_left_without(n):
    rows = [list(range(n))[World(rank, 4).share(n)] for rank in range(4)]
    assert [row for share in rows for row in share] == list(range(n))
    assert max(map(len, rows)) == World(0, 4).largest_share(n) <= min(map(len, rows)) + 1
    with pytest.raises(SettingError, match="batch of 3 sequences leaves some of 4 devices without"):
        World(0, 4).share(3)


def test_how_a_model_is_laid_over_devices():
    two, nodes = World(0, 2, 0, 2), World(0, 16, 0, 8)
    assert choose_parallel("auto", 10**9, World(), None) is None
    assert choose_parallel("auto", 10**9, two, 80 * 2**30) == "ddp"
    assert choose_parallel("auto", 10**10, two, 80 * 2**30) == "fsdp"
    assert choose_parallel("hsdp", 10**9, two, None) == "fsdp"
    assert choose_parallel("hsdp", 10**9, nodes, None) == "hsdp"
