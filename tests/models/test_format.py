"""Numbers for people: each text read back is the number within the digits that it shows."""

import csv
import io
import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from models.format import (
    byte_count,
    count,
    duration,
    flop_count,
    percent,
    probability,
    with_interval,
    write_table,
)

COUNTS = {"": 1.0, "k": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}
BYTES = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40, "PiB": 2**50}
SECONDS = {"s": 1, "min": 60, "h": 3600, "days": 86400, "years": 365 * 86400}
signed = st.sampled_from([-1, 1])


def numbers(least: float, most: float) -> st.SearchStrategy[float]:
    """Spread evenly over the powers of ten, either sign."""
    powers = st.floats(math.log10(least), math.log10(most))
    return st.builds(lambda power, sign: sign * 10**power, powers, signed)


def parsed(text: str, units: dict[str, float]) -> tuple[float, float]:
    """(the number shown, how much of it is shown before the unit)."""
    found = re.fullmatch(r"(-?[\d.,e+-]+?) ?([A-Za-z]*)", text)
    assert found is not None, text
    shown = float(found[1].replace(",", ""))
    return shown * units[found[2]], abs(shown)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"), (-0.0, "0"), (0.25, "0.25"), (999, "999"), (999.94, "999.9"), (999.95, "1k"),
        (1_279_000_000, "1.279B"), (57_422_208, "57.42M"), (204.7e9, "204.7B"), (1.28e12, "1.28T"),
        (999_949_999, "999.9M"), (999_950_001, "1B"), (-1500, "-1.5k"), (3e15, "3e+15"),
    ],
)  # fmt: skip
def test_counts_as_papers_print_them(value: float, text: str) -> None:
    assert count(value) == text


# Up to where one digit still rounds to less than the 1e15 from which no unit is left.
@given(numbers(1e-3, 9.4e14), st.integers(1, 6))
def test_a_count_is_within_half_of_its_last_digit_and_below_a_thousand_of_its_unit(
    value: float, digits: int
) -> None:
    read, shown = parsed(count(value, digits), COUNTS)
    assert abs(read - value) <= 0.5000001 * 10 ** (math.floor(math.log10(abs(value))) + 1 - digits)
    assert shown < 1000


@given(numbers(1e3, 1e30), st.integers(1, 5))
def test_flops_are_a_digit_and_a_power_of_ten(value: float, digits: int) -> None:
    text = flop_count(value, digits)
    assert re.fullmatch(r"-?[1-9](\.\d*[1-9])?e\d+", text)
    assert float(text) == float(f"{value:.{digits - 1}e}")


def test_flops_as_papers_print_them() -> None:
    assert [flop_count(x) for x in (0, 2e18, 9.999e20)] == ["0", "2e18", "1e21"]
    assert flop_count(4.6e18, 1) == "5e18"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0 B"), (1023, "1023 B"), (1024, "1 KiB"), (1536 * 2**20, "1.5 GiB"),
        (1023.4 * 1024, "1023 KiB"), (1023.6 * 1024, "1 MiB"), (-2048, "-2 KiB"),
        (2**60, "1024 PiB"),
    ],
)  # fmt: skip
def test_bytes_in_units_of_1024(value: float, text: str) -> None:
    assert byte_count(value) == text


