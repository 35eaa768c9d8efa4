"""Inputs of an operator for the preflight, as a layer makes them at the start of training.

Shapes: B batch, T time, H heads, G groups of heads that share a q and k, K key width, V value
width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def decaying_attention(
    device: torch.device, dtype: torch.dtype, generator: torch.Generator, groups: int | None = None
) -> list[Tensor]:
    """q, k: [B, T, G, K], of norm 1; v: [B, T, H, V]; log decays g: [B, T, H], float32.

    groups: as many as heads unless given. Two rows; T no multiple of a chunk; log decays -A·dt
    with A in (0, 16) and dt in [1e-3, 0.1].
    """
    B, T, H, K, V = (2, 509, 2, 96, 192) if device.type == "cuda" else (2, 157, 2, 48, 96)

    def rand(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    q, k = (F.normalize(randn(B, T, groups or H, K), dim=-1) for _ in range(2))
    g = -16 * rand(H) * torch.exp(rand(B, T, H) * 4.6 - 6.9)
    v = randn(B, T, H, V)
    return [*(x.to(device, dtype) for x in (q, k, v)), g.to(device)]
