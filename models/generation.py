"""Continuing prompts: each in one pass, then a token at a time, from a recurrent cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from models.decoding import Cache
from models.language_model import LanguageModel


def generate(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    new_tokens: int,
    *,
    temperature: float = 0.0,
    seed: int = 0,
    compiled: bool = False,
) -> list[list[int]]:
    """Continue each prompt by `new_tokens`, all in one batch.

    temperature, seed, compiled: see `decode`. Returns the new tokens of each prompt. Raises
    ValueError on an empty prompt, which gives nothing to continue.
    """
    if not prompts or not all(len(p) for p in prompts):
        raise ValueError("every prompt needs at least one token")
    lengths = [len(p) for p in prompts]
    longest = max(lengths)
    device = model.head.weight.device
    padded = torch.tensor([[*p, *[0] * (longest - len(p))] for p in prompts], device=device)
    count = torch.tensor(lengths, device=device) if min(lengths) < longest else None
    steps = decode(
        model, padded, new_tokens, count, temperature=temperature, seed=seed, compiled=compiled
    )
    out = list(steps)
    return torch.stack(out, 1).tolist() if out else [[] for _ in prompts]


def decode(
    model: LanguageModel,
    prompts: Tensor,
    new_tokens: int,
    count: Tensor | None = None,
    *,
    cache: Cache | None = None,
    temperature: float = 0.0,
    seed: int = 0,
    compiled: bool = False,
) -> Iterator[Tensor]:
    """The next `new_tokens` tokens of each row, [B] at a time, as they are made.

    prompts: [B, T], of which `count` [B] are no padding (on the right), at least 1; None: all.
    cache: with room for them and the new tokens; a new one unless given.
    temperature: 0 takes the likeliest token, else tokens are drawn from softmax(logits /
    temperature) with `seed`. compiled: steps run as one compiled graph of fixed shapes, which
    attends over the whole cache.
    """
    generator = torch.Generator(prompts.device).manual_seed(seed)
    B, T = prompts.shape
    run = torch.compile(_step(model), dynamic=False, fullgraph=True) if compiled else None
    token = prompts[:, 0]
    for position in range(new_tokens):
        # Entered anew for each token: a generator would leave it in force for its caller.
        with torch.inference_mode():
            if cache is None:
                cache = model.new_cache(B, T + new_tokens)
            if not position:
                logits = model.extend(prompts, cache, count)
            elif run is not None:
                new = cache.take_static()
                logits = run(token[:, None], cache.layers, new)
                cache.took(new, 1)
            else:
                logits = model.extend(token[:, None], cache)
            if temperature > 0:
                p = torch.softmax(logits.float() / temperature, dim=-1)
                token = torch.multinomial(p, 1, generator=generator).squeeze(1)
            else:
                token = logits.argmax(-1)
        yield token


def _step(model: LanguageModel) -> Callable[..., Tensor]:
    """(tokens [B, 1], layers of a cache, how they meet) -> logits [B, V]."""
    read, head = model.step_function(), model.head
    return lambda tokens, layers, new: head(read(tokens, layers, new))[:, 0]
