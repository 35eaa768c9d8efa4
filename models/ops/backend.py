"""Which form of a recurrent operator a forward pass takes.

`naive` is the definition (for tests), `chunked` the plain PyTorch form that trains on any device,
`fla` Triton kernels for CUDA devices. An operator asks `form_in_use` at each call, and its layers
know nothing of backends; a run trains with one choice, made by `choose` and in force inside
`using`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch

from models.errors import SettingError
from models.ops import preflight
from models.ops.operator import FORMS, Form, Operator, operators_of

BACKENDS = ("auto", *FORMS)
UNLESS_CHOSEN = "chunked"
NAMES: dict[str, str] = {}
"""Operator -> backend in use, of those chosen; UNLESS_CHOSEN for every other operator."""


@dataclass(frozen=True)
class Choice:
    """A backend for each operator, and why."""

    backends: Mapping[str, str]
    """Operator -> backend."""
    reason: str
    """A sentence."""


def choose(
    device: torch.device | str,
    wanted: str = "auto",
    dtype: torch.dtype | None = None,
    operators: Mapping[str, Operator] | None = None,
) -> Choice:
    """The backends to train with on a device, each held against the definition there first.

    wanted: one of BACKENDS; dtype: of the operators' inputs, bfloat16 on a CUDA device and
    float32 elsewhere unless given; operators: by name, those of models.mixers.MIXERS unless given.
    `auto` takes fla where it runs and is right, else chunked.
    Raises SettingError where the backend asked for by name, or the only one left, is wrong here.
    """
    if wanted not in BACKENDS:
        raise SettingError(f"resources.backend={wanted} is none of {', '.join(BACKENDS)}.")
    device = torch.device(device)
    if dtype is None:
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    if operators is None:
        operators = operators_of()

    def problem(operator: Operator, backend: str) -> str:
        if backend == "naive":
            return ""
        return preflight.verdict(operator, backend, device, dtype).problem

    if wanted != "auto":
        for name, operator in operators.items():
            if wrong := problem(operator, wanted):
                raise SettingError(
                    f"resources.backend={wanted} cannot train here: {name}: {wrong}."
                )
        return Choice(dict.fromkeys(operators, wanted), f"{wanted}, as asked for.")

    backends: dict[str, str] = {}
    refused: dict[str, list[str]] = {}
    for name, operator in operators.items():
        against_fla = problem(operator, "fla")
        backends[name] = "chunked" if against_fla else "fla"
        if against_fla:
            refused.setdefault(against_fla, []).append(name)
            if wrong := problem(operator, "chunked"):
                raise SettingError(
                    f"resources.backend=auto finds none that is right: {name}: {wrong}."
                )
    if not refused:
        reason = "fla: right in value and gradient on this device."
    else:
        whys = [f"{' and '.join(names)}: {why}" for why, names in refused.items()]
        reason = f"chunked for {'; '.join(whys)}."
    return Choice(backends, reason)


@contextlib.contextmanager
def using(choice: Choice) -> Iterator[None]:
    """Take these backends in every forward pass of this process meanwhile."""
    before = dict(NAMES)
    NAMES.update(choice.backends)
    try:
        yield
    finally:
        NAMES.clear()
        NAMES.update(before)


def in_use() -> dict[str, str]:
    """Operator -> backend as the manifest writes it: every mixer's of the project, and any other
    that was chosen."""
    return dict.fromkeys(operators_of(), UNLESS_CHOSEN) | NAMES


def form_in_use(operator: Operator) -> Form:
    """What a call of this operator computes with now. torch.compile traces it."""
    return operator.form(NAMES.get(operator.name, UNLESS_CHOSEN))
