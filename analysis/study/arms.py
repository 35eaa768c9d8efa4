"""Arms: what a sweep compares, a mix together with the values of its other declared treatments.

Seeds are averaged inside an arm alone. Where runs of one mix and size differ in a learning rate as
well, each rate is an arm, and laws, savings, tables and figures go by arm: there the column `mix`
holds its name, `gdn3_attn1@lr_multiplier=2`. Mixes are compared at each level of the other
treatments, an arm with its twin, the baseline's arm of the same levels.
"""

from __future__ import annotations

import shlex
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import pandas as pd

from ablations.records import SettingError, nearest
from analysis.study.recorded import flattened, shortened
from analysis.study.rows import NONE, is_empty, word

if TYPE_CHECKING:
    from analysis.study.load import Run, Sweep

MARK = "@"
"""Between a mix and its levels in an arm's name."""
OF_MIX = "of_mix"
"""The column of points that holds an arm's mix."""
COMPARED = (
    "mix", "N", "N_total", "N_body", "D", "C", "loss", "bpb", "size", "seed", "run", "weight",
    "seconds", "epochs", "chinchilla", "step", "state", "data_hash", "skipped_steps", OF_MIX,
)  # fmt: skip
"""Columns that have a part of their own in a ladder."""
RESULTS = (
    "arm", "baseline", "kind", "where", "value", "low", "high", "p_above_1", "unreachable",
    "target_loss", "tokens_mix", "N_mix", "N_beyond", "D_beyond", "D_mix_beyond", "model", "below",
    "range", "in_range", "interval",
)  # fmt: skip
"""Columns of results, beside which an arm's levels stand."""
# Not settings of training, or following from others by rule.
NOT_SET = (
    "sweep", "seed", "name", "identity", "hash", "evaluation", "resources", "logging", "paths",
    "model", "recipe", "matched",
)  # fmt: skip


@dataclass(frozen=True)
class Treatment:
    """Something that is varied beside the mix: settings, or columns of a CSV, that move together.

    `levels` are their values as words, in order; of several settings the first one's.
    """

    name: str
    settings: tuple[str, ...]
    levels: tuple[str, ...]

    @property
    def words(self) -> str:
        """Its name, and what moves with it."""
        also = ", ".join(setting.rpartition(".")[2] for setting in self.settings[1:])
        return f"{self.name} (with {also})" if also else self.name

    def __str__(self) -> str:
        also = f" (with {', '.join(self.settings[1:])})" if len(self.settings) > 1 else ""
        return f"{self.settings[0]}{also} = {', '.join(self.levels)}"


@dataclass(frozen=True)
class Arm:
    """A mix at levels of treatments, by their names; at none of those that it does not read."""

    name: str
    mix: str
    levels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Contrast:
    """Two arms of one mix that differ in the level of one treatment alone."""

    treatment: Treatment
    arm: str
    level: str
    reference: str
    reference_level: str


