"""The embedded corpus: its committed files, counted again from their text, and its unpacking."""

from __future__ import annotations

import hashlib
import json
import lzma
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ablations.data import embedded
from ablations.data.embedded import SEPARATOR, embedded_manifest, open_embedded
from ablations.data.encode_embedded import TOKENIZER, encode, held_out
from ablations.data.prepared import Corpus, open_prepared
from models.errors import SettingError

FOLDER = Path(embedded.__file__).parent / "embedded"
MANIFEST: dict[str, Any] = json.loads((FOLDER / "manifest.json").read_text())
DOMAINS = ("prose", "code", "literary", "definitions")


@pytest.fixture(scope="module")
def documents() -> dict[str, list[bytes]]:
    """Documents by domain, read with nothing but lzma."""
    return {name: lzma.decompress(_packed(name)).split(b"\0") for name in DOMAINS}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return open_embedded(tmp_path_factory.mktemp("cache"))


def _packed(name: str) -> bytes:
    return (FOLDER / f"{name}.xz").read_bytes()


def _held_out(document: bytes, domain: str) -> bool:
    """The split as the README says it."""
    rule = MANIFEST["domains"][domain]["split"]
    number = int(hashlib.sha256(document).hexdigest()[:16], 16)
    return (
        number % 1000 < rule["validation_permille"] and len(document) <= rule["max_document_bytes"]
    )


def _stream(chosen: list[bytes]) -> bytes:
    return b"".join(document + b"\0" for document in chosen)


def test_packed_files_are_those_of_the_manifest_and_small_enough_to_commit() -> None:
    assert tuple(MANIFEST["domains"]) == DOMAINS
    sizes = []
    for name, entry in MANIFEST["domains"].items():
        packed = _packed(name)
        assert hashlib.sha256(packed).hexdigest() == entry["xz"]["sha256"]
        assert len(packed) == entry["xz"]["bytes"] < 4_000_000
        sizes.append(len(packed))
    assert sum(sizes) <= 8_000_000


def test_counts_are_those_of_the_text(documents: dict[str, list[bytes]]) -> None:
    for name, entry in MANIFEST["domains"].items():
        assert len(documents[name]) == entry["text"]["documents"]
        assert sum(map(len, documents[name])) == entry["text"]["bytes"]
        joined = b"\0".join(documents[name])
        assert hashlib.sha256(joined).hexdigest() == entry["text"]["sha256"]


def test_documents_are_utf8_not_blank_and_never_there_twice(
    documents: dict[str, list[bytes]],
) -> None:
    seen = set()
    for name in DOMAINS:
        for document in documents[name]:
            assert document.decode("utf-8", errors="strict").strip()
            seen.add(document)
    assert len(seen) == sum(map(len, documents.values()))


def test_the_split_is_the_rule_of_the_readme_and_the_sides_share_no_document(
    documents: dict[str, list[bytes]], corpus: Corpus
) -> None:
    train = [d for name in DOMAINS for d in documents[name] if not _held_out(d, name)]
    assert corpus.train.tobytes() == _stream(train)
    for name in DOMAINS:
        held_out = [d for d in documents[name] if _held_out(d, name)]
        assert corpus.validation[name].tokens.tobytes() == _stream(held_out)
        assert set(held_out).isdisjoint(train)


def test_a_document_and_its_copy_land_on_one_side_and_a_giant_one_trains() -> None:
    texts = [f"text {i}" for i in range(200)]
    sides = held_out(encode(texts + texts), 500, 10**6)
    assert sides[:200].tolist() == sides[200:].tolist()
    assert 60 < sides[:200].sum() < 140
    assert not held_out(encode(texts), 1000, 5).any()


def test_each_validation_set_has_100_to_400_kilobytes_and_no_giant_document(
    documents: dict[str, list[bytes]],
) -> None:
    for name in DOMAINS:
        sizes = [len(d) for d in documents[name] if _held_out(d, name)]
        assert 100_000 <= sum(sizes) <= 400_000
        assert max(sizes) < sum(sizes) / 4


def test_validation_bytes_are_the_utf8_bytes_of_its_documents(
    documents: dict[str, list[bytes]], corpus: Corpus
) -> None:
    for name, domain in corpus.validation.items():
        texts = [d.decode() for d in documents[name] if _held_out(d, name)]
        assert domain.bytes == sum(len(text.encode()) for text in texts)
        assert domain.bytes == len(domain.tokens) - len(texts)


