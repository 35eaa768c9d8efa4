"""Classes of held-out targets: what kind of token a model is asked for, by the text alone.

Six partitions, each of all targets, so that the nats of a partition's classes add up to a domain's.
`repeat` says how much of the text before a model could copy (Arora et al. 2023, arXiv:2312.04927,
split the loss by whether a bigram occurred before). Every mix and seed has the same classes. They
take about a microsecond a target, so that they are computed at each start of a run and not kept.

    n rows of a domain, T targets of a row; a row is T + 1 tokens, of which the first is input alone
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ablations.data.windows import HeldOut

GRAMS = (1, 2, 4, 8, 16)
"""Lengths at which classes of `repeat` begin."""
REPEAT = ("0", "1", "2-3", "4-7", "8-15", "16+")
DELIMITER = ("opening", "closing", "other")
WORD = ("start", "continuation", "not a word")
WORDS = ("function word", "content word", "not a word")
FREQUENCY = tuple(f"{10 * tenth}-{10 * tenth + 10} %" for tenth in range(10))
FIRST_POSITIONS = 16
"""Targets in the first class of `position`; each class after it is as long as all before it."""
BLOCK_TOKENS = 1 << 20
"""Tokens whose text is held at once."""

# English alone: in other languages `words` tells nothing, and every word counts as content.
DETERMINERS = (
    "a an the this that these those some any no every each either neither both all half several "
    "many much more most few fewer little less such what which whose another other "
)
PRONOUNS = (
    "i me my mine myself we us our ours ourselves you your yours yourself yourselves he him his "
    "himself she her hers herself it its itself they them their theirs themselves who whom one "
    "someone somebody something anyone anybody anything everyone everybody everything nobody "
    "nothing none thou thee thy thine ye "
)
PREPOSITIONS = (
    "of in to for with on at by from about as into through over after between under against "
    "during without before within along among across behind beyond near around above below "
    "beside besides despite down inside like off onto out outside per since than toward towards "
    "until till up upon via "
)
CONJUNCTIONS = (
    "and or but nor so yet if because although though while whereas unless whether when whenever "
    "where wherever once "
)
AUXILIARIES = (
    "am is are was were be been being do does did doing done have has had having can could may "
    "might must shall should will would ought not cannot "
    "i'm i've i'll i'd we're we've we'll we'd you're you've you'll you'd he's he'd he'll she's "
    "she'd she'll it's it'll they're they've they'll they'd that's there's what's who's there "
    "isn't aren't wasn't weren't don't doesn't didn't haven't hasn't hadn't can't couldn't "
    "mustn't shan't shouldn't won't wouldn't"
)
FUNCTION_WORDS = frozenset(
    (DETERMINERS + PRONOUNS + PREPOSITIONS + CONJUNCTIONS + AUXILIARIES).split()
)
"""Closed-class words of English, in lower case."""


@dataclass(frozen=True, eq=False)
class Partition:
    """Classes of a domain's targets: each target that counts is of one."""

    names: tuple[str, ...]
    of_target: np.ndarray
    """Places in `names`, uint8 [n, T]; anything where a row is filled up."""
    tokens: np.ndarray
    """Targets of each class, int64 [classes]."""
    bytes: np.ndarray | None
    """UTF-8 bytes of text of each, int64 [classes]; None where targets' are not known."""


def classify(
    domains: Mapping[str, HeldOut], separator: int, texts: Sequence[bytes] | None
) -> dict[str, dict[str, Partition]]:
    """{domain: {partition: classes of its targets}}.

    separator: the token that ends a document; texts: UTF-8 bytes of each token id, none of a
    special token. Without texts there are `repeat`, `frequency` and `position` alone.
    """
    tenths = _tenths(domains)
    found = {}
    for name, domain in domains.items():
        T = domain.windows.shape[1] - 1
        edges, positions = _position_edges(T), np.arange(T)
        at = np.searchsorted(edges, positions, side="right").astype(np.uint8)
        ends = [*(edge - 1 for edge in edges), T - 1]
        spans = tuple(f"{a}-{b}" for a, b in zip([0, *edges], ends, strict=True))
        own = {"repeat": _partition(domain, REPEAT, repeats(domain.windows, separator))}
        if texts is not None:
            for key, names, of_target in _by_text(domain.windows, separator, texts):
                own[key] = _partition(domain, names, of_target)
        own["frequency"] = _partition(domain, FREQUENCY, tenths[domain.windows[:, 1:]])
        of_target = np.broadcast_to(at, (len(domain.windows), T))
        own["position"] = _partition(domain, spans, of_target)
        found[name] = own
    return found


