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
import inspect
import json
import platform
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.cache_files import cache_folder, read_cache, write_cache
from models.ops.operator import Operator

FORWARD = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
CODE = (".py", ".c", ".cpp", ".cu", ".cuh", ".h")
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


def cannot_run(operator: Operator, backend: str, device: torch.device) -> str:
    """Why a backend cannot run here, for the end of a sentence; empty where it can. Imports fla
    on a CUDA device alone: it needs a Triton driver."""
    if backend != "fla":
        return ""
    if operator.fla is None:
        return "it has no fla form"
    if device.type != "cuda":
        return f"fla needs a CUDA device, and this is {device.type}"
    try:
        importlib.import_module("triton")
        importlib.import_module("fla")
    except ImportError as error:
        return f"fla does not import here ({error}; pip install -c constraints.txt -e '.[gpu]')"
    except Exception as error:  # a driver or version it cannot work with
        return f"fla does not import here ({first_line(error)})"
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


def examine(operator: Operator, backend: str, device: torch.device, dtype: torch.dtype) -> Verdict:
    """Run a backend's forward and backward and hold them against the definition in float64."""
    name = str(dtype).removeprefix("torch.")
    errors: dict[str, float] = {}
    problem = cannot_run(operator, backend, device)
    if not problem:
        try:
            for documents in (False, True):
                for tensor, error in _errors(operator, backend, device, dtype, documents).items():
                    worst = errors.get(tensor, 0.0)
                    errors[tensor] = worst if error <= worst else error  # a nan is worse than all
        except Exception as raised:  # whatever a kernel raises is what this function reports
            errors, problem = {}, f"{backend} raises {first_line(raised)}"
    output = operator.tensors[0]
    for tensor, error in errors.items():
        allowed = (FORWARD if tensor == output else BACKWARD)[dtype]
        if not problem and not error <= allowed:
            problem = (
                f"{backend} is off by {error:.1e} in {tensor}, at most {allowed:.0e} in {name}"
            )
    return Verdict(operator.name, backend, name, errors, problem)


def verdict(operator: Operator, backend: str, device: torch.device, dtype: torch.dtype) -> Verdict:
    """`examine`, once a machine."""
    source = _source(operator)
    if source is None:
        return examine(operator, backend, device, dtype)
    key = hashlib.sha256(json.dumps([versions(device), source]).encode()).hexdigest()[:16]
    field = f"{operator.name} {backend} {dtype}"
    path = cache_folder() / f"preflight-{key}.json"
    known = read_cache(path)
    with contextlib.suppress(KeyError, TypeError):
        return Verdict(**known[field])
    examined = examine(operator, backend, device, dtype)
    if examined.errors:  # what raised may have wanted memory that is free another time
        write_cache(path, {**read_cache(path), field: asdict(examined)})
    return examined


def _errors(
    operator: Operator, backend: str, device: torch.device, dtype: torch.dtype, documents: bool
) -> dict[str, float]:
    inputs = operator.inputs(device, dtype)
    B, T = inputs[0].shape[:2]
    borders = None
    if documents:
        borders = torch.tensor([0, T // 3, T, T + 1, B * T], device=device)

    def run(backend: str, x: list[Tensor]) -> list[Tensor]:
        leaves = [a.detach().requires_grad_() for a in x]
        o, _ = operator.form(backend)(*leaves, cu_seqlens=borders)
        do = torch.randn(o.shape, generator=torch.Generator().manual_seed(1))
        do = do.to(device, dtype).to(o.dtype)
        return [o.detach(), *torch.autograd.grad(o, leaves, do)]

    exact = run("naive", [x.double() for x in inputs])
    actual = run(backend, inputs)
    return {
        name: ((a.double() - e).norm() / e.norm()).item()
        for name, a, e in zip(operator.tensors, actual, exact, strict=True)
    }


def first_line(error: Exception) -> str:
    """Type and first line of an error, for one line of a report."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _sources_of(module: Any, file: Path) -> set[Path]:
    """Code that a form may rest on: of a package of one's own all of it, kernels included."""
    top = sys.modules.get(module.__name__.partition(".")[0])
    if top is None or top.__name__ == "models" or getattr(top, "__file__", None) is None:
        return set(file.parent.glob("*.py"))
    folder = Path(str(top.__file__)).parent if hasattr(top, "__path__") else file.parent
    return {path for suffix in CODE for path in folder.rglob(f"*{suffix}")}


def _source(operator: Operator) -> str | None:
    """Hash of the Python files that the operator's results depend on: all of models/ops and the
    mixers, which may use one another's, and all in the folders of its forms and inputs. None
    where one of these has no file."""
    models = Path(__file__).parents[1]
    files = {models / "closed.py", models / "precision.py"}
    files.update((models / "ops").glob("*.py"), (models / "mixers").rglob("*.py"))
    for function in (operator.naive, operator.chunked, operator.fla, operator.inputs):
        if function is not None:
            module = sys.modules.get(getattr(inspect.unwrap(function), "__module__", None) or "")
            file = getattr(module, "__file__", None)
            if file is None:
                return None
            files.update(_sources_of(module, Path(file)))
    return hashlib.sha256(b"".join(file.read_bytes() for file in sorted(files))).hexdigest()
