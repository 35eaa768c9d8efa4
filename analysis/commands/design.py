"""`python -m analysis design target_width=0.2 sizes=60m,100m,190m,370m`: a ladder, planned."""

import csv
import io
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ablations.records import SettingError, project_root
from analysis.commands.common import Shown, shown
from models.command import as_text, setting, spelled
from models.format import count, percent

if TYPE_CHECKING:
    import pandas as pd

    from analysis.stats.design import Assumed, Size

LEAST_N = 1000
COLUMNS = ("sizes", "chinchilla", "seeds", "seeds_small", "runs", "gpu_hours", "width", "power")


@dataclass(frozen=True, kw_only=True)
class Settings(Shown):
    """Plan a ladder: expected interval, power and GPU-hours, before anything is spent.

    The cheapest ladder whose interval of the saving is narrow enough. docs/intervals.md says how.
    """

    EXAMPLES = ("sizes=60m,100m,190m,370m target_width=0.2", "sizes=6e7,1e8,2e8 format=json")
    sizes: tuple[str, ...] = setting(
        help="three or more, by name or by parameters", example="60m,100m,190m,370m"
    )
    target_width: float = setting(0.2, "of the interval: 0.2 is ×/÷ 1.2", above=0)
    baseline: str = setting("transformer", "the mix that the other is compared with")
    mix: str = setting("gdn3_attn1", "the other")
    chinchilla: tuple[float, ...] = setting(
        (0.5, 1, 2, 4, 8), "tokens of a run, in 20 a parameter", above=0
    )
    seeds: tuple[int, ...] = setting((1, 2, 3, 5), "numbers of seeds to try", least=1)
    at: Mapping[str, float] = setting(
        {}, "where the saving is asked, at the largest run unless given", above=0,
        example="N=1e9,D=2e10",
    )  # fmt: skip
    saving: float = setting(1.3, "assumed saving of tokens", least=0.1, most=10)
    run_sd: float = setting(
        0.001, "noise of a run", above=0, most=0.1, words="a share of the loss, at most 0.1"
    )
    point_sd: float = setting(
        0.0005, "noise of a point", above=0, most=0.1, words="a share of the loss, at most 0.1"
    )
    shared: float = setting(
        0.0, "between mixes on the same batches", least=0, below=1,
        words="a correlation of 0 to less than 1",
    )  # fmt: skip
    tflops: float = setting(989.0, "peak of a device", above=0)
    mfu: float = setting(
        0.4, "share of the peak reached", above=0, most=1, words="a share of the peak, at most 1"
    )
    check: int = setting(0, "ladders to simulate of the one chosen", least=0)
    figure: Path | None = setting(None, "files to draw, by their name without ending")


def run(asked: Settings) -> str:
    from analysis.stats.design import TOKENS_PER_PARAMETER, Assumed, cheapest, frontier
    from analysis.study.savings_answer import check_place

    assumed = Assumed(
        saving=asked.saving, run_sd=asked.run_sd, point_sd=asked.point_sd, shared=asked.shared
    )
    multiples = tuple(sorted(set(asked.chinchilla)))
    if len(multiples) < 3:
        given = ",".join(f"{one:g}" for one in asked.chinchilla)
        raise SettingError(f"chinchilla={given} must be three multiples or more.")
    sizes = sizes_of(asked.sizes, asked.baseline, asked.mix)
    largest = max(size.N for size in sizes)
    N, D = largest, largest * TOKENS_PER_PARAMETER * multiples[-1]
    if asked.at:
        check_place(as_text(asked.at), asked.at, None, "tokens")
        N, D = asked.at["N"], asked.at["D"]
    flops_per_second = 1e12 * asked.tflops * asked.mfu
    table = frontier(sizes, assumed, N, D, multiples, asked.seeds, flops_per_second)
    target = asked.target_width
    chosen = cheapest(table, target)
    rows = _rows(table)
    drawn = draw(table, assumed, asked)
    if asked.format != "table":
        cheap = None if chosen is None else chosen.to_dict()
        return shown(asked.format, {"cheapest": cheap, "ladders": rows}, rows)
    what = f"{asked.mix} over {asked.baseline} at N = {N:.4g}, D = {D:.4g}"
    if chosen is None:
        narrowest = table[table["in_range"]]["width"].min()
        advice = (
            f"No ladder tried has an interval of ×/÷ {1 + target:g} or less for {what} without "
            f"extrapolating (narrowest ×/÷ {narrowest:.3g}); more seeds or sizes would."
        )
    else:
        advice = (
            f"Cheapest ladder with an interval of ×/÷ {1 + target:g} or less for {what}: sizes "
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
        f"GPU-hours at {percent(asked.mfu, 'g')} of {asked.tflops:g} TFLOP/s.",
    ]
    if asked.check and chosen is not None:
        notes.append(checked(_rows(chosen.to_frame().T)[0], sizes, assumed, asked.check))
    best = table[table["efficient"] & table["in_range"]][list(COLUMNS)]
    return "\n".join([advice, "", shown("table", {}, _rows(best)), "", *notes, *drawn])


def draw(table: "pd.DataFrame", assumed: "Assumed", asked: Settings) -> list[str]:
    """The frontier as a figure with .pdf, .png, .svg, .csv and .json; none where none is asked."""
    if asked.figure is None:
        return []
    from analysis.report.figures import design_frontier
    from analysis.report.figures.style import save
    from analysis.report.write import make_writable

    path = asked.figure.with_suffix("")
    make_writable(path.parent)
    note = (
        f"Assumed: a saving of {assumed.saving:g}, noise of {percent(assumed.run_sd, 'g')} a run "
        f"and {percent(assumed.point_sd, 'g')} a point, correlation {assumed.shared:g} of shared "
        "batches; no error of the law itself."
    )
    figure, data = design_frontier(table, 1 + asked.target_width, note)
    provenance = {
        "command": f"python -m analysis design {spelled(asked)}",
        "assumed": asdict(assumed),
        "target_width": asked.target_width,
    }
    return [str(written) for written in save(figure, path, data, provenance)]


def _rows(table: "pd.DataFrame") -> list[dict[str, Any]]:
    return [dict(zip(table.columns, row, strict=True)) for row in table.itertuples(index=False)]


def sizes_of(given: tuple[str, ...], baseline: str, mix: str) -> "list[Size]":
    """Sizes by name, counted by `python -m models`, or by N, at 6 N FLOPs a token."""
    from analysis.stats.design import LEAST_SIZES, MOST_SIZES, Size

    names, text = list(dict.fromkeys(given)), ",".join(given)
    if not LEAST_SIZES <= len(names) <= MOST_SIZES:
        raise SettingError(
            f"sizes={text} must be {LEAST_SIZES} to {MOST_SIZES} different sizes, as fewer than "
            f"{LEAST_SIZES} cannot tell A, alpha and E apart."
        )
    if all(name[:1].isdigit() and name[-1:].isdigit() for name in names):
        try:
            values = [float(name) for name in names]
        except ValueError:
            values = [0.0]
        if not all(LEAST_N <= value < float("inf") for value in values):
            raise SettingError(f"sizes={text} must be N of {LEAST_N:,} parameters or more each.")
        return [Size(f"{N:g}", N, (6 * N, 6 * N)) for N in values]
    # A table of the floor below, read as text: the analysis imports nothing of it but records.
    command = [sys.executable, "-m", "models", f"mix={baseline},{mix}", f"size={','.join(names)}"]
    told = subprocess.run(
        [*command, "format=csv"],
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
