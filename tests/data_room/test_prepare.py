"""Preparing: the tokenizer's own ids, every document once, the same bytes however it went."""

import gzip
import hashlib
import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ablations.data import prepare as preparing
from ablations.data.documents import read_blocks
from ablations.data.prepared import Shards, document_index, open_prepared
from ablations.data.tokenizer import load_tokenizer
from models.errors import SettingError
from tests.data_room.conftest import END, content, prepare, run, write_lines


def documents(stream: Any, separator: int) -> list[list[int]]:
    """A stream cut at its separators by hand."""
    tokens = stream.read(0, len(stream)) if isinstance(stream, Shards) else np.asarray(stream)
    found: list[list[int]] = [[]]
    for token in tokens.tolist():
        if token == separator:
            found.append([])
        else:
            found[-1].append(token)
    assert found.pop() == []
    return found


def expected_split(texts: list[str], fraction: float) -> tuple[list[str], list[str]]:
    """The rule as docs/data.md says it."""
    sides: tuple[list[str], list[str]] = [], []
    for text in texts:
        if text.strip():
            number = int(hashlib.sha256(text.encode()).hexdigest()[:16], 16)
            sides[number < fraction * 2**64].append(text)
    return sides


def test_each_document_becomes_the_ids_of_the_tokenizer_and_lands_on_its_side(
    tmp_path: Path, tokenizer_file: Path, texts: list[str]
) -> None:
    from tokenizers import Tokenizer

    source = write_lines(tmp_path / "a.jsonl", texts)
    corpus = prepare(
        tmp_path / "c", source, tokenizer_file, "validation_fraction=0.3", "shard_tokens=700"
    )
    reference = Tokenizer.from_file(str(tokenizer_file))
    reference.encode_special_tokens = True
    end = reference.token_to_id(END)
    train, held_out = expected_split(texts, 0.3)
    for stream, side in ((corpus.train, train), (corpus.validation["c"].tokens, held_out)):
        ids = [reference.encode(text, add_special_tokens=False).ids for text in side]
        assert documents(stream, end) == ids
    assert corpus.separator == end
    assert corpus.validation["c"].bytes == sum(len(text.encode()) for text in held_out)
    manifest = json.loads((tmp_path / "c" / "manifest.json").read_text())
    assert len(manifest["train"]["shards"]) > 2
    assert manifest["train"]["documents"] == len(train)
    assert manifest["train"]["bytes"] == sum(len(text.encode()) for text in train)
    assert (
        manifest["tokenizer"]["sha256"] == hashlib.sha256(tokenizer_file.read_bytes()).hexdigest()
    )
    assert manifest["prepared"]["blank_documents"] == 2
    shard = manifest["train"]["shards"][0]
    index = document_index(tmp_path / "c", shard)
    assert index[:, 1].tolist() == [len(text.encode()) for text in train[: len(index)]]


def test_bytes_are_a_tokenizer(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "a.jsonl", ["café", "a\0b", "c"] * 5)
    corpus = prepare(tmp_path / "c", source, "bytes", "validation_fraction=0.5", "malformed=0")
    both = np.asarray(corpus.train).tobytes() + np.asarray(corpus.validation["c"].tokens).tobytes()
    assert sorted(both.split(b"\0")[:-1]) == sorted([b"caf\xc3\xa9", b"ab", b"c"] * 5)
    assert corpus.vocab_size == 256


