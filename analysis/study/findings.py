"""All that a report, its figures and its tables rest on: points, study, comparisons, provenance."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pandas as pd

from analysis.foreign import literal
from analysis.stats.holdout import holdout
from analysis.stats.interval import LEVEL
from analysis.study.at_optimum import AtOptimum
from analysis.study.classes import by_class, read_classes
from analysis.study.compare import Comparison, compare
from analysis.study.load import Run, Sweep
from analysis.study.probes import read_probes
from analysis.study.samples import read_samples
from analysis.study.sealed import folder as sealed_folder
from analysis.study.sealed import read_seals, scored
from analysis.study.study import Study, study
from analysis.study.training import read_metrics, speed_by_context


@dataclass(frozen=True)
class Findings:
    """What the runs of a sweep, or points alone, say; `facts` is what is noted beside a figure."""

    sweep: Sweep
    study: Study
    comparisons: tuple[Comparison, ...]
    facts: dict[str, Any]
    tuned: AtOptimum | None = None
    """Savings with every mix at its own optimum, where a tuning sweep was named."""

    @property
    def points(self) -> pd.DataFrame:
        """Points, the baseline's first."""
        return self.study.points

    @property
    def open_runs(self) -> list[Run]:
        """Runs that have not finished."""
        return [run for run in self.sweep.runs if run.state != "done"]

    @cached_property
    def metrics(self) -> pd.DataFrame:
        """Logged rows of training, empty for points without runs."""
        return read_metrics(self.sweep)

    @cached_property
    def probes(self) -> pd.DataFrame:
        """Recorded probes of points, in their order; empty where there are none."""
        order = list(dict.fromkeys(self.points["mix"]))
        return read_probes(self.sweep).sort_values(
            ["mix", "N", "seed", "step"], kind="stable", ignore_index=True,
            key=lambda column: column.map(order.index) if column.name == "mix" else column,
        )  # fmt: skip

    @cached_property
    def classes(self) -> pd.DataFrame:
        """Losses and savings by class of token (`analysis.study.classes.by_class`)."""
        return by_class(read_classes(self.sweep), self.study.versus, self.study.level)

    @cached_property
    def samples(self) -> pd.DataFrame:
        """How each mix continued the same prompts at the largest size; empty without samples."""
        order = list(dict.fromkeys(self.points["mix"]))
        return read_samples(self.sweep).sort_values(
            ["sample", "mix"], kind="stable", ignore_index=True,
            key=lambda column: column.map(order.index) if column.name == "mix" else column,
        )  # fmt: skip

    @cached_property
    def holdout(self) -> pd.DataFrame:
        """Predictions of points that a fit was not shown."""
        return holdout(self.points)

    @cached_property
    def sealed(self) -> pd.DataFrame:
        """Scores of the predictions that were sealed from this sweep (`analysis.study.sealed`)."""
        joined = self.sweep.name.split(", ")[0].split("+")
        names = {self.sweep.path.name, *joined} if self.sweep.runs else set()
        seals = [one for one in read_seals(sealed_folder()) if names & {*one.sweeps}]
        return scored(seals, [self.sweep])

    @cached_property
    def speeds(self) -> pd.DataFrame:
        """Speed by context length."""
        return speed_by_context(self.sweep)

    @cached_property
    def sizes(self) -> dict[str, float]:
        """N of each size, of the baseline where it has it, from small to large."""
        last = self.points.groupby("size", sort=False)["N"].first().sort_values()
        return {str(size): float(N) for size, N in last.items()}

    @cached_property
    def literal(self) -> Findings:
        """The same for reports and tables, where names from elsewhere hold no markup."""
        # Read by names as they are in folders.
        self.study.make()
        _ = self.metrics, self.probes, self.samples, self.holdout, self.speeds, self.sizes
        _ = self.sealed, self.classes
        return literal(self)

    @property
    def measured_on(self) -> str:
        """Where times were measured: the device and what shared it."""
        devices, shared = set(), set()
        for run in self.sweep.runs:
            device = run.manifest.get("device")
            if isinstance(device, dict):
                threads = f", {device['threads']} thread(s) a run" if "threads" in device else ""
                devices.add(f"{device.get('name', device.get('kind', 'unknown device'))}{threads}")
                if "runs_at_once" in device:
                    shared.add(f"{device['runs_at_once']} run(s) at a time")
        place = "; ".join(sorted(devices)) or "device not recorded"
        return f"measured on {place}, {'; '.join(sorted(shared)) or 'runs at a time not recorded'}"


