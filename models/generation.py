"""Continuing prompts: each in one pass, then a token at a time, from a recurrent cache."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from models.language_model import LanguageModel


@torch.no_grad()
def generate(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    new_tokens: int,
    *,
    temperature: float = 0.0,
    seed: int = 0,
) -> list[list[int]]:
    """Continue each prompt by `new_tokens`, all in one batch.

    temperature: 0 takes the likeliest token, else tokens are drawn from softmax(logits /
    temperature) with `seed`. Returns the new tokens of each prompt. Raises ValueError on an
    empty prompt, which gives nothing to continue.
    """
    if not prompts or not all(len(p) for p in prompts):
        raise ValueError("every prompt needs at least one token")
    device = model.head.weight.device
    count = torch.tensor([len(p) for p in prompts], device=device)
    longest = max(map(len, prompts))
    padded = torch.tensor([[*p, *[0] * (longest - len(p))] for p in prompts], device=device)
    generator = torch.Generator(device).manual_seed(seed)
    cache = model.new_cache(len(prompts), longest + new_tokens)
    logits = model.extend(padded, cache, count)
    out: list[Tensor] = []
    for position in range(new_tokens):
        if position:
            logits = model.extend(out[-1][:, None], cache)
        if temperature > 0:
            p = torch.softmax(logits.float() / temperature, dim=-1)
            out.append(torch.multinomial(p, 1, generator=generator).squeeze(1))
        else:
            out.append(logits.argmax(-1))
    return torch.stack(out, 1).tolist() if out else [[] for _ in prompts]
