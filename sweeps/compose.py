"""Every run of a sweep as plain settings, composed by Hydra, as few times as that takes.

`hydra.main -m` composes each run twice, at a tenth of a second a time. Here a combination of
configuration groups is composed once, and values swept over it, like seeds, are set in copies.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import OmegaConf

CONF = Path(__file__).resolve().parents[1] / "conf"


def compose_sweep(overrides: Sequence[str]) -> list[dict[str, Any]]:
    """The settings of every combination of comma-separated values, in Hydra's order.

    overrides: as on the command line, like `mix=gdn,mamba2` and `seed=0,1`. Raises what Hydra
    raises on what it cannot compose.
    """
    parser = OverridesParser.create()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        # An experiment's file may hold values to sweep over; the command line comes after them.
        single = [o.input_line or "" for o in parser.parse_overrides(list(overrides)) if
                  not o.is_sweep_override()]  # fmt: skip
        hydra = compose("config", single, return_hydra_config=True).hydra
    own = [f"{key}={value}" for key, value in (hydra.sweeper.params or {}).items()]
    parsed = parser.parse_overrides([*own, *overrides])
    (jobs,) = BasicSweeper.split_arguments(parsed, max_batch_size=None)
    swept = {_key(override) for override in parsed if override.is_sweep_override()}
    composed: dict[tuple[str, ...], dict[str, Any]] = {}
    settings = []
    with initialize_config_dir(str(CONF), version_base="1.3"):
        for job in jobs:
            values = {}
            fixed = []
            for override in parser.parse_overrides(list(job)):
                if _key(override) in swept and _is_plain_value(override):
                    values[_key(override)] = override
                else:
                    fixed.append(override.input_line or "")
            # The first of a combination is composed whole: it also checks that the keys are there.
            key = (*fixed, *sorted(values))
            if key not in composed:
                composed[key] = _compose(job)
                settings.append(composed[key])
                continue
            content = copy.deepcopy(composed[key])
            for name, override in values.items():
                *path, last = name.split(".")
                group = content
                for part in path:
                    group = group[part]
                group[last] = override.value()
            settings.append(content)
    return settings


def _compose(job: Sequence[str]) -> dict[str, Any]:
    content = OmegaConf.to_container(compose("config", list(job)), resolve=True)
    assert isinstance(content, dict)
    return {str(key): value for key, value in content.items()}


def _key(override: Override) -> str:
    return override.key_or_group


def _is_plain_value(override: Override) -> bool:
    """A number, a truth value or null for a key: nothing that could name a group's option, be an
    interpolation, or add and remove keys."""
    return (
        override.type is not None
        and override.type.name == "CHANGE"
        and override.package is None
        and (override.value() is None or isinstance(override.value(), int | float))
    )
