"""Text to token ids, several times as fast as the tokenizer alone.

The regular expressions before byte-level BPE never let a token reach over certain places, such as
from an ASCII letter into a space, nor do SentencePiece's merges (`sentencepiece`). Text may be cut
there, and each piece looked up where it was seen before: the ids are those of the tokenizer on the
whole text. The first documents of every block are encoded both ways, and a difference stops the
preparation.
"""

import json
import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, Protocol

import numpy as np

from ablations.data.sentencepiece import pieces
from ablations.data.tokenizer import SENTENCEPIECE, TokenizerFile, parse_tokenizer

OTHER, LETTER, DIGIT, MARK, SPACE, NEWLINE = range(6)
LONGEST_REMEMBERED = 32  # bytes; longer pieces hardly come again
MOST_REMEMBERED = 400_000  # pieces in each of two generations, about 50 MB
MOST_SPELLED = 16  # added tokens that are looked for in every document
CHECKED_BYTES = 20_000  # a block, encoded both ways
JOINABLE = re.compile(rb"(?s:[\n -~]|[\n -~].*[A-Za-z0-9])(?<=[A-Za-z0-9])")
GLUED = re.compile(rb"[A-Za-z0-9'/]")  # what may go on with a word or number before it
JOINED_BYTES = 4096  # of pieces encoded as one text


class Encoder(Protocol):
    """What turns texts into token ids."""

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Ids of each text, without separators."""


def build_encoder(tokenizer: TokenizerFile) -> Encoder:
    """The encoder of a tokenizer, for one process."""
    if tokenizer.content is None:
        return _Bytes()
    parsed = parse_tokenizer(tokenizer.name, tokenizer.content)
    plain = _Plain(parsed, tokenizer.dtype)
    if tokenizer.family is None:
        return plain
    if tokenizer.family == SENTENCEPIECE:
        found = pieces(json.loads(parsed.to_str()))
        assert found is not None
        bare = parse_tokenizer(tokenizer.name, json.dumps(found.described).encode())
        return _Remembering(plain, _Plain(bare, tokenizer.dtype), tokenizer, found, found.whole)
    spelled = _spelled(parsed, tokenizer.family)
    if len(spelled) > MOST_SPELLED:
        return plain
    return _Remembering(plain, plain, tokenizer, _ByteLevel(tokenizer.family), spelled)


def cuts(data: bytes, family: str) -> np.ndarray:
    """Places in UTF-8 text that no token reaches over, int64, none before the first byte.

    Between an ASCII letter or digit and any ASCII character of another kind; before a space between
    two printed characters; and after a newline between two printed characters. In all families a
    token with letters or digits ends with them, and white space begins a token of its own or joins
    what follows; but in o200k a word takes its contraction along ('s), and a run of marks the
    slashes after its newlines, so that apostrophes and slashes are no place to cut at.
    """
    kind = _KINDS[family][np.frombuffer(data, dtype=np.uint8)]
    before, here = kind[:-1], kind[1:]
    printed = (kind == LETTER) | (kind == DIGIT) | (kind == MARK)
    cut = ((before == LETTER) | (before == DIGIT)) & (here != before) & (here != OTHER)
    cut[:-1] |= (here[:-1] == SPACE) & printed[:-2] & printed[2:]
    cut[1:] |= (before[1:] == NEWLINE) & printed[:-2] & printed[2:]
    return np.flatnonzero(cut) + 1


def _kinds(uncut: bytes = b"") -> np.ndarray:
    kind = np.full(256, OTHER, dtype=np.uint8)
    kind[33:127] = MARK
    for first, last in (b"AZ", b"az"):
        kind[first : last + 1] = LETTER
    kind[ord("0") : ord("9") + 1] = DIGIT
    kind[ord(" ")], kind[ord("\n")] = SPACE, NEWLINE
    kind[list(uncut)] = OTHER
    return kind


_KINDS = {"gpt2": _kinds(), "cl100k": _kinds(), "o200k": _kinds(uncut=b"'/")}


class _Cutter(Protocol):
    """Where the texts of a kind of tokenizer may be cut, and which pieces may stand together."""

    def begun(self, text: str) -> bytes:
        """UTF-8 of a text with what the tokenizer sets before it."""

    def cuts(self, data: bytes) -> np.ndarray:
        """Places in UTF-8 text that no token reaches over, int64, none before the first byte."""

    def joinable(self, piece: bytes) -> bytes | None:
        """A piece as it may follow others in one text, None where it may not."""


class _ByteLevel:
    def __init__(self, family: str) -> None:
        self._family = family

    def begun(self, text: str) -> bytes:
        return text.encode()

    def cuts(self, data: bytes) -> np.ndarray:
        return cuts(data, self._family)

    def joinable(self, piece: bytes) -> bytes | None:
        """After a letter or digit white space and most marks are a safe cut, and so are both sides
        of a newline before anything else."""
        if not JOINABLE.fullmatch(piece):
            return None
        return b"\n" + piece if GLUED.match(piece) else piece


class _Bytes:
    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [np.frombuffer(text.encode(), dtype=np.uint8) for text in texts]


class _Plain:
    """The tokenizer's own way."""

    def __init__(self, tokenizer: Any, dtype: np.dtype) -> None:
        self._tokenizer, self._dtype = tokenizer, dtype

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, dtype=self._dtype) for encoding in encodings]


