"""Which job arrays the runs of a sweep become on Slurm, and how those share a limit on runs.

Slurm bounds how many elements of one array run at a time, not those of several arrays together.
"""

import heapq
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

from sweeps.cluster import Shape

MOST_ELEMENTS = 1000
"""Of an array where the site says no other (MaxArraySize less one by default)."""


@dataclass(frozen=True)
class Array:
    """Runs of one sweep and one shape."""

    sweep: Hashable
    shape: Shape
    members: tuple[int, ...]
    """Which of the runs that were given."""
    work: float
    """The `time_of` of all members."""
    at_once: int
    """Members that may run at a time."""
    after: int | None = None
    """The array, earlier in the list, that has to end before this one begins."""


def time_of(N: int, tokens: int, shape: Shape) -> float:
    """What a run takes, in a unit that is the same for all runs and sizes."""
    return N * tokens / shape.ranks


def arrays(
    runs: Sequence[tuple[Hashable, Shape, float]],
    at_once: int | None,
    longest: int = MOST_ELEMENTS,
) -> list[Array]:
    """An array a sweep and shape, cut at `longest` elements; those that take longest first.

    runs: (sweep, shape, `time_of`) each; at_once: runs at a time of all arrays together, None for
    all. Arrays share it by the time they take. Where there are more arrays than that, some wait for
    others to end.
    """
    groups: dict[tuple[Hashable, Shape], list[int]] = {}
    for number, (sweep, shape, _) in enumerate(runs):
        groups.setdefault((sweep, shape), []).append(number)
    made = [
        Array(sweep, shape, tuple(part), sum(runs[number][2] for number in part), at_once=1)
        for (sweep, shape), group in groups.items()
        for part in (group[i : i + longest] for i in range(0, len(group), longest))
    ]
    made.sort(key=lambda array: (-array.work, str(array.shape)))
    at_once = len(runs) if at_once is None else at_once
    return _shared(made, at_once) if len(made) <= at_once else _chained(made, at_once)


def _shared(made: Sequence[Array], at_once: int) -> list[Array]:
    """Each its share, so that the last to end ends soonest."""
    shares = [1] * len(made)
    for _ in range(at_once - len(made)):
        hungry = [i for i, array in enumerate(made) if shares[i] < len(array.members)]
        if not hungry:
            break
        shares[max(hungry, key=lambda i: made[i].work / shares[i])] += 1
    return [replace(array, at_once=share) for array, share in zip(made, shares, strict=True)]


def _chained(made: Sequence[Array], at_once: int) -> list[Array]:
    """One run of each array at a time, and as many chains of arrays as runs may be there."""
    chains: list[tuple[float, int | None]] = [(0.0, None)] * at_once
    result = []
    for number, array in enumerate(made):
        shortest = min(range(at_once), key=lambda i: chains[i][0])
        work, last = chains[shortest]
        result.append(replace(array, after=last))
        chains[shortest] = work + array.work, number
    return result


def makespan(planned: Sequence[Array], seconds: Sequence[float]) -> float:
    """Seconds until the last run ends where none waits for a node; `seconds` of each run."""
    ends: list[float] = []
    for array in planned:
        lanes = [0.0 if array.after is None else ends[array.after]] * array.at_once
        for number in array.members:
            heapq.heapreplace(lanes, lanes[0] + seconds[number])
        ends.append(max(lanes))
    return max(ends, default=0.0)
