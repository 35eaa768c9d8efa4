"""What a paper prints of each table: at most seven columns, and beneath what changes a reading.

Columns that a paper has no room for stand in the CSV or in JSON, as a comment in the LaTeX says.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from analysis.foreign import literal
from analysis.report.latex import DASH, MOST_COLUMNS, Column, Paper, latex
from analysis.stats.fit import MODEL_WORDS
from analysis.stats.predict import Predictions
from analysis.stats.rays import COEFFICIENTS
from analysis.stats.savings import ROUNDING
from analysis.study.answer import caveats, prediction_doubts
from analysis.study.caveats import KINDS
from analysis.study.findings import Findings
from analysis.study.law_answer import LawAnswer
from analysis.study.prediction_answer import PredictionAnswer
from analysis.study.savings_answer import SavingsAnswer
from models.format import count, percent, probability, with_interval

# Columns that hold names from elsewhere.
NAMES = ("mix", "over", "baseline", "reference")
HEADS = {
    "alpha": "α", "beta": "β", "gamma": "γ", "kappa": "κ", "n": "Points", "rms": "rms residual",
    "ratio": "D/N", "N_star": "N*", "D_star": "D*", "C (FLOP)": "C", "exponent of N in C": "a",
    "exponent of D in C": "b", "p_above_1": "P(> 1)", "starts_agreeing": "Starts agreeing",
    "unreachable": "Never reached", "tokens_mix": "D of the mix", "reference": "Over",
    "reference_saving": "Saving of the other", "beyond": "Range", "run": "One more run",
    "aicc": "AICc", "bic": "BIC", "parameters": "Coefficients", "condition": "Condition number",
    "lack of fit (rms of seed means)": "Lack of fit", "rms residual": "rms residual", "G_N": "G_N",
    "G_D": "G_D",
}  # fmt: skip

CONTROL = {"confounds", "not recorded", "unequal N", "FLOPs", "no twin"}
OF_FITS = {
    "lack of fit", "off its points", "three sizes", "repeated D", "coefficients", "extrapolated",
}  # fmt: skip
OF_SAVINGS = {"includes 1", "extrapolated"}
LAW = frozenset(KINDS) - CONTROL - OF_SAVINGS
POINTS = LAW - OF_FITS
FREE = frozenset(KINDS) - OF_FITS
# A dash in all of their cells is news.
ESTIMATES = ("E", "A", "alpha", "B", "beta", "gamma", "K", "kappa")
# What these rest on changes a reading too.
IN_FULL = ("lack of fit", "coefficients")


@dataclass(frozen=True)
class Table:
    """What a paper prints of one table: as text, with what `_values` knows in braces.

    `parts` are captions and columns, as they are named or begin; the first seven that are there
    stand. Without columns all stand, in turn beside the first `keys`. `kinds` of caveats are notes
    beneath, and `dash` says what a dash is. Columns after the first `ours` have names from
    elsewhere, such as sizes.
    """

    parts: Sequence[tuple[str, str]]
    notes: str = ""
    kinds: Collection[str] = ()
    keys: int = 1
    ours: int = MOST_COLUMNS
    dash: str = "not measured, or not recorded"


_LAW = "L = E + A/N^α + B/D^β"
_RESULTS = Table(
    [("Held-out {measure} by mix and size, at each size's largest common budget.", "")],
    "{seeds} Bold: the lowest at each size.", POINTS, ours=1,
    dash="not trained at this size, or not to the common budget",
)  # fmt: skip
REPORT = {
    "results_bpb": _RESULTS,
    "results_loss": _RESULTS,
    "domains": Table(
        [("Held-out bits per byte by domain, at each size's largest common budget.", "")],
        "Means of seeds.", POINTS, keys=2, ours=2, dash="no such domain",
    ),
    "probes": Table(
        [("Accuracy of in-context probes by length, at each size's largest common budget.", "")],
        "Intervals: 95 % (Wilson) over examples; how seeds scatter is not in them.", keys=4,
        dash="not probed at this length",
    ),
    "classes": Table(
        [("Held-out loss by class of token, and token savings over {baseline}.", "")],
        "Difference: nats per token of the class; its part is of all tokens, and parts of a "
        "partition add up to the overall difference. Savings are free of any fit.", POINTS,
        keys=3, ours=8, dash="too few seeds or budgets",
    ),
    "ladder": Table(
        [("Shapes and parameters N (without the input embedding) by mix and size.", "")],
        ours=1, dash="not recorded, or not trained at this size",
    ),
    "fits": Table(
        [(f"Coefficients of {_LAW}, L in nats per token.", "mix|points|E|A|alpha|B|beta"),
         (f"How well {_LAW} fits, and the exponents of the compute-optimal N* ∝ C^a, D* ∝ C^b.",
          "mix|runs|exponent of N in C|exponent of D in C|rms residual|largest error|"
          "R² of log loss")],
        "{intervals} {fit}", LAW,
        dash="unidentified; an end with ≤ or ≥ is the edge of what is searched",
    ),
    "diagnostics": Table(
        [("What certifies the optimum of each fit, and the scatter of seeds.", "")],
        "{fit} Lack of fit: rms of the residuals of seed means.", LAW,
    ),
    "holdout": Table(
        [("Signed errors of loss on points that the fit was not shown.", "")],
        "Error: predicted over measured loss, less 1. Line: straight in logs through the two "
        "nearest points kept. A mix that cannot be fitted without these points is not shown.",
        dash="fewer than two points were kept",
    ),
    "savings": Table(
        [("Token savings over {baseline}.",
          "mix|baseline|N|D of|token savings|P(> 1)|range"),
         ("Where the token savings over {baseline} stand.",
          "mix|N|D of the mix|target loss|never reached|time savings")],
        "Saving: the baseline's tokens over the mix's, at equal N and loss; "
        "an interval that includes 1 shows none. Range: by how much the place lies above (×) or "
        "below (÷) what was measured. Never reached (second table): share of resamples in which "
        "one of the two never reaches the target loss. {intervals} {fit} {times}", frozenset(KINDS),
    ),
    "interactions": Table(
        [("What other treatments do to token savings: the ratio of two.",
          "mix|over|N|D|saving|ratio|range")],
        "A ratio of 1: the treatment leaves the saving alone. {intervals} {fit}", frozenset(KINDS),
    ),
    "interactions_free": Table(
        [("What other treatments do to token savings, from seeds and without a fit.", "")],
        "Ratios of two savings. {seeds}", FREE,
    ),
    "fit_free": Table(
        [("Token savings without a fit, at the lowest loss that both mixes reached.", "")],
        "Read between measured budgets. {seeds}", FREE,
    ),
    "points": Table(
        [("Held-out loss of all points.", "mix|size|N|D|seeds|loss (nats/token)|BPB")],
        "Means of seeds, ± one standard deviation where there are two or more.", POINTS,
    ),
    "checklist": Table([("What a reviewer asks, answered from the records.", "")]),
    "published": Table(
        [("Ours beside the numbers published for Olmo Hybrid (arXiv:2604.03444v4).", "")],
        "Its BPB is of task suites, ours of held-out text: the order of mixes compares, the values "
        "do not.",
    ),
}  # fmt: skip
TABLES = tuple(REPORT)
"""Names of the tables of a report, in their order."""

# What the commands fit, savings and predict answer.
LAWS = Table(
    [("Coefficients of {law}, L in nats per token.",
      "mix|E|A|alpha|K|kappa|B|beta|gamma|ratio|N|D|n|rms"),
     ("How well {law} fits.",
      "mix|runs|rms|largest_error|condition|starts_agreeing|objective")],
    "Estimates without intervals.", dash="unidentified",
)  # fmt: skip
MODELS = Table(
    [("Which coefficients the mixes share.",
      "model|parameters|rms|aicc|weight|likelihood_ratio|p"),
     ("BIC of models that share coefficients.", "model|objective|bic|at_bound")],
    dash="not tested, or none",
)  # fmt: skip
EXPONENTS = Table(
    [("Compute-optimal N* = G_N C^a and D* = G_D C^b.", "mix|G_N|a|G_D|b")],
)
ISOFLOP = Table(
    [("The best size at each budget C.", "mix|C|n|N|loss|N_star|D_star"),
     ("Tokens at each minimum, and how well its curve fits.", "mix|C|D|inside|rms|largest_error")],
    "N and loss: at the minimum of the curve, which enters the power laws where it lies inside the "
    "sizes measured. N* and D*: of the power laws.", dash="the curve has no minimum",
)  # fmt: skip
ENVELOPE = Table(
    [("The best size at each budget, by the lower envelope.",
      "mix|N|C|D|loss|budgets|budgets_used")],
    "A row for each stretch of budgets with one best size; used: budgets that the power laws go "
    "through.",
)  # fmt: skip
SAVINGS = Table(
    [("Savings of {kind} over {baseline} ({where}).", "mix|baseline|N|D|saving|p_above_1|range"),
     ("Where the savings over {baseline} stand.", "mix|N|D|target_loss|tokens_mix|unreachable")],
    "Saving: what the baseline needs over what the mix needs for the same loss; an interval that "
    "includes 1 shows none. Range: × above and ÷ below what was measured. Never reached (second "
    "table): share of resamples in which one of the two never reaches the target loss. {intervals} "
    "{fit}",
)  # fmt: skip
RATIOS = Table(
    [("What other treatments do to savings: the ratio of two.",
      "mix|reference|N|D|saving|saving_ratio|beyond")],
    "A ratio of 1: the treatment leaves the saving alone. {intervals}",
)  # fmt: skip
LOSSES = Table(
    [("Predicted losses, in nats per token.", "mix|N|D|loss|run|range")],
    "{intervals} One more run: its luck included. {fit}",
)  # fmt: skip
OPTIMA = Table(
    [("Compute-optimal N*, D* and loss at C FLOPs.", "mix|C|N_star|D_star|loss|run|range")],
    LOSSES.notes,
)  # fmt: skip


def report_latex(kind: str, found: Findings, cells: pd.DataFrame) -> str:
    """A table of a report, by its name among them, as LaTeX. Names in `found` are marked."""
    table, result = REPORT[kind], found.study
    cells = cells.map(str)
    if kind == "fits" and result.fit is not None:
        unknown = [_unidentified(one.caveats, one.at_bound) for one in result.fit.mixes.values()]
        for key in set().union(*unknown):
            cells[key] = [
                re.sub(r"^[^\[]*(?= \[)|^[^\[]*$", DASH, cell) if key in own else cell
                for own, cell in zip(unknown, cells[key], strict=True)
            ]
    seeds = found.points.groupby(["mix", "size"])["seed"].nunique().max()
    level = percent(result.level, "g")
    known = {
        "measure": "bits per byte" if kind.endswith("bpb") else "loss in nats per token",
        "baseline": _over(result.versus.values()),
        "seeds": "One seed: no interval." if seeds < 2 else
        f"Means of seeds; intervals: {level} by Student's t from the scatter of seeds, pooled.",
        "intervals": f"Intervals: {level}, {result.draws.words}." if result.draws else "",
        "fit": f"Fit: {result.fit.words}." if result.fit else "",
        "times": "" if not result.time_savings else
        f"Time savings: token savings times the ratio of seconds per token, {found.measured_on}.",
    }  # fmt: skip
    against = [
        str(one) if one.kind in IN_FULL
        else (" ".join(one.more) if one.kind in ("confounds", "not recorded") else "") or one.text
        for one in caveats(result, found.sweep, found.comparisons)
        if one.kind in table.kinds
    ]  # fmt: skip
    return latex(_papers(table, kind, cells, known, against, f"{kind}.csv"))


def law_latex(answer: LawAnswer) -> str:
    """Fitted laws as LaTeX."""
    exponents = [{"mix": mix} | one for mix, one in answer.document.get("mixes", {}).items()]
    if "models" in answer.document:
        return latex(_papers(MODELS, "models", _cells(answer.rows), {}, answer.notes))
    if answer.parabolas is not None or answer.envelopes is not None:
        by, label = (ENVELOPE, "envelope") if answer.parabolas is None else (ISOFLOP, "isoflop")
        return latex(
            [
                *_papers(EXPONENTS, "exponents", _cells(exponents), {}, answer.notes),
                *_papers(by, label, _cells(answer.rows), {}),
            ]
        )
    law = _LAW if "gamma" not in answer.rows[0] else "L = E + (A/N^α + B/D^β)^γ"
    if answer.rays is not None:
        factor, exponent = COEFFICIENTS[answer.axis]
        law = f"L = E + {factor}/{answer.axis}^{HEADS[exponent]}"
    return latex(_papers(LAWS, "fit", _cells(answer.rows), {"law": law}, answer.notes))


def savings_latex(answer: SavingsAnswer) -> str:
    """Savings, and ratios of them where another treatment was varied, as LaTeX."""
    draws, first = answer.draws, answer.savings[0]
    known = {
        "baseline": _over(map(literal, answer.versus.values())),
        "kind": {"flops": "training FLOPs", "time": "training time"}.get(first.kind, first.kind),
        "where": ", ".join(dict.fromkeys(one.where for one in answer.savings)),
        "intervals": f"Intervals: {percent(draws.level, 'g')}, {draws.words}.",
        "fit": f"Fit: {answer.fit.words}.",
    }
    cells = _cells(_interval(row, "saving") for row in answer.rows)
    cells["p_above_1"] = [
        probability(one.p_above_1, draws.resamples).removeprefix("= ") for one in answer.savings
    ]
    if cells["baseline"].nunique() == 1:
        cells = cells.drop(columns="baseline")
    papers = _papers(SAVINGS, "savings", cells, known, answer.notes)
    if answer.interactions:
        ratios = _cells([_interval(row, "saving_ratio") for row in answer.interaction_rows])
        papers += _papers(RATIOS, "interactions", ratios, known)
    return latex(papers)


def predictions_latex(found: Predictions) -> str:
    """Predicted losses, and optima of budgets, as LaTeX."""
    known = {
        "intervals": f"Intervals: {percent(found.draws.level, 'g')}, {found.draws.words}.",
        "fit": f"Fit: {found.fit.words}.",
    }
    rows = [_interval(row, "loss") | {"run": row["loss"]} for row in PredictionAnswer(found).rows]
    notes = list(prediction_doubts(found))
    papers = []
    for table, label, own in (
        (LOSSES, "predictions", [row for row in rows if math.isnan(row["C"])]),
        (OPTIMA, "optima", [row for row in rows if not math.isnan(row["C"])]),
    ):
        papers += _papers(table, label, _cells(own), known, notes) if own else []
    return latex(papers)


def other_latex(
    table: pd.DataFrame, caption: str = "", label: str = "table", notes: Sequence[str] = ()
) -> str:
    """Any table of cells as LaTeX: the columns that tell its rows apart, up to four, beside as many
    of the others as there is room for, again and again."""
    keys = next((k for k in range(1, 5) if not table.iloc[:, :k].duplicated().any()), 1)
    told = (caption or "Results") + ("" if caption.endswith((".", "?")) else ".")
    return latex(_papers(Table([(told, "")], keys=keys), label, table.map(str), {}, notes))


def number(value: Any, digits: int = 4) -> str:
    """A cell of a value: so many digits, words as they are, a dash for what is not known."""
    if str(value) in ("True", "False"):
        return "yes" if value else "no"
    if isinstance(value, float):
        return DASH if math.isnan(value) else f"{value:.{digits}g}".replace("inf", "∞")
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or DASH
    return str(value)


def _papers(
    table: Table,
    label: str,
    cells: pd.DataFrame,
    known: Mapping[str, str],
    against: Iterable[str] = (),
    file: str = "",
) -> list[Paper]:
    """The parts of a table, notes beneath the first; `file` holds the columns that none shows."""
    named = [str(key) for key in cells if key in ESTIMATES or (cells[key] != DASH).any()]
    parts = []
    for caption, wanted in table.parts:
        if wanted:
            keys = [key for one in wanted.split("|") if (key := _begins(named, one))]
            parts.append((caption, keys[:MOST_COLUMNS]))
        else:
            parts += [(caption, keys) for keys in _in_turn([*map(str, cells.columns)], table.keys)]
    left = [key for key in cells.columns if not any(key in keys for _, keys in parts)]
    comments = [f"Not shown: {', '.join(left)}; see {file}."] if left and file else []
    made = []
    for part, (caption, keys) in enumerate(parts):
        columns = [
            Column(key if place >= table.ours else _head(key), list(cells[key]), key in NAMES)
            for place, key in enumerate(keys)
        ]
        notes = [table.notes.format_map(known).strip(), *against] if not part else []
        if any(cell.startswith(DASH) for one in columns for cell in one.cells):
            notes.insert(0, f"–: {table.dash}.")
        tag = f"{label}-part{part + 1}" if part else label
        made.append(
            Paper(columns, caption.format_map(known), tag, [*filter(None, notes)],
                  comments if not part else ())
        )  # fmt: skip
    return made


def _in_turn(columns: Sequence[str], keys: int) -> list[list[str]]:
    """The first `keys` columns beside as many of the others as there is room for, in turn."""
    others = columns[keys:]
    parts = max(math.ceil(len(others) / (MOST_COLUMNS - keys)), 1)
    each = max(math.ceil(len(others) / parts), 1)
    return [
        [*columns[:keys], *others[start : start + each]]
        for start in range(0, max(len(others), 1), each)
    ]


def _begins(columns: Iterable[str], wanted: str) -> str | None:
    """The column of a name, or that begins with it before a level or another name."""
    begins = f"{wanted} " if wanted.endswith(" of") else f"{wanted} ["
    return next((key for key in columns if key == wanted or key.startswith(begins)), None)


def _head(key: str) -> str:
    words = key.replace("_", " ")
    return HEADS.get(key, words if len(words) == 1 else words[:1].upper() + words[1:])


def _over(baselines: Iterable[str]) -> str:
    names = list(dict.fromkeys(baselines))
    return f"`{names[0]}`" if len(names) == 1 else "the baseline of each mix"


def _unidentified(caveats_of: Iterable[str], at_bound: Iterable[str]) -> set[str]:
    """Coefficients that the points do not identify, which a paper does not print."""
    return {*at_bound, *("E" for told in caveats_of if told.startswith("E is unidentified"))}


def _interval(row: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A row whose value and interval are called by a name."""
    ends = {f"{name}_{end}": row[end] for end in ("low", "high")}
    return {**row, name: row.get("value", row.get(name)), **ends}


