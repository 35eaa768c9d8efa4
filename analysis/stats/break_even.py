"""When a mix pays: training once and serving tokens, against a baseline's.

    cost(n) = training + n · per token

Two such lines meet at n* = (training_mix − training_base) / (per_token_base − per_token_mix)
served tokens. Both costs must be in one unit: seconds of one machine, or FLOPs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True)
class BreakEven:
    """Where a mix costs less than its baseline in all: between `after` and `until` served tokens.

    Both 0 where that is never; `until` is infinite where it stays so.
    """

    after: float
    until: float

    def __str__(self) -> str:
        if self.after >= self.until:
            return "never"
        if self.after == 0:
            return "always" if self.until == float("inf") else f"up to {self.until:.3g} tokens"
        return f"beyond {self.after:.3g} tokens"


def served_tokens(
    training: float, per_token: float, base_training: float, base_per_token: float
) -> BreakEven:
    """The served tokens for which a mix is the cheaper one, beside the baseline's costs.

    training: of a model at the loss that both reach; per_token: of a served token.
    """
    more, saved = training - base_training, base_per_token - per_token
    infinite = float("inf")
    if more <= 0 and saved >= 0:
        return BreakEven(0, infinite if more < 0 or saved > 0 else 0)
    if more >= 0 and saved <= 0:
        return BreakEven(0, 0)
    return BreakEven(more / saved, infinite) if more > 0 else BreakEven(0, more / saved)


def crossings(
    contexts: Sequence[float], per_token: Sequence[float], base_per_token: Sequence[float]
) -> list[float]:
    """Contexts at which a mix and its baseline cost the same per token, linear in between."""
    differences = [own - base for own, base in zip(per_token, base_per_token, strict=True)]
    places = list(zip(contexts, differences, strict=True))
    met = [context for context, d in places if d == 0]
    met += [a + (b - a) * d / (d - e) for (a, d), (b, e) in pairwise(places) if d * e < 0]
    return sorted(met)
