"""The micro-batch that a GPU's memory chooses: counted, tried, halved, and the same batches."""

import contextlib
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ablations import micro_batch
from ablations.evaluate.loss import HeldOut, evaluate
from ablations.hardware import Hardware
from ablations.resolve import resolve
from ablations.resources import even_rows, memory_of, micro_batch_rows
from ablations.train import train
from models.cost import MEMORY_SHARE
from models.errors import SettingError
from models.language_model import LanguageModel

from .conftest import settings

GIB = 2**30
SHORT = {"protocol__chinchilla": [0.002]}


def counted(spec, **changes):
    how = {"bf16": True, "compiled": True, "chunked": False, "parallel": None, "devices": 1}
    return memory_of(spec, **{**how, **changes})


@given(st.integers(1, 300), st.integers(-3, 400))
def test_passes_are_even_where_that_costs_less_than_half_of_what_fits(rows, most):
    chosen = even_rows(rows, most)
    assert 1 <= chosen <= max(1, min(rows, most))
    assert 2 * chosen > min(rows, most), "less than half of what fits is wasted"
    if rows % chosen:
        assert chosen & (chosen - 1) == 0
        assert all(rows % n for n in range(chosen, min(rows, most) + 1))


@given(st.integers(0, 64), st.floats(0, 0.99))
def test_what_fits_is_the_most_that_the_count_leaves_room_for(rows, more):
    memory = counted(resolve(settings()))
    device_bytes = (memory.of(rows) + more * memory.sequence) / MEMORY_SHARE
    assert memory.rows_in(device_bytes * (1 + 1e-12)) == rows
    assert memory.rows_in(0) == 0


def test_an_80_gb_gpu_holds_what_it_is_given_of_every_mix_at_1b():
    """Published 1b runs train at this context on 80 GB; 32,768 tokens of a hybrid would not fit."""
    for mix in ("transformer", "gdn3_attn1", "gdn", "mamba2"):
        spec = resolve(settings(mix, size="1b", size__context=8192), plan_only=True)
        memory = counted(spec, parallel="ddp")
        rows = micro_batch_rows(None, spec.recipe.context, 208, memory.rows_in(80e9))
        assert rows >= 1
        assert memory.of(rows) < 80e9 * MEMORY_SHARE


def test_on_a_cpu_the_micro_batch_is_what_it_was():
    for context, rows, chosen in ((64, 4, 4), (256, 64, 32), (8192, 4, 1), (16384, 4, 1)):
        assert micro_batch_rows(None, context, rows) == chosen


@pytest.mark.parametrize("fits", [16, 8, 3, 1, 0])
def test_half_as_many_are_tried_until_they_fit(fits):
    tried = []

    def attempt(rows):
        tried.append(rows)
        if rows > fits:
            raise torch.OutOfMemoryError("stub")

    rows = micro_batch.rows_that_run(16, 16, attempt, bool)
    assert rows == (0 if not fits else max(n for n in (1, 2, 4, 8, 16) if n <= fits))
    assert tried == [n for n in (16, 8, 4, 2, 1) if n >= max(rows, 1)]


def test_all_ranks_halve_where_one_is_full():
    answers = iter([True, False])
    assert micro_batch.rows_that_run(4, 4, lambda _rows: None, lambda _: next(answers)) == 2


def test_other_errors_are_not_taken_for_a_full_memory():
    def attempt(_rows):
        raise RuntimeError("expected all tensors to be on the same device")

    with pytest.raises(RuntimeError, match="same device"):
        micro_batch.rows_that_run(4, 4, attempt, bool)


@pytest.fixture
def gpu(monkeypatch):
    """A CPU that says it has so many bytes, and runs out in passes of more than so many rows."""
    sizes = []

    def make(fits, device_bytes=80 * GIB):
        monkeypatch.setattr(Hardware, "memory_bytes", property(lambda _: device_bytes))
        loss = LanguageModel.loss

        def limited(self, tokens, *arguments, **options):
            sizes.append(len(tokens))
            if len(tokens) > fits:
                raise torch.OutOfMemoryError("stub")
            return loss(self, tokens, *arguments, **options)

        monkeypatch.setattr(LanguageModel, "loss", limited)
        return sizes

    return make


