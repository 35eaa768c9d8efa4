"""What differed between two mixes of a sweep, beside what was meant to.

Runs are compared in pairs of one size and seed. A field of the spec or manifest that differs is
either the treatment (the mix, and what follows from it) or a confound, which is named with its
values. What was not recorded is said to be unknown, never taken as equal.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.load import Run, Sweep

# Fields that follow from the mix: its pattern, the MLP width that makes N equal, mixers' shapes.
TREATMENT: tuple[str, ...] = (
    "mix",
    "matched",
    "model.layers",
    "model.mlp_hidden",
    "model.gdn_output_gate",
    "model.gdn_allow_neg_eigval",
)
# Where and under which name a run ran says nothing about the model.
IGNORED = ("sweep", "resources", "logging", "paths", "seed", "name", "identity", "hash")
MANIFEST: tuple[str, ...] = (
    "revision",
    "diff_sha256",
    "versions",
    "device",
    "precision",
    "backends",
    "compiled",
)
MANIFEST += ("data",)
# The controlled protocol's tolerance on N.
EQUAL_N_PERCENT = 0.5


@dataclass(frozen=True)
class Comparison:
    """A mix against the baseline. `pairs` has one row a (size, seed) that both have.

    `treatment` and `confounds` are sentences-in-brief: a field with its values.
    """

    baseline: str
    mix: str
    pairs: pd.DataFrame
    treatment: tuple[str, ...]
    confounds: tuple[str, ...]
    unknown: tuple[str, ...]

    @property
    def words(self) -> str:
        """Confounds in one line for captions."""
        if self.confounds:
            return "; ".join(self.confounds)
        if self.unknown:
            return "none found; not recorded: " + ", ".join(self.unknown)
        return "none found"


def compare(sweep: Sweep, baseline: str, mix: str) -> Comparison:
    """Compare every pair of runs with one size and seed."""
    by_key = {(run.mix, run.size, run.seed): run for run in reversed(sweep.runs)}
    places = sweep.points.groupby("size")["N"].mean().to_dict()
    keys = sorted(
        {(size, seed) for _, size, seed in by_key},
        key=lambda key: (places.get(key[0], np.inf), key),
    )
    rows, differing = [], _Differences()
    unknown: set[str] = set()
    for size, seed in keys:
        one, other = by_key.get((baseline, size, seed)), by_key.get((mix, size, seed))
        if one is None or other is None:
            continue
        rows.append(_pair(sweep.points, one, other))
        differing.add(_spec_fields(one.spec), _spec_fields(other.spec))
        ours, theirs = dict(_manifest_fields(one)), dict(_manifest_fields(other))
        if not ours or not theirs:
            unknown.add("manifest")
        else:
            # An operator that one mix alone uses has no counterpart to differ from.
            shared = ours.keys() & theirs.keys()
            differing.add({k: ours[k] for k in shared}, {k: theirs[k] for k in shared})
    pairs = pd.DataFrame(rows)
    treatment: list[str] = []
    confounds: list[str] = []
    for field, values in differing.fields.items():
        told = f"{field}: {' / '.join(values)}"
        (treatment if _under(field, TREATMENT) else confounds).append(told)
    confounds += _repeats(sweep, (baseline, mix))
    if len(pairs):
        confounds += _confounds_of_pairs(pairs)
        unknown |= {
            name
            for name, column in (("data hash", "equal_batches"), ("tokens", "equal_tokens"))
            if pairs[column].isna().all()
        }
    else:
        confounds.append("no size and seed was run with both mixes")
    return Comparison(
        baseline, mix, pairs, tuple(treatment), tuple(confounds), tuple(sorted(unknown))
    )


class _Differences:
    """Values of fields that differed in at least one pair, as `baseline -> mix`."""

    def __init__(self) -> None:
        self.fields: dict[str, list[str]] = {}

    def add(self, ours: dict[str, Any], theirs: dict[str, Any]) -> None:
        for field in sorted(ours.keys() | theirs.keys()):
            a, b = ours.get(field, "absent"), theirs.get(field, "absent")
            if a != b:
                told = f"{_short(a)} → {_short(b)}"
                values = self.fields.setdefault(field, [])
                if told not in values:
                    values.append(told)


def _pair(points: pd.DataFrame, one: Run, other: Run) -> dict[str, Any]:
    ours, theirs = (points[points["run"] == run.name].set_index("step") for run in (one, other))
    steps = ours.index.intersection(theirs.index)
    row: dict[str, Any] = {
        "size": one.size,
        "seed": one.seed,
        "points": len(steps),
        "N_percent": _percent(_count(one, ours, "N"), _count(other, theirs, "N")),
        "flops_percent": _percent(_flops_per_token(one, ours), _flops_per_token(other, theirs)),
        "equal_tokens": None,
        "equal_batches": None,
        "skipped_baseline": ours["skipped_steps"].max() if len(ours) else 0,
        "skipped_mix": theirs["skipped_steps"].max() if len(theirs) else 0,
    }
    ended = one.state == other.state == "done"
    if len(steps):
        a, b = ours.loc[steps], theirs.loc[steps]
        row["equal_tokens"] = bool((a["D"] == b["D"]).all())
        # Finished runs with different steps trained on different budgets; unfinished ones may yet.
        if ended and not ours.index.equals(theirs.index):
            row["equal_tokens"] = False
        hashes = (a["data_hash"].astype(str) != "") & (b["data_hash"].astype(str) != "")
        if hashes.all():
            row["equal_batches"] = bool((a["data_hash"] == b["data_hash"]).all())
    elif len(ours) and len(theirs):
        row["equal_tokens"] = False
    return row


def _confounds_of_pairs(pairs: pd.DataFrame) -> list[str]:
    found = []
    off = pairs[pairs["N_percent"].abs() > EQUAL_N_PERCENT]
    if len(off):
        ends = [f"{off['N_percent'].agg(end):+.1f}" for end in ("min", "max")]
        span = " to ".join(dict.fromkeys(ends)) + " %"
        found.append(f"N: {span} at size {', '.join(dict.fromkeys(off['size']))}")
    for column, words in (("equal_tokens", "tokens"), ("equal_batches", "batches")):
        unequal = pairs[pairs[column].eq(False)]
        if len(unequal):
            where = ", ".join(f"{r.size}/s{r.seed}" for r in unequal.itertuples(index=False))
            found.append(f"{words}: not equal in {where}")
    return found


def _repeats(sweep: Sweep, mixes: tuple[str, ...]) -> list[str]:
    """Runs that share mix, size and seed: something else was varied, and the first is compared."""
    groups: dict[tuple[str, str, int], list[Run]] = {}
    for run in sweep.runs:
        if run.mix in mixes:
            groups.setdefault((run.mix, run.size, run.seed), []).append(run)
    differing = _Differences()
    several = {key: runs for key, runs in groups.items() if len(runs) > 1}
    for first, *others in several.values():
        for other in others:
            differing.add(_spec_fields(first.spec), _spec_fields(other.spec))
    if not several:
        return []
    where = ", ".join(
        f"{mix} {size}/s{seed} ×{len(runs)}" for (mix, size, seed), runs in several.items()
    )
    return [
        f"several runs of one mix, size and seed ({where}), "
        f"differing in {', '.join(differing.fields) or 'nothing recorded'}"
    ]


def _count(run: Run, points: pd.DataFrame, name: str) -> float:
    if len(points):
        return float(points[name].iloc[-1])
    return float(run.manifest.get("counts", {}).get(name, np.nan))


def _flops_per_token(run: Run, points: pd.DataFrame) -> float:
    if len(points) and points["C"].notna().all():
        return float((points["C"] / points["D"]).iloc[-1])
    return float(run.manifest.get("counts", {}).get("flops_per_token", np.nan))


def _percent(ours: float, theirs: float) -> float:
    return 100 * (theirs / ours - 1)


def _spec_fields(spec: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in _flatten(spec) if not _under(name, IGNORED)}


def _manifest_fields(run: Run) -> Iterator[tuple[str, Any]]:
    for name, value in _flatten(run.manifest):
        if _under(name, MANIFEST):
            yield name, value


def _flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _flatten(inner, f"{prefix}.{name}" if prefix else str(name))
    else:
        yield prefix, value


def _under(field: str, prefixes: tuple[str, ...]) -> bool:
    return any(field == prefix or field.startswith(prefix + ".") for prefix in prefixes)


def _short(value: Any) -> str:
    if isinstance(value, list):
        value = "/".join(map(str, value))
    if isinstance(value, str) and re.fullmatch("[0-9a-f]{32,}", value):
        return value[:8]
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 48 else text[:45] + "…"
