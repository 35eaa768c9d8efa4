"""Whether the files that a run reads are as they were prepared: each verified once a machine.

A thread hashes them while training begins; nothing is kept of the run before it is through. A file
that was found whole is remembered in the user's cache folder by its place, size, time of change and
inode, so that other runs, and other nodes where that folder is shared, need not read it again.
"""

import contextlib
import fcntl
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from ablations.data.manifest import DTYPES, files, fingerprint, read_manifest
from ablations.data.prepared import changed, checksum
from models.cache_files import cache_folder, read_cache, write_cache
from models.errors import SettingError

PATIENCE_SECONDS = 60.0
"""How long a process waits for another that reads a file; it then reads the file itself."""


@dataclass(frozen=True)
class Part:
    """A stretch of a file and the checksum that a manifest says it has."""

    corpus: str
    """Fingerprint of the corpus that it is of."""
    path: Path
    offset: int
    size: int
    """Bytes of the stretch."""
    checksum: str
    """`full` or `sample`."""
    sha256: str
    damaged: Callable[[str], SettingError]
    """The error of a file with another sha256, which it is given."""


def folder_parts(folder: Path, setting: str, train: set[int]) -> list[Part]:
    """What is read of a prepared folder: the validation domains, and of the training files those
    numbered in `train`."""
    manifest = read_manifest(folder, setting)
    name = fingerprint(manifest)

    def part(entry: Mapping[str, Any], size: int, of: Mapping[str, Any]) -> Part:
        return Part(
            name, (folder / entry["file"]).absolute(), entry.get("offset", 0), size,
            entry.get("checksum", "full"), entry["sha256"],
            lambda found: changed(folder, of, entry, found, setting),
        )  # fmt: skip

    shards = [shard for i, shard in enumerate(files(manifest["train"])) if i in train]
    held_out = [shard for entry in manifest["validation"].values() for shard in files(entry)]
    parts = []
    for shard in (*shards, *held_out):
        item = np.dtype(DTYPES[shard.get("dtype", manifest["dtype"])]).itemsize
        parts.append(part(shard, shard["tokens"] * item, shard))
    # Their document indices say bytes of text.
    for shard in held_out:
        if "index" in shard:
            parts.append(part(shard["index"], 16 * shard["documents"], shard))
    if entry := manifest.get("token_bytes"):
        parts.append(part(entry, 2 * manifest["vocab_size"], entry))
    return parts


def verify(parts: Sequence[Part]) -> None:
    """Read what is not remembered as whole on this machine.

    Processes that do so at once take turns, and none reads what another has read, but where a
    turn does not come within PATIENCE_SECONDS. Raises the SettingError of the first part that is
    damaged.
    """
    remembered: dict[Path, dict[str, Any]] = {}
    for part in parts:
        known = cache_folder() / "verified" / f"{part.corpus[:16]}.json"
        key = f"{part.path.resolve()} {part.offset} {part.checksum} {part.sha256}"
        if known not in remembered:
            remembered[known] = read_cache(known)
        if remembered[known].get(key) == _state(part.path):
            continue
        with _turn(known.with_suffix(".lock")):
            before = _state(part.path)
            remembered[known] = read_cache(known)
            if remembered[known].get(key) == before:
                continue
            raw = np.memmap(part.path, np.uint8, "r", part.offset, (part.size,))
            found = checksum(raw, part.checksum)
            if found != part.sha256:
                raise part.damaged(found)
            if _state(part.path) == before:
                remembered[known][key] = before
                write_cache(known, remembered[known])


class Verification:
    """`verify` in a thread, so that training need not wait for it."""

    def __init__(self, parts: Callable[[], Sequence[Part]]) -> None:
        """parts: called in the thread."""
        self.error: str | None = None
        """What is damaged, once it is found."""
        self._thread = threading.Thread(target=self._run, args=(parts,), daemon=True)
        self._thread.start()

    def wait(self, seconds: float) -> bool:
        """Whether all was read, after at most so long."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _run(self, parts: Callable[[], Sequence[Part]]) -> None:
        try:
            verify(parts())
        except SettingError as error:
            self.error = error.args[0]
        except OSError as error:
            self.error = f"data.path: {error.filename} cannot be read ({error.strerror})."
        except Exception as error:
            # A thread's exceptions reach nobody: unread data must not pass as whole.
            self.error = f"data.path cannot be verified ({type(error).__name__}: {error})."


def _state(path: Path) -> list[int]:
    found = path.stat()
    return [found.st_size, found.st_mtime_ns, found.st_ino]


@contextlib.contextmanager
def _turn(path: Path) -> Iterator[None]:
    """Held by one process of those that share the cache folder; by all where it has no locks, and
    by one that has waited long: a stopped process, or a dead node's, may never let go."""
    until = time.monotonic() + PATIENCE_SECONDS
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(path.open("w"))
            while not _locked(file) and time.monotonic() < until:
                time.sleep(0.05)
        yield


def _locked(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
