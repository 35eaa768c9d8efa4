"""Tokenizing: the library's own ids on nasty texts, in every family, and the bytes they hold."""

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ablations.data.encoder import build_encoder
from ablations.data.manifest import read_manifest
from ablations.data.prepare import Preparation, prepare
from ablations.data.sentencepiece import pieces
from ablations.data.tokenizer import TokenizerFile, load_tokenizer
from ablations.data.windows import held_out_rows
from tests.data_room.conftest import (
    END,
    FALLBACK,
    PATTERNS,
    train_byte_fallback,
    train_tokenizer,
    write_lines,
)

PIECES = st.sampled_from(
    ["don't", "IT'S", " ", "  ", "\n", "\n\n", "\t", "x1y", "12345", "é", "北京", "...", "foo_bar",
     "≠", "\r\n", "'", " 'll", "a", "|||MAIL|||", "\u00a0", "\u3000", END, "\0", "-1", "!\n", "/",
     "'re", "s", "'S", "\n/", "\n'", "e\u0301", "ſ", "Ǆ", "camelCase", "ʰ", "//", "▁", "<0x0A>",
     "</s>", "🙂", "\u200d", "0.5", "١٢", "?!", "\u2028", "B'"]
)  # fmt: skip
TEXT = st.lists(PIECES | st.text(max_size=4), max_size=14).map("".join)
TEXTS = st.lists(TEXT, max_size=4).map(
    lambda texts: [text for text in texts if text.encode(errors="ignore") == text.encode()]
)
FAMILIES = {"gpt2": "gpt2", "llama3": "cl100k", "qwen2": "cl100k", "gpt4o": "o200k",
            "tekken": "o200k", "other": None}  # fmt: skip


def library(path: Path) -> Any:
    from tokenizers import Tokenizer

    reference = Tokenizer.from_file(str(path))
    reference.encode_special_tokens = True
    return reference


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Any, Any]]:
    """(encoder, the tokenizer itself) of every family; two with an added token, two of which skip
    merges where a whole piece is known."""
    folder, pairs = tmp_path_factory.mktemp("tokenizers"), []
    added = ("|||MAIL|||",)
    for family, known in FAMILIES.items():
        path = train_tokenizer(
            folder / f"{family}.json", family=family, ignore_merges=family in ("llama3", "gpt4o"),
            added=added if family in ("qwen2", "tekken") else (),
        )  # fmt: skip
        tokenizer = load_tokenizer(str(path))
        assert tokenizer.family == known
        encoder = build_encoder(tokenizer)
        assert (type(encoder).__name__ == "_Remembering") == (known is not None)
        encoder._check = lambda *_: None  # type: ignore[attr-defined]
        pairs.append((encoder, library(path)))
    return pairs


def test_every_pattern_here_is_known_or_meant_not_to_be() -> None:
    assert {*PATTERNS, "gpt2"} == set(FAMILIES)


@given(texts=TEXTS)
@settings(max_examples=200, deadline=None)
def test_cutting_a_text_changes_no_id(encoders: list[tuple[Any, Any]], texts: list[str]) -> None:
    for encoder, reference in encoders:
        for text, ids in zip(texts, encoder.encode(texts), strict=True):
            assert ids.tolist() == reference.encode(text, add_special_tokens=False).ids


