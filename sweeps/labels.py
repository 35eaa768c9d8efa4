"""What the rows of a table call runs: mix, size and seed, and what else differs between runs of
one mix, size and seed. A run's folder has a hash there, which tells nobody anything."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ablations.control import SET
from ablations.records import RUN_NAME, RunDirectory
from models.errors import SettingError
from models.settings import flatten

MOST = 4
"""Settings of a run that a row tells."""


def labels(runs: Sequence[RunDirectory]) -> dict[str, str]:
    """{folder of a run: what to call it}: its name as it is where it is not one of a run."""
    stems: dict[str, list[RunDirectory]] = {}
    for run in runs:
        stem = run.name.rpartition("-")[0] if RUN_NAME.fullmatch(run.name) else run.name
        stems.setdefault(stem, []).append(run)
    called: dict[str, str] = {}
    for stem, own in stems.items():
        if len(own) == 1:
            called[str(own[0].path)] = stem
            continue
        settings = [_settings(run) for run in own]
        fields = dict.fromkeys(field for spec in settings for field in spec)
        differ = [f for f in fields if len({repr(spec.get(f)) for spec in settings}) > 1][:MOST]
        words = [
            " ".join([stem, *(f"{field}={spec[field]}" for field in differ if field in spec)])
            for spec in settings
        ]
        for run, told in zip(own, words, strict=True):
            # Without a record, or in two sweeps, nothing but the hash tells them apart.
            called[str(run.path)] = told if words.count(told) == 1 else run.name
    return called


def _settings(run: RunDirectory) -> dict[str, Any]:
    try:
        return _read(run.path, (run.path / "spec.yaml").stat().st_mtime_ns)
    except (OSError, SettingError):
        return {}


@functools.lru_cache(maxsize=8192)
def _read(path: Path, _written: int) -> dict[str, Any]:
    """What was set of what a run computes; a table that is drawn again reads no spec again."""
    spec = RunDirectory(path).read_spec()
    return flatten({group: spec[group] for group in SET if group in spec})
