"""python -m models: what every mix at every size is and costs, without building any of it.

Settings are written as for a sweep and read from conf/ (a protocol's `defaults` honoured); neither
Hydra nor torch is loaded, so that the answer comes at once.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

from models.config import Blueprint, size_name
from models.cost import activation_bytes, count, decode_bytes, parameters
from models.errors import SettingError, one_of
from models.matching import check_rules, check_windows, match
from models.mix import TRANSFORMER, Geometry, Mix, build_config, check_rules_of, rule_names
from models.mixers import MIXERS
from models.safe_yaml import parse_yaml
from models.settings import from_dict, unknown
from models.terminal import readable

HELP = """\
What every mix at every size is and costs.

  python -m models [mix=A,B] [size=A,B] [protocol=NAME] [context=TOKENS] [KEY=VALUE ...]
                   [--format table|csv|markdown] [--config-dir FOLDER]

  mix, size    names in conf/mix and conf/size; unless given, all mixes, and all sizes whose
               context is as long as the protocol's windows
  protocol     a name in conf/protocol; controlled unless given
  context      sequence length in tokens; the size's own unless given
  KEY=VALUE    any setting of those groups: protocol.match=flops, protocol.knob=heads,
               size.n_kv_heads=4, mix.norm=inputs
  FOLDER       holds files of your own, like FOLDER/mix/NAME.yaml; they come before conf/'s

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

Examples
  python -m models size=60m,1b
  python -m models protocol=olmo_hybrid --format csv
  python -m models mix=gdn3_attn1 protocol.match=flops context=32768
