"""The data order: batch(step) is a pure function of (corpus fingerprint, seed, step, batch).

The training stream is cut into instances of `context` predictions each. An epoch visits every
instance once, in the order of a keyed permutation that is computed, not stored: a Feistel network
(Luby and Rackoff, 1988) with cycle walking (Black and Rogaway, 2002). So there is no state to
save, any rank can compute any step, and neither the mix nor the hardware can change the order.
"""

from __future__ import annotations

import hashlib

import numpy as np

from ablations.data.streams import MixedSource, Mixture, Shards, Stream, schedule, windows
from models.errors import SettingError

_ROUNDS = 8
# Permuting at least 2^6 numbers gives each half of the network three bits: with fewer, a small
# corpus would see only a few of its possible orders.
_SMALLEST_BITS = 6
# Positions permuted at a time: array operations on one batch's would cost as much as its tokens.
_STRETCH = 1 << 14


def instance_ids(
    n_instances: int, fingerprint: str, seed: int, start: int, count: int
) -> np.ndarray:
    """Instances at stream positions start..start+count, int64 [count].

    Position p belongs to epoch p // n_instances; each epoch has its own permutation.
    """
    assert n_instances > 0, n_instances
    assert start >= 0, start
    assert count >= 0, count
    ids = np.empty(count, dtype=np.int64)
    done = 0
    while done < count:
        epoch, offset = divmod(start + done, n_instances)
        taken = min(count - done, n_instances - offset)
        positions = np.arange(offset, offset + taken, dtype=np.uint64)
        ids[done : done + taken] = _permute(positions, n_instances, _keys(fingerprint, seed, epoch))
        done += taken
    return ids