def test_a_real_text_in_pieces_has_the_ids_of_the_whole(encoders: list[tuple[Any, Any]]) -> None:
    folder = Path(json.__file__).parent
    texts = [path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.py"))]
    for encoder, reference in encoders:
        for text, ids in zip(texts, encoder.encode(texts), strict=True):
            assert ids.tolist() == reference.encode(text, add_special_tokens=False).ids


def test_a_difference_between_the_two_ways_stops_the_preparation(tokenizer_file: Path) -> None:
    encoder: Any = build_encoder(load_tokenizer(str(tokenizer_file)))
    encoder.encode(["some words"])
    encoder._young = dict.fromkeys(encoder._young, b"\1\0")
    with pytest.raises(RuntimeError, match="ids differ on a text that was cut"):
        encoder.encode(["some words"])


def test_tokens_stand_for_as_many_bytes_as_their_text_has(
    tokenizer_file: Path, texts: list[str]
) -> None:
    tokenizer = load_tokenizer(str(tokenizer_file))
    assert tokenizer.prefix_bytes == 0
    for text, ids in zip(texts, build_encoder(tokenizer).encode(texts), strict=True):
        assert tokenizer.token_bytes[ids].sum() == len(text.encode())
    assert tokenizer.token_bytes[tokenizer.separator] == 0


@pytest.fixture(scope="module", params=FALLBACK)
def fallback(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[TokenizerFile, Any, str]:
    path = tmp_path_factory.mktemp("fallback") / "tokenizer.json"
    train_byte_fallback(path, kind=request.param)
    return load_tokenizer(str(path)), library(path), request.param


@pytest.fixture(scope="module")
def in_pieces(fallback: tuple[TokenizerFile, Any, str]) -> Any:
    encoder: Any = build_encoder(fallback[0])
    assert type(encoder).__name__ == "_Remembering"
    encoder._check = lambda *_: None
    return encoder


@given(texts=TEXTS)
@settings(max_examples=200, deadline=None)
def test_a_byte_fallback_tokenizer_gives_its_own_ids_and_their_bytes_add_up(
    fallback: tuple[TokenizerFile, Any, str], in_pieces: Any, texts: list[str]
) -> None:
    tokenizer, reference, kind = fallback
    prefix_bytes = 0 if kind == "gemma" else 1
    assert (tokenizer.family, tokenizer.prefix_bytes) == ("sentencepiece", prefix_bytes)
    for text, ids in zip(texts, in_pieces.encode(texts), strict=True):
        assert ids.tolist() == reference.encode(text, add_special_tokens=False).ids
        # U+2581 is how these tokenizers write a space; Metaspace sets none before another.
        if text and "▁" not in text and not ("metaspace" in kind and text.startswith(" ")):
            assert tokenizer.token_bytes[ids].sum() == len(text.encode()) + prefix_bytes


def test_a_real_text_in_pieces_of_a_byte_fallback_tokenizer(
    fallback: tuple[TokenizerFile, Any, str], in_pieces: Any
) -> None:
    texts = [path.read_text(encoding="utf-8") for path in Path(json.__file__).parent.glob("*.py")]
    texts += [f" {texts[0]}", f"北京 {texts[0]}"]
    for text, ids in zip(texts, in_pieces.encode(texts), strict=True):
        assert ids.tolist() == fallback[1].encode(text, add_special_tokens=False).ids
    remembered = len(in_pieces._young)
    in_pieces.encode(texts)
    assert len(in_pieces._young) == remembered > 100, "pieces are met again"


@pytest.mark.parametrize("kind", ["llama2", "metaspace"])
def test_documents_with_an_added_token_go_whole_where_spaces_are_set_around_it(
    tmp_path: Path, kind: str
) -> None:
    path = train_byte_fallback(tmp_path / "t.json", kind=kind, added=("|||MAIL|||", "▁<x>"))
    encoder: Any = build_encoder(load_tokenizer(str(path)))
    encoder._check = lambda *_: None
    texts = ["to |||MAIL||| and on", "x|||MAIL|||", "a <x> b", "<x>", "plain words", "▁<x> ▁"]
    for text, ids in zip(texts, encoder.encode(texts), strict=True):
        assert ids.tolist() == library(path).encode(text, add_special_tokens=False).ids
    assert any(b"plain" in piece for piece in encoder._young)


OTHERWISE: dict[str, dict[str, Any]] = {
    "dropout": {"model": {"dropout": 0.1}},
    "ignore_merges": {"model": {"ignore_merges": True}},
    "no bytes": {"model": {"byte_fallback": False}},
    "a merge of bytes": {"model": {"merges": [["<0x0A>", "<0x0A>"]]}},
    "another normalizer": {"normalizer": {"type": "NFKC"}},
    "a regular expression": {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "a"}}},
    "an added space": {"added_tokens": [{"content": "▁", "special": False, "single_word": False}]},
}


@pytest.mark.parametrize("case", OTHERWISE)
def test_what_could_join_pieces_in_another_way_is_left_to_the_library(
    tmp_path: Path, case: str
) -> None:
    path = train_byte_fallback(tmp_path / "t.json", kind="llama2")
    described = json.loads(path.read_text())
    assert pieces(described) is not None
    for key, value in OTHERWISE[case].items():
        described[key] = described["model"] | value if key == "model" else value
    assert pieces(described) is None


