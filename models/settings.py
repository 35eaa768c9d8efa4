"""From a plain nested dict to frozen dataclasses, once, with sentences a user can act on."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import math
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from models.errors import SettingError

T = TypeVar("T")


def open_field() -> Any:
    """A dataclass field that takes all keys which are no field: settings that others define."""
    return dataclasses.field(default_factory=dict, metadata={"open": True})


def from_dict(cls: type[T], data: Any, path: str = "", joint: str = ".") -> T:
    """Build dataclass `cls` from a mapping, checking every key and type below it.

    Raises SettingError on an unknown key (with the nearest known ones), a missing one, or a
    value of the wrong type. `path` is the name of `data` for those sentences, and `joint` stands
    between it and a key.
    """
    if not isinstance(data, Mapping):
        raise SettingError(f"{path}={data!r} must be a group of settings.")
    hints = _hints(typing.cast(type, cls))
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    rest = next((name for name, f in fields.items() if f.metadata.get("open")), None)
    others = {key: value for key, value in data.items() if key not in fields or key == rest}
    if others and not rest:
        raise unknown(next(iter(others)), fields, path, joint)
    values: dict[str, Any] = {rest: others} if rest else {}
    for name, field in fields.items():
        if name in values:
            continue
        if name in data:
            values[name] = _convert(hints[name], data[name], _join(path, name, joint))
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise SettingError(f"{_join(path, name, joint)} is missing and has no default.")
    return cls(**values)


def unknown(key: Any, valid: Iterable[str], path: str, joint: str = ".") -> SettingError:
    """The error for a key that is no setting, with the nearest of those that are."""
    near = difflib.get_close_matches(str(key), list(valid), n=3, cutoff=0.0)
    return SettingError(
        f"{_join(path, key, joint)} is not a setting; nearest of those that are: "
        f"{', '.join(_join(path, name, joint) for name in near)}."
    )


def to_dict(value: Any) -> Any:
    """The inverse: dataclasses to plain dicts, tuples to lists, ready for YAML or JSON."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        plain: dict[str, Any] = {}
        for field in dataclasses.fields(value):
            inner = to_dict(getattr(value, field.name))
            plain |= inner if field.metadata.get("open") else {field.name: inner}
        return plain
    if isinstance(value, Mapping):
        return {k: to_dict(v) for k, v in value.items()}
    if isinstance(value, tuple | list):
        return [to_dict(v) for v in value]
    return value


def split_defaults(value: Any) -> tuple[Any, Any]:
    """(`to_dict(value)` without fields at their defaults, those fields alone).

    Both nested as in `value`; the second is empty where no field is at its default.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        kept: dict[str, Any] = {}
        defaults: dict[str, Any] = {}
        for field in dataclasses.fields(value):
            inner = getattr(value, field.name)
            if field.metadata.get("open"):
                kept |= to_dict(inner)
                continue
            if inner == _default(field):
                defaults[field.name] = to_dict(inner)
                continue
            kept[field.name], below = split_defaults(inner)
            if below:
                defaults[field.name] = below
        return kept, defaults
    if isinstance(value, Mapping):
        halves = {key: split_defaults(item) for key, item in value.items()}
        return (
            {key: kept for key, (kept, _) in halves.items()},
            {key: defaults for key, (_, defaults) in halves.items() if defaults},
        )
    return to_dict(value), {}


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default  # MISSING, which equals nothing, where there is none


def merge(kept: Any, defaults: Any) -> Any:
    """The inverse of `split_defaults`, on plain values."""
    if not (isinstance(kept, Mapping) and isinstance(defaults, Mapping)):
        return kept
    return {
        **kept,
        **{
            key: merge(kept[key], value) if key in kept else value
            for key, value in defaults.items()
        },
    }


def flatten(value: Any, path: str = "") -> dict[str, Any]:
    """Nested dict to {dotted name: leaf}; lists are leaves."""
    if isinstance(value, Mapping):
        flat: dict[str, Any] = {}
        for key, item in value.items():
            flat |= flatten(item, _join(path, key))
        return flat
    return {path: value}


def _join(path: str, key: object, joint: str = ".") -> str:
    return f"{path}{joint}{key}" if path else str(key)


def _convert(hint: Any, value: Any, path: str) -> Any:
    if hint is Any:
        return value
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        others = [a for a in args if a is not type(None)]
        if isinstance(value, list | tuple):  # of a list or a name, what was given
            others.sort(key=lambda kind: typing.get_origin(kind) is not tuple)
        return _convert(others[0], value, path)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise SettingError(f"{path}={value!r} must be a list, like [a,b].")
        return tuple(_convert(args[0], v, f"{path}[{i}]") for i, v in enumerate(value))
    if origin is Mapping:
        if not isinstance(value, Mapping):
            raise SettingError(f"{path}={value!r} must be a group of settings.")
        return {key: _convert(args[1], item, _join(path, key)) for key, item in value.items()}
    if dataclasses.is_dataclass(hint):
        if isinstance(value, typing.cast(type, hint)):
            return value
        return from_dict(typing.cast(type, hint), value, path)
    if hint is str and isinstance(value, bool):
        value = str(value).lower()  # YAML reads a bare off or true as a boolean
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if hint is int and isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, hint) or (hint is not bool and isinstance(value, bool)):
        words = {int: "a whole number", float: "a number", bool: "true or false", str: "a name"}
        raise SettingError(f"{path}={value!r} must be {words.get(hint, hint)}.")
    if hint is float:
        value = float(value)  # a subclass, like numpy's, is no plain value
    if hint is float and not math.isfinite(value):
        raise SettingError(f"{path}={value!r} must be finite.")
    return value
