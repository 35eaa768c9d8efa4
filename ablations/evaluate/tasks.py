"""Probe examples: what a model must have kept of its context, by length. Plain arrays, no torch.

    recall   key-value pairs, then keys again, each to be followed by its value (multi-query
             associative recall: Arora et al. 2023, arXiv:2312.04927); pairs fill half the length
    copy     a segment of random ids, twice (induction: Olsson et al. 2022, arXiv:2209.11895)
    repeat   a segment of held-out text, twice: what a second reading gains over the first
    passkey  five ids behind a marker somewhere in held-out text, and the marker again at its end
             (Mohtashami and Jaggi 2023, arXiv:2305.16300, in token ids instead of English)

Example i of a probe and length is a pure function of (version, probe, length, i) and of the
corpus's held-out text, never of the mix, the size or the seed: every model answers the same
questions, and fewer examples are the first of more. Ids are drawn from the alphabet: ids that make
up at least 1 in 10,000 of the held-out text, so that a model has met each of them.

Shapes: T length, Q predictions scored.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ablations.data.prepared import Corpus
from ablations.data.streams import windows
from models.errors import SettingError

VERSION = 1
"""Of the examples: another version's rows are never compared with these."""

TEXT_TOKENS = 2**20
"""Of each validation domain: where text and frequencies are taken from."""
LEAST_SHARE = 1e-4
ALPHABET_SIZES = (16, 4096)
VALUES = 8
"""Of `recall`: each is the value of equally many keys, so that counting them tells nothing."""
ENOUGH_KEYS = 512
"""A smaller alphabet, as of bytes, has keys of two ids."""
DIGITS, KEY_DIGITS, MARKER = 10, 5, 4
"""Of `passkey`: ids that a key is made of, ids of a key, ids of the marker."""


@dataclass(frozen=True)
class Material:
    """What examples are made of, by corpus."""

    text: np.ndarray
    """Held-out text without separators, int64 [tokens]."""
    alphabet: np.ndarray
    """Ids that synthetic examples are drawn from, commonest first, int64 [a power of two]."""


@dataclass(frozen=True)
class Examples:
    """Rows of one probe at one length, and which of their tokens are predicted."""

    tokens: np.ndarray
    """int64 [n, T]."""
    at: np.ndarray
    """Positions whose tokens are to be predicted from those before them, int64 [n, Q]."""
    candidates: np.ndarray | None
    """Ids among which the likeliest is the answer; None: the whole vocabulary."""
    first: np.ndarray | None = None
    """Where the same tokens are met for the first time, int64 [n, Q]."""

    @property
    def digest(self) -> str:
        """Of tokens and positions."""
        return digest(self.tokens, self.at)


def digest(*asked: np.ndarray) -> str:
    """16 hex digits over what is asked: equal for two models that had one test."""
    together = np.concatenate([part.ravel() for part in asked]).astype("<i8")
    return hashlib.sha256(together.tobytes()).hexdigest()[:16]


def material(corpus: Corpus) -> Material:
    """Text and alphabet of a corpus. Raises SettingError where its held-out text is too small."""
    texts = []
    for domain in corpus.validation.values():
        n = min(len(domain.tokens), TEXT_TOKENS)
        tokens = windows(domain.tokens, np.array([0]), n)[0].astype(np.int64)
        texts.append(tokens[tokens != domain.separator])
    text = np.concatenate(texts)
    counts = np.bincount(text, minlength=corpus.vocab_size)
    order = np.argsort(-counts, kind="stable")
    common = order[counts[order] >= max(1.0, LEAST_SHARE * len(text))]
    least, most = ALPHABET_SIZES
    if len(common) < least:
        raise SettingError(
            f"evaluation.probes need {least} ids that are each 1 in 10,000 of the held-out text; "
            f"the {corpus.name} corpus has {len(common)}."
        )
    return Material(text, common[: min(most, 1 << (len(common).bit_length() - 1))])


