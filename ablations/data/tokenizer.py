"""Which tokenizer a setting names, and the UTF-8 bytes that each of its tokens stands for."""

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ablations.data.manifest import DTYPES, smallest_dtype
from ablations.data.prepared import write_token_bytes
from ablations.data.sentencepiece import pieces
from ablations.data.shards import write_synced
from models.errors import SettingError

SENTENCEPIECE = "sentencepiece"
LARGEST_VOCAB = 1 << 24  # ids; published tokenizers have under 2^19
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
# Regular expressions before byte-level BPE, by family; digits apart or in threes. cl100k: dolma2,
# Llama 3, Qwen. o200k: GPT-4o, gpt-oss, Llama 4; without contractions Mistral's Tekken.
ENGLISH = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
SPACES = "|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
CL100K = ENGLISH + "|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}%s| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*" + SPACES
UPPER, LOWER = (f"[{case}\\p{{Lm}}\\p{{Lo}}\\p{{M}}]" for case in ("\\p{Lu}\\p{Lt}", "\\p{Ll}"))
CASED = f"[^\\r\\n\\p{{L}}\\p{{N}}]?{UPPER}*{LOWER}+%s|[^\\r\\n\\p{{L}}\\p{{N}}]?{UPPER}+{LOWER}*%s"
O200K = "|\\p{N}%s| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*" + SPACES
FAMILIES = {
    **dict.fromkeys((CL100K % digits for digits in ("", "{1,3}")), "cl100k"),
    **dict.fromkeys(
        (
            CASED % (suffix, suffix) + O200K % digits
            for suffix in ("", ENGLISH + "?")
            for digits in ("", "{1,3}")
        ),
        "o200k",
    ),
}


@dataclass(frozen=True)
class TokenizerFile:
    """A tokenizer as a corpus records it; `content` is None for bytes."""

    name: str
    content: bytes | None
    vocab_size: int
    separator: int
    token_bytes: np.ndarray
    """uint16 [vocab_size]: UTF-8 bytes of each token, 0 for special ones."""
    prefix_bytes: int = 0
    """Bytes that `token_bytes` counts at each document's beginning and its text does not have: 1
    where a space is set before it, as SentencePiece does."""
    family: str | None = None
    """Of its regular expression: gpt2, cl100k, o200k; sentencepiece, whose BPE has none; or None
    for any other."""

    @property
    def sha256(self) -> str | None:
        return None if self.content is None else hashlib.sha256(self.content).hexdigest()

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(DTYPES[self.dtype_name])

    @property
    def dtype_name(self) -> str:
        return smallest_dtype(self.vocab_size)


def load_tokenizer(
    name: str, *, separator: str | int | None = None, vocab_size: int | None = None
) -> TokenizerFile:
    """The tokenizer that a setting names.

    name: `bytes`, a tokenizer.json, a folder with one, or a name on the Hugging Face hub;
    separator: the special token after each document, as text or id, or an id beyond the
    tokenizer's; an int for any id at all, of tokens that are there; None for the tokenizer's own
    end of text. vocab_size: at least the tokenizer's, for a vocabulary padded to a round number.
    Raises SettingError on what cannot be used.
    """
    if vocab_size is not None and vocab_size > LARGEST_VOCAB:
        raise SettingError(
            f"vocab_size={vocab_size} is more than {LARGEST_VOCAB:,}; valid: the tokenizer's, "
            "padded to a round number."
        )
    if name == "bytes":
        given = isinstance(separator, str) and separator != "0"
        if given or vocab_size not in (None, BYTES_VOCAB):
            raise SettingError(
                "tokenizer=bytes has vocab_size 256 and separator 0 (the NUL byte); give neither."
            )
        sizes = np.ones(BYTES_VOCAB, dtype=np.uint16)
        ending = separator if isinstance(separator, int) else BYTES_SEPARATOR
        sizes[_within(ending, BYTES_VOCAB)] = 0
        return TokenizerFile("bytes", None, BYTES_VOCAB, ending, sizes)
    content = _content(name)
    tokenizer = parse_tokenizer(name, content)
    known = tokenizer.get_vocab_size(with_added_tokens=True)
    largest = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=0) + 1
    least = max(known, largest)
    if vocab_size is not None and vocab_size < least:
        raise SettingError(
            f"vocab_size={vocab_size} is less than the {least:,} ids of tokenizer={name}; "
            f"valid: at least {least}."
        )
    size = vocab_size or least
    described = json.loads(tokenizer.to_str())
    sizes = token_bytes(name, tokenizer, described, size)
    letter = tokenizer.encode("a", add_special_tokens=False).ids
    if not isinstance(separator, int):
        separator = _separator(name, tokenizer, separator, range(least, size))
    sizes[_within(separator, size)] = 0
    return TokenizerFile(
        name=Path(name).name,
        content=content,
        vocab_size=size,
        separator=separator,
        token_bytes=sizes,
        prefix_bytes=max(0, int(sizes[letter].sum()) - 1),
        family=_family(described),
    )


def record_tokenizer(folder: Path, tokenizer: TokenizerFile) -> dict[str, Any]:
    """Write a tokenizer's files into a corpus; the manifest's entries of them."""
    entry = {"name": tokenizer.name, "sha256": tokenizer.sha256}
    if tokenizer.content is None:
        return {"tokenizer": entry}
    write_synced(folder / "tokenizer.json", tokenizer.content)
    sizes = write_token_bytes(folder, tokenizer.token_bytes, tokenizer.prefix_bytes)
    return {"tokenizer": {**entry, "file": "tokenizer.json"}, "token_bytes": sizes}


