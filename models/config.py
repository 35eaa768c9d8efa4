"""What a model is: a size's blueprint filled with the layers of a mix. Plain Python, no torch.

A mix (pattern of mixers) knows nothing of size, a blueprint (width, depth, heads) nothing of
mixes, and the protocol's geometry rules (key width, state size, windows) say how the two meet.
Sources: Merrill et al. 2026 (Olmo Hybrid), section 4.1 and appendix D; Yang et al. 2025 (Gated
DeltaNet); Dao and Gu 2024 (Mamba2).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from models.errors import SettingError, one_of
from models.mixers import MIXERS

INITS = ("normal", "fan_in")
PLACEMENTS = ("interleaved", "middle")


@dataclass(frozen=True)
class Mix:
    """A layer pattern over mixers."""

    name: str
    pattern: tuple[str, ...]
    """Mixers in order, repeated over the depth (`interleaved`)."""
    placement: str = "interleaved"
    """`interleaved` repeats the pattern; `middle` puts its attention layers side by side at
    mid-depth, and one last."""
    last: str | None = None
    """Mixer that the last layer is made to be, whatever the pattern says (None: as it falls)."""
    gdn_output_gate: bool = True
    gdn_allow_neg_eigval: bool = True
    """beta in (0, 2) instead of (0, 1): eigenvalues of the transition down to -1."""
    attn_rope: bool = True
    """Rotary positions on queries and keys; without them the recurrent layers order the tokens."""

    def __post_init__(self) -> None:
        if not self.pattern:
            raise SettingError(f"mix.pattern of {self.name} is empty; give a list of mixers.")
        for mixer in (*self.pattern, *([self.last] if self.last else [])):
            if mixer not in MIXERS:
                raise one_of("mixer", mixer, MIXERS)
        if self.placement not in PLACEMENTS:
            raise one_of("mix.placement", self.placement, PLACEMENTS)
        if self.placement == "middle" and "attn" not in self.pattern:
            raise SettingError(
                f"mix.placement=middle needs an attn layer in mix.pattern={list(self.pattern)}."
            )

    def layers(self, n_layers: int) -> tuple[str, ...]:
        """The mixer of every layer. Raises SettingError where the pattern does not divide."""
        period = len(self.pattern)
        if self.placement == "middle":
            # Olmo Hybrid, "middle": n/r attention layers centred, and the final one.
            others = [m for m in self.pattern if m != "attn"]
            n_centre = n_layers * self.pattern.count("attn") // period
            first = (n_layers - n_centre) // 2
            layers = [others[i % len(others)] for i in range(n_layers)]
            layers[first : first + n_centre] = ["attn"] * n_centre
        else:
            if n_layers % period and self.last is None:
                below = n_layers - n_layers % period
                depths = f"{below} or {below + period}" if below else f"{period}"
                raise SettingError(
                    f"size.n_layers={n_layers} is not a multiple of the {period} layers of "
                    f"mix={self.name}; give {depths}, or set mix.last."
                )
            layers = [self.pattern[i % period] for i in range(n_layers)]
        if self.last is not None:
            layers[-1] = self.last
        return tuple(layers)


@dataclass(frozen=True)
class Blueprint:
    """A size: the transformer's widths, which every mix of the size shares."""

    name: str
    d_model: int
    n_layers: int
    n_heads: int
    mlp_hidden: int
    n_kv_heads: int | None = None
    """Heads of the keys and values, each shared by a group of query heads; None: as n_heads."""
    init: str = "normal"
    """Matrices and embedding: `normal` draws all at 0.02, as Olmo 3 does; `fan_in` matrices at
    1/√inputs and the embedding at 1, for widths at which 0.02 is far too small."""

    def __post_init__(self) -> None:
        if self.init not in INITS:
            raise one_of("size.init", self.init, INITS)
        for setting in ("d_model", "n_layers", "n_heads", "mlp_hidden"):
            if (value := getattr(self, setting)) < 1:
                raise SettingError(f"size.{setting}={value} must be at least 1.")
        if self.d_model % self.n_heads or (self.d_model // self.n_heads) % 2:
            valid = [str(n) for n in range(1, self.d_model // 2 + 1) if self.d_model % (2 * n) == 0]
            raise SettingError(
                f"size.n_heads={self.n_heads} must divide size.d_model={self.d_model} into heads "
                "of an even width (rotary positions turn pairs); valid: "
                f"{', '.join(valid) or 'none, give another d_model'}."
            )
        if self.n_kv_heads is not None and (self.n_kv_heads < 1 or self.n_heads % self.n_kv_heads):
            divisors = [n for n in range(1, self.n_heads + 1) if self.n_heads % n == 0]
            raise one_of("size.n_kv_heads", self.n_kv_heads, divisors)

    @property
    def head_dim(self) -> int:
        return self.d_model // self.n_heads


@dataclass(frozen=True)
class Geometry:
    """How a recurrent mixer's widths follow from the blueprint: part of the protocol."""

    gdn_key_multiple: int = 16
    """Key head width = 0.75 · d_model / heads, rounded up to this multiple; values twice that."""
    mamba2_state: int = 128
    """State width, where the model is at least twice as wide; else half the width, rounded up
    to 16, so that a tiny model is not mostly state."""
    windows: tuple[int, ...] = ()
    """Sliding windows by layer index, repeated over the depth, 0 for full; the last layer is
    always full. Empty: full attention everywhere."""
    rope_theta: float = 500_000.0


@dataclass(frozen=True)
class ModelConfig:
    """Everything that decides a model's parameters and function."""

    vocab_size: int
    d_model: int
    n_heads: int
    n_kv_heads: int
    mlp_hidden: int
    layers: tuple[str, ...]
    windows: tuple[int, ...]
    """Attention window of every layer in tokens, 0 for full."""
    rope_theta: float | None
    """Base of the rotary angles; None: attention without positions."""
    init: str
    gdn_key_dim: int
    gdn_value_dim: int
    gdn_output_gate: bool
    gdn_allow_neg_eigval: bool
    mamba2_state: int
    mamba2_head_dim: int
    conv_kernel: int = 4
    norm_eps: float = field(default=1e-6)
    gated_norm_eps: float = field(default=1e-5)

    @property
    def n_layers(self) -> int:
        return len(self.layers)

    @property
    def head_dim(self) -> int:
        return self.d_model // self.n_heads


def round_up(value: float, multiple: int) -> int:
    """The smallest multiple that is not below `value`."""
    return int(-(-value // multiple) * multiple)


def build_config(
    mix: Mix,
    size: Blueprint,
    geometry: Geometry,
    vocab_size: int,
    *,
    mlp_hidden: int | None = None,
) -> ModelConfig:
    """Fill a blueprint with a mix. `mlp_hidden` overrides the blueprint's, as matching does."""
    layers = mix.layers(size.n_layers)
    repeated = geometry.windows or (0,)
    windows = [repeated[i % len(repeated)] for i in range(len(layers))]
    windows[-1] = 0
    key_dim = round_up(0.75 * size.head_dim, geometry.gdn_key_multiple)
    return ModelConfig(
        vocab_size=vocab_size,
        d_model=size.d_model,
        n_heads=size.n_heads,
        n_kv_heads=size.n_kv_heads or size.n_heads,
        mlp_hidden=size.mlp_hidden if mlp_hidden is None else mlp_hidden,
        layers=layers,
        windows=tuple(w if m == "attn" else 0 for w, m in zip(windows, layers, strict=True)),
        rope_theta=geometry.rope_theta if mix.attn_rope else None,
        init=size.init,
        gdn_key_dim=key_dim,
        gdn_value_dim=2 * key_dim,
        gdn_output_gate=mix.gdn_output_gate,
        gdn_allow_neg_eigval=mix.gdn_allow_neg_eigval,
        mamba2_state=min(geometry.mamba2_state, round_up(size.d_model / 2, 16)),
        mamba2_head_dim=2 * size.head_dim,
    )
