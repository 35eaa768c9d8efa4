"""Reading checkpoints: what lies in one, and whether it is whole. By one process, no group.

    step-00000012/
      shard-00000.safetensors   the tensors, or pieces of tensors, of rank 0; one file a rank
      index.json                dtype, shape and pieces of every tensor, and every other value
      checksums.json            SHA-256 of each file above; written last

Safetensors and JSON run no code of whoever wrote them. ablations/checkpoint.py writes these.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

INDEX, CHECKSUMS = "index.json", "checksums.json"

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


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
    except (ValueError, RecursionError):
        sums = None
    # The sums have no sum of their own; but there is one way to write them, and each must be right.
    if not isinstance(sums, dict) or INDEX not in sums or text != canonical(sums):
        return f"{CHECKSUMS} is not what was written"
    if any(name != Path(name).name for name in sums):  # leads out of the folder
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
            return _read_model(candidate)
        if asked:
            missing = FileNotFoundError if not candidate.exists() else ValueError
            raise missing(f"{candidate} cannot be read: {reason}")
    raise FileNotFoundError(f"{path} holds no checkpoint that can be read")


def _read_model(path: Path) -> dict[str, Tensor]:
    """Its index has the sum that stands beside it, and may still be another program's."""
    try:
        shards = {name for name in json.loads((path / CHECKSUMS).read_bytes()) if name != INDEX}
        return {
            name.removeprefix("model."): _whole_tensor(path, entry, shards)
            for name, entry in read_index(path)["tensors"].items()
            if name.startswith("model.")
        }
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RuntimeError) as error:
        told = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{path} cannot be read: {INDEX} is no checkpoint's ({told})") from None


@dataclass(frozen=True)
class Piece:
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
            file.readinto(tensor_bytes(box))
        return box


def tensor_bytes(tensor: Tensor) -> Any:
    """The memory of a contiguous CPU tensor."""
    return tensor.reshape(-1).view(torch.uint8).numpy().data


def canonical(sums: dict[str, str]) -> bytes:
    """The one way to write checksums.json."""
    return (json.dumps(sums, indent=1, sort_keys=True) + "\n").encode()


def read_index(path: Path) -> dict[str, Any]:
    """index.json of a checkpoint."""
    return json.loads((path / INDEX).read_text(encoding="utf-8"))


def _whole_tensor(folder: Path, entry: dict[str, Any], shards: set[str]) -> Tensor:
    """A tensor of pieces in `shards`. Raises ValueError where they are not all of it."""
    dtype = DTYPES[entry["dtype"]]
    pieces = [Piece(**p) for p in entry["pieces"]]
    for piece in pieces:
        if piece.file not in shards:
            raise ValueError(f"{piece.file} is none of its files")
        end = piece.begin + math.prod(piece.sizes) * dtype.itemsize
        if (
            min(piece.begin, *piece.offsets, *piece.sizes) < 0
            or end > (folder / piece.file).stat().st_size
        ):
            raise ValueError(f"a piece is not in {piece.file}")
    if sum(math.prod(piece.sizes) for piece in pieces) != math.prod(entry["shape"]):
        raise ValueError("pieces are not the whole of a tensor")
    whole = torch.empty(entry["shape"], dtype=dtype)
    for piece in pieces:
        box = whole
        for dim, (offset, size) in enumerate(zip(piece.offsets, piece.sizes, strict=True)):
            box = box.narrow(dim, offset, size)
        box.copy_(piece.read(folder, dtype))
    return whole
