"""SSD as its layers call it, and as the preflight examines it."""

from __future__ import annotations

import torch
from torch import Tensor

from models.mixers.mamba2 import fla
from models.mixers.mamba2.ssd import chunked, naive
from models.ops import backend
from models.ops.inputs import decaying_attention
from models.ops.operator import Operator


def ssd(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    *,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """See models.mixers.mamba2.ssd.naive; by the backend in use."""
    return backend.form_in_use(OPERATOR)(
        q,
        k,
        v,
        g,
        initial_state=initial_state,
        output_final_state=output_final_state,
        cu_seqlens=cu_seqlens,
    )


def inputs(device: torch.device, dtype: torch.dtype) -> list[Tensor]:
    """q and k of one group, and v, in `dtype`; log decays g, float32."""
    return decaying_attention(device, dtype, torch.Generator().manual_seed(0), groups=1)


OPERATOR = Operator(
    name="ssd",
    naive=naive,
    chunked=chunked,
    fla=fla.ssd,
    inputs=inputs,
    tensors=("o", "dq", "dk", "dv", "dg"),
)
