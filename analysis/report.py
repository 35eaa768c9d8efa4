"""The report of a sweep: the answer in a sentence, then all that it rests on.

Works on a sweep that still runs, with one mix only, and with too few points for a law: it says what
is missing and shows what there is.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from ablations.records import SettingError, write_atomic
from analysis import tables
from analysis.answer import answers, caveats, lacking_words
from analysis.compare import Comparison, compare
from analysis.fit import MODEL_WORDS
from analysis.load import Run, Sweep
from analysis.savings import matched_factor, seconds_per_token, time_ratio
from analysis.study import Study, study


def write_report(
    sweep: Sweep, out: Path, baseline: str, resamples: int, seed: int, command: str
) -> tuple[list[str], list[Path]]:
    """Write report.md, figures and tables of a sweep under `out`; return the answers, the files.

    Raises SettingError for a baseline that the sweep does not have, or an `out` that cannot be
    written, before anything is written.
    """
    mixes = sorted({run.mix for run in sweep.runs})
    if baseline not in mixes:
        if len(mixes) > 1:
            raise SettingError(
                f"baseline={baseline} is not among the mixes of sweep={sweep.name}: "
                f"{', '.join(mixes)}."
            )
        baseline = mixes[0]
    result = study(sweep.points, baseline, resamples, seed)
    others = [mix for mix in dict.fromkeys(sweep.points["mix"]) if mix != baseline]
    comparisons = [compare(sweep, baseline, mix) for mix in others]
    _make_writable(out)
    provenance = _provenance(sweep, comparisons, command)
    figures = _draw(result, sweep, out, provenance)
    written = _write_tables(result, sweep, out)
    text = "\n".join(_sections(result, sweep, comparisons, figures, provenance))
    write_atomic(out / "report.md", text.rstrip() + "\n")
    return answers(result), [out / "report.md", *figures.values(), *written]


def _make_writable(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise SettingError(
            f"out={out} cannot be written ({error.strerror}); give a folder that can."
        ) from None


def _provenance(sweep: Sweep, comparisons: list[Comparison], command: str) -> dict[str, Any]:
    text = sweep.points.to_csv(index=False, float_format="%.12g", lineterminator="\n")
    revisions = {
        str(run.manifest.get("revision", "not recorded"))[:12]
        + (" with changes" if run.manifest.get("dirty") else "")
        for run in sweep.runs
    }
    return {
        "command": command,
        "sweep": sweep.name,
        "sweep_command": sorted(
            {str(run.manifest["command"]) for run in sweep.runs if run.manifest.get("command")}
        ),
        "revision": sorted(revisions),
        "points_sha256": hashlib.sha256(text.encode()).hexdigest(),
        "points": len(sweep.points),
        "runs": len(sweep.runs),
        "runs_done": sum(run.state == "done" for run in sweep.runs),
        "data": sorted({_data_words(run) for run in sweep.runs}),
        "confounds": {one.mix: list(one.confounds) for one in comparisons},
        "not_recorded": {one.mix: list(one.unknown) for one in comparisons},
    }


def _data_words(run: Run) -> str:
    data = run.manifest.get("data")
    data = data if isinstance(data, dict) else {}
    name, fingerprint = data.get("name", "data not recorded"), str(data.get("fingerprint", ""))
    return f"{name} {fingerprint[:8]}".strip()


def _note(facts: dict[str, Any], *more: str) -> str:
    confounds = "; ".join(
        f"{mix}: {', '.join(found) if found else 'none found'}"
        for mix, found in facts["confounds"].items()
    )
    parts = [
        *more,
        f"Sweep {facts['sweep']}: {facts['points']} points of {facts['runs']} runs"
        + ("" if facts["runs_done"] == facts["runs"] else f" ({facts['runs_done']} finished)")
        + f"; {', '.join(facts['data'])}; points sha256 {facts['points_sha256'][:8]}; "
        f"revision {', '.join(facts['revision'])}.",
        f"Confounds: {confounds}." if confounds else "",
        f"$ {facts['command']}",
    ]
    # A dollar would open mathematics in a caption.
    return "  ".join(part for part in parts if part).replace("$", r"\$")


def _draw(
    result: Study,
    sweep: Sweep,
    out: Path,
    facts: dict[str, Any],
) -> dict[str, Path]:
    from analysis import figures
    from analysis.style import save

    drawn = {"loss": figures.loss_against_tokens(result.points, result.fit, _note(facts))}
    extra: dict[str, dict[str, str]] = {"loss": {}, "fits": {}, "savings": {}}
    if result.fit is not None and result.draws is not None:
        words = f"Fit: {result.fit.words}."
        drawn["loss"] = figures.loss_against_tokens(result.points, result.fit, _note(facts, words))
        drawn["fits"] = figures.fit_with_residuals(result.fit, _note(facts, words))
        extra["fits"] = {"model": result.fit.words}
    if result.savings and result.fit is not None and result.draws is not None:
        words = (
            f"Fit: {result.fit.words}. Interval: {result.draws.words}{_averaged(result)}. "
            "Points without a fit: at the lowest loss that both mixes reached, bars: 95 % by seeds."
        )
        drawn["savings"] = figures.savings_against_size(
            result.fit,
            result.draws,
            result.free,
            result.baseline,
            _note(facts, words),
            result.law_fails,
        )
        extra["savings"] = {
            "model": result.fit.words,
            "interval": result.draws.words + _averaged(result),
            "time": _measured_on(sweep),
        }
    paths = {}
    for name, (figure, table) in drawn.items():
        stem = out / "figures" / name
        paths[name] = save(figure, stem, table, facts | {"figure": name} | extra[name])[1]
    return paths


def _averaged(result: Study) -> str:
    shares = [f"{100 * w:.0f} % {m}" for m, w in result.weights.items() if w >= 0.005]
    if len(result.weights) < 2:
        return ""
    return f", shared out by Akaike weight ({', '.join(shares).replace('_', ' ')})"


def _write_tables(result: Study, sweep: Sweep, out: Path) -> list[Path]:
    from analysis.style import csv_text

    found = {"points": result.points, "fit_free": result.free}
    if result.savings:
        found["savings"] = pd.DataFrame(
            [vars(one) | {"in_range": one.in_range} for one in result.savings]
        )
    if result.fit is not None:
        found["fits"] = pd.DataFrame(
            [
                {"mix": mix, "model": result.fit.model, **one.law.as_dict(), "n": one.n,
                 "runs": one.n_runs, "rms": one.rms, "condition": one.condition}
                for mix, one in result.fit.mixes.items()
            ]
        )  # fmt: skip
    speeds = seconds_per_token(sweep.points)
    if len(speeds):
        found["speed"] = speeds.assign(tokens_per_second=1 / speeds["seconds"])
    for name, table in found.items():
        write_atomic(out / "tables" / f"{name}.csv", csv_text(table))
    return [out / "tables" / f"{name}.csv" for name in found]


def _sections(
    result: Study,
    sweep: Sweep,
    comparisons: list[Comparison],
    figures: dict[str, Path],
    facts: dict[str, Any],
) -> Iterable[str]:
    yield f"# Sweep {sweep.name}\n"
    yield "\n\n".join(answers(result)) + "\n"
    if told := list(caveats(result, sweep, comparisons)):
        yield "What to keep in mind:\n"
        yield "\n".join(f"- {caveat}" for caveat in told) + "\n"
    yield from _savings_section(result, sweep)
    yield "## Figures\n"
    titles = {
        "savings": "Token savings against size",
        "loss": "Loss against tokens",
        "fits": "Fits and their residuals",
    }
    for name, title in titles.items():
        if name in figures:
            yield f"![{title}](figures/{name}.png)\n"
            kinds = ("pdf", "svg", "csv", "json")
            links = ", ".join(f"[{kind}](figures/{name}.{kind})" for kind in kinds)
            yield f"*{title}.* {links}\n"
    yield from _fit_section(result)
    yield "## Points\n"
    yield tables.markdown(tables.points_table(result.points))
    yield from _control_section(comparisons)
    yield from _runs_section(sweep)
    yield from _speed_section(sweep)
    yield "## Commands\n"
    commands = [*facts["sweep_command"], facts["command"]]
    yield "```\n" + "\n".join(commands) + "\n```\n"
    yield f"Points sha256 `{facts['points_sha256']}`, revision {', '.join(facts['revision'])}."


def _savings_section(result: Study, sweep: Sweep) -> Iterable[str]:
    if not result.savings and result.free.empty:
        return
    yield "## Token savings\n"
    yield (
        "D of the baseline over D of the mix at equal N and equal loss. The target at each size is "
        "the baseline's fitted loss at the largest budget it was trained on.\n"
    )
    if result.law_fails:
        yield from _fit_free_section(result)
        yield "By the fitted laws, which do not describe these points:\n"
    speeds = seconds_per_token(sweep.points)
    if result.savings and result.fit is not None and result.draws is not None:
        names = {
            float(own["N"].mean()): str(size)
            for size, own in sweep.points[sweep.points["mix"] == result.baseline].groupby("size")
        }
        ratios = {}
        for one in result.savings:
            ratio = time_ratio(speeds, result.baseline, one.mix, names.get(one.N, ""))
            if math.isfinite(ratio):
                ratios[(one.mix, one.N)] = ratio
        yield tables.markdown(
            tables.savings_table(list(result.savings), names, ratios, result.draws.resamples)
        )
        yield f"Model: {result.fit.words}. Interval: {result.draws.words}{_averaged(result)}.\n"
        if ratios:
            yield (
                f"Time savings are token savings times the ratio of seconds per token, "
                f"{_measured_on(sweep)}; their interval holds no scatter of the timing itself.\n"
            )
        yield from _model_sensitivity(result)
    if not result.law_fails:
        yield from _fit_free_section(result)


def _fit_free_section(result: Study) -> Iterable[str]:
    if len(result.free):
        yield (
            "Free of any fit, interpolating between measured budgets, at the lowest loss that both "
            "mixes reached; intervals by Student's t from seeds, their scatter pooled over sizes:\n"
        )
        yield tables.markdown(tables.fit_free_table(result.free))


def _model_sensitivity(result: Study) -> Iterable[str]:
    if result.choice is None or len(result.choice.fits) < 2:
        return
    rows = []
    lowest = min(result.choice.aicc.values())
    for model, one in result.choice.fits.items():
        excess = result.choice.aicc[model] - lowest
        row: dict[str, Any] = {
            "model": MODEL_WORDS[model],
            "coefficients": one.n_parameters,
            "AICc − lowest": "–" if math.isnan(excess) else f"{excess:.1f}",
            "weight": f"{result.weights[model]:.2f}" if model in result.weights else "not used",
        }
        laws = {mix: fitted.law for mix, fitted in one.mixes.items()}
        last = result.savings[-1].N
        for saving in (s for s in result.savings if last == s.N):
            value = float(
                matched_factor(laws[saving.baseline], laws[saving.mix], saving.N, saving.D)
            )
            row[f"savings of {saving.mix}, largest size"] = f"{value:.3f}"
        rows.append(row)
    yield (
        "What the choice of the joint model does. Chosen and weighted by AICc, with a run effect; "
        "one E for all mixes is shown only, as few runs cannot tell whether it is so.\n"
    )
    yield tables.markdown(pd.DataFrame(rows))


def _fit_section(result: Study) -> Iterable[str]:
    yield "## Fits\n"
    if result.unfitted:
        yield f"No law yet: {lacking_words(result.unfitted)}.\n"
    if result.fit is None:
        return
    yield f"L = E + A/N^α + B/D^β, N in parameters and D in tokens; {result.fit.words}.\n"
    yield tables.markdown(tables.fits_table(result.fit, result.draws))
    yield tables.markdown(tables.diagnostics_table(result.fit, list(result.noise)))


def _control_section(comparisons: list[Comparison]) -> Iterable[str]:
    if not comparisons:
        return
    yield "## What differed\n"
    for one in comparisons:
        yield f"### {one.mix} against {one.baseline}\n"
        yield "Confounds: " + one.words + ".\n"
        treatment = "; ".join(f"`{told}`" for told in one.treatment) or "nothing recorded"
        yield f"Treatment, and what follows from it: {treatment}.\n"
        if len(one.pairs):
            yield tables.markdown(_pairs_table(one))


def _pairs_table(one: Comparison) -> pd.DataFrame:
    words = {True: "yes", False: "**no**", None: "–"}
    return pd.DataFrame(
        [
            {
                "size": pair["size"],
                "seed": pair["seed"],
                "points in both": pair["points"],
                "N": _signed(pair["N_percent"], 2),
                "FLOPs per token": _signed(pair["flops_percent"], 1),
                "equal tokens": words[pair["equal_tokens"]],
                "equal batches": words[pair["equal_batches"]],
                "skipped steps": f"{pair['skipped_baseline']:.0f} / {pair['skipped_mix']:.0f}",
            }
            for pair in one.pairs.to_dict("records")
        ]
    )


def _signed(percent: float, decimals: int) -> str:
    return "–" if math.isnan(percent) else f"{percent:+.{decimals}f} %"


def _runs_section(sweep: Sweep) -> Iterable[str]:
    open_runs = [run for run in sweep.runs if run.state != "done"]
    yield "## Runs\n"
    yield f"{len(sweep.runs) - len(open_runs)} of {len(sweep.runs)} runs finished.\n"
    if open_runs:
        yield tables.markdown(
            pd.DataFrame(
                [
                    {
                        "run": run.name,
                        "state": run.state,
                        "step": run.step,
                        "points": f"{run.n_points} of {run.n_planned or '?'}",
                        "error": run.error.replace("\n", " ")[:120] or "–",
                    }
                    for run in open_runs
                ]
            )
        )


def _speed_section(sweep: Sweep) -> Iterable[str]:
    speeds = seconds_per_token(sweep.points)
    if speeds.empty:
        return
    yield "## Measured speed\n"
    yield f"Training tokens per second, {_measured_on(sweep)}.\n"
    wide = (1 / speeds.set_index(["mix", "size"])["seconds"]).unstack("size")
    order = speeds.groupby("size")["N"].mean().sort_values().index
    wide = wide[order].map(lambda value: "–" if math.isnan(value) else f"{value:,.0f}")
    yield tables.markdown(wide.reset_index())


def _measured_on(sweep: Sweep) -> str:
    """Where times were measured: the device and what shared it."""
    devices, shared = set(), set()
    for run in sweep.runs:
        device = run.manifest.get("device")
        if isinstance(device, dict):
            threads = f", {device['threads']} thread(s) a run" if "threads" in device else ""
            devices.add(f"{device.get('name', device.get('kind', 'unknown device'))}{threads}")
            if "runs_at_once" in device:
                shared.add(f"{device['runs_at_once']} run(s) at a time")
    place = "; ".join(sorted(devices)) or "device not recorded"
    return f"measured on {place}, {'; '.join(sorted(shared)) or 'runs at a time not recorded'}"
