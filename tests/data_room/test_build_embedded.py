"""The builder of the embedded corpus, on small sources made by hand."""

from __future__ import annotations

import argparse
import dataclasses
import lzma
from pathlib import Path

import pytest

from ablations.data import build_embedded

LICENCE = "  1 This software and database is being provided to you  \n  2   \n"
SYNSET = (
    "02345678 05 {code} 02 green_gentian 0 Frasera(ip) 0 002 @ 02345600 n 0000 ~ 02345700 n 0000"
    ' | tall herb {i}; "it | grows"  \n'
)


@pytest.fixture
def sources(tmp_path: Path) -> argparse.Namespace:
    docs, stdlib, wordnet = (tmp_path / name for name in ("docs", "stdlib", "wordnet"))
    for folder in (docs / "library", stdlib / "test", stdlib / "json", wordnet):
        folder.mkdir(parents=True)
    (docs / "license.rst.txt").write_text("Licenses\n")
    (docs / "notes.txt").write_text("not a page\n")
    for i in range(40):
        (docs / "library" / f"page{i:02}.rst.txt").write_text(f"page {i}: café\n")
        (stdlib / "json" / f"module{i:02}.py").write_bytes(b"x = %d\r\n" % i)
    (docs / "again.rst.txt").write_text("page 3: café\n")
    (docs / "nul.rst.txt").write_text("a\0b\0c\n")
    (stdlib / "LICENSE.txt").write_text("PSF\n")
    (stdlib / "empty.py").write_text("\n")
    (stdlib / "test" / "test_json.py").write_text("left = 'out'\n")
    (stdlib / "_sysconfigdata_here.py").write_text("left = 'out'\n")
    (tmp_path / "bible.txt").write_text(
        "".join(f"1Sm{c}:{v} Verse {v} of {c}: so.  \n" for c in range(1, 41) for v in (1, 2))
    )
    (tmp_path / "copyright").write_text("expired\n")
    for pos in ("noun", "verb", "adj", "adv"):
        lines = [SYNSET.format(code=pos[0], i=i) for i in range(1010)]
        (wordnet / f"data.{pos}").write_text(LICENCE + "".join(lines))
    return argparse.Namespace(
        docs=docs,
        stdlib=stdlib,
        bible=tmp_path / "bible.txt",
        bible_copyright=tmp_path / "copyright",
        wordnet=wordnet,
        out=tmp_path / "out",
    )


@pytest.fixture
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bounds and shares that suit sources of a few kilobytes."""
    monkeypatch.setattr(build_embedded, "VALIDATION_BYTES", (1, 400_000))
    # The committed preset sets up 0.7 GB of tables for each domain.
    monkeypatch.setattr(build_embedded, "XZ_FILTERS", [{"id": lzma.FILTER_LZMA2, "preset": 1}])
    for name, domain in build_embedded.DOMAINS.items():
        half = dataclasses.replace(domain, validation_permille=500)
        monkeypatch.setitem(build_embedded.DOMAINS, name, half)


def _documents(out: Path, domain: str) -> list[str]:
    return lzma.decompress((out / f"{domain}.xz").read_bytes()).decode().split("\0")


@pytest.mark.usefixtures("_small")
def test_the_same_sources_give_the_same_bytes(sources: argparse.Namespace) -> None:
    contents = []
    for out in ("out", "again"):
        sources.out = sources.docs.parent / out
        build_embedded.build(sources)
        files = sorted(path for path in sources.out.rglob("*") if path.is_file())
        contents.append({str(p.relative_to(sources.out)): p.read_bytes() for p in files})
    assert contents[0] == contents[1]
    assert len(contents[0]) == 9


@pytest.mark.usefixtures("_small")
def test_what_is_dropped_is_counted(sources: argparse.Namespace) -> None:
    manifest = build_embedded.build(sources)
    assert manifest["domains"]["prose"]["dropped"] == {
        "duplicate_documents": 1,
        "blank_documents": 0,
        "nul_bytes": 2,
    }
    assert manifest["domains"]["code"]["dropped"]["blank_documents"] == 1
    assert "abc\n" in _documents(sources.out, "prose")
    # Adverbs, adjectives and nouns differ in their label: none of those documents is a repeat.
    assert manifest["domains"]["definitions"]["dropped"]["duplicate_documents"] == 0


@pytest.mark.usefixtures("_small")
def test_each_source_becomes_its_documents(sources: argparse.Namespace) -> None:
    build_embedded.build(sources)
    prose, code, literary, definitions = (
        _documents(sources.out, name) for name in build_embedded.DOMAINS
    )
    assert len(prose) == 42
    assert "Licenses\n" in prose
    assert code == [f"x = {i}\n" for i in range(40)]
    assert literary[1] == "1 Verse 1 of 2: so.\n2 Verse 2 of 2: so.\n"
    assert len(literary) == 40
    assert len(definitions) == 4 * 11
    assert definitions[0].splitlines()[7] == (
        'green gentian, Frasera (noun): tall herb 7; "it | grows"'
    )
    assert definitions[0].count("\n") == 100
    assert definitions[10].count("\n") == 10


@pytest.mark.usefixtures("_small")
def test_licences_are_the_texts_of_the_sources(sources: argparse.Namespace) -> None:
    build_embedded.build(sources)
    texts = {p.name: p.read_text() for p in (sources.out / "licences").iterdir()}
    assert texts == {
        "psf-2.0.txt": "PSF\n",
        "python-incorporated-software.txt": "Licenses\n",
        "king-james-bible.txt": "expired\n",
        "wordnet-3.0.txt": "This software and database is being provided to you\n\n",
    }


@pytest.mark.usefixtures("_small")
def test_a_validation_set_out_of_bounds_stops_the_build(
    sources: argparse.Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build_embedded, "VALIDATION_BYTES", (1_000_000, 4_000_000))
    with pytest.raises(AssertionError):
        build_embedded.build(sources)
    assert not (sources.out / "manifest.json").exists()
