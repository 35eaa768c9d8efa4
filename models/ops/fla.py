"""The operators by flash-linear-attention's Triton kernels, as custom operators of torch.

fla's own functions are closed to torch.compile, and a block that calls them breaks in two there.
Its forward and backward are therefore registered here as operators whose result shapes are known
beforehand. Both are fla's inner functions, not its public ones under autograd: their saved
tensors then come out of the forward operator, and no pass is run twice. Their signatures are
those of fla 0.6; `python -m models.doctor` says so where another version's differ.

fla is imported at the first call: it needs Triton and takes seconds.

Shapes: B batch, T time, H heads, G groups, K key width, V value width, n documents.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from models.precision import in_own_precision

CHUNK = 64
"""fla's chunk length, the width of the triangular inverses it saves for the backward pass."""


@in_own_precision
def gated_delta_rule(
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
    """The same function as `models.mixers.gdn.gated_delta_rule.naive`, on a CUDA device."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    shape = v.shape
    q, k, v, g, beta = _as_fla_takes_them(cu_seqlens, q, k, v, g.float(), beta.float())
    state = None if initial_state is None else initial_state.float().contiguous()
    o, S, _, _ = _gdr(q, k, v, g, beta, state, cu_seqlens, scale, output_final_state)
    return o.view(shape), S if output_final_state else None


@in_own_precision
def ssd(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    *,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """The same function as `models.mixers.mamba2.ssd.naive`, on a CUDA device."""
    shape, heads_per_group = v.shape, v.shape[2] // q.shape[2]
    q, k = (x.repeat_interleave(heads_per_group, dim=2) for x in (q, k))
    q, k, v, g = _as_fla_takes_them(cu_seqlens, q, k, v, g.float())
    state = None if initial_state is None else initial_state.float().contiguous()
    o, S, _ = _ssd(q, k, v, g, state, cu_seqlens, output_final_state)
    return o.view(shape), S if output_final_state else None


def _as_fla_takes_them(cu_seqlens: Tensor | None, *tensors: Tensor) -> list[Tensor]:
    """Contiguous, and with documents one row of all tokens."""
    if cu_seqlens is None:
        return [x.contiguous() for x in tensors]
    return [x.flatten(0, 1).unsqueeze(0).contiguous() for x in tensors]


def _state_like(q: Tensor, v: Tensor, cu_seqlens: Tensor | None, wanted: bool) -> Tensor:
    """An unfilled final state [B or n, H, K, V], or nothing: an operator cannot return None."""
    n = q.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    shape = (n, q.shape[2], q.shape[3], v.shape[3]) if wanted else (0,)
    return q.new_empty(shape, dtype=torch.float32)


def _chunks(cu_seqlens: Tensor | None) -> Tensor | None:
    from fla.ops.utils import prepare_chunk_indices

    return None if cu_seqlens is None else prepare_chunk_indices(cu_seqlens, CHUNK)


def _or_empty(x: Tensor | None, like: Tensor) -> Tensor:
    return like.new_empty(0, dtype=torch.float32) if x is None else x


@torch.library.custom_op("archladder::fla_gated_delta_rule", mutates_args=())
def _gdr(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    scale: float,
    output_final_state: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Output, final state, and for the backward pass summed gates and triangular inverses."""
    from fla.ops.gated_delta_rule.chunk import chunk_gated_delta_rule_fwd
    from fla.utils import input_guard

    summed, o, inverse, S, *_ = input_guard(chunk_gated_delta_rule_fwd)(
        q=q, k=k, v=v, g=g, beta=beta, scale=scale, initial_state=initial_state,
        output_final_state=output_final_state, cu_seqlens=cu_seqlens,
        chunk_indices=_chunks(cu_seqlens), chunk_size=CHUNK,
    )  # fmt: skip
    return o.to(q.dtype), _or_empty(S, q), summed, inverse


@_gdr.register_fake
def _(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    _beta: Tensor,
    _initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    _scale: float,
    output_final_state: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    S = _state_like(q, v, cu_seqlens, output_final_state)
    inverse = k.new_empty(*g.shape, CHUNK)
    return v.new_empty(v.shape, dtype=q.dtype), S, torch.empty_like(g), inverse


@torch.library.custom_op("archladder::fla_gated_delta_rule_backward", mutates_args=())
def _gdr_backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    summed: Tensor,
    beta: Tensor,
    inverse: Tensor,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    scale: float,
    do: Tensor,
    dS: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Adjoints of q, k, v, g, beta and the initial state."""
    from fla.ops.gated_delta_rule.chunk import chunk_gated_delta_rule_bwd
    from fla.utils import input_guard

    dq, dk, dv, dbeta, dg, dstate, *_ = input_guard(chunk_gated_delta_rule_bwd)(
        q=q, k=k, v=v, g=summed, beta=beta, A=inverse, scale=scale, initial_state=initial_state,
        do=do, dht=dS, cu_seqlens=cu_seqlens, chunk_indices=_chunks(cu_seqlens), chunk_size=CHUNK,
    )  # fmt: skip
    return dq.to(q), dk.to(k), dv.to(v), dg.to(summed), dbeta.to(beta), _or_empty(dstate, q)


@_gdr_backward.register_fake
def _(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    summed: Tensor,
    beta: Tensor,
    _inverse: Tensor,
    initial_state: Tensor | None,
    _cu_seqlens: Tensor | None,
    _scale: float,
    _do: Tensor,
    _dS: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    dstate = _or_empty(None if initial_state is None else torch.empty_like(initial_state), q)
    dq, dk, dv, dg, dbeta = (torch.empty_like(x) for x in (q, k, v, summed, beta))
    return dq, dk, dv, dg, dbeta, dstate


def _gdr_save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    q, k, v, _, beta, initial_state, cu_seqlens, ctx.scale, ctx.wanted = inputs
    ctx.save_for_backward(q, k, v, output[2], beta, output[3], initial_state, cu_seqlens)


def _gdr_adjoint(ctx: Any, do: Tensor, dS: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    *saved, initial_state, cu_seqlens = ctx.saved_tensors
    final = dS.contiguous() if ctx.wanted else None
    *d, dstate = _gdr_backward(
        *saved, initial_state, cu_seqlens, ctx.scale, do.contiguous(), final
    )  # fmt: skip
    return *d, None if initial_state is None else dstate, None, None, None


_gdr.register_autograd(_gdr_adjoint, setup_context=_gdr_save)


@torch.library.custom_op("archladder::fla_ssd", mutates_args=())
def _ssd(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    output_final_state: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Output, final state, and for the backward pass summed gates."""
    from fla.ops.simple_gla.chunk import chunk_simple_gla_fwd
    from fla.ops.utils import chunk_local_cumsum
    from fla.ops.utils.constant import RCP_LN2
    from fla.utils import input_guard

    chunks = _chunks(cu_seqlens)
    # The kernels take powers of two.
    summed = chunk_local_cumsum(
        g, chunk_size=CHUNK, scale=RCP_LN2, cu_seqlens=cu_seqlens, chunk_indices=chunks
    )
    o, S = input_guard(chunk_simple_gla_fwd)(
        q=q, k=k, v=v, g=summed, scale=1.0, initial_state=initial_state,
        output_final_state=output_final_state, cu_seqlens=cu_seqlens,
        chunk_indices=chunks, chunk_size=CHUNK,
    )  # fmt: skip
    return o.to(q.dtype), _or_empty(S, q), summed


@_ssd.register_fake
def _(
    q: Tensor,
    _k: Tensor,
    v: Tensor,
    g: Tensor,
    _initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    output_final_state: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    S = _state_like(q, v, cu_seqlens, output_final_state)
    return v.new_empty(v.shape, dtype=q.dtype), S, torch.empty_like(g)


@torch.library.custom_op("archladder::fla_ssd_backward", mutates_args=())
def _ssd_backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    summed: Tensor,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    do: Tensor,
    dS: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Adjoints of q, k, v, g and the initial state."""
    from fla.ops.simple_gla.chunk import chunk_simple_gla_bwd
    from fla.ops.utils import chunk_local_cumsum
    from fla.utils import input_guard

    chunks = _chunks(cu_seqlens)
    dq, dk, dv, dg, dstate = input_guard(chunk_simple_gla_bwd)(
        q=q, k=k, v=v, g=summed, g_gamma=None, scale=1.0, initial_state=initial_state,
        do=do, dht=dS, cu_seqlens=cu_seqlens, chunk_indices=chunks, chunk_size=CHUNK,
    )  # fmt: skip
    dg = chunk_local_cumsum(
        dg, chunk_size=CHUNK, reverse=True, cu_seqlens=cu_seqlens, chunk_indices=chunks
    )
    return dq.to(q), dk.to(k), dv.to(v), dg.to(summed), _or_empty(dstate, q)


@_ssd_backward.register_fake
def _(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    summed: Tensor,
    initial_state: Tensor | None,
    _cu_seqlens: Tensor | None,
    _do: Tensor,
    _dS: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    dstate = _or_empty(None if initial_state is None else torch.empty_like(initial_state), q)
    dq, dk, dv, dg = (torch.empty_like(x) for x in (q, k, v, summed))
    return dq, dk, dv, dg, dstate


def _ssd_save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    q, k, v, _, initial_state, cu_seqlens, ctx.wanted = inputs
    ctx.save_for_backward(q, k, v, output[2], initial_state, cu_seqlens)


def _ssd_adjoint(ctx: Any, do: Tensor, dS: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    *saved, initial_state, cu_seqlens = ctx.saved_tensors
    final = dS.contiguous() if ctx.wanted else None
    *d, dstate = _ssd_backward(*saved, initial_state, cu_seqlens, do.contiguous(), final)
    return *d, None if initial_state is None else dstate, None, None


_ssd.register_autograd(_ssd_adjoint, setup_context=_ssd_save)
