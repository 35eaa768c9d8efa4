"""Held-out text that stands in the training text too: files, whole documents, and much of them.

Near-duplicates are held-out documents that share half or more of their n-grams with the training
text, n-grams of about 50 bytes: 13 tokens of a BPE vocabulary, as in Brown et al. (2020), appendix
C. One n-gram in 16 is compared, chosen by its hash, so that both sides choose the same ones.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ablations.data.prepared import Corpus
from ablations.data.streams import Mixture, Shards
from models.errors import SettingError
from models.format import percent

NGRAM_BYTES = 50
SHARED = 0.5
FEWEST_NGRAMS = 4  # compared of a document; fewer say nothing
HELD_OUT_TOKENS = 1 << 22
TRAINING_TOKENS = 1 << 26
STRETCH = 1 << 16  # tokens read at a time
SELECTED = np.uint64(1 << 60)  # hashes below are compared, one in 16
F = TypeVar("F")
BASE = 0x9E3779B97F4A7C15  # odd, so that its powers modulo 2^64 have inverses


def file_key(path: Path) -> tuple[int, int]:
    """The same for all names of a file: symbolic links, hard links and ways around."""
    found = path.stat()
    return found.st_dev, found.st_ino


def leave_out(
    setting: str, given: str, files: Sequence[F], held_out: Mapping[Any, str], keys: Sequence[Any]
) -> tuple[list[F], list[F]]:
    """(files to train on, those of them that are held out too and left out of training).

    given: what `setting` names them by; held_out: {key: the validation setting}; keys: of `files`.
    Raises SettingError where one was given by its own name, or none is left.
    """
    both = [key in held_out for key in keys]
    if not any(both):
        return list(files), []
    domain = held_out[keys[both.index(True)]]
    if all(both) or Path(given).expanduser().is_file():
        raise SettingError(
            f"{setting}={given} is given as {domain} too, and nothing can be judged by text that "
            "was trained on; valid: other files for one of them."
        )
    kept = [file for file, out in zip(files, both, strict=True) if not out]
    return kept, [file for file, out in zip(files, both, strict=True) if out]


class HeldOutDocuments:
    """Held-out documents as token ids, to find copies of them by."""

    def __init__(self) -> None:
        self._keys = np.empty(0, dtype=np.uint64)
        self._digests: set[bytes] = set()

    def add(self, tokens: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> None:
        """Documents from `starts` to `ends`, int64 [n] each, of token ids [tokens]."""
        self._keys = np.union1d(self._keys, _keys(tokens, starts, ends))
        self._digests |= {_digest(tokens[a:b]) for a, b in zip(starts, ends, strict=True)}

    def copies(self, tokens: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> int:
        """How many documents are one of these, a separator alone being none."""
        alike = np.isin(_keys(tokens, starts, ends), self._keys) & (ends - starts > 1)
        found = zip(starts[alike], ends[alike], strict=True)
        return sum(_digest(tokens[a:b]) in self._digests for a, b in found)


def near_duplicates(corpus: Corpus) -> dict[str, Any]:
    """How many held-out documents share much with the training text, by domain.

    At most HELD_OUT_TOKENS and TRAINING_TOKENS are compared, in stretches spread evenly; what is
    cut off at a stretch's end counts as a document. Deterministic.
    """
    domains = corpus.validation
    tokens = sum(len(domain.tokens) for domain in domains.values())
    n = max(4, round(NGRAM_BYTES * tokens / sum(domain.bytes for domain in domains.values())))
    hashing = _Hashing(corpus.vocab_size, n)
    grams, owners, counts = [], [], {}
    documents = 0
    for name, domain in domains.items():
        first = documents
        for stretch in _stretches(domain.tokens, HELD_OUT_TOKENS // len(domains)):
            ends = stretch == corpus.separator
            document = np.cumsum(ends) - ends + documents
            hashes = hashing(stretch)
            within = (document[: len(hashes)] == document[n - 1 :]) & ~ends[n - 1 :]
            chosen = within & (hashes < SELECTED)
            grams.append(hashes[chosen])
            owners.append(document[: len(chosen)][chosen])
            documents = int(document[-1]) + 1
        counts[name] = (first, documents)
    known, index = np.unique(np.concatenate(grams), return_inverse=True)
    owner = np.concatenate(owners)
    found = np.zeros(len(known) + 1, dtype=bool)
    train = corpus.train
    sources = [s.tokens for s in train.sources] if isinstance(train, Mixture) else [train]
    compared = 0
    for source in sources:
        for stretch in _stretches(source, TRAINING_TOKENS // len(sources)):
            hashes = hashing(stretch)
            hashes = hashes[hashes < SELECTED]
            place = np.searchsorted(known, hashes)
            place[place == len(known)] = -1
            found[place[known[place] == hashes] if len(known) else []] = True
            compared += len(stretch)
    each = np.bincount(owner, minlength=documents)
    shared = np.bincount(owner, found[index], minlength=documents)
    enough = each >= FEWEST_NGRAMS
    near = enough & (shared >= SHARED * each)
    return {
        "ngram_tokens": n,
        "training_tokens": compared,
        "of_training_tokens": sum(len(source) for source in sources),
        "domains": {
            name: {
                "documents": int(enough[a:b].sum()),
                "near_duplicates": int(near[a:b].sum()),
            }
            for name, (a, b) in counts.items()
        },
    }


def described(overlap: Mapping[str, Any]) -> list[str]:
    """What `near_duplicates` found, a line a domain that has any."""
    n, compared, every = (
        overlap[key] for key in ("ngram_tokens", "training_tokens", "of_training_tokens")
    )
    share = "" if compared == every else f" ({percent(compared / every)} of them)"
    lines = [
        f"near-duplicates: {part['near_duplicates']:,} of {part['documents']:,} documents of "
        f"validation {name} share half or more of their {n}-grams with the training text"
        for name, part in overlap["domains"].items()
        if part["near_duplicates"]
    ]
    documents = sum(part["documents"] for part in overlap["domains"].values())
    if not documents:
        return ["near-duplicates: not looked for, as all held-out documents are too short"]
    return [
        *(lines or [f"near-duplicates: none among {documents:,} held-out documents"]),
        f"  compared with {compared:,} training tokens{share}",
    ]


class _Hashing:
    """Hashes of all n-grams of a stretch: polynomials in BASE modulo 2^64, as differences of one
    running sum."""

    def __init__(self, vocab_size: int, n: int) -> None:
        self._n = n
        # Random coefficients, so that all bits of an id matter: SplitMix64's finaliser.
        ids = np.arange(1, vocab_size + 1, dtype=np.uint64) * np.uint64(BASE)
        ids = (ids ^ (ids >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        ids = (ids ^ (ids >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        self._coefficients = ids ^ (ids >> np.uint64(31))
        inverse = np.uint64(pow(BASE, -1, 1 << 64))
        self._powers = np.cumprod(np.full(STRETCH, np.uint64(BASE)))
        self._inverses = np.cumprod(np.full(STRETCH, inverse))

    def __call__(self, tokens: np.ndarray) -> np.ndarray:
        """uint64 [tokens - n + 1], of token ids [tokens], at most STRETCH of them."""
        sums = np.zeros(len(tokens) + 1, dtype=np.uint64)
        # Ids beyond the vocabulary are for `check` to find.
        coefficients = self._coefficients.take(tokens, mode="clip")
        np.cumsum(coefficients * self._powers[: len(tokens)], out=sums[1:])
        count = max(0, len(tokens) - self._n + 1)
        return (sums[self._n :] - sums[:count]) * self._inverses[:count]


def _stretches(tokens: np.ndarray | Shards, most: int) -> Iterator[np.ndarray]:
    """Stretches of a stream, at most `most` tokens of it, spread evenly."""
    count = max(1, min(most, len(tokens)) // STRETCH)
    if len(tokens) <= most:
        starts = list(range(0, len(tokens), STRETCH))
    else:
        starts = np.linspace(0, len(tokens) - STRETCH, count).astype(np.int64).tolist()
    for start in starts:
        stop = min(len(tokens), start + STRETCH)
        if isinstance(tokens, Shards):
            yield np.asarray(tokens.read(start, stop - start))
        else:
            yield np.asarray(tokens[start:stop])


def _keys(tokens: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """A hash of each document's length and four of its tokens, uint64 [n]."""
    places = (starts, np.minimum(starts + 1, ends - 1), (starts + ends) // 2, ends - 2)
    key = (ends - starts).astype(np.uint64)
    for place in places:
        key = key * np.uint64(BASE) + tokens[np.maximum(place, starts)].astype(np.uint64)
    return key


def _digest(tokens: np.ndarray) -> bytes:
    return hashlib.blake2b(tokens.astype("<u4").tobytes(), digest_size=16).digest()
