"""A ModelConfig as plain values, read back from records and from other people's files.

Models written before every mixer had settings of its own are read as what they were.
"""

from __future__ import annotations

import dataclasses
import math
import reprlib
import typing
from collections.abc import Collection, Mapping
from typing import Any

from models.config import INITS, MLP, MLPS, NORMS, LayerKind, ModelConfig, MupBase
from models.errors import SettingError
from models.mixers import lookup
from models.settings import from_dict, merge

VERSION = 2
"""Of the layout of a spec: ablations/versions.py has what each said."""
# Far above any model's, so that a number out of a broken file neither overflows nor takes hours.
LARGEST, MOST_LAYERS = 1 << 24, 4096


def model_from_plain(
    values: Any, where: str, packages: Collection[str] | None = None
) -> ModelConfig:
    """The inverse of `models.settings.to_dict` for a ModelConfig; `where` it was read, for errors.

    packages: of those that the values name for their mixers, which may be imported; None: all, as
    in records of one's own. Raises SettingError where `values` are not a model's, naming what no
    model has.
    """
    if not isinstance(values, Mapping):
        raise SettingError(f"{where} is not a group of settings.")
    if packages is not None:
        _check_packages(values.get("kinds"), where, packages)
    values = model_from_version_1(values, where)
    fields = {field.name: field for field in dataclasses.fields(ModelConfig)}
    optional = {n for n, f in fields.items() if f.default is not dataclasses.MISSING}
    for word, names in (
        ("holds", set(values) - set(fields)),
        ("lacks", set(fields) - optional - set(values)),
    ):
        if names:
            raise SettingError(
                f"{where} {word} {min(map(str, names))}; a model has {', '.join(sorted(fields))}."
            )
    kinds = values["kinds"]
    if not isinstance(kinds, Mapping):
        raise _refuse(where, "kinds", kinds, "a group of layer kinds")
    built = {name: _kind(kind, f"{where}'s kinds.{name}") for name, kind in kinds.items()}
    layers = values["layers"]
    known = isinstance(layers, list | tuple) and all(
        isinstance(kind, str) and kind in built for kind in layers
    )
    if not known or not 0 < len(layers) <= MOST_LAYERS or set(layers) != set(built):
        raise _refuse(where, "layers", layers, f"1 to {MOST_LAYERS} of {', '.join(built)}")
    for name, kind in built.items():
        if (name == MLP) != (kind.mixer == MLP):
            raise _refuse(where, f"kinds.{name}.mixer", kind.mixer, f"{MLP} for {MLP} alone")
    base = values.get("mup")
    config = ModelConfig(
        **{
            **values,
            "kinds": built,
            "layers": tuple(layers),
            "mup": None if base is None else from_dict(MupBase, base, f"{where}'s mup"),
        }
    )
    return checked(config, where)


def _check_packages(kinds: Any, where: str, packages: Collection[str]) -> None:
    for kind in kinds.values() if isinstance(kinds, Mapping) else ():
        mixer = kind.get("mixer") if isinstance(kind, Mapping) else None
        top = mixer.partition(".")[0] if isinstance(mixer, str) and "." in mixer else ""
        if top and top not in packages:
            raise SettingError(
                f"{where} names the mixer {shortened(mixer)}, and to open it would run code of the "
                f"package {shortened(top)}; where you trust that, give mixers={shortened(top)}."
            )


def model_of_spec(spec: Mapping[str, Any]) -> Any:
    """The model of a run's spec, with fields at their defaults, which a spec lists apart.

    Raises SettingError for a spec of a later version.
    """
    check_version(spec)
    return merge(spec["model"], (spec.get("defaults") or {}).get("model", {}))


def check_version(spec: Mapping[str, Any]) -> int:
    """The version of a spec's layout. Raises SettingError for one that this code does not know."""
    version = spec.get("version", 1)
    if not isinstance(version, int) or not 1 <= version <= VERSION:
        raise SettingError(
            f"spec.yaml is of version {version!r:.20}, and this code reads 1 to {VERSION}; use the "
            "code that wrote it, or a later one."
        )
    return version


def _kind(content: Any, where: str) -> LayerKind:
    kind = from_dict(LayerKind, content, where)
    if kind.norm not in NORMS:
        raise _refuse(where, "norm", kind.norm, ", ".join(NORMS))
    if kind.mixer == MLP:
        return LayerKind(MLP, kind.norm)
    saved = lookup(kind.mixer).saved
    return LayerKind(kind.mixer, kind.norm, from_dict(saved, kind.settings, f"{where}.settings"))


