"""The Chinchilla law, its gradient and its inversion to tokens.

    L(N, D) = E + A / N^alpha + B / D^beta          (Hoffmann et al. 2022, eq. 2; nats per token)

N in parameters and D in tokens, unscaled. Coefficients may be arrays of one shape (draws of a
bootstrap): they broadcast against N and D by numpy's rules.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
Indices = NDArray[np.intp]

PARAMETERS = ("E", "A", "alpha", "B", "beta")


@dataclass(frozen=True)
class Chinchilla:
    """Coefficients of L = E + A/N^alpha + B/D^beta: floats, or arrays of one shape."""

    E: Array | float
    A: Array | float
    alpha: Array | float
    B: Array | float
    beta: Array | float

    def loss(self, N: ArrayLike, D: ArrayLike) -> Array:
        """Loss in nats per token at N parameters and D tokens."""
        n, d = np.asarray(N, float), np.asarray(D, float)
        return np.asarray(self.E + self.A * n**-self.alpha + self.B * d**-self.beta)

    def gradient(self, N: ArrayLike, D: ArrayLike) -> Array:
        """Derivatives of the loss by (E, A, alpha, B, beta), stacked on a new last axis."""
        n, d = np.asarray(N, float), np.asarray(D, float)
        by_a, by_b = n**-self.alpha, d**-self.beta
        parts = (
            np.ones_like(self.E * by_a * by_b),
            by_a,
            -self.A * by_a * np.log(n),
            by_b,
            -self.B * by_b * np.log(d),
        )
        return np.stack(np.broadcast_arrays(*parts), axis=-1)

    def tokens(self, N: ArrayLike, target_loss: ArrayLike) -> Array:
        """Tokens D* at which a model of N parameters reaches `target_loss` (nats per token).

        Infinite where E + A/N^alpha is not below the target: no number of tokens suffices.
        """
        n, target = np.asarray(N, float), np.asarray(target_loss, float)
        gap = np.asarray(target - self.E - self.A * n**-self.alpha)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            tokens = np.exp((np.log(self.B) - np.log(gap)) / self.beta)
        return np.where(gap > 0, tokens, np.inf)

    def at(self, index: int) -> Chinchilla:
        """One draw of a law whose coefficients are arrays."""
        return Chinchilla(*(float(np.asarray(getattr(self, name))[index]) for name in PARAMETERS))

    def as_dict(self) -> dict[str, float]:
        """Coefficients by name, as plain floats (a single law only)."""
        return {name: float(getattr(self, name)) for name in PARAMETERS}
