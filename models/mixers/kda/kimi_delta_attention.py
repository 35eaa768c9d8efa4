"""Kimi Delta Attention (Kimi Team 2025, "Kimi Linear", eq. 1): the gated delta rule with a decay
for each channel of the keys.

    S_t = (I - beta_t k_t k_tᵀ) Diag(exp g_t) S_{t-1} + beta_t k_t v_tᵀ     o_t = S_tᵀ (scale q_t)

`naive` is that definition, step by step; `chunked` the chunkwise form (ibid., section 3) with its
backward pass written out.

With a decay per channel the scores inside a chunk are A_ij = sum_k q_ik k_jk exp(G_ik - G_jk), G
the summed log decays, and no single product of matrices: exp(-G_jk) alone overflows after strong
decays. So a chunk is halved again and again: the queries of a block's second half meet the keys of
its first half in one product, each carried by decays to the border between the two, which are at
most 1. Sums up to a border are prefix and suffix sums of aligned blocks, made by doubling, of terms
of one sign: float32 loses nothing there at any decay, where differences of G would.

Shapes: B batch, T time, H heads, K key width, V value width, C chunk length (a power of two), N
chunks, P = B·H; at one level n blocks of 2b tokens. Gates, the solve and the state are float32
(float64 for float64 inputs) whatever the inputs are.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from models.closed import closed_on_cpu
from models.ops import delta_rule
from models.ops.chunks import (
    by_chunk,
    chunk_length,
    compute_dtype,
    document_begins,
    into_time,
    rows_by_document,
    stretches,
    sum_to_end,
)
from models.precision import in_own_precision

naive = delta_rule.naive
"""The definition, one token at a time; g: [B, T, H, K]."""
step = delta_rule.step
"""The definition for one token; g: [B, 1, H, K]."""

SMALL = 2
"""Blocks up to this many tokens are summed channel by channel: products of such matrices cost more
in calls than in numbers."""


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
    """The same function as `naive` (arguments and results are its), `chunk` tokens at a time, the
    next power of two of them."""
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
    C = 1 << (chunk_length(v, chunk) - 1).bit_length()
    o, S = _Chunked.apply(q, k, v, g, beta, initial_state, begins, scale, C)
    return o, S if output_final_state else None


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, Tensor]:
        *read, initial_state, begins, ctx.scale, ctx.C = arguments
        o, S, *saved = _forward(*arguments)
        ctx.save_for_backward(*read, begins, *saved)
        ctx.state = (initial_state.shape, initial_state.dtype)
        return o, S.view(initial_state.shape)

    @staticmethod
    @in_own_precision
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, g, beta, begins, *saved = ctx.saved_tensors
        *found, dS = _backward(*grads, q, k, v, g, beta, begins, saved, ctx.scale, ctx.C)
        shape, dtype = ctx.state
        return *found, dS.view(shape).to(dtype), None, None, None


class _Level(NamedTuple):
    """Blocks of 2b tokens, each halved. Of the tokens of second halves what is left of the border's
    past at each, of those of first halves what is left of each at the border: [N, P, n, b, K]."""

    b: int
    rows: Tensor
    columns: Tensor


class _Decays(NamedTuple):
    """What is left of a token's write elsewhere in its chunk.

    levels: from small blocks to the whole chunk; from_start, to_end: [N, P, C, K], from the chunk's
    start to a token and from a token to the chunk's end; keep: [N, P, K, 1], from the chunk's start
    to its end; hidden: [N, P, C, C], which pairs of tokens lie in two documents, None where every
    row is one.
    """

    levels: list[_Level]
    from_start: Tensor
    to_end: Tensor
    keep: Tensor
    hidden: Tensor | None


def _decays(g: Tensor, begins: Tensor | None, C: int) -> _Decays:
    """The decays inside each chunk for log decays g: [B, T, H, K].

    begins: [B, T], 1 where a document begins and 0 elsewhere; None where every row is one.
    """
    prefix = by_chunk(g, C)  # of aligned blocks of b tokens, each token included
    suffix = torch.zeros_like(prefix)  # likewise, each token left out
    levels = []
    b = 1
    while b < C:
        halves_before = prefix.unflatten(-2, (-1, 2, b))  # [N, P, n, 2, b, K]
        halves_after = suffix.unflatten(-2, (-1, 2, b))
        levels.append(
            _Level(b, halves_before[..., 1, :, :].exp(), halves_after[..., 0, :, :].exp())
        )
        first, second = (halves_before[..., half, -1:, :].clone() for half in (0, 1))
        halves_before[..., 1, :, :] += first
        halves_after[..., 0, :, :] += second
        b *= 2
    from_start, to_end = prefix.exp_(), suffix.exp_()
    keep = from_start[..., -1:, :]
    hidden = None
    if begins is not None:
        B, T, H, _ = g.shape
        document = by_chunk(begins[..., None, None].expand(B, T, H, 1), C).cumsum(-2)
        hidden = document != document.mT
        keep = keep * (document[..., -1:, :] == 0)
        from_start = from_start * (document == 0)
        to_end = to_end * (document == document[..., -1:, :])
    return _Decays(levels, from_start, to_end, keep.mT, hidden)


def _blocks(x: Tensor, b: int) -> Tensor:
    """The pairs of second half and first half in [N, P, C, C], as a view [N, P, n, b, b]."""
    pairs = x.unflatten(-1, (-1, 2 * b)).unflatten(-3, (-1, 2 * b)).diagonal(dim1=-4, dim2=-2)
    return pairs.movedim(-1, -3)[..., b:, :b]


def _halves(x: Tensor, b: int) -> tuple[Tensor, Tensor]:
    """First and second halves of the blocks in [N, P, C, K], as views [N, P, n, b, K]."""
    halves = x.unflatten(-2, (-1, 2, b))
    return halves[..., 0, :, :], halves[..., 1, :, :]


def _product(x: Tensor, y: Tensor) -> Tensor:
    """x yᵀ of blocks: [..., a, K], [..., b, K] -> [..., a, b]."""
    if y.shape[-2] <= SMALL:
        return (x.unsqueeze(-2) * y.unsqueeze(-3)).sum(-1)
    return x @ y.mT


def _sum(weights: Tensor, x: Tensor) -> Tensor:
    """Weighted sums of rows of blocks: [..., a, b], [..., b, K] -> [..., a, K]."""
    if x.shape[-2] <= SMALL:
        return (weights.unsqueeze(-1) * x.unsqueeze(-3)).sum(-2)
    return weights @ x


def _carried(q: Tensor, k: Tensor, levels: list[_Level]) -> Iterator[tuple[_Level, Tensor, Tensor]]:
    """At each level queries and keys of second halves, [N, P, n, 2b, K], and keys of first halves,
    [N, P, n, b, K], carried to the border between the halves."""
    for level in levels:
        k_first, k_second = _halves(k, level.b)
        _, q_second = _halves(q, level.b)
        rows = torch.cat([q_second * level.rows, k_second * level.rows], -2)
        yield level, rows, k_first * level.columns


def _inside(q: Tensor, k: Tensor, decay: _Decays) -> tuple[Tensor, Tensor]:
    """Scores of the queries with the keys up to them, and overlaps of the keys with those before
    them: [N, P, C, C] each."""
    N, P, C, _ = q.shape
    scores, overlap = (q.new_zeros(N, P, C, C) for _ in range(2))
    scores.diagonal(dim1=-2, dim2=-1).copy_((q * k).sum(-1))
    for level, rows, columns in _carried(q, k, decay.levels):
        of_q, of_k = _product(rows, columns).split(level.b, -2)
        _blocks(scores, level.b).copy_(of_q)
        _blocks(overlap, level.b).copy_(of_k)
    if decay.hidden is not None:
        scores.masked_fill_(decay.hidden, 0)
        overlap.masked_fill_(decay.hidden, 0)
    return scores, overlap


def _inside_back(
    q: Tensor, k: Tensor, decay: _Decays, dscores: Tensor, doverlap: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Adjoints of q, k and the summed log decays through `_inside`, [N, P, C, K] each.

    What q or k is multiplied by holds exp(G) of its token, or exp(-G) as a first half: so G's
    adjoint is q·dq + k·dk of the one less k·dk of the other.
    """
    if decay.hidden is not None:
        dscores = dscores.masked_fill(decay.hidden, 0)
        doverlap = doverlap.masked_fill(decay.hidden, 0)
    dq, dk, dk_first = (torch.zeros_like(q) for _ in range(3))
    for level, rows, columns in _carried(q, k, decay.levels):
        of_pairs = torch.cat([_blocks(dscores, level.b), _blocks(doverlap, level.b)], -2)
        of_q, of_k = _sum(of_pairs, columns).split(level.b, -2)
        _halves(dq, level.b)[1].addcmul_(of_q, level.rows)
        _halves(dk, level.b)[1].addcmul_(of_k, level.rows)
        _halves(dk_first, level.b)[0].addcmul_(_sum(of_pairs.mT, rows), level.columns)
    dlog = q * dq + k * (dk - dk_first)
    dk += dk_first
    same = dscores.diagonal(dim1=-2, dim2=-1).unsqueeze(-1)
    return dq.addcmul_(same, k), dk.addcmul_(same, q), dlog


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
        decay = _decays(g[:, t], None if begins is None else begins[:, t], C)
        scores, overlap = _inside(q_, k_, decay)
        inverse = delta_rule.solve(overlap, beta_)
        weights = inverse * beta_.mT
        writes, erases = weights @ v_, weights @ (k_ * decay.from_start)
        states = delta_rule.walk(writes, erases, k_ * decay.to_end, decay.keep, S)
        S = states[-1]
        y = (q_ * decay.from_start) @ states[:-1]
        into_time(o[:, t], y.add_(scores @ writes).mul_(scale))
        saved += [scores, overlap, inverse, states, writes]
    return [o, S.clone(), *saved]


