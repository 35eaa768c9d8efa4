"""Prepare a corpus: documents as they are into shards of token ids, in many processes.

This process reads blocks and writes; the others parse, tokenize and hash. What is written depends
on the documents and their order alone, not on blocks, processes or interruptions: after each batch
of blocks the files are synced and one transaction records how long each is, where reading goes on
and which documents have been met, so that a preparation killed anywhere goes on from there to the
same bytes.
"""

import contextlib
import fcntl
import hashlib
import json
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ablations.data.blocks import Block
from ablations.data.documents import list_files, read_blocks, stamp
from ablations.data.encode import Encoded, pool
from ablations.data.hub import HubSplit
from ablations.data.manifest import MANIFEST, SHARDED, read_manifest, write_manifest
from ablations.data.overlap import file_key, leave_out, near_duplicates
from ablations.data.prepared import Corpus, open_prepared
from ablations.data.progress import Bar
from ablations.data.shards import ShardWriter, sync_folder
from ablations.data.state import State
from ablations.data.tokenizer import TokenizerFile, record_tokenizer
from models.errors import SettingError

COMMIT_SECONDS = 5.0
MALFORMED_SHOWN = 20
TELLING_RECORDS = 100  # with more than half of so many malformed, the settings are wrong


@dataclass(frozen=True)
class Preparation:
    """What is asked for; all of it but `processes` decides the bytes."""

    source: str
    """File, folder or pattern of the documents to train on, or a dataset of the hub."""
    tokenizer: TokenizerFile
    out: Path
    name: str
    """Of the corpus, and of the validation domain that is split off."""
    validation: dict[str, str] = field(default_factory=dict)
    """More domains: {name: as `source`}, held out whole."""
    text: str = "text"
    """Field of a JSON line, or column, that holds the document."""
    validation_fraction: float = 0.005
    """Share of the documents of `source` that is held out, by their hash."""
    deduplicate: bool = False
    malformed: float = 0.001
    """Share of records that may be malformed."""
    shard_tokens: int = 1 << 28
    processes: int = 1


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
    if not 0 <= asked.malformed <= 1:
        raise SettingError(
            f"malformed={asked.malformed:g} must be a share of the records, from 0 to 1."
        )
    for domain in (asked.name, *asked.validation):
        if not domain.replace("_", "").replace("-", "").replace(".", "").isalnum():
            raise SettingError(
                f"name={domain} must be letters, digits, dots, dashes and underscores, as files "
                "are named by it."
            )
    if asked.validation_fraction and asked.name in asked.validation:
        raise SettingError(
            f"name={asked.name} is the domain split off and validation.{asked.name} another; give "
            "one of them another name, or validation_fraction=0."
        )
    for path in (asked.source, *asked.validation.values()):
        folder = Path(path).expanduser()
        if folder.is_dir() and asked.out.resolve().is_relative_to(folder.resolve()):
            raise SettingError(
                f"out={asked.out} lies in {path}, whose files are read; name a folder outside."
            )
    stages = [
        _Stage(name, list_files(f"validation.{name}", path), f"validation-{name}")
        for name, path in asked.validation.items()
    ]
    held_out = {_key(file): f"validation.{stage.name}" for stage in stages for file in stage.files}
    training = list_files("source", asked.source)
    keys = [_key(file) for file in training]
    training, left_out = leave_out("source", asked.source, training, held_out, keys)
    for file in left_out:
        say(f"source: {file} is held out as {held_out[_key(file)]}, and is left out of training")
    stages.append(_Stage("train", training, "train"))
    settings = _settings(asked, stages)
    if asked.out.exists() and not (asked.out.is_dir() and not any(asked.out.iterdir())):
        return _standing(asked, settings)
    if asked.tokenizer.content is not None and asked.tokenizer.family is None:
        say(
            f"tokenizer={asked.tokenizer.name} is of no family that is cut to pieces; its own, "
            "slower way is taken"
        )
    folder = asked.out.with_name(f".{asked.out.name}.partial")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingError(
            f"out={asked.out} cannot be made ({error.strerror}); name a folder where files may be "
            "written."
        ) from None
    with _locked(folder):
        work = _Work(asked, stages, folder, settings, say)
        try:
            manifest = work.run(progress)
        except SettingError:
            # What is refused from the start must not stand in the way of other settings.
            if not work.committed:
                work.let_go()
                shutil.rmtree(folder)
            raise
        finally:
            work.let_go()
        if left_out:
            manifest["left_out_of_training"] = [str(file) for file in left_out]
        write_manifest(folder, manifest)
        manifest["overlap"] = near_duplicates(open_prepared(folder, setting="out"))
        write_manifest(folder, manifest)
        work.state.remove()
        (folder / "lock").unlink()
        folder.rename(asked.out)
        sync_folder(asked.out.parent)
    return open_prepared(asked.out)


