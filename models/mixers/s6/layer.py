"""The Mamba-1 layer (Gu and Dao 2023, section 3.4 and figure 3), without its block's norm.

One input projection gives x and the gate z; x is convolved and makes dt, B and C; the recurrence is
`models.mixers.s6.selective_scan`; the skip D·x, the gate and the output projection follow. No
norm of its own, no biases but the convolution's and dt's.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.config import ModelConfig
from models.convolution import extend_convolution, short_convolution, step_convolution
from models.decoding import NewTokens, Step
from models.documents import Documents
from models.initial import convolution_taps, inverse_softplus_dt
from models.mixers.s6.operator import selective_scan
from models.mixers.s6.selective_scan import step


class S6(nn.Module):
    """Shapes: B batch, T time, I channels, N states of a channel, R rank of dt."""

    def __init__(self, config: ModelConfig, index: int) -> None:
        super().__init__()
        d, s = config.d_model, config.settings(index)
        self.inner, self.rank, self.state = s.inner, s.rank, s.state
        self.in_proj = nn.Linear(d, 2 * s.inner, bias=False)
        self.conv = nn.Parameter(torch.empty(s.inner, s.conv_kernel))
        self.conv_bias = nn.Parameter(torch.empty(s.inner))
        self.x_proj = nn.Linear(s.inner, s.rank + 2 * s.state, bias=False)
        self.dt_proj = nn.Linear(s.rank, s.inner, bias=False)
        self.dt_bias = nn.Parameter(torch.empty(s.inner))
        self.A_log = nn.Parameter(torch.empty(s.inner, s.state))
        self.D = nn.Parameter(torch.empty(s.inner))
        self.out_proj = nn.Linear(s.inner, d, bias=False)

    def forward(self, x: Tensor, documents: Documents | None = None) -> Tensor:
        """x: [B, T, d_model] -> [B, T, d_model]."""
        offset = None if documents is None else documents.offset
        borders = None if documents is None else documents.cu_seqlens
        u, z = self.in_proj(x).chunk(2, -1)
        u = short_convolution(u, self.conv, self.conv_bias, offset)
        y, _ = selective_scan(*self._operands(u), cu_seqlens=borders)
        return self._merge(y, u, z)

    def new_state(self, batch: int, _capacity: int, dtype: torch.dtype) -> dict[str, Tensor]:
        """The state [B, I, N], float32, and the convolution's last inputs."""
        shape = (batch, self.inner, self.state)
        return {
            "state": self.D.new_zeros(shape, dtype=torch.float32),
            "conv": self.D.new_zeros((batch, self.conv.shape[1] - 1, self.inner), dtype=dtype),
        }

    def extend(self, x: Tensor, state: dict[str, Tensor], new: NewTokens) -> Tensor:
        """Read and write the state with new tokens; padding neither writes nor forgets."""
        u, z = self.in_proj(x).chunk(2, -1)
        count = None if new.whole else new.count
        u, state["conv"] = extend_convolution(u, self.conv, self.conv_bias, state["conv"], count)
        u_, dt, Bs, Cs, A = self._operands(u)
        # A step of length zero is no step.
        y, final = selective_scan(
            u_, dt * new.valid[..., None], Bs, Cs, A,
            initial_state=state["state"], output_final_state=True,
        )  # fmt: skip
        assert final is not None
        state["state"] = final.to(state["state"].dtype)
        return self._merge(y, u, z)

    def step_function(self) -> Step:
        """`extend` for one token a row."""

        def one_token(x: Tensor, state: dict[str, Tensor], _new: NewTokens) -> Tensor:
            u, z = self.in_proj(x).chunk(2, -1)
            u = step_convolution(u, self.conv, self.conv_bias, state["conv"])
            return self._merge(step(*self._operands(u), state["state"]), u, z)

        return one_token

    def initial(self, name: str, shape: torch.Size, generator: torch.Generator) -> Tensor | None:
        """The published start of a parameter, None for a matrix like any other."""
        match name:
            case "A_log":
                return torch.arange(1.0, shape[1] + 1).log().repeat(shape[0], 1)
            case "dt_bias":
                return inverse_softplus_dt(shape, generator)
            case "dt_proj.weight":
                return (2 * torch.rand(shape, generator=generator) - 1) * shape[1] ** -0.5
            case "conv":
                return convolution_taps(shape, generator)
            case "D":
                return torch.ones(shape)
        return None

    def _operands(self, u: Tensor) -> tuple[Tensor, ...]:
        """u: [B, T, I]; dt: [B, T, I], float32; B, C: [B, T, N]; A: [I, N], float32."""
        low, Bs, Cs = self.x_proj(u).split([self.rank, self.state, self.state], -1)
        dt = F.softplus(self.dt_proj(low).float() + self.dt_bias.float())
        return u, dt, Bs, Cs, -self.A_log.float().exp()

    def _merge(self, y: Tensor, u: Tensor, z: Tensor) -> Tensor:
        return self.out_proj((y + u * self.D.to(u.dtype)) * F.silu(z))
