"""Do 95 % intervals of what another treatment does to a saving hold the truth?

    OMP_NUM_THREADS=1 python benchmarks/coverage_interaction.py [ladders=200] [seeds=2,3] [first=0]
                                                    [shared=0,0.6] [resamples=300] [jobs=1]

Ladders of two mixes at two levels of a treatment (four arms): the mix saves a factor of 1.5 over
Chinchilla's law at the first level; at the second the treatment costs both mixes a third more
tokens, and multiplies the saving by 1.25 on top, which is the interaction. Six sizes of 50M to 1.2B
at 20 to 160 tokens per parameter; runs of 0.3 %, points of 0.1 %, and runs of all four arms on the
same batches correlated by `shared`. A ladder gives one interval per place: a share of 200 is known
to ±.031 (two standard errors). `by laws` are ratios of savings by the fitted laws, `by seeds` those
without a law, by Student's t; behind each share the median half-width as a factor.
"""

import sys
from multiprocessing import Pool

import numpy as np
import pandas as pd
from coverage_unequal import BASE, POINT_SD, RATIOS, SIZES

from analysis.stats.interaction import interaction_free
from analysis.stats.laws import Array, Chinchilla
from analysis.stats.other_savings import Question
from analysis.stats.savings import fit_free
from analysis.study.source import from_frame
from analysis.study.study import fitted, interaction_at

RUN_SD = 0.003
SAVING, COST, INTERACTION = 1.5, 4 / 3, 1.25
PLACES = {
    "50M, 80": (5e7, 80 * 5e7),
    "1.2B, 160": (1.2e9, 160 * 1.2e9),
    "N and D ×2": (2.4e9, 2 * 160 * 1.2e9),
}


def worse(law: Chinchilla, tokens: float) -> Chinchilla:
    """The law of what needs `tokens` times as many tokens for the same loss."""
    return Chinchilla(law.E, law.A, law.alpha, law.B * tokens**law.beta, law.beta)


LAWS = {
    ("base", "a"): BASE,
    ("base", "b"): worse(BASE, COST),
    ("mix", "a"): worse(BASE, 1 / SAVING),
    ("mix", "b"): worse(BASE, COST / (SAVING * INTERACTION)),
}


def ladder(rng: np.random.Generator, seeds: int, shared: float) -> pd.DataFrame:
    """Points of all four arms."""
    rows = []
    for N in SIZES:
        for seed in range(seeds):
            batches = rng.normal()
            for (mix, level), law in LAWS.items():
                luck = np.sqrt(shared) * batches + np.sqrt(1 - shared) * rng.normal()
                noise = RUN_SD * luck + POINT_SD * rng.normal(size=len(RATIOS))
                losses = law.loss(N, N * RATIOS) * np.exp(noise)
                rows += [
                    (mix, level, N, N * ratio, seed, loss)
                    for ratio, loss in zip(RATIOS, losses, strict=True)
                ]
    return pd.DataFrame(rows, columns=["mix", "level", "N", "D", "seed", "loss"])


def analysed(task: tuple[int, int, float, int]) -> Array:
    """Of one ladder: (places, 4) of held and half-width by laws, held and half-width by seeds."""
    i, seeds, shared, resamples = task
    rng = np.random.default_rng([81, int(10 * shared), seeds, i])
    sweep = from_frame(ladder(rng, seeds, shared), treatments=["level"])
    mixes = list(dict.fromkeys(sweep.points["mix"]))
    versus = sweep.arms.versus(mixes, "base")
    (one,) = sweep.arms.contrasts(versus)
    fit, draws = fitted(sweep.points, "base", resamples=resamples, seed=i, arms=sweep.arms)
    free = interaction_free(fit_free(sweep.points, versus), [(one.arm, one.reference)])
    means = free[free["seed"] == "mean"].set_index("N")
    rows = []
    for N, D in PLACES.values():
        found = interaction_at(fit, draws, versus, one, Question("tokens", N, D)).interval
        row = [
            found.low <= INTERACTION <= found.high,
            np.sqrt(found.high / found.low),
            np.nan,
            np.nan,
        ]
        if N in means.index:
            low, high = means.loc[N, ["low", "high"]]
            row[2:] = [low <= INTERACTION <= high, np.sqrt(high / low)]
        rows.append(row)
    return np.array(rows, float)


def main(arguments: list[str]) -> None:
    given = dict(argument.split("=", 1) for argument in arguments)
    first, resamples = int(given.get("first", 0)), int(given.get("resamples", 300))
    tasks = range(first, first + int(given.get("ladders", 200)))
    print("| seeds | shared | ladders | at | by laws | by seeds |")
    print("| ---: | ---: | ---: | --- | ---: | ---: |")
    with Pool(int(given.get("jobs", 1))) as pool:
        for seeds in map(int, given.get("seeds", "2,3").split(",")):
            for shared in map(float, given.get("shared", "0,0.6").split(",")):
                asked = [(i, seeds, shared, resamples) for i in tasks]
                each = np.array(list(pool.imap(analysed, asked)))
                for j, place in enumerate(PLACES):
                    cells = [
                        f"{each[:, j, k].mean():.3f}, ×/÷ {np.median(each[:, j, k + 1]):.3g}"
                        for k in (0, 2)
                    ]
                    cells[1] = "" if np.isnan(each[:, j, 2]).all() else cells[1]
                    head = f"| {seeds} | {shared:g} | {len(each)} | {place}"
                    print(f"{head} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
