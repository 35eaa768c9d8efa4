"""Training: resume to the bit, equal data for every mix, and what the records say."""

import dataclasses
import json
import math
import sys
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ablations import tracking
from ablations import train as training
from ablations.data.order import Batches
from ablations.data.prepared import write_prepared
from ablations.data.source import open_corpus
from ablations.distributed import World
from ablations.evaluate.loss import HeldOut, evaluate
from ablations.hardware import Hardware, choose_operators
from ablations.optim import build_optimizers
from ablations.provenance import cpu_name
from ablations.records import project_root
from ablations.resolve import resolve
from ablations.spec import load
from ablations.train import TrainingFailed, train
from models import devices
from models.checkpoint_files import read_model
from models.documents import Documents
from models.errors import SettingError
from models.language_model import LanguageModel
from models.mixers import MIXERS

from .conftest import settings

RUNNING_SUM = "tests.models.test_doctor:RUNNING_SUM"
MIXES = ("transformer", "gdn", "mamba2", "gdn3_attn1", "mamba2x3_attn1")


def finish(run, spec, stop_at=()):
    """Train to the end, stopped and started again after each step of `stop_at`."""
    for step in stop_at:
        state = train(run, spec, stop=lambda s=step: len(rows(run)) >= s, say=lambda _: None)
        assert state == "preempted"
    assert train(run, spec, stop=lambda: False, say=lambda _: None) == "done"


def test_training_gives_back_the_arithmetic_it_found(make_run):
    run, spec = make_run("transformer")
    threads = torch.get_num_threads()
    train(run, spec, stop=lambda: True, say=lambda _: None)
    assert sys.float_info.min / 2 > 0.0, "denormals are still flushed to zero after training"
    assert torch.get_num_threads() == threads


def rows(run):
    return list(run.rows("metrics.jsonl"))


def final(run):
    """Checksums of what the newest checkpoint holds of weights and optimizer."""
    newest = max(run.checkpoints.glob("step-????????"))
    sums = json.loads((newest / "checksums.json").read_text())
    return {file: digest for file, digest in sums.items() if file.startswith("shard")}


def without_time(row):
    return {k: v for k, v in row.items() if k not in ("seconds", "tokens_per_second")}


@pytest.mark.slow
@pytest.mark.parametrize("mix", MIXES)
def test_a_stopped_run_ends_with_the_bits_of_one_never_stopped(make_run, mix):
    whole, spec = make_run(mix, name="whole")
    finish(whole, spec)
    cut, _ = make_run(mix, name="cut")
    finish(cut, spec, stop_at=(1, 4, 5, spec.recipe.milestones[0].step + 1))
    assert final(whole) == final(cut) != {}
    assert (whole.path / "points.jsonl").read_bytes() == (cut.path / "points.jsonl").read_bytes()
    assert list(map(without_time, rows(whole))) == list(map(without_time, rows(cut)))


def test_a_torn_checkpoint_is_passed_over_for_the_one_before(make_run):
    whole, spec = make_run(name="whole")
    finish(whole, spec)
    torn, _ = make_run(name="torn")
    stop = lambda: len(rows(torn)) >= spec.recipe.steps - 1  # noqa: E731
    assert train(torn, spec, stop=stop, say=lambda _: None) == "preempted"
    shard = max(torn.checkpoints.glob("step-????????/shard-*"))
    shard.write_bytes(shard.read_bytes()[:1000])
    said = []
    train(torn, spec, stop=lambda: False, say=said.append)
    assert any("cannot be read" in line for line in said)
    assert (whole.path / "points.jsonl").read_bytes() == (torn.path / "points.jsonl").read_bytes()


def test_every_mix_of_a_size_and_seed_sees_the_same_batches(make_run):
    hashes = {}
    for mix in ("transformer", "gdn3_attn1", "mamba2x3_attn1"):
        run, spec = make_run(mix)
        finish(run, spec)
        hashes[mix] = [(p["step"], p["D"], p["data_hash"]) for p in run.rows("points.jsonl")]
        assert len(hashes[mix]) == 3
    assert len({tuple(h) for h in hashes.values()}) == 1
    run, spec = make_run("transformer", seed=1)
    finish(run, spec)
    assert [p["data_hash"] for p in run.rows("points.jsonl")] != [
        h[2] for h in hashes["gdn3_attn1"]
    ]


