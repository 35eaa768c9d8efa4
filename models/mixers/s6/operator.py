"""The selective scan as its layer calls it, and as the preflight examines it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from models.mixers.s6.selective_scan import chunked, naive
from models.ops import backend
from models.ops.operator import Operator


def selective_scan(
    x: Tensor,
    dt: Tensor,
    Bs: Tensor,
    Cs: Tensor,
    A: Tensor,
    *,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """See models.mixers.s6.selective_scan.naive; by the backend in use."""
    return backend.form_in_use(OPERATOR)(
        x,
        dt,
        Bs,
        Cs,
        A,
        initial_state=initial_state,
        output_final_state=output_final_state,
        cu_seqlens=cu_seqlens,
    )


def inputs(device: torch.device, dtype: torch.dtype) -> list[Tensor]:
    """x, Bs and Cs in `dtype`; dt and A, float32, as at the start of training."""
    generator = torch.Generator().manual_seed(0)
    B, T, channels, N = 2, 157, 24, 16

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    dt = F.softplus(randn(B, T, channels) - 4)
    A = -torch.arange(1.0, N + 1).expand(channels, N).contiguous()
    x, Bs, Cs = (
        y.to(device, dtype) for y in (randn(B, T, channels), randn(B, T, N), randn(B, T, N))
    )
    return [x, dt.to(device), Bs, Cs, A.to(device)]


OPERATOR = Operator(
    name="selective_scan",
    naive=naive,
    chunked=chunked,
    inputs=inputs,
    tensors=("y", "dx", "ddt", "dB", "dC", "dA"),
)
