"""Initial values that recurrent mixers share, as their papers publish them."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def log_uniform_decay(shape: torch.Size, low: float, generator: torch.Generator) -> Tensor:
    """A_log with A ~ U(low, 16): low 0 in Gated DeltaNet (Yang et al. 2025), 1 in Mamba2."""
    u = torch.rand(shape, generator=generator)
    return (low + (16.0 - low) * u).clamp_min(1e-4).log()


def inverse_softplus_dt(shape: torch.Size, generator: torch.Generator) -> Tensor:
    """dt_bias with softplus(dt_bias) log-uniform in [1e-3, 0.1], at least 1e-4 (both papers)."""
    u = torch.rand(shape, generator=generator)
    dt = torch.exp(u * (math.log(0.1) - math.log(1e-3)) + math.log(1e-3)).clamp_min(1e-4)
    return dt + torch.log(-torch.expm1(-dt))


def convolution_taps(shape: torch.Size, generator: torch.Generator) -> Tensor:
    """What torch's depthwise convolution draws: U(-1/√taps, 1/√taps). shape: [channels, taps]."""
    bound = shape[-1] ** -0.5
    return (2 * torch.rand(shape, generator=generator) - 1) * bound