"""
CONF = Path(__file__).resolve().parents[1] / "conf"
FORMATS = ("csv", "markdown", "table")
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


def main(arguments: list[str]) -> int:
    """Print the table; 2 where a setting or a row cannot be, with a sentence on stderr."""
    readable()
    if {"-h", "--help"} & set(arguments):
        print(HELP, end="")
        return 0
    try:
        style, folder, chosen, overrides = _parse(arguments)
        rows, problems = table(chosen, overrides, (CONF,) if folder is None else (folder, CONF))
    except SettingError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for problem in dict.fromkeys(problems):
        print(f"error: {problem}", file=sys.stderr)
    if any(row["N"] for row in rows):
        print({"csv": _csv, "markdown": _markdown, "table": _table}[style](rows), end="")
    return 2 if problems else 0


def table(
    chosen: Mapping[str, str],
    overrides: Mapping[str, Mapping[str, Any]],
    folders: Sequence[Path] = (CONF,),
) -> tuple[list[Row], list[str]]:
    """(rows, sentences of what cannot be); such a row has empty counts and the sentence.

    chosen: {`mix`, `size`, `protocol`, `context`: value as typed}, each optional; overrides:
    {group: {key: value}}; folders: of groups of files, the first that has a file gives it. Raises
    SettingError where a setting itself is wrong.
    """

    def names(group: str, text: str | None, most: int | None = None) -> list[str]:
        return _names(folders, group, text, most)

    def read(group: str, name: str, others: Iterable[str] = ()) -> dict[str, Any]:
        return _read(folders, group, name, overrides, others)

    mixes = [_fill(Mix, read("mix", name)) for name in names("mix", chosen.get("mix"))]
    mixers = [*MIXERS.values(), *(m for mix in mixes for m in mix.mixers())]
    sizes = [read("size", name) for name in names("size", chosen.get("size"))]
    (name,) = names("protocol", chosen.get("protocol", "controlled"), most=1)
    protocol = read("protocol", name, rule_names(mixers)) | {"mixers": mixers}
    geometry, rules = _fill(Geometry, protocol), _fill(Matching, protocol)
    check_rules_of(geometry.options, mixers)
    check_rules(rules.match, rules.knob)
    if "context" in chosen:
        context = _value(chosen["context"])
        if not isinstance(context, int) or isinstance(context, bool) or context < 1:
            raise SettingError(f"context={context} must be a whole number of at least 1.")
        sizes = [{**size, "context": context} for size in sizes]
    filled = [(_fill(Blueprint, size), _fill(Conditions, size)) for size in sizes]
    if "size" not in chosen:
        # Of all sizes, those whose context holds the protocol's windows.
        held = [f for f in filled if f[1].context >= max(geometry.windows, default=0)]
        filled = held or filled
    filled.sort(
        key=lambda f: parameters(build_config(TRANSFORMER, f[0], geometry, f[1].vocab_size))
    )
    for blueprint, conditions in filled:
        check_windows(geometry, blueprint, conditions.context)

    rows: list[Row] = []
    problems: list[str] = []
    ordered = sorted(mixes, key=_transformer_first)
    for blueprint, conditions in filled:
        for mix in ordered:
            row: Row = dict.fromkeys(COLUMNS, "") | {"mix": mix.name, "size": blueprint.name}
            try:
                row |= _counts(mix, blueprint, conditions, geometry, rules)
            except SettingError as error:
                problems.append(str(error))
                row["moved"] = str(error)
            rows.append(row)
    return rows, problems


def _counts(
    mix: Mix, size: Blueprint, conditions: Conditions, geometry: Geometry, rules: Matching
) -> Row:
    context = conditions.context
    matched = match(
        mix,
        size,
        geometry,
        conditions.vocab_size,
        how=rules.match,
        knob=rules.knob,
        tolerance=rules.tolerance,
        context=context,
    )
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


def _parse(
    arguments: Iterable[str],
) -> tuple[str, Path | None, dict[str, str], dict[str, dict[str, Any]]]:
    """(format, config-dir, {mix | size | protocol | context: text}, {group: {key: value}})."""
    style, folder = "table", None
    chosen: dict[str, str] = {}
    overrides: dict[str, dict[str, Any]] = {group: {} for group in GROUPS}
    rest = iter(arguments)
    for argument in rest:
        # As for a sweep, where a + adds what a file does not name.
        key, equals, text = argument.lstrip("+").partition("=")
        group, dot, setting = key.partition(".")
        if key == "--format":
            style = text if equals else next(rest, "")
            if style not in FORMATS:
                raise one_of("--format", style, FORMATS)
        elif key == "--config-dir":
            folder = Path(text if equals else next(rest, ""))
            if not folder.is_dir():
                raise SettingError(f"--config-dir {folder} is not a folder.")
        elif not equals:
            raise SettingError(f"{argument} is not a setting; write KEY=VALUE, or see --help.")
        elif dot and group in GROUPS:
            overrides[group][setting] = _value(text)
        elif key in (*GROUPS, "context"):
            chosen[key] = text
        else:
            raise SettingError(
                f"{key} is not a setting; valid: context, {', '.join(GROUPS)}, and "
                f"{', '.join(f'{g}.KEY' for g in GROUPS)}, like protocol.match=flops."
            )
    return style, folder, chosen, overrides


def _value(text: str) -> Any:
    if text.startswith("*"):  # a pattern of letters, which YAML takes for a reference
        return text
    try:
        return parse_yaml(text)
    except (ValueError, TypeError, yaml.YAMLError):
        raise SettingError(
            f"{text} is no value; write a number, a name or a list, [a,b]."
        ) from None


def _names(folders: Sequence[Path], group: str, text: str | None, most: int | None) -> list[str]:
    """The names asked for, in order and once each; all there are for None."""
    there = sorted({path.stem for f in folders for path in (f / group).glob("*.yaml")})
    if text is None:
        return there
    names = list(dict.fromkeys(text.split(",")))
    for name in names:
        if name not in there:
            raise one_of(group, name, there)
    if most is not None and len(names) > most:
        raise SettingError(f"{group}={text} must be one of: {', '.join(there)}.")
    return names


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
    valid = {f.name for f in fields if not f.metadata.get("open")} | {*values, *others}
    for key, value in overrides[group].items():
        if key not in valid and group != "mix":  # a Mix refuses what no mixer has
            raise unknown(key, sorted(valid), group)
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


def _csv(rows: list[Row]) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: _exact(value) for key, value in row.items()} for row in rows)
    return out.getvalue()


def _exact(value: Any) -> str:
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() and value else f"{value:.10g}"
    return str(value)


def _markdown(rows: list[Row]) -> str:
    lines = [COLUMNS, ["---", "---", *["---:"] * (len(COLUMNS) - 3), "---"]]
    lines += [_readable(row) for row in rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _table(rows: list[Row]) -> str:
    header = [name.replace("_per_token", "/token").replace("_vs_", "/") for name in COLUMNS]
    lines = [header, *(_readable(row) for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(COLUMNS) - 1)]
    out = []
    for line in lines:
        cells = [
            cell.ljust(width) if i < 2 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=False))
        ]
        out.append("  ".join([*cells, line[-1]]) + "\n")
    return "".join(out)


def _readable(row: Row) -> list[str]:
    """Cells for a reader: four digits with a unit."""
    cells = []
    for name in COLUMNS:
        value = row[name]
        if isinstance(value, str):
            cells.append(value)
        elif name == "residual":
            cells.append(f"{value:+.2%}")
        elif name == "N_vs_transformer":
            cells.append(f"{value:.3f}")
        elif "bytes" in name:
            cells.append(_scaled(value, 1024, ("B", "KiB", "MiB", "GiB", "TiB")))
        else:
            cells.append(_scaled(value, 1000, ("", "k", "M", "G", "T")))
    return cells


def _scaled(value: float, base: int, units: tuple[str, ...]) -> str:
    power = 0
    while value >= base and power < len(units) - 1:
        value, power = value / base, power + 1
    digits = 0 if power == 0 else 1 if value >= 100 else 2
    return f"{value:.{digits}f} {units[power]}".rstrip()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
