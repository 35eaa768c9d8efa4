"""The short causal depthwise convolution with SiLU that both recurrent mixers begin with."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def short_convolution(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """y_t = silu(bias + sum_j weight[:, j] x_{t-J+1+j}); zeros before the sequence.

    x: [B, T, channels]; weight: [channels, J]; bias: [channels]. Returns x's shape.

    A sum of J shifted products: several times faster on a CPU than a grouped convolution over
    so few taps, and one fused kernel where it is compiled.
    """
    T, J = x.shape[1], weight.shape[1]
    padded = F.pad(x, (0, 0, J - 1, 0))
    y = padded[:, J - 1 :] * weight[:, J - 1]
    for j in range(J - 1):
        y = y + padded[:, j : j + T] * weight[:, j]
    if bias is not None:
        y = y + bias
    return F.silu(y)
