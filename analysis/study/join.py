"""Several sweeps read as one, where their losses are of one unit."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from ablations.records import SettingError
from analysis.study.load import Run, Sweep, without_copies


def join(sweeps: list[Sweep]) -> Sweep:
    """One sweep of all runs and points, a run's name preceded by its sweep's; a run that lies in
    several of them counts once.

    Raises SettingError where the sweeps' losses are nats per token of different vocabularies or of
    different held-out text.
    """
    if len(sweeps) == 1:
        return sweeps[0]
    _check_units(sweeps)
    runs: list[Run] = []
    frames = []
    for sweep in sweeps:
        runs += [replace(run, name=f"{sweep.path.name}/{run.name}") for run in sweep.runs]
        frames.append(sweep.points.assign(run=sweep.path.name + "/" + sweep.points["run"]))
    points = pd.concat(frames, ignore_index=True)
    points = points.sort_values(["mix", "N", "seed", "D"], kind="stable", ignore_index=True)
    joined = Sweep(
        name="+".join(sweep.name for sweep in sweeps),
        path=Path(os.path.commonpath([sweep.path.parent for sweep in sweeps])),
        points=points,
        runs=tuple(runs),
        dropped=tuple(f"in {sweep.name}: {what}" for sweep in sweeps for what in sweep.dropped),
        incomplete=tuple(
            f"in {sweep.name}: {what}" for sweep in sweeps for what in sweep.incomplete
        ),
    )
    return without_copies(joined)


def _check_units(sweeps: list[Sweep]) -> None:
    for name, words in (
        ("vocab_size", "vocabularies"), ("fingerprint", "corpora, so different held-out text"),
    ):  # fmt: skip
        values = {sweep.name: _data_values(sweep, name) for sweep in sweeps}
        known = {told for found in values.values() for told in found}
        if len(known) > 1:
            each = "; ".join(f"{one}: {', '.join(sorted(found))}" for one, found in values.items())
            raise SettingError(
                f"sweep={','.join(values)} have different {words} ({each}), and nats per token of "
                "one are not those of the other; report one at a time, or train both on one corpus."
            )


def _data_values(sweep: Sweep, name: str) -> set[str]:
    found: set[str] = set()
    for run in sweep.runs:
        data: Any = run.manifest.get("data")
        if isinstance(data, dict) and data.get(name) is not None:
            found.add(str(data[name])[:12])
    return found
