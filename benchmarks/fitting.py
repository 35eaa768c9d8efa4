"""Scaling-law fits beside the published procedure for the same points, in one process.

    python benchmarks/fitting.py [--full]

240 points of Hoffmann et al. 2022 as Besiroglu et al. 2024 read them off (arXiv 2404.10102),
Huber's loss of log residuals, delta 1e-3. Theirs is their procedure on scipy: L-BFGS from each of
4500 starts of Hoffmann's grid, the best kept, then one start at Hoffmann's estimate for each of
4000 resamples. Twice: with automatic derivatives, as they take them (torch here), and with
derivatives written out, which is kinder to them than what they ran. Of theirs a sample is run, 45
starts and 40 resamples, and scaled; --full runs all of it. Ours fits the same resamples, each from
its own best cell of a grid and from the optimum of the data.

Times are processor time of one thread, so that other processes on the machine matter less.
"""

import itertools
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pandas as pd
import torch
from scipy.optimize import minimize
from scipy.special import logsumexp

from analysis.stats.fit import fit, refit
from analysis.stats.laws import Array
from analysis.study.load import load_csv

DATA = Path(__file__).parent.parent / "tests" / "data" / "scaling"
DELTA = 1e-3
# Hoffmann et al. 2022, D.2: initial log A, log B, log E, alpha, beta; and their estimate.
GRID = {
    "a": np.arange(0, 26, 5.0), "b": np.arange(0, 26, 5.0), "e": np.arange(-1, 1.1, 0.5),
    "alpha": np.arange(0, 2.1, 0.5), "beta": np.arange(0, 2.1, 0.5),
}  # fmt: skip
HOFFMANN = np.array([np.log(406.4), np.log(410.7), np.log(1.69), 0.34, 0.28])
RESAMPLES, BATCH = 4000, 250


def published(
    N: Array, D: Array, loss: Array, start: Array, automatic: bool
) -> tuple[float, Array]:
    """One start of the published procedure: the sum of Huber values at its end, and where."""
    columns = np.log(N), np.log(D), np.log(loss)
    objective = automatic_objective(*columns) if automatic else exact_objective(*columns)
    found = minimize(
        objective, start, jac=True, method="L-BFGS-B",
        options={"maxiter": 10_000, "maxfun": 100_000, "ftol": 1e-15, "gtol": 1e-12},
    )  # fmt: skip
    return float(found.fun), found.x


Objective = Callable[[Array], tuple[float, Array]]


def exact_objective(log_n: Array, log_d: Array, log_loss: Array) -> Objective:
    def objective(x: Array) -> tuple[float, Array]:
        terms = np.stack([x[0] - x[3] * log_n, x[1] - x[4] * log_d, np.full_like(log_n, x[2])])
        predicted = logsumexp(terms, axis=0)
        r = predicted - log_loss
        size = np.abs(r)
        value = np.where(size < DELTA, r**2 / 2, DELTA * (size - DELTA / 2)).sum()
        shares = np.clip(r, -DELTA, DELTA) * np.exp(terms - predicted)
        by_exponents = -(shares[0] @ log_n), -(shares[1] @ log_d)
        return float(value), np.array([*shares.sum(1), *by_exponents])

    return objective


def automatic_objective(*columns: Array) -> Objective:
    log_n, log_d, log_loss = (torch.tensor(one) for one in columns)

    def objective(x: Array) -> tuple[float, Array]:
        a, b, e, alpha, beta = parameters = torch.tensor(x, requires_grad=True)
        terms = torch.stack([a - alpha * log_n, b - beta * log_d, e.expand_as(log_n)])
        r = torch.logsumexp(terms, 0) - log_loss
        value = torch.nn.functional.huber_loss(r, torch.zeros_like(r), reduction="sum", delta=DELTA)
        value.backward()
        return value.item(), parameters.grad.numpy()

    return objective


def seconds(function: Callable[[], object], repeats: int = 1) -> float:
    """Median processor time."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        function()
        times.append(time.process_time() - start)
    return float(np.median(times))


def ours(points: pd.DataFrame, counts: Array) -> Array:
    """Objectives of all resamples, each fitted from two starts that a grid chose."""
    fitted = fit(points)
    log_loss = np.log(fitted.points["loss"].to_numpy(float))
    parts = [
        refit(fitted.blocks[0], np.tile(log_loss, (len(some), 1)), some, fitted.threshold)[1]
        for some in (counts[i : i + BATCH] for i in range(0, len(counts), BATCH))
    ]
    return np.concatenate(parts)


def draw(n: int, resamples: int) -> Array:
    rng = np.random.default_rng(0)
    return rng.multinomial(n, np.full(n, 1 / n), size=resamples).astype(float)


def peer(
    N: Array, D: Array, loss: Array, counts: Array, full: bool, automatic: bool
) -> tuple[float, float, Array, Array]:
    """Seconds of the grid and of the resamples, scaled to all; objectives that they end at."""
    starts = [np.array(one) for one in itertools.product(*GRID.values())]
    every, some = (1, len(counts)) if full else (100, len(counts) // 100)
    chosen = starts[every // 2 :: every]
    ends: list[float] = []
    grid = seconds(lambda: ends.extend(published(N, D, loss, one, automatic)[0] for one in chosen))
    drawn = [np.repeat(np.arange(len(N)), row.astype(int)) for row in counts[:some]]
    values: list[float] = []
    single = seconds(
        lambda: values.extend(published(N[i], D[i], loss[i], HOFFMANN, automatic)[0] for i in drawn)
    )
    scale = len(starts) / len(chosen), len(counts) / some
    return grid * scale[0], single * scale[1], np.array(ends), np.array(values)


def main(full: bool) -> None:
    points = load_csv(DATA / "chinchilla_245.csv").query("not excluded").reset_index(drop=True)
    N, D, loss = (points[name].to_numpy(float) for name in ("N", "D", "loss"))
    fit(points)
    point = seconds(lambda: fit(points), 15)
    best = fit(points).objective
    print(f"240 points, one fit from 26 starts: {1e3 * point:.0f} ms, objective {best:.13f}")

    counts = draw(len(points), RESAMPLES)
    torch.set_num_threads(1)
    kept: list[Array] = []
    bootstrap = seconds(lambda: kept.append(ours(points, counts)), 3)
    print(f"{RESAMPLES} resamples of them, and the fit: {bootstrap:.2f} s")

    for automatic in (True, False):
        grid, single, ends, values = peer(N, D, loss, counts, full, automatic)
        told = "automatic" if automatic else "written-out"
        print(
            f"published procedure, {told} derivatives: grid {grid:.0f} s, resamples {single:.0f} s"
        )
        print(f"  {'all of it run' if full else '45 starts and 40 resamples run, and scaled'}")
        print(f"  starts within 1e-4 of the optimum: {np.mean(ends <= best * 1.0001):.0%}")
        relative = kept[0][: len(values)] / values - 1
        print(
            f"  our objectives of its resamples over theirs, less 1: {relative.min():.1e} to "
            f"{relative.max():.1e}; the data's {best / ends.min() - 1:.1e}"
        )
        print(f"  ratio {(grid + single) / bootstrap:.0f}")

    few = load_csv(DATA / "xlstm_tokenparam.csv").query("mix == 'xlstm'").reset_index(drop=True)
    counts = draw(len(few), 1000)
    ours(few, counts[:10])
    print(f"1000 resamples of {len(few)} points: {seconds(lambda: ours(few, counts), 3):.2f} s")


if __name__ == "__main__":
    main("--full" in sys.argv[1:])
