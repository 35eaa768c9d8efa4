"""Which class of transformers expresses a model, and the same weights under its names.

Blocks as theirs: `olmo3` is our transformer, `olmo_hybrid` a mix of Gated DeltaNet and attention,
`granitemoehybrid` without experts a mix of Mamba2 alone. What none of them says exactly goes by
`archladder`, the file models/hf_remote.py, whose names are ours. Plain functions on ModelConfig
and dicts of tensors; transformers is not imported.
"""

from __future__ import annotations

import dataclasses
import math
import reprlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from models.config import INITS, ModelConfig, round_up
from models.errors import SettingError, one_of
from models.mixers import MIXERS

ARCHLADDER = "archladder"
CLASSES = {
    "olmo3": "Olmo3ForCausalLM",
    "olmo_hybrid": "OlmoHybridForCausalLM",
    "granitemoehybrid": "GraniteMoeHybridForCausalLM",
    ARCHLADDER: "ArchladderForCausalLM",
}
EXPRESSED = {"attn", "gdn", "mamba2"}
OLMO_HYBRID_GATED_NORM_EPS = 1e-5  # fixed in its code
# Far above any model's, so that a number out of a broken file neither overflows nor takes hours.
LARGEST, MOST_LAYERS = 1 << 24, 4096

_TOP = {
    "embedding.weight": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "head.weight": "lm_head.weight",
}
_MLP = {
    f"mlp.{name}.weight": f"mlp.{name}.weight" for name in ("gate_proj", "up_proj", "down_proj")
}
_LAYER = {
    "attn": {
        **{
            f"mixer.{name}.weight": f"self_attn.{name}.weight"
            for name in ("q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm")
        },
        "mixer_norm.weight": "post_attention_layernorm.weight",
        "mlp_norm.weight": "post_feedforward_layernorm.weight",
        **_MLP,
    },
    "gdn": {
        **{
            f"mixer.{name}.weight": f"linear_attn.{name}.weight"
            for name in ("q_proj", "k_proj", "v_proj", "a_proj", "b_proj", "g_proj", "o_proj")
        },
        "mixer.conv": "linear_attn.conv1d.weight",
        "mixer.A_log": "linear_attn.A_log",
        "mixer.dt_bias": "linear_attn.dt_bias",
        "mixer.o_norm": "linear_attn.o_norm.weight",
        "mixer_norm.weight": "input_layernorm.weight",
        "mlp_norm.weight": "post_attention_layernorm.weight",
        **_MLP,
    },
    "mamba2": {
        **{
            f"mixer.{name}": f"mamba.{name}"
            for name in (
                "in_proj.weight", "in_proj.bias", "out_proj.weight", "out_proj.bias",
                "A_log", "dt_bias", "D",
            )
        },
        "mixer.conv": "mamba.conv1d.weight",
        "mixer.conv_bias": "mamba.conv1d.bias",
        "mixer.o_norm": "mamba.norm.weight",
        "mixer_norm.weight": "input_layernorm.weight",
        "mlp_norm.weight": "post_attention_layernorm.weight",
        "mlp.gate_proj.weight": "shared_mlp.input_linear.weight/0",
        "mlp.up_proj.weight": "shared_mlp.input_linear.weight/1",
        "mlp.down_proj.weight": "shared_mlp.output_linear.weight",
    },
}  # fmt: skip


def model_type(config: ModelConfig) -> str:
    """The `model_type` that expresses a model exactly: one of CLASSES.

    Raises SettingError for a mixer that no export knows.
    """
    mixers = set(config.layers)
    if mixers - EXPRESSED:
        raise one_of("mixer for an export", ", ".join(sorted(mixers - EXPRESSED)), EXPRESSED)
    windows = {w for w in config.windows if w}
    if mixers == {"attn"} and config.rope_theta is not None and len(windows) <= 1:
        return "olmo3"
    if (
        mixers == {"attn", "gdn"}
        and config.gdn_output_gate
        and not windows
        and config.gated_norm_eps == OLMO_HYBRID_GATED_NORM_EPS
    ):
        return "olmo_hybrid"
    inner = config.n_heads * config.mamba2_head_dim
    if mixers == {"mamba2"} and inner % config.d_model == 0:
        return "granitemoehybrid"
    return ARCHLADDER


