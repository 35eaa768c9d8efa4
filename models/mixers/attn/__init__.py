"""Softmax attention, by default as in Olmo 3: norms of queries and keys over the full projection,
rotary positions, the block's norms on its outputs, no biases."""

from __future__ import annotations

from dataclasses import dataclass

from models.attention.windows import check_window, layer_windows, mean_keys, windows_problem
from models.config import ModelConfig
from models.errors import SettingError, one_of
from models.mixer import FP32_BYTES, Growth, Mixer, Place, Role, not_positive, vectors

QK_NORMS = ("full", "head", "none")


@dataclass(frozen=True)
class Options:
    """What a mix may set."""

    rotary: float = 1.0
    """Share of each head's width that rotary positions turn; 0: attention without positions,
    and the recurrent layers order the tokens."""
    rotary_exact: bool = True
    """Refuse a share that makes no pairs of channels; false: round it down to pairs."""
    qk_norm: str = "full"
    """Norms of queries and keys: over the `full` projection, over each `head`, or `none`."""
    window: int | None = None
    """Tokens that each of these layers sees, itself included; 0 for all; None: what the protocol
    says by the layer's index."""
    window_share: float | None = None
    """The same as a share of the training context, which serves every size."""
    output_gate: bool = False
    """The heads' outputs times sigmoid(W x), channel by channel (Qiu et al. 2025)."""

    def __post_init__(self) -> None:
        if not 0 <= self.rotary <= 1:
            raise SettingError(f"rotary={self.rotary:g} must be a share of the head, 0 to 1.")
        if self.qk_norm not in QK_NORMS:
            raise one_of("qk_norm", self.qk_norm, QK_NORMS)
        check_window(self.window, self.window_share)


@dataclass(frozen=True)
class Settings:
    """What the layer reads."""

    n_kv_heads: int
    rope_theta: float | None
    """Base of the rotary angles; None: attention without positions."""
    windows: tuple[int, ...] = ()
    """Tokens seen by each layer of the model, by its index, 0 for all; empty: all everywhere."""
    rotary: float = 1.0
    qk_norm: str = "full"
    output_gate: bool = False

    def window(self, layer: int) -> int:
        return self.windows[layer] if self.windows else 0


def _rotated_width(rotary: float, head_dim: int) -> float:
    """Channels of a head that rotary positions turn, where that is a whole number."""
    return round(rotary * head_dim, 6)  # 0.55 of 40 is 22, and in floating point a little more


