"""What a model costs: parameters and training FLOPs. Plain Python, no torch.

One FLOP convention for every mixer (a multiply-add is 2): forward and backward of everything
(3 × forward), causal attention counted once (half of the square), windows as windows, the
recurrent operators in their chunked form with chunks of 64, the LM head in, the embedding
look-up out, normalisations and pointwise functions left out (under 2 %).
"""

from __future__ import annotations

from dataclasses import dataclass

from models.config import ModelConfig

CHUNK = 64


@dataclass(frozen=True)
class Counts:
    """Parameter counts by three conventions, and what a token costs."""

    N: int
    """Without the input embedding, LM head included (Olmo Hybrid, Table 22)."""
    N_total: int
    N_body: int
    """Without the embedding and without the LM head."""
    flops_per_token: float
    """Training, forward and backward, averaged over a context."""


def mixer_parameters(config: ModelConfig, mixer: str) -> int:
    """Parameters of one mixer layer, its surrounding norm not among them."""
    d, H, J = config.d_model, config.n_heads, config.conv_kernel
    if mixer == "attn":
        kv = config.n_kv_heads * config.head_dim
        return 2 * d * d + 2 * d * kv + d + kv  # q, o; k, v; QK-norms
    if mixer == "gdn":
        key, value = H * config.gdn_key_dim, H * config.gdn_value_dim
        projections = d * (2 * key + value + 2 * H) + value * d  # q k v a b; o
        gate = d * value if config.gdn_output_gate else 0
        return projections + gate + J * (2 * key + value) + 2 * H + config.gdn_value_dim
    inner, K = H * config.mamba2_head_dim, config.mamba2_state
    width = 2 * inner + 2 * K + H
    projections = (d + 1) * width + (inner + 1) * d
    return projections + (J + 1) * (inner + 2 * K) + 3 * H + inner


def parameters(config: ModelConfig) -> tuple[int, int, int]:
    """(N, N_total, N_body), exactly what the built model holds."""
    d, V = config.d_model, config.vocab_size
    per_layer = 3 * d * config.mlp_hidden + 2 * d  # SwiGLU; two norms
    body = sum(mixer_parameters(config, m) + per_layer for m in config.layers) + d
    return body + V * d, body + 2 * V * d, body


def mixer_flops(config: ModelConfig, layer: int, context: int) -> float:
    """Forward FLOPs per token of one mixer, averaged over a context of `context` tokens."""
    d, H = config.d_model, config.n_heads
    mixer, J = config.layers[layer], config.conv_kernel
    if mixer == "attn":
        window = config.windows[layer] or context
        w = min(window, context)
        # Mean number of keys a query sees: 1, 2, …, w, then w.
        keys = (w * (w + 1) / 2 + (context - w) * w) / context
        kv = config.n_kv_heads * config.head_dim
        return 2 * (2 * d * d + 2 * d * kv + 2 * d * keys)
    C = min(CHUNK, context)
    if mixer == "gdn":
        K, V = config.gdn_key_dim, config.gdn_value_dim
        projections = d * H * (2 * K + 2 * V + 2) + (d * H * V if config.gdn_output_gate else 0)
        # A head, a token: k·kᵀ and q·kᵀ over the chunk, the triangular solve for K + V columns
        # (half a square), scores times writes; then erase, read and write of the state.
        inside = C * (2 * K + (K + V) / 2 + V)
        return 2 * (projections + J * H * (2 * K + V) + H * (inside + 3 * K * V))
    P, K = config.mamba2_head_dim, config.mamba2_state
    inner = H * P
    projections = d * (2 * inner + 2 * K + H) + inner * d
    return 2 * (projections + J * (inner + 2 * K) + C * (K + inner) + 2 * inner * K)


def flops_per_token(config: ModelConfig, context: int) -> float:
    """Training FLOPs per token, forward and backward, of the whole model."""
    d = config.d_model
    mixers = sum(mixer_flops(config, i, context) for i in range(config.n_layers))
    dense = 2 * (3 * d * config.mlp_hidden * config.n_layers + d * config.vocab_size)
    return 3.0 * (mixers + dense)


def count(config: ModelConfig, context: int) -> Counts:
    """All counts of a model trained at `context` tokens."""
    N, N_total, N_body = parameters(config)
    return Counts(N, N_total, N_body, flops_per_token(config, context))
