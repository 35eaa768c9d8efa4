"""Control after the runs: what two runs of one size and seed recorded, held against each other.

Batches by the running hash of their tokens, tokens and learning rate step by step, what was
evaluated, skipped steps, and what the manifests say of code, versions, device and data.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ablations.records import RunDirectory

if TYPE_CHECKING:
    from analysis.study.load import Run

BY_STEP = ("batches", "tokens", "D", "learning rate", "evaluation tokens", "skipped steps")
PLACEMENT = ("device", "precision", "parallel", "backends", "compiled", "micro_batch_rows")
"""What a run computed on and how: it decides how sums round, and no identity holds it."""
MANIFEST = ("revision", "diff_sha256", "packages", "versions", *PLACEMENT, "data")
RESTARTED = ("revision", "diff_sha256", *PLACEMENT)
"""What a run that was stopped and started again may have changed between."""
ROUNDING = (
    "rounds otherwise, which can move a held-out loss by as much as another seed does "
    "(docs/control.md)"
)


@dataclass(frozen=True)
class Finding:
    """One thing that two runs recorded differently, or that changed within one."""

    what: str
    size: str
    seed: int
    runs: tuple[str, ...]
    """Names of the baseline's and the mix's run, or of the one that it concerns."""
    values: tuple[Any, ...]
    """A run each, in that order; before and after for one run."""
    step: int | None = None
    """The first step at which they differ; None for what has no step."""

    @property
    def severity(self) -> str:
        """What it does to a comparison, where that is known."""
        placed = self.what.removesuffix(" within a run").partition(".")[0] in PLACEMENT
        # A machine's name and what shares it make it slower, not other.
        return ROUNDING if placed and not self.what.startswith("device.runs_at_once") else ""

    def __str__(self) -> str:
        told = f"{self.what}: {' → '.join(map(shortened, self.values))}"
        return told + ("" if self.step is None else f" from step {self.step}")


def differences(sweep: Path, one: Run, other: Run) -> tuple[list[Finding], set[str]]:
    """(what a pair of runs recorded differently, what could not be compared as it was not).

    one, other: runs of the baseline and of the mix, in the folder `sweep`. Runs that have not
    finished are compared as far as both went.
    """
    found: list[Finding] = []
    unknown: set[str] = set()
    pair = (one.name, other.name)
    ours, theirs = (_by_step(RunDirectory(sweep / name)) for name in pair)
    for what in BY_STEP:
        a, b = ours[what], theirs[what]
        steps = sorted(a.keys() & b.keys())
        if not steps and one.n_points and other.n_points:
            unknown.add(what)
        step = next((s for s in steps if not _equal(a[s], b[s])), None)
        if step is not None:
            values = _narrowed(a[step], b[step])
            found.append(Finding(what, one.size, one.seed, pair, values, step))
    if one.manifest and other.manifest:
        mine, its = dict(_manifest_fields(one)), dict(_manifest_fields(other))
        # An operator that one mix alone uses has no counterpart to differ from.
        found += [
            Finding(field, one.size, one.seed, pair, (mine[field], its[field]))
            for field in mine
            if field in its and mine[field] != its[field]
        ]
        if not (mine.keys() & its.keys()) >= {"micro_batch_rows"}:
            unknown.add("micro_batch_rows")
    else:
        unknown.add("manifest")
    return [*found, *restarts(one), *restarts(other)], unknown


def restarts(run: Run) -> Iterator[Finding]:
    """Code or device that changed while a run was stopped."""
    now = dict(flattened({key: run.manifest.get(key) for key in RESTARTED}))
    for start in run.manifest.get("earlier") or ():
        for field, value in flattened(start):
            if field in now and now[field] != value:
                values = (value, now[field])
                name = f"{field} within a run"
                yield Finding(name, run.size, run.seed, (run.name,), values)


def _by_step(run: RunDirectory) -> dict[str, dict[int, Any]]:
    records: dict[str, dict[int, Any]] = {what: {} for what in BY_STEP}
    for row in run.rows("metrics.jsonl"):
        for what, key in (("tokens", "tokens"), ("learning rate", "lr")):
            if key in row and "step" in row:
                records[what][row["step"]] = row[key]
    for row in run.rows("points.jsonl"):
        step = row.get("step", 0)
        for what, key in (("D", "D"), ("batches", "data_hash"),
                          ("skipped steps", "skipped_steps")):  # fmt: skip
            if row.get(key) not in (None, ""):
                records[what][step] = row[key]
        domains = row.get("domains") or {}
        if domains and all("tokens" in sums for sums in domains.values()):
            records["evaluation tokens"][step] = {
                domain: f"{sums['tokens']} in {sums.get('documents', '?')} documents"
                for domain, sums in domains.items()
            }
    return records


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, float) and isinstance(b, float):
        return math.isclose(a, b, rel_tol=1e-9)
    return bool(a == b)


def _narrowed(a: Any, b: Any) -> tuple[Any, Any]:
    """Of two mappings the first entry that differs, in words."""
    if not (isinstance(a, dict) and isinstance(b, dict)):
        return a, b
    key = next(k for k in sorted(a.keys() | b.keys()) if a.get(k) != b.get(k))
    return f"{key} {a.get(key, 'absent')}", f"{key} {b.get(key, 'absent')}"


def _manifest_fields(run: Run) -> Iterator[tuple[str, Any]]:
    yield from flattened({key: run.manifest[key] for key in MANIFEST if key in run.manifest})
    if "micro_batch_rows" not in run.manifest:  # not recorded yet, but perhaps set
        resources, recipe = run.spec.get("resources") or {}, run.spec.get("recipe") or {}
        tokens, context = resources.get("micro_batch_tokens"), recipe.get("context")
        if tokens and context:
            yield "micro_batch_rows", tokens // context


def flattened(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """A nested mapping as (dotted name, leaf)."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from flattened(inner, f"{prefix}.{name}" if prefix else str(name))
    else:
        yield prefix, value


def shortened(value: Any) -> str:
    """A recorded value for a reader: hashes by their first digits, lists joined."""
    if isinstance(value, list):
        value = "/".join(map(str, value))
    if isinstance(value, str) and re.fullmatch("[0-9a-f]{32,}", value):
        return value[:8]
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 48 else text[:45] + "…"
