"""Causal attention in bfloat16 on a CPU, as plain matrix products over blocks of queries.

torch's flash attention is no faster there in bfloat16 than in float32, though large products are
three times as fast where a CPU has instructions for them. Here the scores of one block are made
for several heads at a time, few enough to stay in the cache, and again for the backward pass.

Shapes: B batch, T time, H heads, D head width, P = B·H.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from models.closed import closed_on_cpu
from models.precision import in_own_precision

BLOCK = 128  # queries; what lies above the diagonal of a block is computed for nothing
SCORES_IN_CACHE = 2**19  # of one block, two bytes each
LONGEST = 1024  # tokens


def suits_blocks(q: Tensor, k: Tensor) -> bool:
    """Whether `causal_attention` is the faster way for these: beyond LONGEST flash attention is."""
    bf16_on_cpu = q.device.type == "cpu" and q.dtype == torch.bfloat16
    return bf16_on_cpu and q.shape == k.shape and q.shape[2] <= LONGEST


@in_own_precision
def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q kᵀ / √D) v over the tokens up to each query's. q, k, v: [B, H, T, D] -> q's shape.

    Scores are rounded to the inputs' dtype, softmax and its gradient are taken in float32.
    """
    q = q * q.shape[-1] ** -0.5
    out = _Causal.apply(*(x.flatten(0, 1).contiguous() for x in (q, k, v)))
    return out.view(q.shape)


class _Causal(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        ctx.save_for_backward(q, k, v)
        return _forward(q, k, v)[0]

    @staticmethod
    @in_own_precision
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        return tuple(_backward(grads[0].contiguous(), *ctx.saved_tensors))


@closed_on_cpu
def _forward(q: Tensor, k: Tensor, v: Tensor) -> list[Tensor]:
    out = torch.empty_like(q)
    for heads, rows, seen in _blocks(q):
        out[heads, rows] = _weights(q[heads, rows], k[heads, seen]) @ v[heads, seen]
    return [out]


@closed_on_cpu
def _backward(dout: Tensor, q: Tensor, k: Tensor, v: Tensor) -> list[Tensor]:
    dq = torch.empty_like(q)
    # Transposed: a product whose left factor is the wide matrix's transpose is slower.
    dk, dv = (torch.zeros_like(x.mT, dtype=torch.float32) for x in (k, v))
    for heads, rows, seen in _blocks(q):
        weights = _weights(q[heads, rows], k[heads, seen])
        dv[heads, :, seen] += dout[heads, rows].mT @ weights
        dweights = dout[heads, rows] @ v[heads, seen].mT
        dscores = torch._softmax_backward_data(dweights, weights, -1, weights.dtype)
        dq[heads, rows] = dscores @ k[heads, seen]
        dk[heads, :, seen] += q[heads, rows].mT @ dscores
    return [dq, dk.mT.to(k.dtype), dv.mT.to(v.dtype)]


def _blocks(q: Tensor) -> Iterator[tuple[slice, slice, slice]]:
    """Some heads, a block of queries, and the keys that it sees. q: [P, T, D]."""
    P, T, _ = q.shape
    for start in range(0, T, BLOCK):
        end = min(start + BLOCK, T)
        some = max(1, SCORES_IN_CACHE // ((end - start) * end))
        for head in range(0, P, some):
            yield slice(head, head + some), slice(start, end), slice(0, end)


def _weights(q: Tensor, k: Tensor) -> Tensor:
    """softmax(q kᵀ), the last queries being the last keys. [P, C, D], [P, E, D] -> [P, C, E]."""
    C = q.shape[1]
    scores = q @ k.mT
    scores[..., -C:] += scores.new_full((C, C), float("-inf")).triu_(1)
    return scores.softmax(-1)
