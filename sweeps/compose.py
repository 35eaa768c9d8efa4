"""Every run of a sweep as plain settings, composed as `hydra.main -m` composes them.

Hydra takes 60 ms a run, most of it for the list of files to read. Overrides of groups (`mix=gdn`)
alone decide that list; those of values (`seed=1`) are applied to what the files hold. So each
combination of groups is composed once, and Hydra's own function applies a run's values to a copy,
in which no interpolation has been resolved yet. Where that fails Hydra composes the run whole, and
what it then gives or refuses is the answer.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra import initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, open_dict
from omegaconf.errors import OmegaConfBaseException

from models.errors import SettingError
from sweeps.experiment import check_experiment, check_groups
from sweeps.variables import refused, settings_of

CONF = Path(__file__).resolve().parents[1] / "conf"

DRIVER = (
    *("plan", "dry_run", "treatments", "runs", "max_parallel", "max_gpus", "max_local_hours"),
    *("max_gpu_hours", "cluster"),
)
"""Settings of the sweep's driver, which no run knows."""


def of_the_run(composed: dict[str, Any]) -> dict[str, Any]:
    """What `ablations.spec.resolve` reads of one run's composed settings."""
    return {key: value for key, value in composed.items() if key not in DRIVER}


def compose_sweep(
    overrides: Sequence[str],
    *,
    several: bool = True,
    conf: Path = CONF,
    name: str = "config",
    beside: Path | None = None,
) -> list[dict[str, Any]]:
    """The settings of every run asked for, in Hydra's order.

    overrides: as on the command line, like `mix=gdn,mamba2` and `seed=0,1`; several: whether a
    comma makes several runs (-m), as it also does where an experiment says so; conf, name: the
    folder of configurations and its first file; beside: another folder, which comes first.
    Raises what Hydra raises on what it cannot compose, and SettingError on an override that is
    Hydra's own or that an experiment excludes, and on environment variables in wrong places.
    """
    with _loader(conf, beside) as loader:
        parser = OverridesParser.create(config_loader=loader)
        asked = parser.parse_overrides(list(overrides))
        _check_hydra(asked)
        check_groups(asked, conf)
        check_experiment(asked, conf)
        # Without what is swept over: an experiment's file may hold more of it.
        hydra = loader.load_configuration(
            name, list(overrides), RunMode.MULTIRUN, validate_sweep_overrides=False
        ).hydra
        if hydra.job.env_set or hydra.job.env_copy:
            raise SettingError(
                "hydra.job.env_set and hydra.job.env_copy are not used; remove them."
            )
        if not several and hydra.mode != RunMode.MULTIRUN:
            return [_whole(loader, name, overrides)]
        with refused("hydra.sweeper.params"):
            own = [f"{key}={value}" for key, value in (hydra.sweeper.params or {}).items()]
        check_groups(parser.parse_overrides(own), conf)
        parsed = parser.parse_overrides([*own, *overrides])
        (jobs,) = BasicSweeper.split_arguments(parsed, max_batch_size=None)
        combinations = _Combinations(loader, name, parser)
        return [combinations.compose(job, number) for number, job in enumerate(jobs)]


def _check_hydra(overrides: Sequence[Override]) -> None:
    for override in overrides:
        if override.is_hydra_override():
            raise SettingError(
                f"{override.input_line} is a setting of Hydra, which only composes here and writes "
                "nothing; leave it out (-m for several runs, runs=FOLDER for where they go)."
            )


@contextmanager
def _loader(conf: Path, beside: Path | None) -> Iterator[ConfigLoaderImpl]:
    with initialize_config_dir(str(conf), job_name="run", version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        assert isinstance(loader, ConfigLoaderImpl)
        if beside is not None:
            path = loader.get_search_path()
            path.prepend("command-line", f"file://{beside}", SearchPathQuery(provider="schema"))
            loader = ConfigLoaderImpl(path)
        yield loader


@dataclass
class _Combinations:
    """Composes the runs of a sweep, each combination of groups once."""

    loader: ConfigLoaderImpl
    name: str
    parser: OverridesParser
    composed: dict[tuple[str, ...], DictConfig] = field(default_factory=dict)
    """By the overrides of groups, in their order."""
    groups: dict[str, bool] = field(default_factory=dict)
    """Whether a key is a group's, as Hydra sees it."""

    def __post_init__(self) -> None:
        # Knows the folders that hydra.searchpath adds, which the loader's own does not.
        _, self.repository = self.loader._parse_overrides_and_create_caching_repo(self.name, [])

    def compose(self, job: Sequence[str], number: int) -> dict[str, Any]:
        """The settings of one run: `job` are its overrides, `number` its place in the sweep."""
        overrides = self.parser.parse_overrides(list(job))
        values = [override for override in overrides if self._is_value(override)]
        key = tuple(o.input_line or "" for o in overrides if not self._is_value(o))
        if key not in self.composed:
            config = self.loader.load_configuration(self.name, list(key), RunMode.RUN)
            with open_dict(config):
                del config["hydra"]
            self.composed[key] = config
        config = copy.deepcopy(self.composed[key])
        try:
            ConfigLoaderImpl._apply_overrides_to_config(values, config)
            return settings_of(config)
        except (HydraException, OmegaConfBaseException):
            return _whole(self.loader, self.name, job, number)

    def _is_value(self, override: Override) -> bool:
        """Whether Hydra applies an override to what it has composed (its `Overrides` class)."""
        key = override.key_or_group
        if key not in self.groups:
            self.groups[key] = self.repository.group_exists(key)
        return isinstance(override.value(), dict) or not self.groups[key]


def _whole(
    loader: ConfigLoaderImpl, name: str, overrides: Sequence[str], number: int | None = None
) -> dict[str, Any]:
    """One run composed by Hydra alone, with what `${hydra:…}` reads, as a job of its launcher."""
    config = loader.load_configuration(name, list(overrides), RunMode.RUN, from_shell=False)
    if number is not None:
        with open_dict(config):
            config.hydra.job.id = config.hydra.job.num = number
    settings = copy.deepcopy(config)
    with open_dict(settings):
        del settings["hydra"]
    HydraConfig.instance().set_config(config)
    try:
        return settings_of(settings)
    finally:
        HydraConfig.instance().cfg = None
