"""Loss by position in windows longer than the training context, on held-out text.

A model that uses what lies far back predicts late tokens better than early ones; one that cannot
go beyond its training context shows where it ends. Every position is averaged over windows that
begin anywhere in the text.
"""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from ablations.data.prepared import Corpus
from ablations.data.windows import held_out_rows
from ablations.distributed import World
from ablations.evaluate.loss import document_bootstrap, of_mean, window_nats
from ablations.evaluate.tasks import digest
from models.language_model import LanguageModel

FIRST_BUCKET = 1 / 8
"""Of the training context; each bucket after it is as long as all before it."""


def edges(window: int, context: int) -> list[int]:
    """Where buckets of positions begin and end: 0, an eighth of the context, and its doubles."""
    found = [0]
    edge = max(1, int(context * FIRST_BUCKET))
    while edge < window:
        found.append(edge)
        edge *= 2
    return [*found, window]


@torch.no_grad()
def by_position(
    model: LanguageModel,
    corpus: Corpus,
    window: int,
    context: int,
    count: int,
    *,
    device: torch.device,
    autocast: Callable[[], AbstractContextManager[Any]],
    separator: int | None,
    world: World,
    batch_tokens: int,
) -> list[dict[str, Any]]:
    """A row a bucket of positions of `window` predictions: means over domains, unweighted.

    count: windows in all, shared by the domains, at least one each. Returns {"from", "to":
    predictions before and up to the bucket's end, "predictions", "loss": nats per token, "bpb",
    "loss_se", "bpb_se": by a bootstrap over windows, None where a domain has one alone; "digest":
    of the windows}.
    """
    limits = edges(window, context)
    each = max(1, count // len(corpus.validation))
    measured, asked = [], []
    for domain in corpus.validation.values():
        held_out = held_out_rows(domain, window, each * window)
        rows = held_out.windows
        asked.append(rows)
        sums = torch.zeros(len(rows), len(limits) - 1, dtype=torch.float64, device=device)
        for mine, nll in window_nats(
            model, rows, batch_tokens,
            device=device, autocast=autocast, separator=separator, world=world,
        ):  # fmt: skip
            for place, (begin, end) in enumerate(pairwise(limits)):
                sums[mine, place] = nll[:, begin:end].sum(1)
        nats = world.sum(sums).cpu().numpy()
        assert held_out.target_bytes is not None
        sizes = np.add.reduceat(held_out.target_bytes, limits[:-1], axis=1)
        measured.append((nats, sizes))
    found = []
    for place, (begin, end) in enumerate(pairwise(limits)):
        losses, bpbs, loss_errors, bpb_errors = [], [], [], []
        for nats, sizes in measured:
            bits, counts = nats[:, place] / math.log(2), np.full(len(nats), end - begin)
            losses.append(float(nats[:, place].sum() / counts.sum()))
            bpbs.append(float(bits.sum() / sizes[:, place].sum()))
            loss_errors.append(document_bootstrap(nats[:, place], counts))
            bpb_errors.append(document_bootstrap(bits, sizes[:, place]))
        found.append(
            {
                "from": begin,
                "to": end,
                "predictions": (end - begin) * sum(len(nats) for nats, _ in measured),
                "loss": sum(losses) / len(losses),
                "loss_se": of_mean(loss_errors),
                "bpb": sum(bpbs) / len(bpbs),
                "bpb_se": of_mean(bpb_errors),
                "digest": digest(*asked),
            }
        )
    return found
