"""Prepare a corpus: documents as they are into shards of token ids, in many processes.

This process reads blocks and writes; the others parse, tokenize and hash. What is written depends
on the documents and their order alone, not on blocks, processes or interruptions: after each batch
of blocks the files are synced and one transaction records how long each is, where reading goes on
and which documents have been met, so that a preparation killed anywhere goes on from there to the
same bytes.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import sqlite3
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from ablations.data.documents import Block, list_files, parse_lines, parse_texts, read_blocks
from ablations.data.prepared import MANIFEST, SHARDED, Corpus, open_prepared, write_synced
from ablations.data.tokenizer import Encoder, TokenizerFile, build_encoder
from models.errors import SettingError

STATE = "state.sqlite"
COMMIT_SECONDS = 5.0
MALFORMED_SHOWN = 20
TELLING_RECORDS = 100  # with more than half of so many malformed, the settings are wrong


@dataclass(frozen=True)
class Preparation:
    """What is asked for; all of it but `processes` decides the bytes."""

    source: str
    """File, folder or pattern of the documents to train on."""
    tokenizer: TokenizerFile
    out: Path
    name: str
    """Of the corpus, and of the validation domain that is split off."""
    validation: dict[str, str] = field(default_factory=dict)
    """More domains: {name: file, folder or pattern}, held out whole."""
    text: str = "text"
    """Field of a JSON line, or column, that holds the document."""
    validation_fraction: float = 0.005
    """Share of the documents of `source` that is held out, by their hash."""
    deduplicate: bool = False
    malformed: float = 0.001
    """Share of records that may be malformed."""
    shard_tokens: int = 1 << 28
    processes: int = 1


@dataclass(frozen=True)
class Encoded:
    """A block's documents as tokens."""

    tokens: np.ndarray
    """Ids of all, each document ended by the separator."""
    lengths: np.ndarray
    """Tokens of each, separator included, int64 [documents]."""
    text_bytes: np.ndarray
    """UTF-8 bytes of each, int64 [documents]."""
    digests: np.ndarray
    """SHA-256 of each document's UTF-8, uint64 [documents, 4], big-endian."""
    malformed: list[tuple[int, str]]
    """(record of the block from 0, why)."""
    counts: dict[str, int]


def prepare(asked: Preparation, say: Callable[[str], None], progress: bool = False) -> Corpus:
    """Prepare a corpus, or go on with one that was interrupted; returns it opened.

    say: told what a user wants to know; progress: show a bar on stderr. Raises SettingError on what
    the user can mend; nothing is ever at `out` but a whole corpus.
    """
    if not 0 <= asked.validation_fraction < 1:
        raise SettingError(
            f"validation_fraction={asked.validation_fraction:g} must be at least 0 and under 1."
        )
    if not asked.validation and not asked.validation_fraction:
        raise SettingError(
            "validation_fraction=0 leaves nothing to judge by; give a fraction, or validation.NAME="
            "PATH."
        )
    for domain in (asked.name, *asked.validation):
        if not domain.replace("_", "").replace("-", "").replace(".", "").isalnum():
            raise SettingError(
                f"name={domain} must be letters, digits, dots, dashes and underscores, as files "
                "are named by it."
            )
    stages = [
        _Stage(name, list_files(f"validation.{name}", path), f"validation-{name}")
        for name, path in asked.validation.items()
    ]
    stages.append(_Stage("train", list_files("source", asked.source), "train"))
    settings = _settings(asked, stages)
    if asked.out.exists():
        return _standing(asked, settings)
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    folder = asked.out.with_name(f".{asked.out.name}.partial")
    folder.mkdir(exist_ok=True)
    with _locked(folder):
        work = _Work(asked, stages, folder, settings, say)
        try:
            manifest = work.run(progress)
        finally:
            work.let_go()
        write_synced(folder / MANIFEST, [(json.dumps(manifest, indent=1) + "\n").encode()])
        open_prepared(folder, setting="out")
        work.close()
        (folder / "lock").unlink()
        folder.rename(asked.out)
        _sync_folder(asked.out.parent)
    return open_prepared(asked.out)


