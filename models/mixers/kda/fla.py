"""Kimi Delta Attention by flash-linear-attention's Triton kernels: see models.ops.fla.

Shapes: B batch, T time, H heads, K key width, V value width, n documents.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from models.ops.fla import CHUNK, as_fla_takes_them, chunk_indices, or_empty, state_like
from models.precision import in_own_precision


@in_own_precision
def kimi_delta_attention(
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
    """The same function as `models.ops.delta_rule.naive`, on a CUDA device; K at most 256."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    shape = v.shape
    q, k, v, g, beta = as_fla_takes_them(cu_seqlens, q, k, v, g.float(), beta.float())
    state = None if initial_state is None else initial_state.float().contiguous()
    o, S, *_ = _kda(q, k, v, g, beta, state, cu_seqlens, scale, output_final_state)
    return o.view(shape), S if output_final_state else None


@torch.library.custom_op("archladder::fla_kimi_delta_attention", mutates_args=())
def _kda(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    scale: float,
    output_final_state: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Output, final state, and for the backward pass summed gates, scores and inverses."""
    from fla.ops.kda.chunk_fwd import chunk_kda_fwd
    from fla.utils import input_guard

    o, S, summed, scores, inverse, *_ = input_guard(chunk_kda_fwd)(
        q=q, k=k, v=v, g=g, beta=beta, scale=scale, initial_state=initial_state,
        output_final_state=output_final_state, cu_seqlens=cu_seqlens,
        chunk_indices=chunk_indices(cu_seqlens), chunk_size=CHUNK,
    )  # fmt: skip
    return o.to(q.dtype), or_empty(S, q), summed, scores, inverse


@_kda.register_fake
def _(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    _initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    _scale: float,
    output_final_state: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    S = state_like(q, v, cu_seqlens, output_final_state)
    scores, inverse = (k.new_empty(*beta.shape, CHUNK) for _ in range(2))
    return v.new_empty(v.shape, dtype=q.dtype), S, torch.empty_like(g), scores, inverse


@torch.library.custom_op("archladder::fla_kimi_delta_attention_backward", mutates_args=())
def _kda_backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    summed: Tensor,
    scores: Tensor,
    inverse: Tensor,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    scale: float,
    do: Tensor,
    dS: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Adjoints of q, k, v, g, beta and the initial state."""
    from fla.ops.kda.chunk_bwd import chunk_kda_bwd
    from fla.utils import input_guard

    dq, dk, dv, dbeta, dg, dstate, *_ = input_guard(chunk_kda_bwd)(
        q=q, k=k, v=v, g=summed, beta=beta, Aqk=scores, Akk=inverse, scale=scale,
        initial_state=initial_state, do=do, dht=dS, cu_seqlens=cu_seqlens,
        chunk_indices=chunk_indices(cu_seqlens), chunk_size=CHUNK,
    )  # fmt: skip
    return dq.to(q), dk.to(k), dv.to(v), dg.to(summed), dbeta.to(beta), or_empty(dstate, q)


@_kda_backward.register_fake
def _(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    summed: Tensor,
    _scores: Tensor,
    _inverse: Tensor,
    initial_state: Tensor | None,
    _cu_seqlens: Tensor | None,
    _scale: float,
    _do: Tensor,
    _dS: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    dstate = or_empty(None if initial_state is None else torch.empty_like(initial_state), q)
    dq, dk, dv, dg, dbeta = (torch.empty_like(x) for x in (q, k, v, summed, beta))
    return dq, dk, dv, dg, dbeta, dstate


def _kda_save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    q, k, v, _, beta, initial_state, cu_seqlens, ctx.scale, ctx.wanted = inputs
    ctx.save_for_backward(q, k, v, beta, *output[2:], initial_state, cu_seqlens)


def _kda_adjoint(ctx: Any, do: Tensor, dS: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    *saved, initial_state, cu_seqlens = ctx.saved_tensors
    final = dS.contiguous() if ctx.wanted else None
    *d, dstate = _kda_backward(
        *saved, initial_state, cu_seqlens, ctx.scale, do.contiguous(), final
    )  # fmt: skip
    return *d, None if initial_state is None else dstate, None, None, None


_kda.register_autograd(_kda_adjoint, setup_context=_kda_save)
