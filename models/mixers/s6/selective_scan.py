"""The selective scan of Mamba-1 (Gu and Dao 2023, "Mamba", algorithm 2 and eq. 2).

    h_t = exp(dt_t A) h_{t-1} + dt_t x_t B_tᵀ        y_t = h_t C_t

Each channel has N decays of its own, so that no product of matrices does a chunk: `chunked` makes
decays and inputs of a chunk at once, walks over its tokens one by one, and keeps for the backward
pass the states at the chunks' starts alone, from which the walk is made again.

Shapes: B batch, T time, I channels, N states of a channel, C tokens of a chunk. States are float32
(float64 for float64 inputs) whatever the inputs are.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from models.closed import closed_on_cpu
from models.ops.chunks import compute_dtype, document_begins, rows_by_document
from models.precision import in_own_precision

CHUNK = 32
"""Tokens whose states are held at once: C·B·I·N numbers, a few megabytes in the tiny ladder."""


@in_own_precision
def naive(
    x: Tensor,
    dt: Tensor,
    Bs: Tensor,
    Cs: Tensor,
    A: Tensor,
    *,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """The definition, one token at a time.

    x: [B, T, I]; dt: [B, T, I] (>= 0); Bs, Cs: [B, T, N]; A: [I, N] (<= 0); initial_state:
    [B, I, N].
    cu_seqlens: [n + 1] int, where documents begin among the B·T tokens, from 0 to B·T, every
    row's border among them; states are then [n, I, N], one a document.
    Returns y: [B, T, I] in x's dtype, and the final state if asked for, else None.
    """
    if cu_seqlens is not None:
        real, rows = rows_by_document(cu_seqlens, x, dt, Bs, Cs)
        y, h = naive(*rows, A, initial_state=initial_state, output_final_state=True)
        return y[real].view_as(x), h if output_final_state else None
    dtype = compute_dtype(x)
    x_, dt, Bs, Cs, A = (y.to(dtype) for y in (x, dt, Bs, Cs, A))
    h = x_.new_zeros(len(x), *A.shape) if initial_state is None else initial_state.to(dtype)
    out = []
    for t in range(x.shape[1]):
        write = (dt[:, t] * x_[:, t]).unsqueeze(-1) * Bs[:, t].unsqueeze(1)
        h = (dt[:, t].unsqueeze(-1) * A).exp() * h + write
        out.append(torch.einsum("bin,bn->bi", h, Cs[:, t]))
    return torch.stack(out, 1).to(x.dtype), h if output_final_state else None


@in_own_precision
def step(x: Tensor, dt: Tensor, Bs: Tensor, Cs: Tensor, A: Tensor, state: Tensor) -> Tensor:
    """The definition for one token, writing the new state into `state` [B, I, N], float32.

    Other arguments as `naive` has them, T = 1. Returns y: [B, 1, I] in x's dtype.
    """
    x_, dt, Bs, Cs = (y[:, 0].to(state.dtype) for y in (x, dt, Bs, Cs))
    state.mul_((dt.unsqueeze(-1) * A.to(state.dtype)).exp())
    state.addcmul_((dt * x_).unsqueeze(-1), Bs.unsqueeze(1))
    return torch.bmm(state, Cs.unsqueeze(-1)).mT.to(x.dtype)


@in_own_precision
def chunked(
    x: Tensor,
    dt: Tensor,
    Bs: Tensor,
    Cs: Tensor,
    A: Tensor,
    chunk: int | None = None,
    *,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """The same function as `naive` (arguments and results are its), `chunk` tokens at a time."""
    if cu_seqlens is not None and (initial_state is not None or output_final_state):
        real, rows = rows_by_document(cu_seqlens, x, dt, Bs, Cs)
        y, h = chunked(*rows, A, chunk, initial_state=initial_state, output_final_state=True)
        return y[real].view_as(x), h if output_final_state else None
    B, T, _ = x.shape
    begins = None if cu_seqlens is None else document_begins(cu_seqlens, B, T)
    if initial_state is None:
        initial_state = x.new_zeros(B, *A.shape, dtype=compute_dtype(x))
    y, h = _Chunked.apply(x, dt, Bs, Cs, A, initial_state, begins, chunk or CHUNK)
    return y, h if output_final_state else None


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, Tensor]:
        *read, initial_state, begins, ctx.C = arguments
        y, h, starts = _forward(*arguments)
        ctx.save_for_backward(*read, begins, starts)
        ctx.dtype = initial_state.dtype
        return y, h

    @staticmethod
    @in_own_precision
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        *found, dh = _backward(*grads, *ctx.saved_tensors, ctx.C)
        return *found, dh.to(ctx.dtype), None, None


def _of_chunk(
    t: slice, x: Tensor, dt: Tensor, Bs: Tensor, Cs: Tensor, A: Tensor, begins: Tensor | None
) -> tuple[Tensor, ...]:
    """Of a chunk, time first and in the compute dtype: x, dt [C, B, I], Bs, Cs [C, B, N], and what
    is left of the state at each token, [C, B, I, N]: nothing where a document begins."""
    dtype = compute_dtype(x)
    x, dt, Bs, Cs = (y[:, t].transpose(0, 1).to(dtype) for y in (x, dt, Bs, Cs))
    left = (dt.unsqueeze(-1) * A.to(dtype)).exp_()
    if begins is not None:
        left = left * (begins[:, t].T == 0)[..., None, None]
    return x, dt, Bs, Cs, left


def _walk(h: Tensor, left: Tensor, x: Tensor, dt: Tensor, Bs: Tensor) -> Tensor:
    """The states after each token of a chunk, [C, B, I, N]. h: [B, I, N], the one before."""
    states = (dt * x).unsqueeze(-1) * Bs.unsqueeze(-2)
    for t in range(len(states)):
        h = states[t].addcmul_(left[t], h)
    return states


def _chunks(T: int, C: int) -> list[slice]:
    return [slice(t, min(t + C, T)) for t in range(0, T, C)]


@closed_on_cpu
def _forward(
    x: Tensor,
    dt: Tensor,
    Bs: Tensor,
    Cs: Tensor,
    A: Tensor,
    initial_state: Tensor,
    begins: Tensor | None,
    C: int,
) -> list[Tensor]:
    """The output [B, T, I], the final state, and the state before each chunk [chunks, B, I, N]."""
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    h = initial_state.to(compute_dtype(x))
    starts = []
    for t in _chunks(x.shape[1], C):
        starts.append(h)
        x_, dt_, Bs_, Cs_, left = _of_chunk(t, x, dt, Bs, Cs, A, begins)
        states = _walk(h, left, x_, dt_, Bs_)
        y[:, t] = (states @ Cs_.unsqueeze(-1)).squeeze(-1).transpose(0, 1)
        h = states[-1]
    return [y, h.clone(), torch.stack(starts)]


@closed_on_cpu
def _backward(
    dy: Tensor,
    dh: Tensor,
    x: Tensor,
    dt: Tensor,
    Bs: Tensor,
    Cs: Tensor,
    A: Tensor,
    begins: Tensor | None,
    starts: Tensor,
    C: int,
) -> list[Tensor]:
    """Gradients of x, dt, Bs, Cs, A and the initial state."""
    dx, ddt, dBs, dCs = (torch.empty_like(y) for y in (x, dt, Bs, Cs))
    dtype = compute_dtype(x)
    dA = torch.zeros_like(A, dtype=dtype)
    dh = dh.to(dtype)
    for number, t in reversed(list(enumerate(_chunks(x.shape[1], C)))):
        x_, dt_, Bs_, Cs_, left = _of_chunk(t, x, dt, Bs, Cs, A, begins)
        before = starts[number]
        states = _walk(before, left, x_, dt_, Bs_)
        dy_ = dy[:, t].transpose(0, 1).to(dtype)
        dCs[:, t] = (dy_.unsqueeze(-2) @ states).squeeze(-2).transpose(0, 1)
        dstates = dy_.unsqueeze(-1) * Cs_.unsqueeze(-2)
        dh = dstates[-1].add_(dh)
        for i in reversed(range(len(dstates) - 1)):
            dh = dstates[i].addcmul_(left[i + 1], dh)
        dh = dh * left[0]
        # A decay's adjoint is that of the state it is multiplied with, times both.
        dlog = left
        dlog[1:].mul_(states[:-1])
        dlog[0].mul_(before)
        dlog.mul_(dstates)
        of_write = (dstates @ Bs_.unsqueeze(-1)).squeeze(-1)
        dBs[:, t] = ((dt_ * x_).unsqueeze(-2) @ dstates).squeeze(-2).transpose(0, 1)
        dx[:, t] = (of_write * dt_).transpose(0, 1)
        ddt[:, t] = (of_write * x_ + (dlog * A.to(dtype)).sum(-1)).transpose(0, 1)
        dA += (dlog * dt_.unsqueeze(-1)).sum((0, 1))
    return [dx, ddt, dBs, dCs, dA.to(A.dtype), dh]