def token_bytes(
    name: str, tokenizer: Any, described: dict[str, Any], vocab_size: int
) -> np.ndarray:
    """UTF-8 bytes of each token, uint16 [vocab_size]; special tokens stand for none.

    described: its tokenizer.json. A byte-level token has a byte a character; a byte-fallback one is
    `<0xNN>`, one byte, or text in which U+2581 is a space. Raises SettingError for other
    tokenizers, whose tokens do not add up to the text.
    """
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
        if byte_level:
            sizes[index] = len(added[index].encode() if index in added else token)
        elif re.fullmatch(r"<0x[0-9A-F]{2}>", token):
            sizes[index] = 1
        else:
            sizes[index] = len(token.replace("▁", " ").encode())
    return sizes


def texts_of(content: bytes, vocab_size: int) -> list[bytes] | None:
    """UTF-8 bytes of each token of a tokenizer.json, none of special tokens and unused ids.

    The same tokenizers as in `token_bytes`; None for others. Read as JSON, so that it does not
    depend on which packages are installed.
    """
    try:
        described = json.loads(content)
    except ValueError:
        return None
    decoders = {part["type"] for part in _parts(described.get("decoder"), "decoders")}
    vocabulary = described["model"].get("vocab")
    byte_level = "ByteLevel" in decoders
    if not byte_level and not decoders & {"ByteFallback", "Metaspace"}:
        return None
    if not isinstance(vocabulary, dict):
        return None
    added_tokens = described.get("added_tokens") or []
    ids = [*vocabulary.values(), *(added["id"] for added in added_tokens)]
    texts = [b""] * max(vocab_size, *(index + 1 for index in ids))
    for token, index in vocabulary.items():
        if byte_level:
            texts[index] = bytes(BYTE_OF[letter] for letter in token if letter in BYTE_OF)
        elif re.fullmatch(r"<0x[0-9A-F]{2}>", token):
            texts[index] = bytes([int(token[3:5], 16)])
        else:
            texts[index] = token.replace("▁", " ").encode()
    for added in added_tokens:
        text = added["content"] if byte_level else added["content"].replace("▁", " ")
        texts[added["id"]] = b"" if added["special"] else text.encode()
    return texts


def _letter_of_byte() -> dict[str, int]:
    """The byte that each letter of a byte-level token stands for: itself where it is printed in
    Latin-1, and the others in order from U+0100 on (GPT-2's table)."""
    printed = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = [byte for byte in range(256) if byte not in printed]
    return {chr(byte): byte for byte in printed} | {chr(256 + i): b for i, b in enumerate(others)}


BYTE_OF = _letter_of_byte()


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


def parse_tokenizer(name: str, content: bytes) -> Any:
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


def _separator(name: str, tokenizer: Any, wanted: str | None, unused: range) -> int:
    """The id that ends documents; unused: ids of the vocabulary that are no token."""
    special = {
        token.content: index
        for index, token in tokenizer.get_added_tokens_decoder().items()
        if token.special
    }
    for content in (wanted,) if wanted is not None else END_OF_TEXT:
        if content in special:
            return special[content]
    number = int(wanted) if wanted is not None and wanted.isdecimal() else -1
    if number in special.values() or number in unused:
        return number
    own = f"an id of its own by vocab_size={unused.start + 1} separator={unused.start}"
    valid = ", ".join([*list(special)[:8], own])
    if wanted is None:
        raise SettingError(
            f"tokenizer={name} has no end of text of a known name; valid: separator=TOKEN with one "
            f"of its special tokens ({valid})."
        )
    raise SettingError(
        f"separator={wanted} is no special token of tokenizer={name}; valid: {valid}."
    )


def _within(separator: int, vocab_size: int) -> int:
    if not 0 <= separator < vocab_size:
        raise SettingError(f"separator={separator} must be a token id, 0 to {vocab_size - 1}.")
    return separator


def _parts(described: dict[str, Any] | None, key: str) -> Iterable[dict[str, Any]]:
    if described is None:
        return []
    return described[key] if described["type"] == "Sequence" else [described]


def _family(described: dict[str, Any]) -> str | None:
    """The family of a tokenizer's regular expression, where nothing else changes the text."""
    if pieces(described) is not None:
        return SENTENCEPIECE
    normalizers = [part["type"] for part in _parts(described.get("normalizer"), "normalizers")]
    model = described["model"]
    if model["type"] != "BPE" or model.get("dropout") or set(normalizers) - {"NFC"}:
        return None
    steps = list(_parts(described.get("pre_tokenizer"), "pretokenizers"))
    if not steps or steps[-1]["type"] != "ByteLevel" or steps[-1]["add_prefix_space"]:
        return None
    if len(steps) == 1:
        return "gpt2" if steps[0]["use_regex"] else None
    if len(steps) != 2 or steps[0]["type"] != "Split" or steps[1]["use_regex"]:
        return None
    # Keeping what matches, in either of the two ways to say so.
    if (steps[0]["behavior"], steps[0]["invert"]) not in (("Isolated", False), ("Removed", True)):
        return None
    return FAMILIES.get(steps[0]["pattern"].get("Regex", ""))
