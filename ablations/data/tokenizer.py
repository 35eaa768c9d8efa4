"""Text to token ids, fast and in many processes, and the UTF-8 bytes that each token stands for.

The regular expressions before byte-level BPE never let a token reach over certain places, such as
from an ASCII letter into a space. Text may be cut there, and each piece looked up where it was seen
before: the ids are those of the tokenizer on the whole text, at several times its speed. The first
documents of every block are encoded both ways, and a difference stops the preparation.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ablations.data.prepared import DTYPES
from models.errors import SettingError

BYTES_VOCAB = 256
BYTES_SEPARATOR = 0
# What tokenizers name the token after a document, most telling first.
END_OF_TEXT = (
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|eos|>",
    "</s>",
    "<eos>",
    "<|end▁of▁sentence|>",
)
# Patterns for which the cuts have been reasoned through: GPT-2's own (`use_regex`), and that of
# cl100k (dolma2, Llama 3, Qwen 2), whose runs of digits differ. In both a token with letters or
# digits ends with them, and white space begins a token of its own or joins what follows.
WORDS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}"
MARKS = "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
CL100K = tuple(WORDS + digits + MARKS for digits in ("", "{1,3}"))
OTHER, LETTER, DIGIT, MARK, SPACE, NEWLINE = range(6)
LONGEST_REMEMBERED = 32  # bytes; longer pieces hardly come again
MOST_REMEMBERED = 400_000  # pieces in each of two generations, about 50 MB
MOST_SPELLED = 16  # added tokens that are looked for in every document
CHECKED_BYTES = 20_000  # a block, encoded both ways
JOINABLE = re.compile(rb"(?s:[\n -~]|[\n -~].*[A-Za-z0-9])(?<=[A-Za-z0-9])")
JOINED_BYTES = 4096  # of pieces encoded as one text


class Encoder(Protocol):
    """What turns texts into token ids."""

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Ids of each text, without separators."""


@dataclass(frozen=True)
class TokenizerFile:
    """A tokenizer as a corpus records it; `content` is None for bytes."""

    name: str
    content: bytes | None
    vocab_size: int
    separator: int
    token_bytes: np.ndarray
    """uint16 [vocab_size]: UTF-8 bytes of each token, 0 for special ones."""

    @property
    def sha256(self) -> str | None:
        return None if self.content is None else hashlib.sha256(self.content).hexdigest()

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(DTYPES[self.dtype_name])

    @property
    def dtype_name(self) -> str:
        return next(n for n, d in DTYPES.items() if self.vocab_size <= np.iinfo(d).max + 1)

    @property
    def manifest(self) -> dict[str, Any]:
        return {"name": self.name, "sha256": self.sha256}


def load_tokenizer(
    name: str, *, separator: str | None = None, vocab_size: int | None = None
) -> TokenizerFile:
    """The tokenizer that a setting names.

    name: `bytes`, a tokenizer.json, a folder with one, or a name on the Hugging Face hub;
    separator: the special token after each document, as text or id, None for the tokenizer's own
    end of text; vocab_size: at least the tokenizer's, for a vocabulary padded to a round number.
    Raises SettingError on what cannot be used.
    """
    if name == "bytes":
        if separator not in (None, "0") or vocab_size not in (None, BYTES_VOCAB):
            raise SettingError(
                "tokenizer=bytes has vocab_size 256 and separator 0 (the NUL byte); give neither."
            )
        sizes = np.ones(BYTES_VOCAB, dtype=np.uint16)
        sizes[BYTES_SEPARATOR] = 0
        return TokenizerFile("bytes", None, BYTES_VOCAB, BYTES_SEPARATOR, sizes)
    content = _content(name)
    tokenizer = _parse(name, content)
    known = tokenizer.get_vocab_size(with_added_tokens=True)
    largest = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=0) + 1
    least = max(known, largest)
    if vocab_size is not None and vocab_size < least:
        raise SettingError(
            f"vocab_size={vocab_size} is less than the {least:,} ids of tokenizer={name}; "
            f"valid: at least {least}."
        )
    size = vocab_size or least
    sizes = token_bytes(name, tokenizer, size)
    return TokenizerFile(
        Path(name).name, content, size, _separator(name, tokenizer, separator), sizes
    )


def build_encoder(tokenizer: TokenizerFile) -> Encoder:
    """The encoder of a tokenizer, for one process."""
    if tokenizer.content is None:
        return _Bytes()
    parsed = _parse(tokenizer.name, tokenizer.content)
    described = json.loads(parsed.to_str())
    plain = _Plain(parsed, tokenizer.dtype)
    spelled = _spelled(described)
    if not _may_cut(described) or len(spelled) > MOST_SPELLED:
        return plain
    return _Remembering(plain, tokenizer, spelled)


