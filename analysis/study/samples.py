"""What runs recorded of text: how a model continued held-out prompts at its points."""

import pandas as pd

from ablations.records import RunDirectory
from analysis.study.load import Sweep, common_budget

IDENTITY = ["run", "mix", "size", "seed", "N", "D"]
RECORDED = ["step", "sample", "domain", "prompt", "continuation"]


def read_samples(sweep: Sweep) -> pd.DataFrame:
    """Samples of each mix at the largest size, at the last budget that all of them reached there.

    Columns run, mix, size, seed, N, D of the point, `RECORDED`; of several seeds the lowest. Empty
    where nothing was recorded.
    """
    frames = [
        pd.DataFrame(rows).reindex(columns=RECORDED).assign(run=run.name)
        for run in sweep.runs
        if (rows := list(RunDirectory(sweep.path / run.name).rows("samples.jsonl")))
    ]
    if not frames:
        return pd.DataFrame(columns=[*IDENTITY, *RECORDED])
    table = pd.concat(frames, ignore_index=True)
    table = table.drop_duplicates(["run", "step", "sample"], keep="last")
    table = table.merge(sweep.points[[*IDENTITY, "step"]], on=["run", "step"])
    if table.empty:
        return table[[*IDENTITY, *RECORDED]]
    table = table[table["size"] == table["size"].iloc[int(table["N"].argmax())]]
    table = common_budget(table)
    first = table.groupby("mix")["seed"].transform("min")
    return table.loc[table["seed"] == first, [*IDENTITY, *RECORDED]]
