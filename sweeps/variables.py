"""Environment variables in settings: where they may stand, and what records keep of them.

A variable may hold a password. So `${oc.env:NAME}` is refused in whatever decides a run's numbers,
names a folder or is recorded by value, and keeps its name in the settings of places: where it is
used, models.environment.expand reads it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError
from omegaconf.resolvers import oc

from models.environment import NAMED
from models.errors import SettingError

PLACES = ("cluster", "logging", "runs")
"""Settings, beside data.path, that may name a variable."""
CHOICES = ("cluster.launcher", "cluster.gpu_kind")
"""Checked against lists of names, and not recorded as text."""
CORPUS = "ARCHLADDER_DATA"
"""A folder by definition, recorded as one: a run is retried where the variable is not set."""


def settings_of(config: DictConfig) -> dict[str, Any]:
    """A composed configuration as plain settings, with every interpolation resolved but those of
    environment variables in PLACES and data.path, which keep their names: `/data/${oc.env:USER}`.

    Raises SettingError where a variable decides another setting, however many interpolations lie
    between them.
    """
    values: Any = OmegaConf.to_container(config, resolve=True)
    for key in config:
        if key not in PLACES:
            _check(config, str(key))
    with _environment(_by_name):
        for key in config:
            if key in PLACES:
                values[key] = _named(values[key], _plain(config, str(key)), str(key))
        if isinstance(config.get("data"), DictConfig) and "path" in config.data:
            path = values["data"]["path"]
            values["data"]["path"] = _named(path, _plain(config.data, "path"), "data.path")
    return {str(key): value for key, value in values.items()}


def _check(config: DictConfig, key: str, inside: str = "") -> None:
    """Raise SettingError where what is under `key` is read from the environment."""
    if key == "data" and isinstance(config.data, DictConfig):
        for own in config.data:
            if own != "path":
                _check(config.data, str(own), "data.")
        return
    with refused(f"{inside}{key}"):
        _plain(config, key)


@contextlib.contextmanager
def refused(setting: str) -> Iterator[None]:
    """Raise SettingError where the block, which reads `setting`, reads the environment."""
    with _environment(_refuse):
        try:
            yield
        except InterpolationResolutionError as error:
            inside = str(error.full_key)
            raise SettingError(
                f"{inside if inside.startswith(setting) else setting} reads an environment "
                "variable, and decides a run or is recorded; give the value itself. Only cluster, "
                "logging, data.path and runs may name one."
            ) from error


def _plain(config: DictConfig, key: str) -> Any:
    if OmegaConf.is_missing(config, key):
        return "???"
    value = config[key]
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


@contextlib.contextmanager
def _environment(read: Callable[..., Any]) -> Iterator[None]:
    """`${oc.env:…}` is answered by `read` while the block lasts."""
    OmegaConf.register_new_resolver("oc.env", read, replace=True)
    try:
        yield
    finally:
        OmegaConf.register_new_resolver("oc.env", oc.env, replace=True)


def _refuse(name: str, *_default: Any) -> Any:
    raise ValueError(f"the environment variable {name} is read")


def _by_name(name: str, *default: Any) -> str:
    """The interpolation again, in the one form that `models.environment.expand` reads."""
    # A null stands for nothing: where it would be needed, the variable is missing.
    text = f",{default[0]}" if default and default[0] is not None else ""
    if "}" in text or "," in name:
        raise ValueError(f"${{oc.env:{name}{text}}} must be a plain name and a plain default")
    return f"${{oc.env:{name}{text}}}"


def _named(value: Any, named: Any, path: str) -> Any:
    """`value`, with text that came from the environment as it was named."""
    if isinstance(value, dict) and isinstance(named, dict):
        return {key: _named(value[key], named[key], f"{path}.{key}") for key in value}
    if isinstance(value, list) and isinstance(named, list):
        pairs = enumerate(zip(value, named, strict=True))
        return [_named(*pair, f"{path}[{number}]") for number, pair in pairs]
    # A number, or nothing, is no password; what was decoded from one is used as it is.
    if value == named or not isinstance(value, str) or path in CHOICES:
        return value
    if ".setup[" in path:
        raise SettingError(
            f"{path}={named} would be written into job scripts with what the variable holds; write "
            "$NAME, which the job's own shell reads."
        )
    if path == "data.path" and {match[1] for match in NAMED.finditer(named)} == {CORPUS}:
        return value
    return str(named)
