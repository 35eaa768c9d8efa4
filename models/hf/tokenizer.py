"""The tokenizer of an export: bytes, or a file of the user's."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from models.errors import SettingError
from models.hf.folder import brief, read_mapping, write_json
from models.hf.run import BYTES


def byte_tokenizer(vocab_size: int, separator: int | None) -> dict[str, Any]:
    """The content of a tokenizer.json whose ids are bytes.

    separator: the id that ends a document. Below 256 it is that byte itself, as NUL is in the
    embedded corpus; above, a token `<|endoftext|>` that no text makes.
    """
    # BPE with no merges over the byte-level alphabet (Radford et al. 2019): a printable
    # character stands for each byte, the others moved up past 255.
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    moved = [byte for byte in range(256) if byte not in printable]
    vocabulary = {chr(byte): byte for byte in printable}
    vocabulary |= {chr(256 + i): byte for i, byte in enumerate(moved)}
    special = []
    if separator is not None:
        token = chr(separator) if separator < 128 else "<|endoftext|>"
        vocabulary = {t: i for t, i in vocabulary.items() if i != separator} | {token: separator}
        flags = ("single_word", "lstrip", "rstrip", "normalized")
        special = [
            {"id": separator, "content": token, **dict.fromkeys(flags, False), "special": True}
        ]
    if max(vocabulary.values()) >= vocab_size:
        raise SettingError(
            f"a tokenizer of bytes needs {max(vocabulary.values()) + 1} ids, but the model has "
            f"vocab_size={vocab_size}."
        )
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": special,
        "normalizer": None,
        "pre_tokenizer": {**level, "use_regex": True},
        "post_processor": None,
        "decoder": {**level, "use_regex": True},
        "model": {"type": "BPE", "vocab": vocabulary, "merges": []},
    }


def write_tokenizer(
    folder: Path, tokenizer: str | Path, vocab_size: int, separator: int | None
) -> None:
    from tokenizers import Tokenizer

    file, settings = folder / "tokenizer.json", folder / "tokenizer_config.json"
    if tokenizer == BYTES:
        write_json(file, byte_tokenizer(vocab_size, separator))
    else:
        shutil.copyfile(tokenizer, file)
    try:
        ids = Tokenizer.from_file(str(file))
    except Exception as error:  # tokenizers has no class of its own for it
        raise SettingError(f"tokenizer={tokenizer} cannot be read ({brief(error)}).") from None
    largest = max(ids.get_vocab().values(), default=0)
    if largest >= vocab_size:
        raise SettingError(
            f"tokenizer={tokenizer} has ids up to {largest}, but the model's vocab_size is "
            f"{vocab_size}; give the tokenizer that the corpus was made with."
        )
    beside = Path(tokenizer).with_name("tokenizer_config.json")
    if tokenizer != BYTES and beside.exists():
        read_mapping(beside.parent, beside.name, json.loads, "tokenizer")
        shutil.copyfile(beside, settings)
        return
    end = None if separator is None else ids.id_to_token(separator)
    content = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "eos_token": end,
        "pad_token": end,
    }
    write_json(settings, {key: value for key, value in content.items() if value is not None})


def tokenizer_file(path: Path) -> Path:
    file = path / "tokenizer.json" if path.is_dir() else path
    if not file.is_file():
        raise SettingError(f"tokenizer={path} is no tokenizer.json, nor a folder with one.")
    return file
