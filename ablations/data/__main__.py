"""python -m ablations.data: make a corpus to train on, or name token files that are there."""

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ablations.command import exit_code
from ablations.data.adopt import adopt
from ablations.data.documents import SUFFIXES
from ablations.data.hub import FORM
from ablations.data.manifest import read_manifest
from ablations.data.mix import mix
from ablations.data.mixture import open_folder
from ablations.data.overlap import described
from ablations.data.prepare import Preparation, prepare
from ablations.data.tokenizer import load_tokenizer
from models.command import choose, setting
from models.errors import SettingError, one_of

DOMAIN_LISTS = Path(__file__).resolve().parents[2] / "conf" / "data" / "validation"
DOMAINS = ("validation.",)


@dataclass(frozen=True, kw_only=True)
class Output:
    """Settings of every command that writes a corpus."""

    out: Path = setting(help="folder to write, which must not exist", shape="DIR")
    name: str | None = setting(
        None, "of the corpus and the domain split off, the folder's unless given"
    )


@dataclass(frozen=True, kw_only=True)
class Encoded(Output):
    """What is told of tokens and of documents held out."""

    tokenizer: str = setting(
        help="bytes, a tokenizer.json, a folder with one, or a name on the hub", shape="NAME|FILE"
    )
    separator: str | None = setting(
        None, "token that ends documents, the tokenizer's unless given", shape="TOKEN"
    )
    vocab_size: int | None = setting(
        None, "a padded vocabulary, the tokenizer's unless given", least=2
    )
    domains: Mapping[str, str] = setting(
        {}, "files of domain NAME, held out whole", prefixes=DOMAINS, shape="FILES"
    )


@dataclass(frozen=True, kw_only=True)
class Prepare(Encoded):
    """Tokenize documents. Stopped anywhere and run again, it goes on to the same bytes."""

    EXAMPLES = (
        "source='web/*.jsonl.gz' tokenizer=gpt2.json out=corpora/web",
        "source=hf:HuggingFaceFW/fineweb-edu:sample-10BT tokenizer=gpt2 out=corpora/fineweb",
    )
    source: str = setting(
        help=f"file, folder or quoted pattern, of {', '.join(SUFFIXES)}; or {FORM}, of the "
        "Hugging Face hub", shape="FILES",
    )  # fmt: skip
    text: str = setting("text", "field or column that holds the document")
    validation_fraction: float = setting(0.005, "documents held out, by their hash", least=0)
    deduplicate: bool = setting(False, "drop exact duplicates, also of validation documents")
    malformed: float = setting(0.001, "share of records that may be malformed", least=0)
    shard_tokens: int = setting(1 << 28, "tokens of a file", least=1)
    processes: int | None = setting(None, "the cores there are unless given", least=1)
    format: str = setting("table", "how it is printed", choices=("table", "json"))


@dataclass(frozen=True, kw_only=True)
class Adopt(Encoded):
    """Read token files where they lie (OLMo, nanoGPT, Megatron, llm.c), without a copy."""

    EXAMPLES = (
        "train='dolma/part-*.npy' validation.pile=pile.npy tokenizer=tokenizer.json out=corpora/d",
    )
    train: str = setting(help="token files", shape="FILES")
    validation: str | None = setting(None, "a list of domains: olmo_ladder, the eleven of OLMo's")
    root: str | None = setting(None, "the folder of that list's files", shape="DIR")
    held_out_tokens: int = setting(
        0, "instead, about so many last training tokens become domain `name`", least=1
    )
    dtype: str | None = setting(
        None, "of raw files, uint16 or uint32; the smallest that holds the vocabulary unless given"
    )
    trust_dtype: bool = setting(False, "take dtype where a file's bytes look like another")
    format: str = setting("auto", "of the files: auto, raw, npy, megatron or llm.c")
    checksum: str = setting("full", "full: every token is read once; sample: 256 stretches a file")


@dataclass(frozen=True, kw_only=True)
class Mixture(Output):
    """Mix prepared corpora, in exact proportions of instances over any stretch of training."""

    EXAMPLES = ("web=0.7:corpora/web code=0.3:corpora/code out=corpora/mixed",)
    sources: Mapping[str, str] = setting(
        {}, "each corpus, its name, weight and folder", prefixes=("",), shape="WEIGHT:DIR"
    )
    format: str = setting("table", "how it is printed", choices=("table", "json"))


@dataclass(frozen=True, kw_only=True)
class Check:
    """Read every token of a corpus for its checksum, its range and its index."""

    path: Path = setting(help="folder of the corpus", shape="DIR", position=True)
    format: str = setting("table", "how it is printed", choices=("table", "json"))


VERBS = {"prepare": Prepare, "adopt": Adopt, "mix": Mixture, "check": Check}
SUMMARY = "Make a corpus to train on: data=tokens data.path=DIR (docs/data.md)."


def main(arguments: Sequence[str]) -> int:
    """Run one command; 2 where a setting or a file cannot be used, with a sentence on stderr."""
    return exit_code(lambda: _command(arguments))


