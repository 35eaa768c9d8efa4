"""The chunked gated delta rule against transformers' plain PyTorch function, in one process.

    python benchmarks/operators.py [batch=8] [heads=4] [key=48] [value=96] [threads=1]

Forward and backward at three lengths, float32; printed: median wall milliseconds of each and the
ratio. transformers' function is the one its OlmoHybrid falls back to without fla.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from models.ops import gated_delta_rule


def milliseconds(function: Callable[..., Any], leaves: list[torch.Tensor], repeats: int) -> float:
    taken = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        out = function(*leaves)[0]
        torch.autograd.grad(out.sum(), leaves)
        taken.append(1e3 * (time.perf_counter() - start))
    return statistics.median(taken[1:])


def main(arguments: list[str]) -> None:
    from transformers.models.olmo_hybrid import modeling_olmo_hybrid as published

    settings = {key: int(value) for key, value in (a.split("=", 1) for a in arguments)}
    torch.set_num_threads(settings.get("threads", 1))
    B, H = settings.get("batch", 8), settings.get("heads", 4)
    K, V = settings.get("key", 48), settings.get("value", 96)
    peer = published.torch_chunk_gated_delta_rule
    peer = getattr(peer, "__wrapped__", peer)
    print("| T | ours, ms | transformers, ms | ratio |\n| ---: | ---: | ---: | ---: |")
    for T in (256, 1024, 4096):
        generator = torch.Generator().manual_seed(0)
        q, k, v = (torch.randn(B, T, H, d, generator=generator) for d in (K, K, V))
        q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
        g, beta = (torch.rand(B, T, H, generator=generator) for _ in range(2))
        leaves = [x.detach().requires_grad_() for x in (q, k, v, -g, beta)]
        repeats = max(2, 4096 // T)
        ours = milliseconds(gated_delta_rule.chunked, leaves, repeats)

        def theirs(*x: torch.Tensor) -> Any:
            return peer(*x[:3], g=x[3], beta=x[4], use_qk_l2norm_in_kernel=False)

        other = milliseconds(theirs, leaves, repeats)
        print(f"| {T} | {ours:.0f} | {other:.0f} | {other / ours:.2f} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
