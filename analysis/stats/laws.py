"""Scaling laws of the loss, and what follows from them without any data.

    L(N, D) = E + A / N^alpha + B / D^beta                 (Hoffmann et al. 2022, eq. 2)
    L(N, D) = E + (A / N^alpha + B / D^beta)^gamma         (Beck et al. 2025, arXiv 2510.02228)
    L(C) = E + K / C^kappa                                 (along a ray of constant D / N)

Loss in nats per token, N in parameters, D in tokens, C in FLOPs, all unscaled. Coefficients may be
arrays of one shape (draws of a bootstrap): they broadcast against N and D by numpy's rules.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
Indices = NDArray[np.intp]

PARAMETERS = ("E", "A", "alpha", "B", "beta")
# Training FLOPs per parameter and token (Kaplan et al. 2020, 2.1): of N and D alone.
FLOPS = 6.0


@dataclass(frozen=True)
class Chinchilla:
    """Coefficients of L = E + (A/N^alpha + B/D^beta)^gamma: floats, or arrays of one shape."""

    E: Array | float
    A: Array | float
    alpha: Array | float
    B: Array | float
    beta: Array | float
    gamma: Array | float = 1.0

    def loss(self, N: ArrayLike, D: ArrayLike) -> Array:
        """Loss in nats per token at N parameters and D tokens."""
        n, d = np.asarray(N, float), np.asarray(D, float)
        return np.asarray(self.E + (self.A * n**-self.alpha + self.B * d**-self.beta) ** self.gamma)

    def gradient(self, N: ArrayLike, D: ArrayLike) -> Array:
        """Derivatives of the loss by (E, A, alpha, B, beta), stacked on a new last axis."""
        n, d = np.asarray(N, float), np.asarray(D, float)
        by_a, by_b = n**-self.alpha, d**-self.beta
        outer = self.gamma * (self.A * by_a + self.B * by_b) ** (self.gamma - 1)
        parts = (
            np.ones_like(self.E * by_a * by_b),
            outer * by_a,
            -outer * self.A * by_a * np.log(n),
            outer * by_b,
            -outer * self.B * by_b * np.log(d),
        )
        return np.stack(np.broadcast_arrays(*parts), axis=-1)

    def tokens(self, N: ArrayLike, target_loss: ArrayLike) -> Array:
        """Tokens D* at which a model of N parameters reaches `target_loss` (nats per token).

        Infinite where the loss without a data term is not below the target: no number of tokens
        suffices.
        """
        n = np.asarray(N, float)
        gap = self._reducible(target_loss) - self.A * n**-self.alpha
        return _power_inverse(self.B, self.beta, gap)

    def parameters(self, D: ArrayLike, target_loss: ArrayLike) -> Array:
        """Parameters N* with which D tokens reach `target_loss`; infinite like `tokens`."""
        d = np.asarray(D, float)
        gap = self._reducible(target_loss) - self.B * d**-self.beta
        return _power_inverse(self.A, self.alpha, gap)

    def _reducible(self, target_loss: ArrayLike) -> Array:
        """What the two power terms may add up to at a loss."""
        above = np.asarray(np.asarray(target_loss, float) - self.E)
        if np.all(np.equal(self.gamma, 1.0)):
            return above
        return np.where(above > 0, np.maximum(above, 0) ** (1 / np.asarray(self.gamma)), above)

    def optimum(self, C: ArrayLike) -> tuple[Array, Array]:
        """Compute-optimal N* (parameters) and D* (tokens) at C = 6 N D FLOPs.

        N* = G (C/6)^a, D* = (C/6)^b / G with a = beta / (alpha + beta), b = 1 - a and
        G = (alpha A / (beta B))^(1 / (alpha + beta)): Hoffmann et al. 2022, eq. 4. gamma, which
        bends both terms alike, leaves it where it is.
        """
        product = np.asarray(C, float) / FLOPS
        both = np.asarray(self.alpha) + self.beta
        log_G = (np.log(self.alpha * np.asarray(self.A)) - np.log(self.beta * self.B)) / both
        N = np.exp(log_G) * product ** (self.beta / both)
        return N, product / N

    def at(self, index: int) -> Chinchilla:
        """One draw of a law whose coefficients are arrays."""
        drawn = (getattr(self, name) for name in (*PARAMETERS, "gamma"))
        return Chinchilla(*(float(x[index] if np.ndim(x) else x) for x in drawn))

    def as_dict(self) -> dict[str, float]:
        """Coefficients by name, as plain floats (a single law only); gamma where it is not 1."""
        names = PARAMETERS if self.gamma == 1.0 else (*PARAMETERS, "gamma")
        return {name: float(getattr(self, name)) for name in names}


def _power_inverse(factor: Array | float, exponent: Array | float, gap: Array) -> Array:
    """x with factor / x^exponent = gap; infinite where the gap is not positive."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        x = np.exp((np.log(factor) - np.log(gap)) / exponent)
    return np.where(gap > 0, x, np.inf)


@dataclass(frozen=True)
class Ray:
    """L = E + K/C^kappa, the loss by training FLOPs where D / N is the same everywhere.

    The law in N at one D, and in D at one N, have the same form, with N or D for C.
    """

    E: float
    K: float
    kappa: float

    def loss(self, C: ArrayLike) -> Array:
        """Loss in nats per token at C FLOPs."""
        return np.asarray(self.E + self.K * np.asarray(C, float) ** -self.kappa)

    def flops(self, target_loss: ArrayLike) -> Array:
        """FLOPs that reach `target_loss`; infinite where no number of them does."""
        gap = np.asarray(np.asarray(target_loss, float) - self.E)
        return _power_inverse(self.K, self.kappa, gap)
