"""Held-out text in the training text: left out or refused, and what is much alike is counted."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ablations.data.prepared import open_prepared
from tests.data_room.conftest import run, write_lines

NAMES = {
    "the file": lambda file, name: file.replace(name),
    "a symbolic link": lambda file, name: name.symlink_to(file),
    "a hard link": lambda file, name: name.hardlink_to(file),
    "a copy": lambda file, name: shutil.copy(file, name),
}


def text(seed: int, words: int = 60) -> str:
    """Words that no other seed's text has in the same order."""
    rng = np.random.default_rng(seed)
    return " ".join(f"w{n}" for n in rng.integers(0, 5000, words))


def token_file(path: Path, texts: list[str]) -> Path:
    path.write_bytes(b"".join(t.encode() + b"\0" for t in texts))
    return path


def manifest(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "manifest.json").read_text())


def ids(folder: Path) -> bytes:
    corpus = open_prepared(folder, verify=True)
    return np.asarray(corpus.train).astype(np.uint8).tobytes()


@pytest.mark.parametrize("how", NAMES)
@pytest.mark.parametrize("named", ["folder", "pattern"])
def test_a_held_out_token_file_in_the_training_folder_is_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], how: str, named: str
) -> None:
    folder = tmp_path / "tokens"
    folder.mkdir()
    train = token_file(folder / "a.bin", [text(i) for i in range(20)])
    held = token_file(tmp_path / "val.bin", [text(i) for i in range(50, 60)])
    NAMES[how](held, folder / "b.bin")
    given = folder / "b.bin" if how == "the file" else held
    out = tmp_path / "c"
    source = folder if named == "folder" else folder / "*.bin"
    command = ("adopt", f"train={source}", f"validation.v={given}", "tokenizer=bytes")
    assert run(*command, "dtype=uint8", f"out={out}") == 0
    assert ids(out) == train.read_bytes()
    (name,) = manifest(out)["left_out_of_training"]
    said = capsys.readouterr()
    assert f"train: {name} is held out too, and is left out of training" in said.err
    assert f"left out of training, as held out too: {name}" in said.out
    # Given by its own name it is a mistake, and so it is where nothing else is given.
    for only in (folder / "b.bin", f"{folder}/b*"):
        command = ("adopt", f"train={only}", f"validation.v={given}", "tokenizer=bytes")
        assert run(*command, "dtype=uint8", f"out={tmp_path / 'd'}") == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith(f"error: train={only} is given as validation.v too, and")
        assert not (tmp_path / "d").exists()


@pytest.mark.parametrize("how", NAMES)
def test_held_out_documents_in_the_source_folder_are_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], how: str
) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    for i in range(5):
        (folder / f"d{i}.txt").write_text(text(i))
    held = tmp_path / "held.txt"
    held.write_text(text(77))
    NAMES[how](held, folder / "d1.txt" if how == "the file" else folder / "other.txt")
    given = folder / "d1.txt" if how == "the file" else held
    out = tmp_path / "c"
    more = ("tokenizer=bytes", "validation_fraction=0", "processes=1", f"out={out}")
    assert run("prepare", f"source={folder}", f"validation.v={given}", *more) == 0
    wanted = [i for i in range(5) if i != 1 or how != "the file"]
    assert ids(out) == b"".join(text(i).encode() + b"\0" for i in wanted)
    said, recorded = capsys.readouterr(), manifest(out)
    if how == "a copy":  # another file, but the same document
        assert recorded["prepared"]["held_out_documents"] == 1
        assert "1 training documents left out as they are held out too" in said.out
    else:
        assert len(recorded["left_out_of_training"]) == 1
        assert "is held out as validation.v, and is left out of training" in said.err
        assert "left out of training, as held out too: " in said.out
    before = (out / "manifest.json").read_bytes()
    assert run("prepare", f"source={folder}", f"validation.v={given}", *more) == 0
    assert (out / "manifest.json").read_bytes() == before
    if how != "a copy":
        more = (*more[:-1], f"out={tmp_path / 'd'}")
        assert run("prepare", f"source={given}", f"validation.v={given}", *more) == 2
        assert f"source={given} is given as validation.v too" in capsys.readouterr().err


def edited(seed: int, every: int) -> str:
    """text(seed) with every so many words changed."""
    words = text(seed, 400).split(" ")
    return " ".join("changed" if i % every == every - 1 else w for i, w in enumerate(words))


