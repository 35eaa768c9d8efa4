r"""Tables as a two-column paper prints them: LaTeX of booktabs and array, at most seven columns.

A table of few characters stands in one column, any other over both; where a line is too short for
its cells, they wrap, and where a page is too short for its rows, another table follows.

Text is this project's, with names from elsewhere marked (`analysis.foreign`).
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from ablations.records import visible
from analysis import foreign

MOST_COLUMNS = 7
DASH = "–"

# Characters of 8 pt in a column and over both, in the narrowest common class: twocolumn article.
COLUMN, PAGE, GAP = 44, 92, 2
# Lines of 8 pt on a page, and rows that a table has whatever stands beneath it.
LINES, LEAST_ROWS = 48, 8
# A column up to here does not wrap; a name longer than this may be divided.
NARROW, NAME = 8, 14
# A line may end here.
_BREAK = "\u200b"

_LETTERS = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": "$<$",
    ">": "$>$", "|": r"\textbar{}", "×": r"$\times$", "÷": r"$\div$", "±": r"$\pm$",
    "∞": r"$\infty$", "–": "--", "—": "---", "−": "$-$", "≥": r"$\geq$", "≤": r"$\leq$",
    "→": r"$\to$", "α": r"$\alpha$", "β": r"$\beta$", "γ": r"$\gamma$", "κ": r"$\kappa$",
    "Δ": r"$\Delta$", "∝": r"$\propto$", "·": r"$\cdot$", "…": r"\dots{}", _BREAK: r"\allowbreak{}",
}  # fmt: skip
_LETTERS |= {raised: f"$^{{{place}}}$" for place, raised in enumerate("⁰¹²³⁴⁵⁶⁷⁸⁹")}
# The end of a row would take a bracket or a star after it for its own.
_NAMED = _LETTERS | {"[": "{[}", "*": "{*}", "`": r"\textasciigrave{}"}
_ACCENTS = {
    "\u0300": "`", "\u0301": "'", "\u0302": "^", "\u0303": "~", "\u0308": '"', "\u030a": "r",
    "\u030c": "v", "\u0327": "c",
}  # fmt: skip
_MATHS = {
    "L = E + (A/N^α + B/D^β)^γ": r"$L = E + (A/N^{\alpha} + B/D^{\beta})^{\gamma}$",
    "L = E + A/N^α + B/D^β": r"$L = E + A/N^{\alpha} + B/D^{\beta}$",
    "L = E + A/N^α": r"$L = E + A/N^{\alpha}$", "L = E + B/D^β": r"$L = E + B/D^{\beta}$",
    "L = E + K/C^κ": r"$L = E + K/C^{\kappa}$", "N* = G_N C^a": "$N^{*} = G_N C^{a}$",
    "D* = G_D C^b": "$D^{*} = G_D C^{b}$",
    "N* ∝ C^a": r"$N^{*} \propto C^{a}$", "D* ∝ C^b": r"$D^{*} \propto C^{b}$",
    "G_N": "$G_N$", "G_D": "$G_D$", "N*": "$N^{*}$", "D*": "$D^{*}$", "R²": "$R^{2}$",
    "P(> 1)": "$P(> 1)$", "N D": "$N D$", "D/N": "$D/N$", "d_model": r"$d_{\mathrm{model}}$",
    "×inf": r"$\times\infty$", " %": r"\,\%", " ": "~",
}  # fmt: skip
_FORMULA = re.compile(
    r"(?<![\w.=@^])(?P<sign>[-−+]?)(?P<digits>\d+(?:\.\d+)?)e(?P<power>[-+]?\d+)(?!\w)"
    r"|(?<![\w.)\]=@-])[-−](?P<negative>\d[\d.]*|∞)"
    r"|\b(?P<base>[A-Z])\^(?P<exponent>-?\d+(?:\.\d+)?)"
    rf"|(?<!\w)(?:{'|'.join(map(re.escape, list(_MATHS)[:-2]))})(?!\w)"
    r"|(?<=\d) %|(?<=[≤≥]) (?=\d)|(?<=[\d∞],) (?=[^\[\]]*\])"
    r"|(?:(?<![\w.=-])(?:[CDELN]|[ABFKp](?= = ))(?![\w=-]|\.\d)|^[A-Za-z]$)"
)


@dataclass(frozen=True)
class Column:
    """Cells of one column as text, under a head of text. names: they are set as they are."""

    head: str
    cells: Sequence[str]
    names: bool = False


@dataclass(frozen=True)
class Paper:
    """One table of a paper, all of it text; `comments` are for who pastes the table."""

    columns: Sequence[Column]
    caption: str
    label: str
    notes: Sequence[str] = ()
    comments: Sequence[str] = ()


def tex(text: str) -> str:
    """Our text, with **bold** and `code`, as LaTeX; numbers as a paper has them."""
    parts = []
    for i, part in enumerate(re.split(r"\*\*(.+?)\*\*|`([^`]+)`", text)):
        if part and i % 3:
            parts.append(rf"\textbf{{{tex(part)}}}" if i % 3 == 1 else name(part, True))
        elif part:
            end = 0
            for match in _FORMULA.finditer(part):
                parts += [_escaped(part[end : match.start()]), _maths(match)]
                end = match.end()
            parts.append(_escaped(part[end:]))
    return "".join(parts)


def name(text: str, breaks: bool = False) -> str:
    """A name from elsewhere, in the typewriter's letters and as it is.

    breaks: whether a line may end inside it.
    """
    if text in ("", DASH):
        return "--" if text else ""
    text = foreign.unmarked(text, lambda c: c)
    return rf"\texttt{{{''.join(map(_named, _breakable(text) if breaks else text))}}}"


def latex(papers: Sequence[Paper]) -> str:
    """Tables that compile as they are, where booktabs and array are loaded."""
    head = (
        "% Needs \\usepackage{booktabs,array}; for \\input, or to paste into a two-column paper.\n"
    )
    return head + "\n".join(_one(paper) for paper in papers)


def _maths(match: re.Match[str]) -> str:
    by = match.groupdict()
    if by["digits"]:
        sign = by["sign"].replace("−", "-").removeprefix("+")
        factor = "" if by["digits"] == "1" else rf"{by['digits']} \times "
        return rf"${sign}{factor}10^{{{int(by['power'])}}}$"
    if by["negative"]:
        return f"$-{by['negative']}$".replace("∞", r"\infty")
    if by["base"]:
        return f"${by['base']}^{{{by['exponent']}}}$"
    return _MATHS.get(match[0], f"${match[0]}$")


def _escaped(text: str) -> str:
    text = re.sub(rf"\S{{{NAME},}}", lambda found: _breakable(found[0]), text)
    return foreign.unmarked("".join(map(_letter, text)), _named)


def _letter(character: str) -> str:
    if character in _LETTERS:
        return _LETTERS[character]
    if character.isascii() or ord(character) >= foreign.FIRST_MARK:
        return character if not character.isspace() else " "
    decomposed = unicodedata.normalize("NFD", character)
    base, marks = decomposed[:1], decomposed[1:]
    if base.isascii() and base.isalpha() and marks in _ACCENTS:
        return rf"\{_ACCENTS[marks]}{{{base}}}"
    # What pdfTeX has no letter for is shown as Python escapes it.
    return "".join(_LETTERS.get(c, c) for c in character.encode("unicode_escape").decode("ascii"))


def _named(character: str) -> str:
    return "".join(_NAMED.get(c) or _letter(c) for c in visible(character))


def _breakable(text: str) -> str:
    """What is no word of ours may be divided after signs, and in what is long without them."""
    if re.fullmatch(r"\W*[A-Za-z]*\W*", text) and len(text) < 2 * NAME:
        return text
    return _BREAK.join(re.findall(r"[^\W_]{1,8}[\W_]?|[\W_]", text))


def _one(paper: Paper) -> str:
    assert 0 < len(paper.columns) <= MOST_COLUMNS
    cells = [[_shown(cell) for cell in (one.head, *one.cells)] for one in paper.columns]
    widths = [max(map(len, column)) for column in cells]
    room = PAGE - GAP * (len(widths) - 1)
    shares = list[float](widths)
    if wraps := sum(widths) > room:
        # Every column has room for its longest word, and its part of what is left.
        words = [_longest_word(one, own) for one, own in zip(paper.columns, cells, strict=True)]
        spare, wanted = max(room - sum(words), 0), sum(widths) - sum(words)
        scale = min(room / sum(words), 1)
        shares = [
            scale * word + spare * (width - word) / wanted
            for word, width in zip(words, widths, strict=True)
        ]
    lines = sum(
        max(math.ceil(1.1 * len(column[row]) / share) if wraps else 1
            for column, share in zip(cells, shares, strict=True))
        for row in range(1, len(cells[0]))
    )  # fmt: skip
    star = "*" if sum(widths) + GAP * (len(widths) - 1) > COLUMN else ""
    columns = [
        rf">{{\raggedright\arraybackslash}}p{{{math.floor(1000 * share / PAGE) / 1000}\linewidth}}"
        if wraps and width > NARROW
        else "l" if not i or one.names or _is_text(one) else "r"
        for i, (one, share, width) in enumerate(zip(paper.columns, shares, widths, strict=True))
    ]  # fmt: skip
    beneath = sum(math.ceil(len(note) / (PAGE if star else COLUMN)) for note in paper.notes)
    rows = len(paper.columns[0].cells)
    parts = math.ceil(lines / max(LINES - beneath, LEAST_ROWS))
    each = max(math.ceil(rows / max(parts, 1)), 1)
    return "".join(f"% {_comment(told)}\n" for told in paper.comments) + "\n".join(
        _float(paper, columns, star, range(start, min(start + each, rows)), start // each, parts)
        for start in range(0, max(rows, 1), each)
    )


def _float(
    paper: Paper, columns: Sequence[str], star: str, rows: range, part: int, parts: int
) -> str:
    wraps = any("p{" in one for one in columns)
    lines = [" & ".join(tex(one.head) for one in paper.columns) + r" \\"]
    for row in rows:
        cells = [
            name(one.cells[row], breaks=wraps) if one.names else tex(one.cells[row])
            for one in paper.columns
        ]
        # A bracket after the end of a row would be its argument.
        cells[0] = "{}" + cells[0] if cells[0].startswith(("[", "*")) else cells[0]
        lines.append(" & ".join(cells) + r" \\")
    of = f" ({part + 1} of {parts})" if parts > 1 else ""
    caption = f"{paper.caption.removesuffix('.')}{of}." if of else paper.caption
    notes = [tex(note) + r"\par" for note in paper.notes]
    beneath = [r"\par\smallskip", r"\begin{minipage}{\linewidth}\footnotesize\raggedright",
               *notes, r"\end{minipage}"]  # fmt: skip
    return "\n".join(
        [
            rf"\begin{{table{star}}}[t]",
            r"\centering",
            r"\setlength{\belowcaptionskip}{4pt}",
            rf"\caption{{{tex(caption)}}}",
            rf"\label{{tab:{paper.label}{f'-{part + 1}' if part else ''}}}",
            r"\footnotesize",
            r"\setlength{\tabcolsep}{4pt}",
            rf"\begin{{tabular}}{{@{{}}{''.join(columns)}@{{}}}}",
            r"\toprule", lines[0], r"\midrule",
            ("\n\\addlinespace[2pt]\n" if wraps else "\n").join(lines[1:]),
            r"\bottomrule", r"\end{tabular}",
            *(beneath if notes else []),
            rf"\end{{table{star}}}",
        ]
    ) + "\n"  # fmt: skip


def _shown(cell: str) -> str:
    """As many characters as a cell takes, about."""
    cell = foreign.unmarked(cell, lambda c: c).replace("**", "").replace("`", "")
    return re.sub(r"(?<=\d)e[-+]?(\d+)", r"×10,\1", cell)


def _longest_word(column: Column, shown: Sequence[str]) -> int:
    if (width := max(map(len, shown))) <= NARROW:
        return width
    # The ends of an interval stay together, as `tex` ties them.
    parts = [re.split(r"(?<!,) |, (?![^\[\]]*\])", cell) for cell in shown]
    longest = max(len(word) for cell in parts for word in cell)
    return min(longest, NAME) if column.names else longest


def _is_text(column: Column) -> bool:
    return any(re.search("[A-Za-z]{2}", cell) for cell in column.cells)


def _comment(text: str) -> str:
    text = visible(foreign.unmarked(text)).encode("ascii", "backslashreplace").decode()
    return " ".join(text.split())
