"""Tables: digits by uncertainty, results against plain means."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import t as student
from synthetic_sweeps import SIZES, SweepWriter, write_ladder

from analysis.report import results
from analysis.report.checklist import checklist
from analysis.report.tables import fits_table, markdown
from analysis.report.write import numbers
from analysis.study.findings import Findings, find
from analysis.study.load import load_sweep


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Findings:
    writer = SweepWriter(tmp_path_factory.mktemp("runs") / "trial")
    write_ladder(writer)
    return find(load_sweep(writer.path), "transformer", 40, 0, "python -m analysis tables")


def test_an_interval_that_ends_where_the_search_does_says_so(found: Findings) -> None:
    fit, draws = found.study.fit, found.study.draws
    assert fit is not None
    assert draws is not None
    wide = np.linspace(0.3, 2.6, draws.resamples).clip(0, 2.0)
    law = replace(draws.laws["transformer"], alpha=wide, E=np.maximum(wide - 1, 0))
    shown = fits_table(fit, replace(draws, laws=draws.laws | {"transformer": law}))
    first = shown.iloc[0]
    assert re.search(r"\[0\.\d+, ≥ 2\.0*\]$", first["alpha"])
    assert re.search(r"\[≤ 0[.0]*, ", first["E"])
    assert not set("≤≥") & set(" ".join(shown.iloc[1][["A", "alpha", "B", "beta"]]))


def test_a_bar_in_a_cell_does_not_split_it() -> None:
    assert r"a\|b" in markdown(pd.DataFrame({"x": ["a|b"], "y": [1]}))


def test_results_are_means_of_seeds_with_students_t_from_their_pooled_scatter(
    found: Findings,
) -> None:
    table = results.at_last_budget(found.points, "bpb")
    last = found.points[found.points["chinchilla"] == 4]
    logs = {key: np.log(own["bpb"]) for key, own in last.groupby(["mix", "size"])}
    pooled = np.mean([own.var(ddof=1) for own in logs.values()])
    reach = student.ppf(0.975, len(logs)) * np.sqrt(pooled / 2)
    assert len(table) == len(logs) == 6
    for row in table.itertuples():
        middle = logs[(row.mix, row.size)].mean()
        ends = np.exp([middle, middle - reach, middle + reach])
        assert (row.value, row.low, row.high) == pytest.approx(tuple(ends))


def test_the_results_table_has_a_row_a_mix_and_the_lowest_in_bold(found: Findings) -> None:
    table = results.results_table(found, "loss")
    assert list(table.columns) == ["mix", "50k", "100k", "200k"]
    assert list(table["mix"]) == ["transformer", "gdn3_attn1"]
    bold = table.iloc[:, 1:].map(lambda cell: cell.startswith("**"))
    assert list(bold.sum(axis=1)) == [0, 3]


def test_the_ladder_table_gives_shapes_and_parameters_of_every_size(found: Findings) -> None:
    table = results.ladder_table(found).set_index("")
    assert list(table.loc["d_model"]) == ["32"] * 3
    assert list(table.loc["layers"]) == ["4"] * 3
    for size in ("50k", "100k", "200k"):
        assert table.loc["N of gdn3_attn1", size] == f"{SIZES[size] / 1e3:.4g}k"


def test_numbers_keep_the_precision_that_cells_round(found: Findings) -> None:
    exact = numbers(found)
    assert exact["savings"]["value"].iloc[-1] == found.study.savings[-1].value
    assert {"mix", "E", "A", "alpha", "B", "beta"} <= set(exact["fits"].columns)


def test_the_checklist_answers_from_the_records(tmp_path: Path) -> None:
    writer = SweepWriter(tmp_path / "trial")
    write_ladder(writer)
    good = checklist(find(load_sweep(writer.path), "transformer", 30, 0, "c"))
    answers = dict(zip(good["question"], good["answer"], strict=True))
    assert answers["Parameters equal within 0.5 %?"] == "yes"
    assert answers["The same batches in the same order?"] == "yes"
    assert answers["Several seeds everywhere?"] == "yes"
    assert answers["Four sizes or more?"] == "**no**"
    assert answers["One revision of the code, without changes?"] == "yes"
    writer = SweepWriter(tmp_path / "worse")
    write_ladder(writer, ("transformer",))
    write_ladder(writer, ("gdn3_attn1",), ("100k", "200k"))
    writer.run("gdn3_attn1", "50k", 0, n_factor=1.02)
    writer.run("gdn3_attn1", "50k", 1)
    writer.run("gdn", "400k", 0, finished=1)
    bad = checklist(find(load_sweep(writer.path), "transformer", 30, 0, "c"))
    answers = dict(zip(bad["question"], bad["answer"], strict=True))
    assert answers["Parameters equal within 0.5 %?"] == "**no**"
    assert answers["Several seeds everywhere?"] == "**no**"
    assert answers["Are all runs finished, and all points kept?"] == "**no**"