FORMS: dict[str, Callable[[Any], str]] = {
    **dict.fromkeys(("N", "D", "N_star", "D_star", "tokens_mix"), count),
    "rms": lambda share: percent(share, ".3f"),
    "largest_error": lambda share: percent(share, ".2f"),
    "starts_agreeing": lambda share: percent(share, ".0f"),
    "unreachable": lambda share: percent(share, ".1f"),
    "beyond": lambda factor: "in range" if factor <= ROUNDING else f"extrapolated ×{factor:.3g}",
    "target_loss": lambda loss: f"{loss:.4f}",
    "model": lambda model: MODEL_WORDS.get(model, model).replace("alpha", "α").replace("beta", "β"),
    **dict.fromkeys(NAMES, literal),
}


def _cells(rows: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """An answer's rows as cells, values with their intervals, from and to as one."""
    made = []
    for row in rows:
        cells = {}
        unknown = _unidentified(row.get("caveats", ()), row.get("at_bound", ()))
        for key, value in row.items():
            low, high = row.get(f"{key}_low", math.nan), row.get(f"{key}_high", math.nan)
            form = FORMS.get(key, number)
            if key.endswith("_from"):
                key = key.removesuffix("_from")
                form = FORMS.get(key, number)
                ends = [form(value), form(row[f"{key}_to"])]
                cells[key] = " to ".join(dict.fromkeys(ends))
            elif math.isnan(low):
                cells[key] = DASH if key in unknown and "model" not in row else form(value)
            elif form is count:
                cells[key] = f"{count(value, 3)} [{count(low, 3)}, {count(high, 3)}]"
            else:
                cells[key] = with_interval(value, low, high)
        made.append(cells)
    return pd.DataFrame(made)
