"""A small BPE tokenizer with the regular expression of cl100k, and documents to prepare."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

CL100K = (
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}|"
    " ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
)
END = "<|endoftext|>"


def train_tokenizer(path: Path, *, cl100k: bool, added: tuple[str, ...] = ()) -> Path:
    """A byte-level BPE tokenizer of 500 tokens, with the pre-tokenizer of cl100k or of GPT-2."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, trainers
    from tokenizers import pre_tokenizers as pre

    tokenizer = Tokenizer(models.BPE())
    if cl100k:
        split = pre.Split(Regex(CL100K), "isolated")
        level = pre.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.pre_tokenizer = pre.Sequence([split, level])
    else:
        tokenizer.pre_tokenizer = pre.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=[END],
        initial_alphabet=pre.ByteLevel.alphabet(),
        show_progress=False,
    )
    text = Path(json.__file__).read_text(encoding="utf-8")
    tokenizer.train_from_iterator([text], trainer)
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in added])
    tokenizer.save(str(path))
    return path


@pytest.fixture(scope="session")
def tokenizer_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_tokenizer(tmp_path_factory.mktemp("bpe") / "tokenizer.json", cl100k=True)


@pytest.fixture(scope="session")
def texts() -> list[str]:
    """Documents of several kinds: code, other scripts, white space, repeats."""
    code = Path(json.__file__).read_text(encoding="utf-8").split("\n\n")
    odd = ["café naïve", "北京 100%  ok\n\n  x", "a\tb\r\n\r\nc ", f"not {END} the end", "   \n"]
    return [f"{i}: {text}" for i, text in enumerate(code)] + odd * 2


def write_lines(path: Path, texts: list[Any]) -> Path:
    lines = [json.dumps({"text": text, "id": i}) + "\n" for i, text in enumerate(texts)]
    path.write_text("".join(lines), encoding="utf-8")
    return path
