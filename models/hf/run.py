"""What an export reads of a run directory: its model, a checkpoint's weights, and its tokens.

docs/contracts.md says what lies in one.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from models.checkpoint_files import read_model, steps
from models.environment import expand
from models.errors import SettingError, one_of
from models.plain import model_of_spec
from models.safe_yaml import parse_yaml
from models.text import visible

BYTES = "bytes"
EMBEDDED_SEPARATOR = 0  # what ablations/data/embedded.py sets between documents


def read_spec(run: Path) -> dict[str, Any]:
    """The run's frozen spec, its model with all fields.

    Raises SettingError where `run` is no run directory.
    """
    try:
        spec = parse_yaml((run / "spec.yaml").read_text(encoding="utf-8"))
        _ = spec["model"], spec["recipe"]["context"], spec["data"]["name"]
        _ = (spec.get("corpus") or {}).get("name")
        spec["model"] = model_of_spec(spec)
    except SettingError:
        raise
    except (OSError, ValueError, yaml.YAMLError, RecursionError, LookupError, TypeError,
            AttributeError):  # fmt: skip
        raise SettingError(
            f"RUN_DIR={run} is not a run directory: it has no spec.yaml with a model, a recipe "
            "and data in it."
        ) from None
    return spec


def read_manifest(run: Path) -> dict[str, Any]:
    """The run's manifest.json, empty where there is none that can be read."""
    try:
        manifest = json.loads((run / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return manifest if isinstance(manifest, dict) else {}


def read_point(run: Path, step: int) -> dict[str, Any]:
    """The row of points.jsonl of a step, empty where there is none that can be read."""
    try:
        lines = (run / "points.jsonl").read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return {}
    for line in lines:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict) and row.get("step") == step:
            return row
    return {}


def read_checkpoint(run: Path, wanted: str) -> tuple[int, dict[str, Tensor]]:
    """(step, the model's state dict): of the newest whole checkpoint (`last`), or of a step.

    A damaged one is passed over for the one before, with a warning. Raises SettingError where
    there is none, or not the one wanted.
    """
    folder = run / "checkpoints"
    there = steps(folder)[::-1]
    if not there:
        raise SettingError(f"RUN_DIR={run} holds no checkpoint; train it first.")
    if wanted != "last":
        if wanted not in map(str, there):
            raise one_of("checkpoint", wanted, ["last", *map(str, there)])
        there = [int(wanted)]
    for step in there:
        try:
            return step, read_model(folder, step)
        except ValueError as damaged:
            print(f"warning: {visible(str(damaged))}", file=sys.stderr)
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
        path = Path(expand(data["path"], "data.path")).expanduser() / "manifest.json"
        manifest = json.loads(path.read_text(encoding="utf-8"))
        tokenizer, separator = manifest.get("tokenizer") or {}, manifest["separator"]
        name, sha256 = tokenizer.get("name"), tokenizer.get("sha256")
        words = isinstance(name, str | None) and isinstance(sha256, str | None)
        ours = manifest["vocab_size"] == corpus.get("vocab_size", manifest["vocab_size"])
        if ours and words and isinstance(separator, int | None):
            return name, separator, sha256
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass
    return None, None, None
