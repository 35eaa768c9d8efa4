"""What the operators over flash-linear-attention's Triton kernels share.

fla's own functions are closed to torch.compile, and a block that calls them breaks in two there.
A mixer's fla.py therefore registers fla's forward and backward as operators of torch whose result
shapes are known beforehand. Both are fla's inner functions, not its public ones under autograd:
their saved tensors then come out of the forward operator, and no pass is run twice. Their
signatures are those of fla 0.6; `python -m models.doctor` says so where another version's differ.

The inner functions are served by fla's dispatch like the public ones: each of their kernels takes a
faster one (TileLang's on Hopper) where it is installed. What only the public functions hand over
whole cannot serve here: FlashQLA takes keys and values of width 128 alone, where Gated DeltaNet's
values are twice as wide as its keys; FlashKDA has no backward pass and makes the gates itself.

fla is imported at the first call: it needs Triton and takes seconds.

Shapes: B batch, T time, H heads, K key width, V value width, n documents.
"""

from __future__ import annotations

import torch
from torch import Tensor

CHUNK = 64
"""fla's chunk length, the width of the triangular inverses it saves for the backward pass."""


def as_fla_takes_them(cu_seqlens: Tensor | None, *tensors: Tensor) -> list[Tensor]:
    """Contiguous, and with documents one row of all tokens."""
    if cu_seqlens is None:
        return [x.contiguous() for x in tensors]
    return [x.flatten(0, 1).unsqueeze(0).contiguous() for x in tensors]


def state_like(q: Tensor, v: Tensor, cu_seqlens: Tensor | None, wanted: bool) -> Tensor:
    """An unfilled final state [B or n, H, K, V], or nothing: an operator cannot return None."""
    n = q.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    shape = (n, q.shape[2], q.shape[3], v.shape[3]) if wanted else (0,)
    return q.new_empty(shape, dtype=torch.float32)


def chunk_indices(cu_seqlens: Tensor | None) -> Tensor | None:
    from fla.ops.utils import prepare_chunk_indices

    return None if cu_seqlens is None else prepare_chunk_indices(cu_seqlens, CHUNK)


def or_empty(x: Tensor | None, like: Tensor) -> Tensor:
    """x, or no elements where there is none: an operator cannot return None."""
    return like.new_empty(0, dtype=torch.float32) if x is None else x
