"""protocol=tuned: runs take settings from tuning sweeps, and their specs keep what and whence."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ablations.optima import Tuned, tuned_of
from ablations.spec import RunSpec, TunedSetting
from ablations.tuning import Setting, check_conditions, read_conditions, read_trials, settings_of
from models.errors import SettingError


def with_optima(
    settings: list[dict[str, Any]], specs: list[RunSpec], runs_folder: Path
) -> list[dict[str, Any]]:
    """The settings of runs with what their tuning sweeps say; those without any as they are.

    specs: the same runs, resolved without it. Raises SettingError where a sweep is not there, is
    unfinished or of another corpus, or shows no optimum of a mix.
    """
    surfaces: dict[tuple[str, str], dict[str, Tuned]] = {}
    for name in dict.fromkeys(name for spec in specs for name in spec.protocol.tuning):
        if (runs_folder / name).is_dir():
            conditions = read_conditions(runs_folder / name)
            for spec in specs:
                if name in spec.protocol.tuning:
                    over = settings_of(spec.protocol.over)
                    check_conditions(conditions, spec.plain(), over, name)
    return [
        _set(one, spec, runs_folder, surfaces) if spec.protocol.tuning else one
        for one, spec in zip(settings, specs, strict=True)
    ]


def _set(
    settings: dict[str, Any],
    spec: RunSpec,
    runs_folder: Path,
    surfaces: dict[tuple[str, str], dict[str, Tuned]],
) -> dict[str, Any]:
    names = spec.protocol.tuning
    over = settings_of(spec.protocol.over)
    settings = {group: dict(v) if isinstance(v, Mapping) else v for group, v in settings.items()}
    taken: list[TunedSetting] = []
    for setting in over:
        sweep = _sweep_over(setting, names, spec, runs_folder, surfaces)
        one = optimum_of(surfaces[sweep, setting.name], spec, setting, sweep)
        group, _, key = setting.field.partition(".")
        if settings[group].get(key) is not None and group == "protocol":
            raise SettingError(
                f"{setting.field}={settings[group][key]} is what protocol=tuned takes from "
                f"sweep={sweep}; leave it out, or take it out of protocol.over."
            )
        settings[group][key] = setting.set_to(one.value, spec.plain())
        taken.append(one)
    settings["protocol"]["tuned"] = [vars(one) for one in taken]
    return settings


def _sweep_over(
    setting: Setting,
    names: tuple[str, ...],
    spec: RunSpec,
    runs_folder: Path,
    surfaces: dict[tuple[str, str], dict[str, Tuned]],
) -> str:
    """The first of the sweeps that varied a setting; its surfaces are then in `surfaces`."""
    for name in names:
        key = name, setting.name
        if key not in surfaces:
            trials = read_trials(runs_folder / name, (setting.name,), corpus=_corpus(spec))
            surfaces[key] = tuned_of(trials, (setting.name,))
        if any(len(cell.values[0]) > 1 for own in surfaces[key].values() for cell in own.cells):
            return name
    raise SettingError(
        f"protocol.tuning={','.join(names)} holds no sweep that varied {setting.name}; "
        f"python sweeps/tune.py over={setting.name} makes one."
    )


def _corpus(spec: RunSpec) -> str:
    return spec.corpus.fingerprint if spec.corpus else ""


def words_of(specs: Iterable[RunSpec]) -> list[str]:
    """What runs took, a line per mix, size and setting."""
    lines = {}
    for spec in specs:
        for one in spec.protocol.tuned:
            low, high = ("open" if end is None else f"{end:.3g}" for end in (one.low, one.high))
            lines[spec.mix.name, spec.size.name, one.setting] = (
                f"{spec.mix.name} {spec.size.name}: {one.setting} {one.value:.3g} [{low}, {high}] "
                f"from {one.sweep}, by {one.by}, {one.runs} runs"
            )
    return list(lines.values())


def optimum_of(
    surfaces: Mapping[str, Tuned], spec: RunSpec, setting: Setting, sweep: str
) -> TunedSetting:
    """What a tuning sweep says of a setting for one run: the optimum of its mix and size, or by the
    law of the mix's others."""
    mix, size = spec.mix.name, spec.size.name
    if mix not in surfaces:
        raise SettingError(
            f"mix={mix} was not tuned in sweep={sweep}, which has {', '.join(surfaces)}; tune it: "
            f"python sweeps/tune.py mix={mix} over={setting.name} sweep={sweep}."
        )
    own = surfaces[mix]
    if own.response is None:
        raise SettingError(f"sweep={sweep} shows no optimum of mix={mix}: {own.problem}.")
    curvature, runs = float(own.response.curvature[0]), sum(cell.runs for cell in own.cells)
    common = {"setting": setting.name, "sweep": sweep, "curvature": curvature,
              "dof": own.response.dof, "runs": runs}  # fmt: skip
    # Of several budgets the largest.
    places = [k for k, cell in enumerate(own.cells) if cell.size == size]
    if size in {cell.size for cell in own.lost} and not places:
        raise SettingError(
            f"sweep={sweep} shows no optimum of mix={mix} at size={size}: fewer than two of its "
            "values ended with a loss."
        )
    if places:
        k = places[-1]
        one = own.optima[k]
        if one.edge[0]:
            raise SettingError(
                f"sweep={sweep} shows no minimum in {setting.name} of mix={mix} at size={size}: "
                f"{_edge_words(one.edge[0])}; try more values with sweeps/tune.py."
            )
        low, high = (
            float(2.0 ** end[0]) if math.isfinite(end[0]) else None for end in (one.low, one.high)
        )
        return TunedSetting(by="size", value=float(2.0 ** one.x[0]), low=low, high=high, **common)  # type: ignore[arg-type]
    law = own.law()
    if law is None:
        raise SettingError(
            f"size={size} was not tuned in sweep={sweep}, and mix={mix} has optima at fewer than "
            "two sizes, so that no law says it; tune it, or one size more."
        )
    value, low, high = law.at(spec.recipe.N, spec.recipe.tokens)
    return TunedSetting(by="law", value=value, low=low, high=high, **common)  # type: ignore[arg-type]


def _edge_words(side: str) -> str:
    if side == "flat":
        return "the loss does not rise on either side"
    return f"the {side}est value tried is the best"
