"""Models of archladder that no class of transformers expresses, for `trust_remote_code=True`.

An export carries this file as modeling_archladder.py; it needs torch and transformers alone.
Mixers: softmax attention as in Olmo 3 (normed on its output), Gated DeltaNet (Yang et al. 2025)
and Mamba2 (Dao and Gu 2024), both normed on their input; a SwiGLU beside each. `architecture` in
config.json says which and how wide. Decoding keeps keys and values, convolution inputs and
recurrent states; pads belong on the left.

Shapes: B batch, T time, H heads, D head width, K key or state width, V value width.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

CHUNK = {"cpu": 16}  # 64 elsewhere


class ArchladderConfig(PretrainedConfig):
    """`architecture` decides the function; the rest are the names that other tools read."""

    model_type = "archladder"

    def __init__(self, architecture: dict[str, Any] | None = None, **kwargs: Any) -> None:
        self.architecture = a = architecture or {}
        self.vocab_size = a.get("vocab_size", 256)
        self.hidden_size = a.get("d_model", 64)
        self.intermediate_size = a.get("mlp_hidden", 128)
        self.num_attention_heads = a.get("n_heads", 1)
        self.num_key_value_heads = a.get("n_kv_heads", 1)
        self.num_hidden_layers = len(a.get("layers", ()))
        self.max_position_embeddings = kwargs.pop("max_position_embeddings", 2048)
        for derived in (
            "vocab_size", "hidden_size", "intermediate_size", "num_attention_heads",
            "num_key_value_heads", "num_hidden_layers",
        ):  # fmt: skip
            kwargs.pop(derived, None)
        kwargs.setdefault("tie_word_embeddings", False)
        super().__init__(**kwargs)


class State:
    """What decoding carries: tensors of each layer, and how many tokens they have seen."""

    is_compileable = False

    def __init__(self, n_layers: int) -> None:
        self.layers: list[dict[str, Tensor]] = [{} for _ in range(n_layers)]
        self.seen = 0

    def get_seq_length(self, *_: Any) -> int:
        return self.seen

    def reorder_cache(self, beams: Tensor) -> None:
        for layer in self.layers:
            layer.update({name: x.index_select(0, beams) for name, x in layer.items()})


def recurrence(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor | None, S: Tensor | None
) -> tuple[Tensor, Tensor]:
    """S_t = exp(g_t) S_{t-1} (I - beta_t k_t k_t^T) + beta_t k_t v_t^T, o_t = S_t^T q_t, by chunks.

    q, k: [B, T, H or 1, K]; v: [B, T, H, V]; g, beta: [B, T, H]; S: [B, H, K, V] or None for
    zero. Without beta nothing is erased: S_t = exp(g_t) S_{t-1} + k_t v_t^T. Computed in float32;
    returns o: [B, T, H, V] in v's dtype and the last S.
    """
    B, T, H, V = v.shape
    C = min(CHUNK.get(v.device.type, 64), T)

    def chunks(x: Tensor) -> Tensor:  # [B, T, H, *] -> [B, H, N, C, *], zeros at the end
        x = F.pad(x.float(), (0, 0, 0, 0, 0, -T % C)).transpose(1, 2)
        return x.unflatten(2, (-1, C))

    dtype = v.dtype
    q, k, v, g = chunks(q), chunks(k), chunks(v), chunks(g.unsqueeze(-1))
    log_decay = g.cumsum(-2)
    future = torch.ones(C, C, dtype=torch.bool, device=v.device).triu(1)
    decay = (log_decay - log_decay.mT).masked_fill(future, -torch.inf).exp()
    last = log_decay[..., -1:, :]
    scores, q, k_end = (q @ k.mT) * decay, q * log_decay.exp(), k * (last - log_decay).exp()
    if beta is None:
        writes, erases = v, None
    else:
        b = chunks(beta.unsqueeze(-1))
        right = torch.cat([v * b, k * b * log_decay.exp()], dim=-1)
        system = (k * b) @ k.mT * decay
        solved = torch.linalg.solve_triangular(system, right, upper=False, unitriangular=True)
        writes, erases = solved.split([V, k.shape[-1]], dim=-1)
    S = v.new_zeros(B, H, k.shape[-1], V) if S is None else S
    out = []
    for i in range(v.shape[2]):
        write = writes[:, :, i] if erases is None else writes[:, :, i] - erases[:, :, i] @ S
        out.append(q[:, :, i] @ S + scores[:, :, i] @ write)
        S = S * last[:, :, i].exp() + k_end[:, :, i].mT @ write
    return torch.cat(out, dim=2)[:, :, :T].transpose(1, 2).to(dtype), S


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return F.rms_norm(x.float(), weight.shape, weight.float(), eps).to(x.dtype)


def causal_convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None, state: dict[str, Tensor] | None
) -> Tensor:
    """silu of the depthwise convolution of x: [B, T, channels] with the taps before it."""
    channels, taps = weight.shape
    x = x.mT
    past = state["conv"] if state else x.new_zeros(len(x), channels, taps - 1)
    x = torch.cat([past, x], dim=-1)
    if state is not None:
        state["conv"] = x[..., x.shape[-1] - taps + 1 :]
    return F.silu(F.conv1d(x, weight.unsqueeze(1), bias, groups=channels)).mT


def masked(x: Tensor, real: Tensor | None) -> Tensor:
    """Zero where `real` [B, T] says padding."""
    return x if real is None else x * real.unsqueeze(-1).to(x.dtype)


class RMSNorm(nn.Module):
    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)


class Attention(nn.Module):
    def __init__(self, a: dict[str, Any], index: int) -> None:
        super().__init__()
        d, self.head_dim = a["d_model"], a["d_model"] // a["n_heads"]
        kv = a["n_kv_heads"] * self.head_dim
        self.window, self.rope_theta = a["windows"][index], a["rope_theta"]
        self.q_proj = nn.Linear(d, d, bias=False)
        self.k_proj = nn.Linear(d, kv, bias=False)
        self.v_proj = nn.Linear(d, kv, bias=False)
        self.o_proj = nn.Linear(d, d, bias=False)
        self.q_norm, self.k_norm = RMSNorm(d, a["norm_eps"]), RMSNorm(kv, a["norm_eps"])

    def forward(
        self, x: Tensor, real: Tensor | None, state: dict[str, Tensor] | None, seen: int
    ) -> Tensor:
        T = x.shape[1]
        q, k, v = self.q_norm(self.q_proj(x)), self.k_norm(self.k_proj(x)), self.v_proj(x)
        q, k, v = (y.unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for y in (q, k, v))
        positions = torch.arange(seen, seen + T, device=x.device)
        if self.rope_theta is not None:
            q, k = self.rotate(q, positions), self.rotate(k, positions)
        if state is not None:
            if state:
                k, v = torch.cat([state["k"], k], 2), torch.cat([state["v"], v], 2)
            state["k"], state["v"] = k, v
        distance = positions[:, None] - torch.arange(seen + T, device=x.device)
        mask = (distance >= 0) & (distance < (self.window or seen + T))
        if real is not None:
            # A pad sees itself, so that no row of the softmax is empty.
            mask = mask & (real[:, None, None, :] | (distance == 0))
        grouped = q.shape[1] != k.shape[1]
        o = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=grouped)
        return self.o_proj(o.transpose(1, 2).flatten(2))

    def rotate(self, x: Tensor, positions: Tensor) -> Tensor:
        """Rotary positions (Su et al. 2021); the first half of D pairs with the second."""
        D = x.shape[-1]
        even = torch.arange(0, D, 2, device=x.device, dtype=torch.float32)
        angle = positions[:, None] * self.rope_theta ** (-even / D)
        angle = torch.cat([angle, angle], dim=-1)
        low, high = x.chunk(2, dim=-1)
        return (x * angle.cos() + torch.cat([-high, low], dim=-1) * angle.sin()).to(x.dtype)


class GatedDeltaNet(nn.Module):
    def __init__(self, a: dict[str, Any], index: int) -> None:  # noqa: ARG002
        super().__init__()
        d, H, K, V = a["d_model"], a["n_heads"], a["gdn_key_dim"], a["gdn_value_dim"]
        self.widths, self.eps = (H, K, V), a["gated_norm_eps"]
        self.beta_max = 2.0 if a["gdn_allow_neg_eigval"] else 1.0
        self.q_proj = nn.Linear(d, H * K, bias=False)
        self.k_proj = nn.Linear(d, H * K, bias=False)
        self.v_proj = nn.Linear(d, H * V, bias=False)
        self.a_proj = nn.Linear(d, H, bias=False)
        self.b_proj = nn.Linear(d, H, bias=False)
        self.g_proj = nn.Linear(d, H * V, bias=False) if a["gdn_output_gate"] else None
        self.conv = nn.Parameter(torch.zeros(H * (2 * K + V), a["conv_kernel"]))
        self.A_log = nn.Parameter(torch.zeros(H))
        self.dt_bias = nn.Parameter(torch.zeros(H))
        self.o_norm = nn.Parameter(torch.ones(V))
        self.o_proj = nn.Linear(H * V, d, bias=False)

    def forward(
        self, x: Tensor, real: Tensor | None, state: dict[str, Tensor] | None, seen: int
    ) -> Tensor:
        H, K, V = self.widths
        x = masked(x, real if real is None else real[:, seen:])
        qkv = torch.cat([self.q_proj(x), self.k_proj(x), self.v_proj(x)], dim=-1)
        qk, v = causal_convolution(qkv, self.conv, None, state).split([2 * H * K, H * V], dim=-1)
        qk = qk.unflatten(-1, (2, H, K)).float()
        q, k = (qk * torch.rsqrt(qk.square().sum(-1, keepdim=True) + 1e-6)).unbind(2)
        beta = torch.sigmoid(self.b_proj(x).float()) * self.beta_max
        g = -self.A_log.float().exp() * F.softplus(self.a_proj(x).float() + self.dt_bias.float())
        start = state.get("S") if state is not None else None
        o, S = recurrence(q * K**-0.5, k, v.unflatten(-1, (H, V)), g, beta, start)
        if state is not None:
            state["S"] = S
        o = rms_norm(o, self.o_norm, self.eps).flatten(2)
        return self.o_proj(o if self.g_proj is None else o * F.silu(self.g_proj(x)))


class Mamba2(nn.Module):
    def __init__(self, a: dict[str, Any], index: int) -> None:  # noqa: ARG002
        super().__init__()
        d, H, P, K = a["d_model"], a["n_heads"], a["mamba2_head_dim"], a["mamba2_state"]
        self.widths, self.eps = (H, P, K), a["gated_norm_eps"]
        self.in_proj = nn.Linear(d, 2 * H * P + 2 * K + H)
        self.conv = nn.Parameter(torch.zeros(H * P + 2 * K, a["conv_kernel"]))
        self.conv_bias = nn.Parameter(torch.zeros(H * P + 2 * K))
        self.A_log = nn.Parameter(torch.zeros(H))
        self.dt_bias = nn.Parameter(torch.zeros(H))
        self.D = nn.Parameter(torch.ones(H))
        self.o_norm = nn.Parameter(torch.ones(H * P))
        self.out_proj = nn.Linear(H * P, d)

    def forward(
        self, x: Tensor, real: Tensor | None, state: dict[str, Tensor] | None, seen: int
    ) -> Tensor:
        H, P, K = self.widths
        real = real if real is None else real[:, seen:]
        z, xBC, dt = self.in_proj(x).split([H * P, H * P + 2 * K, H], dim=-1)
        # Masked before the convolution for its taps and after it for its bias.
        xBC = masked(causal_convolution(masked(xBC, real), self.conv, self.conv_bias, state), real)
        u, k, q = xBC.split([H * P, K, K], dim=-1)
        u = u.unflatten(-1, (H, P))
        dt = F.softplus(dt.float() + self.dt_bias.float())
        start = state.get("S") if state is not None else None
        o, S = recurrence(
            q.unsqueeze(2), k.unsqueeze(2), u * dt.unsqueeze(-1).to(u.dtype),
            -self.A_log.float().exp() * dt, None, start,
        )  # fmt: skip
        if state is not None:
            state["S"] = S
        o = (o + u * self.D.to(u.dtype).unsqueeze(-1)).flatten(2)
        return self.out_proj(rms_norm(o * F.silu(z), self.o_norm, self.eps))


class SwiGLU(nn.Module):
    def __init__(self, d: int, hidden: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(d, hidden, bias=False)
        self.up_proj = nn.Linear(d, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, d, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


MIXERS = {"attn": Attention, "gdn": GatedDeltaNet, "mamba2": Mamba2}


class Block(nn.Module):
    def __init__(self, a: dict[str, Any], index: int) -> None:
        super().__init__()
        mixer = a["layers"][index]
        self.norm_output = mixer == "attn"
        self.mixer = MIXERS[mixer](a, index)
        self.mixer_norm = RMSNorm(a["d_model"], a["norm_eps"])
        self.mlp_norm = RMSNorm(a["d_model"], a["norm_eps"])
        self.mlp = SwiGLU(a["d_model"], a["mlp_hidden"])

    def forward(self, x: Tensor, *context: Any) -> Tensor:
        if self.norm_output:
            x = x + self.mixer_norm(self.mixer(x, *context))
            return x + self.mlp_norm(self.mlp(x))
        x = x + self.mixer(self.mixer_norm(x), *context)
        return x + self.mlp(self.mlp_norm(x))


class ArchladderForCausalLM(PreTrainedModel, GenerationMixin):
    config_class = ArchladderConfig
    main_input_name = "input_ids"
    _no_split_modules = ["Block"]  # noqa: RUF012
    _is_stateful = True

    def __init__(self, config: ArchladderConfig) -> None:
        super().__init__(config)
        a = config.architecture
        self.embedding = nn.Embedding(a["vocab_size"], a["d_model"])
        self.blocks = nn.ModuleList(Block(a, i) for i in range(len(a["layers"])))
        self.norm = RMSNorm(a["d_model"], a["norm_eps"])
        self.head = nn.Linear(a["d_model"], a["vocab_size"], bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embedding

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False  # forward makes its own State

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: State | None = None,
        use_cache: bool | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int = 0,
        return_dict: bool | None = None,
        **_: Any,
    ) -> CausalLMOutputWithPast | tuple[Any, ...]:
        """input_ids: [B, T]; attention_mask: [B, seen + T], 0 for pads; logits [B, T, V]."""
        if use_cache is None:
            use_cache = not self.training
        state = past_key_values if isinstance(past_key_values, State) else None
        if use_cache and state is None:
            state = State(len(self.blocks))
        real = attention_mask.bool() if attention_mask is not None else None
        if real is not None and bool(real.all()):
            real = None
        seen = state.seen if state is not None else 0
        x = self.embedding(input_ids)
        for i, block in enumerate(self.blocks):
            x = block(x, real, state.layers[i] if state is not None else None, seen)
        if state is not None:
            state.seen += input_ids.shape[1]
        logits = self.head(self.norm(x[:, -logits_to_keep:] if logits_to_keep else x))
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten())
        out = CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=state)  # type: ignore[arg-type]
        return out.to_tuple() if return_dict is False else out
