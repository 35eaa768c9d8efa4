"""Tune a setting for each mix and size by few runs, each round chosen by what came before.

    python sweeps/tune.py mix=transformer,gdn3_attn1 size=50k,100k,200k over=lr
    python sweeps/tune.py mix=gdn3_attn1 size=50k over=weight_decay seed=0,1 values=8 plan=true

The runs are those of a sweep (sweep=tuning unless named), planned, started and resumed as
sweeps/run.py does; the same command goes on where it stopped. What they say:
`python -m analysis tune sweep=tuning`. What a ladder takes from them: `protocol=tuned`.
"""

from __future__ import annotations

import math
import shlex
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from models.errors import SettingError
from sweeps import run

if TYPE_CHECKING:
    from ablations.tuning import Setting
    from sweeps.search import Wanted

HELP = """\
archladder: tune a setting for each mix and size

python sweeps/tune.py mix=MIX[,MIX…] size=SIZE[,SIZE…] [over=lr] [KEY=VALUE…]
  over=lr         what is tuned: lr, weight_decay or batch
  start=0.5,1,2   first values, as multiples of what the ladder or the settings say
  values=6        most values a mix and size is trained at, each with every seed
  budget=0.5      Chinchilla budgets that each run is trained on, as protocol.chinchilla=[0.5]
  width=1.6       a search ends once its optimum is known within this factor
  sweep=tuning    the sweep that the runs belong to
  plan=true       show the first round and what the whole may cost, start nothing

All other settings are those of python sweeps/run.py; seed=0,1 trains each value twice, which tells
the noise. Afterwards: python -m analysis tune sweep=tuning over=lr
"""
OWN = {"over": "lr", "start": "0.5,1,2", "values": "6", "width": "1.6", "budget": "0.5"}
MOST_ROUNDS = 20


def main() -> int:
    """Exit code 0 when all searches ended, 1 when a run did not, 2 on a setting that cannot be
    used."""
    return run.ended(_tune, lambda: HELP)


def _tune(arguments: list[str]) -> int:
    from ablations.tuning import settings_of
    from sweeps.search import Wanted

    own, overrides = _parted(arguments)
    over = own["over"].split(",")
    if len(over) > 1:
        raise SettingError(
            f"over={own['over']} names several settings; tune one at a time, in a sweep each."
        )
    (setting,) = settings_of(over)
    start = sorted(_number("start", text) for text in own["start"].split(","))
    if not own["values"].isdecimal():
        raise SettingError(f"values={own['values']} must be a whole number, like 6.")
    wanted = Wanted(_number("width", own["width"]), int(own["values"]))
    if len(set(start)) < 2:
        raise SettingError(
            f"start={own['start']} is one value; a search begins with two or more, like 0.5,1,2."
        )
    if wanted.width <= 1 or wanted.values < len(start):
        raise SettingError(
            f"width={own['width']} must be above 1 and values={own['values']} at least the "
            f"{len(start)} of start."
        )
    named = {o.lstrip("+").partition("=")[0] for o in overrides}
    if setting.field in named:
        raise SettingError(f"{setting.field} is what over={over[0]} varies; leave it out.")
    if "protocol.chinchilla" not in named:
        overrides.append(f"protocol.chinchilla=[{_number('budget', own['budget']):g}]")
    elif own["budget"] != OWN["budget"]:
        raise SettingError(
            f"budget={own['budget']} and protocol.chinchilla are both given; give one of them."
        )
    if "sweep" not in named:
        overrides.append("sweep=tuning")
    if "treatments" not in named:
        overrides.append(f"treatments=[mix,{setting.field}]")
    command = "python sweeps/tune.py " + shlex.join(arguments)
    return _rounds(overrides, setting, start, wanted, command)


def _parted(arguments: list[str]) -> tuple[dict[str, str], list[str]]:
    """The settings of this command, and Hydra's overrides."""
    own, overrides = dict(OWN), []
    for argument in arguments:
        key, mark, value = argument.removeprefix("--").partition("=")
        if key in OWN and mark:
            own[key] = value
        elif argument != "-m":
            overrides.append(argument)
    return own, overrides


