"""Keys and values that decoding keeps: a ring of slots, so that a window's cache holds the window.

The token at position p lies in slot p mod size. A cache is named tensors, [B, heads, size, width]
each: keys and values, or the latent that both are made of.

Shapes: B batch, T new tokens, D any width.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from models.decoding import NewTokens


def can_step(state: Mapping[str, Tensor], window: int) -> bool:
    """Whether `with_token` serves: there are no more slots than the window."""
    return not 0 < window < _size(state)


def with_token(
    state: Mapping[str, Tensor], token: Mapping[str, Tensor], new: NewTokens
) -> tuple[dict[str, Tensor], Tensor | None]:
    """Write one token of each row into its slot.

    token: [B, heads, 1, D] each. Returns all that is then held, [B, heads, held, D] each in the
    token's dtype, and what of it a query may see, [B, 1, 1, held] bool, None for all.
    """
    size = _size(state)
    held = min(new.most_seen + 1, size)
    mask = None
    if new.even:
        slot = new.most_seen % size
        for name, y in token.items():
            state[name].narrow(2, slot, 1).copy_(y)
    else:
        row_slots = (new.seen % size)[:, None, None, None]
        for name, y in token.items():
            state[name].scatter_(2, row_slots.expand_as(y), y.to(state[name].dtype))
        # A ring that is full holds the window and nothing else.
        slots = torch.arange(held, device=row_slots.device)
        mask = new.once(("held", size), lambda: (slots <= new.seen[:, None])[:, None, None])
    return {name: state[name].narrow(2, 0, held).to(y.dtype) for name, y in token.items()}, mask


def with_tokens(
    state: Mapping[str, Tensor], tokens: Mapping[str, Tensor], window: int, new: NewTokens
) -> tuple[dict[str, Tensor], Tensor]:
    """What is held, followed by new tokens, [B, heads, held + T, D] each, and what of it each new
    token may see, [B, 1, T, held + T] bool. Nothing is written.

    tokens: [B, heads, T, D] each; window: tokens back, itself included, 0 for all.
    """
    T, device = new.valid.shape[1], new.seen.device
    size = _size(state)
    positions = new.seen[:, None] + torch.arange(T, device=device)  # [B, T]
    held = min(new.most_seen, size)
    slots = torch.arange(held, device=device)
    last = new.seen[:, None] - 1
    in_slot = last - (last - slots) % size  # position of each slot's token, < 0 where empty
    back = positions[:, :, None] - torch.cat([in_slot, positions], 1)[:, None]
    filled = torch.cat([in_slot >= 0, new.valid], 1)[:, None]
    mask = filled & (back >= 0) & (back < (window or new.most_seen + T))
    # A padded query must see something, or its softmax is not a number.
    mask = (mask | ~new.valid[:, :, None]).unsqueeze(1)
    joined = {
        name: torch.cat([state[name][:, :, :held].to(y.dtype), y], 2) for name, y in tokens.items()
    }
    return joined, mask


def keep(state: Mapping[str, Tensor], tokens: Mapping[str, Tensor], new: NewTokens) -> None:
    """Write new tokens into their slots. tokens: [B, heads, T, D] each."""
    T, size = new.valid.shape[1], _size(state)
    if new.even and new.most_seen + T <= size:
        # Padding too: it lies where it counts as empty, and the next token will lie.
        for name, y in tokens.items():
            state[name][:, :, new.most_seen : new.most_seen + T] = y
        return
    positions = new.seen[:, None] + torch.arange(T, device=new.seen.device)  # [B, T]
    # Of more new tokens than slots only the last are kept; padding goes nowhere.
    kept = new.valid & (positions >= (new.seen + new.count)[:, None] - size)
    row, time = kept.nonzero(as_tuple=True)
    slot = positions[row, time] % size
    for name, y in tokens.items():
        state[name][row, :, slot] = y[row, :, time].to(state[name].dtype)


def _size(state: Mapping[str, Tensor]) -> int:
    """Slots of the ring."""
    return next(iter(state.values())).shape[2]
