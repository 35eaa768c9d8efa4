"""Mixtures: prepared corpora with weights, as a small folder that names them.

mixture/
  manifest.json      kind, name, sources [{name, path, weight, fingerprint}]
"""

import hashlib
import json
import math
import re
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

from ablations.data.manifest import MANIFEST, read_manifest
from ablations.data.prepared import Corpus, ValidationDomain, open_prepared
from ablations.data.streams import MixedSource, Mixture
from models.errors import SettingError

# With no large exponent, whose whole number would take minutes to write out.
WEIGHT = re.compile(r"[0-9.]{1,20}(e-?[0-9]{1,2})?|[0-9]{1,9}/[0-9]{1,9}", re.IGNORECASE)
LONGEST_PERIOD = 100_000  # instances; a schedule is held in memory


def open_folder(path: Path, *, verify: bool = False, setting: str = "data.path") -> Corpus:
    """Open a prepared corpus or a mixture of them."""
    manifest = read_manifest(path, setting)
    if manifest.get("kind") != "mixture":
        return open_prepared(path, verify=verify, setting=setting)
    return assemble(manifest, path, setting, verify=verify)


def folders(path: Path, setting: str = "data.path") -> list[tuple[str, Path]]:
    """(what a sentence calls it, folder) of each source of a mixture, or of a corpus itself."""
    manifest = read_manifest(path, setting)
    if manifest.get("kind") != "mixture":
        return [(setting, path)]
    return [
        (f"{setting}={path}, source {source['name']}", Path(source["path"]))
        for source in manifest["sources"]
    ]


def parts(weights: Mapping[str, str]) -> list[int]:
    """Weights as whole parts of the shortest period. Raises SettingError on what is no weight."""
    fractions = []
    for name, weight in weights.items():
        try:
            fraction = Fraction(weight if WEIGHT.fullmatch(weight) else "0")
        except (ValueError, ZeroDivisionError):
            fraction = Fraction(0)
        if fraction <= 0:
            raise SettingError(
                f"{name}={weight} is no weight; valid: a number above 0, like 0.25, 3 or 1/3."
            )
        fractions.append(fraction)
    scale = math.lcm(*(fraction.denominator for fraction in fractions))
    whole = [int(fraction * scale) for fraction in fractions]
    divisor = math.gcd(*whole)
    whole = [number // divisor for number in whole]
    if sum(whole) > LONGEST_PERIOD:
        raise SettingError(
            f"weights {', '.join(weights.values())} come out even after {sum(whole):,} instances; "
            f"valid: weights of fewer digits, that do so within {LONGEST_PERIOD:,}."
        )
    return whole


def assemble(
    manifest: Mapping[str, Any], path: Path, setting: str, *, verify: bool = False
) -> Corpus:
    """The corpus that a mixture's manifest describes, its sources opened."""
    try:
        named = {source["name"]: source for source in manifest["sources"]}
        shares = parts({name: str(source["weight"]) for name, source in named.items()})
        folders = {name: Path(source["path"]) for name, source in named.items()}
        expected = {name: source["fingerprint"] for name, source in named.items()}
    except (KeyError, TypeError) as error:
        raise SettingError(
            f"{setting}={path} has a {MANIFEST} with a missing or misshapen entry ({error}); write "
            "the mixture again."
        ) from None
    opened = {
        name: open_prepared(folder, verify=verify, setting=f"{setting}={path}, source {name}")
        for name, folder in folders.items()
    }
    first, corpus = next(iter(opened.items()))
    tokenizer = _tokenizer(folders[first])
    for name, other in opened.items():
        if other.fingerprint != expected[name]:
            raise SettingError(
                f"{setting}={path} was mixed of another corpus than {folders[name]} now holds "
                f"(fingerprint {other.fingerprint[:12]}, not {expected[name][:12]}); mix it again."
            )
        if (
            (other.vocab_size, other.separator) != (corpus.vocab_size, corpus.separator)
            or _tokenizer(folders[name]) != tokenizer
        ):  # fmt: skip
            raise SettingError(
                f"{setting}={path} mixes {first} and {name}, which were made with different "
                f"tokenizers ({corpus.vocab_size} and {other.vocab_size} ids); valid: corpora of "
                "one tokenizer."
            )
    sources = []
    for (name, other), share in zip(opened.items(), shares, strict=True):
        assert not isinstance(other.train, Mixture)
        sources.append(MixedSource(name, other.train, other.fingerprint, share))
    content = [[source.fingerprint, source.parts] for source in sources]
    canonical = json.dumps({"mixture": content}, separators=(",", ":"))
    return Corpus(
        name=manifest["name"],
        vocab_size=corpus.vocab_size,
        fingerprint=hashlib.sha256(canonical.encode()).hexdigest(),
        separator=corpus.separator,
        train=Mixture(tuple(sources)),
        validation=_domains(opened),
    )


def _domains(opened: Mapping[str, Corpus]) -> dict[str, ValidationDomain]:
    """The sources' domains; one that two sources have is told apart by the source's name."""
    names = [name for corpus in opened.values() for name in corpus.validation]
    return {
        (name if names.count(name) == 1 else f"{source}.{name}"): domain
        for source, corpus in opened.items()
        for name, domain in corpus.validation.items()
    }


def _tokenizer(folder: Path) -> tuple[Any, Any]:
    manifest = read_manifest(folder, "data.path")
    return manifest["tokenizer"]["name"] == "bytes", manifest["tokenizer"].get("sha256")
