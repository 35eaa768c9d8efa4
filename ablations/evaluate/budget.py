"""What is measured at a point beside the held-out loss, and what that costs; no torch.

A probe at length T reads `examples` rows of T tokens, forward only, and a sample its prompt and
what it adds. Their FLOPs are counted as training's are (models/cost.py), and a run for which they
would be more than a share of it is refused before it begins.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from models.config import ModelConfig
from models.cost import count
from models.errors import SettingError, one_of
from models.format import percent

PROBES = ("recall", "copy", "repeat", "passkey", "positions")
LEAST_LENGTH = 64
"""Tokens: a shorter row holds no eight pairs of key and value, each asked for."""
PROMPT_TOKENS = 32
"""Of a sample's prompt."""
MULTIPLES = (0.25, 0.5, 1, 2, 4)
"""Of the training context: the lengths taken where none are set."""


@dataclass(frozen=True)
class EvaluationSettings:
    """Probes and samples at every point; no part of a run's identity, as training does not see
    them."""

    probes: tuple[str, ...] = ()
    """Of `PROBES`; none unless asked for."""
    lengths: tuple[int, ...] | None = None
    """Tokens of an example; None: a quarter, half, one, two and four training contexts."""
    examples: int = 32
    """Of each probe at each length."""
    max_share: float = 0.1
    """A run whose probes and samples cost more than this share of its training FLOPs is refused."""
    samples: int = 0
    """Held-out prompts that the model continues at each point."""
    sample_tokens: int = 64
    """Tokens that it adds to each."""


def lengths(evaluation: EvaluationSettings, context: int) -> tuple[int, ...]:
    """Lengths in tokens, ascending."""
    if evaluation.lengths is not None:
        return tuple(sorted(set(evaluation.lengths)))
    return tuple(int(m * context) for m in MULTIPLES if m * context >= LEAST_LENGTH)


def flops(evaluation: EvaluationSettings, model: ModelConfig, context: int) -> float:
    """FLOPs of all probes and samples at one point: a third of training's a token, at each length's
    own cost of attention. `positions` reads its examples at the greatest length alone."""
    sample = PROMPT_TOKENS + evaluation.sample_tokens
    samples = evaluation.samples * count(model, sample).flops_per_token / 3 * sample
    if not evaluation.probes:
        return samples
    forward = {T: count(model, T).flops_per_token / 3 * T for T in lengths(evaluation, context)}
    synthetic = len(set(evaluation.probes) - {"positions"})
    rows = synthetic * sum(forward.values())
    if "positions" in evaluation.probes:
        rows += forward[max(forward)]
    return evaluation.examples * rows + samples


def check(
    evaluation: EvaluationSettings,
    model: ModelConfig,
    context: int,
    tokens: int,
    points: int,
) -> None:
    """Raise SettingError on an unknown probe, an impossible number, or too great a share of a run.

    tokens: the run's training tokens; points: how many times it is evaluated.
    """
    check_names(evaluation.probes)
    for name in ("examples", "max_share"):
        if getattr(evaluation, name) <= 0:
            raise SettingError(f"evaluation.{name}={getattr(evaluation, name):g} must be above 0.")
    check_lengths(evaluation.lengths)
    for name, least in (("samples", 0), ("sample_tokens", 1)):
        if (value := getattr(evaluation, name)) < least:
            raise SettingError(f"evaluation.{name}={value} must be at least {least}.")
    if evaluation.probes and not lengths(evaluation, context):
        raise SettingError(
            f"evaluation.probes need examples of at least {LEAST_LENGTH} tokens, which a context "
            f"of {context} has no multiple of up to {max(MULTIPLES)}; set evaluation.lengths."
        )
    share = share_of_run(evaluation, model, context, tokens, points)
    if share > evaluation.max_share:
        if not evaluation.probes:
            raise SettingError(
                f"evaluation.samples={evaluation.samples} would cost {percent(share)} of the run's "
                f"training FLOPs, more than evaluation.max_share={evaluation.max_share:g}; ask for "
                "fewer samples or evaluation.sample_tokens, or raise that share."
            )
        samples = f" and evaluation.samples={evaluation.samples}" if evaluation.samples else ""
        raise SettingError(
            f"evaluation.probes={_listed(evaluation.probes)}{samples} would cost {percent(share)} "
            f"of the run's training FLOPs, more than evaluation.max_share="
            f"{evaluation.max_share:g}; ask for fewer probes, evaluation.examples or "
            "evaluation.lengths, raise that share, or probe the finished run with "
            "python -m ablations.evaluate."
        )


def share_of_run(
    evaluation: EvaluationSettings, model: ModelConfig, context: int, tokens: int, points: int
) -> float:
    """FLOPs of the probes and samples at all points over those of training."""
    training = tokens * count(model, context).flops_per_token
    return points * flops(evaluation, model, context) / training


def check_names(probes: Sequence[str]) -> None:
    """Raise SettingError for a name that no probe has, or one named twice."""
    for name in probes:
        if name not in PROBES:
            raise one_of("evaluation.probes", name, PROBES)
    if len(set(probes)) < len(probes):
        raise SettingError(f"evaluation.probes={_listed(probes)} names a probe twice.")


def check_lengths(given: Sequence[int] | None) -> None:
    """Raise SettingError for an empty list, or a length that is too short for the probes."""
    if given is not None and (not given or min(given) < LEAST_LENGTH):
        raise SettingError(
            f"evaluation.lengths={_listed(given)} must list lengths of at least {LEAST_LENGTH} "
            "tokens, or be null."
        )


def _listed(values: Sequence[object]) -> str:
    return f"[{','.join(map(str, values))}]"
