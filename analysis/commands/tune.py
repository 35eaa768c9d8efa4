"""`python -m analysis tune sweep=tuning`: where each mix trains best, with intervals."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ablations.records import SettingError, home
from analysis.commands.common import COLUMNS, Leveled, Shown, shown
from models.command import setting
from models.format import count, percent


@dataclass(frozen=True, kw_only=True)
class Settings(Shown, Leveled):
    """Optimum of a tuned setting for each mix and size, what being off costs, and its law.

    From a tuning sweep (sweeps/tune.py), or a CSV with mix, size or N, the setting, loss and seed.
    docs/tuning.md says how.
    """

    EXAMPLES = ("sweep=tuning", "sweep=tuning over=weight_decay format=json",
                "grid.csv over=lr,bs within=0.02")  # fmt: skip
    sweep: str | None = setting(None, "tuning sweep, by name", shape="NAME")
    points: str | None = setting(
        None, "CSV of runs; points= may be left out", shape="FILE.csv", position=True
    )
    runs: str = setting("runs", "where the sweep lies", shape="DIR")
    over: tuple[str, ...] = setting(
        ("lr",), "settings that were tuned: lr, weight_decay, batch, or columns of the CSV",
        shape="NAME[,NAME]",
    )  # fmt: skip
    where: Mapping[str, tuple[str, ...]] = setting(
        {}, "rows of a CSV to keep, of one column any of the values given", example="size=60M"
    )
    columns: Mapping[str, str] = setting(
        {}, "a CSV's own names of columns", example="N=params", choices=COLUMNS
    )
    within: float = setting(
        0.25, "share above the lowest loss up to which runs are fitted", above=0
    )
    unfinished: bool = setting(False, "read a sweep whose runs have not all ended")


def run(asked: Settings) -> str:
    from analysis.study import tuning

    if (asked.sweep is None) == (asked.points is None):
        raise SettingError(
            "give a tuning sweep, sweep=NAME, or points=FILE.csv"
            + (", and not both." if asked.sweep else ".")
        )
    if asked.sweep is not None:
        if asked.where or asked.columns:
            raise SettingError("where= and columns= are of a CSV, and sweep= is a sweep.")
        folder = home() / asked.runs / asked.sweep
        answer = tuning.of_sweep(folder, asked.over, asked.level, asked.within, asked.unfinished)
    else:
        answer = tuning.of_csv(
            Path(str(asked.points)), asked.over, asked.level, asked.within, asked.columns,
            asked.where,
        )  # fmt: skip
    if asked.format != "table":
        return shown(asked.format, answer.document, answer.optima)
    laws = [_law_words(row) for row in answer.laws]
    noise = "; ".join(f"{row['mix']} {row['noise']:.3g}" for row in answer.surfaces)
    notes = [
        f"value: the optimum; low, high: its {percent(asked.level, 'g')} interval, open where the "
        "runs do not show that the loss rises. half, double: nats lost at half and twice of it. "
        f"Scatter of one run: {noise}.",
        *laws,
        *answer.notes,
    ]
    return shown("table", {}, [_brief(row) for row in answer.optima], notes)


def _brief(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of `optima` for people."""
    value = "no minimum" if row["edge"] else f"{row['value']:.3g}"
    return {
        "mix": row["mix"], "size": row["size"], "tokens": _number(row["D"]),
        "setting": row["setting"], "value": value, "of the rule": _number(row["multiplier"], "× "),
        "low": _number(row["low"]), "high": _number(row["high"]),
        "half": _number(row["half"], digits=2), "double": _number(row["double"], digits=2),
        "runs": row["runs"],
    }  # fmt: skip


def _number(value: float, before: str = "", digits: int = 3) -> str:
    if value != value:
        return "–"
    if value in (0.0, float("inf")):
        return "open"
    return before + (count(value) if value >= 1e4 else f"{value:.{digits}g}")


def _law_words(row: Mapping[str, Any]) -> str:
    ends = f"[{row['low']:.2f}, {row['high']:.2f}]"
    return f"{row['mix']}: {row['setting']} ∝ {row['quantity']}^{row['exponent']:.2f} {ends}."