def test_a_plan_knows_sizes_and_fingerprint_before_unpacking(corpus: Corpus) -> None:
    known = embedded_manifest()
    assert known["fingerprint"] == corpus.fingerprint
    assert known["vocab_size"] == corpus.vocab_size == 256
    assert known["train_tokens"] == len(corpus.train)
    assert known["separator"] == corpus.train[-1] == 0
    assert {n: v["tokens"] for n, v in known["validation"].items()} == {
        n: len(d.tokens) for n, d in corpus.validation.items()
    }


def test_the_unpacked_corpus_passes_the_full_check_and_is_reused(tmp_path: Path) -> None:
    first = open_embedded(tmp_path)
    (folder,) = tmp_path.iterdir()
    assert folder.name == first.fingerprint[:16]
    open_prepared(folder, verify=True)
    before = (folder / "train.bin").stat().st_mtime_ns
    again = open_embedded(tmp_path)
    assert np.array_equal(again.train[:1000], first.train[:1000])
    assert (folder / "train.bin").stat().st_mtime_ns == before


def test_two_processes_unpacking_at_once_both_get_the_corpus(tmp_path: Path) -> None:
    program = (
        "import hashlib, pathlib, sys, time\n"
        "from ablations.data.embedded import open_embedded\n"
        "cache = pathlib.Path(sys.argv[1])\n"
        "(cache / sys.argv[2]).touch()\n"
        "while len(list(cache.glob('ready-*'))) < 2: time.sleep(0.001)\n"
        "corpus = open_embedded(cache)\n"
        "assert 'torch' not in sys.modules\n"
        "print(corpus.fingerprint, hashlib.sha256(corpus.train.tobytes()).hexdigest())\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    processes = [
        subprocess.Popen([*command, f"ready-{i}"], stdout=subprocess.PIPE, text=True)
        for i in range(2)
    ]
    outputs = [process.communicate(timeout=60)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    prepared = MANIFEST["prepared"]["train"]["sha256"]
    fingerprint = embedded_manifest()["fingerprint"]
    assert outputs == [f"{fingerprint} {prepared}\n"] * 2
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == sorted([fingerprint[:16], "ready-0", "ready-1"])


def test_a_damaged_packed_file_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    committed = tmp_path / "embedded"
    committed.mkdir()
    (committed / "manifest.json").write_bytes((FOLDER / "manifest.json").read_bytes())
    (committed / "prose.xz").write_bytes(b"version of a pointer file")
    monkeypatch.setattr(embedded, "FOLDER", committed)
    with pytest.raises(SettingError, match=r"prose\.xz is not the file .*git checkout\.$"):
        open_embedded(tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_a_damaged_cache_is_one_sentence(tmp_path: Path) -> None:
    fingerprint = embedded_manifest()["fingerprint"]
    folder = tmp_path / fingerprint[:16]
    open_embedded(tmp_path)
    with (folder / "train.bin").open("ab") as file:
        file.write(b"x")
    with pytest.raises(SettingError, match=r"^data=embedded, unpacked at=.*bytes in train\.bin"):
        open_embedded(tmp_path)


def test_a_cache_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(
        SettingError, match=r"^data=embedded cannot be unpacked: .*cannot be written"
    ):
        open_embedded(tmp_path / "file" / "cache")


def test_each_domain_has_its_licence_text() -> None:
    tells = {
        "licences/psf-2.0.txt": "PYTHON SOFTWARE FOUNDATION LICENSE VERSION 2",
        "licences/python-incorporated-software.txt": "Licenses and Acknowledgements",
        "licences/king-james-bible.txt": "King James Version text of the Bible is expired",
        "licences/wordnet-3.0.txt": "WordNet 3.0 Copyright 2006 by Princeton University",
    }
    named = {file for entry in MANIFEST["domains"].values() for file in entry["licence_files"]}
    assert named == set(tells)
    for file, text in tells.items():
        assert text in (FOLDER / file).read_text(encoding="utf-8")


def test_the_separator_of_reading_is_the_one_of_encoding():
    assert TOKENIZER.separator == SEPARATOR