def test_a_run_takes_the_rows_that_fit_and_trains_the_same_batches(make_run, gpu):
    by_hand, spec = make_run(name="by_hand", **SHORT, resources__micro_batch_tokens=64)
    train(by_hand, spec, stop=lambda: False, say=lambda _: None)
    sizes, said = gpu(fits=1), []
    run, spec = make_run(name="by_memory", **SHORT)
    assert train(run, spec, stop=lambda: False, say=said.append) == "done"
    assert sizes[:3] == [4, 2, 1], "tried once each, and before the first step"
    assert sizes[3:] == [1] * (4 * spec.recipe.steps)
    assert run.read_manifest()["micro_batch_rows"] == 1
    assert "micro-batch: 1 of 4 sequences, by the GPU's memory, as 4 did not fit" in said
    # The same bits as where the user says so: the tries left nothing behind.
    ours, theirs = (list(r.rows("metrics.jsonl")) for r in (run, by_hand))
    for name in ("loss", "grad_norm"):
        assert [row[name] for row in ours] == [row[name] for row in theirs]
    (point,), (other,) = (list(r.rows("points.jsonl")) for r in (run, by_hand))
    assert point["data_hash"] == other["data_hash"]
    assert point["loss"] == pytest.approx(other["loss"], rel=1e-9), "in other passes"


def test_a_run_goes_on_with_the_rows_it_was_begun_with(make_run, gpu):
    sizes = gpu(fits=2)
    run, spec = make_run(**SHORT)
    asked = itertools.count()
    assert train(run, spec, stop=lambda: next(asked) > 0, say=lambda _: None) == "preempted"
    assert run.read_manifest()["micro_batch_rows"] == 2
    sizes.clear()
    assert train(run, spec, stop=lambda: False, say=lambda _: None) == "done"
    assert set(sizes) == {2}
    assert run.read_manifest()["micro_batch_rows"] == 2


def test_a_sequence_that_does_not_fit_is_one_sentence(make_run, gpu):
    gpu(fits=0, device_bytes=2 * GIB)
    words = (
        r"a micro-batch of 1 sequence of 64 tokens does not fit a GPU's memory of 2 GiB.*"
        r"activation_checkpointing=true or more GPUs with resources\.parallel=fsdp\.$"
    )
    run, spec = make_run()
    with pytest.raises(SettingError, match=words):
        train(run, spec, stop=lambda: False, say=lambda _: None)
    # A size that the user gave is not changed behind their back.
    run, spec = make_run(name="given", resources__micro_batch_tokens=128)
    with pytest.raises(SettingError, match=r"2 sequences .* give resources\.micro_batch_tokens=64"):
        train(run, spec, stop=lambda: False, say=lambda _: None)


def test_memory_is_as_full_in_the_try_as_in_any_later_step():
    model = torch.nn.Linear(30, 20)
    adamw = torch.optim.AdamW([{"params": model.parameters()}])
    with micro_batch.as_in_training(model, [adamw]):
        assert all(p.grad is not None for p in model.parameters())
    assert all(p.grad is None for p in model.parameters())
    assert not adamw.state


def test_evaluation_passes_of_a_compiled_model_have_one_shape_and_count_every_row_once(monkeypatch):
    """Seven rows, three a pass: the last pass is filled up, and what fills it is not counted."""
    model = LanguageModel(resolve(settings("gdn3_attn1")).model)
    model.initialize(0)
    held = {"x": HeldOut(np.random.default_rng(0).integers(0, 256, (7, 65)), 300)}

    def measured(**how):
        cpu = torch.device("cpu")
        return evaluate(model, held, device=cpu, autocast=contextlib.nullcontext, **how)

    by_row, sizes, losses = measured(batch_tokens=64), [], LanguageModel.losses

    def seen(self, tokens, *arguments):
        sizes.append(len(tokens))
        return losses(self, tokens, *arguments)

    monkeypatch.setattr(LanguageModel, "losses", seen)
    model.compiled = True
    filled = measured(batch_tokens=3 * 64)
    assert sizes == [3, 3, 3]
    assert filled["domains"]["x"]["tokens"] == 7 * 64
    assert filled["loss"] == pytest.approx(by_row["loss"], rel=1e-6)
