"""Optima of tuned settings, read from the runs of a tuning sweep or from a table of anybody's.

A tuning sweep trains each mix and size at several values of a setting (`over=lr`). Here its runs
become response surfaces (ablations/response.py), one per mix; their optima with intervals; the cost
of being off; and a power law of the optimum in N and D, by which sizes that were not tuned are set
(`protocol=tuned`). No torch here: sweeps and the analysis read this too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ablations.ladder import batch_tokens
from ablations.records import RunDirectory, read_sweep
from ablations.response import LEVEL, WITHIN, Array, Optimum, Response, fit_response
from models.errors import SettingError, one_of
from models.settings import flatten

DRAWS = 2000
LEAST_SPARE = 3
SAME = 1e-4
"""Relative difference under which two values are one: settings are written in six digits."""
VARIED = ("mix", "protocol", "train", "data")
"""Groups of settings that may differ inside a mix and size beside what is tuned."""
DIVERGED = "diverged"
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


@dataclass(frozen=True)
class Trial:
    """One run of a tuning sweep: `values` of the settings tuned, `loss` (nats per token) at D
    tokens, infinite for a run that diverged; `rules`, the ladder's values there, NaN without."""

    mix: str
    size: str
    N: float
    D: float
    seed: int
    values: tuple[float, ...]
    loss: float
    rules: tuple[float, ...]
    N_ladder: float = math.nan
    """N of the size's transformer, which the rules read."""


@dataclass(frozen=True)
class Cell:
    """A mix's size, or size and budget, that was tuned; `rules` as in `Trial`."""

    size: str
    N: float
    D: float
    N_ladder: float
    rules: tuple[float, ...]
    runs: int
    diverged: int
    values: tuple[tuple[float, ...], ...]
    """What was tried of each setting, rising."""


@dataclass(frozen=True)
class Law:
    """A power law of the optimum, log2 x = intercept + Σ exponent · log2(quantity / middle).

    `scatter`: octaves by which optima lie off the law beside their own errors (DerSimonian & Laird
    1986); intervals of exponents are at `level`.
    """

    quantities: tuple[str, ...]
    middles: tuple[float, ...]
    coefficients: Array
    covariance: Array
    scatter: float
    quantile: float
    """Of Student's t, for intervals."""
    level: float

    @property
    def exponents(self) -> dict[str, tuple[float, float, float]]:
        """(value, low, high) by quantity."""
        reach = self.quantile * np.sqrt(np.diag(self.covariance))
        return {
            name: (float(c), float(c - r), float(c + r))
            for name, c, r in zip(self.quantities, self.coefficients[1:], reach[1:], strict=True)
        }

    @property
    def prefactor(self) -> float:
        """The optimum at N = 1 (and D = 1), as laws are printed."""
        shift = sum(
            c * math.log2(m) for c, m in zip(self.coefficients[1:], self.middles, strict=True)
        )
        return float(2 ** (self.coefficients[0] - shift))

    def at(self, N: float, D: float) -> tuple[float, float, float]:
        """(optimum, low, high) of a size, in the setting's own unit."""
        row = np.array([1.0, *(
            math.log2({"N": N, "D": D}[name] / middle)
            for name, middle in zip(self.quantities, self.middles, strict=True)
        )])  # fmt: skip
        x = float(row @ self.coefficients)
        reach = self.quantile * math.sqrt(float(row @ self.covariance @ row) + self.scatter**2)
        return 2**x, 2 ** (x - reach), 2 ** (x + reach)


