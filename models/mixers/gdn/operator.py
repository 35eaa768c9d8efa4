"""The gated delta rule as its layers call it, and as the preflight examines it."""

from __future__ import annotations

import torch
from torch import Tensor

from models.mixers.gdn import fla
from models.mixers.gdn.gated_delta_rule import chunked, naive
from models.ops import backend
from models.ops.inputs import decaying_attention
from models.ops.operator import Operator


def gated_delta_rule(
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
    """See models.mixers.gdn.gated_delta_rule.naive; by the backend in use."""
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
    """q, k, v in `dtype`; log decays g and write strengths beta in (0, 2), float32."""
    generator = torch.Generator().manual_seed(0)
    *qkv, g = decaying_attention(device, dtype, generator)
    return [*qkv, g, (2 * torch.rand(g.shape, generator=generator)).to(device)]


OPERATOR = Operator(
    name="gated_delta_rule",
    naive=naive,
    chunked=chunked,
    fla=fla.gated_delta_rule,
    inputs=inputs,
    tensors=("o", "dq", "dk", "dv", "dg", "dbeta"),
)
