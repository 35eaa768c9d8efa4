"""The cache that decoding keeps between tokens, and how new tokens meet it.

A cache holds per layer what its mixer needs of the past (keys and values, or a state of constant
size) and how many tokens each row has seen, so that prompts of unequal length share a batch.
Prompts are padded on the right; padding is neither attended to nor written into a state.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class NewTokens:
    """How a batch of new tokens meets what a cache holds. B rows of T tokens."""

    seen: Tensor
    """[B] int64: tokens of each row before these."""
    count: Tensor
    """[B] int64: how many of the T are no padding."""
    valid: Tensor
    """[B, T] bool: which of them."""
    most_seen: int
    """The largest of `seen`, known without asking the device."""


@dataclass
class Cache:
    """What decoding keeps between tokens."""

    layers: list[dict[str, Tensor]]
    """Of each layer the tensors of its mixer's `new_state`."""
    seen: Tensor
    """[B] int64: tokens seen in each row."""
    capacity: int
    most_seen: int = 0

    @property
    def nbytes(self) -> int:
        """Bytes of all layers, for all rows."""
        return sum(t.nbytes for layer in self.layers for t in layer.values())

    def take(self, B: int, T: int, count: Tensor | None) -> NewTokens:
        """The next T tokens of each row, of which `count` [B] are no padding (None: all)."""
        device = self.seen.device
        if len(self.seen) != B:
            raise ValueError(f"{B} rows for a cache of {len(self.seen)}")
        if self.most_seen + T > self.capacity:
            raise ValueError(
                f"{T} tokens after {self.most_seen} do not fit a cache of {self.capacity}"
            )
        if count is None:
            count = torch.full((B,), T, device=device)
        valid = torch.arange(T, device=device) < count[:, None]
        return NewTokens(self.seen, count, valid, self.most_seen)

    def took(self, new: NewTokens, T: int) -> None:
        """Count tokens that every layer has now read."""
        self.seen = self.seen + new.count
        self.most_seen = min(self.most_seen + T, self.capacity)