def cuts(data: bytes) -> np.ndarray:
    """Places in UTF-8 text that no token reaches over, int64, none before the first byte.

    Between an ASCII letter or digit and any ASCII character of another kind; before a space between
    two printed characters; and after a newline between two printed characters.
    """
    kind = _KIND[np.frombuffer(data, dtype=np.uint8)]
    before, here = kind[:-1], kind[1:]
    printed = (kind == LETTER) | (kind == DIGIT) | (kind == MARK)
    cut = ((before == LETTER) | (before == DIGIT)) & (here != before) & (here != OTHER)
    cut[:-1] |= (here[:-1] == SPACE) & printed[:-2] & printed[2:]
    cut[1:] |= (before[1:] == NEWLINE) & printed[:-2] & printed[2:]
    return np.flatnonzero(cut) + 1


def _kinds() -> np.ndarray:
    kind = np.full(256, OTHER, dtype=np.uint8)
    kind[33:127] = MARK
    for first, last in (b"AZ", b"az"):
        kind[first : last + 1] = LETTER
    kind[ord("0") : ord("9") + 1] = DIGIT
    kind[ord(" ")], kind[ord("\n")] = SPACE, NEWLINE
    return kind


_KIND = _kinds()


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

    def __init__(self, plain: _Plain, tokenizer: TokenizerFile, spelled: Sequence[str]) -> None:
        self._plain, self._dtype, self._spelled = plain, tokenizer.dtype, spelled
        self._token_bytes = tokenizer.token_bytes
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
        encoded = [text.encode() for text in texts]
        data = b"".join(encoded)
        if not data:
            return [np.empty(0, dtype=self._dtype) for _ in texts]
        # The rules hold across the border of two texts too: it is a cut in any case.
        borders = np.cumsum([0, *map(len, encoded)])
        is_cut = np.zeros(len(data) + 1, dtype=bool)
        is_cut[cuts(data)] = is_cut[borders] = True
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
        """Ids of pieces not met before; those that end in a letter or digit many at a time.

        A text costs several times what its few letters do. After such a piece anything but a letter
        or digit is a safe cut, and so are both sides of a newline before one of those. Tokens add
        up to their text, so that it is known where each piece's begin.
        """
        groups: list[list[bytes]] = []
        left: list[bytes] = []
        size = JOINED_BYTES
        for piece in new:
            if not JOINABLE.fullmatch(piece):
                left.append(piece)
                continue
            if size >= JOINED_BYTES:
                groups.append([])
                size = 0
            groups[-1].append(piece)
            size += len(piece)
        glued = [[b"\n" + p if p[:1].isalnum() else p for p in group] for group in groups]
        texts = [b"".join(group).decode() for group in glued]
        for group, parts, ids in zip(groups, glued, self._plain.encode(texts), strict=True):
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
        plain = self._plain.encode([piece.decode() for piece in left])
        yield from ((piece, ids.tobytes()) for piece, ids in zip(left, plain, strict=True))

    def _check(
        self, texts: Sequence[str], encoded: Sequence[bytes], found: Sequence[np.ndarray]
    ) -> None:
        within = np.cumsum([len(content) for content in encoded]) <= CHECKED_BYTES
        checked = texts[: int(within.sum())]
        for expected, tokens in zip(self._plain.encode(checked), found, strict=False):
            if not np.array_equal(expected, tokens):
                raise RuntimeError("the tokenizer's ids differ on a text that was cut to pieces")


def token_bytes(name: str, tokenizer: Any, vocab_size: int) -> np.ndarray:
    """UTF-8 bytes of each token, uint16 [vocab_size]; special tokens stand for none.

    A byte-level token has a byte a character; a byte-fallback one is `<0xNN>`, one byte, or text in
    which U+2581 is a space. Raises SettingError for other tokenizers, whose tokens do not add up to
    the text.
    """
    described = json.loads(tokenizer.to_str())
    decoders = [part["type"] for part in _parts(described.get("decoder"), "decoders")]
    sizes = np.zeros(vocab_size, dtype=np.uint16)
    special = {t["id"] for t in described["added_tokens"] if t["special"]}
    added = {t["id"]: t["content"] for t in described["added_tokens"]}
    byte_level = "ByteLevel" in decoders
    if not byte_level and not {"ByteFallback", "Metaspace"} & set(decoders):
        raise SettingError(
            f"tokenizer={name} is neither byte-level nor byte-fallback, so its tokens do not add "
            "up to the text's bytes; valid: bytes, or a BPE tokenizer such as GPT-2's, OLMo's or "
            "Llama's."
        )
    for token, index in tokenizer.get_vocab(with_added_tokens=True).items():
        if index in special:
            continue
        if index in added:
            sizes[index] = len(added[index].encode())
        elif byte_level:
            sizes[index] = len(token)
        elif re.fullmatch(r"<0x[0-9A-F]{2}>", token):
            sizes[index] = 1
        else:
            sizes[index] = len(token.replace("▁", " ").encode())
    return sizes


