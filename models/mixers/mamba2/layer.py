"""The Mamba2 layer (Dao and Gu 2024, section 7): expand 2, by default one group and biases.

One input projection gives the gate z, the convolved (x, B, C) and dt; the recurrence is
`models.mixers.mamba2.ssd`; the skip D·x, the gated RMSNorm and the output projection follow.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.config import ModelConfig
from models.convolution import extend_convolution, short_convolution, step_convolution
from models.decoding import NewTokens, Step
from models.documents import Documents
from models.initial import convolution_taps, inverse_softplus_dt, log_uniform_decay
from models.mixers.mamba2.operator import ssd
from models.mixers.mamba2.ssd import step
from models.pointwise import rms_norm


class Mamba2(nn.Module):
    """Shapes: B batch, T time, H heads, P head width (expand·d_model / H), K state width, G groups
    of heads."""

    def __init__(self, config: ModelConfig, index: int) -> None:
        super().__init__()
        settings = config.settings(index)
        d, H, P, K = config.d_model, config.n_heads, settings.head_dim, settings.state
        self.n_heads, self.head_dim, self.state, self.groups = H, P, K, settings.groups
        self.inner = H * P
        self.eps = settings.norm_eps
        channels = self.inner + 2 * self.groups * K
        self.in_proj = nn.Linear(d, self.inner + channels + H, bias=settings.bias)
        self.conv = nn.Parameter(torch.empty(channels, settings.conv_kernel))
        self.conv_bias = nn.Parameter(torch.empty(channels))
        self.A_log = nn.Parameter(torch.empty(H))
        self.dt_bias = nn.Parameter(torch.empty(H))
        self.D = nn.Parameter(torch.empty(H))
        self.o_norm = nn.Parameter(torch.empty(self.inner))
        self.out_proj = nn.Linear(self.inner, d, bias=settings.bias)

    def forward(self, x: Tensor, documents: Documents | None = None) -> Tensor:
        """x: [B, T, d_model] -> [B, T, d_model]."""
        offset = None if documents is None else documents.offset
        borders = None if documents is None else documents.cu_seqlens
        z, xBC, dt = self._project(x)
        xBC = short_convolution(xBC, self.conv, self.conv_bias, offset)
        u, operands = self._operands(xBC, F.softplus(dt.float() + self.dt_bias.float()))
        o, _ = ssd(*operands, cu_seqlens=borders)
        return self._merge(o, u, z)

    def new_state(self, batch: int, _capacity: int, dtype: torch.dtype) -> dict[str, Tensor]:
        """The state [B, H, K, P], float32, and the convolution's last inputs."""
        channels, J = self.conv.shape
        shape = (batch, self.n_heads, self.state, self.head_dim)
        return {
            "state": self.A_log.new_zeros(shape, dtype=torch.float32),
            "conv": self.A_log.new_zeros((batch, J - 1, channels), dtype=dtype),
        }

    def extend(self, x: Tensor, state: dict[str, Tensor], new: NewTokens) -> Tensor:
        """Read and write the state with new tokens; padding neither writes nor forgets."""
        z, xBC, dt = self._project(x)
        count = None if new.whole else new.count
        xBC, state["conv"] = extend_convolution(
            xBC, self.conv, self.conv_bias, state["conv"], count
        )
        dt = F.softplus(dt.float() + self.dt_bias.float())
        # A step of length zero is no step.
        u, operands = self._operands(xBC, dt * new.valid[..., None])
        o, final = ssd(*operands, initial_state=state["state"], output_final_state=True)
        assert final is not None
        state["state"] = final.to(state["state"].dtype)
        return self._merge(o, u, z)

    def step_function(self) -> Step:
        """`extend` for one token a row."""
        taps, bias = self.conv, self.conv_bias

        def one_token(x: Tensor, state: dict[str, Tensor], _new: NewTokens) -> Tensor:
            z, xBC, dt = self._project(x)
            xBC = step_convolution(xBC, taps, bias, state["conv"])
            u, operands = self._operands(xBC, F.softplus(dt.float() + self.dt_bias.float()))
            return self._merge(step(*operands, state["state"]), u, z)

        return one_token

    @staticmethod
    def initial(name: str, shape: torch.Size, generator: torch.Generator) -> Tensor | None:
        """The published start of a parameter, None for a matrix like any other."""
        match name:
            case "A_log":
                return log_uniform_decay(shape, 1.0, generator)
            case "dt_bias":
                return inverse_softplus_dt(shape, generator)
            case "conv":
                return convolution_taps(shape, generator)
            case "D":
                return torch.ones(shape)
        return None

    def _project(self, x: Tensor) -> tuple[Tensor, ...]:
        """The gate z [B, T, inner], what is convolved [B, T, inner + 2GK], and dt [B, T, H]."""
        widths = [self.inner, len(self.conv_bias), self.n_heads]
        return self.in_proj(x).split(widths, dim=-1)

    def _operands(self, xBC: Tensor, dt: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The heads' inputs u [B, T, H, P], and q, k, v, g of the recurrence. dt: [B, T, H]."""
        shared = self.groups * self.state
        u, Bs, Cs = xBC.split([self.inner, shared, shared], dim=-1)
        Bs, Cs = (x.unflatten(-1, (self.groups, self.state)) for x in (Bs, Cs))
        u = u.unflatten(-1, (self.n_heads, self.head_dim))
        g = -self.A_log.float().exp() * dt
        v = u * dt.unsqueeze(-1).to(u.dtype)
        return u, (Cs, Bs, v, g)

    def _merge(self, o: Tensor, u: Tensor, z: Tensor) -> Tensor:
        o = (o + u * self.D.to(u.dtype).unsqueeze(-1)).flatten(2)
        return self.out_proj(self._normed(o * F.silu(z)))

    def _normed(self, o: Tensor) -> Tensor:
        """The norm over each group's channels."""
        if self.groups == 1:
            return rms_norm(o, self.o_norm, self.eps)
        groups = o.unflatten(-1, (self.groups, -1))
        one = self.o_norm.new_ones(groups.shape[-1])
        return rms_norm(groups, one, self.eps).flatten(-2) * self.o_norm.to(o.dtype)
