"""Sealed predictions: forecasts frozen before the runs that they speak of, and their scores.

A seal is a JSON file with what was predicted, for which place, from which points (by hash) and by
which code. The commit that adds the file is its date. It is scored by runs that reached the place
later, and never by a point that it was made from.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from ablations.records import SettingError, home, project_root, write_atomic
from analysis.stats.score import score
from analysis.study.load import Sweep
from analysis.study.prediction_answer import PredictionAnswer
from analysis.study.source import from_sweeps

VERSION = 1
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
SAME_PLACE = 0.01
"""Relative difference up to which a run's N and D are those that were predicted: N of one size
differs by up to the match's tolerance between mixes, and D by part of a batch."""
COLUMNS = ("sealed", "mix", "N", "D", "predicted", "low", "high", "run", "loss", "hit", "z", "crps")


@dataclass(frozen=True)
class Forecast:
    """The loss of one mix at one place, in nats per token."""

    mix: str
    N: float
    D: float
    loss: float
    low: float
    high: float
    """Ends of the interval of one more run's loss."""
    values: tuple[float, ...]
    """Equally likely losses of one more run."""


@dataclass(frozen=True)
class Seal:
    """One sealed file."""

    name: str
    sweeps: tuple[str, ...]
    """Names of the sweeps whose points it was made from, or of the CSV."""
    data: tuple[str, ...]
    """Fingerprints of the corpora, empty for a CSV."""
    points: frozenset[str]
    """Hashes of the points it was made from."""
    revision: str
    level: float
    forecasts: tuple[Forecast, ...]


def folder() -> Path:
    """Where sealed predictions lie unless told otherwise."""
    return home() / "results" / "sealed"


def write_seal(
    name: str,
    answer: PredictionAnswer,
    sweep: Sweep,
    folders: Sequence[Path],
    question: Mapping[str, Any],
) -> Path:
    """Freeze a prediction in a file of `folder()`, which is returned.

    sweep: what it was made from; folders: its sweeps' own, none for a CSV; question: how it was
    asked, to ask it again. Raises SettingError where the file is there, or a
    place was reached already by a run of the sweep.
    """
    if not NAME.fullmatch(name):
        raise SettingError(
            f"seal={name} is no name; valid: letters, digits, dot, dash and underscore."
        )
    path = folder() / f"{name}.json"
    if path.exists():
        raise SettingError(
            f"seal={name} is there already ({path}), and a sealed prediction is not changed; "
            "give another name."
        )
    # Rows that the question left out were trained all the same.
    everything = [sweep.points, *([from_sweeps(list(folders)).points] if folders else [])]
    for one in answer.predictions.rows:
        for points in everything:
            reached = points[_at_place(points, one.mix, one.N, one.D)]
            if len(reached):
                raise SettingError(
                    f"at=N={one.N:.6g},D={one.D:.6g} was reached by run {reached['run'].iloc[0]}, "
                    "and a prediction is sealed before its run; give a place that no run of "
                    f"{one.mix} has reached."
                )
    hashes = sorted(_hashes(sweep.points))
    content = {
        "version": VERSION,
        "name": name,
        "question": dict(question),
        "sweeps": sorted(path.resolve().name for path in folders),
        "data": sorted(_fingerprints(sweep)),
        "revision": _revision(),
        "points_sha256": hashlib.sha256("\n".join(hashes).encode()).hexdigest(),
        "points": hashes,
        **answer.document,
        "forecasts": [
            {
                "mix": one.mix,
                "N": one.N,
                "D": one.D,
                "loss": one.loss,
                "low": one.run_interval.low,
                "high": one.run_interval.high,
                "values": [float(f"{value:.7g}") for value in one.run_values],
            }
            for one in answer.predictions.rows
        ],
    }
    write_atomic(path, json.dumps(_finite(content), indent=1, allow_nan=False) + "\n")
    return path


def read_seals(where: Path) -> list[Seal]:
    """Every sealed prediction of a folder, by name. Raises SettingError naming a file that is
    none."""
    return [_read(path) for path in sorted(where.glob("*.json"))]


def scored(seals: Iterable[Seal], sweeps: Sequence[Sweep]) -> pd.DataFrame:
    """One row per forecast and run that reached its place, and one row for a forecast that no run
    has reached: columns COLUMNS, and level.

    Points of a run count where its corpus is one of those predicted from. Raises SettingError
    where a run's point at the place is one that the prediction was made from.
    """
    rows: list[dict[str, Any]] = []
    for seal in seals:
        for one in seal.forecasts:
            row = {
                "sealed": seal.name, "mix": one.mix, "N": one.N, "D": one.D, "predicted": one.loss,
                "low": one.low, "high": one.high, "level": seal.level,
            }  # fmt: skip
            runs = list(_runs_at(seal, one, sweeps))
            for run, loss in runs:
                result = score(one.values, one.low, one.high, loss)
                scores = {"hit": result.hit, "z": result.z, "crps": result.crps}
                rows.append({**row, "run": run, "loss": loss, **scores})
            if not runs:
                nothing = {"loss": math.nan, "hit": None, "z": math.nan, "crps": math.nan}
                rows.append({**row, "run": "", **nothing})
    return pd.DataFrame(rows, columns=[*COLUMNS, "level"])


