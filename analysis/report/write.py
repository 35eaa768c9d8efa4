"""The report of a sweep or of points: report.html, report.md, figures and tables in a folder.

Works on a sweep that still runs, with one mix only, and with too few points for a law: it says what
is missing and shows what there is.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path

import pandas as pd

from ablations.records import SettingError, one_of, write_atomic
from analysis.foreign import literal
from analysis.report import paper, results, sections, tables
from analysis.report.checklist import checklist
from analysis.report.document import markdown
from analysis.report.figures.drawing import draw
from analysis.report.figures.losses import domains
from analysis.report.figures.style import csv_text
from analysis.report.page import page
from analysis.stats.savings import seconds_per_token
from analysis.study import classes, probes
from analysis.study.answer import answers
from analysis.study.findings import Findings
from analysis.study.savings_answer import interaction_row


def write_report(found: Findings, out: Path) -> tuple[list[str], list[Path]]:
    """Write report.html, report.md, figures and tables under `out`; return the answers, the files.

    Names in the answers are marked (`analysis.foreign`).
    Raises SettingError for an `out` that cannot be written, before anything is written.
    """
    make_writable(out)
    gallery = draw(found, out / "figures")
    written = write_tables(found, out / "tables")
    blocks = list(sections.report(found.literal, literal(gallery)))
    write_atomic(out / "report.md", markdown(blocks))
    write_atomic(out / "report.html", page(blocks))
    drawn = [one.stem.with_suffix(".png") for one in gallery.shown.values()]
    return answers(found.literal.study), [out / "report.html", out / "report.md", *drawn, *written]


def make_writable(out: Path) -> None:
    """Make the folder, or raise SettingError."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise SettingError(
            f"out={out} cannot be written ({error.strerror}); give a folder that can."
        ) from None


def cells(found: Findings) -> dict[str, pd.DataFrame]:
    """Every table that the sweep allows, as cells for people, names in them marked."""
    found = found.literal
    result = found.study
    made: dict[str, pd.DataFrame | None] = {
        "results_loss": results.results_table(found, "loss"),
        "ladder": results.ladder_table(found),
        "points": tables.points_table(found.points),
        "checklist": checklist(found),
        "published": results.published_table(found),
        "savings": sections.savings_table(found),
    }
    if result.interactions:
        made["interactions"] = tables.interactions_table(result.interactions, result.level)
    if len(result.interactions_free):
        made["interactions_free"] = tables.free_interactions_table(
            result.interactions_free, result.level
        )
    if found.points["bpb"].notna().any():
        made["results_bpb"] = results.results_table(found, "bpb")
    if domains(found.points):
        made["domains"] = results.domains_table(found)
    if not probes.is_empty(found.probes, positions=False):
        made["probes"] = probes.accuracy_cells(probes.accuracies(found.probes))
    if len(found.classes):
        made["classes"] = classes.cells(found.classes)
    if len(result.free):
        made["fit_free"] = tables.fit_free_table(result.free, result.level)
    if result.fit is not None:
        made["fits"] = tables.fits_table(result.fit, result.draws)
        made["diagnostics"] = tables.diagnostics_table(result.fit, list(result.noise))
    if len(found.holdout):
        made["holdout"] = tables.holdout_table(found.holdout)
    return {name: made[name] for name in paper.TABLES if made.get(name) is not None}  # type: ignore[misc]


def check_names(names: Iterable[str], made: Collection[str]) -> None:
    """Raise SettingError for a name that no table has, or none of those that were made."""
    for name in names:
        if name in made:
            continue
        if name in paper.TABLES:
            raise SettingError(
                f"only={name} cannot be made of these points; they allow {', '.join(sorted(made))}."
            )
        raise one_of("only", name, made)


def numbers(found: Findings) -> dict[str, pd.DataFrame]:
    """The same where full precision says more than cells: what to compute with."""
    result = found.study
    made = {
        "points": found.sweep.arms.named(result.points),
        "fit_free": result.free,
        "results_loss": results.at_last_budget(found.points, "loss", result.level),
    }
    if found.points["bpb"].notna().any():
        made["results_bpb"] = results.at_last_budget(found.points, "bpb", result.level)
    if result.savings:
        made["savings"] = pd.DataFrame(
            [one.row | {"in_range": one.in_range} for one in result.savings]
        )
    if len(result.interactions_free):
        made["interactions_free"] = result.interactions_free
    if result.interactions:
        made["interactions"] = pd.DataFrame(
            [interaction_row(by, one) for by, one in result.interactions]
        )
    if result.fit is not None:
        made["fits"] = pd.DataFrame(
            [
                {"mix": mix, "model": result.fit.model, **one.law.as_dict(), "n": one.n,
                 "runs": one.n_runs, "rms": one.rms,
                 "largest_error": one.largest_error, "condition": one.condition}
                for mix, one in result.fit.mixes.items()
            ]
        )  # fmt: skip
    if len(found.holdout):
        made["holdout"] = found.holdout
    if not probes.is_empty(found.probes, positions=False):
        made["probes"] = probes.accuracies(found.probes)
    if not probes.is_empty(found.probes, positions=True):
        made["positions"] = probes.by_position(found.probes)
    if len(found.classes):
        made["classes"] = found.classes
    speeds = seconds_per_token(found.sweep.points)
    if len(speeds):
        made["speed"] = speeds.assign(tokens_per_second=1 / speeds["seconds"])
    return made


def write_tables(found: Findings, out: Path, only: tuple[str, ...] = ()) -> list[Path]:
    """Write each table as .tex and .md, and its numbers as .csv; return the files."""
    shown, exact = cells(found), numbers(found)
    written = []
    for name in dict.fromkeys([*shown, *exact]):
        if only and name not in only:
            continue
        if name in shown:
            text = paper.report_latex(name, found.literal, shown[name])
            written.append(_write(out / f"{name}.tex", text))
            written.append(_write(out / f"{name}.md", tables.markdown(shown[name])))
        written.append(_write(out / f"{name}.csv", csv_text((shown | exact)[name])))
    return written


def _write(path: Path, text: str) -> Path:
    write_atomic(path, text)
    return path
