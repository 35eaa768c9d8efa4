"""The manifest of a prepared corpus: what it must say, and the fingerprint that follows from it."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ablations.data.shards import write_synced
from models.errors import SettingError, one_of

FORMAT = 1
SHARDED = 2
FORMATS = (FORMAT, SHARDED)
MANIFEST = "manifest.json"
DTYPES = {"uint8": "<u1", "uint16": "<u2", "uint32": "<u4"}


def smallest_dtype(vocab_size: int) -> str:
    """The name of the smallest dtype that holds a vocabulary."""
    return next(name for name, d in DTYPES.items() if vocab_size <= np.iinfo(d).max + 1)


def fingerprint(manifest: Mapping[str, Any]) -> str:
    """SHA-256 hex of what determines the tokens and their byte counts in a prepared manifest."""
    if manifest["format"] == SHARDED:
        content = {
            "format": SHARDED,
            "vocab_size": manifest["vocab_size"],
            "separator": manifest["separator"],
            "train": _shard_sums(manifest["train"]),
            "validation": {
                name: {"bytes": part["bytes"], "shards": _shard_sums(part)}
                for name, part in manifest["validation"].items()
            },
            "token_bytes": (manifest.get("token_bytes") or {}).get("sha256"),
        }
    else:
        validation = {
            name: {key: part[key] for key in ("tokens", "bytes", "sha256")}
            for name, part in manifest["validation"].items()
        }
        content = {
            "format": manifest["format"],
            "dtype": manifest["dtype"],
            "vocab_size": manifest["vocab_size"],
            "separator": manifest["separator"],
            "train": {key: manifest["train"][key] for key in ("tokens", "sha256")},
            "validation": validation,
            "token_bytes": (manifest.get("token_bytes") or {}).get("sha256"),
        }
    if prefix_bytes := (manifest.get("token_bytes") or {}).get("prefix_bytes"):
        content["prefix_bytes"] = prefix_bytes
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def _shard_sums(part: Mapping[str, Any]) -> list[list[Any]]:
    return [[shard["tokens"], shard["sha256"]] for shard in part["shards"]]


def files(part: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The files of one stream of a manifest, in order."""
    return part.get("shards", [part])


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    write_synced(folder / MANIFEST, (json.dumps(manifest, indent=1) + "\n").encode())


def read_manifest(path: Path, setting: str) -> dict[str, Any]:
    """A prepared folder's manifest, checked for what reading it needs."""
    if not path.is_dir():
        raise SettingError(
            f"{setting}={path} is not a folder; valid: a prepared corpus, that is a folder with "
            f"{MANIFEST} and token files."
        )
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SettingError(
            f"{setting}={path} has no {MANIFEST}; valid: a folder with {MANIFEST} and token files."
        ) from None
    except OSError as error:
        raise SettingError(
            f"{setting}={path} cannot be read ({error.strerror}); valid: a folder that may be."
        ) from None
    except ValueError:
        raise SettingError(
            f"{setting}={path} has a {MANIFEST} that is not JSON; prepare the corpus again."
        ) from None
    found = manifest.get("format") if isinstance(manifest, dict) else None
    if found not in FORMATS:
        raise SettingError(
            f"{setting}={path} is of format {json.dumps(found)}; valid: "
            f"{', '.join(map(str, FORMATS))}."
        )
    if manifest.get("kind") == "mixture":
        return manifest
    try:
        check_manifest(manifest, path, setting)
    except (KeyError, TypeError, AttributeError) as error:
        raise SettingError(
            f"{setting}={path} has a {MANIFEST} with a missing or misshapen entry ({error}); "
            "valid: name, dtype, vocab_size, separator, tokenizer {name}, train and validation "
            "{domain} {file, tokens, bytes, sha256}."
        ) from None
    return manifest


def check_manifest(manifest: dict[str, Any], path: Path, setting: str) -> None:
    """Refuse what cannot be read; KeyError, TypeError and AttributeError tell of missing parts."""
    if manifest["dtype"] not in DTYPES:
        raise one_of(f"{setting}={path}: dtype", manifest["dtype"], DTYPES)
    largest = int(np.iinfo(DTYPES[manifest["dtype"]]).max) + 1
    if not 2 <= manifest["vocab_size"] <= largest:
        raise SettingError(
            f"{setting}={path} has vocab_size {manifest['vocab_size']} in {manifest['dtype']}; "
            f"valid: 2 to {largest}."
        )
    if not 0 <= manifest["separator"] < manifest["vocab_size"]:
        raise SettingError(
            f"{setting}={path} has separator {manifest['separator']}; valid: a token id, "
            f"0 to {manifest['vocab_size'] - 1}."
        )
    _ = manifest["name"], manifest["tokenizer"]["name"]
    if not manifest["validation"]:
        raise SettingError(
            f"{setting}={path} has no validation domain; valid: one or more under validation."
        )
    named = [(f"validation domain {name}", part) for name, part in manifest["validation"].items()]
    for part_name, part in [("train", manifest["train"]), *named]:
        for shard in files(part):
            _ = shard["file"], shard["sha256"]
            if shard.get("dtype", manifest["dtype"]) not in DTYPES:
                raise one_of(f"{setting}={path}: dtype", shard["dtype"], DTYPES)
        if sum(shard["tokens"] for shard in files(part)) != part["tokens"]:
            raise SettingError(
                f"{setting}={path} says {part['tokens']:,} tokens of {part_name}, but its shards "
                "say another sum; prepare the corpus again."
            )
        if part["tokens"] < 2 or (part_name != "train" and part["bytes"] < 1):
            raise SettingError(
                f"{setting}={path} has nothing to predict in {part_name} ({part['tokens']} "
                "tokens); valid: two tokens or more, and some text to validate on."
            )