def library_config(config: ModelConfig, context: int, eos: int | None) -> dict[str, Any]:
    """config.json of a model: `context` the tokens it was trained on at a time, `eos` an id."""
    kind = model_type(config)
    common: dict[str, Any] = {
        "model_type": kind,
        "architectures": [CLASSES[kind]],
        "dtype": "float32",
        "vocab_size": config.vocab_size,
        "max_position_embeddings": context,
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "eos_token_id": eos,
        # No pad of its own: an embedding row named here would never be trained on.
        "pad_token_id": None,
    }
    if kind == ARCHLADDER:
        module = "modeling_archladder"
        return {
            **common,
            "auto_map": {
                "AutoConfig": f"{module}.ArchladderConfig",
                "AutoModelForCausalLM": f"{module}.{CLASSES[kind]}",
            },
            "architecture": plain(config),
        }
    common |= {
        "hidden_size": config.d_model,
        "intermediate_size": config.mlp_hidden,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_eps,
        "attention_bias": False,
    }
    # A null here would be read as a base of 10,000: no positions is a null inside.
    rope = {"rope_type": "default", "rope_theta": config.rope_theta}
    if kind == "olmo3":
        return {
            **common,
            "layer_types": [
                "sliding_attention" if window else "full_attention" for window in config.windows
            ],
            # Read for a mask even where no layer slides.
            "sliding_window": max(config.windows) or context,
            "rope_parameters": {"full_attention": rope, "sliding_attention": rope},
        }
    if kind == "olmo_hybrid":
        types = {"attn": "full_attention", "gdn": "linear_attention"}
        return {
            **common,
            "layer_types": [types[mixer] for mixer in config.layers],
            "rope_parameters": rope,
            "linear_num_key_heads": config.n_heads,
            "linear_num_value_heads": config.n_heads,
            "linear_key_head_dim": config.gdn_key_dim,
            "linear_value_head_dim": config.gdn_value_dim,
            "linear_conv_kernel_dim": config.conv_kernel,
            "linear_allow_neg_eigval": config.gdn_allow_neg_eigval,
        }
    # Granite has one eps for all norms, we one for the gated norms and a smaller one for the
    # others. A residual stream c times ours, with eps c² times ours in the norms that read it,
    # gives what those norms gave; so c² is the ratio, and c multiplies all that is added up.
    c = math.sqrt(config.gated_norm_eps / config.norm_eps)
    return {
        **common,
        "rms_norm_eps": config.gated_norm_eps,
        "embedding_multiplier": c,
        "residual_multiplier": c,
        "attention_multiplier": 1.0,
        "logits_scaling": 1.0,
        "shared_intermediate_size": config.mlp_hidden,
        "num_local_experts": 0,
        "num_experts_per_tok": 0,
        "layer_types": ["linear_attention"] * config.n_layers,
        "position_embedding_type": None,
        "mamba_n_heads": config.n_heads,
        "mamba_d_head": config.mamba2_head_dim,
        "mamba_n_groups": 1,
        "mamba_d_state": config.mamba2_state,
        "mamba_d_conv": config.conv_kernel,
        "mamba_expand": config.n_heads * config.mamba2_head_dim // config.d_model,
        "mamba_chunk_size": 64,
        "mamba_conv_bias": True,
        "mamba_proj_bias": True,
        # Its cache needs an attention layer to count tokens by.
        "use_cache": False,
    }


