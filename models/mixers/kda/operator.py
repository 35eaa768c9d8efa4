"""Kimi Delta Attention's operator as its layers call it, and as the preflight examines it."""

from __future__ import annotations

import torch
from torch import Tensor

from models.mixers.kda import fla
from models.mixers.kda.kimi_delta_attention import chunked, naive
from models.ops import backend
from models.ops.inputs import decaying_attention
from models.ops.operator import Operator


def kimi_delta_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    *,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """See models.ops.delta_rule.naive, g: [B, T, H, K]; by the backend in use."""
    return backend.form_in_use(OPERATOR)(
        q,
        k,
        v,
        g,
        beta,
        initial_state=initial_state,
        output_final_state=output_final_state,
        cu_seqlens=cu_seqlens,
    )


def inputs(device: torch.device, dtype: torch.dtype) -> list[Tensor]:
    """q, k, v in `dtype`; log decays g of each channel and write strengths beta in (0, 2), float32.

    Some channels decay as after training, when dt has grown to 1: by e^-200 and more in 64 tokens,
    where a form that divides by decays overflows.
    """
    generator = torch.Generator().manual_seed(0)
    q, k, v, g = decaying_attention(device, dtype, generator)
    strength = torch.exp(3.5 * torch.rand(1, 1, *k.shape[2:], generator=generator)).to(device)
    beta = 2 * torch.rand(g.shape, generator=generator)
    return [q, k, v, g.unsqueeze(-1) * strength, beta.to(device)]


OPERATOR = Operator(
    name="kimi_delta_attention",
    naive=naive,
    chunked=chunked,
    fla=fla.kimi_delta_attention,
    inputs=inputs,
    tensors=("o", "dq", "dk", "dv", "dg", "dbeta"),
)
