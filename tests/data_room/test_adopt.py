"""Files of other programs, written here byte by byte to the format each documents."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ablations.data.__main__ import main
from ablations.data.order import Batches
from ablations.data.prepared import Corpus, Shards, open_prepared

END = 0
DOCUMENTS = [[(i * 7 + j) % 250 + 1 for j in range(i % 13 + 1)] for i in range(60)]
STREAM = [token for document in DOCUMENTS for token in [*document, END]]


def write_raw(path: Path, dtype: str) -> Path:
    """OLMo's part files and nanoGPT's .bin: ids and nothing else."""
    path.write_bytes(b"".join(i.to_bytes(int(dtype[-1]), "little") for i in STREAM))
    return path


def write_megatron(path: Path, code: int) -> Path:
    """`code`: 8 for uint16, 4 for int32. One sequence a document, as preprocess_data.py writes."""
    size = {8: 2, 4: 4, 1: 1}[code]
    path.write_bytes(b"".join(i.to_bytes(size, "little") for i in STREAM))
    lengths = [len(document) + 1 for document in DOCUMENTS]
    pointers = [size * sum(lengths[:i]) for i in range(len(lengths))]
    n = len(lengths)
    index = b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, code, n, n + 1)
    index += struct.pack(f"<{n}i", *lengths) + struct.pack(f"<{n}q", *pointers)
    index += struct.pack(f"<{n + 1}q", *range(n + 1))
    path.with_suffix(".idx").write_bytes(index)
    return path


def write_llm_c(path: Path, magic: int, version: int, size: int) -> Path:
    """256 int32 of header, of which three say something."""
    header = struct.pack("<3i", magic, version, len(STREAM)) + b"\0" * (253 * 4)
    path.write_bytes(header + b"".join(i.to_bytes(size, "little") for i in STREAM))
    return path


def write_npy(path: Path) -> Path:
    with path.open("wb") as handle:
        np.save(handle, np.array(STREAM, dtype=np.uint16))
    return path


FILES: dict[str, Any] = {
    "olmo uint16": (lambda p: write_raw(p / "part-0-00000.npy", "<u2"), ("dtype=uint16",)),
    "olmo uint32": (lambda p: write_raw(p / "part-0-00000.npy", "<u4"), ("dtype=uint32",)),
    "nanogpt": (lambda p: write_raw(p / "train.bin", "<u2"), ()),
    "npy": (lambda p: write_npy(p / "a.npy"), ()),
    "megatron uint16": (lambda p: write_megatron(p / "a.bin", 8), ()),
    "megatron int32": (lambda p: write_megatron(p / "a.bin", 4), ()),
    "llm.c gpt-2": (lambda p: write_llm_c(p / "a.bin", 20240520, 1, 2), ()),
    "llm.c llama-3": (lambda p: write_llm_c(p / "a.bin", 20240801, 7, 4), ()),
}


def adopt(tmp_path: Path, file: Path, *more: str) -> int:
    """With the bytes' vocabulary and separator, which the streams here obey."""
    given = (f"train={file}", "tokenizer=bytes", f"out={tmp_path / 'c'}")
    return main(["adopt", *given, "held_out_tokens=40", "name=held", *more])


def opened(tmp_path: Path) -> Corpus:
    return open_prepared(tmp_path / "c", verify=True)


@pytest.mark.parametrize("case", FILES)
@pytest.mark.parametrize("how", ["full", "sample"])
def test_a_file_is_read_as_it_lies(tmp_path: Path, case: str, how: str) -> None:
    write, more = FILES[case]
    file = write(tmp_path)
    before = file.read_bytes()
    assert adopt(tmp_path, file, *more, f"checksum={how}") == 0
    corpus = opened(tmp_path)
    held = corpus.validation["held"]
    assert isinstance(corpus.train, np.ndarray)
    assert isinstance(held.tokens, np.ndarray)
    assert [*corpus.train.tolist(), *held.tokens.tolist()] == STREAM
    assert 40 <= len(held.tokens) < 60
    assert corpus.train[-1] == held.tokens[-1] == END
    assert held.bytes == np.count_nonzero(held.tokens)
    assert file.read_bytes() == before
    assert sum(path.stat().st_size for path in (tmp_path / "c").iterdir()) < 5000


