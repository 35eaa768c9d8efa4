"""Functions that torch.compile calls on a CPU, and does not look into.

A walk over chunks or blocks is short tensors' work: unrolled by the compiler it takes minutes to
compile there, and runs no faster than torch's own operations do.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def closed_on_cpu(function: Callable[..., list[Tensor]]) -> Callable[..., list[Tensor]]:
    """`function`, in compiled code on a CPU one operator named after it; elsewhere as it is.

    It takes a tensor first and returns new tensors, none a view of another or of an argument, as
    many and of such shapes as its arguments' shapes alone decide. Autograd is its caller's.
    """
    name = f"archladder::{function.__module__}_{function.__name__}".replace(".", "_")
    operator = torch.library.custom_op(name, function, mutates_args=())
    operator.register_fake(function)

    @functools.wraps(function)
    def call(x: Tensor, *arguments: Any) -> list[Tensor]:
        closed = torch.compiler.is_compiling() and x.device.type == "cpu"
        return operator(x, *arguments) if closed else function(x, *arguments)

    return call