def examples(probe: str, length: int, count: int, of: Material) -> Examples:
    """The first `count` examples of a synthetic probe, of `length` tokens each.

    Raises SettingError where the held-out text is shorter than that.
    """
    if len(of.text) < length:
        raise SettingError(
            f"evaluation.lengths has {length}, which is longer than the held-out text of the "
            f"corpus, {len(of.text):,} tokens."
        )
    shuffled = _generator(probe).permutation(of.alphabet)
    build, candidates = BUILD[probe](shuffled)
    rows = [build(_generator(probe, length, i), length, of.text) for i in range(count)]
    tokens, at, first = (
        None if part[0] is None else np.stack(part).astype(np.int64)
        for part in zip(*rows, strict=True)
    )
    assert tokens is not None
    assert at is not None
    assert tokens.shape == (count, length), tokens.shape
    return Examples(tokens, at, candidates, first)


Row = tuple[np.ndarray, np.ndarray, np.ndarray | None]
"""Tokens [T], positions predicted [Q], positions of the first reading [Q]."""
Build = Callable[[np.random.Generator, int, np.ndarray], Row]


def _generator(probe: str, *key: int) -> np.random.Generator:
    return np.random.default_rng([VERSION, *probe.encode(), *key])


def _cut(generator: np.random.Generator, text: np.ndarray, n: int) -> np.ndarray:
    start = int(generator.integers(len(text) - n + 1))
    return text[start : start + n]


def key_width(alphabet: int) -> int:
    """Ids of a key of `recall`."""
    return 1 if alphabet - VALUES >= ENOUGH_KEYS else 2


def pairs(length: int, alphabet: int) -> int:
    """Key-value pairs of `recall` at a length: as many as fit twice, in eights."""
    width = key_width(alphabet)
    return min(length // (2 * (width + 1)), (alphabet - VALUES) ** width) // VALUES * VALUES


def _recall(alphabet: np.ndarray) -> tuple[Build, np.ndarray]:
    values, keys = alphabet[:VALUES], alphabet[VALUES:]
    width = key_width(len(alphabet))

    def build(generator: np.random.Generator, length: int, text: np.ndarray) -> Row:
        n = pairs(length, len(alphabet))
        codes = generator.choice(len(keys) ** width, n, replace=False)
        digits = [codes // len(keys) ** place % len(keys) for place in range(width)]
        answers = generator.permutation(np.repeat(values, n // VALUES))
        told = np.column_stack([*(keys[digit] for digit in digits), answers])
        # With replacement: were each key asked once, the last answers would follow by counting.
        asked = told[generator.integers(n, size=n)]
        body = np.concatenate([told, asked]).ravel()
        before = length - len(body)
        at = before + told.size + width + (width + 1) * np.arange(n)
        return np.concatenate([_cut(generator, text, before), body]), at, None

    return build, values


def _copy(alphabet: np.ndarray) -> tuple[Build, np.ndarray]:
    def build(generator: np.random.Generator, length: int, text: np.ndarray) -> Row:
        return _twice(generator.choice(alphabet, length // 2), length, generator, text)

    return build, alphabet


def _repeat(_alphabet: np.ndarray) -> tuple[Build, None]:
    def build(generator: np.random.Generator, length: int, text: np.ndarray) -> Row:
        return _twice(_cut(generator, text, length // 2), length, generator, text)

    return build, None


def _twice(
    segment: np.ndarray, length: int, generator: np.random.Generator, text: np.ndarray
) -> Row:
    """Nothing says that a second reading begins, so its first token is not scored."""
    n = len(segment)
    before = _cut(generator, text, length - 2 * n)
    at = length - n + np.arange(1, n)
    return np.concatenate([before, segment, segment]), at, at - n


def _passkey(alphabet: np.ndarray) -> tuple[Build, np.ndarray]:
    digits, others = alphabet[:DIGITS], alphabet[DIGITS:]

    def build(generator: np.random.Generator, length: int, text: np.ndarray) -> Row:
        key = np.concatenate(
            [generator.choice(others, MARKER), generator.choice(digits, KEY_DIGITS)]
        )
        around = _cut(generator, text, length - 2 * len(key))
        depth = int(generator.integers(len(around) + 1))
        tokens = np.concatenate([around[:depth], key, around[depth:], key])
        return tokens, length - KEY_DIGITS + np.arange(KEY_DIGITS), None

    return build, digits


BUILD: dict[str, Callable[[np.ndarray], tuple[Build, np.ndarray | None]]] = {
    "recall": _recall,
    "copy": _copy,
    "repeat": _repeat,
    "passkey": _passkey,
}
