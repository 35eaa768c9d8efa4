"""Softmax attention as in Olmo 3: QK-norm over the full projection, rotary positions, no biases.

Shapes: B batch, T time, H heads, D head width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.config import ModelConfig
from models.pointwise import RMSNorm


def rotary_tables(T: int, D: int, theta: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """cos and sin of the rotary angles, [T, D], float32 (Su et al. 2021, eq. 34, half-split)."""
    frequency = theta ** (-torch.arange(0, D, 2, device=device, dtype=torch.float32) / D)
    angle = torch.arange(T, device=device, dtype=torch.float32)[:, None] * frequency
    angle = torch.cat([angle, angle], dim=-1)
    return angle.cos(), angle.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions on x: [B, H, T, D]; the first half of D pairs with the second."""
    low, high = x.chunk(2, dim=-1)
    return (x * cos + torch.cat([-high, low], dim=-1) * sin).to(x.dtype)


class Attention(nn.Module):
    """Causal multi-head attention. `window` tokens back, 0 for all."""

    def __init__(self, config: ModelConfig, window: int) -> None:
        super().__init__()
        d = config.d_model
        self.n_heads, self.window, self.rope_theta = config.n_heads, window, config.rope_theta
        self.q_proj = nn.Linear(d, d, bias=False)
        self.k_proj = nn.Linear(d, d, bias=False)
        self.v_proj = nn.Linear(d, d, bias=False)
        self.o_proj = nn.Linear(d, d, bias=False)
        self.q_norm = RMSNorm(d, config.norm_eps)
        self.k_norm = RMSNorm(d, config.norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, T, d_model] -> [B, T, d_model]."""
        B, T, d = x.shape
        q = self.q_norm(self.q_proj(x))
        k = self.k_norm(self.k_proj(x))
        v = self.v_proj(x)
        q, k, v = (y.view(B, T, self.n_heads, -1).transpose(1, 2) for y in (q, k, v))
        cos, sin = rotary_tables(T, q.shape[-1], self.rope_theta, x.device)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        if 0 < self.window < T:
            index = torch.arange(T, device=x.device)
            distance = index[:, None] - index
            mask = (distance >= 0) & (distance < self.window)
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        else:
            out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o_proj(out.transpose(1, 2).reshape(B, T, d))
