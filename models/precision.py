"""Arithmetic that keeps the dtypes it is written in, whatever autocast is in force around it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def in_own_precision(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with autocast off on its first tensor's device.

    For what keeps float32 beside bfloat16, states and solves: autocast would round them. Backward
    passes need it too, for in a compiled block they run under the autocast of the forward pass.
    """

    @functools.wraps(function)
    def outside(*arguments: Any, **options: Any) -> Any:
        device = next(x.device for x in arguments if isinstance(x, Tensor))
        if not torch.is_autocast_enabled(device.type):
            return function(*arguments, **options)
        with torch.autocast(device.type, enabled=False):
            return function(*arguments, **options)

    return outside
