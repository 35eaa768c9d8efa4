"""Checkpoints: whole or not there, sharded over processes, written while training goes on.

A checkpoint (models/checkpoint_files.py says what lies in one) is written as
`step-00000012.tmp`, synced, and renamed by rank 0 when every rank is done: a kill at any moment
leaves the checkpoints before it whole. Batches are a function of the step, so there is no data
state. torch.distributed.checkpoint plans who writes which piece, and who reads it on another
number of processes; ablations/shards.py is the storage it calls.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import shutil
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.tensor import DTensor

from ablations.records import move_aside
from ablations.resources import KEEP_LATEST
from ablations.shards import Reader, Writer, sync_folder
from models.checkpoint_files import damage, read_index, step_folder, steps

TENSOR = "__tensor__"  # marks in index.json where a value of the state is a tensor

# A run of one process is meant, not a forgotten process group.
warnings.filterwarnings("ignore", message="torch.distributed is disabled", module="torch")

T = TypeVar("T")


class Checkpoints:
    """The checkpoints of one run. With a process group of several, every rank makes the same calls.

    keep_steps: these are kept, and the `keep_latest` newest; the others are removed once a newer
    one is whole. Making this removes what a killed process left half written.
    """

    def __init__(
        self, folder: Path, *, keep_steps: set[int], keep_latest: int = KEEP_LATEST
    ) -> None:
        self.folder, self.keep_steps, self.keep_latest = folder, keep_steps, keep_latest
        several = dist.is_initialized() and dist.get_world_size() > 1
        # A group of its own: the background thread's messages must not mix with training's.
        self._group = dist.new_group(backend="gloo") if several else None
        self._rank = dist.get_rank() if several else 0
        self._size = dist.get_world_size() if several else 1
        self._torn: set[int] = set()
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._pending: Future[None] | None = None
        if self._rank == 0:
            if folder.is_file():  # in the folder's place: kept beside
                move_aside(folder)
            for left in folder.glob("step-*.tmp"):
                _delete(left)
        self._gather(None)  # no rank looks into the folder before it is clean

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Copy `state` and return; it is written in the background.

        state: nested dicts (and lists) of tensors, DTensors and JSON's values; plain tensors are
        taken to be the same on every rank. Raises the error of the write before, if it failed.
        """
        self.wait()
        tensors, values = _split(state)
        # Values may change as soon as this returns, so they become text here.
        text = json.dumps(values)
        copies = {
            name: tensor.detach().to("cpu", copy=True) for name, tensor in self._mine(tensors)
        }
        self._pending = self._thread.submit(self._write, step, copies, text)

    def wait(self) -> None:
        """Return when the last save is whole on disk.

        Raises what went wrong, such as OSError for a full disk; its half is then removed, and
        the checkpoints before are as they were.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def load(self, state: dict[str, Any]) -> tuple[int | None, list[str]]:
        """The newest whole checkpoint into `state`: tensors in place, other values replaced.

        Returns its step, None without one, and a warning for each torn or changed one passed
        over. Verifying reads every file once, shared out over the ranks. Raises OSError where a
        file is there and cannot be read (passing it over would throw its steps away), ValueError
        where the checkpoint is of another model or optimizer.
        """
        self.wait()
        passed_over: list[str] = []
        for step in self.from_first(steps(self.folder))[::-1]:
            reason = self.load_step(step, state)
            if reason is None:
                return step, passed_over
            passed_over.append(
                f"checkpoint {step_folder(self.folder, step).name} cannot be read ({reason})"
            )
        return None, passed_over

    def load_step(self, step: int, state: dict[str, Any]) -> str | None:
        """The checkpoint of a step into `state`, as `load` does; or why it cannot be."""
        path = step_folder(self.folder, step)
        reason = self._damage(path)
        if reason is None:
            self._read(path, state)
        else:
            self._torn.add(step)
        return reason

    def from_first(self, value: T) -> T:
        """What the first rank gave, on every rank."""
        return self._gather(value)[0]

    def _mine(self, tensors: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """What this rank writes: its shards, and its share by bytes of what is on every rank."""
        bytes_of = [0] * self._size
        for name, tensor in tensors.items():
            if isinstance(tensor, DTensor):
                yield name, tensor
                continue
            writer = bytes_of.index(min(bytes_of))
            bytes_of[writer] += tensor.nbytes
            if writer == self._rank:
                yield name, tensor

    def _write(self, step: int, tensors: dict[str, Tensor], values: str) -> None:
        beside = step_folder(self.folder, step, ".tmp")
        try:
            with _plain_errors():
                dcp.save(
                    _grouped(tensors),
                    storage_writer=Writer(beside, values),
                    process_group=self._group,
                    no_dist=self._group is None,
                )
            self._agree(lambda: self._commit(step, beside))
        except BaseException:
            if self._rank == 0:
                shutil.rmtree(beside, ignore_errors=True)
            raise

    def _commit(self, step: int, beside: Path) -> None:
        if self._rank != 0:
            return
        path = step_folder(self.folder, step)
        if path.exists():  # torn, or load would have begun behind it
            _remove(path)
        beside.rename(path)
        sync_folder(self.folder)
        self._torn.discard(step)
        there = steps(self.folder)
        whole = [s for s in there if s not in self._torn]
        keep = {step, *whole[-self.keep_latest :], *self.keep_steps} - self._torn
        for old in set(there) - keep:
            _remove(step_folder(self.folder, old))

    def _read(self, path: Path, state: dict[str, Any]) -> None:
        index = read_index(path)
        tensors, _ = _split(state)
        if other := sorted(tensors.keys() ^ index["tensors"].keys()):
            raise ValueError(
                f"{path} is of another model or optimizer: {', '.join(other[:3])}"
                f"{', …' if len(other) > 3 else ''} stands in only one of the two"
            )
        with _plain_errors():
            dcp.load(
                _grouped(tensors),
                storage_reader=Reader(path, index["tensors"]),
                process_group=self._group,
                no_dist=self._group is None,
            )
        for key, value in index["values"].items():
            state[key] = _joined(value, tensors, state.get(key))

    def _damage(self, path: Path) -> str | None:
        found = self._agree(lambda: damage(path, self._rank, self._size))
        return next((reason for reason in found if reason), None)

    def _agree(self, do: Callable[[], Any]) -> list[Any]:
        """What `do()` returned on every rank; the error of any rank is raised on all."""
        answer: Any
        try:
            answer = do()
        except Exception as error:
            answer = error
        answers = self._gather(answer)
        for answer in answers:
            if isinstance(answer, Exception):
                raise answer
        return answers

    def _gather(self, value: T) -> list[T]:
        if self._group is None:
            return [value]
        values: list[Any] = [None] * self._size
        dist.all_gather_object(values, value, group=self._group)
        return values


def _split(state: dict[str, Any]) -> tuple[dict[str, Tensor], Any]:
    """The tensors of a nested state by dotted name, and the state with their names in place."""
    tensors: dict[str, Tensor] = {}

    def walk(value: Any, name: str) -> Any:
        if isinstance(value, Tensor):
            assert name not in tensors, name
            tensors[name] = value
            return {TENSOR: name}
        if isinstance(value, dict):
            assert all(isinstance(key, str) for key in value), f"{name} has keys that are no text"
            return {key: walk(part, f"{name}.{key}") for key, part in value.items()}
        if isinstance(value, list | tuple):
            return [walk(part, f"{name}.{i}") for i, part in enumerate(value)]
        return value

    return tensors, {key: walk(value, key) for key, value in state.items()}


def _joined(value: Any, tensors: dict[str, Tensor], before: Any) -> Any:
    """Undo _split. A dict of `before` is filled anew; JSON's list becomes the tuple it was."""
    if isinstance(value, dict):
        if value.keys() == {TENSOR}:
            return tensors[value[TENSOR]]
        into = before if isinstance(before, dict) else {}
        parts = {key: _joined(part, tensors, into.get(key)) for key, part in value.items()}
        into.clear()
        into.update(parts)
        return into
    if isinstance(value, list):
        like = before if isinstance(before, list | tuple) else ()
        pairs = itertools.zip_longest(value, like[: len(value)])
        items = [_joined(part, tensors, was) for part, was in pairs]
        return tuple(items) if isinstance(before, tuple) else items
    return value


def _grouped(tensors: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """By the first part of the name, which DCP joins again: it spends 0.1 ms on each outer key."""
    groups: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        first, dot, rest = name.partition(".")
        assert dot, f"{name}: a tensor stands inside a dict of the state"
        groups.setdefault(first, {})[rest] = tensor
    return groups


@contextlib.contextmanager
def _plain_errors() -> Iterator[None]:
    """DCP wraps what went wrong on any rank in an exception that `except Exception` misses."""
    try:
        yield
    except CheckpointException as wrapped:
        errors = [error for error, _ in wrapped.failures.values()]
        # A full disk on one rank can be a broken pipe on another.
        raise next((e for e in errors if isinstance(e, OSError)), errors[0]) from None


def _remove(path: Path) -> None:
    """Renamed first, so that a kill in between leaves no half of a checkpoint under its name."""
    gone = path.with_name(f"{path.name}.old.tmp")
    path.rename(gone)
    _delete(gone)


def _delete(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