def find(
    sweep: Sweep,
    baseline: str,
    resamples: int,
    seed: int,
    command: str,
    level: float = LEVEL,
    compares: bool = True,
) -> Findings:
    """Study a sweep. Raises SettingError for a baseline that it does not have, where it `compares`
    mixes; else nothing is compared then."""
    names = sorted({run.mix for run in sweep.runs} | set(sweep.points["mix"]))
    mixes = sweep.arms.mixes(names)
    if baseline not in (*mixes, *names):
        if len(mixes) == 1:
            baseline = mixes[0]
        elif compares:
            raise sweep.arms.no_baseline(baseline, names, f"of {sweep.name}")
    result = study(sweep.points, baseline, resamples, seed, sweep.arms, level)
    # Points alone say nothing of what else differed.
    comparisons = tuple(
        compare(sweep, own, mix) for mix, own in result.versus.items() if sweep.runs
    )
    return Findings(sweep, result, comparisons, _facts(sweep, comparisons, command))


def _facts(sweep: Sweep, comparisons: tuple[Comparison, ...], command: str) -> dict[str, Any]:
    text = sweep.arms.named(sweep.points).to_csv(
        index=False, float_format="%.12g", lineterminator="\n"
    )
    return {
        "command": command,
        "sweep": sweep.name,
        "sweep_command": sorted(
            {str(run.manifest["command"]) for run in sweep.runs if run.manifest.get("command")}
        ),
        "revision": sorted({_revision(run) for run in sweep.runs}),
        "points_sha256": hashlib.sha256(text.encode(errors="backslashreplace")).hexdigest(),
        "points": len(sweep.points),
        "treatments": [str(one) for one in sweep.arms.treatments],
        "runs": len(sweep.runs),
        "runs_done": sum(run.state == "done" for run in sweep.runs),
        "data": sorted({_data_words(run) for run in sweep.runs}),
        "confounds": {one.mix: list(one.confounds) for one in comparisons},
        "not_recorded": {one.mix: list(one.unknown) for one in comparisons},
    }


def _revision(run: Run) -> str:
    revision = str(run.manifest.get("revision", "not recorded"))[:12]
    packages = run.manifest.get("packages")
    own = f" and packages {packages[:8]}" if isinstance(packages, str) else ""
    return revision + own + (" with changes" if run.manifest.get("dirty") else "")


def _data_words(run: Run) -> str:
    data = run.manifest.get("data")
    data = data if isinstance(data, dict) else {}
    name, fingerprint = data.get("name", "data not recorded"), str(data.get("fingerprint", ""))
    return f"{name} {fingerprint[:8]}".strip()


def note(facts: dict[str, Any], *more: str) -> str:
    """Small type under a figure: what was done, to which data, with which confounds."""
    confounds = "; ".join(
        f"{mix}: {', '.join(found) if found else 'none found'}"
        for mix, found in facts["confounds"].items()
    )
    if facts["runs"]:
        unfinished = facts["runs_done"] < facts["runs"]
        of = f"Sweep {facts['sweep']}: {facts['points']} points of {facts['runs']} runs"
        of += f" ({facts['runs_done']} finished)" if unfinished else ""
        of += f"; {', '.join(facts['data'])}"
    else:
        of = f"Points {facts['sweep']}: {facts['points']}"
        confounds = "not recorded with these points"
    of += f"; points sha256 {facts['points_sha256'][:8]}"
    of += f"; revision {', '.join(facts['revision'])}." if facts["revision"] else "."
    parts = [*more, of, f"Confounds: {confounds}." if confounds else "", f"$ {facts['command']}"]
    return "  ".join(part for part in parts if part)
