"""The root-mean-square norm (Zhang and Sennrich 2019), its backward pass written out.

On a CPU at tiny widths a training step is bound by passes over memory, of which autograd's form of
the norm makes about twice as many.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.precision import in_own_precision

FEW = 4096
"""Values of a step of decoding, which takes as long as its calls do."""


class RMSNorm(nn.Module):
    """x · weight / sqrt(mean(x²) + eps) over the last dimension, in float32."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x: [..., D], weight: [D] -> x's shape and dtype."""
    if x.device.type != "cpu":
        return F.rms_norm(x.float(), weight.shape, weight.float(), eps).to(x.dtype)
    if not torch.is_grad_enabled():
        return _normed(x, eps)[0].mul_(weight).to(x.dtype)
    return _RMSNorm.apply(x, weight, eps)


def step_norm(weight: Tensor, eps: float) -> Callable[[Tensor], Tensor]:
    """`rms_norm` for a step of decoding, which has no gradient: of few values in five calls.

    Of decoding alone: evaluation does not round by how many rows a pass has.
    """
    floor, share = weight.new_full((), eps), 1 / weight.shape[-1]
    plain = weight.device.type == "cpu" and weight.dtype == torch.float32

    def norm(x: Tensor) -> Tensor:
        if not plain or x.dtype != torch.float32 or x.numel() > FEW:
            return rms_norm(x, weight, eps)
        scale = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        return floor.addcmul(scale, scale, value=share).rsqrt_().mul(x).mul_(weight)

    return norm


def _normed(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """x over its root mean square, and the factor, in float32 or more."""
    wide = x if x.dtype == torch.float64 else x.float()
    # One pass with no temporary of x's size, unlike a mean of squares.
    scale = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square()
    scale = scale.div_(x.shape[-1]).add_(eps).rsqrt_()
    return wide * scale, scale


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        normed, scale = _normed(x, eps)
        ctx.save_for_backward(normed, scale, weight)
        ctx.dtype = x.dtype
        return (normed * weight).to(x.dtype)

    @staticmethod
    @in_own_precision
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        normed, scale, weight = ctx.saved_tensors
        dy = grads[0].to(normed.dtype)
        product = dy * normed
        dweight = product.flatten(0, -2).sum(0)
        along = (product @ weight.to(normed.dtype)).unsqueeze(-1) / normed.shape[-1]
        dx = (dy * weight).addcmul_(normed, along, value=-1).mul_(scale)
        return dx.to(ctx.dtype), dweight.to(weight.dtype), None
