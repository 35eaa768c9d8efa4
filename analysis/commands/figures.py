"""`python -m analysis figures sweep=NAME`: the figures alone, at a paper's column width."""

from dataclasses import dataclass

from ablations.records import SettingError
from analysis.commands.common import Studied, find, folder
from models.command import setting


@dataclass(frozen=True, kw_only=True)
class Settings(Studied):
    """Draw the figures alone: PDF, PNG, SVG, their data and where they come from."""

    EXAMPLES = ("sweep=demo only=savings,loss width=single",)
    only: tuple[str, ...] = setting((), "names of figures, all unless given", shape="NAME[,NAME]")
    width: str = setting("double", "columns of a paper", choices=("double", "single"))
    note: bool = setting(False, "whether each figure says under it what it rests on")


def run(asked: Settings) -> str:
    from analysis.report.figures.drawing import check_names, draw
    from analysis.report.figures.style import WIDTHS
    from analysis.report.write import make_writable

    check_names(asked.only)
    found = find("figures", asked, compares=False)
    out = folder(asked) / "figures"
    make_writable(out)
    gallery = draw(found, out, asked.only, WIDTHS[asked.width], asked.note)
    if not gallery.shown:
        told = "; ".join(f"{name}: {clause}" for name, clause in gallery.lacking.items())
        what = f"only={','.join(asked.only)}" if asked.only else "No figure"
        raise SettingError(f"{what} cannot be drawn ({told}).")
    missing = [f"not drawn: {name}: {clause}" for name, clause in gallery.lacking.items()]
    return "\n".join([*(f"{one.stem}.pdf" for one in gallery.shown.values()), *missing])
