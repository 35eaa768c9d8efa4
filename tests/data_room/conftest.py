"""Small BPE tokenizers of the families that are met, and documents to prepare."""

import json
from pathlib import Path
from typing import Any

import pytest

from ablations.data.__main__ import main
from ablations.data.prepared import Corpus, open_prepared

# As the published tokenizer.json files have them: Llama 3, Qwen 2, GPT-4o and Mistral's Tekken.
PATTERNS = {
    "llama3": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "qwen2": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "gpt4o": r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "tekken": r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    # No family of its own: tokens reach over from digits into letters.
    "other": r"\w+|[^\w\s]+|\s+",
}
END = "<|endoftext|>"
MORE_TEXT = "don't DON'T we'll it's //x/y/ a/b\n// 'tis\n'x 12/34'5 !\n/ " * 40


def train_tokenizer(
    path: Path, *, family: str = "llama3", added: tuple[str, ...] = (), ignore_merges: bool = False
) -> Path:
    """A byte-level BPE tokenizer of 500 tokens, with the pre-tokenizer of a family, or GPT-2's."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, trainers
    from tokenizers import pre_tokenizers as pre

    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    if family in PATTERNS:
        split = pre.Split(Regex(PATTERNS[family]), "isolated")
        level = pre.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.pre_tokenizer = pre.Sequence([split, level])
    else:
        assert family == "gpt2"
        tokenizer.pre_tokenizer = pre.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=[END],
        initial_alphabet=pre.ByteLevel.alphabet(),
        show_progress=False,
    )
    text = Path(json.__file__).read_text(encoding="utf-8")
    tokenizer.train_from_iterator([text, MORE_TEXT], trainer)
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in added])
    tokenizer.save(str(path))
    return path


FALLBACK = ("llama2", "metaspace", "metaspace_whole", "gemma")
GEMMA_ADDED = ("\n\n", "\n\n\n", "▁▁", "▁▁▁", "<table>", "a b")


def train_byte_fallback(path: Path, *, kind: str, added: tuple[str, ...] = ()) -> Path:
    """A BPE tokenizer as SentencePiece's are converted: as Llama 2's, with Metaspace that splits at
    spaces or does not, or as Gemma's with its added tokens."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, trainers
    from tokenizers import pre_tokenizers as pre

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    ends: list[Any] = [decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    spaces = normalizers.Replace(" ", "▁")
    if kind.startswith("metaspace"):
        tokenizer.pre_tokenizer = pre.Metaspace(prepend_scheme="first", split=kind == "metaspace")
        tokenizer.decoder = decoders.Sequence([*ends[:2], decoders.Metaspace()])
    elif kind == "gemma":
        tokenizer.normalizer = spaces
        tokenizer.pre_tokenizer = pre.Split(" ", "merged_with_previous")
        tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), *ends[:2]])
    else:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces])
        tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), *ends])
    special = ["<unk>", "<s>", "</s>"]
    fallback = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=[*special, *fallback], show_progress=False
    )
    lines = Path(json.__file__).read_text(encoding="utf-8").split("\n")
    words = [line[i : i + 40] for line in lines for i in range(0, len(line), 40)]
    tokenizer.train_from_iterator(words, trainer)
    described = json.loads(tokenizer.to_str())
    described["added_tokens"] = described["added_tokens"][: len(special)]
    described["model"]["byte_fallback"] = True
    tokenizer = Tokenizer.from_str(json.dumps(described))
    tokens = added or (GEMMA_ADDED if kind == "gemma" else ())
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in tokens])
    tokenizer.save(str(path))
    return path


@pytest.fixture(scope="session")
def tokenizer_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_tokenizer(tmp_path_factory.mktemp("bpe") / "tokenizer.json")


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


def run(*arguments: object) -> int:
    """python -m ablations.data, in this process."""
    return main([str(argument) for argument in arguments])


def prepare(out: Path, source: object, tokenizer: object, *more: str) -> Corpus:
    given = (f"source={source}", f"tokenizer={tokenizer}", f"out={out}", "processes=1", *more)
    assert run("prepare", *given) == 0
    return open_prepared(out, verify=True)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