def test_points_hold_what_the_contract_says(make_run):
    run, spec = make_run("gdn3_attn1")
    finish(run, spec)
    counts = spec.counts
    for point, milestone in zip(run.rows("points.jsonl"), spec.recipe.milestones, strict=True):
        assert point["step"] == milestone.step
        assert point["D"] == milestone.step * 256
        assert point["C"] == pytest.approx(point["D"] * counts.flops_per_token)
        assert (point["N"], point["N_total"]) == (counts.N, counts.N_total)
        domains = point["domains"]
        assert set(domains) == {"prose", "code", "literary", "definitions"}
        for sums in domains.values():
            assert sums["tokens"] == 2048
            assert sums["loss"] == pytest.approx(sums["nats"] / sums["tokens"])
            assert sums["bpb"] == pytest.approx(sums["nats"] / math.log(2) / sums["bytes"])
        assert point["loss"] == pytest.approx(np.mean([d["loss"] for d in domains.values()]))
        assert any(row["step"] == point["step"] for row in rows(run))
    manifest = run.read_manifest()
    assert manifest["counts"]["N"] == counts.N
    assert manifest["versions"]["torch"] == torch.__version__
    assert load(run.read_spec()) == spec


def test_micro_batches_give_the_gradient_of_the_whole_batch(make_run):
    results = []
    for micro in (64, 256):
        run, spec = make_run(name=f"micro{micro}", resources__micro_batch_tokens=micro)
        finish(run, spec)
        results.append([row["loss"] for row in rows(run)])
    assert results[0] == pytest.approx(results[1], rel=1e-5)


def test_training_learns(make_run):
    run, spec = make_run(
        protocol__chinchilla=[0.05], protocol__batch_tokens=1024, data__eval_tokens=4096
    )
    finish(run, spec)
    (point,) = run.rows("points.jsonl")
    assert point["loss"] < 0.8 * math.log(256)


def test_evaluation_equals_the_definition():
    spec = resolve(settings("gdn3_attn1"))
    model = LanguageModel(spec.model)
    model.initialize(0)
    windows = np.random.default_rng(0).integers(0, 256, (5, 65))
    import contextlib

    result = evaluate(
        model, {"x": HeldOut(windows, 300)}, device=torch.device("cpu"),
        autocast=contextlib.nullcontext, batch_tokens=128,
    )  # fmt: skip
    tokens = torch.from_numpy(windows)
    log_p = model(tokens[:, :-1]).log_softmax(-1)
    nats = -log_p.gather(-1, tokens[:, 1:, None]).sum().item()
    assert result["domains"]["x"]["nats"] == pytest.approx(nats, rel=1e-5)
    assert result["bpb"] == pytest.approx(nats / math.log(2) / 300, rel=1e-5)


def test_batches_are_those_of_the_order_and_not_of_the_run():
    spec = resolve(settings())
    corpus = open_corpus("embedded", None, project_root() / ".cache" / "corpora")
    one = Batches(corpus.train, corpus.fingerprint, 64, 4, spec.seed)
    two = Batches(corpus.train, corpus.fingerprint, 64, 2, spec.seed)
    both = np.concatenate([two.batch(6), two.batch(7)])
    assert np.array_equal(one.batch(3), both)


def test_weight_decay_spares_the_embedding_and_the_recurrences_own():
    spec = resolve(settings("mamba2x3_attn1"))
    model = LanguageModel(spec.model)
    names = {id(p): n for n, p in model.named_parameters()}
    (adamw,) = build_optimizers(model, spec.recipe)
    decayed, spared = adamw.param_groups
    assert decayed["weight_decay"] == 0.1
    assert spared["weight_decay"] == 0.0
    spared_names = {names[id(p)] for p in spared["params"]}
    assert "embedding.weight" in spared_names
    assert {n.rsplit(".", 1)[-1] for n in spared_names} == {"weight", "A_log", "dt_bias", "D"}
    assert sum(n.endswith("weight") for n in spared_names) == 1


