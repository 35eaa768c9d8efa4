"""The answer of a report in words: a sentence a mix with its interval, and what to keep in mind."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from analysis.stats.fit import Fit
from analysis.stats.noise import LackOfFit
from analysis.stats.predict import Predictions
from analysis.stats.savings import Saving
from analysis.stats.uncertainty import Draws
from analysis.study.checks import doubts
from analysis.study.compare import Comparison
from analysis.study.load import Sweep
from analysis.study.said import said_once
from analysis.study.study import Study
from models.format import count, percent, probability, with_interval

# A difference in FLOPs per token that changes what token savings mean for cost.
NOTABLE_FLOPS_PERCENT = 3.0
# A law this far off one of its own points (relative) says so: savings of 1.1 are 0.3 % of loss.
NOTABLE_ERROR = 0.01
HALF = 0.5
# Extrapolations by more than this factor are far: how often intervals hold the truth has been
# measured to twice the range (docs/intervals.md).
FAR = 4.0
# An interval of N* over more than this factor says nothing of which model to train.
UNKNOWN_OPTIMUM = 100.0


def answers(result: Study) -> list[str]:
    """The answer for each mix, at the largest size measured, in a sentence or two."""
    if len(result.mixes) == 1:
        only = result.mixes[0]
        return [f"**One mix only ({only}): there is nothing to compare, so no savings.**"]
    found, waiting = [], []
    for mix in result.versus or [one for one in result.mixes if one != result.baseline]:
        own = [one for one in result.savings if one.mix == mix]
        measured = _answer_by_seeds(result, mix)
        if measured and result.law_fails:
            found.append(
                f"{measured} The fitted law is not used for this, as it does not describe these "
                "points."
            )
        elif own and result.draws is not None:
            chosen, why = headline(own)
            told = _answer(chosen, result.draws, result.law_fails) + why
            if result.law_fails:
                told += (
                    " That is by a fitted law that does not describe these points, and there is no "
                    "interval from seeds yet: not to be read as a measurement. "
                    + _answer_without_fit(result, mix)
                )
            found.append(told.rstrip())
        else:
            waiting.append(mix)
    return [*found, *_answers_without_law(result, waiting), *_interactions(result)]


def _answers_without_law(result: Study, mixes: list[str]) -> Iterable[str]:
    """What seeds and measured losses say of mixes that no law compares, and what a law lacks."""
    if not mixes:
        return
    by_seeds = {mix: told for mix in mixes if (told := _answer_by_seeds(result, mix))}
    yield from by_seeds.values()
    baselines = [result.versus.get(mix, result.baseline) for mix in mixes]
    lacks = lacking_words(
        {
            name: result.unfitted[name]
            for name in dict.fromkeys([*baselines, *mixes])
            if name in result.unfitted
        }
    )
    lacks = lacks or f"{result.baseline} has no points"
    if waiting := [mix for mix in mixes if mix not in by_seeds]:
        yield f"**No interval yet for {', '.join(waiting)}, as no law can be fitted: {lacks}.**"
        yield from filter(None, (_answer_without_fit(result, mix) for mix in waiting))
    else:
        yield f"No law yet, so nothing beyond the sizes measured: {lacks}."


def _interactions(result: Study) -> Iterable[str]:
    """What another treatment does to a saving, at the largest size measured, a sentence each."""
    chance_of = result.resamples
    for contrast in result.contrasts:
        own = [one for by, one in result.interactions if by == contrast]
        head = f"{contrast.treatment.words} {contrast.level} in place of {contrast.reference_level}"
        if own and not result.law_fails:
            # Where the saving is quoted, so that both stand at one place.
            quoted = headline([s for s in result.savings if s.mix == contrast.reference])[0]
            one = next(one for one in own if one.N == quoted.N)
            ends, where = (one.interval.low, one.interval.high), "in range"
            if not one.in_range:
                where = f"extrapolated ×{one.beyond:.3g}"
            told = with_interval(one.value, *ends)
            at = f"At N = {count(one.N)} and D = {count(one.D)}"
            chance = f"P(> 1) {probability(one.p_above_1, chance_of)}; {where}"
        else:
            free = result.interactions_free
            rows = free[(free["mix"] == contrast.arm) & free["low"].notna()]
            rows = rows[rows["reference"] == contrast.reference]
            if rows.empty:
                continue
            row = rows.iloc[-1]
            ends = (row["low"], row["high"])
            told = with_interval(row["value"], *ends)
            at = f"At N = {count(row['N'])}, from seeds and without a fit"
            chance = f"P(> 1) {probability(row['p_above_1'], 1000)}; in range"
        verdict = (
            "the interval includes 1: no effect on the saving has been shown"
            if ends[0] <= 1 <= ends[1]
            else "the interval excludes 1: the saving depends on it"
        )
        mix = result.arms.arm(contrast.arm).mix
        yield (
            f"**{at}, {head} multiplies the saving of {mix} by {told} "
            f"({percent(result.level, 'g')} interval); {verdict}.** {chance}."
        )


def headline(savings: list[Saving]) -> tuple[Saving, str]:
    """The saving to quote, and why it is not that at the largest size where it is not.

    An isoFLOP design gives its largest models few tokens: there the answer stands at the largest
    size with at least half the median size's tokens per parameter. `savings` are in the order of N.
    """
    ratios = [one.D / one.N for one in savings]
    enough = [
        one
        for one, ratio in zip(savings, ratios, strict=True)
        if ratio >= HALF * float(np.median(ratios))
    ]
    if enough[-1] is savings[-1]:
        return savings[-1], ""
    return enough[-1], (
        f" Read here and not at N = {count(savings[-1].N)}, which was trained on "
        f"{ratios[-1]:.2g} tokens per parameter only."
    )


def _verdict(low: float, high: float) -> str:
    if low <= 1 <= high:
        return "the interval includes 1: no saving has been shown"
    if low > 1:
        return "the interval excludes 1: a saving at this size"
    return "the whole interval is below 1: this mix costs tokens at this size"


def _answer_by_seeds(result: Study, mix: str) -> str:
    """The answer without a law: read off the losses, with the scatter of seeds."""
    own = result.free[(result.free["mix"] == mix) & result.free["low"].notna()]
    if own.empty:
        return ""
    last = own.iloc[-1]
    told = with_interval(last["value"], last["low"], last["high"])
    chance = probability(last["p_above_1"], 1000)
    return (
        f"**At N = {count(last['N'])} parameters and D = {count(last['D_baseline'])} "
        f"tokens, token savings of {mix} over {result.versus[mix]} are {told} "
        f"({percent(result.level, 'g')} interval, from "
        f"seeds, without a fit); {_verdict(last['low'], last['high'])}.** "
        f"P(savings > 1) {chance}; in range."
    )


def lacking_words(unfitted: dict[str, str]) -> str:
    """Mixes that cannot be fitted by what they lack, in one clause."""
    return "; ".join(said_once(unfitted.items()))


def _answer_without_fit(result: Study, mix: str) -> str:
    own = result.free[(result.free["mix"] == mix) & (result.free["seed"] == "mean")]
    if own.empty:
        return ""
    last = own.iloc[-1]
    seeds = int(((result.free["mix"] == mix) & (result.free["size"] == last["size"])).sum()) - 1
    return (
        f"Without a fit, at size {last['size']}: token savings of {mix} over {result.versus[mix]} "
        f"are {last['bound']} {last['value']:.2f}".replace("  ", " ")
        + f" at a loss of {last['target_loss']:.3f}, from {seeds} seed(s); that is no interval."
    )


def _answer(one: Saving, draws: Draws, law_fails: bool) -> str:
    told = with_interval(one.value, one.low, one.high)
    place = f"At N = {count(one.N)} parameters and D = {count(one.D)} tokens"
    if one.value > 1:
        body = f"{one.mix} needs {told} times fewer tokens than {one.baseline} for the same loss"
    elif one.value > 0:
        body = f"{one.mix} needs more tokens than {one.baseline} for the same loss: savings {told}"
    else:
        body = f"{one.mix} never reaches the loss of {one.baseline}: savings {told}"
    body += f" ({percent(draws.level, 'g')} interval)"
    if not law_fails:
        body += f"; {_verdict(one.low, one.high)}"
    chance = probability(one.p_above_1, draws.resamples)
    return f"**{place}, {body}.** P(savings > 1) {chance}; {one.range_words}."


def control_caveats(comparisons: list[Comparison]) -> Iterable[str]:
    """What differed between mixes beside the mix, a sentence each."""
    for told in comparisons:
        if told.confounds or told.unknown:
            yield f"Confounds of {told.mix} against {told.baseline}: {told.words}."
        flops = told.pairs["flops_percent"].mean() if len(told.pairs) else 0.0
        if abs(flops) > NOTABLE_FLOPS_PERCENT:
            yield (
                f"{told.mix} spends {flops:+.0f} % training FLOPs per token: its token savings are "
                "not savings of compute."
            )


def caveats(result: Study, sweep: Sweep, comparisons: list[Comparison]) -> Iterable[str]:
    yield from control_caveats(comparisons)
    yield from result.arms.without_twin(result.mixes, result.baseline) if result.versus else ()
    open_runs = [run for run in sweep.runs if run.state != "done"]
    if open_runs:
        yield f"{len(open_runs)} of {len(sweep.runs)} runs have not finished (see Runs)."
    for point in sweep.dropped:
        yield f"Left out: {point}."
    for what in sweep.incomplete:
        yield f"Incomplete: {what}."
    if result.fit is None:
        yield from doubts(result.points)
        return
    yield from noise_doubts(result.fit, result.lack)
    for mix, one in result.fit.mixes.items():
        if one.caveats:
            yield (
                f"{mix}: {'; '.join(one.caveats)}. Its coefficients are not to be read one by one; "
                "savings inside the measured range rest on fitted losses."
            )
    sizes = result.fit.points["size"].nunique()
    if sizes == 3:
        yield (
            "Three sizes: a curve in N goes through three values exactly, so the points cannot "
            "show whether the law holds in N; beyond them it is an assumption."
        )
    if all(one.seed_dof == 0 for one in result.noise):
        yield "One seed a size: run-to-run noise is told from lack of fit by the law alone."
    epochs = sweep.points["epochs"].max()
    if epochs > 1:
        yield f"The corpus was repeated, up to {epochs:.1f} epochs: the law has no term for that."


def noise_doubts(fit: Fit, lack: LackOfFit | None) -> Iterable[str]:
    """What speaks against the points, the fit and its intervals, as far as the points show it."""
    yield from doubts(fit.points)
    off = np.abs(np.expm1(fit.residual))
    for mix, one in fit.mixes.items():
        if one.largest_error > NOTABLE_ERROR:
            own = (fit.points["mix"] == mix).to_numpy()
            N, D, loss = fit.points[["N", "D", "loss"]].iloc[int(np.argmax(own * off))]
            yield (
                f"The law of {mix} lies off its own points by {percent(one.rms)} (rms), noise "
                f"included, and most, by {percent(one.largest_error)}, off that at N = "
                f"{N:.4g}, D = {D:.4g} with loss {loss:.4g}."
            )
    if lack is not None and lack.found:
        yield (
            f"{_lack_words(lack)} Intervals of the fit hold the misfit along D and not that along "
            "N: extrapolations are not to be read, and the savings without a fit are the "
            "measurement."
        )
    if again := int(fit.points.duplicated(["run", "D"]).sum()):
        yield (
            f"{again} point(s) repeat the D of another point of their run: repeated trainings need "
            "a column seed or run, or their scatter counts as noise of points, and intervals are "
            "too narrow."
        )


def _lack_words(lack: LackOfFit) -> str:
    return (
        f"The law does not describe these points (lack of fit, F = {lack.F:.3g}, "
        f"p = {lack.p:.2g}): residuals of seed means would need a seed-to-seed scatter "
        f"of {percent(lack.leftover, '.2f')}, and it is {percent(lack.scatter, '.2f')}."
    )


def prediction_doubts(found: Predictions) -> Iterable[str]:
    """How C counts FLOPs, and what speaks against the predictions and their intervals: each once,
    with the mixes that it holds for."""
    sources = {True: "the mean of the points' own FLOPs", False: "as the points record no FLOPs"}
    yield from said_once(
        (one.mix, f"C = {best.flops_per_ND:.4g} N D, {sources[best.recorded]}.")
        for one in found.rows
        if (best := one.optimum)
    )
    yield from noise_doubts(found.fit, None)
    if found.lack is not None and found.lack.found:
        yield (
            f"{_lack_words(found.lack)} Intervals hold the misfit along D and not that along N: "
            "predictions beyond the range are not to be read, and in range the law may be off by "
            "more than its interval says."
        )
    trading = [(mix, "; ".join(one.caveats)) for mix, one in found.fit.mixes.items() if one.caveats]
    if trading:
        yield (
            f"{'. '.join(said_once(trading))}. Predictions in the measured range rest on fitted "
            "losses; beyond it, and of N*, they rest on these coefficients."
        )
    unknown = [
        f"{row.mix} at C = {best.C:.4g} (from {ends.low:.3g} to {ends.high:.3g})"
        for row in found.rows
        if (best := row.optimum)
        and not (ends := best.N_interval).high <= UNKNOWN_OPTIMUM * ends.low
    ]
    if unknown:
        yield f"The points do not say what N* is: its interval is too wide of {', '.join(unknown)}."
    far: dict[str, list[str]] = {}
    for row in found.rows:
        if max(row.N_beyond, row.D_beyond) > FAR:
            outside = row.range_words.removeprefix("extrapolated: ")
            place = f"N = {row.N:.4g}, D = {row.D:.4g} ({outside})"
            far.setdefault(place, []).append(row.mix)
    if far:
        told = "; ".join(f"{', '.join(mixes)} at {place}" for place, mixes in far.items())
        yield (
            f"Far outside what was measured: {told}. The interval takes the law's form for "
            "granted, and nothing here has tested it so far out."
        )
