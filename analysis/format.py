"""Numbers for people: a value with its interval, a probability, a count."""

from __future__ import annotations

import math


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
    if math.isinf(value):
        return "∞"
    if math.isnan(value):
        return "–"
    if abs(value) >= 1e5 or (decimals > 4 and 0 < abs(value) < 0.01):
        return f"{value:.2g}"
    decimals = min(decimals, 4)
    return f"{value:.{decimals}f}"


def probability(share: float, resamples: int) -> str:
    """`= 0.97`, or the bound that so many resamples can show: `> 0.999`."""
    least = 1 / resamples
    if share < least or share > 1 - least:
        return f"< {least:.4g}" if share < least else f"> {1 - least:.4g}"
    return f"= {share:.2f}" if 0.005 < share < 0.995 else f"= {share:.3f}"


def count(value: float) -> str:
    """A count with four significant digits and its unit: 1.279B."""
    for unit, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= unit:
            return f"{value / unit:.4g}{letter}"
    return "–" if math.isnan(value) else f"{value:.4g}"