@dataclass(frozen=True)
class Tuned:
    """What the runs of one mix say of its optimum; `response` is None where `problem` says why."""

    mix: str
    settings: tuple[str, ...]
    cells: tuple[Cell, ...]
    lost: tuple[Cell, ...]
    """Cells of fewer than two values whose runs ended; the surface is of the others."""
    trials: tuple[Trial, ...]
    response: Response | None
    problem: str
    level: float
    seed: int

    def mean_loss(self, cell: Cell, value: float) -> float | None:
        """Mean measured loss of a cell at a value of the one setting; None where none was."""
        losses = [
            t.loss
            for t in self.trials
            if (t.size, t.D) == (cell.size, cell.D) and abs(t.values[0] / value - 1) < SAME
        ]
        return sum(losses) / len(losses) if losses else None

    @cached_property
    def drawn(self) -> Array:
        """Coefficients of the surface drawn from what the runs leave possible, (draws, p)."""
        assert self.response is not None
        return self.response.drawn(np.random.default_rng(self.seed), DRAWS)

    @cached_property
    def optima(self) -> tuple[Optimum, ...]:
        """One per cell, in octaves; empty without a surface."""
        if self.response is None:
            return ()
        drawn = self.drawn if len(self.settings) > 1 else None
        return tuple(self.response.optimum(k, self.level, drawn) for k in range(len(self.cells)))

    def law(self, s: int = 0) -> Law | None:
        """The law of one setting's optimum over cells; None where fewer than two sizes have one."""
        if self.response is None:
            return None
        kept = [k for k, one in enumerate(self.optima) if not one.edge[s]]
        if len({self.cells[k].N_ladder for k in kept}) < 2:
            return None
        x = np.array([self.optima[k].x[s] for k in kept])
        variance = np.array(
            [self.response.optimum_draws(k, self.drawn)[0][:, s].var() for k in kept]
        )
        # The size's own N, equal for all mixes, by which a size that was not tuned is known too.
        N = np.array([self.cells[k].N_ladder for k in kept])
        D = np.array([self.cells[k].D for k in kept])
        return power_law(x, np.maximum(variance, 1e-6), N, D, self.response.dof, self.level)


def power_law(x: Array, variance: Array, N: Array, D: Array, dof: int, level: float) -> Law:
    """Fit log2 optima x (k,), of given variance (k,), to powers of N and, where D is no function of
    N, of D."""
    from scipy.stats import t as student

    quantities = ["N"] if len(np.unique(N)) > 1 else []
    ladder = np.stack([np.ones(len(N)), np.log2(N), np.log2(np.maximum(D, 1))], 1)
    if (D > 0).all() and len(x) > 3 and np.linalg.matrix_rank(ladder, tol=1e-3) == 3:
        within = np.log2(D) - ladder[:, :2] @ np.linalg.lstsq(ladder[:, :2], np.log2(D))[0]
        quantities += ["D"] if within.std() > 0.1 else []
    values = {"N": N, "D": D}
    middles = [float(np.exp(np.log(values[name]).mean())) for name in quantities]
    columns = [np.log2(values[q] / m) for q, m in zip(quantities, middles, strict=True)]
    design = np.stack([np.ones(len(x)), *columns], 1)
    coefficients, covariance, scatter = _weighted(design, x, variance)
    spare = len(x) - design.shape[1]
    # With one or two optima to spare their scatter is as good as unknown, and so would be t's.
    freedom = spare if scatter > 0 and spare >= LEAST_SPARE else dof
    quantile = float(student.ppf((1 + level) / 2, freedom))
    return Law(
        tuple(quantities), tuple(middles), coefficients, covariance, scatter, quantile, level
    )


def _weighted(design: Array, x: Array, variance: Array) -> tuple[Array, Array, float]:
    """Weighted least squares with a scatter beside the known variances, by their moments."""

    def solved(weight: Array) -> tuple[Array, Array, float]:
        inverse = np.linalg.pinv(design.T @ (weight[:, None] * design))
        coefficients = inverse @ design.T @ (weight * x)
        residual = x - design @ coefficients
        return coefficients, np.asarray(inverse, float), float(weight @ residual**2)

    weight = 1 / variance
    coefficients, inverse, misfit = solved(weight)
    spare = len(x) - design.shape[1]
    if spare < 1 or misfit <= spare:
        return coefficients, inverse, 0.0
    weighted = weight[:, None] * design
    trace = weight.sum() - np.trace(inverse @ (weighted.T @ weighted))
    scatter2 = (misfit - spare) / trace
    coefficients, inverse, _ = solved(1 / (variance + scatter2))
    return coefficients, inverse, math.sqrt(scatter2)


