"""Do 95 % intervals of predicted losses, of one more run and of N*(C) hold the truth?

    OMP_NUM_THREADS=1 python benchmarks/coverage_predict.py [ladders=300] [seeds=2,3] [first=0]
                                                    [kinds=even,...] [resamples=300] [jobs=1]
    OMP_NUM_THREADS=1 python benchmarks/coverage_predict.py held_out=FILE.csv

Ladders, truths and noise are those of `coverage_unequal.py`: two mixes, six sizes of 50M to 1.2B at
20 to 160 tokens per parameter. `law` is the share of intervals of the law that hold the true loss,
`run` that of intervals of one more run that hold the loss of a run simulated afresh at the place;
behind them median half-widths in percent. At a budget also `N*`, the share of intervals of N*(C)
that hold the true one, and the median half-width as a factor; `law` and `run` are there of the loss
at the N* that was given. Both mixes count, so a cell is of twice as many intervals as ladders; its
standard error, in brackets, is that over ladders.

`held_out` takes measured points instead: each mix's runs are dealt into five parts, each part is
predicted from the other four, and so are the runs of the largest fifth of N from the smaller ones.
Shares are of points, whose runs are independent where each has one point.
"""

import sys
from collections.abc import Callable
from multiprocessing import Pool
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from coverage_unequal import BASE, KINDS, POINT_SD, ladder, laws, run_sd
from scipy.optimize import minimize_scalar

from analysis.stats.laws import FLOPS, Array
from analysis.stats.predict import Place, predict
from analysis.study.load import load_csv

PARTS = 5
MIXES = ("base", "mix")
# In range; and one size beyond, in N and D together as in N alone along the optimum.
PLACES = {
    "370M, 40 tok/param": Place(N=3.7e8, D=40 * 3.7e8),
    "1.2B, 160": Place(N=1.2e9, D=160 * 1.2e9),
    "N and D ×2": Place(N=2.4e9, D=2 * 160 * 1.2e9),
}
# Budgets whose optimum under Chinchilla's own law is a size in the range, and twice the largest.
OPTIMA = {"C, N* 370M": 3.7e8, "C, N* 2.4B": 2.4e9}


def budget(N: float) -> float:
    """FLOPs at which the base law's optimum is N: inverse of Hoffmann et al. 2022, eq. 4."""
    share = BASE.beta / (BASE.alpha + BASE.beta)
    return float(1e20 * (N / float(BASE.optimum(1e20)[0])) ** (1 / share))


def best_size(law: Any, C: float) -> float:
    """N of least loss at C = 6 N D, by search: the truth need not be of the law's form."""

    def at(log_N: float) -> float:
        N = float(np.exp(log_N))
        return float(law.loss(N, C / (FLOPS * N)))

    return float(np.exp(minimize_scalar(at, bounds=np.log([1e6, 1e12]), method="bounded").x))


def analysed(task: tuple[str, int, int, int]) -> Array:
    """Of one ladder, by place and mix: (places, mixes, 6) of held and half-width of law, run, N*.

    NaN where a place has no N*.
    """
    kind, seeds, i, resamples = task
    points = ladder(np.random.default_rng([78, KINDS.index(kind), seeds, i]), kind, seeds)
    truths = dict(zip(MIXES, laws(kind), strict=True))
    budgets = {name: Place(C=budget(N)) for name, N in OPTIMA.items()}
    places = [*PLACES.values(), *budgets.values()]
    found = predict(points, places, resamples=resamples, seed=i)
    fresh = np.random.default_rng([80, KINDS.index(kind), seeds, i])
    rows = []
    for one in found.rows:
        true = float(truths[one.mix].loss(one.N, one.D))
        luck, point = fresh.normal(size=2)
        new = true * np.exp(run_sd(kind, one.N) * luck + POINT_SD * point)
        row = [
            one.interval.low <= true <= one.interval.high,
            50 * np.log(one.interval.high / one.interval.low),
            one.run_interval.low <= new <= one.run_interval.high,
            50 * np.log(one.run_interval.high / one.run_interval.low),
            np.nan,
            np.nan,
        ]
        if one.optimum:
            best = best_size(truths[one.mix], one.optimum.C)
            row[4] = one.optimum.N_interval.low <= best <= one.optimum.N_interval.high
            row[5] = np.sqrt(one.optimum.N_interval.high / one.optimum.N_interval.low)
        rows.append(row)
    return np.array(rows, float).reshape(len(places), len(MIXES), 6)


def rows(
    kind: str, seeds: int, tasks: range, resamples: int, mapped: Callable[..., Any]
) -> list[str]:
    """The table's rows for one kind of ladder, one per place."""
    each = np.array(list(mapped(analysed, [(kind, seeds, i, resamples) for i in tasks])))
    table = []
    for j, place in enumerate((*PLACES, *OPTIMA)):
        cells = []
        for held, unit in ((0, " %"), (2, " %"), (4, "")):
            if np.isnan(each[:, j, :, held]).all():
                cells.append("")
                continue
            of_ladder = each[:, j, :, held].mean(1)
            error = of_ladder.std(ddof=1) / np.sqrt(len(of_ladder))
            width = np.median(each[:, j, :, held + 1])
            sign = "±" if unit else "×/÷"
            cells.append(f"{of_ladder.mean():.3f} ({error:.3f}), {sign} {width:.3g}{unit}")
        table.append(f"| {kind} | {seeds} | {len(each)} | {place} | {' | '.join(cells)} |")
    return table


def held_share(points: pd.DataFrame, left_out: Array, resamples: int) -> list[bool]:
    """Whether each point left out (n,) lies in the interval of one more run from the others."""
    out = points[left_out]
    places = [Place(N, D) for N, D in zip(out["N"], out["D"], strict=True)]
    found = predict(points[~left_out], places, resamples=resamples).rows
    return [
        one.run_interval.low <= loss <= one.run_interval.high
        for one, loss in zip(found, out["loss"], strict=True)
    ]


def held_out(path: Path, resamples: int) -> None:
    """Print a row for each mix of a CSV: shares of measured losses in their intervals."""
    print("| points | mix | five parts, by run | largest fifth of N |")
    print("| --- | --- | ---: | ---: |")
    for mix, points in load_csv(path).groupby("mix"):
        run = pd.factorize(points["run"])[0]
        part = np.random.default_rng(0).integers(0, PARTS, run.max() + 1)[run]
        parts = [one for k in range(PARTS) for one in held_share(points, part == k, resamples)]
        large = (points["N"] > points["N"].quantile(1 - 1 / PARTS)).to_numpy()
        cells = [
            f"{np.mean(each):.3f} of {len(each)}"
            for each in (parts, held_share(points, large, resamples))
        ]
        print(f"| {path.stem} | {mix} | {' | '.join(cells)} |", flush=True)


def main(arguments: list[str]) -> None:
    given = dict(argument.split("=", 1) for argument in arguments)
    kinds = given["kinds"].split(",") if "kinds" in given else ("even",)
    first, resamples = int(given.get("first", 0)), int(given.get("resamples", 300))
    if "held_out" in given:
        held_out(Path(given["held_out"]), resamples)
        return
    tasks = range(first, first + int(given.get("ladders", 300)))
    print("| ladder | seeds | ladders | at | law | one more run | N* |")
    print("| --- | ---: | ---: | --- | ---: | ---: | ---: |")
    with Pool(int(given.get("jobs", 1))) as pool:
        for kind in kinds:
            for seeds in map(int, given.get("seeds", "2,3").split(",")):
                print("\n".join(rows(kind, seeds, tasks, resamples, pool.imap)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
