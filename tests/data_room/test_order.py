"""The data order: every instance once an epoch, and no state but the step number."""

from __future__ import annotations

import hashlib
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from ablations.data import order
from ablations.data.order import Batches, instance_ids, rolling_hash
from models.errors import SettingError

FINGERPRINT = "ab" * 32


@given(
    n=st.integers(1, 5000),
    seed=st.integers(0, 2**31),
    epoch=st.integers(0, 1000),
)
@settings(max_examples=100, deadline=None)
def test_an_epoch_visits_every_instance_once(n: int, seed: int, epoch: int) -> None:
    ids = instance_ids(n, FINGERPRINT, seed, epoch * n, n)
    assert ids.dtype == np.int64
    assert sorted(ids.tolist()) == list(range(n))


@pytest.mark.parametrize("n", [2**17 - 1, 2**17, 2**17 + 1, 139_780])
def test_an_epoch_visits_every_instance_once_at_corpus_size(n: int) -> None:
    assert np.array_equal(np.sort(instance_ids(n, FINGERPRINT, 3, n, n)), np.arange(n))


def test_a_corpus_of_trillions_is_permuted_without_being_stored() -> None:
    n = 3 * 10**12
    ids = instance_ids(n, FINGERPRINT, 0, n - 500, 1000)
    assert len(set(ids[:500].tolist())) == len(set(ids[500:].tolist())) == 500
    assert 0 <= ids.min() <= ids.max() < n


def _definition(position: int, n: int, fingerprint: str, seed: int) -> int:
    """The order in plain Python integers, as a reader of the module would write it down."""

    def mix(x: int, key: int) -> int:
        x ^= key
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) % 2**64
        return x ^ (x >> 31)

    epoch, x = divmod(position, n)
    text = f"archladder data order: {fingerprint} seed={seed} epoch={epoch}"
    key_bytes = b"".join(hashlib.sha256(f"{text} half={h}".encode()).digest() for h in (0, 1))
    keys = [int.from_bytes(key_bytes[i : i + 8], "little") for i in range(0, 64, 8)]
    bits = 6
    while 2**bits < n:
        bits += 1
    low = bits // 2
    while True:
        left, right = x >> low, x % 2**low
        for index, key in enumerate(keys):
            if index % 2 == 0:
                right ^= mix(left, key) % 2**low
            else:
                left ^= mix(right, key) % 2 ** (bits - low)
        x = left * 2**low + right
        if x < n:
            return x


@given(n=st.integers(1, 10**6), seed=st.integers(0, 9), start=st.integers(0, 3 * 10**6))
@settings(max_examples=60, deadline=None)
def test_vectorised_order_is_the_definition_in_plain_integers(
    n: int, seed: int, start: int
) -> None:
    expected = [_definition(p, n, FINGERPRINT, seed) for p in range(start, start + 8)]
    assert instance_ids(n, FINGERPRINT, seed, start, 8).tolist() == expected


def test_epochs_seeds_and_corpora_each_have_their_own_order() -> None:
    n = 500
    orders = [
        instance_ids(n, fingerprint, seed, epoch * n, n)
        for fingerprint in (FINGERPRINT, "cd" * 32)
        for seed in (0, 1, 2)
        for epoch in (0, 1, 2)
    ]
    for index, one in enumerate(orders):
        for other in orders[:index]:
            # Two random permutations agree in one place on average.
            assert np.count_nonzero(one == other) < 10


