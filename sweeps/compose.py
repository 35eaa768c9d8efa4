"""Every run of a sweep as plain settings, composed by Hydra, as few times as that takes.

`hydra.main -m` composes each run twice, at a tenth of a second a time. Here each choice of a
configuration group is composed once, their combinations are put together, and values swept over
them, like seeds, are set in copies.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import OmegaConf

from sweeps.experiment import check_experiment, check_groups

CONF = Path(__file__).resolve().parents[1] / "conf"

DRIVER = ("plan", "treatments", "runs", "max_parallel", "max_local_hours", "cluster")
"""Settings of the sweep's driver, which no run knows."""


def of_the_run(composed: Mapping[str, Any]) -> dict[str, Any]:
    """What `ablations.spec.resolve` reads of one run's composed settings."""
    return {key: value for key, value in composed.items() if key not in DRIVER}


def check_lists(overrides: Sequence[str]) -> None:
    """Raise SettingError where one run is given a list of a group's options."""
    check_groups(OverridesParser.create().parse_overrides(list(overrides)), CONF)


def compose_sweep(overrides: Sequence[str]) -> list[dict[str, Any]]:
    """The settings of every combination of comma-separated values, in Hydra's order.

    overrides: as on the command line, like `mix=gdn,mamba2` and `seed=0,1`. Raises what Hydra
    raises on what it cannot compose, and SettingError on an override that an experiment excludes.
    """
    parser = OverridesParser.create()
    asked = parser.parse_overrides(list(overrides))
    check_groups(asked, CONF)
    check_experiment(asked, CONF)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        # An experiment's file may hold values to sweep over; the command line comes after them.
        single = [o.input_line or "" for o in asked if not o.is_sweep_override()]
        hydra = compose("config", single, return_hydra_config=True).hydra
    own = [f"{key}={value}" for key, value in (hydra.sweeper.params or {}).items()]
    check_groups(parser.parse_overrides(own), CONF)
    parsed = parser.parse_overrides([*own, *overrides])
    (jobs,) = BasicSweeper.split_arguments(parsed, max_batch_size=None)
    swept = {_key(override) for override in parsed if override.is_sweep_override()}
    composed: dict[tuple[str, ...], dict[str, Any]] = {}
    settings = []
    with initialize_config_dir(str(CONF), version_base="1.3"):
        combinations = _Combinations()
        for job in jobs:
            values, choices, fixed = {}, {}, []
            for override in parser.parse_overrides(list(job)):
                line = override.input_line or ""
                if _key(override) not in swept:
                    fixed.append(line)
                elif _is_plain_value(override):
                    values[_key(override)] = override
                else:
                    choices[_key(override)] = line
            # The first of a combination is composed whole: it also checks that the keys are there.
            key = (*choices.values(), *sorted(values))
            if key not in composed:
                plain = [override.input_line or "" for override in values.values()]
                composed[key] = combinations.compose([*fixed, *plain], choices)
            content = copy.deepcopy(composed[key])
            for name, override in values.items():
                *path, last = name.split(".")
                group = content
                for part in path:
                    group = group[part]
                group[last] = override.value()
            settings.append(content)
    return settings


class _Combinations:
    """Composes combinations of choices, most of them out of others.

    Hydra takes a tenth of a second each. Where a choice changes its own part of the settings alone,
    as a mix or a size does, it is composed once beside the first combination, and the others are
    put together from such parts.
    """

    def __init__(self) -> None:
        self.first: tuple[dict[str, str], dict[str, Any]] | None = None
        self.parts: dict[str, Any] = {}

    def compose(self, others: Sequence[str], choices: Mapping[str, str]) -> dict[str, Any]:
        """The settings of one combination. `others` come with every one of them."""
        if self.first is None:
            self.first = dict(choices), _compose([*others, *choices.values()])
        before, base = self.first
        roots = {key: re.split(r"[./@]", key)[0] for key in choices}
        changed = {key: line for key, line in choices.items() if line != before[key]}
        if len(set(roots.values())) == len(roots):
            for key, line in changed.items():
                if line not in self.parts:
                    self.parts[line] = self._part(others, key, line, roots[key])
            if all(self.parts[line] is not None for line in changed.values()):
                return base | {roots[key]: self.parts[line] for key, line in changed.items()}
        return _compose([*others, *choices.values()])

    def _part(self, others: Sequence[str], key: str, line: str, root: str) -> Any:
        """What a choice makes of its part; None where it reaches, or looks, beyond it."""
        assert self.first is not None
        before, base = self.first
        config = compose("config", [*others, *(before | {key: line}).values()])
        content = OmegaConf.to_container(config, resolve=True)
        assert isinstance(content, dict)
        alone = {k: v for k, v in content.items() if k != root} == {
            k: v for k, v in base.items() if k != root
        }
        unresolved: Any = OmegaConf.to_container(config)
        looks = "${" in str(unresolved.get(root)).replace("${oc.env:", "")
        return content[root] if alone and root in content and not looks else None


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
