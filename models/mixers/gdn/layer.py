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
from models.convolution import extend_convolution, short_convolution, step_convolution
from models.decoding import NewTokens, Step, projection
from models.documents import Documents
from models.initial import convolution_taps, inverse_softplus_dt, log_uniform_decay
from models.mixers.gdn.gated_delta_rule import step
from models.mixers.gdn.operator import gated_delta_rule
from models.pointwise import rms_norm, step_norm


class GatedDeltaNet(nn.Module):
    """Shapes: B batch, T time, H heads, K key width, V value width."""

    def __init__(self, config: ModelConfig, index: int) -> None:
        super().__init__()
        d, H, settings = config.d_model, config.n_heads, config.settings(index)
        K, V = settings.key_dim, settings.value_dim
        self.n_heads, self.key_dim, self.value_dim = H, K, V
        self.eps = settings.norm_eps
        self.dt_init = settings.dt_init
        self.beta_max = 2.0 if settings.allow_neg_eigval else 1.0
        self.gate = torch.sigmoid if settings.gate_activation == "sigmoid" else F.silu
        self.q_proj = nn.Linear(d, H * K, bias=False)
        self.k_proj = nn.Linear(d, H * K, bias=False)
        self.v_proj = nn.Linear(d, H * V, bias=False)
        self.a_proj = nn.Linear(d, H, bias=False)
        self.b_proj = nn.Linear(d, H, bias=False)
        self.g_proj = nn.Linear(d, H * V, bias=False) if settings.output_gate else None
        self.conv = nn.Parameter(torch.empty(H * (2 * K + V), settings.conv_kernel))
        self.A_log = nn.Parameter(torch.empty(H))
        self.dt_bias = nn.Parameter(torch.empty(H))
        self.o_norm = nn.Parameter(torch.empty(V))
        self.o_proj = nn.Linear(H * V, d, bias=False)

    def forward(self, x: Tensor, documents: Documents | None = None) -> Tensor:
        """x: [B, T, d_model] -> [B, T, d_model]."""
        offset = None if documents is None else documents.offset
        borders = None if documents is None else documents.cu_seqlens
        qkv = short_convolution(self._qkv(x), self.conv, offset=offset)
        o, _ = gated_delta_rule(*self._operands(x, qkv), cu_seqlens=borders)
        return self._merge(x, o)

    def new_state(self, batch: int, _capacity: int, dtype: torch.dtype) -> dict[str, Tensor]:
        """The state [B, H, K, V], float32, and the convolution's last inputs."""
        H, K, V = self.n_heads, self.key_dim, self.value_dim
        channels, J = self.conv.shape
        return {
            "state": self.A_log.new_zeros((batch, H, K, V), dtype=torch.float32),
            "conv": self.A_log.new_zeros((batch, J - 1, channels), dtype=dtype),
        }

    def extend(self, x: Tensor, state: dict[str, Tensor], new: NewTokens) -> Tensor:
        """Read and write the state with new tokens; padding neither writes nor forgets."""
        count = None if new.whole else new.count
        qkv, state["conv"] = extend_convolution(self._qkv(x), self.conv, None, state["conv"], count)
        q, k, v, g, beta = self._operands(x, qkv)
        valid = new.valid[..., None]
        o, final = gated_delta_rule(
            q, k, v, g * valid, beta * valid,
            initial_state=state["state"], output_final_state=True,
        )  # fmt: skip
        assert final is not None
        state["state"] = final.to(state["state"].dtype)
        return self._merge(x, o)

    def step_function(self) -> Step:
        """`extend` for one token a row."""
        H, K, V = self.n_heads, self.key_dim, self.value_dim
        layers = [self.a_proj, self.b_proj, self.q_proj, self.k_proj, self.v_proj]
        widths = [H, H, H * (2 * K + V)]
        if self.g_proj is not None:
            layers, widths = [*layers, self.g_proj], [*widths, H * V]
        read, write = projection(*layers), projection(self.o_proj)
        taps, norm = self.conv, step_norm(self.o_norm, self.eps)

        def one_token(x: Tensor, state: dict[str, Tensor], _new: NewTokens) -> Tensor:
            a, b, qkv, *gate = read(x).split_with_sizes(widths, -1)
            qkv = step_convolution(qkv, taps, None, state["conv"])
            q, k, v, g, beta = self._rule(qkv, a, b)
            o = norm(step(q, k, v, g, beta, state["state"])).flatten(2)
            return write(o * self.gate(gate[0]) if gate else o)

        return one_token

    def initial(self, name: str, shape: torch.Size, generator: torch.Generator) -> Tensor | None:
        """The published start of a parameter, None for a matrix like any other."""
        match name:
            case "A_log":
                return log_uniform_decay(shape, 0.0, generator)
            case "dt_bias" if self.dt_init == "ones":
                return torch.ones(shape)
            case "dt_bias":
                return inverse_softplus_dt(shape, generator)
            case "conv":
                return convolution_taps(shape, generator)
        return None

    def _qkv(self, x: Tensor) -> Tensor:
        # Weights are joined, not outputs: one product, whose result the convolution reads as is.
        joined = torch.cat([self.q_proj.weight, self.k_proj.weight, self.v_proj.weight])
        return F.linear(x, joined)

    def _operands(self, x: Tensor, qkv: Tensor) -> tuple[Tensor, ...]:
        return self._rule(qkv, self.a_proj(x), self.b_proj(x))

    def _rule(self, qkv: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, ...]:
        """q, k: [B, T, H, K]; v: [B, T, H, V]; g, beta: [B, T, H]."""
        B, T, _ = qkv.shape
        H, K, V = self.n_heads, self.key_dim, self.value_dim
        qk, v = qkv.split([2 * H * K, H * V], dim=-1)
        # eps inside the root, as in the published kernels: a zero key stays zero.
        qk = qk.view(B, T, 2, H, K).float()
        qk = (qk * torch.rsqrt(qk.square().sum(-1, keepdim=True) + 1e-6)).to(v.dtype)
        beta = torch.sigmoid(b.float()) * self.beta_max
        g = -self.A_log.float().exp() * F.softplus(a.float() + self.dt_bias.float())
        return qk[:, :, 0], qk[:, :, 1], v.view(B, T, H, V), g, beta

    def _merge(self, x: Tensor, o: Tensor) -> Tensor:
        return self._gated(o) if self.g_proj is None else self._gated(o, self.g_proj(x))

    def _gated(self, o: Tensor, gate: Tensor | None = None) -> Tensor:
        o = rms_norm(o, self.o_norm, self.eps).flatten(2)
        return self.o_proj(o if gate is None else o * self.gate(gate))
