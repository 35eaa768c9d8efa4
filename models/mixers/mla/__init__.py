"""Multi-head latent attention without positions (DeepSeek-V2, Liu et al. 2024, section 2.1, as in
Kimi Linear, Kimi Team 2025): the cache holds one latent a token, from which keys and values of
all heads are made."""

from __future__ import annotations

from dataclasses import dataclass

from models.attention.windows import check_window, layer_windows, mean_keys, windows_problem
from models.config import ModelConfig
from models.mixer import FP32_BYTES, Growth, Mixer, Place, Role, not_positive, vectors

LATENT = 4
"""Width of the latent in head widths, as at Kimi Linear 48B (512 for heads of 128)."""
SHARED = 2
"""Head widths in the width of the key part that all heads share (64 for heads of 128)."""


@dataclass(frozen=True)
class Options:
    """What a mix may set."""

    window: int | None = None
    """Tokens that each of these layers sees, itself included; 0 for all; None: what the protocol
    says by the layer's index."""

    def __post_init__(self) -> None:
        check_window(self.window)


@dataclass(frozen=True)
class Settings:
    """What the layer reads: widths of a head's own key part, of the key part that all heads
    share, of a head's values, and of the latent."""

    key_dim: int
    shared_dim: int
    value_dim: int
    latent_dim: int
    latent_eps: float = 1e-6
    """Of the latent's norm."""
    windows: tuple[int, ...] = ()
    """Tokens seen by each layer of the model, by its index, 0 for all; empty: all everywhere."""

    def window(self, layer: int) -> int:
        return self.windows[layer] if self.windows else 0

    @property
    def query_dim(self) -> int:
        """Width of a query, and of a whole key."""
        return self.key_dim + self.shared_dim


def settings(options: Options, _rules: object, place: Place) -> Settings:
    # size.n_kv_heads groups no heads here: keys and values of all are made of one latent.
    D = place.size.head_dim
    return Settings(D, D // SHARED, D, LATENT * D, windows=layer_windows(options.window, place))


def problem(config: ModelConfig, s: Settings) -> str:
    if words := not_positive(s, "key_dim", "shared_dim", "value_dim", "latent_dim", "latent_eps"):
        return words
    if s.value_dim > s.query_dim:
        return (
            f"value_dim={s.value_dim} cannot be used; valid: up to key_dim + shared_dim="
            f"{s.query_dim}."
        )
    return windows_problem(s.windows, config.n_layers)


def products(config: ModelConfig, layer: int) -> list[tuple[int, int]]:
    d, H, s = config.d_model, config.n_heads, config.settings(layer)
    return [
        (d, H * s.query_dim), (d, s.latent_dim + s.shared_dim),
        (s.latent_dim, H * (s.key_dim + s.value_dim)), (H * s.value_dim, d),
    ]  # fmt: skip


def parameters(config: ModelConfig, layer: int) -> int:
    matrices = sum(inputs * outputs for inputs, outputs in products(config, layer))
    return matrices + config.settings(layer).latent_dim  # norm


def flops(config: ModelConfig, layer: int, context: int) -> float:
    H, s = config.n_heads, config.settings(layer)
    matrices = sum(inputs * outputs for inputs, outputs in products(config, layer))
    keys = mean_keys(s.window(layer), context)
    return 2 * (matrices + H * (s.query_dim + s.value_dim) * keys)


def decode_bytes(
    config: ModelConfig, layer: int, context: int, element_bytes: int
) -> tuple[int, int]:
    s = config.settings(layer)
    kept = min(s.window(layer) or context, context)
    return 0, (s.latent_dim + s.shared_dim) * kept * element_bytes


def activation_bytes(config: ModelConfig, layer: int, _context: int, element_bytes: int) -> float:
    d, H, s = config.d_model, config.n_heads, config.settings(layer)
    # Input; latent and shared part before and after the norm; q, whole keys, values and output as
    # wide as keys, which flash attention wants; the output again, without what was added. A
    # log-sum-exp a head, float32.
    latents = 2 * (s.latent_dim + s.shared_dim)
    elements = d + latents + H * (4 * s.query_dim + s.value_dim)
    return elements * element_bytes + H * FP32_BYTES


def roles(_config: ModelConfig, _layer: int, growth: Growth) -> dict[str, Role]:
    """Logits are divided by the width of a query instead of its root (Yang et al. 2022, definition
    4.1), which the queries take over; the rest is derived here: hidden matrices all, the one from
    the latent with as many inputs as the latent is wide, a number of heads' widths."""
    return {
        "q_proj.weight": Role(inputs=growth.width, factor=growth.head**-0.5),
        "kv_a_proj.weight": Role(inputs=growth.width),
        "kv_b_proj.weight": Role(inputs=growth.head),
        "o_proj.weight": Role(inputs=growth.width, last=True),
        **vectors("kv_norm.weight"),
    }


MIXER = Mixer(
    name="mla",
    letter="+",
    layer="models.mixers.mla.layer:LatentAttention",
    # Published with norms on its inputs; here where the softmax attention that it stands in for
    # has them, so that a mix that exchanges the two exchanges nothing else.
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
