"""State-space duality, the Mamba2 recurrence (Dao and Gu 2024, "Transformers are SSMs", eq. 16).

    S_t = exp(g_t) S_{t-1} + k_t v_t^T        o_t = S_t^T q_t

with q = C, k = B, v = dt·x and g = dt·A in the paper's letters. `naive` is that definition;
`chunked` is the block decomposition of the same paper's section 6, its backward pass written out
as in `models.mixers.gdn.gated_delta_rule`.

Shapes: B batch, T time, H heads, K state width, V head width, C chunk length, N chunks, G groups
of heads that share a q and k. Gates and state are float32 (float64 for float64 inputs).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from models.closed import closed_on_cpu
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


@in_own_precision
def naive(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    *,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """The definition, one token at a time.

    q, k: [B, T, G, K], each shared by H/G heads in a row; v: [B, T, H, V]; g: [B, T, H] log decay
    (<= 0); initial_state: [B, H, K, V].
    cu_seqlens: [n + 1] int, where documents begin among the B·T tokens, from 0 to B·T, every
    row's border among them; states are then [n, H, K, V], one a document.
    Returns o: [B, T, H, V] in v's dtype, and the final state if asked for, else None.
    """
    if cu_seqlens is not None:
        real, (q, k, v_, g) = rows_by_document(cu_seqlens, q, k, v, g)
        o, S = naive(q, k, v_, g, initial_state=initial_state, output_final_state=True)
        return o[real].view_as(v), S if output_final_state else None
    dtype = compute_dtype(v)
    B, T, H, V = v.shape
    q, k = (x.to(dtype).repeat_interleave(H // x.shape[2], dim=2) for x in (q, k))
    v_, g = v.to(dtype), g.to(dtype)
    S = v_.new_zeros(B, H, k.shape[-1], V) if initial_state is None else initial_state.to(dtype)
    out = []
    for t in range(T):
        S = S * g[:, t, :, None, None].exp() + torch.einsum("bhk,bhv->bhkv", k[:, t], v_[:, t])
        out.append(torch.einsum("bhkv,bhk->bhv", S, q[:, t]))
    return torch.stack(out, dim=1).to(v.dtype), S if output_final_state else None


@in_own_precision
def step(q: Tensor, k: Tensor, v: Tensor, g: Tensor, state: Tensor) -> Tensor:
    """The definition for one token, writing the new state into `state` [B, H, K, V], float32.

    q, k, v, g: as `naive` has them, T = 1. Returns o: [B, 1, H, V] in v's dtype.
    """
    B, H, K, V = state.shape
    G = q.shape[2]
    S = state.view(B, G, H // G, K, V)
    q, k = (x.reshape(B, G, 1, 1, K).to(S.dtype) for x in (q, k))
    v_ = v.reshape(B, G, H // G, 1, V).to(S.dtype)
    S.mul_(g.exp().reshape(B, G, H // G, 1, 1)).addcmul_(k.mT, v_)
    return (q @ S).view(v.shape).to(v.dtype)


@in_own_precision
def chunked(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    chunk: int | None = None,
    *,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """The same function as `naive` (arguments and results are its), `chunk` tokens at a time."""
    if cu_seqlens is not None and (initial_state is not None or output_final_state):
        real, (q, k, v_, g) = rows_by_document(cu_seqlens, q, k, v, g)
        o, S = chunked(q, k, v_, g, chunk, initial_state=initial_state, output_final_state=True)
        return o[real].view_as(v), S if output_final_state else None
    B, T, H, V = v.shape
    begins = None if cu_seqlens is None else document_begins(cu_seqlens, B, T)
    if initial_state is None:
        initial_state = v.new_zeros(B, H, k.shape[-1], V, dtype=compute_dtype(v))
    o, S = _Chunked.apply(q, k, v, g, initial_state, begins, chunk_length(v, chunk))
    return o, S if output_final_state else None


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, Tensor]:
        *read, initial_state, _, ctx.C = arguments
        o, S, *saved = _forward(*arguments)
        ctx.save_for_backward(*read, *saved)
        ctx.dtype = initial_state.dtype
        return o, S

    @staticmethod
    @in_own_precision
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        *found, dS = _backward(*grads, ctx.saved_tensors, ctx.C)
        return *found, dS.to(ctx.dtype), None, None


@closed_on_cpu
def _forward(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, initial_state: Tensor, begins: Tensor | None, C: int
) -> list[Tensor]:
    """The output [B, T, H, V], the final state [B, H, K, V], and what the backward pass reads.

    The R heads of a group stand side by side as columns, [N, B·G, C, R·V]: one product with the
    group's q or k then serves all of them.
    """
    G, H = q.shape[2], v.shape[2]
    R = H // G
    o = torch.empty_like(v, memory_format=torch.contiguous_format)
    S = _columns(initial_state.to(compute_dtype(v)).reshape(-1, R, *initial_state.shape[2:]))
    saved: list[Tensor] = []
    for t in stretches(v, C):
        q_, k_ = by_chunk(q[:, t], C), by_chunk(k[:, t], C)
        v_ = by_chunk(_by_group(v[:, t], G), C)
        inside = decays(g[:, t], None if begins is None else begins[:, t], C)
        within, from_start, to_end, keep = (x.unflatten(1, (-1, R)) for x in inside)
        weights = within * (q_ @ k_.mT).unsqueeze(2)  # [N, B·G, R, C, C]
        writes = k_.mT @ _columns(_heads(v_, R) * to_end)  # [N, B·G, K, R·V]
        starts = torch.empty_like(writes)
        for i in range(len(v_)):
            starts[i] = S
            S = writes[i] + _columns(_heads(S, R) * keep[i])
        y = q_ @ starts
        _heads(y, R).mul_(from_start).add_(weights @ _heads(v_, R))
        into_time(_by_group(o[:, t], G), y)
        saved += [within, from_start, to_end, keep.clone(), starts]
    return [o, _heads(S, R).reshape(initial_state.shape), *saved]


@closed_on_cpu
def _backward(do: Tensor, dS: Tensor, saved: list[Tensor], C: int) -> list[Tensor]:
    """Gradients of q, k, v, g, and of the initial state."""
    q, k, v, g, *saved = saved
    G, H = q.shape[2], v.shape[2]
    R = H // G
    dq, dk, dv, dg = (
        torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v, g)
    )
    dS = _columns(dS.to(compute_dtype(v)).reshape(-1, R, *dS.shape[2:]))
    for t in reversed(stretches(v, C)):
        *saved, within, from_start, to_end, keep, starts = saved
        q_, k_ = by_chunk(q[:, t], C), by_chunk(k[:, t], C)
        v_, dy = (by_chunk(_by_group(x[:, t], G), C) for x in (v, do))
        v_heads, dy_heads = _heads(v_, R), _heads(dy, R)
        dy_start = _columns(dy_heads * from_start)

        # The state's adjoint runs from the last chunk to the first.
        dstarts = q_.mT @ dy_start
        dends = torch.empty_like(starts)
        for i in reversed(range(len(v_))):
            dends[i] = dS
            dS = dstarts[i] + _columns(_heads(dS, R) * keep[i])

        # Inside chunks. A decay's adjoint is that of what it multiplies, times it.
        products = (q_ @ k_.mT).unsqueeze(2)
        dweights = dy_heads @ v_heads.mT
        dproducts = (dweights * within).sum(2)
        weights = within * products
        dlog = row_less_column_sums(dweights.mul_(weights))

        # Between chunks.
        dlog += dot(_heads(dy_start, R), _heads(q_ @ starts, R))
        dv_ = k_ @ dends
        dv_heads = _heads(dv_, R).mul_(to_end)
        ended = dot(v_heads, dv_heads)
        dlog -= ended
        dkeep = (_heads(starts, R) * _heads(dends, R)).sum((-1, -2))[..., None, None] * keep
        dlog[..., -1:, :] += ended.sum(-2, keepdim=True) + dkeep
        v_end = _columns(v_heads * to_end)
        dv_heads += weights.mT @ dy_heads

        into_time(dq[:, t], dproducts @ k_ + dy_start @ starts.mT)
        into_time(dk[:, t], dproducts.mT @ q_ + v_end @ dends.mT)
        into_time(_by_group(dv[:, t], G), dv_)
        into_time(dg[:, t].unsqueeze(-1), sum_to_end(dlog).flatten(1, 2))
    dstate = _heads(dS, R).reshape(-1, H, *dS.shape[1:-1], v.shape[-1])
    return [dq, dk, dv, dg, dstate]


def _by_group(x: Tensor, G: int) -> Tensor:
    """[B, T, H, V] -> [B, T, G, R·V]."""
    return x.unflatten(2, (G, -1)).flatten(3)


def _heads(x: Tensor, R: int) -> Tensor:
    """[..., D, R·V] -> [..., R, D, V], a view."""
    return x.unflatten(-1, (R, -1)).transpose(-2, -3)


def _columns(x: Tensor) -> Tensor:
    """[..., R, D, V] -> [..., D, R·V], a view where x is laid out as `_heads` makes it."""
    return x.transpose(-2, -3).flatten(-2)