def test_every_kind_of_file_gives_the_same_corpus(tmp_path: Path, texts: list[str]) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    texts = [text for text in texts if text.strip()]
    lines = write_lines(tmp_path / "plain.jsonl", texts).read_bytes()
    (tmp_path / "packed.jsonl.gz").write_bytes(gzip.compress(lines))
    table = pa.table({"id": range(len(texts)), "text": texts})
    pq.write_table(table, tmp_path / "table.parquet", row_group_size=7)
    with pa.ipc.new_stream(str(tmp_path / "data.arrow"), table.schema) as writer:
        writer.write_table(table, max_chunksize=5)
    on_disk = tmp_path / "on_disk"
    on_disk.mkdir()
    (tmp_path / "data.arrow").rename(on_disk / "data-00000-of-00001.arrow")
    (on_disk / "state.json").write_text('{"_data_files": []}')
    folder = tmp_path / "texts"
    folder.mkdir()
    for i, text in enumerate(texts):
        (folder / f"{i:05}.txt").write_bytes(text.encode())
    with pa.ipc.new_file(str(tmp_path / "file.arrow"), table.schema) as writer:
        writer.write_table(table, max_chunksize=5)
    coded = pa.schema([("text", pa.dictionary(pa.int32(), pa.string()))])
    pq.write_table(table.select(["text"]).cast(coded), tmp_path / "coded.parquet")
    sources = ["plain.jsonl", "packed.jsonl.gz", "table.parquet", "on_disk", "texts"]
    sources += ["file.arrow", "coded.parquet"]
    if importlib.util.find_spec("zstandard"):
        import zstandard

        half = lines.index(b"\n", len(lines) // 2) + 1
        frames = [zstandard.compress(part) for part in (lines[:half], lines[half:])]
        (tmp_path / "frames.jsonl.zst").write_bytes(b"".join(frames))
        sources.append("frames.jsonl.zst")
    found = {
        prepare(
            tmp_path / f"out{i}", tmp_path / source, "bytes", "name=x", "validation_fraction=0.2"
        ).fingerprint
        for i, source in enumerate(sources)
    }
    assert len(found) == 1


def test_blocks_from_any_cursor_are_the_rest(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("ablations.data.blocks.BLOCK_BYTES", 64)
    path = write_lines(tmp_path / "a.jsonl", [f"text {i}" * (i % 9) for i in range(60)])
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(path.read_bytes()))
    for file in (path, tmp_path / "a.jsonl.gz"):
        blocks = list(read_blocks(file, 0, 0, 0, "text"))
        assert b"".join(block.payload for block in blocks) == path.read_bytes()
        for i, block in enumerate(blocks):
            rest = read_blocks(file, 0, block.position, block.first - 1 + block.records, "text")
            rest = list(rest)
            wanted = b"".join(b.payload for b in blocks[i + 1 :])
            assert b"".join(b.payload for b in rest) == wanted
            assert sum(b.records for b in rest) == 60 - (block.first - 1 + block.records)


def test_rows_from_any_cursor_are_the_rest_and_no_block_is_large(
    tmp_path: Path, monkeypatch: Any
) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    monkeypatch.setattr("ablations.data.blocks.BLOCK_BYTES", 2000)
    texts = [f"row {i} " * (1 + 60 * (i % 50 == 7)) for i in range(500)]
    pq.write_table(pa.table({"text": texts}), tmp_path / "a.parquet", row_group_size=90)
    with pa.ipc.new_file(str(tmp_path / "a.arrow"), pa.schema([("text", pa.string())])) as writer:
        writer.write_table(pa.table({"text": texts}), max_chunksize=130)
    for file in (tmp_path / "a.parquet", tmp_path / "a.arrow"):
        blocks = list(read_blocks(file, 0, 0, 0, "text"))
        assert [row.decode() for block in blocks for row in block.payload] == texts
        assert max(sum(map(len, block.payload)) for block in blocks) <= 2000
        for block in blocks:
            done = block.first - 1 + block.records
            rest = list(read_blocks(file, 0, block.position, done, "text"))
            assert [row.decode() for later in rest for row in later.payload] == texts[done:]
            assert not rest or rest[0].first == done + 1


def test_duplicates_are_dropped_and_counted_and_validation_wins(tmp_path: Path) -> None:
    texts = [f"text {i % 40}" for i in range(120)]
    source = write_lines(tmp_path / "a.jsonl", texts)
    held_out = write_lines(tmp_path / "v.jsonl", ["text 3", "text 4", "text 4", "only here"])
    corpus = prepare(
        tmp_path / "c", source, "bytes", "deduplicate=true", "validation_fraction=0.2",
        f"validation.extra={held_out}",
    )  # fmt: skip
    parts = [corpus.train, *(domain.tokens for domain in corpus.validation.values())]
    found = [bytes(d).decode() for part in parts for d in documents(part, 0)]
    assert sorted(found) == sorted({*texts, "only here"})
    extra = [bytes(d).decode() for d in documents(corpus.validation["extra"].tokens, 0)]
    assert extra == ["text 3", "text 4", "only here"]
    manifest = json.loads((tmp_path / "c" / "manifest.json").read_text())
    assert manifest["prepared"]["duplicate_documents"] == 124 - len(found)


def big_source(folder: Path) -> Path:
    texts = [f"{i} " + "words and more words, " * (i % 50) for i in range(1200)]
    return write_lines(folder / "a.jsonl", texts + texts[:100])


@pytest.mark.parametrize(
    ("at", "how"),
    [(2, "deduplicate=true"), (5, "deduplicate=true"), (9, "deduplicate=true"), (5, "held out")],
)
def test_a_preparation_that_was_cut_goes_on_to_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int, how: str
) -> None:
    monkeypatch.setattr("ablations.data.blocks.BLOCK_BYTES", 40_000)
    monkeypatch.setattr(preparing, "COMMIT_SECONDS", 0.0)
    source = big_source(tmp_path)
    if how == "held out":  # documents that are in the training text, twice
        lines = source.read_text(encoding="utf-8").splitlines(keepends=True)
        held_out = tmp_path / "held_out.jsonl"
        held_out.write_text("".join(lines[1150:]), encoding="utf-8")
        how = f"validation.extra={held_out}"
    more = (how, "shard_tokens=100000", "name=x", "validation_fraction=0.1")
    prepare(tmp_path / "whole", source, "bytes", *more)
    real, calls = preparing._Work._take, 0

    def cut(self: Any, *arguments: Any) -> None:
        nonlocal calls
        calls += 1
        real(self, *arguments)
        if calls == at:
            raise RuntimeError("killed after writing, before recording")

    monkeypatch.setattr(preparing._Work, "_take", cut)
    with pytest.raises(RuntimeError):
        prepare(tmp_path / "cut", source, "bytes", *more)
    assert not (tmp_path / "cut").exists()
    prepare(tmp_path / "cut", source, "bytes", *more)
    assert calls > at
    assert content(tmp_path / "cut") == content(tmp_path / "whole")