@given(numbers(1, 2**59))
def test_bytes_are_within_half_a_percent_and_below_1024_of_their_unit(value: float) -> None:
    read, shown = parsed(byte_count(value), BYTES)
    assert read == pytest.approx(value, rel=0.005)
    assert shown < 1024


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, ""), (0, "0 s"), (30, "30 s"), (90, "90 s"), (119.4, "2.0 min"), (252, "4.2 min"),
        (720, "12 min"), (5400, "90 min"), (12_240, "3.4 h"), (36 * 3600, "36 h"),
        (9e7, "2.9 years"), (365e6 * 86400, "1,000,000 years"), (-90, "-90 s"),
    ],
)  # fmt: skip
def test_times_read_in_their_unit(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


@given(numbers(10, 1e12))
def test_a_time_is_told_to_within_a_twentieth(seconds: float) -> None:
    read, _ = parsed(duration(seconds), SECONDS)
    assert read == pytest.approx(seconds, rel=0.051)


def test_percent_is_a_hundred_times_a_share_in_the_form_asked_for() -> None:
    assert [percent(0.1234), percent(0.4, "g"), percent(-0.00169, "+.2f")] == [
        "12 %", "40 %", "-0.17 %",
    ]  # fmt: skip


@pytest.mark.parametrize("tell", [count, flop_count, byte_count, duration, percent])
def test_what_is_no_number_is_a_dash_and_what_has_no_end_is_said_so(tell) -> None:
    assert [tell(x) for x in (math.nan, math.inf, -math.inf)] == ["–", "∞", "-∞"]


@pytest.mark.parametrize(
    ("value", "low", "high", "told"),
    [
        (1.3213, 0.6712, 4.0178, "1.3 [0.7, 4.0]"),
        (1.3213, 1.3021, 1.3411, "1.321 [1.302, 1.341]"),
        (0.66931, 0.66812, 0.67052, "0.6693 [0.6681, 0.6705]"),
        (2.0, 1.2, math.inf, "2.0 [1.2, ∞]"),
        (1.0, -math.inf, math.inf, "1.000 [-∞, ∞]"),
        (1.5, math.nan, math.nan, "1.500 [–, –]"),
        (1.391593, 1.391592, 1.5, "1.3916 [1.3916, 1.5000]"),
        (0.000123, 0.000121, 0.000125, "0.00012 [0.00012, 0.00013]"),
        (83.4551, 29.6, 495.0, "83 [30, 495]"),
    ],
)
def test_digits_follow_the_narrower_side_of_the_interval(
    value: float, low: float, high: float, told: str
) -> None:
    assert with_interval(value, low, high) == told


@given(st.floats(-9e4, 9e4), numbers(1e-6, 1e3).map(abs), numbers(1e-6, 1e3).map(abs))
def test_no_end_of_an_interval_is_rounded_past_its_value(
    value: float, below: float, above: float
) -> None:
    exact = value, value - below, value + above
    told = re.fullmatch(r"(\S+) \[(\S+), (\S+)\]", with_interval(*exact))
    assert told is not None
    shown = [float(text) for text in told.groups()]
    assert shown[1] <= shown[0] <= shown[2]
    for text, number in zip(told.groups(), exact, strict=True):
        if "e" in text:  # two digits, of what is too small for decimals
            assert float(text) == pytest.approx(number, rel=0.051)
            continue
        decimals = len(text.partition(".")[2])
        # Half of the last decimal, and in it at most a third of the side that decides it.
        assert abs(float(text) - number) <= 0.5000001 * 10.0**-decimals
        if 1e-4 < min(below, above) < 1:
            assert 10.0**-decimals <= min(below, above) * 1.0000001


@given(st.floats(0, 1), st.integers(20, 10_000))
def test_a_probability_claims_no_more_than_its_resamples_can_show(share: float, n: int) -> None:
    sign, number = probability(share, n).split()
    if sign == "=":
        assert float(number) == pytest.approx(share, abs=0.005001)
        assert 1 / n <= share <= 1 - 1 / n
    else:
        assert float(number) == pytest.approx(1 / n if sign == "<" else 1 - 1 / n, rel=1e-3)
    assert probability(math.nan, n) == "–"


words = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), max_size=8)
grids = st.integers(1, 5).flatmap(
    lambda width: st.lists(st.lists(words, min_size=width, max_size=width), min_size=1)
)


@given(grids)
def test_a_csv_reads_back_as_it_was(grid: list[list[str]]) -> None:
    text = write_table(grid[0], grid[1:], "csv")
    assert list(csv.reader(io.StringIO(text))) == grid


@given(grids, st.sets(st.integers(0, 4)))
def test_every_column_of_an_aligned_table_stands_in_the_same_place(
    grid: list[list[str]], left: set[int]
) -> None:
    lines = write_table(grid[0], grid[1:], left=left).split("\n")
    assert lines.pop() == ""
    begin = 0
    for i, column in enumerate(zip(*grid, strict=True)):
        width = max(map(len, column))
        for line, cell in zip(lines, column, strict=True):
            place = line[begin : begin + width].ljust(width)
            assert place == (cell.ljust(width) if i in left else cell.rjust(width))
        begin += width + 2


def test_a_table_of_markdown_is_a_table_to_a_reader_of_markdown() -> None:
    text = write_table(("mix", "N"), [("gdn", "1B"), ("mamba2", "2B")], "markdown")
    page = MarkdownIt("gfm-like", {"linkify": False}).render(text)
    assert re.findall(r"<t[hd](?: [^>]*)?>([^<]*)", page) == [
        "mix",
        "N",
        "gdn",
        "1B",
        "mamba2",
        "2B",
    ]
    assert page.count('style="text-align:right"') == 3


@pytest.mark.parametrize("form", ["csv", "markdown", "table"])
def test_no_cell_moves_a_terminal_or_ends_its_line(form: str) -> None:
    text = write_table(("mix",), [("a\x1b[31m\nb",)], form)
    assert "\x1b" not in text
    assert len(text.splitlines()) == (3 if form == "markdown" else 2)
