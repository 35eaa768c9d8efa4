"""Held-out loss: nats and bits per UTF-8 byte, by domain, on the same windows for every mix."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ablations.data.prepared import Corpus
from ablations.data.windows import validation_windows
from ablations.distributed import World
from models.documents import Documents
from models.language_model import LanguageModel

ALONE = World()


@dataclass(frozen=True)
class HeldOut:
    """One domain's windows [n, context + 1] and the text bytes that their targets hold."""

    windows: np.ndarray
    text_bytes: int


def held_out(corpus: Corpus, context: int, eval_tokens: int | None) -> dict[str, HeldOut]:
    """The windows of every validation domain, at most `eval_tokens` predictions in each."""
    return {
        name: HeldOut(*validation_windows(domain, context, eval_tokens))
        for name, domain in corpus.validation.items()
    }


@torch.no_grad()
def evaluate(
    model: LanguageModel,
    domains: dict[str, HeldOut],
    *,
    device: torch.device,
    autocast: Callable[[], AbstractContextManager[Any]],
    batch_tokens: int = 8192,
    separator: int | None = None,
    world: World = ALONE,
) -> dict[str, Any]:
    """Sums and means by domain, and their unweighted means over domains.

    separator: the token after which a document begins, where documents are kept apart; world:
    the ranks that share the windows.
    Returns {"loss": nats per token, "bpb": bits per byte, "domains": {name: {"nats", "tokens",
    "bytes", "loss", "bpb"}}}.
    """
    model.eval()
    results: dict[str, dict[str, float | int]] = {}
    for name, domain in domains.items():
        n, context = domain.windows[:, 1:].shape
        total = torch.zeros((), dtype=torch.float64, device=device)
        rows = max(1, batch_tokens // context)
        for start in range(0, n, rows * world.size):
            mine = domain.windows[start + world.rank * rows :][:rows]
            # A rank with nothing left computes one window for nothing: sharded weights need all.
            empty = not len(mine)
            windows = torch.from_numpy(domain.windows[:1] if empty else mine).to(device)
            inputs, targets = windows[:, :-1], windows[:, 1:]
            documents = None if separator is None else Documents.after(separator, inputs)
            with autocast():
                nll, _ = model.losses(inputs, targets, documents)
            total += 0.0 if empty else nll.double().sum()
        nats = world.sum(total).item()
        tokens = n * context
        results[name] = {
            "nats": nats,
            "tokens": tokens,
            "bytes": domain.text_bytes,
            "loss": nats / tokens,
            "bpb": nats / math.log(2) / domain.text_bytes,
        }
    model.train()
    return {
        "loss": sum(r["loss"] for r in results.values()) / len(results),
        "bpb": sum(r["bpb"] for r in results.values()) / len(results),
        "domains": results,
    }
