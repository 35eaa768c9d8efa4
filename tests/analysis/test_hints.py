"""Settings that a sentence tells one to give select rows when they are given as printed."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic_sweeps import TRUTH, SweepWriter, grid_points

from ablations.records import SettingError
from analysis.__main__ import main
from analysis.commands import fit
from analysis.stats.rays import fit_axis, fit_rays
from analysis.study.load import load_frame
from analysis.study.source import from_sweeps
from models.command import parse

COUNT = st.one_of(
    st.integers(10**6, 10**13), st.floats(1e6, 1e13), st.sampled_from([6e7, 1.2e9, 2.5e15])
)


def told(sentence: str) -> list[str]:
    """The settings where= and ratio= that a sentence holds, unquoted."""
    found = re.findall(r"'where=[^']+'|(?:where|ratio)=\S+", sentence)
    return [shlex.split(one.rstrip(".,;"))[0] for one in found]


def selected(table: pd.DataFrame, words: list[str]) -> pd.DataFrame:
    """The rows of a table that a command with these words fits."""
    asked = parse(fit.Settings, ["points.csv", *words], "fit")
    points = load_frame(table, False, asked.columns, asked.where)
    if asked.ratio is not None:
        ratio = points["D"] / points["N"] / asked.ratio
        points = points[np.abs(np.log(ratio)) < np.log(1.1)]
    return points


def grid(N: Sequence[float], D: Sequence[float]) -> pd.DataFrame:
    """Two mixes at every N and D, those of the second a little off."""
    rows = [
        (mix, n * off, d * off, 2 + 1e3 / n**0.3 + 1e3 / d**0.3)
        for mix, off in (("a", 1.0), ("b", 1.003))
        for n in N
        for d in D
    ]
    return pd.DataFrame(rows, columns=["mix", "N", "D", "loss"])


@settings(max_examples=15, deadline=None)
@given(start=COUNT, apart=st.lists(st.floats(1.01, 4), min_size=2, max_size=5))
def test_what_the_refusal_of_a_law_tells_selects_rows_of_one_kind(
    start: float, apart: list[float]
) -> None:
    N = [start, *(start * np.cumprod(apart)), 5 * start]
    table = grid(N, [20 * start, 26 * start, 50 * start])
    points = load_frame(table)
    for law in ("N", "D", "ray"):
        with pytest.raises(SettingError, match="needs points of one ") as refused:
            fit_rays(points) if law == "ray" else fit_axis(points, law)  # type: ignore[arg-type]
        (hint,) = told(str(refused.value))
        rows = selected(table, [hint])
        assert len(rows)
        held = {"N": rows["D"], "D": rows["N"], "ray": rows["D"] / rows["N"]}[law]
        assert held.max() <= 1.22 * held.min()


def test_the_budget_with_most_sizes_is_told_and_fits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    N = np.geomspace(6e7, 1e9, 6)
    rows = [("a", n, 1e9, 3 - 0.1 * i) for i, n in enumerate(N[:2])]
    rows += [("a", n, 6e10 + i, 2 + 400 / n**0.34) for i, n in enumerate(N)]
    path = tmp_path / "points.csv"
    pd.DataFrame(rows, columns=["mix", "N", "D", "loss"]).to_csv(path, index=False)
    assert main(["fit", str(path), "law=N"]) == 2
    (hint,) = told(capsys.readouterr().err)
    assert main(["fit", str(path), "law=N", hint]) == 0
    assert len(selected(pd.read_csv(path), [hint])) == len(N)


@settings(max_examples=15, deadline=None)
@given(values=st.lists(COUNT, min_size=2, max_size=6, unique=True))
def test_values_that_a_filter_s_refusal_lists_are_values_of_the_filter(
    values: list[float],
) -> None:
    table = grid([1e8], values)
    with pytest.raises(SettingError, match="matches no row") as refused:
        selected(table, ["where=D=7"])
    listed = str(refused.value).partition("; D has ")[2].rstrip(".").split(", ")
    assert len(listed) >= len(values)
    for value in listed:
        assert len(selected(table, [f"where=D={value}"]))


def test_a_size_without_a_name_is_shown_as_a_count_and_chosen_by_it() -> None:
    table = grid([6e7, 1.2e9, 123_456_789], [1e9, 2e9])
    assert list(dict.fromkeys(load_frame(table)["size"])) == ["60M", "123.5M", "1.2B"]
    rows = selected(table, ["where=size=1.2B"])
    assert set(rows["N"]) == {1.2e9, 1.2e9 * 1.003}
    assert set(rows["size"]) == {"1.2B"}


def test_an_empty_cell_goes_by_the_name_of_its_level() -> None:
    table = grid([1e8, 2e8], [1e9, 2e9]).assign(lr=[0.5, None] * 4)
    with pytest.raises(SettingError, match=r"lr has 0\.5, none\."):
        selected(table, ["where=lr=7"])
    assert selected(table, ["where=lr=none"])["lr"].isna().all()


def test_levels_that_are_lists_are_chosen_as_they_are_told(sweep: SweepWriter) -> None:
    for windows in ([512, 0], [256, 0]):
        sweep.run("gdn", "50k", 0, protocol={"windows": windows})  # type: ignore[dict-item]
    with pytest.raises(SettingError, match="leaves no run") as refused:
        from_sweeps([sweep.path], {"protocol.windows": "7"})
    listed = str(refused.value).partition("it has protocol.windows=")[2].rstrip(".").split(", ")
    assert sorted(listed) == ["256/0", "512/0"]
    for value in listed:
        asked = parse(fit.Settings, ["x.csv", f"where=protocol.windows={value}"], "fit")
        assert len(from_sweeps([sweep.path], asked.where).runs) == 1


def test_a_curve_that_is_no_ray_is_not_sent_to_the_law_of_rays() -> None:
    N = np.geomspace(1e7, 1e9, 8)
    for D, law in ((20 * N, True), (N**1.5, False)):
        points = pd.DataFrame({"mix": "a", "size": N, "run": N, "N": N, "D": D, "loss": 3.0})
        with pytest.raises(SettingError, match="D given by N") as refused:
            fit.answered(fit.Settings(), points)
        assert ("law=ray" in str(refused.value)) == law


def test_a_pilot_of_two_levels_is_one_when_it_is_chosen_as_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    points = pd.concat([grid_points(TRUTH, 1e-3, seed).assign(lr=seed) for seed in (1, 2)])
    points = points.assign(run=points["run"] + points["lr"].astype(str))
    path = tmp_path / "pilot.csv"
    points.to_csv(path, index=False)
    asked = ["design", str(path), "mix=gdn", "seeds=1", "chinchilla=1,2,4"]
    assert main([*asked, "treatments=lr"]) == 2
    sentence = capsys.readouterr().err
    (hint,) = told(sentence)
    assert f"{hint} without treatments=lr" in sentence
    assert main([*asked, hint]) == 0


def test_sizes_of_a_pilot_may_be_given_as_they_are_shown(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for sizes in ("60M,120M,1.2B", "6e7,1.2e8,1.2e9"):
        assert main(["design", f"sizes={sizes}", "seeds=1", "format=csv"]) == 0
        shown = capsys.readouterr().out
        assert shown.count("\n") > 1
