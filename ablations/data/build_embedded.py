"""Build the embedded corpus from unpacked sources: the same inputs give the same bytes
(packed, with the same liblzma; the committed files are of 5.4).

    python -m ablations.data.build_embedded --docs DIR --stdlib DIR --bible FILE \
        --bible-copyright FILE --wordnet DIR --out DIR

The sources, none of which is executed or changed:
  --docs     `_sources` of the Debian package python3.11-doc 3.11.2-6+deb12u9
             (apt-get download python3.11-doc, dpkg -x, usr/share/doc/python3.11/html/_sources)
  --stdlib   the standard library of CPython 3.11.7, that is lib/python3.11 of an installation
             with its LICENSE.txt
  --bible    the output of `bible -f Gen1:1-Rev22:21` (not to a terminal), from the Debian packages
             bible-kjv 4.38 and bible-kjv-text 4.38; --bible-copyright is the former's copyright
  --wordnet  usr/share/wordnet of the Debian package wordnet-base 1:3.0-37
"""

import argparse
import hashlib
import json
import lzma
import re
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ablations.data.encode_embedded import encode, write_embedded
from ablations.data.manifest import MANIFEST

FORMAT = 1
# `encodings` are character tables that copy one another and `pydoc_data` is the documentation once
# more: both would leak from training into validation. Tests, `idlelib` and `turtledemo` are not the
# library. `config-*` and `_sysconfigdata*` differ with the machine that built Python.
STDLIB_LEFT_OUT = {
    *("test", "tests", "site-packages", "idlelib", "turtledemo", "encodings", "pydoc_data")
}
STDLIB_LEFT_OUT_PREFIXES = ("config-", "_sysconfigdata")
GLOSSES_A_DOCUMENT = 100
# Enough text for a stable loss, and little enough to evaluate often.
VALIDATION_BYTES = (100_000, 400_000)
MAX_VALIDATION_DOCUMENT_BYTES = VALIDATION_BYTES[1] // 8
# Text gains from more literal context (lc) and has no alignment (pb).
XZ_FILTERS = [
    {"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "lc": 4, "lp": 0, "pb": 0}
]


@dataclass(frozen=True)
class Domain:
    """Where a domain comes from; `read` yields its documents in a stable order."""

    source: str
    version: str
    licence: str
    licence_files: tuple[str, ...]
    validation_permille: int
    read: Callable[[argparse.Namespace], Iterator[str]]


def read_docs(args: argparse.Namespace) -> Iterator[str]:
    """Python's documentation, one page a document."""
    for path in _sorted_files(args.docs, "*.rst.txt"):
        yield _text(path)


def read_stdlib(args: argparse.Namespace) -> Iterator[str]:
    """Python's standard library, one module a document."""
    for path in _sorted_files(args.stdlib, "*.py"):
        parts = path.relative_to(args.stdlib).parts
        if STDLIB_LEFT_OUT.isdisjoint(parts) and not any(
            part.startswith(STDLIB_LEFT_OUT_PREFIXES) for part in parts
        ):
            yield _text(path)


def read_bible(args: argparse.Namespace) -> Iterator[str]:
    """The King James Bible, one chapter a document, one verse a line behind its number."""
    chapters: dict[str, list[str]] = {}
    for line in _text(args.bible).splitlines():
        verse = re.fullmatch(r"(\d?[A-Za-z]+\d+):(\d+) (.+)", line)
        assert verse, line
        chapters.setdefault(verse[1], []).append(f"{verse[2]} {verse[3].rstrip()}\n")
    for verses in chapters.values():
        yield "".join(verses)


def read_wordnet(args: argparse.Namespace) -> Iterator[str]:
    """WordNet's glosses, `lemma, lemma (pos): gloss` a line, in the order of its data files.

    That order is by subject field, so a document of neighbours has a topic.
    """
    for pos in ("noun", "verb", "adj", "adv"):
        lines = [
            _gloss(line, pos)
            for line in _text(args.wordnet / f"data.{pos}").splitlines()
            if not line.startswith("  ")  # the licence, at the head of each file
        ]
        for start in range(0, len(lines), GLOSSES_A_DOCUMENT):
            yield "".join(lines[start : start + GLOSSES_A_DOCUMENT])


DOMAINS = {
    "prose": Domain(
        "Python documentation, reStructuredText sources (Debian package python3.11-doc)",
        "3.11.2-6+deb12u9",
        "PSF-2.0",
        ("licences/psf-2.0.txt", "licences/python-incorporated-software.txt"),
        50,
        read_docs,
    ),
    "code": Domain(
        "CPython standard library, .py files; without tests, character tables and applications",
        "3.11.7",
        "PSF-2.0",
        ("licences/psf-2.0.txt", "licences/python-incorporated-software.txt"),
        50,
        read_stdlib,
    ),
    "literary": Domain(
        "King James Bible (Debian packages bible-kjv and bible-kjv-text)",
        "4.38",
        "public domain",
        ("licences/king-james-bible.txt",),
        40,
        read_bible,
    ),
    "definitions": Domain(
        "WordNet 3.0 glosses (Debian package wordnet-base)",
        "1:3.0-37",
        "WordNet-3.0",
        ("licences/wordnet-3.0.txt",),
        20,
        read_wordnet,
    ),
}


def build(args: argparse.Namespace) -> dict[str, Any]:
    """Write licences, one `.xz` a domain and the manifest into `args.out`; return the manifest."""
    out: Path = args.out
    (out / "licences").mkdir(parents=True, exist_ok=True)
    for name, text in _licences(args).items():
        (out / "licences" / name).write_bytes(text.encode())

    seen: set[bytes] = set()
    documents: dict[str, list[bytes]] = {}
    entries: dict[str, Any] = {}
    for name, domain in DOMAINS.items():
        documents[name], dropped = _clean(domain.read(args), seen)
        plain = b"\0".join(documents[name])
        packed = lzma.compress(plain, check=lzma.CHECK_CRC64, filters=XZ_FILTERS)
        (out / f"{name}.xz").write_bytes(packed)
        entries[name] = {
            "source": domain.source,
            "version": domain.version,
            "licence": domain.licence,
            "licence_files": list(domain.licence_files),
            "xz": {"file": f"{name}.xz", "bytes": len(packed), "sha256": _sha256(packed)},
            "text": {
                "bytes": sum(map(len, documents[name])),
                "documents": len(documents[name]),
                "sha256": _sha256(plain),
            },
            "dropped": dropped,
            "split": {
                "validation_permille": domain.validation_permille,
                "max_document_bytes": MAX_VALIDATION_DOCUMENT_BYTES,
            },
        }
    prepared = _prepared(documents, entries)
    for name, part in prepared["validation"].items():
        low, high = VALIDATION_BYTES
        assert low <= part["bytes"] <= high, (name, part["bytes"])
    manifest = {"format": FORMAT, "prepared": prepared, "domains": entries}
    (out / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    return manifest


def _clean(texts: Iterator[str], seen: set[bytes]) -> tuple[list[bytes], dict[str, int]]:
    """Documents as the preparer has them, without exact repeats (of any domain)."""
    encoded = encode(list(texts))
    kept: list[bytes] = []
    for tokens, digest in zip(encoded.documents(), map(bytes, encoded.digests), strict=True):
        if digest not in seen:
            seen.add(digest)
            kept.append(tokens.tobytes())
    dropped = {"duplicate_documents": len(encoded.lengths) - len(kept)}
    return kept, {**dropped, **{k: encoded.counts[k] for k in ("blank_documents", "nul_bytes")}}


def _prepared(documents: dict[str, list[bytes]], entries: dict[str, Any]) -> dict[str, Any]:
    """The manifest of the prepared form, found by preparing it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "corpus"
        domains = {name: encode(found) for name, found in documents.items()}
        write_embedded(path, domains, {name: entry["split"] for name, entry in entries.items()})
        return json.loads((path / MANIFEST).read_text(encoding="utf-8"))


def _licences(args: argparse.Namespace) -> dict[str, str]:
    notice = [
        re.sub(r"^ +\d+ ", "", line).rstrip()
        for line in _text(args.wordnet / "data.noun").splitlines()
        if line.startswith("  ")
    ]
    return {
        "psf-2.0.txt": _text(args.stdlib / "LICENSE.txt"),
        "python-incorporated-software.txt": _text(args.docs / "license.rst.txt"),
        "king-james-bible.txt": _text(args.bible_copyright),
        "wordnet-3.0.txt": "\n".join(notice) + "\n",
    }


def _gloss(line: str, pos: str) -> str:
    """One synset of a WordNet data file: `offset file type count word id ... | gloss`."""
    head, _, gloss = line.partition(" | ")
    fields = head.split(" ")
    n_words = int(fields[3], 16)
    words = fields[4 : 4 + 2 * n_words : 2]
    # Adjectives may carry a marker of position, as in `galore(ip)`.
    lemmas = ", ".join(re.sub(r"\((a|p|ip)\)$", "", word).replace("_", " ") for word in words)
    return f"{lemmas} ({pos}): {gloss.strip()}\n"


def _sorted_files(folder: Path, pattern: str) -> list[Path]:
    """Files under a folder, ordered by their path as text: the same on every system."""
    return sorted(folder.rglob(pattern), key=lambda path: path.relative_to(folder).as_posix())


def _text(path: Path) -> str:
    """A file's text with `\\n` line ends; bytes that are not UTF-8 raise."""
    return path.read_bytes().decode("utf-8").replace("\r\n", "\n")


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for option in ("docs", "stdlib", "bible", "bible-copyright", "wordnet", "out"):
        parser.add_argument(f"--{option}", type=Path, required=True)
    manifest = build(parser.parse_args())
    for name, entry in manifest["domains"].items():
        held_out = manifest["prepared"]["validation"][name]
        print(
            f"{name}: {entry['text']['documents']:,} documents, {entry['text']['bytes']:,} bytes "
            f"({entry['xz']['bytes']:,} packed); validation {held_out['documents']:,} documents of "
            f"{held_out['bytes']:,} bytes; dropped {entry['dropped']}"
        )


if __name__ == "__main__":
    main()
