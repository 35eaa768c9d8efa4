"""Validation windows: fixed cuts of a domain's stream, and the bytes of text they predict.

Bits per byte divide a window's nats by the UTF-8 bytes of its targets, so they do not depend on
the tokeniser. The windows depend on the domain, the context and the cap alone: every mix is
judged on the same ones.
"""

from __future__ import annotations

import numpy as np

from ablations.data.prepared import ValidationDomain
from models.errors import SettingError


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
    assert context > 0, context
    if domain.token_bytes is None:
        raise SettingError(
            f"data.path: the corpus of validation domain {domain.name} has no token_bytes, without "
            "which bits per byte cannot be counted; valid: a prepared corpus with a token_bytes "
            "file (uint16, the UTF-8 bytes of each token id)."
        )
    available = (len(domain.tokens) - 1) // context
    if available < 1:
        raise SettingError(
            f"size.context={context} is longer than validation domain {domain.name}, which has "
            f"{len(domain.tokens):,} tokens; valid: at most {len(domain.tokens) - 1:,}."
        )
    kept = available if max_tokens is None else min(available, max(1, max_tokens // context))
    chosen = np.arange(kept, dtype=np.int64) * available // kept
    within = np.arange(context + 1, dtype=np.int64)
    windows = domain.tokens[chosen[:, None] * context + within].astype(np.int64)
    text_bytes = int(domain.token_bytes[windows[:, 1:]].sum(dtype=np.int64))
    return windows, text_bytes
