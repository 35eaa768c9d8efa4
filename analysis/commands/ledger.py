"""`python -m analysis ledger`: sealed predictions beside the runs that came after them."""

from dataclasses import dataclass
from pathlib import Path

from ablations.records import SettingError, home
from analysis.commands.common import shown
from models.command import setting


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Score sealed predictions: which runs lie in their interval, and how calibrated all were.

    docs/statistics.md says what is scored.
    """

    EXAMPLES = ("", "runs=results format=json")
    sealed: Path | None = setting(
        None, "folder of sealed predictions, results/sealed unless given", shape="DIR"
    )
    runs: str = setting("runs", "where the sweeps lie that they were made from", shape="DIR")
    format: str = setting("table", "how it is printed", choices=("table", "csv", "json"))


def run(asked: Settings) -> str:
    from analysis.study import sealed

    where = asked.sealed or sealed.folder()
    if not where.is_dir():
        raise SettingError(
            f"sealed={where} is no folder; python -m analysis predict … seal=NAME makes one."
        )
    seals = sealed.read_seals(where)
    table = sealed.scored(seals, sealed.sweeps_of(seals, home() / asked.runs))
    words = sealed.summary(table)
    rows = [{str(key): value for key, value in row.items()} for row in table.to_dict("records")]
    if asked.format == "table":
        said = {True: "yes", False: "no", None: "–"}
        brief = [
            {name: said[row[name]] if name == "hit" else row[name] for name in sealed.COLUMNS}
            for row in rows
        ]
        return shown("table", {}, brief, [words]) if brief else words
    return shown(asked.format, {"scores": rows, "summary": words}, rows)