@dataclass(frozen=True)
class Arms:
    """The arms of a sweep by name, in order; none where the mix is all that was varied."""

    treatments: tuple[Treatment, ...] = ()
    by_name: Mapping[str, Arm] = field(default_factory=dict)
    reference: Mapping[str, str] = field(default_factory=dict)
    """Levels by treatment that ratios of savings are over; of the others it is the first."""

    def over(self, reference: Mapping[str, str]) -> Arms:
        """The same with other reference levels, a treatment by its name or one of its settings.

        Raises SettingError for a treatment or level that is not there.
        """
        chosen = {}
        for key, value in reference.items():
            asked = f"reference={key}={value}"
            if not self.treatments:
                raise SettingError(f"{asked} names a level, and nothing but the mix was varied.")
            one = next((t for t in self.treatments if key in (t.name, *t.settings)), None)
            if one is None:
                raise SettingError(
                    f"{asked} names no treatment; varied were "
                    f"{', '.join(t.name for t in self.treatments)}."
                )
            level = value if value in one.levels else word(value)
            if level not in one.levels:
                raise SettingError(
                    f"{asked} is no level of {one.name}; give one of them, {', '.join(one.levels)}."
                )
            chosen[one.name] = level
        return replace(self, reference=chosen)

    def reference_of(self, treatment: Treatment) -> str:
        """The level that ratios of savings are over."""
        return self.reference.get(treatment.name, treatment.levels[0])

    def reference_words(self, names: Iterable[str]) -> str:
        """Which levels of the arms in `names` ratios are over, and how to choose others; empty
        where the mix alone was varied."""
        levels = [self.arm(name).levels for name in names]
        there = [one for one in self.treatments if any(one.name in own for own in levels)]
        if not there:
            return ""
        told = ", ".join(f"{one.name}={self.reference_of(one)}" for one in there)
        others = [level for level in there[0].levels if level != self.reference_of(there[0])]
        other = shlex.quote(f"reference={there[0].name}={others[-1]}")
        return f"over {told} ({other} chooses another level)"

    def arm(self, name: str) -> Arm:
        """An arm by the name that stands in the column `mix`."""
        return self.by_name.get(name) or Arm(name, name)

    def mixes(self, names: Iterable[str]) -> list[str]:
        """The mixes of arms, in order."""
        return list(dict.fromkeys(self.arm(name).mix for name in names))

    def versus(self, names: Iterable[str], baseline: str) -> dict[str, str]:
        """The baseline of each arm in `names`: the arm called that, or each one's twin of that mix.

        Arms without a twin are left out. Raises SettingError where none is left, or `baseline`
        names nothing in `names`.
        """
        names = list(names)
        mixes = self.mixes(names)
        if mixes == [baseline] and len(names) > 1:
            # Levels of one mix, over one of them.
            first = self._first(names)
            return {name: first for name in names if name != first}
        if baseline in names and baseline not in mixes:
            return {name: baseline for name in names if name != baseline}
        if baseline not in mixes:
            raise self.no_baseline(baseline, names, "with points")
        others = [name for name in names if self.arm(name).mix != baseline]
        found = {name: twin for name in others if (twin := self._twin(name, names, baseline))}
        if others and not found:
            raise SettingError(self.without_twin(names, baseline)[0])
        return found

    def no_baseline(self, baseline: str, names: list[str], which: str) -> SettingError:
        """The sentence for a baseline that is none of `names`, mixes or arms; `which` they are."""
        mixes = self.mixes(names)
        arms = f", nor its arms: {', '.join(names)}" if mixes != names else ""
        return SettingError(
            f"baseline={baseline} is not among the mixes {which}: {', '.join(mixes)}{arms}; "
            f"{nearest(baseline, [*mixes, *names])}give one of them, baseline={mixes[0]}."
        )

    def without_twin(self, names: Iterable[str], baseline: str) -> list[str]:
        """Arms that no arm of the baseline can be compared with, a sentence each."""
        names = list(names)
        if baseline not in self.mixes(names) or self.mixes(names) == [baseline]:
            return []
        alone = [
            self.arm(name)
            for name in names
            if self.arm(name).mix != baseline and not self._twin(name, names, baseline)
        ]
        of_baseline = ", ".join(name for name in names if self.arm(name).mix == baseline)
        return [
            f"{arm.name} has no one twin among {of_baseline}, as it does not read what they vary; "
            "name one of them, baseline=ARM."
            if self._twins(arm.name, names, baseline)
            else f"{arm.name} has no twin, as no run of {baseline} is at {_at(arm.levels)}; train "
            f"one, or name another baseline=ARM ({of_baseline})."
            for arm in alone
        ]

    def _twin(self, name: str, names: list[str], baseline: str) -> str | None:
        """The one arm of the baseline whose levels agree with an arm's, or None."""
        twins = self._twins(name, names, baseline)
        levels = self.arm(name).levels
        exact = [twin for twin in twins if self.arm(twin).levels.items() <= levels.items()]
        return exact[0] if len(exact) == 1 else twins[0] if len(twins) == 1 else None

    def _twins(self, name: str, names: list[str], baseline: str) -> list[str]:
        """Arms of the baseline whose levels agree with an arm's wherever both have one."""
        levels = self.arm(name).levels
        return [
            twin
            for twin in names
            if (arm := self.arm(twin)).mix == baseline
            and all(levels.get(key, value) == value for key, value in arm.levels.items())
        ]

    def _first(self, names: list[str]) -> str:
        """The arm at most of the reference levels, the first of several."""
        if not self.reference:
            return names[0]
        at = {one.name: self.reference_of(one) for one in self.treatments}
        return max(names, key=lambda name: len(self.arm(name).levels.items() & at.items()))

    def contrasts(self, versus: Mapping[str, str]) -> list[Contrast]:
        """Pairs of arms that tell what one treatment does to a saving, each over `reference`, or
        over the first level that the mix has where it lacks that.

        None where one arm is the baseline of all: there each saving tells it by itself.
        """
        found = []
        for treatment in self.treatments:
            groups: dict[Hashable, list[Arm]] = defaultdict(list)
            for arm in map(self.arm, versus):
                if treatment.name in arm.levels:
                    others = {k: v for k, v in arm.levels.items() if k != treatment.name}
                    groups[arm.mix, tuple(sorted(others.items()))].append(arm)
            for arms in groups.values():
                arms.sort(key=lambda arm: treatment.levels.index(arm.levels[treatment.name]))
                level = self.reference_of(treatment)
                # A stable sort: the reference first, the others by level.
                arms.sort(key=lambda arm: arm.levels[treatment.name] != level)
                first = arms[0]
                read = treatment.name in self.arm(versus[first.name]).levels
                found += [
                    Contrast(treatment, arm.name, arm.levels[treatment.name], first.name,
                             first.levels[treatment.name])
                    for arm in arms[1:]
                    if not (read and versus[arm.name] == versus[first.name])
                ]  # fmt: skip
        return found

    def named(self, points: pd.DataFrame) -> pd.DataFrame:
        """Points for people: `arm` beside the mix's own name; unchanged where there are no arms."""
        if OF_MIX not in points:
            return points
        shown = points.rename(columns={"mix": "arm", OF_MIX: "mix"})
        first = ["run", "mix", "arm"]
        return shown[first + [name for name in shown if name not in first]]


