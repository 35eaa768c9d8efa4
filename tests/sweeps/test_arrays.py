"""A limit on runs holds over all arrays together, whatever their shapes."""

import heapq

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sweeps.arrays import arrays, makespan
from sweeps.cluster import Shape

SHAPES = [Shape(minutes=minutes) for minutes in range(1, 6)]
RUNS = st.lists(
    st.tuples(st.sampled_from("ab"), st.sampled_from(SHAPES), st.floats(0.1, 100)),
    min_size=1,
    max_size=30,
)


def most_together(planned):
    """Runs at a time at the worst: of arrays that wait for none, and of those that follow."""
    chains = [{number} for number, array in enumerate(planned) if array.after is None]
    for number, array in enumerate(planned):
        if array.after is not None:
            (chain,) = (chain for chain in chains if array.after in chain)
            chain.add(number)
    return sum(max(planned[number].at_once for number in chain) for chain in chains)


@given(RUNS, st.integers(1, 12), st.integers(1, 6))
def test_no_more_runs_than_the_limit_and_each_once(runs, at_once, longest):
    planned = arrays(runs, at_once, longest)
    assert most_together(planned) <= at_once
    assert sorted(n for array in planned for n in array.members) == list(range(len(runs)))
    for number, array in enumerate(planned):
        assert {runs[n][:2] for n in array.members} == {(array.sweep, array.shape)}
        assert 1 <= array.at_once <= max(1, at_once)
        assert len(array.members) <= longest
        assert array.after is None or array.after < number


@given(RUNS)
def test_without_a_limit_no_run_waits_for_another(runs):
    planned = arrays(runs, None)
    assert all(a.after is None and a.at_once >= len(a.members) for a in planned)
    assert makespan(planned, [run[2] for run in runs]) == max(run[2] for run in runs)


def test_arrays_share_the_limit_by_the_time_they_take():
    small, large = SHAPES[:2]
    runs = [("a", small, 1.0)] * 8 + [("a", large, 3.0)] * 8
    limits = {array.shape: array.at_once for array in arrays(runs, 8)}
    assert limits == {small: 2, large: 6}
    # What one array has no runs for goes to the other.
    runs = [("a", small, 1.0)] * 8 + [("a", large, 50.0)]
    assert {a.shape: a.at_once for a in arrays(runs, 8)} == {small: 7, large: 1}


def test_more_shapes_than_the_limit_follow_one_another():
    runs = [("a", shape, float(work)) for work, shape in enumerate(SHAPES, 1) for _ in range(2)]
    planned = arrays(runs, 2)
    assert [array.at_once for array in planned] == [1] * 5
    assert sum(array.after is None for array in planned) == 2
    # Twice 1 to 5 in two chains, the longest first: 5 + 3 (with nothing after), 4 + 2 + 1, twice.
    assert makespan(planned, [run[2] for run in runs]) == pytest.approx(16)


@given(st.lists(st.floats(0.1, 9), min_size=1, max_size=12), st.integers(1, 4))
def test_an_array_lasts_as_long_as_its_fullest_place(seconds, at_once):
    (array,) = arrays([("a", SHAPES[0], s) for s in seconds], at_once)
    places = [0.0] * at_once
    for s in seconds:  # each to the place that is free first
        heapq.heappush(places, heapq.heappop(places) + s)
    assert makespan([array], seconds) == pytest.approx(max(places))


OF_MANY = [Shape(nodes=nodes, gpus=gpus) for nodes, gpus in ((1, 0), (1, 1), (1, 4), (2, 4))]
ON_GPUS = st.lists(
    st.tuples(st.sampled_from("ab"), st.sampled_from(OF_MANY), st.floats(0.1, 100)),
    min_size=1,
    max_size=30,
)


def greatest(planned, of_an_array):
    """The most of something at a time: each chain of arrays holds its greatest."""
    chains = [[number] for number, array in enumerate(planned) if array.after is None]
    for number, array in enumerate(planned):
        if array.after is not None:
            (chain,) = (chain for chain in chains if array.after in chain)
            chain.append(number)
    return sum(max(of_an_array(planned[number]) for number in chain) for chain in chains)


@given(ON_GPUS, st.integers(8, 24), st.integers(1, 12) | st.none(), st.integers(1, 6))
def test_no_more_gpus_than_the_limit_and_each_run_once(runs, max_gpus, at_once, longest):
    planned = arrays(runs, at_once, longest, max_gpus)
    assert greatest(planned, lambda a: a.at_once * a.shape.nodes * a.shape.gpus) <= max_gpus
    assert most_together(planned) <= (at_once or len(runs))
    assert sorted(n for array in planned for n in array.members) == list(range(len(runs)))
    assert all(array.after is None or array.after < n for n, array in enumerate(planned))


@given(ON_GPUS, st.integers(1, 6))
def test_gpus_for_all_runs_at_once_are_no_limit(runs, longest):
    assert arrays(runs, None, longest, 8 * len(runs)) == arrays(runs, None, longest)


def test_gpus_go_where_the_time_is():
    small, large = Shape(gpus=1), Shape(gpus=8)
    runs = [("a", small, 1.0)] * 16 + [("a", large, 3.0)] * 2
    limits = {a.shape: (a.at_once, a.after) for a in arrays(runs, None, max_gpus=16)}
    assert limits == {large: (1, None), small: (8, None)}
    # No room beside the large: the small follow, eight at a time.
    limits = {a.shape: (a.at_once, a.after) for a in arrays(runs, None, max_gpus=8)}
    assert limits == {large: (1, None), small: (8, 0)}
    assert {a.at_once for a in arrays(runs, 1, max_gpus=8)} == {1}
