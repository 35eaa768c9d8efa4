"""python -m models: what every mix at every size is and costs, without building any of it.

Settings are written as for a sweep, and the groups' files are those of conf/ (a protocol's
`defaults` honoured); neither Hydra nor torch is loaded, so that the answer comes at once.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from models.command import ended, parse, setting
from models.cost import activation_bytes, count, decode_bytes
from models.errors import SettingError
from models.format import byte_count, percent, write_table
from models.format import count as short_count
from models.matching import Matched
from models.named import GROUPS, named

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
Row = dict[str, Any]


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
    rows, problems = table(asked)
    for problem in dict.fromkeys(problems):
        print(f"error: {problem}", file=sys.stderr)
    if any(row["N"] for row in rows):
        written = _json(rows) if asked.format == "json" else _written(rows, asked.format)
        print(written, end="")
    return 2 if problems else 0


def table(asked: Settings) -> tuple[list[Row], list[str]]:
    """(rows, sentences of what cannot be); such a row has empty counts and the sentence.

    Raises SettingError where a setting itself is wrong.
    """
    rows: list[Row] = []
    problems: list[str] = []
    for model in named(
        asked.mix, asked.size, asked.protocol, asked.context, asked.changes, asked.config_dir
    ):
        row: Row = dict.fromkeys(COLUMNS, "") | {"mix": model.mix.name, "size": model.size.name}
        try:
            row |= _counts(model.matched(), model.conditions.context)
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
