"""What a paper prints of each table: at most seven columns, what they rest on in notes beneath.

Where a table has more, a second one holds the rest, or the CSV does, as a comment in the LaTeX
says. An interval and what changes how a number is read stay with the number.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from analysis.foreign import literal
from analysis.report.latex import DASH, MOST_COLUMNS, Column, Paper, latex, name, tex, words
from analysis.stats.fit import MODEL_WORDS, MixFit
from analysis.stats.interval import Interval
from analysis.stats.predict import Prediction, Predictions
from analysis.stats.rays import COEFFICIENTS
from analysis.stats.savings import Saving
from analysis.study.answer import control_caveats, noise_doubts, prediction_doubts
from analysis.study.findings import Findings
from analysis.study.law_answer import LawAnswer
from analysis.study.savings_answer import SavingsAnswer
from models.format import count, percent, probability, with_interval

# Columns that hold names from elsewhere.
NAMES = ("mix", "over", "baseline", "reference")
HEADS = {
    "mix": "Mix", "over": "Over", "baseline": "Baseline", "size": "Size", "N": "$N$", "D": "$D$",
    "C": "$C$", "E": "$E$", "A": "$A$", "B": "$B$", "K": "$K$", "alpha": r"$\alpha$",
    "beta": r"$\beta$", "gamma": r"$\gamma$", "kappa": r"$\kappa$", "ratio": "$D/N$",
    "n": "Points", "points": "Points", "runs": "Runs", "rms": "rms residual",
    "rms residual": "rms residual", "largest error": "Largest error",
    "largest_error": "Largest error", "R² of log loss": "$R^{2}$ of log loss",
    "exponent of N in C": "$a$", "gradient norm": "Gradient norm",
    "gradient_norm": "Gradient norm", "condition": "Condition number",
    "condition number": "Condition number", "starts": "Starts", "agree": "Starts agreeing",
    "starts_agreeing": "Starts agreeing", "objective": "Objective", "at_bound": "At a bound",
    "D of the mix": "$D$ of the mix", "target loss": "Target loss", "target_loss": "Target loss",
    "never reached": "Never reached", "range": "Range", "loss": "Loss",
    "loss (nats/token)": "Loss (nats/token)", "× Chinchilla": r"$\times$ Chinchilla",
    "C (FLOP)": "$C$ (FLOP)", "d_model": r"$d_{\mathrm{model}}$",
}  # fmt: skip


def report_latex(kind: str, found: Findings, cells: pd.DataFrame) -> str:
    """A table of a report, by its name among them, as LaTeX. Names in `found` are marked."""
    papers = _BY_NAME[kind](found, cells)
    return latex(papers)


def law_latex(answer: LawAnswer) -> str:
    """Fitted laws as LaTeX."""
    return latex(_laws(answer))


def savings_latex(answer: SavingsAnswer) -> str:
    """Savings, and ratios of them where another treatment was varied, as LaTeX."""
    return latex(_savings_answer(answer))


def predictions_latex(found: Predictions) -> str:
    """Predicted losses, and optima of budgets, as LaTeX."""
    return latex(_predictions(found))


def other_latex(
    table: pd.DataFrame, caption: str = "", label: str = "table", notes: Sequence[str] = ()
) -> str:
    """Any table of cells as LaTeX: the columns that tell its rows apart, up to four, beside as many
    of the others as there is room for, again and again."""
    keys = next((k for k in range(1, 5) if not table.iloc[:, :k].duplicated().any()), 1)
    told = tex(caption or "Results") + ("" if caption.endswith((".", "?")) else ".")
    return latex(_split(table, keys, told, label, [tex(note) for note in notes]))


# Parts.


def _paper(
    table: pd.DataFrame,
    caption: str,
    label: str,
    notes: Iterable[str] = (),
    marks: Mapping[tuple[int, str], Sequence[str]] | None = None,
    heads: Mapping[str, str] | None = None,
    dash: str = "",
    comments: Sequence[str] = (),
    named: Sequence[str] = NAMES,
) -> Paper:
    """A table by the names of its columns. `dash` says what a dash in it means."""
    places = {str(key): place for place, key in enumerate(table.columns)}
    told = {
        (row, places[key]): own
        for (row, key), own in (marks or {}).items()
        if key in places and own
    }
    rows = table.map(str).to_numpy()
    bare = any(
        cell.startswith(DASH) and (row, place) not in told
        for row, line in enumerate(rows)
        for place, cell in enumerate(line)
    )
    known = HEADS | dict(heads or {})
    columns = [
        Column(known.get(key) or _head(key), list(rows[:, place]), key in named)
        for key, place in places.items()
    ]
    told_dash = [f"--: {dash}."] if bare and dash else []
    return Paper(columns, caption, f"tab:{label}", [*told_dash, *notes], told, list(comments))


def _split(
    table: pd.DataFrame,
    keys: int,
    caption: str,
    label: str,
    notes: Sequence[str] = (),
    heads: Mapping[str, str] | None = None,
    dash: str = "not known",
    comments: Sequence[str] = (),
    named: Sequence[str] = NAMES,
) -> list[Paper]:
    """The first `keys` columns beside as many of the others as there is room for, in turn."""
    others = list(range(keys, table.shape[1]))
    parts = max(math.ceil(len(others) / (MOST_COLUMNS - keys)), 1)
    each = math.ceil(len(others) / parts)
    made = []
    for part in range(parts):
        chosen = others[part * each : (part + 1) * each]
        cells = table.iloc[:, [*range(keys), *chosen]]
        more = f", part {part + 1} of {parts}" if parts > 1 else ""
        told = caption.removesuffix(".") + more + "." if more else caption
        tag = f"{label}-part{part + 1}" if part else label
        made.append(
            _paper(cells, told, tag, notes, heads=heads, dash=dash, comments=comments, named=named)
        )
    return made


def _head(key: str) -> str:
    words_of = key.replace("_", " ")
    return tex(words_of[:1].upper() + words_of[1:])


def _beyond(words_of: str) -> str:
    """By how much something is extrapolated, infinitely with its sign."""
    return words_of.replace("×inf", "×∞")


def _level(level: float) -> str:
    return tex(percent(level, "g"))


def _sentence(clause: str) -> str:
    return clause[:1].upper() + clause[1:] + "."


# What numbers rest on.


def _interval_note(found: Findings) -> list[str]:
    result = found.study
    if result.draws is None:
        return ["No intervals were made."]
    return [f"Intervals: {_level(result.level)}, {tex(result.draws.words)}."]


def _law_notes(found: Findings) -> list[str]:
    """What speaks against laws and all that is read off them."""
    result = found.study
    notes = []
    if result.fit is not None:
        notes.append(f"Fit: {tex(result.fit.words, greek=True)}.")
        notes += [tex(told.text) for told in noise_doubts(result.fit, result.lack)]
        if result.fit.points["size"].nunique() == 3:
            notes.append(
                "Three sizes cannot show whether the law holds in $N$; beyond them it is an "
                "assumption."
            )
        if all(one.seed_dof == 0 for one in result.noise):
            notes.append(
                "One seed a size: run-to-run noise is told from lack of fit by the law alone."
            )
    return notes + _record_notes(found)


def _record_notes(found: Findings) -> list[str]:
    notes = []
    if found.open_runs:
        notes.append(f"{len(found.open_runs)} of {len(found.sweep.runs)} runs have not finished.")
    if found.sweep.dropped:
        notes.append(f"{len(found.sweep.dropped)} point(s) or run(s) were left out.")
    epochs = found.points["epochs"].max()
    if epochs > 1:
        notes.append(f"The corpus was repeated, up to {epochs:.1f} epochs.")
    return notes


def _control_notes(found: Findings) -> list[str]:
    """What differed beside the mix: a saving is not shown without it."""
    if not found.comparisons:
        return ["What else differed between mixes is not recorded."] if found.study.versus else []
    caveats = control_caveats(found.comparisons)
    return [tex(told) for one in caveats for told in one.more or (one.text,)]


def _seed_note(found: Findings, means: str = "Means of seeds") -> str:
    seeds = found.points.groupby(["mix", "size"])["seed"].nunique()
    if seeds.max() < 2:
        return "One seed: no interval."
    few = " Sizes of one seed have the others' scatter." if seeds.min() < 2 else ""
    return (
        f"{means}; intervals: {_level(found.study.level)} by Student's $t$ from the scatter of "
        f"seeds, pooled.{few}"
    )


def _coefficient_marks(
    rows: Sequence[MixFit], cells: pd.DataFrame
) -> tuple[pd.DataFrame, dict[tuple[int, str], list[str]]]:
    """Cells with a dash for what is unidentified, and notes that say why."""
    cells = cells.copy()
    marks: dict[tuple[int, str], list[str]] = {}
    for row, one in enumerate(rows):
        for clause in one.caveats:
            note = _sentence(tex(clause, greek=True))
            unidentified: list[str] = []
            if clause.startswith("E is unidentified"):
                unidentified, note = ["E"], tex(_sentence(clause)).replace("E is", "$E$ is", 1)
            elif "bound" in clause:
                unidentified = [key for key in one.at_bound if key != "E"]
            for key in unidentified:
                if key in cells:
                    _, bracket, ends = str(cells.loc[row, key]).partition("[")
                    cells.loc[row, key] = f"{DASH} [{ends}" if bracket else DASH
                    marks.setdefault((row, key), []).append(note)
            if not unidentified:
                marks.setdefault((row, "mix"), []).append(
                    f"{note.removesuffix('.')}: not to be read one by one."
                )
    return cells, marks


# The tables of a report.


def _results(measure: str) -> Callable[[Findings, pd.DataFrame], list[Paper]]:
    def made(found: Findings, cells: pd.DataFrame) -> list[Paper]:
        what = "bits per byte" if measure == "bpb" else "loss in nats per token"
        return _split(
            cells, 1,
            f"Held-out {what} by mix and size, at each size's largest common budget.",
            f"results_{measure}",
            [f"{_seed_note(found)} Bold: the lowest at each size.", *_record_notes(found)],
            heads={str(size): words(str(size)) for size in found.sizes},
            dash="not trained at this size, or not to the common budget",
        )  # fmt: skip

    return made


def _domains(found: Findings, cells: pd.DataFrame) -> list[Paper]:
    return _split(
        cells, 2, "Held-out bits per byte by domain, at each size's largest common budget.",
        "domains", ["Means of seeds.", *_record_notes(found)],
        heads={str(key): words(str(key)) for key in cells.columns[2:]}, dash="no such domain",
    )  # fmt: skip


def _probes(_found: Findings, cells: pd.DataFrame) -> list[Paper]:
    return _split(
        cells, 4, "Accuracy of in-context probes by length, at each size's largest common budget.",
        "probes",
        [r"Intervals: 95\,\% (Wilson) over examples; how seeds scatter is not in them."],
        heads={"probe": "Probe", "chance": "Chance"}, dash="not probed at this length",
    )  # fmt: skip


def _ladder(found: Findings, cells: pd.DataFrame) -> list[Paper]:
    cells = cells.rename(columns={"": "shape"})
    cells["shape"] = [re.sub(r"^N of (.+)$", r"N of `\1`", cell) for cell in cells["shape"]]
    return _split(
        cells, 1, "Shapes and parameters (without the input embedding) by mix and size.", "ladder",
        heads={"shape": ""} | {str(size): words(str(size)) for size in found.sizes},
        dash="not recorded, or not trained at this size",
        comments=["N of a mix is the number of its parameters without the input embedding."],
    )  # fmt: skip


def _fits(found: Findings, cells: pd.DataFrame) -> list[Paper]:
    fit = found.study.fit
    assert fit is not None
    rows = list(fit.mixes.values())
    measured = ["–".join(count(end, 3) for end in one.N_range) for one in rows]
    own = cells[["mix", "E", "A", "alpha", "B", "beta"]].copy()
    own.insert(1, "N measured", measured)
    own, marks = _coefficient_marks(rows, own)
    notes = [*_interval_note(found)]
    if any(sign in " ".join(map(str, line)) for line in own.to_numpy() for sign in "≤≥"):
        notes.append(
            r"An end with $\leq$ or $\geq$ is the edge of what is searched: nothing in the points "
            "ends there."
        )
    law = r"$L = E + A/N^{\alpha} + B/D^{\beta}$"
    rest = cells[
        ["mix", "points", "runs", "exponent of N in C", "rms residual", "largest error",
         "R² of log loss"]
    ]  # fmt: skip
    return [
        _paper(
            own, f"Coefficients of {law}, $L$ in nats per token.", "fits",
            [*notes, *_law_notes(found)], marks, {"N measured": "$N$ measured"},
            comments=["Exponents of N and D in C, and how well each law fits, follow in a table "
                      "of their own; full precision is in fits.csv."],
        ),
        _paper(
            rest, f"How well {law} fits, and the exponent $a$ of the compute-optimal "
            r"$N^{*} \propto C^{a}$.", "fits-quality",
            [*_interval_note(found), r"$D^{*} \propto C^{b}$ with $b = 1 - a$.",
             *_unread(rows)],
        ),
    ]  # fmt: skip


def _unread(rows: Sequence[MixFit]) -> list[str]:
    """Mixes whose exponents are not to be read, as their coefficients are not."""
    mixes = [name(one.mix, True) for one in rows if one.caveats]
    told = f"The exponent of {', '.join(mixes)} is not to be read: see the notes on coefficients."
    return [told] if mixes else []


def _diagnostics(found: Findings, cells: pd.DataFrame) -> list[Paper]:
    cells = cells.copy()
    marks: dict[tuple[int, str], list[str]] = {}
    sd, lack = "seed-to-seed sd", "lack of fit (rms of seed means)"
    for row, cell in enumerate(cells[sd]):
        if "not measured" in str(cell):
            cells.loc[row, sd] = DASH
            marks[row, sd] = ["Not measured: one seed."]
        else:
            cells.loc[row, sd] = str(cell).replace(" repeated run(s)", "")
    heads = {sd: "Seed-to-seed sd (repeated runs)", lack: "Lack of fit"}
    notes = ["Lack of fit: rms of the residuals of seed means."]
    result = found.study
    if result.lack is None:
        notes.append("No test for lack of fit without repeated seeds.")
    else:
        lacking = "the law does not describe the points" if result.law_fails else "not found"
        notes.append(
            f"Test for lack of fit: $F = {result.lack.F:.3g}$, $p = {_power(result.lack.p)}$ "
            f"({lacking})."
        )
    caption = "What certifies the optimum of each fit, and the scatter of seeds."
    return [_paper(cells, caption, "diagnostics", notes, marks, heads)]


def _power(value: float) -> str:
    return tex(f"{value:.2g}").strip("$")


def _holdout(_found: Findings, cells: pd.DataFrame) -> list[Paper]:
    heads = {
        "left out": "Left out", "means of seeds": "Means of seeds", "law: mean error": "Law: mean",
        "law: from, to": "from, to", "straight line: mean error": "Line: mean",
        "straight line: from, to": "from, to",
    }  # fmt: skip
    return [
        _paper(
            cells, "Signed errors of loss on points that the fit was not shown.", "holdout",
            ["Error: predicted over measured loss, less 1. Line: straight in logs through the two "
             "nearest points kept. A mix that cannot be fitted without these points is not shown."],
            heads=heads, dash="fewer than two points were kept",
        )
    ]  # fmt: skip


EXTRAPOLATED = "Extrapolated: outside what was measured (how far: second table)."
NO_VERDICT = (
    "No verdict: the law does not describe the points (lack of fit); the savings without a fit "
    "are the measurement."
)
NEVER = "In part of the resamples one of the two never reaches the loss (how often: second table)."


def _verdict(low: float, high: float) -> str:
    if not (math.isfinite(low) or math.isfinite(high)):
        return DASH
    return "none shown" if low <= 1 <= high else "saves" if low > 1 else "costs"


def _saving_marks(
    savings: Sequence[Saving], value: str, law_fails: bool
) -> dict[tuple[int, str], list[str]]:
    marks: dict[tuple[int, str], list[str]] = {}
    for row, one in enumerate(savings):
        if not one.in_range:
            marks.setdefault((row, value), []).append(EXTRAPOLATED)
        if one.unreachable > 0:
            marks.setdefault((row, value), []).append(NEVER)
        if law_fails:
            marks[row, "verdict"] = [NO_VERDICT]
    return marks


def _savings(found: Findings, cells: pd.DataFrame) -> list[Paper]:
    result = found.study
    savings = list(result.savings)
    value = next(str(key) for key in cells.columns if str(key).startswith("token savings"))
    tokens = next(
        str(key) for key in cells.columns if str(key).startswith("D of ") and key != "D of the mix"
    )
    verdicts = [DASH if result.law_fails else _verdict(one.low, one.high) for one in savings]
    several = "baseline" in cells
    own = cells.assign(verdict=verdicts)[
        ["mix", *(["baseline"] if several else ["size"]), "N", tokens, value, "P(> 1)", "verdict"]
    ]
    baseline = "the baseline" if several else name(savings[0].baseline)
    level = _level(result.level)
    heads = {
        tokens: "$D$", value: f"Saving [{level}]", "P(> 1)": "$P(> 1)$", "verdict": "Verdict",
    }  # fmt: skip
    time = [str(key) for key in cells.columns if str(key).startswith("time savings")]
    rest = cells.assign(range=[_beyond(told) for told in cells["range"]])
    rest = rest[["mix", "N", "D of the mix", "target loss", "never reached", "range", *time]]
    heads |= dict.fromkeys(time, f"Time saving [{level}]")
    notes = [
        f"Saving: $D$ of {baseline} over $D$ of the mix at equal $N$ and loss; above 1 the mix "
        "needs fewer tokens. None shown: the interval includes 1.",
        *_interval_note(found), *_law_notes(found), *_control_notes(found),
    ]  # fmt: skip
    timed = [
        "Time saving: token saving times the ratio of seconds per token, "
        f"{tex(found.measured_on)}; its interval holds no scatter of the timing."
    ]
    return [
        _paper(
            own, f"Token savings over {baseline}, with intervals.", "savings", notes,
            _saving_marks(savings, value, result.law_fails), heads, dash="not recorded",
            comments=["Tokens of the mix, target losses, ranges and time follow in a second "
                      "table; full precision is in savings.csv."],
        ),
        _paper(
            rest, f"Where the token savings over {baseline} stand.", "savings-range",
            [r"Range: $\times$ above and $\div$ below what was measured. Never reached: share of "
             "resamples in which one of the two never reaches the target loss.",
             *(timed if time else ())],
            heads=heads, dash="not measured",
        ),
    ]  # fmt: skip


def _interactions(found: Findings, cells: pd.DataFrame) -> list[Paper]:
    level = _level(found.study.level)
    ratio = next(str(key) for key in cells.columns if str(key).startswith("ratio"))
    both = [
        f"{one} / {other}"
        for one, other in zip(cells["saving"], cells["saving of the other"], strict=True)
    ]
    own = cells.assign(savings=both)[["mix", "over", "N", "D", "savings", ratio, "range"]]
    return [
        _paper(
            own, "What other treatments do to token savings: the ratio of two.", "interactions",
            ["Savings: of the mix, and of what it is over, each against its own baseline. A ratio "
             "of 1: the treatment leaves the saving alone.",
             *_interval_note(found), *_law_notes(found), *_control_notes(found)],
            heads={"savings": "Savings", ratio: f"Ratio [{level}]"}, dash="not known",
        )
    ]  # fmt: skip


def _free(
    cells: pd.DataFrame, value: str, head: str
) -> tuple[pd.DataFrame, dict[tuple[int, str], list[str]], dict[str, str], list[str]]:
    """Savings or ratios without a fit, with signs for bounds and notes for what has no interval."""
    signs = {"at least": "≥", "at most": "≤"}
    own = cells.copy()
    for key in (value, "one seed at a time"):
        for told, sign in signs.items():
            own[key] = [str(cell).replace(told, sign) for cell in own[key]]
    marks = {
        (row, value): ["No interval: one seed, or a bound."]
        for row, cell in enumerate(own[value])
        if "[" not in cell
    }
    heads = {value: head, "one seed at a time": "One seed at a time"}
    notes = []
    if len(marks) < len(own):
        notes = ["Means of seeds; intervals by Student's $t$ from seeds, their scatter pooled."]
    if any("≥" in cell or "≤" in cell for cell in own["one seed at a time"]):
        notes.append(
            r"$\geq$, $\leq$: bounds, as a mix was below the target loss at its first budget."
        )
    return own, marks, heads, notes


def _fit_free(found: Findings, cells: pd.DataFrame) -> list[Paper]:
    value = str(cells.columns[4])
    level = _level(found.study.level)
    own, marks, heads, notes = _free(cells, value, f"Saving [{level}]")
    return [
        _paper(
            own, "Token savings without a fit, at the lowest loss that both mixes reached.",
            "fit_free",
            ["Read between measured budgets.", *notes, *_record_notes(found),
             *_control_notes(found)],
            marks, heads,
        )
    ]  # fmt: skip


def _interactions_free(found: Findings, cells: pd.DataFrame) -> list[Paper]:
    value = str(cells.columns[4])
    own, marks, heads, notes = _free(cells, value, f"Ratio [{_level(found.study.level)}]")
    return [
        _paper(
            own, "What other treatments do to token savings, from seeds and without a fit.",
            "interactions_free",
            ["Ratios of two savings.", *notes, *_record_notes(found), *_control_notes(found)],
            marks, heads,
        )
    ]  # fmt: skip


def _points(found: Findings, cells: pd.DataFrame) -> list[Paper]:
    own = cells[["mix", "size", "N", "D", "seeds", "loss (nats/token)", "BPB"]].reset_index(
        drop=True
    )
    marks = {}
    for row, cell in enumerate(own["seeds"]):
        number, _, more = str(cell).partition(" (")
        if more:
            marks[row, "seeds"] = [_sentence(more.removesuffix(")"))]
            own.loc[row, "seeds"] = number
    what = "Held-out loss and bits per byte"
    if (own["BPB"] == DASH).all():
        own, what = own.drop(columns="BPB"), "Held-out loss"
    spread = any("±" in str(cell) for cell in own["loss (nats/token)"])
    notes = [r"Means of seeds, $\pm$ one standard deviation." if spread else "One seed."]
    return [
        _paper(
            own, f"{what} of all points.", "points",
            [*notes, *_record_notes(found)], marks, {"seeds": "Seeds"}, dash="not recorded",
            comments=["Multiples of Chinchilla's tokens, C and epochs are in points.csv."],
        )
    ]  # fmt: skip


def _checklist(_found: Findings, cells: pd.DataFrame) -> list[Paper]:
    heads = {"question": "Question", "answer": "Answer", "evidence": "Evidence"}
    return [_paper(cells, "What a reviewer asks, answered from the records.", "checklist",
                   heads=heads)]  # fmt: skip


def _published(_found: Findings, cells: pd.DataFrame) -> list[Paper]:
    heads = {
        "N, paper": "$N$, paper", "BPB, held-out text": "BPB, held-out text",
        "BPB, paper's suites": "BPB, paper's suites",
    }  # fmt: skip
    return [
        _paper(
            cells, "Ours beside the numbers published for Olmo Hybrid (arXiv:2604.03444v4).",
            "published",
            ["Its BPB is of task suites, ours of held-out text: the order of mixes compares, the "
             "values do not."],
            heads=heads, dash="not published, or not measured",
        )
    ]  # fmt: skip


_BY_NAME: dict[str, Callable[[Findings, pd.DataFrame], list[Paper]]] = {
    "results_bpb": _results("bpb"),
    "results_loss": _results("loss"),
    "domains": _domains,
    "probes": _probes,
    "ladder": _ladder,
    "fits": _fits,
    "diagnostics": _diagnostics,
    "holdout": _holdout,
    "savings": _savings,
    "interactions": _interactions,
    "interactions_free": _interactions_free,
    "fit_free": _fit_free,
    "points": _points,
    "checklist": _checklist,
    "published": _published,
}
TABLES = tuple(_BY_NAME)
"""Names of the tables of a report, in their order."""


# What the commands fit, savings and predict answer.


def number(value: Any, digits: int = 4) -> str:
    """A cell of a value: so many digits, words as they are, a dash for what is not known."""
    if str(value) in ("True", "False"):
        return "yes" if value else "no"
    if isinstance(value, float):
        return DASH if math.isnan(value) else f"{value:.{digits}g}".replace("inf", "∞")
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or DASH
    return str(value)


def _between(row: Mapping[str, Any], key: str) -> str:
    ends = (row[f"{key}_from"], row[f"{key}_to"])
    told = [count(end, 3) if key == "D" else number(end, 3 if key == "C" else 4) for end in ends]
    return " to ".join(dict.fromkeys(told))


def _around(value: float, low: float, high: float) -> str:
    """A count with its interval."""
    told = count(value, 3)
    return told if math.isnan(low) else f"{told} [{count(low, 3)}, {count(high, 3)}]"


def _with_interval(value: float, low: float, high: float) -> str:
    return number(value) if math.isnan(low) else with_interval(value, low, high)


_SHARES = {"rms": ".3f", "largest_error": ".2f", "starts_agreeing": ".0f"}


def _frame(rows: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Rows as cells, names in them marked."""
    return pd.DataFrame(
        [
            {key: literal(told) if key in NAMES else told for key, told in row.items()}
            for row in rows
        ]
    )


