"""What a model costs: parameters, training FLOPs, memory in training and decoding; no torch.

One FLOP convention for every mixer (a multiply-add is 2): forward and backward of everything
(3 × forward), causal attention counted once (half of the square), windows as windows, the
recurrent operators in their chunked form (their triangular solve as half a square, its other
products whole, the first and last chunk like the rest), the short convolution and the LM head in;
the embedding's look-up, norms, softmax and pointwise functions out.
docs/counts.md says how this differs from the Olmo Hybrid paper's.

Every mixer's formulas are one MixerCost; models/mixers.py names it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from models.config import ModelConfig
from models.mixers import cost

FP32_BYTES = 4


def chunk_tokens(value_dim: int, context: int) -> int:
    """Tokens a chunk of a recurrent operator is counted with.

    64, as in the published kernels; 32 where value heads are narrower than 64, as in the tiny
    ladder: there a chunk's squares would cost more than all it saves.
    """
    return min(64 if value_dim >= 64 else 32, context)


@dataclass(frozen=True)
class MixerCost:
    """The counts of one mixer: everything inside the layer, the norm around it not."""

    parameters: Callable[[ModelConfig], int]
    """config -> parameters of one layer."""
    flops: Callable[[ModelConfig, int, int], float]
    """(config, layer, context) -> forward FLOPs per token, averaged over a context."""
    decode_bytes: Callable[[ModelConfig, int, int, int], tuple[int, int]]
    """(config, layer, context, element_bytes) -> what decoding one sequence keeps: bytes that do
    not grow with the context (state), and bytes of keys and values after `context` tokens."""
    activation_bytes: Callable[[ModelConfig, int, int, int], float]
    """(config, layer, context, element_bytes) -> bytes per token that the layer keeps for its
    backward pass, by the convention of `activation_bytes` below."""


def _attn_parameters(config: ModelConfig) -> int:
    d, kv = config.d_model, config.n_kv_heads * config.head_dim
    return 2 * d * d + 2 * d * kv + d + kv  # q, o; k, v; QK-norms


def _attn_flops(config: ModelConfig, layer: int, context: int) -> float:
    d, kv = config.d_model, config.n_kv_heads * config.head_dim
    window = min(config.windows[layer] or context, context)
    # Mean number of keys a query sees: 1, 2, …, window, then window.
    keys = (window * (window + 1) / 2 + (context - window) * window) / context
    return 2 * (2 * d * d + 2 * d * kv + 2 * d * keys)


def _attn_decode_bytes(
    config: ModelConfig, layer: int, context: int, element_bytes: int
) -> tuple[int, int]:
    kept = min(config.windows[layer] or context, context)
    return 0, 2 * config.n_kv_heads * config.head_dim * kept * element_bytes


def _attn_activation_bytes(
    config: ModelConfig, _layer: int, _context: int, element_bytes: int
) -> float:
    d, kv = config.d_model, config.n_kv_heads * config.head_dim
    # Input; q and k before and after norm and rotation; v; output. A log-sum-exp a head, float32.
    elements = d + 2 * (d + kv) + kv + d
    return elements * element_bytes + config.n_heads * FP32_BYTES


def _gdn_parameters(config: ModelConfig) -> int:
    d, H, J = config.d_model, config.n_heads, config.conv_kernel
    key, value = H * config.gdn_key_dim, H * config.gdn_value_dim
    projections = d * (2 * key + value + 2 * H) + value * d  # q k v a b; o
    gate = d * value if config.gdn_output_gate else 0
    taps = J * (2 * key + value)
    return projections + gate + taps + 2 * H + config.gdn_value_dim  # A_log, dt_bias; norm


def _gdn_flops(config: ModelConfig, _layer: int, context: int) -> float:
    d, H, J = config.d_model, config.n_heads, config.conv_kernel
    K, V = config.gdn_key_dim, config.gdn_value_dim
    C = chunk_tokens(V, context)
    projections = d * H * (2 * K + 2 * V + 2) + (d * H * V if config.gdn_output_gate else 0)
    # A head, a token: k·kᵀ and q·kᵀ over the chunk, forward substitution for K + V columns (half
    # a square), scores times writes; then erase, read and write of the state.
    inside = C * (2 * K + V) + (C - 1) / 2 * (K + V)
    return 2 * (projections + J * H * (2 * K + V) + H * (inside + 3 * K * V))


def _gdn_decode_bytes(
    config: ModelConfig, _layer: int, _context: int, element_bytes: int
) -> tuple[int, int]:
    H, K, V = config.n_heads, config.gdn_key_dim, config.gdn_value_dim
    convolution = (config.conv_kernel - 1) * H * (2 * K + V)
    return H * K * V * FP32_BYTES + convolution * element_bytes, 0


def _gdn_activation_bytes(
    config: ModelConfig, _layer: int, context: int, element_bytes: int
) -> float:
    d, H = config.d_model, config.n_heads
    K, V = config.gdn_key_dim, config.gdn_value_dim
    C = chunk_tokens(V, context)
    # Input; q, k, v before and after the convolution, q and k normed; the operator's output, the
    # gate, and what the output projection reads.
    elements = d + 2 * H * (2 * K + V) + 2 * H * K + (3 if config.gdn_output_gate else 2) * H * V
    # float32: log decay and write strength, the chunk's inverse, a state a chunk.
    return elements * element_bytes + (2 * H + H * C + H * K * V / C) * FP32_BYTES


def _mamba2_parameters(config: ModelConfig) -> int:
    d, H, J = config.d_model, config.n_heads, config.conv_kernel
    inner, K = H * config.mamba2_head_dim, config.mamba2_state
    projections = (d + 1) * (2 * inner + 2 * K + H) + (inner + 1) * d  # z x B C dt; out
    return projections + (J + 1) * (inner + 2 * K) + 3 * H + inner  # A_log, dt_bias, D; norm


def _mamba2_flops(config: ModelConfig, _layer: int, context: int) -> float:
    d, H, J = config.d_model, config.n_heads, config.conv_kernel
    inner, K = H * config.mamba2_head_dim, config.mamba2_state
    C = chunk_tokens(config.mamba2_head_dim, context)
    projections = d * (2 * inner + 2 * K + H) + inner * d
    # C·Bᵀ once for all heads, scores times values; then read and write of the state.
    return 2 * (projections + J * (inner + 2 * K) + C * (K + inner) + 2 * inner * K)


def _mamba2_decode_bytes(
    config: ModelConfig, _layer: int, _context: int, element_bytes: int
) -> tuple[int, int]:
    inner, K = config.n_heads * config.mamba2_head_dim, config.mamba2_state
    convolution = (config.conv_kernel - 1) * (inner + 2 * K)
    return inner * K * FP32_BYTES + convolution * element_bytes, 0


def _mamba2_activation_bytes(
    config: ModelConfig, _layer: int, context: int, element_bytes: int
) -> float:
    d, H = config.d_model, config.n_heads
    inner, K = H * config.mamba2_head_dim, config.mamba2_state
    C = chunk_tokens(config.mamba2_head_dim, context)
    # Input; x, B, C before and after the convolution; z, the operator's output, and what the
    # output projection reads. float32: dt and log decay, a state a chunk.
    elements = d + 2 * (inner + 2 * K) + 3 * inner
    return elements * element_bytes + (2 * H + inner * K / C) * FP32_BYTES


ATTN = MixerCost(_attn_parameters, _attn_flops, _attn_decode_bytes, _attn_activation_bytes)
GDN = MixerCost(_gdn_parameters, _gdn_flops, _gdn_decode_bytes, _gdn_activation_bytes)
MAMBA2 = MixerCost(
    _mamba2_parameters, _mamba2_flops, _mamba2_decode_bytes, _mamba2_activation_bytes
)


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


def parameters(config: ModelConfig) -> tuple[int, int, int]:
    """(N, N_total, N_body), exactly what the built model holds."""
    d, V = config.d_model, config.vocab_size
    per_layer = 3 * d * config.mlp_hidden + 2 * d  # SwiGLU; two norms
    body = sum(cost(mixer).parameters(config) + per_layer for mixer in config.layers) + d
    return body + V * d, body + 2 * V * d, body


def flops_per_token(config: ModelConfig, context: int) -> float:
    """Training FLOPs per token, forward and backward, of the whole model."""
    d = config.d_model
    mixers = sum(cost(m).flops(config, i, context) for i, m in enumerate(config.layers))
    dense = 2 * (3 * d * config.mlp_hidden * config.n_layers + d * config.vocab_size)
    return 3.0 * (mixers + dense)


def decode_bytes(config: ModelConfig, context: int, element_bytes: int = 2) -> tuple[int, int]:
    """(state, KV cache) bytes that decoding one sequence holds after `context` tokens.

    The state is float32, with the convolution's last inputs in the compute dtype of
    `element_bytes`; keys and values are in that dtype, a windowed layer's at most its window.
    """
    layers = [
        cost(m).decode_bytes(config, i, context, element_bytes) for i, m in enumerate(config.layers)
    ]
    return sum(state for state, _ in layers), sum(kv for _, kv in layers)


def activation_bytes(config: ModelConfig, context: int, element_bytes: int = 2) -> float:
    """Bytes per token that training keeps between forward and backward, without checkpointing.

    A convention, not a measurement: each tensor that a backward pass reads is kept once in the
    compute dtype; pointwise functions are made again from their inputs (as a compiler fuses
    them), attention is fused (no scores), the recurrent operators keep their chunks' first states
    in float32. The logits, which a loss makes a piece at a time, are out.
    """
    d, hidden = config.d_model, config.mlp_hidden
    # A layer: two norms' inputs, the MLP's input, gate, up and their product. Then the last norm.
    around = (config.n_layers * (3 * d + 3 * hidden) + 2 * d) * element_bytes
    return around + sum(
        cost(m).activation_bytes(config, i, context, element_bytes)
        for i, m in enumerate(config.layers)
    )


def count(config: ModelConfig, context: int) -> Counts:
    """All counts of a model trained at `context` tokens."""
    N, N_total, N_body = parameters(config)
    return Counts(N, N_total, N_body, flops_per_token(config, context))