def _at(levels: Mapping[str, str]) -> str:
    return ",".join(f"{key}={value}" for key, value in levels.items()) or "its levels"


def with_arms(sweep: Sweep) -> Sweep:
    """The sweep with points and runs by arm, where runs of one mix and size differ in a setting."""
    settings = {run.name: _settings(run) for run in sweep.runs}
    varied = _varied((run.mix, run.size, settings[run.name]) for run in sweep.runs)
    if not varied:
        return sweep
    own = pd.DataFrame(
        {
            key: {name: _level(found[key]) if key in found else None
                  for name, found in settings.items()}
            for key in varied
        }
    )  # fmt: skip
    mixes = pd.Series({run.name: run.mix for run in sweep.runs})
    own = _with_empty_levels(mixes, own)
    arms, names = _arms(mixes, own, f"sweep={sweep.name}")
    points = sweep.points.assign(**{OF_MIX: sweep.points["mix"]})
    points["mix"] = points["run"].map(names)
    for key in varied:
        points[key] = points["run"].map(own[key])
    runs = tuple(replace(run, mix=names[run.name]) for run in sweep.runs)
    return replace(sweep, points=in_order(points, arms), runs=runs, arms=arms)


def by_columns(table: pd.DataFrame, treatments: Sequence[str], source: str) -> pd.DataFrame:
    """A table whose rows go by arm: `treatments` are its columns that are varied beside the mix.

    Raises SettingError for a column that is not there, or that does not vary.
    """
    for name in treatments:
        if name in COMPARED:
            raise SettingError(
                f"treatments={name} is no treatment beside the mix; name columns such as lr."
            )
        if name in RESULTS:
            raise SettingError(
                f"treatments={name}: results have a column {name} of their own; rename that of "
                f"{source}."
            )
        if name not in table:
            raise SettingError(
                f"treatments={name} names no column of {source}; it has {', '.join(table.columns)}."
            )
    mixes = table["mix"].astype(str)
    own = table[list(treatments)].map(lambda cell: None if is_empty(cell) else _level(cell))
    own = _with_empty_levels(mixes, own)
    for name in treatments:
        if own[name].nunique() < 2:
            value = next(iter(own[name].dropna()), "empty")
            raise SettingError(
                f"treatments={name}: no row of {source} varies it ({name} is {value} in all); name "
                "a column with two values or more, or leave it out."
            )
    _, names = _arms(mixes, own, source)
    return table.assign(**{OF_MIX: table["mix"], "mix": names}, **own)


def of_points(points: pd.DataFrame, treatments: Sequence[str]) -> Arms:
    """The arms of points that `by_columns` has named."""
    if OF_MIX not in points:
        return Arms()
    return _arms(points[OF_MIX], points[list(treatments)], "the points")[0]


def _with_empty_levels(mixes: pd.Series, own: pd.DataFrame) -> pd.DataFrame:
    """Levels in which an empty one is a level too, `none`, of a mix that has others; else it has
    no level."""
    made = own.copy()
    for name in own:
        reads = own[name].notna().groupby(mixes).transform("any")
        made[name] = own[name].where(own[name].notna() | ~reads, NONE)
    return made


def in_order(points: pd.DataFrame, arms: Arms) -> pd.DataFrame:
    """Points by arm, N, seed and D, the arms of a mix by their levels."""
    ranks = {name: rank for rank, name in enumerate(arms.by_name)}
    ordered = points.assign(_rank=points["mix"].map(ranks))
    ordered = ordered.sort_values(["_rank", "N", "seed", "D"], kind="stable", ignore_index=True)
    ordered = ordered.drop(columns="_rank")
    ordered.attrs = dict(points.attrs)
    return ordered


