"""Held-out loss: nats and bits per UTF-8 byte, by domain, on the same windows for every mix.

The standard errors are an evaluation's own noise: how much its means would move with other
documents of the same kind, by a bootstrap over documents (Efron and Tibshirani, 1993, section 10.3,
with the ratio of sums as the statistic). Tokens of one document are not independent; documents are
taken to be.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ablations.data.prepared import Corpus
from ablations.data.windows import HeldOut, held_out_rows
from ablations.distributed import World
from ablations.evaluate.classes import Partition
from models.documents import Documents
from models.language_model import LanguageModel

__all__ = ["HeldOut", "document_bootstrap", "evaluate", "held_out", "of_mean", "window_nats"]

ALONE = World()
RESAMPLES = 400  # a standard error known to 1 part in sqrt(2 * 400), 3.5 %
SHORTEST_ROW = 32  # predictions; rows of documents are cut to a power of two of them


def held_out(
    corpus: Corpus, context: int, eval_tokens: int | None, mode: str = "windows"
) -> dict[str, HeldOut]:
    """The rows of every validation domain, at most `eval_tokens` predictions in each.

    mode: `windows` of the stream, or whole `documents`.
    """
    return {
        name: held_out_rows(domain, context, eval_tokens, mode)
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
    classes: Mapping[str, Mapping[str, Partition]] | None = None,
) -> dict[str, Any]:
    """Sums and means by domain, and their unweighted means over domains.

    batch_tokens: predictions of a pass, at most; separator: the token after which a document
    begins, where documents are kept apart; world: the ranks that share the windows; classes: of
    each domain's targets (`ablations.evaluate.classes.classify`).
    Returns {"loss": nats per token, "bpb": bits per byte, "loss_se", "bpb_se": standard errors,
    "domains": {name: {"nats", "tokens", "bytes", "documents", "loss", "bpb", "loss_se",
    "bpb_se", "classes": {partition: {class: [nats, tokens, bytes]}}}}}. Standard errors are None
    with fewer than two documents; a class without targets is left out.
    """
    model.eval()
    results: dict[str, dict[str, Any]] = {}
    for name, domain in domains.items():
        n, context = domain.windows[:, 1:].shape
        lengths = np.full(n, context) if domain.lengths is None else domain.lengths
        n_documents = len(domain.document_bytes) if domain.document_bytes is not None else 0
        by_document = np.zeros(n_documents)
        partitions = (classes or {}).get(name, {})
        by_class = {key: np.zeros(len(one.names)) for key, one in partitions.items()}
        total = torch.zeros((), dtype=torch.float64, device=device)
        for mine, nll in window_nats(
            model, domain.windows, batch_tokens, lengths=lengths,
            device=device, autocast=autocast, separator=separator, world=world,
        ):  # fmt: skip
            length = nll.shape[1]
            if domain.lengths is not None:
                counted = torch.arange(length) < torch.from_numpy(lengths[mine])[:, None]
                nll = nll.where(counted.to(device), 0.0)
            total += nll.sum()
            # On the CPU, where the order of a sum, and so its last bit, is always the same.
            values = nll.cpu().numpy().ravel()
            if domain.documents is not None:
                owners = domain.documents[mine, :length]
                by_document += np.bincount(owners.ravel(), values, minlength=n_documents)
            for key, one in partitions.items():
                of_target = one.of_target[mine, :length]
                by_class[key] += np.bincount(of_target.ravel(), values, minlength=len(one.names))
        nats = world.sum(total).item()
        tokens = int(lengths.sum())
        result = {"nats": nats, "tokens": tokens, "bytes": domain.text_bytes}
        errors: dict[str, Any] = {"loss_se": None, "bpb_se": None}
        if domain.documents is not None and domain.document_bytes is not None:
            sums = torch.from_numpy(by_document).to(device)
            by_document = world.sum(sums).cpu().numpy()
            valid = np.arange(context) < lengths[:, None]
            counts = np.bincount(domain.documents[valid], minlength=n_documents)
            result["documents"] = n_documents
            errors = {
                "loss_se": document_bootstrap(by_document, counts),
                "bpb_se": document_bootstrap(by_document / math.log(2), domain.document_bytes),
            }
        results[name] = {
            **result,
            "loss": nats / tokens,
            "bpb": nats / math.log(2) / domain.text_bytes,
            **errors,
        }
        if partitions:
            sums = torch.from_numpy(np.concatenate(list(by_class.values()))).to(device)
            summed = iter(world.sum(sums).tolist())
            results[name]["classes"] = {
                key: _class_sums(one, [next(summed) for _ in one.names])
                for key, one in partitions.items()
            }
    model.train()
    return {
        "loss": sum(r["loss"] for r in results.values()) / len(results),
        "bpb": sum(r["bpb"] for r in results.values()) / len(results),
        # Domains hold different documents, so their errors are independent.
        "loss_se": of_mean([r["loss_se"] for r in results.values()]),
        "bpb_se": of_mean([r["bpb_se"] for r in results.values()]),
        "domains": results,
    }


def _class_sums(one: Partition, nats: list[float]) -> dict[str, list[float | None]]:
    """{class: [nats, tokens, bytes]} of the classes that have targets."""
    sizes = [None] * len(one.names) if one.bytes is None else one.bytes.tolist()
    rows = zip(one.names, nats, one.tokens.tolist(), sizes, strict=True)
    return {name: [own, tokens, size] for name, own, tokens, size in rows if tokens}


def window_nats(
    model: LanguageModel,
    windows: np.ndarray,
    batch_tokens: int,
    *,
    lengths: np.ndarray | None = None,
    device: torch.device,
    autocast: Callable[[], AbstractContextManager[Any]],
    separator: int | None,
    world: World,
) -> Iterator[tuple[slice, Tensor]]:
    """This rank's share of windows [n, T + 1], at most `batch_tokens` predictions a pass: which
    rows, and the nats of their targets, float64 [rows, T].

    lengths: [n] predictions that count of each row; a pass is then cut to a power of two that
    holds the longest of all ranks.
    """
    n, T = windows[:, 1:].shape
    rows = max(1, batch_tokens // T)
    together = rows * world.size
    for number, (mine, counts) in enumerate(world.passes(n, rows)):
        length = T
        if lengths is not None:
            longest = int(lengths[number * together : (number + 1) * together].max())
            length = min(T, max(SHORTEST_ROW, 1 << (longest - 1).bit_length()))
        # Compiled blocks are compiled for each number of rows: a pass with fewer repeats some.
        taken = np.arange(n)[mine]
        asked = np.resize(taken, rows) if model.compiled else taken
        tokens = torch.from_numpy(windows[asked, : length + 1]).to(device)
        inputs, targets = tokens[:, :-1], tokens[:, 1:]
        documents = None if separator is None else Documents.after(separator, inputs)
        with autocast():
            nll, _ = model.losses(inputs, targets, documents)
        if counts:
            yield mine, nll[: len(taken)].double()


def document_bootstrap(numerators: np.ndarray, denominators: np.ndarray) -> float | None:
    """Standard error of sum(numerators) / sum(denominators) over resampled documents.

    numerators, denominators: [documents]. The resamples are the same for every model that is judged
    on these documents. None with fewer than two documents, or where a resample may hold no text.
    """
    n = len(numerators)
    if n < 2:
        return None
    generator = np.random.default_rng(0)
    ratios = []
    for _ in range(RESAMPLES):
        times = np.bincount(generator.integers(n, size=n), minlength=n)
        if below := float(times @ denominators):
            ratios.append(float(times @ numerators) / below)
    return float(np.std(ratios, ddof=1)) if len(ratios) > 1 else None


def of_mean(errors: list[float | None]) -> float | None:
    """Standard error of a mean of independent means; None where one of theirs is."""
    known = [error for error in errors if error is not None]
    if len(known) < len(errors):
        return None
    return math.sqrt(sum(error**2 for error in known)) / len(known)
