"""What preparing refuses, counts or finds changed: a sentence each, and nothing half made."""

import gzip
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ablations.data.documents import list_files
from ablations.data.prepared import open_prepared
from ablations.data.state import State
from ablations.data.tokenizer import TokenizerFile, load_tokenizer
from models.errors import SettingError
from tests.data_room.conftest import prepare, run, write_lines


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
    "colour=blue": "colour is not a setting; valid: deduplicate,",
    "colour": "is not a setting; write key=value",
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