def summary(table: pd.DataFrame) -> str:
    """How calibrated the scored predictions were, a sentence."""
    done = table[table["run"] != ""]
    waiting = table[table["run"] == ""]
    waits = f" {len(waiting)} wait for their runs." if len(waiting) else ""
    if not len(done):
        return f"No prediction is scored yet.{waits}"
    expected = float(done["level"].sum())
    z = done["z"].dropna()
    scatter = f", mean z {z.mean():+.2f}, root mean square {math.sqrt((z**2).mean()):.2f}"
    return (
        f"{int(done['hit'].sum())} of {len(done)} runs lie in their interval "
        f"({expected:.1f} expected{scatter if len(z) else ''}; runs of one forecast share the "
        f"law's error and are not independent); mean CRPS {done['crps'].mean():.4f} nats.{waits}"
    )


def sweeps_of(seals: Iterable[Seal], runs: Path) -> list[Sweep]:
    """The sweeps that the seals were made from, those that are there and have points."""
    found = []
    for name in sorted({name for seal in seals for name in seal.sweeps}):
        if (runs / name).is_dir():
            try:
                found.append(from_sweeps([runs / name]))
            except SettingError:  # no points yet
                continue
    return found


def _read(path: Path) -> Seal:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["version"] != VERSION:
            raise ValueError(f"version {content['version']}")
        forecasts = tuple(
            Forecast(
                str(one["mix"]), float(one["N"]), float(one["D"]), float(one["loss"]),
                float(one["low"]), float(one["high"]), tuple(map(float, one["values"])),
            )
            for one in content["forecasts"]
        )  # fmt: skip
        if not all(min(one.values) > 0 for one in forecasts):
            raise ValueError("a loss that is not positive")
        return Seal(
            name=path.stem,
            sweeps=tuple(map(str, content["sweeps"])),
            data=tuple(map(str, content["data"])),
            points=frozenset(map(str, content["points"])),
            revision=str(content["revision"]),
            level=float(content["level"]),
            forecasts=forecasts,
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SettingError(
            f"{path} is no sealed prediction ({type(error).__name__}: {error}); valid: a file that "
            "python -m analysis predict … seal=NAME wrote."
        ) from error


def _runs_at(seal: Seal, one: Forecast, sweeps: Sequence[Sweep]) -> Iterator[tuple[str, float]]:
    """(run, loss) of the points at a forecast's place, each run once."""
    seen = set()
    for sweep in sweeps:
        prints = _fingerprints(sweep)
        if seal.data and prints and not set(seal.data) & prints:
            continue
        at_place = sweep.points[_at_place(sweep.points, one.mix, one.N, one.D)]
        for (_, row), name in zip(at_place.iterrows(), _hashes(at_place), strict=True):
            if name in seal.points:
                raise SettingError(
                    f"sealed prediction {seal.name} cannot be scored on run {row['run']}, whose "
                    f"point at N={row['N']:.6g}, D={row['D']:.6g} it was made from."
                )
            if row["run"] not in seen:
                seen.add(row["run"])
                yield str(row["run"]), float(row["loss"])


def _at_place(points: pd.DataFrame, mix: str, N: float, D: float) -> pd.Series:
    near = (points["N"] / N - 1).abs().le(SAME_PLACE) & (points["D"] / D - 1).abs().le(SAME_PLACE)
    return near & (points["mix"] == mix)


def _fingerprints(sweep: Sweep) -> set[str]:
    data = (run.manifest.get("data") for run in sweep.runs)
    prints = (one.get("fingerprint") for one in data if isinstance(one, dict))
    return {str(one) for one in prints if one}


def _hashes(points: pd.DataFrame) -> list[str]:
    """A hash for each point: its run, N, D and loss."""
    texts = (
        f"{str(row.run).rpartition('/')[2]} {row.N:.10g} {row.D:.10g} {row.loss:.10g}"
        for row in points.itertuples()
    )
    return [hashlib.sha256(t.encode(errors="backslashreplace")).hexdigest()[:16] for t in texts]


def _revision() -> str:
    """The checkout's commit, `with changes` where files differ from it; `not recorded` without."""

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", *arguments], cwd=project_root(), capture_output=True, text=True, timeout=30,
            check=True,
        )  # fmt: skip
        return done.stdout.strip()

    try:
        revision, changes = git("rev-parse", "HEAD"), git("status", "--porcelain", "-uno")
    except (OSError, subprocess.SubprocessError):
        return "not recorded"
    return f"{revision} with changes" if changes else revision


def _finite(value: Any) -> Any:
    """JSON's own values alone: infinities as words, NaN as null, tuples as lists."""
    if isinstance(value, Mapping):
        return {str(key): _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else ("inf" if value > 0 else "-inf")
    return value
