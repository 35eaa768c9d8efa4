"""Which corpus a run reads, by its settings: the embedded one, a prepared folder or a mixture."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ablations.data.embedded import embedded_folder, embedded_manifest, open_embedded
from ablations.data.manifest import read_manifest
from ablations.data.mixture import folders, open_folder
from ablations.data.prepared import BYTE_TOKENIZER, Corpus
from ablations.data.verify import Part, folder_parts
from ablations.spec import CorpusSummary
from models.environment import NAMED, expand
from models.errors import SettingError


def summarize(name: str, path: str | None) -> CorpusSummary:
    """Describe a corpus without reading its tokens.

    name: `embedded` or `tokens`; path: the prepared folder of `tokens`.
    Raises SettingError where there is none, or it cannot be used.
    """
    if name == "embedded":
        manifest = embedded_manifest()
        return CorpusSummary(
            name, manifest["vocab_size"], manifest["fingerprint"], manifest["train_tokens"]
        )
    corpus = _open_folder(path)
    return CorpusSummary(corpus.name, corpus.vocab_size, corpus.fingerprint, len(corpus.train))


def held_out_tokens(name: str, path: str | None) -> dict[str, int]:
    """{domain: held-out tokens} of a corpus that `summarize` describes; raises as it does."""
    if name == "embedded":
        validation = embedded_manifest()["validation"]
        return {domain: int(part["tokens"]) for domain, part in validation.items()}
    return {d: len(part.tokens) for d, part in _open_folder(path).validation.items()}


def open_corpus(name: str, path: str | None, cache_dir: Path) -> Corpus:
    """Open what `summarize` describes; the embedded corpus is unpacked once into `cache_dir`."""
    return open_embedded(cache_dir) if name == "embedded" else _open_folder(path)


@functools.lru_cache
def decoder(name: str, path: str | None) -> Callable[[list[int]], str]:
    """Ids to text, of the corpus that `open_corpus` opens; bytes that are no UTF-8 become U+FFFD.

    Raises SettingError where the corpus does not hold its tokenizer.
    """
    if name == "embedded":
        return _bytes_decoded
    _, folder = folders(required_path(path))[0]
    recorded = read_manifest(folder, "data.path")["tokenizer"]
    if recorded["name"] == BYTE_TOKENIZER["name"]:
        return _bytes_decoded
    file = folder / str(recorded.get("file"))
    if "file" not in recorded or not file.is_file():
        raise SettingError(
            f"data.path={path} holds no tokenizer.json, without which its ids are no text; valid: "
            "evaluation.samples=0, or a corpus of python -m ablations.data prepare or adopt."
        )
    from ablations.data.tokenizer import parse_tokenizer

    tokenizer = parse_tokenizer(recorded["name"], file.read_bytes())
    return lambda ids: tokenizer.decode(ids, skip_special_tokens=False)


def token_texts(name: str, path: str | None, corpus: Corpus) -> list[bytes] | None:
    """UTF-8 bytes of each token id of the corpus that `open_corpus` opened, none of its separator.

    None where the corpus holds no tokenizer whose tokens are bytes of text.
    """
    recorded: dict[str, Any] = BYTE_TOKENIZER
    if name != "embedded":
        _, folder = folders(required_path(path))[0]
        recorded = read_manifest(folder, "data.path")["tokenizer"]
    if recorded["name"] == BYTE_TOKENIZER["name"]:
        texts = [bytes([i]) if i < 256 else b"" for i in range(corpus.vocab_size)]
    else:
        from ablations.data.tokenizer import texts_of

        file = folder / str(recorded.get("file"))
        found = texts_of(file.read_bytes(), corpus.vocab_size) if file.is_file() else None
        if found is None:
            return None
        texts = found
    texts[corpus.separator] = b""
    return texts


def _bytes_decoded(ids: list[int]) -> str:
    return b"".join(bytes([i]) if i < 256 else b"\xff" for i in ids).decode(errors="replace")


def _open_folder(path: str | None) -> Corpus:
    folder = required_path(path)
    try:
        return open_folder(folder)
    except SettingError as error:
        raise SettingError(by_name(error.args[0], path)) from error


def by_name(text: str, path: str | None) -> str:
    """`text`, a sentence to be recorded, with the names of the variables in data.path, as its spec
    has them, in place of what they hold.

    text: as raised, before SettingError escapes what a terminal would obey.
    """
    if path is None or not NAMED.search(path):
        return text
    try:
        folder = required_path(path)
    except SettingError:  # not set: nothing was read by it
        return text
    held = {str(folder.absolute()): path, str(folder): path}
    # Of a mixture's sources beside it, too.
    held |= {expand(found[0], "data.path"): found[0] for found in NAMED.finditer(path)}
    for value, name in held.items():
        if value.strip("./"):
            # A name alone might be any word: it is meant where it stands in a path.
            before = "" if value.startswith("/") else "(?<=[=/])"
            text = name.join(re.split(rf"{before}{re.escape(value)}(?![\w-])", text))
    return text


def read_parts(
    name: str, path: str | None, cache_dir: Path, train: Sequence[set[int]] | None = None
) -> list[Part]:
    """What is read of the corpus that `open_corpus` opened, as `verify` wants it.

    train: of each source, the numbers of the training files that are read; None for held-out text
    alone.
    """
    if name == "embedded":
        sources = [("data=embedded, unpacked at", embedded_folder(cache_dir))]
    else:
        sources = folders(required_path(path))
    return [
        part
        for (setting, folder), numbers in zip(sources, train or [set()] * len(sources), strict=True)
        for part in folder_parts(folder, setting, numbers)
    ]


def required_path(path: str | None) -> Path:
    """`path`, or the sentence that says how to give one."""
    if path is None:
        raise SettingError(
            "data.path is not set, and sizes named for a 100,352-token vocabulary train on a "
            "prepared corpus: give data.path=FOLDER, or set it once for this machine in "
            "conf/local.yaml or the environment variable ARCHLADDER_DATA (data=embedded trains "
            "them on the embedded bytes instead)."
        )
    return Path(expand(path, "data.path")).expanduser()
