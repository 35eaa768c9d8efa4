"""SSD by flash-linear-attention's Triton kernels of simple GLA: see models.ops.fla.

Shapes: B batch, T time, H heads, G groups, K key width, V value width, n documents.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from models.ops.fla import CHUNK, as_fla_takes_them, chunk_indices, or_empty, state_like
from models.precision import in_own_precision


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
    # fla 0.6 takes a q and k for several heads in its outputs (chunk_fwd_o), but its states
    # (chunk_fwd_h, chunk_bwd_dh) have as many heads as k: B and C must be repeated.
    q, k = (x.repeat_interleave(heads_per_group, dim=2) for x in (q, k))
    q, k, v, g = as_fla_takes_them(cu_seqlens, q, k, v, g.float())
    state = None if initial_state is None else initial_state.float().contiguous()
    o, S, _ = _ssd(q, k, v, g, state, cu_seqlens, output_final_state)
    return o.view(shape), S if output_final_state else None


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

    chunks = chunk_indices(cu_seqlens)
    # The kernels take powers of two.
    summed = chunk_local_cumsum(
        g, chunk_size=CHUNK, scale=RCP_LN2, cu_seqlens=cu_seqlens, chunk_indices=chunks
    )
    o, S = input_guard(chunk_simple_gla_fwd)(
        q=q, k=k, v=v, g=summed, scale=1.0, initial_state=initial_state,
        output_final_state=output_final_state, cu_seqlens=cu_seqlens,
        chunk_indices=chunks, chunk_size=CHUNK,
    )  # fmt: skip
    return o.to(q.dtype), or_empty(S, q), summed


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
    S = state_like(q, v, cu_seqlens, output_final_state)
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

    chunks = chunk_indices(cu_seqlens)
    dq, dk, dv, dg, dstate = input_guard(chunk_simple_gla_bwd)(
        q=q, k=k, v=v, g=summed, g_gamma=None, scale=1.0, initial_state=initial_state,
        do=do, dht=dS, cu_seqlens=cu_seqlens, chunk_indices=chunks, chunk_size=CHUNK,
    )  # fmt: skip
    dg = chunk_local_cumsum(
        dg, chunk_size=CHUNK, reverse=True, cu_seqlens=cu_seqlens, chunk_indices=chunks
    )
    return dq.to(q), dk.to(k), dv.to(v), dg.to(summed), or_empty(dstate, q)


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
    dstate = or_empty(None if initial_state is None else torch.empty_like(initial_state), q)
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
