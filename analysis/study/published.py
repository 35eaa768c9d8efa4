"""What the Olmo Hybrid paper published, for the mixes and sizes that a sweep shares with it.

Numbers of Merrill et al. 2026 (arXiv:2604.03444v4), in analysis/study/olmo_hybrid with their
tables' names. Nothing is compared unless the sweep has sizes of the paper's ladder.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from analysis.study.load import Sweep

FOLDER = Path(__file__).parent / "olmo_hybrid"
TABLES = ("table5_bpb", "table18_fits", "table18_reconstructed", "table20_savings",
          "table21_bpb_by_domain", "table22_parameters")  # fmt: skip
# A ladder of fewer sizes has no fit to set beside the paper's.
LEAST_SIZES = 3


def table(name: str) -> pd.DataFrame:
    """One of `TABLES`."""
    return pd.read_csv(FOLDER / f"{name}.csv")


def sizes_shared(sweep: Sweep) -> list[str]:
    """Sizes of the paper's ladder that the sweep has points of."""
    theirs = table("table22_parameters")["size"]
    return [size for size in dict.fromkeys(theirs) if size in set(sweep.points["size"])]


def savings(sweep: Sweep) -> pd.DataFrame | None:
    """Table 20 for the sweep's mixes: columns mix, N, D_baseline, D_mix, value, low, high.

    None without a ladder of the paper's sizes.
    """
    return _of_mixes(sweep, table("table20_savings"))


def coefficients(sweep: Sweep) -> pd.DataFrame | None:
    """Table 18's free fits for the sweep's mixes: columns mix, coefficient, value, low, high."""
    fits = table("table18_fits")
    return _of_mixes(sweep, fits[fits["model"] == "free"].drop(columns="model"))


def parameters(sweep: Sweep) -> pd.DataFrame | None:
    """Table 22 at the sweep's sizes: columns mix, size, N."""
    return _of_sizes(sweep, table("table22_parameters"))


def bpb(sweep: Sweep) -> pd.DataFrame | None:
    """Table 5 at the sweep's sizes: columns mix, size, bpb (of task suites, not of our domains)."""
    return _of_sizes(sweep, table("table5_bpb"))


def _of_mixes(sweep: Sweep, theirs: pd.DataFrame) -> pd.DataFrame | None:
    if len(sizes_shared(sweep)) < LEAST_SIZES:
        return None
    own = theirs[theirs["mix"].isin(set(sweep.points["mix"]))]
    return own.reset_index(drop=True) if len(own) else None


def _of_sizes(sweep: Sweep, theirs: pd.DataFrame) -> pd.DataFrame | None:
    shared = sizes_shared(sweep)
    own = theirs[theirs["mix"].isin(set(sweep.points["mix"])) & theirs["size"].isin(shared)]
    return own.reset_index(drop=True) if len(own) else None
