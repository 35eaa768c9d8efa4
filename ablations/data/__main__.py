"""python -m ablations.data: make a corpus to train on, or name token files that are there."""

import os
import sys
from collections.abc import Sequence
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
from ablations.data.prepared import Corpus
from ablations.data.tokenizer import load_tokenizer
from models.errors import SettingError, one_of
from models.terminal import readable

HELP = f"""\
Make a corpus to train on: data=tokens data.path=DIR.

  python -m ablations.data prepare source=PATH_OR_GLOB tokenizer=NAME_OR_FILE out=DIR [KEY=VALUE]
  python -m ablations.data adopt train=PATH_OR_GLOB tokenizer=NAME_OR_FILE out=DIR [KEY=VALUE]
  python -m ablations.data mix NAME=WEIGHT:DIR [NAME=WEIGHT:DIR ...] out=DIR [name=NAME]
  python -m ablations.data check path=DIR

prepare: tokenize documents. Stopped anywhere and run again, it goes on to the same bytes.
  source                file, folder or quoted pattern, of {", ".join(SUFFIXES)};
                        or {FORM}, of the Hugging Face hub
  tokenizer             bytes, a tokenizer.json, a folder with one, or a name on the hub
  out                   folder to write, which must not exist
  name                  of the corpus and the domain split off (the folder's name)
  text                  field or column that holds the document (text)
  validation_fraction   documents held out, by their hash (0.005)
  validation.NAME       more files, held out whole as domain NAME; any number
  deduplicate           true: drop exact duplicates, also of validation documents (false)
  malformed             share of records that may be malformed (0.001)
  shard_tokens          tokens a file (268435456)
  processes             (the cores there are)
  separator, vocab_size the token after each document; a padded vocabulary (the tokenizer's)

adopt: read token files where they lie (OLMo, nanoGPT, Megatron .bin/.idx, llm.c), without a copy.
  validation.NAME       token files of domain NAME; any number
  validation=olmo_ladder root=DIR   the eleven domains of OLMo's ladders
  held_out_tokens       instead: about so many last training tokens become domain `name`
  dtype                 of raw files: uint16 or uint32 (the smallest that holds the vocabulary)
  trust_dtype           true: take dtype where a file's bytes look like another (false)
  format                auto, raw, npy, megatron or llm.c (auto)
  checksum              full: every token is read once; sample: 256 stretches a file (full)
  separator             id or text of the token that ends documents (the tokenizer's)

mix: several prepared corpora, in exact proportions of instances over any stretch of training.
check: read every token of a corpus for its checksum, its range and its index.

Examples
  python -m ablations.data prepare source='web/*.jsonl.gz' tokenizer=gpt2.json out=corpora/web
  python -m ablations.data prepare source=hf:HuggingFaceFW/fineweb-edu:sample-10BT \\
      tokenizer=gpt2 out=corpora/fineweb
  python -m ablations.data mix web=0.7:corpora/web code=0.3:corpora/code out=corpora/mixed
  python sweeps/run.py data=tokens data.path=corpora/mixed mix=gdn3_attn1 size=60m
"""
COMMANDS = ("adopt", "check", "mix", "prepare")
DOMAIN_LISTS = Path(__file__).resolve().parents[2] / "conf" / "data" / "validation"
VALID = {
    "prepare": (
        *("source", "tokenizer", "out", "name", "text", "validation_fraction", "validation."),
        *("deduplicate", "malformed", "shard_tokens", "processes", "separator", "vocab_size"),
    ),
    "adopt": (
        *("train", "tokenizer", "out", "name", "validation.", "validation", "root", "dtype"),
        *("held_out_tokens", "format", "checksum", "separator", "vocab_size", "trust_dtype"),
    ),
    "check": ("path",),
}


def main(arguments: Sequence[str]) -> int:
    """Run one command; 2 where a setting or a file cannot be used, with a sentence on stderr."""
    readable()
    if not arguments or {"-h", "--help", "help"} & set(arguments):
        print(HELP, end="")
        return 0 if arguments else 2
    return exit_code(lambda: _command(*arguments))


