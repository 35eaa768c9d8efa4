"""The answer of a report in words: a sentence a mix with its interval, and what to keep in mind."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd

from analysis.stats.fit import Fit
from analysis.stats.noise import LackOfFit
from analysis.stats.predict import Predictions
from analysis.stats.savings import Saving
from analysis.stats.seeds import repeated
from analysis.stats.uncertainty import Draws
from analysis.study.arms import Arms
from analysis.study.caveats import Caveat, left_out, listed, ranked
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


def _by_seeds(result: Study, mix: str) -> pd.Series | None:
    """The row of `free` at the largest size that has an interval from seeds."""
    own = result.free[(result.free["mix"] == mix) & result.free["low"].notna()]
    return None if own.empty else own.iloc[-1]


def _answer_by_seeds(result: Study, mix: str) -> str:
    """The answer without a law: read off the losses, with the scatter of seeds."""
    last = _by_seeds(result, mix)
    if last is None:
        return ""
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
    if one.low <= 1 <= one.high:
        body = f"token savings of {one.mix} over {one.baseline} are {told}"
    elif one.value > 1:
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


def control_caveats(comparisons: Iterable[Comparison]) -> list[Caveat]:
    """What differed between mixes beside the mix, the worst first."""
    comparisons = list(comparisons)
    found = []
    for kind, told in (
        ("confounds", [one for one in comparisons if one.confounds]),
        ("not recorded", [one for one in comparisons if one.unknown and not one.confounds]),
    ):
        if told:
            words = [clause.partition(":")[0] for one in told for clause in one.confounds]
            words = words or [clause for one in told for clause in one.unknown]
            found.append(
                Caveat(
                    kind,
                    f"{kind.capitalize()} of {listed(one.mix for one in told)}: {listed(words)}.",
                    tuple(
                        f"Confounds of {one.mix} against {one.baseline}: {one.words}."
                        for one in told
                    ),
                )
            )
    means = {
        one.mix: float(one.pairs["flops_percent"].mean()) for one in comparisons if len(one.pairs)
    }
    notable = {mix: flops for mix, flops in means.items() if abs(flops) > NOTABLE_FLOPS_PERCENT}
    if notable:
        ends = dict.fromkeys(f"{end:+.0f}" for end in sorted(notable.values()))
        worth = " to ".join(list(ends)[:: max(len(ends) - 1, 1)])
        found.append(
            Caveat(
                "FLOPs",
                f"{listed(notable)}: {worth} % training FLOPs per token, so that token savings are "
                "not savings of compute.",
            )
        )
    return ranked(found)


def caveats(result: Study, sweep: Sweep, comparisons: Iterable[Comparison]) -> list[Caveat]:
    """What speaks against the answers, or limits them, the worst first."""
    found = [*control_caveats(comparisons), *_reach(result), *_missing(sweep)]
    if not sweep.runs and len(result.mixes) > 1:
        found.append(Caveat("not recorded", "What else differed between mixes is not recorded."))
    if result.versus:
        found += twinless(result.arms, result.mixes, result.baseline)
    epochs = sweep.points["epochs"].max()
    if epochs > 1:
        found.append(
            Caveat(
                "epochs",
                f"The corpus was repeated, up to {epochs:.1f} epochs: the law has no term for "
                "that.",
            )
        )
    found += _few_seeds(result)
    if result.fit is None:
        return ranked([*found, *doubts(result.points)])
    found += [*noise_doubts(result.fit, result.lack), *_of_coefficients(result.fit)]
    sizes = result.fit.points.groupby("mix", sort=False)["size"].nunique()
    three = [str(mix) for mix in sizes.index if sizes[mix] == 3]
    if three:
        of = "" if len(three) == len(sizes) else f" of {listed(three)}"
        found.append(
            Caveat(
                "three sizes",
                f"Three sizes{of} cannot show whether the law holds in N: a curve goes through "
                "three values exactly.",
                ("Beyond three sizes the law in N is an assumption.",),
            )
        )
    return ranked(found)


def _few_seeds(result: Study) -> Iterable[Caveat]:
    """That no mix and size has two runs at one budget."""
    if len(repeated(result.points)):
        return
    runs = result.points.groupby(["mix", "size"])["run"].nunique()
    seeds = "One seed a size" if runs.max() == 1 else "No budget has two seeds"
    noise = (
        "nothing shows how much runs scatter"
        if result.fit is None
        else "run-to-run noise is told from lack of fit by the law alone"
    )
    yield Caveat("one seed", f"{seeds}: {noise}.")


def _reach(result: Study) -> Iterable[Caveat]:
    """Quoted savings that include 1, and those beyond what was measured."""
    includes, beyond = [], {}
    for mix in result.versus:
        quoted = _quoted(result, mix)
        if quoted is None:
            continue
        low, high, saving = quoted
        if low <= 1 <= high:
            includes.append(mix)
        if saving is not None and not saving.in_range:
            beyond[mix] = max(saving.N_beyond, saving.D_beyond, saving.D_mix_beyond)
    if includes:
        yield Caveat(
            "includes 1",
            f"The interval of {listed(includes)} includes 1: no saving has been shown.",
        )
    if beyond:
        yield Caveat(
            "extrapolated",
            f"The saving quoted for {listed(beyond)} lies outside what was measured, by ×"
            f"{count(max(beyond.values()), 3)} at most.",
        )


def _quoted(result: Study, mix: str) -> tuple[float, float, Saving | None] | None:
    """The interval that the answer for a mix judges, and its saving where a law gave it."""
    own = [one for one in result.savings if one.mix == mix]
    measured = _by_seeds(result, mix)
    if measured is not None and (result.law_fails or not own):
        return float(measured["low"]), float(measured["high"]), None
    if own and not result.law_fails:
        saving = headline(own)[0]
        return saving.low, saving.high, saving
    return None


def _missing(sweep: Sweep) -> Iterable[Caveat]:
    """Runs that have not finished, what was left out, records that are not whole."""
    open_runs = [run for run in sweep.runs if run.state != "done"]
    if open_runs:
        told = f"{len(open_runs)} of {len(sweep.runs)} runs have not finished."
        yield Caveat("unfinished", told)
    yield from left_out(sweep.dropped)
    if sweep.incomplete:
        runs = {what.partition(":")[0] for what in sweep.incomplete}
        yield Caveat(
            "incomplete",
            f"Records of {len(runs)} run(s) are incomplete.",
            tuple(f"Incomplete: {what}." for what in sweep.incomplete),
        )


def twinless(arms: Arms, mixes: list[str], baseline: str) -> Iterable[Caveat]:
    """Arms that nothing can be compared with, in one caveat."""
    if told := arms.without_twin(mixes, baseline):
        names = [sentence.partition(" has no ")[0] for sentence in told]
        yield Caveat("no twin", f"{listed(names)}: not compared, without a twin.", tuple(told))


def _of_coefficients(fit: Fit) -> Iterable[Caveat]:
    told = {mix: one.caveats for mix, one in fit.mixes.items() if one.caveats}
    if told:
        yield Caveat(
            "coefficients",
            f"Coefficients of {listed(told)} are not to be read one by one.",
            (
                *(f"{mix}: {'; '.join(clauses)}." for mix, clauses in told.items()),
                "Savings inside the measured range rest on fitted losses.",
            ),
        )


def noise_doubts(fit: Fit, lack: LackOfFit | None) -> list[Caveat]:
    """What speaks against the points, the fit and its intervals, as far as the points show it, the
    worst first."""
    found = list(doubts(fit.points))
    off = np.abs(np.expm1(fit.residual))
    told = {}
    for mix, one in fit.mixes.items():
        if one.largest_error > NOTABLE_ERROR:
            own = (fit.points["mix"] == mix).to_numpy()
            N, D, loss = fit.points[["N", "D", "loss"]].iloc[int(np.argmax(own * off))]
            told[mix] = (
                f"{mix}: {percent(one.rms)} (rms), noise included, and most, by "
                f"{percent(one.largest_error)}, off the point at N = {N:.4g}, D = {D:.4g} with "
                f"loss {loss:.4g}."
            )
    if told:
        worst = max(fit.mixes[mix].largest_error for mix in told)
        words = "law of {} lies off its" if len(told) == 1 else "laws of {} lie off their"
        found.append(
            Caveat(
                "off its points",
                f"The {words.format(listed(told))} own points by up to {percent(worst)}.",
                tuple(told.values()),
            )
        )
    if lack is not None and lack.found:
        found.append(
            Caveat(
                "lack of fit",
                _lack_words(lack),
                (
                    _scatter_words(lack),
                    "Intervals of the fit hold the misfit along D and not that along N: "
                    "extrapolations are not to be read, and the savings without a fit are the "
                    "measurement.",
                ),
            )
        )
    if again := int(fit.points.duplicated(["run", "D"]).sum()):
        found.append(
            Caveat(
                "repeated D",
                f"{again} point(s) repeat the D of another point of their run: intervals are too "
                "narrow.",
                (
                    "Repeated trainings need a column seed or run, or their scatter counts as "
                    "noise of points.",
                ),
            )
        )
    return ranked(found)


def _lack_words(lack: LackOfFit) -> str:
    return (
        f"The law does not describe these points (lack of fit, F = {lack.F:.3g}, p = {lack.p:.2g})."
    )


def _scatter_words(lack: LackOfFit) -> str:
    return (
        "Residuals of seed means would need a seed-to-seed scatter of "
        f"{percent(lack.leftover, '.2f')}, and it is {percent(lack.scatter, '.2f')}."
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
    yield from map(str, noise_doubts(found.fit, None))
    if found.lack is not None and found.lack.found:
        yield (
            f"{_lack_words(found.lack)} {_scatter_words(found.lack)} Intervals hold the misfit "
            "along D and not that along N: predictions beyond the range are not to be read, and in "
            "range the law may be off by more than its interval says."
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
