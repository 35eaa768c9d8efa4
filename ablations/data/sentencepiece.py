"""Where text may be cut before BPE as SentencePiece's tokenizers are converted (Llama 2, Mistral,
Gemma).

They have no regular expression: BPE may join whatever stands side by side, U+2581 being the space.
It joins two symbols only by a merge, so that no token reaches over a place whose two characters
no merge's parts end and begin with, and the merges on both sides of it do not know of each other.
Which places those are is read off the merges. With Metaspace's split no token reaches over into a
space at all.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

SPACE = "▁"
REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
PREPEND = {"type": "Prepend", "prepend": SPACE}
# Gemma's: its normalizer leaves no space to split at.
NO_SPLIT = {"type": "Split", "pattern": {"String": " "}, "invert": False}
BYTE = re.compile(r"<0x[0-9A-F]{2}>")
MOST_WHOLE = 16  # strings that are looked for in every document


@dataclass(frozen=True, eq=False)
class Pieces:
    """How one such tokenizer takes a text in pieces."""

    cut: np.ndarray
    """Whether text may be cut between two bytes, bool [65536], by the first's value * 256 + the
    second's; true only where a cut is of use."""
    described: dict[str, Any]
    """The tokenizer.json of the same tokenizer setting no space before a text."""
    prefix: str
    """What the tokenizer sets before a text: a space or nothing."""
    prefix_once: bool
    """Whether it sets none before a text that begins with one, as Metaspace does."""
    whole: tuple[str, ...]
    """What no text that is cut may hold."""

    def begun(self, text: str) -> bytes:
        """UTF-8 of a text with what the tokenizer sets before it."""
        bare = not text or (self.prefix_once and text.startswith(self.prefix))
        return text.encode() if bare else (self.prefix + text).encode()

    def cuts(self, data: bytes) -> np.ndarray:
        """Places in UTF-8 text that no token reaches over, int64, none before the first byte."""
        byte = np.frombuffer(data, dtype=np.uint8)
        return np.flatnonzero(self.cut[(byte[:-1].astype(np.uint16) << 8) | byte[1:]]) + 1

    def joinable(self, piece: bytes) -> bytes | None:
        """A piece as it may follow others in one text, None where it may not.

        One that does not begin with a space is set behind a newline.
        """
        first, last = piece[0], piece[-1] << 8
        if not (self.cut[last | 32] and self.cut[last | 10]):
            return None
        if first == 32:
            return piece
        return b"\n" + piece if self.cut[(10 << 8) | first] else None


def pieces(described: dict[str, Any]) -> Pieces | None:
    """Of a tokenizer.json; None where it is of another kind, or must see every text whole."""
    split = described.get("pre_tokenizer") or {}
    metaspace = split.get("type") == "Metaspace"
    steps = described.get("normalizer") or {}
    steps = steps.get("normalizers", [steps]) if steps else []
    if metaspace:
        fits = not steps and split["replacement"] == SPACE
        prefixed = split["prepend_scheme"] != "never"
        variant = {"pre_tokenizer": {**split, "prepend_scheme": "never"}}
    else:
        fits = steps in ([REPLACE], [PREPEND, REPLACE], [REPLACE, PREPEND])
        fits &= not split or {key: split.get(key) for key in NO_SPLIT} == NO_SPLIT
        prefixed = PREPEND in steps
        variant = {"normalizer": REPLACE}
    if not fits or not _is_plain_bpe(described["model"]):
        return None
    added = [token for token in described["added_tokens"] if not token["special"]]
    # Around an added token such a tokenizer may set spaces, or take some away.
    spelled = [
        token["content"].strip(" " + SPACE)
        for token in added
        if prefixed or token["single_word"] or token["lstrip"] or token["rstrip"]
    ]
    if not all(spelled) or len(spelled) > MOST_WHOLE:
        return None
    cut = _useful()
    cut[_codes({(left[-1], right[0]) for left, right in _pairs(described["model"])})] = False
    if metaspace and split["split"]:
        cut[ord(" ") :: 256] = True
    cut[_codes({pair for token in added for pair in pairwise(token["content"])})] = False
    # U+2581 in a text is a space to the tokenizer, which its bytes do not say.
    whole = (SPACE, *spelled)
    return Pieces(cut, {**described, **variant}, " " if prefixed else "", metaspace, whole)


def _is_plain_bpe(model: dict[str, Any]) -> bool:
    """Whether a symbol is a character, or a byte that nothing joins, and merges alone join them."""
    options = ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "ignore_merges")
    if model["type"] != "BPE" or not model["byte_fallback"] or any(map(model.get, options)):
        return False
    return all(f"<0x{byte:02X}>" in model["vocab"] for byte in range(256)) and not any(
        "<0x" in (token := left + right) and BYTE.search(token) for left, right in _pairs(model)
    )


def _pairs(model: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The two parts of every merge."""
    for merge in model["merges"]:
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        yield left, right


def _codes(characters: set[tuple[str, str]]) -> list[int]:
    """Places in `Pieces.cut` of pairs of characters."""
    coded = [
        (a.replace(SPACE, " ").encode(), b.replace(SPACE, " ").encode()) for a, b in characters
    ]
    return [(before[-1] << 8) | after[0] for before, after in coded]


def _useful() -> np.ndarray:
    """Borders of characters but those inside of what looks like a word, bool [65536]."""
    byte = np.arange(256)
    letter = np.isin(byte, list(b"0123456789" + bytes(range(65, 91)) + bytes(range(97, 123))))
    begins = (byte & 0xC0) != 0x80
    return (begins[None] & ~(letter[:, None] & letter[None])).ravel()
