"""From a plain nested dict to frozen dataclasses, once, with sentences a user can act on."""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from models.errors import SettingError

T = TypeVar("T")


def from_dict(cls: type[T], data: Any, path: str = "") -> T:
    """Build dataclass `cls` from a mapping, checking every key and type below it.

    Raises SettingError on an unknown key (with the nearest known ones), a missing one, or a
    value of the wrong type. `path` is the dotted name of `data` for those sentences.
    """
    if not isinstance(data, Mapping):
        raise SettingError(f"{path}={data!r} must be a group of settings.")
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in data:
        if key not in fields:
            near = difflib.get_close_matches(str(key), fields, n=3, cutoff=0.0)
            raise SettingError(
                f"{_join(path, key)} is not a setting; nearest of those that are: "
                f"{', '.join(_join(path, n) for n in near)}."
            )
    values = {}
    for name, field in fields.items():
        if name in data:
            values[name] = _convert(hints[name], data[name], _join(path, name))
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise SettingError(f"{_join(path, name)} is missing and has no default.")
    return cls(**values)


def to_dict(value: Any) -> Any:
    """The inverse: dataclasses to plain dicts, tuples to lists, ready for YAML or JSON."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_dict(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {k: to_dict(v) for k, v in value.items()}
    if isinstance(value, tuple | list):
        return [to_dict(v) for v in value]
    return value


def flatten(value: Any, path: str = "") -> dict[str, Any]:
    """Nested dict to {dotted name: leaf}; lists are leaves."""
    if isinstance(value, Mapping):
        flat: dict[str, Any] = {}
        for key, item in value.items():
            flat |= flatten(item, _join(path, key))
        return flat
    return {path: value}


def _join(path: str, key: object) -> str:
    return f"{path}.{key}" if path else str(key)


def _convert(hint: Any, value: Any, path: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        return _convert(next(a for a in args if a is not type(None)), value, path)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise SettingError(f"{path}={value!r} must be a list, like [a,b].")
        return tuple(_convert(args[0], v, f"{path}[{i}]") for i, v in enumerate(value))
    if dataclasses.is_dataclass(hint):
        return from_dict(typing.cast(type, hint), value, path)
    if hint is str and isinstance(value, bool):
        value = str(value).lower()  # YAML reads a bare off or true as a boolean
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if hint is int and isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, hint) or (hint is not bool and isinstance(value, bool)):
        kinds = {int: "a whole number", float: "a number", bool: "true or false", str: "a name"}
        raise SettingError(f"{path}={value!r} must be {kinds.get(hint, hint)}.")
    if hint is float and not math.isfinite(value):
        raise SettingError(f"{path}={value!r} must be finite.")
    return value
