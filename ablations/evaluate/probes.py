"""Probes of a model: rows for probes.jsonl, by probe and length (docs/probes.md).

Accuracy is that of the likeliest of the stated candidates; nats are cross-entropy over the whole
vocabulary. Predictions of one example share its text, so standard errors are those of the mean of
examples (with one prediction an example, the binomial's).
"""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
import torch

from ablations.data.prepared import Corpus
from ablations.distributed import World
from ablations.evaluate.budget import EvaluationSettings, lengths
from ablations.evaluate.positions import by_position
from ablations.evaluate.tasks import VERSION, Examples, Material, examples, material
from models.errors import SettingError
from models.language_model import LanguageModel

ALONE = World()
BATCH_TOKENS = 8192
"""Tokens of a forward pass, or one example where that is longer."""


class Probes:
    """The probes of one corpus and context: the same examples for every model."""

    def __init__(
        self,
        evaluation: EvaluationSettings,
        corpus: Corpus,
        context: int,
        *,
        device: torch.device,
        autocast: Callable[[], AbstractContextManager[Any]],
        separator: int | None = None,
        world: World = ALONE,
    ) -> None:
        """separator: where the run keeps documents apart, as `positions` then does too.

        Raises SettingError where the held-out text is too small for an asked length. Lengths that
        follow from the context are left out where it is.
        """
        self.evaluation, self.corpus, self.context = evaluation, corpus, context
        self.device, self.autocast, self.world = device, autocast, world
        self.separator = separator
        self.material: Material = material(corpus)
        room = min(
            len(self.material.text), *(len(d.tokens) - 1 for d in corpus.validation.values())
        )
        self.lengths = lengths(evaluation, context)
        if evaluation.lengths is None:
            self.lengths = tuple(length for length in self.lengths if length <= room)
        if not self.lengths or max(self.lengths) > room:
            raise SettingError(
                f"evaluation.lengths={max(self.lengths, default=0)} is longer than the shortest "
                f"held-out domain of the corpus allows; valid: at most {room:,} tokens."
            )

    @property
    def wanted(self) -> list[tuple[str, int]]:
        """Probe and length of every measurement."""
        probes = self.evaluation.probes
        synthetic = [(p, length) for p in probes if p != "positions" for length in self.lengths]
        return [*synthetic, *(("positions", max(self.lengths)) for p in probes if p == "positions")]

    def measure(
        self, model: LanguageModel, wanted: Iterable[tuple[str, int]] | None = None
    ) -> Iterator[dict[str, Any]]:
        """Rows of a model, without its step; of the `wanted` probes and lengths, or of all.

        On several ranks every one of them must ask for all rows.
        """
        for probe, length in self.wanted if wanted is None else wanted:
            common = {
                "probe": probe, "version": VERSION, "length": length, "context": self.context,
                "examples": self.evaluation.examples,
            }  # fmt: skip
            training = model.training
            model.eval()
            with eager(model):
                if probe == "positions":
                    rows = by_position(
                        model, self.corpus, length, self.context, self.evaluation.examples,
                        device=self.device, autocast=self.autocast, separator=self.separator,
                        world=self.world, batch_tokens=BATCH_TOKENS,
                    )  # fmt: skip
                else:
                    asked = examples(probe, length, self.evaluation.examples, self.material)
                    rows = [score(model, asked, self.device, self.autocast, self.world)]
            model.train(training)
            for row in rows:
                yield common | row


@torch.no_grad()
def score(
    model: LanguageModel,
    asked: Examples,
    device: torch.device,
    autocast: Callable[[], AbstractContextManager[Any]],
    world: World = ALONE,
) -> dict[str, Any]:
    """How a model does on examples of one probe and length.

    Returns {"predictions": scored in all, "candidates": how many, "chance": accuracy of a guess
    among them, "accuracy", "accuracy_se", "nats", "nats_se", "first_accuracy", "first_nats": of
    the same tokens at their first reading, "gain", "gain_se": nats a second reading saves, None
    where there is no first, "digest": of the examples}.
    """
    n, T = asked.tokens.shape
    Q = asked.at.shape[1]
    both = asked.at if asked.first is None else np.concatenate([asked.at, asked.first], axis=1)
    tokens = torch.from_numpy(asked.tokens).to(device)
    at = torch.from_numpy(both).to(device)
    candidates = None
    if asked.candidates is not None:
        candidates = torch.from_numpy(asked.candidates.astype(np.int64)).to(device)
    # Sums by example and reading: right answers, nats.
    sums = torch.zeros(n, 2, 2, dtype=torch.float64, device=device)
    rows = max(1, BATCH_TOKENS // T)
    for mine, counts in world.passes(n, rows):
        with autocast():
            nats, best = model.choices(tokens[mine], at[mine], candidates)
        if not counts:
            continue
        right = best == tokens[mine].gather(1, at[mine])
        for reading, span in enumerate((slice(0, Q), slice(Q, None))):
            sums[mine, reading, 0] = right[:, span].double().sum(1)
            sums[mine, reading, 1] = nats[:, span].double().sum(1)
    means = (world.sum(sums) / Q).cpu().numpy()
    (accuracy, nats_mean), (first_accuracy, first_nats) = means.mean(0).tolist()
    accuracy_se, nats_se = (means[:, 0].std(0) / math.sqrt(n)).tolist()
    saved = means[:, 1, 1] - means[:, 0, 1]
    twice = asked.first is not None
    count = model.config.vocab_size if asked.candidates is None else len(asked.candidates)
    return {
        "predictions": n * Q,
        "candidates": count,
        "chance": 1 / count,
        "accuracy": accuracy,
        "accuracy_se": accuracy_se,
        "nats": nats_mean,
        "nats_se": nats_se,
        "first_accuracy": first_accuracy if twice else None,
        "first_nats": first_nats if twice else None,
        "gain": float(saved.mean()) if twice else None,
        "gain_se": float(saved.std()) / math.sqrt(n) if twice else None,
        "digest": asked.digest,
    }


@contextmanager
def eager(model: LanguageModel) -> Iterator[None]:
    """The model's blocks as they were before `compile`, which would compile for every length."""
    compiled = [block._compiled_call_impl for block in model.blocks]
    for block in model.blocks:
        block._compiled_call_impl = None
    try:
        yield
    finally:
        for block, call in zip(model.blocks, compiled, strict=True):
            block._compiled_call_impl = call
