"""The storage that torch.distributed.checkpoint plans for: a safetensors file a rank, and an index.

Its own file storage takes four times as long for a small model, hides a full disk behind another
error, and keeps its index as a pickle.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.storage import StorageReader, StorageWriter, WriteResult

from models.checkpoint_files import (
    CHECKSUMS,
    DTYPE_NAMES,
    DTYPES,
    INDEX,
    Piece,
    canonical,
    tensor_bytes,
)


class Writer(StorageWriter):
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
            pieces.append(Piece(plan.storage_data, begin, offsets, list(tensor.shape)))
            tensors.append(tensor)
            begin += tensor.nbytes
        head = json.dumps(header).encode()
        head += b" " * (-len(head) % 8)
        head = len(head).to_bytes(8, "little") + head
        sha256 = ""
        if tensors:
            contents = (tensor_bytes(tensor) for tensor in tensors)
            sha256 = write_file(self.folder / plan.storage_data, head, contents)
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
        sums[INDEX] = write_file(self.folder / INDEX, index.encode())
        write_file(self.folder / CHECKSUMS, canonical(sums))
        sync_folder(self.folder)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:  # noqa: ARG003
        return True


class Reader(StorageReader):
    """Reads of each piece the rows that are asked for."""

    def __init__(self, folder: Path, tensors: dict[str, Any]) -> None:
        self.folder = folder
        self.entries: dict[str, Any] = {}
        self.pieces: dict[MetadataIndex, tuple[Piece, torch.dtype]] = {}
        for name, entry in tensors.items():
            dtype, pieces = DTYPES[entry["dtype"]], [Piece(**p) for p in entry["pieces"]]
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


def write_file(path: Path, head: bytes, rest: Iterable[Any] = ()) -> str:
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


def sync_folder(path: Path) -> None:
    """A folder's own entries are on disk when this returns."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
