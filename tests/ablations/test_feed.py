"""Batches read ahead: the order's own, a step ahead at most, and nothing is lost in the thread."""

import threading
import time

import numpy as np
import pytest
import torch

from ablations.data.order import Batches, rolling_hash
from ablations.data.streams import MixedSource, Mixture
from ablations.feed import Feed
from ablations.train import train
from models.documents import Documents

from .test_train import rows

CPU = torch.device("cpu")
TOKENS = np.random.default_rng(0).integers(0, 20, 900).astype(np.uint16)
MIXED = Mixture((MixedSource("a", TOKENS[:500], "a", 3), MixedSource("b", TOKENS[500:], "b", 2)))


def feed(batches, first=0, last=6, share=slice(None), rows=2, passes=3, hashed="", separator=None):
    return Feed(
        batches, first, last, share=share, rows=rows, passes=passes, separator=separator,
        data_hash=hashed, device=CPU,
    )  # fmt: skip


def readers():
    return [t for t in threading.enumerate() if t.name.startswith("batches")]


@pytest.mark.parametrize("corpus", [TOKENS, MIXED], ids=["stream", "mixture"])
def test_ranks_are_fed_the_rows_of_the_batch_and_the_first_hashes_all_of_it(corpus):
    batches = Batches(corpus, "f", 7, 6, 0)
    shares = [slice(0, 3), slice(3, 6)]
    feeds = [
        feed(Batches(corpus, "f", 7, 6, 0), 2, 9, share, passes=2, hashed=None if rank else "")
        for rank, share in enumerate(shares)
    ]
    expected = ""
    for step in range(2, 9):
        whole = batches.batch(step)
        expected = rolling_hash(expected, whole)
        for rank, taken in enumerate(f.take() for f in feeds):
            inputs = torch.cat([part.inputs for part in taken.parts])
            targets = torch.cat([part.targets for part in taken.parts])
            assert np.array_equal(inputs, whole[shares[rank], :-1])
            assert np.array_equal(targets, whole[shares[rank], 1:])
            assert all(part.counts and part.documents is None for part in taken.parts)
            assert taken.predictions == 6 * 7
            assert taken.data_hash == ("" if rank else expected)
    for f in feeds:
        f.close()
    assert not readers()


def test_a_rank_with_fewer_rows_repeats_one_that_does_not_count():
    batches = Batches(TOKENS, "f", 7, 5, 0)
    with feed(batches, share=slice(0, 1), rows=1, passes=3) as f:
        parts = f.take().parts
    assert [part.counts for part in parts] == [True, False, False]
    assert all(torch.equal(part.inputs, parts[0].inputs) for part in parts)


def test_documents_are_those_of_each_micro_batch():
    batches = Batches(TOKENS, "f", 30, 4, 0)
    with feed(batches, separator=3, passes=2) as f:
        for part in f.take().parts:
            expected = Documents.after(3, part.inputs)
            assert expected.cu_seqlens.numel() > 4
            for name in ("index", "offset", "cu_seqlens"):
                assert torch.equal(getattr(part.documents, name), getattr(expected, name))


def test_one_step_is_read_ahead_and_no_more():
    asked = []

    class Asked(Batches):
        def batch(self, step, share=slice(None)):
            asked.append(step)
            return super().batch(step, share)

    with feed(Asked(TOKENS, "f", 7, 6, 0), 3, 6) as f:
        for taken in range(1, 4):
            f.take()
            wanted = list(range(3, min(6, 4 + taken)))
            until = time.monotonic() + 10
            while asked != wanted and time.monotonic() < until:
                time.sleep(0.01)
            assert asked == wanted


def test_a_runs_thread_fails_with_the_run_and_ends_with_it(make_run, monkeypatch):
    error, whole = OSError("the disk is gone"), Batches.batch

    def fails(self, step, *share):
        if step == 4:
            raise error
        return whole(self, step, *share)

    run, spec = make_run()
    with monkeypatch.context() as patched:
        patched.setattr(Batches, "batch", fails)
        with pytest.raises(OSError, match="disk") as raised:
            train(run, spec, stop=lambda: False, say=lambda _: None)
    assert raised.value is error
    assert len(rows(run)) == 4, "the steps before had been trained"
    assert not readers()
    assert train(run, spec, stop=lambda: len(rows(run)) > 5, say=lambda _: None) == "preempted"
    assert not readers()
