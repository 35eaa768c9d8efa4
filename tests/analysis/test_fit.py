"""Fits against published optima, and the parts of the solver against definitions."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from synthetic_sweeps import DATA, TRUTH

from ablations.records import SettingError
from analysis.fit import MODELS, fit, lacking
from analysis.laws import Chinchilla
from analysis.load import load_csv
from analysis.model_choice import aicc, choose, model_weights
from analysis.solver import Problem, _model, polish, project

# Besiroglu et al. 2024 (arXiv 2404.10102): their optimum for the 240 points, as they print it.
EPOCH_OBJECTIVE = 0.0010182740346
EPOCH = Chinchilla(1.8172355, 477.842, 0.3473127, 2143.864, 0.3671826)
# Beck et al. 2025, published fits by largest tokens per parameter (sum of Huber values):
# objective and, where it is not zero, E.
XLSTM = {
    ("transformer", 5000): (0.00013850562569640375, 0.8638048),
    ("transformer", 300): (5.8331061638448944e-05, 0.6296298),
    ("transformer", 100): (2.610170341057476e-05, 0.0),
    ("xlstm", 5000): (0.00019833593378293238, 1.2627765),
    ("xlstm", 300): (7.799048165360928e-05, 1.0207366),
    ("xlstm", 100): (3.609915763844115e-05, 0.7107502),
}


@pytest.fixture(scope="module")
def chinchilla() -> pd.DataFrame:
    points = load_csv(DATA / "chinchilla_245.csv")
    return points[~points["excluded"]]


@pytest.fixture(scope="module")
def xlstm() -> pd.DataFrame:
    return load_csv(DATA / "xlstm_tokenparam.csv")


def grid_points(laws: dict[str, Chinchilla], noise: float = 0.0) -> pd.DataFrame:
    """Four sizes, three budgets, exact or with independent noise."""
    rng = np.random.default_rng(0)
    rows = [
        (mix, str(N), f"{mix}-{N}", N, D, float(law.loss(N, D)) * np.exp(noise * rng.normal()))
        for mix, law in laws.items()
        for N in (50_000, 100_000, 200_000, 400_000)
        for D in (20 * N, 40 * N, 80 * N)
    ]
    return pd.DataFrame(rows, columns=["mix", "size", "run", "N", "D", "loss"]).assign(seed=0)


def test_chinchilla_240_reaches_the_published_optimum_or_better(chinchilla: pd.DataFrame) -> None:
    assert len(chinchilla) == 240
    one = fit(chinchilla, "free", "huber", 1e-3).mixes["transformer"]
    assert one.objective <= EPOCH_OBJECTIVE * (1 + 1e-6)
    assert one.objective == pytest.approx(EPOCH_OBJECTIVE, rel=1e-6)
    for name in ("A", "B"):
        assert getattr(one.law, name) == pytest.approx(getattr(EPOCH, name), rel=2e-3)
    for name in ("E", "alpha", "beta"):
        assert getattr(one.law, name) == pytest.approx(getattr(EPOCH, name), abs=1e-4)
    assert one.gradient_norm < 1e-8
    assert one.starts_agreeing > 0.9
    assert one.identified


@pytest.mark.parametrize(("mix", "most"), XLSTM)
def test_xlstm_published_objectives_come_out_or_better(
    xlstm: pd.DataFrame, mix: str, most: int
) -> None:
    objective, E = XLSTM[(mix, most)]
    points = xlstm[(xlstm["mix"] == mix) & (xlstm["tokens_per_param"] <= most)]
    one = fit(points, "free", "huber", 1e-3).mixes[mix]
    assert one.objective <= objective * (1 + 1e-9)
    assert one.objective == pytest.approx(objective, rel=1e-6)
    assert pytest.approx(E, abs=2e-3) == one.law.E


def test_a_parameter_on_its_bound_is_reported(xlstm: pd.DataFrame) -> None:
    points = xlstm[(xlstm["mix"] == "transformer") & (xlstm["tokens_per_param"] <= 100)]
    one = fit(points, "free", "huber").mixes["transformer"]
    assert one.at_bound == ("E",)
    assert not one.identified


def test_aicc_ranks_the_joint_models_of_xlstm_against_llama(xlstm: pd.DataFrame) -> None:
    # Every row there is a run of its own, so the run effect drops out. Independent values:
    # free -437.0, shared alpha and beta -442.3, shared with E -443.7, up to one constant.
    choice = choose(xlstm)
    assert choice.best.model == "shared_exponents"
    assert set(choice.weights) == {"free", "shared_exponents"}
    lowest = choice.aicc["shared"]
    assert choice.aicc["free"] - lowest == pytest.approx(443.7 - 437.0, abs=0.1)
    assert choice.aicc["shared_exponents"] - lowest == pytest.approx(443.7 - 442.3, abs=0.1)


def test_aicc_is_minus_twice_the_gaussian_log_likelihood_and_a_penalty() -> None:
    from scipy.stats import multivariate_normal

    rng = np.random.default_rng(0)
    residual, runs, ratio, k = rng.normal(size=12), np.repeat(np.arange(4), 3), 2.5, 3
    shape = np.eye(12) + ratio * (runs[:, None] == runs)
    variance = residual @ np.linalg.solve(shape, residual) / 12
    likelihood = multivariate_normal(np.zeros(12), variance * shape).logpdf(residual)
    expected = -2 * likelihood + 2 * 4 + 2 * 4 * 5 / (12 - 4 - 1)
    # The constant n (1 + log 2 pi) is the same for every model and left out.
    assert aicc(residual, k, runs, ratio) + 12 * (1 + np.log(2 * np.pi)) == pytest.approx(expected)


def test_weights_of_incomparable_models_go_to_the_simplest() -> None:
    infinite = dict.fromkeys(MODELS, float("inf"))
    assert model_weights(infinite) == {"free": 0.0, "shared_exponents": 0.0, "shared": 1.0}
    assert sum(model_weights({"free": -10.0, "shared": -12.0}).values()) == pytest.approx(1)


@pytest.mark.parametrize("loss", ["huber", "squares"])
@pytest.mark.parametrize("model", MODELS)
def test_a_law_without_noise_is_found_again(model: str, loss: str) -> None:
    laws = {name: TRUTH[name] for name in ("transformer", "gdn3_attn1")}
    fitted = fit(grid_points(laws), model, loss)  # type: ignore[arg-type]
    for name, law in laws.items():
        found = fitted.mixes[name].law
        for coefficient, value in law.as_dict().items():
            assert getattr(found, coefficient) == pytest.approx(value, rel=1e-4)


@pytest.mark.parametrize("near", [False, True])
@pytest.mark.parametrize("share_E", [False, True])
def test_objective_gradient_and_hessian_agree_with_finite_differences(
    share_E: bool, near: bool
) -> None:
    laws = {name: TRUTH[name] for name in ("transformer", "gdn")}
    points = grid_points(laws, noise=0.004)
    index = (points["mix"] == "gdn").to_numpy().astype(np.intp)
    problem = Problem(points["N"].to_numpy(float), points["D"].to_numpy(float), index, 2, share_E)
    log_loss = np.log(points["loss"].to_numpy())[None]
    weight = np.ones_like(log_loss)
    _, cells = project(problem, log_loss, weight)
    theta = cells[0, 16, 15][None]
    flags = np.array([near])

    def gradient(at: np.ndarray, delta: float) -> np.ndarray:
        return _model(problem, at, log_loss, weight, delta, flags)[1][0]

    for delta in (3e-3, np.inf):
        value, slope, curvature = _model(problem, theta, log_loss, weight, delta, flags)
        for j in range(problem.n_parameters):
            step = np.zeros_like(theta)
            step[0, j] = 1e-6
            up, down = (
                _model(problem, theta + s * step, log_loss, weight, delta, flags)[0][0]
                for s in (1, -1)
            )
            assert (up - down) / 2e-6 == pytest.approx(slope[0, j], rel=1e-5, abs=1e-9)
            if near:
                change = (gradient(theta + step, delta) - gradient(theta - step, delta)) / 2e-6
                assert change == pytest.approx(curvature[0, j], rel=1e-4, abs=1e-6)
        assert value[0] > 0


def test_the_projection_is_the_least_squares_optimum_of_its_cell() -> None:
    points = grid_points({"transformer": TRUTH["transformer"]}, noise=0.01)
    N, D = points["N"].to_numpy(float), points["D"].to_numpy(float)
    problem = Problem(N, D, np.zeros(len(N), np.intp), 1, share_E=False)
    log_loss = np.log(points["loss"].to_numpy())[None]
    objective, theta = project(problem, log_loss, np.ones_like(log_loss))
    i, j = 15, 16
    alpha, beta = theta[0, i, j, -2:]
    columns = (
        np.stack([np.ones_like(N), N**-alpha, D**-beta], 1) / points["loss"].to_numpy()[:, None]
    )
    coefficients, _, _, _ = np.linalg.lstsq(columns, np.ones(len(N)), rcond=None)
    assert (coefficients > 0).all()
    law = problem.law(theta[0, i, j], 0)
    assert pytest.approx(tuple(coefficients), rel=1e-6) == (law.E, law.A, law.B)
    assert objective[0, i, j] == pytest.approx(((columns @ coefficients - 1) ** 2).sum(), rel=1e-5)


def test_polish_keeps_to_the_bounds() -> None:
    points = grid_points({"transformer": Chinchilla(0.0, 3.0, 0.05, 40.0, 0.3)}, noise=0.003)
    N, D = points["N"].to_numpy(float), points["D"].to_numpy(float)
    problem = Problem(N, D, np.zeros(len(N), np.intp), 1, share_E=False)
    log_loss = np.log(points["loss"].to_numpy())[None]
    low, high = problem.bounds(log_loss)
    start = ((low + high) / 2)[None]
    theta = polish(problem, start, log_loss, np.ones_like(log_loss)).theta[0]
    assert (theta >= low).all()
    assert (theta <= high).all()


@pytest.mark.parametrize(
    ("keep", "words"),
    [
        (lambda p: p["N"] == 50_000, "3 points"),
        (lambda p: p["N"] <= 100_000, "2 size(s)"),
        (lambda p: p["N"] > 0, ""),
    ],
)
def test_what_is_lacking_for_a_fit_is_said(keep: object, words: str) -> None:
    points = grid_points({"transformer": TRUTH["transformer"]})
    kept = points[keep(points)]  # type: ignore[operator]
    assert words in lacking(kept)
    assert bool(lacking(kept)) == bool(words)
    if words:
        with pytest.raises(SettingError, match="mix=transformer cannot be fitted"):
            fit(kept)
