"""What of recurrent layers' settings a comparison should watch. Plain Python."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

from models.confound import NOTABLE, Confound, Facts, Pair, Rule, differs, span
from models.mixers import loaded


def _settings(run: Facts) -> list[dict[str, Any]]:
    """The settings of every recurrent layer, with its mixer's name as `mixer`; those at their
    defaults may not be recorded."""
    settings = []
    for kind in run.layers:
        record = loaded(kind.get("mixer"))
        if record is not None and record.operators:
            defaults = {field.name: field.default for field in fields(record.saved)}
            recorded = kind.get("settings") or {}
            settings.append({**defaults, **recorded, "mixer": record.name})
    return settings


def _key_dim(run: Facts) -> tuple[str, int] | None:
    """The mixer and width of the first recurrent layer that has key heads, None without one."""
    for settings in _settings(run):
        if isinstance(settings.get("key_dim"), int):
            return settings["mixer"], settings["key_dim"]
    return None


def key_width(pairs: Sequence[Pair]) -> Confound | None:
    """Key heads against the rule's 0.75 of attention's, before rounding up."""
    sizes, off, widths, mixer = [], [], [], ""
    for baseline, other in pairs:
        key, d_model, heads = (
            _key_dim(other),
            other.get("model.d_model"),
            other.get("model.n_heads"),
        )
        if not _key_dim(baseline) and key and d_model and heads:
            mixer, width = key
            nominal = 0.75 * d_model / heads
            sizes.append(baseline.size)
            off.append(width / nominal - 1)
            widths.append(f"{width} for {nominal:g} ({baseline.size})")
    if not any(abs(excess) > NOTABLE for excess in off):
        return None
    baseline, other = pairs[0]
    ends = list(dict.fromkeys((widths[0], widths[-1])))
    even = max(off) - min(off) <= NOTABLE
    return Confound(
        "key width", baseline.mix, other.mix, tuple(sizes), tuple(off), span(off),
        f"{mixer} key heads wider than 0.75 of attention's: {', '.join(ends)}",
        "the same at every size" if even
        else "the state shrinks against the model from size to size: part of any trend in N",
    )  # fmt: skip


def _gate(run: Facts) -> str | None:
    words = {
        str(s["gate_activation"]) if s.get("output_gate", True) else "none"
        for s in _settings(run)
        if "gate_activation" in s
    }
    return ", ".join(sorted(words)) or None


def _eigenvalues(run: Facts) -> str | None:
    words = {
        "-1 to 1" if s["allow_neg_eigval"] else "0 to 1"
        for s in _settings(run)
        if "allow_neg_eigval" in s
    }
    return ", ".join(sorted(words)) or None


def _between_mixers(name: str, value: Callable[[Facts], Any], severity: str) -> Rule:
    """A choice that should be the same in recurrent layers of different mixers. In layers of one
    mixer it is what the mixes were made to differ in."""
    rule = differs(name, value, severity)

    def mixers(run: Facts) -> set[str]:
        return {settings["mixer"] for settings in _settings(run)}

    return lambda pairs: rule([pair for pair in pairs if mixers(pair[0]) != mixers(pair[1])])


gate = _between_mixers(
    "output gate",
    _gate,
    "Kimi Linear's ablations find more in its nonlinearity than in most else",
)
eigenvalues = _between_mixers(
    "eigenvalues", _eigenvalues, "negative ones let a state alternate, which tracks parity"
)
