"""The front door from Python: `load` points, then ask the ladder for laws, savings or a report.

Numbers are those of the commands `python -m analysis fit`, `savings` and `report`, which call the
same functions with the same defaults.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ablations.records import SettingError, home
from analysis.commands import fit, predict, report, savings
from analysis.result import Laws, Predictions, Savings
from models.command import check, spelled

if TYPE_CHECKING:
    import pandas as pd

    from analysis.study.findings import Findings
    from analysis.study.load import Sweep

    Source = str | os.PathLike[str] | pd.DataFrame | Sequence[str | os.PathLike[str]]


def load(
    source: Source,
    *,
    N: str | None = None,
    D: str | None = None,
    C: str | None = None,
    loss: str | None = None,
    mix: str | None = None,
    run: str | None = None,
    size: str | None = None,
    seed: str | None = None,
    weight: str | None = None,
    seconds: str | None = None,
    bpb: str | None = None,
    where: Mapping[str, Any] | None = None,
    treatments: Sequence[str] | str = (),
) -> Ladder:
    """Read the points of a ladder.

    Args:
        source: the folder of a sweep, a list of such folders (of one corpus), the path of a CSV, or
            a pandas DataFrame. A relative path starts at the current folder, or at the checkout
            where there is no such thing here.
        N: the column of parameters, where a CSV or DataFrame does not call it N; likewise below.
        D: training tokens up to the point.
        C: training FLOPs (optional; 6 N D where a law needs them and they are not there).
        loss: held-out loss in nats per token.
        mix: the name of what is compared.
        run: which rows are checkpoints of one training (optional).
        size: the name of a size (optional; N names it otherwise).
        seed: which repetition of a training (optional).
        weight: multiplies a point's part in what a fit minimises (optional).
        seconds: measured training seconds up to the point (optional).
        bpb: held-out bits per byte (optional).
        where: the rows to keep, by column: one value or a list of which any will do, as in
            {"mix": ["a", "b"], "seed": 0}. Of a sweep also a setting of its runs, as in
            {"protocol.lr_multiplier": 1}.
        treatments: columns of a CSV or DataFrame that were varied on purpose beside the mix, as in
            ["lr"]: each of their levels is an arm, and mixes are compared at each. A sweep's runs
            say so themselves.

    Raises:
        SettingError: one sentence that names the column, row or file, and what would mend it.
    """
    import pandas as pd

    from analysis.study import source as sources

    given = {
        "N": N, "D": D, "C": C, "loss": loss, "mix": mix, "run": run, "size": size, "seed": seed,
        "weight": weight, "seconds": seconds, "bpb": bpb,
    }  # fmt: skip
    columns = {ours: theirs for ours, theirs in given.items() if theirs is not None}
    if where is not None and not isinstance(where, Mapping):
        raise SettingError(f'where={where!r} is no filter; give one like {{"mix": ["a", "b"]}}.')
    varied = (treatments,) if isinstance(treatments, str) else treatments
    if not isinstance(varied, Sequence) or not all(isinstance(name, str) for name in varied):
        raise SettingError(f'treatments={treatments!r} names no columns; give one like ["lr"].')
    varied = tuple(varied)
    if isinstance(source, pd.DataFrame):
        return Ladder(sources.from_frame(source, True, columns, where, varied))
    folders = [source] if isinstance(source, str | os.PathLike) else source
    paths_given = isinstance(folders, Sequence) and all(
        isinstance(folder, str | os.PathLike) and str(folder) for folder in folders
    )
    if not paths_given or not folders:
        short = isinstance(source, str | int | float | list | tuple) and len(repr(source)) < 60
        what = repr(source) if short else type(source).__name__
        raise SettingError(
            f"load({what}): give the folder of a sweep, a list of such, a CSV or a DataFrame."
        )
    paths = [_located(folder) for folder in folders]
    if len(paths) == 1 and not paths[0].is_dir():
        ladder = sources.from_csv(paths[0], True, columns, where, varied)
        words = report.Settings(
            points=str(paths[0]), columns=columns, where=_texts(where), treatments=varied
        )
        return Ladder(ladder, words)
    if no_folder := [str(path) for path in paths if not path.is_dir()]:
        raise SettingError(f"load: {no_folder[0]} is not the folder of a sweep; several must be.")
    if columns:
        ours, theirs = next(iter(columns.items()))
        raise SettingError(f"{ours}={theirs} names a column of a CSV, and a sweep has its own.")
    if varied:
        raise SettingError(
            f"treatments={','.join(varied)} names columns of a CSV, and a sweep's runs say "
            "themselves what was varied."
        )
    # Absolute, so that records are read from there even after a change of folder.
    paths = [path.absolute() for path in paths]
    if len({path.resolve() for path in paths}) < len(paths):
        raise SettingError("load: one sweep is given twice, and its points would count twice.")
    sweep = sources.from_sweeps(paths, where)
    return Ladder(sweep, replace(_of_sweeps(paths), where=_texts(where)))


class Ladder:
    """Points of one or several mixes, and what can be asked of them. Made by `analysis.load`."""

    def __init__(self, sweep: Sweep, source: report.Settings | None = None) -> None:
        self._sweep = sweep
        # The source as settings of a command, None for points that lie in no file.
        self._source = source

    @property
    def name(self) -> str:
        """The sweep's or file's name."""
        return self._sweep.name

    @property
    def points(self) -> pd.DataFrame:
        """A row per point: mix, size, run, seed, N (parameters), D (tokens), C (training FLOPs),
        loss (held-out nats per token), bpb (bits per byte), seconds (of training), and more.
        A copy."""
        return self._sweep.arms.named(self._sweep.points).copy()

    @property
    def mixes(self) -> list[str]:
        """Names of the mixes."""
        return self._sweep.arms.mixes(self.arms)

    @property
    def arms(self) -> list[str]:
        """Names of what is compared: a mix, with its level of every other treatment."""
        return list(dict.fromkeys(self._sweep.points["mix"]))

    @property
    def notes(self) -> list[str]:
        """What was left out and what is not there yet, a sentence each."""
        from analysis.study.source import notes_of

        dropped = self._sweep.points.attrs.get("dropped", ())
        return [*notes_of(self._sweep), *(f"left out: {what}." for what in dropped)]

    def fit(
        self,
        law: str = "chinchilla",
        *,
        model: str = "free",
        loss: str = "huber",
        delta: float = 1e-3,
        fix: Mapping[str, float] | None = None,
        ratio: float | None = None,
        resamples: int = 499,
        seed: int = 0,
        level: float = 0.95,
        minimum: str = "parabola",
    ) -> Laws:
        """Fit a scaling law to each mix, like `python -m analysis fit`.

        Args:
            law: chinchilla, E + A/N^alpha + B/D^beta (nats per token; N in parameters, D in
                tokens); gamma, (…)^gamma of the two terms; ray, E + K/C^kappa along one D/N (C in
                FLOPs); N, E + A/N^alpha at one D; D, E + B/D^beta at one N; isoflop, the best N
                and D at each C by parabolas; envelope, the same by the least of training curves.
            model: which coefficients the mixes share; free for none, all to rank every choice.
            loss: what is minimised, of log residuals: huber, absolute, squares or student.
            delta: Huber's threshold, of log loss.
            fix: coefficients to hold, as in {"alpha": 0.22}.
            ratio: tokens per parameter of law=ray, where the points have more than one.
            resamples: ladders simulated for the p values of model=all, or draws of whole runs for
                the intervals of law=isoflop and law=envelope.
            seed: of those.
            level: share of those intervals that should hold the truth.
            minimum: how law=isoflop finds the best size at one C: parabola or akima.

        Raises:
            SettingError: where no mix can be fitted, or one that shares coefficients, with what it
                lacks; a mix that cannot be fitted by itself is named in the caveats.
        """
        asked = check(
            fit.Settings(
                law=law, model=model, loss=loss, delta=delta, fix=fix or {}, ratio=ratio,
                resamples=resamples, seed=seed, level=level, minimum=minimum,
            )
        )  # fmt: skip
        answer = fit.answered(asked, self._sweep.points)
        return Laws(answer, self._sweep)

    def savings(
        self,
        baseline: str = "transformer",
        *,
        at: Mapping[str, float] | Sequence[Mapping[str, float]] | None = None,
        kind: str = "tokens",
        target_loss: float | None = None,
        compute_optimal: float | None = None,
        isoflop: float | None = None,
        projected: bool = False,
        model: str = "free",
        loss: str = "squares",
        delta: float = 1e-3,
        fix: Mapping[str, float] | None = None,
        method: str = "mixed",
        paired: bool = False,
        resamples: int = 1000,
        seed: int = 0,
        level: float = 0.95,
        reference: Mapping[str, Any] | None = None,
    ) -> Savings:
        """Savings of every other mix over the baseline, like `python -m analysis savings`.

        A saving is a ratio, baseline over mix: 1.3 means that the baseline needs 1.3 times as much.
        Asked at each of the baseline's sizes and its largest budget there, unless:

        Args:
            baseline: the mix that others are compared with, at each level of other treatments; or
                one arm, with which all others are compared.
            at: a place or several, {"N": 1e9, "D": 2e10}: parameters and tokens of the baseline.
            kind: what is saved: tokens, parameters, flops or time.
            target_loss: the loss to reach, in nats per token, in place of D (parameters: of N).
            compute_optimal: training FLOPs; each mix at its cheapest N and D for the loss.
            isoflop: training FLOPs at each of the baseline's sizes.
            projected: at 3B to 70B parameters as well, which is extrapolation.
            model: which coefficients the mixes share; free for none.
            loss: what is minimised, of log residuals: squares, huber, absolute or student.
            delta: Huber's threshold, of log loss.
            fix: coefficients to hold, as in {"E": 1.7}.
            method: how ladders are resampled for the interval (docs/intervals.md).
            paired: whether mixes of one size and seed are resampled together.
            resamples: their number, 20 or more.
            seed: of the resamples.
            level: share of intervals that should hold the truth.
            reference: levels of other treatments that ratios of savings are over, as in {"lr": 1};
                the first of each unless given.

        Raises:
            SettingError: where there is nothing to compare, or a mix cannot be fitted.
        """
        self._check_has_both("savings need")
        asked = check(
            savings.Settings(
                baseline=baseline, at=at or (), kind=kind, target_loss=target_loss,  # type: ignore[arg-type]
                compute_optimal={} if compute_optimal is None else {"C": compute_optimal},
                isoflop={} if isoflop is None else {"C": isoflop}, projected=projected,
                model=model, loss=loss, delta=delta, fix=fix or {}, method=method, paired=paired,
                resamples=resamples, seed=seed, level=level, reference=reference or {},
            )
        )  # fmt: skip
        answer = savings.answered(asked, self._sweep)
        return Savings(answer, self._sweep, baseline, kind, loss, model)

    def predict(
        self,
        at: Mapping[str, float] | Sequence[Mapping[str, float]],
        *,
        model: str = "free",
        loss: str = "squares",
        delta: float = 1e-3,
        fix: Mapping[str, float] | None = None,
        resamples: int = 1000,
        seed: int = 0,
        level: float = 0.95,
    ) -> Predictions:
        """The loss of every mix where nobody has trained, like `python -m analysis predict`.

        In nats per token, with the interval of the law and that of one more run.

        Args:
            at: a place or several: {"N": 1e9, "D": 2e10}, parameters and tokens, or {"C": 1e21},
                training FLOPs, for the N* and D* of least loss there.
            model: which coefficients the mixes share; free for none.
            loss: what is minimised, of log residuals: squares, huber, absolute or student.
            delta: Huber's threshold, of log loss.
            fix: coefficients to hold, as in {"E": 1.7}.
            resamples: number of resampled ladders, 20 or more.
            seed: of the resamples.
            level: share of intervals that should hold the truth.

        Raises:
            SettingError: where a mix cannot be fitted, or a budget has no optimum.
        """
        self._check_has_both("predictions need")
        asked = check(
            predict.Settings(
                at=at, model=model, loss=loss, delta=delta, fix=fix or {}, resamples=resamples,  # type: ignore[arg-type]
                seed=seed, level=level,
            )
        )  # fmt: skip
        predict.check_places(asked)
        answer = predict.answered(asked, self._sweep.points)
        return Predictions(answer, self._sweep, loss, model)

    def findings(
        self,
        baseline: str = "transformer",
        *,
        resamples: int = 1000,
        seed: int = 0,
        level: float = 0.95,
        reference: Mapping[str, Any] | None = None,
    ) -> Findings:
        """All that a report rests on: study (fits, draws, savings), comparisons, probes, metrics.

        For figures and tables of one's own, by `analysis.report.figures` and
        `analysis.report.tables`. Nothing is raised for a mix that cannot be fitted yet.
        """
        from analysis.study.findings import find

        source = self._source or report.Settings()
        asked = check(
            replace(
                source, baseline=baseline, resamples=resamples, seed=seed, level=level,
                reference=reference or {},
            )
        )  # fmt: skip
        self._check_has_both("a report needs")
        command = "analysis.load(DataFrame).report()  # in Python"
        if self._source:
            command = f"python -m analysis report {spelled(asked)}"
        sweep = replace(self._sweep, arms=self._sweep.arms.over(asked.reference))
        return find(sweep, baseline, asked.resamples, asked.seed, command, asked.level)

    def report(
        self,
        out: str | os.PathLike[str] | None = None,
        baseline: str = "transformer",
        *,
        resamples: int = 1000,
        seed: int = 0,
        level: float = 0.95,
        reference: Mapping[str, Any] | None = None,
    ) -> list[Path]:
        """Write report.html, report.md, figures/ and tables/ like `python -m analysis report`.

        `out` is the folder, reports/ and the ladder's name in the current folder where it is not
        given. Returns the files, the page first. Raises SettingError for a folder that cannot be
        written.
        """
        from analysis.report.write import write_report

        name = self.name.replace("/", "_")
        folder = Path("reports", name) if out is None else Path(out).expanduser()
        findings = self.findings(
            baseline, resamples=resamples, seed=seed, level=level, reference=reference
        )
        return write_report(findings, folder)[1]

    def _check_has_both(self, what: str) -> None:
        if self._sweep.points.attrs.get("compute_only"):
            raise SettingError(f"{what} columns N and D, and these points have C alone.")

    def __repr__(self) -> str:
        from ablations.records import visible

        points = self._sweep.points
        sizes = points["size"].nunique()
        head = (
            f"Ladder {self.name}: {len(points)} points of {points['run'].nunique()} runs, "
            f"{len(self.mixes)} mix(es) ({', '.join(self.mixes)}), {sizes} size(s)"
        )
        if self._sweep.arms.treatments:
            varied = "; ".join(str(one) for one in self._sweep.arms.treatments)
            head += f", {len(self.arms)} arms by {varied}"
        return "\n".join(visible(line) for line in (head, *(f"  {one}" for one in self.notes)))


def _located(path: str | os.PathLike[str]) -> Path:
    """A path as given, or beside the checkout where there is nothing at it here."""
    here = Path(path).expanduser()
    beside = home() / here
    return beside if not here.exists() and beside.exists() else here


def _of_sweeps(paths: list[Path]) -> report.Settings:
    """The settings sweep= and runs= that name these folders."""
    parent = Path(os.path.commonpath([path.parent for path in paths]))
    names = tuple(str(path.relative_to(parent)) for path in paths)
    if parent == home() / "runs":
        return report.Settings(sweep=names)
    near = parent.is_relative_to(home())
    return report.Settings(sweep=names, runs=str(parent.relative_to(home()) if near else parent))


def _texts(where: Mapping[str, Any] | None) -> dict[str, tuple[str, ...]]:
    from analysis.study.rows import values_of

    return {key: tuple(map(str, values_of(value))) for key, value in (where or {}).items()}
