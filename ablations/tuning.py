"""Settings that can be tuned, and the runs of a tuning sweep as trials of one.

A tuning sweep trains each mix and size at several values of a setting (`over=lr`); what its runs
say of the optimum, ablations/optima.py. No torch here: sweeps and the analysis read this too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ablations.ladder import batch_tokens, peak_lr
from ablations.optima import Trial, Tuned
from ablations.records import RunDirectory, read_sweep
from models.errors import SettingError, one_of
from models.settings import flatten

VARIED = ("mix", "protocol", "train", "data")
"""Groups of settings that may differ inside a mix and size beside what is tuned."""
DIVERGED = "diverged"
"""How the error of a run begins that ended because its loss grew."""

"""How the error of a run begins that ended because its loss grew."""


Spec = Mapping[str, Any]
"""A run's spec as plain nested values."""


@dataclass(frozen=True)
class Setting:
    """A setting that can be tuned: what a run's spec says of it, and what the ladder's rule says
    for such a run; None where there is no rule."""

    name: str
    field: str
    """The setting that a sweep varies."""
    value: Callable[[Spec], float]
    rule: Callable[[Spec], float] | None
    is_multiplier: bool = False
    """Whether the setting is a multiple of the ladder's rule, and not the value itself."""

    def ruled(self, spec: Spec) -> float:
        """The ladder's value for a run, NaN without a rule."""
        return float(self.rule(spec)) if self.rule else math.nan

    def set_to(self, value: float, spec: Spec) -> float:
        """What `field` is set to so that the value comes out for such a run."""
        if self.is_multiplier:
            value = value / self.ruled(spec)
        # Whole tokens; else six digits, so that a search's values have short names.
        return round(value) if self.name == "batch" else float(f"{value:.6g}")


def _ladder_rate(spec: Spec) -> float:
    """The ladder's peak rate of a run: its own, less what the protocol or the size multiply."""
    multiplier = spec["protocol"].get("lr_multiplier")
    if multiplier is None:
        multiplier = spec["size"].get("lr_multiplier") or 1.0
    return float(spec["recipe"]["peak_lr"] / multiplier)


SETTINGS = {
    "lr": Setting(
        "lr", "protocol.lr_multiplier", lambda spec: spec["recipe"]["peak_lr"], _ladder_rate, True
    ),
    "weight_decay": Setting(
        "weight_decay", "train.weight_decay", lambda spec: spec["train"]["weight_decay"], None
    ),
    "batch": Setting(
        "batch", "protocol.batch_tokens", lambda spec: spec["recipe"]["batch_tokens"],
        lambda spec: batch_tokens(spec["recipe"]["N"]),
    ),
}  # fmt: skip
"""Settings that `over=` names: peak learning rate, decoupled weight decay, batch in tokens."""
RULES: dict[str, Callable[[float], float]] = {"lr": peak_lr, "batch": batch_tokens}
"""What the ladder would set at N parameters, for runs of others."""


def settings_of(over: Sequence[str]) -> tuple[Setting, ...]:
    """The settings that `over` names. Raises SettingError for one that cannot be tuned."""
    for name in over:
        if name not in SETTINGS:
            raise one_of("over", name, SETTINGS)
    if not over or len(set(over)) < len(over):
        raise SettingError(
            f"over={','.join(over)} must name settings once each, of {', '.join(SETTINGS)}."
        )
    return tuple(SETTINGS[name] for name in over)


def check_values(tuned: Mapping[str, Tuned], source: str) -> None:
    """Raise SettingError where no mix was trained at more than one value of a setting."""
    for s, name in enumerate(next(iter(tuned.values())).settings):
        most = max(
            len(cell.values[s]) for own in tuned.values() for cell in (*own.cells, *own.lost)
        )
        if most < 2:
            raise SettingError(
                f"{source} has one value of {name} only; an optimum takes three or more, like "
                f"{SETTINGS[name].field}=0.5,1,2."
                if name in SETTINGS
                else f"{source} has one value of {name} only; an optimum takes three or more."
            )


def read_trials(
    folder: Path, over: Sequence[str] = ("lr",), finished: bool = True, corpus: str = ""
) -> list[Trial]:
    """The runs of a tuning sweep, each by its last point.

    finished: whether all must have ended; corpus: fingerprint of the only one that will do. Raises
    SettingError where there is no such sweep, where runs have not ended, and on other corpora.
    """
    settings = settings_of(over)
    trials: list[Trial] = []
    specs: list[Spec] = []
    open_runs: list[str] = []
    corpora: dict[str, str] = {}
    for run in read_sweep(folder):
        if run.spec_problem():
            continue
        spec = run.read_spec()
        trial = _trial(run, spec, settings)
        if trial is None:
            open_runs.append(run.name)
            continue
        read = str((spec.get("corpus") or {}).get("fingerprint", ""))
        corpora.setdefault(read, run.name)
        trials.append(trial)
        specs.append(spec)
    if finished and open_runs:
        raise SettingError(
            f"sweep={folder.name} is unfinished: {len(open_runs)} of "
            f"{len(open_runs) + len(trials)} runs have not ended, {open_runs[0]} among them; the "
            "command that began it goes on with them."
        )
    if not trials:
        raise SettingError(f"sweep={folder.name} has no run that ended; it tells no optimum.")
    if len(corpora) > 1:
        raise SettingError(
            f"sweep={folder.name} holds runs of {len(corpora)} corpora, like "
            f"{' and '.join(list(corpora.values())[:2])}; an optimum is of one."
        )
    if corpus and corpus not in corpora:
        raise SettingError(
            f"sweep={folder.name} was trained on another corpus than these runs; an optimum is of "
            "one, so tune on the same."
        )
    return _by_arms(trials, specs, settings)


