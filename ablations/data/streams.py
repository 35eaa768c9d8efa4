"""Token streams longer than one file, and streams mixed of several corpora.

A mixture gives its positions to its sources by a schedule of one period, earliest deadline first
among those released: the number of instances taken from a source is then within one of its exact
share at every position (Tijdeman, 1980; Baruah, Cohen, Plaxton and Varvel, 1996), and exact over
every whole period.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np


class Shards:
    """Token files read as one stream, end to end."""

    def __init__(self, parts: Sequence[np.ndarray]) -> None:
        """`parts`: token ids [tokens] each, none of them empty."""
        assert parts
        assert all(len(part) for part in parts)
        self.parts = tuple(np.asarray(part) for part in parts)
        self.starts = np.concatenate([[0], np.cumsum([len(part) for part in parts])])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def read(self, start: int, count: int) -> np.ndarray:
        """Tokens start..start+count of the stream, across files where they lie so."""
        assert 0 <= start <= start + count <= len(self), (start, count, len(self))
        pieces = []
        part = int(np.searchsorted(self.starts, start, side="right")) - 1
        while count:
            within = start - int(self.starts[part])
            piece = self.parts[part][within : within + count]
            pieces.append(piece)
            start, count, part = start + len(piece), count - len(piece), part + 1
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces or [self.parts[0][:0]])


@dataclass(frozen=True, eq=False)
class MixedSource:
    """One source of a mixture."""

    name: str
    tokens: np.ndarray | Shards
    fingerprint: str
    """Of the source: its own order follows from it, whatever it is mixed with."""
    parts: int
    """Instances taken from it in every period."""


@dataclass(frozen=True, eq=False)
class Mixture:
    """Several sources in exact proportions, instance by instance."""

    sources: tuple[MixedSource, ...]

    @property
    def period(self) -> int:
        """Instances after which the schedule begins again."""
        return sum(source.parts for source in self.sources)

    def __len__(self) -> int:
        """Tokens of the stream before the first source repeats."""
        return min(len(s.tokens) * self.period // s.parts for s in self.sources)


Stream = np.ndarray | Shards | Mixture


def windows(tokens: np.ndarray | Shards, starts: np.ndarray, length: int) -> np.ndarray:
    """Cuts of a stream, int64 [n, length]; `starts`: first token of each, int64 [n]."""
    if isinstance(tokens, Shards):
        out = np.empty((len(starts), length), dtype=np.int64)
        part = np.searchsorted(tokens.starts, starts, side="right") - 1
        across = starts + length > tokens.starts[part + 1]
        for index in np.unique(part[~across]).tolist():
            rows = np.flatnonzero((part == index) & ~across)
            out[rows] = windows(tokens.parts[index], starts[rows] - tokens.starts[index], length)
        for row in np.flatnonzero(across).tolist():
            out[row] = tokens.read(int(starts[row]), length)
        return out
    # All windows there are, as a view: choosing among its rows copies whole rows at a time.
    plain = np.asarray(tokens)
    assert plain.flags.c_contiguous
    assert not len(starts) or 0 <= starts.min() <= starts.max() <= len(plain) - length
    shape, strides = (max(0, len(plain) - length + 1), length), 2 * plain.strides
    every = np.lib.stride_tricks.as_strided(plain, shape, strides, writeable=False)
    return every[starts].astype(np.int64)


def pieces(tokens: np.ndarray | Shards, size: int = 1 << 24) -> list[np.ndarray]:
    """A stream in views of at most `size` tokens, so that reading it all stays in bounds."""
    files = tokens.parts if isinstance(tokens, Shards) else (np.asarray(tokens),)
    return [
        part[a:b]
        for part in files
        for a, b in pairwise([*range(0, len(part), size), len(part)])
        if b > a
    ]


def schedule(parts: Sequence[int]) -> np.ndarray:
    """Which source each instance of one period is of, int64 [sum(parts)].

    parts: instances of each source in a period, all at least 1. Before position t a source has had
    floor or ceiling of t * parts[k] / sum(parts) instances.
    """
    assert all(part > 0 for part in parts), parts
    period = sum(parts)
    turns = np.empty(period, dtype=np.int64)
    done = [0] * len(parts)
    waiting = [(0, source) for source in range(len(parts))]  # by release
    ready: list[tuple[int, int]] = []  # by deadline
    for position in range(period):
        while waiting and waiting[0][0] <= position:
            _, source = heapq.heappop(waiting)
            deadline = -(-(done[source] + 1) * period // parts[source])
            heapq.heappush(ready, (deadline, source))
        deadline, source = heapq.heappop(ready)
        assert deadline > position
        turns[position] = source
        done[source] += 1
        if done[source] < parts[source]:
            heapq.heappush(waiting, (done[source] * period // parts[source], source))
    return turns
