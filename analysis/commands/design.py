"""`python -m analysis design target_width=0.2 sizes=60m,100m,190m,370m`: a ladder, planned.

With points=pilot.csv or sweep=NAME what is assumed is learned from that pilot, where it can be.
"""

import csv
import io
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ablations.records import SettingError, project_root
from analysis.commands.common import Points, Shown, read, shown
from models.command import as_text, setting, spelled
from models.format import count, percent

if TYPE_CHECKING:
    import pandas as pd

    from analysis.stats.design import Assumed, Size
    from analysis.study.pilot import Pilot

MIX = "gdn3_attn1"
LEAST_N = 1000
# N as it is typed and as it is shown.
_COUNT = re.compile(r"(\d+\.?\d*(?:e[+-]?\d+)?)([kMBT]?)", re.ASCII)
_UNITS = {"": 1.0, "k": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}
COLUMNS = ("sizes", "chinchilla", "seeds", "seeds_small", "runs", "gpu_hours", "width", "power")


@dataclass(frozen=True, kw_only=True)
class Settings(Shown, Points):
    """Plan a ladder: expected interval, power and GPU-hours, before anything is spent.

    The cheapest ladder whose interval of the saving is narrow enough. Points are those of a pilot,
    from which what is assumed is learned where it is not given. docs/intervals.md says how.
    """

    EXAMPLES = (
        "sizes=60m,100m,190m,370m target_width=0.2", "sizes=6e7,1e8,2e8 format=json",
        "pilot.csv target_width=0.1",
    )  # fmt: skip
    sizes: tuple[str, ...] = setting(
        (), "three or more, by name or by parameters; a pilot's own unless given",
        example="60m,100m,190m,370m",
    )  # fmt: skip
    target_width: float = setting(0.2, "of the interval: 0.2 is ×/÷ 1.2", above=0)
    baseline: str = setting("transformer", "the mix that the other is compared with")
    mix: str | None = setting(None, "the other, gdn3_attn1 or a pilot's only other unless given")
    chinchilla: tuple[float, ...] = setting(
        (0.5, 1, 2, 4, 8), "tokens of a run, in 20 a parameter", above=0
    )
    seeds: tuple[int, ...] = setting((1, 2, 3, 5), "numbers of seeds to try", least=1)
    at: Mapping[str, float] = setting(
        {}, "where the saving is asked, at the largest run unless given", above=0,
        example="N=1e9,D=2e10",
    )  # fmt: skip
    saving: float | None = setting(
        None, "assumed saving of tokens, 1.3 unless learned", least=0.1, most=10
    )
    run_sd: float | None = setting(
        None, "noise of a run, 0.001 unless learned", above=0, most=0.1,
        words="a share of the loss, at most 0.1",
    )  # fmt: skip
    point_sd: float | None = setting(
        None, "noise of a point, 0.0005 unless learned", above=0, most=0.1,
        words="a share of the loss, at most 0.1",
    )  # fmt: skip
    shared: float | None = setting(
        None, "between mixes on the same batches, 0 unless learned", least=0, below=1,
        words="a correlation of 0 to less than 1",
    )  # fmt: skip
    tflops: float = setting(989.0, "peak of a device", above=0)
    mfu: float = setting(
        0.4, "share of the peak reached", above=0, most=1, words="a share of the peak, at most 1"
    )
    check: int = setting(0, "ladders to simulate of the one chosen", least=0)
    figure: Path | None = setting(None, "files to draw, by their name without ending")


def run(asked: Settings) -> str:
    from analysis.stats.design import TOKENS_PER_PARAMETER, cheapest, frontier
    from analysis.study.pilot import rows_of
    from analysis.study.savings_answer import check_place

    pilot, sizes, mix = learned(asked)
    assumed = pilot.assumed
    multiples = tuple(sorted(set(asked.chinchilla)))
    if len(multiples) < 3:
        given = ",".join(f"{one:g}" for one in asked.chinchilla)
        raise SettingError(f"chinchilla={given} must be three multiples or more.")
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
    drawn = draw(table, pilot, asked)
    best = table[table["efficient"] & table["in_range"]]
    sure, doubts = doubted(pilot, _rows(best[best["width"] <= 1 + target]), sizes, target)
    stated = rows_of(pilot.assumptions)
    if asked.format != "table":
        cheap = None if chosen is None else chosen.to_dict()
        document: dict[str, Any] = {"cheapest": cheap, "ladders": rows, "assumed": stated}
        if pilot.draws:
            document |= {"assured": sure, "notes": [*pilot.notes, *doubts]}
        return shown(asked.format, document, rows)
    what = f"{mix} over {asked.baseline} at N = {N:.4g}, D = {D:.4g}"
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
    blank = [{key: "" if value is None else value for key, value in row.items()} for row in stated]
    notes = [
        "Assumed, with no error of the law itself (noise as shares of the loss, shared as the "
        "correlation of runs of two mixes on the same batches):",
        shown("table", {}, blank),
        "",
        *pilot.notes,
        *doubts,
        f"GPU-hours at {percent(asked.mfu, 'g')} of {asked.tflops:g} TFLOP/s.",
    ]
    if asked.check and chosen is not None:
        notes.append(checked(_rows(chosen.to_frame().T)[0], sizes, assumed, asked.check))
    listed = shown("table", {}, _rows(best[list(COLUMNS)]))
    return "\n".join([advice, "", listed, "", *notes, *drawn])