def _content(name: str) -> bytes:
    path = Path(name).expanduser()
    if path.is_dir():
        path /= "tokenizer.json"
    if path.is_file():
        return path.read_bytes()
    if path.suffix == ".json" or name.startswith((".", "/", "~")):
        raise SettingError(
            f"tokenizer={name} is not a file; valid: bytes, a tokenizer.json, a folder with one, "
            "or a name on the Hugging Face hub."
        )
    try:
        from huggingface_hub import hf_hub_download

        return Path(hf_hub_download(name, "tokenizer.json")).read_bytes()
    except ImportError:
        reason = "and huggingface_hub, which fetches names, is not installed"
    except Exception as error:  # the hub's client raises a dozen kinds, network ones included
        reason = f"and the Hugging Face hub did not give it ({type(error).__name__})"
    raise SettingError(
        f"tokenizer={name} is not a file {reason}; valid: bytes, a tokenizer.json, a folder with "
        "one, or a name on the Hugging Face hub."
    )


def _parse(name: str, content: bytes) -> Any:
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise SettingError(
            f"tokenizer={name} needs the package tokenizers; valid without it: tokenizer=bytes."
        ) from None
    try:
        tokenizer = Tokenizer.from_str(content.decode())
    except Exception as error:  # the library raises bare Exception
        raise SettingError(
            f"tokenizer={name} is no tokenizer.json that the package tokenizers reads ({error})."
        ) from None
    tokenizer.no_padding()
    tokenizer.no_truncation()
    # A document that spells out a special token is text, not the end of a document.
    tokenizer.encode_special_tokens = True
    return tokenizer


def _separator(name: str, tokenizer: Any, wanted: str | None) -> int:
    special = {
        token.content: index
        for index, token in tokenizer.get_added_tokens_decoder().items()
        if token.special
    }
    for content in (wanted,) if wanted is not None else END_OF_TEXT:
        if content in special:
            return special[content]
    if wanted is not None and wanted.isdigit() and int(wanted) in special.values():
        return int(wanted)
    valid = ", ".join(list(special)[:8]) or "none, as this tokenizer has no special token"
    raise SettingError(
        f"separator={wanted} is no special token of tokenizer={name}; valid: {valid}."
    )


def _parts(described: dict[str, Any] | None, key: str) -> Iterable[dict[str, Any]]:
    if described is None:
        return []
    return described[key] if described["type"] == "Sequence" else [described]


def _may_cut(described: dict[str, Any]) -> bool:
    """Whether `cuts` are places that no token of a tokenizer reaches over."""
    normalizers = [part["type"] for part in _parts(described.get("normalizer"), "normalizers")]
    model = described["model"]
    if model["type"] != "BPE" or model.get("dropout") or set(normalizers) - {"NFC"}:
        return False
    steps = list(_parts(described.get("pre_tokenizer"), "pretokenizers"))
    if not steps or steps[-1]["type"] != "ByteLevel" or steps[-1]["add_prefix_space"]:
        return False
    if len(steps) == 1:
        return steps[0]["use_regex"]
    if len(steps) != 2 or steps[0]["type"] != "Split" or steps[1]["use_regex"]:
        return False
    pattern = steps[0]["pattern"].get("Regex", "")
    # Keeping what matches, in either of the two ways to say so.
    whole = (steps[0]["behavior"], steps[0]["invert"]) in (("Isolated", False), ("Removed", True))
    return whole and pattern in CL100K


def _spelled(described: dict[str, Any]) -> list[str]:
    """Added tokens that a cut could break, as they are matched before the regular expression."""
    return [
        token["content"]
        for token in described["added_tokens"]
        if not token["special"]
        and (
            token["lstrip"] or token["rstrip"] or token["single_word"]
            or token["content"].endswith(" ")
            or _broken(token["content"].encode())
        )
    ]  # fmt: skip


def _broken(token: bytes) -> bool:
    """Whether there may be a cut inside a token that stands in some text."""
    # Letters on both sides make every cut inside that any neighbours would make.
    inside = cuts(b"a" + token + b"a") - 1
    return bool(((inside > 0) & (inside < len(token))).any())
