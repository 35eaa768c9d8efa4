"""Optima of tuned settings as an answer: rows, laws and what limits them (`analysis tune`)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ablations.optima import Cell, Law, Trial, Tuned, tuned_of
from ablations.records import SettingError
from ablations.response import LEVEL, WITHIN
from ablations.tuning import RULES, check_values, read_trials
from analysis.study import rows
from analysis.study.csv_file import read_rows
from models.format import count

STEP_LAW = {"lr": (1.79, -0.713, 0.307), "batch": (0.58, 0.0, 0.571)}
"""(prefactor, power of N, power of D) of Li et al. 2025 (arXiv 2503.04715): peak learning rate, and
batch in tokens; N without embedding, D in tokens."""
REQUIRED = ("mix", "size or N", "loss")
LACK = 0.01
"""p value under which the curve is said not to describe the losses."""
SLACK = 0.5
"""Octaves beyond what was tried at which a cost is still read off the curve."""


@dataclass(frozen=True)
class TuningAnswer:
    """What tuning runs say: one surface per mix, and `notes`, sentences to keep in mind."""

    tuned: dict[str, Tuned]
    source: str
    level: float

    @property
    def optima(self) -> list[dict[str, Any]]:
        """One row per mix, cell and setting; docs/tuning.md says what the columns hold."""
        return [row for own in self.tuned.values() for row in _optima_of(own)]

    @property
    def laws(self) -> list[dict[str, Any]]:
        """One row per mix, setting and exponent of the optimum's law."""
        found = []
        for mix, own in self.tuned.items():
            for s, name in enumerate(own.settings):
                if (law := own.law(s)) is not None:
                    found += _law_rows(mix, name, law)
        return found

    @property
    def surfaces(self) -> list[dict[str, Any]]:
        """One row per mix: scatter of runs, curvature and the test of the curve."""
        return [
            {
                "mix": mix,
                "runs": int(own.response.used.sum()),
                "scatter": own.response.sd,
                "dof": own.response.dof,
                "curvature": [float(c) for c in own.response.curvature],
                "lack_p": own.response.lack_p,
            }
            for mix, own in self.tuned.items()
            if own.response is not None
        ]

    @property
    def notes(self) -> list[str]:
        """Sentences on what limits the optima, the worst first."""
        found = [f"{mix}: no surface; {own.problem}." for mix, own in self.tuned.items()
                 if own.problem]  # fmt: skip
        for row in self.optima:
            if row["edge"]:
                at = f" at {count(row['D'])} tokens" if row["D"] == row["D"] else ""
                words = f"{row['mix']} {row['size']}{at}: no minimum in {row['setting']}; "
                if row["side"] in ("flat", ""):
                    found.append(words + "the runs do not show that the loss rises on either side.")
                else:
                    way = "larger" if row["side"] == "high" else "smaller"
                    found.append(f"{words}the {row['side']}est value tried is the best: try {way}.")
        for mix, own in self.tuned.items():
            if own.response is not None and own.response.lack_p < LACK:
                found.append(
                    f"{mix}: the curve does not describe its losses (p = {own.response.lack_p:.2g} "
                    "against the scatter of seeds); intervals are too narrow."
                )
            lost = sum(cell.diverged for cell in (*own.cells, *own.lost))
            if lost:
                found.append(f"{mix}: {lost} runs diverged, at values that the curve leaves out.")
            bad = sum(cell.diverged for cell in own.cells)
            if own.response is not None and (~own.response.used).sum() > bad:
                left = int((~own.response.used).sum()) - bad
                found.append(
                    f"{mix}: {left} runs far above their lowest loss, or at a value where another "
                    "diverged, are left out."
                )
        return found

    @property
    def document(self) -> dict[str, Any]:
        """What JSON holds."""
        return {"optima": self.optima, "laws": self.laws, "surfaces": self.surfaces,
                "notes": self.notes, "level": self.level}  # fmt: skip


