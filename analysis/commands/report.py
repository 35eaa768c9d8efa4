"""`python -m analysis report sweep=NAME`: report.html, report.md, figures and tables."""

from dataclasses import dataclass, replace

from ablations.records import home
from analysis.commands.common import Studied, find, folder
from models.command import setting


@dataclass(frozen=True, kw_only=True)
class Settings(Studied):
    """Write report.html, report.md, figures and tables of a sweep or of points.

    docs/report.md says what is in it.
    """

    EXAMPLES = (
        "sweep=demo",
        "sweep=demo tuned=tuning",
        "points.csv baseline=gdn3_attn1 out=reports/mine",
    )
    tuned: str | None = setting(
        None, "a tuning sweep, or a ladder trained under protocol=tuned, by name", shape="NAME"
    )
    wandb: str | None = setting(None, "a run to log it to", shape="[ENTITY/]PROJECT/RUN")


def run(asked: Settings) -> str:
    from analysis.foreign import unmarked
    from analysis.report.write import write_report
    from analysis.study.tracking import attach, parse_run

    target = parse_run(asked.wandb) if asked.wandb else None
    # Where a report was sent does not change what is in it.
    found = find("report", asked, without=("wandb",))
    if asked.tuned is not None:
        from analysis.study.at_optimum import at_optimum

        place = home() / asked.runs / asked.tuned
        both = at_optimum(
            found.sweep, place, found.study.baseline, "lr", asked.resamples, asked.seed, asked.level
        )
        found = replace(found, tuned=both)
    out = folder(asked)
    answers, written = write_report(found, out)
    told = [unmarked(answer.replace("**", "")) for answer in answers]
    shown = [str(path) for path in written if path.suffix in (".html", ".md", ".png")]
    shown = [path for path in shown if "/tables/" not in path]
    sent = [attach(target, out)] if target else []
    return "\n".join([*told, "", *shown, str(out / "tables"), *sent])
