"""Environment variables in settings: where they may stand, and what records keep of them.

A variable may hold a password. So `${oc.env:NAME}` is refused in whatever decides a run's numbers,
names a folder or is recorded by value, and keeps its name in the settings of places: where it is
used, models.environment.expand reads it.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.resolvers import oc

from models.environment import NAMED
from models.errors import SettingError

ALLOWED = re.compile(r"(cluster|logging)\..*|data\.path|runs")
SCRIPT_LINES = re.compile(r"cluster\.(.*\.)?setup\b.*")
"""Lines of the job script, which lies in the sweep's folder; its shell reads variables itself."""
CHOICES = ("cluster.launcher", "cluster.gpu_kind")
"""Checked against lists of names before anything is recorded."""
CORPUS = "ARCHLADDER_DATA"
"""A folder by definition, recorded as one: a run is retried where the variable is not set."""


def settings_of(config: DictConfig) -> dict[str, Any]:
    """A composed configuration as plain settings, with every interpolation resolved but those of
    environment variables, which keep their names: `/data/${oc.env:USER}`.

    Raises SettingError where a variable decides a setting that must not depend on one, however
    many interpolations lie between them.
    """
    values = _resolved(config)
    with _environment(_by_name):
        try:
            named = _resolved(config)
        except Exception as error:
            key = getattr(error, "full_key", None) or "a setting"
            raise _refusal(str(key), "a variable that decides which setting is read") from error
    kept = _kept(values, named, "")
    assert isinstance(kept, dict)
    return kept


def _resolved(config: DictConfig) -> dict[str, Any]:
    content = OmegaConf.to_container(config, resolve=True)
    assert isinstance(content, dict)
    return {str(key): value for key, value in content.items()}


@contextlib.contextmanager
def _environment(read: Callable[..., Any]) -> Iterator[None]:
    """`${oc.env:…}` is answered by `read` while the block lasts."""
    OmegaConf.register_new_resolver("oc.env", read, replace=True)
    try:
        yield
    finally:
        OmegaConf.register_new_resolver("oc.env", oc.env, replace=True)


def _by_name(name: str, *default: Any) -> str:
    """The interpolation again, in the one form that `models.environment.expand` reads."""
    # A null stands for nothing: where it would be needed, the variable is missing.
    text = f",{default[0]}" if default and default[0] is not None else ""
    if "}" in text or "," in name:
        raise SettingError(f"${{oc.env:{name}{text}}} must be a plain name and a plain default.")
    return f"${{oc.env:{name}{text}}}"


def _kept(value: Any, named: Any, path: str) -> Any:
    """`value`, with text that came from the environment as it was named."""
    if isinstance(value, dict) and isinstance(named, dict) and value.keys() == named.keys():
        inside = f"{path}." if path else ""
        return {key: _kept(value[key], named[key], f"{inside}{key}") for key in value}
    if isinstance(value, list) and isinstance(named, list) and len(value) == len(named):
        pairs = enumerate(zip(value, named, strict=True))
        return [_kept(*pair, f"{path}[{number}]") for number, pair in pairs]
    if repr(value) == repr(named):
        return value
    if not ALLOWED.fullmatch(path) or SCRIPT_LINES.fullmatch(path):
        raise _refusal(path, str(named))
    whole = not isinstance(value, str) or path in CHOICES  # a number, or nothing, is no password
    if whole or (path == "data.path" and {m[1] for m in NAMED.finditer(named)} == {CORPUS}):
        return value
    return named


def _refusal(path: str, named: str) -> SettingError:
    if SCRIPT_LINES.fullmatch(path):
        return SettingError(
            f"{path} reads the environment ({named}) and would be written into job scripts; write "
            "$NAME, which the job's own shell reads."
        )
    return SettingError(
        f"{path} reads the environment ({named}), and is recorded or decides a run; give the "
        "value itself. Only cluster, logging, data.path and runs may name a variable."
    )
