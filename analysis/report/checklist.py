"""What a reviewer asks of a comparison, answered from the records: yes, no, or not recorded."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pandas as pd

from analysis.study.answer import NOTABLE_FLOPS_PERCENT
from analysis.study.compare import EQUAL_N_PERCENT
from analysis.study.findings import Findings
from analysis.study.training import stability
from models.format import percent

YES, NO, UNKNOWN = "yes", "**no**", "not recorded"
# Share of starting points that must end in the optimum for it to be called found.
AGREEING = 0.1


def checklist(found: Findings) -> pd.DataFrame:
    """Columns question, answer, evidence."""
    rows = [*_control(found), *_statistics(found), *_records(found)]
    return pd.DataFrame(rows, columns=["question", "answer", "evidence"])


def _verdict(good: bool | None) -> str:
    return UNKNOWN if good is None else YES if good else NO


def _control(found: Findings) -> Iterator[tuple[str, str, str]]:
    pairs = [one.pairs for one in found.comparisons if len(one.pairs)]
    table = pd.concat(pairs, ignore_index=True) if pairs else pd.DataFrame()
    for question, column, limit, unit in (
        (f"Parameters equal within {EQUAL_N_PERCENT:g} %?", "N_percent", EQUAL_N_PERCENT, "N"),
        (f"FLOPs per token equal within {NOTABLE_FLOPS_PERCENT:g} %?", "flops_percent",
         NOTABLE_FLOPS_PERCENT, "FLOPs per token"),
    ):  # fmt: skip
        values = table[column].dropna() if len(table) else pd.Series(dtype=float)
        if values.empty:
            yield question, UNKNOWN, "no pair of runs records it"
            continue
        worst = float(values.iloc[int(values.abs().argmax())])
        told = f"{unit}: {worst:+.2f} % at most, over {len(values)} pairs of runs"
        yield question, _verdict(abs(worst) <= limit), told
    for question, column, words in (
        ("Equal tokens at every point compared?", "equal_tokens", "budgets"),
        ("The same batches in the same order?", "equal_batches", "hashes of the tokens read"),
    ):
        values = table[column].dropna() if len(table) else pd.Series(dtype=bool)
        if values.empty:
            yield question, UNKNOWN, f"no {words} to compare"
        else:
            equal = int(values.astype(bool).sum())
            told = f"{words} equal in {equal} of {len(values)} pairs"
            yield question, _verdict(equal == len(values)), told
    recipes = [run.spec["recipe"] for run in found.sweep.runs if run.spec.get("recipe")]
    question = "Learning rate, batch and tokens by one rule, none by hand?"
    if recipes:
        hand = sorted({str(told) for recipe in recipes for told in recipe.get("by_hand") or ()})
        yield question, _verdict(not hand), "; ".join(hand) or "by the ladder's rules everywhere"
    else:
        yield question, UNKNOWN, "points carry no specs"
    yield _tuned_mixes(found)
    confounds = sum(len(one.confounds) for one in found.comparisons)
    if found.comparisons:
        told = f"{confounds} confound(s), listed under What differed" if confounds else "none found"
        yield "Nothing else differed?", _verdict(confounds == 0), told
    else:
        yield "Nothing else differed?", UNKNOWN, "points carry no specs"


def _tuned_mixes(found: Findings) -> tuple[str, str, str]:
    """Which mixes were tuned, over what, with how many runs each."""
    question = "Was every mix tuned as well?"
    names = list(dict.fromkeys(found.points["mix"]))
    if found.tuned is not None:
        told = {mix: one.runs for (mix, _), one in found.tuned.excess.items()}
        runs = ", ".join(f"{mix} {n} runs" for mix, n in told.items())
        return question, _verdict(set(names) <= set(told)), f"{found.tuned.setting}: {runs}"
    taken = {
        run.mix: (run.spec.get("protocol") or {}).get("tuned") or [] for run in found.sweep.runs
    }
    if not taken:
        return question, UNKNOWN, "points carry no specs"
    if not any(taken.values()):
        return question, NO, "one learning rate by rule for all; tuned=SWEEP says what it does"
    runs = "; ".join(
        f"{mix}: " + ", ".join(f"{one['setting']} {one['runs']} runs" for one in own)
        for mix, own in taken.items()
    )
    return question, _verdict(all(taken.values())), runs


def _statistics(found: Findings) -> Iterator[tuple[str, str, str]]:
    result, points = found.study, found.points
    # Runs at one budget, as a CSV may name runs and no seeds.
    at_budget = points.groupby(["mix", "size", "D"])["run"].nunique()
    seeds = at_budget.groupby(["mix", "size"]).max()
    told = "–".join(map(str, sorted({int(seeds.min()), int(seeds.max())}))) + " a mix and size"
    yield "Several seeds everywhere?", _verdict(bool(seeds.min() > 1)), told
    sizes = points["size"].nunique()
    yield "Four sizes or more?", _verdict(sizes > 3), f"{sizes} size(s); three cannot test the law"
    if result.lack is None:
        why = "no law is fitted" if result.fit is None else "no repeated seeds"
        yield "Does the law describe the points?", UNKNOWN, why
    else:
        told = f"lack of fit F = {result.lack.F:.2f}, p = {result.lack.p:.2g}"
        yield "Does the law describe the points?", _verdict(not result.law_fails), told
    if result.fit is not None:
        fits = result.fit.mixes.values()
        agree = min(one.starts_agreeing for one in fits)
        told = f"at least {percent(agree, '.0f')} of starts agree, for every mix"
        yield "Is the optimum of the fit certain?", _verdict(agree >= AGREEING), told
        condition = max(one.condition for one in fits)
        told = "; ".join(f"{one.mix}: {', '.join(one.caveats)}" for one in fits if one.caveats)
        question = "Can coefficients be read one by one?"
        yield question, _verdict(not told), told or f"condition number {condition:.0f} at most"
        yield _unseen(found.holdout)
    if result.savings:
        beyond = [one for one in result.savings if not one.in_range]
        told = f"{len(result.savings) - len(beyond)} of {len(result.savings)} savings in range"
        yield "Are the savings inside what was measured?", _verdict(not beyond), told
    if result.draws is not None:
        told = result.draws.words
        whole = result.draws.method != "case"
        yield "Do intervals treat a run's points as one?", _verdict(whole), told


def _unseen(holdout: pd.DataFrame) -> tuple[str, str, str]:
    """The worst signed error on what was left out of a fit, by what that was."""
    worst = [
        f"{label}: {100 * own['error'].iloc[int(own['error'].abs().argmax())]:+.1f} % at most"
        for label, own in holdout.groupby("left_out", sort=False)
    ]
    told = "; ".join(worst) or "too few sizes and budgets to leave any out"
    return "Was the law tried on points that it had not seen?", _verdict(bool(worst)), told


def _records(found: Findings) -> Iterator[tuple[str, str, str]]:
    points, runs = found.points, found.sweep.runs
    epochs = points["epochs"].max()
    if math.isnan(epochs):
        yield "Was no text read twice?", UNKNOWN, "epochs are not recorded"
    else:
        yield "Was no text read twice?", _verdict(bool(epochs <= 1)), f"{epochs:.2f} epochs at most"
    if not runs:
        return
    done = len(runs) - len(found.open_runs)
    told = f"{done} of {len(runs)} finished; {len(found.sweep.dropped)} left out"
    good = done == len(runs) and not found.sweep.dropped
    yield "Are all runs finished, and all points kept?", _verdict(good), told
    if found.metrics["grad_norm"].notna().any():
        table = stability(found.metrics)
        worst, skipped = table["spike_percent"].max(), table["skipped_percent"].max()
        question = "Was training stable (under 1 % of either)?"
        told = f"spikes up to {worst:.2f} % of logged steps, skipped up to {skipped:.2f} %"
        if math.isnan(worst):
            yield question, UNKNOWN, "too few logged steps to tell a spike"
        else:
            yield question, _verdict(max(worst, skipped) < 1), told
    revisions = found.facts["revision"]
    clean = len(revisions) == 1 and not revisions[0].endswith(("with changes", "not recorded"))
    yield "One revision of the code, without changes?", _verdict(clean), ", ".join(revisions)
