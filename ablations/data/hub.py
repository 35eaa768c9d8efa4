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
MOST_SAID = 400  # characters of another program's error
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
    split: str
    builder: Any = field(repr=False, compare=False)
    """A `datasets.DatasetBuilder`."""

    def __str__(self) -> str:
        return self.name

    def blocks(self, file: int, position: Any, record: int, text: str) -> Iterator[Block]:
        """Blocks of the column `text` from the position of one on, 0 at the start."""
        opened = self.builder.as_streaming_dataset(split=self.split)
        names = opened.column_names or list(self._next(iter(opened)) or {})
        if names and text not in names:
            raise SettingError(
                f"source: {self} has no column {text}; valid: text=NAME with one of "
                f"{', '.join(names)}."
            )
        config = self.builder.config
        if hasattr(config, "columns") and hasattr(config, "batch_size"):
            # Of Parquet: else whole row groups, of all columns, would be in memory.
            config.columns, config.batch_size = [text], BLOCK_ROWS
            opened = self.builder.as_streaming_dataset(split=self.split)
        dataset = opened.select_columns([text]).with_format("arrow")
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
            why = _known(error) or (
                f"cannot be read on ({_said(error)}); the same command goes on where it was."
            )
            raise SettingError(f"source: {self} {why}") from None


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
    place, _, wanted = place.partition("@")
    revision = None
    try:
        if local := place.startswith((".", "/", "~")):
            place += f"@{wanted}" if wanted else ""
            folder, version = _folder(setting, source, place)
            place = folder
        else:
            folder, version = _on_hub(place, wanted or None)
            revision = None if folder != place else version
        builder = datasets.load_dataset_builder(folder, config or None, revision=revision)
        dataset = builder.as_streaming_dataset(split=split)
    except SettingError:
        raise
    except Exception as error:  # the hub's client and the library raise a dozen kinds
        why = _known(error) or (
            f"cannot be opened ({_said(error)}); valid: {FORM}, SPLIT being train where none is "
            "given."
        )
        raise SettingError(f"{setting}={source} {why}") from None
    if isinstance(dataset, dict):
        raise SettingError(f"{setting}={source} names no one split; valid: {FORM}.")
    known = (builder.info.splits or {}).get(split)
    name = f"{PREFIX}{place}" + ("" if local else f"@{version}") + f":{config}:{split}"
    rows, size = (known.num_examples, known.num_bytes) if known else (0, 0)
    return HubSplit(name, size or 0, rows or 0, version, split, builder)


def _on_hub(name: str, revision: str | None) -> tuple[str, str]:
    """The name, and the commit it stands for; without the hub (HF_HUB_OFFLINE=1) the folder of
    this machine's cache in its place, where all of that commit is in it."""
    from huggingface_hub import HfApi, constants, snapshot_download

    if constants.HF_HUB_OFFLINE:
        folder = snapshot_download(
            name, repo_type="dataset", revision=revision, local_files_only=True
        )
        return folder, Path(folder).name
    return name, str(HfApi().dataset_info(name, revision=revision).sha)


def _known(error: Exception) -> str | None:
    """What would help, where that does not depend on the dataset."""
    kinds = {type(cause).__name__ for cause in _causes(error)}
    if kinds & {"LocalEntryNotFoundError", "IncompleteSnapshotError", "OfflineModeIsEnabled"}:
        return (
            "is not whole in this machine's cache, and HF_HUB_OFFLINE is set; valid: unset it, or "
            "first run `hf download OWNER/NAME --repo-type dataset` where there is a network."
        )
    if "GatedRepoError" in kinds or "is a gated dataset" in str(error):
        return (
            "is gated; valid: ask for access on its page of the hub, and log in with `hf auth "
            "login` or the environment variable HF_TOKEN."
        )
    if "RevisionNotFoundError" in kinds:
        return f"has no such revision; valid: a branch, tag or commit in {FORM}."
    if "RepositoryNotFoundError" in kinds:
        return (
            "is not on the hub, or private; valid: the name of a public dataset, or of a private "
            "one after `hf auth login` or with the environment variable HF_TOKEN."
        )
    return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__


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


def _said(error: Exception) -> str:
    """The first lines of an error, the second often being what would be valid."""
    lines = [line.strip() for line in str(error).strip().splitlines()]
    words = " ".join([line for line in lines if line][:2])[:MOST_SAID].rstrip(". ")
    return f"{type(error).__name__}: {words}" if words else type(error).__name__
