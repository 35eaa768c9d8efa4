"""Documents kept apart: a document's loss and gradients are those of the document alone."""

from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

import models.documents
from models.config import Blueprint
from models.documents import Documents, block_mask, causal_mask, mask_mod
from models.language_model import LanguageModel
from models.mix import Geometry, Mix

from .test_language_model import ALL, TRANSFORMER, VARIED, build, spread

BLOCKS = ("kv_num_blocks", "kv_indices", "q_num_blocks", "q_indices")
ROWS = [[5, 1, 30, 2, 26], [64], [40, 24]]
"""Lengths of the documents of each row; 64 tokens a row."""


def packed(seed=0):
    rows = torch.randint(0, 255, (3, 64), generator=torch.Generator().manual_seed(seed))
    starts = torch.zeros(3, 64, dtype=torch.bool)
    for row, lengths in enumerate(ROWS):
        ends = torch.tensor(lengths).cumsum(0)
        starts[row, ends[:-1]] = True
    return rows, Documents.from_starts(starts)


def test_documents_know_their_borders():
    _, documents = packed()
    assert documents.cu_seqlens.tolist() == [0, 5, 6, 36, 38, 64, 128, 168, 192]
    assert documents.offset[0, :8].tolist() == [0, 1, 2, 3, 4, 0, 0, 1]
    assert documents.index[2].bincount().tolist() == [40, 24]
    tokens = torch.tensor([[7, 255, 7, 7, 255, 255, 7]])
    assert Documents.after(255, tokens).cu_seqlens.tolist() == [0, 2, 5, 6, 7]


@pytest.mark.parametrize(
    ("mix", "windows"),
    [*product(ALL, [(), (9, 0)]), *product(VARIED, [(9, 0)])],
    ids=lambda x: x.name if isinstance(x, Mix) else "windows" if x else "full",
)
def test_a_document_is_read_as_if_alone(mix, windows):
    model = spread(build(mix, geometry=Geometry(windows=windows)))
    tokens, documents = packed()
    together = model(tokens, documents)
    (gradient,) = torch.autograd.grad(together.square().sum(), model.embedding.weight)
    alone = torch.zeros_like(gradient)
    for row, lengths in enumerate(ROWS):
        begin = 0
        for length in lengths:
            document = slice(begin, begin + length)
            expected = model(tokens[row : row + 1, document])
            torch.testing.assert_close(
                together[row : row + 1, document], expected, rtol=1e-4, atol=1e-4
            )
            alone += torch.autograd.grad(expected.square().sum(), model.embedding.weight)[0]
            begin += length
    assert (gradient - alone).norm() / alone.norm() < 1e-4


def test_the_mask_for_flex_attention_is_the_dense_mask():
    """What a GPU is given, run on the CPU, against what the CPU is given."""
    _, documents = packed()
    q, k, v = torch.randn(3, 3, 2, 64, 8, generator=torch.Generator().manual_seed(0))
    for window in (0, 9):
        for known, batch in ((documents, 3), (None, None)):
            index = None if known is None else known.index
            visible = mask_mod(64, window, index)
            block = create_block_mask(visible, batch, None, 64, 64, device="cpu")
            dense = causal_mask(64, window, torch.device("cpu"), known)
            expected = F.scaled_dot_product_attention(
                q, k, v, attn_mask=dense, is_causal=dense is None
            )
            torch.testing.assert_close(flex_attention(q, k, v, block_mask=block), expected)


@pytest.mark.parametrize("T", [64, 128, 300, 512, 1000])
@pytest.mark.parametrize("window", [0, 1, 100, 128, 129, 400])
def test_the_block_mask_is_what_flex_attention_makes_of_every_pair(T, window):
    generator = torch.Generator().manual_seed(T)
    starts = torch.rand(3, T, generator=generator) < torch.tensor([[0.3], [0.01], [0.0]])
    for documents, batch in ((Documents.from_starts(starts), 3), (Documents(), None)):
        visible = mask_mod(T, window, documents.index)
        expected = create_block_mask(visible, batch, None, T, T, device="cpu")
        actual = block_mask(T, window, torch.device("cpu"), documents)
        assert actual.shape == expected.shape
        for name in BLOCKS:
            for form in (name, f"full_{name}"):
                assert torch.equal(getattr(actual, form), getattr(expected, form)), form


def test_masks_are_made_once_for_rows_and_once_for_each_batch_of_documents(monkeypatch):
    made = []

    def counted(T, window, *rest):
        made.append((T, window))
        return mask(T, window, *rest)

    mask = models.documents._mask
    monkeypatch.setattr(models.documents, "_mask", counted)
    model = build(TRANSFORMER, geometry=Geometry(windows=(9, 20, 9)))
    model.recompute = "true"
    tokens, documents = packed()
    weigh = {"weight": 1.0, "z_loss": 0.0}
    for _ in range(3):
        model.loss(tokens, tokens, **weigh)[0].backward()
    assert sorted(made) == [(64, 9), (64, 20)]
    made.clear()
    for known in (documents, packed(seed=1)[1]):
        model.loss(tokens, tokens, known, **weigh)[0].backward()
    assert sorted(made) == 2 * [(64, 0)] + 2 * [(64, 9)] + 2 * [(64, 20)]


def test_masks_of_inference_serve_training():
    model = build(TRANSFORMER, geometry=Geometry(windows=(9,)))
    tokens, _ = packed()
    with torch.inference_mode():
        model(tokens)
    model(tokens).sum().backward()


@pytest.mark.slow
def test_documents_survive_compilation():
    model = spread(build(Mix("two", ("gdn", "attn")), size=Blueprint("two", 32, 2, 2, 48)))
    tokens, documents = packed()
    with torch.no_grad():
        expected = model(tokens, documents)
    compiled = LanguageModel(model.config)
    compiled.load_state_dict(model.state_dict())
    for block in compiled.blocks:
        block.compile(dynamic=False, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        actual = compiled(tokens, documents)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("recompute", ["false", "true"])
def test_compiled_blocks_in_bfloat16_have_the_gradients_of_eager_ones(recompute):
    """As on a GPU: a compiled block's backward pass is traced under the autocast of its forward."""
    three = Mix("three", ("gdn", "mamba2", "attn"))
    model = spread(build(three, size=Blueprint("three", 32, 3, 2, 48)))
    model.recompute = recompute
    tokens, _ = packed()

    def gradients():
        with torch.autocast("cpu", torch.bfloat16):
            nll, _ = model.losses(tokens[:, :-1], tokens[:, 1:], None)
        return torch.autograd.grad(nll.mean(), list(model.parameters()))

    expected = gradients()
    for block in model.blocks:
        block.compile(dynamic=False, fullgraph=True, backend="aot_eager")
    for a, e in zip(gradients(), expected, strict=True):
        assert a.dtype == torch.float32
        # Sums of bfloat16 gradients in another order.
        assert (a - e).norm() <= 1e-2 * e.norm()


def test_one_document_a_row_changes_nothing():
    model = spread(build(TRANSFORMER))
    tokens, _ = packed()
    documents = Documents.from_starts(torch.zeros_like(tokens, dtype=torch.bool))
    torch.testing.assert_close(model(tokens, documents), model(tokens), rtol=1e-5, atol=1e-5)
