"""The spec of one run: what the user set, and what the rules made of it, frozen.

Hydra composes a nested dict; `resolve` turns it once into these dataclasses, refusing unknown
keys and impossible values, and adds the model and the recipe that follow. Training reads nothing
else. Identity is a hash of the spec less resources, logging and paths, so a repeated command finds
what it did before.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

from ablations.data.source import CorpusSummary, required_path, summarize
from ablations.ladder import Recipe, plan_recipe
from ablations.settings import from_dict, to_dict
from models.config import Blueprint, Geometry, Mix, ModelConfig
from models.cost import Counts, count
from models.errors import SettingError, one_of
from models.matching import match

CORPORA = ("auto", "embedded", "tokens")
PRECISIONS = ("auto", "fp32", "bf16")
COMPILE = ("auto", "true", "false")


@dataclass(frozen=True)
class SizeSettings:
    """conf/size: the transformer's blueprint, and the conditions the size is named for."""

    name: str
    d_model: int
    n_layers: int
    n_heads: int
    mlp_hidden: int
    vocab_size: int
    """Vocabulary the name counts with; a run uses its corpus's."""
    corpus: str
    """Corpus that `data=auto` stands for."""
    context: int
    """Training sequence length in tokens."""
    chinchilla: tuple[float, ...]
    """Multiples with a point each, where the protocol leaves them open."""
    lr_multiplier: float
    """On the ladder's peak learning rate, where the protocol leaves it open."""
    init: str
    """How weights begin: see models.config.Blueprint."""

    @property
    def blueprint(self) -> Blueprint:
        return Blueprint(
            self.name, self.d_model, self.n_layers, self.n_heads, self.mlp_hidden, self.init
        )


@dataclass(frozen=True)
class ProtocolSettings:
    """conf/protocol: the rules every run of a sweep obeys."""

    name: str
    match: str
    tolerance: float
    chinchilla: tuple[float, ...] | None
    tokens_per_parameter: float
    decay_fraction: float
    lr_multiplier: float | None
    batch_tokens: int | None
    max_epochs: float
    gdn_key_multiple: int
    mamba2_state: int
    windows: tuple[int, ...]
    rope_theta: float


@dataclass(frozen=True)
class DataSettings:
    """conf/data: which corpus, and how much of its held-out part is evaluated."""

    name: str
    path: str | None = None
    eval_tokens: int | None = None
    """Held-out tokens a domain at each point; None for all."""


@dataclass(frozen=True)
class TrainSettings:
    """conf/train: the optimizer's constants, the same at every size."""

    weight_decay: float
    grad_clip: float
    z_loss: float
    skip_sigma: float
    """A step whose loss or gradient norm is this many standard deviations above its rolling
    mean is skipped; 0 never skips."""


@dataclass(frozen=True)
class Resources:
    """What a run uses of the machine; no part of its identity."""

    device: str = "auto"
    precision: str = "auto"
    compile: str = "auto"
    micro_batch_tokens: int | None = None
    threads: int | None = None


@dataclass(frozen=True)
class Logging:
    """What a run says and to whom; no part of its identity."""

    log_every: int = 10
    checkpoint_every: int = 500
    wandb: str = "off"


@dataclass(frozen=True)
class RunSpec:
    """One run, resolved."""

    sweep: str
    mix: Mix
    size: SizeSettings
    protocol: ProtocolSettings
    data: DataSettings
    train: TrainSettings
    seed: int
    model: ModelConfig
    recipe: Recipe
    corpus: CorpusSummary | None
    """None where the corpus is not there yet: such a spec can be planned, not run."""
    matched: str
    """What matching moved, in words."""
    resources: Resources = field(default_factory=Resources)
    logging: Logging = field(default_factory=Logging)

    @property
    def counts(self) -> Counts:
        return count(self.model, self.recipe.context)

    @property
    def epochs(self) -> float | None:
        return self.recipe.tokens / self.corpus.train_tokens if self.corpus else None

    @property
    def identity(self) -> str:
        """Eight hex digits over everything that decides the run's numbers."""
        content = to_dict(self)
        for group in ("sweep", "resources", "logging"):
            del content[group]
        # The corpus is known by its fingerprint, wherever it lies and whatever it is called.
        del content["data"]["path"], content["data"]["name"]
        content["corpus"] = self.corpus.fingerprint if self.corpus else None
        canonical = json.dumps(content, sort_keys=True)
        return hashlib.sha256(canonical.encode()).hexdigest()[:8]

    @property
    def run_name(self) -> str:
        return f"{self.mix.name}-{self.size.name}-s{self.seed}-{self.identity}"


