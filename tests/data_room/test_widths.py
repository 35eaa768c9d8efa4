"""Token files read at the wrong width are refused, and honest ones never are."""

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from ablations.data.__main__ import main
from ablations.data.embedded import open_embedded
from ablations.data.widths import misread
from ablations.records import project_root

CODES = {
    "uint8": "<u1", "uint16": "<u2", "uint32": "<u4", "uint64": "<i8", "big-endian uint16": ">u2",
    "big-endian uint32": ">u4", "big-endian uint64": ">i8",
}  # fmt: skip
ASSUMED = ("uint8", "uint16", "uint32")
BITS = {"uint8": 8, "uint16": 16, "uint32": 32}


@pytest.fixture(scope="module")
def text() -> np.ndarray:
    """Bytes of the embedded corpus, documents ended by 0."""
    corpus = open_embedded(project_root() / ".cache" / "corpora")
    return np.concatenate([corpus.train[:200_000], corpus.train[-200_000:]])


def words(text: np.ndarray, vocab_size: int) -> np.ndarray:
    """Words and what stands between them as ids by rank, as a tokenizer has them; separator 0."""
    border = np.flatnonzero((text[1:] == ord(" ")) | (text[1:] == 0) | (text[:-1] == 0)) + 1
    raw = text.tobytes()
    found = [raw[a:b] for a, b in pairwise([0, *border.tolist(), len(raw)])]
    ranks = {b"\0": 0} | {
        word: rank
        for rank, (word, _) in enumerate(Counter(found).most_common(vocab_size - 2), start=1)
        if word != b"\0"
    }
    return np.array([ranks.get(word, vocab_size - 1) for word in found])


