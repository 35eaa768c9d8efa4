"""The mixed model against dense matrices, known noise, statsmodels and plain regressions."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import least_squares
from statsmodels.regression.mixed_linear_model import MixedLM
from test_uncertainty import BASE, MIX, ladder

from analysis.stats.fit import fit
from analysis.stats.interval import percentiles, share_unreachable
from analysis.stats.laws import Chinchilla
from analysis.stats.mixed import (
    RUN_TO_POINT,
    SLOPE_SD,
    Effect,
    MixedModel,
    mixed_model,
    tangent,
)
from analysis.stats.noise import cluster_ids
from analysis.stats.savings import matched_factor
from analysis.stats.uncertainty import bootstrap
from analysis.study.load import load_csv

CASES = Path(__file__).parents[1] / "data" / "cases"
SIZES = (6e7, 1.3e8, 2.5e8, 6e8)


def four_sizes(rng: np.random.Generator, seeds: int = 2, slope: float = 0.0) -> pd.DataFrame:
    """Four sizes, three budgets; the variance of runs goes as N^slope, 0.3 % at 190M."""
    rows = []
    for N in SIZES:
        for seed in range(seeds):
            for name, law in (("base", BASE), ("mix", MIX)):
                luck = 0.003 * (N / 1.9e8) ** (slope / 2) * rng.normal()
                for D in 20 * N * np.array([1.0, 2.0, 4.0]):
                    loss = float(law.loss(N, D)) * np.exp(luck + 0.001 * rng.normal())
                    rows.append((name, f"{N:g}", seed, f"{name}-{N:g}-{seed}", N, D, loss))
    return pd.DataFrame(rows, columns=["mix", "size", "seed", "run", "N", "D", "loss"])


@pytest.fixture(scope="module")
def uneven() -> pd.DataFrame:
    """A ladder as sweeps leave them: one run cut short, one missing in one mix."""
    points = four_sizes(np.random.default_rng(5))
    cut = (points["run"] == "base-6e+08-1") & (points["D"] > 3e10)
    return points[~cut & (points["run"] != "mix-6e+07-0")].reset_index(drop=True)


def dense(effect: Effect, variance: float, shared: float, slope: float) -> np.ndarray:
    """The covariance (n, n) of an effect, entry by entry from its definition."""
    n = len(effect.level)
    found = np.zeros((n, n))
    for i in range(n):
        for j in range(n):
            a, b = effect.level[i], effect.level[j]
            part = 1.0 if a == b else shared if effect.family[a] == effect.family[b] else 0.0
            scale = np.exp(slope * (effect.log_N[a] + effect.log_N[b]) / 2)
            found[i, j] = part * variance * scale * effect.value[i] * effect.value[j]
    return found


def covariance(model: MixedModel, cell: int) -> np.ndarray:
    """Of the noise in one cell, over a point's variance."""
    run = dense(model.runs, model.run[cell], model.run_shared[cell], model.slope[cell])
    tilt = dense(model.tilts, model.tilt[cell], model.tilt_shared[cell], model.slope[cell])
    return np.eye(model.fit.n) + run + tilt


def test_cells_are_restricted_likelihoods_by_dense_matrices(uneven: pd.DataFrame) -> None:
    fitted = fit(uneven, "free", "squares")
    model, basis = mixed_model(fitted), tangent(fitted)
    cells = np.argsort(model.share)[[-1, -400, -2500]]
    mixes, found = 2, []
    for cell in cells:
        V = covariance(model, int(cell))
        inverse = np.linalg.inv(V)
        information = basis.T @ inverse @ basis
        noise = -fitted.residual
        left = noise - basis @ np.linalg.solve(information, basis.T @ inverse @ noise)
        squares = left @ inverse @ left
        assert model.squares[cell] == pytest.approx(squares, rel=1e-5)
        log_det = np.linalg.slogdet(V)[1] + np.linalg.slogdet(information)[1]
        # Uniform in the correlation, which the grid has by w of e^w = (1 + (m - 1) r) / (1 - r).
        r = model.run_shared[cell]
        ratio = (1 + (mixes - 1) * r) / (1 - r)
        prior = np.log(ratio / (ratio + mixes - 1) ** 2)
        prior -= np.log1p(model.run[cell] / RUN_TO_POINT**2)
        prior -= (model.slope[cell] / SLOPE_SD) ** 2 / 2
        found.append(prior - log_det / 2 - model.dof / 2 * np.log(squares))
    assert np.diff(np.log(model.share[cells])) == pytest.approx(np.diff(found), abs=1e-5)


def test_draws_have_the_covariance_of_the_model(uneven: pd.DataFrame) -> None:
    model = mixed_model(fit(uneven, "free", "squares"))
    cell = int(np.argmax(model.share))
    rng = np.random.default_rng(0)
    one = np.full(40_000, cell)
    for effect, variance, shared in (
        (model.runs, model.run, model.run_shared),
        (model.tilts, model.tilt + 0.5, model.tilt_shared),
    ):
        each = variance[one][:, None] * np.exp(model.slope[one][:, None] * effect.log_N)
        seen = np.cov(effect.drawn(rng, each, shared[one]).T)
        known = dense(effect, variance[cell], shared[cell], model.slope[cell])
        assert seen == pytest.approx(known, abs=0.03 * np.abs(known).max())