def test_a_device_that_is_not_there_is_refused(make_run):
    if torch.cuda.is_available():
        pytest.skip("a CUDA device is there")
    run, spec = make_run(resources__device="cuda")
    with pytest.raises(SettingError, match="not on this machine"):
        train(run, spec, stop=lambda: False, say=lambda _: None)


def test_the_manifest_says_which_backend_every_operator_had(make_run):
    for mix, backend, reason in (
        ("mamba2", "naive", "recurrent operators: naive, as asked for."),
        ("transformer", "chunked", None),  # it has none, so none is chosen
    ):
        run, spec = make_run(mix, resources__backend="naive")
        said = []
        assert (
            train(run, spec, stop=lambda run=run: bool(rows(run)), say=said.append) == "preempted"
        )
        # Of an operator that the run does not have the form is the usual one.
        backends = run.read_manifest()["backends"]
        assert backends.pop("ssd") == backend
        assert set(backends.values()) == {"chunked"}
        lines = [line for line in said if "operators" in line]
        assert len(lines) == (reason is not None)
        assert all(line.startswith(reason) and "times as long as chunked" in line for line in lines)


def test_a_run_chooses_for_its_mixers_own_operator_too(tmp_path, monkeypatch):
    (tmp_path / "own_mixers").mkdir()
    (tmp_path / "own_mixers" / "sum.py").write_text(
        "import dataclasses\nfrom models.mixers import MIXERS\n"
        f"MIXER = dataclasses.replace(MIXERS['gdn'], operators=({RUNNING_SUM!r},))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    hardware = Hardware(torch.device("cpu"), "fp32", compiled=False)

    def chosen(*mixers):
        spec = SimpleNamespace(
            model=SimpleNamespace(mixers=mixers), resources=SimpleNamespace(backend="auto")
        )
        return choose_operators(spec, hardware)

    assert chosen("attn") is None
    assert chosen("attn", "gdn").backends == {"gated_delta_rule": "chunked"}
    assert chosen("mamba2", "own_mixers.sum").backends == {
        "ssd": "chunked",
        "running_sum": "chunked",
    }
    with pytest.raises(SettingError, match=r"mixer=own_mixers\.product cannot be imported"):
        chosen("own_mixers.product")


def test_what_a_mixer_says_takes_no_decay_takes_none_under_either_optimizer(make_run, monkeypatch):
    names = ("A_log", "b_proj.weight")
    monkeypatch.setitem(MIXERS, "gdn", dataclasses.replace(MIXERS["gdn"], undecayed=names))
    spec = resolve(settings("gdn"))
    model = LanguageModel(spec.model)
    for optim in ("adamw", "muon"):
        decay = {
            id(parameter): group["weight_decay"]
            for optimizer in build_optimizers(model, spec.recipe, optim)
            for group in optimizer.param_groups
            for parameter in group["params"]
        }
        mixer = model.blocks[0].mixer
        assert decay[id(mixer.A_log)] == decay[id(mixer.b_proj.weight)] == 0.0
        assert decay[id(mixer.dt_bias)] == decay[id(mixer.q_proj.weight)] == 0.1


@pytest.mark.slow
def test_with_a_document_mask_a_point_does_not_depend_on_the_neighbouring_document(make_run):
    """Recorded in the spec, told in the identity, and used in training and evaluation."""
    run, spec = make_run("gdn3_attn1", data__document_mask=True)
    assert spec.data.document_mask
    assert spec.identity != make_run("gdn3_attn1", name="other")[1].identity
    finish(run, spec)
    masked, plain = run, make_run("gdn3_attn1", name="plain")
    finish(*plain)
    (a, b) = (list(r.rows("points.jsonl"))[-1] for r in (masked, plain[0]))
    assert a["data_hash"] == b["data_hash"]
    assert a["loss"] != b["loss"]
    model = LanguageModel(spec.model)
    model.load_state_dict(read_model(masked.checkpoints))
    corpus = open_corpus("embedded", None, project_root() / ".cache" / "corpora")
    window = np.random.default_rng(0).integers(0, 200, (1, 33))
    window[0, 15] = corpus.separator
    other = window.copy()
    other[0, :15] = (other[0, :15] + 1) % 200
    with torch.no_grad():
        after = [
            model(t, Documents.after(corpus.separator, t))[:, 16:]
            for t in (torch.from_numpy(window), torch.from_numpy(other))
        ]
    assert torch.equal(*after)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [{"train__optim": "muon"}, {"protocol__schedule": "cosine", "protocol__chinchilla": [0.008]}],
    ids=["muon", "cosine"],
)
def test_options_train_and_resume_to_the_bit(make_run, changes):
    whole, spec = make_run("gdn3_attn1", name="whole", **changes)
    finish(whole, spec)
    cut, _ = make_run("gdn3_attn1", name="cut", **changes)
    finish(cut, spec, stop_at=(4,))
    assert final(whole) == final(cut) != {}
    losses = [row["loss"] for row in rows(whole)]
    assert losses[-1] < losses[0]


