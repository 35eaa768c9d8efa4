"""Do 95 % intervals of token savings hold the truth in 95 of 100 ladders, and how wide are they?

    OMP_NUM_THREADS=1 python benchmarks/coverage.py [ladders=500] [others=100] [resamples=400]
                                                    [seeds=1,3] [shared=0,0.7] [methods=...]

Truth: the transformer's and the 3:1 hybrid's laws of Olmo Hybrid's Table 18, unrounded so that its
Table 20 comes out; the paper's seven sizes at 10 to 160 tokens per parameter, five points a run;
run effects of 0.3 % and point noise of 0.1 %. `shared` is the correlation between the run effects
of the two mixes at one size and seed. Rows are methods; `ladders` are drawn for the default,
`others` for the rest. Cells: share of intervals that hold the truth, and their median half-width as
a factor. An interval of 500 ladders is known to ±1.9 % (two standard errors), one of 100 to ±4.4 %.
"""

import sys
import time
from collections.abc import Callable

import numpy as np

from analysis.stats.design import OLMO_TRANSFORMER, Assumed, Ladder, Size, simulate
from analysis.stats.fit import Fit, fit
from analysis.stats.interval import percentiles
from analysis.stats.laws import Chinchilla
from analysis.stats.model_choice import choose
from analysis.stats.savings import matched_factor
from analysis.stats.uncertainty import METHODS, Draws, averaged_bootstrap, bootstrap

HYBRID = Chinchilla(1.59847, 71.1349, 0.22600, 81.7251, 0.21875)
N = (57_422_208, 101_736_960, 190_354_176, 371_262_464, 547_983_360, 757_906_944, 1_279_395_840)
MULTIPLES = (0.5, 1, 2, 4, 8)
LARGEST = N[-1]
PLACES = {
    "1B, 160 tok/param": (LARGEST, 160 * LARGEST),
    "1B, 20": (LARGEST, 20 * LARGEST),
    "N and D ×2": (2 * LARGEST, 2 * 160 * LARGEST),
    "N ×2, 320 tok/param": (2 * LARGEST, 320 * 2 * LARGEST),
    "7B, 160": (7e9, 160 * 7e9),
}
DEFAULT = "mixed"
Analysis = Callable[[Fit, int, int], Draws]


def by_method(method: str) -> Analysis:
    return lambda one, resamples, seed: bootstrap(one, method, resamples, seed)  # type: ignore[arg-type]


def by_model(model: str) -> Analysis:
    def analyse(one: Fit, resamples: int, seed: int) -> Draws:
        if model == "averaged":
            return averaged_bootstrap(choose(one.points), resamples=resamples, seed=seed)
        return bootstrap(fit(one.points, model, "squares"), resamples=resamples, seed=seed)  # type: ignore[arg-type]

    return analyse


ANALYSES: dict[str, Analysis] = {method: by_method(method) for method in METHODS} | {
    f"{DEFAULT}, {words}": by_model(model)
    for model, words in (("averaged", "averaged by AICc"), ("shared_exponents", "one α, β"))
}


def measure(name: str, seeds: int, shared: float, ladders: int, resamples: int) -> dict[str, str]:
    """One row of the table: coverage and median width at every place."""
    sizes = tuple(Size(f"{n:.3g}", n, (6 * n, 6 * n)) for n in N)
    ladder = Ladder(sizes, MULTIPLES, (seeds,) * len(sizes))
    assumed = Assumed(run_sd=0.003, point_sd=0.001, shared=shared)
    ends = np.empty((ladders, len(PLACES), 2))
    for i in range(ladders):
        rng = np.random.default_rng([seeds, int(100 * shared), i])
        points = simulate(ladder, OLMO_TRANSFORMER, HYBRID, assumed, rng)
        draws = ANALYSES[name](fit(points, "free", "squares"), resamples, i)
        for j, place in enumerate(PLACES.values()):
            factors = matched_factor(draws.laws["base"], draws.laws["mix"], *place)
            ends[i, j] = percentiles(factors)
    row = {}
    for j, (place, where) in enumerate(PLACES.items()):
        low, high = ends[:, j].T
        truth = float(matched_factor(OLMO_TRANSFORMER, HYBRID, *where))
        held = ((low <= truth) & (truth <= high)).mean()
        width = np.median(np.sqrt(high / np.maximum(low, 1e-300)))
        row[place] = f"{held:.3f}, ×/÷ {width:.3g}"
    return row


def main(arguments: list[str]) -> None:
    given = dict(argument.split("=", 1) for argument in arguments)
    names = given["methods"].split(";") if "methods" in given else list(ANALYSES)
    counts = {True: int(given.get("ladders", 500)), False: int(given.get("others", 100))}
    resamples = int(given.get("resamples", 400))
    print(f"| method | seeds | shared | ladders | {' | '.join(PLACES)} | s |")
    print("| --- |" + " ---: |" * (len(PLACES) + 4))
    for seeds in map(int, given.get("seeds", "1,3").split(",")):
        for shared in map(float, given.get("shared", "0,0.7").split(",")):
            for name in names:
                ladders, start = counts[name == DEFAULT], time.process_time()
                row = measure(name, seeds, shared, ladders, resamples)
                cells = " | ".join(row.values())
                spent = time.process_time() - start
                print(f"| {name} | {seeds} | {shared:g} | {ladders} | {cells} | {spent:.0f} |")
                sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