def _rows(rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> pd.DataFrame:
    """Chosen columns of an answer's rows as cells."""
    return _frame({key: _cell(key, row[key]) for key in columns if key in row} for row in rows)


def _cell(key: str, value: Any) -> str:
    if key in ("N", "D"):
        return count(value)
    if key in _SHARES:
        return percent(value, _SHARES[key])
    return number(value)


def _notes(notes: Iterable[str]) -> list[str]:
    return [tex(note, greek=False) for note in notes]


def _laws(answer: LawAnswer) -> list[Paper]:
    if "models" in answer.document:
        return _models(answer)
    if answer.parabolas is not None:
        return [_exponents(answer), *_isoflop(answer)]
    if answer.envelopes is not None:
        return [_exponents(answer), _envelope(answer)]
    rows = answer.rows
    if answer.fit is not None:
        law = r"$L = E + A/N^{\alpha} + B/D^{\beta}$"
        names = [key for key in ("E", "A", "alpha", "B", "beta", "gamma") if key in rows[0]]
        if "gamma" in names:
            law = r"$L = E + (A/N^{\alpha} + B/D^{\beta})^{\gamma}$"
        own = _rows(rows, ["mix", *(["n"] if len(names) < MOST_COLUMNS - 1 else []), *names])
        own, marks = _coefficient_marks(list(answer.fit.mixes.values()), own)
        caveats = {f"{mix}: {one}." for mix, fit in answer.fit.mixes.items() for one in fit.caveats}
        words_of = f"{answer.fit.words}."
        notes = [f"Fit: {tex(words_of, greek=True)}"]
        notes += _notes(told for told in answer.notes if told not in caveats | {words_of})
    else:
        factor, exponent = COEFFICIENTS[answer.axis]
        constant = {"C": "ratio", "N": "D", "D": "N"}[answer.axis]
        law = rf"$L = E + {factor}/{answer.axis}^{{\{exponent}}}$"
        own = _rows(rows, ["mix", "n", "E", factor, exponent, constant, "rms"])
        marks = {}
        notes = _notes(answer.notes)
        for row, one in enumerate(rows):
            for key in {"E", factor, exponent} & set(one["at_bound"]):
                own.loc[row, key] = DASH
                marks[row, key] = [
                    f"Unidentified: {HEADS[key]} ends at the bound of what is searched."
                ]
    certificate = [
        "mix",
        "runs",
        "rms",
        "largest_error",
        "condition",
        "starts_agreeing",
        "objective",
    ]
    return [
        _paper(
            own, f"Coefficients of {law}, $L$ in nats per token.", "fit",
            [*notes, "Estimates without intervals."], marks, dash="not given",
            comments=["How well each law fits follows in a table of its own; format=json has "
                      "gradient norms, starts and bounds."],
        ),
        _paper(
            _rows(rows, certificate), f"How well {law} fits.", "fit-quality",
            ["rms residual: of log loss. Largest error: of loss, relative."], dash="not known",
        ),
    ]  # fmt: skip


def _greek(words_of: str) -> str:
    return words_of.replace("alpha", "α").replace("beta", "β")


def _models(answer: LawAnswer) -> list[Paper]:
    rows = [dict(row) | {"model": _greek(MODEL_WORDS[row["model"]])} for row in answer.rows]
    heads = {
        "model": "Model", "parameters": "Coefficients", "aicc": "AICc", "bic": "BIC",
        "weight": "Weight", "likelihood_ratio": "Likelihood ratio", "p": "$p$",
    }  # fmt: skip
    first = _rows(rows, ["model", "parameters", "rms", "aicc", "weight", "likelihood_ratio", "p"])
    second = _rows(rows, ["model", "objective", "bic", "at_bound"])
    return [
        _paper(
            first, "Which coefficients the mixes share.", "models", _notes(answer.notes),
            heads=heads, dash="not tested", comments=["BIC and bounds follow in a second table."],
        ),
        _paper(second, "BIC of models that share coefficients.", "models-bic", heads=heads,
               dash="none"),
    ]  # fmt: skip


def _exponents(answer: LawAnswer) -> Paper:
    """N* and D* as power laws of C."""
    rows = [
        {
            "mix": mix,
            "G_N": number(one["G_N"]), "a": _with_interval(one["a"], one["a_low"], one["a_high"]),
            "G_D": number(one["G_D"]), "b": _with_interval(one["b"], one["b_low"], one["b_high"]),
        }
        for mix, one in answer.document["mixes"].items()
    ]  # fmt: skip
    heads = {"G_N": "$G_N$", "a": "$a$", "G_D": "$G_D$", "b": "$b$"}
    marks = {
        (row, key): ["No interval: see the notes."]
        for row, one in enumerate(rows)
        for key in ("a", "b")
        if "[" not in one[key]
    }
    return _paper(
        _frame(rows),
        r"Compute-optimal $N^{*} = G_N C^{a}$ and $D^{*} = G_D C^{b}$.", "exponents",
        _notes(told for told in answer.notes if not re.search(r": a from [\d.]+ to ", told)),
        marks, heads,
    )  # fmt: skip


def _isoflop(answer: LawAnswer) -> list[Paper]:
    rows = answer.rows
    first = [
        {
            "mix": row["mix"], "C": number(row["C"]), "sizes": str(row["n"]),
            "N": count(row["N"]), "loss": number(row["loss"]),
            "N_best": _around(row["N_star"], row["N_star_low"], row["N_star_high"]),
            "D_best": _around(row["D_star"], row["D_star_low"], row["D_star_high"]),
        }
        for row in rows
    ]  # fmt: skip
    marks = {
        (row, "N"): ["The minimum lies outside the sizes measured, and enters no power law."]
        for row, one in enumerate(rows)
        if not one["inside"] and not math.isnan(one["N"])
    }
    heads = {"sizes": "Points", "N_best": "$N^{*}$", "D_best": "$D^{*}$"}
    second = _rows(rows, ["mix", "C", "D", "rms", "largest_error"])
    return [
        _paper(
            _frame(first), "The best size at each budget $C$.", "isoflop",
            [r"$N$ and loss: at the minimum of the curve; $N^{*}$, $D^{*}$: of the power laws."],
            marks, heads, dash="the curve has no minimum",
        ),
        _paper(second, "Tokens at each minimum, and how well its curve fits.", "isoflop-quality",
               dash="the curve has no minimum"),
    ]  # fmt: skip


def _envelope(answer: LawAnswer) -> Paper:
    rows = [
        {
            "mix": row["mix"], "N": count(row["N"]),
            **{key: _between(row, key) for key in ("C", "D", "loss")},
            "budgets": str(row["budgets"]), "used": str(row["budgets_used"]),
        }
        for row in answer.rows
    ]  # fmt: skip
    heads = {"budgets": "Budgets", "used": "Used"}
    return _paper(
        _frame(rows), "The best size at each budget, by the lower envelope.",
        "envelope",
        ["A row for each stretch of budgets with one best size; used: budgets that the power laws "
         "go through."],
        heads=heads,
    )  # fmt: skip


_KIND_WORDS = {
    "tokens": "Token savings", "parameters": "Savings of parameters",
    "flops": "Savings of training FLOPs", "time": "Savings of training time",
}  # fmt: skip


def _savings_answer(answer: SavingsAnswer) -> list[Paper]:
    savings, level = answer.savings, _level(answer.draws.level)
    several = len(set(answer.versus.values())) > 1
    rows = [
        {
            "mix": one.mix,
            **({"baseline": one.baseline} if several else {}),
            "N": count(one.N), "D": count(one.D),
            **({} if several else {"target_loss": f"{one.target_loss:.4f}"}),
            "saving": with_interval(one.value, one.low, one.high),
            "P": probability(one.p_above_1, answer.draws.resamples).removeprefix("= "),
            "verdict": DASH if answer.law_fails else _verdict(one.low, one.high),
        }
        for one in savings
    ]  # fmt: skip
    heads = {"saving": f"Saving [{level}]", "P": "$P(> 1)$", "verdict": "Verdict"}
    baseline = "each baseline" if several else name(savings[0].baseline)
    kind = _KIND_WORDS[savings[0].kind]
    where = ", ".join(dict.fromkeys(one.where for one in savings))
    rest = [
        {
            "mix": one.mix, "N": count(one.N), "D": count(one.D),
            "target_loss": f"{one.target_loss:.4f}", "D of the mix": count(one.tokens_mix),
            "never reached": percent(one.unreachable, ".1f"), "range": _beyond(one.range_words),
        }
        for one in savings
    ]  # fmt: skip
    made = [
        _paper(
            _frame(rows), f"{kind} over {baseline} ({tex(where)}).", "savings",
            ["Saving: what the baseline needs over what the mix needs for the same loss. None "
             "shown: the interval includes 1.",
             f"Fit: {tex(answer.fit.words, greek=True)}. Intervals: {level}, "
             f"{tex(answer.draws.words)}.",
             *_notes(answer.notes)],
            _saving_marks(savings, "saving", answer.law_fails), heads, dash="not known",
        ),
        _paper(
            _frame(rest), f"Where the savings over {baseline} stand.",
            "savings-range",
            [r"Range: $\times$ above and $\div$ below what was measured. Never reached: share of "
             "resamples in which one of the two never reaches the target loss."],
            dash="not known",
        ),
    ]  # fmt: skip
    if not answer.interactions:
        return made
    ratios = [
        {
            "mix": one.mix, "over": one.reference, "N": count(one.N), "D": count(one.D),
            "savings": f"{one.saving:.3g} / {one.reference_saving:.3g}",
            "ratio": with_interval(one.value, one.interval.low, one.interval.high),
            "range": "in range" if one.in_range else f"extrapolated ×{one.beyond:.3g}",
        }
        for _, one in answer.interactions
    ]  # fmt: skip
    return [
        *made,
        _paper(
            _frame(ratios), "What other treatments do to savings: the ratio of two.",
            "interactions",
            ["Savings: of the mix, and of what it is over, each against its own baseline. A ratio "
             "of 1: the treatment leaves the saving alone."],
            heads={"savings": "Savings", "ratio": f"Ratio [{level}]"},
        ),
    ]  # fmt: skip


def _predictions(found: Predictions) -> list[Paper]:
    level = _level(found.draws.level)

    def notes(rows: list[Prediction]) -> list[str]:
        return [
            f"Fit: {tex(found.fit.words, greek=True)}. Intervals: {level}, "
            f"{tex(found.draws.words)}; one more run: its luck included.",
            *_notes(prediction_doubts(replace(found, rows=tuple(rows)))),
        ]

    heads = {
        "law": f"Loss [{level}]",
        "run": "One more run",
        "N_best": "$N^{*}$",
        "D_best": "$D^{*}$",
    }
    at = [one for one in found.rows if one.optimum is None]
    best = [one for one in found.rows if one.optimum is not None]
    made = []
    if at:
        rows = [{"mix": one.mix, "N": count(one.N), "D": count(one.D)} | _losses(one) for one in at]
        made.append(
            _paper(_frame(rows), "Predicted losses, in nats per token.",
                   "predictions", notes(at), heads=heads)
        )  # fmt: skip
    if best:
        rows = [_optimum(one) | _losses(one) for one in best]
        made.append(
            _paper(_frame(rows), "Compute-optimal $N^{*}$, $D^{*}$ and loss at $C$ "
                   "FLOPs.", "optima", notes(best), heads=heads)
        )  # fmt: skip
    return made


def _losses(one: Prediction) -> dict[str, str]:
    run: Interval = one.run_interval
    return {
        "law": with_interval(one.loss, one.interval.low, one.interval.high),
        "run": with_interval(one.loss, run.low, run.high).partition(" ")[2],
        "range": _beyond(one.range_words),
    }


def _optimum(one: Prediction) -> dict[str, str]:
    best = one.optimum
    assert best is not None
    return {
        "mix": one.mix,
        "C": number(best.C),
        "N_best": _around(best.N, best.N_interval.low, best.N_interval.high),
        "D_best": _around(best.D, best.D_interval.low, best.D_interval.high),
    }
