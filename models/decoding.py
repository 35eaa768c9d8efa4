"""The cache that decoding keeps between tokens, and how new tokens meet it.

A cache holds per layer what its mixer needs of the past (keys and values, or a state of constant
size) and how many tokens each row has seen, so that prompts of unequal length share a batch.
Prompts are padded on the right; padding is neither attended to nor written into a state.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

JOINED_AT_MOST = 2**17
"""Elements of weights up to which a step joins those that read the same."""

Step = Callable[[Tensor, dict[str, Tensor], "NewTokens"], Tensor]
"""`step(x, state, new)`: a layer for one token a row, x [B, 1, d] -> [B, 1, d], that writes into
its state in place. At small widths a step takes as long as its calls do: such a function has looked
up its weights once, and calls no modules."""


def projection(*layers: nn.Linear) -> Callable[[Tensor], Tensor]:
    """What linear layers make of the same x, side by side, for a step.

    Weights of several small layers, which have no biases, are joined: a call costs more than a
    product.
    """
    if len(layers) == 1:
        return partial(F.linear, weight=layers[0].weight, bias=layers[0].bias)
    weights = [layer.weight for layer in layers]
    if sum(weight.numel() for weight in weights) <= JOINED_AT_MOST:
        return partial(F.linear, weight=torch.cat(weights))
    return lambda x: torch.cat([F.linear(x, weight) for weight in weights], -1)


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
    whole: bool = False
    """Whether none of the T is padding, as far as is known without asking the device."""
    even: bool = False
    """Whether each row has seen `most_seen` tokens, as far as is known likewise."""
    step: bool = False
    """Whether a `Step` serves: one token a row, no padding, and no gradient is asked for."""
    last_only: bool = False
    """Whether a layer may leave out all outputs but those of each row's last token."""
    shared: dict[Hashable, Any] = field(default_factory=dict, repr=False, compare=False)

    def wanted(self, x: Tensor) -> Tensor:
        """[B, T, …] -> the tokens whose outputs are wanted: all, or with `last_only` each row's
        last, [B, 1, …], where no row is padded."""
        return x[:, -1:] if self.last_only and self.whole else x

    def last(self, x: Tensor) -> Tensor:
        """[B, T, …] -> each row's last that is no padding, [B, 1, …]."""
        if self.whole:
            return x[:, -1:]
        return x[torch.arange(len(x), device=x.device), self.count - 1].unsqueeze(1)

    def once(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """What `make` returns, made once for all layers: masks and tables of positions."""
        if key not in self.shared:
            self.shared[key] = make()
        return self.shared[key]


@dataclass
class Cache:
    """What decoding keeps between tokens."""

    layers: list[dict[str, Tensor]]
    """Of each layer the tensors of its mixer's `new_state`."""
    seen: Tensor
    """[B] int64: tokens seen in each row."""
    capacity: int
    most_seen: int = 0
    even: bool = True
    """Whether no row was ever padded, so that all have seen `most_seen` tokens."""
    step: Callable[..., Tensor] | None = field(default=None, repr=False)
    """The model's `step_function`; a cache belongs to the weights it was filled by."""

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
        if count is not None:
            valid = torch.arange(T, device=device) < count[:, None]
            return NewTokens(self.seen, count, valid, self.most_seen, even=self.even)
        count = torch.full((B,), T, device=device)
        valid = torch.ones((B, T), dtype=torch.bool, device=device)
        step = T == 1 and not torch.is_grad_enabled()
        return NewTokens(self.seen, count, valid, self.most_seen, True, self.even, step)

    def take_static(self) -> NewTokens:
        """One more token of each row, for a compiled step: nothing but tensors differs between
        steps, and what is not yet filled is masked."""
        new = self.take(len(self.seen), 1, None)
        return replace(new, most_seen=self.capacity, even=False)

    def took(self, new: NewTokens, T: int) -> None:
        """Count tokens that every layer has now read."""
        self.seen = self.seen + new.count
        self.most_seen = min(self.most_seen + T, self.capacity)
        self.even &= new.whole