def repeats(windows: np.ndarray, separator: int) -> np.ndarray:
    """Places in `REPEAT` of the targets of windows [n, T + 1], uint8 [n, T].

    The class holds the length of the longest n-gram that ends with the target, lies in its row and
    document, and occurred there before (the two may overlap). Classes begin at powers of two, so
    n-grams of those lengths are all that is compared: two of 2n tokens are equal where both of
    their halves are, which were numbered one pass before (Karp, Miller and Rosenberg 1972).
    """
    n, width = windows.shape
    ends = windows == separator
    # A separator is the last of its document.
    document = np.cumsum(ends, axis=1) - ends + np.arange(n)[:, None] * (width + 1)
    document = document.ravel()
    flat = np.arange(n * width)
    begins = np.flatnonzero(np.diff(document, prepend=-1))
    age = flat - begins[np.cumsum(np.diff(document, prepend=-1) != 0) - 1] + 1
    tokens = windows.ravel().astype(np.int64)
    found = np.zeros(n * width, dtype=np.uint8)
    # Of the n-gram ending at each place its number, equal for equal ones of one document.
    number = np.full(n * width, -1, dtype=np.int64)
    keys, places = document * (int(tokens.max(initial=0)) + 1) + tokens, flat
    for length in GRAMS:
        _, first, inverse, counts = np.unique(
            keys, return_index=True, return_inverse=True, return_counts=True
        )
        number[:] = -1
        number[places] = inverse
        found[places[first[inverse] < np.arange(len(places))]] += 1
        # What occurs once does not occur twice when it is longer.
        places = places[(counts[inverse] > 1) & (age[places] >= 2 * length)]
        places = places[number[places - length] >= 0]
        keys = number[places - length] * (len(first) + 1) + number[places]
    return found.reshape(n, width)[:, 1:]


