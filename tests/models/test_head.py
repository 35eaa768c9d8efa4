"""The head's losses: cross-entropy and z-loss by torch's own functions, and what they may cost."""

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from models import head as heads
from models.config import Blueprint
from models.documents import Documents
from models.head import token_losses, training_loss
from models.mix import Mix

from .test_language_model import TRANSFORMER, build, spread


def inputs(n, d, V, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x, head = (
        torch.randn(size, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
        for size in ((n, d), (V, d))
    )
    return x, head, torch.randint(V, (n,), generator=generator)


def at_once(monkeypatch, logits):
    monkeypatch.setattr(heads, "LOGITS_AT_ONCE", {"cpu": logits})


def by_definition(x, head, targets, weight, z_loss):
    logits = (x @ head.mT).float() if x.dtype != torch.float64 else x @ head.mT
    nll = F.cross_entropy(logits, targets, reduction="none")
    return weight * (nll.sum() + z_loss * logits.logsumexp(-1).square().sum()), nll


def error(a, b):
    """Of the norm, relative."""
    return ((a - b).double().norm() / b.double().norm()).item()


@pytest.mark.parametrize("z_loss", [0.0, 0.03])
@pytest.mark.parametrize("chunk", [64, 4, 2], ids=["whole", "last of one row", "pairs"])
def test_gradients_equal_finite_differences(monkeypatch, z_loss, chunk):
    at_once(monkeypatch, chunk * 11)
    x, head, targets = inputs(9, 5, 11)
    loss = lambda x, head: training_loss(x, head, targets, 0.3, z_loss)[0]  # noqa: E731
    assert torch.autograd.gradcheck(loss, (x, head))
    expected, nll = by_definition(x, head, targets, 0.3, z_loss)
    actual, each = training_loss(x, head, targets, 0.3, z_loss)
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(each, nll)
    assert not each.requires_grad


@pytest.mark.parametrize(("n", "d", "V"), [(257, 24, 256), (33, 4, 100_352)])
@pytest.mark.parametrize("z_loss", [0.0, 1e-5, 0.1])
def test_float32_agrees_with_float64_as_torchs_own_does_or_to_a_millionth(
    monkeypatch, n, d, V, z_loss
):
    """Beyond a large vocabulary's sums in float32, which cost torch's own 1e-4."""
    at_once(monkeypatch, 16 * V)
    x, head, targets = inputs(n, d, V, torch.float32)
    wide = [t.detach().double().requires_grad_() for t in (x, head)]
    exact, each = by_definition(*wide, targets, 1 / n, z_loss)
    torchs, _ = by_definition(x, head, targets, 1 / n, z_loss)
    loss, nll = training_loss(x, head, targets, 1 / n, z_loss)
    assert error(loss, exact) < 1e-6
    assert error(nll, each) < 1e-6
    gradients = [
        torch.autograd.grad(loss, (x, head)),
        torch.autograd.grad(torchs, (x, head)),
        torch.autograd.grad(exact, wide),
    ]
    for a, b, c in zip(*gradients, strict=True):
        assert error(a, c) < 1e-6 + error(b, c)


def test_the_incoming_gradient_scales_both():
    x, head, targets = inputs(9, 5, 11)
    once = torch.autograd.grad(training_loss(x, head, targets, 0.3, 0.1)[0], (x, head))
    scaled = torch.autograd.grad(-8 * training_loss(x, head, targets, 0.3, 0.1)[0], (x, head))
    for a, b in zip(once, scaled, strict=True):
        assert torch.equal(-8 * a, b)


def test_under_autocast_products_are_bfloat16_and_sums_float32(monkeypatch):
    """As close to float32 as three bfloat16 products are: 8 bits, so 2^-8 of a norm."""
    at_once(monkeypatch, 64 * 512)
    x, head, targets = inputs(1000, 48, 512, torch.float32)
    with torch.no_grad():
        head *= 0.1
    expected, each = by_definition(x, head, targets, 1e-3, 1e-2)
    with torch.autocast("cpu", torch.bfloat16):
        loss, nll = training_loss(x, head, targets, 1e-3, 1e-2)
    assert loss.dtype == nll.dtype == torch.float32
    assert error(nll, each) < 2**-8
    wanted = torch.autograd.grad(expected, (x, head))
    for a, b in zip(torch.autograd.grad(loss, (x, head)), wanted, strict=True):
        assert a.dtype == torch.float32
        assert error(a, b) < 2**-8


def test_without_a_gradient_losses_are_the_same_and_no_gradient_is_made(monkeypatch):
    at_once(monkeypatch, 4 * 11)
    x, head, targets = inputs(9, 5, 11)
    loss, nll = training_loss(x, head, targets, 0.3, 0.1)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        again, each = training_loss(x, head, targets, 0.3, 0.1)
    assert torch.equal(again, loss)
    assert torch.equal(each, nll)
    assert counter.get_total_flops() == 2 * 9 * 5 * 11
    assert all(map(torch.equal, token_losses(x, head, targets)[:1], (nll,)))


class Largest(TorchDispatchMode):
    """The most elements of any tensor that an operation makes."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return out


def test_a_step_makes_three_products_and_never_all_logits(monkeypatch):
    """Forward, and the gradients of features and head: logits are not made again."""
    n, d, V, rows = 4096 + 1, 64, 100_352, 64
    monkeypatch.setattr(heads, "LOGITS_AT_ONCE", {"cpu": rows * V})
    with FakeTensorMode(), Largest() as largest, FlopCounterMode(display=False) as counter:
        x, head = (torch.empty(size, requires_grad=True) for size in ((n, d), (V, d)))
        targets = torch.empty(n, dtype=torch.long)
        training_loss(x, head, targets, 1 / n, 1e-5)[0].backward()
    assert counter.get_total_flops() == 3 * 2 * n * d * V
    assert largest.elements == max(rows, d) * V
    assert x.grad.shape == x.shape
    assert head.grad.shape == head.shape


def test_a_chunk_is_compiled_whole(monkeypatch):
    """As on a GPU, but for the kernels that the compiler then writes."""
    at_once(monkeypatch, 4 * 11)
    whole = torch.compile(heads._chunk, dynamic=False, fullgraph=True, backend="aot_eager")
    monkeypatch.setattr(heads, "_compiled_chunk", lambda: whole)
    x, head, targets = inputs(9, 5, 11, torch.float32)
    for autocast in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            found = [training_loss(x, head, targets, 0.3, 0.1, compiled)[0] for compiled in (0, 1)]
        eager, compiled = (torch.autograd.grad(loss, (x, head)) for loss in found)
        for a, b in zip(compiled, eager, strict=True):
            assert error(a, b) < (1e-2 if autocast else 1e-6)


@pytest.mark.parametrize("known", [False, True], ids=["rows", "documents"])
def test_a_models_loss_is_the_sum_of_its_losses(monkeypatch, known):
    """Also of documents kept apart, and in chunks that end within a row."""
    model = spread(build(Mix("two", ("gdn", "attn")), size=Blueprint("two", 32, 2, 2, 48)))
    tokens = torch.randint(0, 256, (3, 41), generator=torch.Generator().manual_seed(0))
    documents = Documents.after(7, tokens[:, :-1]) if known else None
    nll, z2 = model.losses(tokens[:, :-1], tokens[:, 1:], documents)
    wanted = torch.autograd.grad((nll.sum() + 0.1 * z2.sum()) / 120, list(model.parameters()))
    for chunk in (2**18, 256 * 16):
        at_once(monkeypatch, chunk)
        loss, each = model.loss(
            tokens[:, :-1], tokens[:, 1:], documents, weight=1 / 120, z_loss=0.1
        )
        torch.testing.assert_close(each, nll)
        torch.testing.assert_close(loss, (nll.sum() + 0.1 * z2.sum()) / 120)
        for a, b in zip(torch.autograd.grad(loss, list(model.parameters())), wanted, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_losses_equal_plain_cross_entropy_whole_and_in_pieces(monkeypatch):
    model = spread(build(TRANSFORMER))
    tokens = torch.randint(0, 256, (3, 41), generator=torch.Generator().manual_seed(0))
    logits = model(tokens[:, :-1])
    plain = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
    for chunk in (2**26, 256 * 7):
        at_once(monkeypatch, chunk)
        nll, squared = model.losses(tokens[:, :-1], tokens[:, 1:])
        torch.testing.assert_close(nll.flatten(), plain, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(squared, logits.logsumexp(-1).square(), rtol=1e-5, atol=1e-5)
