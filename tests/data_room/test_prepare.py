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
from ablations.data.__main__ import main
from ablations.data.documents import list_files, read_blocks
from ablations.data.prepared import Corpus, Shards, document_index, open_prepared
from ablations.data.state import State
from ablations.data.tokenizer import TokenizerFile, load_tokenizer
from models.errors import SettingError
from tests.data_room.conftest import END, write_lines


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def prepare(out: Path, source: object, tokenizer: object, *more: str) -> Corpus:
    given = (f"source={source}", f"tokenizer={tokenizer}", f"out={out}", "processes=1", *more)
    assert run("prepare", *given) == 0
    return open_prepared(out, verify=True)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


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


@pytest.mark.parametrize("at", [2, 5, 9])
def test_a_preparation_that_was_cut_goes_on_to_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    monkeypatch.setattr("ablations.data.blocks.BLOCK_BYTES", 40_000)
    monkeypatch.setattr(preparing, "COMMIT_SECONDS", 0.0)
    source = big_source(tmp_path)
    more = ("deduplicate=true", "shard_tokens=100000", "name=x", "validation_fraction=0.1")
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


def bad(tmp_path: Path, lines: list[bytes], good: int) -> Path:
    path = tmp_path / "bad.jsonl"
    fine = [json.dumps({"text": f"text {i}"}).encode() for i in range(good)]
    path.write_bytes(b"\n".join([*fine[:50], *lines, *fine[50:]]) + b"\n")
    return path


MALFORMED = {
    b'{"text": "cut': "not JSON",
    b'{"text": "\xff"}': "not UTF-8",
    b'{"text": "\\ud800"}': "half a surrogate pair",
    b'{"text": 5}': "no text in field text",
    b"[1]": "JSON, but not an object with fields",
}


@pytest.mark.parametrize("line", MALFORMED)
def test_malformed_lines_are_counted_located_and_over_a_thousandth_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], line: bytes
) -> None:
    path = bad(tmp_path, [line], good=2000)
    prepare(tmp_path / "c", path, "bytes", "validation_fraction=0.1")
    manifest = json.loads((tmp_path / "c" / "manifest.json").read_text())
    assert manifest["prepared"]["malformed"] == 1
    (where,) = manifest["prepared"]["malformed_at"]
    assert where.startswith(f"{path}:51: ")
    assert MALFORMED[line] in where
    path = bad(tmp_path, [line] * 2, good=1900)
    assert run("prepare", f"source={path}", "tokenizer=bytes", f"out={tmp_path / 'd'}") == 2
    error = capsys.readouterr().err
    assert "2 of 1,902 records are malformed, more than malformed=0.001" in error
    assert f"{path}:51: " in error
    assert [p.name for p in tmp_path.iterdir() if p.is_dir()] == ["c"]


def test_a_share_that_is_allowed_is_allowed(tmp_path: Path) -> None:
    path = bad(tmp_path, [b"[1]"] * 300, good=100)
    prepare(tmp_path / "c", path, "bytes", "malformed=0.8", "validation_fraction=0.1")


def test_a_column_that_is_not_utf8_is_counted_and_located(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    ends = np.array([0, 2, 4], dtype=np.int32)
    buffers = [None, pa.py_buffer(ends.tobytes()), pa.py_buffer(b"ok\xff\xfe")]
    table = pa.table({"text": pa.Array.from_buffers(pa.string(), 2, buffers)})
    pq.write_table(table, tmp_path / "a.parquet")
    given = (f"source={tmp_path / 'a.parquet'}", "tokenizer=bytes", f"out={tmp_path / 'c'}")
    assert run("prepare", *given) == 2
    assert "a.parquet:2: not UTF-8" in capsys.readouterr().err


def test_sources_that_are_not_what_they_seem_are_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "source"
    (folder / "train").mkdir(parents=True)
    lines = write_lines(folder / "a.jsonl", ["text"] * 9)
    out = folder / "c"
    assert run("prepare", f"source={folder}", "tokenizer=bytes", f"out={out}") == 2
    assert "whose files are read; name a folder outside" in capsys.readouterr().err
    (folder / "dataset_dict.json").write_text('{"splits": ["train"]}')
    assert run("prepare", f"source={folder}", "tokenizer=bytes", f"out={tmp_path / 'c'}") == 2
    wanted = f"is a dataset of several splits; valid: one of {folder / 'train'}."
    assert wanted in capsys.readouterr().err
    monkeypatch.setattr("ablations.data.documents.LARGEST_BYTES", 1000)
    monkeypatch.setattr("ablations.data.blocks.BLOCK_BYTES", 100)
    lines.write_text(json.dumps([{"text": "an array"}] * 100))
    assert run("prepare", f"source={lines}", "tokenizer=bytes", f"out={tmp_path / 'c'}") == 2
    assert f"{lines}:1 is a line of over 1,000 bytes; valid: one JSON" in capsys.readouterr().err


def cut_gzip(folder: Path) -> Path:
    path = folder / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"text": "a"}\n' * 10_000)[:-20])
    return path