def tuned_of(
    trials: Iterable[Trial],
    settings: Sequence[str],
    level: float = LEVEL,
    within: float = WITHIN,
    seed: int = 0,
) -> dict[str, Tuned]:
    """The surface of each mix, in the order of the trials."""
    by_mix: dict[str, list[Trial]] = {}
    for trial in trials:
        by_mix.setdefault(trial.mix, []).append(trial)
    return {
        mix: _tuned(mix, own, tuple(settings), level, within, seed) for mix, own in by_mix.items()
    }


def _tuned(
    mix: str, trials: list[Trial], settings: tuple[str, ...], level: float, within: float, seed: int
) -> Tuned:
    every = list(dict.fromkeys((t.size, t.D) for t in sorted(trials, key=lambda t: (t.N, t.D))))
    ended = {
        key: {t.values for t in trials if (t.size, t.D) == key and math.isfinite(t.loss)}
        for key in every
    }
    keys = [key for key in every if len(ended[key]) > 1]
    used = [t for t in trials if (t.size, t.D) in keys]
    response, problem = None, ""
    try:
        response = fit_response(
            np.array([keys.index((t.size, t.D)) for t in used], int),
            np.array([t.seed for t in used], int),
            np.log2(np.array([t.values for t in used], float)).reshape(len(used), len(settings)),
            np.array([t.loss for t in used], float),
            within,
        )
    except ValueError as reason:
        problem = str(reason)
    cells = {key: _cell(key, trials, len(settings)) for key in every}
    lost = tuple(cells[key] for key in every if key not in keys)
    kept = tuple(cells[key] for key in keys)
    return Tuned(mix, settings, kept, lost, tuple(trials), response, problem, level, seed)


def _cell(key: tuple[str, float], trials: Sequence[Trial], n_settings: int) -> Cell:
    own = [t for t in trials if (t.size, t.D) == key]
    values = tuple(tuple(sorted({t.values[s] for t in own})) for s in range(n_settings))
    bad = sum(not math.isfinite(t.loss) for t in own)
    known = next((t for t in own if math.isfinite(t.loss)), own[0])
    return Cell(key[0], known.N, key[1], known.N_ladder, known.rules, len(own), bad, values)


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
            "one, so tune on theirs."
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


def check_conditions(folder: Path, spec: Spec, settings: Sequence[Setting]) -> None:
    """Raise SettingError where a run was made under other conditions than a tuning sweep's."""
    mine = flatten({group: spec.get(group) or {} for group in ("protocol", "train")})
    theirs: dict[str, set[str]] = {}
    for run in read_sweep(folder):
        if not run.spec_problem():
            other = run.read_spec()
            flat = flatten({group: other.get(group) or {} for group in ("protocol", "train")})
            for field in CONDITIONS:
                if field in flat:
                    theirs.setdefault(field, set()).add(str(flat[field]))
    for field in set(CONDITIONS) - {one.field for one in settings}:
        there = theirs.get(field)
        if there and field in mine and str(mine[field]) not in there:
            raise SettingError(
                f"{field}={mine[field]} of these runs is {' and '.join(sorted(there))} in "
                f"sweep={folder.name}; an optimum is of one way to train, so tune with theirs."
            )


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
    tuned = {one.field for one in settings}
    flat = [
        {k: v for k, v in flatten({g: spec.get(g) or {} for g in VARIED}).items() if k not in tuned}
        for spec in specs
    ]
    inside: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for trial, fields in zip(trials, flat, strict=True):
        inside.setdefault((trial.mix, trial.size), []).append(fields)
    varied = {
        field
        for own in inside.values()
        for field in own[0]
        if len({str(fields.get(field)) for fields in own}) > 1
    }
    return [
        replace(
            trial,
            mix=trial.mix + "".join(f"@{f.rpartition('.')[2]}={fields[f]}" for f in sorted(varied)),
        )
        for trial, fields in zip(trials, flat, strict=True)
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
