"""Planned intervals against simulated ladders, and the search for the cheapest ladder."""

import json

import numpy as np
import pytest

from analysis.__main__ import main
from analysis.stats.design import (
    Assumed,
    Ladder,
    Size,
    cheapest,
    check,
    expected,
    frontier,
    simulate,
)
from analysis.stats.savings import matched_factor

NAMED = {"60m": 57e6, "100m": 102e6, "190m": 190e6, "370m": 371e6}
SIZES = [Size(name, N, (6 * N, 5 * N)) for name, N in NAMED.items()]
MULTIPLES = (0.5, 1, 2, 4)
N, D = 371e6, 80 * 371e6


def test_the_assumed_mix_saves_what_is_said_everywhere() -> None:
    assumed = Assumed(saving=1.7)
    places = np.array([1e8, 7e9]), np.array([1e9, 1e12])
    assert matched_factor(assumed.baseline, assumed.mix, *places) == pytest.approx([1.7, 1.7])


def test_flops_are_counted_once_a_run_and_for_both_mixes() -> None:
    ladder = Ladder(tuple(SIZES[:2]), MULTIPLES, (3, 1))
    by_hand = 3 * 80 * 57e6 * 11 * 57e6 + 80 * 102e6 * 11 * 102e6
    assert ladder.flops == pytest.approx(by_hand)
    assert ladder.runs == 8


def test_simulated_noise_has_the_sds_and_the_correlation_asked_for() -> None:
    assumed = Assumed(run_sd=0.004, point_sd=0.001, shared=0.6)
    ladder = Ladder((SIZES[0],), MULTIPLES, (4000,))
    points = simulate(ladder, assumed.baseline, assumed.mix, assumed, np.random.default_rng(0))
    logs = np.log(points["loss"]).groupby([points["mix"], points["D"], points["seed"]]).first()
    wide = (logs - logs.groupby(level=[0, 1]).transform("mean")).unstack([0, 1])
    assert wide.std().to_numpy() == pytest.approx(np.hypot(0.004, 0.001), rel=0.05)
    means = wide.T.groupby(level="mix").mean().T
    shared = 0.6 * 0.004**2 / (0.004**2 + 0.001**2 / len(MULTIPLES))
    assert means.corr().iloc[0, 1] == pytest.approx(shared, abs=0.04)


@pytest.mark.slow
@pytest.mark.parametrize("shared", [0.0, 0.7])
def test_planned_width_and_power_are_those_of_simulated_ladders(shared: float) -> None:
    assumed = Assumed(run_sd=0.004, point_sd=0.001, shared=shared, saving=1.25)
    ladder = Ladder(tuple(SIZES), MULTIPLES, (3, 3, 3, 3))
    width, power = expected(ladder, assumed, N, D)
    found = check(ladder, assumed, N, D, ladders=36, resamples=200)
    assert np.log(found.width) == pytest.approx(np.log(width), rel=0.2)
    # Three standard errors of a share of 36.
    assert found.power == pytest.approx(power, abs=3 * np.sqrt(0.25 / 36))
    assert found.coverage > 0.86


def test_power_without_a_saving_is_the_level_of_the_test() -> None:
    ladder = Ladder(tuple(SIZES), MULTIPLES, (2, 2, 2, 2))
    assert expected(ladder, Assumed(saving=1.0), N, D)[1] == pytest.approx(0.05, abs=1e-6)


def test_one_seed_at_three_sizes_cannot_know_its_own_noise() -> None:
    ladder = Ladder(tuple(SIZES[:3]), MULTIPLES, (1, 1, 1))
    assert expected(ladder, Assumed(), N, D) == (np.inf, 0.0)


def test_twice_the_noise_is_twice_the_width_and_more_seeds_narrow_it() -> None:
    ladder = Ladder(tuple(SIZES), MULTIPLES, (2, 2, 2, 2))
    one = expected(ladder, Assumed(), N, D)[0]
    two = expected(ladder, Assumed(run_sd=0.002, point_sd=0.001), N, D)[0]
    assert np.log(two) == pytest.approx(2 * np.log(one))
    more = expected(Ladder(tuple(SIZES), MULTIPLES, (8, 8, 8, 8)), Assumed(), N, D)[0]
    assert np.log(more) < np.log(one) / 2


