"""What a model costs: parameters, training FLOPs, memory in training and decoding; no torch.

One FLOP convention for every mixer (a multiply-add is 2): forward and backward of everything
(3 × forward), causal attention counted once (half of the square), windows as windows, the
recurrent operators in their chunked form (their triangular solve as half a square, its other
products whole, the first and last chunk like the rest), the short convolution and the LM head in;
the embedding's look-up, norms, softmax and pointwise functions out.
docs/counts.md says how this differs from the Olmo Hybrid paper's.

What a mixer costs it says itself (models/mixer.py); here is what stands around it.
"""

from __future__ import annotations

from dataclasses import dataclass

from models.config import MLPS, ModelConfig
from models.mixer import Mixer
from models.mixers import lookup


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
    body = d  # the last norm
    for layer, mixer in enumerate(_mixers(config)):
        if mixer:
            body += mixer.parameters(config, layer) + d
        if config.has_mlp(layer):
            body += _mlp_weights(config) + d
    return body + V * d, body + 2 * V * d, body


def flops_per_token(config: ModelConfig, context: int) -> float:
    """Training FLOPs per token, forward and backward, of the whole model."""
    mixers = sum(m.flops(config, i, context) for i, m in enumerate(_mixers(config)) if m)
    mlps = _mlp_weights(config) * sum(map(config.has_mlp, range(config.n_layers)))
    return 3.0 * (mixers + 2 * (mlps + config.d_model * config.vocab_size))


def decode_bytes(config: ModelConfig, context: int, element_bytes: int = 2) -> tuple[int, int]:
    """(state, KV cache) bytes that decoding one sequence holds after `context` tokens.

    The state is float32, with the convolution's last inputs in the compute dtype of
    `element_bytes`; keys and values are in that dtype, a windowed layer's at most its window.
    """
    layers = [
        m.decode_bytes(config, i, context, element_bytes)
        for i, m in enumerate(_mixers(config))
        if m
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
    # A mixer: its norm's input. An MLP: its norm's input, its own, and its matrices' outputs and
    # inputs (SwiGLU's gate, up and their product; a square's input and output). The last norm.
    elements = 2 * d
    mixers = 0.0
    for layer, mixer in enumerate(_mixers(config)):
        if mixer:
            elements += d
            mixers += mixer.activation_bytes(config, layer, context, element_bytes)
        if config.has_mlp(layer):
            elements += 2 * d + MLPS[config.mlp] * hidden
    return elements * element_bytes + mixers


def count(config: ModelConfig, context: int) -> Counts:
    """All counts of a model trained at `context` tokens."""
    N, N_total, N_body = parameters(config)
    return Counts(N, N_total, N_body, flops_per_token(config, context))


def _mixers(config: ModelConfig) -> list[Mixer | None]:
    """The mixer of every layer; None where the layer is an MLP."""
    return [
        lookup(config.kind(layer).mixer) if config.has_mixer(layer) else None
        for layer in range(config.n_layers)
    ]


def _mlp_weights(config: ModelConfig) -> int:
    return MLPS[config.mlp] * config.d_model * config.mlp_hidden
