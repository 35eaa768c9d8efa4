"""Profile likelihood of a coefficient, a saving or any other number that a fit's laws give.

At each value of the quantity all coefficients are fitted anew; how much worse that is, over the
noise, is the deviance, and the interval is where it stays below the square of Student's t. The
noise is that of the mixed model (`analysis.fitting.mixed`) at its posterior means, so points of
one run count as the few they are. It needs no resamples, and shows what draws cannot: a side on
which the likelihood never falls, so that nothing bounds the quantity.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.optimize import least_squares
from scipy.stats import t as student

from analysis.fit import Fit
from analysis.fitting.mixed import mixed_model
from analysis.fitting.noise import cluster_ids, hat_matrix, noise_components
from analysis.laws import Array, Chinchilla

Quantity = Callable[[dict[str, Chinchilla]], float]
# Standard errors from the estimate at which the profile is traced, and where it is given up.
STEPS = (0.5, 1, 1.5, 2, 2.5, 3, 3.5, 4, 5, 6, 8, 11, 15, 20)
PULL = 30.0
SOLVER = {"x_scale": "jac", "xtol": 1e-10, "ftol": 1e-12, "gtol": 1e-12}


@dataclass(frozen=True)
class Profile:
    """Values of the quantity (k,), the root of the deviance there with the side's sign (k,).

    `low` and `high` are minus or plus infinity where the likelihood never falls far enough.
    """

    value: float
    low: float
    high: float
    values: Array
    roots: Array


def profile(fit: Fit, quantity: Quantity, level: float = 0.95) -> Profile:
    """Profile a quantity of the laws by mix, e.g. `lambda laws: laws["gdn"].alpha`.

    Least squares under the mixed model's covariance, whatever the fit's own loss.
    """
    root = _whitener(fit)
    log_loss = np.log(fit.points["loss"].to_numpy(float))
    start = np.concatenate([block.theta for block in fit.blocks])
    bounds = [block.problem.bounds(log_loss[None, block.rows]) for block in fit.blocks]
    low, high = (np.concatenate(side) for side in zip(*bounds, strict=True))
    start = np.clip(start, low + 1e-9, high - 1e-9)

    def residual(theta: Array) -> Array:
        return root @ (_log_losses(fit, theta) - log_loss)

    def value_of(theta: Array) -> float:
        return float(quantity(_laws(fit, theta)))

    best = least_squares(residual, start, bounds=(low, high), **SOLVER)
    centre, reach = value_of(best.x), float(student.ppf((1 + level) / 2, _dof(fit)))
    scale = _standard_error(value_of, best.x, best.jac)
    sides = []
    for side in (-1, 1):
        theta, traced = best.x, [(centre, 0.0)]
        for step in STEPS:
            aim = centre + side * step * scale

            # The minimum under a pull is the constrained one of the value where it ends.
            def pulled(x: Array, aim: float = aim) -> Array:
                return np.append(residual(x), PULL * (value_of(x) - aim) / scale)

            if not np.isfinite(pulled(theta)[-1]):
                break
            theta = least_squares(pulled, theta, bounds=(low, high), **SOLVER).x
            worse = float((residual(theta) ** 2).sum()) - 2 * best.cost
            traced.append((value_of(theta), side * float(np.sqrt(max(worse, 0.0)))))
            if abs(traced[-1][1]) > reach:
                break
        sides.append(np.array(traced))
    low_end, high_end = (_crossing(traced, reach) for traced in sides)
    values, roots = np.concatenate([sides[0][:0:-1], sides[1]]).T
    return Profile(
        centre,
        -np.inf if low_end is None else low_end,
        np.inf if high_end is None else high_end,
        values,
        roots,
    )


def _crossing(traced: Array, reach: float) -> float | None:
    """Where the root of the deviance first passes `reach`, None where it never does."""
    values, roots = traced[:, 0], np.abs(traced[:, 1])
    if roots[-1] < reach:
        return None
    ends = slice(-2, None)
    return float(np.interp(reach, roots[ends], values[ends]))


def _whitener(fit: Fit) -> Array:
    """W (n, n) with W' W the inverse of the noise's covariance."""
    point, run, batch = mixed_model(fit).sds
    runs, batches = cluster_ids(fit.points), cluster_ids(fit.points, paired=True)
    covariance = point**2 * np.eye(fit.n) + run**2 * (runs[:, None] == runs)
    covariance += batch**2 * (batches[:, None] == batches)
    return np.linalg.cholesky(np.linalg.inv(covariance)).T


def _dof(fit: Fit) -> float:
    return noise_components(fit.residual, hat_matrix(fit), cluster_ids(fit.points))[2]


def _pieces(fit: Fit, theta: Array) -> list[Array]:
    ends = np.cumsum([len(block.theta) for block in fit.blocks])[:-1]
    return np.split(theta, ends)


def _log_losses(fit: Fit, theta: Array) -> Array:
    log_loss = np.empty(fit.n)
    for block, own in zip(fit.blocks, _pieces(fit, theta), strict=True):
        log_loss[block.rows] = np.log(block.problem.predict(own[None])[0][0])
    return log_loss


def _laws(fit: Fit, theta: Array) -> dict[str, Chinchilla]:
    return {
        name: block.problem.law(own, m)
        for block, own in zip(fit.blocks, _pieces(fit, theta), strict=True)
        for m, name in enumerate(block.mixes)
    }


def _standard_error(value_of: Callable[[Array], float], theta: Array, jacobian: Array) -> float:
    """Of the quantity, by the delta method on the whitened residuals' Jacobian."""
    step = 1e-6 * np.maximum(np.abs(theta), 1e-3)
    gradient = np.array(
        [(value_of(theta + h) - value_of(theta - h)) / (2 * h.sum()) for h in np.diag(step)]
    )
    scaled = jacobian / np.linalg.norm(jacobian, axis=0)
    weighted = gradient / np.linalg.norm(jacobian, axis=0)
    return float(np.sqrt(weighted @ np.linalg.pinv(scaled.T @ scaled) @ weighted))
