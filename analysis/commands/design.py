"""`python -m analysis design target_width=0.2 sizes=60m,100m,190m,370m`: a ladder, planned.

With points=pilot.csv or sweep=NAME what is assumed is learned from that pilot, where it can be.
"""

import argparse
import csv
import io
import math
import subprocess
import sys
from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ablations.records import SettingError, project_root
from analysis.commands.common import FORMATS, known, number, points_of, shown, whole
from analysis.commands.savings import place
from analysis.commands.sources import settings as key_values
from analysis.commands.sources import source

if TYPE_CHECKING:
    import pandas as pd

    from analysis.stats.design import Assumed, Size
    from analysis.study.pilot import Pilot

HELP = "plan a ladder: expected interval, power and GPU-hours, before anything is spent"
KEYS = {
    "target_width": "0.2",
    "sizes": "",
    "baseline": "transformer",
    "mix": "gdn3_attn1",
    "chinchilla": "0.5,1,2,4,8",
    "seeds": "1,2,3,5",
    "at": "",
    "saving": "1.3",
    "run_sd": "0.001",
    "point_sd": "0.0005",
    "shared": "0",
    "tflops": "989",
    "mfu": "0.4",
    "check": "0",
    "points": "",
    "sweep": "",
    "runs": "",
    "where": "",
    "columns": "",
    "figure": "",
    "format": "table",
}
# Where a pilot is read from.
SOURCE = ("points", "sweep", "runs", "where", "columns")
LEAST_N = 1000
COLUMNS = ("sizes", "chinchilla", "seeds", "seeds_small", "runs", "gpu_hours", "width", "power")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("settings", nargs="*", metavar="key=value", help=", ".join(KEYS))


def run(options: argparse.Namespace) -> str:
    from analysis.stats.design import TOKENS_PER_PARAMETER, cheapest, frontier
    from analysis.study.pilot import rows_of

    given = settings(options.settings)
    known("format", given["format"], FORMATS)
    target = number("target_width", given["target_width"])
    explicit = {setting.partition("=")[0] for setting in options.settings}
    pilot, sizes = learned(given, explicit)
    assumed = pilot.assumed
    multiples = tuple(sorted(set(numbers("chinchilla", given["chinchilla"]))))
    if len(multiples) < 3:
        raise SettingError(f"chinchilla={given['chinchilla']} must be three multiples or more.")
    seeds = tuple(whole("seeds", text, 1) for text in given["seeds"].split(","))
    peak, mfu = (number(key, given[key]) for key in ("tflops", "mfu"))
    if mfu > 1:
        raise SettingError(f"mfu={given['mfu']} must be a share of the peak, at most 1.")
    largest = max(size.N for size in sizes)
    N, D = largest, largest * TOKENS_PER_PARAMETER * multiples[-1]
    if given["at"]:
        N, D = (value or 0.0 for value in place(given["at"], None, "tokens"))
    table = frontier(sizes, assumed, N, D, multiples, seeds, 1e12 * peak * mfu)
    chosen = cheapest(table, target)
    rows = _rows(table)
    drawn = draw(table, target, pilot, given["figure"], options.settings)
    best = table[table["efficient"] & table["in_range"]]
    narrow = best[best["width"] <= 1 + target]
    sure, doubts = doubted(pilot, _rows(narrow), sizes, target)
    stated = rows_of(pilot.assumptions)
    if given["format"] != "table":
        cheap = None if chosen is None else chosen.to_dict()
        document: dict[str, Any] = {"cheapest": cheap, "ladders": rows, "assumed": stated}
        if pilot.draws:
            document |= {"assured": sure, "notes": [*pilot.notes, *doubts]}
        return shown(given["format"], document, rows)
    asked = f"{given['mix']} over {given['baseline']} at N = {N:.4g}, D = {D:.4g}"
    if chosen is None:
        narrowest = table[table["in_range"]]["width"].min()
        advice = (
            f"No ladder tried has an interval of ×/÷ {1 + target:g} or less for {asked} without "
            f"extrapolating (narrowest ×/÷ {narrowest:.3g}); more seeds or sizes would."
        )
    else:
        advice = (
            f"Cheapest ladder with an interval of ×/÷ {1 + target:g} or less for {asked}: sizes "
            f"{chosen['sizes']} at {chosen['chinchilla']} × Chinchilla, {chosen['seeds']} seed(s) "
            f"at the largest and {chosen['seeds_small']} at the others: {chosen['runs']} runs, "
            f"{chosen['gpu_hours']:.3g} GPU-hours, ×/÷ {chosen['width']:.3g}, "
            f"power {chosen['power']:.2f}."
        )
    blank = [{key: "" if value is None else value for key, value in row.items()} for row in stated]
    notes = [
        "Assumed, with no error of the law itself (noise as shares of the loss, shared as the "
        "correlation of runs of two mixes on the same batches):",
        shown("table", {}, blank),
        "",
        *pilot.notes,
        *doubts,
        f"GPU-hours at {100 * mfu:g} % of {peak:g} TFLOP/s.",
    ]
    ladders = whole("check", given["check"], 0)
    if ladders and chosen is not None:
        notes.append(checked(_rows(chosen.to_frame().T)[0], sizes, assumed, ladders))
    listed = shown("table", {}, _rows(best[list(COLUMNS)]))
    return "\n".join([advice, "", listed, "", *notes, *drawn])


