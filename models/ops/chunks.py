"""What the chunked operators share: the layout by chunk, and the decays inside a chunk.

Shapes: B batch, T time, H heads, D any width, C chunk length, N chunks (T padded to N·C).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = {"cpu": 32, "cuda": 64}
"""Chunk length by device: on a CPU the C×C matrices cost more than the longer walk over chunks."""


def chunk_length(x: Tensor, chunk: int | None) -> int:
    """The chunk length asked for, or the device's, at most x's length. x: [B, T, …]."""
    return min(chunk or CHUNK.get(x.device.type, 64), x.shape[1])


def compute_dtype(x: Tensor) -> torch.dtype:
    """Gates, solves and states are float32 whatever the inputs are; float64 stays float64."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def by_chunk(x: Tensor, C: int) -> Tensor:
    """[B, T, H, D] -> contiguous [B, H, N, C, D] in the compute dtype, zero-padded at the end.

    Zeros are right for every argument of both operators: such a token has write strength or
    value 0 and log decay 0, so it writes nothing and forgets nothing.
    """
    B, T, H, D = x.shape
    pad = -T % C
    x = x.to(compute_dtype(x))
    if pad:
        x = F.pad(x, (0, 0, 0, 0, 0, pad))
    return x.view(B, (T + pad) // C, C, H, D).permute(0, 3, 1, 2, 4).contiguous()


def by_time(x: Tensor, T: int, dtype: torch.dtype) -> Tensor:
    """The inverse of `by_chunk`: [B, H, N, C, D] -> [B, T, H, D] in `dtype`."""
    B, H, N, C, D = x.shape
    return x.permute(0, 2, 3, 1, 4).reshape(B, N * C, H, D)[:, :T].to(dtype)


def decay_matrix(log_decay: Tensor) -> Tensor:
    """exp(sum of log decays between i and j) for j <= i, else 0.

    log_decay: [..., C, 1], summed from the chunk's start. Masked before the exponential, which
    may overflow above the diagonal.
    """
    C = log_decay.shape[-2]
    above = torch.ones(C, C, dtype=torch.bool, device=log_decay.device).triu(1)
    difference = log_decay - log_decay.transpose(-1, -2)
    return difference.masked_fill_(above, -torch.inf).exp_()


def sum_to_end(x: Tensor) -> Tensor:
    """Reverse cumulative sum over a chunk, the adjoint of the sum from its start: [..., C, 1]."""
    return x.flip(-2).cumsum(-2).flip(-2)


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner product over the last dimension, kept: [..., C, D] -> [..., C, 1]."""
    return (a * b).sum(-1, keepdim=True)