REFUSED = {
    "source=/nowhere/*.jsonl": "names no file; valid: a file, a folder or a pattern",
    "tokenizer=/nowhere.json": "is not a file; valid: bytes, a tokenizer.json",
    "vocab_size=200": "vocab_size 256 and separator 0",
    "text=body": "no text in field body",
    "validation_fraction=1": "must be at least 0 and under 1",
    "validation_fraction=0": "leaves nothing to judge by",
    "validation_fraction=x": "must be a number of at least 0",
    "validation_fraction=1e-9": "leaves no document for validation domain c",
    "shard_tokens=0": "must be a whole number of at least 1",
    "deduplicate=yes": "deduplicate=yes is not known; valid: false, true",
    "malformed=2": "malformed=2 must be a share of the records, from 0 to 1",
    "vocab_size=5000000000": "is more than 16,777,216; valid:",
    "name=a/b": "must be letters, digits",
    "colour=blue": "colour is not known; valid: deduplicate,",
    "colour": "is not a setting; write KEY=VALUE",
}


@pytest.mark.parametrize("setting", REFUSED)
def test_a_wrong_setting_is_one_sentence_and_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], setting: str
) -> None:
    source = write_lines(tmp_path / "a.jsonl", [f"text {i}" for i in range(300)])
    given = {"source": str(source), "tokenizer": "bytes", "out": str(tmp_path / "c")}
    key, _, value = setting.partition("=")
    arguments = [f"{k}={v}" for k, v in {**given, key: value}.items() if v]
    if not value:
        arguments.append(setting)
    assert run("prepare", "processes=1", *arguments) == 2
    error = capsys.readouterr().err
    assert REFUSED[setting] in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []


def test_a_cut_packed_file_and_a_missing_column_are_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"content": ["a"]}), tmp_path / "b.parquet")
    for source, sentence in (
        (cut_gzip(tmp_path), "is cut or damaged"),
        (tmp_path / "b.parquet", "has no column text; valid: text=NAME with one of content"),
    ):
        assert run("prepare", f"source={source}", "tokenizer=bytes", f"out={tmp_path / 'c'}") == 2
        assert sentence in capsys.readouterr().err
        assert not (tmp_path / "c").exists()


