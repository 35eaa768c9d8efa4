"""How many runs does a search need for an optimum, beside Optuna's samplers?

    python benchmarks/tuning.py [campaigns=60] [runs=6,10,16,24]

Planted surfaces: a mix with three sizes whose best rates lie on a line in log N, within 1.5 octaves
of the ladder's rule; the loss is a skewed bowl that costs 2 % an octave off, a run scatters by
0.7 %, and every value is trained once. Searched with the runs given per size: sweeps/search.py,
which fits one surface to all sizes, and Optuna's TPE and GP (ask and tell, size by size, seeded),
whose answer is the best run that they saw and, beside it, our surface fitted to their runs. Cells:
median and 90th percentile of the octaves by which the answer is off, and the mean excess loss that
training at it costs, in percent. Optuna is no dependency: `pip install optuna` for this file.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence

import numpy as np

from ablations.optima import Trial, tuned_of
from sweeps.search import Wanted, next_value

SIZES = {"50k": 5e4, "100k": 1e5, "200k": 2e5}
START = (-1.0, 0.0, 1.0)
REACH = 4.0
Loss = Callable[[str, float], float]
Found = dict[str, tuple[float, list[tuple[float, float]]]]


def planted(seed: int) -> tuple[dict[str, float], Loss, Callable[[float], float]]:
    """(best octaves by size, a noisy loss, the excess share of being off)."""
    rng = np.random.default_rng([seed, 11])
    middle, slope = rng.uniform(-1.5, 1.5), rng.uniform(-0.3, 0.3)
    best = {size: middle + slope * math.log2(N / 1e5) for size, N in SIZES.items()}

    def excess(off: float) -> float:
        return 0.02 * off**2 * (1 + 0.2 * math.tanh(off))

    def loss(size: str, x: float) -> float:
        return 2.0 * (1 + excess(x - best[size])) * math.exp(0.007 * rng.normal())

    return best, loss, excess


def ours(loss: Loss, runs: int) -> Found:
    """Our search, one surface over all sizes."""
    seen: dict[str, list[tuple[float, float]]] = {
        size: [(x, loss(size, x)) for x in START[:runs]] for size in SIZES
    }
    while True:
        added = False
        own = tuned_of(_trials(seen), ("lr",))["mix"]
        cells = {cell.size: cell for cell in (*own.cells, *own.lost)}
        for size in SIZES:
            x = next_value(own, cells[size], Wanted(width=1.0 + 1e-9, values=runs), START)
            if x is not None:
                seen[size].append((x, loss(size, x)))
                added = True
        if not added:
            return fitted(seen)


def fitted(seen: dict[str, list[tuple[float, float]]]) -> Found:
    """The optima of a surface fitted to runs."""
    own = tuned_of(_trials(seen), ("lr",))["mix"]
    found: Found = {}
    for k, size in enumerate(SIZES):
        best = min(seen[size], key=lambda one: one[1])[0]
        x = float(own.optima[k].x[0]) if own.response is not None else best
        found[size] = x, seen[size]
    return found


def _trials(seen: dict[str, list[tuple[float, float]]]) -> list[Trial]:
    return [
        Trial("mix", size, SIZES[size], 20 * SIZES[size], 0, (2.0**x,), y, (1.0,), SIZES[size])
        for size, pairs in seen.items()
        for x, y in pairs
    ]


def optuna_search(sampler: str) -> Callable[[Loss, int], Found]:
    """A sampler of Optuna's, size by size; its answer is the best run."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)

    def search(loss: Loss, runs: int) -> Found:
        found: Found = {}
        for number, size in enumerate(SIZES):
            made = {
                "TPE": lambda n: optuna.samplers.TPESampler(seed=n),
                "GP": lambda n: optuna.samplers.GPSampler(seed=n, n_startup_trials=3),
            }[sampler](number)
            study = optuna.create_study(sampler=made)
            for x in START:  # the values that ours begins with
                study.enqueue_trial({"x": x})
            pairs = []
            for _ in range(runs):
                trial = study.ask()
                x = trial.suggest_float("x", -REACH, REACH)
                y = loss(size, x)
                study.tell(trial, y)
                pairs.append((x, y))
            found[size] = min(pairs, key=lambda one: one[1])[0], pairs
        return found

    return search


def main(arguments: Sequence[str]) -> None:
    asked = dict(argument.split("=") for argument in arguments)
    campaigns = int(asked.get("campaigns", 60))
    budgets = [int(text) for text in asked.get("runs", "6,10,16,24").split(",")]
    searches: dict[str, Callable[[Loss, int], Found]] = {"sweeps/search.py": ours}
    try:
        searches |= {f"Optuna {name}": optuna_search(name) for name in ("TPE", "GP")}
    except ImportError:
        print("Optuna is not installed; ours alone.")
    print("runs a size | search | median off | 90 % off | mean excess % | + our surface: excess %")
    for runs in budgets:
        for name, search in searches.items():
            off, cost, refitted = [], [], []
            for campaign in range(campaigns):
                best, loss, excess = planted(campaign)
                found = search(loss, runs)
                again = fitted({size: pairs for size, (_, pairs) in found.items()})
                for size, (x, _) in found.items():
                    off.append(abs(x - best[size]))
                    cost.append(100 * excess(x - best[size]))
                    refitted.append(100 * excess(again[size][0] - best[size]))
            print(
                f"{runs} | {name} | {np.median(off):.2f} | {np.quantile(off, 0.9):.2f} | "
                f"{np.mean(cost):.3f} | {np.mean(refitted):.3f}",
                flush=True,
            )


if __name__ == "__main__":
    main(sys.argv[1:])
