"""The prepared format: what is written is read, and each unusable folder gets its sentence."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ablations.data import prepared
from ablations.data.prepared import Corpus, open_prepared, write_prepared
from models.errors import SettingError

BPE = {"name": "toy-bpe", "sha256": "0" * 64}


def write(path: Path, vocab_size: int = 300, **changes: Any) -> Corpus:
    """A small corpus whose token 0 is the separator and whose token i has i % 7 + 1 bytes."""
    token_bytes = np.arange(vocab_size) % 7 + 1
    token_bytes[0] = 0
    arguments: dict[str, Any] = {
        "name": "toy",
        "vocab_size": vocab_size,
        "separator": 0,
        "tokenizer": BPE,
        "token_bytes": token_bytes,
        "train": [np.array([1, 2, 299]), np.array([], dtype=np.int64), np.array([5])],
        "validation": {"a": [np.array([7, 8])], "b": [np.array([9]), np.array([255, 256])]},
    }
    return write_prepared(path, **{**arguments, **changes})


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    manifest = json.loads((path / "manifest.json").read_text())
    change(manifest)
    (path / "manifest.json").write_text(json.dumps(manifest))


def test_what_is_written_is_read(tmp_path: Path) -> None:
    write(tmp_path / "c")
    corpus = open_prepared(tmp_path / "c", verify=True)
    assert (corpus.name, corpus.vocab_size) == ("toy", 300)
    assert corpus.train.tolist() == [1, 2, 299, 0, 0, 5, 0]
    assert isinstance(corpus.train, np.memmap)
    assert corpus.train.ndim == 1
    assert {name: d.tokens.tolist() for name, d in corpus.validation.items()} == {
        "a": [7, 8, 0],
        "b": [9, 0, 255, 256, 0],
    }
    # 7 -> 1, 8 -> 2; 9 -> 3, 255 -> 4, 256 -> 5
    assert {name: d.bytes for name, d in corpus.validation.items()} == {"a": 3, "b": 12}


def test_files_are_headerless_little_endian_and_the_manifest_describes_them(tmp_path: Path) -> None:
    write(tmp_path / "c")
    raw = (tmp_path / "c" / "train.bin").read_bytes()
    assert raw == b"".join(i.to_bytes(2, "little") for i in (1, 2, 299, 0, 0, 5, 0))
    manifest = json.loads((tmp_path / "c" / "manifest.json").read_text())
    assert manifest["train"]["sha256"] == hashlib.sha256(raw).hexdigest()
    assert (manifest["train"]["tokens"], manifest["train"]["documents"]) == (7, 3)
    assert manifest["format"] == 1


@pytest.mark.parametrize(
    ("vocab_size", "dtype"),
    [(256, "uint8"), (257, "uint16"), (65_536, "uint16"), (65_537, "uint32")],
)
def test_the_smallest_dtype_that_holds_the_vocabulary_is_taken(
    tmp_path: Path, vocab_size: int, dtype: str
) -> None:
    documents = [np.array([1, vocab_size - 1])]
    corpus = write(tmp_path / "c", vocab_size, train=documents, validation={"a": documents})
    assert corpus.train.dtype == np.dtype(dtype)
    assert corpus.train.tolist() == [1, vocab_size - 1, 0]


def test_fingerprint_follows_the_tokens_and_not_the_name(tmp_path: Path) -> None:
    one = write(tmp_path / "1").fingerprint
    assert len(one) == 64
    assert write(tmp_path / "2", name="other").fingerprint == one
    assert write(tmp_path / "3", train=[np.array([1])]).fingerprint != one
    assert write(tmp_path / "4", validation={"a": [np.array([7, 8])]}).fingerprint != one
    assert write(tmp_path / "5", separator=3).fingerprint != one


def test_a_writer_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def documents() -> Any:
        yield np.array([1])
        raise RuntimeError("the source ended")

    with pytest.raises(RuntimeError):
        write(tmp_path / "c", train=documents())
    assert list(tmp_path.iterdir()) == []


def test_a_corpus_with_an_empty_stream_is_not_written(tmp_path: Path) -> None:
    for changes in ({"train": []}, {"validation": {"a": []}}, {"validation": {}}):
        with pytest.raises(SettingError):
            write(tmp_path / "c", **changes)
    assert list(tmp_path.iterdir()) == []


def test_the_second_writer_of_one_corpus_opens_the_first_ones(tmp_path: Path) -> None:
    write(tmp_path / "c")
    before = (tmp_path / "c" / "train.bin").stat().st_ino
    write(tmp_path / "c")
    assert (tmp_path / "c" / "train.bin").stat().st_ino == before
    with pytest.raises(SettingError, match="holds another corpus already"):
        write(tmp_path / "c", train=[np.array([1])])
    assert [p.name for p in tmp_path.iterdir()] == ["c"]


def flip_a_token(path: Path) -> None:
    raw = bytearray((path / "train.bin").read_bytes())
    raw[0] ^= 1
    (path / "train.bin").write_bytes(raw)


BAD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no manifest": (
        lambda p: (p / "manifest.json").unlink(),
        "has no manifest.json; valid: a folder",
    ),
    "manifest not JSON": (
        lambda p: (p / "manifest.json").write_text("{"),
        "has a manifest.json that is not JSON",
    ),
    "manifest a list": (
        lambda p: (p / "manifest.json").write_text("[]"),
        "is of format null; valid: 1, 2.",
    ),
    "format": (lambda p: edit(p, lambda m: m.update(format=3)), "is of format 3; valid: 1, 2."),
    "dtype": (
        lambda p: edit(p, lambda m: m.update(dtype="int64")),
        "dtype=int64 is not known; valid: uint16, uint32, uint8.",
    ),
    "vocabulary over dtype": (
        lambda p: edit(p, lambda m: m.update(vocab_size=70_000)),
        "has vocab_size 70000 in uint16; valid: 2 to 65536.",
    ),
    "vocabulary as text": (
        lambda p: edit(p, lambda m: m.update(vocab_size="300")),
        "missing or misshapen entry",
    ),
    "separator": (
        lambda p: edit(p, lambda m: m.update(separator=300)),
        "has separator 300; valid: a token id, 0 to 299.",
    ),
    "no train": (lambda p: edit(p, lambda m: m.pop("train")), "missing or misshapen entry"),
    "no validation": (
        lambda p: edit(p, lambda m: m.update(validation={})),
        "has no validation domain; valid: one or more",
    ),
    "empty validation": (
        lambda p: edit(p, lambda m: m["validation"]["a"].update(tokens=0)),
        "has nothing to predict in validation domain a (0 tokens)",
    ),
    "cut file": (
        lambda p: (p / "train.bin").write_bytes((p / "train.bin").read_bytes()[:-1]),
        "has 13 bytes in train.bin where its manifest.json says 14",
    ),
    "cut token_bytes": (
        lambda p: (p / "token_bytes.bin").write_bytes(b"\0\0"),
        "has 2 bytes in token_bytes.bin where its manifest.json says 600",
    ),
    "missing file": (lambda p: (p / "validation-b.bin").unlink(), "has no validation-b.bin"),
}


@pytest.mark.parametrize("case", BAD)
def test_an_unusable_folder_gets_one_sentence(tmp_path: Path, case: str) -> None:
    spoil, sentence = BAD[case]
    write(tmp_path / "c")
    spoil(tmp_path / "c")
    with pytest.raises(SettingError) as caught:
        open_prepared(tmp_path / "c")
    text = str(caught.value)
    assert sentence in text
    assert text.startswith(f"data.path={tmp_path / 'c'}")
    assert text.endswith(".")
    assert "\n" not in text


def test_a_path_that_is_no_folder_gets_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "absent", tmp_path / "file"):
        with pytest.raises(SettingError, match="is not a folder; valid: a prepared corpus"):
            open_prepared(path)


def test_verify_finds_a_changed_token_and_the_cheap_check_does_not(tmp_path: Path) -> None:
    write(tmp_path / "c")
    flip_a_token(tmp_path / "c")
    open_prepared(tmp_path / "c")
    with pytest.raises(SettingError, match=r"has a train.bin of sha256 [0-9a-f]{12} where"):
        open_prepared(tmp_path / "c", verify=True)


def test_verify_finds_a_token_outside_the_vocabulary(tmp_path: Path) -> None:
    write(tmp_path / "c")
    edit(tmp_path / "c", lambda m: (m.update(vocab_size=299), m.pop("token_bytes")))
    open_prepared(tmp_path / "c")
    with pytest.raises(SettingError, match=r"holds token id 299 in train\.bin"):
        open_prepared(tmp_path / "c", verify=True)


def test_the_loser_of_a_rename_keeps_the_winners_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = prepared.write_manifest

    def slow(folder: Path, manifest: Any) -> None:
        real(folder, manifest)
        monkeypatch.setattr(prepared, "write_manifest", real)
        write(tmp_path / "c", name="winner")

    monkeypatch.setattr(prepared, "write_manifest", slow)
    assert write(tmp_path / "c", name="loser").name == "winner"
    assert [p.name for p in tmp_path.iterdir()] == ["c"]
