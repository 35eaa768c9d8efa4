"""The ladder: what follows from a size. Each rule is a small function with its source beside it.

Every mix of a size follows the transformer's N at that size, so that all of them see the same
batches in the same order at the same learning rate. Source of the rules: Merrill et al. 2026
(Olmo Hybrid) and the ladder code its authors published with it, whose batch and learning-rate
rules are Porian et al. 2024's ("Resolving Discrepancies in Compute-Optimal Scaling").
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from models.errors import SettingError, one_of

N_REFERENCE = 108e6
SEQUENCE_REFERENCE = 2048
SCHEDULES = ("wsds", "cosine")
COSINE_FLOOR = 0.1
"""Share of the peak at which a cosine ends (Olmo Hybrid 7B, Hoffmann et al. 2022)."""
CHINCHILLA_TOKENS = 20
"""Tokens a parameter of the Chinchilla budget (Hoffmann et al. 2022)."""


def batch_tokens(N: float) -> int:
    """Target batch in tokens: 2048 · 160 · (N / 108M)^(2/3) (Porian et al. 2024)."""
    return round(SEQUENCE_REFERENCE * 160 * (N / N_REFERENCE) ** (2 / 3))


def peak_lr(N: float) -> float:
    """Peak learning rate: half of 0.0047 · (N / 108M)^(-1/3); the half is the ladder's own."""
    return 0.0047 * (N / N_REFERENCE) ** (-1 / 3) / 2


def beta2(tokens: float) -> float:
    """AdamW's second beta: 0.95 for batches of 512Ki tokens and more, else 0.99."""
    return 0.95 if tokens >= 524_288 else 0.99


def warmup_tokens(N: float) -> int:
    """Linear warm-up over one token per parameter."""
    return round(N)


@dataclass(frozen=True)
class Milestone:
    """An evaluated checkpoint: the end of one WSD-S period, or of the run."""

    chinchilla: float
    """Multiple of the Chinchilla budget (`tokens_per_parameter` · N)."""
    decay_from: int
    """Step after which the learning rate falls linearly (a cosine falls all along)."""
    step: int
    """Step after which the point is taken, its decay done."""


@dataclass(frozen=True)
class Recipe:
    """How a run of a size is trained: resolved numbers, the same for every mix."""

    N: int
    """The transformer's N at this size and vocabulary, which the rules read."""
    context: int
    batch_instances: int
    batch_tokens: int
    tokens: int
    steps: int
    warmup_steps: int
    peak_lr: float
    beta1: float
    beta2: float
    weight_decay: float
    eps: float
    grad_clip: float
    z_loss: float
    skip_sigma: float
    schedule: str
    milestones: tuple[Milestone, ...]
    by_hand: tuple[str, ...] = ()
    """What the ladder's rules did not decide, each with what they would have said."""
    ladder_steps: int | None = None
    """Steps of the run that this one is a try of, ended early by max_steps; None for a run of the
    ladder."""

    def lr(self, step: int) -> float:
        """Learning rate of the update numbered `step` (from 1): warm-up, stable, decay, jump.

        WSD-S (Wen et al. 2024): each period's last part falls linearly to 0 for its point, then
        training goes on from there at the peak, without a new warm-up. A cosine falls from the
        peak to a tenth of it at the last step.
        """
        if self.schedule == "cosine" and step > self.warmup_steps:
            done = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
            level = (1 + math.cos(math.pi * done)) / 2
            return self.peak_lr * (COSINE_FLOOR + (1 - COSINE_FLOOR) * level)
        for milestone in self.milestones:
            if step <= milestone.step:
                break
        level = min(1.0, step / max(1, self.warmup_steps))
        if step > milestone.decay_from:
            # The last update of a period is at the smallest step above zero.
            level *= (milestone.step - step + 1) / (milestone.step - milestone.decay_from + 1)
        return self.peak_lr * level


