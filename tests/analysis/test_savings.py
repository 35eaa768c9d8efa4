"""Savings against laws whose savings are known, in and out of range, with and without a fit."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from synthetic_sweeps import SIZES, TRUTH, SweepWriter, write_ladder

from ablations.records import SettingError
from analysis.stats.fit import fit
from analysis.stats.laws import Chinchilla
from analysis.stats.savings import (
    fit_free,
    matched_factor,
    places,
    savings_factor,
    seconds_per_token,
    token_range,
    token_savings,
)
from analysis.stats.uncertainty import bootstrap
from analysis.study.load import load_sweep


@pytest.fixture
def exact(sweep: SweepWriter) -> pd.DataFrame:
    """Points without noise: savings of gdn3_attn1 are 1.3 everywhere."""
    writer = SweepWriter(sweep.path, run_sd=0, point_sd=0)
    write_ladder(writer, sizes=tuple(SIZES), seeds=(0,))
    return load_sweep(writer.path).points


def test_known_savings_come_out_with_and_without_a_fit(exact: pd.DataFrame) -> None:
    fitted = fit(exact, "free", "squares")
    draws = bootstrap(fitted, resamples=20)
    for _, N, D in places(exact, "transformer"):
        (one,) = token_savings(fitted, draws, "transformer", N, D)
        assert one.value == pytest.approx(1.3, rel=1e-3)
        assert one.tokens_mix == pytest.approx(D / 1.3, rel=1e-3)
        assert one.in_range
    free = fit_free(exact, "transformer")
    assert len(free) == 2 * len(SIZES)
    # Three budgets a factor of two apart: the interpolation itself is good to a few tenths of %.
    assert free["value"].to_numpy() == pytest.approx(1.3, rel=0.01)
    assert set(free["bound"]) == {""}


def test_a_target_loss_gives_the_ratio_of_both_inversions(exact: pd.DataFrame) -> None:
    fitted = fit(exact, "shared", "squares")
    draws = bootstrap(fitted, resamples=20)
    (one,) = token_savings(fitted, draws, "transformer", 2e5, 0.0, target_loss=1.6)
    base, mix = (TRUTH[name].tokens(2e5, 1.6) for name in ("transformer", "gdn3_attn1"))
    assert one.value == pytest.approx(float(base / mix), rel=1e-3)
    assert pytest.approx(float(base), rel=1e-3) == one.D


def test_what_lies_outside_the_measured_range_is_said_by_how_much(exact: pd.DataFrame) -> None:
    fitted = fit(exact, "free", "squares")
    draws = bootstrap(fitted, resamples=20)
    N, D = 2 * SIZES["400k"], 80 * 2 * SIZES["400k"]
    (one,) = token_savings(fitted, draws, "transformer", N, D)
    assert one.N_beyond == pytest.approx(2, rel=1e-3)
    assert one.D_beyond == pytest.approx(1, rel=1e-2)
    assert one.range_words == "extrapolated: N ×2"
    (one,) = token_savings(fitted, draws, "transformer", SIZES["100k"], 10 * 80 * SIZES["100k"])
    assert one.D_beyond == pytest.approx(10, rel=1e-2)
    assert one.D_mix_beyond == pytest.approx(10 / 1.3, rel=2e-2)
    assert not one.in_range


def test_the_range_of_tokens_is_interpolated_between_sizes(exact: pd.DataFrame) -> None:
    N = np.array([50_112, 141_000, 1e6])
    low, high = token_range(exact, "transformer", N)
    assert low == pytest.approx(20 * N, rel=0.01)
    assert high == pytest.approx(80 * N, rel=0.01)


def test_a_target_out_of_reach_is_zero_infinite_or_undefined() -> None:
    good, bad = Chinchilla(1, 10, 0.3, 10, 0.3), Chinchilla(2, 10, 0.3, 10, 0.3)
    N, target = 1e6, 1.5
    assert savings_factor(good, bad, N, target) == 0
    assert savings_factor(bad, good, N, target) == np.inf
    assert np.isnan(savings_factor(bad, bad, N, target))
    assert matched_factor(good, bad, N, 1e9) == 0


def test_a_mix_that_starts_below_the_target_is_bounded_not_guessed(exact: pd.DataFrame) -> None:
    better = exact["mix"] == "gdn3_attn1"
    far = exact.assign(loss=exact["loss"].where(~better, exact["loss"] * 0.5))
    free = fit_free(far, "transformer")
    assert set(free["bound"]) == {"at least"}
    assert free["value"].to_numpy() == pytest.approx(4, rel=0.01)
    near = exact.assign(loss=exact["loss"].where(~better, exact["loss"] * 2))
    assert set(fit_free(near, "transformer")["bound"]) == {"at most"}


def test_with_one_budget_nothing_is_read_off_and_the_columns_stay(exact: pd.DataFrame) -> None:
    free = fit_free(exact[exact["D"] == exact.groupby("run")["D"].transform("max")], "transformer")
    assert free.empty
    assert {"value", "low", "high", "p_above_1", "bound"} <= set(free)


def test_without_a_fit_only_seeds_that_both_mixes_have_are_compared(exact: pd.DataFrame) -> None:
    alone = exact[exact["mix"] == "transformer"].assign(seed=5, loss=1.0, run="another")
    free = fit_free(pd.concat([exact, alone], ignore_index=True), "transformer")
    assert set(free["seed"]) == {"mean", "0"}
    assert free["value"].to_numpy() == pytest.approx(1.3, rel=0.01)


def test_intervals_without_a_fit_are_students_t_on_the_seeds_log_savings(
    sweep: SweepWriter,
) -> None:
    write_ladder(sweep, sizes=("50k", "100k"), seeds=(0, 1, 2))
    free = fit_free(load_sweep(sweep.path).points, "transformer")
    single = free[free["seed"] != "mean"]
    logs = [np.log(own["value"].to_numpy()) for _, own in single.groupby("size")]
    pooled = np.sqrt(np.mean([np.var(own, ddof=1) for own in logs]))
    reach = 2.7764 * pooled / np.sqrt(3)  # Student's t, 97.5 %, four degrees of freedom
    mean = free[free["seed"] == "mean"]
    assert np.log(mean["high"] / mean["value"]).to_numpy() == pytest.approx(reach, rel=1e-3)
    assert np.log(mean["value"] / mean["low"]).to_numpy() == pytest.approx(reach, rel=1e-3)
    assert single["low"].isna().all()


def test_time_per_token_is_that_of_the_last_point_of_each_run(exact: pd.DataFrame) -> None:
    slower = exact.assign(
        seconds=exact["seconds"].where(exact["mix"] == "transformer", exact["seconds"] * 2)
    )
    speeds = seconds_per_token(slower)
    assert speeds[speeds["mix"] == "transformer"]["seconds"].to_numpy() == pytest.approx(2e-5)
    assert speeds[speeds["mix"] == "gdn3_attn1"]["seconds"].to_numpy() == pytest.approx(4e-5)
    assert (speeds["runs"] == exact.groupby(["mix", "size"])["run"].nunique().iloc[0]).all()
    assert seconds_per_token(exact.assign(seconds=np.nan)).empty


@pytest.mark.parametrize(
    ("mixes", "baseline", "sentence"),
    [
        (["transformer", "gdn3_attn1"], "mamba2", "baseline=mamba2 is not among the mixes"),
        (["transformer"], "transformer", "savings compare two mixes or more"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    exact: pd.DataFrame, mixes: list[str], baseline: str, sentence: str
) -> None:
    fitted = fit(exact[exact["mix"].isin(mixes)], "free", "squares")
    with pytest.raises(SettingError, match=sentence):
        token_savings(fitted, bootstrap(fitted, resamples=20), baseline, 1e5, 1e6)