def encode_block(block: Block, encoder: Encoder, text: str, tokenizer: TokenizerFile) -> Encoded:
    """Parse, tokenize and hash a block's documents."""
    drop_nul = tokenizer.content is None  # the NUL byte is what ends a document
    parse = parse_lines if isinstance(block.payload, bytes) else parse_texts
    documents: list[str] = []
    malformed: list[tuple[int, str]] = []
    counts = {"blank_documents": 0, "nul_bytes": 0}
    for record, document, why in parse(block.payload, text):
        if document is None:
            malformed.append((record, why))
            continue
        if drop_nul and "\0" in document:
            counts["nul_bytes"] += document.count("\0")
            document = document.replace("\0", "")
        if not document.strip():
            counts["blank_documents"] += 1
        else:
            documents.append(document)
    ids = encoder.encode(documents) if documents else []
    encoded = [document.encode() for document in documents]
    digests = b"".join(hashlib.sha256(content).digest() for content in encoded)
    end = np.array([tokenizer.separator], dtype=ids[0].dtype if ids else np.uint8)
    with_ends = [piece for tokens in ids for piece in (tokens, end)]
    tokens = np.concatenate(with_ends) if with_ends else np.empty(0, dtype=np.uint8)
    lengths = np.array([len(piece) + 1 for piece in ids], dtype=np.int64)
    text_bytes = np.array([len(content) for content in encoded], dtype=np.int64)
    if len(ids):
        starts = np.cumsum(lengths) - lengths
        counted = np.add.reduceat(tokenizer.token_bytes[tokens], starts, dtype=np.int64)
        counts["inexact_documents"] = int((counted != text_bytes).sum())
    return Encoded(
        tokens=tokens,
        lengths=lengths,
        text_bytes=text_bytes,
        digests=np.frombuffer(digests, dtype=">u8").reshape(-1, 4),
        malformed=malformed,
        counts=counts,
    )


@dataclass(frozen=True)
class _Stage:
    """One stream of documents: a validation domain held out whole, or the training source."""

    name: str
    files: list[Path]
    stem: str


def _settings(asked: Preparation, stages: list[_Stage]) -> dict[str, Any]:
    """All that decides the bytes; a preparation goes on only where it is the same."""
    return {
        "name": asked.name,
        "tokenizer": asked.tokenizer.sha256 or asked.tokenizer.name,
        "vocab_size": asked.tokenizer.vocab_size,
        "separator": asked.tokenizer.separator,
        "text": asked.text,
        "validation_fraction": asked.validation_fraction,
        "deduplicate": asked.deduplicate,
        "malformed": asked.malformed,
        "shard_tokens": asked.shard_tokens,
        "files": {
            stage.name: [[f.name, f.stat().st_size, f.stat().st_mtime_ns] for f in stage.files]
            for stage in stages
        },
    }


def _standing(asked: Preparation, settings: dict[str, Any]) -> Corpus:
    """The corpus that is there already, where it is the one asked for."""
    corpus = open_prepared(asked.out, setting="out")
    manifest = json.loads((asked.out / MANIFEST).read_text(encoding="utf-8"))
    made = manifest.get("prepared", {}).get("settings_sha256")
    if made != _settings_sha256(settings):
        raise SettingError(
            f"out={asked.out} holds another corpus, or one of other settings or sources; name a "
            "folder that does not exist yet."
        )
    return corpus


def _settings_sha256(settings: dict[str, Any]) -> str:
    # Names and sizes, not times: a copied source is the same source.
    files = {stage: [f[:2] for f in found] for stage, found in settings["files"].items()}
    text = json.dumps({**settings, "files": files}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    with (folder / "lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise SettingError(
                f"out: {folder} is being written by another process; wait for it, or name another "
                "folder."
            ) from None
        yield


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)