def test_a_byte_fallback_tokenizer_holds_words_spaces_and_single_bytes(
    fallback: tuple[TokenizerFile, Any, str],
) -> None:
    tokenizer, reference, kind = fallback
    if kind == "gemma":
        for spaces in ("▁▁", "▁▁▁"):
            assert tokenizer.token_bytes[reference.token_to_id(spaces)] == len(spaces)
    (newline,) = (reference.token_to_id(f"<0x{byte:02X}>") for byte in b"\n")
    first = reference.token_to_id("<0xE5>")
    assert tokenizer.token_bytes[[newline, first]].tolist() == [1, 1]
    words = [w for w in reference.get_vocab() if "▁" in w and w.replace("▁", "").isalpha()]
    assert len(max(words, key=len)) > 3
    for word in words:
        assert tokenizer.token_bytes[reference.token_to_id(word)] == len(word)
    assert tokenizer.token_bytes[reference.token_to_id("</s>")] == 0
    assert tokenizer.separator == reference.token_to_id("</s>")
    ids = build_encoder(tokenizer).encode(["x北y"])[0].tolist()
    assert [reference.id_to_token(i) for i in ids][-4:-1] == ["<0xE5>", "<0x8C>", "<0x97>"]


def test_held_out_bytes_are_those_of_the_text_and_not_of_the_space_before_it(
    fallback: tuple[TokenizerFile, Any, str], tmp_path: Path
) -> None:
    tokenizer, _, _ = fallback
    texts = [f"{i} " + "naïve 北京 words\n" * (i % 7) for i in range(200)]
    source = write_lines(tmp_path / "a.jsonl", texts)
    said: list[str] = []
    asked = Preparation(str(source), tokenizer, tmp_path / "c", "c", validation_fraction=0.3)
    domain = prepare(asked, said.append).validation["c"]
    assert said == []
    assert read_manifest(tmp_path / "c", "")["prepared"]["inexact_documents"] == 0
    number = [int(sha256(text.encode()).hexdigest()[:16], 16) for text in texts]
    held_out = [t for t, n in zip(texts, number, strict=True) if n < 0.3 * 2**64]
    sizes = [len(text.encode()) for text in held_out]
    assert domain.bytes == sum(sizes)
    whole = held_out_rows(domain, 8, None, "documents")
    assert whole.document_bytes is not None
    assert whole.document_bytes.tolist() == sizes
    # With a context of one, every token but the stream's first is a target: that one is a digit.
    windows = held_out_rows(domain, 1, None)
    begun = tokenizer.token_bytes[domain.tokens[0]] - tokenizer.prefix_bytes
    assert windows.text_bytes == sum(sizes) - begun
    assert windows.document_bytes is not None
    assert windows.document_bytes.tolist() == [sizes[0] - begun, *sizes[1:]]


@pytest.mark.parametrize("shard_tokens", [1 << 28, 300])
def test_held_out_bytes_are_those_of_texts_whose_tokens_do_not_add_up_to_them(
    fallback: tuple[TokenizerFile, Any, str], tmp_path: Path, shard_tokens: int
) -> None:
    tokenizer, _, kind = fallback
    # Metaspace sets no space before one that is there, and U+2581 is three bytes, its space one.
    texts = [" " * (i % 2) + f"{i} " + "naïve words\n" * (i % 7) + "▁" * (i % 3) for i in range(99)]
    source = write_lines(tmp_path / "a.jsonl", texts)
    asked = Preparation(
        str(source), tokenizer, tmp_path / "c", "c", validation_fraction=0.5,
        shard_tokens=shard_tokens,
    )  # fmt: skip
    domain = prepare(asked, lambda _: None).validation["c"]
    inexact = read_manifest(tmp_path / "c", "")["prepared"]["inexact_documents"]
    assert inexact == sum(i % 3 > 0 or (i % 2 and "metaspace" in kind) for i in range(99))
    number = [int(sha256(text.encode()).hexdigest()[:16], 16) for text in texts]
    sizes = [len(t.encode()) for t, n in zip(texts, number, strict=True) if n < 2**63]
    whole = held_out_rows(domain, 8, None, "documents")
    assert whole.document_bytes is not None
    assert whole.document_bytes.tolist() == sizes
    some = held_out_rows(domain, 8, 300, "documents")
    assert some.document_bytes is not None
    n = len(some.document_bytes)
    assert some.document_bytes.tolist() == [sizes[i * len(sizes) // n] for i in range(n)]
    windows = held_out_rows(domain, 1, None)
    assert windows.document_bytes is not None
    assert windows.document_bytes.tolist()[1:] == sizes[1:]