def _command(command: str, *rest: str) -> None:
    if command not in COMMANDS:
        raise one_of("command", command, COMMANDS)
    {"prepare": _prepare, "adopt": _adopt, "mix": _mix, "check": _check}[command](
        _settings(command, rest)
    )


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def _settings(command: str, arguments: Sequence[str]) -> dict[str, str]:
    settings: dict[str, str] = {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals or not value:
            raise SettingError(f"{argument} is not a setting; write KEY=VALUE, or see --help.")
        group = key.partition(".")[0] + "." if "." in key else key
        if command in VALID and group not in VALID[command]:
            valid = [f"{k}NAME" if k.endswith(".") else k for k in VALID[command]]
            raise one_of(f"{command}: setting", key, valid)
        if key in settings:
            raise SettingError(f"{key} is given twice; give it once.")
        settings[key] = value
    return settings


def _required(settings: dict[str, str], *names: str) -> list[str]:
    for name in names:
        if name not in settings:
            raise SettingError(f"{name} is not given; see --help for what it may be.")
    return [settings[name] for name in names]


def _number(settings: dict[str, str], name: str, default: Any, least: float) -> Any:
    if name not in settings:
        return default
    kind = int if default is None else type(default)
    try:
        value = kind(settings[name].replace("_", ""))
    except ValueError:
        value = None
    if value is None or not value >= least:
        words = "a whole number" if kind is int else "a number"
        raise SettingError(f"{name}={settings[name]} must be {words} of at least {least:g}.")
    return value


def _flag(settings: dict[str, str], name: str) -> bool:
    value = settings.get(name, "false")
    if value not in ("true", "false"):
        raise one_of(name, value, ("true", "false"))
    return value == "true"


def _domains(settings: dict[str, str]) -> dict[str, str]:
    given = {k.partition(".")[2]: v for k, v in settings.items() if k.startswith("validation.")}
    if "validation" in settings:
        lists = {path.stem: path for path in DOMAIN_LISTS.glob("*.yaml")}
        if settings["validation"] not in lists:
            raise one_of("validation", settings["validation"], lists)
        (root,) = _required(settings, "root")
        content = yaml.safe_load(lists[settings["validation"]].read_text(encoding="utf-8"))
        given = {name: path.replace("{root}", root) for name, path in content.items()} | given
    return given


def _prepare(settings: dict[str, str]) -> None:
    source, tokenizer, out = _required(settings, "source", "tokenizer", "out")
    folder = Path(out).expanduser()
    asked = Preparation(
        source=source,
        tokenizer=load_tokenizer(
            tokenizer,
            separator=settings.get("separator"),
            vocab_size=_number(settings, "vocab_size", None, 2),
        ),
        out=folder,
        name=settings.get("name", folder.resolve().name),
        validation=_domains(settings),
        text=settings.get("text", "text"),
        validation_fraction=_number(settings, "validation_fraction", 0.005, 0),
        deduplicate=_flag(settings, "deduplicate"),
        malformed=_number(settings, "malformed", 0.001, 0),
        shard_tokens=_number(settings, "shard_tokens", 1 << 28, 1),
        processes=_number(settings, "processes", os.cpu_count() or 1, 1),
    )
    corpus = prepare(asked, _say, progress=sys.stderr.isatty())
    print(f"data.path={folder}", *_described(corpus, folder), sep="\n")


def _described(corpus: Corpus, folder: Path) -> list[str]:
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
    return [*lines, *_overlap(manifest), f"fingerprint {corpus.fingerprint[:16]}"]


def _overlap(manifest: dict[str, Any]) -> list[str]:
    """Overlap of held-out with training text; empty where the manifest records none."""
    lines = [
        f"left out of training, as held out too: {name}"
        for name in manifest.get("left_out_of_training", [])
    ]
    if copies := manifest.get("train", {}).get("held_out_documents"):
        lines.append(f"{copies:,} training documents are copies of held-out ones")
    return lines + (described(manifest["overlap"]) if "overlap" in manifest else [])


def _adopt(settings: dict[str, str]) -> None:
    train, tokenizer, out = _required(settings, "train", "tokenizer", "out")
    folder = Path(out).expanduser()
    size = _number(settings, "vocab_size", None, 2)
    separator = settings.get("separator")
    # An id of files that are there need not be a special token.
    ending = int(separator) if separator and separator.isdecimal() else separator
    loaded = load_tokenizer(tokenizer, separator=ending, vocab_size=size)
    corpus = adopt(
        train=train,
        validation=_domains(settings),
        tokenizer=loaded,
        out=folder,
        name=settings.get("name", folder.resolve().name),
        dtype=settings.get("dtype"),
        format=settings.get("format", "auto"),
        how=settings.get("checksum", "full"),
        held_out_tokens=_number(settings, "held_out_tokens", 0, 1),
        trust_dtype=_flag(settings, "trust_dtype"),
        say=_say,
    )
    print(f"data.path={folder}", f"train: {len(corpus.train):,} tokens", sep="\n")
    for name, domain in corpus.validation.items():
        print(f"validation {name}: {len(domain.tokens):,} tokens, {domain.bytes:,} bytes")
    print(*_overlap(read_manifest(folder, "out")), sep="\n")
    print(f"fingerprint {corpus.fingerprint[:16]}")


def _mix(settings: dict[str, str]) -> None:
    (out,) = _required(settings, "out")
    folder = Path(out).expanduser()
    sources = {}
    for name, value in settings.items():
        if name in ("out", "name"):
            continue
        weight, colon, path = value.partition(":")
        if not colon:
            raise SettingError(f"{name}={value} is no source; write NAME=WEIGHT:FOLDER.")
        sources[name] = (weight, Path(path))
    corpus = mix(sources, folder, settings.get("name", folder.name))
    print(f"data.path={folder}", f"train: {len(corpus.train):,} tokens before a repeat", sep="\n")
    print("validation: " + ", ".join(corpus.validation))
    print(*_overlap(read_manifest(folder, "out")), sep="\n")
    print(f"fingerprint {corpus.fingerprint[:16]}")


def _check(settings: dict[str, str]) -> None:
    (path,) = _required(settings, "path")
    corpus = open_folder(Path(path).expanduser(), verify=True, setting="path")
    print(f"path={path} is whole: {len(corpus.train):,} training tokens")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
