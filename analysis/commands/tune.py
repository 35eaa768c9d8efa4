"""`python -m analysis tune sweep=tuning`: where each mix trains best, with intervals."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ablations.records import SettingError, home
from analysis.commands.common import Leveled, Shown, shown
from models.command import setting, spelled
from models.format import count, percent

if TYPE_CHECKING:
    from analysis.study.tuning import TuningAnswer


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
        {}, "a CSV's own names of columns", example="N=params,lr=learning_rate"
    )
    within: float = setting(0.4, "share above the lowest loss up to which runs are fitted", above=0)
    unfinished: bool = setting(False, "read a sweep whose runs have not all ended")
    out: Path | None = setting(None, "folder to draw the surfaces in, if given")
    width: str = setting("double", "columns of a paper", choices=("double", "single"))


def run(asked: Settings) -> str:
    from analysis.study import tuning

    if (asked.sweep is None) == (asked.points is None):
        raise SettingError(
            "give a tuning sweep, sweep=NAME, or points=FILE.csv"
            + (", and not both." if asked.sweep else ".")
        )
    if asked.out and len(asked.over) > 1:
        raise SettingError(
            f"over={','.join(asked.over)} has no figure, which is of one setting; leave out= out."
        )
    if asked.points is not None and Path(asked.points).is_dir():
        raise SettingError(
            f"points={asked.points} is a folder; give a CSV, or a tuning sweep by sweep=NAME and "
            "runs=FOLDER."
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
    drawn = _drawn(asked, answer) if asked.out else []
    if asked.format != "table":
        return shown(asked.format, answer.document, answer.optima)
    laws = [_law_words(row) for row in answer.laws]
    scatter = "; ".join(f"{row['mix']} {100 * row['scatter']:.2g} %" for row in answer.surfaces)
    notes = [
        f"value: the optimum; low, high: its {percent(asked.level, 'g')} interval, open where the "
        "runs do not show that the loss rises. half, double: nats lost at half and twice of it. "
        f"Scatter of one run: {scatter}.",
        *laws,
        *answer.notes,
        *drawn,
    ]
    return shown("table", {}, [_brief(row) for row in answer.optima], notes)


def _drawn(asked: Settings, answer: "TuningAnswer") -> list[str]:
    """The figure of the surfaces, and where it lies."""
    from analysis.report.figures import response_surfaces
    from analysis.report.figures.style import WIDTHS, save
    from analysis.report.write import make_writable

    assert asked.out is not None
    make_writable(asked.out)
    command = f"python -m analysis tune {spelled(asked, ('format',))}"
    runs = sum(cell.runs for own in answer.tuned.values() for cell in own.cells)
    told = (
        f"Loss against {asked.over[0]} by size with the fitted surface of each mix; bars: "
        f"{percent(asked.level, 'g')} intervals of the optima, an open end cut. {answer.source}, "
        f"{runs} runs. $ {command}"
    )
    figure, table = response_surfaces(answer.tuned, "", WIDTHS[asked.width])
    facts = {"figure": "tuning", "caption": told, "command": command, "source": answer.source}
    save(figure, asked.out / "tuning", table, facts)
    return ["", str(asked.out / "tuning.pdf")]


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
