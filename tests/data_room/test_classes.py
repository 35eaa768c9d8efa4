"""Classes of held-out targets: against their definitions, and adding up to the whole."""

from __future__ import annotations

import contextlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ablations.data.prepared import ValidationDomain
from ablations.data.source import token_texts
from ablations.data.tokenizer import load_tokenizer, texts_of
from ablations.data.windows import HeldOut, held_out_rows
from ablations.evaluate.classes import DELIMITER, REPEAT, WORD, WORDS, classify, repeats
from ablations.evaluate.loss import evaluate
from ablations.formats import fault_of, read_rows
from tests.data_room.conftest import END, prepare, train_byte_fallback, train_tokenizer, write_lines

BYTES = [bytes([i]) for i in range(256)]
BYTES[0] = b""


def longest_repeat(row: np.ndarray, t: int) -> int:
    """The longest n-gram that ends at row[t], in its document, and ends at an earlier place too."""
    begin = max([i + 1 for i in range(t) if row[i] == 0], default=0)
    document = row[begin : t + 1].tolist()
    found = 0
    for n in range(1, len(document)):
        gram = document[-n:]
        if any(document[i : i + n] == gram for i in range(len(document) - n)):
            found = n
    return found


@pytest.mark.parametrize("ids", [2, 3, 8])
def test_repeat_is_the_longest_n_gram_that_occurred_before_in_window_and_document(ids: int) -> None:
    generator = np.random.default_rng(ids)
    windows = generator.integers(1, ids, (12, 49))
    windows[generator.random(windows.shape) < 0.04] = 0
    windows[3, 10:40] = windows[3, 9]  # a run, whose n-grams overlap themselves
    windows[4, 25:45] = windows[4, 2:22]
    truth = [[longest_repeat(row, t) for t in range(1, 49)] for row in windows]
    classes = np.searchsorted([1, 2, 4, 8, 16], truth, side="right")
    assert repeats(windows, 0).tolist() == classes.tolist()
    assert set(classes.ravel()) == set(range(len(REPEAT)))


def of_text(text: str, texts: list[bytes], tokens: list[int] | None = None) -> dict[str, list[str]]:
    """Names of the classes of every token of a text behind a separator."""
    own = list(text.encode()) if tokens is None else tokens
    windows = np.array([[0, *own]])
    found = classify({"x": HeldOut(windows, 1)}, 0, texts)["x"]
    return {key: [one.names[i] for i in one.of_target[0]] for key, one in found.items()}


def test_bytes_are_classified_by_their_words() -> None:
    text = "Don't (we) know Zoë’s “cats”, 42 [x]; isn’t he?"
    found = of_text(text, BYTES)
    # The same by Python's own idea of letters.
    words = list(re.finditer(r"(?:[^\W\d_]|(?<=[^\W\d_])['’](?=[^\W\d_]))+", text))
    function = {"don't", "we", "isn’t", "he"}
    expected_word, expected_words = [], []
    for i, letter in enumerate(text):
        (word,) = [w for w in words if w.start() <= i < w.end()] or [None]
        kind = "function word" if word and word[0].lower() in function else "content word"
        for byte in range(len(letter.encode())):
            starts = word is not None and i == word.start() and not byte
            inside = WORD[0] if starts else WORD[1]
            expected_word.append(inside if word else WORD[2])
            expected_words.append(kind if word else WORDS[2])
    assert found["word"] == expected_word
    assert found["words"] == expected_words
    brackets = {"(": DELIMITER[0], "[": DELIMITER[0], ")": DELIMITER[1], "]": DELIMITER[1]}
    assert found["delimiter"] == [brackets.get(chr(b), DELIMITER[2]) for b in text.encode()]


def test_tokens_are_classified_by_their_first_letter_and_last_bracket() -> None:
    texts = [b"", b" in", b"side", b" (", b")).", b" the", b"x", b"\xe2\x80\x9c", b"()", b" 1a"]
    found = of_text("", texts, [1, 2, 3, 5, 4, 1, 6, 7, 6, 0, 6, 8, 9])
    # " inside", " (", " the", ")).", " inx", "“", "x", the separator, "x", "()", " 1a"
    start, inside, no = WORD
    assert found["word"] == [
        start, inside, no, start, no, start, inside, no, start, no, start, no, start,
    ]  # fmt: skip
    function, content, none = WORDS
    assert found["words"] == [
        function, function, none, function, none, content, content, none, content, none, content,
        none, function,
    ]  # fmt: skip
    opening, closing, other = DELIMITER
    assert found["delimiter"] == [
        other, other, opening, other, closing, other, other, other, other, other, other, closing,
        other,
    ]  # fmt: skip


def test_frequency_fills_tenths_from_the_most_frequent_token_on() -> None:
    targets = np.repeat([1, 2, 3, 4], [50, 25, 15, 10])
    windows = {"x": HeldOut(np.append(4, np.random.default_rng(0).permutation(targets))[None], 1)}
    found = classify(windows, 0, None)["x"]
    assert list(found) == ["repeat", "frequency", "position"], "what needs no text"
    one = found["frequency"]
    told = {token: one.names[one.of_target[0][windows["x"].windows[0, 1:] == token][0]]
            for token in (1, 2, 3, 4)}  # fmt: skip
    assert told == {1: "0-10 %", 2: "50-60 %", 3: "70-80 %", 4: "90-100 %"}
    assert found["position"].names == ("0-15", "16-31", "32-63", "64-99")
    assert found["position"].tokens.tolist() == [16, 16, 32, 36]