@pytest.mark.parametrize("shared", [0.0, 0.8])
def test_noise_that_is_known_comes_out(shared: float) -> None:
    points = ladder(np.random.default_rng(2), run_sd=0.004, point_sd=0.001, shared=shared, seeds=20)
    model = mixed_model(fit(points, "free", "squares"))
    point, run, misfit = model.sds
    assert point == pytest.approx(0.001, rel=0.1)
    assert run == pytest.approx(0.004, rel=0.2)
    assert misfit < 0.0002
    assert model.correlation == pytest.approx(shared, abs=0.2)


def test_variances_agree_with_those_of_statsmodels() -> None:
    for seed in range(3):
        points = ladder(np.random.default_rng([40, seed]), seeds=12)
        fitted = fit(points, "free", "squares")
        model = mixed_model(fitted)
        # REML of the same linear model: tangent as fixed effects, a random intercept for each run.
        oracle = MixedLM(-fitted.residual, tangent(fitted), points["run"]).fit(reml=True)
        point, run, _ = model.sds
        assert point == pytest.approx(np.sqrt(oracle.scale), rel=0.03)
        between = float(np.asarray(oracle.cov_re).ravel()[0])
        assert run == pytest.approx(np.sqrt(between), rel=0.06)


def test_noise_that_goes_with_size_is_found_and_even_noise_is_not() -> None:
    for slope in (-1.5, 0.0, 1.5):
        points = four_sizes(np.random.default_rng([41, int(slope) + 2]), seeds=10, slope=slope)
        mean, low, high = mixed_model(fit(points, "free", "squares")).slope_interval()
        assert low < slope < high
        assert mean == pytest.approx(slope, abs=0.5)


def test_noise_that_mixes_share_cancels_in_their_ratio() -> None:
    widths = {}
    for shared in (0.0, 0.9):
        points = ladder(np.random.default_rng(3), shared=shared, seeds=8)
        draws = bootstrap(fit(points, "free", "squares"), resamples=400)
        low, high = percentiles(matched_factor(draws.laws["base"], draws.laws["mix"], 6e8, 4e10))
        widths[shared] = np.log(high / low)
    # sqrt(1 - 0.9) of the run effect, and all of the points' own noise.
    assert widths[0.9] < 0.55 * widths[0.0]


def test_the_value_is_that_of_a_plain_optimiser_with_the_same_weights(
    uneven: pd.DataFrame,
) -> None:
    fitted = fit(uneven, "free", "squares")
    model = mixed_model(fitted)
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
        lambda x: np.sqrt(model.weights) * (predicted(x) - np.log(loss)),
        start, x_scale="jac", xtol=1e-14, ftol=1e-14, gtol=1e-14,
    )  # fmt: skip
    assert np.log(loss) + model.best.residual == pytest.approx(predicted(best.x), abs=1e-6)
    assert model.best.words.endswith(
        "least squares weighted by the noise at each size on log residuals"
    )
    assert model.best.least is fitted


@pytest.mark.parametrize(
    ("name", "measured", "within"),
    [("a", (2.765, 2.555, 2.446), 0.02), ("b", (2.747, 2.277, 2.082), 0.03)],
)
def test_a_law_that_is_only_close_stays_on_its_points(
    name: str, measured: tuple[float, ...], within: float
) -> None:
    # Noise-free losses of another form; the mix needs 1.3 times fewer tokens everywhere.
    points = load_csv(CASES / f"own_points_{name}.csv")
    model = mixed_model(fit(points, "free", "squares"))
    draws = bootstrap(model.fit, resamples=1000, model=model)
    laws = {mix: one.law for mix, one in model.best.mixes.items()}
    for (_, own), loss in zip(
        points[points["mix"] == "transformer"].groupby("N"), measured, strict=True
    ):
        place = own["N"].iloc[0], 3e11
        assert laws["transformer"].loss(*place) == pytest.approx(loss, rel=within)
        value = matched_factor(laws["transformer"], laws["hybrid"], *place)
        assert value == pytest.approx(1.3, rel=0.01)
        factors = matched_factor(draws.laws["transformer"], draws.laws["hybrid"], *place)
        low, high = percentiles(factors)
        assert low < 1.3 < high
        assert np.sqrt(high / low) < 2.5
        assert share_unreachable(factors) < 0.02


