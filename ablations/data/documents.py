"""Documents from files as they are: JSON lines, Parquet, Arrow and plain text, in blocks.

A block is what one process tokenizes at a time; its cursor says where reading goes on after it. No
more than a few blocks are in memory, whatever the corpus.
"""

from __future__ import annotations

import glob
import gzip
import io
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from models.errors import SettingError

BLOCK_BYTES = 4 << 20
BLOCK_ROWS = 1024
ZSTD_BYTES = 1 << 18  # packed; text packs to a quarter or a hundredth
LARGEST_TEXT_BYTES = 1 << 30  # a plain text file is one document, and is held whole
JSONL = (".jsonl", ".json", ".jsonl.gz", ".json.gz", ".jsonl.zst", ".json.zst")
KINDS = {
    **dict.fromkeys(JSONL, "jsonl"),
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".txt": "text",
    ".md": "text",
}
SUFFIXES = tuple(KINDS)
# What `datasets` writes beside the Arrow files of a dataset on disk; no documents.
BESIDE_ARROW = ("dataset_info.json", "state.json", "dataset_dict.json")


@dataclass(frozen=True)
class Block:
    """Consecutive records of one file."""

    file: int
    """Index among the files of its source."""
    first: int
    """Number of its first record in the file, from 1: a line, or a row."""
    position: int
    """Where the next block of the file begins: a byte of the unpacked file, or a row."""
    records: int
    consumed: int
    """Bytes of the file on disk read so far, for progress."""
    payload: Any = field(repr=False)
    """Whole lines as bytes, or a list of texts (str, bytes or None)."""


def list_files(setting: str, source: str) -> list[Path]:
    """The files that a path or pattern names, sorted by their path.

    A folder stands for all files below it with a known suffix. Raises SettingError where there
    are none.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        found = [
            p
            for p in path.rglob("*")
            if p.is_file() and p.name.endswith(SUFFIXES) and p.name not in BESIDE_ARROW
        ]
    else:
        named = glob.glob(str(path), recursive=True)  # noqa: PTH207 (absolute patterns too)
        found = [Path(p) for p in named if Path(p).is_file()]
    unknown = [p for p in found if not p.name.endswith(SUFFIXES)]
    if unknown:
        raise SettingError(
            f"{setting}={source} holds {unknown[0].name}, of a kind that is not read; valid: "
            f"{', '.join(SUFFIXES)}."
        )
    if not found:
        raise SettingError(
            f"{setting}={source} names no file; valid: a file, a folder or a pattern with files "
            f"that end in {', '.join(SUFFIXES)}."
        )
    return sorted(found, key=lambda p: p.as_posix())


def kind_of(path: Path) -> str:
    return next(kind for suffix, kind in KINDS.items() if path.name.endswith(suffix))


def read_blocks(path: Path, file: int, position: int, record: int, text: str) -> Iterator[Block]:
    """A file's blocks from a cursor on.

    position, record: of the cursor, 0 and 0 at the start; text: the field or column that holds the
    document. Raises SettingError on a file that is cut, damaged or without that column.
    """
    kind = kind_of(path)
    if kind == "jsonl":
        yield from _read_lines(path, file, position, record)
    elif kind == "text":
        yield from _read_text(path, file, position)
    else:
        yield from _read_columns(path, file, position, text, kind)


def parse_lines(payload: bytes, text: str) -> Iterator[tuple[int, str | None, str]]:
    """(line within the block from 0, document or None, why it is malformed) of each line."""
    lines = payload.split(b"\n")
    if not lines[-1]:
        lines.pop()
    for number, line in enumerate(lines):
        if not line.strip():
            continue
        try:
            content = json.loads(line.decode())
        except UnicodeDecodeError:
            yield number, None, "not UTF-8"
            continue
        except (ValueError, RecursionError):
            yield number, None, "not JSON"
            continue
        document = content.get(text) if isinstance(content, dict) else None
        if not isinstance(document, str):
            yield number, None, f"no text in field {text}"
        else:
            yield number, *_utf8(document)


def parse_texts(payload: list[str | bytes | None], text: str) -> Iterator[tuple[int, Any, str]]:
    """The same of a list of texts."""
    for number, document in enumerate(payload):
        if isinstance(document, bytes):
            try:
                document = document.decode()
            except UnicodeDecodeError:
                yield number, None, "not UTF-8"
                continue
        if not isinstance(document, str):
            yield number, None, f"no text in column {text}"
        else:
            yield number, *_utf8(document)


def _utf8(document: str) -> tuple[str | None, str]:
    """JSON may spell half a surrogate pair, which no UTF-8 can hold."""
    if not document.isascii():
        try:
            document.encode()
        except UnicodeEncodeError:
            return None, "not UTF-8 (half a surrogate pair)"
    return document, ""


def _read_lines(path: Path, file: int, position: int, record: int) -> Iterator[Block]:
    raw = path.open("rb")
    with raw:
        handle = _unpack(path, raw)
        try:
            _skip(handle, position)
            rest = b""
            while chunk := handle.read(BLOCK_BYTES):
                cut = chunk.rfind(b"\n") + 1
                if not cut:
                    rest += chunk
                    continue
                payload, rest = rest + chunk[:cut], chunk[cut:]
                position += len(payload)
                lines = payload.count(b"\n")
                yield Block(file, record + 1, position, lines, raw.tell(), payload)
                record += lines
            if rest:
                yield Block(file, record + 1, position + len(rest), 1, raw.tell(), rest)
        except (OSError, EOFError, zlib.error) as error:
            raise _damaged(path, error) from None
        except Exception as error:
            if type(error).__name__ != "ZstdError":
                raise
            raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> SettingError:
    return SettingError(
        f"source: {path} is cut or damaged ({str(error).rstrip('.')}); copy it again, or leave it "
        "out."
    )


def _unpack(path: Path, raw: io.BufferedReader) -> Any:
    if path.suffix == ".gz":
        return gzip.GzipFile(fileobj=raw)
    if path.suffix == ".zst":
        try:
            import zstandard  # type: ignore[import-not-found,unused-ignore]
        except ImportError:
            raise SettingError(
                f"source: {path} needs the package zstandard, which is not installed; pip install "
                "zstandard, or unpack the file."
            ) from None
        return _Zstd(raw, zstandard.ZstdDecompressor())
    return raw


class _Zstd:
    """A zstd file's frames, one after another; one that is cut raises EOFError."""

    def __init__(self, raw: io.BufferedReader, unpacker: Any) -> None:
        self._raw, self._unpacker = raw, unpacker
        self._frame: Any = None
        self._packed = self._plain = b""

    def read(self, size: int) -> bytes:
        while len(self._plain) < size:
            packed = self._packed or self._raw.read(ZSTD_BYTES)
            self._packed = b""
            if not packed:
                if self._frame is not None:
                    raise EOFError("compressed file ended inside a frame")
                break
            self._frame = self._frame or self._unpacker.decompressobj()
            self._plain += self._frame.decompress(packed)
            if self._frame.eof:
                self._packed, self._frame = self._frame.unused_data, None
        out, self._plain = self._plain[:size], self._plain[size:]
        return out