def values_there(folder: Path, setting: Setting) -> dict[tuple[str, str], set[float]]:
    """Values of a setting that runs of a sweep have, finished or not, by mix and size; empty where
    there is no such sweep."""
    found: dict[tuple[str, str], set[float]] = {}
    for run in read_sweep(folder) if folder.is_dir() else []:
        if not run.spec_problem():
            spec = run.read_spec()
            key = spec["mix"]["name"], spec["size"]["name"]
            found.setdefault(key, set()).add(float(setting.value(spec)))
    return found


CONDITIONS = (
    *(f"protocol.{name}" for name in ("match", "knob", "batch_tokens", "schedule")),
    *(f"protocol.{name}" for name in ("parametrization", "decay_fraction", "rope_theta")),
    *(f"train.{name}" for name in ("optim", "weight_decay", "grad_clip", "z_loss")),
)
"""What an optimum depends on beside the mix, the size and the corpus."""


def read_conditions(folder: Path) -> dict[str, set[str]]:
    """The values of each of `CONDITIONS` that runs of a tuning sweep have."""
    found: dict[str, set[str]] = {}
    for run in read_sweep(folder):
        if not run.spec_problem():
            flat = _flat(run.read_spec(), ("protocol", "train"))
            for field in CONDITIONS:
                if field in flat:
                    found.setdefault(field, set()).add(str(flat[field]))
    return found


def check_conditions(
    conditions: Mapping[str, set[str]], spec: Spec, settings: Sequence[Setting], name: str
) -> None:
    """Raise SettingError where a run was made under other conditions than a tuning sweep's.

    conditions: `read_conditions` of the sweep called `name`.
    """
    flat = _flat(spec, ("protocol", "train"))
    tuned = {one.field for one in settings}
    for field in CONDITIONS:
        there = conditions.get(field)
        if there and field in flat and field not in tuned and str(flat[field]) not in there:
            raise SettingError(
                f"{field}={flat[field]} of these runs is {' and '.join(sorted(there))} in "
                f"sweep={name}; an optimum is of one way to train, so tune with the same."
            )


def _flat(spec: Spec, groups: Sequence[str]) -> dict[str, Any]:
    return flatten({group: spec.get(group) or {} for group in groups})


def diverged_there(folder: Path, setting: Setting) -> dict[tuple[str, str, int], list[float]]:
    """Values of a setting at which runs of a sweep diverged, by mix, size and seed."""
    found: dict[tuple[str, str, int], list[float]] = {}
    for run in read_sweep(folder) if folder.is_dir() else []:
        if not run.spec_problem():
            spec = run.read_spec()
            if (trial := _trial(run, spec, (setting,))) and not math.isfinite(trial.loss):
                key = trial.mix, trial.size, trial.seed
                found.setdefault(key, []).append(trial.values[0])
    return found


def _by_arms(trials: list[Trial], specs: list[Spec], settings: Sequence[Setting]) -> list[Trial]:
    """Trials whose mix also names what else was varied inside a mix and size, as arms do."""
    ignored = {*(one.field for one in settings), "data.path"}
    flat = [{k: v for k, v in _flat(spec, VARIED).items() if k not in ignored} for spec in specs]
    inside: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for trial, fields in zip(trials, flat, strict=True):
        inside.setdefault((trial.mix, trial.size), []).append(fields)
    varied = {
        field
        for own in inside.values()
        for field in own[0]
        if len({str(fields.get(field)) for fields in own}) > 1
    }
    # Of an option that this mix does not have nothing was varied in it.
    suffixes = [
        "".join(f"@{f.rpartition('.')[2]}={own[f]}" for f in sorted(varied) if f in own)
        for own in flat
    ]
    return [
        replace(trial, mix=trial.mix + suffix)
        for trial, suffix in zip(trials, suffixes, strict=True)
    ]


def _trial(run: RunDirectory, spec: Mapping[str, Any], settings: Sequence[Setting]) -> Trial | None:
    """A run as a trial; None where it has not ended."""
    status = run.read_status()
    N = float(spec["recipe"]["N"])
    multiple = spec["recipe"]["milestones"][-1]["chinchilla"]
    common: dict[str, Any] = {
        # As planned: batches of other sizes end within a batch of it.
        "D": multiple * spec["protocol"]["tokens_per_parameter"] * N,
        "mix": spec["mix"]["name"], "size": spec["size"]["name"], "seed": int(spec["seed"]),
        "values": tuple(float(one.value(spec)) for one in settings),
        "rules": tuple(one.ruled(spec) for one in settings),
        "N_ladder": N,
    }  # fmt: skip
    if run.state == "done":
        point = list(run.points().values())[-1]
        loss = float(point["loss"])
        loss = loss if math.isfinite(loss) else math.inf
        return Trial(N=float(point["N"]), loss=loss, **common)
    if status.get("state") == "failed" and str(status.get("error", "")).startswith(DIVERGED):
        return Trial(N=N, loss=math.inf, **common)
    return None