def learned(given: dict[str, str], explicit: Collection[str]) -> "tuple[Pilot, list[Size]]":
    """What is assumed, from the pilot where one is given, and the sizes that may be trained."""
    from analysis.stats.design import LEAST_SIZES, MOST_SIZES
    from analysis.study import pilot

    assumed = assumptions(given)
    baseline, mix = given["baseline"], given["mix"]
    if not (given["points"] or given["sweep"]):
        sizes = sizes_of(given["sizes"], baseline, mix)
        return pilot.Pilot(assumed, frozenset(explicit), {}), sizes
    name = "points" if given["points"] else "sweep"
    points = points_of(source({key: given[key] for key in SOURCE if given[key]}))
    told = pilot.learn(points, f"{name}={given[name]}", baseline, mix, assumed, explicit)
    if given["sizes"]:
        return told, sizes_of(given["sizes"], baseline, mix)
    sizes = pilot.sizes_of(points, baseline, mix)
    if not LEAST_SIZES <= len(sizes) <= MOST_SIZES:
        raise SettingError(
            f"{name}={given[name]} has {len(sizes)} size(s), and a plan chooses among "
            f"{LEAST_SIZES} to {MOST_SIZES}; give them, sizes=60m,100m,190m,370m."
        )
    return told, sizes


def doubted(
    pilot: "Pilot", narrow: list[dict[str, Any]], sizes: "list[Size]", target: float
) -> tuple[dict[str, Any] | None, list[str]]:
    """Of `narrow` ladders, cheapest first, the first that keeps the target in nine of ten draws of
    what is assumed; and that in sentences. Nothing where no pilot told anything."""
    from analysis.stats.design import ASSURED, assured, ladder_of

    if not pilot.draws or not narrow:
        return None, []
    share = f"{100 * ASSURED:.0f} % of the draws of what was learned"
    sentences: list[str] = []
    for row in narrow:
        width, power = assured(ladder_of(row, sizes), pilot.draws, row["N"], row["D"])
        sure = width <= 1 + target
        if not sentences:
            sentences.append(
                f"The pilot leaves doubt: of the ladder proposed {share} have ×/÷ {width:.4g} or "
                f"less; its power over the draws is {power:.2f} on average."
            )
        elif sure:
            sentences.append(
                f"The cheapest listed that keeps ×/÷ {1 + target:g} in {share}: sizes "
                f"{row['sizes']} at {row['chinchilla']} × Chinchilla, {row['seeds']} seed(s) at "
                f"the largest and {row['seeds_small']} at the others, {row['gpu_hours']:.3g} "
                "GPU-hours."
            )
        if sure:
            return row | {"width_assured": width, "power_mean": power}, sentences
    return None, [*sentences, f"No ladder listed keeps ×/÷ {1 + target:g} in {share}."]


def draw(
    table: "pd.DataFrame", target: float, pilot: "Pilot", stem: str, asked: list[str]
) -> list[str]:
    """The frontier as a figure at `stem` with .pdf, .png, .svg, .csv and .json; none without."""
    if not stem:
        return []
    from analysis.report.figures import design_frontier
    from analysis.report.figures.style import save
    from analysis.report.write import make_writable
    from analysis.study.pilot import rows_of

    path, assumed = Path(stem).with_suffix(""), pilot.assumed
    make_writable(path.parent)
    note = (
        f"Assumed: a saving of {assumed.saving:g}, noise of {100 * assumed.run_sd:g} % a run and "
        f"{100 * assumed.point_sd:g} % a point, correlation {assumed.shared:g} of shared batches; "
        "no error of the law itself."
    )
    figure, data = design_frontier(table, 1 + target, note)
    command = " ".join(["python -m analysis design", *asked])
    provenance = {
        "command": command,
        "assumed": asdict(assumed),
        "sources": rows_of(pilot.assumptions),
        "target_width": target,
    }
    return [str(written) for written in save(figure, path, data, provenance)]


