"""The mixed model against dense matrices, known noise and a regression; profiles beside it."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import least_squares
from test_uncertainty import BASE, MIX, ladder

from analysis.fit import fit
from analysis.fitting.mixed import generalised, mixed_model, tangent
from analysis.fitting.noise import cluster_ids
from analysis.fitting.profile import profile
from analysis.savings import matched_factor
from analysis.uncertainty import bootstrap, interval


@pytest.fixture(scope="module")
def uneven() -> pd.DataFrame:
    """A ladder as sweeps leave them: one run cut short, one missing in one mix."""
    points = ladder(np.random.default_rng(5), shared=0.5)
    cut = (points["run"] == "base-6e+08-1") & (points["D"] > 3e10)
    return points[~cut & (points["run"] != "mix-6e+07-0")].reset_index(drop=True)


@pytest.mark.parametrize("cell", [0, 700, 2500, -1])
def test_a_cell_of_the_grid_is_generalised_least_squares_by_dense_matrices(
    uneven: pd.DataFrame, cell: int
) -> None:
    fitted = fit(uneven, "free", "squares")
    model, basis = mixed_model(fitted), tangent(fitted)
    runs, batches = cluster_ids(uneven), cluster_ids(uneven, paired=True)
    covariance = np.eye(fitted.n) + model.run[cell] * (runs[:, None] == runs)
    covariance += model.batch[cell] * (batches[:, None] == batches)
    inverse = np.linalg.inv(covariance)
    information = basis.T @ inverse @ basis
    noise = -fitted.residual
    best = np.linalg.solve(information, basis.T @ inverse @ noise)
    left = noise - basis @ best
    assert model.factor[cell] @ model.factor[cell].T == pytest.approx(information, abs=1e-7)
    assert np.linalg.solve(model.factor[cell].T, model.centre[cell]) == pytest.approx(
        best, rel=1e-5
    )
    assert model.squares[cell] == pytest.approx(left @ inverse @ left, rel=1e-5)


def test_cells_are_weighed_by_restricted_likelihood_and_prior(uneven: pd.DataFrame) -> None:
    fitted = fit(uneven, "free", "squares")
    model, basis = mixed_model(fitted), tangent(fitted)
    runs, batches = cluster_ids(uneven), cluster_ids(uneven, paired=True)
    found = []
    for cell in (400, 900, 1500):
        run, batch = model.run[cell], model.batch[cell]
        covariance = np.eye(fitted.n) + run * (runs[:, None] == runs)
        covariance += batch * (batches[:, None] == batches)
        information = basis.T @ np.linalg.solve(covariance, basis)
        log_det = np.linalg.slogdet(covariance)[1] + np.linalg.slogdet(information)[1]
        # Three points a run, two mixes: the ratio of a batch's variance in the mean to the rest.
        ratio = 1 + 2 * 3 * batch / (1 + 3 * run)
        prior = np.log(ratio / (ratio + 1) ** 2)
        found.append(prior - log_det / 2 - model.dof / 2 * np.log(model.squares[cell]))
    share = np.log(model.share[[400, 900, 1500]])
    assert np.diff(share) == pytest.approx(np.diff(found), abs=1e-6)


@pytest.mark.parametrize("shared", [0.0, 0.8])
def test_noise_that_is_known_comes_out(shared: float) -> None:
    points = ladder(np.random.default_rng(2), run_sd=0.004, point_sd=0.001, shared=shared, seeds=20)
    model = mixed_model(fit(points, "free", "squares"))
    point, run, _ = model.sds
    assert point == pytest.approx(0.001, rel=0.1)
    assert run == pytest.approx(0.004 * np.sqrt(1 - shared), rel=0.2)
    assert model.correlation == pytest.approx(shared, abs=0.2)


def test_noise_that_mixes_share_cancels_in_their_ratio() -> None:
    widths = {}
    for shared in (0.0, 0.9):
        points = ladder(np.random.default_rng(3), shared=shared, seeds=8)
        draws = bootstrap(fit(points, "free", "squares"), resamples=400)
        low, high, _ = interval(matched_factor(draws.laws["base"], draws.laws["mix"], 6e8, 4e10))
        widths[shared] = np.log(high / low)
    # sqrt(1 - 0.9) of the run effect, and all of the points' own noise.
    assert widths[0.9] < 0.55 * widths[0.0]


def test_the_generalised_fit_is_that_of_a_plain_optimiser_under_the_same_covariance(
    uneven: pd.DataFrame,
) -> None:
    fitted = fit(uneven, "free", "squares")
    model = mixed_model(fitted)
    cell = int(np.argmax(model.share))
    known = replace(model, share=np.eye(len(model.share))[cell])
    runs, batches = cluster_ids(uneven), cluster_ids(uneven, paired=True)
    covariance = np.eye(fitted.n) + model.run[cell] * (runs[:, None] == runs)
    covariance += model.batch[cell] * (batches[:, None] == batches)
    root = np.linalg.cholesky(np.linalg.inv(covariance)).T
    N, D, loss = (uneven[name].to_numpy() for name in ("N", "D", "loss"))
    is_base = (uneven["mix"] == "base").to_numpy()

    def predicted(x: np.ndarray) -> np.ndarray:
        laws = [
            E + np.exp(a) * (N / 2e8) ** -alpha + np.exp(b) * (D / 1e10) ** -beta
            for E, a, alpha, b, beta in (x[:5], x[5:])
        ]
        return np.log(np.where(is_base, *laws))

    start = [1.6, -0.2, 0.25, -0.5, 0.21] * 2
    best = least_squares(
        lambda x: root @ (predicted(x) - np.log(loss)), start, x_scale="jac", xtol=1e-12, ftol=1e-14
    )
    ours, plain = generalised(fitted, known), np.log(loss) + fitted.residual
    theirs = predicted(best.x)
    # One step along the tangent, against the bent law: a hundredth of the way is left at most.
    away = np.abs(np.log(loss) + ours.residual - theirs).max()
    assert away < 0.02 * np.abs(plain - theirs).max()
    assert ours.words == "each mix its own law; generalised least squares on log residuals"
    assert ours.least is fitted


def test_a_value_and_its_interval_are_of_one_model() -> None:
    # Runs scatter sixty times as much as points: least squares wastes what points within runs say.
    misses, errors = 0, []
    truth = float(np.log(matched_factor(BASE, MIX, 6e8, 4e10)))
    for seed in range(8):
        points = ladder(np.random.default_rng([20, seed]), run_sd=0.003, point_sd=5e-5, seeds=3)
        plain = fit(points, "free", "squares")
        draws = bootstrap(plain, resamples=200)
        low, high, _ = interval(matched_factor(draws.laws["base"], draws.laws["mix"], 6e8, 4e10))
        values = [
            float(matched_factor(one.mixes["base"].law, one.mixes["mix"].law, 6e8, 4e10))
            for one in (generalised(plain, mixed_model(plain)), plain)
        ]
        misses += not low <= values[0] <= high
        errors.append(np.abs(np.log(values) - truth))
    assert misses == 0
    ours, theirs = np.mean(errors, axis=0)
    assert ours < 0.9 * theirs


def test_a_robust_fit_is_not_moved() -> None:
    robust = fit(ladder(np.random.default_rng(4)), "free", "huber")
    assert generalised(robust, mixed_model(robust)) is robust


def test_draws_of_a_robust_fit_stay_where_it_is_beside_an_outlier() -> None:
    points = ladder(np.random.default_rng(4), run_sd=0.0005, point_sd=0.0003)
    largest = points.query("mix == 'base' and N == 6e8 and D == 4.8e10").index
    points.loc[largest[0], "loss"] *= 1.03
    fitted = fit(points, "free", "huber")
    draws = bootstrap(fitted, resamples=500)
    plain = fit(points, "free", "squares").mixes["base"].law.loss(6e8, 4.8e10)
    truth, robust = BASE.loss(6e8, 4.8e10), fitted.mixes["base"].law.loss(6e8, 4.8e10)
    middle = np.median(draws.laws["base"].loss(6e8, 4.8e10))
    assert abs(plain / truth - 1) > 4e-3
    assert middle == pytest.approx(float(robust), rel=1e-3)


def test_one_mix_and_one_point_a_run_are_a_plain_regression() -> None:
    points = ladder(np.random.default_rng(6), run_sd=0.0, seeds=4)
    alone = points[points["mix"] == "base"].reset_index(drop=True)
    alone["run"] = [f"run-{i}" for i in alone.index]
    fitted = fit(alone, "free", "squares")
    model = mixed_model(fitted)
    assert model.share == pytest.approx([1.0])
    level = np.sqrt((fitted.residual**2).sum() / (fitted.n - 5))
    assert model.sds[0] == pytest.approx(level, rel=1e-6)


def test_a_profile_agrees_with_draws_and_does_not_depend_on_the_scale() -> None:
    points = ladder(np.random.default_rng(8), seeds=6)
    fitted = fit(points, "free", "squares")
    draws = bootstrap(fitted, resamples=2000).laws

    def saving(laws: dict) -> float:
        return float(matched_factor(laws["base"], laws["mix"], 6e8, 4e10))

    plain = profile(fitted, saving)
    logs = profile(fitted, lambda laws: np.log(saving(laws)))
    low, high, _ = interval(matched_factor(draws["base"], draws["mix"], 6e8, 4e10))
    assert np.log([plain.low, plain.high]) == pytest.approx([logs.low, logs.high], rel=0.01)
    assert np.log(plain.high / plain.low) == pytest.approx(np.log(high / low), rel=0.12)
    alpha = profile(fitted, lambda laws: laws["base"].alpha)
    low, high, _ = interval(np.asarray(draws["base"].alpha))
    assert (alpha.low, alpha.high) == pytest.approx((low, high), rel=0.08)


def test_a_profile_that_never_falls_has_no_end() -> None:
    # Three sizes with noise of 3 %: E and the largest saving are bounded by nothing.
    points = ladder(np.random.default_rng(9), run_sd=0.03, point_sd=0.01)
    found = profile(fit(points, "free", "squares"), lambda laws: laws["base"].E)
    assert found.low == -np.inf
    assert found.high > found.value
