"""What the front door hands back: a small table with caveats, a DataFrame and a figure."""

from __future__ import annotations

import abc
import html
import math
import numbers
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ablations.records import visible
from models.format import count, flop_count, write_table

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from analysis.stats.interaction import Interaction
    from analysis.stats.interval import Interval
    from analysis.study.law_answer import LawAnswer
    from analysis.study.load import Sweep
    from analysis.study.prediction_answer import PredictionAnswer
    from analysis.study.savings_answer import SavingsAnswer

FORMS = {
    "chinchilla": "L = E + A/N^alpha + B/D^beta",
    "gamma": "L = E + (A/N^alpha + B/D^beta)^gamma",
    "ray": "L = E + K/C^kappa",
    "N": "L = E + A/N^alpha",
    "D": "L = E + B/D^beta",
    "isoflop": "L = c0 + c1 log N + c2 (log N)^2 at one C; N* = G_N C^a, D* = G_D C^b",
    "envelope": "least L of all training curves at each C; N* = G_N C^a, D* = G_D C^b",
}
"""Laws as formulas: L in nats per token, N in parameters, D in tokens, C in FLOPs."""


LEAST_COUNTED = 10_000
"""A number from here on is written as a count: 12.5k."""
BOLD = re.compile(r"\A\*\*(.*)\*\*\Z", re.DOTALL)
"""A cell in bold, as tables of a report have it."""

KIND_WORDS = {"tokens": "token", "parameters": "parameter", "flops": "FLOP", "time": "time"}


class Result(abc.ABC):
    """An answer: `.table`, `.caveats`, `.how`, `.document` and `.plot()`.

    It shows itself as a small table with its caveats.
    """

    title: str
    """What the small table is of."""
    table: pd.DataFrame
    """Every number at full precision, as the command's format=csv has it."""
    remarks: tuple[str, ...] = ()
    """What else it says, a sentence each."""
    caveats: list[str]
    """Sentences to keep in mind before a number is repeated to anyone."""
    how: dict[str, Any]
    """How it was made: law, loss, method, seeds, resamples, level, whatever it has of these."""
    document: dict[str, Any]
    """What the command prints as format=json, before infinities become words."""

    @abc.abstractmethod
    def cells(self) -> pd.DataFrame:
        """The small table: text, with the digits that matter."""

    @abc.abstractmethod
    def plot(self) -> Figure:
        """A matplotlib figure, for a notebook to show or for `.savefig("figure.pdf")`."""

    def _made(self) -> str:
        return "; ".join(f"{name}: {_words(value)}" for name, value in self.how.items())

    def __repr__(self) -> str:
        table = _text(self.cells())
        remarks = map(visible, self.remarks)
        caveats = [f"- {visible(one)}" for one in self.caveats]
        return "\n".join([self.title, table, *remarks, *caveats, self._made()])

    def _repr_html_(self) -> str:
        caveats = "".join(f"<li>{_html(one)}</li>" for one in self.caveats)
        return (
            f"<p><b>{_html(self.title)}</b></p>"
            + _page(self.cells())
            + "".join(f"<p>{_html(one)}</p>" for one in self.remarks)
            + (f"<ul>{caveats}</ul>" if caveats else "")
            + f"<p><small>{_html(self._made())}</small></p>"
        )


class Shown:
    """A DataFrame for people, as text and in a notebook as HTML. Made by `show`."""

    def __init__(self, cells: pd.DataFrame) -> None:
        self._cells = cells

    def __repr__(self) -> str:
        return _text(self._cells.map(lambda cell: BOLD.sub(r"\1", cell)))

    def _repr_html_(self) -> str:
        return _page(self._cells, lambda cell: BOLD.sub(r"<b>\1</b>", cell))


def show(table: pd.DataFrame) -> Shown:
    """A DataFrame of this package, or one of your own, as it reads best.

    Numbers have four digits, those of 10,000 and more a unit (1.279B), FLOPs (columns `C` and
    `flops`) a power of ten (2.34e18); NaN is a dash, and a cell in two stars is bold. An index with
    a name becomes the first column.
    """
    named = [name for name in table.index.names if name is not None]
    return Shown(_cells(table.reset_index() if named else table))


