"""What the chunked operators share: the layout by chunk, and the decays inside a chunk.

A stretch is as many chunks as are worked on side by side; between stretches, as between chunks,
only the state is carried. On a CPU a stretch is small enough for its tensors to stay in the
cache, where small matrix products run at twice their speed from memory; elsewhere it is all of T.

Shapes: B batch, T time, H heads, D any width, C chunk length, N chunks of a stretch, P = B·H.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = {"cpu": 32, "cuda": 64}
"""Chunk length by device: on a CPU the C×C matrices cost more than the longer walk over chunks."""

VALUES_IN_CACHE = 400_000
"""Elements of v in a stretch on a CPU: with all that is made of them, a few megabytes."""


def chunk_length(x: Tensor, chunk: int | None) -> int:
    """The chunk length asked for, or the device's, at most x's length. x: [B, T, …]."""
    return min(chunk or CHUNK.get(x.device.type, 64), x.shape[1])


def stretches(x: Tensor, C: int) -> list[slice]:
    """The stretches of time, in order. x: [B, T, H, D]."""
    B, T, H, D = x.shape
    in_cache = x.device.type == "cpu"
    length = max(1, VALUES_IN_CACHE // (B * H * C * D)) * C if in_cache else T
    return [slice(t, min(t + length, T)) for t in range(0, T, length)]


def compute_dtype(x: Tensor) -> torch.dtype:
    """Gates, solves and states are float32 whatever the inputs are; float64 stays float64."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def by_chunk(x: Tensor, C: int) -> Tensor:
    """[B, T, H, D] -> a new contiguous [N, P, C, D] in the compute dtype, zero-padded at the end.

    Zeros are right for every argument of both operators: such a token has write strength or
    value 0 and log decay 0, so it writes nothing and forgets nothing.
    """
    B, T, H, D = x.shape
    if T % C:
        x = F.pad(x, (0, 0, 0, 0, 0, -T % C))
    out = torch.empty(x.shape[1] // C, B, H, C, D, dtype=compute_dtype(x), device=x.device)
    return out.copy_(x.unflatten(1, (-1, C)).permute(1, 0, 3, 2, 4)).flatten(1, 2)


def into_time(out: Tensor, x: Tensor) -> None:
    """Write x: [N, P, C, D] into out: [B, T, H, D], the inverse of `by_chunk`."""
    B, T, H, D = out.shape
    N, _, C, _ = x.shape
    x = x.view(N, B, H, C, D).permute(1, 0, 3, 2, 4)
    if N * C == T:
        out.unflatten(1, (N, C)).copy_(x)
    else:
        out.copy_(x.flatten(1, 2)[:, :T])


class Decays(NamedTuple):
    """What is left of a token's write elsewhere in its chunk: nothing past its document's end.

    within: [N, P, C, C], from token j to token i where j <= i, else 0; from_start and to_end:
    [N, P, C, 1], from the chunk's start to a token and from a token to the chunk's end;
    keep: [N, P, 1, 1], from the chunk's start to its end.
    """

    within: Tensor
    from_start: Tensor
    to_end: Tensor
    keep: Tensor


def decays(g: Tensor, begins: Tensor | None, C: int) -> Decays:
    """The decays inside each chunk for log decays g: [B, T, H].

    begins: [B, T], 1 where a document begins and 0 elsewhere; None where every row is one.
    Log decays are summed in float64: after a strong one, float32 would have lost the weak ones.
    """
    dtype = compute_dtype(g)
    log_decay = by_chunk(g.unsqueeze(-1).double(), C).cumsum(-2)
    last = log_decay[..., -1:, :]
    within = (log_decay - log_decay.mT).to(dtype)
    from_start, to_end = log_decay.to(dtype).exp(), (last - log_decay).to(dtype).exp()
    keep = from_start[..., -1:, :]
    hidden = torch.ones(C, C, dtype=torch.bool, device=g.device).triu(1)
    if begins is not None:
        document = by_chunk(begins[..., None, None].expand(*g.shape, 1), C).cumsum(-2)
        hidden = hidden | (document != document.mT)
        from_start = from_start * (document == 0)
        to_end = to_end * (document == document[..., -1:, :])
        keep = keep * (document[..., -1:, :] == 0)
    # Above the diagonal it could overflow; masked after, for exp(-inf) takes a slow path on CPUs.
    return Decays(within.clamp_(max=0).exp_().masked_fill_(hidden, 0), from_start, to_end, keep)


def document_begins(cu_seqlens: Tensor, B: int, T: int) -> Tensor:
    """[B, T] float32, 1 where a document begins and 0 elsewhere.

    The shape depends on B and T alone, so that a compiled step serves any documents.
    """
    begins = torch.zeros(B * T + 1, device=cu_seqlens.device)
    return begins.index_fill(0, cu_seqlens.long(), 1.0)[:-1].view(B, T)


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


def row_less_column_sums(x: Tensor) -> Tensor:
    """[..., C, C] -> [..., C, 1]: the adjoint of log decays under a matrix of their differences."""
    return x.sum(-1, keepdim=True) - x.sum(-2).unsqueeze(-1)
