"""What a recurrent operator is to the code that knows none by name.

An operator lies in its mixer's folder, as its definition and in faster forms; the mixer's record
says where (`operators`). The preflight, the choice of a backend and the doctor read only this.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from models import mixers
from models.errors import SettingError
from models.mixer import attribute

Form = Callable[..., tuple[Tensor, Tensor | None]]
"""`form(*inputs, initial_state=None, output_final_state=False, cu_seqlens=None)` -> the output
[B, T, …], and the final state if asked for, else None. cu_seqlens: [n + 1], where documents begin
among the B·T tokens; the definition says the other shapes."""

FORMS = ("naive", "chunked", "fla")


@dataclass(frozen=True)
class Operator:
    """The same function in several forms, and what the preflight holds them to."""

    name: str
    """As the manifest writes it."""
    naive: Form
    """The definition, one token at a time."""
    chunked: Form
    """Plain PyTorch that trains on any device."""
    inputs: Callable[[torch.device, torch.dtype], list[Tensor]]
    """The arguments, [B, T, …] each, as a layer makes them at the start of training."""
    tensors: tuple[str, ...]
    """Names of the output and of the gradients of `inputs`, in that order."""
    fla: Form | None = None
    """Triton kernels for CUDA devices, which import fla and triton when called."""

    def form(self, backend: str) -> Form:
        """The form of a backend, one of FORMS."""
        form: Form | None = getattr(self, backend)
        assert form is not None, f"{self.name} has no {backend} form"
        return form


def operators_of(names: Iterable[str] | None = None) -> dict[str, Operator]:
    """Name -> operator of these mixers, or of every mixer that comes with the project.

    Raises SettingError where a mixer or one of its operators cannot be imported, and where two
    operators have one name.
    """
    operators: dict[str, Operator] = {}
    for mixer in mixers.MIXERS if names is None else names:
        for path in mixers.lookup(mixer).operators:
            try:
                operator = attribute(path)
            except SettingError as error:
                raise SettingError(
                    f"mixer={mixer} names the operator {path}, which cannot be imported "
                    f"({error.__cause__}); valid: module:ATTRIBUTE."
                ) from error
            if not isinstance(operator, Operator):
                raise SettingError(
                    f"mixer={mixer} names the operator {path}, which is no models.ops.operator."
                    "Operator."
                )
            if operators.setdefault(operator.name, operator) is not operator:
                raise SettingError(
                    f"mixer={mixer} has an operator named {operator.name}, and so has another "
                    "mixer; valid: a name of its own."
                )
    return operators
