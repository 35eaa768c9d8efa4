"""python -m models.hf export RUN_DIR OUT, and python -m models.hf import FOLDER OUT."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.command import choose, ended, setting
from models.errors import SettingError
from models.hf.convert import export_run, import_folder
from models.text import visible


@dataclass(frozen=True, kw_only=True)
class Export:
    """Write a run as a folder that AutoModelForCausalLM opens (docs/export.md)."""

    run: Path = setting(help="a run directory", position=True, shape="RUN_DIR")
    out: Path = setting(help="folder to write", position=True, shape="OUT")
    checkpoint: str = setting("last", "last, or a step", shape="last|STEP")
    tokenizer: str | None = setting(None, "the corpus's tokenizer.json", shape="PATH")
    format: str = setting("table", "how it is printed", choices=("table", "json"))


@dataclass(frozen=True, kw_only=True)
class Import:
    """Write such a folder as model.yaml and model.safetensors."""

    folder: Path = setting(help="a Hugging Face folder", position=True, shape="FOLDER")
    out: Path = setting(help="folder to write", position=True, shape="OUT")
    mixers: tuple[str, ...] = setting((), "packages whose mixers it may name", shape="PACKAGE")
    format: str = setting("table", "how it is printed", choices=("table", "json"))


VERBS = {"export": Export, "import": Import}


def main(arguments: list[str]) -> int:
    """Exit code 0, or 2 on a setting that cannot be used."""
    return ended(lambda: _run(arguments))


def _run(arguments: list[str]) -> None:
    summary = "Models as Hugging Face folders, and the inverse."
    _, asked = choose("python -m models.hf", summary, VERBS, arguments)
    try:
        lines, document = _export(asked) if isinstance(asked, Export) else _import(asked)
    except OSError as error:  # such as a folder that may not be read
        raise SettingError(f"{error.strerror} ({visible(str(error.filename))})") from error
    print(*([json.dumps(document, indent=1)] if asked.format == "json" else lines), sep="\n")


def _export(asked: Export) -> tuple[list[str], dict[str, Any]]:
    made = export_run(asked.run, asked.out, checkpoint=asked.checkpoint, tokenizer=asked.tokenizer)
    return made.lines, {
        "out": str(made.out), "step": made.step, "opened_as": made.opened_as,
        "logits_within": made.difference, "has_tokenizer": made.has_tokenizer,
    }  # fmt: skip


def _import(asked: Import) -> tuple[list[str], dict[str, Any]]:
    model = import_folder(asked.folder, asked.out, asked.mixers)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    layers = list(model.config.layers)
    line = f"{asked.out}: {parameters:,} parameters, layers {', '.join(layers)}"
    return [line], {"out": str(asked.out), "parameters": parameters, "layers": layers}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
