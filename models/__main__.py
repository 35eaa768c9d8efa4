"""python -m models: what every mix at every size is and costs, without building any of it.

Settings are written as for a sweep, and the groups' files are those of conf/ (a protocol's
`defaults` honoured); neither Hydra nor torch is loaded, so that the answer comes at once.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

from models.command import ended, parse, setting
from models.config import Blueprint, size_name
from models.cost import activation_bytes, count, decode_bytes, parameters
from models.errors import SettingError, one_of
from models.format import byte_count, percent, write_table
from models.format import count as short_count
from models.matching import Matched, check_rules, check_windows, match
from models.mix import TRANSFORMER, Geometry, Mix, build_config, check_rules_of, rule_names
from models.mixers import MIXERS
from models.safe_yaml import parse_yaml
from models.settings import from_dict, unknown

CONF = Path(__file__).resolve().parents[1] / "conf"
COLUMNS = (
    "mix",
    "size",
    "N",
    "N_total",
    "N_body",
    "flops_per_token",
    "state_bytes",
    "kv_bytes",
    "residual",
    "activation_bytes_per_token",
    "N_vs_transformer",
    "moved",
)
T = TypeVar("T")
Row = dict[str, Any]


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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """What every mix at every size is and costs.

    Columns
      N, N_total, N_body         parameters: without the input embedding; with it; without the
                                 embedding and the head. The vocabulary is the size's own
      flops_per_token            of training, forward and backward, at the context
      state_bytes, kv_bytes      what decoding one sequence of the context keeps, in bf16: states
                                 (float32) that do not grow, and keys and values that do
      residual                   (mix - transformer) / transformer in what was matched, else in N
      activation_bytes_per_token what training keeps for the backward pass, in bf16
      N_vs_transformer           N over the N of the size's transformer
      moved                      what the match changed, or why there is no such model

    Exit code 2 where a setting, or a row, cannot be. docs/counts.md has the conventions.
    """

    EXAMPLES = (
        "size=60m,1b", "protocol=olmo_hybrid format=csv",
        "mix=gdn3_attn1 protocol.match=flops context=32768",
    )  # fmt: skip
    mix: tuple[str, ...] = setting((), "names in conf/mix, all unless given", shape="A,B")
    size: tuple[str, ...] = setting(
        (), "names in conf/size; unless given, all whose context is as long as the protocol's "
        "windows", shape="A,B",
    )  # fmt: skip
    protocol: str = setting("controlled", "a name in conf/protocol")
    context: int | None = setting(
        None, "tokens of a sequence, the size's own unless given", least=1
    )
    changes: Mapping[str, str] = setting(
        {}, "any setting of those groups that decides what a model is or costs: "
        "protocol.match=flops, protocol.knob=heads, size.n_kv_heads=4, mix.norm=inputs",
        prefixes=tuple(f"{group}." for group in GROUPS), shape="VALUE",
    )  # fmt: skip
    format: str = setting(
        "table", "how it is printed", choices=("table", "csv", "markdown", "json")
    )
    config_dir: Path | None = setting(
        None, "a folder with files of your own, like PATH/mix/NAME.yaml, which come before conf/'s"
    )


def main(arguments: list[str]) -> int:
    """Print the table; 2 where a setting or a row cannot be, with a sentence on stderr."""
    return ended(lambda: _print(parse(Settings, arguments, "python -m models")))


def _print(asked: Settings) -> int:
    if asked.config_dir is not None and not asked.config_dir.is_dir():
        raise SettingError(f"config_dir={asked.config_dir} is not a folder.")
    rows, problems = table(asked)
    for problem in dict.fromkeys(problems):
        print(f"error: {problem}", file=sys.stderr)
    if any(row["N"] for row in rows):
        written = _json(rows) if asked.format == "json" else _written(rows, asked.format)
        print(written, end="")
    return 2 if problems else 0


@dataclasses.dataclass(frozen=True)
class Asked:
    """One mix at one size."""

    mix: Mix
    size: Blueprint
    conditions: Conditions
    geometry: Geometry
    rules: Matching

    def matched(self) -> Matched:
        """The model, equal to its size's transformer in what the protocol says.

        Raises SettingError where there is none.
        """
        rules, conditions = self.rules, self.conditions
        return match(
            self.mix,
            self.size,
            self.geometry,
            conditions.vocab_size,
            how=rules.match,
            knob=rules.knob,
            tolerance=rules.tolerance,
            context=conditions.context,
        )


def every(asked: Settings) -> list[Asked]:
    """Every mix at every size that is asked for, small sizes and the transformer first.

    Raises SettingError where a setting itself is wrong.
    """
    folders = (CONF,) if asked.config_dir is None else (asked.config_dir, CONF)
    overrides: dict[str, dict[str, Any]] = {group: {} for group in GROUPS}
    for key, text in asked.changes.items():
        group, _, name = key.partition(".")
        overrides[group][name] = _value(text)

    def read(group: str, name: str, others: Iterable[str] = ()) -> dict[str, Any]:
        return _read(folders, group, name, overrides, others)

    mixes = [_fill(Mix, read("mix", name)) for name in _names(folders, "mix", asked.mix)]
    mixers = [*MIXERS.values(), *(m for mix in mixes for m in mix.mixers())]
    sizes = [read("size", name) for name in _names(folders, "size", asked.size)]
    (name,) = _names(folders, "protocol", (asked.protocol,))
    protocol = read("protocol", name, rule_names(mixers)) | {"mixers": mixers}
    geometry, rules = _fill(Geometry, protocol), _fill(Matching, protocol)
    check_rules_of(geometry.options, mixers)
    check_rules(rules.match, rules.knob)
    if asked.context is not None:
        sizes = [{**size, "context": asked.context} for size in sizes]
    filled = [(_fill(Blueprint, size), _fill(Conditions, size)) for size in sizes]
    if not asked.size:
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
        Asked(mix, blueprint, conditions, geometry, rules)
        for blueprint, conditions in filled
        for mix in ordered
    ]


def table(asked: Settings) -> tuple[list[Row], list[str]]:
    """(rows, sentences of what cannot be); such a row has empty counts and the sentence.

    Raises SettingError where a setting itself is wrong.
    """
    rows: list[Row] = []
    problems: list[str] = []
    for one in every(asked):
        row: Row = dict.fromkeys(COLUMNS, "") | {"mix": one.mix.name, "size": one.size.name}
        try:
            row |= _counts(one.matched(), one.conditions.context)
        except SettingError as error:
            problems.append(str(error))
            row["moved"] = str(error)
        rows.append(row)
    return rows, problems


def _counts(matched: Matched, context: int) -> Row:
    counts = count(matched.config, context)
    state, kv = decode_bytes(matched.config, context)
    return {
        "N": counts.N,
        "N_total": counts.N_total,
        "N_body": counts.N_body,
        "flops_per_token": counts.flops_per_token,
        "state_bytes": state,
        "kv_bytes": kv,
        "residual": matched.residual,
        "activation_bytes_per_token": activation_bytes(matched.config, context),
        "N_vs_transformer": counts.N / matched.N_target,
        "moved": matched.moved,
    }


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


def _names(folders: Sequence[Path], group: str, asked: tuple[str, ...]) -> list[str]:
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


def _written(rows: list[Row], style: str) -> str:
    if style == "csv":
        exact = ([_exact(row[name]) for name in COLUMNS] for row in rows)
        return write_table(COLUMNS, exact, style)
    names = [name.replace("_per_token", "/token").replace("_vs_", "/") for name in COLUMNS]
    words = [COLUMNS.index(name) for name in ("mix", "size", "moved")]
    return write_table(names, map(_readable, rows), style, words)


def _json(rows: list[Row]) -> str:
    """Counts as numbers, null where there is no such model."""

    def plain(value: Any) -> Any:
        if isinstance(value, float) and value.is_integer():
            return int(value)
        return None if value == "" else value

    exact = [{key: plain(value) for key, value in row.items()} for row in rows]
    return json.dumps(exact, indent=1, ensure_ascii=False) + "\n"


def _exact(value: Any) -> str:
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() and value else f"{value:.10g}"
    return str(value)


def _readable(row: Row) -> list[str]:
    """Cells for a reader: four digits with a unit."""
    cells = []
    for name in COLUMNS:
        value = row[name]
        if isinstance(value, str):
            cells.append(value)
        elif name == "residual":
            cells.append(percent(value, "+.2f"))
        elif name == "N_vs_transformer":
            cells.append(f"{value:.3f}")
        elif "bytes" in name:
            cells.append(byte_count(value))
        else:
            cells.append(short_count(value))
    return cells


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