def checked(config: ModelConfig, where: str) -> ModelConfig:
    """The same config, or SettingError naming what in it no model has; `where` it was read."""
    for name in ("vocab_size", "d_model", "n_heads"):
        whole_number(getattr(config, name), f"{where}'s {name}")
    whole_number(config.mlp_hidden, f"{where}'s mlp_hidden", least=config.mlp != "none")
    positive(config.norm_eps, f"{where}'s norm_eps")
    for name, valid in (("init", INITS), ("mlp", tuple(MLPS))):
        if getattr(config, name) not in valid:
            raise _refuse(where, name, getattr(config, name), ", ".join(valid))
    if config.mup is not None:
        for field in dataclasses.fields(config.mup):
            if (value := getattr(config.mup, field.name)) is not None:
                whole_number(value, f"{where}'s mup.{field.name}")
    if config.mlp == "none" and MLP in config.kinds:
        raise _refuse(where, "mlp", config.mlp, "a kind of MLP, as some layers are MLPs")
    for kind in config.kinds.values():
        if kind.mixer != MLP:
            record = lookup(kind.mixer)
            _check_numbers(kind.settings, where)
            if problem := record.problem(config, kind.settings):
                raise SettingError(f"{where}'s {problem}")
    return config


def _check_numbers(settings: Any, where: str) -> None:
    """Every number of a mixer's settings finite and no larger than any model's; what else it may
    be is the mixer's to say."""
    hints = typing.get_type_hints(type(settings))
    for field in dataclasses.fields(settings):
        value, hint = getattr(settings, field.name), hints[field.name]
        what = f"{where}'s {field.name}"
        if value is None:
            continue
        if hint in (int, float, float | None):
            _number(value, what, hint is int)
        elif hint == tuple[int, ...]:
            for item in value:
                _number(item, what, whole=True)


def _number(value: Any, what: str, whole: bool) -> None:
    kind = "whole number" if whole else "finite number"
    right = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
    if not right or not abs(value) <= LARGEST:
        raise SettingError(
            f"{what}={shortened(value)} cannot be used; valid: a {kind} up to {LARGEST}."
        )


def whole_number(value: Any, what: str, most: int = LARGEST, least: int = 1) -> int:
    """`value`, or SettingError where it is no whole number in that range."""
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise SettingError(
            f"{what}={shortened(value)} cannot be used; valid: a whole number from {int(least)} to "
            f"{most}."
        )
    return value


def positive(value: Any, what: str) -> float:
    """`value`, or SettingError where it is no positive finite number."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 < value < math.inf:
        raise SettingError(
            f"{what}={shortened(value)} cannot be used; valid: a positive finite number."
        )
    return value


def shortened(value: Any) -> str:
    """A value of a file, however large, in a few words."""
    return value[:60] if isinstance(value, str) else reprlib.repr(value)


def _refuse(where: str, name: str, value: Any, valid: str) -> SettingError:
    return SettingError(f"{where}'s {name}={shortened(value)} cannot be used; valid: {valid}.")


NORMS_OF_VERSION_1 = {"attn": "outputs", "gdn": "inputs", "mamba2": "inputs"}


def model_from_version_1(values: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """A model as it is written now, from one with the settings of all mixers side by side."""
    if "kinds" in values or "layers" not in values:
        return values
    old = dict(values)
    layers = old.pop("layers")
    if not isinstance(layers, list | tuple) or not all(isinstance(m, str) for m in layers):
        raise _refuse(where, "layers", layers, "a list of mixers")
    if set(layers) - NORMS_OF_VERSION_1.keys():
        raise _refuse(where, "layers", layers, f"layers of {', '.join(NORMS_OF_VERSION_1)}")
    windows = old.pop("windows", [0] * len(layers))
    if not isinstance(windows, list | tuple) or len(windows) != len(layers) > 0:
        raise _refuse(where, "windows", windows, f"{len(layers)} of them, one for each layer")
    shared = {
        new: old.pop(name)
        for name, new in (("conv_kernel", "conv_kernel"), ("gated_norm_eps", "norm_eps"))
        if name in old
    }
    settings: dict[str, dict[str, Any]] = {
        "attn": {
            # A model from before grouped keys and values has as many heads of them.
            "n_kv_heads": old.pop("n_kv_heads", old.get("n_heads")),
            "rope_theta": old.pop("rope_theta", None),
            "windows": list(windows) if any(windows) else [],
        },
        "gdn": dict(shared),
        "mamba2": dict(shared),
    }
    for mixer, names in (
        ("gdn", ("key_dim", "value_dim", "output_gate", "allow_neg_eigval")),
        ("mamba2", ("state", "head_dim")),
    ):
        for name in names:
            if f"{mixer}_{name}" in old:
                settings[mixer][name] = old.pop(f"{mixer}_{name}")
    kinds = {
        mixer: {"mixer": mixer, "norm": NORMS_OF_VERSION_1[mixer], "settings": settings[mixer]}
        for mixer in dict.fromkeys(layers)
    }
    return {**old, "layers": list(layers), "kinds": kinds}
