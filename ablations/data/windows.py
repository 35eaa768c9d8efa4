"""Validation windows: fixed cuts of a domain's stream, and the bytes of text they predict.

Bits per byte divide a window's nats by the UTF-8 bytes of its targets, so they do not depend on
the tokeniser. The windows depend on the domain, the context and the cap alone: every mix is
judged on the same ones. Whole documents are judged each from its own beginning, one a row.
"""

from dataclasses import dataclass

import numpy as np

from ablations.data.prepared import ValidationDomain
from ablations.data.streams import pieces
from ablations.data.streams import windows as cut
from models.errors import SettingError


@dataclass(frozen=True)
class HeldOut:
    """One domain's rows [n, context + 1] and the text bytes that their targets hold."""

    windows: np.ndarray
    """Token ids, int64; after `lengths` predictions a row is filled up with separators."""
    text_bytes: int
    lengths: np.ndarray | None = None
    """Predictions of each row, int64 [n]; None where all have the context."""
    documents: np.ndarray | None = None
    """Which document each target is of, from 0, int64 [n, context]."""
    document_bytes: np.ndarray | None = None
    """Text bytes of each document's targets, int64 [documents]."""
    target_bytes: np.ndarray | None = None
    """Text bytes of each target, int64 [n, context]."""


def held_out_rows(
    domain: ValidationDomain, context: int, max_tokens: int | None, mode: str = "windows"
) -> HeldOut:
    """A domain's rows in one of the two modes, each target with its document.

    A document's separator is the last of its targets. Raises SettingError as validation_windows.
    """
    if mode == "documents":
        return _whole_documents(domain, context, max_tokens)
    starts = _window_starts(domain, context, max_tokens)
    rows = cut(domain.tokens, starts, context + 1)
    positions = starts[:, None] + 1 + np.arange(context)
    owners = np.searchsorted(_ends(domain), positions, side="right")
    index = np.unique(owners, return_inverse=True)[1].reshape(owners.shape)
    sizes = _target_bytes(domain, rows, owners)
    # Sums under 2^53 are exact in float64.
    by_document = np.bincount(index.ravel(), sizes.ravel()).astype(np.int64)
    return HeldOut(rows, int(sizes.sum()), None, index, by_document, sizes)


def validation_windows(
    domain: ValidationDomain, context: int, max_tokens: int | None
) -> tuple[np.ndarray, int]:
    """Windows int64 [n, context + 1] of `context` predictions each, and their text bytes.

    Window w covers tokens [w * context, w * context + context + 1): no target is in two windows,
    and the incomplete window at the end is dropped. `max_tokens` caps the predictions (at least
    one window is kept); the windows kept are spread evenly over the domain. The text bytes are
    those of the targets, separators and other special tokens counting nothing.

    Raises SettingError where the domain is shorter than one window, or where its corpus does not
    say how many bytes each token has.
    """
    held_out = held_out_rows(domain, context, max_tokens)
    return held_out.windows, held_out.text_bytes


def _target_bytes(domain: ValidationDomain, rows: np.ndarray, documents: np.ndarray) -> np.ndarray:
    """UTF-8 bytes of text that each target of rows [n, context + 1] stands for, int64.

    documents: of the domain, that each target is of, int64 [n, context]. A document's first token
    is one that follows a separator. What its tokens count that its text does not have is taken off
    there, so that a whole document has the bytes of its text: without an index of its documents,
    what the tokenizer sets before every text.
    """
    if domain.token_bytes is None:
        raise SettingError(
            f"data.path: the corpus of validation domain {domain.name} has no token_bytes, without "
            "which bits per byte cannot be counted; valid: a prepared corpus with a token_bytes "
            "file (uint16, the UTF-8 bytes of each token id)."
        )
    before, targets = rows[:, :-1], rows[:, 1:]
    sizes = domain.token_bytes[targets].astype(np.int64)
    begins = (before == domain.separator) & (targets != domain.separator)
    if domain.document_bytes is None:
        return sizes - domain.prefix_bytes * begins
    sizes[begins] -= _excess(domain)[documents[begins]]
    return sizes


