"""Which implementation of a recurrent operator a forward pass takes.

`naive` is the definition (for tests and decoding), `chunked` the plain PyTorch form that trains
on any device. The layers call the functions here and know nothing of backends.
"""

from __future__ import annotations

from torch import Tensor

from models.ops import gated_delta_rule as _gdr
from models.ops import ssd as _ssd

NAMES = {"gated_delta_rule": "chunked", "ssd": "chunked"}
"""Operator -> backend in use, as written to the manifest."""


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
    """See models.ops.gated_delta_rule.naive."""
    return _gdr.chunked(
        q,
        k,
        v,
        g,
        beta,
        initial_state=initial_state,
        output_final_state=output_final_state,
        cu_seqlens=cu_seqlens,
    )


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
    """See models.ops.ssd.naive."""
    return _ssd.chunked(
        q,
        k,
        v,
        g,
        initial_state=initial_state,
        output_final_state=output_final_state,
        cu_seqlens=cu_seqlens,
    )
