"""Losses against published optima, definitions, and scipy."""

import numpy as np
import pandas as pd
import pytest
from scipy import optimize, special, stats
from synthetic_sweeps import DATA

from analysis.stats.fit import DELTA, LOSSES, fit
from analysis.stats.losses import Huber, Student, criterion
from analysis.study.load import load_csv

# Besiroglu et al. 2024, table 1: their estimate, whose likelihood with a free scale is the limit of
# least absolute deviations.
PUBLISHED = {"A": 482.006, "B": 2085.434, "E": 1.81686, "alpha": 0.347813, "beta": 0.365854}


@pytest.fixture(scope="module")
def chinchilla() -> pd.DataFrame:
    points = load_csv(DATA / "chinchilla_245.csv")
    return points[~points["excluded"]]


def test_least_absolute_deviations_give_the_published_estimate(chinchilla: pd.DataFrame) -> None:
    fitted = fit(chinchilla, loss="absolute")
    one = fitted.mixes["transformer"]
    for name, value in PUBLISHED.items():
        assert getattr(one.law, name) == pytest.approx(value, rel=1e-5)
    assert one.objective == pytest.approx(np.abs(fitted.residual).sum())
    # No direction lowers the sum of |residual|: the best linearised step, by linear programming.
    block = fitted.blocks[0]
    J = block.problem.jacobian(block.theta[None])[0]
    J = J / np.linalg.norm(J, axis=0)
    n, p = J.shape
    cost = np.r_[np.zeros(p), np.ones(n)]
    sides = np.block([[J, -np.eye(n)], [-J, -np.eye(n)]])
    limits = np.r_[-fitted.residual, fitted.residual]
    bounds = [(-0.01, 0.01)] * p + [(0, None)] * n
    best = optimize.linprog(cost, A_ub=sides, b_ub=limits, bounds=bounds)
    assert best.fun == pytest.approx(one.objective, rel=1e-6)


def test_student_s_t_is_the_maximum_of_its_likelihood(chinchilla: pd.DataFrame) -> None:
    some = chinchilla.iloc[::3]
    fitted = fit(some, loss="student")
    one = fitted.mixes["transformer"]
    N, D, loss = (some[name].to_numpy(float) for name in ("N", "D", "loss"))
    assert isinstance(fitted.threshold, Student)

    def minus_log_likelihood(x: np.ndarray) -> float:
        logs = [x[0] + 0 * N, x[1] - x[2] * np.log(N), x[3] - x[4] * np.log(D)]
        law = special.logsumexp(np.clip(logs, -300, 300), axis=0)
        return -stats.t.logpdf(law - np.log(loss), 4, scale=np.exp(np.clip(x[5], -20, 5))).sum()

    law = one.law
    x = [np.log(law.E), np.log(law.A), law.alpha, np.log(law.B), law.beta]
    x.append(np.log(fitted.threshold.scale))
    assert one.objective == pytest.approx(minus_log_likelihood(np.array(x)), rel=1e-9)
    rng = np.random.default_rng(0)
    found = [
        optimize.minimize(minus_log_likelihood, x + 0.1 * rng.normal(size=6), method="BFGS").fun
        for _ in range(3)
    ]
    assert min(found) >= one.objective - 1e-5
    assert min(found) == pytest.approx(one.objective, abs=1e-2)


@pytest.mark.parametrize("loss", LOSSES)
def test_slopes_and_curvatures_are_derivatives_and_majorisers_lie_above(loss: str) -> None:
    one = criterion(loss, 0.01) if loss != "absolute" else Huber(0.01, per_delta=True)  # type: ignore[arg-type]
    r = np.array([-0.3, -0.011, -0.004, 0.002, 0.009, 0.05, 1.0])
    h = 1e-7
    assert (one.value(r + h) - one.value(r - h)) / (2 * h) == pytest.approx(one.slope(r), rel=1e-5)
    change = (one.slope(r + h) - one.slope(r - h)) / (2 * h)
    assert change == pytest.approx(one.curvature(r), rel=1e-4, abs=1e-6)
    # The parabola that touches at r is nowhere below the loss.
    s = np.linspace(-2, 2, 4001)[:, None]
    touching = one.value(r) + one.slope(r) * (s - r) + one.majoriser(r) * (s - r) ** 2 / 2
    assert (touching >= one.value(s) - 1e-12).all()


def test_huber_is_its_definition_and_its_limits_are_squares_and_absolute_values() -> None:
    r = np.array([-5e-3, -1e-3, 2e-4, 7e-3])
    expected = [1e-3 * (5e-3 - 5e-4), 5e-7, 2e-8, 1e-3 * (7e-3 - 5e-4)]
    assert criterion("huber", DELTA).reported(r) == pytest.approx(expected)
    assert criterion("squares").reported(r) == pytest.approx(r**2)
    assert criterion("absolute").reported(r) == pytest.approx(np.abs(r))
    assert criterion("absolute").value(r) == pytest.approx(np.abs(r), abs=1e-8)
