"""What of attention's settings a comparison should watch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from models.confound import EQUAL, Confound, Facts, Pair, differs
from models.mixers import loaded


def _attends(kind: Mapping[str, Any]) -> bool:
    record = loaded(kind.get("mixer"))
    return record is not None and record.attends


def _windowed(run: Facts) -> tuple[list[int], int, int] | None:
    """Indexes of the attention layers with a window shorter than the context, how many attention
    layers there are, and the widest of those windows in tokens."""
    context = run.get("recipe.context")
    if not run.layers or not context:
        return None
    attention = {
        i: ((kind.get("settings") or {}).get("windows") or [0] * len(run.layers))[i]
        for i, kind in enumerate(run.layers)
        if _attends(kind)
    }
    cut = {i: window for i, window in attention.items() if 0 < window < context}
    return list(cut), len(attention), max(cut.values(), default=0)


def _window_fields(run: Facts) -> set[str]:
    kinds = run.get("model.kinds") or {}
    return {f"model.kinds.{name}.settings.windows" for name, k in kinds.items() if _attends(k)}


def windows(pairs: Sequence[Pair]) -> Confound | None:
    """Sliding windows: on which share of the attention layers, which the mix decides where they go
    by layer index, and how wide."""
    sizes, off, largest = [], [], None
    for baseline, other in pairs:
        before, after = _windowed(baseline), _windowed(other)
        if before is None or after is None:
            continue
        shares = [len(cut) / n if n else 0.0 for cut, n, _ in (before, after)]
        if shares[0] != shares[1] or (before[2] != after[2] and before[0] and after[0]):
            sizes.append(baseline.size)
            off.append(shares[1] - shares[0])
            largest = (baseline, other, before, after)
    if largest is None:
        return None
    baseline, other, before, after = largest  # whose layers are named
    width = max(before[2], after[2])
    words = [f"{len(cut)} of {n}" if n else "no attention" for cut, n, _ in (before, after)]
    if before[0] and after[0] and before[2] != after[2]:
        words = [
            f"{word} ({w:,} tokens)" for word, (*_, w) in zip(words, (before, after), strict=True)
        ]
    where = f", layers {', '.join(map(str, after[0]))}" if after[0] else ""
    return Confound(
        "windows", baseline.mix, other.mix, tuple(sizes), tuple(off), " → ".join(words),
        f"attention layers with a window of {width:,} tokens: {' → '.join(words)}{where} at size "
        f"{baseline.size}",
        "attention sees less of the context where windows fall, and costs less there",
        tuple(sorted(_window_fields(baseline) | _window_fields(other))),
    )  # fmt: skip


def share(pairs: Sequence[Pair]) -> Confound | None:
    """The share of a mix's layers that attend, where it is not the same at every size."""
    sizes, shares = [], []
    for _, other in pairs:
        if other.layers:
            sizes.append(other.size)
            shares.append(sum(map(_attends, other.layers)) / len(other.layers))
    if not shares or max(shares) - min(shares) < EQUAL:
        return None
    baseline, other = pairs[0]
    words = " → ".join(f"{100 * shares[i]:.0f} %" for i in (0, -1))
    return Confound(
        "attention share", baseline.mix, other.mix, tuple(sizes),
        tuple(share - shares[0] for share in shares), words,
        f"layers of {other.mix} that attend: {words} of all from {sizes[0]} to {sizes[-1]}",
        "changes from size to size: part of any trend in N",
    )  # fmt: skip


def _settings(run: Facts) -> list[dict[str, Any]]:
    """The settings of every attention layer; those at their defaults may not be recorded."""
    settings = []
    for kind in run.layers:
        record = loaded(kind.get("mixer"))
        if record is not None and record.attends:
            defaults = {field.name: field.default for field in fields(record.saved)}
            settings.append({**defaults, **(kind.get("settings") or {})})
    return settings


def _positions(run: Facts) -> str | None:
    words = {
        "none" if s.get("rope_theta") is None else f"rotary {100 * s.get('rotary', 1.0):g} %"
        for s in _settings(run)
    }
    return ", ".join(sorted(words)) or None


def _qk_norm(run: Facts) -> str | None:
    return ", ".join(sorted({str(s.get("qk_norm", "none")) for s in _settings(run)})) or None


positions = differs(
    "positions", _positions, "attention without them leaves the order to the recurrent layers"
)
qk_norm = differs("QK-norm", _qk_norm, "changes how large a learning rate attention bears")


def _output_gate(run: Facts) -> str | None:
    words = {"gated" if s.get("output_gate") else "none" for s in _settings(run)}
    return ", ".join(sorted(words)) or None


output_gate = differs(
    "attention's output gate", _output_gate, "lets a head write nothing, and adds parameters"
)
