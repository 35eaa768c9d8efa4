"""The LM head with cross-entropy and z-loss, some rows at a time: its logits are never held whole.

In training all tokens weigh the same, and by how much is known before the backward pass. So the
gradients of a chunk are made while its logits are there, and no logits are kept or made again
(Hsu et al. 2024, Liger Kernel, section 3.2): three products with the head's matrix a step.

Shapes: n tokens, d model width, V vocabulary.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from models import cost

LOGITS_AT_ONCE = {"cpu": 2**26, "cuda": cost.LOGITS_AT_ONCE}
"""Logits of a chunk, by device: 256 MB in float32, and 1 GB where a chunk's gradient of the head is
as much traffic as its logits."""


def chunk_rows(x: Tensor, vocab: int) -> int:
    """Rows of features whose logits are made at a time, a power of two: few shapes to compile."""
    at_once = LOGITS_AT_ONCE.get(x.device.type, LOGITS_AT_ONCE["cpu"]) // vocab
    return 1 << max(0, at_once.bit_length() - 1)


def token_losses(
    x: Tensor, head: Tensor, targets: Tensor, compiled: bool = False
) -> tuple[Tensor, Tensor]:
    """Cross-entropy and squared log-partition of each prediction, float32, [n].

    x: [n, d] features; head: [V, d]; targets: [n]. Under autocast the product is in its dtype.
    Float64 stays float64. compiled: each chunk by torch.compile.
    """
    chunk = _compiled_chunk() if compiled else _chunk
    x = _as_autocast(x)
    with torch.autocast(x.device.type, enabled=False):
        weights = head.to(x.dtype)
        rows = chunk_rows(x, len(head))
        chunks = zip(x.split(rows), targets.split(rows), strict=True)
        parts = [chunk(xs, weights, ys) for xs, ys in chunks]
    nll, z2 = (torch.cat(part) for part in zip(*parts, strict=True))
    return nll, z2


def training_loss(
    x: Tensor, head: Tensor, targets: Tensor, weight: float, z_loss: float, compiled: bool = False
) -> tuple[Tensor, Tensor]:
    """weight · Σ (nll + z_loss · z²), a scalar; and nll, [n], which has no gradient.

    Arguments as for `token_losses`. Gradients are accumulated over chunks in float32.
    """
    if not torch.is_grad_enabled():
        nll, z2 = token_losses(x, head, targets, compiled)
        return weight * (nll.sum() + z_loss * z2.sum()), nll
    return _TrainingLoss.apply(_as_autocast(x), head, targets, weight, z_loss, compiled)


class _TrainingLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        head: Tensor,
        targets: Tensor,
        weight: float,
        z_loss: float,
        compiled: bool,
    ) -> tuple[Tensor, Tensor]:
        chunk = _compiled_chunk() if compiled else _chunk
        wide = _wide(x.dtype)
        dnll = torch.full((), weight, dtype=wide, device=x.device)
        dz2 = dnll * z_loss
        rows = chunk_rows(x, len(head))
        found, dhead = [], None
        with torch.autocast(x.device.type, enabled=False):
            weights = head.to(x.dtype)
            for xs, ys in zip(x.split(rows), targets.split(rows), strict=True):
                *of_rows, part = chunk(xs, weights, ys, dnll, dz2)
                found.append(of_rows)
                dhead = part.to(head.dtype) if dhead is None else dhead.add_(part)
        nll, z2, dx = (
            parts[0] if len(parts) == 1 else torch.cat(parts) for parts in zip(*found, strict=True)
        )
        ctx.save_for_backward(dx, dhead)
        ctx.mark_non_differentiable(nll)
        return weight * (nll.sum() + z_loss * z2.sum()), nll

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        dx, dhead = ctx.saved_tensors
        return dx * grads[0], dhead * grads[0], None, None, None, None


def _chunk(
    x: Tensor,
    head: Tensor,
    targets: Tensor,
    dnll: Tensor | None = None,
    dz2: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """nll and z² of some rows; where the weights of the two are given, also the gradients of x and
    of the head."""
    logits = (x @ head.mT).to(_wide(x.dtype))
    log_partition = logits.logsumexp(-1, keepdim=True)
    at = targets.unsqueeze(-1)
    nll = (log_partition - logits.gather(-1, at)).squeeze(-1)
    z2 = log_partition.square().squeeze(-1)
    if dnll is None or dz2 is None:
        return nll, z2
    probabilities = logits.sub_(log_partition).exp_()
    dlogits = probabilities.mul_(dnll + 2 * log_partition * dz2)
    dlogits.scatter_add_(-1, at, (-dnll).expand(at.shape))
    dlogits = dlogits.to(x.dtype)
    return nll, z2, dlogits @ head, dlogits.mT @ x


@cache
def _compiled_chunk() -> Any:
    return torch.compile(_chunk, dynamic=False)


def _as_autocast(x: Tensor) -> Tensor:
    kind = x.device.type
    return x.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else x


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32