def learned(asked: Settings) -> "tuple[Pilot, list[Size], str]":
    """What is assumed, from the pilot where one is given, the sizes that may train, the mix."""
    from analysis.stats.design import LEAST_SIZES, MOST_SIZES, Assumed
    from analysis.study import pilot

    given = {
        name: value
        for name in ("saving", "run_sd", "point_sd", "shared")
        if (value := getattr(asked, name)) is not None
    }
    assumed = Assumed(**given)
    if asked.points is None and not asked.sweep:
        if not asked.sizes:
            raise SettingError(
                "sizes= is missing; give three or more, sizes=60m,100m,190m,370m, or a pilot, "
                "points=pilot.csv."
            )
        mix = asked.mix or MIX
        sizes = sizes_of(asked.sizes, asked.baseline, mix)
        return pilot.Pilot(assumed, frozenset(given), {}), sizes, mix
    sweep = read(asked)
    if sweep.arms.treatments:
        varied = sweep.arms.treatments[0]
        name = varied.settings[0]
        without = f" without treatments={name}" if asked.treatments else ""
        raise SettingError(
            f"a pilot is of one level of {name}, and this one has {', '.join(varied.levels)}; "
            f"choose one, {shlex.quote(f'where={name}={varied.levels[0]}')}{without}."
        )
    points = sweep.points
    others = [one for one in dict.fromkeys(points["mix"]) if one != asked.baseline]
    mix = asked.mix or (others[0] if len(others) == 1 else MIX)
    name = f"points={asked.points}" if asked.points else f"sweep={','.join(asked.sweep)}"
    told = pilot.learn(points, name, asked.baseline, mix, assumed, frozenset(given))
    if asked.sizes:
        return told, sizes_of(asked.sizes, asked.baseline, mix), mix
    sizes = pilot.sizes_of(points, asked.baseline, mix)
    if not LEAST_SIZES <= len(sizes) <= MOST_SIZES:
        raise SettingError(
            f"{name} has {len(sizes)} size(s), and a plan chooses among {LEAST_SIZES} to "
            f"{MOST_SIZES}; give them, sizes=60m,100m,190m,370m."
        )
    return told, sizes, mix


def doubted(
    pilot: "Pilot", narrow: list[dict[str, Any]], sizes: "list[Size]", target: float
) -> tuple[dict[str, Any] | None, list[str]]:
    """Of `narrow` ladders, cheapest first, the first that keeps the target in nine of ten draws of
    what is assumed; and that in sentences. Nothing where no pilot told anything."""
    from analysis.stats.design import ASSURED, assured, ladder_of

    if not pilot.draws or not narrow:
        return None, []
    share = f"{percent(ASSURED, 'g')} of the draws of what was learned"
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
                f"the largest and {row['seeds_small']} at the others, {count(row['gpu_hours'], 3)} "
                "GPU-hours."
            )
        if sure:
            return row | {"width_assured": width, "power_mean": power}, sentences
    return None, [*sentences, f"No ladder listed keeps ×/÷ {1 + target:g} in {share}."]


def draw(table: "pd.DataFrame", pilot: "Pilot", asked: Settings) -> list[str]:
    """The frontier as a figure with .pdf, .png, .svg, .csv and .json; none where none is asked."""
    if asked.figure is None:
        return []
    from analysis.report.figures import design_frontier
    from analysis.report.figures.style import save
    from analysis.report.write import make_writable
    from analysis.study.pilot import rows_of

    path, assumed = asked.figure.with_suffix(""), pilot.assumed
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
        "sources": rows_of(pilot.assumptions),
        "target_width": asked.target_width,
    }
    return [str(written) for written in save(figure, path, data, provenance)]


def _rows(table: "pd.DataFrame") -> list[dict[str, Any]]:
    return [dict(zip(table.columns, row, strict=True)) for row in table.itertuples(index=False)]


def sizes_of(given: tuple[str, ...], baseline: str, mix: str) -> "list[Size]":
    """Sizes by name, counted by `python -m models`, or by N (6e7, 60M), at 6 N FLOPs a token."""
    from analysis.stats.design import LEAST_SIZES, MOST_SIZES, Size

    names, text = list(dict.fromkeys(given)), ",".join(given)
    if not LEAST_SIZES <= len(names) <= MOST_SIZES:
        raise SettingError(
            f"sizes={text} must be {LEAST_SIZES} to {MOST_SIZES} different sizes, as fewer than "
            f"{LEAST_SIZES} cannot tell A, alpha and E apart."
        )
    known = {path.stem for path in (project_root() / "conf" / "size").glob("*.yaml")}
    counts = [_COUNT.fullmatch(name) if name not in known else None for name in names]
    if all(name[:1].isdigit() and name[-1:].isdigit() for name in names) or all(counts):
        values = [float(one[1]) * _UNITS[one[2]] if one else 0.0 for one in counts]
        if not all(LEAST_N <= value < float("inf") for value in values):
            raise SettingError(f"sizes={text} must be N of {LEAST_N:,} parameters or more each.")
        return [
            Size(name if name[-1].isalpha() else f"{N:g}", N, (6 * N, 6 * N))
            for name, N in zip(names, values, strict=True)
        ]
    # A table of the floor below, read as text: what a model is stays there.
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
    listed = {(row["mix"], row["size"]): row for row in csv.DictReader(io.StringIO(told.stdout))}
    return [
        Size(
            name,
            float(listed[baseline, name]["N"]),
            (_flops(listed[baseline, name]), _flops(listed[mix, name])),
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
