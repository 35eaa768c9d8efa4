"""The scaling law as a function of a flat vector of parameters, for several mixes at once.

Shapes: S problems (resamples x starts), n points, p parameters, M mixes. Each coefficient is one
for all mixes or one for each. Parameters of a problem, in this order: E, log a, log b, alpha, beta
(log gamma), where

    L = E + ((a (N/N0)^-alpha)^(1/gamma) + (b (D/D0)^-beta)^(1/gamma))^gamma

and (N0, D0) is the centre of the data. For gamma = 1 that is L = E + A/N^alpha + B/D^beta with
a = A/N0^alpha and b = B/D0^beta, the two terms' values at the centre, which keeps them nearly
uncorrelated. For other gamma, alpha and beta here are the published law's times gamma: slopes of
the loss that gamma leaves as they are.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from analysis.stats.laws import Array, Chinchilla, Indices

COEFFICIENTS = ("E", "A", "B", "alpha", "beta")
EXPONENT_BOUNDS = (0.01, 2.0)
GAMMA_BOUNDS = (0.05, 20.0)
# Terms below this share of the loss are at their lower bound: they are not in the data.
SMALLEST_TERM = 1e-8
# The logarithm of a term that the law does not have: its exponential is 0.
ABSENT = -800.0


@dataclass(frozen=True)
class Problem:
    """Points of M mixes; `shared` names the coefficients that all mixes have in common.

    N and D have shape (n,), `mix` (n,) holds indices 0..M-1. `pinned` holds coefficients that are
    not fitted: E, alpha, beta at any value, A at 0 for a law of D alone.
    """

    N: Array
    D: Array
    mix: Indices
    n_mixes: int
    shared: frozenset[str] = frozenset()
    gamma: bool = False
    pinned: dict[str, float] = field(default_factory=dict)

    @cached_property
    def centre(self) -> tuple[float, float]:
        return float(np.log(self.N).mean()), float(np.log(self.D).mean())

    @cached_property
    def log_n(self) -> Array:
        return np.log(self.N) - self.centre[0]

    @cached_property
    def log_d(self) -> Array:
        return np.log(self.D) - self.centre[1]

    @property
    def names(self) -> tuple[str, ...]:
        return (*COEFFICIENTS, "gamma") if self.gamma else COEFFICIENTS

    @cached_property
    def place(self) -> dict[str, Indices]:
        """For each coefficient, the index of its parameter mix by mix, (M,)."""
        start, places = 0, {}
        for name in self.names:
            own = 1 if name in self.shared else self.n_mixes
            places[name] = start + np.arange(self.n_mixes, dtype=np.intp) % own
            start += own
        return places

    @cached_property
    def own(self) -> dict[str, tuple[Indices, Indices]]:
        """For each coefficient, its parameters and for each of them the first mix that has it."""
        return {name: np.unique(place, return_index=True) for name, place in self.place.items()}

    @cached_property
    def column(self) -> dict[str, Indices]:
        """For each coefficient, the index of its parameter point by point, (n,), or (1,) if common.

        Gathering one column is cheaper than one for every point.
        """
        return {
            name: place[:1] if np.all(place == place[0]) else place[self.mix]
            for name, place in self.place.items()
        }

    @cached_property
    def members(self) -> Array:
        """Which mixes an E belongs to, each row summing to one, (number of E, M)."""
        belongs = (self.place["E"][None] == self.own["E"][0][:, None]).astype(float)
        return belongs / belongs.sum(1, keepdims=True)

    @cached_property
    def onehot(self) -> Array:
        """1 where a point is of a mix, (n, M)."""
        return (self.mix[:, None] == np.arange(self.n_mixes)).astype(float)

    @cached_property
    def n_parameters(self) -> int:
        """Length p of a parameter vector, pinned ones included."""
        return int(max(place.max() for place in self.place.values())) + 1

    @cached_property
    def n_free(self) -> int:
        """Parameters that are fitted."""
        return self.n_parameters - sum(len(self.own[name][0]) for name in self.pinned)

    def bounds(self, log_loss: Array) -> tuple[Array, Array]:
        """Lower and upper bounds, shape (p,); equal where a coefficient is pinned."""
        top = float(log_loss.max())
        # A part of the gamma form is its share of the sum to the power of gamma.
        least = np.log(SMALLEST_TERM) * (GAMMA_BOUNDS[1] if self.gamma else 1)
        term = (top + least, top + np.log(10))
        gamma = (float(np.log(GAMMA_BOUNDS[0])), float(np.log(GAMMA_BOUNDS[1])))
        limits: dict[str, tuple[float, float]] = {
            "E": (0.0, float(np.exp(top))), "A": term, "B": term,
            "alpha": EXPONENT_BOUNDS, "beta": EXPONENT_BOUNDS, "gamma": gamma,
        }  # fmt: skip
        limits |= {name: (value, value) for name, value in self.pinned.items()}
        if "A" in self.pinned:
            limits["A"] = (ABSENT, ABSENT)
        low, high = np.empty(self.n_parameters), np.empty(self.n_parameters)
        for name, place in self.place.items():
            low[place], high[place] = limits[name]
        return low, high

    def law(self, theta: Array, mix: int) -> Chinchilla:
        """The law of one mix from parameters of shape (..., p)."""
        E, log_a, log_b, alpha, beta = (theta[..., self.place[x][mix]] for x in COEFFICIENTS)
        gamma = np.exp(theta[..., self.place["gamma"][mix]]) if self.gamma else 1.0
        A = np.exp((log_a + alpha * self.centre[0]) / gamma)
        B = np.exp((log_b + beta * self.centre[1]) / gamma)
        law = (E, A, alpha / gamma, B, beta / gamma, gamma)
        return Chinchilla(*(map(float, law) if theta.ndim == 1 else law))

    def predict(self, theta: Array) -> tuple[Array, Array, Array]:
        """Loss and its derivatives by log a and by log b, each (S, n), for parameters (S, p).

        For gamma = 1 those derivatives are the N term and the D term themselves.
        """
        column = self.column
        u = theta[:, column["A"]] - theta[:, column["alpha"]] * self.log_n
        v = theta[:, column["B"]] - theta[:, column["beta"]] * self.log_d
        if not self.gamma:
            n_term, d_term = np.exp(u), np.exp(v)
            return theta[:, column["E"]] + n_term + d_term, n_term, d_term
        term, share = _gamma_term(u, v, np.exp(theta[:, column["gamma"]]))
        return theta[:, column["E"]] + term, term * share, term * (1 - share)

    def jacobian(self, theta: Array) -> Array:
        """Derivatives of log loss by the parameters, (S, n, p)."""
        return self.jacobian_of(theta, *self.predict(theta)).transpose(0, 2, 1)

    def jacobian_of(self, theta: Array, loss: Array, by_a: Array, by_b: Array) -> Array:
        """The same from what `predict` gave for theta, as (S, p, n)."""
        S, n = loss.shape
        alone = self.n_mixes == 1
        jacobian = (np.empty if alone else np.zeros)((S, self.n_parameters, n))
        over = 1 / loss
        by_a, by_b = by_a * over, by_b * over
        columns = {
            "E": over,
            "A": by_a,
            "B": by_b,
            "alpha": -self.log_n * by_a,
            "beta": -self.log_d * by_b,
        }
        if self.gamma:
            total = by_a + by_b
            gamma = np.exp(theta[:, self.column["gamma"]])
            columns["gamma"] = total * gamma * _entropy(by_a / total)
        rows = np.arange(n)
        for name, values in columns.items():
            if alone:
                jacobian[:, self.place[name][0]] = values
            else:
                jacobian[:, self.column[name], rows] = values
        return jacobian

    def add_second_derivatives(
        self, curvature: Array, weight: Array, theta: Array, by_a: Array, by_b: Array
    ) -> None:
        """Add sum over points of weight (S, n) times the Hessian of the loss to `curvature`.

        E enters linearly. The loss depends on the rest through u = log a - alpha log n,
        v = log b - beta log d and log gamma alone.
        """
        n, d = self.log_n, self.log_d
        if not self.gamma:
            for term, exponent, by, x in (("A", "alpha", by_a, n), ("B", "beta", by_b, d)):
                powers = np.stack([np.ones_like(x), -x, x**2], axis=1)
                sums = (weight * by) @ (powers[:, :, None] * self.onehot[:, None]).reshape(
                    len(x), -1
                )
                pairs = ((term, term), (term, exponent), (exponent, exponent))
                for k, (first, second) in enumerate(pairs):
                    own = sums[:, k * self.n_mixes : (k + 1) * self.n_mixes]
                    self._add(curvature, first, second, own)
            return
        gamma = np.exp(theta[:, self.column["gamma"]])
        total = by_a + by_b
        p = by_a / total
        q, entropy = 1 - p, _entropy(p)
        with np.errstate(divide="ignore"):
            logit = np.clip(np.log(p) - np.log(q), -700, 700)
        mixed = total * p * q
        uv = mixed * (1 - 1 / gamma)
        uu, vv = total * p**2 + mixed / gamma, total * q**2 + mixed / gamma
        ug, vg = (
            total * part * gamma * entropy + sign * mixed * logit
            for part, sign in ((p, -1), (q, 1))
        )
        gg = total * gamma * (gamma * entropy**2 + entropy + logit**2 * p * q)
        one = np.ones_like(n)
        factors: dict[str, tuple[Array, int]]
        factors = {"A": (one, 0), "alpha": (-n, 0), "B": (one, 1), "beta": (-d, 1)}
        inner = [[uu, uv], [uv, vv]]
        names = list(factors)
        for i, first in enumerate(names):
            x, k = factors[first]
            for second in names[i:]:
                y, m = factors[second]
                sums = (weight * inner[k][m] * x * y) @ self.onehot
                self._add(curvature, first, second, sums)
            self._add(curvature, first, "gamma", (weight * (ug, vg)[k] * x) @ self.onehot)
        self._add(curvature, "gamma", "gamma", (weight * gg) @ self.onehot)

    def _add(self, curvature: Array, first: str, second: str, sums: Array) -> None:
        """Add each mix's sum (S, M) at the places of two coefficients, both ways."""
        for m, (i, j) in enumerate(zip(self.place[first], self.place[second], strict=True)):
            curvature[:, i, j] += sums[:, m]
            if i != j:
                curvature[:, j, i] += sums[:, m]

    def centre_terms(self, theta: Array) -> tuple[Array, Array, Array]:
        """The reducible loss at the centre and its derivatives by log a and log b, each (S, M)."""
        u, v = theta[:, self.place["A"]], theta[:, self.place["B"]]
        if not self.gamma:
            by_a, by_b = np.exp(u), np.exp(v)
            return by_a + by_b, by_a, by_b
        term, share = _gamma_term(u, v, np.exp(theta[:, self.place["gamma"]]))
        return term, term * share, term * (1 - share)


def _gamma_term(u: Array, v: Array, gamma: Array) -> tuple[Array, Array]:
    """(e^(u/gamma) + e^(v/gamma))^gamma, and the first part's share of the sum inside."""
    share = 1 / (1 + np.exp(np.clip((v - u) / gamma, -700, 700)))
    return np.exp(gamma * np.logaddexp(u / gamma, v / gamma)), share


def _entropy(share: Array) -> Array:
    """-p log p - q log q: the derivative of a gamma term by gamma, over the term."""
    p = np.clip(share, 1e-300, 1)
    q = np.clip(1 - share, 1e-300, 1)
    return -p * np.log(p) - q * np.log(q)
