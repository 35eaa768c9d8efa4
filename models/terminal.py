"""Output that every terminal and log can take: letters outside its encoding are spelled out."""

import codecs
import io
import sys
import unicodedata

SPELLED = {
    "×": "x", "÷": "/", "·": ".", "…": "...", "–": "-", "—": "-", "−": "-", "±": "+-", "→": "->",
    "≥": ">=", "≤": "<=", "≈": "~", "∝": "~", "√": "sqrt", "∞": "inf", "Δ": "d", "▁": "_",
    "─": "-", "━": "-", "│": "|",
}  # fmt: skip


def readable() -> None:
    """Let standard output and error write any text: each command calls this first.

    Where the encoding is ASCII (LC_ALL=C, PYTHONIOENCODING), `1.2 ×` is written `1.2 x`, `α`
    `alpha` and `é` `e`; what has no such spelling becomes `?`.
    """
    codecs.register_error("spelled", _spelled)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="spelled")


def _spelled(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    text = error.object[error.start : error.end]
    return "".join(SPELLED.get(letter) or _ascii(letter) for letter in text), error.end


def _ascii(letter: str) -> str:
    name = unicodedata.name(letter, "")
    if name.startswith("GREEK SMALL LETTER ") and " WITH " not in name:
        return name.split()[-1].lower()
    plain = unicodedata.normalize("NFKD", letter).encode("ascii", "ignore").decode()
    return plain or "?"
