"""What docs/mixers.md asks of a mixer's layer, checked on a small model on the CPU.

`python -m models.doctor mixer=NAME` prints it, and the tests hold every mixer of the project to
it. A check compares the layer with its record, or with itself in one pass over the same tokens.

Shapes: B batch, T time, d model width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from models.config import Blueprint, ModelConfig
from models.decoding import Cache
from models.documents import Documents
from models.errors import SettingError
from models.language_model import LanguageModel
from models.mix import Geometry, Mix, build_config
from models.mixer import Growth, Mixer, attribute
from models.mixers import lookup
from models.ops.preflight import first_line
from models.settings import from_dict, to_dict

TOLERANCE = 1e-4
"""Largest difference over the largest value, float32: the same sums in another order."""
SIZE = Blueprint("contract", d_model=64, n_layers=2, n_heads=4, mlp_hidden=96)
GEOMETRY = Geometry(windows=(6, 0))
"""A mixer with windows has one in the first layer and none in the second."""
TOKENS = 80
"""Longer than a chunk of a recurrent operator, so that states pass from one to the next."""
PIECES = (1, 37, 1, 1, 9, 31)
PROMPTS = (5, 33)
"""Tokens of two prompts in one batch; the shorter is padded."""
STARTS = (0, 1, 30, 67)
"""Where documents begin: one of a single token, and one that passes from chunk to chunk."""


@dataclass(frozen=True)
class Check:
    """One thing that a layer is held to."""

    what: str
    number: str
    """What came out, as text."""
    right: bool

    def __str__(self) -> str:
        return f"{'right' if self.right else 'wrong'}  {self.what}: {self.number}"


def check(name: str) -> list[Check]:
    """Hold the layers of a mixer, by its name or dotted path, to the contract.

    Raises SettingError where there is no such mixer, or it cannot stand in a small model.
    """
    record = lookup(name)
    mix = Mix("contract", ("layer",), kinds={"layer": {"mixer": name}})
    config = build_config(mix, SIZE, GEOMETRY, vocab_size=16)
    checks = [_settings(record, config), _confounds(record)]
    try:
        model = _model(config)
    except Exception as error:
        return [
            *checks,
            Check("the layer is built and drawn", f"raises {first_line(error)}", False),
        ]
    layers = [block.mixer for block in model.blocks]
    for what, examine in LAYER_CHECKS.items():
        try:
            number, right = examine(record, config, layers)
        except Exception as error:  # whatever a layer raises is what this function reports
            number, right = f"raises {first_line(error)}", False
        checks.append(Check(what, number, right))
    return checks


def _model(config: ModelConfig) -> LanguageModel:
    """As at the start of training, and then a little off, so that nothing is zero or one."""
    model = LanguageModel(config)
    model.initialize(0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def _settings(record: Mixer, config: ModelConfig) -> Check:
    """A run is resumed from its spec, where settings are plain values."""
    what = "settings are the same when read back from a record"
    settings = config.settings(0)
    try:
        same = from_dict(record.saved, to_dict(settings), record.name) == settings
        problem = record.problem(config, settings)
    except SettingError as error:
        same, problem = False, str(error)
    return Check(what, problem or ("the same" if same else "others"), same and not problem)


def _confounds(record: Mixer) -> Check:
    missing = []
    for rule in record.confounds:
        try:
            attribute(rule)
        except SettingError:
            missing.append(rule)
    number = f"not {', '.join(missing)}" if missing else f"all {len(record.confounds)}"
    return Check("rules in confounds exist", number, not missing)


def _parameters(record: Mixer, config: ModelConfig, layers: Sequence[Any]) -> tuple[str, bool]:
    counted = [record.parameters(config, i) for i in range(len(layers))]
    built = [sum(p.numel() for p in layer.parameters()) for layer in layers]
    return _both(counted, built)


def _decode_bytes(record: Mixer, config: ModelConfig, layers: Sequence[Any]) -> tuple[str, bool]:
    counted, allocated, constant = [], [], True
    for i, layer in enumerate(layers):
        for dtype in (torch.float32, torch.bfloat16):
            sizes = [record.decode_bytes(config, i, n, dtype.itemsize) for n in (4, TOKENS)]
            constant &= sizes[0][0] == sizes[1][0]
            counted += [sum(size) for size in sizes]
            allocated += [
                sum(t.nbytes for t in layer.new_state(1, n, dtype).values()) for n in (4, TOKENS)
            ]
    number, right = _both(counted, allocated)
    return number if constant else "the state's bytes grow with the context", right and constant


@torch.no_grad()
def _pieces(_record: Mixer, _config: ModelConfig, layers: Sequence[Any]) -> tuple[str, bool]:
    x = _stream()
    worst = 0.0
    for layer in layers:
        cache = _cache(layer)
        read = torch.cat([_extend(layer, piece, cache) for piece in x.split(PIECES, 1)], 1)
        worst = _worse(worst, read, layer(x, Documents()))
    return _within(worst)


@torch.no_grad()
def _padding(_record: Mixer, _config: ModelConfig, layers: Sequence[Any]) -> tuple[str, bool]:
    x, T = _stream(), max(PROMPTS)
    count = torch.tensor(PROMPTS)
    prompts = x[:, :T].clone()
    for row, n in enumerate(PROMPTS):
        prompts[row, n:] = 9.0
    worst = 0.0
    for layer in layers:
        cache = _cache(layer)
        read = _extend(layer, prompts, cache, count)
        following = torch.stack([x[row, n : n + 7] for row, n in enumerate(PROMPTS)])
        after = torch.cat([_extend(layer, token, cache) for token in following.split(1, 1)], 1)
        expected = layer(x, Documents())
        for row, n in enumerate(PROMPTS):
            worst = _worse(worst, read[row, :n], expected[row, :n])
            worst = _worse(worst, after[row], expected[row, n : n + 7])
    return _within(worst)


@torch.no_grad()
def _future(_record: Mixer, _config: ModelConfig, layers: Sequence[Any]) -> tuple[str, bool]:
    x = _stream()
    worst = 0.0
    for layer in layers:
        expected = layer(x, Documents())
        for t in (1, 33, TOKENS - 1):
            changed = x.clone()
            changed[:, t:] = 3.0 - 2.0 * x[:, t:]
            worst = _worse(worst, layer(changed, Documents())[:, :t], expected[:, :t])
    return _within(worst)


@torch.no_grad()
def _documents(_record: Mixer, _config: ModelConfig, layers: Sequence[Any]) -> tuple[str, bool]:
    x = _stream()
    starts = torch.zeros(x.shape[:2], dtype=torch.bool)
    starts[:, list(STARTS)] = True
    borders = (*STARTS, TOKENS)
    worst = 0.0
    for layer in layers:
        together = layer(x, Documents.from_starts(starts))
        alone = [layer(x[:, first:end], Documents()) for first, end in pairwise(borders)]
        worst = _worse(worst, together, torch.cat(alone, 1))
    return _within(worst)


def _gradients(_record: Mixer, _config: ModelConfig, layers: Sequence[Any]) -> tuple[str, bool]:
    without = []
    for layer in layers:
        out = layer(_stream(), Documents())
        (out * torch.randn(out.shape, generator=torch.Generator().manual_seed(1))).sum().backward()
        without += [
            name
            for name, p in layer.named_parameters()
            if p.grad is None or not p.grad.isfinite().all() or not p.grad.any()
        ]
    n = sum(len(list(layer.parameters())) for layer in layers)
    missing = ", ".join(dict.fromkeys(without))
    return f"none for {missing}" if missing else f"all {n}", not missing


def _undecayed(record: Mixer, _config: ModelConfig, layers: Sequence[Any]) -> tuple[str, bool]:
    names = {name for layer in layers for name, _ in layer.named_parameters()}
    missing = [name for name in record.undecayed if name not in names]
    return f"not {', '.join(missing)}" if missing else f"all {len(record.undecayed)}", not missing


def _role_names(record: Mixer, config: ModelConfig, layers: Sequence[Any]) -> tuple[str, bool]:
    if record.roles is None:
        return "no roles, so no parametrization=mup", True
    growth = Growth(width=2.0, head=1.0, base_width=config.d_model // 2)
    names = {name for layer in layers for name, _ in layer.named_parameters()}
    missing = sorted(names - record.roles(config, 0, growth).keys())
    return f"none for {', '.join(missing)}" if missing else f"all {len(names)}", not missing


LAYER_CHECKS: dict[str, Callable[[Mixer, ModelConfig, Sequence[Any]], tuple[str, bool]]] = {
    "parameters, counted = built": _parameters,
    "decode_bytes, counted = allocated": _decode_bytes,
    "decoding in pieces is one pass": _pieces,
    "padding leaves no trace": _padding,
    "no token changes what came before it": _future,
    "documents are read as if alone": _documents,
    "every parameter has a gradient": _gradients,
    "names in undecayed exist": _undecayed,
    "every parameter has a role, or none has": _role_names,
}


def _stream() -> Tensor:
    """[2, TOKENS, d] of unit variance, as a norm before the mixer gives."""
    return torch.randn(2, TOKENS, SIZE.d_model, generator=torch.Generator().manual_seed(2))


def _cache(layer: Any) -> Cache:
    return Cache([layer.new_state(2, TOKENS, torch.float32)], torch.zeros(2).long(), TOKENS)


def _extend(layer: Any, x: Tensor, cache: Cache, count: Tensor | None = None) -> Tensor:
    new = cache.take(len(x), x.shape[1], count)
    extend = layer.step_function() if new.step and hasattr(layer, "step_function") else layer.extend
    out = extend(x, cache.layers[0], new)
    cache.took(new, x.shape[1])
    return out


def _worse(worst: float, ours: Tensor, expected: Tensor) -> float:
    """The larger of `worst` and these tensors' difference; a nan is worse than all."""
    if ours.shape != expected.shape:
        raise ValueError(f"shape {tuple(ours.shape)} where {tuple(expected.shape)} should be")
    difference = float((ours - expected).abs().max() / expected.abs().max())
    return worst if difference <= worst else difference


def _within(worst: float) -> tuple[str, bool]:
    return f"{worst:.1e}, at most {TOLERANCE:.0e}", worst <= TOLERANCE


def _both(counted: Sequence[int], actual: Sequence[int]) -> tuple[str, bool]:
    """The first pair that differs, or else the largest."""
    pairs: Iterator[tuple[int, int]] = zip(counted, actual, strict=True)
    ours, there = max(pairs, key=lambda pair: (pair[0] != pair[1], pair))
    return (f"{ours:,} = {there:,}" if ours == there else f"{ours:,} for {there:,}"), ours == there
