"""Evaluation: whole documents, sums by document, and a standard error that is one."""

from __future__ import annotations

import contextlib
import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from ablations.data.prepared import ValidationDomain
from ablations.data.windows import held_out_rows
from ablations.evaluate.loss import document_bootstrap, evaluate

BYTES = np.arange(64, dtype=np.uint16) % 5 + 1
BYTES[0] = 0


class Bigram(torch.nn.Module):
    """A model whose loss for a target depends on it and the token before alone."""

    compiled = False

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.randn(64, 64, generator=torch.Generator().manual_seed(0)).log_softmax(-1)

    def losses(self, inputs: Any, targets: Any, _documents: Any) -> Any:
        return -self.table[inputs, targets], None


def domain(documents: list[np.ndarray]) -> ValidationDomain:
    tokens = np.concatenate([np.append(d, 0) for d in documents]).astype(np.uint16)
    return ValidationDomain("x", tokens, int(BYTES[tokens].sum()), 0, BYTES)


def documents(seed: int, n: int, longest: int = 60) -> list[np.ndarray]:
    generator = np.random.default_rng(seed)
    return [generator.integers(1, 64, generator.integers(1, longest)) for _ in range(n)]


def judge(held_out: Any, **more: Any) -> dict[str, Any]:
    return evaluate(
        Bigram(), {"x": held_out}, device=torch.device("cpu"),
        autocast=contextlib.nullcontext, batch_tokens=128, **more,
    )  # type: ignore[arg-type]  # fmt: skip


def test_whole_documents_are_judged_each_from_its_own_beginning() -> None:
    texts = documents(0, 40)
    table = Bigram().table.double()
    nats = 0.0
    for text in texts:
        path = [0, *text.tolist(), 0]
        nats -= sum(table[a, b].item() for a, b in pairwise(path))
    for context in (16, 64):
        result = judge(held_out_rows(domain(texts), context, None, "documents"))
        found = result["domains"]["x"]
        assert found["nats"] == pytest.approx(nats, rel=1e-6)
        assert found["tokens"] == sum(len(text) + 1 for text in texts)
        assert found["bytes"] == sum(int(BYTES[text].sum()) for text in texts)
        assert found["documents"] == 40
        assert result["bpb"] == pytest.approx(nats / math.log(2) / found["bytes"], rel=1e-6)


def test_a_cap_keeps_whole_documents_spread_over_the_domain() -> None:
    texts = [np.full(9, i + 1) for i in range(40)]
    kept = held_out_rows(domain(texts), 16, 100, "documents")
    assert sorted(kept.windows[:, 1].tolist()) == [1, 5, 9, 13, 17, 21, 25, 29, 33, 37]


def test_each_target_of_a_window_knows_its_document() -> None:
    texts = documents(1, 30)
    owner = np.concatenate([np.full(len(text) + 1, i) for i, text in enumerate(texts)])
    for cap in (None, 200):
        held_out = held_out_rows(domain(texts), 10, cap)
        starts = np.arange(len(held_out.windows)) * ((len(owner) - 1) // 10)
        starts = starts // len(held_out.windows) * 10
        truth = owner[starts[:, None] + 1 + np.arange(10)]
        assert held_out.documents is not None
        assert held_out.document_bytes is not None
        met = np.unique(truth)
        assert np.array_equal(met[held_out.documents], truth)
        sums = [BYTES[held_out.windows[:, 1:][truth == i]].sum() for i in met]
        assert held_out.document_bytes.tolist() == sums


def test_the_standard_error_is_the_spread_over_other_documents() -> None:
    # The definition: judge many sets of documents of one kind, and see how their means spread.
    means, errors = [], []
    for seed in range(60):
        result = judge(held_out_rows(domain(documents(seed, 50, 20)), 32, None, "documents"))
        means.append(result["bpb"])
        errors.append(result["bpb_se"])
    # The spread of 60 means is itself known to 1 part in sqrt(2 * 59), 9 %.
    assert np.mean(errors) == pytest.approx(np.std(means, ddof=1), rel=0.3)


def test_the_bootstrap_agrees_with_the_linearised_error_of_a_ratio() -> None:
    generator = np.random.default_rng(0)
    below = generator.integers(50, 150, 400).astype(float)
    above = below * 2 + generator.normal(0, 20, 400)
    ratio = above.sum() / below.sum()
    linear = np.sqrt(np.sum((above - ratio * below) ** 2)) / below.sum()
    assert document_bootstrap(above, below) == pytest.approx(linear, rel=0.15)
    assert document_bootstrap(above[:1], below[:1]) is None
