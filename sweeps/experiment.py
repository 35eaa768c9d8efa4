"""A prepared sweep (conf/experiment) keeps the question it is named for."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra.core.override_parser.types import Override

from models.errors import SettingError, one_of
from models.settings import flatten

OF_A_RUN = ("seed", "mix", "size", "protocol", "data", "train")
"""Groups of settings that decide what a run reads."""


def _read(file: Path) -> dict[str, Any]:
    text = file.read_text(encoding="utf-8")
    with file.open(encoding="utf-8") as stream:  # whose name is in the error
        content = yaml.safe_load(stream)
    if not isinstance(content, dict) or "@package _global_" not in text:
        raise SettingError(
            f"experiment={file.stem} must begin with the line `# @package _global_` and hold "
            f"settings after it, as conf/experiment/demo.yaml does: {file}."
        )
    return content


def check_groups(overrides: Sequence[Override], conf: Path) -> None:
    """Raise SettingError for `mix=[a,b]`, which Hydra would merge into one, and `mix=null`."""
    for override in overrides:
        value, group = override.value(), conf / override.key_or_group
        if not group.is_dir() or override.is_delete():
            continue
        if value is None:
            raise one_of(group.name, "null", [path.stem for path in group.glob("*.yaml")])
        if isinstance(value, list):
            names = ",".join(map(str, value))
            raise SettingError(
                f"{override.input_line} is a list; for a run of each write -m {group.name}={names}."
            )


def check_experiment(overrides: Sequence[Override], conf: Path) -> None:
    """Raise SettingError where settings beside `experiment=NAME` would make another sweep of it.

    Its axes (what it sweeps over, like mix, size and seed) may be narrowed or widened. A group that
    it fixes, like its protocol, with what is in it, and a value that it sets may be changed in a
    sweep of the user's own name alone.
    """
    asked = [override for override in overrides if override.key_or_group == "experiment"]
    if not asked:
        return
    if len(asked) > 1 or asked[0].is_sweep_override():
        told = " ".join(override.input_line or "" for override in asked)
        raise SettingError(f"{told} asks for several experiments; run one after the other.")
    name = asked[0].value()
    file = conf / "experiment" / f"{name}.yaml"
    if not file.exists():
        return
    content = _read(file)
    defaults = [d for d in content.get("defaults", []) if isinstance(d, dict)]
    axes = content.get("hydra", {}).get("sweeper", {}).get("params", {})
    groups = {
        key.removeprefix("override /"): option
        for default in defaults
        for key, option in default.items()
    }
    fixed = {group: option for group, option in groups.items() if group not in axes}
    fixed |= flatten({group: content[group] for group in OF_A_RUN if group in content})
    if any(override.key_or_group == "sweep" for override in overrides):
        return
    for override in overrides:
        key = override.key_or_group.lstrip("+~")
        inside = next((key for key in (key, key.partition(".")[0]) if key in fixed), None)
        if inside is None or key in axes:
            continue
        if key != inside or override.is_sweep_override() or override.value() != fixed[inside]:
            raise SettingError(
                f"{override.input_line} is not experiment={name}, which is defined by "
                f"{inside}={fixed[inside]}; leave it out, or name a sweep of your own: sweep=NAME."
            )
