"""How often blocks are compiled: by a backend that counts, and compiles nothing."""

import contextlib

import numpy as np
import pytest
import torch
import torch._dynamo

import models.documents
from ablations.distributed import World
from ablations.evaluate.loss import window_nats
from models.config import Blueprint
from models.documents import Documents
from models.language_model import LanguageModel
from models.mix import Geometry, Mix, build_config

CPU = torch.device("cpu")


@pytest.fixture
def counted():
    """A model of two kinds of block in four layers, and the graphs that were made of it."""
    torch._dynamo.reset()
    limit = torch._dynamo.config.recompile_limit
    mix, size = Mix("four", ("gdn", "attn")), Blueprint("four", 32, 4, 2, 48)
    model, graphs = LanguageModel(build_config(mix, size, Geometry(), 64)), []
    model.initialize(0)

    def count(graph, _inputs):
        graphs.append(graph)
        return graph.forward

    model.compile_blocks(backend=count)
    yield model, graphs
    torch._dynamo.config.recompile_limit = limit
    torch._dynamo.reset()


def held_out(model, n, separator=None, rows=4):
    windows = np.random.default_rng(n).integers(0, 64, (n, 33))
    nats = np.zeros((n, 32))
    with torch.no_grad():
        for mine, nll in window_nats(
            model, windows, rows * 32, device=CPU, autocast=contextlib.nullcontext,
            separator=separator, world=World(),
        ):  # fmt: skip
            nats[mine] = nll
    return windows, nats


@pytest.mark.slow
def test_a_kind_of_block_is_compiled_once_to_train_and_once_to_evaluate(counted):
    """Whatever documents 50 batches hold, and however many windows are left for the last pass."""
    model, graphs = counted
    generator, numbers = torch.Generator().manual_seed(0), set()
    for step in range(50):
        tokens = torch.randint(0, 64, (3, 33), generator=generator)
        tokens[tokens < step] = 5
        documents = Documents.after(5, tokens[:, :-1])
        numbers.add(len(documents.cu_seqlens))
        loss, _ = model.loss(tokens[:, :-1], tokens[:, 1:], documents, weight=0.1, z_loss=0.0)
        loss.backward()
        if step % 10 == 0:
            held_out(model, 5 + step // 10, separator=5)
    assert len(numbers) > 20
    assert len(graphs) == 2 * 2


@pytest.mark.slow
def test_rows_that_fill_a_pass_change_no_nats(counted):
    model, _ = counted
    windows, nats = held_out(model, 6)
    tokens = torch.from_numpy(windows)
    with torch.no_grad():
        log_p = model(tokens[:, :-1]).log_softmax(-1)
    expected = -log_p.gather(-1, tokens[:, 1:, None]).squeeze(-1)
    np.testing.assert_allclose(nats, expected, rtol=1e-5)


@pytest.mark.slow
def test_the_masks_of_other_documents_are_no_other_graph(counted, monkeypatch):
    """With flex_attention's block masks, which a GPU is given."""
    monkeypatch.setattr(models.documents, "_mask", models.documents.block_mask)
    model, graphs = counted
    generator = torch.Generator().manual_seed(0)
    for step in range(8):
        tokens = torch.randint(0, 64, (3, 32), generator=generator)
        tokens[tokens < 5 * step] = 5
        with torch.no_grad():
            model(tokens, Documents.after(5, tokens))
    assert len(graphs) == 2