@pytest.mark.slow
@pytest.mark.parametrize("mix", MIXES)
def test_bf16_trains_every_mix_to_about_the_same_losses(make_run, mix):
    """What every GPU does by default, and a CPU with matrix units."""
    single, spec = make_run(mix, name="single", resources__precision="fp32")
    finish(single, spec)
    half, spec = make_run(mix, name="half", resources__precision="bf16")
    finish(half, spec)
    expected = [row["loss"] for row in rows(single)]
    assert [row["loss"] for row in rows(half)] == pytest.approx(expected, rel=0.01)
    assert [row["loss"] for row in rows(half)] != expected


def test_muon_takes_the_blocks_matrices_and_nothing_else():
    spec = resolve(settings("mamba2x3_attn1"))
    model = LanguageModel(spec.model)
    adamw, muon = build_optimizers(model, spec.recipe, "muon")
    names = {id(p): n for n, p in model.named_parameters()}
    taken = {names[id(p)] for group in muon.param_groups for p in group["params"]}
    rest = {names[id(p)] for group in adamw.param_groups for p in group["params"]}
    assert taken | rest == set(names.values())
    assert not taken & rest
    assert taken >= {"blocks.0.mixer.in_proj.weight", "blocks.3.mlp.up_proj.weight"}
    assert rest >= {"embedding.weight", "head.weight", "blocks.0.mixer.conv", "norm.weight"}


def test_recomputed_activations_change_no_bit(make_run):
    results = []
    for recompute in (False, True, "selective"):
        run, spec = make_run(
            "gdn3_attn1", name=str(recompute), resources__activation_checkpointing=recompute
        )
        finish(run, spec)
        results.append(final(run))
    assert results[0] == results[1] == results[2] != {}


def test_a_run_that_diverges_fails_with_what_it_saw_and_keeps_its_checkpoints(
    make_run, monkeypatch
):
    run, spec = make_run(train__max_skipped=3)
    whole = LanguageModel.loss

    def poisoned(self, *arguments, **options):
        loss, nll = whole(self, *arguments, **options)
        return (loss, nll * math.nan) if len(rows(run)) >= 5 else (loss, nll)

    monkeypatch.setattr(LanguageModel, "loss", poisoned)
    words = r"diverged: 3 steps in a row up to 8 .* loss nan"
    with pytest.raises(TrainingFailed, match=words):
        train(run, spec, stop=lambda: False, say=lambda _: None)
    assert max(run.checkpoints.glob("step-????????")).name == "step-00000003"
    monkeypatch.undo()
    finish(run, spec)
    assert rows(run)[-1]["skipped_steps"] == 0


