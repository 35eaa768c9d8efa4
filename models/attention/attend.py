"""Softmax attention by the function that serves device, dtype and mask.

Shapes: B batch, T queries, S keys, H heads, G key heads, D key width, V value width.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from models.attention.blocks import causal_attention, suits_blocks


@cache
def _compiled_flex_attention() -> Any:
    """flex_attention left uncompiled would hold every score, in a model that is not compiled."""
    return torch.compile(flex_attention)


def attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Any, *, causal: bool, scale: float | None = None
) -> Tensor:
    """softmax(scale q kᵀ) v.

    q: [B, H, T, D]; k: [B, G, S, D]; v: [B, G, S, V], V at most D; each key head serves H / G
    heads. mask: what `models.documents.causal_mask` returns; causal: whether each query sees the
    keys up to its own instead. scale: D**-0.5 unless given. Returns [B, H, T, V].
    """
    grouped = k.shape[1] < q.shape[1]
    if isinstance(mask, BlockMask):
        flex = flex_attention if torch.compiler.is_compiling() else _compiled_flex_attention()
        return flex(q, k, v, block_mask=mask, enable_gqa=grouped, scale=scale)
    V = v.shape[-1]
    v = widened(v, k.shape[-1])
    if causal and scale is None and suits_blocks(q, k):
        return causal_attention(q, k, v)[..., :V]
    out = F.scaled_dot_product_attention(
        q, k, v, mask, 0.0, causal, enable_gqa=grouped, scale=scale
    )
    return out[..., :V]


def widened(v: Tensor, width: int) -> Tensor:
    """Values with zeros up to the keys' width: flash attention takes no other, and what torch
    does without it holds every score."""
    return v if v.shape[-1] == width else F.pad(v, (0, width - v.shape[-1]))