def _skip(handle: Any, position: int) -> None:
    """Go to a byte of the unpacked file; a compressed one is read up to there again."""
    if isinstance(handle, io.BufferedReader | gzip.GzipFile):
        handle.seek(position)
        return
    while position:
        position -= len(handle.read(min(position, BLOCK_BYTES)))


def _read_text(path: Path, file: int, position: int) -> Iterator[Block]:
    size = path.stat().st_size
    if size > LARGEST_TEXT_BYTES:
        raise SettingError(
            f"source: {path} is one document of {size:,} bytes, as a plain text file is; valid: at "
            f"most {LARGEST_TEXT_BYTES:,}, or the same text as JSON lines."
        )
    if not position:
        yield Block(file, 1, 1, 1, size, [path.read_bytes()])


def _read_columns(path: Path, file: int, position: int, text: str, kind: str) -> Iterator[Block]:
    try:
        import pyarrow as pa  # type: ignore[import-untyped,unused-ignore]
        import pyarrow.parquet as pq  # type: ignore[import-untyped,unused-ignore]
    except ImportError:
        raise SettingError(
            f"source: {path} needs the package pyarrow, which is not installed; pip install "
            "pyarrow, or give JSON lines."
        ) from None
    size = path.stat().st_size
    try:
        if kind == "parquet":
            table = pq.ParquetFile(path)
            names, rows = table.schema_arrow.names, table.metadata.num_rows
            batches = table.iter_batches(BLOCK_ROWS, columns=[text]) if text in names else None
        else:
            stream = pa.ipc.open_stream(pa.memory_map(str(path)))
            names, rows = stream.schema.names, 0
            batches = iter(stream)
        if text not in names:
            raise SettingError(
                f"source: {path} has no column {text}; valid: text=NAME with one of "
                f"{', '.join(names)}."
            )
        row = 0
        for batch in batches or ():
            column = batch.column(batch.schema.get_field_index(text))
            for start in range(0, len(column), BLOCK_ROWS):
                part = column.slice(start, BLOCK_ROWS)
                row += len(part)
                if row <= position:
                    continue
                consumed = size * row // rows if rows else 0
                yield Block(file, row - len(part) + 1, row, len(part), consumed, part.to_pylist())
    except (pa.ArrowException, OSError) as error:
        raise _damaged(path, error) from None
