"""What an export reads of a run directory: its model, a checkpoint's weights, and its tokens.

docs/contracts.md says what lies in one. A checkpoint is safetensors and JSON: `index.json` names
the pieces of every tensor, `checksums.json` the SHA-256 of every file.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from models.errors import SettingError, one_of

BYTES = "bytes"
EMBEDDED_SEPARATOR = 0  # what ablations/data/embedded.py sets between documents


def read_spec(run: Path) -> dict[str, Any]:
    """The run's frozen spec. Raises SettingError where `run` is no run directory."""
    try:
        spec = yaml.safe_load((run / "spec.yaml").read_text(encoding="utf-8"))
        _ = spec["model"], spec["recipe"]["context"], spec["data"]["name"]
    except (OSError, yaml.YAMLError, KeyError, TypeError):
        raise SettingError(
            f"RUN_DIR={run} is not a run directory: it has no spec.yaml with a model, a recipe "
            "and data in it."
        ) from None
    return spec


def read_weights(run: Path, wanted: str) -> tuple[int, dict[str, Tensor]]:
    """(step, the model's state dict): of the newest whole checkpoint (`last`), or of a step.

    A damaged one is passed over for the one before, with a warning. Raises SettingError where
    there is none, or not the one wanted.
    """
    folders = {
        int(path.name.removeprefix("step-")): path
        for path in (run / "checkpoints").glob("step-*")
        if path.name.removeprefix("step-").isdecimal()
    }
    steps = sorted(folders, reverse=True)
    if not steps:
        raise SettingError(f"RUN_DIR={run} holds no checkpoint; train it first.")
    if wanted != "last":
        if wanted not in map(str, steps):
            raise one_of("checkpoint", wanted, ["last", *map(str, steps)])
        steps = [int(wanted)]
    for step in steps:
        reason = _damage(folders[step])
        if reason is None:
            return step, _model(folders[step])
        print(f"warning: {folders[step].name} cannot be read ({reason})", file=sys.stderr)
    raise SettingError(
        f"RUN_DIR={run} holds no {'checkpoint' if wanted == 'last' else f'checkpoint={wanted}'} "
        "that can be read."
    )


def corpus_tokens(spec: Mapping[str, Any]) -> tuple[str | None, int | None, str | None]:
    """(name of the tokenizer, separator id, SHA-256 of the tokenizer's file) of a run's corpus.

    None for what is not known, as where the corpus no longer lies where it lay.
    """
    data, corpus = spec["data"], spec.get("corpus") or {}
    if "embedded" in (data["name"], corpus.get("name")):
        return BYTES, EMBEDDED_SEPARATOR, None
    try:
        path = Path(data["path"]).expanduser() / "manifest.json"
        manifest = json.loads(path.read_text(encoding="utf-8"))
        tokenizer = manifest.get("tokenizer") or {}
        if manifest["vocab_size"] == corpus.get("vocab_size", manifest["vocab_size"]):
            return tokenizer.get("name"), manifest["separator"], tokenizer.get("sha256")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    return None, None, None


def _damage(folder: Path) -> str | None:
    """Why a checkpoint is not what was written; None where it is."""
    try:
        sums = json.loads((folder / "checksums.json").read_text(encoding="utf-8"))
        for name, sha256 in sums.items():
            with (folder / name).open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
                    return f"{name} is not what was written"
    except (FileNotFoundError, NotADirectoryError, ValueError, AttributeError) as error:
        return str(error)
    return None if "index.json" in sums else "index.json is missing"


def _model(folder: Path) -> dict[str, Tensor]:
    """The tensors under `model.`, each put together from its pieces."""
    from safetensors import safe_open

    index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
    weights = {}
    for name, entry in index["tensors"].items():
        if not name.startswith("model."):
            continue
        parts = []
        for piece in entry["pieces"]:
            whole = piece["sizes"] == entry["shape"]
            with safe_open(folder / piece["file"], "pt") as file:
                parts.append(
                    (piece, file.get_tensor(name if whole else f"{name}{piece['offsets']}"))
                )
        tensor = torch.empty(entry["shape"], dtype=parts[0][1].dtype)
        for piece, part in parts:
            box = tensor
            for dim, (offset, size) in enumerate(
                zip(piece["offsets"], piece["sizes"], strict=True)
            ):
                box = box.narrow(dim, offset, size)
            box.copy_(part)
        weights[name.removeprefix("model.")] = tensor
    return weights
