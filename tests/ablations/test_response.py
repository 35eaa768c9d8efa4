"""Response surfaces of tuning: intervals of optima hold planted ones, and edges are named."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy.stats import t as student

from ablations.optima import power_law
from ablations.response import Array, Response, fit_response

FIVE = (-2.0, -1.0, 0.0, 1.0, 2.0)


def campaign(
    rng: np.random.Generator,
    shape: Callable[[float], float],
    optima: Array,
    values: tuple[float, ...] = FIVE,
    seeds: int = 2,
    noise: float = 0.01,
) -> Response:
    """A tuning campaign of one mix: a cell per optimum, every value with every seed, a shift per
    seed, as of the batches that its runs share."""
    rows = []
    for k, best in enumerate(optima):
        for seed in range(seeds):
            shift = 0.007 * rng.normal()
            for x in values:
                off = shape(x - best) + shift + noise * rng.normal()
                loss = (2.5 - 0.2 * k) * math.exp(off)
                rows.append((k, seed, x, loss))
    cell, seed, x, loss = (np.array(column) for column in zip(*rows, strict=True))
    return fit_response(cell, seed, x[:, None], loss)


@pytest.mark.parametrize(
    "shape",
    [
        lambda u: 0.025 * u**2,
        lambda u: 0.025 * u**2 + 0.006 * u**3,
        lambda u: 0.075 * (math.exp(0.6 * u) - 1 - 0.6 * u),
    ],
    ids=["parabola", "cubic", "exponential"],
)
def test_intervals_of_optima_hold_planted_ones(shape: Callable[[float], float]) -> None:
    rng = np.random.default_rng(0)
    held = n = 0
    for _ in range(200):
        optima = rng.uniform(-0.6, 0.6, 3)
        response = campaign(rng, shape, optima)
        for k, best in enumerate(optima):
            one = response.optimum(k)
            held += one.low[0] <= best <= one.high[0]
            n += 1
    assert 0.92 <= held / n <= 0.98


def test_an_interval_is_that_of_fieller_for_a_parabola() -> None:
    """Against the textbook's form: the roots of b² - t² var(slope at x) of one regression."""
    rng = np.random.default_rng(1)
    x = np.array([-1.0, 0.0, 1.0] * 4)
    y = 0.7 + 0.3 * (x - 0.2) ** 2 + 0.02 * rng.normal(size=len(x))
    zeros = np.zeros(len(x), int)
    one = fit_response(zeros, zeros, x[:, None], np.exp(y)).optimum(0)
    design = np.stack([np.ones_like(x), x, x**2], 1)
    coefficients, residual, *_ = np.linalg.lstsq(design, y)
    covariance = float(residual[0]) / 9 * np.linalg.inv(design.T @ design)
    quantile2 = student.ppf(0.975, 9) ** 2
    b, c = coefficients[1:]
    V = covariance[1:, 1:]
    roots = np.roots([
        4 * (c**2 - quantile2 * V[1, 1]), 4 * (b * c - quantile2 * V[0, 1]),
        b**2 - quantile2 * V[0, 0],
    ])  # fmt: skip
    step = 2 / 400
    assert one.low[0] == pytest.approx(min(roots), abs=step)
    assert one.high[0] == pytest.approx(max(roots), abs=step)
    assert one.x[0] == pytest.approx(-b / (2 * c), abs=step)


def test_two_settings_are_found_together() -> None:
    rng = np.random.default_rng(2)
    grid = np.array([(a, b) for a in FIVE for b in FIVE])
    best = np.array([0.4, -0.3])
    u = grid - best
    loss = 2 + 0.05 * u[:, 0] ** 2 + 0.03 * u[:, 1] ** 2 + 0.02 * u[:, 0] * u[:, 1]
    zeros = np.zeros(len(grid), int)
    response = fit_response(zeros, zeros, grid, loss + 0.01 * rng.normal(size=len(loss)))
    one = response.optimum(0, drawn=response.drawn(rng, 500))
    assert ((one.low <= best) & (best <= one.high)).all()
    assert np.abs(one.x - best).max() < 0.3


@pytest.mark.parametrize(("best", "side"), [(-3.0, "low"), (3.5, "high")])
def test_a_minimum_beyond_what_was_tried_is_none(best: float, side: str) -> None:
    response = campaign(np.random.default_rng(3), lambda u: 0.025 * u**2, np.array([best]))
    assert response.optimum(0).edge == (side,)
    assert not response.optimum(0).is_minimum


def test_a_flat_surface_shows_no_minimum() -> None:
    edges = [
        campaign(np.random.default_rng(seed), lambda _: 0.0, np.zeros(1)).optimum(0).edge[0]
        for seed in range(20)
    ]
    assert sum(bool(edge) for edge in edges) >= 18


def test_runs_that_diverge_are_left_out_and_move_nothing() -> None:
    cell = np.zeros(12, int)
    seed = np.repeat([0, 1], 6)
    x = np.tile([-2.0, -1.0, 0.0, 1.0, 2.0, 3.0], 2)
    rng = np.random.default_rng(4)
    loss = 2 + 0.05 * (x - 0.3) ** 2 + 0.01 * rng.normal(size=12)
    diverged = np.where(x == 3.0, [math.inf] * 6 + [7.0] * 6, loss)
    with_them = fit_response(cell, seed, x[:, None], diverged)
    kept = x < 3
    without = fit_response(cell[kept], seed[kept], x[kept][:, None], loss[kept])
    assert with_them.used.sum() == 10
    assert with_them.optimum(0).x == without.optimum(0).x


def test_two_minima_fail_the_test_of_the_curve() -> None:
    rng = np.random.default_rng(5)
    shape = lambda u: 0.1 * (1 + math.cos(1.57 * u))  # noqa: E731
    assert campaign(rng, shape, np.zeros(1), noise=0.005, seeds=4).lack_p < 1e-3
    assert campaign(rng, lambda u: 0.025 * u**2, np.zeros(1), seeds=4).lack_p > 0.01


def test_too_few_runs_are_named() -> None:
    zeros = np.zeros(3, int)
    with pytest.raises(ValueError, match="three values"):
        fit_response(zeros, zeros, np.array([[0.0], [1.0], [2.0]]), np.array([2.1, 2.0, 2.2]))


def test_the_excess_is_what_a_setting_costs() -> None:
    response = campaign(
        np.random.default_rng(6), lambda u: 0.025 * u**2, np.array([0.25]), noise=1e-6
    )
    assert response.excess(0, np.array([1.25])) == pytest.approx(1 - math.exp(-0.025), abs=1e-4)
    drawn = response.drawn(np.random.default_rng(0), 100)
    assert response.excess_draws(0, np.array([1.25]), drawn) == pytest.approx(
        1 - math.exp(-0.025), abs=1e-3
    )


def test_laws_of_optima_cover_their_exponents() -> None:
    rng = np.random.default_rng(7)
    held = 0
    for _ in range(300):
        N = 10 ** rng.uniform(7.5, 9.5, 20)
        D = 10 ** rng.uniform(9, 11, 20)
        error = rng.uniform(0.02, 0.2, 20)
        x = np.log2(1.79 * N**-0.713 * D**0.307) + error * rng.normal(size=20)
        x += 0.15 * rng.normal(size=20)  # what no run's error holds
        law = power_law(x, error**2, N, D, 30, 0.95)
        for name, truth in (("N", -0.713), ("D", 0.307)):
            _, low, high = law.exponents[name]
            held += low <= truth <= high
    assert 0.92 <= held / 600 <= 0.98
