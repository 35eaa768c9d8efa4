r"""Tables as a two-column paper prints them: LaTeX of booktabs and array, at most seven columns.

A table stands in one column where it fits and over both where it does not; an interval that is too
wide stands beneath its value, and a table longer than a page goes on in another. Widths are counted
at Computer Modern's, in the narrowest common class: other fonts and classes leave more room.

Text is this project's, with names from elsewhere marked (`analysis.foreign`); heads, captions and
notes are LaTeX already.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ablations.records import visible
from analysis import foreign

MOST_COLUMNS = 7
DASH = "–"
LONG_TEXT = 24
"""Characters from which on a cell is text that may wrap."""

# Points, of \documentclass[twocolumn]{article} on letter paper: IEEE's, ACM's and ICML's are wider.
COLUMN, PAGE = 200.0, 410.0
GAP = 8.0
PAGE_LINES = 44
LEAST_ROWS = 6
# Of 8 pt Computer Modern, in points.
DIGIT, MONOSPACED = 4.25, 4.25
_WIDTHS = (
    dict.fromkeys("ijl.,:;|!'", 2.6)
    | dict.fromkeys("[]()ftrs /-", 3.4)
    | dict.fromkeys("mwMW%@→≥≤∞±", 8.0)
    | dict.fromkeys("×÷><=+−", 8.5)
)
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
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
# The end of a row would take a bracket or a star after it for its own.
_NAMED = _LETTERS | {"[": "{[}", "*": "{*}", "`": r"\textasciigrave{}"}
_ACCENTS = {
    "\u0300": "`", "\u0301": "'", "\u0302": "^", "\u0303": "~", "\u0308": '"', "\u030a": "r",
    "\u030c": "v", "\u0327": "c",
}  # fmt: skip
_GREEK = r"\b(alpha|beta|gamma|kappa)\b"
_MATHS = re.compile(
    r"(?<![\w.=@^])(?P<sign>[-−+]?)(?P<digits>\d+(?:\.\d+)?)e(?P<power>[-+]?\d+)(?!\w)"
    r"|(?<![\w.)\]=@-])[-−](?P<negative>\d[\d.]*|∞)"
    r"|(?P<ten>\b10)(?P<superscript>[⁰¹²³⁴⁵⁶⁷⁸⁹⁻]+)"
    r"|\b(?P<base>[A-Z])\^(?P<exponent>[αβ]|[ab]\b|-?\d+(?:\.\d+)?)"
    r"|\b(?P<best>[NDL])\*(?!\w)"
    r"|\bR²"
    r"|²"
    r"|\b[PN]\((?P<event>[a-z ]*)> 1\)"
    r"|(?P<percent>(?<=\d) %)"
    r"|(?P<product>\bN D\b)"
    r"|\b(?P<symbol>[A-Zp](?= = )|N(?= of ))"
    r"|(?P<width>\bd_model\b)"
)


@dataclass(frozen=True)
class Column:
    """Cells of one column as text. `head` is LaTeX; names from elsewhere are set as they are."""

    head: str
    cells: Sequence[str]
    names: bool = False


@dataclass(frozen=True)
class Paper:
    """One table of a paper.

    `caption` and `notes` are LaTeX; `marks` are notes on single cells, by row and column,
    `comments` lines of plain text for who pastes the table.
    """

    columns: Sequence[Column]
    caption: str
    label: str
    notes: Sequence[str] = ()
    marks: Mapping[tuple[int, int], Sequence[str]] = field(default_factory=dict)
    comments: Sequence[str] = ()


def tex(text: str, greek: bool = False) -> str:
    """Our text, with **bold** and `code`, as LaTeX.

    Numbers are set as a paper has them. greek: names of coefficients in it are letters.
    """
    parts = []
    for i, part in enumerate(re.split(r"\*\*(.+?)\*\*|`([^`]+)`", text)):
        if part and i % 3:
            parts.append(rf"\textbf{{{tex(part, greek)}}}" if i % 3 == 1 else name(part, True))
        elif part:
            parts.append(_plain(part, greek))
    return "".join(parts)


def name(text: str, breaks: bool = False) -> str:
    """A name from elsewhere, in the typewriter's letters and as it is.

    breaks: whether a line may end inside it.
    """
    if text in ("", DASH):
        return "--" if text else ""
    text = foreign.unmarked(text, lambda c: c)
    return rf"\texttt{{{''.join(map(_named, _breakable(text) if breaks else text))}}}"


def words(text: str) -> str:
    """The same in the type around it, such as a size."""
    return "--" if text == DASH else "".join(map(_named, foreign.unmarked(text, lambda c: c)))


def latex(papers: Sequence[Paper]) -> str:
    """Tables that compile as they are, where booktabs and array are loaded."""
    head = (
        "% Needs \\usepackage{booktabs,array}; for \\input, or to paste into a two-column paper.\n"
    )
    return head + "\n".join(_one(paper) for paper in papers)


def _plain(text: str, greek: bool) -> str:
    found, end = [], 0
    for match in re.finditer(rf"{_GREEK}|{_MATHS.pattern}" if greek else _MATHS, text):
        found += [_escaped(text[end : match.start()]), _maths(match)]
        end = match.end()
    return "".join([*found, _escaped(text[end:])])


def _maths(match: re.Match[str]) -> str:
    by = match.groupdict()
    if by["digits"]:
        sign = by["sign"].replace("−", "-").removeprefix("+")
        factor = "" if by["digits"] == "1" else rf"{by['digits']} \times "
        return rf"${sign}{factor}10^{{{int(by['power'])}}}$"
    if by["negative"]:
        return f"$-{by['negative']}$".replace("∞", r"\infty")
    if by["ten"]:
        return f"$10^{{{by['superscript'].translate(_SUPERSCRIPTS)}}}$"
    if by["base"]:
        exponent = {"α": r"\alpha", "β": r"\beta"}.get(by["exponent"], by["exponent"])
        return f"${by['base']}^{{{exponent}}}$"
    if by["best"]:
        return f"${by['best']}^{{*}}$"
    if by["event"] is not None:
        event = rf"\mathrm{{{by['event'].strip()}}} " if by["event"].strip() else ""
        return f"${match[0][0]}({event}> 1)$"
    if by["percent"]:
        return r"\,\%"
    if by["product"]:
        return "$N D$"
    if by["width"]:
        return r"$d_{\mathrm{model}}$"
    if by["symbol"]:
        return f"${by['symbol']}$"
    return {"R²": "$R^{2}$", "²": "$^{2}$"}.get(match[0], rf"$\{match[0]}$")


def _escaped(text: str) -> str:
    # Words are left to TeX, which knows where they divide; names and paths are not words.
    text = re.sub(r"\S*[^\W\d]\S*[\W\d_]\S+", lambda found: _breakable(found[0]), text)
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
    shown = visible(character)
    return "".join(_NAMED.get(c) or _letter(c) for c in shown)


def _breakable(text: str) -> str:
    """Long words with places where a line may end: after signs, and in what is long even so."""

    def broken(found: re.Match[str]) -> str:
        pieces = re.findall(r"[^\W_]+[\W_]?|[\W_]", found[0])
        return _BREAK.join(
            _BREAK.join(piece[i : i + 8] for i in range(0, len(piece), 8))
            if len(piece) > 14
            else piece
            for piece in pieces
        )

    return re.sub(r"\S{13,}", broken, text)


# Widths and how a table is laid out.


def _width(text: str, names: bool) -> float:
    """Points that a cell takes at 8 pt, about, and not less."""
    text = foreign.unmarked(text, lambda c: c)
    if names:
        return MONOSPACED * len(text)
    plain, *coded = re.split(r"`([^`]+)`", text.replace("**", ""))
    if coded:
        parts = zip(coded[::2], coded[1::2], strict=True)
        return _width(plain, False) + sum(_width(a, True) + _width(b, False) for a, b in parts)
    total = 0.0
    if powers := re.findall(r"e[-+]?\d+", text):
        text = re.sub(r"(?<=\d)e[-+]?\d+", "", text)
        total += sum(11.5 + 2 * DIGIT + 3.6 * len(str(int(power[1:]))) for power in powers)
    return total + sum(
        _WIDTHS.get(c, 6.4 if c.isupper() else 4.6 if c.isalpha() else DIGIT) for c in text
    )


def _head_width(head: str) -> float:
    return _width(re.sub(r"\\texttt|\\mathrm|\\[A-Za-z]+|[${}^_\\]", _shortened, head), False)


def _shortened(command: re.Match[str]) -> str:
    # A letter of Greek or an operator takes the room of one.
    return "" if command[0] in (r"\texttt", r"\mathrm") or len(command[0]) == 1 else "m"


def _interval(cell: str) -> tuple[str, str, str] | None:
    """Value, lower and upper end of `1.32 [0.67, 4.02]`; ends keep their brackets."""
    found = re.fullmatch(r"(\S.*?) (\[[^\[\],]+,) ([^\[\],]+\])", cell.replace("**", ""))
    return (found[1], found[2], found[3]) if found else None


def _lines(cell: str, stack: int) -> list[str]:
    ends = _interval(cell) if stack else None
    if ends is None:
        return [cell]
    bold = "**" if cell.startswith("**") else ""
    lines = [ends[0], f"{ends[1]} {ends[2]}"] if stack == 1 else list(ends)
    return [f"{bold}{line}{bold}" for line in lines]


def _head_lines(head: str) -> list[str]:
    """A head of several words as two lines of about one length."""
    # Not inside mathematics or braces.
    spaces = [
        i
        for i, c in enumerate(head)
        if c == " " and head[:i].count("$") % 2 == 0 and head[:i].count("{") == head[:i].count("}")
    ]
    if not spaces:
        return [head]
    best = min(spaces, key=lambda i: max(_head_width(head[:i]), _head_width(head[i + 1 :])))
    return [head[:best], head[best + 1 :]]


@dataclass(frozen=True)
class _Layout:
    environment: str
    size: str
    stack: int
    shares: dict[int, float]
    """Columns that wrap, with their shares of the line."""
    lines: Sequence[int]
    """How many each row takes."""


_LEVELS = (
    ("table", COLUMN, "footnotesize", 0), ("table", COLUMN, "footnotesize", 1),
    ("table*", PAGE, "footnotesize", 0), ("table*", PAGE, "footnotesize", 1),
    ("table*", PAGE, "footnotesize", 2), ("table*", PAGE, "scriptsize", 2),
)  # fmt: skip


def _layout(paper: Paper) -> _Layout:
    """The first of the levels that holds the table."""
    found = None
    for environment, room, size, stack in _LEVELS:
        found = _fitted(paper, environment, room, size, stack)
        if found is not None:
            return found
    # Nothing does: every column wraps.
    everything = dict.fromkeys(range(len(paper.columns)), 0.9 / len(paper.columns))
    rows = range(len(paper.columns[0].cells))
    return _Layout("table*", "scriptsize", 0, everything, [4 for _ in rows])


def _fitted(paper: Paper, environment: str, room: float, size: str, stack: int) -> _Layout | None:
    scale = 0.89 if size == "scriptsize" else 1.0
    widths, wrapping = [], {}
    for i, column in enumerate(paper.columns):
        pieces = [line for cell in column.cells for line in _lines(cell, stack)]
        width = max((_width(piece, column.names) for piece in pieces), default=0.0)
        width += 4.0 if any(place == i for _, place in paper.marks) else 0.0
        head = max(map(_head_width, _head_lines(column.head)))
        is_text = column.names or any(
            len(cell) > LONG_TEXT and _interval(cell) is None for cell in column.cells
        )
        if is_text and width > 40:
            wrapping[i] = max(width, head) * scale
        widths.append(max(width, head) * scale)
    left = (
        room - GAP * (len(widths) - 1) - sum(w for i, w in enumerate(widths) if i not in wrapping)
    )
    if left >= sum(wrapping.values()):
        shares: dict[int, float] = {}
    else:
        got = _shared_out(wrapping, left)
        least = {i: 40.0 if paper.columns[i].names else 55.0 for i in wrapping}
        if not got or any(got[i] < min(least[i], wrapping[i]) * scale for i in got):
            return None
        shares = {i: math.floor(1000 * one / room) / 1000 for i, one in got.items()}
    rows = range(len(paper.columns[0].cells))
    lines = [
        max(
            math.ceil(1.15 * scale * _width(column.cells[row], column.names) / (shares[i] * room))
            if i in shares
            else len(_lines(column.cells[row], stack))
            for i, column in enumerate(paper.columns)
        )
        for row in rows
    ]
    if environment == "table" and max(lines, default=0) > 3:
        return None
    return _Layout(environment, size, stack, shares, lines)


def _shared_out(wanted: dict[int, float], room: float) -> dict[int, float]:
    """`room` shared out so that none has more than it wants, in proportion among the others."""
    got: dict[int, float] = {}
    waiting = dict(wanted)
    while waiting and room > 0:
        # The widest do not take all of it.
        roots = {i: math.sqrt(one) for i, one in waiting.items()}
        part = {i: room * root / sum(roots.values()) for i, root in roots.items()}
        content = {i for i in waiting if part[i] >= waiting[i]}
        if not content:
            return got | part
        for i in content:
            got[i] = waiting.pop(i)
            room -= got[i]
    return got if not waiting else {}


def _one(paper: Paper) -> str:
    assert 0 < len(paper.columns) <= MOST_COLUMNS
    layout = _layout(paper)
    across = 52 if layout.environment == "table" else 108
    rooms = PAGE_LINES - sum(math.ceil(len(note) / across) for note in paper.notes)
    chunks = _chunks(layout.lines, max(rooms, LEAST_ROWS))
    floats = [_float(paper, layout, rows, place, len(chunks)) for place, rows in enumerate(chunks)]
    return "".join(f"% {_comment(told)}\n" for told in paper.comments) + "\n".join(floats)


def _comment(told: str) -> str:
    return " ".join(
        visible(foreign.unmarked(told)).encode("ascii", "backslashreplace").decode().split()
    )


def _chunks(lines: Sequence[int], most: int) -> list[range]:
    """Rows by page, about as many lines on each."""
    pages = max(math.ceil(sum(lines) / most), 1)
    per_page, chunks, start, used = sum(lines) / pages, [], 0, 0
    for row, taken in enumerate(lines):
        if used and (used + taken > most or used >= per_page):
            chunks.append(range(start, row))
            start, used = row, 0
        used += taken
    return [*chunks, range(start, len(lines))]


_STACKS = (r"\def\stack#1#2{\begin{tabular}[t]{@{}r@{}}#1\\{}#2\end{tabular}}",
           r"\def\stackthree#1#2#3{\begin{tabular}[t]{@{}r@{}}#1\\{}#2\\{}#3\end{tabular}}",
           r"\def\heads#1#2#3{\begin{tabular}[b]{@{}#1@{}}#2\\{}#3\end{tabular}}")  # fmt: skip


def _float(paper: Paper, layout: _Layout, rows: range, place: int, of: int) -> str:
    asked = list(dict.fromkeys(
        note for (row, _), own in sorted(paper.marks.items()) if row in rows for note in own
    ))  # fmt: skip
    letters = {note: _mark(i) for i, note in enumerate(asked)}
    body = [_row(paper, layout, row, letters) for row in rows]
    if layout.stack == 0 and not layout.shares and paper.columns[0].names:
        firsts = [paper.columns[0].cells[row] for row in rows]
        if len(set(firsts)) < len(firsts):
            body = [
                (r"\addlinespace" + "\n" if i and firsts[i] != firsts[i - 1] else "") + line
                for i, line in enumerate(body)
            ]
    elif max((layout.lines[row] for row in rows), default=1) > 1:
        body = [(r"\addlinespace[2pt]" + "\n" if i else "") + line for i, line in enumerate(body)]
    heads = " & ".join(_head(column, i, layout) for i, column in enumerate(paper.columns)) + r" \\"
    used = "\n".join([heads, *body])
    macros = [one for one in _STACKS if one[4 : one.index("#")] + "{" in used]
    suffix = f"-{place + 1}" if place else ""
    caption = paper.caption
    if of > 1:
        caption = f"{caption.removesuffix('.')} ({place + 1} of {of})."
    notes = [rf"\textsuperscript{{{letters[note]}}}{note}" for note in asked]
    notes += paper.notes if place == of - 1 else ()
    return "\n".join(
        [
            rf"\begin{{{layout.environment}}}[t]",
            r"\centering",
            *macros,
            r"\setlength{\belowcaptionskip}{4pt}",
            rf"\caption{{{caption}}}",
            rf"\label{{{paper.label}{suffix}}}",
            rf"\{layout.size}",
            rf"\setlength{{\tabcolsep}}{{{GAP / 2:g}pt}}",
            rf"\begin{{tabular}}{{@{{}}{''.join(_columns(paper, layout))}@{{}}}}",
            r"\toprule", heads, r"\midrule", *body, r"\bottomrule", r"\end{tabular}",
            *_under(notes),
            rf"\end{{{layout.environment}}}",
        ]
    ) + "\n"  # fmt: skip


def _under(notes: Sequence[str]) -> list[str]:
    if not notes:
        return []
    return [r"\par\smallskip", r"\begin{minipage}{\linewidth}\footnotesize\raggedright",
            *(note + r"\par" for note in notes), r"\end{minipage}"]  # fmt: skip


def _mark(place: int) -> str:
    letters = "abcdefghijklmnopqrstuvwxyz"
    return letters[place % 26] * (place // 26 + 1)


def _columns(paper: Paper, layout: _Layout) -> list[str]:
    return [
        rf">{{\raggedright\arraybackslash}}p{{{layout.shares[i]:.3f}\linewidth}}"
        if i in layout.shares
        else ("l" if _is_left(column, i) else "r")
        for i, column in enumerate(paper.columns)
    ]


def _is_left(column: Column, place: int) -> bool:
    # Units and signs are no words, as yes and no are.
    text = " ".join(column.cells)
    is_words = re.search(r"[a-z]{4}", text) or (
        re.search("[a-z]", text) and not re.search(r"\d", text)
    )
    return not place or column.names or bool(is_words)


def _head(column: Column, place: int, layout: _Layout) -> str:
    if place in layout.shares:
        return column.head
    width = max(
        (
            _width(line, column.names)
            for cell in column.cells
            for line in _lines(cell, layout.stack)
        ),
        default=0.0,
    )
    if _head_width(column.head) <= width or len(heads := _head_lines(column.head)) == 1:
        return column.head
    side = "l" if _is_left(column, place) else "r"
    return rf"\heads{{{side}}}{{{heads[0]}}}{{{heads[1]}}}"


def _row(paper: Paper, layout: _Layout, row: int, letters: Mapping[str, str]) -> str:
    cells = []
    for i, column in enumerate(paper.columns):
        marks = ",".join(letters[note] for note in paper.marks.get((row, i), ()))
        mark = rf"\textsuperscript{{{marks}}}" if marks else ""
        cell = column.cells[row]
        wraps = i in layout.shares
        if column.names:
            cells.append(name(cell, breaks=wraps) + mark)
            continue
        lines = [tex(line) for line in _lines(cell, 0 if wraps else layout.stack)]
        if cell.startswith(DASH):
            lines[0] = lines[0].replace("--", "--" + mark, 1)
        else:
            lines[-1] += mark
        macro = {1: "", 2: r"\stack", 3: r"\stackthree"}[len(lines)]
        cells.append(macro + "".join(f"{{{line}}}" for line in lines) if macro else lines[0])
    first = cells[0]
    # A bracket after the end of a row would be its argument.
    cells[0] = "{}" + first if first.startswith(("[", "*")) else first
    return " & ".join(cells) + r" \\"
