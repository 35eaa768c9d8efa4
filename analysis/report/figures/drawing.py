"""Which figures a sweep allows, drawn and saved; and for the others, what is missing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from ablations.records import SettingError, one_of
from analysis.report import figures
from analysis.report.figures.axes import Drawn, size_words
from analysis.report.figures.losses import domains
from analysis.report.figures.rates import loss_by_rate
from analysis.report.figures.style import DOUBLE_COLUMN_INCHES, save
from analysis.stats.fit import each_mix
from analysis.stats.isoflop_draws import draw_isoflop
from analysis.stats.rays import IsoFlop, fit_isoflop
from analysis.stats.uncertainty import METHOD_WORDS
from analysis.study import classes, probes, published
from analysis.study.answer import lacking_words
from analysis.study.findings import Findings, note
from models.format import count, percent

MEND = "three sizes and three budgets a mix would do"
Draw = Callable[[Findings, str, float], Drawn]


@dataclass(frozen=True)
class Picture:
    """A figure that a sweep may allow: `lacks` says in a clause what is missing, or nothing."""

    name: str
    title: str
    draw: Draw
    lacks: Callable[[Findings], str]
    words: Callable[[Findings], str] = lambda _: ""
    of_laws: bool = False
    """Whether it shows what laws say; the others fit none."""


@dataclass(frozen=True)
class Shown:
    """A figure on disk: `stem` with .pdf, .png, .svg, .csv, .json."""

    name: str
    title: str
    stem: Path
    note: str


@dataclass(frozen=True)
class Gallery:
    """Figures drawn by name, and of the others what they lack."""

    shown: dict[str, Shown] = field(default_factory=dict)
    lacking: dict[str, str] = field(default_factory=dict)


def draw(
    found: Findings,
    out: Path,
    only: tuple[str, ...] = (),
    width: float = DOUBLE_COLUMN_INCHES,
    with_note: bool = False,
) -> Gallery:
    """Draw and save what the sweep allows under `out`.

    Raises SettingError for a name in `only` that no figure has.
    """
    check_names(only)
    gallery = Gallery()
    for picture in PICTURES:
        if only and picture.name not in only:
            continue
        if clause := picture.lacks(found):
            gallery.lacking[picture.name] = clause
            continue
        told = note(found.facts, picture.words(found))
        figure, table = picture.draw(found, told if with_note else "", width)
        facts = found.facts | {"figure": picture.name, "caption": told, "time": found.measured_on}
        facts |= _of_fit(found) if picture.of_laws else {}
        save(figure, out / picture.name, table, facts)
        gallery.shown[picture.name] = Shown(picture.name, picture.title, out / picture.name, told)
    return gallery


def check_names(names: tuple[str, ...]) -> None:
    """Raise SettingError for a name that no figure has."""
    known = tuple(picture.name for picture in PICTURES)
    for name in names:
        if name not in known:
            raise one_of("only", name, known)


def _of_fit(found: Findings) -> dict[str, str]:
    result = found.study
    if result.fit is None or result.draws is None:
        return {}
    return {
        "model": result.fit.words,
        "interval": f"{percent(result.level, 'g')}, {result.draws.words}",
    }


def _no_fit(found: Findings) -> str:
    if found.study.fit is not None and found.study.draws is not None:
        return ""
    return f"no law can be fitted: {lacking_words(found.study.unfitted)}; {MEND}"


def _no_comparison(found: Findings) -> str:
    result = found.study
    if found.points["mix"].nunique() < 2:
        return "one mix only; add a second one to the sweep"
    if not result.has_baseline:
        mixes = result.arms.mixes(result.mixes)
        return (
            f"baseline={result.baseline} is not among the mixes ({', '.join(mixes)}); give one of "
            f"them, baseline={mixes[0]}"
        )
    if clause := _no_fit(found):
        return clause
    assert result.fit is not None
    if result.compared:
        return ""
    return f"a second mix cannot be fitted: {lacking_words(result.unfitted)}; {MEND}"


def _fit_words(found: Findings) -> str:
    fit = found.study.fit
    if fit is None:
        return ""
    fails = (
        " The law does not describe these points (lack of fit)." if found.study.law_fails else ""
    )
    return f"Fit: {fit.words}.{fails}"


def _interval_words(found: Findings) -> str:
    draws = found.study.draws
    words = f"Interval: {percent(draws.level, 'g')}, {draws.words}." if draws is not None else ""
    return f"{_fit_words(found)} {words}"


def _savings_words(found: Findings) -> str:
    chance = "of the seeds" if found.study.law_fails else "of the resamples"
    return (
        f"{_interval_words(found)} P(savings > 1): {chance}, at the largest size measured. "
        "Tokens per parameter: the baseline's largest at each size, smooth between sizes. "
        "Points without a fit: at the lowest loss that both mixes "
        f"reached, bars: {percent(found.study.level, 'g')} by seeds."
    )


def _savings(found: Findings, told: str, width: float) -> Drawn:
    result = found.study
    assert result.fit is not None
    assert result.draws is not None
    return figures.savings_against_size(
        result.fit, result.draws, result.free, result.compared, told, result.law_fails, width,
        published.savings(found.sweep),
    )  # fmt: skip


def _savings_loss(found: Findings, told: str, width: float) -> Drawn:
    result = found.study
    assert result.fit is not None
    assert result.draws is not None
    N = min(result.fit.mixes[baseline].N_range[1] for baseline in result.compared.values())
    return figures.savings_against_loss(
        result.fit, result.draws, result.compared, N, told, result.law_fails, width
    )


def _interaction(found: Findings, told: str, width: float) -> Drawn:
    rows = [
        (f"{found.sweep.arms.arm(by.arm).mix}, {by.level} over {by.reference_level}", one)
        for by, one in found.study.interactions
    ]  # fmt: skip
    return figures.ratios_of_savings(rows, told, width)


def _no_interaction(found: Findings) -> str:
    if found.sweep.arms.treatments and not found.study.has_baseline:
        return _no_comparison(found)
    if not found.study.contrasts:
        return (
            "runs vary the mix alone, or every arm is compared with one; two levels of another "
            "treatment would show what it does to a saving"
        )
    return "" if found.study.interactions else _no_comparison(found) or "an arm has no law yet"


def _coefficients(found: Findings, told: str, width: float) -> Drawn:
    result = found.study
    assert result.fit is not None
    assert result.draws is not None
    theirs = published.coefficients(found.sweep)
    return figures.coefficients(result.fit, result.draws, told, width, theirs)


def _frontier(found: Findings, told: str, width: float) -> Drawn:
    result = found.study
    assert result.fit is not None
    assert result.draws is not None
    return figures.frontier(result.fit, result.draws, told, width)


def _fits(found: Findings, told: str, width: float) -> Drawn:
    assert found.study.fit is not None
    return figures.fit_with_residuals(found.study.fit, told, width)


def _parabolas(found: Findings) -> tuple[dict[str, IsoFlop], dict[str, str]]:
    """Fits of law=isoflop by mix, and why the others have none. Raises SettingError without any."""
    fits, refused = each_mix(found.points, lambda own: fit_isoflop(own, "huber"))
    return fits, {mix: _clause(told) for mix, told in refused.items()}


def _clause(refusal: str) -> str:
    return refusal.partition(": ")[2].rstrip(".")


def _no_parabolas(found: Findings) -> str:
    try:
        _parabolas(found)
    except SettingError as error:
        mix = next(iter(found.points["mix"]))
        return f"no sizes at equal C to find the best of: {mix}: {_clause(str(error))}"
    return ""


def _isoflop(found: Findings, told: str, width: float) -> Drawn:
    fits, _ = _parabolas(found)
    own = found.points[found.points["mix"].isin(list(fits))]
    draws = draw_isoflop(own, "huber")
    return figures.isoflop(own, fits, draws, found.study.level, note=told, width=width)


def _isoflop_words(found: Findings) -> str:
    _, refused = _parabolas(found)
    missing = "".join(f" Without {mix}: {clause}." for mix, clause in refused.items())
    return (
        "Fit: a parabola in log N at each C (within 10 %), by Huber's loss, and a power law "
        f"through the minima. Interval: {METHOD_WORDS['run']}, 499 resamples, seed 0.{missing}"
    )


def _no_holdout(found: Findings) -> str:
    if len(found.holdout):
        return ""
    return "no mix can be fitted without its largest size or budgets; four of each would do"


def _iso_loss(found: Findings, told: str, width: float) -> Drawn:
    assert found.study.fit is not None
    return figures.iso_loss(found.study.fit, found.study.compared, told, width)


def _no_flops(found: Findings) -> str:
    if (found.points["C"] > 0).any():
        return ""
    return "no training FLOPs are recorded; a column C (FLOP) would give them"


def _no_rates(found: Findings) -> str:
    table, setting = loss_by_rate(found.points, found.sweep.arms)
    if not setting:
        return (
            "no learning rate is varied; a sweep over protocol.lr_multiplier or optimizer.lr, or "
            "treatments=lr with points, would show its best value"
        )
    return "" if len(table) else "no budget was reached at every learning rate yet"


def _rates_words(found: Findings) -> str:
    table, _ = loss_by_rate(found.points, found.sweep.arms)
    places = table.groupby("size", sort=False)["D"].mean()
    words = size_words(map(str, places.index))
    told = ", ".join(f"{words[str(size)]}: {count(D, 3)}" for size, D in places.items())
    return (
        f"At the largest budget that all arms of a size reached, tokens {told}. Bars: one standard "
        "deviation of seeds either way. Diamond: least of the parabola in log rate through the "
        "lowest loss and its neighbours; none where the lowest is at an end of the rates."
    )


def _rates(found: Findings, told: str, width: float) -> Drawn:
    table, setting = loss_by_rate(found.points, found.sweep.arms)
    return figures.loss_against_rate(table, setting, told, width)


def _no_domains(found: Findings) -> str:
    if not domains(found.points):
        return "no losses by domain are recorded; sweeps write them"
    return ""


def _no_metrics(found: Findings) -> str:
    norms = found.metrics["grad_norm"]
    if norms.notna().any():
        return ""
    return "no gradient norms are recorded; runs write them to metrics.jsonl"


def _no_contexts(found: Findings) -> str:
    contexts = sorted(set(found.speeds["context"]))
    if len(contexts) > 1:
        return ""
    one = f"one context length only ({contexts[0]:g})" if contexts else "no speed was recorded"
    return f"{one}; a sweep over size.context would show how speed changes with it"


def _no_probes(found: Findings, positions: bool) -> str:
    if not probes.is_empty(found.probes, positions):
        return ""
    if not found.sweep.runs:
        return "probes are recorded by runs, and these are points alone"
    asked = "" if probes.is_empty(found.probes, not positions) else "such "
    return (
        f"no {asked}probes are recorded; `python -m ablations.evaluate` with the sweep's folder "
        "measures them at the checkpoints that its runs kept, evaluation.probes=[…] as runs train"
    )


def _probes_words(found: Findings) -> str:
    own = probes.largest(probes.accuracies(found.probes))
    return (
        f"Size {own['size'].iloc[0]}, {count(own['D'].mean())} tokens, "
        f"{own['examples'].min():g} examples a length. Bars: 95 % over examples; where there are "
        f"several seeds, each is a small mark. {_alike_words(found)}"
    )


def _positions_words(found: Findings) -> str:
    own = probes.largest(probes.by_position(found.probes))
    return (
        f"Size {own['size'].iloc[0]}, {count(own['D'].mean())} tokens. Bars: 95 % over windows of "
        f"held-out text. {_alike_words(found)}"
    )


def _alike_words(found: Findings) -> str:
    differing = probes.not_alike(found.probes)
    if not differing:
        return "Every run was asked the same."
    return f"Runs were not asked the same: {', '.join(differing)}."


def _probe_accuracy(found: Findings, told: str, width: float) -> Drawn:
    means = probes.largest(probes.accuracies(found.probes))
    return figures.probe_accuracy(means, probes.largest(found.probes), told, width)


def _no_classes(found: Findings) -> str:
    if len(found.classes):
        return ""
    if not found.sweep.runs:
        return "losses by class of token are recorded by runs, and these are points alone"
    return "no losses by class of token are recorded of two mixes"


def _classes_words(found: Findings) -> str:
    return (
        f"At {classes.place_words(found.classes)}. Bars: {percent(found.study.level, 'g')} by "
        "Student's t on seeds that both mixes have, their scatter pooled over sizes; savings "
        "without a fit."
    )


def _loss_by_position(found: Findings, told: str, width: float) -> Drawn:
    return figures.loss_by_position(probes.largest(probes.by_position(found.probes)), told, width)


PICTURES = (
    Picture("savings", "Token savings against size", _savings, _no_comparison, _savings_words,
            of_laws=True),
    Picture("savings_loss", "Token savings against target loss, at the largest size",
            _savings_loss, _no_comparison, _interval_words, of_laws=True),
    Picture("interaction", "What other treatments do to savings", _interaction, _no_interaction,
            _interval_words, of_laws=True),
    Picture("loss", "Loss against tokens",
            lambda f, told, w: figures.loss_against_tokens(f.points, told, w), lambda _: ""),
    Picture("loss_flops", "Loss against training FLOPs",
            lambda f, told, w: figures.loss_against_flops(f.points, told, w), _no_flops),
    Picture("rate", "Loss against the learning rate", _rates, _no_rates, _rates_words),
    Picture("bpb", "Bits per byte by domain",
            lambda f, told, w: figures.bpb_by_domain(f.points, told, w), _no_domains),
    Picture("probes", "Probe accuracy against length", _probe_accuracy,
            lambda f: _no_probes(f, positions=False), _probes_words),
    Picture("positions", "Loss by position in a long window", _loss_by_position,
            lambda f: _no_probes(f, positions=True), _positions_words),
    Picture("classes", "Loss and token savings by class of token",
            lambda f, note, w: figures.loss_by_class(f.classes, note, w), _no_classes,
            _classes_words),
    Picture("fits", "Fits and their residuals", _fits, _no_fit, _fit_words, of_laws=True),
    Picture("heldout", "Errors of predictions on what was left out",
            lambda f, told, w: figures.heldout(f.holdout, told, w), _no_holdout,
            lambda _: "Each mix's own law, by least squares without what was left out."),
    Picture("coefficients", "Coefficients of the laws", _coefficients, _no_fit, _interval_words,
            of_laws=True),
    Picture("iso_loss", "Contours of equal loss", _iso_loss, _no_comparison, _fit_words,
            of_laws=True),
    Picture("frontier", "Compute-optimal frontier", _frontier, _no_fit, _interval_words,
            of_laws=True),
    Picture("isoflop", "Loss against size at equal compute", _isoflop, _no_parabolas,
            _isoflop_words),
    Picture("stability", "Gradient norms, spikes and skipped steps",
            lambda f, told, w: figures.training_stability(f.metrics, f.sizes, told, w),
            _no_metrics),
    Picture("throughput", "Speed against context",
            lambda f, told, w: figures.throughput_against_context(
                f.speeds, f.sizes, f.measured_on, told, w),
            _no_contexts),
)  # fmt: skip
