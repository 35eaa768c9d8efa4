"""Datasets of the Hugging Face hub by name, streamed through the library `datasets`.

A name is hf:OWNER/NAME[@REVISION][:CONFIG[:SPLIT]], or hf:FOLDER[...] for a dataset repository on
disk. The commit that a name stands for is looked up once and recorded, so that a preparation that
was interrupted goes on with the same rows, or says that they have changed.
"""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ablations.data.blocks import BLOCK_ROWS, Block, texts_of
from models.errors import SettingError

PREFIX = "hf:"
FORM = "hf:OWNER/NAME[@REVISION][:CONFIG[:SPLIT]]"


@dataclass(frozen=True)
class HubSplit:
    """One split of a dataset, opened; reading begins with `blocks`."""

    name: str
    """The dataset, its commit, its configuration and its split, as `source` names them."""
    bytes: int
    """What its card says of its size, 0 for nothing: for progress."""
    rows: int
    version: str
    """Commit on the hub, or a hash over the files of a folder, their sizes and times."""
    dataset: Any = field(repr=False, compare=False)
    """A `datasets.IterableDataset`."""

    def __str__(self) -> str:
        return self.name

    def blocks(self, file: int, position: Any, record: int, text: str) -> Iterator[Block]:
        """Blocks of the column `text` from the position of one on, 0 at the start."""
        names = self.dataset.column_names or list(self._next(iter(self.dataset)) or {})
        if names and text not in names:
            raise SettingError(
                f"source: {self} has no column {text}; valid: text=NAME with one of "
                f"{', '.join(names)}."
            )
        dataset = self.dataset.select_columns([text]).with_format("arrow")
        # The stream's own state before a table, and how many of the table's rows are done.
        state, done = position or (None, 0)
        if state:
            dataset.load_state_dict(state)
        tables = dataset.iter(batch_size=BLOCK_ROWS)
        while (table := self._next(tables)) is not None:
            for payload in texts_of(table.column(text).combine_chunks()[done:]):
                done += len(payload)
                after = record + len(payload)
                consumed = self.bytes * after // self.rows if self.rows else 0
                yield Block(file, record + 1, [state, done], len(payload), consumed, payload)
                record = after
            state, done = dataset.state_dict(), 0

    def _next(self, tables: Iterator[Any]) -> Any:
        try:
            return next(tables, None)
        except Exception as error:  # the network's, the files' and the library's own
            raise SettingError(
                f"source: {self} cannot be read on ({_first_line(error)}); the same command goes "
                "on where it was."
            ) from None


def open_hub(setting: str, source: str) -> HubSplit:
    """The split that a name stands for. Raises SettingError where there is none."""
    # Its own bars say nothing of what is prepared, and a worker's would follow each other.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        import datasets  # type: ignore[import-untyped,unused-ignore]
    except ImportError:
        raise SettingError(
            f"{setting}={source} needs the package datasets, which is not installed; pip install "
            "datasets, or give files."
        ) from None
    place, *choices = source.removeprefix(PREFIX).split(":")
    if not place or len(choices) > 2:
        raise SettingError(f"{setting}={source} is no dataset; valid: {FORM}, or {PREFIX}FOLDER.")
    config, split = (*choices, "", "")[:2]
    split = split or "train"
    local = place.startswith((".", "/", "~"))
    try:
        if local:
            place, version = _folder(setting, source, place)
            revision = None
        else:
            place, _, wanted = place.partition("@")
            version = revision = _commit(place, wanted or None)
        dataset = datasets.load_dataset(
            place, config or None, split=split, streaming=True, revision=revision
        )
    except SettingError:
        raise
    except Exception as error:  # the hub's client and the library raise a dozen kinds
        raise SettingError(
            f"{setting}={source} cannot be opened ({_first_line(error)}); valid: {FORM}, SPLIT "
            "being train where none is given."
        ) from None
    if isinstance(dataset, dict):
        raise SettingError(f"{setting}={source} names no one split; valid: {FORM}.")
    known = (dataset.info.splits or {}).get(split)
    name = f"{PREFIX}{place}" + ("" if local else f"@{version}") + f":{config}:{split}"
    rows, size = (known.num_examples, known.num_bytes) if known else (0, 0)
    return HubSplit(name, size or 0, rows or 0, version, dataset)


def _commit(name: str, revision: str | None) -> str:
    from huggingface_hub import HfApi

    return str(HfApi().dataset_info(name, revision=revision).sha)


def _folder(setting: str, source: str, place: str) -> tuple[str, str]:
    folder = Path(place).expanduser()
    if not folder.is_dir():
        raise SettingError(f"{setting}={source} is not a folder; valid: {FORM}, or {PREFIX}FOLDER.")
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        stat = path.stat()
        name = path.relative_to(folder).as_posix()
        digest.update(f"{name} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    return str(folder.resolve()), digest.hexdigest()


def _first_line(error: Exception) -> str:
    words = str(error).strip().partition("\n")[0].rstrip(".")
    return f"{type(error).__name__}: {words}" if words else type(error).__name__