def test_published_optimizers_save_what_interpolation_measures() -> None:
    # AdamW and Muon of Wen et al. 2025 at 8x Chinchilla: losses of AdamW, and Muon's savings by
    # interpolating its own losses in log D.
    points = load_csv(CASES / "adamw_muon.csv")
    model = mixed_model(fit(points, "free", "squares"))
    draws = bootstrap(model.fit, resamples=1000, model=model)
    law = model.best.mixes["adamw"].law
    for N, measured, saving in (
        (134217728, 3.2606, 1.35), (301989888, 3.0423, 1.24),
        (536870912, 2.9128, 1.21), (1207959552, 2.7523, 1.08),
    ):  # fmt: skip
        place = float(N), 160.0 * N
        assert law.loss(*place) == pytest.approx(measured, rel=0.01)
        low, high = percentiles(matched_factor(draws.laws["adamw"], draws.laws["muon"], *place))
        assert low < saving < high
        assert high / low < 2


def test_the_gamma_form_is_off_by_no_more_than_least_squares() -> None:
    # xLSTM's published gamma fits (Beck et al. 2025), which Chinchilla's form follows to 0.3 %.
    laws = {
        "base": Chinchilla(np.exp(0.012), np.exp(11.992), 0.527, np.exp(13.359), 0.508, 0.293),
        "mix": Chinchilla(np.exp(0.113), np.exp(16.223), 0.728, np.exp(17.313), 0.671, 0.239),
    }
    rng = np.random.default_rng(50)
    rows = [
        (mix, f"{N:g}", seed, f"{mix}-{N:g}-{seed}", N, D,
         float(law.loss(N, D)) * np.exp(luck + 0.001 * rng.normal()))
        for mix, law in laws.items() for N in (5e7, 1e8, 1.9e8, 3.7e8, 6e8, 1.2e9)
        for seed in range(2) for luck in [0.003 * rng.normal()]
        for D in N * np.array([20, 40, 80, 160.0])
    ]  # fmt: skip
    points = pd.DataFrame(rows, columns=["mix", "size", "seed", "run", "N", "D", "loss"])
    model = mixed_model(fit(points, "free", "squares"))
    assert model.best.mixes["base"].largest_error < 0.015
    assert model.best.rms < 1.2 * model.fit.rms
    draws = bootstrap(model.fit, resamples=400, model=model)
    for N, D in ((5e7, 4e9), (1.2e9, 1.92e11)):
        low, high = percentiles(matched_factor(draws.laws["base"], draws.laws["mix"], N, D))
        assert low < matched_factor(laws["base"], laws["mix"], N, D) < high
        assert np.sqrt(high / low) < 2


def test_a_robust_fit_and_one_with_weights_are_not_moved() -> None:
    points = four_sizes(np.random.default_rng(4), slope=-2.0)
    squares, robust = fit(points, "free", "squares"), fit(points, "free", "huber")
    assert mixed_model(squares).best is not squares
    assert mixed_model(robust).best is robust
    weighted = fit(points.assign(weight=1 + (points["N"] > 2e8)), "free", "squares")
    assert mixed_model(weighted).best is weighted
    # A weight that all points share is none.
    same = mixed_model(fit(points.assign(weight=2.0), "free", "squares")).best
    values = [one.mixes["mix"].law.loss(6e8, 4e10) for one in (same, mixed_model(squares).best)]
    assert values[0] == pytest.approx(float(values[1]), rel=1e-4)


def test_points_of_little_weight_have_noise_of_their_own() -> None:
    points = four_sizes(np.random.default_rng(8), seeds=4)
    rng = np.random.default_rng(9)
    loud = rng.random(len(points)) < 0.3
    # Ten times the noise of a point, and a hundredth of its weight.
    points["loss"] *= np.exp(np.where(loud, 0.01 * rng.normal(size=len(points)), 0))
    model = mixed_model(fit(points.assign(weight=np.where(loud, 0.01, 1.0)), "free", "squares"))
    assert model.sds[0] == pytest.approx(0.001, rel=0.2)
    drawn = model.draw(rng, 4000).std(axis=0)
    assert drawn[loud].mean() > 2 * drawn[~loud].mean()


def test_what_is_held_costs_no_degree_of_freedom() -> None:
    points = four_sizes(np.random.default_rng(10))
    held = fit(points, "free", "squares", held={"E": 1.6449, "alpha": 0.25208})
    assert mixed_model(held).dof == held.n - 6
    assert mixed_model(fit(points, "free", "squares")).dof == held.n - 10


def test_a_run_is_of_one_mix_and_size_whatever_has_its_name(tmp_path: Path) -> None:
    points = four_sizes(np.random.default_rng(11)).drop(columns="seed")
    ends = []
    for names in (points["run"], points["run"].str[-1], points["run"].str.partition("-")[2]):
        path = tmp_path / "points.csv"
        points.assign(run=names).to_csv(path, index=False)
        laws = bootstrap(fit(load_csv(path), "free", "squares"), resamples=50).laws
        ends.append(percentiles(matched_factor(laws["base"], laws["mix"], 6e8, 4e10)))
        assert cluster_ids(points.assign(run=names)).max() == points["run"].nunique() - 1
    assert ends[0] == pytest.approx(ends[1], rel=1e-9)
    assert ends[0] == pytest.approx(ends[2], rel=1e-9)


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