@pytest.mark.parametrize("n", [5, 12, 40])
def test_any_instance_is_as_likely_at_any_position(n: int) -> None:
    seeds = 600
    orders = np.array([instance_ids(n, FINGERPRINT, seed, 0, n) for seed in range(seeds)])
    for position in (0, n // 2, n - 1):
        counts = np.bincount(orders[:, position], minlength=n)
        assert stats.chisquare(counts).pvalue > 1e-4


def test_neighbours_in_the_order_are_not_neighbours_in_the_corpus() -> None:
    n = 100_003
    ids = instance_ids(n, FINGERPRINT, 0, 0, n)
    correlation = np.corrcoef(ids[:-1], ids[1:])[0, 1]
    assert abs(correlation) < 4 / np.sqrt(n)
    steps = Counter(np.diff(ids).tolist())
    assert max(steps.values()) < 15


@given(
    n=st.integers(10, 400),
    start=st.integers(0, 1000),
    cuts=st.lists(st.integers(0, 60), min_size=1, max_size=4),
)
@settings(max_examples=60, deadline=None)
def test_the_stream_is_the_same_however_it_is_cut(n: int, start: int, cuts: list[int]) -> None:
    whole = instance_ids(n, FINGERPRINT, 7, start, sum(cuts))
    parts = []
    for count in cuts:
        parts.append(instance_ids(n, FINGERPRINT, 7, start, count))
        start += count
    assert np.array_equal(np.concatenate(parts), whole)


@pytest.mark.parametrize("batch_instances", [1, 3, 8, 12])
def test_batch_is_a_function_of_the_step_alone(batch_instances: int) -> None:
    context, tokens = 5, np.arange(200, dtype=np.uint16)
    batches = Batches(tokens, FINGERPRINT, context, batch_instances, seed=1)
    for step in (9, 0, 4, 9):
        ids = instance_ids(batches.n_instances, FINGERPRINT, 1, 0, (step + 1) * batch_instances)
        expected = [list(range(i * context, i * context + context + 1)) for i in ids]
        batch = batches.batch(step)
        assert batch.dtype == np.int64
        assert batch.tolist() == expected[step * batch_instances :]


def test_a_batch_across_the_stretches_that_are_permuted_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(order, "_STRETCH", 10)
    tokens, computed = np.arange(401, dtype=np.uint16), []
    real = order.instance_ids
    monkeypatch.setattr(order, "instance_ids", lambda *a: computed.append(a[3:]) or real(*a))
    batches = Batches(tokens, FINGERPRINT, context=1, batch_instances=4, seed=1)
    wanted = real(400, FINGERPRINT, 1, 0, 1200)
    for step in (*range(12), 3, 99, 100, 299, 0):
        assert batches.batch(step)[:, 0].tolist() == wanted[4 * step : 4 * step + 4].tolist()
    assert computed[:3] == [(0, 10), (8, 10), (16, 10)], "two batches a stretch, not one"


@given(length=st.integers(2, 150), context=st.integers(1, 40))
@settings(max_examples=50, deadline=None)
def test_an_epoch_predicts_every_token_once_but_the_first_and_a_tail(
    length: int, context: int
) -> None:
    if length - 1 < context:
        return
    batches = Batches(np.arange(length, dtype=np.uint32), FINGERPRINT, context, 1, seed=0)
    epoch = np.concatenate([batches.batch(step) for step in range(batches.n_instances)])
    targets = np.sort(epoch[:, 1:].ravel())
    assert np.array_equal(targets, np.arange(1, batches.tokens_per_epoch + 1))
    assert length - 1 - batches.tokens_per_epoch < context


def test_a_corpus_under_one_batch_is_refused_in_one_sentence() -> None:
    tokens = np.zeros(41, dtype=np.uint8)
    Batches(tokens, FINGERPRINT, context=10, batch_instances=4, seed=0)
    with pytest.raises(SettingError, match=r"data holds 40 training tokens, less than one batch"):
        Batches(tokens[:40], FINGERPRINT, context=10, batch_instances=4, seed=0)
    with pytest.raises(SettingError):
        Batches(tokens[:0], FINGERPRINT, context=10, batch_instances=4, seed=0)


def test_rolling_hash_sees_tokens_and_order_but_not_their_dtype() -> None:
    first, second = np.arange(6).reshape(2, 3), np.arange(6, 12).reshape(2, 3)
    both = rolling_hash(rolling_hash("", first), second)
    begun = hashlib.sha256(b"".join(int(i).to_bytes(4, "little") for i in range(6))).digest()
    rest = b"".join(int(i).to_bytes(4, "little") for i in range(6, 12))
    assert both == hashlib.sha256(begun + rest).hexdigest()
    assert rolling_hash("", first.astype(">u2")) == rolling_hash("", first)
    assert rolling_hash("", np.asfortranarray(first)) == rolling_hash("", first)
    assert rolling_hash(rolling_hash("", second), first) != both
