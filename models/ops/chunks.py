"""What the chunked operators share: the layout by chunk, and the decays inside a chunk.

Shapes: B batch, T time, H heads, D any width, C chunk length, N chunks (T padded to N·C).
"""

from __future__ import annotations

from typing import NamedTuple

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


class Decays(NamedTuple):
    """What is left of a token's write elsewhere in its chunk: nothing past its document's end.

    within: [B, H, N, C, C], from token j to token i where j <= i, else 0; from_start and to_end:
    [B, H, N, C, 1], from the chunk's start to a token and from a token to the chunk's end;
    keep: [B, H, N, 1, 1], from the chunk's start to its end.
    """

    within: Tensor
    from_start: Tensor
    to_end: Tensor
    keep: Tensor


def decays(g: Tensor, document: Tensor | None = None) -> Decays:
    """The decays inside each chunk for log decays g: [B, H, N, C, 1].

    document: what `documents_by_chunk` returns; None where every row is one document.
    Log decays are summed in float64: after a strong one, float32 would have lost the weak ones.
    """
    C = g.shape[-2]
    log_decay = g.double().cumsum(-2)
    last = log_decay[..., -1:, :]
    within = (log_decay - log_decay.mT).to(g.dtype)
    from_start, to_end = log_decay.to(g.dtype).exp(), (last - log_decay).to(g.dtype).exp()
    keep = from_start[..., -1:, :]
    hidden = torch.ones(C, C, dtype=torch.bool, device=g.device).triu(1)
    if document is not None:
        hidden = hidden | (document != document.mT)
        from_start = from_start * (document == 0)
        to_end = to_end * (document == document[..., -1:, :])
        keep = keep * (document[..., -1:, :] == 0)
    # Masked before the exponential, which may overflow above the diagonal.
    return Decays(within.masked_fill(hidden, -torch.inf).exp_(), from_start, to_end, keep)


def documents_by_chunk(cu_seqlens: Tensor, B: int, T: int, C: int) -> Tensor:
    """How many documents have begun in its chunk up to each token: [B, 1, N, C, 1].

    The shape depends on B, T and C alone, so that a compiled step serves any documents.
    """
    begins = torch.zeros(B * T + 1, dtype=torch.int32, device=cu_seqlens.device)
    begins = begins.index_fill(0, cu_seqlens.long(), 1)[:-1].view(B, T)
    return F.pad(begins, (0, -T % C)).view(B, 1, -1, C, 1).cumsum(-2)


def rows_by_document(cu_seqlens: Tensor, *tensors: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Every document in a row of its own, [B, T, …] -> [n, longest, …], zeros after its end.

    Before these, a mask: [n, longest] bool, true at tokens, which stand in their given order.
    """
    lengths = cu_seqlens.diff().unsqueeze(-1)
    place = torch.arange(int(lengths.max()), device=cu_seqlens.device)
    real = place < lengths
    index = (cu_seqlens[:-1].unsqueeze(-1) + place).masked_fill(~real, 0)
    rows = []
    for x in tensors:
        empty = ~real.view(*real.shape, *[1] * (x.dim() - 2))
        rows.append(x.flatten(0, 1)[index].masked_fill(empty, 0))
    return real, rows


def sum_to_end(x: Tensor) -> Tensor:
    """Reverse cumulative sum over a chunk, the adjoint of the sum from its start: [..., C, 1]."""
    return x.flip(-2).cumsum(-2).flip(-2)


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner product over the last dimension, kept: [..., C, D] -> [..., C, 1]."""
    return (a * b).sum(-1, keepdim=True)
