"""What a run computes on: device, precision, compilation, micro-batch, operators, by its resources.

None of it changes what is computed but for rounding; the manifest records what it came to.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch

from ablations import provenance
from ablations.distributed import World
from ablations.spec import RunSpec
from models.errors import SettingError
from models.ops import backend
from models.ops.operator import operators_of


@dataclass(frozen=True)
class Hardware:
    """What the resources came to on this machine."""

    device: torch.device
    precision: str
    compiled: bool

    def autocast(self) -> AbstractContextManager[Any]:
        """bf16 products over float32 weights, where the run computes in bf16."""
        if self.precision == "fp32":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)

    @property
    def name(self) -> str:
        """As its driver calls it."""
        if self.device.type == "cuda":
            return torch.cuda.get_device_name(self.device)
        return provenance.cpu_name()

    @property
    def memory_bytes(self) -> int | None:
        """Of the device; None on a CPU."""
        if self.device.type != "cuda":
            return None
        return torch.cuda.get_device_properties(self.device).total_memory


def choose_hardware(spec: RunSpec, world: World, say: Callable[[str], None]) -> Hardware:
    """Device, precision and compilation by the resources; `auto` by what this machine has."""
    wanted = spec.resources.device
    if wanted == "cuda" and not torch.cuda.is_available():
        raise SettingError("resources.device=cuda is not on this machine; valid here: auto, cpu.")
    kind = "cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu"
    if kind == "cuda" and world.local_size > torch.cuda.device_count():
        raise SettingError(
            f"{world.local_size} ranks on this machine have {torch.cuda.device_count()} GPUs; "
            "start a rank a GPU."
        )
    precision = spec.resources.precision
    if precision == "auto":
        # Without matrix units for it, bf16 on a CPU is emulated and several times slower.
        fast = kind == "cuda" or torch.cpu._is_amx_tile_supported()
        precision = "bf16" if fast else "fp32"
    compiled = spec.resources.compile == "true" or (
        spec.resources.compile == "auto" and kind == "cuda"
    )
    if compiled and kind == "cpu" and not any(map(shutil.which, ("g++", "clang++", "c++"))):
        say("no C++ compiler found: training eagerly, without torch.compile")
        compiled = False
    device = torch.device("cuda", world.local_rank) if kind == "cuda" else torch.device("cpu")
    return Hardware(device, precision, compiled)


def choose_operators(spec: RunSpec, hardware: Hardware) -> backend.Choice | None:
    """The recurrent operators' backends, held against the definition; None where there are none."""
    operators = operators_of(spec.model.mixers)
    if not operators:
        return None
    dtype = torch.float32 if hardware.precision == "fp32" else torch.bfloat16
    wanted = spec.resources.backend
    return backend.choose(hardware.device, wanted, dtype, operators)


@contextlib.contextmanager
def arithmetic(threads: int | None) -> Iterator[None]:
    """Denormals flushed to zero and `threads` in use; what the process had before comes back.

    Underflowing decay factors otherwise cost a CPU many times a normal multiplication. The flag
    is the whole thread's, so a caller that goes on to do other arithmetic needs it restored.
    """
    before = torch.get_num_threads()
    flushed = sys.float_info.min / 2 == 0.0
    torch.set_flush_denormal(True)
    if threads:
        torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_flush_denormal(flushed)
        torch.set_num_threads(before)
