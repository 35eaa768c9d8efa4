"""Numbers and tables for people: what a report, a plan, a figure and a terminal print alike.

Values that a program reads (JSON, CSV, records) never pass through here. A number that is not known
(NaN) is a dash, an infinite one ∞. Plain Python.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Collection, Iterable, Sequence

from models.text import visible

_COUNT_UNITS = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"))
_BYTE_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_TIME_UNITS = ((1, "s"), (60, "min"), (3600, "h"), (86400, "days"), (365 * 86400, "years"))


def count(value: float, digits: int = 4) -> str:
    """A count with its unit, to so many significant digits: 1.279B."""
    if not math.isfinite(value):
        return _not_finite(value)
    # Rounded before a unit is chosen, so that 999,990 is 1M and not 1000k.
    rounded = float(f"{value:.{digits}g}") + 0.0
    for unit, letter in _COUNT_UNITS:
        if unit <= abs(rounded) < 1e15:
            return f"{rounded / unit:.{digits}g}{letter}"
    return f"{rounded:.{digits}g}"


def flop_count(value: float, digits: int = 3) -> str:
    """FLOPs as a power of ten: 2.34e18."""
    if not math.isfinite(value):
        return _not_finite(value)
    if value == 0:
        return "0"
    power = int(f"{value:.{digits - 1}e}".partition("e")[2])
    return f"{value / 10**power:.{digits}g}e{power}"


_SUPERSCRIPTS = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")


def scientific(value: float, digits: int = 1) -> str:
    """A number as papers and figures have it: 10¹⁸, 2×10¹⁸; with three digits 1.25×10¹⁸."""
    if not math.isfinite(value):
        return _not_finite(value)
    mantissa, power = f"{value:.{digits - 1}e}".split("e")
    mantissa = mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa
    ten = f"10{str(int(power)).translate(_SUPERSCRIPTS)}"
    return ten if mantissa == "1" else f"{mantissa}×{ten}"


def byte_count(value: float) -> str:
    """Bytes to three significant digits, in units of 1024: 1.5 GiB."""
    if not math.isfinite(value):
        return _not_finite(value)
    for unit in _BYTE_UNITS:
        shown = f"{value:.0f}" if abs(value) >= 999.5 else f"{value:.3g}"
        if abs(float(shown)) < 1024 or unit == _BYTE_UNITS[-1]:
            break
        value /= 1024
    return f"{shown} {unit}"


def duration(seconds: float | None) -> str:
    """A time to two digits or more: 90 s, 4.2 min, 12 min, 3.4 h.

    Nothing for None, a time that has not been measured yet.
    """
    if seconds is None:
        return ""
    if not math.isfinite(seconds):
        return _not_finite(seconds)
    # A unit begins at two of it: 90 s, not 1.5 min.
    fits = [(size, unit) for size, unit in _TIME_UNITS if round(abs(seconds) / size, 1) >= 2]
    size, unit = fits[-1] if fits else _TIME_UNITS[0]
    value = seconds / size
    decimals = 1 if unit != "s" and abs(value) < 9.95 else 0
    return f"{value:,.{decimals}f} {unit}"


def percent(share: float, form: str = ".2g") -> str:
    """A share of 1 as percent, with Python's format of the number: 12 %, +0.35 %."""
    return f"{100 * share:{form}} %" if math.isfinite(share) else _not_finite(share)


def with_interval(value: float, low: float, high: float) -> str:
    """`1.32 [0.67, 4.02]`, with the decimals that the narrower side of the interval supports."""
    sides = [abs(side - value) for side in (low, high) if math.isfinite(side)]
    decimals = _decimals(min(sides) if sides else float("nan"), value)
    return f"{_number(value, decimals)} [{_number(low, decimals)}, {_number(high, decimals)}]"


def _decimals(uncertainty: float, value: float) -> int:
    """Two digits of an uncertainty that begins with 1 or 2, one of any other."""
    if not (math.isfinite(uncertainty) and uncertainty > 0):
        uncertainty = abs(value) / 100 or 0.01
    if not math.isfinite(uncertainty):
        return 0
    power = math.floor(math.log10(uncertainty))
    leading = uncertainty / 10**power
    return min(max(-power + (1 if leading < 3 else 0), 0), 6)


def _number(value: float, decimals: int) -> str:
    if not math.isfinite(value):
        return _not_finite(value)
    if abs(value) >= 1e5 or (decimals > 4 and 0 < abs(value) < 0.01):
        return f"{value:.2g}"
    decimals = min(decimals, 4)
    return f"{value:.{decimals}f}"


def _not_finite(value: float) -> str:
    return "–" if math.isnan(value) else "∞" if value > 0 else "-∞"


def probability(share: float, resamples: int) -> str:
    """`= 0.97`, or the bound that so many resamples can show: `> 0.999`."""
    if math.isnan(share):
        return _not_finite(share)
    least = 1 / resamples
    if share < least or share > 1 - least:
        return f"< {least:.4g}" if share < least else f"> {1 - least:.4g}"
    return f"= {share:.2f}" if 0.005 < share < 0.995 else f"= {share:.3f}"


def fence(text: str, least: int = 1) -> str:
    """So many backticks that none in `text` ends what they enclose."""
    return "`" * max(least, 1 + max(map(len, re.findall("`+", text)), default=0))


def write_table(
    names: Sequence[str],
    rows: Iterable[Sequence[str]],
    form: str = "table",
    left: Collection[int] = (0,),
) -> str:
    """Cells as CSV, as GitHub's Markdown or as a table aligned for a terminal.

    names: of the columns; form: csv, markdown or table; left: columns of text, counted from 0.
    Control characters are shown and not obeyed; a bar in a cell of Markdown must be escaped before.
    """
    lines = [[visible(cell) for cell in line] for line in (names, *rows)]
    if form == "csv":
        out = io.StringIO()
        csv.writer(out, lineterminator="\n").writerows(lines)
        return out.getvalue()
    if form == "markdown":
        lines.insert(1, [":--" if i in left else "--:" for i in range(len(names))])
        return "".join(f"| {' | '.join(line)} |\n" for line in lines)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "".join(
        "  ".join(
            cell.ljust(width) if i in left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        + "\n"
        for line in lines
    )