@pytest.mark.slow
def test_a_preparation_killed_in_its_processes_goes_on_to_the_same_bytes(
    tmp_path: Path, tokenizer_file: Path
) -> None:
    source = big_source(tmp_path)
    program = (
        "import sys\n"
        "from ablations.data import blocks, prepare\n"
        "from ablations.data.__main__ import main\n"
        "if __name__ == '__main__':\n"
        "    blocks.BLOCK_BYTES, prepare.COMMIT_SECONDS = 50_000, 0.0\n"
        "    sys.exit(main(sys.argv[1:]))\n"
    )
    (tmp_path / "run.py").write_text(program)
    given = ["prepare", f"source={source}", f"tokenizer={tokenizer_file}", "name=x"]
    command = [sys.executable, str(tmp_path / "run.py"), *given, "shard_tokens=50000"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    killed = subprocess.Popen(
        [*command, f"out={tmp_path / 'cut'}", "processes=2"],
        env=environment, start_new_session=True, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    partial = tmp_path / ".cut.partial"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not list(partial.glob("train-00001.bin")):
        time.sleep(0.01)
    killed.kill()  # its processes end by themselves
    killed.wait()
    assert not (tmp_path / "cut").exists()
    again = subprocess.run(
        [*command, f"out={tmp_path / 'cut'}", "processes=2"],
        env=environment, check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert "going on after" in again.stderr
    prepare(tmp_path / "whole", source, tokenizer_file, "name=x", "shard_tokens=50000")
    assert content(tmp_path / "cut") == content(tmp_path / "whole")


def test_the_same_command_finds_what_it_did_and_another_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_lines(tmp_path / "a.jsonl", [f"text {i}" for i in range(200)])
    given = ("prepare", f"source={source}", "tokenizer=bytes", f"out={tmp_path / 'c'}")
    more = ("validation_fraction=0.1", "processes=1")
    assert run(*given, *more) == 0
    before = content(tmp_path / "c")
    assert run(*given, *more) == 0
    assert run(*given, "validation_fraction=0.2", "processes=1") == 2
    assert "holds another corpus, or one of other settings" in capsys.readouterr().err
    assert content(tmp_path / "c") == before


def test_another_tokenizer_than_it_was_begun_with_is_refused(
    tmp_path: Path, tokenizer_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_lines(tmp_path / "a.jsonl", [f"text {i}" for i in range(200)])
    monkeypatch.setattr(preparing._Work, "_manifest", lambda _self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        prepare(tmp_path / "c", source, "bytes")
    with pytest.raises(SettingError, match=r"begun with another tokenizer and vocab_size"):
        preparing.prepare(
            preparing.Preparation(
                str(source), load_tokenizer(str(tokenizer_file)), tmp_path / "c", "c"
            ),
            print,
        )


@pytest.mark.parametrize(("vocab_size", "dtype"), [(65_536, np.uint16), (65_537, np.uint32)])
def test_a_tokenizer_without_special_tokens_ends_documents_with_an_id_of_its_own(
    tokenizer_file: Path, tmp_path: Path, vocab_size: int, dtype: type
) -> None:
    described = json.loads(tokenizer_file.read_text())
    described["added_tokens"] = []
    bare = tmp_path / "bare.json"
    bare.write_text(json.dumps(described))
    own = r"an id of its own by vocab_size=501 separator=500"
    with pytest.raises(SettingError, match=rf"has no end of text of a known name; valid: .*{own}"):
        load_tokenizer(str(bare))
    with pytest.raises(SettingError, match=rf"separator=7 is no special token .*{own}"):
        load_tokenizer(str(bare), separator="7", vocab_size=vocab_size)
    source = write_lines(tmp_path / "a.jsonl", [f"text {i}" for i in range(300)])
    last = vocab_size - 1
    more = (f"vocab_size={vocab_size}", f"separator={last}", "validation_fraction=0.1")
    prepare(tmp_path / "c", source, bare, *more)
    corpus = open_prepared(tmp_path / "c", verify=True)
    train = np.asarray(corpus.train)
    assert train.dtype == dtype
    assert int((train == last).sum()) == 300 - int((corpus.validation["c"].tokens == last).sum())
    # The same files adopted, by an id that need not be special.
    files = (f"train={tmp_path / 'c' / 'train-00000.bin'}", f"tokenizer={bare}", *more[:2])
    out = tmp_path / "adopted"
    assert run("adopt", *files, "held_out_tokens=200", f"out={out}") == 0
    assert open_prepared(out, verify=True).separator == last