def _optima_of(own: Tuned) -> list[dict[str, Any]]:
    found = []
    for k, cell in enumerate((*own.cells, *own.lost)):
        for s, name in enumerate(own.settings):
            row: dict[str, Any] = {
                "mix": own.mix, "size": cell.size, "N": cell.N, "D": cell.D or math.nan,
                "setting": name, "value": math.nan, "multiplier": math.nan, "low": math.nan,
                "high": math.nan, "edge": True, "side": _side(own, cell, s), "half": math.nan,
                "double": math.nan,
                "runs": cell.runs, "values": len(cell.values[s]), "step_law": _step_law(name, cell),
            }  # fmt: skip
            if own.response is not None and k < len(own.cells):
                row |= _optimum(own, k, s)
            found.append(row)
    return found


def _side(own: Tuned, cell: Cell, s: int) -> str:
    """The end of what was tried that has the lowest mean loss; empty where it lies inside."""
    losses: dict[float, list[float]] = {}
    for trial in own.trials:
        if (trial.size, trial.D) == (cell.size, cell.D):
            losses.setdefault(trial.values[s], []).append(trial.loss)
    best = min(losses, key=lambda value: sum(losses[value]) / len(losses[value]))
    if len(losses) < 2:
        return ""
    return {min(losses): "low", max(losses): "high"}.get(best, "")


def _optimum(own: Tuned, k: int, s: int) -> dict[str, Any]:
    assert own.response is not None
    one, rule = own.optima[k], own.cells[k].rules[s]
    found: dict[str, Any] = {
        "low": float(2.0 ** one.low[s]), "high": float(2.0 ** one.high[s]),
        "edge": bool(one.edge[s]), "side": one.edge[s],
    }  # fmt: skip
    if not one.edge[s]:
        value = float(2.0 ** one.x[s])
        found |= {"value": value, "multiplier": value / rule}
        found |= {"half": _cost(own, k, s, -1.0), "double": _cost(own, k, s, 1.0)}
    return found


def _cost(own: Tuned, k: int, s: int, octaves: float) -> float:
    """Nats that being off by some octaves costs; NaN where that is far from what was tried."""
    assert own.response is not None
    x = own.optima[k].x.copy()
    best = float(own.response.curve(k, x[None])[0])
    x[s] += octaves
    low, high = own.response.tried[k, :, s]
    if not low - SLACK <= x[s] <= high + SLACK:
        return math.nan
    return float(own.response.curve(k, x[None])[0]) - best


def _step_law(name: str, cell: Any) -> float:
    if name not in STEP_LAW or not cell.D or math.isnan(cell.N):
        return math.nan
    prefactor, of_N, of_D = STEP_LAW[name]
    return float(prefactor * cell.N**of_N * cell.D**of_D)


def _law_rows(mix: str, name: str, law: Law) -> list[dict[str, Any]]:
    return [
        {
            "mix": mix, "setting": name, "quantity": quantity, "exponent": value, "low": low,
            "high": high, "prefactor": law.prefactor, "scatter": law.scatter,
        }
        for quantity, (value, low, high) in law.exponents.items()
    ]  # fmt: skip


def of_sweep(
    folder: Path,
    over: Sequence[str] = ("lr",),
    level: float = LEVEL,
    within: float = WITHIN,
    unfinished: bool = False,
) -> TuningAnswer:
    """Optima of a tuning sweep. Raises SettingError like `read_trials`."""
    source = f"sweep={folder.name}"
    trials = read_trials(folder, over, finished=not unfinished)
    return answer(trials, over, source, level, within)


def of_csv(
    path: Path,
    over: Sequence[str] = ("lr",),
    level: float = LEVEL,
    within: float = WITHIN,
    columns: Mapping[str, str] | None = None,
    where: Mapping[str, Any] | None = None,
) -> TuningAnswer:
    """Optima of a CSV with columns mix, size or N, the settings of `over`, loss, and where there
    are any D and seed. A loss that is no positive number is a run that diverged.

    Raises SettingError for a column that is missing or holds what is no number.
    """
    table = read_rows(path, (*REQUIRED, *over))
    return of_frame(table, f"points={path}", over, level, within, columns, where)


