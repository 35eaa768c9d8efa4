"""`python -m analysis compare sweep=NAME`: what differed, and what a reviewer asks, answered."""

from dataclasses import dataclass

from analysis.commands.common import Studied, find, shown
from models.command import setting


@dataclass(frozen=True, kw_only=True)
class Settings(Studied):
    """What differed between mixes beside the mix, joint models, and a reviewer's checklist."""

    EXAMPLES = ("sweep=demo", "sweep=demo format=json")
    format: str = setting("markdown", "how it is printed", choices=("markdown", "latex", "json"))


def run(asked: Settings) -> str:
    import pandas as pd

    from analysis import foreign
    from analysis.report import tables
    from analysis.report.checklist import checklist
    from analysis.report.paper import other_latex
    from analysis.study.compare import control_table

    found = find("compare", asked)
    found = found if asked.format == "json" else found.literal
    parts = {
        f"{one.mix} against {one.baseline}": control_table(one) for one in found.comparisons
    } | {"What a reviewer asks": checklist(found)}
    if found.sweep.dropped:
        parts["Left out"] = pd.DataFrame({"what": found.sweep.dropped})
    if asked.format == "json":
        document = {title: table.to_dict("records") for title, table in parts.items()}
        return shown("json", document, [])
    if asked.format == "latex":
        return "\n".join(
            other_latex(table, title, f"compare-{place}")
            for place, (title, table) in enumerate(parts.items(), 1)
            if len(table)
        )
    return "\n\n".join(
        f"## {foreign.markdown(title)}\n\n{tables.markdown(table) if len(table) else 'Nothing.'}"
        for title, table in parts.items()
    )
