"""Softmax attention; by default as in Olmo 3, QK-norm over the full projection, no biases.

Shapes: B batch, T time, H heads, D head width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.attention.attend import attend
from models.attention.cache import can_step, keep, with_token, with_tokens
from models.config import ModelConfig
from models.decoding import NewTokens, Step, projection
from models.documents import Documents, causal_mask
from models.pointwise import RMSNorm, step_norm


def rotary_tables(positions: Tensor, D: int, theta: float) -> tuple[Tensor, Tensor]:
    """cos and sin of the rotary angles, float32 (Su et al. 2021, eq. 34, half-split).

    The first half of the sines is negative, as `rotate` wants them.

    positions: [T], or [B, T] where rows differ -> [T, D], or [B, 1, T, D].
    """
    even = torch.arange(0, D, 2, device=positions.device, dtype=torch.float32)
    angle = positions[..., None].float() * theta ** (-even / D)
    if positions.dim() == 2:
        angle = angle.unsqueeze(1)
    cos, sin = angle.cos(), angle.sin()
    return torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions on x: [B, H, T, D]; the first half of D pairs with the second.

    Where the tables are narrower than D, the channels beyond them stay as they are.
    """
    if (width := cos.shape[-1]) < x.shape[-1]:
        turned, rest = x[..., :width], x[..., width:]
        return torch.cat([rotate(turned, cos, sin), rest], dim=-1)
    # In place where it can be: fresh memory costs a long prompt more than the arithmetic does.
    rolled = x.roll(width // 2, -1)
    rolled = rolled.mul_(sin) if rolled.dtype == sin.dtype else rolled * sin
    return (x * cos).add_(rolled).to(x.dtype)


class Attention(nn.Module):
    """Causal attention over `window` tokens back, 0 for all; keys and values may be grouped."""

    def __init__(self, config: ModelConfig, index: int) -> None:
        super().__init__()
        settings, D = config.settings(index), config.head_dim
        d, kv = config.d_model, settings.n_kv_heads * D
        self.n_heads, self.n_kv_heads, self.head_dim = config.n_heads, settings.n_kv_heads, D
        self.window, self.rope_theta = settings.window(index), settings.rope_theta
        self.rotated = round(settings.rotary * D)
        """Channels of a head that rotary positions turn, the first ones."""
        self.qk_norm = settings.qk_norm
        self.q_proj = nn.Linear(d, d, bias=False)
        self.k_proj = nn.Linear(d, kv, bias=False)
        self.v_proj = nn.Linear(d, kv, bias=False)
        self.o_proj = nn.Linear(d, d, bias=False)
        self.g_proj = nn.Linear(d, d, bias=False) if settings.output_gate else None
        if self.qk_norm != "none":
            per_head = self.qk_norm == "head"
            self.q_norm = RMSNorm(D if per_head else d, config.norm_eps)
            self.k_norm = RMSNorm(D if per_head else kv, config.norm_eps)

    def forward(self, x: Tensor, documents: Documents | None = None) -> Tensor:
        """x: [B, T, d_model] -> [B, T, d_model]."""
        T = x.shape[1]
        q, k, v = self._heads(x, self._tables(torch.arange(T, device=x.device)))
        mask = causal_mask(T, self.window, x.device, documents)
        return self._merge(attend(q, k, v, mask, causal=mask is None), x)

    def new_state(self, batch: int, capacity: int, dtype: torch.dtype) -> dict[str, Tensor]:
        """Room for the keys and values of `capacity` tokens, or of the window if that is less."""
        size = min(self.window or capacity, capacity)
        like = self.k_proj.weight
        shape = (batch, self.n_kv_heads, size, self.head_dim)
        return {name: like.new_zeros(shape, dtype=dtype) for name in ("k", "v")}

    def extend(self, x: Tensor, state: dict[str, Tensor], new: NewTokens) -> Tensor:
        """Attend from new tokens to the cache and to each other, then add them to the cache."""
        T, asking = x.shape[1], new.wanted(x)
        q, k, v = self._heads(x, self._new_tables(T, new), asking)
        tokens = {"k": k, "v": v}
        if new.most_seen == 0 and asking is not x:  # the last token sees all, or its window
            seen = slice(-self.window, None)
            out = attend(q, k[:, :, seen], v[:, :, seen], None, causal=False)
        elif new.most_seen == 0:  # padding is on the right, where no other token sees it
            mask = new.once(
                ("causal", self.window), lambda: causal_mask(T, self.window, x.device, None)
            )
            out = attend(q, k, v, mask, causal=mask is None)
        else:
            held, mask = with_tokens(state, tokens, self.window, new)
            mask = mask[:, :, -q.shape[2] :]
            out = attend(q, held["k"], held["v"], mask, causal=False)
        keep(state, tokens, new)
        return self._merge(out, asking)

    def step_function(self) -> Step:
        """`extend` for one token a row."""
        H, G, D, window = self.n_heads, self.n_kv_heads, self.head_dim, self.window
        widths = [H * D, G * D, G * D]
        read, write = projection(self.q_proj, self.k_proj, self.v_proj), projection(self.o_proj)
        gate = None if self.g_proj is None else projection(self.g_proj)
        full, per_head = self.qk_norm == "full", self.qk_norm == "head"
        if full or per_head:
            q_norm, k_norm = (step_norm(n.weight, n.eps) for n in (self.q_norm, self.k_norm))

        def step(x: Tensor, state: dict[str, Tensor], new: NewTokens) -> Tensor:
            if not can_step(state, window):
                return self.extend(x, state, new)
            q, k, v = read(x).split_with_sizes(widths, -1)
            if full:
                q, k = q_norm(q), k_norm(k)
            q, k, v = (y.unflatten(-1, (-1, D)) for y in (q, k, v))
            if per_head:
                q, k = q_norm(q), k_norm(k)
            q, k, v = (y.transpose(1, 2) for y in (q, k, v))
            if (tables := self._new_tables(1, new)) is not None:  # one call for both
                q, k = rotate(torch.cat([q, k], 1), *tables).split_with_sizes([H, G], 1)
            held, mask = with_token(state, {"k": k, "v": v}, new)
            out = attend(q, held["k"], held["v"], mask, causal=False).transpose(1, 2).flatten(2)
            return write(out if gate is None else out * torch.sigmoid(gate(x)))

        return step

    def _new_tables(self, T: int, new: NewTokens) -> tuple[Tensor, Tensor] | None:
        """The rotary tables of T new tokens, made once for all layers."""
        device = new.seen.device
        tables: tuple[Tensor, Tensor] | None = new.once(
            ("rotary", self.rotated, self.rope_theta),
            lambda: self._tables(
                torch.arange(new.most_seen, new.most_seen + T, device=device)
                if new.even
                else new.seen[:, None] + torch.arange(T, device=device)
            ),
        )
        return tables

    def _tables(self, positions: Tensor) -> tuple[Tensor, Tensor] | None:
        """The rotary tables of positions [T] or [B, T]; None without rotary positions."""
        if self.rope_theta is None:
            return None
        return rotary_tables(positions, self.rotated, self.rope_theta)

    def _heads(
        self, x: Tensor, tables: tuple[Tensor, Tensor] | None, asking: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """q: [B, H, T, D] and k, v: [B, kv heads, T, D]; asking: the last tokens of x, whose
        queries are made, all unless given."""
        q, k, v = self.q_proj(x if asking is None else asking), self.k_proj(x), self.v_proj(x)
        if self.qk_norm == "full":
            q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = (y.view(*y.shape[:2], -1, self.head_dim) for y in (q, k, v))
        if self.qk_norm == "head":
            q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = (y.transpose(1, 2) for y in (q, k, v))
        if tables is not None:
            q = rotate(q, *(table[..., -q.shape[2] :, :] for table in tables))
            k = rotate(k, *tables)
        return q, k, v

    @staticmethod
    def initial(_name: str, _shape: torch.Size, _generator: torch.Generator) -> Tensor | None:
        """Matrices like any other, norms at one."""
        return None

    def _merge(self, out: Tensor, x: Tensor) -> Tensor:
        """The heads' outputs [B, H, T, D], gated by what the layer read -> [B, T, d_model]."""
        out = out.transpose(1, 2).flatten(2)
        if self.g_proj is not None:
            out = out * torch.sigmoid(self.g_proj(x))
        return self.o_proj(out)
