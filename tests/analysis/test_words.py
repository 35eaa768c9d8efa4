"""Words that a report explains: short, each where it first stands, each in the list at the end."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from synthetic_sweeps import SweepWriter, write_ladder

from analysis.report import sections
from analysis.report.document import markdown
from analysis.report.figures.drawing import Gallery
from analysis.report.page import page
from analysis.report.words import WORDS, Marker, anchor, words_of
from analysis.study.findings import find
from analysis.study.source import from_csv, from_sweeps

MOST_WORDS = 25
ROOT = Path(__file__).parents[2]


class Marked(HTMLParser):
    """The words marked in each section of a page, and those that it lists."""

    def __init__(self) -> None:
        super().__init__()
        self.sections: list[list[tuple[str, str, str]]] = [[]]
        self.listed: list[str] = []
        self._open: tuple[str, str] | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        told = {key: value or "" for key, value in attrs}
        if tag == "h2":
            self.sections.append([])
        elif tag == "dt":
            self.listed.append(told["id"])
        elif tag == "abbr" or told.get("class") == "word":
            self._open = (told["title"], told.get("href", ""))

    def handle_data(self, data: str) -> None:
        if self._open:
            self.sections[-1].append((data, *self._open))
            self._open = None


def pages(folder: Path) -> dict[str, tuple[str, str]]:
    """HTML and Markdown of reports: of a sweep, of arms, of points alone."""
    sweep = SweepWriter(folder / "trial")
    write_ladder(sweep)
    records = ROOT / "notebooks" / "records"
    points = ROOT / "tests" / "data" / "scaling" / "xlstm_tokenparam.csv"
    found = {
        "sweep": from_sweeps([sweep.path]),
        "arms": from_sweeps([records / "rate_by_mix"]),
        "points": from_csv(points),
    }
    made = {}
    for name, one in found.items():
        own = find(one, "transformer", 20, 0, "python -m analysis report")
        blocks = list(sections.report(own, Gallery()))
        made[name] = page(blocks), markdown(blocks)
    return made


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, str]]:
    return pages(tmp_path_factory.mktemp("words"))


def test_meanings_are_short_sentences() -> None:
    for word, meaning in WORDS.items():
        assert len(meaning.split()) <= MOST_WORDS, word
        assert meaning[0].isupper()
        assert meaning.endswith(".")


def test_each_word_marked_occurs_once_a_section_and_is_listed(
    written: dict[str, tuple[str, str]],
) -> None:
    every = set()
    for html, text in written.values():
        marked = Marked()
        marked.feed(html)
        by_anchor = {anchor(word): word for word in WORDS}
        used = set()
        for section in marked.sections:
            words = []
            for shown, meaning, href in section:
                (word,) = [one for one, told in WORDS.items() if told == meaning]
                # What is marked is the word itself, or its plural.
                assert word.lower() in shown.lower() or shown.lower() in word.lower()
                assert href in ("", f"#{anchor(word)}")
                words.append(word)
            assert len(words) == len(set(words)), words
            used |= set(words)
        assert {by_anchor[one] for one in marked.listed} == used
        assert len(marked.listed) == len(set(marked.listed))
        every |= used
        assert set(re.findall(r"^- \*\*(.+?)\*\*: ", text, re.MULTILINE)) == used
    assert len(every) > len(WORDS) / 2


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("At N = 2M and D = 40M, arms differ.", {"N", "D", "arm"}),
        ("mix=gdn3_attn1 at seed=0 in ND", set()),
        ("Confounds of gdn: none", {"confound"}),
        ("the seeded warmth of armies", set()),
        ("Token savings at the target loss", {"token savings", "target loss"}),
        ("P(savings > 1) = 0.97; in range.", {"P(savings > 1)", "in range"}),
    ],
)
def test_words_are_whole_words_of_prose(text: str, found: set[str]) -> None:
    assert set(words_of([text])) == found


def test_parts_are_the_text_again() -> None:
    text = "Token savings of an arm over its twin at N; again the arm."
    parts = list(Marker().parts(text))
    assert "".join(part for _, part in parts) == text
    assert [word for word, _ in parts if word] == ["token savings", "arm", "twin", "N"]
