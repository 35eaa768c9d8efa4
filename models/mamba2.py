"""The Mamba2 layer (Dao and Gu 2024, section 7): expand 2, one group, biases as published.

One input projection gives the gate z, the convolved (x, B, C) and dt; the recurrence is
`models.ops.ssd`; the skip D·x, the gated RMSNorm and the output projection follow.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.config import ModelConfig
from models.convolution import short_convolution
from models.ops.backend import ssd
from models.pointwise import rms_norm


class Mamba2(nn.Module):
    """Shapes: B batch, T time, H heads, P head width (expand·d_model / H), K state width."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        d, H, P, K = config.d_model, config.n_heads, config.mamba2_head_dim, config.mamba2_state
        self.n_heads, self.head_dim, self.state = H, P, K
        self.inner = H * P
        self.eps = config.gated_norm_eps
        self.in_proj = nn.Linear(d, 2 * self.inner + 2 * K + H)
        self.conv = nn.Parameter(torch.empty(self.inner + 2 * K, config.conv_kernel))
        self.conv_bias = nn.Parameter(torch.empty(self.inner + 2 * K))
        self.A_log = nn.Parameter(torch.empty(H))
        self.dt_bias = nn.Parameter(torch.empty(H))
        self.D = nn.Parameter(torch.empty(H))
        self.o_norm = nn.Parameter(torch.empty(self.inner))
        self.out_proj = nn.Linear(self.inner, d)

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, T, d_model] -> [B, T, d_model]."""
        B, T, _ = x.shape
        H, P, K = self.n_heads, self.head_dim, self.state
        z, xBC, dt = self.in_proj(x).split([self.inner, self.inner + 2 * K, H], dim=-1)
        xBC = short_convolution(xBC, self.conv, self.conv_bias)
        u, Bs, Cs = xBC.split([self.inner, K, K], dim=-1)
        u = u.view(B, T, H, P)
        dt = F.softplus(dt.float() + self.dt_bias.float())  # [B, T, H]
        g = -self.A_log.float().exp() * dt
        v = u * dt.unsqueeze(-1).to(u.dtype)
        o, _ = ssd(Cs, Bs, v, g)
        o = (o + u * self.D.to(u.dtype).unsqueeze(-1)).reshape(B, T, self.inner)
        return self.out_proj(rms_norm(o * F.silu(z), self.o_norm, self.eps))
