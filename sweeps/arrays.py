"""Which job arrays the runs of a sweep become on Slurm, and how they share runs and GPUs at a time.

Slurm bounds how many elements of one array run at a time, not those of several arrays together, nor
their GPUs.
"""

import heapq
import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

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
    max_gpus: int | None = None,
) -> list[Array]:
    """An array a sweep and shape, cut at `longest` elements; those that take longest first.

    runs: (sweep, shape, `time_of`) each; at_once: runs at a time of all arrays together, None for
    all; max_gpus: GPUs of those runs together, at least as many as any run has. Arrays share both
    by the time they take. Where one run of each array is more than that, some wait for others to
    end.
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
    gpus = math.inf if max_gpus is None else max_gpus
    if len(made) <= at_once and sum(array.shape.all_gpus for array in made) <= gpus:
        return _shared(made, at_once, gpus)
    if max_gpus is not None:
        # So that every later array of a chain has room where an earlier one had.
        made.sort(key=lambda array: -array.shape.all_gpus)
    return _chained(made, at_once, gpus)


def _shared(made: Sequence[Array], at_once: int, gpus: float) -> list[Array]:
    """Share at_once and the GPUs among arrays to minimise the makespan."""
    shares = [1] * len(made)
    gpus -= sum(array.shape.all_gpus for array in made)
    for _ in range(at_once - len(made)):
        hungry = [
            i
            for i, array in enumerate(made)
            if shares[i] < len(array.members) and array.shape.all_gpus <= gpus
        ]
        if not hungry:
            break
        most = max(hungry, key=lambda i: made[i].work / shares[i])
        shares[most] += 1
        gpus -= made[most].shape.all_gpus
    return [replace(array, at_once=share) for array, share in zip(made, shares, strict=True)]


def _chained(made: Sequence[Array], at_once: int, gpus: float) -> list[Array]:
    """As many chains of arrays as runs and GPUs allow; of an array one run at a time, or as many as
    the chain's GPUs hold where at_once allows that too."""
    chains: list[list[int]] = []
    work: list[float] = []
    for number, array in enumerate(made):
        free = gpus - sum(made[chain[0]].shape.all_gpus for chain in chains)
        if len(chains) < at_once and array.shape.all_gpus <= free:
            chains.append([])
            work.append(0.0)
        shortest = min(range(len(chains)), key=lambda i: work[i])
        chains[shortest].append(number)
        work[shortest] += array.work
    shares = [1] * len(made)
    if gpus < math.inf:
        for chain in chains:
            for number in chain:
                room = made[chain[0]].shape.all_gpus // max(1, made[number].shape.all_gpus)
                shares[number] = max(1, min(room, len(made[number].members)))
        if sum(max(shares[number] for number in chain) for chain in chains) > at_once:
            shares = [1] * len(made)
    before = {later: earlier for chain in chains for earlier, later in pairwise(chain)}
    return [
        replace(array, at_once=shares[number], after=before.get(number))
        for number, array in enumerate(made)
    ]


def makespan(planned: Sequence[Array], seconds: Sequence[float]) -> float:
    """Seconds until the last run ends where none waits for a node; `seconds` of each run."""
    ends: list[float] = []
    for array in planned:
        lanes = [0.0 if array.after is None else ends[array.after]] * array.at_once
        for number in array.members:
            heapq.heapreplace(lanes, lanes[0] + seconds[number])
        ends.append(max(lanes))
    return max(ends, default=0.0)