class Laws(Result):
    """Scaling laws of every mix. Made by `Ladder.fit`."""

    def __init__(self, answer: LawAnswer, sweep: Sweep) -> None:
        import pandas as pd

        from analysis.study.source import notes_of

        self._answer = answer
        document = answer.document
        self.document = document
        self.table = pd.DataFrame(answer.rows)
        self.title = f"Laws of {sweep.name}: {FORMS[document['law']]}"
        self.caveats = [*notes_of(sweep), *answer.notes]
        self.how = {"law": document["law"], "loss": document["loss"]}
        optional = ("delta", "model", "fixed")
        self.how |= {name: document[name] for name in optional if document.get(name)}
        self.how |= {"seeds": _seeds(sweep.points)} | answer.made

    def cells(self) -> pd.DataFrame:
        """A row per mix (isoflop: per budget, envelope: per best run, model=all: per model), four
        digits a number."""
        left_out = ["objective", "gradient_norm", "starts", "starts_agreeing", "condition"]
        shown = self.table.drop(columns=[*left_out, "at_bound", "caveats"], errors="ignore")
        return _cells(shown)

    def plot(self) -> Figure:
        """Observed against fitted loss with residuals; of a law along one axis, loss against it; of
        isoflop and envelope, the curves with their optima and N* against FLOPs."""
        from analysis.report import figures
        from analysis.stats.losses import DELTA

        answer = self._answer
        if answer.fit is not None:
            return figures.fit_with_residuals(answer.fit)[0]
        assert answer.points is not None
        if answer.rays is not None:
            return figures.loss_along(answer.axis, answer.points, answer.rays)[0]
        if answer.envelopes is not None:
            return figures.envelope(answer.envelopes, answer.draws, answer.level)[0]
        assert answer.parabolas is not None
        document = self.document
        return figures.isoflop(
            answer.points, answer.parabolas, answer.draws, answer.level,
            document["loss"] or "squares", document["delta"] or DELTA, document["minimum"],
        )[0]  # fmt: skip


class Savings(Result):
    """Savings of every mix over a baseline, with intervals. Made by `Ladder.savings`.

    `interactions` is a DataFrame of what other treatments do to savings, a row per ratio of two;
    empty where the mix is all that was varied.
    """

    def __init__(
        self,
        answer: SavingsAnswer,
        sweep: Sweep,
        baseline: str,
        kind: str,
        loss: str,
        model: str,
    ) -> None:
        import pandas as pd

        from analysis.study.answer import control_caveats
        from analysis.study.compare import compare
        from analysis.study.source import notes_of

        self._answer, self._kind = answer, kind
        self.interactions = pd.DataFrame(answer.interaction_rows)
        self.remarks = tuple(
            f"{by.treatment.words} {by.level} in place of {by.reference_level} multiplies the "
            f"saving of {answer.arms.arm(by.arm).mix} by {_with_ends(one.value, one.interval)} at "
            f"{_place_words(one)}."
            for by, one in answer.interactions
        )
        self.document = answer.document
        self.table = pd.DataFrame(answer.rows)
        self.title = f"Savings of {kind} over {baseline} in {sweep.name}"
        # Points alone say nothing of what else differed.
        comparisons = [compare(sweep, own, mix) for mix, own in answer.versus.items() if sweep.runs]
        self.caveats = [*map(str, control_caveats(comparisons)), *notes_of(sweep), *answer.notes]
        self.how = {
            "law": FORMS["chinchilla"],
            "model": model,
            "loss": loss,
            "fit": answer.fit.words,
            "method": answer.draws.method,
            "paired": answer.draws.paired,
            "seeds": _seeds(sweep.points),
            "resamples": answer.draws.resamples,
            "seed": answer.draws.seed,
            "level": answer.draws.level,
        }

    def cells(self) -> pd.DataFrame:
        """A row per mix and place: N and D of the baseline, the saving with its interval."""
        import pandas as pd

        from models.format import percent, probability, with_interval

        interval = f"{KIND_WORDS[self._kind]} savings [{percent(self.how['level'], 'g')}]"
        return pd.DataFrame(
            [
                {
                    "mix": one.mix,
                    "N": count(one.N),
                    "D": "∞" if math.isinf(one.D) else count(one.D),
                    "loss": f"{one.target_loss:.4f}",
                    interval: with_interval(one.value, one.low, one.high),
                    "P(> 1)": probability(one.p_above_1, self.how["resamples"]).removeprefix("= "),
                    "range": one.range_words,
                }
                for one in self._answer.savings
            ]
        )

    def plot(self) -> Figure:
        """Token savings against N, with what no law says; others as one interval per row."""
        from analysis.report import figures
        from analysis.stats.savings import fit_free

        answer = self._answer
        if all((one.kind, one.where) == ("tokens", "matched") for one in answer.savings):
            versus = answer.versus
            free = fit_free(answer.fit.points, versus, answer.draws.level)
            return figures.savings_against_size(
                answer.fit, answer.draws, free, versus, law_fails=answer.law_fails
            )[0]
        return figures.savings_by_place(list(answer.savings))[0]