def _by_text(
    windows: np.ndarray, separator: int, texts: Sequence[bytes]
) -> Iterator[tuple[str, tuple[str, ...], np.ndarray]]:
    """`delimiter`, `word` and `words` of the targets of windows [n, T + 1].

    A token is an opening or closing delimiter by the last bracket in it; its word is that of its
    first letter, and it starts the word where that letter does. A word is a run of letters, of
    which an apostrophe between two is one; what a window cuts is taken as it stands.
    """
    brackets = np.array([_bracket(text) for text in texts], dtype=np.uint8)
    # A token without text ends a word, and has a byte so that every token has.
    sizes = np.array([max(1, len(text)) for text in texts], dtype=np.int64)
    table = np.frombuffer(b"".join(text or b"\0" for text in texts), dtype=np.uint8)
    starts = np.cumsum(sizes) - sizes
    word, words = (np.empty(windows[:, 1:].shape, dtype=np.uint8) for _ in range(2))
    rows = max(1, BLOCK_TOKENS // windows.shape[1])
    for begin in range(0, len(windows), rows):
        block = windows[begin : begin + rows]
        tokens = np.column_stack([np.full(len(block), separator), block])  # rows are texts apart
        own = sizes[tokens.ravel()]
        at = np.cumsum(own) - own
        places = np.arange(int(own.sum())) + np.repeat(starts[tokens.ravel()] - at, own)
        of_word, of_words = _words(table[places], at, at + own)
        word[begin : begin + rows] = of_word.reshape(tokens.shape)[:, 2:]
        words[begin : begin + rows] = of_words.reshape(tokens.shape)[:, 2:]
    yield "delimiter", DELIMITER, brackets[windows[:, 1:]]
    yield "word", WORD, word
    yield "words", WORDS, words


def _bracket(text: bytes) -> int:
    for byte in reversed(text):
        if byte in b"([{":
            return 0
        if byte in b")]}":
            return 1
    return 2


def _words(text: np.ndarray, begins: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Places in `WORD` and in `WORDS` of tokens that are text[begins:ends], uint8 [tokens] each."""
    letter = _letters(text)
    edge = np.diff(letter.astype(np.int8), prepend=0, append=0)
    starts, stops = np.flatnonzero(edge == 1), np.flatnonzero(edge == -1)
    (places,) = np.nonzero(letter)
    after = np.searchsorted(places, begins)
    first = np.append(places, len(text))[after]
    inside = first < ends
    number = np.searchsorted(starts, first, side="right") - 1
    word = np.full(len(begins), 2, dtype=np.uint8)
    words = word.copy()
    word[inside] = starts[number[inside]] != first[inside]
    words[inside] = ~_are_function_words(text, starts, stops)[number[inside]]
    return word, words


def _letters(text: np.ndarray) -> np.ndarray:
    """Whether each byte of UTF-8 text is of a letter, bool [bytes].

    A byte beyond ASCII counts as one, but in U+0080 to U+00BF and U+2000 to U+207F, which are
    signs. An apostrophe (' or U+2019) between two letters is one.
    """
    padded = np.concatenate([text, np.zeros(3, dtype=np.uint8)])
    lower = padded | 0x20
    letter = ((lower >= ord("a")) & (lower <= ord("z")) & (padded < 0x80)) | (padded >= 0x80)
    signs = np.flatnonzero(padded[:-3] == 0xC2)
    letter[signs] = letter[signs + 1] = False
    signs = np.flatnonzero((padded[:-3] == 0xE2) & ((padded[1:-2] | 1) == 0x81))
    letter[signs] = letter[signs + 1] = letter[signs + 2] = False
    ascii_ones = np.flatnonzero(padded[:-3] == ord("'"))
    curly = signs[(padded[signs + 1] == 0x80) & (padded[signs + 2] == 0x99)]
    joins = []
    for places, width in ((ascii_ones, 1), (curly, 3)):
        places = places[places > 0]
        joined = places[letter[places - 1] & letter[places + width]]
        joins += [joined + i for i in range(width)]
    letter[np.concatenate(joins)] = True
    return letter[:-3]


def _are_function_words(text: np.ndarray, starts: np.ndarray, stops: np.ndarray) -> np.ndarray:
    """Whether each word text[starts:stops] is in `FUNCTION_WORDS`, whatever its case."""
    known = [word.encode() for word in sorted(FUNCTION_WORDS)]
    known += [word.replace(b"'", "’".encode()) for word in known if b"'" in word]
    longest = max(map(len, known))
    found = np.zeros(len(starts), dtype=bool)
    short = np.flatnonzero(stops - starts <= longest)
    letters = starts[short, None] + np.arange(longest)
    inside = letters < stops[short, None]
    spelled = np.where(inside, text[np.minimum(letters, len(text) - 1)], 0).astype(np.uint8)
    spelled[(spelled >= ord("A")) & (spelled <= ord("Z"))] |= 0x20
    found[short] = np.isin(spelled.view(f"S{longest}").ravel(), np.array(known))
    return found


def _tenths(domains: Mapping[str, HeldOut]) -> np.ndarray:
    """Place in `FREQUENCY` of each token id, uint8 [ids]: the tenth of all domains' targets in
    which the token's share begins, the most frequent first and of equals the smaller id."""
    targets = [domain.windows[:, 1:][_counted(domain)] for domain in domains.values()]
    ids = 1 + max(int(domain.windows.max()) for domain in domains.values())
    counts = sum(np.bincount(own, minlength=ids) for own in targets)
    counts = np.asarray(counts, dtype=np.int64)
    order = np.argsort(-counts, kind="stable")
    before = np.cumsum(counts[order]) - counts[order]
    tenths = np.empty(ids, dtype=np.uint8)
    tenths[order] = np.minimum(10 * before // max(1, int(counts.sum())), 9)
    return tenths


def _position_edges(T: int) -> list[int]:
    """Where classes of `position` after the first begin."""
    edges, edge = [], FIRST_POSITIONS
    while edge < T:
        edges.append(edge)
        edge *= 2
    return edges


def _counted(domain: HeldOut) -> np.ndarray:
    """Which targets count, bool [n, T]."""
    n, T = domain.windows[:, 1:].shape
    if domain.lengths is None:
        return np.ones((n, T), dtype=bool)
    return np.arange(T) < domain.lengths[:, None]


def _partition(domain: HeldOut, names: tuple[str, ...], of_target: np.ndarray) -> Partition:
    counted = _counted(domain)
    kept, number = of_target[counted], len(names)
    sizes = None
    if domain.target_bytes is not None:
        # Sums under 2^53 are exact in float64.
        sizes = np.bincount(kept, domain.target_bytes[counted], number).astype(np.int64)
    return Partition(names, of_target, np.bincount(kept, minlength=number), sizes)