class Batches:
    """Batches of a training stream, by step number.

    Instance i covers tokens [i * context, i * context + context + 1): every instance gives
    `context` predictions, no token but the first of the stream is left without one, and the
    incomplete instance at the end is dropped. A mixture takes its instances from its sources by
    its schedule, each source in the order that it would have alone.
    """

    def __init__(
        self,
        corpus_train: Stream,
        fingerprint: str,
        context: int,
        batch_instances: int,
        seed: int,
    ) -> None:
        """`corpus_train`: token ids [tokens]; raises SettingError where it is under one batch."""
        assert context > 0, context
        assert batch_instances > 0, batch_instances
        if isinstance(corpus_train, Mixture):
            sources = corpus_train.sources
        else:
            sources = (MixedSource("data", corpus_train, fingerprint, 1),)
        self._each = [max(0, (len(source.tokens) - 1) // context) for source in sources]
        self.n_instances = sum(self._each)
        for source, n in zip(sources, self._each, strict=True):
            wanted = batch_instances if len(sources) == 1 else 1
            if n < wanted:
                raise SettingError(
                    f"{source.name} holds {len(source.tokens):,} training tokens, less than one "
                    + ("batch" if len(sources) == 1 else "instance")
                    + f" of {wanted} x {context} = {wanted * context:,} tokens (and one "
                    "to begin with); take a larger corpus, a smaller batch or a shorter context."
                )
        self.tokens_per_epoch = self.n_instances * context
        self._sources = sources
        self._context = context
        self._batch_instances = batch_instances
        self._seed = seed
        self._turns = schedule([source.parts for source in sources])
        # How often its source has had its turn in this period before each turn.
        self._before = np.empty(len(self._turns), dtype=np.int64)
        for index, source in enumerate(sources):
            self._before[self._turns == index] = np.arange(source.parts)
        # The stretch of each source's order that was computed last: its first position, and ids.
        self._kept = [(0, np.empty(0, dtype=np.int64)) for _ in sources]

    @property
    def predictions(self) -> int:
        """Of a global batch."""
        return self._batch_instances * self._context

    def batch(self, step: int, share: slice = slice(None)) -> np.ndarray:
        """The token ids of one global batch, int64 [batch_instances, context + 1], or a share of
        its rows in a row."""
        size, length = self._batch_instances, self._context + 1
        wanted = range(size)[share]
        period, turn = np.divmod(step * size + np.asarray(wanted), len(self._turns))
        owner = self._turns[turn]
        out = np.empty((len(wanted), length), dtype=np.int64)
        for index, source in enumerate(self._sources):
            (rows,) = np.nonzero(owner == index)
            if not len(rows):
                continue
            # A source's turns follow one another, so its positions in its own order do too.
            first = period[rows[0]] * source.parts + self._before[turn[rows[0]]]
            ids = self._ids(index, int(first), len(rows))
            cut = windows(source.tokens, ids * self._context, length)
            if len(rows) == len(wanted):
                return cut
            out[rows] = cut
        return out

    def _ids(self, index: int, first: int, count: int) -> np.ndarray:
        """Instances of one source at positions first..first+count of its order, int64 [count]."""
        start, ids = self._kept[index]
        if not start <= first <= first + count <= start + len(ids):
            n, key = self._each[index], self._sources[index].fingerprint
            ids = instance_ids(n, key, self._seed, first, max(count, min(n, _STRETCH)))
            start, self._kept[index] = first, (first, ids)
        return ids[first - start : first - start + count]

    def repeated_tokens(self, steps: int) -> int:
        """Predictions in the first `steps` batches whose instance had been read before."""
        taken = self._taken(steps)
        return self._context * sum(max(0, t - n) for t, n in zip(taken, self._each, strict=True))

    def files_read(self, steps: int) -> list[set[int]]:
        """Of each source, the numbers of the files that the first `steps` batches read from."""
        found = []
        for source, taken, n in zip(self._sources, self._taken(steps), self._each, strict=True):
            tokens = source.tokens
            starts = tokens.starts if isinstance(tokens, Shards) else np.array([0, len(tokens)])
            reachable = int(np.searchsorted(starts, n * self._context, side="right"))
            read = np.zeros(len(starts) - 1, dtype=bool)
            done, count = 0, min(taken, n)
            if count == n:
                read[:reachable] = True
            while done < count and not read[:reachable].all():
                ids = instance_ids(
                    n, source.fingerprint, self._seed, done, min(_STRETCH, count - done)
                )
                first = np.searchsorted(starts, ids * self._context, side="right") - 1
                last = np.searchsorted(starts, (ids + 1) * self._context, side="right") - 1
                # Files begun to be read less files left behind, up to each: an instance may span
                # several.
                steps_in = np.bincount(first, minlength=len(starts))
                steps_out = np.bincount(last + 1, minlength=len(starts))
                read |= np.cumsum(steps_in - steps_out)[:-1] > 0
                done += len(ids)
            found.append(set(np.flatnonzero(read).tolist()))
        return found

    def _taken(self, steps: int) -> list[int]:
        """Instances that the first `steps` batches take from each source."""
        periods, rest = divmod(steps * self._batch_instances, len(self._turns))
        begun = np.bincount(self._turns[:rest], minlength=len(self._sources))
        return [
            periods * source.parts + int(extra)
            for source, extra in zip(self._sources, begun, strict=True)
        ]


def rolling_hash(previous_hex: str, batch: np.ndarray) -> str:
    """The data fingerprint after one more batch; begin with an empty `previous_hex`.

    A chain of SHA-256 over token ids as little-endian uint32, so that two runs have seen the same
    tokens in the same order exactly where their hashes agree.
    """
    tokens = np.ascontiguousarray(batch, dtype="<u4")
    return hashlib.sha256(bytes.fromhex(previous_hex) + tokens.tobytes()).hexdigest()


def _keys(fingerprint: str, seed: int, epoch: int) -> np.ndarray:
    """One 64-bit key a round, uint64 [_ROUNDS]."""
    text = f"archladder data order: {fingerprint} seed={seed} epoch={epoch}"
    halves = (hashlib.sha256(f"{text} half={half}".encode()).digest() for half in range(2))
    return np.frombuffer(b"".join(halves), dtype="<u8").astype(np.uint64)


def _permute(positions: np.ndarray, n: int, keys: np.ndarray) -> np.ndarray:
    """The images of positions (uint64, each under n) in a keyed permutation of 0..n-1."""
    bits = max(_SMALLEST_BITS, (n - 1).bit_length())
    images = _feistel(positions, bits, keys)
    # The network permutes 2^bits numbers. Walking on from an image outside 0..n-1 ends inside,
    # as the walk follows a cycle that began inside, and two walks never end at one number.
    outside = np.flatnonzero(images >= n)
    while len(outside):
        images[outside] = _feistel(images[outside], bits, keys)
        outside = outside[images[outside] >= n]
    return images.astype(np.int64)


def _feistel(numbers: np.ndarray, bits: int, keys: np.ndarray) -> np.ndarray:
    """An unbalanced Feistel network over `bits`-bit numbers: each round mixes one half into the
    other and can be undone, so the whole is a permutation whatever the mixer does."""
    right_bits = np.uint64(bits // 2)
    right_mask = np.uint64((1 << (bits // 2)) - 1)
    left_mask = np.uint64((1 << (bits - bits // 2)) - 1)
    left, right = numbers >> right_bits, numbers & right_mask
    for index, key in enumerate(keys):
        if index % 2:
            left = left ^ (_mix(right, key) & left_mask)
        else:
            right = right ^ (_mix(left, key) & right_mask)
    return (left << right_bits) | right


def _mix(numbers: np.ndarray, key: np.uint64) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele, Lea and Flood, 2014), keyed; wraps modulo 2^64."""
    mixed = numbers ^ key
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
