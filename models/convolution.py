"""The short causal depthwise convolution with SiLU that both recurrent mixers begin with.

A sum of J shifted products with its backward pass written out: on a CPU about 0.6 of the time of
autograd's (which pads and adds a gradient a tap), and of a grouped convolution's.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def short_convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, offset: Tensor | None = None
) -> Tensor:
    """silu(bias + sum_j weight[:, j] x_{t-J+1+j}), zeros before the sequence.

    x: [B, T, channels]; weight: [channels, J]; bias: [channels]; offset: [B, T] tokens since the
    document began, where zeros come before every document. Returns x's shape and dtype.
    """
    dtype = x.dtype
    if x.device.type == "cpu" and dtype == torch.bfloat16:
        x = x.float()  # a CPU's bfloat16 arithmetic is float32's and a conversion either way
    y = _Taps.apply(x, weight.to(x.dtype), offset)
    return F.silu(y if bias is None else y + bias.to(x.dtype)).to(dtype)


def extend_convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None, before: Tensor, count: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The convolution of new inputs after those a cache holds, and what it then holds.

    x: [B, T, channels], of which `count` [B] are no padding (None: all); before: [B, J-1,
    channels], the last inputs. Returns silu(…) of the new tokens and the last J-1 inputs.
    """
    J = weight.shape[1]
    joined = torch.cat([before.to(x.dtype), x], dim=1)
    if count is None:
        # A copy: a view would keep all T inputs.
        held = joined[:, joined.shape[1] - J + 1 :].to(before.dtype, copy=True)
        return short_convolution(joined, weight, bias)[:, J - 1 :], held
    last = count[:, None] + torch.arange(J - 1, device=x.device)
    held = joined.gather(1, last[..., None].expand(-1, -1, x.shape[2]))
    return short_convolution(joined, weight, bias)[:, J - 1 :], held.to(before.dtype)


def step_convolution(x: Tensor, weight: Tensor, bias: Tensor | None, before: Tensor) -> Tensor:
    """The convolution of one new input [B, 1, channels], which `before` [B, J-1, channels], the
    last inputs, then holds too. Returns silu(…), [B, 1, channels]."""
    joined = torch.cat([before.to(x.dtype), x], dim=1)
    before.copy_(joined[:, 1:])
    y = (joined * weight.mT).sum(1, keepdim=True)
    return F.silu(y if bias is None else y + bias).to(x.dtype)


class _Taps(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, offset: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight, offset)
        T, J = x.shape[1], weight.shape[1]
        y = x * weight[:, J - 1]
        for delay in range(1, min(J, T)):
            y[:, delay:].addcmul_(_delayed(x, delay, offset), weight[:, J - 1 - delay])
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, offset = ctx.saved_tensors
        dy = grads[0]
        T, J = x.shape[1], weight.shape[1]
        dx = dy * weight[:, J - 1]
        dweight = torch.zeros_like(weight)
        dweight[:, J - 1] = (dy * x).sum((0, 1))
        for delay in range(1, min(J, T)):
            later = dy[:, delay:]
            if offset is not None:
                later = later * (offset[:, delay:, None] >= delay)
            dx[:, : T - delay].addcmul_(later, weight[:, J - 1 - delay])
            dweight[:, J - 1 - delay] = (later * x[:, : T - delay]).sum((0, 1))
        return dx, dweight, None


def _delayed(x: Tensor, delay: int, offset: Tensor | None) -> Tensor:
    """x of `delay` tokens before, from token `delay` on; 0 where that is another document's."""
    earlier = x[:, : x.shape[1] - delay]
    return earlier if offset is None else earlier * (offset[:, delay:, None] >= delay)
