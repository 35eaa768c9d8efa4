"""What of Gated DeltaNet's settings a comparison should watch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from models.confound import NOTABLE, Confound, Facts, Pair, span


def _key_dim(run: Facts) -> Any:
    """Width of the key heads; None in a model without them."""
    kinds = [kind for kind in run.layers if kind.get("mixer") == "gdn"]
    return (kinds[0].get("settings") or {}).get("key_dim") if kinds else None


def key_width(pairs: Sequence[Pair]) -> Confound | None:
    """Key heads against the rule's 0.75 of attention's, before rounding up."""
    sizes, off, widths = [], [], []
    for baseline, other in pairs:
        key, d_model, heads = (
            _key_dim(other),
            other.get("model.d_model"),
            other.get("model.n_heads"),
        )
        if not _key_dim(baseline) and key and d_model and heads:
            nominal = 0.75 * d_model / heads
            sizes.append(baseline.size)
            off.append(key / nominal - 1)
            widths.append(f"{key} for {nominal:g} ({baseline.size})")
    if not any(abs(excess) > NOTABLE for excess in off):
        return None
    baseline, other = pairs[0]
    ends = list(dict.fromkeys((widths[0], widths[-1])))
    even = max(off) - min(off) <= NOTABLE
    return Confound(
        "key width", baseline.mix, other.mix, tuple(sizes), tuple(off), span(off),
        f"gdn key heads wider than 0.75 of attention's: {', '.join(ends)}",
        "the same at every size" if even
        else "the state shrinks against the model from size to size: part of any trend in N",
    )  # fmt: skip
