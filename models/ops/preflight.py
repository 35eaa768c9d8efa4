"""Whether a backend computes the right thing on this machine: forward and backward against the
definition in float64, at shapes as in training, one row whole and one of three documents.

A kernel can be silently wrong for one pairing of compiler and GPU, so this is measured where a
run will train, once a machine: what was found is kept in the user's cache, by versions, device
and the operators' own source.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.metadata
import json
import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from models.cache_files import cache_folder, read_cache, write_cache
from models.mixers.gdn import gated_delta_rule as gdr
from models.mixers.mamba2 import ssd
from models.ops import fla

OPERATORS = ("gated_delta_rule", "ssd")
IMPLEMENTATIONS: dict[str, dict[str, Callable[..., tuple[Tensor, Tensor | None]]]] = {
    "gated_delta_rule": {"naive": gdr.naive, "chunked": gdr.chunked, "fla": fla.gated_delta_rule},
    "ssd": {"naive": ssd.naive, "chunked": ssd.chunked, "fla": fla.ssd},
}
TENSORS = {
    "gated_delta_rule": ("o", "dq", "dk", "dv", "dg", "dbeta"),
    "ssd": ("o", "dq", "dk", "dv", "dg"),
}

FORWARD = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
BACKWARD = {torch.float32: 1e-4, torch.bfloat16: 2e-2}
"""Largest norm of the error over the norm of the definition's tensor, by dtype of the inputs."""


@dataclass(frozen=True)
class Verdict:
    """What one backend of one operator did."""

    operator: str
    backend: str
    dtype: str
    errors: dict[str, float]
    """Tensor -> norm of the error over norm of the definition's; empty where nothing ran."""
    problem: str
    """What is wrong, for the end of a sentence; empty where nothing is."""


def cannot_run(backend: str, device: torch.device) -> str:
    """Why a backend cannot run here, for the end of a sentence; empty where it can. Imports fla
    on a CUDA device alone: it needs a Triton driver."""
    if backend != "fla":
        return ""
    if device.type != "cuda":
        return f"fla needs a CUDA device, and this is {device.type}"
    try:
        importlib.import_module("triton")
        importlib.import_module("fla")
    except ImportError as error:
        return f"fla does not import here ({error}; pip install -c constraints.txt -e '.[gpu]')"
    except Exception as error:  # a driver or version it cannot work with
        return f"fla does not import here ({_first_line(error)})"
    return ""


def versions(device: torch.device) -> dict[str, str]:
    """Everything a verdict depends on but the operators' source; imports nothing."""
    found = {"python": platform.python_version(), "torch": torch.__version__}
    for name in ("triton", "flash-linear-attention"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "absent"
    cuda = device.type == "cuda"
    found["device"] = torch.cuda.get_device_name(device) if cuda else _processor()
    return found


def examine(operator: str, backend: str, device: torch.device, dtype: torch.dtype) -> Verdict:
    """Run a backend's forward and backward and hold them against the definition in float64."""
    name = str(dtype).removeprefix("torch.")
    errors: dict[str, float] = {}
    problem = cannot_run(backend, device)
    if not problem:
        try:
            for documents in (False, True):
                for tensor, error in _errors(operator, backend, device, dtype, documents).items():
                    worst = errors.get(tensor, 0.0)
                    errors[tensor] = worst if error <= worst else error  # a nan is worse than all
        except Exception as raised:  # whatever a kernel raises is what this function reports
            errors, problem = {}, f"{backend} raises {_first_line(raised)}"
    for tensor, error in errors.items():
        allowed = (FORWARD if tensor == "o" else BACKWARD)[dtype]
        if not problem and not error <= allowed:
            problem = (
                f"{backend} is off by {error:.1e} in {tensor}, at most {allowed:.0e} in {name}"
            )
    return Verdict(operator, backend, name, errors, problem)


def verdict(operator: str, backend: str, device: torch.device, dtype: torch.dtype) -> Verdict:
    """`examine`, once a machine."""
    key = hashlib.sha256(json.dumps([versions(device), _source()]).encode()).hexdigest()[:16]
    field = f"{operator} {backend} {dtype}"
    path = cache_folder() / f"preflight-{key}.json"
    known = read_cache(path)
    with contextlib.suppress(KeyError, TypeError):
        return Verdict(**known[field])
    found = examine(operator, backend, device, dtype)
    if found.errors:  # what raised may have wanted memory that is free another time
        write_cache(path, {**read_cache(path), field: asdict(found)})
    return found


def inputs(operator: str, device: torch.device, dtype: torch.dtype) -> list[Tensor]:
    """Arguments as a layer makes them at the start of training, in `dtype` but for the gates.

    Two rows; T no multiple of a chunk; log decays -A·dt with A in (0, 16) and dt in [1e-3, 0.1].
    """
    gpu = device.type == "cuda"
    B, T, H, K, V = (2, 509, 2, 96, 192) if gpu else (2, 157, 2, 48, 96)
    generator = torch.Generator().manual_seed(0)

    def rand(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    groups = H if operator == "gated_delta_rule" else 1
    q, k = (F.normalize(randn(B, T, groups, K), dim=-1) for _ in range(2))
    g = -16 * rand(H) * torch.exp(rand(B, T, H) * 4.6 - 6.9)
    wide = [x.to(device, dtype) for x in (q, k, randn(B, T, H, V))]
    gates = [g, 2 * rand(B, T, H)] if operator == "gated_delta_rule" else [g]
    return [*wide, *(x.to(device) for x in gates)]


def _errors(
    operator: str, backend: str, device: torch.device, dtype: torch.dtype, documents: bool
) -> dict[str, float]:
    arguments = inputs(operator, device, dtype)
    B, T = arguments[0].shape[:2]
    borders = None
    if documents:
        borders = torch.tensor([0, T // 3, T, T + 1, B * T], device=device)
    do = torch.randn(arguments[2].shape, generator=torch.Generator().manual_seed(1))
    do = do.to(device, dtype)

    def run(name: str, x: list[Tensor]) -> list[Tensor]:
        leaves = [a.detach().requires_grad_() for a in x]
        o, _ = IMPLEMENTATIONS[operator][name](*leaves, cu_seqlens=borders)
        return [o.detach(), *torch.autograd.grad(o, leaves, do.to(o.dtype))]

    exact = run("naive", [x.double() for x in arguments])
    found = run(backend, arguments)
    return {
        name: ((a.double() - e).norm() / e.norm()).item()
        for name, a, e in zip(TENSORS[operator], found, exact, strict=True)
    }


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _source() -> str:
    files = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(f.read_bytes() for f in files)).hexdigest()