class _Remembering:
    """Ids of pieces between safe cuts, remembered as bytes."""

    def __init__(
        self,
        plain: _Plain,
        bare: _Plain,
        tokenizer: TokenizerFile,
        cutter: _Cutter,
        spelled: Sequence[str],
    ) -> None:
        """bare: the tokenizer of pieces, which sets nothing before them; spelled: what no text that
        is cut may hold."""
        self._plain, self._bare, self._cutter, self._spelled = plain, bare, cutter, spelled
        self._dtype, self._token_bytes = tokenizer.dtype, tokenizer.token_bytes
        # Two generations, so that what is met often outlasts what was met once.
        self._young: dict[bytes, bytes] = {}
        self._old: dict[bytes, bytes] = {}

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        if any(token in text for token in self._spelled for text in texts):
            return [piece for text in texts for piece in self._apart(text)]
        return self._together(texts)

    def _apart(self, text: str) -> list[np.ndarray]:
        spells = any(token in text for token in self._spelled)
        return self._plain.encode([text]) if spells else self._together([text])

    def _together(self, texts: Sequence[str]) -> list[np.ndarray]:
        encoded = [self._cutter.begun(text) for text in texts]
        data = b"".join(encoded)
        if not data:
            return [np.empty(0, dtype=self._dtype) for _ in texts]
        # The rules hold across the border of two texts too: it is a cut in any case.
        borders = np.cumsum([0, *map(len, encoded)])
        is_cut = np.zeros(len(data) + 1, dtype=bool)
        is_cut[self._cutter.cuts(data)] = is_cut[borders] = True
        at = np.flatnonzero(is_cut)
        places = at.tolist()
        pieces = [data[a:b] for a, b in pairwise(places)]
        ids = self._look_up(pieces)
        blob = np.frombuffer(b"".join(ids), dtype=self._dtype)
        ends = np.cumsum([0, *map(len, ids)]) // self._dtype.itemsize
        limits = ends[np.searchsorted(at, borders)].tolist()
        out = [blob[a:b] for a, b in pairwise(limits)]
        self._check(texts, encoded, out)
        return out

    def _look_up(self, pieces: list[bytes]) -> list[bytes]:
        young = self._young
        found = list(map(young.get, pieces))
        lost = [place for place, ids in enumerate(found) if ids is None]
        here: dict[bytes, bytes] = {}
        new = []
        for piece in {pieces[place] for place in lost}:
            if (ids := self._old.get(piece)) is not None:
                young[piece] = here[piece] = ids
            else:
                new.append(piece)
        for piece, ids in self._tokenize(new):
            here[piece] = ids
            if len(piece) <= LONGEST_REMEMBERED:
                young[piece] = ids
        for place in lost:
            found[place] = here[pieces[place]]
        if len(young) > MOST_REMEMBERED:
            self._old, self._young = young, {}
        return found  # type: ignore[return-value]

    def _tokenize(self, new: list[bytes]) -> Iterator[tuple[bytes, bytes]]:
        """Ids of pieces not met before, many of them as one text where they can stand together.

        A text costs several times what its few letters do. Tokens add up to their text, so that it
        is known where each piece's begin.
        """
        groups: list[list[tuple[bytes, bytes]]] = []
        left: list[bytes] = []
        size = JOINED_BYTES
        for piece in new:
            part = self._cutter.joinable(piece)
            if part is None:
                left.append(piece)
                continue
            if size >= JOINED_BYTES:
                groups.append([])
                size = 0
            groups[-1].append((piece, part))
            size += len(part)
        texts = [b"".join(part for _, part in group).decode() for group in groups]
        for joined, ids in zip(groups, self._bare.encode(texts), strict=True):
            group, parts = zip(*joined, strict=True)
            token_ends = np.cumsum(self._token_bytes[ids], dtype=np.int64)
            ends = np.cumsum([len(part) for part in parts], dtype=np.int64)
            starts = ends - [len(piece) for piece in group]
            first = np.searchsorted(token_ends, starts, side="right")
            last = np.searchsorted(token_ends, ends)
            token_starts = np.concatenate([[0], token_ends, [-1]])
            if (
                last[-1] != len(ids) - 1
                or not np.array_equal(token_ends[last], ends)
                or not np.array_equal(token_starts[first], starts)
            ):
                left += group  # a normalizer or an unknown token: the sums do not hold
                continue
            raw, item = ids.tobytes(), ids.itemsize
            for piece, a, b in zip(
                group, (first * item).tolist(), ((last + 1) * item).tolist(), strict=True
            ):
                yield piece, raw[a:b]
        alone = self._bare.encode([piece.decode() for piece in left])
        yield from ((piece, ids.tobytes()) for piece, ids in zip(left, alone, strict=True))

    def _check(
        self, texts: Sequence[str], encoded: Sequence[bytes], found: Sequence[np.ndarray]
    ) -> None:
        within = np.cumsum([len(content) for content in encoded]) <= CHECKED_BYTES
        checked = texts[: int(within.sum())]
        for expected, tokens in zip(self._plain.encode(checked), found, strict=False):
            if not np.array_equal(expected, tokens):
                raise RuntimeError("the tokenizer's ids differ on a text that was cut to pieces")


def _spelled(tokenizer: Any, family: str) -> list[str]:
    """Added tokens that a cut could break, as they are matched before the regular expression."""
    return [
        token.content
        for token in tokenizer.get_added_tokens_decoder().values()
        if not token.special
        and (
            token.lstrip or token.rstrip or token.single_word
            or token.content.endswith(" ")
            or _broken(token.content.encode(), family)
        )
    ]  # fmt: skip


def _broken(token: bytes, family: str) -> bool:
    """Whether there may be a cut inside a token that stands in some text."""
    # Letters on both sides make every cut inside that any neighbours would make.
    inside = cuts(b"a" + token + b"a", family) - 1
    return bool(((inside > 0) & (inside < len(token))).any())
