"""Damaged files are found before anything is kept of a run, by reading each once a machine."""

import fcntl
import os
import shutil
import threading
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from ablations.data import verify as verifying
from ablations.data.embedded import open_embedded
from ablations.data.mix import mix
from ablations.data.order import Batches
from ablations.data.prepared import write_prepared
from ablations.data.source import read_parts
from ablations.data.streams import MixedSource, Mixture, Shards
from ablations.data.verify import Verification, verify
from ablations.records import project_root
from models.cache_files import write_cache
from models.errors import SettingError
from tests.data_room.conftest import prepare, write_lines

ALL = 1000  # more files than any corpus here has


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """The files that are read, in order; what is remembered is so for one test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    seen: list[str] = []
    real = verifying.checksum

    def checksum(tokens: np.ndarray, how: str = "full") -> str:
        seen.append(Path(tokens.filename).name)  # type: ignore[attr-defined]
        return real(tokens, how)

    monkeypatch.setattr(verifying, "checksum", checksum)
    return seen


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    source = write_lines(tmp_path / "a.jsonl", [f"document {i} " * (i % 7 + 1) for i in range(90)])
    prepare(tmp_path / "c", source, "bytes", "validation_fraction=0.2", "shard_tokens=600")
    return tmp_path / "c"


def parts(folder: Path, *train: set[int]) -> list[verifying.Part]:
    return read_parts("tokens", str(folder), Path(), train or [set(range(ALL))])


def flip(path: Path, at: int = 100) -> None:
    raw = bytearray(path.read_bytes())
    raw[at] ^= 1
    path.write_bytes(raw)


def test_a_flipped_byte_is_one_sentence_that_names_the_file(folder: Path, read: list[str]) -> None:
    verify(parts(folder))
    for file in sorted(folder.glob("*.bin")):
        if file.name.startswith("train") and ".documents" in file.name:
            continue  # no run reads the index of a training file
        before = file.read_bytes()
        flip(file, 5)
        with pytest.raises(
            SettingError, match=rf"^data\.path=.* has a {file.name} of sha256 .*\.$"
        ):
            verify(parts(folder))
        file.write_bytes(before)
    verify(parts(folder))


def test_a_file_is_read_once_and_again_where_it_changed(folder: Path, read: list[str]) -> None:
    verify(parts(folder))
    assert sorted(read) == sorted(set(read))
    assert sum(name.startswith("train") for name in read) > 3
    read.clear()
    verify(parts(folder))
    assert not read
    os.utime(folder / "train-00001.bin", ns=(0, 0))
    shutil.copy2(folder / "train-00002.bin", folder / "copy")
    (folder / "copy").replace(folder / "train-00002.bin")  # another inode, the same time and size
    verify(parts(folder))
    assert read == ["train-00001.bin", "train-00002.bin"]


def test_runs_that_start_at_once_read_each_file_once(folder: Path, read: list[str]) -> None:
    runs = [threading.Thread(target=verify, args=(parts(folder),)) for _ in range(4)]
    for run in runs:
        run.start()
    for run in runs:
        run.join()
    assert sorted(read) == sorted(set(read))
    assert len(read) == len(parts(folder))


def test_a_lock_that_is_never_let_go_is_not_waited_for_without_end(
    folder: Path, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    verify(parts(folder))
    (lock,) = (verifying.cache_folder() / "verified").glob("*.lock")
    monkeypatch.setattr(verifying, "PATIENCE_SECONDS", 0.0)
    os.utime(folder / "train-00001.bin", ns=(0, 0))
    read.clear()
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        verify(parts(folder))
    assert read == ["train-00001.bin"]


def test_a_cache_file_that_cannot_be_replaced_leaves_no_half(tmp_path: Path) -> None:
    (tmp_path / "known.json").mkdir()
    write_cache(tmp_path / "known.json", {"a": 1})
    assert [path.name for path in tmp_path.iterdir()] == ["known.json"]


def test_without_a_cache_folder_files_are_read_each_time(
    folder: Path, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")
    verify(parts(folder))
    verify(parts(folder))
    assert len(read) == 2 * len(parts(folder))
    flip(folder / "train-00000.bin")
    with pytest.raises(SettingError, match=r"train-00000\.bin of sha256"):
        verify(parts(folder))


def test_only_what_is_read_is_verified(folder: Path, read: list[str], tmp_path: Path) -> None:
    flip(folder / "train-00001.bin")
    verify(parts(folder, {0, 2}))
    assert {name for name in read if name.startswith("train")} == {
        "train-00000.bin", "train-00002.bin"
    }  # fmt: skip
    mix({"a": ("1", folder)}, tmp_path / "m", "m")
    read.clear()
    verify(parts(tmp_path / "m", {3}))
    assert read == ["train-00003.bin"]  # the rest is remembered, in a mixture too
    with pytest.raises(SettingError, match=r"source a=.*train-00001\.bin"):
        verify(parts(tmp_path / "m", {1}))


@pytest.mark.parametrize("seed", range(6))
def test_files_read_are_those_that_the_batches_come_from(seed: int) -> None:
    rng = np.random.default_rng(seed)

    def shards(first: int) -> Shards:
        lengths = rng.integers(1, 90, rng.integers(2, 30)).tolist()
        ends = first + np.cumsum([0, *lengths])
        return Shards([np.arange(a, b) for a, b in pairwise(ends)])

    streams = [shards(0), shards(100_000)]  # each token is its own place
    sources = [MixedSource(f"s{i}", s, f"f{i}", i + 1) for i, s in enumerate(streams)]
    context, size = int(rng.integers(2, 60)), int(rng.integers(1, 4))
    batches = Batches(Mixture(tuple(sources)), "", context, size, seed)
    found: list[set[int]] = [set(), set()]
    for steps in range(1, 40):
        for token in np.unique(batches.batch(steps - 1)).tolist():
            source = int(token >= 100_000)
            place = token - 100_000 * source
            starts = streams[source].starts
            found[source].add(int(np.searchsorted(starts, place, side="right")) - 1)
        assert batches.files_read(steps) == found


def test_a_damaged_unpacked_corpus_says_how_it_is_mended(read: list[str], tmp_path: Path) -> None:
    unpacked = project_root() / ".cache" / "corpora"
    name = open_embedded(unpacked).fingerprint[:16]
    shutil.copytree(unpacked / name, tmp_path / name)
    verify(read_parts("embedded", None, tmp_path, [{0}]))
    assert "train.bin" in read
    flip(tmp_path / name / "validation-code.bin")
    with pytest.raises(SettingError, match=r"validation-code\.bin of .* remove that folder, and"):
        verify(read_parts("embedded", None, tmp_path))


def test_a_thread_that_cannot_read_says_so_and_never_passes_for_whole(tmp_path: Path) -> None:
    text = np.ones(9, dtype=np.int64)

    def gone() -> list[verifying.Part]:
        write_prepared(
            tmp_path / "c", name="c", vocab_size=9, separator=0, train=[text],
            validation={"v": [text]}, token_bytes=np.ones(9, np.uint16),
        )  # fmt: skip
        found = parts(tmp_path / "c")
        (tmp_path / "c" / "train.bin").unlink()
        return found

    def broken() -> list[verifying.Part]:
        raise ZeroDivisionError("by zero")

    for work, sentence in (
        (gone, "train.bin cannot be read"),
        (broken, "cannot be verified (Zero"),
    ):
        verification = Verification(work)
        assert verification.wait(60)
        assert verification.error is not None
        assert sentence in verification.error
