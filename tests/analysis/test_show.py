"""Tables and figures as a notebook shows them."""

import re
import struct

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

import analysis
from analysis.report import figures
from analysis.report.figures.style import ShownFigure
from analysis.study import published


def drawn_heights(figure: Figure) -> list[list[float]]:
    """What each line of the first axes has as y."""
    return [np.asarray(line.get_ydata()).tolist() for line in figure.axes[0].lines]


def test_numbers_of_any_size_are_short() -> None:
    table = pd.DataFrame(
        {
            "N": [1_279_131_648, 57.4e6], "D": [20, 2.5e10], "C": [2.343e18, 1e22],
            "flops": [721564419471892807680.0, np.nan], "loss": [2.47416666, np.inf],
            "small": [1.3850562569e-4, -0.5], "B": [91234.5, 2085.434], "seed": [20_240_501, 7],
            "done": [True, False], "sizes": [("60m", "1b"), ()],
        }
    )  # fmt: skip
    head, *rows = [re.split(r"  +", line) for line in repr(analysis.show(table)).splitlines()]
    assert head == list(table.columns)
    assert rows[0] == ["1.279B", "20", "2.34e18", "7.22e20", "2.474", "0.0001385", "9.123e+04",
                       "20240501", "True", "60m, 1b"]  # fmt: skip
    assert rows[1][:9] == ["57.4M", "25B", "1e22", "–", "∞", "-0.5", "2085", "7", "False"]


@pytest.mark.parametrize("value", [9999, 10_000, 123_456.7, 9.87e14, 3.21e20, -4.2e7])
def test_a_number_is_that_of_the_table_to_four_digits(value: float) -> None:
    cell = repr(analysis.show(pd.DataFrame({"x": [value]}))).split()[1]
    units = {"k": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}
    shown = float(cell[:-1]) * units[cell[-1]] if cell[-1] in units else float(cell)
    assert shown == pytest.approx(value, rel=5e-4)


def test_a_page_has_bold_cells_and_no_markup_of_others() -> None:
    table = pd.DataFrame({"answer": ["**no**", "2 ** 3 ** 4", "<script>", "**<b>**"]})
    page = analysis.show(table)._repr_html_()
    assert "<td><b>no</b></td>" in page
    assert "<td>2 ** 3 ** 4</td>" in page
    assert "<td>&lt;script&gt;</td>" in page
    assert "<td><b>&lt;b&gt;</b></td>" in page
    assert repr(analysis.show(table)).splitlines()[1] == "no"


def test_a_named_index_is_shown_and_a_count_of_rows_is_not() -> None:
    table = pd.DataFrame({"mix": ["a", "b"], "size": ["1b", "1b"], "N": [1.0, 2.0]})
    assert repr(analysis.show(table)).split("\n")[0].split() == ["mix", "size", "N"]
    wide = table.pivot(index="mix", columns="size", values="N")
    assert repr(analysis.show(wide)).split("\n")[0].split() == ["mix", "1b"]
    assert repr(analysis.show(table.head(0))).split() == ["mix", "size", "N"]


def test_a_figure_shows_itself_at_150_dots_an_inch() -> None:
    figure, _ = figures.excess_parameters(published.table("table22_parameters"))
    assert isinstance(figure, ShownFigure)
    image = figure._repr_png_()
    width, height = struct.unpack(">II", image[16:24])
    assert (width, height) == tuple(int(150 * inches) for inches in figure.get_size_inches())


def test_excess_parameters_are_those_of_the_counts() -> None:
    figure, shown = figures.excess_parameters(published.table("table22_parameters"))
    # 523M against 371M, Table 22 of Merrill et al. 2026.
    one = shown.query("mix == 'gdn3_attn1' and size == '370m'").iloc[0]
    assert one["percent"] == pytest.approx(100 * (523 / 371 - 1))
    assert "transformer" not in set(shown["mix"])
    drawn = [heights for heights in drawn_heights(figure) if len(heights) == 7]
    assert len(drawn) == shown["mix"].nunique()
    assert sorted(np.concatenate(drawn)) == pytest.approx(sorted(shown["percent"]))


def test_a_size_that_the_baseline_lacks_has_no_excess() -> None:
    counts = pd.DataFrame(
        {"mix": ["transformer", "gdn", "gdn"], "size": ["1b", "1b", "3b"], "N": [1e9, 1.1e9, 3e9]}
    )
    _, shown = figures.excess_parameters(counts)
    assert shown["size"].tolist() == ["1b"]
    assert shown["percent"].tolist() == pytest.approx([10])


def test_savings_of_a_table_are_drawn_with_its_intervals_and_the_line_at_one() -> None:
    table = published.table("table20_savings")
    figure, shown = figures.savings_of_table(table, trained=(57e6, 1.28e9))
    axes = figure.axes[0]
    pd.testing.assert_frame_equal(shown, table[["mix", "N", "value", "low", "high"]])
    paths = [path for lines in axes.collections for path in lines.get_paths()]
    ends = {tuple(np.asarray(path.vertices)[:, 1].tolist()) for path in paths}
    assert ends == set(zip(table["low"], table["high"], strict=True))
    assert [1, 1] in drawn_heights(figure)
    low, high = axes.get_ylim()
    assert low < table["low"].min()
    assert table["high"].max() < high


def test_a_second_fit_is_dashed_and_named() -> None:
    table = published.table("table20_savings")[["mix", "N", "value"]]
    both = pd.concat([table.assign(fit="free"), table.assign(fit="held", value=1.2)])
    figure, shown = figures.savings_of_table(both)
    assert list(shown.columns) == ["mix", "fit", "N", "value"]
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert {"free", "held", "gdn", "gdn3_attn1"} <= set(names)
    lines = [line for line in figure.axes[0].lines if np.size(line.get_ydata()) == 6]
    assert [line.is_dashed() for line in lines] == [False, True, False, True]
    assert not figure.axes[0].collections