def plan_recipe(
    N: int,
    *,
    context: int,
    chinchilla: tuple[float, ...],
    tokens_per_parameter: float,
    decay_fraction: float,
    lr_multiplier: float,
    lr_N: int | None = None,
    batch: int | None,
    batch_multiple: int = 1,
    schedule: str = "wsds",
    max_steps: int | None = None,
    weight_decay: float,
    grad_clip: float,
    z_loss: float,
    skip_sigma: float,
) -> Recipe:
    """Apply the rules to a size whose transformer has N parameters.

    chinchilla: multiples at which points are taken, rising; lr_N: the N that the rule for the
    learning rate reads, None for N: that of the base under the maximal update parametrization,
    whose rate is the same at every size; batch: tokens, None for the rule;
    batch_multiple: sequences that a batch is a multiple of, so that it divides over devices;
    max_steps: of a try, which ends there by a schedule of its own, evaluated once.
    Raises SettingError on a budget that is not positive, not rising, or below one batch.
    """
    if not chinchilla or any(c <= 0 for c in chinchilla):
        raise SettingError(
            f"chinchilla={list(chinchilla)} must list positive multiples of the "
            "Chinchilla budget, like [0.5,1,2]."
        )
    if list(chinchilla) != sorted(set(chinchilla)):
        raise SettingError(f"chinchilla={list(chinchilla)} must rise from one to the next.")
    for name, value in (
        ("tokens_per_parameter", tokens_per_parameter),
        ("lr_multiplier", lr_multiplier),
        ("batch_tokens", 1 if batch is None else batch),
    ):
        if value <= 0:
            raise SettingError(f"{name}={value} must be above 0.")
    if not 0 < decay_fraction <= 1:
        raise SettingError(f"protocol.decay_fraction={decay_fraction} must be above 0, at most 1.")
    if context < 1:
        raise SettingError(f"size.context={context} must be at least 1 token.")
    if schedule not in SCHEDULES:
        raise one_of("protocol.schedule", schedule, SCHEDULES)
    if schedule == "cosine" and len(chinchilla) > 1:
        raise SettingError(
            f"protocol.schedule=cosine ends a run with its one point, but chinchilla="
            f"{list(chinchilla)} names {len(chinchilla)}; give one multiple a run, like "
            "protocol.chinchilla=[1]."
        )
    if batch_multiple < 1:
        raise SettingError(f"protocol.batch_multiple={batch_multiple} must be at least 1.")
    target = batch_tokens(N) if batch is None else batch
    instances = max(1, round(target / context / batch_multiple)) * batch_multiple
    actual = instances * context

    milestones: list[Milestone] = []
    for multiple in chinchilla:
        step = round(multiple * tokens_per_parameter * N / actual)
        start = milestones[-1].step if milestones else 0
        if step <= start:
            raise SettingError(
                f"chinchilla={multiple:g} is {multiple * tokens_per_parameter * N:,.0f} "
                f"tokens, less than one batch of {actual:,} past the point before; give larger or "
                "fewer multiples, or a smaller protocol.batch_tokens."
            )
        decay = max(1, round(decay_fraction * (step - start))) if schedule == "wsds" else 0
        milestones.append(Milestone(multiple, step - decay, step))
    ladder_steps = milestones[-1].step
    if is_try := max_steps is not None and max_steps < ladder_steps:
        multiple = max_steps * actual / (tokens_per_parameter * N)
        decay = max(1, round(decay_fraction * max_steps)) if schedule == "wsds" else 0
        milestones = [Milestone(multiple, max_steps - decay, max_steps)]
    steps = milestones[-1].step
    return Recipe(
        N=N,
        context=context,
        batch_instances=instances,
        batch_tokens=actual,
        tokens=steps * actual,
        steps=steps,
        warmup_steps=round(warmup_tokens(N) / actual),
        peak_lr=peak_lr(N if lr_N is None else lr_N) * lr_multiplier,
        beta1=0.9,
        beta2=beta2(target),
        weight_decay=weight_decay,
        eps=1e-8,
        grad_clip=grad_clip,
        z_loss=z_loss,
        skip_sigma=skip_sigma,
        schedule=schedule,
        milestones=tuple(milestones),
        by_hand=_by_hand(N, batch, lr_multiplier, lr_N, tokens_per_parameter),
        ladder_steps=ladder_steps if is_try else None,
    )


def _by_hand(
    N: int,
    batch: int | None,
    lr_multiplier: float,
    lr_N: int | None,
    tokens_per_parameter: float,
) -> tuple[str, ...]:
    words = []
    if batch is not None:
        words.append(f"batch_tokens={batch} (the ladder: {batch_tokens(N)})")
    if lr_multiplier != 1:
        words.append(f"lr_multiplier={lr_multiplier:g} (the ladder: 1)")
    if lr_N not in (None, N):
        words.append(
            f"learning rate of N = {lr_N:,}, the base of parametrization=mup (the ladder: of N = "
            f"{N:,})"
        )
    if tokens_per_parameter != CHINCHILLA_TOKENS:
        words.append(
            f"tokens_per_parameter={tokens_per_parameter:g} (the ladder: {CHINCHILLA_TOKENS})"
        )
    return tuple(words)