def to_library(config: ModelConfig, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our weights under the names and shapes of the class that `model_type` names.

    The convolution of Gated DeltaNet is written as three, as published checkpoints have it.
    """
    kind = model_type(config)
    if kind == ARCHLADDER:
        return dict(weights)
    renamed = {}
    for name, weight in weights.items():
        target = _library_name(config, name)
        renamed[target] = weight.unsqueeze(1) if target.endswith("conv1d.weight") else weight
    out: dict[str, Tensor] = {}
    for name, weight in renamed.items():
        if name.endswith("linear_attn.conv1d.weight"):
            key, value = config.n_heads * config.gdn_key_dim, config.n_heads * config.gdn_value_dim
            for part, piece in zip("qkv", weight.split([key, key, value]), strict=True):
                out[name.replace("conv1d", f"{part}_conv1d")] = piece.contiguous()
        elif name.endswith("/0"):
            out[name[:-2]] = torch.cat([weight, renamed[name[:-1] + "1"]])
        elif not name.endswith("/1"):
            out[name] = weight
    return out


def from_library(
    kind: str, config: ModelConfig, weights: Mapping[str, Tensor], ours: Mapping[str, torch.Size]
) -> dict[str, Tensor]:
    """The inverse of `to_library`; `ours` are the shapes of our parameters by name.

    The convolution may be one or three, the norms named as either kind of checkpoint names them.
    Raises SettingError naming the tensors that are missing, left over or of another shape.
    """
    if kind == ARCHLADDER:
        theirs, names = dict(weights), {name: name for name in ours}
    else:
        theirs = _joined(weights)
        names = {name: _library_name(config, name) for name in ours}
    used = {name.split("/")[0] for name in names.values()}
    for word, found in (("lacks", used - set(theirs)), ("has no use for", set(theirs) - used)):
        if found:
            raise SettingError(
                f"the folder's model {word} {len(found)} tensors that a {kind} model "
                f"{'needs' if word == 'lacks' else 'does not have'}, such as {min(found)}."
            )
    out = {}
    for name, shape in ours.items():
        source, _, half = names[name].partition("/")
        weight = theirs[source]
        if source.endswith("conv1d.weight") and weight.dim() == 3 and weight.shape[1] == 1:
            weight = weight.squeeze(1)
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


def from_library_config(library: Mapping[str, Any]) -> ModelConfig:
    """Our ModelConfig from a config.json as transformers reads it: one of CLASSES.

    Raises SettingError naming what our model cannot be.
    """
    kind = library.get("model_type")
    if kind == ARCHLADDER:
        return from_plain(library.get("architecture"), "config.json's architecture")
    if not isinstance(kind, str) or kind not in CLASSES:
        raise one_of("config.json's model_type", kind, CLASSES)
    if kind == "granitemoehybrid":
        return _from_granite(library)
    d, H = _count(library, "hidden_size"), _count(library, "num_attention_heads")
    required = {"attention_bias": False, "head_dim": d // H}
    if kind == "olmo_hybrid":
        required |= {"linear_num_key_heads": H, "linear_num_value_heads": H}
    _require(library, required)
    mixers = {"full_attention": "attn", "sliding_attention": "attn", "linear_attention": "gdn"}
    for layer in library["layer_types"]:
        if layer not in mixers:
            raise one_of("config.json's layer_types", layer, mixers)
    key_dim = library.get("linear_key_head_dim") or int(0.75 * d / H)
    config = ModelConfig(
        vocab_size=library["vocab_size"],
        d_model=d,
        n_heads=H,
        n_kv_heads=library.get("num_key_value_heads") or H,
        mlp_hidden=library["intermediate_size"],
        layers=tuple(mixers[kind] for kind in library["layer_types"]),
        windows=tuple(
            library["sliding_window"] if kind == "sliding_attention" else 0
            for kind in library["layer_types"]
        ),
        rope_theta=_rope_theta(library),
        init="normal",
        gdn_key_dim=key_dim,
        gdn_value_dim=library.get("linear_value_head_dim") or 2 * key_dim,
        gdn_output_gate=True,
        gdn_allow_neg_eigval=library.get("linear_allow_neg_eigval", True),
        # No layer of theirs has them.
        mamba2_state=128,
        mamba2_head_dim=2 * d // H,
        conv_kernel=library.get("linear_conv_kernel_dim", 4),
        norm_eps=library["rms_norm_eps"],
        gated_norm_eps=OLMO_HYBRID_GATED_NORM_EPS,
    )
    return _checked(config, "config.json")


def _from_granite(library: Mapping[str, Any]) -> ModelConfig:
    d, H = _count(library, "hidden_size"), _count(library, "mamba_n_heads")
    n = _count(library, "num_hidden_layers", MOST_LAYERS)
    c = _positive(library["embedding_multiplier"], "config.json's embedding_multiplier")
    eps = _positive(library["rms_norm_eps"], "config.json's rms_norm_eps")
    required = {
        "layer_types": ["linear_attention"] * n,
        "num_local_experts": 0,
        "mamba_n_groups": 1,
        "mamba_conv_bias": True,
        "mamba_proj_bias": True,
        "residual_multiplier": c,
        "logits_scaling": 1.0,
    }
    _require(library, required)
    key_dim = round_up(0.75 * d / H, 16)
    config = ModelConfig(
        vocab_size=library["vocab_size"],
        d_model=d,
        n_heads=H,
        n_kv_heads=H,
        mlp_hidden=library["shared_intermediate_size"],
        layers=("mamba2",) * n,
        windows=(0,) * n,
        rope_theta=None,
        init="normal",
        # No layer of theirs has them.
        gdn_key_dim=key_dim,
        gdn_value_dim=2 * key_dim,
        gdn_output_gate=True,
        gdn_allow_neg_eigval=True,
        mamba2_state=library["mamba_d_state"],
        mamba2_head_dim=library["mamba_d_head"],
        conv_kernel=library["mamba_d_conv"],
        # library_config says why; the root of ten has more digits than the eps it stands for.
        norm_eps=float(f"{eps / c**2:.12g}"),
        gated_norm_eps=eps,
    )
    return _checked(config, "config.json")


def _require(library: Mapping[str, Any], required: Mapping[str, Any]) -> None:
    for key, value in {"tie_word_embeddings": False, "hidden_act": "silu", **required}.items():
        if library.get(key, value) not in (value, None):
            raise SettingError(
                f"config.json's {key}={library[key]} cannot be ours; valid: {value}."
            )


def plain(config: ModelConfig) -> dict[str, Any]:
    """A ModelConfig as YAML and JSON have it."""
    return {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in dataclasses.asdict(config).items()
    }


def from_plain(values: Any, where: str) -> ModelConfig:
    """The inverse; a model from before grouped keys and values has as many as heads.

    Raises SettingError where `values`, found at `where`, are not a model's.
    """
    fields = {field.name: field for field in dataclasses.fields(ModelConfig)}
    if not isinstance(values, Mapping):
        raise SettingError(f"{where} is not a group of settings.")
    values = {"n_kv_heads": values.get("n_heads"), **values}
    optional = {n for n, f in fields.items() if f.default is not dataclasses.MISSING}
    for word, names in (
        ("holds", set(values) - set(fields)),
        ("lacks", set(fields) - optional - set(values)),
    ):
        if names:
            raise SettingError(
                f"{where} {word} {min(map(str, names))}; a model has {', '.join(sorted(fields))}."
            )
    content: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in values.items()
    }
    return _checked(ModelConfig(**content), where)


def _checked(config: ModelConfig, where: str) -> ModelConfig:
    """The same config, or SettingError naming what in it no model has; `where` it was read."""

    def refuse(name: str, valid: str) -> SettingError:
        return SettingError(
            f"{where}'s {name}={_told(getattr(config, name))} cannot be used; valid: {valid}."
        )

    for name in (
        "vocab_size", "d_model", "n_heads", "n_kv_heads", "mlp_hidden", "gdn_key_dim",
        "gdn_value_dim", "mamba2_state", "mamba2_head_dim", "conv_kernel",
    ):  # fmt: skip
        whole_number(getattr(config, name), f"{where}'s {name}")
    for name in ("norm_eps", "gated_norm_eps", *(["rope_theta"] if config.rope_theta else [])):
        _positive(getattr(config, name), f"{where}'s {name}")
    for name in ("gdn_output_gate", "gdn_allow_neg_eigval"):
        if not isinstance(getattr(config, name), bool):
            raise refuse(name, "true, false")
    if config.rope_theta is not None and not config.rope_theta:
        raise refuse("rope_theta", "a positive finite number, or null")
    if config.init not in INITS:
        raise refuse("init", ", ".join(INITS))
    layers, windows = config.layers, config.windows
    known = isinstance(layers, tuple) and all(isinstance(m, str) and m in MIXERS for m in layers)
    if not known or not 0 < len(layers) <= MOST_LAYERS:
        raise refuse("layers", f"1 to {MOST_LAYERS} of {', '.join(MIXERS)}")
    if not isinstance(windows, tuple) or len(windows) != len(layers):
        raise refuse("windows", f"{len(layers)} of them, one for each layer")
    for window in windows:
        whole_number(window, f"{where}'s windows", least=0)
    if "attn" in layers:
        rotated = config.rope_theta is not None
        if config.d_model % config.n_heads or (rotated and config.head_dim % 2):
            raise refuse(
                "n_heads", f"what divides d_model={config.d_model} into heads of an even width"
            )
        if config.n_heads % config.n_kv_heads:
            raise refuse("n_kv_heads", f"what divides n_heads={config.n_heads}")
    return config


def whole_number(value: Any, what: str, most: int = LARGEST, least: int = 1) -> int:
    """`value`, or SettingError where it is no whole number in that range."""
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise SettingError(
            f"{what}={_told(value)} cannot be used; valid: a whole number from {least} to {most}."
        )
    return value


def _told(value: Any) -> str:
    """A value of a file, however large, in a few words."""
    return value[:60] if isinstance(value, str) else reprlib.repr(value)


def _count(library: Mapping[str, Any], key: str, most: int = LARGEST) -> int:
    return whole_number(library.get(key), f"config.json's {key}", most)


def _positive(value: Any, what: str) -> float:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 < value < math.inf:
        raise SettingError(
            f"{what}={_told(value)} cannot be used; valid: a positive finite number."
        )
    return value


def _library_name(config: ModelConfig, name: str) -> str:
    if name in _TOP:
        return _TOP[name]
    _, index, rest = name.split(".", 2)
    return f"model.layers.{index}.{_LAYER[config.layers[int(index)]][rest]}"


def _joined(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names as the classes have them: one convolution, and norms by their positions."""
    out: dict[str, Tensor] = {}
    pieces: dict[str, dict[str, Tensor]] = {}
    for name, weight in weights.items():
        name = name.replace("attention_layer_norm", "input_layernorm")
        name = name.replace("feedforward_layer_norm", "post_attention_layernorm")
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


def _rope_theta(library: Mapping[str, Any]) -> float | None:
    rope = library.get("rope_parameters") or {}
    types = ("full_attention", "sliding_attention")
    by_type = [rope[t] for t in types if t in rope]
    # Beside entries by type transformers keeps others, and reads nothing of them.
    if rest := {key: value for key, value in rope.items() if key not in types}:
        by_type.append(rest)
    wanted = [
        r for r in by_type if isinstance(r, dict) and r.get("rope_type", "default") == "default"
    ]
    bases = [r.get("rope_theta") for r in wanted]
    if len(wanted) < len(by_type) or any(base != bases[0] for base in bases):
        raise SettingError(
            f"config.json's rope_parameters={rope} cannot be ours; valid: one rope_theta, "
            "and rope_type default."
        )
    return bases[0] if bases else None