SETTINGS: dict[str, type] = {
    "mix": Mix,
    "size": SizeSettings,
    "protocol": ProtocolSettings,
    "data": DataSettings,
    "train": TrainSettings,
    "resources": Resources,
    "logging": Logging,
}


def resolve(settings: dict[str, Any], *, plan_only: bool = False) -> RunSpec:
    """Settings as composed -> the frozen spec.

    settings: `{sweep, seed, mix, size, protocol, data, train, resources, logging}`, plain values.
    With `plan_only` a corpus that is not there, and more epochs than allowed, are not refused.
    Raises SettingError, one sentence, on anything that cannot be run.
    """
    for key in settings:
        if key not in (*SETTINGS, "sweep", "seed"):
            raise one_of("setting", key, (*SETTINGS, "sweep", "seed"))
    parts: dict[str, Any] = {
        key: from_dict(cls, settings.get(key), key) for key, cls in SETTINGS.items()
    }
    sweep, seed = settings.get("sweep"), settings.get("seed")
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        raise SettingError(f"seed={seed!r} must be a whole number of at least 0.")
    if not isinstance(sweep, str) or not sweep or "/" in sweep or sweep.startswith("."):
        raise SettingError(f"sweep={sweep!r} must be a plain folder name.")
    size: SizeSettings = parts["size"]
    protocol: ProtocolSettings = parts["protocol"]
    data: DataSettings = parts["data"]
    train: TrainSettings = parts["train"]
    _check_choices(data, parts["resources"])

    name = size.corpus if data.name == "auto" else data.name
    data = DataSettings(name, data.path if name == "tokens" else None, data.eval_tokens)
    corpus = None
    if name == "embedded" or data.path is not None or not plan_only:
        if name == "tokens":
            required_path(data.path)
        corpus = summarize(name, data.path)

    geometry = Geometry(
        protocol.gdn_key_multiple, protocol.mamba2_state, protocol.windows, protocol.rope_theta
    )
    matched = match(
        parts["mix"],
        size.blueprint,
        geometry,
        corpus.vocab_size if corpus else size.vocab_size,
        how=protocol.match,
        tolerance=protocol.tolerance,
    )
    recipe = plan_recipe(
        matched.N_target,
        context=size.context,
        chinchilla=size.chinchilla if protocol.chinchilla is None else protocol.chinchilla,
        tokens_per_parameter=protocol.tokens_per_parameter,
        decay_fraction=protocol.decay_fraction,
        lr_multiplier=(
            size.lr_multiplier if protocol.lr_multiplier is None else protocol.lr_multiplier
        ),
        batch=protocol.batch_tokens,
        weight_decay=train.weight_decay,
        grad_clip=train.grad_clip,
        z_loss=train.z_loss,
        skip_sigma=train.skip_sigma,
    )
    spec = RunSpec(
        sweep=sweep,
        mix=parts["mix"],
        size=size,
        protocol=protocol,
        data=data,
        train=train,
        seed=seed,
        model=matched.config,
        recipe=recipe,
        corpus=corpus,
        matched=matched.moved,
        resources=parts["resources"],
        logging=parts["logging"],
    )
    if not plan_only:
        _check_epochs(spec)
    return spec


def load(content: dict[str, Any]) -> RunSpec:
    """The spec back from a run directory's spec.yaml."""
    return from_dict(RunSpec, content, "spec")


def _check_choices(data: DataSettings, resources: Resources) -> None:
    if data.name not in CORPORA:
        raise one_of("data.name", data.name, CORPORA)
    if data.eval_tokens is not None and data.eval_tokens < 1:
        raise SettingError(f"data.eval_tokens={data.eval_tokens} must be above 0, or null for all.")
    if resources.precision not in PRECISIONS:
        raise one_of("resources.precision", resources.precision, PRECISIONS)
    if resources.compile not in COMPILE:
        raise one_of("resources.compile", resources.compile, COMPILE)
    for name, value in (
        ("micro_batch_tokens", resources.micro_batch_tokens),
        ("threads", resources.threads),
    ):
        if value is not None and value < 1:
            raise SettingError(f"resources.{name}={value} must be at least 1, or null.")


def _check_epochs(spec: RunSpec) -> None:
    epochs = spec.epochs
    if epochs is not None and epochs > spec.protocol.max_epochs:
        assert spec.corpus is not None
        raise SettingError(
            f"size={spec.size.name} reads {spec.recipe.tokens:,} tokens, {epochs:.1f} epochs of "
            f"the {spec.corpus.name} corpus ({spec.corpus.train_tokens:,}), more than "
            f"protocol.max_epochs={spec.protocol.max_epochs:g}; raise that, give a smaller last "
            "protocol.chinchilla, or a larger corpus."
        )
