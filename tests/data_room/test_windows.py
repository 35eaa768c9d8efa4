"""Validation windows: no target twice, and bytes as Python counts them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ablations.data.prepared import ValidationDomain, open_prepared, write_prepared
from ablations.data.windows import validation_windows
from models.errors import SettingError

BYTES = np.ones(256, dtype=np.uint16)
BYTES[0] = 0


def domain(tokens: np.ndarray, token_bytes: np.ndarray | None) -> ValidationDomain:
    return ValidationDomain("toy", tokens, len(tokens), 0, token_bytes)


@given(
    length=st.integers(2, 600),
    context=st.integers(1, 50),
    max_tokens=st.none() | st.integers(1, 700),
)
@settings(max_examples=150, deadline=None)
def test_windows_predict_no_token_twice_and_lie_in_order(
    length: int, context: int, max_tokens: int | None
) -> None:
    if length - 1 < context:
        return
    numbered = np.arange(length, dtype=np.uint32)
    windows, text_bytes = validation_windows(
        domain(numbered, np.ones(length, dtype=np.uint16)), context, max_tokens
    )
    assert windows.dtype == np.int64
    assert windows.shape[1] == context + 1
    assert np.all(np.diff(windows, axis=1) == 1)
    assert np.all(windows[:, 0] % context == 0)
    targets = windows[:, 1:].ravel()
    assert np.all(np.diff(targets) > 0)
    assert text_bytes == len(targets)
    if max_tokens is None:
        assert len(windows) == (length - 1) // context
    else:
        assert len(targets) <= max(context, max_tokens)


def test_a_cap_spreads_the_windows_over_the_whole_domain() -> None:
    numbered = np.arange(1001, dtype=np.uint32)
    windows, _ = validation_windows(domain(numbered, np.ones(1001, dtype=np.uint16)), 10, 100)
    assert windows[:, 0].tolist() == list(range(0, 1000, 100))


@given(st.lists(st.text(st.characters(exclude_characters="\0"), min_size=1), min_size=1))
@settings(max_examples=60, deadline=None)
def test_bytes_of_text_are_those_that_python_counts(documents: list[str]) -> None:
    encoded = [text.encode(errors="replace") for text in documents]
    stream = np.frombuffer(b"\0".join(encoded) + b"\0", dtype=np.uint8)
    _, text_bytes = validation_windows(domain(stream, BYTES), 1, None)
    # With one prediction a window every token is a target but the first, which is a text byte.
    assert text_bytes == sum(map(len, encoded)) - 1


def test_bytes_of_longer_tokens_are_those_of_their_text(tmp_path: Path) -> None:
    vocabulary = ["", "the", " café", " 北京", "!", "?"]
    documents = [np.array([1, 2, 4]), np.array([1, 3, 5, 5])]
    write_prepared(
        tmp_path / "c",
        name="toy",
        vocab_size=len(vocabulary),
        separator=0,
        tokenizer={"name": "toy", "sha256": None},
        token_bytes=np.array([len(token.encode()) for token in vocabulary]),
        train=documents,
        validation={"a": documents},
    )
    held_out = open_prepared(tmp_path / "c").validation["a"]
    texts = ["".join(vocabulary[i] for i in document) for document in documents]
    assert held_out.bytes == sum(len(text.encode()) for text in texts)
    windows, text_bytes = validation_windows(held_out, 8, None)
    assert windows.tolist() == [[1, 2, 4, 0, 1, 3, 5, 5, 0]]
    assert text_bytes == held_out.bytes - len("the")


def test_a_corpus_that_does_not_say_its_bytes_is_refused_in_one_sentence(tmp_path: Path) -> None:
    documents = [np.array([1, 2])]
    write_prepared(
        tmp_path / "c",
        name="toy",
        vocab_size=5,
        separator=0,
        tokenizer={"name": "toy", "sha256": None},
        token_bytes=np.ones(5, dtype=np.uint16),
        train=documents,
        validation={"a": documents},
    )
    manifest = json.loads((tmp_path / "c" / "manifest.json").read_text())
    del manifest["token_bytes"]
    (tmp_path / "c" / "manifest.json").write_text(json.dumps(manifest))
    held_out = open_prepared(tmp_path / "c").validation["a"]
    with pytest.raises(SettingError, match="validation domain a has no token_bytes"):
        validation_windows(held_out, 1, None)


def test_a_context_longer_than_the_domain_is_refused_in_one_sentence() -> None:
    short = domain(np.ones(10, dtype=np.uint8), BYTES)
    assert validation_windows(short, 9, None)[0].shape == (1, 10)
    with pytest.raises(SettingError, match=r"context=10 is longer .* valid: at most 9\."):
        validation_windows(short, 10, None)