@closed_on_cpu
def _backward(
    do: Tensor,
    dS: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    begins: Tensor | None,
    saved: list[Tensor],
    scale: float,
    C: int,
) -> list[Tensor]:
    """Gradients of q, k, v, g, beta, and of the initial state as [P, K, V]."""
    dq, dk, dv, dg, dbeta = (torch.empty_like(x) for x in (q, k, v, g, beta))
    dS = dS.to(compute_dtype(v)).flatten(0, 1)
    for t in reversed(stretches(v, C)):
        *saved, scores, overlap, inverse, states, writes = saved
        q_, k_, v_ = (by_chunk(x[:, t], C) for x in (q, k, v))
        beta_ = by_chunk(beta[:, t].unsqueeze(-1), C)
        decay = _decays(g[:, t], None if begins is None else begins[:, t], C)
        starts = states[:-1]
        dy = by_chunk(do[:, t], C).mul_(scale)
        q_start, k_start, k_end = q_ * decay.from_start, k_ * decay.from_start, k_ * decay.to_end
        weights = inverse * beta_.mT
        erases = weights @ k_start

        # The state's adjoint runs from the last chunk to the first.
        dwrites = scores.mT @ dy
        dstates = delta_rule.walk_back(dwrites, dy, q_start, erases, k_end, decay.keep, dS)
        dS, dends = dstates[0], dstates[1:]

        # Inside chunks, and the triangular system: writes = weights v, erases = weights k_start.
        derases = (dwrites @ starts.mT).neg_()
        dweights = dwrites @ v_.mT + derases @ k_start.mT
        into_time(dv[:, t], weights.mT @ dwrites)
        dsystem = (inverse.mT @ (dweights * beta_.mT) @ inverse.mT).neg_()
        dbeta_ = (dweights * inverse).sum(-2).unsqueeze(-1)
        dbeta_ += (dsystem * overlap).sum(-1, keepdim=True)
        into_time(dbeta[:, t].unsqueeze(-1), dbeta_)
        dq_, dk_, dlog = _inside_back(q_, k_, decay, dy @ writes.mT, dsystem.mul_(beta_))

        # Between chunks: the adjoint of a decay is that of what it multiplies, times it.
        dq_start, dk_start = dy @ starts.mT, weights.mT @ derases
        dk_end = writes @ dends.mT
        ended = k_end * dk_end
        dlog.addcmul_(q_start, dq_start).addcmul_(k_start, dk_start).sub_(ended)
        kept = decay.keep.squeeze(-1) * torch.linalg.vecdot(starts, dends)
        dlog[..., -1, :] += ended.sum(-2) + kept
        into_time(dq[:, t], dq_.addcmul_(dq_start, decay.from_start))
        dk_.addcmul_(dk_start, decay.from_start).addcmul_(dk_end, decay.to_end)
        into_time(dk[:, t], dk_)
        into_time(dg[:, t], sum_to_end(dlog))
    return [dq, dk, dv, dg, dbeta, dS]
