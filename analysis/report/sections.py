"""What a report says, section by section, as blocks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

import pandas as pd

from analysis.foreign import unmarked
from analysis.report import results, tables
from analysis.report.checklist import checklist
from analysis.report.document import (
    Block,
    Bullets,
    Code,
    Figure,
    Heading,
    Linked,
    Table,
    Text,
    Words,
    prose,
    spans,
)
from analysis.report.figures.drawing import Gallery
from analysis.report.figures.losses import domains
from analysis.report.words import words_of
from analysis.stats.fit import MODEL_WORDS
from analysis.stats.mixed import MixedModel
from analysis.stats.savings import matched_factor, seconds_per_token
from analysis.study import at_optimum, classes, probes
from analysis.study.answer import answers, caveats, lacking_words
from analysis.study.compare import Comparison, control_table
from analysis.study.findings import Findings
from analysis.study.sealed import summary
from analysis.study.training import timing_words
from models.format import percent

SHOWN_IN = {
    "counts": ("Points",),
    "columns": ("Points",),
    "loss unit": ("Results",),
    "rising": ("Results",),
    "lack of fit": ("Diagnostics",),
    "includes 1": ("Token savings",),
    "copies": ("Points",),
    "one seed": ("Diagnostics", "Points"),
    "extrapolated": ("Token savings",),
    "off its points": ("Fits",),
    "three sizes": ("Fits",),
    "one size": ("Ladder",),
    "as seeds": ("Points",),
    "repeated D": ("Points",),
    "one run": ("Points",),
    "unnamed": ("Points",),
    "confounds": ("What differed",),
    "not recorded": ("What differed",),
    "unequal N": ("Ladder",),
    "FLOPs": ("What differed",),
    "no twin": ("What differed", "Results"),
    "epochs": ("Points",),
    "unfinished": ("Runs",),
    "left out": ("Runs", "Points"),
    "incomplete": ("Runs",),
    "coefficients": ("Fits",),
}
"""The section that shows what a caveat of each kind says: the first of these that is there."""
IN_TABLES = ("confounds", "not recorded")
"""Kinds whose section says all of it anyway."""


def report(found: Findings, gallery: Gallery) -> Iterator[Block]:
    """The whole report: the answer first, what limits it, then what both rest on."""
    kind = "Sweep" if found.sweep.runs else "Points"
    opening: list[Block] = [Heading(f"{kind} {found.sweep.name}", 1)]
    opening += [Text(told, lead=True) for told in answers(found.study)]
    opening += _figures(gallery, "savings")
    sections = list(_sections(found, gallery))
    heads = {one.text: one for one in sections if isinstance(one, Heading) and one.level == 2}
    details: dict[str, list[str]] = {}
    linked = []
    for caveat in caveats(found.study, found.sweep, found.comparisons):
        head = next(heads[name] for name in SHOWN_IN[caveat.kind] if name in heads)
        linked.append((caveat.text, head))
        if caveat.kind not in IN_TABLES:
            details.setdefault(head.text, []).extend(caveat.more)
    if linked:
        opening += [Text("What to keep in mind, the worst first:"), Linked(tuple(linked))]
    body: list[Block] = []
    for block in sections:
        body.append(block)
        if isinstance(block, Heading) and block.text in details:
            body.append(Bullets(tuple(details[block.text])))
    body += [Heading("Commands"), Code((*found.facts["sweep_command"], found.facts["command"]))]
    revision = found.facts["revision"]
    told = f"Points sha256 `{found.facts['points_sha256']}`"
    body.append(Text(told + (f", revision {', '.join(revision)}." if revision else ".")))
    yield from opening
    yield from body
    yield Heading("Words of this page")
    yield Words(words_of(_without_markup(prose([*opening, *body]))))


def _without_markup(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        yield from (unmarked(part) for tag, part in spans(text) if tag != "code")


def _sections(found: Findings, gallery: Gallery) -> Iterator[Block]:
    """What the answer and its caveats rest on."""
    yield from _savings(found, gallery)
    yield from _tuned(found)
    yield from _control(found)
    yield from _fits(found, gallery)
    yield from _losses(found, gallery)
    yield from _classes(found, gallery)
    yield from _probes(found, gallery)
    yield from _samples(found)
    yield from _published(found)
    yield from _training(gallery)
    yield from _runs(found)
    yield from _speed(found, gallery)
    yield Heading("Reviewers' checklist")
    yield Table(checklist(found), _files("checklist"))
    yield from _not_drawn(gallery)


def _figures(gallery: Gallery, *names: str) -> Iterator[Block]:
    for name in names:
        if name in gallery.shown:
            yield Figure(gallery.shown[name])


def _files(name: str) -> tuple[str, ...]:
    return tuple(f"tables/{name}.{kind}" for kind in ("tex", "csv"))


def _savings(found: Findings, gallery: Gallery) -> Iterator[Block]:
    result = found.study
    if not result.savings and result.free.empty:
        return
    yield Heading("Token savings")
    yield Text("D of the baseline over D of the mix at equal N and equal loss.")
    if result.law_fails:
        yield from _fit_free(found)
    if (table := savings_table(found)) is not None and result.fit and result.draws:
        fails = ", which do not describe these points" if result.law_fails else ""
        yield Text(
            f"By the fitted laws{fails}. The target at each size is the baseline's fitted loss at "
            "the largest budget it was trained on:"
        )
        yield Table(table, _files("savings"))
        words = f"{percent(result.level, 'g')}, {result.draws.words}"
        yield Text(f"Model: {result.fit.words}. Interval: {words}.")
        if f"time savings [{percent(result.level, 'g')}]" in table:
            yield Text(
                "Time savings are token savings times the ratio of seconds per token, "
                f"{found.measured_on}. {timing_words(found.points)}"
            )
        yield from _model_sensitivity(found)
    if not result.law_fails:
        yield from _fit_free(found)
    yield from _figures(gallery, "savings_loss")
    yield from _interactions(found, gallery)


def _tuned(found: Findings) -> Iterator[Block]:
    both = found.tuned
    if both is None:
        return
    yield Heading("Each mix at its own optimum")
    how = (
        f"`{both.tuned}` trained every mix at its own {both.setting}"
        if both.retrained
        else "what each run lies above its mix's lowest loss is taken off, by the surfaces of "
        f"`{both.tuned}`"
    )
    yield Text(
        f"Token savings with one {both.setting} for all, and with each mix at its own: {how}. The "
        "doubt about each optimum and about the bottom of its curve is in the intervals of the "
        f"second ({percent(both.level, 'g')}). The excess is of the tuning sweep's budget; it is "
        "taken as the same share of the loss at the others."
    )
    if both.other_budgets:
        yield Text(
            f"`{both.tuned}` holds other sizes or budgets than {found.sweep.name}, so the columns "
            "are not of the same places."
        )
    if both.left_out:
        yield Text(f"Not tuned, and not shown: {', '.join(both.left_out)}.")
    yield Table(at_optimum.cells(both, found.study.free))
    yield Text(f"Optima in multiples of the ladder's {both.setting}:")
    yield Table(at_optimum.optimum_cells(both))


def _interactions(found: Findings, gallery: Gallery) -> Iterator[Block]:
    result = found.study
    if not result.contrasts:
        return
    yield Heading("What other treatments do to savings")
    varied = "; ".join(str(one) for one in found.sweep.arms.treatments)
    yield Text(
        f"Varied beside the mix: {varied}. Each mix is compared with {result.baseline} at the same "
        "level; a ratio of two such savings is what the other treatment does to it, and 1 is "
        "nothing."
    )
    yield from _figures(gallery, "interaction")
    if result.interactions:
        if result.law_fails:
            yield Text("By the fitted laws, which do not describe these points:")
        table = tables.interactions_table(result.interactions, result.level)
        yield Table(table, _files("interactions"))
    table = tables.free_interactions_table(result.interactions_free, result.level)
    if len(table):
        yield Text("From seeds, without a fit, where both savings are:")
        yield Table(table, _files("interactions_free"))


def savings_table(found: Findings) -> pd.DataFrame | None:
    """Token savings by mix and size, with time savings where times were measured."""
    result = found.study
    if not result.savings or result.draws is None:
        return None
    baselines = found.points["mix"].isin(result.compared.values())
    names = {
        float(own["N"].mean()): str(size)
        for (_, size), own in found.points[baselines].groupby(["mix", "size"])
    }
    return tables.savings_table(list(result.savings), names, result.time_savings, result.draws)


def _fit_free(found: Findings) -> Iterator[Block]:
    free = found.study.free
    if len(free):
        intervals = (
            "intervals by Student's t from seeds, their scatter pooled over sizes"
            if free["low"].notna().any()
            else "an interval would need two seeds of both mixes at a size"
        )
        yield Text(
            "Free of any fit, interpolating between measured budgets, at the lowest loss that both "
            f"mixes reached; {intervals}:"
        )
        yield Table(tables.fit_free_table(found.study.free, found.study.level), _files("fit_free"))


def _model_sensitivity(found: Findings) -> Iterator[Block]:
    result = found.study
    if result.choice is None or len(result.choice.fits) < 2 or not result.savings:
        return
    rows = []
    lowest = min(result.choice.aicc.values())
    for model, one in result.choice.fits.items():
        excess = result.choice.aicc[model] - lowest
        row: dict[str, Any] = {
            "model": MODEL_WORDS[model],
            "coefficients": one.n_parameters,
            "AICc − lowest": "–" if math.isnan(excess) else f"{excess:.1f}",
        }
        laws = {mix: fitted.law for mix, fitted in one.mixes.items()}
        last = result.savings[-1].N
        for saving in (s for s in result.savings if last == s.N):
            value = float(
                matched_factor(laws[saving.baseline], laws[saving.mix], saving.N, saving.D)
            )
            row[f"savings of {saving.mix}, largest size"] = f"{value:.3f}"
        rows.append(row)
    yield Text(
        "Each mix has its own law, as sharing coefficients costs coverage; beside it what models "
        "that share would say, with their AICc."
    )
    yield Table(pd.DataFrame(rows))


def _control(found: Findings) -> Iterator[Block]:
    if not found.sweep.runs and found.points["mix"].nunique() > 1:
        yield Heading("What differed")
        yield Text("Not recorded with these points: what else differed between mixes is unknown.")
    if not found.comparisons:
        return
    yield Heading("What differed")
    for one in found.comparisons:
        yield Heading(f"{one.mix} against {one.baseline}", 3)
        yield Text("Confounds: " + one.words + ".")
        treatment = "; ".join(f"`{told}`" for told in one.treatment) or "nothing recorded"
        yield Text(f"Treatment, and what follows from it: {treatment}.")
        if len(table := control_table(one)):
            yield Table(table)
        if len(one.pairs):
            yield Table(_pairs_table(one))


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


def _fits(found: Findings, gallery: Gallery) -> Iterator[Block]:
    result = found.study
    yield Heading("Fits")
    if result.unfitted:
        yield Text(f"No law yet: {lacking_words(result.unfitted)}.")
    if result.fit is None:
        yield from _figures(gallery, "isoflop")
        return
    yield Text(f"L = E + A/N^α + B/D^β, N in parameters and D in tokens; {result.fit.words}.")
    yield Table(tables.fits_table(result.fit, result.draws), _files("fits"))
    yield from _figures(gallery, "coefficients", "iso_loss", "frontier", "isoflop")
    yield Heading("Diagnostics")
    yield Table(tables.diagnostics_table(result.fit, list(result.noise)), _files("diagnostics"))
    if result.mixed is not None:
        yield Text(_noise_words(result.mixed, result.level))
    yield from _unseen(found, gallery)
    yield from _figures(gallery, "fits")
    yield from _sealed(found)


def _sealed(found: Findings) -> Iterator[Block]:
    if found.sealed.empty:
        return
    yield Heading("Sealed predictions")
    yield Text(
        "Losses predicted from earlier points of this sweep and frozen before their runs. "
        + summary(found.sealed)
    )
    yield Table(tables.sealed_table(found.sealed))


def _noise_words(mixed: MixedModel, level: float) -> str:
    """What the interval takes the noise to be."""
    point, run, misfit = (f"{100 * sd:.2g} %" for sd in mixed.sds)
    if mixed.alone:
        told = f"a point and its run {point} together, as each run has one point"
    else:
        told = f"a point {point}, a run {run}"
        told += f", the law's misfit along D {misfit}" if mixed.tilt.any() else ""
    if mixed.has_batches:
        told += f"; correlation of runs of two mixes on the same batches {mixed.correlation:+.2f}"
    else:
        told += "; no two mixes are known to have seen the same batches"
    if mixed.slope.any():
        slope, low, high = mixed.slope_interval(level)
        told += f"; the variance of runs goes as N^{slope:+.2f} [{low:+.2f}, {high:+.2f}]"
    return (
        f"Noise of log loss that intervals rest on (standard deviations, posterior means): {told}."
    )


def _unseen(found: Findings, gallery: Gallery) -> Iterator[Block]:
    if len(found.holdout):
        yield Text(
            "Points left out and predicted from the rest, each mix by its own law: error is "
            "predicted over measured loss, less 1. Beside it a straight line in logs through the "
            "two nearest points kept, with nothing fitted. A mix that cannot be fitted without "
            "its largest size or budgets is not shown."
        )
        yield Table(tables.holdout_table(found.holdout), _files("holdout"))
        yield from _figures(gallery, "heldout")


def _losses(found: Findings, gallery: Gallery) -> Iterator[Block]:
    yield Heading("Results")
    yield Text(
        "At each size's largest budget that all its mixes reached; means of seeds, and "
        f"{percent(found.study.level, 'g')} by Student's t from their scatter, pooled, where seeds "
        "were repeated. Bold: the lowest."
    )
    if found.points["bpb"].notna().any():
        yield Text("Held-out bits per byte:")
        yield Table(results.results_table(found, "bpb"), _files("results_bpb"))
    else:
        yield Text("Held-out loss (nats per token):")
        yield Table(results.results_table(found, "loss"), _files("results_loss"))
    if domains(found.points):
        yield Text("Bits per byte by domain, means of seeds:")
        yield Table(results.domains_table(found), _files("domains"))
    yield from _figures(gallery, "bpb", "loss", "loss_flops", "rate")
    yield Heading("Ladder")
    yield Table(results.ladder_table(found), _files("ladder"))
    yield Heading("Points")
    yield Table(tables.points_table(found.points), _files("points"))


def _classes(found: Findings, gallery: Gallery) -> Iterator[Block]:
    table = found.classes
    if table.empty:
        return
    yield Heading("Which tokens pay")
    yield Text(
        f"Held-out loss by class of token, nats per token, at {classes.place_words(table)}. The "
        "difference is of the class's own tokens; its part is what the class adds to the overall "
        f"difference, and parts of a partition add up to it. {percent(found.study.level, 'g')} by "
        "Student's t on seeds that both mixes have, their scatter pooled over sizes; savings "
        f"without a fit. Of {len(table)} intervals some miss by luck."
    )
    yield from _figures(gallery, "classes")
    yield Table(classes.cells(table), _files("classes"))


def _probes(found: Findings, gallery: Gallery) -> Iterator[Block]:
    if found.probes.empty:
        return
    yield Heading("Probes")
    if differing := probes.not_alike(found.probes):
        yield Text(
            f"Not the same examples for every run: {', '.join(differing)}; differences between "
            "mixes there are not of the mix alone. The same command for all of them mends it."
        )
    if not probes.is_empty(found.probes, positions=False):
        means = probes.accuracies(found.probes)
        beyond = probes.beyond_chance(means)
        yield Text(
            "In-context tasks without training on them, by length, at each size's largest budget "
            "that all its mixes reached. 95 % over examples. Above chance, and above the first "
            f"reading, by that interval: {beyond or 'nothing'}. Of the {len(means)} intervals one "
            "in forty would be so by luck."
        )
        if missing := probes.left_out(found.probes, means):
            yield Text(
                f"Not shown, as probed at other budgets than the other mixes: {', '.join(missing)}."
            )
        yield from _figures(gallery, "probes")
        yield Table(probes.accuracy_cells(means), _files("probes"))
        if len(gains := probes.gain_cells(means)):
            yield Text("Nats per token that a second reading saves over the first, 95 %:")
            yield Table(gains)
    yield from _figures(gallery, "positions")


def _samples(found: Findings) -> Iterator[Block]:
    table = found.samples
    if table.empty:
        return
    yield Heading("Samples")
    yield Text(
        "How each mix continued the same held-out prompts, greedily, at the largest size "
        f"({table['size'][0]}) and the last budget that all of them reached there. To read, not to "
        "judge by."
    )
    yield Table(table[["prompt", "mix", "continuation"]])


def _published(found: Findings) -> Iterator[Block]:
    table = results.published_table(found)
    if table is None:
        return
    yield Heading("Beside the paper")
    yield Text(
        "Olmo Hybrid (arXiv:2604.03444v4), Tables 22 and 5, at the sizes that both have. Its BPB "
        "is of task suites, ours of held-out text: compare the order of the mixes, not values. "
        "Hollow marks in the figures are its Tables 18 and 20; its ladder matches no parameters."
    )
    yield Table(table, _files("published"))


def _training(gallery: Gallery) -> Iterator[Block]:
    if "stability" in gallery.shown:
        yield Heading("Training")
        yield from _figures(gallery, "stability")


def _runs(found: Findings) -> Iterator[Block]:
    runs, open_runs = found.sweep.runs, found.open_runs
    if not runs:
        return
    yield Heading("Runs")
    yield Text(f"{len(runs) - len(open_runs)} of {len(runs)} runs finished.")
    if open_runs:
        cells = [
            {
                "run": run.name,
                "state": run.state,
                "step": run.step,
                "points": f"{run.n_points} of {run.n_planned or '?'}",
                "error": run.error.replace("\n", " ")[:120] or "–",
            }
            for run in open_runs
        ]
        yield Table(pd.DataFrame(cells))


def _speed(found: Findings, gallery: Gallery) -> Iterator[Block]:
    speeds = seconds_per_token(found.points)
    if speeds.empty:
        return
    yield Heading("Measured speed")
    yield Text(f"Training tokens per second, {found.measured_on}.")
    wide = (1 / speeds.set_index(["mix", "size"])["seconds"]).unstack("size")
    order = speeds.groupby("size")["N"].mean().sort_values().index
    wide = wide[order].map(lambda value: "–" if math.isnan(value) else f"{value:,.0f}")
    yield Table(wide.reset_index().rename_axis(columns=None))
    yield from _figures(gallery, "throughput")


def _not_drawn(gallery: Gallery) -> Iterator[Block]:
    if gallery.lacking:
        named: dict[str, list[str]] = {}
        for name, clause in gallery.lacking.items():
            named.setdefault(clause, []).append(f"`{name}`")
        yield Heading("Not drawn")
        yield Bullets(tuple(f"{', '.join(names)}: {clause}." for clause, names in named.items()))
