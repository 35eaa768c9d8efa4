"""Do 95 % intervals of token savings hold where ladders and noise are not what is assumed?

    OMP_NUM_THREADS=1 python benchmarks/coverage_unequal.py [ladders=200] [kinds=plain,small_N,...]

Beside `coverage.py`, and sharing nothing with it but the analysis: another truth (Chinchilla's law
by Besiroglu et al. 2024, and a mix that saves a factor of two or more), ladders with sizes, seeds
and budgets missing, and noise that is heavy-tailed, wanders with D or depends on size. Cells: share
of intervals that hold the truth, and their median half-width as a factor; 300 resamples.
"""

import sys

import numpy as np
import pandas as pd

from analysis.fit import fit
from analysis.laws import Chinchilla
from analysis.savings import matched_factor
from analysis.uncertainty import bootstrap, interval

LAWS = {
    "base": Chinchilla(1.8172, 482.0, 0.3478, 2085.4, 0.3658),
    "mix": Chinchilla(1.80, 430.0, 0.345, 1500.0, 0.357),
}
SIZES = np.array([5e7, 1e8, 1.9e8, 3.7e8, 6e8, 1.2e9])
RATIOS = np.array([20, 40, 80, 160.0])
# Order matters: a ladder's random numbers follow from its place here.
KINDS = (
    "plain", "three_seeds", "one_seed", "student_t", "small_N", "small_N_points", "large_N",
    "middle_missing", "top_missing", "seeds_1_and_3", "budgets_differ", "point_a_run",
    "three_sizes", "four_sizes_one_seed", "runs_only", "points_only", "wandering", "one_off",
)  # fmt: skip
SEEDS = {
    "three_seeds": (3, 3), "one_seed": (1, 1), "seeds_1_and_3": (3, 1),
    "four_sizes_one_seed": (1, 1),
}  # fmt: skip
CHOSEN = {
    "middle_missing": (range(6), (0, 1, 3, 5)), "top_missing": (range(6), range(4)),
    "three_sizes": ((0, 2, 4),) * 2, "four_sizes_one_seed": ((0, 2, 4, 5),) * 2,
}  # fmt: skip
BUDGETS = {
    "budgets_differ": (np.array([20, 40, 80, 160, 320.0]), RATIOS[:3]),
    "four_sizes_one_seed": (RATIOS[1:],) * 2,
}


def noise_sds(kind: str, N: float) -> tuple[float, float]:
    """Standard deviations of log loss of a run at N and of a point."""
    small = 0.012 * (N / 5e7) ** -0.7
    return {
        "small_N": (0.006 * (N / 5e7) ** -0.5, 0.001),
        "small_N_points": (small, 0.1 * small + 0.0002),
        "large_N": (0.001 * (N / 5e7) ** 0.5, 0.001),
        "runs_only": (0.003, 0.00005),
        "points_only": (0.0, 0.002),
    }.get(kind, (0.003, 0.001))


def ladder(rng: np.random.Generator, kind: str) -> pd.DataFrame:
    """Points of both mixes, with columns as `fit` reads them."""
    rows = []
    for m, (mix, law) in enumerate(LAWS.items()):
        ratios = BUDGETS.get(kind, (RATIOS, RATIOS))[m]
        for N in SIZES[list(CHOSEN.get(kind, (range(6), range(6)))[m])]:
            run_sd, point_sd = noise_sds(kind, N)
            for seed in range(SEEDS.get(kind, (2, 2))[m]):
                D = N * ratios
                if kind == "student_t":
                    luck, points = (rng.standard_t(3, k) / np.sqrt(3) for k in (1, len(D)))
                else:
                    luck, points = (rng.normal(size=k) for k in (1, len(D)))
                run = run_sd * luck * np.ones(len(D))
                if kind == "wandering":
                    run = run_sd * 0.7 * np.cumsum(rng.normal(size=len(D)))
                if kind == "one_off" and (mix, N, seed) == ("mix", SIZES[2], 0):
                    run = run + 0.03
                for j, (d, loss) in enumerate(
                    zip(D, law.loss(N, D) * np.exp(run + point_sd * points), strict=True)
                ):
                    name, label = f"{mix}-{N:.3g}-s{seed}", seed
                    if kind == "point_a_run":
                        loss *= np.exp(run_sd * rng.normal() - run[j])
                        name, label = f"{name}-{j}", 10 * seed + j
                    rows.append((mix, f"{N:.3g}", label, name, N, d, loss))
    return pd.DataFrame(rows, columns=["mix", "size", "seed", "run", "N", "D", "loss"])


def places(kind: str) -> dict[str, tuple[float, float]]:
    """Where savings are asked: (N, D)."""
    top = {"three_sizes": 6e8, "top_missing": 3.7e8}.get(kind, 1.2e9)
    most = 80 if kind == "budgets_differ" else 160
    return {
        "largest, late": (top, 0.6 * most * top),
        "largest, early": (top, 26 * top),
        "50M, 100": (5e7, 100 * 5e7),
        "N and D ×2": (2 * top, 2 * most * top),
    }


def measure(kind: str, ladders: int) -> list[str]:
    """One row of the table."""
    found = np.empty((ladders, 4, 2))
    for i in range(ladders):
        points = ladder(np.random.default_rng([77, KINDS.index(kind), i]), kind)
        laws = bootstrap(fit(points, "free", "squares"), resamples=300, seed=i).laws
        for j, where in enumerate(places(kind).values()):
            found[i, j] = interval(matched_factor(laws["base"], laws["mix"], *where))[:2]
    cells = []
    for j, where in enumerate(places(kind).values()):
        low, high = found[:, j].T
        truth = float(matched_factor(LAWS["base"], LAWS["mix"], *where))
        held = ((low <= truth) & (truth <= high)).mean()
        cells.append(f"{held:.3f}, ×/÷ {np.median(np.sqrt(high / np.maximum(low, 1e-300))):.3g}")
    return cells


def main(arguments: list[str]) -> None:
    given = dict(argument.split("=", 1) for argument in arguments)
    kinds = given["kinds"].split(",") if "kinds" in given else KINDS
    ladders = int(given.get("ladders", 200))
    print(f"| ladder | ladders | {' | '.join(places('plain'))} |")
    print("| --- |" + " ---: |" * 5)
    for kind in kinds:
        print(f"| {kind} | {ladders} | {' | '.join(measure(kind, ladders))} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