@pytest.mark.slow
def test_a_tracker_is_told_every_row_once_whatever_stops_the_run(make_run, monkeypatch):
    """A run that dies past its checkpoint trains those steps again, and tells nobody twice."""
    told = []

    class Heard(tracking.Silent):
        def log(self, row):
            told.append(tuple(row.items()))

    monkeypatch.setattr(tracking, "start", lambda *_: Heard())
    whole, spec = make_run(name="whole")
    finish(whole, spec)
    once = {without_time_pairs(row) for row in told}
    told.clear()
    cut, _ = make_run(name="cut")

    def dies():
        if len(rows(cut)) == 5:  # a checkpoint is at 3
            raise KeyboardInterrupt
        return False

    with pytest.raises(KeyboardInterrupt):
        train(cut, spec, stop=dies, say=lambda _: None)
    finish(cut, spec)
    steps = [dict(row)["step"] for row in told if "loss" in dict(row)]
    assert steps == list(range(1, spec.recipe.steps + 1))
    assert {without_time_pairs(row) for row in told} == once


def without_time_pairs(row):
    return tuple(without_time(dict(row)).items())


def test_a_flipped_byte_of_the_corpus_fails_the_run_and_nothing_of_it_is_kept(
    make_run, tmp_path, monkeypatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    rng = np.random.default_rng(0)
    text = [rng.integers(1, 255, 500).astype(np.uint8) for _ in range(40)]
    folder = tmp_path / "corpus"
    write_prepared(
        folder, name="c", vocab_size=256, separator=0, train=text[:-8], validation={"v": text[-8:]}
    )
    changes = {"data__name": "tokens", "data__path": str(folder), "protocol__chinchilla": [0.002]}
    whole, spec = make_run(name="whole", **changes)
    finish(whole, spec)
    shard = folder / "train.bin"
    raw = shard.read_bytes()
    shard.write_bytes(raw[:9000] + bytes([raw[9000] ^ 4]) + raw[9001:])
    damaged, _ = make_run(name="damaged", **changes)
    with pytest.raises(SettingError, match=r"has a train\.bin of sha256 .*; copy the folder again"):
        train(damaged, spec, stop=lambda: False, say=lambda _: None)
    assert not list(damaged.rows("points.jsonl"))
    assert not any(damaged.checkpoints.glob("step-*"))
    shard.write_bytes(raw)
    finish(damaged, spec)
    for file in ("points.jsonl", "spec.yaml"):
        assert (damaged.path / file).read_bytes() == (whole.path / file).read_bytes()


def test_a_run_stopped_before_its_data_is_verified_keeps_no_step_of_it(make_run, monkeypatch):
    whole, spec = make_run(name="whole", protocol__chinchilla=[0.002])
    finish(whole, spec)
    cut, _ = make_run(name="cut", protocol__chinchilla=[0.002])
    with monkeypatch.context() as patched:
        patched.setattr(training, "STOP_SECONDS", 0)
        patched.setattr(training, "WAIT_SECONDS", 0.01)
        patched.setattr(training, "read_parts", lambda *given: time.sleep(60) if given[3:] else [])
        assert train(cut, spec, stop=lambda: True, say=lambda _: None) == "preempted"
    assert not any(cut.checkpoints.glob("step-*"))
    finish(cut, spec)
    assert (whole.path / "points.jsonl").read_bytes() == (cut.path / "points.jsonl").read_bytes()


def test_ranks_stopped_while_their_data_is_verified_leave_together(monkeypatch):
    """Also where one came to the wait so much later that its own time is not up."""
    monkeypatch.setattr(training, "STOP_SECONDS", 0.1)
    meeting, given, left = threading.Barrier(2, timeout=10), {}, {}

    def rank(number):
        def gather(value):
            meeting.wait()
            given[number] = value
            meeting.wait()
            values = [given[0], given[1]]
            meeting.wait()
            return values

        trainer = SimpleNamespace(
            verified=False, world=SimpleNamespace(gather=gather), say=lambda _: None,
            verification=SimpleNamespace(error=None, wait=lambda _: bool(time.sleep(0.02))),
            _status=lambda _: None,
        )  # fmt: skip
        time.sleep(0.15 * number)
        turns = iter([False] * number)  # a stop reaches the ranks at different times
        left[number] = training.Trainer._verified(trainer, lambda: next(turns, True))

    threads = [threading.Thread(target=rank, args=(number,)) for number in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert left == {0: False, 1: False}


def test_a_run_that_waits_for_its_data_tells_that_it_is_alive(monkeypatch):
    turns, beats = iter([False, False, False, True]), []
    trainer = SimpleNamespace(
        verified=False, world=World(), say=lambda _: None, _status=beats.append,
        verification=SimpleNamespace(error=None, wait=lambda _: next(turns)),
    )  # fmt: skip
    assert training.Trainer._verified(trainer, lambda: False)
    assert beats == ["running"] * 3


def test_a_try_reads_the_ladders_batches_and_is_evaluated_where_it_ends(make_run):
    run, spec = make_run()
    first = spec.recipe.milestones[0].step
    tried, short = make_run(protocol__max_steps=first)
    finish(run, spec)
    finish(tried, short)
    (point,) = tried.rows("points.jsonl")
    ladders = next(row for row in run.rows("points.jsonl") if row["step"] == first)
    assert point == {**ladders, "chinchilla": point["chinchilla"]}
    assert tried.read_spec()["recipe"]["ladder_steps"] == spec.recipe.steps
    assert tried.read_status()["steps"] == first


def test_mfu_is_nothing_where_the_peak_is_not_known(make_run):
    run, spec = make_run()
    train(run, spec, stop=lambda: False, say=lambda _: None)
    assert not any("mfu" in row for row in run.rows("metrics.jsonl"))
    assert "mfu" not in run.read_status()


@pytest.mark.parametrize(("log_every", "stop_at"), [(5, None), (1, 7)])
def test_mfu_times_time_times_peak_is_c(make_run, monkeypatch, log_every, stop_at):
    """Summed over the logged intervals, those of a run that was stopped included."""
    peak = 3e9  # about what a CPU does
    monkeypatch.setitem(devices.GPUS, cpu_name(), devices.Gpu(peak))
    run, spec = make_run("gdn3_attn1", logging__log_every=log_every)
    if stop_at:
        stops = iter([False] * (stop_at - 1) + [True])
        assert train(run, spec, stop=lambda: next(stops), say=lambda _: None) == "preempted"
    assert train(run, spec, stop=lambda: False, say=lambda _: None) == "done"
    seconds, flops = 0.0, 0.0
    for row in run.rows("metrics.jsonl"):
        flops += row["mfu"] * (row["seconds"] - seconds) * peak
        seconds = row["seconds"]
    assert flops == pytest.approx(list(run.rows("points.jsonl"))[-1]["C"], rel=1e-2)
    status = run.read_status()
    done = spec.counts.flops_per_token * status["tokens_per_second"]
    assert status["mfu"] == pytest.approx(done / peak, rel=1e-3)


def test_a_tracker_hears_tokens_in_every_row_and_a_summary_of_every_point(make_run, monkeypatch):
    rows, summary, begun = [], {}, []

    class Heard(tracking.Silent):
        def log(self, row):
            rows.append(row)

        def summarize(self, values):
            summary.update(values)

    monkeypatch.setattr(tracking, "start", lambda *given: begun.append(given) or Heard())
    run, spec = make_run(evaluation__probes=["copy"], evaluation__lengths=[64],
                         evaluation__examples=1, evaluation__max_share=1e3)  # fmt: skip
    assert train(run, spec, stop=lambda: False, say=lambda _: None) == "done"
    points = list(run.rows("points.jsonl"))
    for row in rows:
        assert row["tokens"] == row["step"] * spec.recipe.batch_tokens
    assert sum("eval/loss" in row for row in rows) == sum("probes/copy/64" in r for r in rows) == 3
    assert summary == {
        f"at {point['chinchilla']:g}x/{name}": point[name]
        for point in points
        for name in ("loss", "bpb", "D", "C")
    }
    ((mode, folder, sweep, config),) = begun
    assert (mode, folder, sweep) == ("off", run.path, "test")
    assert (config["mix"]["name"], config["size"]["name"], config["seed"]) == (
        "transformer", "50k", 0,
    )  # fmt: skip
    assert (config["N"], config["C"]) == (points[-1]["N"], pytest.approx(points[-1]["C"]))
