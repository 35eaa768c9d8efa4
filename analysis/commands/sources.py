"""What commands of key=value settings share: those settings, and the points they read."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ablations.records import SettingError, one_of
from analysis.commands.common import check_no_columns, columns_of, where_of, whole
from analysis.commands.predict import share
from analysis.ladder import home

if TYPE_CHECKING:
    from analysis.study.findings import Findings
    from analysis.study.load import Sweep

KEYS = ("sweep", "points", "runs", "out", "baseline", "resamples", "seed", "where", "columns",
        "treatments", "level")  # fmt: skip


def settings(
    given: list[str], valid: tuple[str, ...], example: str = "sweep=NAME"
) -> dict[str, str]:
    """key=value settings as a mapping. Raises SettingError for what is neither."""
    found = {}
    for setting in given:
        key, equals, value = setting.partition("=")
        if not equals or not value:
            raise SettingError(f"{setting} is not a setting; give key=value, e.g. {example}.")
        if key not in valid:
            raise one_of("key", key, valid)
        found[key] = value
    return found


def find(command: str, given: list[str], chosen: dict[str, str]) -> Findings:
    """Read and study the sweep, or the points of a CSV, that the settings name."""
    from analysis.study.findings import find as find_in

    resamples = whole("resamples", chosen.get("resamples", "1000"), 20)
    seed = whole("seed", chosen.get("seed", "0"), 0)
    sweep = source(chosen)
    for what in sweep.dropped:
        print(f"note: left out: {what}.", file=sys.stderr)
    for what in sweep.incomplete:
        print(f"note: incomplete: {what}.", file=sys.stderr)
    baseline = chosen.get("baseline", "transformer")
    told = " ".join([f"python -m analysis {command}", *given])
    level = share("level", chosen.get("level", "0.95"))
    return find_in(sweep, baseline, resamples, seed, told, level)


def source(chosen: dict[str, str]) -> Sweep:
    """The sweep, sweeps or CSV that the settings name, at the level that `where` chooses."""
    from analysis.study.source import from_csv, from_sweeps

    if ("sweep" in chosen) == ("points" in chosen):
        raise SettingError(
            "sweep= is missing; give the name of a sweep, sweep=NAME, or points=FILE.csv."
            if "sweep" not in chosen
            else "sweep= and points= are both given; give one of them."
        )
    if "points" in chosen:
        path = Path(chosen["points"])
        columns = columns_of(chosen.get("columns", ""))
        where = where_of(chosen.get("where", ""))
        return from_csv(path, False, columns, where, names(chosen, "treatments"))
    check_no_columns(chosen.get("columns", ""))
    runs = home() / chosen.get("runs", "runs")
    sweeps = names(chosen, "sweep")
    if not sweeps or len(set(sweeps)) < len(sweeps):
        told = "names none" if not sweeps else "names one twice, whose points would count twice"
        raise SettingError(f"sweep={chosen['sweep']} {told}; give sweep=NAME or sweep=A,B.")
    return from_sweeps([runs / name for name in sweeps], where_of(chosen.get("where", "")))


def folder(chosen: dict[str, str]) -> Path:
    """Where it is written: out, or reports/ and the sweep's name."""
    name = "+".join(names(chosen, "sweep")) or Path(chosen["points"]).stem
    name += "".join(
        f"-{key}={'+'.join(values)}" for key, values in where_of(chosen.get("where", "")).items()
    )
    return Path(chosen.get("out", home() / "reports" / name))


def names(chosen: dict[str, str], key: str) -> tuple[str, ...]:
    """A setting that lists names with commas, or nothing."""
    return tuple(part for part in chosen.get(key, "").split(",") if part)