def test_files_are_one_stream_and_a_batch_may_lie_across_them(tmp_path: Path) -> None:
    half = len(STREAM) // 2
    raw = write_raw(tmp_path / "whole.bin", "<u2").read_bytes()
    (tmp_path / "a-0.npy").write_bytes(raw[: 2 * half])
    (tmp_path / "a-1.npy").write_bytes(raw[2 * half :])
    assert adopt(tmp_path, tmp_path / "a-*.npy", "dtype=uint16") == 0
    train = opened(tmp_path).train
    assert isinstance(train, Shards)
    expected = Batches(np.array(STREAM[: len(train)]), "ab" * 32, 7, 3, seed=0)
    batches = Batches(train, "ab" * 32, 7, 3, seed=0)
    for step in range(batches.n_instances // 3 + 2):
        assert np.array_equal(batches.batch(step), expected.batch(step))


def test_the_eleven_domains_of_the_ladder_are_a_ready_list(tmp_path: Path) -> None:
    names = [
        "c4_en", "dolma_books", "dolma_common-crawl", "dolma_pes2o", "dolma_reddit", "dolma_stack",
        "dolma_wiki", "ice", "m2d2_s2orc", "pile", "wikitext_103",
    ]  # fmt: skip
    for name in names:
        folder = tmp_path / "v3_small" / name / "val"
        folder.mkdir(parents=True)
        write_raw(folder / "part-0-00000.npy", "<u2")
    train = write_raw(tmp_path / "train.npy", "<u2")
    train.write_bytes(train.read_bytes() * 2)  # no copy of a validation file
    given = (f"train={train}", "tokenizer=bytes", f"out={tmp_path / 'c'}", "dtype=uint16")
    assert main(["adopt", *given, "validation=olmo_ladder", f"root={tmp_path / 'v3_small'}"]) == 0
    assert list(opened(tmp_path).validation) == names


def spoil(path: Path, start: int, content: bytes) -> None:
    raw = bytearray(path.read_bytes())
    raw[start : start + len(content)] = content
    path.write_bytes(raw)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


REFUSED: dict[str, tuple[str, Any, str]] = {
    "cut raw": ("nanogpt", cut, "no whole number of uint16"),
    "cut megatron": ("megatron uint16", cut, "where a.idx says"),
    "cut index": ("megatron uint16", lambda p: cut(p.with_suffix(".idx")), "where its header says"),
    "no index": (
        "megatron uint16",
        lambda p: spoil(p.with_suffix(".idx"), 0, b"TNTIDX"),
        "is no Megatron index",
    ),
    "dtype code": (
        "megatron uint16",
        lambda p: spoil(p.with_suffix(".idx"), 17, b"\x05"),
        "dtype code 5; valid: version 1",
    ),
    "pointers": (
        "megatron uint16",
        lambda p: spoil(p.with_suffix(".idx"), 34 + 4 * 60 + 8, b"\x07"),
        "pointers that do not follow from its lengths",
    ),
    "cut llm.c": ("llm.c gpt-2", cut, "where its header says"),
    "id beyond": ("nanogpt", lambda p: spoil(p, 1, b"\x01"), "holds token id 25"),
    "empty": ("nanogpt", lambda p: p.write_bytes(b""), "holds no token"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_read_is_one_sentence_and_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    name, change, sentence = REFUSED[case]
    write, more = FILES[name]
    file = write(tmp_path)
    change(file)
    assert adopt(tmp_path, file, *more, "dtype=uint16") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert sentence in error
    assert error.startswith("error: ")
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


WRONG = {
    "separator=255": "ends with token 0, not with the separator 255",
    "format=parquet": "format=parquet is not known; valid: auto, llm.c, megatron, npy, raw",
    "checksum=md5": "checksum=md5 is not known; valid: full, sample",
    "dtype=int64": "dtype=int64 is not known",
    "tokenizer=BPE": "dtype=uint8 holds 256 ids, and tokenizer=tokenizer.json has 500",
    "held_out_tokens=400": "is not the end of whole documents",
    "validation=pile": "validation=pile is not known; valid: olmo_ladder",
    "validation=olmo_ladder": "root= is missing; give the folder",
    "validation.held=/nowhere": "is the domain held out and validation.held another",
    "validation.x=/nowhere": "validation.x=/nowhere names no file",
}


@pytest.mark.parametrize("setting", WRONG)
def test_a_wrong_setting_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], tokenizer_file: Path, setting: str
) -> None:
    file = write_megatron(tmp_path / "a.bin", 8)
    given = {"train": str(file), "tokenizer": "bytes", "out": str(tmp_path / "c"), "name": "held"}
    given["held_out_tokens"] = "40"
    key, _, value = setting.partition("=")
    if value == "BPE":
        value, given["dtype"] = str(tokenizer_file), "uint8"
    assert main(["adopt", *(f"{k}={v}" for k, v in {**given, key: value}.items())]) == 2
    assert WRONG[setting] in capsys.readouterr().err
    assert not (tmp_path / "c").exists()


def test_a_file_that_changed_after_it_was_adopted_is_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_raw(tmp_path / "train.bin", "<u2")
    assert adopt(tmp_path, file) == 0
    spoil(file, 0, b"\x09")
    assert main(["check", f"path={tmp_path / 'c'}"]) == 2
    assert "of sha256" in capsys.readouterr().err
    cut(file)
    assert main(["check", f"path={tmp_path / 'c'}"]) == 2
    assert "bytes in" in capsys.readouterr().err
