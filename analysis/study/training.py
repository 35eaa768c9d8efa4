"""How training went: gradient norms with their spikes, skipped steps, speed by context."""

from __future__ import annotations

import numpy as np
import pandas as pd

from ablations.records import RunDirectory
from analysis.stats.savings import timing_scatter
from analysis.study.load import Sweep
from models.format import percent

# Merrill et al. 2026, Fig. 13 (SpikeScore): the share of values six standard deviations or more
# from the mean of the 128 before.
WINDOW = 128
SIGMAS = 6.0
LEAST_ROWS = 16
COLUMNS = ("step", "tokens", "loss", "grad_norm", "skipped_steps", "tokens_per_second")


def read_metrics(sweep: Sweep) -> pd.DataFrame:
    """Logged rows of every run: run, mix, size, seed, and `COLUMNS`, NaN where not recorded."""
    frames = []
    for run in sweep.runs:
        rows = list(RunDirectory(sweep.path / run.name).rows("metrics.jsonl"))
        own = (
            pd.DataFrame(rows).reindex(columns=list(COLUMNS)).apply(pd.to_numeric, errors="coerce")
        )
        # A run that was stopped writes some rows again: the last one counts.
        own = own.dropna(subset="step").drop_duplicates("step", keep="last").sort_values("step")
        frames.append(own.assign(run=run.name, mix=run.mix, size=run.size, seed=run.seed))
    columns = ["run", "mix", "size", "seed", *COLUMNS]
    return (
        pd.concat(frames, ignore_index=True)[columns] if frames else pd.DataFrame(columns=columns)
    )


def spikes(norms: pd.Series) -> pd.Series:
    """Which values lie six standard deviations or more from the mean of the 128 before them.

    False for the first 16, which have too few before them.
    """
    before = norms.shift(1).rolling(WINDOW, min_periods=LEAST_ROWS)
    return (norms - before.mean()).abs() >= SIGMAS * before.std()


def stability(metrics: pd.DataFrame) -> pd.DataFrame:
    """By run: rows logged, share of spikes of the gradient norm and of skipped steps, in per cent.

    Columns run, mix, size, seed, rows, spike_percent, skipped_percent.
    """
    keys = ["run", "mix", "size", "seed"]
    rows = []
    for key, own in metrics.groupby(keys, sort=False):
        judged = max(int(own["grad_norm"].notna().sum()) - LEAST_ROWS, 0)
        skipped = own["skipped_steps"].max() / max(own["step"].max(), 1)
        spiked = 100 * spikes(own["grad_norm"]).sum() / judged if judged else np.nan
        rows.append((*key, len(own), spiked, 100 * skipped))
    return pd.DataFrame(rows, columns=[*keys, "rows", "spike_percent", "skipped_percent"])


def timing_words(points: pd.DataFrame) -> str:
    """What the interval of a time saving holds of the timing, a sentence."""
    scatter = timing_scatter(points)
    if not scatter.dof:
        return (
            "How much seconds per token scatter from run to run is unknown, as no mix and size was "
            "timed in two runs: the interval of a time saving holds the doubt about tokens alone."
        )
    return (
        f"Seconds per token scatter by {percent(scatter.sd)} from run to run of one mix and size "
        f"({scatter.dof} repeated run(s)); the interval of a time saving holds that."
    )


def speed_by_context(sweep: Sweep) -> pd.DataFrame:
    """Measured training tokens per second by run and context length: columns run, mix, size, seed,
    context, tokens_per_second. A run's speed is that up to its last point."""
    timed = sweep.points[sweep.points["seconds"] > 0].sort_values("D").groupby("run").tail(1)
    contexts = {run.name: (run.spec.get("recipe") or {}).get("context") for run in sweep.runs}
    table = timed.assign(
        context=pd.to_numeric(timed["run"].map(contexts), errors="coerce"),
        tokens_per_second=timed["D"] / timed["seconds"],
    )
    columns = ["run", "mix", "size", "seed", "context", "tokens_per_second"]
    return table[columns].dropna().sort_values(["mix", "context"], ignore_index=True)