def _number(key: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise SettingError(f"{key}={text} must be a number above 0.")
    return value


@dataclass
class _Search:
    """The search of one mix and size: its seeds' settings as composed, and the values so far."""

    mix: str
    size: str
    spec: Mapping[str, Any]
    """Of a run at the settings as given, by which the ladder's rule goes."""
    start: list[float]
    values: list[float] = field(default_factory=list)
    composed: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.values = list(self.start)


def _rounds(
    overrides: list[str], setting: Setting, start: list[float], wanted: Wanted, command: str
) -> int:
    """Train round after round until every search has ended."""
    from ablations.optima import tuned_of
    from ablations.tuning import diverged_there, read_trials, values_there
    from sweeps.search import next_value

    composed = run.composed(["-m", *overrides])
    searches = _searches(composed, setting, start)
    folder = run.runs_folder(composed[0]) / composed[0]["sweep"]
    # Rounds of an earlier call, which may have been stopped inside one.
    there = values_there(folder, setting)
    for search in searches:
        values = there.get((search.mix, search.size), set())
        search.values += [v for v in sorted(values) if not _is_among(v, search.values)]
    for number in range(MOST_ROUNDS):
        diverged = diverged_there(folder, setting)
        asked = [
            _with(settings, setting.field, setting.set_to(value, search.spec))
            for search in searches
            for value in search.values
            for settings in search.composed
            if not _is_among(value, diverged.get((search.mix, search.size, settings["seed"]), []))
        ]
        if number == 0:
            _say_cost(searches, start, wanted)
        code = run.sweep(asked, command, says_next=False) if asked else 0
        if composed[0]["plan"] or composed[0]["dry_run"]:
            return code
        try:  # a run that diverged says something too
            tuned = tuned_of(read_trials(folder, (setting.name,)), (setting.name,))
        except SettingError:
            if code:
                return code
            raise
        added = 0
        for search in searches:
            own = tuned[search.mix]
            cell = next(one for one in (*own.cells, *own.lost) if one.size == search.size)
            value = next_value(own, cell, wanted, [math.log2(v) for v in search.start])
            if value is not None:
                search.values.append(2**value)
                print(f"next for {search.mix} {search.size}: {setting.name} {2**value:.3g}")
                added += 1
        if not added:
            break
    else:
        print(f"The search ended after {MOST_ROUNDS} rounds; the same command goes on with it.")
    print(f"next: python -m analysis tune sweep={composed[0]['sweep']} over={setting.name}")
    return 0


def _searches(
    composed: list[dict[str, Any]], setting: Setting, start: list[float]
) -> list[_Search]:
    """One search per mix and size, with the first values, rising."""
    from ablations.resolve import each_its_own, resolve
    from sweeps.compose import of_the_run

    found: dict[tuple[str, str], _Search] = {}
    for one, asked in zip(
        composed, each_its_own([of_the_run(one) for one in composed]), strict=True
    ):
        spec = resolve(asked, plan_only=True)
        key = spec.mix.name, spec.size.name
        if key not in found:
            plain = spec.plain()
            middle = setting.ruled(plain) if setting.rule else setting.value(plain)
            values = [middle * factor for factor in start]
            found[key] = _Search(*key, plain, values)
        if any(other["seed"] == one["seed"] for other in found[key].composed):
            raise SettingError(
                f"mix={key[0]} size={key[1]} seed={one['seed']} is asked for more than once; vary "
                "mix, size and seed here, and anything else in a sweep of its own."
            )
        found[key].composed.append(one)
    return list(found.values())


def _is_among(value: float, values: Iterable[float]) -> bool:
    from ablations.optima import SAME

    return any(abs(value / other - 1) < SAME for other in values)


def _with(settings: dict[str, Any], field_name: str, value: float) -> dict[str, Any]:
    """Settings as composed, with another value of one."""
    group, _, key = field_name.partition(".")
    return {**settings, group: {**settings[group], key: value}}


def _say_cost(searches: list[_Search], start: list[float], wanted: Wanted) -> None:
    runs = sum(len(search.composed) for search in searches)
    print(
        f"Search: {len(searches)} mixes and sizes, {len(start)} values each to begin with "
        f"({runs * len(start)} runs, planned below) and at most {wanted.values} "
        f"({runs * wanted.values} runs, at most {wanted.values / len(start):.3g} times that time)."
    )


if __name__ == "__main__":
    sys.exit(main())