class _Stream:
    """One stream of shards being written: token files and their document indices."""

    def __init__(self, folder: Path, stem: str, dtype: np.dtype, shard_tokens: int) -> None:
        self._folder, self._stem, self._dtype = folder, stem, dtype
        self._shard_tokens = shard_tokens
        self.shards: list[dict[str, Any]] = []
        self.open = {"tokens": 0, "documents": 0, "bytes": 0}
        self._files: tuple[Any, Any] | None = None

    def restore(self, state: dict[str, Any]) -> None:
        """Go back to a recorded state, cutting off what was written after it."""
        self.shards, self.open = state["shards"], state["open"]
        keep = {shard["file"] for shard in self.shards}
        keep |= {shard["index"]["file"] for shard in self.shards}
        if self.open["documents"]:
            for path, size in zip(self._paths(), self._sizes(), strict=True):
                os.truncate(path, size)
                keep.add(path.name)
        mine = re.compile(re.escape(self._stem) + r"-\d{5,}(\.documents)?\.bin")
        for path in self._folder.iterdir():
            if mine.fullmatch(path.name) and path.name not in keep:
                path.unlink()

    def state(self) -> dict[str, Any]:
        return {"shards": self.shards, "open": self.open}

    def write(self, tokens: np.ndarray, lengths: np.ndarray, text_bytes: np.ndarray) -> None:
        """Append documents; a shard ends with the document that fills it."""
        ends = np.cumsum(lengths)
        first = start = 0
        while first < len(lengths):
            room = start + self._shard_tokens - self.open["tokens"]
            last = min(len(ends), int(np.searchsorted(ends, room, side="left")) + 1)
            stop = int(ends[last - 1])
            index = np.empty((last - first, 2), dtype="<u8")
            index[:, 0] = ends[first:last] - start + self.open["tokens"]
            index[:, 1] = text_bytes[first:last]
            if self._files is None:
                token_file, index_file = (path.open("ab") for path in self._paths())
                self._files = token_file, index_file
            self._files[0].write(tokens[start:stop].astype(self._dtype, copy=False).data)
            self._files[1].write(index.tobytes())
            self.open["tokens"] += stop - start
            self.open["documents"] += last - first
            self.open["bytes"] += int(text_bytes[first:last].sum())
            first, start = last, stop
            if self.open["tokens"] >= self._shard_tokens:
                self.finish()

    def sync(self) -> None:
        for handle in self._files or ():
            handle.flush()
            os.fsync(handle.fileno())

    def close(self) -> None:
        for handle in self._files or ():
            handle.close()
        self._files = None

    def finish(self) -> None:
        """Close the open shard, if it holds anything."""
        if not self.open["documents"]:
            return
        self.sync()
        self.close()
        tokens, index = self._paths()
        self.shards.append(
            {
                "file": tokens.name,
                **self.open,
                "sha256": _file_sha256(tokens),
                "index": {"file": index.name, "sha256": _file_sha256(index)},
            }
        )
        self.open = {"tokens": 0, "documents": 0, "bytes": 0}

    def _paths(self) -> tuple[Path, Path]:
        stem = f"{self._stem}-{len(self.shards):05}"
        return self._folder / f"{stem}.bin", self._folder / f"{stem}.documents.bin"

    def _sizes(self) -> tuple[int, int]:
        return self.open["tokens"] * self._dtype.itemsize, 16 * self.open["documents"]

    def entry(self) -> dict[str, Any]:
        """The manifest's entry of the whole stream."""
        sums = {k: sum(s[k] for s in self.shards) for k in ("tokens", "documents", "bytes")}
        return {**sums, "shards": self.shards}


