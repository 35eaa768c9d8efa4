"""The Gated DeltaNet layer (Yang, Kautz, Hatamizadeh 2025) as in Olmo Hybrid.

Separate q, k, v, a, b, g projections; short convolution with SiLU on q, k, v; L2-normed q and k;
log decay -exp(A_log)·softplus(a + dt_bias); write strength sigmoid(b), doubled where negative
eigenvalues are allowed; gated RMSNorm on the heads' outputs. No biases.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.config import ModelConfig
from models.convolution import short_convolution
from models.ops.backend import gated_delta_rule
from models.pointwise import rms_norm


class GatedDeltaNet(nn.Module):
    """Shapes: B batch, T time, H heads, K key width, V value width."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        d, H = config.d_model, config.n_heads
        K, V = config.gdn_key_dim, config.gdn_value_dim
        self.n_heads, self.key_dim, self.value_dim = H, K, V
        self.eps = config.gated_norm_eps
        self.beta_max = 2.0 if config.gdn_allow_neg_eigval else 1.0
        self.q_proj = nn.Linear(d, H * K, bias=False)
        self.k_proj = nn.Linear(d, H * K, bias=False)
        self.v_proj = nn.Linear(d, H * V, bias=False)
        self.a_proj = nn.Linear(d, H, bias=False)
        self.b_proj = nn.Linear(d, H, bias=False)
        self.g_proj = nn.Linear(d, H * V, bias=False) if config.gdn_output_gate else None
        self.conv = nn.Parameter(torch.empty(H * (2 * K + V), config.conv_kernel))
        self.A_log = nn.Parameter(torch.empty(H))
        self.dt_bias = nn.Parameter(torch.empty(H))
        self.o_norm = nn.Parameter(torch.empty(V))
        self.o_proj = nn.Linear(H * V, d, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, T, d_model] -> [B, T, d_model]."""
        B, T, _ = x.shape
        H, K, V = self.n_heads, self.key_dim, self.value_dim
        # Weights are joined, not outputs: one product, whose result the convolution reads as is.
        joined = torch.cat([self.q_proj.weight, self.k_proj.weight, self.v_proj.weight])
        qkv = F.linear(x, joined)
        qk, v = short_convolution(qkv, self.conv).split([2 * H * K, H * V], dim=-1)
        # eps inside the root, as in the published kernels: a zero key stays zero.
        qk = qk.view(B, T, 2, H, K).float()
        qk = (qk * torch.rsqrt(qk.square().sum(-1, keepdim=True) + 1e-6)).to(v.dtype)
        beta = torch.sigmoid(self.b_proj(x).float()) * self.beta_max
        g = -self.A_log.float().exp() * F.softplus(self.a_proj(x).float() + self.dt_bias.float())
        o, _ = gated_delta_rule(qk[:, :, 0], qk[:, :, 1], v.view(B, T, H, V), g, beta)
        o = rms_norm(o, self.o_norm, self.eps).reshape(B, T, H * V)
        if self.g_proj is not None:
            o = o * F.silu(self.g_proj(x))
        return self.o_proj(o)
