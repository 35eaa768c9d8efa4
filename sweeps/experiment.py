"""A prepared sweep (conf/experiment) keeps the question it is named for."""

from collections.abc import Sequence
from pathlib import Path

import yaml
from hydra.core.override_parser.types import Override

from models.errors import SettingError


def check_experiment(overrides: Sequence[Override], conf: Path) -> None:
    """Raise SettingError where settings beside `experiment=NAME` would make another sweep of it.

    Its axes (what it sweeps over, like mix, size and seed) may be narrowed or widened. A group that
    it fixes, like its protocol, may be changed in a sweep of the user's own name alone.
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
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    defaults = [d for d in content.get("defaults", []) if isinstance(d, dict)]
    fixed = {
        key.removeprefix("override /"): option
        for default in defaults
        for key, option in default.items()
    }
    axes = content.get("hydra", {}).get("sweeper", {}).get("params", {})
    named = any(override.key_or_group == "sweep" for override in overrides)
    for override in overrides:
        group = override.key_or_group
        if named or group in axes or group not in fixed:
            continue
        if override.is_sweep_override() or override.value() != fixed[group]:
            raise SettingError(
                f"{override.input_line} is not experiment={name}, which is defined by "
                f"{group}={fixed[group]}; leave it out, or name a sweep of your own: sweep=NAME."
            )