def shared(held_out: str, training: list[str], n: int) -> float:
    """Of the n-grams of a document, in bytes, those that the training text has."""
    raw = held_out.encode()
    there = {t.encode()[i : i + n] for t in training for i in range(len(t) - n + 1)}
    return float(np.mean([raw[i : i + n] in there for i in range(len(raw) - n + 1)]))


def test_near_duplicates_are_counted_by_what_they_share(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    held_out = [text(i, 400) for i in range(12)]
    training = [
        *(edited(i, 100) for i in range(5)),  # much the same
        *(
            edited(i, 9) for i in range(5, 8)
        ),  # a word in nine: an n-gram of 50 bytes is seldom left
        *(text(i, 400) for i in range(100, 110)),
    ]
    shares = [shared(document, training, 50) for document in held_out]
    expected = sum(share >= 0.5 for share in shares)
    assert expected == 5
    assert all(abs(share - 0.5) > 0.2 for share in shares)
    source = write_lines(tmp_path / "train.jsonl", training)
    held = write_lines(tmp_path / "held.jsonl", [*held_out, "too short"])
    other = write_lines(tmp_path / "other.jsonl", [text(i, 400) for i in range(200, 210)])
    more = ("tokenizer=bytes", "validation_fraction=0", "processes=1")
    a, b, mixed = (tmp_path / name for name in ("a", "b", "mixed"))
    assert run("prepare", f"source={source}", f"validation.v={held}", *more, f"out={a}") == 0
    found = manifest(a)["overlap"]
    assert found["domains"] == {"v": {"documents": 12, "near_duplicates": 5}}
    assert found["ngram_tokens"] == 50
    assert found["training_tokens"] == found["of_training_tokens"]
    said = capsys.readouterr().out
    assert (
        "near-duplicates: 5 of 12 documents of validation v share half or more of their 50-" in said
    )
    # One corpus's held-out text in another's training text, which only their mixture reads.
    assert run("prepare", f"source={other}", f"validation.w={other}.not", *more, f"out={b}") == 2
    late = write_lines(tmp_path / "late.jsonl", [text(i, 400) for i in range(100, 103)])
    assert run("prepare", f"source={other}", f"validation.w={late}", *more, f"out={b}") == 0
    assert "near-duplicates: none among 3 held-out documents" in capsys.readouterr().out
    assert run("mix", f"a=1:{a}", f"b=1:{b}", f"out={mixed}") == 0
    assert manifest(mixed)["overlap"]["domains"]["w"] == {"documents": 3, "near_duplicates": 3}
    assert "3 of 3 documents of validation w" in capsys.readouterr().out


def test_copies_of_held_out_documents_in_adopted_files_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ablations.data.adopt.PIECE", 700)  # documents lie across pieces
    held_out = [text(i) for i in range(8)] + [""]
    training = [text(i) for i in (20, 3, 21, 5, 3, 22)] + ["", "", text(9)[:-1], text(2) + " more"]
    train = token_file(tmp_path / "train.bin", training)
    held = token_file(tmp_path / "val.bin", held_out)
    command = ("adopt", f"train={train}", f"validation.v={held}", "tokenizer=bytes", "dtype=uint8")
    assert run(*command, f"out={tmp_path / 'c'}") == 0
    assert manifest(tmp_path / "c")["train"]["held_out_documents"] == 3
    assert "3 training documents are copies of held-out ones" in capsys.readouterr().out
    assert run(*command, "checksum=sample", f"out={tmp_path / 'd'}") == 0
    assert "held_out_documents" not in manifest(tmp_path / "d")["train"]


def test_large_streams_are_sampled_evenly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("ablations.data.overlap.STRETCH", 500)
    monkeypatch.setattr("ablations.data.overlap.TRAINING_TOKENS", 2000)
    train = token_file(tmp_path / "train.bin", [text(i) for i in range(60)])
    held = token_file(tmp_path / "val.bin", [text(i) for i in range(60, 70)])
    command = ("adopt", f"train={train}", f"validation.v={held}", "tokenizer=bytes", "dtype=uint8")
    assert run(*command, f"out={tmp_path / 'c'}") == 0
    found = manifest(tmp_path / "c")["overlap"]
    assert found["training_tokens"] == 2000
    assert found["of_training_tokens"] == train.stat().st_size
    share = 100 * 2000 / train.stat().st_size
    assert f"compared with 2,000 training tokens ({share:.2g} % of them)" in capsys.readouterr().out
