"""Which implementation of a recurrent operator a forward pass takes.

`naive` is the definition (for tests), `chunked` the plain PyTorch form that trains on any device,
`fla` Triton kernels for CUDA devices. The layers call the functions here and know nothing of
backends; a run trains with one choice, made by `choose` and in force inside `using`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from models.errors import SettingError
from models.ops import preflight

BACKENDS = ("auto", "naive", "chunked", "fla")
NAMES = {"gated_delta_rule": "chunked", "ssd": "chunked"}
"""Operator -> backend in use, as written to the manifest."""


@dataclass(frozen=True)
class Choice:
    """A backend for each operator, and why."""

    gated_delta_rule: str
    ssd: str
    reason: str
    """A sentence."""


def choose(
    device: torch.device | str, wanted: str = "auto", dtype: torch.dtype | None = None
) -> Choice:
    """The backends to train with on a device, each held against the definition there first.

    wanted: one of BACKENDS; dtype: of the operators' inputs, bfloat16 on a CUDA device and
    float32 elsewhere unless given. `auto` takes fla where it runs and is right, else chunked.
    Raises SettingError where the backend asked for by name, or the only one left, is wrong here.
    """
    if wanted not in BACKENDS:
        raise SettingError(f"resources.backend={wanted} is none of {', '.join(BACKENDS)}.")
    device = torch.device(device)
    if dtype is None:
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32

    def problem(operator: str, backend: str) -> str:
        if backend == "naive":
            return ""
        return preflight.verdict(operator, backend, device, dtype).problem

    if wanted != "auto":
        for operator in NAMES:
            if found := problem(operator, wanted):
                raise SettingError(
                    f"resources.backend={wanted} cannot train here: {operator}: {found}."
                )
        return Choice(wanted, wanted, f"{wanted}, as asked for.")

    taken: dict[str, str] = {}
    refused: dict[str, list[str]] = {}
    for operator in NAMES:
        against_fla = problem(operator, "fla")
        taken[operator] = "chunked" if against_fla else "fla"
        if against_fla:
            refused.setdefault(against_fla, []).append(operator)
            if found := problem(operator, "chunked"):
                raise SettingError(
                    f"resources.backend=auto finds none that is right: {operator}: {found}."
                )
    if not refused:
        reason = "fla: right in value and gradient on this device."
    else:
        whys = [f"{' and '.join(names)}: {why}" for why, names in refused.items()]
        reason = f"chunked for {'; '.join(whys)}."
    return Choice(reason=reason, **taken)


@contextlib.contextmanager
def using(choice: Choice) -> Iterator[None]:
    """Take these backends in every forward pass of this process meanwhile."""
    before = dict(NAMES)
    NAMES.update(gated_delta_rule=choice.gated_delta_rule, ssd=choice.ssd)
    try:
        yield
    finally:
        NAMES.update(before)


def gated_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    *,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """See models.mixers.gdn.gated_delta_rule.naive."""
    function = preflight.IMPLEMENTATIONS["gated_delta_rule"][NAMES["gated_delta_rule"]]
    return function(
        q,
        k,
        v,
        g,
        beta,
        initial_state=initial_state,
        output_final_state=output_final_state,
        cu_seqlens=cu_seqlens,
    )


def ssd(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    *,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """See models.mixers.mamba2.ssd.naive."""
    function = preflight.IMPLEMENTATIONS["ssd"][NAMES["ssd"]]
    return function(
        q,
        k,
        v,
        g,
        initial_state=initial_state,
        output_final_state=output_final_state,
        cu_seqlens=cu_seqlens,
    )
