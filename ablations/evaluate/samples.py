"""Samples of text at a point: a model continues the same held-out prompts, greedily.

Prompt i is the beginning of a held-out document, of the domains in turn. It is a pure function of
i and the corpus, so that every mix, size and seed continues the same, and fewer prompts are the
first of more. Nothing here decides a number: samples are for people to read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np

from ablations.data.prepared import Corpus, ValidationDomain
from ablations.data.streams import windows
from ablations.evaluate.budget import PROMPT_TOKENS, EvaluationSettings
from ablations.evaluate.probes import eager
from ablations.evaluate.tasks import TEXT_TOKENS
from models.errors import SettingError
from models.generation import generate
from models.language_model import LanguageModel
from models.text import visible

VERSION = 1
"""Of the prompts."""


@dataclass(frozen=True)
class Prompt:
    domain: str
    tokens: np.ndarray
    """int64 [PROMPT_TOKENS]."""


def prompts(corpus: Corpus, number: int) -> list[Prompt]:
    """The first `number` prompts of a corpus.

    Raises SettingError where its held-out text has fewer documents that are long enough.
    """
    names = sorted(corpus.validation)
    beginnings = {name: _beginnings(corpus.validation[name]) for name in names}
    cuts = []
    for i in range(number):
        name = names[i % len(names)]
        turn, starts = i // len(names), beginnings[name]
        if turn >= len(starts):
            raise SettingError(
                f"evaluation.samples={number} needs {turn + 1} held-out documents of at least "
                f"{PROMPT_TOKENS} tokens in the domain {name} of the corpus, which has "
                f"{len(starts)}; valid: at most {i}."
            )
        tokens = windows(corpus.validation[name].tokens, starts[turn : turn + 1], PROMPT_TOKENS)
        cuts.append(Prompt(name, tokens[0].astype(np.int64)))
    return cuts


def _beginnings(domain: ValidationDomain) -> np.ndarray:
    """Where documents begin that are no shorter than a prompt, shuffled, int64 [documents]."""
    n = min(len(domain.tokens), TEXT_TOKENS)
    text = windows(domain.tokens, np.array([0]), n)[0]
    ends = np.flatnonzero(text == domain.separator)
    starts = np.concatenate([[0], ends + 1])
    lengths = np.concatenate([ends, [n]]) - starts
    generator = np.random.default_rng([VERSION, *b"samples", *domain.name.encode()])
    return generator.permutation(starts[lengths >= PROMPT_TOKENS])


class Samples:
    """The samples of one corpus: the same prompts for every model."""

    def __init__(
        self,
        evaluation: EvaluationSettings,
        corpus: Corpus,
        decode: Callable[[list[int]], str],
        autocast: Callable[[], AbstractContextManager[Any]],
    ) -> None:
        """decode: ids to text (ablations.data.source.decoder). Raises SettingError as `prompts`."""
        self.new_tokens, self.decode, self.autocast = evaluation.sample_tokens, decode, autocast
        self.prompts = prompts(corpus, evaluation.samples)

    def rows(self, model: LanguageModel) -> Iterator[dict[str, Any]]:
        """Rows for samples.jsonl, without the step. Every rank must ask for them."""
        training = model.training
        model.eval()
        with eager(model), self.autocast():
            asked = [prompt.tokens.tolist() for prompt in self.prompts]
            continued = generate(model, asked, self.new_tokens)
        model.train(training)
        for i, (prompt, new) in enumerate(zip(self.prompts, continued, strict=True)):
            yield {
                "sample": i,
                "version": VERSION,
                "domain": prompt.domain,
                "prompt": self._text(prompt.tokens.tolist()),
                "continuation": self._text(new),
                "new_tokens": self.new_tokens,
            }

    def _text(self, tokens: list[int]) -> str:
        return visible(self.decode(tokens), keep="\n\t")
