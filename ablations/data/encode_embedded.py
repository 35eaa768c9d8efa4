"""The embedded corpus from its documents: bytes as tokens, and which documents are held out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ablations.data.blocks import Block
from ablations.data.encode import Encoded, encode_block
from ablations.data.encoder import build_encoder
from ablations.data.prepared import Corpus, write_prepared
from ablations.data.tokenizer import load_tokenizer

NAME = "embedded"
TOKENIZER = load_tokenizer("bytes")


def encode(documents: Sequence[bytes | str]) -> Encoded:
    """Documents as the preparer has them: without NUL bytes and blank ones, as bytes, hashed."""
    block = Block(0, 1, 0, len(documents), 0, list(documents))
    return encode_block(block, build_encoder(TOKENIZER), "text", TOKENIZER)


def held_out(encoded: Encoded, validation_permille: int, max_document_bytes: int) -> np.ndarray:
    """Which documents are held out, bool [documents]: a rule on content alone, so equal ones agree.

    Documents over `max_document_bytes` always train: one of them would be most of a validation
    set.
    """
    drawn = encoded.digests[:, 0] % np.uint64(1000) < np.uint64(validation_permille)
    return drawn & (encoded.text_bytes <= max_document_bytes)


def write_embedded(
    path: Path, domains: dict[str, Encoded], rules: dict[str, dict[str, int]]
) -> Corpus:
    """Write the embedded corpus: training documents domain after domain, held-out ones by domain.

    rules: the arguments of `held_out` by domain.
    """
    masks = {name: held_out(encoded, **rules[name]) for name, encoded in domains.items()}
    return write_prepared(
        path,
        name=NAME,
        vocab_size=TOKENIZER.vocab_size,
        separator=TOKENIZER.separator,
        train=(tokens for name, mask in masks.items() for tokens in domains[name].documents(~mask)),
        validation={name: domains[name].documents(mask) for name, mask in masks.items()},
    )