def corpora(text: np.ndarray) -> dict[str, tuple[np.ndarray, int, int]]:
    """ids, vocab_size, separator."""
    rng = np.random.default_rng(0)
    small, large = words(text, 1000), words(text, 40_000)
    rows = small[: len(small) // 1000 * 1000].reshape(-1, 1000)
    padded = np.pad(rows, ((0, 0), (0, 19_000))).ravel()
    return {
        "bytes": (text.astype(np.int64), 256, 0),
        "bytes under a padded vocabulary": (text.astype(np.int64), 300, 0),
        "a vocabulary of 1000": (small, 1000, 0),
        "a separator in the middle": (np.where(small == 0, 700, small), 1000, 700),
        "a vocabulary of 40,000": (large, 40_000, 0),
        "all of uint16": (large, 1 << 16, 0),
        "all of uint16, uniform": (rng.integers(0, 1 << 16, 200_000), 1 << 16, 0),
        "95 % padding": (padded, 1000, 0),
        "a short file": (small[:300], 1000, 0),
        "documents of one token": (np.arange(600) % 2 * 7, 1000, 0),
        "a vocabulary of 100,000": (large * 2, 100_352, 0),
    }


def found(path: Path, ids: np.ndarray, code: str, dtype: str, size: int, sep: int) -> str | None:
    path.write_bytes(ids.astype(code).tobytes())
    wrong = misread(path, 0, dtype, size, sep)
    return wrong and wrong.fits


def test_no_honest_corpus_is_taken_for_another_width(tmp_path: Path, text: np.ndarray) -> None:
    for name, (ids, size, separator) in corpora(text).items():
        for dtype in ASSUMED:
            if size <= 2 ** BITS[dtype]:
                read = found(tmp_path / "a", ids, CODES[dtype], dtype, size, separator)
                assert read is None, (name, dtype)


def test_a_wrong_width_is_named_with_the_right_one(tmp_path: Path, text: np.ndarray) -> None:
    checked = 0
    for name, (ids, size, separator) in corpora(text).items():
        if "one token" in name or "uniform" in name:
            continue  # of which nothing tells one reading from another
        for true, code in CODES.items():
            if ids.max() > np.iinfo(code).max:
                continue
            for dtype in ASSUMED:
                n = len(ids) // 8 * 8  # a whole number of every width
                beyond = n and int(np.frombuffer(ids[:n].astype(code), CODES[dtype]).max()) >= size
                if dtype == true or size > 2 ** BITS[dtype]:
                    continue
                read = found(tmp_path / "a", ids[:n], code, dtype, size, separator)
                checked += 1
                # Ids beyond the vocabulary are refused by the pass over all of them.
                assert read == true or (beyond and read is None), (name, true, dtype, read)
                if not beyond:
                    assert read == true, (name, true, dtype, read)
    assert checked > 80


def adopt(tmp_path: Path, ids: np.ndarray, code: str, *more: str) -> int:
    (tmp_path / "train.bin").write_bytes(ids.astype(code).tobytes())
    tokenizer = tmp_path / "tokenizer.json"
    given = (f"train={tmp_path / 'train.bin'}", f"tokenizer={tokenizer}", f"out={tmp_path / 'c'}")
    return main(["adopt", *given, "held_out_tokens=2000", "name=v", *more])


@pytest.mark.parametrize("code", ["<u4", "<i8"])
def test_adopting_ids_of_another_width_is_one_sentence_unless_the_user_insists(
    tmp_path: Path, tokenizer_file: Path, capsys: pytest.CaptureFixture[str], code: str
) -> None:
    """The ids of a tokenizer of 500 tokens; uint16 is what adopt takes for it."""
    from tokenizers import Tokenizer

    (tmp_path / "tokenizer.json").write_bytes(tokenizer_file.read_bytes())
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    end = tokenizer.token_to_id("<|endoftext|>")
    text = Path(json.__file__).read_text(encoding="utf-8").split("\n\n")
    ids = np.array([i for part in text for i in [*tokenizer.encode(part).ids, end]] * 4)
    assert adopt(tmp_path, ids, code) == 2
    (error,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    wide = {"<u4": "uint32", "<i8": "uint64"}[code]
    assert f"train.bin read as uint16 looks like {wide}: " in error
    right = {"<u4": "dtype=uint32", "<i8": "the file written again as little-endian uint16"}[code]
    assert f"valid: {right}, or trust_dtype=true where it is so." in error
    assert not (tmp_path / "c").exists()
    assert adopt(tmp_path, ids, code, "trust_dtype=true") == 0
    (recorded,) = json.loads((tmp_path / "c" / "manifest.json").read_text())["trusted_dtype"]
    assert f"looks like {wide}" in recorded
    if code == "<u4":
        (tmp_path / "c").rename(tmp_path / "trusted")
        assert adopt(tmp_path, ids, code, "dtype=uint32") == 0
        manifest = json.loads((tmp_path / "c" / "manifest.json").read_text())
        assert manifest["train"]["tokens"] + manifest["validation"]["v"]["tokens"] == len(ids)
        assert "trusted_dtype" not in manifest


def test_headers_are_not_read_as_tokens_and_numpy_files_keep_their_byte_order(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ids = np.array([1, 2, 3, 0] * 200, dtype="<u2")
    given = ("tokenizer=bytes", f"out={tmp_path / 'c'}", "held_out_tokens=40", "name=v")
    for name, array in (("good", ids), ("swapped", ids.astype(">u2"))):
        np.save(tmp_path / name, array)
    cut = (tmp_path / "good.npy").read_bytes()[:-20]
    (tmp_path / "cut.npy").write_bytes(cut)
    for file, more, sentence in (
        ("good", ("format=raw",), "has the header of format npy"),
        ("swapped", (), "holds >u2 of shape"),
        ("cut", (), "is no NumPy file of numbers"),
    ):
        assert main(["adopt", f"train={tmp_path / file}.npy", *given, *more]) == 2
        assert sentence in capsys.readouterr().err
    assert main(["adopt", f"train={tmp_path / 'good.npy'}", *given]) == 0