def test_the_frontier_holds_every_ladder_and_marks_what_nothing_cheaper_beats() -> None:
    table = frontier(SIZES, Assumed(), N, D, MULTIPLES, (1, 2))
    # Five subsets of three or four sizes, two prefixes of multiples, two seeds, two allotments.
    assert len(table) == 5 * 2 * 2 * 2
    for row in table[table["efficient"]].itertuples():
        alike = table[table["in_range"] == row.in_range]
        cheaper = alike[alike["gpu_hours"] < row.gpu_hours]
        assert (cheaper["width"] > row.width).all()
    assert not table.loc[~table["sizes"].str.contains("370m"), "in_range"].any()
    best = cheapest(table, 0.15)
    assert best is not None
    assert best["in_range"]
    assert best["width"] <= 1.15
    better = table[table["in_range"] & (table["width"] <= 1.15)]
    assert best["gpu_hours"] == better["gpu_hours"].min()
    assert cheapest(table, 1e-6) is None


def test_gpu_hours_are_flops_over_the_rate() -> None:
    table = frontier(SIZES, Assumed(), N, D, MULTIPLES, (1,), flops_per_second=1e15)
    assert table["gpu_hours"].to_numpy() == pytest.approx(table["flops"].to_numpy() / 3.6e18)


def test_the_command_proposes_a_ladder_of_named_sizes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["design", "target_width=0.2", "sizes=60m,100m,190m,370m"]) == 0
    told = capsys.readouterr().out
    assert told.startswith("Cheapest ladder with an interval of ×/÷ 1.2 or less for gdn3_attn1")
    assert "no error of the law itself" in told
    assert main(["design", "sizes=6e7,1e8,2e8", "format=json", "seeds=2"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["cheapest"] in document["ladders"]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ([], "sizes= is missing"),
        (["sizes=60m,100m"], "sizes=60m,100m must be 3 to 10 different sizes"),
        (["sizes=60m,61m,100m"], "size=61m is not known; nearest: 1m, 60m; valid:"),
        (
            ["sizes=60m,100m,190m", "width=2"],
            "width is not a setting; nearest: target_width; valid: at,",
        ),
        (
            ["sizes=60m,100m,190m", "run_sd=-1"],
            "run_sd=-1 must be a share of the loss, at most 0.1",
        ),
        (["sizes=60m,100m,190m", "shared=1"], "shared=1 must be a correlation"),
        (["sizes=60m,100m,190m", "saving=1e30"], "saving=1e30 must be a number from 0.1 to 10"),
        (["sizes=60m,100m,190m", "run_sd=5"], "run_sd=5 must be a share of the loss, at most 0.1"),
        (["sizes=1e-9,2,3"], "must be N of 1,000 parameters or more"),
        (["sizes=60m,100m,190m", "seeds=0"], "seeds=0 must be a whole number"),
        (["sizes=60m,100m,190m", "chinchilla=1,2"], "chinchilla=1,2 must be three multiples"),
        (["sizes=60m,100m,190m", "at=N=1e9"], "at=N=1e9 is not a place"),
        (["sizes"], "points=sizes is not there"),
    ],
)
def test_what_cannot_be_planned_is_one_sentence(
    settings: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["design", *settings]) == 2
    told = capsys.readouterr().err
    assert sentence in told
    assert told.count("\n") == 1


def test_the_frontier_is_drawn_with_its_table_and_what_was_assumed(tmp_path, capsys) -> None:
    asked = ["sizes=6e7,1e8,2e8", "seeds=1,2", "run_sd=0.002", f"figure={tmp_path}/plan/ladders"]
    assert main(["design", *asked, "format=table"]) == 0
    assert "ladders.pdf" in capsys.readouterr().out
    written = {path.suffix for path in (tmp_path / "plan").iterdir()}
    assert written == {".pdf", ".png", ".svg", ".csv", ".json"}
    told = json.loads((tmp_path / "plan" / "ladders.json").read_text())
    assert told["assumed"]["run_sd"] == 0.002
    assert "sizes=6e7,1e8,2e8" in told["command"]
