"""The models that mix, size and protocol name: files of conf/ read, filled and matched.

Settings are written as for a sweep (a protocol's `defaults` honoured), and neither Hydra nor torch
is loaded.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

from models.config import Blueprint, size_name
from models.cost import parameters
from models.errors import SettingError, one_of
from models.matching import Matched, check_rules, check_windows, match
from models.mix import TRANSFORMER, Geometry, Mix, build_config, check_rules_of, rule_names
from models.mixers import MIXERS
from models.safe_yaml import parse_yaml
from models.settings import from_dict, unknown

CONF = Path(__file__).resolve().parents[1] / "conf"
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Conditions:
    """What a size is named for, beside its blueprint."""

    vocab_size: int
    context: int


@dataclasses.dataclass(frozen=True)
class Matching:
    """What a protocol asks of matching."""

    match: str
    tolerance: float
    knob: str = "mlp_hidden"


# The dataclasses that a group of settings fills.
GROUPS: dict[str, tuple[type, ...]] = {
    "mix": (Mix,),
    "size": (Blueprint, Conditions),
    "protocol": (Geometry, Matching),
}


@dataclasses.dataclass(frozen=True)
class NamedModel:
    """A mix at a size, under a protocol's rules."""

    mix: Mix
    size: Blueprint
    conditions: Conditions
    geometry: Geometry
    rules: Matching

    def matched(self) -> Matched:
        """The model; SettingError where the rules allow none."""
        return match(
            self.mix,
            self.size,
            self.geometry,
            self.conditions.vocab_size,
            how=self.rules.match,
            knob=self.rules.knob,
            tolerance=self.rules.tolerance,
            context=self.conditions.context,
        )


def named(
    mix: Sequence[str] = (),
    size: Sequence[str] = (),
    protocol: str = "controlled",
    context: int | None = None,
    changes: Mapping[str, str] | None = None,
    config_dir: Path | None = None,
) -> list[NamedModel]:
    """Every mix at every size, small sizes and the transformer first.

    mix, size: names of files, all where empty; context: in tokens, the size's own unless given;
    changes: settings of those groups as one types them, {"size.n_kv_heads": "4"}; config_dir: a
    folder whose files come before conf/'s. Raises SettingError where a setting is wrong.
    """
    folders = (CONF,) if config_dir is None else (config_dir, CONF)
    overrides: dict[str, dict[str, Any]] = {group: {} for group in GROUPS}
    for key, text in (changes or {}).items():
        group, _, name = key.partition(".")
        overrides[group][name] = _value(text)

    def read(group: str, name: str, others: Iterable[str] = ()) -> dict[str, Any]:
        return _read(folders, group, name, overrides, others)

    if config_dir is not None and not config_dir.is_dir():
        raise SettingError(f"config_dir={config_dir} is not a folder.")
    mixes = [_fill(Mix, read("mix", name)) for name in _names(folders, "mix", mix)]
    mixers = [*MIXERS.values(), *(m for mix in mixes for m in mix.mixers())]
    sizes = [read("size", name) for name in _names(folders, "size", size)]
    (name,) = _names(folders, "protocol", (protocol,))
    settings = read("protocol", name, rule_names(mixers)) | {"mixers": mixers}
    geometry, rules = _fill(Geometry, settings), _fill(Matching, settings)
    check_rules_of(geometry.options, mixers)
    check_rules(rules.match, rules.knob)
    if context is not None:
        sizes = [{**values, "context": context} for values in sizes]
    filled = [(_fill(Blueprint, values), _fill(Conditions, values)) for values in sizes]
    if not size:
        # Of all sizes, those whose context holds the protocol's windows.
        held = [f for f in filled if f[1].context >= max(geometry.windows, default=0)]
        filled = held or filled
    filled.sort(
        key=lambda f: parameters(build_config(TRANSFORMER, f[0], geometry, f[1].vocab_size))
    )
    for blueprint, conditions in filled:
        check_windows(geometry, blueprint, conditions.context)
    ordered = sorted(mixes, key=_transformer_first)
    return [
        NamedModel(each, blueprint, conditions, geometry, rules)
        for blueprint, conditions in filled
        for each in ordered
    ]


def _transformer_first(mix: Mix) -> tuple[bool, str]:
    return dataclasses.replace(mix.reads(), name=TRANSFORMER.name) != TRANSFORMER.reads(), mix.name


def _value(text: str) -> Any:
    if text.startswith("*"):  # a pattern of letters, which YAML takes for a reference
        return text
    try:
        return parse_yaml(text)
    except (ValueError, TypeError, yaml.YAMLError):
        raise SettingError(
            f"{text} is no value; write a number, a name or a list, [a,b]."
        ) from None


def _names(folders: Sequence[Path], group: str, asked: Sequence[str]) -> list[str]:
    """The names asked for, in order and once each; all there are for none."""
    there = sorted({path.stem for f in folders for path in (f / group).glob("*.yaml")})
    for name in asked:
        if name not in there:
            raise one_of(group, name, there)
    return list(dict.fromkeys(asked)) or there


def _read(
    folders: Sequence[Path],
    group: str,
    name: str,
    overrides: Mapping[str, Mapping[str, Any]],
    others: Iterable[str],
) -> dict[str, Any]:
    """A file of settings with the files it stands on below it and the overrides above.

    others: names that may be set beside those of the group's dataclasses and of the file.
    """
    file = _file(folders, group, name)
    values = dict(file)
    fields = [f for cls in GROUPS[group] for f in dataclasses.fields(cls)]
    read = {f.name for f in fields if not f.metadata.get("open")} | {*others}
    for key, value in overrides[group].items():
        if group != "mix" and key not in read:  # a Mix refuses what no mixer has
            if key not in file:
                raise unknown(key, sorted(read | {*file}), group)
            raise SettingError(
                f"{group}.{key}={value} decides nothing of what a model is or costs; leave it out."
            )
        values[key] = value
    if group == "size" and values.get("name") == file.get("name"):
        values["name"] = size_name(file, values)
    return {"group": group, **values}


def _file(folders: Sequence[Path], group: str, name: str) -> dict[str, Any]:
    files = (folder / group / f"{name}.yaml" for folder in folders)
    path = next((file for file in files if file.is_file()), None)
    if path is None:  # named by another file's defaults
        raise SettingError(f"{group}/{name}.yaml is in none of: {', '.join(map(str, folders))}.")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise SettingError(f"{path} is no YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(content, dict):
        raise SettingError(f"{path} must hold settings, like name: {name}.")
    values: dict[str, Any] = {}
    for below in content.pop("defaults", []):
        if below != "_self_":
            values |= _file(folders, group, below)
    return values | content


def _fill(cls: type[T], values: Mapping[str, Any]) -> T:
    """The dataclass's own part of a group."""
    group = values["group"]
    fields = {f.name for c in GROUPS[group] for f in dataclasses.fields(c)}
    own = {f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    part = {key: value for key, value in values.items() if key in own}
    if cls is Mix:  # which refuses what no mixer has
        part |= {k: v for k, v in values.items() if k not in fields and k != "group"}
    if cls is Geometry:
        part |= {k: v for k, v in values.items() if k in rule_names(values["mixers"])}
    return from_dict(cls, part, group)
