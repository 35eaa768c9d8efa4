"""`python -m analysis design target_width=0.2 sizes=60m,100m,190m,370m`: a ladder, planned."""

import argparse
import csv
import io
import math
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ablations.records import SettingError, project_root
from analysis.commands.common import FORMATS, known, number, shown, whole
from analysis.commands.savings import place
from analysis.commands.sources import settings as key_values
from models.format import count, percent

if TYPE_CHECKING:
    import pandas as pd

    from analysis.stats.design import Assumed, Size

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
    "figure": "",
    "format": "table",
}
LEAST_N = 1000
COLUMNS = ("sizes", "chinchilla", "seeds", "seeds_small", "runs", "gpu_hours", "width", "power")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("settings", nargs="*", metavar="key=value", help=", ".join(KEYS))


def run(options: argparse.Namespace) -> str:
    from analysis.stats.design import TOKENS_PER_PARAMETER, cheapest, frontier

    given = settings(options.settings)
    known("format", given["format"], FORMATS)
    target = number("target_width", given["target_width"])
    assumed = assumptions(given)
    multiples = tuple(sorted(set(numbers("chinchilla", given["chinchilla"]))))
    if len(multiples) < 3:
        raise SettingError(f"chinchilla={given['chinchilla']} must be three multiples or more.")
    seeds = tuple(whole("seeds", text, 1) for text in given["seeds"].split(","))
    peak, mfu = (number(key, given[key]) for key in ("tflops", "mfu"))
    if mfu > 1:
        raise SettingError(f"mfu={given['mfu']} must be a share of the peak, at most 1.")
    sizes = sizes_of(given["sizes"], given["baseline"], given["mix"])
    largest = max(size.N for size in sizes)
    N, D = largest, largest * TOKENS_PER_PARAMETER * multiples[-1]
    if given["at"]:
        N, D = (value or 0.0 for value in place(given["at"], None, "tokens"))
    table = frontier(sizes, assumed, N, D, multiples, seeds, 1e12 * peak * mfu)
    chosen = cheapest(table, target)
    rows = _rows(table)
    drawn = draw(table, target, assumed, given["figure"], options.settings)
    if given["format"] != "table":
        cheap = None if chosen is None else chosen.to_dict()
        return shown(given["format"], {"cheapest": cheap, "ladders": rows}, rows)
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
            f"{count(chosen['gpu_hours'], 3)} GPU-hours, ×/÷ {chosen['width']:.3g}, "
            f"power {chosen['power']:.2f}."
        )
    notes = [
        f"Assumed: the mix needs {assumed.saving:g} times fewer tokens; noise of the loss "
        f"{percent(assumed.run_sd, 'g')} a run, {percent(assumed.point_sd, 'g')} a point, "
        f"correlation {assumed.shared:g} between mixes on the same batches; no error of the law "
        "itself.",
        f"GPU-hours at {percent(mfu, 'g')} of {peak:g} TFLOP/s.",
    ]
    ladders = whole("check", given["check"], 0)
    if ladders and chosen is not None:
        notes.append(checked(_rows(chosen.to_frame().T)[0], sizes, assumed, ladders))
    best = table[table["efficient"] & table["in_range"]][list(COLUMNS)]
    return "\n".join([advice, "", shown("table", {}, _rows(best)), "", *notes, *drawn])


def draw(
    table: "pd.DataFrame", target: float, assumed: "Assumed", stem: str, asked: list[str]
) -> list[str]:
    """The frontier as a figure at `stem` with .pdf, .png, .svg, .csv and .json; none without."""
    if not stem:
        return []
    from analysis.report.figures import design_frontier
    from analysis.report.figures.style import save
    from analysis.report.write import make_writable

    path = Path(stem).with_suffix("")
    make_writable(path.parent)
    note = (
        f"Assumed: a saving of {assumed.saving:g}, noise of {percent(assumed.run_sd, 'g')} a run "
        f"and {percent(assumed.point_sd, 'g')} a point, correlation {assumed.shared:g} of shared "
        "batches; no error of the law itself."
    )
    figure, data = design_frontier(table, 1 + target, note)
    command = " ".join(["python -m analysis design", *asked])
    provenance = {"command": command, "assumed": asdict(assumed), "target_width": target}
    return [str(written) for written in save(figure, path, data, provenance)]


def _rows(table: "pd.DataFrame") -> list[dict[str, Any]]:
    return [dict(zip(table.columns, row, strict=True)) for row in table.itertuples(index=False)]


def settings(arguments: list[str]) -> dict[str, str]:
    given = KEYS | key_values(arguments, tuple(KEYS), "sizes=60m,100m")
    if not given["sizes"]:
        raise SettingError("sizes= is missing; give three or more, sizes=60m,100m,190m,370m.")
    return given


def assumptions(given: dict[str, str]) -> "Assumed":
    from analysis.stats.design import Assumed

    saving, run_sd, point_sd = (number(key, given[key]) for key in ("saving", "run_sd", "point_sd"))
    try:
        shared = float(given["shared"])
    except ValueError:
        shared = math.nan
    if not 0.1 <= saving <= 10:
        raise SettingError(f"saving={given['saving']} must lie between 0.1 and 10.")
    if max(run_sd, point_sd) > 0.1:
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
    from analysis.stats.design import Ladder, check

    names = chosen["sizes"].split(",")
    own = tuple(size for name in names for size in sizes if size.name == name)
    seeds = (*[int(chosen["seeds_small"])] * (len(own) - 1), int(chosen["seeds"]))
    multiples = tuple(float(part) for part in chosen["chinchilla"].split(","))
    found = check(Ladder(own, multiples, seeds), assumed, chosen["N"], chosen["D"], ladders)
    return (
        f"Checked on {ladders} simulated ladders: ×/÷ {found.width:.3g}, power {found.power:.2f}, "
        f"{percent(found.coverage, '.0f')} of intervals hold the truth."
    )
