"""A size is called by its name only while its blueprint is the one that the name's file holds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from models.config import size_name


def name_by_blueprint(composed: Sequence[dict[str, Any]], folders: Sequence[Path]) -> list[str]:
    """Give each size of the runs whose blueprint was changed by hand a name that tells how.

    composed: settings of the runs, changed in place; folders: of configurations, the first that has
    a size's file gives it. Returns a sentence for each size that was renamed.
    """
    told: dict[str, str] = {}
    for settings in composed:
        size = settings.get("size")
        if not isinstance(size, dict) or not isinstance(name := size.get("name"), str):
            continue
        size["name"] = size_name(_file(name, folders), size)
        if size["name"] != name:
            told[size["name"]] = (
                f"size={name} with another blueprint is named {size['name']}, in the analysis too; "
                "size.name=NAME names it otherwise"
            )
    return list(told.values())


def _file(name: str, folders: Sequence[Path]) -> dict[str, Any]:
    """What the size's file holds, less what it leaves to others; empty where there is none."""
    paths = (folder / "size" / f"{name}.yaml" for folder in folders)
    path = next((path for path in paths if path.is_file()), None)
    content = yaml.safe_load(path.read_text(encoding="utf-8")) if path else None
    if not isinstance(content, dict) or content.get("name") != name:
        return {}
    return {k: v for k, v in content.items() if not (isinstance(v, str) and "${" in v)}