def _rows(table: "pd.DataFrame") -> list[dict[str, Any]]:
    return [dict(zip(table.columns, row, strict=True)) for row in table.itertuples(index=False)]


def settings(arguments: list[str]) -> dict[str, str]:
    given = KEYS | key_values(arguments, tuple(KEYS), "sizes=60m,100m")
    if not (given["sizes"] or given["points"] or given["sweep"]):
        raise SettingError(
            "sizes= is missing; give three or more, sizes=60m,100m,190m,370m, or a pilot, "
            "points=pilot.csv."
        )
    return given


def assumptions(given: dict[str, str]) -> "Assumed":
    from analysis.stats.design import LARGEST_SAVING, LARGEST_SD, LEAST_SAVING, Assumed

    saving, run_sd, point_sd = (number(key, given[key]) for key in ("saving", "run_sd", "point_sd"))
    try:
        shared = float(given["shared"])
    except ValueError:
        shared = math.nan
    if not LEAST_SAVING <= saving <= LARGEST_SAVING:
        raise SettingError(f"saving={given['saving']} must lie between 0.1 and 10.")
    if max(run_sd, point_sd) > LARGEST_SD:
        raise SettingError("run_sd and point_sd are shares of the loss; each must be at most 0.1.")
    if not 0 <= shared < 1:
        raise SettingError(f"shared={given['shared']} must be a correlation of 0 to less than 1.")
    return Assumed(saving=saving, run_sd=run_sd, point_sd=point_sd, shared=shared)


def numbers(name: str, text: str) -> list[float]:
    return [number(name, part) for part in text.split(",")]


def sizes_of(text: str, baseline: str, mix: str) -> "list[Size]":
    """Sizes by name, counted by `python -m models`, or by N, at 6 N FLOPs a token."""
    from analysis.stats.design import LEAST_SIZES, MOST_SIZES, Size

    names = list(dict.fromkeys(text.split(",")))
    if not LEAST_SIZES <= len(names) <= MOST_SIZES:
        raise SettingError(
            f"sizes={text} must be {LEAST_SIZES} to {MOST_SIZES} different sizes, as fewer than "
            f"{LEAST_SIZES} cannot tell A, alpha and E apart."
        )
    if all(name[:1].isdigit() and name[-1:].isdigit() for name in names):
        values = numbers("sizes", text)
        if min(values) < LEAST_N:
            raise SettingError(f"sizes={text} must be N of {LEAST_N:,} parameters or more each.")
        return [Size(f"{N:g}", N, (6 * N, 6 * N)) for N in values]
    # A table of the floor below, read as text: the analysis imports nothing of it but records.
    command = [sys.executable, "-m", "models", f"mix={baseline},{mix}", f"size={','.join(names)}"]
    told = subprocess.run(
        [*command, "--format", "csv"],
        cwd=project_root(),
        capture_output=True,
        text=True,
        check=False,
    )
    if told.returncode:
        raise SettingError(
            told.stderr.strip().removeprefix("error: ") or "python -m models failed."
        )
    counts = {(row["mix"], row["size"]): row for row in csv.DictReader(io.StringIO(told.stdout))}
    return [
        Size(
            name,
            float(counts[baseline, name]["N"]),
            (_flops(counts[baseline, name]), _flops(counts[mix, name])),
        )
        for name in names
    ]


def _flops(row: dict[str, str]) -> float:
    return float(row["flops_per_token"])


def checked(chosen: dict[str, Any], sizes: "list[Size]", assumed: "Assumed", ladders: int) -> str:
    """What simulated ladders of the chosen kind gave, in a sentence."""
    from analysis.stats.design import check, ladder_of

    found = check(ladder_of(chosen, sizes), assumed, chosen["N"], chosen["D"], ladders)
    return (
        f"Checked on {ladders} simulated ladders: ×/÷ {found.width:.3g}, power {found.power:.2f}, "
        f"{100 * found.coverage:.0f} % of intervals hold the truth."
    )
