"""Words of a report that a reader may not know, each with a sentence on what it means there."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

WORDS = {
    "token savings": "Training tokens that the baseline needs over those that the mix needs, at "
    "equal N and equal loss: 2 is half the tokens.",
    "time savings": "The same ratio in measured seconds of training in place of tokens.",
    "baseline": "The mix that all others are compared with, as a rule the transformer.",
    "mix": "The pattern of token-mixing layers of a model, such as three recurrent layers to one "
    "of attention.",
    "arm": "A mix at one value of whatever else was varied, such as a learning rate.",
    "twin": "The arm of the baseline at the same values of all else that was varied.",
    "treatment": "What a comparison varies on purpose.",
    "confound": "What differs between two mixes beside the mix, and may itself change the loss.",
    "seed": "A repetition of a training that differs in the order of its data or its starting "
    "weights alone.",
    "N": "Parameters of a model without its input embedding (non-embedding), the output layer "
    "included.",
    "D": "Tokens that a model was trained on.",
    "FLOPs": "Floating-point operations of training, forward and backward.",
    "Chinchilla": "A budget of 20 training tokens per parameter, from Hoffmann et al. 2022; 4 × "
    "Chinchilla is 80.",
    "isoFLOP": "Models of different size trained with equal FLOPs, to find the best size for them.",
    "bits per byte": "Held-out loss in bits, over the bytes of the text: comparable between "
    "tokenizers.",
    "nats per token": "Held-out loss with natural logarithms: one nat is 1.44 bits.",
    "held-out": "Text that no model was trained on.",
    "interval": "A range that should hold the true value in the share of cases given, mostly 95 %.",
    "resample": "A ladder drawn again from the points and their noise, and fitted anew: the spread "
    "of many such fits is the interval.",
    "P(savings > 1)": "Share of the resamples, or of the distribution that seeds give, in which "
    "the mix saves tokens.",
    "in range": "Inside the sizes and budgets that were trained, for both mixes.",
    "extrapolated": "Outside the sizes or budgets that were trained, by the factor given.",
    "lack of fit": "A law that misses the means of seeds by more than seeds scatter is wrong in "
    "form.",
    "misfit": "How far the law itself, without noise, lies off the true losses.",
    "rms": "Root mean square: the usual size of the residuals.",
    "condition number": "How much coefficients can trade against each other: a large one leaves "
    "each of them unknown while their sum is known.",
    "AICc": "A score of models by fit and number of coefficients: the lowest is the best guess, "
    "differences under 2 say little.",
    "target loss": "The loss that both mixes are asked to reach.",
    "ladder": "Models of several sizes, trained by one set of rules, that a law is fitted to.",
    "epochs": "How many times the training text was read.",
}
"""Terms as a report writes them, with their meaning."""
EXACT = ("N", "D", "FLOPs", "P(savings > 1)")
"""Terms that count as written alone; the others also with a capital, and in the plural."""


def _pattern(term: str) -> str:
    # Words between letters, digits, marks of names (gdn3_attn1, mix=gdn) or dots are no prose.
    body = re.escape(term) if term in EXACT else rf"{_any_case(term)}(?:s|es)?"
    return rf"(?<![\w.=@/-]){body}(?![\w=@/(*^-])"


def _any_case(term: str) -> str:
    first = term[0]
    return (f"[{first.lower()}{first.upper()}]") + re.escape(term[1:])


# The longest first, so that "token savings" is no "savings".
_FINDERS = {
    term: re.compile(_pattern(term)) for term in sorted(WORDS, key=lambda one: (-len(one), one))
}


def anchor(term: str) -> str:
    """What a link to a word leads to."""
    return "word-" + re.sub(r"[^a-z0-9]+", "-", term.lower()).strip("-")


class Marker:
    """Finds words in the text of a page, each where it first stands in a section."""

    def __init__(self) -> None:
        self.seen: set[str] = set()
        """Words found so far, in any section."""
        self._here: set[str] = set()

    def begin(self) -> None:
        """A section begins: each word is explained again."""
        self._here = set()

    def parts(self, text: str) -> Iterator[tuple[str, str]]:
        """(term, text) of each part of a text in order; no term: no word, or one explained."""
        found: list[tuple[int, int, str]] = []
        for term, finder in _FINDERS.items():
            if term in self._here:
                continue
            for match in finder.finditer(text):
                if all(match.end() <= start or end <= match.start() for start, end, _ in found):
                    found.append((match.start(), match.end(), term))
                    self._here.add(term)
                    break
        self.seen |= self._here
        at = 0
        for start, end, term in sorted(found):
            if start > at:
                yield "", text[at:start]
            yield term, text[start:end]
            at = end
        if at < len(text):
            yield "", text[at:]


def words_of(texts: Iterable[str]) -> dict[str, str]:
    """The words that stand in texts, in alphabetical order, with their meaning."""
    marker = Marker()
    for text in texts:
        marker.begin()
        list(marker.parts(text))
    return {term: WORDS[term] for term in sorted(marker.seen, key=str.lower)}
