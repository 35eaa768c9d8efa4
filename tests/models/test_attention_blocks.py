"""Blocked bfloat16 attention against the definition in float64, and where it is taken."""

import pytest
import torch
from functorch.compile import make_boxed_func
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd

from models.attention import blocks as blocked
from models.ops.operator import operators_of


def definition(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = q @ k.mT / q.shape[-1] ** 0.5
    hidden = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    return scores.masked_fill(hidden, float("-inf")).softmax(-1) @ v


def inputs(T: int, D: int, dtype: torch.dtype = torch.bfloat16) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    made = [torch.randn(2, T, 3, D, generator=generator) for _ in range(4)]
    return [x.to(dtype).transpose(1, 2) for x in made]


def values_and_gradients(function, arguments: list[Tensor], dout: Tensor) -> list[Tensor]:
    leaves = [x.detach().requires_grad_() for x in arguments]
    out = function(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, dout)]


@pytest.mark.parametrize("scores", [2**10, 2**19])
@pytest.mark.parametrize("T", [1, 127, 128, 300])
def test_values_and_gradients_are_the_definition_s_to_bf16_rounding(T, scores, monkeypatch):
    monkeypatch.setattr(blocked, "SCORES_IN_CACHE", scores)
    *qkv, dout = inputs(T, 20)
    found = values_and_gradients(blocked.causal_attention, qkv, dout)
    wide = [x.double() for x in qkv]
    expected = values_and_gradients(definition, wide, dout.double())
    for a, e in zip(found, expected, strict=True):
        assert a.dtype == torch.bfloat16
        assert (a.double() - e).norm() <= 1e-2 * e.norm() + 1e-6


def test_no_query_sees_a_later_key():
    q, k, v, _ = inputs(200, 16)
    before = blocked.causal_attention(q, k, v)
    k[:, :, 150:], v[:, :, 150:] = 9.0, -9.0
    after = blocked.causal_attention(q, k, v)
    assert torch.equal(before[:, :, :150], after[:, :, :150])
    assert not torch.equal(before[:, :, 150:], after[:, :, 150:])


def test_it_is_for_bf16_of_ungrouped_heads_and_short_contexts():
    q, k, _, _ = inputs(64, 16)
    assert blocked.suits_blocks(q, k)
    assert not blocked.suits_blocks(q.float(), k.float())
    assert not blocked.suits_blocks(q, k[:, :1])
    long = q[:, :, :1].expand(-1, -1, blocked.LONGEST + 1, -1)
    assert not blocked.suits_blocks(long, long)
    assert not blocked.suits_blocks(q.to("meta"), k.to("meta"))


def test_compiled_code_calls_it_whole_and_gives_the_same_bits():
    *qkv, dout = inputs(150, 20)
    expected = values_and_gradients(blocked.causal_attention, qkv, dout)
    compiled = torch.compile(blocked.causal_attention, fullgraph=True, backend="aot_eager")
    found = values_and_gradients(compiled, qkv, dout)
    assert all(torch.equal(a, e) for a, e in zip(found, expected, strict=True))


@pytest.mark.parametrize("operator", operators_of().values(), ids=lambda o: o.name)
def test_a_compiled_operator_is_one_call_with_the_same_bits(operator):
    graphs = []

    def keep(graph, examples):
        graphs.append(graph)
        return make_boxed_func(graph)

    function = operator.chunked
    arguments = operator.inputs(torch.device("cpu"), torch.float32)
    dout = torch.ones_like(operator.naive(*arguments)[0])
    expected = values_and_gradients(lambda *x: function(*x)[0], arguments, dout)
    backend = aot_autograd(fw_compiler=keep, bw_compiler=keep)
    compiled = torch.compile(lambda *x: function(*x)[0], fullgraph=True, backend=backend)
    found = values_and_gradients(compiled, arguments, dout)
    assert all(torch.equal(a, e) for a, e in zip(found, expected, strict=True))
    for graph in graphs:
        targets = [str(node.target) for node in graph.graph.nodes]
        assert sum(target.startswith("archladder") for target in targets) == 1
        assert not any("bmm" in target for target in targets)
    assert len(graphs) == 2