@dataclass(frozen=True)
class _Stage:
    """One stream of documents: a validation domain held out whole, or the training source."""

    name: str
    files: list[Path | HubSplit]
    stem: str


def _key(file: Path | HubSplit) -> Any:
    """The same for one file or split under any name."""
    return file.name if isinstance(file, HubSplit) else file_key(file)


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
        "files": {stage.name: [stamp(file) for file in stage.files] for stage in stages},
    }


def _standing(asked: Preparation, settings: dict[str, Any]) -> Corpus:
    """The corpus that is there already, where it is the one asked for."""
    if not (asked.out / MANIFEST).is_file():
        raise SettingError(
            f"out={asked.out} exists and is no prepared corpus; name a folder that does not exist "
            "yet."
        )
    corpus = open_prepared(asked.out, setting="out")
    manifest = read_manifest(asked.out, "out")
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
            stems.append(f"validation-{asked.name}")
        dtype = asked.tokenizer.dtype
        self.streams = {s: ShardWriter(folder, s, dtype, asked.shard_tokens) for s in stems}
        # The next block: stage, file, position in it, records before it.
        self.cursor = [0, 0, 0, 0]
        self.counts = dict.fromkeys(
            ("records", "malformed", "blank_documents", "nul_bytes", "duplicate_documents",
             "inexact_documents", "held_out_documents"), 0
        )  # fmt: skip
        self.malformed: list[str] = []
        self.stage_records = [0, 0]
        """Records, and malformed ones, of this stage."""
        self.committed = False
        """Whether there is work that another start would go on with."""
        self._threshold = min(int(asked.validation_fraction * 2**64), 2**64 - 1)
        self.state = State(folder)
        self._restore()

    def run(self, progress: bool) -> dict[str, Any]:
        """Every stage to its end; returns the manifest."""
        asked, streams = self.asked, self.streams.values()
        sizes = [[stamp(file)[1] for file in stage.files] for stage in self.stages]
        with (
            pool(asked.tokenizer, asked.text, asked.processes) as submit,
            Bar(sizes, streams, progress) as bar,
        ):
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
        self.state.close()
        for stream in self.streams.values():
            stream.close()

    def _blocks(self, stage: int) -> Iterator[Block]:
        _, first, position, record = self.cursor
        for file in range(first, len(self.stages[stage].files)):
            here = (position, record) if file == first else (0, 0)
            yield from read_blocks(self.stages[stage].files[file], file, *here, self.asked.text)

    def _take(self, stage: int, block: Block, encoded: Encoded, bar: Bar) -> None:
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
            stem = self.stages[stage].stem
            kept = self._kept(stem, encoded.digests)
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

    def _kept(self, stem: str, digests: np.ndarray) -> np.ndarray:
        """Which documents of a stream are kept, bool [n]: none to train on that is held out whole,
        and with `deduplicate` none that was met before."""
        if self.asked.deduplicate:
            new = self.state.new(digests)
            self.counts["duplicate_documents"] += int((~new).sum())
            return new
        if stem == "train" and self.asked.validation:
            held = self.state.met(digests)
            self.counts["held_out_documents"] += int(held.sum())
            return ~held
        if stem != "train":
            self.state.new(digests)
        return np.ones(len(digests), dtype=bool)

    def _check_malformed(self, *, final: bool) -> None:
        records, malformed = self.stage_records
        most = max(0.5, self.asked.malformed)
        hopeless = records >= TELLING_RECORDS and malformed > most * records
        if hopeless or (final and malformed > self.asked.malformed * records):
            where = "; ".join(self.malformed[-3:] if hopeless else self.malformed[:3])
            # What is refused is not gone on with: the source or the settings must change.
            self.committed = False
            raise SettingError(
                f"source: {malformed:,} of {records:,} records are malformed, more than "
                f"malformed={self.asked.malformed:g} of them ({where}); mend them, give text=NAME "
                "of the field that holds the document, or allow a larger share."
            )

    def _restore(self) -> None:
        content = self.state.last()
        if content is None:
            content = {"streams": {}}
        else:
            if content["settings"] != self.settings:
                changed = [k for k, v in self.settings.items() if content["settings"].get(k) != v]
                self.state.close()
                raise SettingError(
                    f"out={self.asked.out} was begun with another {' and '.join(changed)}; give "
                    f"what was given, or remove {self.folder} to begin anew."
                )
            self.committed = True
            self.cursor, self.counts = content["cursor"], {**self.counts, **content["counts"]}
            self.malformed, self.stage_records = content["malformed"], content["stage_records"]
            self.say(f"going on after {self.counts['records']:,} records")
        for stem, stream in self.streams.items():
            stream.restore(content["streams"].get(stem, stream.state()))

    def _commit(self) -> None:
        for stream in self.streams.values():
            stream.sync()
        self.state.record(
            {
                "settings": self.settings,
                "cursor": self.cursor,
                "counts": self.counts,
                "malformed": self.malformed,
                "stage_records": self.stage_records,
                "streams": {stem: stream.state() for stem, stream in self.streams.items()},
            }
        )
        self.committed = True

    def _manifest(self) -> dict[str, Any]:
        tokenizer, streams = self.asked.tokenizer, self.streams
        domains = [*self.asked.validation]
        if self.asked.validation_fraction:
            domains.append(self.asked.name)
        empty = [d for d in domains if not streams[f"validation-{d}"].shards]
        if not streams["train"].shards or empty:
            what = f"validation domain {empty[0]}" if empty else "training"
            self.committed = False
            raise SettingError(
                f"source={self.asked.source} leaves no document for {what} (of "
                f"{self.counts['records']:,} records, {self.counts['blank_documents']:,} blank, "
                f"{self.counts['duplicate_documents']:,} dropped as duplicates); give more "
                "documents, or another validation_fraction."
            )
        return {
            "format": SHARDED,
            "name": self.asked.name,
            "dtype": tokenizer.dtype_name,
            "vocab_size": tokenizer.vocab_size,
            "separator": tokenizer.separator,
            **record_tokenizer(self.folder, tokenizer),
            "prepared": {
                "settings_sha256": _settings_sha256(self.settings),
                **({"hub": names} if (names := self._hub_names()) else {}),
                "text": self.asked.text,
                "validation_fraction": self.asked.validation_fraction,
                "deduplicate": self.asked.deduplicate,
                **self.counts,
                "malformed_at": self.malformed,
            },
            "train": streams["train"].entry(),
            "validation": {d: streams[f"validation-{d}"].entry() for d in domains},
        }

    def _hub_names(self) -> list[str]:
        """The datasets that were read by name, with their commits."""
        files = [file for stage in self.stages for file in stage.files]
        return [file.name for file in files if isinstance(file, HubSplit)]


def _result(pending: tuple[Block, Future[Encoded]]) -> tuple[Block, Encoded]:
    block, future = pending
    try:
        return block, future.result()
    except BrokenProcessPool:
        raise SettingError(
            "processes: one of them was killed, likely for want of memory; run the same command "
            "again with fewer processes, and it goes on where it was."
        ) from None
