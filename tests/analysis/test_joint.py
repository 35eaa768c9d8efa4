"""Joint models over mixes: independent values, nesting, and p values that mean what they say."""

import numpy as np
import pandas as pd
import pytest
from synthetic_sweeps import DATA, TRUTH, grid_points

from ablations.records import SettingError
from analysis.stats.fit import MODELS, SHARED, fit
from analysis.stats.joint import Rung, ladder, p_value
from analysis.stats.model_choice import bic
from analysis.study.load import load_csv

# Computed apart from this code (another optimiser) on the same 66 points; AICc up to a constant.
AICC = {"free": -437.0, "shared_E": -439.8, "shared_exponents": -442.3, "shared": -443.7}
AICC |= {"only_B": -427.2, "pooled": -427.5}
# The chi-squared approximation of the p value of the ratio against `free`.
P = {"shared_exponents": 0.83, "shared": 0.64}


@pytest.fixture(scope="module")
def rungs() -> dict[str, Rung]:
    points = load_csv(DATA / "xlstm_tokenparam.csv")
    return {one.model: one for one in ladder(points, resamples=199)}


def test_joint_models_of_xlstm_against_llama_rank_as_computed_elsewhere(
    rungs: dict[str, Rung],
) -> None:
    assert tuple(rungs) == MODELS
    for model, value in AICC.items():
        found = rungs[model].aicc - rungs["shared"].aicc
        assert found == pytest.approx(value - AICC["shared"], abs=0.11)
    assert max(rungs.values(), key=lambda one: one.weight).model == "shared"
    assert sum(one.weight for one in rungs.values()) == pytest.approx(1)


def test_likelihood_ratios_and_their_p_values(rungs: dict[str, Rung]) -> None:
    assert rungs["shared_exponents"].ratio == pytest.approx(0.38, abs=0.01)
    for model, value in P.items():
        # 199 resamples know a p near 0.7 within 0.07; chi-squared is an approximation besides.
        assert rungs[model].p == pytest.approx(value, abs=0.12)
    for model in ("only_A", "only_B", "only_E", "pooled"):
        assert rungs[model].p < 0.05
    assert np.isnan(rungs["free"].p)


def test_sharing_more_never_fits_better(rungs: dict[str, Rung]) -> None:
    for name, one in rungs.items():
        for other, freer in rungs.items():
            if SHARED[other] < SHARED[name]:  # type: ignore[index]
                assert freer.fit.objective <= one.fit.objective * (1 + 1e-9)
                assert freer.fit.n_parameters > one.fit.n_parameters


def test_p_values_of_a_true_model_are_spread_evenly() -> None:
    law = TRUTH["transformer"]
    found = []
    for seed in range(20):
        points = grid_points({"a": law, "b": law}, noise=0.003, seed=seed)
        null, freest = fit(points, "pooled", "squares"), fit(points, "free", "squares")
        found.append(p_value(null, freest, 40, seed))
    # The mean of 20 uniform numbers is 0.5 within 0.19 (three standard errors).
    assert np.mean(found) == pytest.approx(0.5, abs=0.19)
    assert min(found) < 0.25
    assert max(found) > 0.75


def test_a_difference_in_b_alone_is_seen_as_one() -> None:
    points = grid_points({name: TRUTH[name] for name in ("transformer", "gdn3_attn1")}, noise=1e-3)
    rungs = {one.model: one for one in ladder(points, resamples=60)}
    assert rungs["only_B"].p > 0.05
    for model in ("only_A", "only_E", "pooled"):
        assert rungs[model].p < 0.05


def test_bic_is_minus_twice_the_likelihood_and_its_penalty() -> None:
    from scipy.stats import norm

    residual = np.random.default_rng(0).normal(size=20)
    likelihood = norm(0, np.sqrt((residual**2).mean())).logpdf(residual).sum()
    expected = -2 * likelihood + 4 * np.log(20)
    assert bic(residual, 3) + 20 * (1 + np.log(2 * np.pi)) == pytest.approx(expected)


def test_one_mix_cannot_be_compared() -> None:
    points = grid_points({"gdn": TRUTH["gdn"]})
    with pytest.raises(
        SettingError, match=r"model=all compares mixes, and there is one only \(gdn"
    ):
        ladder(points)


def test_a_rung_is_a_row_of_plain_values(rungs: dict[str, Rung]) -> None:
    table = pd.DataFrame([one.as_dict() for one in rungs.values()])
    assert list(table["parameters"]) == [10, 9, 8, 7, 6, 6, 6, 5]