def _file_sha256(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


class _Work:
    """A preparation under way in its folder beside `out`."""

    def __init__(
        self,
        asked: Preparation,
        stages: list[_Stage],
        folder: Path,
        settings: dict[str, Any],
        say: Callable[[str], None],
    ) -> None:
        self.asked, self.stages, self.folder, self.say = asked, stages, folder, say
        self.settings = settings
        stems = [s.stem for s in stages]
        if asked.validation_fraction:
            if asked.name in asked.validation:
                raise SettingError(
                    f"name={asked.name} is the domain split off and validation.{asked.name} "
                    "another; give one of them another name, or validation_fraction=0."
                )
            stems.append(f"validation-{asked.name}")
        dtype = asked.tokenizer.dtype
        self.streams = {s: _Stream(folder, s, dtype, asked.shard_tokens) for s in stems}
        # The next block: stage, file, position in it, records before it.
        self.cursor = [0, 0, 0, 0]
        self.counts = dict.fromkeys(
            ("records", "malformed", "blank_documents", "nul_bytes", "duplicate_documents",
             "inexact_documents"), 0
        )  # fmt: skip
        self.malformed: list[str] = []
        self.stage_records = [0, 0]
        """Records, and malformed ones, of this stage."""
        self._threshold = min(int(asked.validation_fraction * 2**64), 2**64 - 1)
        self._restore()

    def run(self, progress: bool) -> dict[str, Any]:
        """Every stage to its end; returns the manifest."""
        with _pool(self.asked) as submit, _Bar(self, progress) as bar:
            committed = time.monotonic()
            for stage in range(self.cursor[0], len(self.stages)):
                pending: deque[tuple[Block, Future[Encoded]]] = deque()
                blocks = self._blocks(stage)
                for block in blocks:
                    pending.append((block, submit(block)))
                    # Read a little ahead, so that no process waits, and no more.
                    if len(pending) > 2 * self.asked.processes:
                        self._take(stage, *_result(pending.popleft()), bar)
                        if time.monotonic() - committed > COMMIT_SECONDS:
                            self._commit()
                            committed = time.monotonic()
                while pending:
                    self._take(stage, *_result(pending.popleft()), bar)
                self._check_malformed(final=True)
                self.cursor, self.stage_records = [stage + 1, 0, 0, 0], [0, 0]
                self._commit()
        for stream in self.streams.values():
            stream.finish()
        return self._manifest()

    def let_go(self) -> None:
        """Close every file, whatever came of the work; what was not committed is cut off later."""
        self._state.close()
        for stream in self.streams.values():
            stream.close()

    def close(self) -> None:
        """Leave nothing in the folder but the corpus."""
        for path in self.folder.glob(f"{STATE}*"):
            path.unlink()

    def _blocks(self, stage: int) -> Iterator[Block]:
        _, first, position, record = self.cursor
        for file in range(first, len(self.stages[stage].files)):
            here = (position, record) if file == first else (0, 0)
            yield from read_blocks(self.stages[stage].files[file], file, *here, self.asked.text)

    def _take(self, stage: int, block: Block, encoded: Encoded, bar: _Bar) -> None:
        """Write one block's documents where they belong, and move the cursor past it."""
        for record, why in encoded.malformed:
            if len(self.malformed) < MALFORMED_SHOWN:
                file = self.stages[stage].files[block.file]
                self.malformed.append(f"{file}:{block.first + record}: {why}")
        for key, count in encoded.counts.items():
            self.counts[key] += count
        self.counts["records"] += block.records
        self.counts["malformed"] += len(encoded.malformed)
        self.stage_records[0] += block.records
        self.stage_records[1] += len(encoded.malformed)
        lengths, text_bytes = encoded.lengths, encoded.text_bytes
        if len(lengths):
            kept = self._new(encoded.digests)
            stem = self.stages[stage].stem
            held = np.zeros(len(lengths), dtype=bool)
            if stem == "train" and self._threshold:
                held = encoded.digests[:, 0] < np.uint64(self._threshold)
            for target, mask in (
                (stem, kept & ~held),
                (f"validation-{self.asked.name}", kept & held),
            ):
                if mask.any():
                    chosen = encoded.tokens if mask.all() else encoded.tokens[mask.repeat(lengths)]
                    self.streams[target].write(chosen, lengths[mask], text_bytes[mask])
        self.cursor = [stage, block.file, block.position, block.first - 1 + block.records]
        bar.moved(stage, block)
        self._check_malformed(final=False)

    def _new(self, digests: np.ndarray) -> np.ndarray:
        """Whether each document is met for the first time; all are where none is dropped."""
        if not self.asked.deduplicate:
            return np.ones(len(digests), dtype=bool)
        insert = self._state.execute
        keys = [row.tobytes()[:16] for row in digests]
        found = [
            insert("INSERT OR IGNORE INTO seen VALUES (?)", (key,)).rowcount == 1 for key in keys
        ]
        self.counts["duplicate_documents"] += found.count(False)
        return np.array(found, dtype=bool)

    def _check_malformed(self, *, final: bool) -> None:
        records, malformed = self.stage_records
        hopeless = records >= TELLING_RECORDS and malformed > records / 2
        if hopeless or (final and malformed > self.asked.malformed * records):
            where = "; ".join(self.malformed[-3:] if hopeless else self.malformed[:3])
            # What is refused is not gone on with: the source or the settings must change.
            self._state.close()
            shutil.rmtree(self.folder)
            raise SettingError(
                f"source: {malformed:,} of {records:,} records are malformed, more than "
                f"malformed={self.asked.malformed:g} of them ({where}); mend them, give text=NAME "
                "of the field that holds the document, or allow a larger share."
            )

    def _restore(self) -> None:
        path = self.folder / STATE
        self._state = sqlite3.connect(path, isolation_level=None)
        self._state.execute("CREATE TABLE IF NOT EXISTS state (content TEXT)")
        self._state.execute(
            "CREATE TABLE IF NOT EXISTS seen (digest BLOB PRIMARY KEY) WITHOUT ROWID"
        )
        row = self._state.execute("SELECT content FROM state").fetchone()
        if row is None:
            content: dict[str, Any] = {"streams": {}}
        else:
            content = json.loads(row[0])
            if content["settings"] != self.settings:
                changed = [k for k, v in self.settings.items() if content["settings"].get(k) != v]
                self._state.close()
                raise SettingError(
                    f"out={self.asked.out} was begun with another {' and '.join(changed)}; give "
                    f"what was given, or remove {self.folder} to begin anew."
                )
            self.cursor, self.counts = content["cursor"], content["counts"]
            self.malformed, self.stage_records = content["malformed"], content["stage_records"]
            self.say(f"going on after {self.counts['records']:,} records")
        for stem, stream in self.streams.items():
            stream.restore(content["streams"].get(stem, stream.state()))
        self._state.execute("BEGIN")

    def _commit(self) -> None:
        for stream in self.streams.values():
            stream.sync()
        content = {
            "settings": self.settings,
            "cursor": self.cursor,
            "counts": self.counts,
            "malformed": self.malformed,
            "stage_records": self.stage_records,
            "streams": {stem: stream.state() for stem, stream in self.streams.items()},
        }
        self._state.execute("DELETE FROM state")
        self._state.execute("INSERT INTO state VALUES (?)", (json.dumps(content),))
        self._state.execute("COMMIT")
        self._state.execute("BEGIN")

    def _manifest(self) -> dict[str, Any]:
        tokenizer, streams = self.asked.tokenizer, self.streams
        domains = [*self.asked.validation]
        if self.asked.validation_fraction:
            domains.append(self.asked.name)
        empty = [d for d in domains if not streams[f"validation-{d}"].shards]
        if not streams["train"].shards or empty:
            what = f"validation domain {empty[0]}" if empty else "training"
            self._state.close()
            shutil.rmtree(self.folder)
            raise SettingError(
                f"source={self.asked.source} leaves no document for {what} (of "
                f"{self.counts['records']:,} records, {self.counts['blank_documents']:,} blank, "
                f"{self.counts['duplicate_documents']:,} dropped as duplicates); give more "
                "documents, or another validation_fraction."
            )
        manifest: dict[str, Any] = {
            "format": SHARDED,
            "name": self.asked.name,
            "dtype": tokenizer.dtype_name,
            "vocab_size": tokenizer.vocab_size,
            "separator": tokenizer.separator,
            "tokenizer": tokenizer.manifest,
            "prepared": {
                "settings_sha256": _settings_sha256(self.settings),
                "text": self.asked.text,
                "validation_fraction": self.asked.validation_fraction,
                "deduplicate": self.asked.deduplicate,
                **self.counts,
                "malformed_at": self.malformed,
            },
            "train": streams["train"].entry(),
            "validation": {d: streams[f"validation-{d}"].entry() for d in domains},
        }
        if tokenizer.content is not None:
            manifest["tokenizer"]["file"] = "tokenizer.json"
            write_synced(self.folder / "tokenizer.json", [tokenizer.content])
            manifest["token_bytes"] = write_token_bytes(self.folder, tokenizer)
        return manifest


def write_token_bytes(folder: Path, tokenizer: TokenizerFile) -> dict[str, Any]:
    """The file of a tokenizer's bytes a token; returns the manifest's entry."""
    content = tokenizer.token_bytes.astype("<u2").tobytes()
    write_synced(folder / "token_bytes.bin", [content])
    return {"file": "token_bytes.bin", "sha256": hashlib.sha256(content).hexdigest()}


def _result(pending: tuple[Block, Future[Encoded]]) -> tuple[Block, Encoded]:
    block, future = pending
    try:
        return block, future.result()
    except BrokenProcessPool:
        raise SettingError(
            "processes: one of them was killed, likely for want of memory; run the same command "
            "again with fewer processes, and it goes on where it was."
        ) from None


_mine: tuple[Encoder, TokenizerFile] | None = None


def _start(tokenizer: TokenizerFile) -> None:
    global _mine
    # One thread a process: the processes are the parallelism.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _mine = build_encoder(tokenizer), tokenizer


def _encode(block: Block, text: str) -> Encoded:
    assert _mine is not None
    encoder, tokenizer = _mine
    return encode_block(block, encoder, text, tokenizer)


@contextlib.contextmanager
def _pool(asked: Preparation) -> Iterator[Callable[[Block], Future[Encoded]]]:
    """Where blocks are encoded: in `processes` others, or here where that is 1."""
    tokenizer = asked.tokenizer
    if asked.processes == 1:
        encoder = build_encoder(tokenizer)

        def here(block: Block) -> Future[Encoded]:
            future: Future[Encoded] = Future()
            future.set_result(encode_block(block, encoder, asked.text, tokenizer))
            return future

        yield here
        return
    # Forked processes would share this one's threads and locks.
    executor = ProcessPoolExecutor(
        asked.processes,
        get_context("spawn"),
        initializer=_start,
        initargs=(tokenizer,),
    )
    try:
        yield lambda block: executor.submit(_encode, block, asked.text)
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


class _Bar:
    """Progress on stderr: share of the source read, tokens a second, time left."""

    def __init__(self, work: _Work, shown: bool) -> None:
        self._work, self._shown = work, shown
        self._before: dict[tuple[int, int], int] = {}
        total = 0
        for s, stage in enumerate(work.stages):
            for f, path in enumerate(stage.files):
                self._before[s, f] = total
                total += path.stat().st_size
        self._total = total
        self._begun, self._tokens = time.monotonic(), self._count()

    def _count(self) -> int:
        streams = self._work.streams.values()
        return sum(s.open["tokens"] + sum(x["tokens"] for x in s.shards) for s in streams)

    def __enter__(self) -> _Bar:
        if self._shown:
            from rich.console import Console
            from rich.progress import (
                BarColumn,
                DownloadColumn,
                Progress,
                TextColumn,
                TimeRemainingColumn,
            )

            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                DownloadColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeRemainingColumn(),
                console=Console(stderr=True),
            )
            self._progress.start()
            self._task = self._progress.add_task("preparing", total=self._total, rate="")
        return self

    def __exit__(self, *_: object) -> None:
        if self._shown:
            self._progress.stop()

    def moved(self, stage: int, block: Block) -> None:
        if not self._shown:
            return
        seconds = time.monotonic() - self._begun
        rate = (self._count() - self._tokens) / max(seconds, 1e-9)
        self._progress.update(
            self._task,
            completed=self._before[stage, block.file] + block.consumed,
            rate=f"{rate / 1e6:.2f} M tokens/s",
        )


def describe(corpus: Corpus, folder: Path) -> list[str]:
    """What was prepared, a line a stream."""
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    named = {"train": manifest["train"]}
    named |= {f"validation {name}": part for name, part in manifest["validation"].items()}
    lines = [
        f"{name}: {part['tokens']:,} tokens, {part['documents']:,} documents, "
        f"{part['bytes']:,} bytes, {len(part['shards'])} shards"
        for name, part in named.items()
        if "shards" in part
    ]
    counts = manifest.get("prepared", {})
    for key, words in (
        ("malformed", "malformed records left out"),
        ("duplicate_documents", "duplicates dropped"),
        ("blank_documents", "blank documents left out"),
        ("nul_bytes", "NUL bytes taken out"),
        ("inexact_documents", "documents whose tokens do not add up to their bytes"),
    ):
        if counts.get(key):
            lines.append(f"{counts[key]:,} {words}")
    lines += [f"  {where}" for where in counts.get("malformed_at", [])]
    return [*lines, f"fingerprint {corpus.fingerprint[:16]}"]
