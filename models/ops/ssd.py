"""State-space duality, the Mamba2 recurrence (Dao and Gu 2024, "Transformers are SSMs", eq. 16).

    S_t = exp(g_t) S_{t-1} + k_t v_t^T        o_t = S_t^T q_t

with q = C, k = B, v = dt·x and g = dt·A in the paper's letters. `naive` is that definition;
`chunked` is the block decomposition of the same paper's section 6, its backward pass written out
as in `models.ops.gated_delta_rule`.

Shapes: B batch, T time, H heads, K state width, V head width, C chunk length, N chunks, G groups
of heads that share a q and k. Gates and state are float32 (float64 for float64 inputs).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from models.ops.chunks import (
    by_chunk,
    by_time,
    chunk_length,
    compute_dtype,
    decays,
    documents_by_chunk,
    dot,
    rows_by_document,
    sum_to_end,
)


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
        real, rows = rows_by_document(cu_seqlens, q, k, v, g)
        o, S = naive(*rows, initial_state=initial_state, output_final_state=True)
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
        real, rows = rows_by_document(cu_seqlens, q, k, v, g)
        o, S = chunked(*rows, chunk, initial_state=initial_state, output_final_state=True)
        return o[real].view_as(v), S if output_final_state else None
    B, T, H, V = v.shape
    C = chunk_length(v, chunk)
    document = None if cu_seqlens is None else documents_by_chunk(cu_seqlens, B, T, C)
    if initial_state is None:
        initial_state = v.new_zeros(B, H, k.shape[-1], V, dtype=compute_dtype(v))
    o, S = _Chunked.apply(q, k, v, g, initial_state, document, C)
    return o, S if output_final_state else None


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        g: Tensor,
        initial_state: Tensor,
        document: Tensor | None,
        C: int,
    ) -> tuple[Tensor, Tensor]:
        T, dtypes = v.shape[1], [x.dtype for x in (q, k, v, g, initial_state)]
        G, H = q.shape[2], v.shape[2]
        q, k = (by_chunk(x, C).repeat_interleave(H // G, dim=1) for x in (q, k))
        v, g = by_chunk(v, C), by_chunk(g.unsqueeze(-1), C)
        decay, from_start, to_end, keep = decays(g, document)

        # What each chunk writes by its end. Decays go on the values: every head has its own.
        written = k.mT @ (v * to_end)  # [B, H, N, K, V]
        S = initial_state.to(v.dtype)
        starts = torch.empty_like(written)
        for i in range(v.shape[2]):
            starts[:, :, i] = S
            S = S * keep[:, :, i] + written[:, :, i]
        o = (q @ starts).mul_(from_start).add_(((q @ k.mT) * decay) @ v)
        ctx.save_for_backward(q, k, v, decay, from_start, to_end, keep, starts)
        ctx.dtypes, ctx.T, ctx.G = dtypes, T, G
        return by_time(o, T, dtypes[2]), S

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, decay, from_start, to_end, keep, starts = ctx.saved_tensors
        dtypes, T, C = ctx.dtypes, ctx.T, v.shape[3]
        do, dS = by_chunk(grads[0], C), grads[1].to(v.dtype)

        # The state's adjoint runs from the last chunk to the first.
        do_start = do * from_start
        dstate_out = q.mT @ do_start
        dends = torch.empty_like(starts)
        for i in range(v.shape[2] - 1, -1, -1):
            dends[:, :, i] = dS
            dS = dS * keep[:, :, i] + dstate_out[:, :, i]

        scores = q @ k.mT
        dweights = do @ v.mT
        dscores = dweights.mul_(decay)
        dlog_matrix = dscores * scores
        dlog = dlog_matrix.sum(-1, keepdim=True) - dlog_matrix.sum(-2).unsqueeze(-1)

        dq = dscores @ k + (do_start @ starts.mT)
        dlog += dot(do_start, q @ starts)

        v_end = v * to_end
        dv_end = k @ dends
        ended = dot(v_end, dv_end)
        dlog -= ended
        dkeep = (starts * dends).sum((-1, -2))[..., None, None] * keep
        dlog[..., -1:, :] += ended.sum(-2, keepdim=True) + dkeep
        dk = dscores.mT @ q + (v_end @ dends.mT)
        dv = (scores * decay).mT @ do + dv_end * to_end

        tq, tk, tv, tg, ts = dtypes
        return (
            by_time(dq.unflatten(1, (ctx.G, -1)).sum(2), T, tq),
            by_time(dk.unflatten(1, (ctx.G, -1)).sum(2), T, tk),
            by_time(dv, T, tv),
            by_time(sum_to_end(dlog), T, tg).squeeze(-1),
            dS.to(ts),
            None,
            None,
        )
