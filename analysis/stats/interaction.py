"""What another treatment does to a saving: the ratio of two savings, at one N and D.

Both savings are read off the laws of one fit, so that the ratio in each resample holds what their
runs share, such as batches.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.stats.interval import LEVEL, Interval
from analysis.stats.savings import ROUNDING, Saving, flat, with_seed_interval
from analysis.stats.uncertainty import Draws


@dataclass(frozen=True)
class Interaction:
    """The saving of `mix` over that of `reference`, each over its own baseline, at N and D.

    1: the treatment by which they differ leaves the saving alone. `beyond` is the largest factor
    by which either saving is extrapolated (1 in range).
    """

    mix: str
    reference: str
    kind: str
    where: str
    N: float
    D: float
    saving: float
    reference_saving: float
    value: float
    interval: Interval
    p_above_1: float
    beyond: float

    @property
    def row(self) -> dict[str, Any]:
        """Its numbers as the columns of a table."""
        return flat(self) | {"in_range": self.in_range}

    @property
    def in_range(self) -> bool:
        """Whether both savings lie within what was measured."""
        return self.beyond <= ROUNDING


def interaction(one: Saving, reference: Saving, draws: Draws) -> Interaction:
    """The ratio of two savings that were asked at one place, of the same draws."""
    assert one.draws is not None
    assert reference.draws is not None
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = one.draws / reference.draws
        value = float(np.float64(one.value) / np.float64(reference.value))
    places = [(s.N_beyond, s.D_beyond, s.D_mix_beyond) for s in (one, reference)]
    return Interaction(
        mix=one.mix,
        reference=reference.mix,
        kind=one.kind,
        where=one.where,
        N=reference.N,
        D=reference.D,
        saving=one.value,
        reference_saving=reference.value,
        value=value,
        interval=draws.interval(ratios),
        p_above_1=float((ratios > 1).mean()),
        beyond=max(map(max, places)),
    )


def interaction_free(
    free: pd.DataFrame, pairs: Iterable[tuple[str, str]], level: float = LEVEL
) -> pd.DataFrame:
    """Ratios of savings that no law was fitted for (`savings.fit_free`), from seeds.

    `pairs` are (mix, reference). Columns mix, reference, size, N, seed, value, low, high,
    p_above_1, as of `fit_free`. A row per seed that all four runs have, and one (`seed` "mean")
    for their geometric mean; where one of the savings is a bound there is no ratio.
    """
    parts = []
    for mix, reference in pairs:
        ours, theirs = (free[free["mix"] == name] for name in (mix, reference))
        both = ours.merge(theirs[["size", "seed", "value", "bound"]], on=["size", "seed"])
        both = both[(both["bound_x"] == "") & (both["bound_y"] == "") & (both["seed"] != "mean")]
        ratios = both[["mix", "size", "N", "seed"]].assign(value=both["value_x"] / both["value_y"])
        means = [
            {"mix": mix, "size": size, "N": float(own["N"].mean()), "seed": "mean",
             "value": float(np.exp(np.log(own["value"]).mean()))}
            for size, own in ratios.groupby("size", sort=False)
        ]  # fmt: skip
        table = pd.concat([ratios, pd.DataFrame(means, columns=ratios.columns)], ignore_index=True)
        table = table.sort_values(["N", "seed"], kind="stable", ignore_index=True)
        table = table.assign(reference=reference, bound="")
        parts.append(with_seed_interval(table, level))
    columns = ["mix", "reference", "size", "N", "seed", "value", "low", "high", "p_above_1"]
    return pd.concat([part[columns] for part in parts]) if parts else pd.DataFrame(columns=columns)
