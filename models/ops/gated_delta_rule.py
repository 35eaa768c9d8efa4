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
    beta: Tensor,
    scale: float | None = None,
    *,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """The definition, one token at a time.

    q, k: [B, T, H, K]; v: [B, T, H, V]; g: [B, T, H] log decay (<= 0); beta: [B, T, H] write
    strength; scale: of the queries, K**-0.5 unless given; initial_state: [B, H, K, V].
    cu_seqlens: [n + 1] int, where documents begin among the B·T tokens, from 0 to B·T, every
    row's border among them; states are then [n, H, K, V], one a document.
    Returns o: [B, T, H, V] in v's dtype, and the final state if asked for, else None.
    """
    if cu_seqlens is not None:
        real, rows = rows_by_document(cu_seqlens, q, k, v, g, beta)
        o, S = naive(*rows, scale, initial_state=initial_state, output_final_state=True)
        return o[real].view_as(v), S if output_final_state else None
    dtype = compute_dtype(v)
    B, T, H, K = q.shape
    scale = K**-0.5 if scale is None else scale
    q, k, v_, g, beta = (x.to(dtype) for x in (q * scale, k, v, g, beta))
    S = v_.new_zeros(B, H, K, v.shape[-1]) if initial_state is None else initial_state.to(dtype)
    out = []
    for t in range(T):
        S = S * g[:, t, :, None, None].exp()
        recalled = torch.einsum("bhkv,bhk->bhv", S, k[:, t])
        write = (v_[:, t] - recalled) * beta[:, t, :, None]
        S = S + torch.einsum("bhk,bhv->bhkv", k[:, t], write)
        out.append(torch.einsum("bhkv,bhk->bhv", S, q[:, t]))
    return torch.stack(out, dim=1).to(v.dtype), S if output_final_state else None


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
        real, rows = rows_by_document(cu_seqlens, q, k, v, g, beta)
        o, S = chunked(*rows, scale, chunk, initial_state=initial_state, output_final_state=True)
        return o[real].view_as(v), S if output_final_state else None
    B, T, H, K = q.shape
    scale = K**-0.5 if scale is None else scale
    C = chunk_length(v, chunk)
    document = None if cu_seqlens is None else documents_by_chunk(cu_seqlens, B, T, C)
    if initial_state is None:
        initial_state = v.new_zeros(B, H, K, v.shape[-1], dtype=compute_dtype(v))
    o, S = _Chunked.apply(q, k, v, g, beta, initial_state, document, scale, C)
    return o, S if output_final_state else None


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        g: Tensor,
        beta: Tensor,
        initial_state: Tensor,
        document: Tensor | None,
        scale: float,
        C: int,
    ) -> tuple[Tensor, Tensor]:
        T, dtypes = q.shape[1], [x.dtype for x in (q, k, v, g, beta, initial_state)]
        K, V = q.shape[-1], v.shape[-1]
        # Not in place: a contiguous input comes back as it is.
        q, k, v = by_chunk(q, C) * scale, by_chunk(k, C), by_chunk(v, C)
        g, beta = by_chunk(g.unsqueeze(-1), C), by_chunk(beta.unsqueeze(-1), C)
        decay, from_start, to_end, keep = decays(g, document)
        k_beta = k * beta

        # Unit lower triangular; the solve reads nothing on or above the diagonal.
        system = (k_beta @ k.mT).mul_(decay)
        rhs = torch.cat([v * beta, k_beta * from_start], dim=-1)
        solved = torch.linalg.solve_triangular(system, rhs, upper=False, unitriangular=True)
        writes, erases = solved.split([V, K], dim=-1)

        scores = (q @ k.mT).mul_(decay)
        q_start = q * from_start
        k_end = k * to_end

        S = initial_state.to(v.dtype)
        starts = v.new_empty(*v.shape[:3], K, V)
        written = torch.empty_like(v)
        for i in range(v.shape[2]):
            starts[:, :, i] = S
            write = writes[:, :, i] - erases[:, :, i] @ S
            written[:, :, i] = write
            S = S * keep[:, :, i] + k_end[:, :, i].mT @ write
        o = (q_start @ starts).add_(scores @ written)
        ctx.save_for_backward(
            q, k, v, beta, decay, from_start, to_end, keep, system, solved, starts, written
        )
        ctx.scale, ctx.dtypes, ctx.T = scale, dtypes, T
        return by_time(o, T, dtypes[2]), S

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, beta, *inside, system, solved, starts, written = ctx.saved_tensors
        decay, from_start, to_end, keep = inside
        dtypes, T, C = ctx.dtypes, ctx.T, q.shape[3]
        do, dS = by_chunk(grads[0], C), grads[1].to(v.dtype)
        K, V = q.shape[-1], v.shape[-1]
        q_start, k_end, k_beta = q * from_start, k * to_end, k * beta
        erases = solved[..., V:]

        # The state's adjoint runs from the last chunk to the first.
        dwritten = ((q @ k.mT).mul_(decay)).mT @ do
        dstate_out = q_start.mT @ do  # what each chunk's outputs ask of its starting state
        dends = torch.empty_like(starts)  # adjoint of each chunk's final state
        for i in range(v.shape[2] - 1, -1, -1):
            dends[:, :, i] = dS
            dwrite = dwritten[:, :, i] + k_end[:, :, i] @ dS
            dwritten[:, :, i] = dwrite
            dS = dS * keep[:, :, i] + dstate_out[:, :, i] - erases[:, :, i].mT @ dwrite

        dsolved = torch.cat([dwritten, -(dwritten @ starts.mT)], dim=-1)
        drhs = torch.linalg.solve_triangular(system.mT, dsolved, upper=True, unitriangular=True)
        dsystem = (drhs @ solved.mT).neg_().mul_(decay)
        dsystem.diagonal(dim1=-2, dim2=-1).zero_()
        dscores = (do @ written.mT).mul_(decay)

        # A decay's adjoint is (row sum - column sum) of score times its adjoint, and these sums
        # are inner products of q, k with their own adjoints: no further C×C matrix is needed.
        dq_in, dk_in = dscores @ k, dscores.mT @ q + dsystem.mT @ k_beta
        dk_beta = dsystem @ k
        dlog = dot(q, dq_in) + dot(k_beta, dk_beta) - dot(k, dk_in)

        dq_start = do @ starts.mT
        dlog += dot(q_start, dq_start)
        dq = dq_in.add_(dq_start.mul_(from_start))

        dk_end = written @ dends.mT
        ended = dot(k_end, dk_end)
        dlog -= ended
        dkeep = (starts * dends).sum((-1, -2))[..., None, None] * keep
        dlog[..., -1:, :] += ended.sum(-2, keepdim=True) + dkeep
        dk = dk_in.add_(dk_end.mul_(to_end))

        dv_beta, dk_start = drhs.split([V, K], dim=-1)
        dk_start = dk_start * from_start
        dlog += dot(k_beta, dk_start)
        dk_beta = dk_beta.add_(dk_start)
        dbeta = dot(v, dv_beta) + dot(k, dk_beta)
        dk.add_(dk_beta.mul_(beta))

        tq, tk, tv, tg, tb, ts = dtypes
        return (
            by_time(dq.mul_(ctx.scale), T, tq),
            by_time(dk, T, tk),
            by_time(dv_beta * beta, T, tv),
            by_time(sum_to_end(dlog), T, tg).squeeze(-1),
            by_time(dbeta, T, tb).squeeze(-1),
            dS.to(ts),
            None,
            None,
            None,
        )
