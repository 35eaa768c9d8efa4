"""Sentences that hold for several mixes or arms, said once."""

from __future__ import annotations

from collections.abc import Iterable


def said_once(clauses: Iterable[tuple[str, str]]) -> list[str]:
    """`a, b: clause` of (name, clause): each clause once, with all names that it holds for."""
    names: dict[str, dict[str, None]] = {}
    for name, clause in clauses:
        names.setdefault(clause, {})[name] = None
    return [f"{', '.join(own)}: {clause}" for clause, own in names.items()]
