"""What a fit minimises: a sum over points of a function of the log residual r = log L_fit - log L.

    huber     r^2/2 within delta, delta (|r| - delta/2) beyond        (Hoffmann et al. 2022, eq. 3)
    absolute  |r|, least absolute deviations: what Huber's loss over delta tends to for small delta
    squares   r^2
    student   -log density of Student's t with 4 degrees of freedom and a fitted scale
              (Lange, Little & Taylor 1989)

A criterion gives the solver the loss and its derivatives, up to a factor and a constant, and a
majoriser: the curvature of the parabola that touches the loss at r and lies above it elsewhere.
"""

from dataclasses import dataclass
from typing import Literal, Protocol, get_args

import numpy as np

from analysis.stats.laws import Array

Loss = Literal["huber", "absolute", "squares", "student"]
LOSSES: tuple[Loss, ...] = get_args(Loss)
DELTA = 1e-3
# Small enough that the sum of |r| is within a ten-millionth per point of its minimum.
SHARP = 1e-8
DEGREES = 4.0


class Criterion(Protocol):
    """A loss of log residuals; every method is elementwise."""

    def value(self, r: Array) -> Array: ...
    def slope(self, r: Array) -> Array: ...
    def curvature(self, r: Array) -> Array: ...
    def majoriser(self, r: Array) -> Array: ...

    def reported(self, r: Array) -> Array:
        """Each point's part of the objective as the loss is defined above."""
        ...

    def path(self) -> "tuple[Criterion, ...]":
        """Criteria to minimise one after another, from smooth to this one."""
        ...

    @property
    def words(self) -> str: ...


@dataclass(frozen=True)
class Huber:
    """Huber's loss; delta = inf makes it r^2/2, and `per_delta` divides it by delta."""

    delta: float
    per_delta: bool = False

    def _scaled(self, values: Array) -> Array:
        return values / self.delta if self.per_delta else values

    def value(self, r: Array) -> Array:
        if np.isinf(self.delta):
            return r**2 / 2
        size = np.abs(r)
        inner = np.minimum(size, self.delta)
        return self._scaled(inner * (size - inner / 2))

    def slope(self, r: Array) -> Array:
        return self._scaled(np.clip(r, -self.delta, self.delta))

    def curvature(self, r: Array) -> Array:
        return self._scaled((np.abs(r) < self.delta).astype(float))

    def majoriser(self, r: Array) -> Array:
        if np.isinf(self.delta):
            return np.ones_like(r)
        return self._scaled(np.minimum(1, self.delta / (np.abs(r) + 1e-300)))

    def reported(self, r: Array) -> Array:
        if np.isinf(self.delta):
            return r**2
        return np.abs(r) if self.per_delta else self.value(r)

    def path(self) -> tuple[Criterion, ...]:
        if not self.per_delta:
            return (self,)
        deltas = DELTA * 0.1 ** np.arange(round(np.log10(DELTA / self.delta)))
        return (*(Huber(float(delta), True) for delta in deltas), self)

    @property
    def words(self) -> str:
        if np.isinf(self.delta):
            return "least squares"
        return "least absolute deviations" if self.per_delta else f"Huber, delta {self.delta:g},"


@dataclass(frozen=True)
class Student:
    """Minus the log density of Student's t at a given scale (a relative error, like r)."""

    scale: float
    degrees: float = DEGREES

    @property
    def _width(self) -> float:
        return self.degrees * self.scale**2

    def value(self, r: Array) -> Array:
        return (self.degrees + 1) / 2 * np.log1p(r**2 / self._width)

    def slope(self, r: Array) -> Array:
        return (self.degrees + 1) * r / (self._width + r**2)

    def curvature(self, r: Array) -> Array:
        return (self.degrees + 1) * (self._width - r**2) / (self._width + r**2) ** 2

    def majoriser(self, r: Array) -> Array:
        return (self.degrees + 1) / (self._width + r**2)

    def reported(self, r: Array) -> Array:
        from scipy.stats import t

        return -t.logpdf(r, self.degrees, scale=self.scale)

    def path(self) -> tuple[Criterion, ...]:
        return (self,)

    def rescaled(self, r: Array, weight: Array) -> "Student":
        """The scale of highest likelihood for these residuals, by EM to ten digits."""
        scale = max(self.scale, 1e-12)
        for _ in range(500):
            width = self.degrees * scale**2
            share = weight * (self.degrees + 1) * r**2 / (width + r**2)
            new = scale * np.sqrt(share.sum() / weight.sum())
            if abs(new - scale) <= 1e-10 * scale or new < 1e-12:
                break
            scale = float(new)
        return Student(scale, self.degrees)

    @property
    def words(self) -> str:
        return f"Student's t, {self.degrees:g} degrees of freedom, scale {self.scale:.3g},"


def criterion(loss: Loss, delta: float = DELTA) -> Criterion:
    """The criterion of a loss by name; `student` starts at a scale of half a percent."""
    if loss == "student":
        return Student(0.005)
    if loss == "absolute":
        return Huber(SHARP, per_delta=True)
    return Huber(delta if loss == "huber" else np.inf)
