"""Multi-head latent attention without positions (DeepSeek-V2, Liu et al. 2024, eq. 9 to 19, less
the compression of queries; Kimi Linear, Kimi Team 2025, section 4.1, which leaves rotation out).

    c_t = norm(W_a x_t)    k_t = [W_b^k c_t; r_t]    v_t = W_b^v c_t

with r_t, made by W_a beside c_t, shared by all heads. The cache holds c and r. A query meets them
without keys being made: q·k = (W_b^kᵀ q)·c + q_r·r, and values are summed as latents (ibid.,
appendix B: W_b absorbed into the projections beside it).

Shapes: B batch, T time, H heads, n, r, v widths of a head's key part, of the shared one and of
its values, c width of the latent.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.attention.attend import attend
from models.attention.cache import can_step, keep, with_token, with_tokens
from models.config import ModelConfig
from models.decoding import NewTokens, Step
from models.documents import Documents, causal_mask
from models.pointwise import RMSNorm


class LatentAttention(nn.Module):
    """Causal attention over `window` tokens back, 0 for all."""

    def __init__(self, config: ModelConfig, index: int) -> None:
        super().__init__()
        d, H, settings = config.d_model, config.n_heads, config.settings(index)
        self.settings, self.n_heads = settings, H
        self.window = settings.window(index)
        self.q_proj = nn.Linear(d, H * settings.query_dim, bias=False)
        self.kv_a_proj = nn.Linear(d, settings.latent_dim + settings.shared_dim, bias=False)
        self.kv_norm = RMSNorm(settings.latent_dim, settings.latent_eps)
        self.kv_b_proj = nn.Linear(
            settings.latent_dim, H * (settings.key_dim + settings.value_dim), bias=False
        )
        self.o_proj = nn.Linear(H * settings.value_dim, d, bias=False)

    def forward(self, x: Tensor, documents: Documents | None = None) -> Tensor:
        """x: [B, T, d_model] -> [B, T, d_model]."""
        mask = causal_mask(x.shape[1], self.window, x.device, documents)
        return self._merge(self._attend_whole(self._queries(x), self._latents(x), mask))

    def new_state(self, batch: int, capacity: int, dtype: torch.dtype) -> dict[str, Tensor]:
        """Room for latent and shared key part of `capacity` tokens, or of the window if that is
        less: [B, 1, slots, c + r]."""
        size = min(self.window or capacity, capacity)
        shape = (batch, 1, size, self.kv_a_proj.out_features)
        return {"latent": self.q_proj.weight.new_zeros(shape, dtype=dtype)}

    def extend(self, x: Tensor, state: dict[str, Tensor], new: NewTokens) -> Tensor:
        """Attend from new tokens to the cache and to each other, then add them to the cache."""
        asking = new.wanted(x)
        q, latents = self._queries(asking), self._latents(x)
        tokens = {"latent": latents}
        if new.most_seen == 0 and asking is not x:  # the last token sees all, or its window
            out = self._attend_latents(q, latents[:, :, -self.window :], None)
        elif new.most_seen == 0:  # padding is on the right, where no other token sees it
            mask = new.once(
                ("causal", self.window),
                lambda: causal_mask(x.shape[1], self.window, x.device, None),
            )
            out = self._attend_whole(q, latents, mask)
        else:
            held, mask = with_tokens(state, tokens, self.window, new)
            out = self._attend_latents(q, held["latent"], mask[:, :, -q.shape[2] :])
        keep(state, tokens, new)
        return self._merge(out)

    def step_function(self) -> Step:
        """`extend` for one token a row."""

        def step(x: Tensor, state: dict[str, Tensor], new: NewTokens) -> Tensor:
            if not can_step(state, self.window):
                return self.extend(x, state, new)
            held, mask = with_token(state, {"latent": self._latents(x)}, new)
            return self._merge(self._attend_latents(self._queries(x), held["latent"], mask))

        return step

    @staticmethod
    def initial(_name: str, _shape: torch.Size, _generator: torch.Generator) -> Tensor | None:
        """Matrices like any other, the norm at one."""
        return None

    def _queries(self, x: Tensor) -> Tensor:
        """[B, H, T, n + r]."""
        return self.q_proj(x).unflatten(-1, (self.n_heads, -1)).transpose(1, 2)

    def _latents(self, x: Tensor) -> Tensor:
        """What the cache holds of each token: [B, 1, T, c + r]."""
        s = self.settings
        latent, shared = self.kv_a_proj(x).split([s.latent_dim, s.shared_dim], -1)
        return torch.cat([self.kv_norm(latent), shared], -1).unsqueeze(1)

    def _attend_whole(self, q: Tensor, latents: Tensor, mask: object) -> Tensor:
        """Every query with keys and values made whole: the fewest products where each key meets
        many queries. [B, H, T, v]."""
        s = self.settings
        latent, shared = latents.split([s.latent_dim, s.shared_dim], -1)
        kv = self.kv_b_proj(latent.squeeze(1)).unflatten(-1, (self.n_heads, -1)).transpose(1, 2)
        k, v = kv.split([s.key_dim, s.value_dim], -1)
        k = torch.cat([k, shared.expand(-1, self.n_heads, -1, -1)], -1)
        return attend(q, k, v, mask, causal=mask is None)

    def _attend_latents(self, q: Tensor, latents: Tensor, mask: Tensor | None) -> Tensor:
        """Every query with the latents themselves, one key head for all. [B, H, T, v]."""
        s = self.settings
        weight = self.kv_b_proj.weight.view(self.n_heads, -1, s.latent_dim)
        to_keys, to_values = weight.split([s.key_dim, s.value_dim], 1)  # [H, n, c], [H, v, c]
        own, shared = q.split([s.key_dim, s.shared_dim], -1)
        q = torch.cat([own @ to_keys.to(q.dtype), shared], -1)
        # Latents serve as values too: of what comes out the shared key part is left aside.
        out = attend(q, latents, latents, mask, causal=False, scale=s.query_dim**-0.5)
        return out[..., : s.latent_dim] @ to_values.mT.to(q.dtype)

    def _merge(self, out: Tensor) -> Tensor:
        """[B, H, T, v] -> [B, T, d_model]."""
        return self.o_proj(out.transpose(1, 2).flatten(2))