def _command(arguments: Sequence[str]) -> None:
    verb, asked = choose("python -m ablations.data", SUMMARY, VERBS, arguments)
    work: dict[str, Callable[[Any], None]] = {
        "prepare": _prepare, "adopt": _adopt, "mix": _mix, "check": _check,
    }  # fmt: skip
    work[verb](asked)


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def _domains(asked: Encoded) -> dict[str, str]:
    """Name -> files of the domains held out."""
    given = {key.partition(".")[2]: files for key, files in asked.domains.items()}
    if isinstance(asked, Adopt) and asked.validation is not None:
        lists = {path.stem: path for path in DOMAIN_LISTS.glob("*.yaml")}
        if asked.validation not in lists:
            raise one_of("validation", asked.validation, lists)
        if asked.root is None:
            raise SettingError("root= is missing; give the folder of the list's files, root=DIR.")
        content = yaml.safe_load(lists[asked.validation].read_text(encoding="utf-8"))
        given = {name: path.replace("{root}", asked.root) for name, path in content.items()} | given
    return given


def _prepare(asked: Prepare) -> None:
    preparation = Preparation(
        source=asked.source,
        tokenizer=load_tokenizer(
            asked.tokenizer, separator=asked.separator, vocab_size=asked.vocab_size
        ),
        out=asked.out,
        name=asked.name or asked.out.resolve().name,
        validation=_domains(asked),
        text=asked.text,
        validation_fraction=asked.validation_fraction,
        deduplicate=asked.deduplicate,
        malformed=asked.malformed,
        shard_tokens=asked.shard_tokens,
        processes=asked.processes or os.cpu_count() or 1,
    )
    corpus = prepare(preparation, _say, progress=sys.stderr.isatty())
    _print(asked.format, asked.out, corpus, _described(asked.out))


def _print(form: str, folder: Path, corpus: Any, lines: list[str]) -> None:
    """Lines for people, or the corpus as JSON."""
    if form == "table":
        print(f"data.path={folder}", *lines, f"fingerprint {corpus.fingerprint[:16]}", sep="\n")
        return
    validation = {name: len(domain.tokens) for name, domain in corpus.validation.items()}
    tokens = {"train": len(corpus.train), "validation": validation}
    document = {"path": str(folder), "fingerprint": corpus.fingerprint, "tokens": tokens}
    print(json.dumps(document, indent=1))


def _described(folder: Path) -> list[str]:
    """What was prepared, a line a stream."""
    manifest = read_manifest(folder, "out")
    named = {"train": manifest["train"]}
    named |= {f"validation {name}": part for name, part in manifest["validation"].items()}
    lines = [
        f"{name}: {part['tokens']:,} tokens, {part['documents']:,} documents, "
        f"{part['bytes']:,} bytes, {len(part['shards'])} shards"
        for name, part in named.items()
        if "shards" in part
    ]
    counts = manifest.get("prepared", {})
    for key, words in (
        ("malformed", "malformed records left out"),
        ("duplicate_documents", "duplicates dropped"),
        ("held_out_documents", "training documents left out as they are held out too"),
        ("blank_documents", "blank documents left out"),
        ("nul_bytes", "NUL bytes taken out"),
        ("inexact_documents", "documents whose tokens do not add up to their bytes"),
    ):
        if counts.get(key):
            lines.append(f"{counts[key]:,} {words}")
    lines += [f"  {where}" for where in counts.get("malformed_at", [])]
    return [*lines, *_overlap(manifest)]


def _overlap(manifest: dict[str, Any]) -> list[str]:
    """Overlap of held-out with training text; empty where the manifest records none."""
    lines = [
        f"left out of training, as held out too: {name}"
        for name in manifest.get("left_out_of_training", [])
    ]
    if copies := manifest.get("train", {}).get("held_out_documents"):
        lines.append(f"{copies:,} training documents are copies of held-out ones")
    return lines + (described(manifest["overlap"]) if "overlap" in manifest else [])


def _adopt(asked: Adopt) -> None:
    separator = asked.separator
    # An id of files that are there need not be a special token.
    ending = int(separator) if separator and separator.isdecimal() else separator
    corpus = adopt(
        train=asked.train,
        validation=_domains(asked),
        tokenizer=load_tokenizer(asked.tokenizer, separator=ending, vocab_size=asked.vocab_size),
        out=asked.out,
        name=asked.name or asked.out.resolve().name,
        dtype=asked.dtype,
        format=asked.format,
        how=asked.checksum,
        held_out_tokens=asked.held_out_tokens,
        trust_dtype=asked.trust_dtype,
        say=_say,
    )
    lines = [f"train: {len(corpus.train):,} tokens"]
    lines += [
        f"validation {name}: {len(domain.tokens):,} tokens, {domain.bytes:,} bytes"
        for name, domain in corpus.validation.items()
    ]
    _print("table", asked.out, corpus, [*lines, *_overlap(read_manifest(asked.out, "out"))])


def _mix(asked: Mixture) -> None:
    sources = {}
    for name, value in asked.sources.items():
        weight, colon, path = value.partition(":")
        if not colon:
            raise SettingError(f"{name}={value} is no source; write NAME=WEIGHT:FOLDER.")
        sources[name] = (weight, Path(path))
    corpus = mix(sources, asked.out, asked.name or asked.out.name)
    lines = [
        f"train: {len(corpus.train):,} tokens before a repeat",
        "validation: " + ", ".join(corpus.validation),
        *_overlap(read_manifest(asked.out, "out")),
    ]
    _print(asked.format, asked.out, corpus, lines)


def _check(asked: Check) -> None:
    corpus = open_folder(asked.path, verify=True, setting="path")
    if asked.format == "json":
        _print("json", asked.path, corpus, [])
    else:
        print(f"path={asked.path} is whole: {len(corpus.train):,} training tokens")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
