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
from models.mixer import FP32_BYTES, Mixer
from models.mixers import lookup

LOGITS_AT_ONCE = 2**28
"""Logits that the loss makes at a time on a GPU, at most."""
MEMORY_SHARE = 0.9
"""Of a GPU's memory that training counts on. The rest is for what is not counted: the driver's
context, the workspaces of libraries, what is sent to other GPUs, and gaps between tensors."""


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

    A convention; docs/counts.md sets it beside what autograd saves. Each tensor that a backward
    pass reads is kept once in the compute dtype; pointwise functions are made again from their
    inputs (as a compiler fuses them), attention is fused (no scores), the recurrent operators keep
    their chunks' first states in float32. The logits, which a loss makes a piece at a time, are
    out.
    """
    ends = 2 * config.d_model * element_bytes  # the last norm's input, and the head's
    return ends + sum(map(sum, _kept_by_layer(config, context, element_bytes)))


@dataclass(frozen=True)
class TrainingMemory:
    """What one device holds at the fullest moment of a step, in bytes: a count, not a measurement.

    That moment is the beginning of a backward pass of a micro-batch that is not the step's first.
    """

    state: float
    """Weights, gradients and optimizer state in float32, and copies of gradients to be summed."""
    copies: float
    """Weights in the compute dtype, and what a sharded model gathers of its weights."""
    head: float
    """The logits that the loss makes at a time, at most, and gradients of the head on their way."""
    sequence: float
    """Of one sequence: what is kept for the backward pass, and what a block's backward adds."""

    def of(self, rows: int) -> float:
        """Bytes with micro-batches of so many sequences."""
        return self.state + self.copies + self.head + rows * self.sequence

    def rows_in(self, device_bytes: float) -> int:
        """Sequences that MEMORY_SHARE of a device's bytes holds by the count; 0 where not one."""
        return max(0, int((MEMORY_SHARE * device_bytes - self.of(0)) // self.sequence))


def training_memory(
    config: ModelConfig,
    context: int,
    *,
    element_bytes: int = 2,
    kept: float = 1.0,
    recompute: str = "false",
    muon: bool = False,
    parallel: str | None = None,
    shards: int = 1,
) -> TrainingMemory:
    """Counted bytes of training on one device, whose sums and weights are float32.

    kept: what is kept over what `activation_bytes` counts, which depends on how the model is run
    (`ablations.resources.KEPT`); recompute: blocks are computed again in the backward pass, all
    that they compute (`true`) or what is neither a product nor attention (`selective`), of which
    the count leaves out what the MLP's last matrix reads; muon:
    one number of state a weight of the body in place of two; parallel: None, ddp, fsdp or hsdp;
    shards: devices that a sharded model lies over.
    """
    _, N_total, N_body = parameters(config)
    d, V, layers = config.d_model, config.vocab_size, config.n_layers
    state = 4.0 * FP32_BYTES * N_total - (FP32_BYTES * N_body if muon else 0)
    copies = float(element_bytes * (N_total - V * d)) if element_bytes < FP32_BYTES else 0.0
    if parallel == "ddp":
        state += FP32_BYTES * N_total  # what is sent, beside gradients that micro-batches add to
    elif parallel is not None:
        state /= shards
        # Embedding and head stay gathered, blocks two at a time, each with a whole gradient.
        copies += 2 * FP32_BYTES * (N_total - N_body + 2 * N_body / layers)
        if element_bytes < FP32_BYTES:  # matrices of blocks arrive in it, and are widened
            copies += 2 * element_bytes * N_body / layers
    # Logits as their product makes them, in float32, and their gradient; the head's gradient of a
    # chunk, its sum over chunks, and that scaled.
    head = (FP32_BYTES + 2 * element_bytes) * LOGITS_AT_ONCE
    head += (2 * FP32_BYTES + element_bytes) * V * d
    block = kept * max(map(sum, _kept_by_layer(config, context, element_bytes)))
    blocks = kept * activation_bytes(config, context, element_bytes)
    if recompute == "selective":
        mlps = sum(map(config.has_mlp, range(layers)))
        blocks -= kept * mlps * config.mlp_hidden * element_bytes
    elif recompute == "true":
        blocks = block + FP32_BYTES * d * layers  # the residual stream, which is float32
    # While a block's backward runs, gradients of what it kept; the residual stream's beside them.
    sequence = context * (blocks + block + 4 * FP32_BYTES * d)
    return TrainingMemory(state, copies, head, sequence)


def count(config: ModelConfig, context: int) -> Counts:
    """All counts of a model trained at `context` tokens."""
    N, N_total, N_body = parameters(config)
    return Counts(N, N_total, N_body, flops_per_token(config, context))


def _kept_by_layer(
    config: ModelConfig, context: int, element_bytes: int
) -> list[tuple[float, float]]:
    """What `activation_bytes` counts of every layer: inside its mixer, and around and after it."""
    d, hidden = config.d_model, config.mlp_hidden
    layers = []
    for layer, mixer in enumerate(_mixers(config)):
        inside, around = 0.0, 0
        if mixer:  # its norm's input
            inside, around = mixer.activation_bytes(config, layer, context, element_bytes), d
        if config.has_mlp(layer):
            # Its norm's input, its own, and its matrices' outputs and inputs: SwiGLU's gate, up
            # and their product; a square's input and output.
            around += 2 * d + MLPS[config.mlp] * hidden
        layers.append((inside, float(around * element_bytes)))
    return layers


def _mixers(config: ModelConfig) -> list[Mixer | None]:
    """The mixer of every layer; None where the layer is an MLP."""
    return [
        lookup(config.kind(layer).mixer) if config.has_mixer(layer) else None
        for layer in range(config.n_layers)
    ]


def _mlp_weights(config: ModelConfig) -> int:
    return MLPS[config.mlp] * config.d_model * config.mlp_hidden
