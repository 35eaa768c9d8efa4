"""What differed between two mixes of a sweep, beside what was meant to.

Control before the runs is read off their specs: the treatment (the mix, and what follows from it by
rule), the confounds that a protocol brings along, with their sizes (ablations/confounds.py), and
any other field. Control after them is what they recorded (analysis/study/recorded.py), in pairs
of one size and seed. What was not recorded is said to be unknown, never taken as equal.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from ablations.confounds import EQUAL, Confound, Facts, conditions, confounds
from analysis.study.load import Run, Sweep
from analysis.study.recorded import Finding, differences, flattened, shortened

# Fields that follow from the mix: its pattern, the MLP width that makes N equal, mixers' shapes.
TREATMENT: tuple[str, ...] = (
    "mix",
    "matched",
    "model.layers",
    "model.kinds",
    "model.mlp_hidden",
)
# Where and under which name a run ran says nothing about the model.
IGNORED = (
    "sweep", "evaluation", "resources", "logging", "paths", "seed", "name", "identity", "hash",
)  # fmt: skip
EQUAL_N_PERCENT = 100 * EQUAL
"""Difference in N that counts as none, in percent."""


@dataclass(frozen=True)
class Comparison:
    """A mix against the baseline. `pairs` has one row a (size, seed) that both have.

    `treatment` and `confounds` are sentences-in-brief: what differs, with its values.
    """

    baseline: str
    mix: str
    pairs: pd.DataFrame
    treatment: tuple[str, ...]
    confounds: tuple[str, ...]
    unknown: tuple[str, ...]
    named: tuple[Confound, ...] = field(default=(), repr=False)
    """The confounds by the specs, among `confounds`."""
    findings: tuple[Finding, ...] = field(default=(), repr=False)
    """What runs recorded differently, a pair each; summed up in `confounds`."""

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
        {(run.size, run.seed) for run in sweep.runs},
        key=lambda key: (places.get(key[0], 0.0), key),
    )
    rows, differing, unknown = [], _Differences(), set[str]()
    findings: list[Finding] = []
    facts: list[Facts] = []
    for size, seed in keys:
        one, other = by_key.get((baseline, size, seed)), by_key.get((mix, size, seed))
        if one is None or other is None:
            continue
        rows.append(_pair(sweep.points, one, other))
        facts += [_facts(sweep.points, one), _facts(sweep.points, other)]
        differing.add(_spec_fields(one.spec), _spec_fields(other.spec))
        recorded, not_recorded = differences(sweep.path, one, other)
        findings += recorded
        unknown |= not_recorded
    # Facts go by the mix's own name; two arms of one mix have no confound by it.
    mixes = [sweep.arms.arm(name).mix for name in (baseline, mix)]
    found = confounds(facts, *mixes) if mixes[0] != mixes[1] else []
    named = [*found, *conditions(facts)]
    varied = (*TREATMENT, *_between(sweep, baseline, mix))
    claimed = tuple(name for confound in named for name in confound.fields)
    treatment: list[str] = []
    told = [str(confound) for confound in named]
    for name, values in differing.fields.items():
        words = f"{name}: {' / '.join(values)}"
        if _under(name, varied):
            treatment.append(words)
        elif not _under(name, claimed):
            told.append(words)
    pairs = pd.DataFrame(rows)
    told += _repeats(sweep, (baseline, mix))
    told += _summed_up(findings, len(rows))
    told += (
        _other_budgets(pairs, findings) if rows else ["no size and seed was run with both mixes"]
    )
    return Comparison(
        baseline, mix, pairs, tuple(treatment), tuple(told), tuple(sorted(unknown)),
        tuple(named), tuple(findings),
    )  # fmt: skip


def _between(sweep: Sweep, baseline: str, mix: str) -> tuple[str, ...]:
    """Settings of the treatments by which two arms differ, and what follows from them by rule."""
    arms, levels = sweep.arms, [sweep.arms.arm(name).levels for name in (baseline, mix)]
    found = [
        one.settings
        for one in arms.treatments
        if levels[0].get(one.name) != levels[1].get(one.name)
    ]
    return (*(key for keys in found for key in keys), *(("recipe", "model") if found else ()))


def control_table(one: Comparison) -> pd.DataFrame:
    """Every confound and finding of a comparison with what it does, or where it was recorded."""
    rows = [
        {"confound": c.name, "what differs": c.what, "what it does, or runs": c.severity}
        for c in one.named
    ] + [
        {
            "confound": f.what,
            "what differs": str(f).partition(": ")[2],
            "what it does, or runs": ": ".join(filter(None, (f.severity, ", ".join(f.runs)))),
        }
        for f in one.findings
    ]
    return pd.DataFrame(rows, columns=["confound", "what differs", "what it does, or runs"])


class _Differences:
    """Values of fields that differed in at least one pair, as `baseline -> mix`."""

    def __init__(self) -> None:
        self.fields: dict[str, list[str]] = {}

    def add(self, ours: dict[str, Any], theirs: dict[str, Any]) -> None:
        for name in sorted(ours.keys() | theirs.keys()):
            a, b = ours.get(name, "absent"), theirs.get(name, "absent")
            # A rule of a mixer that one of the two does not have is no difference between them.
            if a != b and not ("absent" in (a, b) and name.startswith("protocol.")):
                told = f"{shortened(a)} → {shortened(b)}"
                values = self.fields.setdefault(name, [])
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


def _facts(points: pd.DataFrame, run: Run) -> Facts:
    own = points[points["run"] == run.name]
    # A spec may name its groups where it does not hold them.
    names = {key: {"name": getattr(run, key)} for key in ("mix", "size")}
    held = {key: value for key, value in run.spec.items() if isinstance(value, dict)}
    return Facts(names | held, _count(run, own, "N"), _flops_per_token(run, own))


def _summed_up(findings: Sequence[Finding], pairs: int) -> Iterable[str]:
    """A line for each thing that was recorded differently: its values, and where."""
    by_name: dict[str, list[Finding]] = {}
    for finding in findings:
        by_name.setdefault(finding.what, []).append(finding)
    for name, found in by_name.items():
        places = list(dict.fromkeys(f"{f.size}/s{f.seed}" for f in found))
        where = "" if len(places) == pairs and found[0].step is None else f" in {_some(places)}"
        if name == "batches":
            yield f"batches: not equal from step {found[0].step}{where}"
        else:
            values = dict.fromkeys(str(f).removeprefix(f"{name}: ") for f in found)
            yield f"{name}: {_some(list(values), ' / ')}{where}"


def _some(words: Sequence[str], joint: str = ", ") -> str:
    more = f" and {len(words) - 4} more" if len(words) > 4 else ""
    return joint.join(words[:4]) + more


def _other_budgets(pairs: pd.DataFrame, findings: Sequence[Finding]) -> Iterable[str]:
    """Finished runs whose points lie at other steps, where no common step shows it."""
    shown = {(f.size, f.seed) for f in findings if f.what == "D"}
    unequal = pairs[pairs["equal_tokens"].eq(False)]
    places = [f"{row.size}/s{row.seed}" for row in unequal.itertuples(index=False)
              if (row.size, row.seed) not in shown]  # fmt: skip
    if places:
        yield f"tokens: points at other steps in {_some(places)}"


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
    return {name: value for name, value in flattened(spec) if not _under(name, IGNORED)}


def _under(name: str, prefixes: tuple[str, ...]) -> bool:
    return any(name == prefix or name.startswith(prefix + ".") for prefix in prefixes)
