"""State-space duality, the Mamba2 recurrence (Dao and Gu 2024, "Transformers are SSMs", eq. 16).

    S_t = exp(g_t) S_{t-1} + k_t v_t^T        o_t = S_t^T q_t

with q = C, k = B, v = dt·x and g = dt·A in the paper's letters. `naive` is that definition;
`chunked` is the block decomposition of the same paper's section 6, its backward pass written out
as in `models.ops.gated_delta_rule`.

Shapes: B batch, T time, H heads, K state width, V head width, C chunk length, N chunks; q and k
are one group, shared by all heads. Gates and state are float32 (float64 for float64 inputs).
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
    decay_matrix,
    dot,
    sum_to_end,
)


def naive(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, initial_state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The definition, one token at a time.

    q, k: [B, T, K]; v: [B, T, H, V]; g: [B, T, H] log decay (<= 0); initial_state: [B, H, K, V].
    Returns o: [B, T, H, V] in v's dtype and the final state [B, H, K, V].
    """
    dtype = compute_dtype(v)
    B, T, H, V = v.shape
    q, k, v_, g = (x.to(dtype) for x in (q, k, v, g))
    S = v_.new_zeros(B, H, k.shape[-1], V) if initial_state is None else initial_state.to(dtype)
    out = []
    for t in range(T):
        S = S * g[:, t, :, None, None].exp() + torch.einsum("bk,bhv->bhkv", k[:, t], v_[:, t])
        out.append(torch.einsum("bhkv,bk->bhv", S, q[:, t]))
    return torch.stack(out, dim=1).to(v.dtype), S


def chunked(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    initial_state: Tensor | None = None,
    chunk: int | None = None,
) -> tuple[Tensor, Tensor]:
    """The same function as `naive` (arguments and results are its), `chunk` tokens at a time."""
    B, _, H, V = v.shape
    if initial_state is None:
        initial_state = v.new_zeros(B, H, k.shape[-1], V, dtype=compute_dtype(v))
    return _Chunked.apply(q, k, v, g, initial_state, chunk_length(v, chunk))


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, g: Tensor, initial_state: Tensor, C: int
    ) -> tuple[Tensor, Tensor]:
        T, dtypes = v.shape[1], [x.dtype for x in (q, k, v, g, initial_state)]
        q, k = by_chunk(q.unsqueeze(2), C), by_chunk(k.unsqueeze(2), C)  # [B, 1, N, C, K]
        v, g = by_chunk(v, C), by_chunk(g.unsqueeze(-1), C)
        log_decay = g.cumsum(-2)  # [B, H, N, C, 1]
        decay = decay_matrix(log_decay)  # [B, H, N, C, C]
        last = log_decay[..., -1:, :]
        keep = last.exp()

        # What each chunk writes by its end. Decays go on the values: every head has its own.
        written = k.mT @ (v * (last - log_decay).exp())  # [B, H, N, K, V]
        S = initial_state.to(v.dtype)
        starts = torch.empty_like(written)
        for i in range(v.shape[2]):
            starts[:, :, i] = S
            S = S * keep[:, :, i] + written[:, :, i]
        o = (q @ starts).mul_(log_decay.exp()).add_(((q @ k.mT) * decay) @ v)
        ctx.save_for_backward(q, k, v, log_decay, decay, starts)
        ctx.dtypes, ctx.T = dtypes, T
        return by_time(o, T, dtypes[2]), S

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, log_decay, decay, starts = ctx.saved_tensors
        dtypes, T, C = ctx.dtypes, ctx.T, v.shape[3]
        do, dS = by_chunk(grads[0], C), grads[1].to(v.dtype)
        from_start = log_decay.exp()
        last = log_decay[..., -1:, :]
        to_end, keep = (last - log_decay).exp(), last.exp()

        # The state's adjoint runs from the last chunk to the first.
        do_start = do * from_start
        dstate_out = q.mT @ do_start
        dends = torch.empty_like(starts)
        for i in range(v.shape[2] - 1, -1, -1):
            dends[:, :, i] = dS
            dS = dS * keep[:, :, i] + dstate_out[:, :, i]

        scores = q @ k.mT  # [B, 1, N, C, C]
        dweights = do @ v.mT
        dweights_decay = dweights.mul_(decay)
        dscores = dweights_decay.sum(1, keepdim=True)
        dlog_matrix = dweights_decay.mul_(scores)
        dlog = dlog_matrix.sum(-1, keepdim=True) - dlog_matrix.sum(-2).unsqueeze(-1)

        dq = dscores @ k + (do_start @ starts.mT).sum(1, keepdim=True)
        dlog += dot(do_start, q @ starts)

        v_end = v * to_end
        dv_end = k @ dends
        ended = dot(v_end, dv_end)
        dlog -= ended
        dkeep = (starts * dends).sum((-1, -2))[..., None, None] * keep
        dlog[..., -1:, :] += ended.sum(-2, keepdim=True) + dkeep
        dk = dscores.mT @ q + (v_end @ dends.mT).sum(1, keepdim=True)
        dv = (scores * decay).mT @ do + dv_end * to_end

        tq, tk, tv, tg, ts = dtypes
        return (
            by_time(dq, T, tq).squeeze(2),
            by_time(dk, T, tk).squeeze(2),
            by_time(dv, T, tv),
            by_time(sum_to_end(dlog), T, tg).squeeze(-1),
            dS.to(ts),
            None,
        )
