"""Writing token files: shards that go on where a recorded state left them, and whole folders."""

import contextlib
import hashlib
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

INDEX_ITEM_BYTES = 16  # uint64 [2] a document


class ShardWriter:
    """One stream being written: token files, each with its document index.

    With shard_tokens=None the stream is one file and has no index, as format 1 has it.
    """

    def __init__(
        self, folder: Path, stem: str, dtype: np.dtype, shard_tokens: int | None = None
    ) -> None:
        self._folder, self._stem, self._dtype = folder, stem, dtype
        self._shard_tokens = shard_tokens
        self.shards: list[dict[str, Any]] = []
        self.open = {"tokens": 0, "documents": 0, "bytes": 0}
        self._files: list[BinaryIO] = []

    @property
    def tokens(self) -> int:
        """Tokens written so far."""
        return self.open["tokens"] + sum(shard["tokens"] for shard in self.shards)

    def restore(self, state: dict[str, Any]) -> None:
        """Go back to a recorded state, cutting off what was written after it."""
        self.shards, self.open = state["shards"], state["open"]
        keep = {shard["file"] for shard in self.shards}
        keep |= {shard["index"]["file"] for shard in self.shards}
        if self.open["documents"]:
            sizes = (
                self.open["tokens"] * self._dtype.itemsize,
                self.open["documents"] * INDEX_ITEM_BYTES,
            )
            for path, size in zip(self._paths(), sizes, strict=True):
                os.truncate(path, size)
                keep.add(path.name)
        mine = re.compile(re.escape(self._stem) + r"-\d{5,}(\.documents)?\.bin")
        for path in self._folder.iterdir():
            if mine.fullmatch(path.name) and path.name not in keep:
                path.unlink()

    def state(self) -> dict[str, Any]:
        return {"shards": self.shards, "open": self.open}

    def write(self, tokens: np.ndarray, lengths: np.ndarray, text_bytes: np.ndarray) -> None:
        """Append documents; a shard ends with the document that fills it.

        tokens: ids [sum(lengths)], each document ended by its separator; lengths: tokens of each,
        int64 [documents]; text_bytes: UTF-8 bytes of each, int64 [documents].
        """
        ends = np.cumsum(lengths)
        first = start = 0
        while first < len(lengths):
            last = len(lengths)
            if self._shard_tokens is not None:
                room = start + self._shard_tokens - self.open["tokens"]
                last = min(last, int(np.searchsorted(ends, room, side="left")) + 1)
            stop = int(ends[last - 1])
            index = np.empty((last - first, 2), dtype="<u8")
            index[:, 0] = ends[first:last] - start + self.open["tokens"]
            index[:, 1] = text_bytes[first:last]
            content = tokens[start:stop].astype(self._dtype, copy=False)
            self._files = self._files or [path.open("ab") for path in self._paths()]
            for handle, array in zip(self._files, (content, index), strict=False):
                handle.write(np.ascontiguousarray(array).data)
            self.open["tokens"] += stop - start
            self.open["documents"] += last - first
            self.open["bytes"] += int(text_bytes[first:last].sum())
            first, start = last, stop
            if self._shard_tokens is not None and self.open["tokens"] >= self._shard_tokens:
                self.finish()

    def sync(self) -> None:
        for handle in self._files:
            handle.flush()
            os.fsync(handle.fileno())

    def close(self) -> None:
        for handle in self._files:
            handle.close()
        self._files = []

    def finish(self) -> None:
        """Close the open shard, if it holds anything."""
        if not self.open["documents"]:
            return
        self.sync()
        self.close()
        tokens, *index = self._paths()
        shard = {"file": tokens.name, **self.open, "sha256": file_sha256(tokens)}
        if index:
            shard["index"] = {"file": index[0].name, "sha256": file_sha256(index[0])}
        self.shards.append(shard)
        self.open = {"tokens": 0, "documents": 0, "bytes": 0}

    def entry(self) -> dict[str, Any]:
        """The manifest's entry of the whole stream, finished."""
        sums = {k: sum(s[k] for s in self.shards) for k in ("tokens", "documents", "bytes")}
        if self._shard_tokens is not None:
            return {**sums, "shards": self.shards}
        nothing = {"file": self._paths()[0].name, **sums, "sha256": hashlib.sha256().hexdigest()}
        return self.shards[0] if self.shards else nothing

    def _paths(self) -> list[Path]:
        if self._shard_tokens is None:
            return [self._folder / f"{self._stem}.bin"]
        stem = f"{self._stem}-{len(self.shards):05}"
        return [self._folder / f"{stem}.bin", self._folder / f"{stem}.documents.bin"]


def file_sha256(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def write_synced(file: Path, content: bytes) -> None:
    with file.open("wb") as handle:
        handle.write(content)
        handle.flush()
        os.fsync(handle.fileno())


def sync_folder(folder: Path) -> None:
    """Make the names in a folder last, as after a rename."""
    handle = os.open(folder, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)


@contextlib.contextmanager
def written_beside(path: Path) -> Iterator[Path]:
    """A new folder beside `path`, for its content to be written to and renamed; gone after."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    beside.mkdir()
    try:
        yield beside
    finally:
        shutil.rmtree(beside, ignore_errors=True)
