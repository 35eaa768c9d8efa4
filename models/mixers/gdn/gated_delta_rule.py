"""The gated delta rule (Yang, Kautz, Hatamizadeh 2025, "Gated Delta Networks", eq. 10).

    S_t = exp(g_t) S_{t-1} (I - beta_t k_t k_t^T) + beta_t v_t k_t^T        o_t = S_t (scale q_t)

`naive` is that definition, step by step. `chunked` is its chunkwise-parallel form (same paper,
section 3.3): inside a chunk of C tokens the product of the transitions is a unit lower-triangular
system, solved once for all chunks; between chunks only the state is carried. Its backward pass is
written out, because autograd's keeps and walks ten C×C matrices a chunk where two do.

Shapes: B batch, T time, H heads, K key width, V value width, C chunk length, N chunks.
Gates, the solve and the state are float32 (float64 for float64 inputs) whatever the inputs are.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from models.closed import closed_on_cpu
from models.ops import delta_rule
from models.ops.chunks import (
    by_chunk,
    chunk_length,
    compute_dtype,
    decays,
    document_begins,
    dot,
    into_time,
    row_less_column_sums,
    rows_by_document,
    stretches,
    sum_to_end,
)
from models.precision import in_own_precision


def naive(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    scale: float | None = None,
    *,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """The definition, one token at a time: that of `models.ops.delta_rule`, g: [B, T, H]."""
    return delta_rule.naive(
        q, k, v, g.unsqueeze(-1), beta, scale,
        initial_state=initial_state, output_final_state=output_final_state, cu_seqlens=cu_seqlens,
    )  # fmt: skip


def step(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor) -> Tensor:
    """The definition for one token: that of `models.ops.delta_rule`, g: [B, 1, H]."""
    return delta_rule.step(q, k, v, g.unsqueeze(-1), beta, state)


@in_own_precision
def chunked(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    scale: float | None = None,
    chunk: int | None = None,
    *,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """The same function as `naive` (arguments and results are its), `chunk` tokens at a time."""
    if cu_seqlens is not None and (initial_state is not None or output_final_state):
        real, (q, k, v_, g, beta) = rows_by_document(cu_seqlens, q, k, v, g, beta)
        o, S = chunked(
            q, k, v_, g, beta, scale, chunk, initial_state=initial_state, output_final_state=True
        )  # fmt: skip
        return o[real].view_as(v), S if output_final_state else None
    B, T, H, K = q.shape
    scale = K**-0.5 if scale is None else scale
    begins = None if cu_seqlens is None else document_begins(cu_seqlens, B, T)
    if initial_state is None:
        initial_state = v.new_zeros(B, H, K, v.shape[-1], dtype=compute_dtype(v))
    C = chunk_length(v, chunk)
    o, S = _Chunked.apply(q, k, v, g, beta, initial_state, begins, scale, C)
    return o, S if output_final_state else None


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, Tensor]:
        *read, initial_state, _, ctx.scale, ctx.C = arguments
        o, S, *saved = _forward(*arguments)
        ctx.save_for_backward(*read, *saved)
        ctx.state = (initial_state.shape, initial_state.dtype)
        return o, S.view(initial_state.shape)

    @staticmethod
    @in_own_precision
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        *found, dS = _backward(*grads, ctx.saved_tensors, ctx.scale, ctx.C)
        shape, dtype = ctx.state
        return *found, dS.view(shape).to(dtype), None, None, None


@closed_on_cpu
def _forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    initial_state: Tensor,
    begins: Tensor | None,
    scale: float,
    C: int,
) -> list[Tensor]:
    """The output [B, T, H, V], the final state [P, K, V], and what the backward pass reads."""
    o = torch.empty_like(v, memory_format=torch.contiguous_format)
    S = initial_state.to(compute_dtype(v)).flatten(0, 1)  # [P, K, V]
    saved: list[Tensor] = []
    for t in stretches(v, C):
        q_, k_, v_ = (by_chunk(x[:, t], C) for x in (q, k, v))
        beta_ = by_chunk(beta[:, t].unsqueeze(-1), C)
        within, from_start, to_end, keep = decays(
            g[:, t], None if begins is None else begins[:, t], C
        )
        scores = (q_ @ k_.mT).mul_(within)
        overlap = (k_ @ k_.mT).mul_(within)
        overlap.diagonal(dim1=-2, dim2=-1).zero_()
        inverse = delta_rule.solve(overlap, beta_)
        weights = inverse * beta_.mT
        writes, erases = weights @ v_, (weights * from_start.mT) @ k_
        k_end = k_ * to_end
        states = delta_rule.walk(writes, erases, k_end, keep, S)
        S = states[-1]
        y = (q_ * from_start) @ states[:-1]
        into_time(o[:, t], y.add_(scores @ writes).mul_(scale))
        saved += [q_, k_, v_, beta_, within, from_start, to_end, keep.clone()]
        saved += [scores, overlap, inverse, states, writes]
    return [o, S.clone(), *saved]


@closed_on_cpu
def _backward(do: Tensor, dS: Tensor, saved: list[Tensor], scale: float, C: int) -> list[Tensor]:
    """Gradients of q, k, v, g, beta, and of the initial state as [P, K, V]."""
    q, k, v, g, beta, *saved = saved
    dq, dk, dv, dg, dbeta = (torch.empty_like(x) for x in (q, k, v, g, beta))
    dS = dS.to(compute_dtype(v)).flatten(0, 1)
    for t in reversed(stretches(v, C)):
        *saved, scores, overlap, inverse, states, writes = saved
        *saved, q_, k_, v_, beta_, within, from_start, to_end, keep = saved
        starts = states[:-1]
        dy = by_chunk(do[:, t], C).mul_(scale)
        q_start, k_end = q_ * from_start, k_ * to_end
        weights = inverse * beta_.mT
        weights_start = weights * from_start.mT
        erases = weights_start @ k_

        # The state's adjoint runs from the last chunk to the first.
        dwrites = scores.mT @ dy
        dstates = delta_rule.walk_back(dwrites, dy, q_start, erases, k_end, keep, dS)
        dS, dends = dstates[0], dstates[1:]

        # Between chunks.
        derases = (dwrites @ starts.mT).neg_()
        dq_ = dy @ starts.mT
        dlog = dot(q_start, dq_)
        dq_.mul_(from_start)
        dk_ = writes @ dends.mT
        ended = dot(k_end, dk_)
        dk_.mul_(to_end)
        dlog -= ended
        dkeep = torch.linalg.vecdot(starts.flatten(-2), dends.flatten(-2))
        dlog[..., -1:, :] += ended.sum(-2, keepdim=True) + dkeep[..., None, None] * keep

        # The triangular system: writes = weights v, erases = weights_start k.
        into_time(dv[:, t], weights.mT @ dwrites)
        dk_ += weights_start.mT @ derases
        dweights_start = derases @ k_.mT
        dlog += (dweights_start * weights_start).sum(-2).unsqueeze(-1)
        dweights = (dwrites @ v_.mT).addcmul_(dweights_start, from_start.mT)
        dbeta_ = (dweights * inverse).sum(-2).unsqueeze(-1)
        dsystem = (inverse.mT @ dweights.mul_(beta_.mT) @ inverse.mT).neg_()
        dlog_matrix = dsystem * overlap
        dbeta_ += dlog_matrix.sum(-1, keepdim=True)
        into_time(dbeta[:, t].unsqueeze(-1), dbeta_)
        doverlap = dsystem.mul_(within).mul_(beta_)
        doverlap.diagonal(dim1=-2, dim2=-1).zero_()
        dk_ += (doverlap + doverlap.mT) @ k_

        # Inside chunks. A decay's adjoint is that of what it multiplies, times it.
        dscores = dy @ writes.mT
        dlog_matrix.mul_(beta_).addcmul_(dscores, scores)
        dscores.mul_(within)
        into_time(dq[:, t], dq_.add_(dscores @ k_))
        into_time(dk[:, t], dk_.add_(dscores.mT @ q_))
        dlog += row_less_column_sums(dlog_matrix)
        into_time(dg[:, t].unsqueeze(-1), sum_to_end(dlog))
    return [dq, dk, dv, dg, dbeta, dS]