def settings(options: Options, _rules: object, place: Place) -> Settings:
    size = place.size
    width = _rotated_width(options.rotary, size.head_dim)
    rotary = options.rotary
    if not options.rotary_exact and width % 2:
        width = max(2, 2 * (width // 2))
        rotary = width / size.head_dim
    if width % 2 or (options.rotary and not width):
        raise SettingError(
            f"rotary={options.rotary:g} turns {width:g} of the {size.head_dim} channels "
            f"of a head of size={size.name}; rotary positions turn pairs, so give a share that "
            "makes an even number."
        )
    return Settings(
        n_kv_heads=size.n_kv_heads or size.n_heads,
        rope_theta=place.rope_theta if options.rotary else None,
        windows=layer_windows(options.window, place, options.window_share),
        rotary=rotary or 1.0,
        qk_norm=options.qk_norm,
        output_gate=options.output_gate,
    )


def problem(config: ModelConfig, s: Settings) -> str:
    if words := not_positive(s, "n_kv_heads", "rope_theta"):
        return words
    if not 0 < s.rotary <= 1:
        return f"rotary={s.rotary} cannot be used; valid: a share of the head, above 0 to 1."
    width = _rotated_width(s.rotary, config.head_dim)
    odd = s.rope_theta is not None and (width % 2 or not width)
    if odd and s.rotary < 1:
        return (
            f"rotary={s.rotary} cannot be used; valid: a share that makes an even number of the "
            f"{config.head_dim} channels of a head."
        )
    if config.d_model % config.n_heads or odd:
        return (
            f"n_heads={config.n_heads} cannot be used; valid: what divides "
            f"d_model={config.d_model} into heads of an even width."
        )
    if config.n_heads % s.n_kv_heads:
        return (
            f"n_kv_heads={s.n_kv_heads} cannot be used; valid: what divides "
            f"n_heads={config.n_heads}."
        )
    if words := windows_problem(s.windows, config.n_layers):
        return words
    if s.qk_norm not in QK_NORMS:
        return f"qk_norm={s.qk_norm:.60} cannot be used; valid: {', '.join(QK_NORMS)}."
    return ""


def parameters(config: ModelConfig, layer: int) -> int:
    d, s = config.d_model, config.settings(layer)
    kv = s.n_kv_heads * config.head_dim
    norms = {"full": d + kv, "head": 2 * config.head_dim, "none": 0}[s.qk_norm]
    gate = d * d if s.output_gate else 0
    return 2 * d * d + 2 * d * kv + gate + norms  # q, o; k, v; gate


def flops(config: ModelConfig, layer: int, context: int) -> float:
    d, s = config.d_model, config.settings(layer)
    kv = s.n_kv_heads * config.head_dim
    keys = mean_keys(s.window(layer), context)
    gate = d * d if s.output_gate else 0
    return 2 * (2 * d * d + 2 * d * kv + gate + 2 * d * keys)


def products(config: ModelConfig, layer: int) -> list[tuple[int, int]]:
    d, s = config.d_model, config.settings(layer)
    kv = s.n_kv_heads * config.head_dim
    gate = [(d, d)] if s.output_gate else []
    return [(d, d), (d, kv), (d, kv), *gate, (d, d)]  # q, k, v; gate; o


def decode_bytes(
    config: ModelConfig, layer: int, context: int, element_bytes: int
) -> tuple[int, int]:
    s = config.settings(layer)
    kept = min(s.window(layer) or context, context)
    return 0, 2 * s.n_kv_heads * config.head_dim * kept * element_bytes


def activation_bytes(config: ModelConfig, layer: int, _context: int, element_bytes: int) -> float:
    d, s = config.d_model, config.settings(layer)
    kv = s.n_kv_heads * config.head_dim
    # Input; q and k before and after norm and rotation; v; output; the gate, and what the output
    # projection reads. A log-sum-exp a head, float32.
    kept = 2 if s.qk_norm != "none" or s.rope_theta is not None else 1
    elements = d + kept * (d + kv) + kv + d + (2 * d if s.output_gate else 0)
    return elements * element_bytes + config.n_heads * FP32_BYTES


def roles(config: ModelConfig, layer: int, growth: Growth) -> dict[str, Role]:
    """Logits are divided by the width of a head instead of its root (Yang et al. 2022, definition
    4.1): the gain of the queries' norm takes that over, or the queries' matrix where there is no
    norm. All projections are hidden matrices (ibid., Table 3)."""
    hidden, to_logits = Role(inputs=growth.width), growth.head**-0.5
    normed = config.settings(layer).qk_norm != "none"
    return {
        **{f"{name}_proj.weight": hidden for name in ("k", "v", "g")},
        "q_proj.weight": hidden if normed else Role(inputs=growth.width, factor=to_logits),
        "o_proj.weight": Role(inputs=growth.width, last=True),
        "q_norm.weight": Role(factor=to_logits),
        **vectors("k_norm.weight"),
    }


MIXER = Mixer(
    name="attn",
    letter="*",
    layer="models.mixers.attn.layer:Attention",
    norm="outputs",
    options=Options,
    saved=Settings,
    settings=settings,
    parameters=parameters,
    flops=flops,
    decode_bytes=decode_bytes,
    activation_bytes=activation_bytes,
    products=products,
    problem=problem,
    roles=roles,
    attends=True,
    confounds=(
        "models.attention.confounds:windows",
        "models.attention.confounds:share",
        "models.attention.confounds:positions",
        "models.attention.confounds:qk_norm",
        "models.attention.confounds:output_gate",
    ),
)
