"""What blocks keep for the backward pass where cheap operations are computed again in it.

Kept are the results of matrix products and of attention; the pointwise rest, which is bytes and few
FLOPs, is made from them again (Korthikanti et al. 2022, section 5, with the roles by operator).
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

aten = torch.ops.aten
KEPT = {
    aten.mm.default,
    aten.addmm.default,
    aten._scaled_dot_product_flash_attention.default,
    aten._scaled_dot_product_flash_attention_for_cpu.default,
    aten._scaled_dot_product_efficient_attention.default,
    aten._scaled_dot_product_cudnn_attention.default,
    torch.ops.higher_order.flex_attention,
}
"""Of blocks that are not compiled. A recurrent operator is computed again whole: its small products
together are larger than what they are made of."""
REMAKE = {
    "ban_recompute_materialized_backward": False,
    "ban_recompute_used_far_apart": False,
    "ban_recompute_long_fusible_chains": False,
}
"""The same for torch.compile: it may make again what a backward product reads, where by itself it
does so only for what fuses. What it does not list as cheap (products, attention, an operator of its
own) it keeps. fla's kernels, which it does not look into, keep what they keep."""


def keep_products() -> Any:
    """The contexts of `torch.utils.checkpoint.checkpoint`."""
    return create_selective_checkpoint_contexts(_policy)


def _policy(_context: Any, operator: Any, *_arguments: Any, **_options: Any) -> CheckpointPolicy:
    kept = operator in KEPT
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE
