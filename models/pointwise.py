"""Two functions whose backward passes autograd spells out at length, written out here.

On a CPU at tiny widths a training step is bound by passes over memory, and these two are most of
them: the root-mean-square norm (Zhang and Sennrich 2019), and cross-entropy with z-loss, whose
logits are the largest tensor of a small model.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.precision import in_own_precision

FEW = 4096
"""Values of a step of decoding: a call of torch's own norm costs them less than seven do."""


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
        if x.numel() <= FEW and x.dtype == weight.dtype == torch.float32:
            return F.rms_norm(x, weight.shape, weight, eps)
        return (_normed(x, eps)[0] * weight).to(x.dtype)
    return _RMSNorm.apply(x, weight, eps)


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


def token_losses(x: Tensor, head: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy and squared log-partition of each prediction, float32, [n].

    x: [n, d] features; head: [V, d]; targets: [n]. Under autocast the product is in its dtype;
    the head's gradient is accumulated in float32.
    """
    kind = x.device.type
    if torch.is_autocast_enabled(kind):
        x = x.to(torch.get_autocast_dtype(kind))
    return _TokenLosses.apply(x, head, targets)


class _TokenLosses(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, head: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        logits = x @ head.to(x.dtype).mT
        logits = logits if logits.dtype == torch.float64 else logits.float()
        log_partition = logits.logsumexp(-1, keepdim=True)
        chosen = logits.gather(-1, targets.unsqueeze(-1))
        # From here on the logits are only needed as probabilities.
        probabilities = logits.sub_(log_partition).exp_()
        ctx.save_for_backward(x, head, targets, probabilities, log_partition)
        return (log_partition - chosen).squeeze(-1), log_partition.square().squeeze(-1)

    @staticmethod
    @in_own_precision
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        x, head, targets, probabilities, log_partition = ctx.saved_tensors
        dnll, dz2 = (g.unsqueeze(-1) for g in grads)
        dlogits = probabilities * (dnll + 2 * log_partition * dz2)
        dlogits.scatter_add_(-1, targets.unsqueeze(-1), -dnll)
        dlogits = dlogits.to(x.dtype)
        return dlogits @ head.to(x.dtype), (dlogits.mT @ x).to(head.dtype), None