def test_what_is_refused_from_the_start_does_not_stand_in_the_way_of_the_right_setting(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    for name, column in (("a", "text"), ("b", "body")):
        rows = pa.table({"id": range(200), column: [f"{name} {i}" for i in range(200)]})
        pq.write_table(rows, tmp_path / f"{name}.parquet")
    out = tmp_path / "c"
    source = f"source={tmp_path}/*.parquet"
    given = ("tokenizer=bytes", f"out={out}", "validation_fraction=0.1", "processes=1")
    assert run("prepare", source, *given) == 2
    assert "b.parquet has no column text; valid: text=NAME with one of id, body" in (
        capsys.readouterr().err
    )
    assert run("prepare", f"source={tmp_path}/b.parquet", "text=body", *given) == 0


def test_an_empty_folder_may_be_written_to_and_another_may_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_lines(tmp_path / "a.jsonl", [f"text {i}" for i in range(300)])
    given = (f"source={source}", "tokenizer=bytes", "validation_fraction=0.1", "processes=1")
    (tmp_path / "c").mkdir()
    assert run("prepare", *given, f"out={tmp_path / 'c'}") == 0
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    for out, why in (
        ("mine", "exists and is no prepared corpus; name a folder that does not exist yet"),
        ("a.jsonl", "exists and is no prepared corpus"),
        ("a.jsonl/c", "cannot be made (Not a directory); name a folder where"),
    ):
        assert run("prepare", *given, f"out={tmp_path / out}") == 2
        assert why in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["letter.txt"]


def test_a_full_disk_is_one_sentence_and_the_work_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_lines(tmp_path / "a.jsonl", [f"text {i}" for i in range(300)])
    given = (f"source={source}", "tokenizer=bytes", "validation_fraction=0.1", "processes=1")
    real = State._run
    limit = "PRAGMA max_page_count = 4"

    def full(self: State, statement: str, *values: Any) -> Any:
        if statement.startswith("CREATE TABLE IF NOT EXISTS seen"):
            real(self, limit)
        return real(self, statement, *values)

    monkeypatch.setattr(State, "_run", full)
    out = f"out={tmp_path / 'c'}"
    assert run("prepare", *given, out, "deduplicate=true") == 2
    error = capsys.readouterr().err
    assert "database or disk is full" in error
    assert error.endswith("make room, and the same command goes on from here\n")
    assert error.count("\n") == 1
    monkeypatch.undo()
    assert run("prepare", *given, out, "deduplicate=true") == 0


def test_a_folder_that_cannot_be_looked_into_is_not_left_out_in_silence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_lines(tmp_path / "a.jsonl", ["text"])
    (tmp_path / "closed").mkdir()
    real = os.scandir

    def scandir(path: Any) -> Any:
        if Path(path).name == "closed":  # root may look into any
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr("os.scandir", scandir)
    with pytest.raises(SettingError, match=r"closed cannot be read \(Permission denied\); valid:"):
        list_files("source", str(tmp_path))


def test_a_byte_order_mark_is_no_part_of_the_first_line(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "a.jsonl", [f"text {i}" for i in range(300)])
    source.write_bytes(b"\xef\xbb\xbf" + source.read_bytes())
    prepare(tmp_path / "c", source, "bytes", "validation_fraction=0.1")
    prepared = json.loads((tmp_path / "c" / "manifest.json").read_text())["prepared"]
    assert (prepared["records"], prepared["malformed"]) == (300, 0)


def test_a_changed_shard_and_an_index_that_does_not_fit_are_found(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "a.jsonl", [f"text {i}" for i in range(300)])
    folder = tmp_path / "c"
    prepare(folder, source, "bytes", "validation_fraction=0.1")
    manifest = json.loads((folder / "manifest.json").read_text())
    shard = manifest["train"]["shards"][0]
    index = np.fromfile(folder / shard["index"]["file"], dtype="<u8")
    index[0] += 1
    index.tofile(folder / shard["index"]["file"])
    shard["index"]["sha256"] = hashlib.sha256(index.tobytes()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(SettingError, match=r"index .* does not fit the separators in train"):
        open_prepared(folder, verify=True)
    raw = bytearray((folder / shard["file"]).read_bytes())
    raw[0] ^= 1
    (folder / shard["file"]).write_bytes(raw)
    with pytest.raises(SettingError, match=r"sha256 [0-9a-f]{12} where"):
        open_prepared(folder, verify=True)
    (folder / shard["file"]).write_bytes(raw[:-1])
    with pytest.raises(SettingError, match=r"bytes in train-00000\.bin where its manifest"):
        open_prepared(folder)


def test_another_tokenizer_than_the_manifests_is_found(
    tmp_path: Path, tokenizer_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_lines(tmp_path / "a.jsonl", [f"text {i}" for i in range(300)])
    prepare(tmp_path / "c", source, tokenizer_file, "validation_fraction=0.1")
    other = tmp_path / "c" / "tokenizer.json"
    other.write_bytes(other.read_bytes() + b" ")
    assert run("check", f"path={tmp_path / 'c'}") == 2
    assert "has a tokenizer.json of sha256" in capsys.readouterr().err
    other.unlink()
    assert run("check", f"path={tmp_path / 'c'}") == 2
    assert "has no tokenizer.json, which its manifest.json names" in capsys.readouterr().err


def test_a_tokenizer_that_does_not_add_up_is_refused(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, decoders, models

    tokenizer = Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.save(str(tmp_path / "t.json"))
    with pytest.raises(SettingError, match="neither byte-level nor byte-fallback"):
        load_tokenizer(str(tmp_path / "t.json"))


def test_a_separator_must_be_a_special_token(tokenizer_file: Path) -> None:
    with pytest.raises(SettingError, match=r"separator=<eos> is no special token .*endoftext"):
        load_tokenizer(str(tokenizer_file), separator="<eos>")
    with pytest.raises(SettingError, match=r"vocab_size=3 is less than the 500 ids"):
        load_tokenizer(str(tokenizer_file), vocab_size=3)
    padded: TokenizerFile = load_tokenizer(str(tokenizer_file), vocab_size=512)
    assert padded.token_bytes.shape == (512,)


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
