"""Checkpoints: whole or not there, sharded over processes, written while training goes on.

    checkpoints/step-00000012/
      shard-00000.safetensors   the tensors, or pieces of tensors, of rank 0; one file a rank
      index.json                dtype, shape and pieces of every tensor, and every other value
      checksums.json            SHA-256 of each file above; written last

A checkpoint is written as `step-00000012.tmp`, synced, and renamed by rank 0 when every rank is
done: a kill at any moment leaves the checkpoints before it whole. Batches are a function of the
step, so there is no data state.

torch.distributed.checkpoint plans who writes which piece, and who reads it on another number of
processes. Its own file storage takes four times as long for a small model, hides a full disk
behind another error and keeps its index as a pickle, so the storage it calls stands here:
safetensors and JSON, which run no code of whoever wrote them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import json
import math
import os
import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.storage import StorageReader, StorageWriter, WriteResult
from torch.distributed.tensor import DTensor

INDEX, CHECKSUMS = "index.json", "checksums.json"
TENSOR = "__tensor__"  # marks in index.json where a value of the state is a tensor

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}

# A run of one process is meant, not a forgotten process group.
warnings.filterwarnings("ignore", message="torch.distributed is disabled", module="torch")

T = TypeVar("T")


class Checkpoints:
    """The checkpoints of one run. With a process group of several, every rank makes the same calls.

    keep_steps: these are kept, and the `keep_latest` newest; the others are removed once a newer
    one is whole. Making this removes what a killed process left half written.
    """

    def __init__(self, folder: Path, *, keep_steps: set[int], keep_latest: int = 2) -> None:
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
            for left in folder.glob("step-*.tmp"):
                shutil.rmtree(left)
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
        for step in self._gather(steps(self.folder))[0][::-1]:
            path = step_folder(self.folder, step)
            reason = self._damage(path)
            if reason is None:
                self._read(path, state)
                return step, passed_over
            self._torn.add(step)
            passed_over.append(f"checkpoint {path.name} cannot be read ({reason})")
        return None, passed_over

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
                    storage_writer=_Writer(beside, values),
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
        _sync_folder(self.folder)
        self._torn.discard(step)
        there = steps(self.folder)
        whole = [s for s in there if s not in self._torn]
        keep = {step, *whole[-self.keep_latest :], *self.keep_steps} - self._torn
        for old in set(there) - keep:
            _remove(step_folder(self.folder, old))

    def _read(self, path: Path, state: dict[str, Any]) -> None:
        index = _read_index(path)
        tensors, _ = _split(state)
        if other := sorted(tensors.keys() ^ index["tensors"].keys()):
            raise ValueError(
                f"{path} is of another model or optimizer: {', '.join(other[:3])}"
                f"{', …' if len(other) > 3 else ''} stands in only one of the two"
            )
        with _plain_errors():
            dcp.load(
                _grouped(tensors),
                storage_reader=_Reader(path, index["tensors"]),
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


def steps(folder: Path) -> list[int]:
    """Steps of the checkpoints in `folder`, ascending; a half-written one is not among them."""
    names = (path.name.removeprefix("step-") for path in folder.glob("step-*"))
    return sorted(int(name) for name in names if name.isdecimal())


def step_folder(folder: Path, step: int, ending: str = "") -> Path:
    """Where the checkpoint of a step lies."""
    return folder / f"step-{step:08d}{ending}"


def damage(path: Path, rank: int = 0, size: int = 1) -> str | None:
    """Why the checkpoint at `path` is not, byte for byte, what was written; None where it is.

    Reads every file once; with `size` above 1 every size-th one, beginning with `rank`.
    Raises OSError where a file is there and cannot be read.
    """
    try:
        text = (path / CHECKSUMS).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return f"{CHECKSUMS} is missing"
    try:
        sums = json.loads(text)
    except ValueError:
        sums = None
    # The sums have no sum of their own; but there is one way to write them, and each must be right.
    if not isinstance(sums, dict) or INDEX not in sums or text != _canonical(sums):
        return f"{CHECKSUMS} is not what was written"
    for name in sorted(sums)[rank::size]:
        try:
            with (path / name).open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except FileNotFoundError:
            return f"{name} is missing"
        if found != sums[name]:
            return f"{name} is not what was written"
    return None


def read_model(path: Path, step: int | None = None) -> dict[str, Tensor]:
    """The model's whole state dict, on the CPU, by one process alone.

    path: a folder of checkpoints, of which the newest whole one is read or that of `step`; or
    one checkpoint. Raises FileNotFoundError where there is none, ValueError where the one that
    was asked for is damaged.
    """
    asked = path if (path / INDEX).exists() else None
    if step is not None:
        asked = step_folder(path, step)
    for candidate in [asked] if asked else [step_folder(path, s) for s in steps(path)[::-1]]:
        reason = damage(candidate)
        if reason is None:
            tensors = _read_index(candidate)["tensors"]
            return {
                name.removeprefix("model."): _whole_tensor(candidate, entry)
                for name, entry in tensors.items()
                if name.startswith("model.")
            }
        if asked:
            missing = FileNotFoundError if not candidate.exists() else ValueError
            raise missing(f"{candidate} cannot be read: {reason}")
    raise FileNotFoundError(f"{path} holds no checkpoint that can be read")


@dataclass(frozen=True)
class _Piece:
    """A box of a tensor, and the bytes of a shard that hold it."""

    file: str
    begin: int  # bytes
    offsets: list[int]
    sizes: list[int]

    def read(self, folder: Path, dtype: torch.dtype, first: int = 0, rows: int = -1) -> Tensor:
        """The box, or `rows` of it from `first` along its first dimension."""
        sizes, begin = list(self.sizes), self.begin
        if sizes and rows >= 0:
            begin += first * math.prod(sizes[1:]) * dtype.itemsize
            sizes[0] = rows
        box = torch.empty(sizes, dtype=dtype)
        with (folder / self.file).open("rb") as file:
            file.seek(begin)
            file.readinto(_bytes(box))
        return box


class _Writer(StorageWriter):
    """One safetensors file a rank; rank 0 adds index and checksums when all are written."""

    def __init__(self, folder: Path, values: str) -> None:
        self.folder, self.values = folder, values

    def reset(self, checkpoint_id: Any = None) -> None:
        pass

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        pass

    def prepare_local_plan(self, plan: dcp.SavePlan) -> dcp.SavePlan:
        return plan

    def prepare_global_plan(self, plans: list[dcp.SavePlan]) -> list[dcp.SavePlan]:
        if self.folder.exists():
            shutil.rmtree(self.folder)
        self.folder.mkdir(parents=True)
        return [
            dataclasses.replace(plan, storage_data=f"shard-{rank:05d}.safetensors")
            for rank, plan in enumerate(plans)
        ]

    def write_data(
        self, plan: dcp.SavePlan, planner: dcp.SavePlanner
    ) -> torch.futures.Future[list[WriteResult]]:
        pieces, tensors, header, begin = [], [], {}, 0
        for item in plan.items:
            data = planner.resolve_data(item)
            assert isinstance(data, Tensor)
            assert item.tensor_data is not None
            tensor, offsets = data.detach().contiguous(), list(item.tensor_data.chunk.offsets)
            whole = tensor.shape == item.tensor_data.size
            key = item.index.fqn if whole else f"{item.index.fqn}{offsets}"
            header[key] = {
                "dtype": DTYPE_NAMES[tensor.dtype],
                "shape": list(tensor.shape),
                "data_offsets": [begin, begin + tensor.nbytes],
            }
            pieces.append(_Piece(plan.storage_data, begin, offsets, list(tensor.shape)))
            tensors.append(tensor)
            begin += tensor.nbytes
        head = json.dumps(header).encode()
        head += b" " * (-len(head) % 8)
        head = len(head).to_bytes(8, "little") + head
        sha256 = ""
        if tensors:
            contents = (_bytes(tensor) for tensor in tensors)
            sha256 = _write_file(self.folder / plan.storage_data, head, contents)
        results = [
            WriteResult(
                item.index,
                tensor.nbytes,
                (dataclasses.replace(piece, begin=piece.begin + len(head)), sha256),
            )
            for item, tensor, piece in zip(plan.items, tensors, pieces, strict=True)
        ]
        future: torch.futures.Future[list[WriteResult]] = torch.futures.Future()
        future.set_result(results)
        return future

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        tensors: dict[str, Any] = {}
        for name, entry in metadata.state_dict_metadata.items():
            assert isinstance(entry, TensorStorageMetadata)
            dtype = DTYPE_NAMES[entry.properties.dtype]
            tensors[name] = {"dtype": dtype, "shape": list(entry.size), "pieces": []}
        sums = {}
        for result in (result for of_rank in results for result in of_rank):
            piece, sha256 = result.storage_data
            tensors[result.index.fqn]["pieces"].append(vars(piece))
            sums[piece.file] = sha256
        index = f'{{"values": {self.values},\n"tensors": {json.dumps(tensors)}}}\n'
        sums[INDEX] = _write_file(self.folder / INDEX, index.encode())
        _write_file(self.folder / CHECKSUMS, _canonical(sums))
        _sync_folder(self.folder)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:  # noqa: ARG003
        return True


class _Reader(StorageReader):
    """Reads of each piece the rows that are asked for."""

    def __init__(self, folder: Path, tensors: dict[str, Any]) -> None:
        self.folder = folder
        self.entries: dict[str, Any] = {}
        self.pieces: dict[MetadataIndex, tuple[_Piece, torch.dtype]] = {}
        for name, entry in tensors.items():
            dtype, pieces = DTYPES[entry["dtype"]], [_Piece(**p) for p in entry["pieces"]]
            chunks = [
                ChunkStorageMetadata(torch.Size(p.offsets), torch.Size(p.sizes)) for p in pieces
            ]
            shape = torch.Size(entry["shape"])
            self.entries[name] = TensorStorageMetadata(TensorProperties(dtype), shape, chunks)
            for piece in pieces:
                self.pieces[MetadataIndex(name, piece.offsets)] = piece, dtype

    def reset(self, checkpoint_id: Any = None) -> None:
        pass

    def read_metadata(self, *_args: Any, **_kwargs: Any) -> Metadata:
        return Metadata(self.entries)

    def set_up_storage_reader(
        self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any
    ) -> None:
        pass

    def prepare_local_plan(self, plan: dcp.LoadPlan) -> dcp.LoadPlan:
        return plan

    def prepare_global_plan(self, plans: list[dcp.LoadPlan]) -> list[dcp.LoadPlan]:
        return plans

    def read_data(self, plan: dcp.LoadPlan, planner: dcp.LoadPlanner) -> torch.futures.Future[None]:
        for item in plan.items:
            piece, dtype = self.pieces[item.storage_index]
            offsets, lengths = list(item.storage_offsets), list(item.lengths)
            box = piece.read(self.folder, dtype, *offsets[:1], *lengths[:1])
            for dim in range(1, len(lengths)):
                box = box.narrow(dim, offsets[dim], lengths[dim])
            target = planner.resolve_tensor(item).detach()
            target.copy_(box)
            planner.commit_tensor(item, target)
        future: torch.futures.Future[None] = torch.futures.Future()
        future.set_result(None)
        return future

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:  # noqa: ARG003
        return True


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


def _write_file(path: Path, head: bytes, rest: Iterable[Any] = ()) -> str:
    """Write a file, synced; returns the SHA-256 of what was to be written."""
    sha256 = hashlib.sha256()
    try:
        with path.open("wb") as file:
            for part in itertools.chain([head], rest):
                sha256.update(part)
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        error.filename = error.filename or str(path)  # a full disk names no file by itself
        raise
    return sha256.hexdigest()


def _bytes(tensor: Tensor) -> Any:
    return tensor.reshape(-1).view(torch.uint8).numpy().data


def _canonical(sums: dict[str, str]) -> bytes:
    return (json.dumps(sums, indent=1, sort_keys=True) + "\n").encode()


def _read_index(path: Path) -> dict[str, Any]:
    return json.loads((path / INDEX).read_text(encoding="utf-8"))


def _whole_tensor(folder: Path, entry: dict[str, Any]) -> Tensor:
    dtype = DTYPES[entry["dtype"]]
    whole = torch.empty(entry["shape"], dtype=dtype)
    for piece in (_Piece(**p) for p in entry["pieces"]):
        box = whole
        for dim, (offset, size) in enumerate(zip(piece.offsets, piece.sizes, strict=True)):
            box = box.narrow(dim, offset, size)
        box.copy_(piece.read(folder, dtype))
    return whole


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    """Renamed first, so that a kill in between leaves no half of a checkpoint under its name."""
    gone = path.with_name(f"{path.name}.old.tmp")
    path.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)
