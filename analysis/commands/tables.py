"""`python -m analysis tables sweep=NAME`: tables for LaTeX, Markdown and CSV."""

from dataclasses import dataclass

from analysis.commands.common import Studied, find, folder, shown
from models.command import setting


@dataclass(frozen=True, kw_only=True)
class Settings(Studied):
    """Tables with intervals for LaTeX (booktabs), Markdown, CSV and JSON."""

    EXAMPLES = ("sweep=demo", "sweep=demo only=fits format=latex")
    only: tuple[str, ...] = setting((), "names of tables, all unless given", shape="NAME[,NAME]")
    format: str = setting(
        "files", "written to out, or printed", choices=("files", "latex", "markdown", "csv", "json")
    )


def run(asked: Settings) -> str:
    from analysis.report import paper, tables
    from analysis.report import write as report
    from analysis.report.figures.style import csv_text

    found = find("tables", asked, compares=False)
    cells, exact = report.cells(found), report.numbers(found)
    report.check_names(asked.only, cells | exact)
    if asked.format == "files":
        out = folder(asked) / "tables"
        report.make_writable(out)
        return "\n".join(map(str, report.write_tables(found, out, asked.only)))
    if asked.format in ("csv", "json"):
        made = {name: (cells | exact)[name] for name in asked.only or cells | exact}
        if asked.format == "json":
            return shown("json", {name: one.to_dict("records") for name, one in made.items()}, [])
        return "\n".join(csv_text(one) for one in made.values()).rstrip()
    names = [name for name in asked.only or cells if name in cells]
    if asked.format == "markdown":
        return "\n".join(tables.markdown(cells[name]) for name in names)
    return "\n".join(paper.report_latex(name, found.literal, cells[name]) for name in names)