class Predictions(Result):
    """Losses of every mix where nobody has trained. Made by `Ladder.predict`."""

    def __init__(self, answer: PredictionAnswer, sweep: Sweep, loss: str, model: str) -> None:
        import pandas as pd

        from analysis.study.source import notes_of

        made = answer.predictions
        self._predictions = made.rows
        self.document = answer.document
        self.table = pd.DataFrame(answer.rows)
        self.title = f"Loss predicted from {sweep.name}, nats per token"
        self.caveats = [*notes_of(sweep), *answer.notes]
        self.how = {
            "law": FORMS["chinchilla"],
            "model": model,
            "loss": loss,
            "fit": made.fit.words,
            "method": made.draws.method,
            "seeds": _seeds(sweep.points),
            "resamples": made.draws.resamples,
            "seed": made.draws.seed,
            "level": made.draws.level,
        }

    def cells(self) -> pd.DataFrame:
        """A row per place and mix: the loss with the interval of the law, and of one more run."""
        import pandas as pd

        from models.format import percent

        level = f"{percent(self.how['level'], 'g')}"
        return pd.DataFrame(
            [
                {
                    "mix": one.mix,
                    "C": flop_count(one.optimum.C) if one.optimum else "–",
                    "N": count(one.N),
                    "D": count(one.D),
                    f"loss [{level}]": _with_ends(one.loss, one.interval),
                    f"one more run [{level}]": _with_ends(one.loss, one.run_interval),
                    "range": one.range_words,
                }
                for one in self._predictions
            ]
        )

    def plot(self) -> Figure:
        """A row per place and mix: interval of the law (thick) and of one more run (thin)."""
        from analysis.report import figures

        return figures.predictions_by_place(list(self._predictions))[0]


def _place_words(one: Interaction) -> str:
    return f"N = {count(one.N)}, D = {count(one.D)}" + ("" if one.in_range else ", extrapolated")


def _with_ends(value: float, ends: Interval) -> str:
    from models.format import with_interval

    return with_interval(value, ends.low, ends.high)


def _seeds(points: pd.DataFrame) -> list[Any] | str:
    if points.attrs.get("seeds_assumed"):
        return "not recorded"
    return sorted(set(points["seed"].tolist()), key=str)


def _cells(table: pd.DataFrame) -> pd.DataFrame:
    """The cells of a table as text."""
    import pandas as pd

    names = [*map(str, table.columns)]
    forms = [FORM_OF.get(name, _number) for name in names]
    columns = [
        [_cell(value, form) for value in table.iloc[:, place].tolist()]
        for place, form in enumerate(forms)
    ]
    return pd.DataFrame(list(zip(*columns, strict=True)), columns=names)


def _number(value: float) -> str:
    return count(value) if abs(value) >= LEAST_COUNTED else _four_digits(value)


def _four_digits(value: float) -> str:
    return f"{value:.4g}" if math.isfinite(value) else count(value)


def _cell(value: Any, form: Callable[[float], str]) -> str:
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        return form(float(value))
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


FORM_OF: dict[str, Callable[[float], str]] = {
    **dict.fromkeys(("C", "flops"), flop_count),
    **dict.fromkeys(("A", "B", "K", "G_N", "G_D"), _four_digits),
    "seed": "{:.0f}".format,
}
"""How numbers of a column are written, where not as `_number` does: FLOPs, coefficients, names."""


def _text(cells: pd.DataFrame) -> str:
    return write_table([*map(str, cells)], cells.astype(str).to_numpy()).rstrip("\n")


def _page(cells: pd.DataFrame, form: Callable[[str], str] = str) -> str:
    head = "".join(f"<th>{_html(name)}</th>" for name in cells.columns)
    body = "".join(
        f"<tr>{''.join(f'<td>{form(_html(cell))}</td>' for cell in row)}</tr>"
        for row in cells.to_numpy()
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _words(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} = {inner:g}" for name, inner in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _html(value: Any) -> str:
    return html.escape(visible(str(value)))