def of_frame(
    table: pd.DataFrame,
    source: str = "the DataFrame",
    over: Sequence[str] = ("lr",),
    level: float = LEVEL,
    within: float = WITHIN,
    columns: Mapping[str, str] | None = None,
    where: Mapping[str, Any] | None = None,
) -> TuningAnswer:
    """Optima of a DataFrame, as `of_csv`."""
    table = table.dropna(how="all").reset_index(drop=True)
    table = rows.renamed(table, columns or {}, source)
    if where:
        table = rows.chosen(table, where, columns or {}, source).reset_index(drop=True)
    _check_table(table, source, over)
    return answer(_trials(table, over), over, source, level, within)


def _check_table(table: pd.DataFrame, source: str, over: Sequence[str]) -> None:
    """Raise SettingError for a table that tells no optimum: what is missing, or no number."""
    if len(set(over)) < len(over) or set(over) & {"mix", "size", "N", "D", "loss", "seed"}:
        raise SettingError(
            f"over={','.join(over)} must name columns of settings, each once; mix, size, N, D, "
            "loss and seed are none."
        )
    needed = ["mix", "loss", *over, *(["N"] if "size" not in table else [])]
    for name in needed:
        if name not in table:
            raise SettingError(
                f"{source} has no column {name}; optima take mix, size or N, "
                f"{', '.join(over)}, loss, and where there is one seed; it has "
                f"{', '.join(map(str, table.columns))}."
            )
    if table.empty:
        raise SettingError(f"{source} has no rows; an optimum takes runs at three values or more.")
    for name in (*over, *(one for one in ("N", "D") if one in table)):
        values = pd.to_numeric(table[name], errors="coerce").to_numpy(float)
        bad = ~((values > 0) & np.isfinite(values))
        if bad.any():
            row = int(bad.argmax())
            raise SettingError(
                f"{source} has {name}={table[name][row]} in row {row + 1}; {name} is a number "
                "above 0."
            )
    blank = table["mix"].isna() | (table["mix"].astype(str).str.strip() == "")
    if blank.any():
        raise SettingError(f"{source} has no mix in row {int(blank.to_numpy().argmax()) + 1}.")
    if "seed" in table:
        keys = [one for one in ("mix", "size", "N", "D", "seed", *over) if one in table]
        twice = table.duplicated(keys)
        if twice.any():
            row = int(twice.to_numpy().argmax())
            raise SettingError(
                f"{source} has a run twice, in row {row + 1}: the same {', '.join(keys)}; give "
                "each repeat a seed of its own."
            )


def _trials(table: pd.DataFrame, over: Sequence[str]) -> list[Trial]:
    loss = pd.to_numeric(table["loss"], errors="coerce").to_numpy(float)
    loss = np.where(np.isfinite(loss) & (loss > 0), loss, np.inf)
    N = _numbers(table, "N", math.nan)
    D = _numbers(table, "D", 0.0)
    size = table["size"] if "size" in table else table["N"].map(lambda n: count(float(n)))
    values = np.stack([pd.to_numeric(table[name]).to_numpy(float) for name in over], 1)
    if "seed" in table:
        seed: Any = pd.factorize(table["seed"])[0]
    else:  # which repeats belong together is not known
        seed = np.zeros(len(table), int)
    rules = [
        tuple(float(RULES[name](n)) if name in RULES and n > 0 else math.nan for name in over)
        for n in N
    ]
    return [
        Trial(str(mix), str(name), float(n), float(d), int(s), tuple(map(float, x)), float(y),
              rule, float(n))
        for mix, name, n, d, s, x, y, rule in zip(
            table["mix"], size, N, D, seed, values, loss, rules, strict=True
        )
    ]  # fmt: skip


def _numbers(table: pd.DataFrame, name: str, without: float) -> Any:
    if name not in table:
        return np.full(len(table), without)
    return pd.to_numeric(table[name], errors="coerce").fillna(without).to_numpy(float)


def answer(
    trials: Sequence[Trial],
    over: Sequence[str],
    source: str,
    level: float = LEVEL,
    within: float = WITHIN,
) -> TuningAnswer:
    """Fit the surfaces of runs. Raises SettingError where nothing was varied."""
    tuned = tuned_of(trials, over, level, within)
    check_values(tuned, source)
    return TuningAnswer(tuned, source, level)
