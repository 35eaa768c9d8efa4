"""Where documents begin in a batch, and the attention masks that follow.

A batch is cut from a stream of documents set end to end. Where a run keeps documents apart, no
mixer may look across a border: attention by its mask, a recurrence by starting from an empty
state, a convolution by leaving out the taps beyond.

Shapes: B batch, T time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

BLOCK = 128  # queries, and keys, of a block of flex_attention's masks


@dataclass(frozen=True)
class Documents:
    """The documents of one batch, as each mixer wants to know of them; None: a row is one."""

    index: Tensor | None = None
    """[B, T] int64: which document of its row a token belongs to."""
    offset: Tensor | None = None
    """[B, T] int64: tokens since the document's first, or since the row's."""
    cu_seqlens: Tensor | None = None
    """[n + 1] int64: where documents begin in the B·T tokens of the batch, and its end."""
    masks: dict[int, Any] = field(default_factory=dict, repr=False)
    """Attention mask by window, made once a batch."""

    @classmethod
    def from_starts(cls, starts: Tensor) -> Documents:
        """starts: [B, T] bool, true where a token begins a document; a row's first always does."""
        B, T = starts.shape
        starts = starts.clone()
        starts[:, 0] = True
        time = torch.arange(T, device=starts.device)
        offset = time - torch.where(starts, time, 0).cummax(1).values
        first = starts.flatten().nonzero().squeeze(-1)
        return cls(
            starts.long().cumsum(1) - 1,
            offset,
            torch.cat([first, first.new_tensor([B * T])]),
        )

    def moved(self, move: Callable[[Tensor], Tensor]) -> Documents:
        """The same where `move` puts its tensors, without masks."""
        index, offset, borders = (
            None if x is None else move(x) for x in (self.index, self.offset, self.cu_seqlens)
        )
        return Documents(index, offset, borders)

    @classmethod
    def after(cls, separator: int, tokens: Tensor) -> Documents:
        """Documents that each end with `separator`. tokens: [B, T]."""
        return cls.from_starts(torch.roll(tokens == separator, 1, dims=1))


def causal_mask(T: int, window: int, device: torch.device, documents: Documents | None) -> Any:
    """What attention may see, None for all that came before.

    window: tokens back, itself included, 0 for all. On a CPU a boolean [T, T] or [B, 1, T, T]
    for scaled_dot_product_attention; elsewhere a BlockMask for flex_attention, which leaves out
    what is masked instead of computing it.
    """
    if documents is None:
        documents = Documents()
    if documents.index is None and not 0 < window < T:
        return None
    if window not in documents.masks:
        documents.masks[window] = _mask(T, window, device, documents)
    return documents.masks[window]


def mask_mod(T: int, window: int, index: Tensor | None) -> Callable[..., Tensor]:
    """Whether query position q of batch row b may see key position k, as flex_attention asks."""

    def visible(b: Any, _head: Any, q: Any, k: Any) -> Tensor:
        seen = (q >= k) & (q - k < (window or T))
        return seen if index is None else seen & (index[b, q] == index[b, k])

    return visible


def _mask(T: int, window: int, device: torch.device, documents: Documents) -> Any:
    if device.type != "cpu":
        return block_mask(T, window, device, documents)
    index = documents.index
    visible = mask_mod(T, window, index)
    time = torch.arange(T)
    if index is None:
        return visible(None, None, time[:, None], time)
    rows = torch.arange(index.shape[0])[:, None, None, None]
    return visible(rows, None, time[:, None], time)


def block_mask(T: int, window: int, device: torch.device, documents: Documents) -> BlockMask:
    """What flex_attention's create_block_mask makes of `mask_mod`, without looking at every pair.

    Documents follow one another and windows move on, so a query sees all keys from its first to
    itself, and a later query's first is no earlier.
    """
    time = torch.arange(T, device=device)
    start = torch.zeros_like(time[None]) if documents.offset is None else time - documents.offset
    first = start.maximum(time - (window or T) + 1)
    n = -(-T // BLOCK)
    block = torch.arange(n, device=device)
    # First keys of each block's first and last query; the last block may be cut short.
    begin = first[:, ::BLOCK, None]
    end = first[:, (BLOCK * (block + 1) - 1).clamp(max=T - 1), None]
    seen = (block <= block[:, None]) & (block >= begin // BLOCK)
    full = (block < block[:, None]) & (BLOCK * block >= end) & (BLOCK * (block[:, None] + 1) <= T)
    return BlockMask.from_kv_blocks(
        *_ordered(seen & ~full),
        *_ordered(seen & full),
        BLOCK,
        mask_mod(T, window, documents.index),
        (T, T),
    )


def _ordered(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """How many blocks of keys each block of queries has, and which, those first. [B, n, n] bool."""
    blocks = blocks.int().unsqueeze(1)
    order = blocks.argsort(dim=-1, descending=True, stable=True)
    return blocks.sum(-1, dtype=torch.int32), order.int()
