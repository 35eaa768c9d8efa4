"""The language model: embedding, blocks of (mixer, SwiGLU), final norm, untied head.

What is unusual here, and why: the norm stands on the sublayers' OUTPUT around attention and on
their INPUT around a recurrent mixer (and on the MLP beside it), because that is how Olmo Hybrid
was trained; every parameter is drawn from its own stream, named by the seed and the parameter's
name, so that two mixes of one seed start from the same embedding and head.

Shapes: B batch, T time, d model width, V vocabulary.
"""

from __future__ import annotations

import hashlib
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from models.attention import Attention
from models.config import ModelConfig
from models.gated_deltanet import GatedDeltaNet
from models.mamba2 import Mamba2
from models.pointwise import RMSNorm, token_losses

INIT_STD = 0.02  # Olmo 3: one normal for every matrix and the embedding
LOGITS_AT_ONCE = 2**26  # float32 logits held at a time: 256 MB


class SwiGLU(nn.Module):
    """down(silu(gate(x)) · up(x)), no biases (Shazeer 2020)."""

    def __init__(self, d_model: int, hidden: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(d_model, hidden, bias=False)
        self.up_proj = nn.Linear(d_model, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    """One mixer and one MLP, each with a norm and a residual."""

    def __init__(self, config: ModelConfig, index: int) -> None:
        super().__init__()
        kind = config.layers[index]
        self.mixer: nn.Module
        if kind == "attn":
            self.mixer = Attention(config, config.windows[index])
        elif kind == "gdn":
            self.mixer = GatedDeltaNet(config)
        else:
            self.mixer = Mamba2(config)
        self.norm_output = kind == "attn"
        self.mixer_norm = RMSNorm(config.d_model, config.norm_eps)
        self.mlp_norm = RMSNorm(config.d_model, config.norm_eps)
        self.mlp = SwiGLU(config.d_model, config.mlp_hidden)

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, T, d] -> [B, T, d]."""
        if self.norm_output:
            x = x + self.mixer_norm(self.mixer(x))
            return x + self.mlp_norm(self.mlp(x))
        x = x + self.mixer(self.mixer_norm(x))
        return x + self.mlp(self.mlp_norm(x))


class LanguageModel(nn.Module):
    """A decoder of any mix. Build it under `torch.device("meta")` to count without memory."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.blocks = nn.ModuleList(Block(config, i) for i in range(config.n_layers))
        self.norm = RMSNorm(config.d_model, config.norm_eps)
        self.head = nn.Linear(config.d_model, config.vocab_size, bias=False)

    def features(self, tokens: Tensor) -> Tensor:
        """tokens: [B, T] -> what the head reads, [B, T, d]."""
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens: [B, T] -> logits [B, T, V]."""
        return self.head(self.features(tokens))

    def losses(self, tokens: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Cross-entropy and squared log-partition of each prediction, float32, [B, T].

        The second is z-loss's (Chowdhery et al. 2022, section 5). Logits are made, and made
        again for the backward pass, so many at a time that they fit in LOGITS_AT_ONCE.
        """
        x = self.features(tokens).flatten(0, 1)
        y = targets.flatten()
        step = max(1, LOGITS_AT_ONCE // self.config.vocab_size)
        if len(x) <= step:
            nll, z2 = token_losses(x, self.head.weight, y)
        else:
            parts = [
                checkpoint(token_losses, xs, self.head.weight, ys, use_reentrant=False)
                for xs, ys in zip(x.split(step), y.split(step), strict=True)
            ]
            nll, z2 = (torch.cat(part) for part in zip(*parts, strict=True))
        return nll.view(targets.shape), z2.view(targets.shape)

    @torch.no_grad()
    def initialize(self, seed: int) -> None:
        """Draw every parameter from its own stream: a function of seed and name alone."""
        for name, parameter in self.named_parameters():
            digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
            parameter.copy_(_initial(name, parameter, self.config, generator))


def _initial(
    name: str, parameter: Tensor, config: ModelConfig, generator: torch.Generator
) -> Tensor:
    """Initial value of one parameter (float32, CPU), by its role."""
    shape, role = parameter.shape, name.rsplit(".", 1)[-1]
    if role == "A_log":
        # GDN: A ~ U(0, 16) (Yang et al. 2025); Mamba2: A ~ U(1, 16) (Dao and Gu 2024).
        low = 1.0 if _is_mamba2(name, config) else 0.0
        u = torch.rand(shape, generator=generator)
        return (low + (16.0 - low) * u).clamp_min(1e-4).log()
    if role == "dt_bias":
        # softplus(dt_bias) log-uniform in [1e-3, 0.1], at least 1e-4 (both papers).
        u = torch.rand(shape, generator=generator)
        dt = torch.exp(u * (math.log(0.1) - math.log(1e-3)) + math.log(1e-3)).clamp_min(1e-4)
        return dt + torch.log(-torch.expm1(-dt))
    if role == "conv":
        # What torch's depthwise convolution draws: U(-1/sqrt(taps), 1/sqrt(taps)).
        bound = shape[-1] ** -0.5
        return (2 * torch.rand(shape, generator=generator) - 1) * bound
    if role == "D" or "norm" in name.split(".")[-2:][0] or role == "o_norm":
        return torch.ones(shape)
    if role in ("bias", "conv_bias"):
        return torch.zeros(shape)
    std = INIT_STD
    if config.init == "fan_in":
        std = 1.0 if name == "embedding.weight" else shape[-1] ** -0.5
    return torch.randn(shape, generator=generator) * std


def _is_mamba2(name: str, config: ModelConfig) -> bool:
    return config.layers[int(name.split(".")[1])] == "mamba2"
