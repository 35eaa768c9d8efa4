"""What a pilot's points tell a plan, against simulated ladders whose noise is known."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binom, chi2
from synthetic_sweeps import SIZES as SWEEP_SIZES
from synthetic_sweeps import SweepWriter, write_ladder

from ablations.records import SettingError
from analysis.__main__ import main
from analysis.stats.design import Assumed, Ladder, Size, assured, check, expected, simulate
from analysis.stats.seeds import repeated, seed_noise_draws
from analysis.study.pilot import Pilot, learn, sizes_of

NAMED = {"60m": 57e6, "100m": 102e6, "190m": 190e6, "370m": 371e6}
SIZES = tuple(Size(name, N, (6 * N, 6 * N)) for name, N in NAMED.items())
TRUTH = Assumed(run_sd=0.003, point_sd=0.001, shared=0.6, saving=1.4)


def pilot(
    seeds: tuple[int, ...] = (3, 3, 3, 3),
    assumed: Assumed = TRUTH,
    seed: int = 0,
    multiples: tuple[float, ...] = (1, 2, 4, 8),
) -> pd.DataFrame:
    ladder = Ladder(SIZES[: len(seeds)], multiples, seeds)
    rng = np.random.default_rng([41, seed])
    return simulate(ladder, assumed.baseline, assumed.mix, assumed, rng)


def learned_from(points: pd.DataFrame, **given: float) -> Pilot:
    assumed = replace(Assumed(), **given)  # type: ignore[arg-type]  # floats, all of them
    return learn(points, "points=pilot.csv", "base", "mix", assumed, given)


@pytest.mark.parametrize("shared", [0.0, 0.6])
def test_intervals_of_the_noise_hold_the_truth_at_the_stated_rate(shared: float) -> None:
    truth = replace(TRUTH, shared=shared)
    ladders, held = 60, np.zeros(3)
    for i in range(ladders):
        noise = seed_noise_draws(pilot((3, 3, 3), truth, i), draws=1000)
        assert noise is not None
        for place, values in enumerate((noise.run_sd, noise.point_sd, np.maximum(noise.shared, 0))):
            low, high = np.quantile(values, [0.025, 0.975])
            held[place] += low <= (truth.run_sd, truth.point_sd, shared)[place] <= high
    # A right rate of 95 % falls below this once in a thousand.
    assert held.min() >= binom.ppf(1e-3, ladders, 0.95)


def test_point_noise_has_the_posterior_of_its_sum_of_squares() -> None:
    points = pilot((2, 2, 2, 2), replace(TRUTH, shared=0))
    logs = np.log(points["loss"])
    run = [points["mix"], points["size"], points["seed"]]
    # Runs and budgets taken out: what is left of a balanced ladder is point noise alone.
    left = logs - logs.groupby(run).transform("mean")
    left -= left.groupby([points["mix"], points["size"], points["D"]]).transform("mean")
    dof = 8 * (4 - 1)
    ends = np.sqrt((left**2).sum() / chi2.ppf([0.975, 0.5, 0.025], dof))
    noise = seed_noise_draws(points, draws=20000)
    assert noise is not None
    assert np.quantile(noise.point_sd, [0.025, 0.5, 0.975]) == pytest.approx(ends, rel=0.03)


def test_the_noise_of_seeds_holds_nothing_of_the_law() -> None:
    points = pilot()
    bent = points.assign(loss=points["loss"] * (1 + 0.05 * np.sin(np.log(points["D"]) * 3)))
    first, second = (seed_noise_draws(one) for one in (points, bent))
    assert first is not None
    assert second is not None
    assert second.run_sd == pytest.approx(first.run_sd, rel=1e-6)
    assert second.shared == pytest.approx(first.shared, abs=1e-6)


def test_only_budgets_that_seeds_share_tell_noise() -> None:
    points = pilot((2, 1, 1))
    odd = points.assign(D=points["D"] * np.where(points["seed"] == 1, 1.001, 1.0))
    assert repeated(odd).empty
    assert seed_noise_draws(odd) is None
    assert set(repeated(points)["size"]) == {"60m"}


def test_a_full_pilot_tells_the_noise_the_saving_and_the_law() -> None:
    told = learned_from(pilot())
    by_name = {one.name: one for one in told.assumptions}
    assert {one.source for one in by_name.values()} == {"learned"}
    assert told.notes == ()
    truth = {name: getattr(TRUTH, name) for name in ("saving", "run_sd", "point_sd", "shared")}
    for name, value in (truth | TRUTH.baseline.as_dict()).items():
        one = by_name[name]
        assert one.low is not None
        assert one.high is not None
        assert one.low <= value <= one.high, name
        assert one.low <= one.value <= one.high, name
    places = np.array([1e8, 3e8]), np.array([4e9, 2e10])
    law = told.assumed.baseline
    assert law.loss(*places) == pytest.approx(TRUTH.baseline.loss(*places), rel=0.01)


def test_what_is_given_wins_over_what_the_pilot_tells() -> None:
    told = learned_from(pilot(), run_sd=0.02, saving=1.1)
    sources = {one.name: one.source for one in told.assumptions}
    assert (sources["run_sd"], sources["saving"], sources["point_sd"]) == (
        "given", "given", "learned",
    )  # fmt: skip
    assert (told.assumed.run_sd, told.assumed.saving) == (0.02, 1.1)
    assert {(one.run_sd, one.saving) for one in told.draws} == {(0.02, 1.1)}
    assert len({one.point_sd for one in told.draws}) > 100


@pytest.mark.parametrize(
    ("points", "sentence", "untold"),
    [
        (pilot((1, 1, 1, 1)), "two seeds of different losses", {"run_sd", "point_sd", "shared"}),
        (pilot((3, 3)), "mix=base cannot be fitted: it has 2 size(s)", {"saving", "E", "beta"}),
        (pilot((3,)), "No law is learned", {"saving", "E", "beta"}),
        (
            pilot((2, 2, 2)).assign(seed=lambda rows: rows["seed"] + 10 * (rows["mix"] == "mix")),
            "on the same batches, so it cannot tell shared",
            {"shared"},
        ),
        (pilot((3, 3, 3)).query("mix == 'base'"), "no points of mix", {"saving", "shared"}),
        (
            pilot((3, 3, 3)).query("D < 21 * N").reset_index(drop=True),
            "cannot tell point_sd",
            {"point_sd", "saving", "E"},
        ),
    ],
)
def test_what_a_pilot_cannot_tell_is_said_and_keeps_its_default(
    points: pd.DataFrame, sentence: str, untold: set[str]
) -> None:
    told = learned_from(points)
    assert sentence in " ".join(told.notes)
    defaults = {one.name for one in told.assumptions if one.source == "default"}
    assert untold <= defaults
    assert len(defaults) < len(told.assumptions)
    for name in untold & {"saving", "run_sd", "point_sd", "shared"}:
        assert getattr(told.assumed, name) == getattr(Assumed(), name)


@pytest.mark.parametrize(
    ("points", "sentence"),
    [
        (pilot((1, 1)), "points=pilot.csv tells nothing that a plan needs"),
        (
            pilot((2, 2)).assign(loss=lambda rows: 3 - rows["D"] / 1e12),
            "tells nothing that a plan needs",
        ),
        (pilot(assumed=replace(TRUTH, run_sd=0.5)), "seeds that scatter by"),
    ],
)
def test_a_pilot_of_no_use_is_one_sentence(points: pd.DataFrame, sentence: str) -> None:
    with pytest.raises(SettingError, match=sentence):
        learned_from(points)


def test_doubt_about_the_noise_widens_what_is_assured() -> None:
    few, many = (learned_from(pilot((seeds,) * 4), saving=1.4) for seeds in (2, 12))
    ladder = Ladder(SIZES, (1, 2, 4, 8), (4, 4, 4, 4))
    N, D = SIZES[-1].N, 160 * SIZES[-1].N
    above = []
    for told in (few, many):
        width, _ = assured(ladder, told.draws, N, D)
        above.append(np.log(width) / np.log(expected(ladder, told.assumed, N, D)[0]))
    assert above[0] > above[1] > 1


@pytest.mark.slow
def test_the_width_planned_from_a_pilot_is_that_of_ladders_with_the_true_noise() -> None:
    """Nine pilots of ten assure a width that ladders of the true noise keep."""
    ladder = Ladder(SIZES, (1, 2, 4, 8), (3, 3, 3, 3))
    N, D = SIZES[-1].N, 160 * SIZES[-1].N
    drawn = np.log(check(ladder, TRUTH, N, D, ladders=20, resamples=200).width)
    planned, kept = [], 0
    pilots = 16
    for i in range(pilots):
        told = learned_from(pilot(seed=100 + i))
        planned.append(np.log(expected(ladder, told.assumed, N, D)[0]))
        kept += np.log(assured(ladder, told.draws, N, D)[0]) >= 0.9 * drawn
    assert np.median(planned) == pytest.approx(drawn, rel=0.2)
    assert kept >= binom.ppf(1e-3, pilots, 0.9)


def test_sizes_of_a_pilot_cost_what_its_flops_say() -> None:
    points = pilot((1, 1, 1))
    points["C"] = points["D"] * points["N"] * np.where(points["mix"] == "mix", 5.0, 7.0)
    sizes = sizes_of(points, "base", "mix")
    assert [size.N for size in sizes] == [NAMED[name] for name in ("60m", "100m", "190m")]
    assert sizes[0].flops == pytest.approx((7 * 57e6, 5 * 57e6))
    assert sizes_of(points.drop(columns="C"), "base", "mix")[0].flops == (6 * 57e6, 6 * 57e6)


def test_the_command_plans_from_a_pilot_and_says_where_each_number_is_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "pilot.csv"
    pilot().to_csv(path, index=False)
    asked = ["design", f"points={path}", "baseline=base", "mix=mix", "seeds=2,4"]
    asked += ["target_width=0.3", "point_sd=0.002"]
    assert main([*asked, "format=json"]) == 0
    told = json.loads(capsys.readouterr().out)
    sources = {row["assumed"]: row["source"] for row in told["assumed"]}
    assert sources["point_sd"] == "given"
    assert sources["run_sd"] == sources["saving"] == sources["E"] == "learned"
    assert told["assured"]["width_assured"] <= 1.3
    assert told["assured"]["gpu_hours"] >= told["cheapest"]["gpu_hours"]
    assert main(asked) == 0
    shown = capsys.readouterr().out
    assert "of the draws of what was learned" in shown
    assert "repeated run(s)" in shown


def test_a_sweep_is_a_pilot_too(sweep: SweepWriter, capsys: pytest.CaptureFixture[str]) -> None:
    write_ladder(sweep, seeds=(0, 1, 2))
    asked = [f"sweep={sweep.path.name}", f"runs={sweep.path.parent}", "seeds=3", "format=json"]
    assert main(["design", *asked]) == 0
    told = json.loads(capsys.readouterr().out)
    rows = {row["assumed"]: row for row in told["assumed"]}
    assert rows["run_sd"]["low"] <= sweep.run_sd <= rows["run_sd"]["high"]
    assert rows["saving"]["low"] <= 1.3 <= rows["saving"]["high"]
    assert told["ladders"][0]["sizes"].split(",")[0] in SWEEP_SIZES


def test_a_pilot_of_two_sizes_needs_sizes_to_plan(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "pilot.csv"
    pilot((3, 3)).to_csv(path, index=False)
    asked = ["design", f"points={path}", "baseline=base", "mix=mix"]
    assert main(asked) == 2
    assert "has 2 size(s), and a plan chooses among 3 to 10" in capsys.readouterr().err
    assert main([*asked, "sizes=6e7,1e8,2e8", "seeds=3", "format=csv"]) == 0
