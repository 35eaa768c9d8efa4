"""Folders of models, read and written safely: JSON, YAML and safetensors, and nothing beside them.

Nothing outside of a folder is read, nothing in it runs, and one that is written is whole or absent.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from models.errors import SettingError

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
# float32 holds each of their values.
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def read_mapping(
    folder: Path, name: str, parse: Callable[[str], Any], setting: str = "FOLDER"
) -> dict[str, Any]:
    """A JSON or YAML file of a folder, which holds names with values."""
    path = inside(folder, name, setting)
    try:
        content = parse(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError, RecursionError, yaml.YAMLError):
        raise SettingError(f"{setting}={folder} holds no {name} that can be read.") from None
    if not isinstance(content, dict):
        raise SettingError(f"{setting}={folder}: {name} holds no names with values.")
    return content


def inside(folder: Path, name: Any, setting: str = "FOLDER") -> Path:
    """The path of a file of that name in a folder, which need not be there.

    Raises SettingError for a name or a link that leads out of the folder. A snapshot of Hugging
    Face's cache may link to the blobs beside it.
    """
    outside = SettingError(f"{setting}={folder}: {name!s:.200} leads out of the folder.")
    if not isinstance(name, str) or name != Path(name).name or name == ".." or "\0" in name:
        raise outside
    try:
        root, path = folder.resolve(), (folder / name).resolve()
    except (OSError, RuntimeError):  # a link to itself
        raise outside from None
    cached = root.parent.name == "snapshots" and path.parent == root.parent.parent / "blobs"
    if not (path.is_relative_to(root) or cached):
        raise outside
    return path


def brief(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:199] + "…"


def read_weights(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder's safetensors, of one file or of several with an index."""
    from safetensors.torch import load_file

    single, several = inside(folder, WEIGHTS).is_file(), inside(folder, INDEX).exists()
    if single and several:
        raise SettingError(f"FOLDER={folder} holds both {WEIGHTS} and {INDEX}; remove one.")
    places: dict[str, Any] = {}
    if several:
        index = read_mapping(folder, INDEX, json.loads)
        places = index.get("weight_map")  # type: ignore[assignment]
        if not isinstance(places, dict) or not all(isinstance(f, str) for f in places.values()):
            raise SettingError(f"FOLDER={folder}: {INDEX} has no weight_map of tensors to files.")
    elif not single:
        raise SettingError(
            f"FOLDER={folder} holds no {WEIGHTS}, nor {INDEX}; weights in other files, such as "
            "pytorch_model.bin, are not read, because opening them can run code."
        )
    files = {name: inside(folder, name) for name in sorted({*places.values()} or {WEIGHTS})}
    if missing := [name for name, file in files.items() if not file.is_file()]:
        raise SettingError(f"FOLDER={folder} lacks {missing[0]}, which its {INDEX} names.")
    tensors: dict[str, Tensor] = {}
    for name, file in files.items():
        try:
            held = load_file(file)
        except Exception as error:  # also a dtype that torch has not
            raise SettingError(
                f"FOLDER={folder}: {name} cannot be read ({brief(error)})."
            ) from None
        elsewhere = [t for t in held if several and places.get(t) != name]
        if elsewhere:
            raise SettingError(
                f"FOLDER={folder}: {name} holds {elsewhere[0]}, which {INDEX} does not say."
            )
        tensors |= held
    if lost := places.keys() - tensors.keys():
        raise SettingError(
            f"FOLDER={folder}: {min(lost)} is not in {places[min(lost)]}, where {INDEX} has it."
        )
    for name, tensor in tensors.items():
        if tensor.dtype not in DTYPES:
            valid = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES)
            kind = str(tensor.dtype).removeprefix("torch.")
            raise SettingError(f"FOLDER={folder}: {name} is of dtype {kind}; valid: {valid}.")
    refuse_not_finite(tensors, f"FOLDER={folder}")
    return tensors


def refuse_not_finite(weights: Mapping[str, Tensor], where: str) -> None:
    for name, weight in weights.items():
        if not weight.isfinite().all():
            raise SettingError(f"{where} has values in {name} that are not finite numbers.")


def refuse_existing(out: Path) -> None:
    if out.exists():
        raise SettingError(f"OUT={out} exists already; give a folder that does not.")


@contextlib.contextmanager
def written_whole(out: Path) -> Iterator[Path]:
    """A folder to write into, renamed to `out` at the end, or removed."""
    from safetensors import SafetensorError

    refuse_existing(out)
    beside = out.with_name(f".{out.name}.{uuid.uuid4().hex}.tmp")
    try:
        beside.mkdir(parents=True)
        yield beside
        beside.rename(out)
    except (OSError, SafetensorError) as error:  # the latter for a full disk
        raise SettingError(f"OUT={out} cannot be written ({error}).") from None
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def write_weights(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    from safetensors.torch import save_file

    path = folder / WEIGHTS
    path.touch()
    mode = path.stat().st_mode  # the user's umask, which safetensors does not heed
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(contiguous, path, metadata={"format": "pt"})
    path.chmod(mode)


def write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