class Bigram(torch.nn.Module):
    compiled = False

    def __init__(self) -> None:
        super().__init__()
        random = torch.Generator().manual_seed(0)
        self.table = torch.randn(256, 256, generator=random).log_softmax(-1)

    def losses(self, inputs: Any, targets: Any, _documents: Any) -> Any:
        return -self.table[inputs, targets], None


@pytest.mark.parametrize("mode", ["windows", "documents"])
def test_classes_add_up_to_the_domain_and_change_none_of_its_numbers(mode: str) -> None:
    text = Path(json.__file__).read_bytes()
    tokens = np.frombuffer(text.replace(b"\n\n", b"\0") + b"\0", dtype=np.uint8)
    sizes = np.ones(256, dtype=np.uint16)
    sizes[0] = 0
    domains = {
        name: held_out_rows(ValidationDomain(name, own, len(own), 0, sizes), 100, None, mode)
        for name, own in {"a": tokens[:6000], "b": tokens[6000:9001]}.items()
    }
    classes = classify(domains, 0, BYTES)

    def judge(**more: Any) -> dict[str, Any]:
        return evaluate(
            Bigram(), domains, device=torch.device("cpu"),  # type: ignore[arg-type]
            autocast=contextlib.nullcontext, batch_tokens=300, **more,
        )  # fmt: skip

    plain, found = judge(), judge(classes=classes)
    for name, sums in found["domains"].items():
        own = sums.pop("classes")
        assert list(own) == ["repeat", "delimiter", "word", "words", "frequency", "position"]
        for partition in own.values():
            nats, n, text_bytes = np.array(list(partition.values())).sum(axis=0)
            assert nats == pytest.approx(sums["nats"], rel=1e-13)
            assert (n, text_bytes) == (sums["tokens"], sums["bytes"])
        # A class by hand: nats of the closing brackets.
        domain = domains[name]
        counted = np.arange(100) < (100 if domain.lengths is None else domain.lengths[:, None])
        closing = np.isin(domain.windows[:, 1:], list(b")]}")) & counted
        nll = -Bigram().table.double()[domain.windows[:, :-1], domain.windows[:, 1:]].numpy()
        expected = [pytest.approx(nll[closing].sum(), rel=1e-6), closing.sum(), closing.sum()]
        assert own["delimiter"]["closing"] == expected
    assert found == plain, "to the last bit"


@pytest.mark.parametrize("kind", ["llama3", "gpt2", "llama2", "metaspace", "gemma"])
def test_bytes_of_tokens_are_those_that_their_sizes_count(kind: str, tmp_path: Path) -> None:
    byte_level = kind in ("llama3", "gpt2")
    train = train_tokenizer if byte_level else train_byte_fallback
    file = train(tmp_path / "tokenizer.json", **{"family" if byte_level else "kind": kind})
    tokenizer = load_tokenizer(str(file), separator=END if byte_level else None)
    texts = texts_of(file.read_bytes(), tokenizer.vocab_size)
    assert texts is not None
    assert [len(text) for text in texts] == tokenizer.token_bytes.tolist()
    from tokenizers import Tokenizer

    parsed = Tokenizer.from_file(str(file))
    text = "def café(x): return [“北京”, 'it''s']\n\n"
    ids = parsed.encode(text, add_special_tokens=False).ids
    assert b"".join(texts[i] for i in ids).strip() == text.encode().strip()


def test_texts_are_those_of_the_corpus(tmp_path: Path, tokenizer_file: Path) -> None:
    source = write_lines(tmp_path / "texts.jsonl", [f"{i} some (text) here" for i in range(60)])
    corpus = prepare(tmp_path / "bpe", source, tokenizer_file, "validation_fraction=0.3")
    texts = token_texts("tokens", str(tmp_path / "bpe"), corpus)
    assert texts is not None
    assert texts[corpus.separator] == b""
    told = b"".join(texts[i] for i in np.asarray(corpus.train[:40]).tolist())
    assert b" some (text) here" in told
    (tmp_path / "bpe" / "tokenizer.json").unlink()
    assert token_texts("tokens", str(tmp_path / "bpe"), corpus) is None
    corpus = prepare(tmp_path / "bytes", source, "bytes", "validation_fraction=0.3")
    assert token_texts("tokens", str(tmp_path / "bytes"), corpus) == BYTES


def test_records_of_classes_are_checked(tmp_path: Path) -> None:
    def fault(classes: Any) -> str:
        sums = {"nats": 3.0, "tokens": 2, "bytes": 2, "loss": 1.5, "classes": classes}
        row = {"step": 1, "domains": {"x": sums}}
        (tmp_path / "points.jsonl").write_text(json.dumps(row) + "\n")
        return "; ".join(read_rows(tmp_path / "points.jsonl")[1])

    assert not fault({})
    assert not fault({"word": {"start": [1.0, 1, 1], "continuation": [2.0, 1, None]}})
    for bad in (
        [], {"word": []}, {"word": {"start": 1.0}}, {"word": {"start": [1.0, 1]}},
        {"word": {"start": [1.0, 0, 0]}}, {"word": {"start": ["a", 1, 1]}},
    ):  # fmt: skip
        assert "domains=" in fault(bad)
    assert not fault_of({"domains": {"x": {"nats": 3.0}}}, {"domains": "sums"}, ())