def _arms(mixes: pd.Series, own: pd.DataFrame, source: str) -> tuple[Arms, pd.Series]:
    """The arms of rows with a mix and levels (words, or None), and the name of each row's arm.

    Raises SettingError where two arms would have one name.
    """
    treatments = _treatments(own)
    by_name: dict[str, Arm] = {}
    names = {}
    for index, mix in mixes.items():
        levels = {
            one.name: value
            for one in treatments
            if isinstance(value := own.at[index, one.settings[0]], str)
        }
        name = str(mix) + (f"{MARK}{_at(levels)}" if levels else "")
        arm = Arm(name, str(mix), levels)
        if by_name.setdefault(name, arm) != arm:
            raise SettingError(
                f"{source} has two arms that would be called {name}, of mix={arm.mix} and of "
                f"mix={by_name[name].mix}; call one of the mixes, or a level, something else."
            )
        names[index] = name

    def place(arm: Arm) -> tuple[Any, ...]:
        return arm.mix, *(
            one.levels.index(arm.levels[one.name]) if one.name in arm.levels else -1
            for one in treatments
        )

    ordered = {arm.name: arm for arm in sorted(by_name.values(), key=place)}
    return Arms(tuple(treatments), ordered), pd.Series(names)


def _treatments(own: pd.DataFrame) -> list[Treatment]:
    """Settings that vary, those that always move together as one."""
    together: dict[tuple[int, ...], list[str]] = defaultdict(list)
    for key in own:
        together[tuple(pd.factorize(own[key])[0])].append(str(key))
    short = [keys[0].rpartition(".")[2] for keys in together.values()]
    return [
        Treatment(
            name if short.count(name) == 1 else keys[0],
            tuple(keys),
            tuple(sorted(set(own[keys[0]].dropna()), key=_order)),
        )
        for keys, name in zip(together.values(), short, strict=True)
    ]


def _settings(run: Run) -> dict[str, Any]:
    return {
        key: value
        for key, value in flattened(run.spec)
        if key.partition(".")[0] not in NOT_SET and not key.endswith(".chinchilla")
    }


def _varied(runs: Iterable[tuple[str, str, dict[str, Any]]]) -> list[str]:
    """Settings in which runs of one mix and size differ beside the seed."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for mix, size, settings in runs:
        groups[mix, size].append(settings)
    found: dict[str, None] = {}
    for own in groups.values():
        for key in sorted({key for settings in own for key in settings}):
            # A run recorded before the setting was there says nothing about it.
            if len({word(settings[key]) for settings in own if key in settings}) > 1:
                found[key] = None
    return list(found)


def at_levels(sweep: Sweep, where: Mapping[str, Sequence[str]]) -> Sweep:
    """The runs of a sweep whose spec has one of the values that `where` gives for each setting.

    Raises SettingError for a setting or value that no run has.
    """
    runs = sweep.runs
    for key, wanted in where.items():
        told = ",".join(f"{key}={value}" for value in wanted)
        found = [dict(flattened(run.spec)) for run in runs]
        values = {_level(settings[key]) for settings in found if key in settings}
        if not values:
            raise SettingError(f"where={told} names no setting of sweep={sweep.name}.")
        lost = [value for value in wanted if not any(_is_at(run, key, value) for run in runs)]
        runs = tuple(run for run in runs if any(_is_at(run, key, value) for value in wanted))
        if not runs or lost:
            near = nearest(lost[0], values) if lost else ""
            raise SettingError(
                f"where={told} leaves no run of sweep={sweep.name}; {near}it has "
                f"{key}={', '.join(sorted(values))}."
                if not runs
                else f"where={key}={', '.join(lost)} matches no run of sweep={sweep.name}; "
                f"{near}it has {key}={', '.join(sorted(values))}."
            )
    if len(runs) == len(sweep.runs):
        return sweep
    names = {run.name for run in runs}
    points = sweep.points[sweep.points["run"].isin(names)].reset_index(drop=True)
    words = ", ".join(f"{key} = {'+'.join(values)}" for key, values in where.items())
    if points.empty:
        raise SettingError(f"where: runs of sweep={sweep.name} at {words} are without points.")
    return replace(sweep, name=f"{sweep.name}, {words}", points=points, runs=runs)


def _is_at(run: Run, key: str, wanted: str) -> bool:
    """Whether a run is at a level; at every one of a rule that none of its mixers reads."""
    settings = dict(flattened(run.spec))
    if key not in settings and key.startswith("protocol."):
        return True
    value = settings.get(key)
    # A list goes by its level's name too, which has no commas to part it from other values.
    return word(wanted) in (word(value), _level(value))


def _level(value: Any) -> str:
    """A value as a word in an arm's name."""
    if value is None:
        return "null"
    return word(value) if not isinstance(value, list | tuple) else shortened(list(value))


def _order(value: str) -> tuple[int, float, str]:
    try:
        return 0, float(value), ""
    except ValueError:
        return 1, 0.0, value
