"""Documents from files as they are, in blocks: JSON lines, Parquet, Arrow and plain text.

No more than a few blocks are in memory, whatever the corpus.
"""

import codecs
import glob
import gzip
import io
import json
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ablations.data import blocks
from ablations.data.blocks import BLOCK_ROWS, Block, texts_of
from ablations.data.hub import PREFIX, HubSplit, open_hub
from models.errors import SettingError

ZSTD_BYTES = 1 << 18  # packed; text packs to a quarter or a hundredth
LARGEST_BYTES = 1 << 30  # a document, or a line with one, is held whole
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
SPLITS = "dataset_dict.json"
BESIDE_ARROW = ("dataset_info.json", "state.json", SPLITS)


def list_files(setting: str, source: str) -> list[Path | HubSplit]:
    """The files that a path or pattern names, sorted by their path; or a dataset of the hub.

    A folder stands for all files below it with a known suffix. Raises SettingError where there
    are none.
    """
    if source.startswith(PREFIX):
        return [open_hub(setting, source)]
    path = Path(source).expanduser()
    if path.is_dir():
        if (path / SPLITS).is_file():
            splits = sorted(p.name for p in path.iterdir() if p.is_dir())
            raise SettingError(
                f"{setting}={source} is a dataset of several splits; valid: one of "
                f"{', '.join(str(path / split) for split in splits)}."
            )
        found = [
            p
            for p in _below(setting, path)
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
    return [*sorted(found, key=lambda p: p.as_posix())]


def _below(setting: str, folder: Path) -> Iterator[Path]:
    """All files below a folder; one that cannot be looked into is not left out in silence."""

    def refuse(error: OSError) -> None:
        raise SettingError(
            f"{setting}: {error.filename} cannot be read ({error.strerror}); valid: folders that "
            "may be, or a pattern that leaves it out."
        )

    for place, _, names in os.walk(folder, onerror=refuse):
        yield from (Path(place, name) for name in names)


def stamp(file: Path | HubSplit) -> list[Any]:
    """What tells a file from a changed one: [name, bytes, version]."""
    if isinstance(file, HubSplit):
        return [file.name, file.bytes, file.version]
    found = file.stat()
    return [file.name, found.st_size, found.st_mtime_ns]


def kind_of(path: Path) -> str:
    return next(kind for suffix, kind in KINDS.items() if path.name.endswith(suffix))


def read_blocks(
    path: Path | HubSplit, file: int, position: Any, record: int, text: str
) -> Iterator[Block]:
    """A file's blocks from a cursor on.

    position, record: of the cursor, 0 and 0 at the start; text: the field or column that holds the
    document. Raises SettingError on a file that is cut, damaged or without that column.
    """
    if isinstance(path, HubSplit):
        yield from path.blocks(file, position, record, text)
        return
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
            content = json.loads(line.removeprefix(codecs.BOM_UTF8).decode())
        except UnicodeDecodeError:
            yield number, None, "not UTF-8"
            continue
        except (ValueError, RecursionError):
            yield number, None, "not JSON"
            continue
        if not isinstance(content, dict):
            yield number, None, "JSON, but not an object with fields"
        elif not isinstance(document := content.get(text), str):
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
            rest = bytearray()
            while chunk := handle.read(blocks.BLOCK_BYTES):
                cut = chunk.rfind(b"\n") + 1
                if not cut:
                    rest += chunk
                    if len(rest) > LARGEST_BYTES:
                        raise SettingError(
                            f"source: {path}:{record + 1} is a line of over {LARGEST_BYTES:,} "
                            "bytes; valid: one JSON object a line, not one array of all."
                        )
                    continue
                payload, rest = bytes(rest + chunk[:cut]), bytearray(chunk[cut:])
                position += len(payload)
                lines = payload.count(b"\n")
                yield Block(file, record + 1, position, lines, raw.tell(), payload)
                record += lines
            if rest:
                yield Block(file, record + 1, position + len(rest), 1, raw.tell(), bytes(rest))
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
        position -= len(handle.read(min(position, blocks.BLOCK_BYTES)))


def _read_text(path: Path, file: int, position: int) -> Iterator[Block]:
    size = path.stat().st_size
    if size > LARGEST_BYTES:
        raise SettingError(
            f"source: {path} is one document of {size:,} bytes, as a plain text file is; valid: at "
            f"most {LARGEST_BYTES:,}, or the same text as JSON lines."
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
    row = 0  # of the batch that is read next
    try:
        if kind == "parquet":
            table = pq.ParquetFile(path)
            names, rows = table.schema_arrow.names, table.metadata.num_rows
            groups, row = _groups_from(table.metadata, position)
            widest = max((g.total_byte_size // max(1, g.num_rows) for g in groups), default=0)
            count = min(BLOCK_ROWS, max(1, blocks.BLOCK_BYTES // max(1, widest)))
            first = table.num_row_groups - len(groups)
            batches = table.iter_batches(
                count, row_groups=range(first, table.num_row_groups), columns=[text]
            )
        else:
            names, batches = _open_arrow(path)
            rows = 0
        if text not in names:
            raise SettingError(
                f"source: {path} has no column {text}; valid: text=NAME with one of "
                f"{', '.join(names)}."
            )
        for batch in batches:
            column = batch.column(batch.schema.get_field_index(text))
            column, row = column[max(0, position - row) :], row + len(column)
            done = row - len(column)
            for payload in texts_of(column):
                done += len(payload)
                consumed = size * done // rows if rows else 0
                yield Block(file, done - len(payload) + 1, done, len(payload), consumed, payload)
    except (pa.ArrowException, OSError) as error:
        raise _damaged(path, error) from None


def _groups_from(metadata: Any, position: int) -> tuple[list[Any], int]:
    """The row groups of a Parquet file that a row and what follows are in, and the first's row."""
    groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
    row = 0
    while groups and row + groups[0].num_rows <= position:
        row += groups.pop(0).num_rows
    return groups, row


def _open_arrow(path: Path) -> tuple[list[str], Iterator[Any]]:
    """Columns and batches of an Arrow file, in the stream format or the file format."""
    import pyarrow as pa

    source = pa.memory_map(str(path))
    if source.read(6) == b"ARROW1":
        reader = pa.ipc.open_file(source)
        indices = range(reader.num_record_batches)
        return reader.schema.names, (reader.get_batch(index) for index in indices)
    source.seek(0)
    stream = pa.ipc.open_stream(source)
    return stream.schema.names, iter(stream)