def _excess(domain: ValidationDomain) -> np.ndarray:
    """Bytes that the tokens of each document count and its text does not have, int64."""
    assert domain.token_bytes is not None
    assert domain.document_bytes is not None
    ends, counted, done, before = _ends(domain), [np.zeros(1, dtype=np.int64)], 0, 0
    for piece in pieces(domain.tokens):
        sums = np.cumsum(domain.token_bytes[piece], dtype=np.int64) + before
        inside = ends[(ends > done) & (ends <= done + len(piece))] - done
        counted.append(sums[inside - 1])
        done, before = done + len(piece), int(sums[-1])
    texts = np.concatenate([np.asarray(part) for part in pieces(domain.document_bytes)])
    return np.diff(np.concatenate(counted)) - texts.astype(np.int64)


def _window_starts(domain: ValidationDomain, context: int, max_tokens: int | None) -> np.ndarray:
    assert context > 0, context
    available = (len(domain.tokens) - 1) // context
    if available < 1:
        raise SettingError(
            f"size.context={context} is longer than validation domain {domain.name}, which has "
            f"{len(domain.tokens):,} tokens; valid: at most {len(domain.tokens) - 1:,}."
        )
    kept = available if max_tokens is None else min(available, max(1, max_tokens // context))
    return np.arange(kept, dtype=np.int64) * available // kept * context


def _whole_documents(domain: ValidationDomain, context: int, max_tokens: int | None) -> HeldOut:
    """Each document from its beginning, behind a separator; one longer than the context goes on
    in further rows, each of which begins with the last token of the row before.

    `max_tokens` caps the predictions; the documents kept are spread evenly over the domain.
    """
    ends = _ends(domain)
    starts = np.concatenate([[0], ends[:-1]])
    # A separator alone is no document: llm.c's files begin with one.
    (numbers,) = np.nonzero(ends - starts > 1)
    starts, ends = starts[numbers], ends[numbers]
    if not len(ends):
        raise SettingError(
            f"data.eval_mode=documents: validation domain {domain.name} has no document that ends "
            f"with the separator {domain.separator}; valid: windows."
        )
    if max_tokens is not None and (mean := float((ends - starts).mean())) * len(ends) > max_tokens:
        kept = max(1, int(max_tokens / mean))
        chosen = np.arange(kept) * len(ends) // kept
        numbers, starts, ends = numbers[chosen], starts[chosen], ends[chosen]
    rows, lengths, owners = [], [], []
    for document, (start, end) in enumerate(zip(starts.tolist(), ends.tolist(), strict=True)):
        text = cut(domain.tokens, np.array([start]), end - start)[0]
        tokens = np.concatenate([[domain.separator], text])
        for first in range(0, len(tokens) - 1, context):
            row = tokens[first : first + context + 1]
            rows.append(row)
            lengths.append(len(row) - 1)
            owners.append(document)
    # Rows of like length together, so that little is computed for nothing.
    order = np.argsort(np.array(lengths), kind="stable")[::-1]
    windows = np.full((len(rows), context + 1), domain.separator, dtype=np.int64)
    for place, row in enumerate(order.tolist()):
        windows[place, : len(rows[row])] = rows[row]
    documents = np.repeat(np.array(owners)[order, None], context, axis=1)
    counts = np.array(lengths)[order]
    valid = np.arange(context) < counts[:, None]
    sizes = _target_bytes(domain, windows, numbers[documents])
    text_bytes = np.bincount(documents[valid], sizes[valid], len(ends)).astype(np.int64)
    return HeldOut(windows, int(text_bytes.sum()), counts, documents, text_bytes, sizes)


def _ends(domain: ValidationDomain) -> np.ndarray:
    """Tokens of the domain's stream at which documents end, int64."""
    found, done = [np.empty(0, dtype=np.int64)], 0
    for piece in pieces(domain.tokens):
        found.append(np.flatnonzero(piece == domain.separator) + done + 1)
        done += len(piece)
    return np.concatenate(found)
