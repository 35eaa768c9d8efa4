"""The same weights under the names of a class of transformers, and under ours again."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from models.config import ModelConfig
from models.errors import SettingError
from models.hf.native.record import NativeClass

MLP_NAMES = {
    f"mlp.{name}.weight": f"mlp.{name}.weight" for name in ("gate_proj", "up_proj", "down_proj")
}


def class_name(native: NativeClass, config: ModelConfig, name: str) -> str:
    """The class's name of one of our weights."""
    if name in native.top_names:
        return native.top_names[name]
    _, index, rest = name.split(".", 2)
    return f"model.layers.{index}.{native.layer_names[config.kind(int(index)).mixer][rest]}"


def to_folder(
    native: NativeClass, config: ModelConfig, weights: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Our weights under the names and shapes that folders of the class hold."""
    renamed = {}
    for name, weight in weights.items():
        target = class_name(native, config, name)
        renamed[target] = weight.unsqueeze(1) if target.endswith("conv1d.weight") else weight
    out: dict[str, Tensor] = {}
    for name, weight in renamed.items():
        if name.endswith("/0"):
            out[name[:-2]] = torch.cat([weight, renamed[name[:-1] + "1"]])
        elif not name.endswith("/1"):
            out[name] = weight
    return native.split(config, native.pack(config, out))


def from_folder(
    native: NativeClass | None,
    config: ModelConfig,
    weights: Mapping[str, Tensor],
    shapes: Mapping[str, torch.Size],
) -> dict[str, Tensor]:
    """The inverse; `shapes` are those of our parameters by name; `native` None: names are ours.

    Raises SettingError naming the tensors that are missing, left over or of another shape.
    """
    theirs = native.unpack(config, native.join(weights)) if native else dict(weights)
    names = {name: class_name(native, config, name) if native else name for name in shapes}
    needed = {name.split("/")[0] for name in names.values()}
    for word, odd in (("lacks", needed - set(theirs)), ("has no use for", set(theirs) - needed)):
        if odd:
            raise SettingError(
                f"the folder's model {word} {len(odd)} tensors that a "
                f"{native.model_type if native else 'archladder'} model "
                f"{'needs' if word == 'lacks' else 'does not have'}, such as {min(odd)}."
            )
    out = {}
    for name, shape in shapes.items():
        source, _, half = names[name].partition("/")
        weight = theirs[source]
        if [n for n in weight.shape if n > 1] == [n for n in shape if n > 1] and not half:
            weight = weight.view(shape)  # a class may hold dimensions of 1 that we do not
        expected = [2 * shape[0], *shape[1:]] if half else list(shape)
        if list(weight.shape) != expected:
            raise SettingError(
                f"the folder's {source} has shape {list(theirs[source].shape)}, but its "
                f"config.json makes it {expected}."
            )
        if half:
            weight = weight.chunk(2)[int(half)]
        # float32 holds every bfloat16 and float16 exactly.
        out[name] = weight.to(torch.float32).clone()
    return out


def split_convolutions(weights: Mapping[str, Tensor], key: int, value: int) -> dict[str, Tensor]:
    """One convolution over `key` channels of queries, as many of keys, and `value` of values, as
    three."""
    out: dict[str, Tensor] = {}
    for name, weight in weights.items():
        if not name.endswith(".conv1d.weight"):
            out[name] = weight
            continue
        for part, piece in zip("qkv", weight.split([key, key, value]), strict=True):
            out[name.replace("conv1d", f"{part}_conv1d")] = piece.contiguous()
    return out


def join_convolutions(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse."""
    out: dict[str, Tensor] = {}
    pieces: dict[str, dict[str, Tensor]] = {}
    for name, weight in weights.items():
        stem, _, part = name.removesuffix("_conv1d.weight").rpartition(".")
        if name.endswith("_conv1d.weight") and part in ("q", "k", "v"):
            pieces.setdefault(f"{stem}.conv1d.weight", {})[part] = weight
        else:
            out[name] = weight
    for name, parts in pieces.items():
        if set(parts) == {"q", "k", "v"}:
            if len({(p.dim(), p.shape[1:]) for p in parts.values()}) > 1 or not parts["q"].dim():
                shapes = ", ".join(str(list(parts[part].shape)) for part in "qkv")
                raise SettingError(f"the folder's parts of {name} have shapes {shapes}.")
            out[name] = torch.cat([parts["q"], parts["k"], parts["v"]])
    return out
