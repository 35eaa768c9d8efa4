"""The spec of one run: what the user set, and what the rules made of it, frozen.

Hydra composes a nested dict; `resolve` turns it once into these dataclasses, refusing unknown
keys and impossible values, and adds the model and the recipe that follow. Training reads nothing
else. Identity is a hash of the spec less evaluation's probes, resources, logging and paths, so a
repeated command finds what it did before.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import Any

from ablations.data.source import CorpusSummary, required_path, summarize
from ablations.evaluate import budget
from ablations.evaluate.budget import EvaluationSettings
from ablations.formats import identity, run_name
from ablations.ladder import Recipe, plan_recipe
from models.settings import from_dict, to_dict
from models.config import Blueprint, Geometry, Mix, ModelConfig
from models.cost import Counts, count
from models.environment import expand
from models.errors import SettingError, not_ascii, one_of
from models.matching import match

NAME = re.compile(r"[A-Za-z0-9_.]+")
CORPORA = ("auto", "embedded", "tokens")
PRECISIONS = ("auto", "fp32", "bf16")
COMPILE = ("auto", "true", "false")
DEVICES = ("auto", "cpu", "cuda")
BACKENDS = ("auto", "naive", "chunked", "fla")
PARALLEL = ("auto", "ddp", "fsdp", "hsdp")
OPTIMIZERS = ("adamw", "muon")
EVAL_MODES = ("windows", "documents")
LONGEST_SWEEP = 100
"""Letters: wandb takes 128 in a run's id, which is the sweep's name and the run's hash."""
WANDB = ("off", "auto", "offline", "online")


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
    n_kv_heads: int | None = None
    """Heads of attention's keys and values (grouped queries); None: as many as n_heads."""

    @property
    def blueprint(self) -> Blueprint:
        return Blueprint(
            self.name,
            self.d_model,
            self.n_layers,
            self.n_heads,
            self.mlp_hidden,
            self.n_kv_heads,
            self.init,
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
    knob: str = "mlp_hidden"
    """What the match moves: see models.matching."""
    schedule: str = "wsds"
    """`wsds`: a point at each multiple from one run; `cosine`: one multiple, one point a run."""
    batch_multiple: int = 1
    """Sequences that every batch is a multiple of, so that it divides over devices."""


@dataclass(frozen=True)
class DataSettings:
    """conf/data: which corpus, and how much of its held-out part is evaluated."""

    name: str
    path: str | None = None
    eval_tokens: int | None = None
    """Held-out tokens a domain at each point; None for all."""
    document_mask: bool = False
    """Keep documents apart in every mixer, in training and evaluation."""
    eval_mode: str = "windows"
    """`windows` of the held-out stream, or whole `documents`, each from its beginning."""


@dataclass(frozen=True)
class TrainSettings:
    """conf/train: the optimizer's constants, the same at every size."""

    weight_decay: float
    grad_clip: float
    z_loss: float
    skip_sigma: float
    """A step whose loss or gradient norm is this many standard deviations above its rolling
    mean is skipped; 0 skips only what is not finite."""
    optim: str = "adamw"
    """`adamw`, or `muon`: torch.optim.Muon for the blocks' matrices, AdamW for the rest."""
    max_skipped: int = 50
    """A run fails once this many steps in a row have been skipped."""


@dataclass(frozen=True)
class Resources:
    """What a run uses of the machine; no part of its identity."""

    device: str = "auto"
    precision: str = "auto"
    compile: str = "auto"
    micro_batch_tokens: int | None = None
    """Tokens a forward pass takes on one device; null: by memory."""
    activation_checkpointing: bool = False
    """Recompute each block in the backward pass instead of keeping its activations."""
    backend: str = "auto"
    """Of the recurrent operators: see models.ops.backend."""
    devices: int | None = None
    """Devices that train one run together; null: all GPUs of this machine for a run alone."""
    parallel: str = "auto"
    """How a model lies over devices: see ablations.distributed."""
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
    """What matching moved and what it left, in words."""
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)
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
        return identity(to_dict(self))

    @property
    def run_name(self) -> str:
        return run_name(to_dict(self))


SETTINGS: dict[str, type] = {
    "mix": Mix,
    "size": SizeSettings,
    "protocol": ProtocolSettings,
    "data": DataSettings,
    "train": TrainSettings,
    "evaluation": EvaluationSettings,
    "resources": Resources,
    "logging": Logging,
}


def resolve(settings: dict[str, Any], *, plan_only: bool = False) -> RunSpec:
    """Settings as composed -> the frozen spec.

    settings: `{sweep, seed, mix, size, protocol, data, train, evaluation, resources, logging}`,
    plain values.
    With `plan_only` a corpus that is not there, and more epochs than allowed, are not refused.
    Raises SettingError, one sentence, on anything that cannot be run.
    """
    for key in settings:
        if key not in (*SETTINGS, "sweep", "seed"):
            raise one_of("setting", key, (*SETTINGS, "sweep", "seed"))
    parts: dict[str, Any] = {
        key: from_dict(cls, settings.get(key, {}), key) for key, cls in SETTINGS.items()
    }
    sweep, seed = settings.get("sweep", ""), settings.get("seed")
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        raise SettingError(f"seed={seed!r} must be a whole number of at least 0.")
    _check_sweep(sweep)
    size: SizeSettings = parts["size"]
    protocol: ProtocolSettings = parts["protocol"]
    data: DataSettings = parts["data"]
    train: TrainSettings = parts["train"]
    _check_choices(data, train, parts["resources"], parts["logging"])
    _check_ranges(parts)

    name = size.corpus if data.name == "auto" else data.name
    data = replace(data, name=name, path=data.path if name == "tokens" else None)
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
        knob=protocol.knob,
        tolerance=protocol.tolerance,
        context=size.context,
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
        batch_multiple=protocol.batch_multiple,
        schedule=protocol.schedule,
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
        matched=str(matched),
        evaluation=parts["evaluation"],
        resources=parts["resources"],
        logging=parts["logging"],
    )
    budget.check(spec.evaluation, spec.model, recipe.context, recipe.tokens, len(recipe.milestones))
    if not plan_only and (problem := too_many_epochs(spec)):
        raise SettingError(problem)
    return spec


def load(content: dict[str, Any]) -> RunSpec:
    """The spec back from a run directory's spec.yaml."""
    return from_dict(RunSpec, content, "spec")


def _check_choices(
    data: DataSettings, train: TrainSettings, resources: Resources, logging: Logging
) -> None:
    for name, value, valid in (
        ("data.name", data.name, CORPORA),
        ("data.eval_mode", data.eval_mode, EVAL_MODES),
        ("resources.device", resources.device, DEVICES),
        ("resources.precision", resources.precision, PRECISIONS),
        ("resources.compile", resources.compile, COMPILE),
        ("resources.backend", resources.backend, BACKENDS),
        ("resources.parallel", resources.parallel, PARALLEL),
        ("train.optim", train.optim, OPTIMIZERS),
    ):
        if value not in valid:
            raise one_of(name, value, valid)
    wandb = "off" if logging.wandb == "false" else logging.wandb
    if expand(wandb, "logging.wandb") not in WANDB:
        raise one_of("logging.wandb", wandb, WANDB)


def _check_sweep(sweep: Any) -> None:
    if not isinstance(sweep, str) or not sweep or set(sweep) & {"/", ","} or sweep[0] == ".":
        raise SettingError(f"sweep={sweep!r} must be a plain folder name, without / and commas.")
    if not sweep.isascii():
        odd = next(letter for letter in sweep if not letter.isascii())
        raise not_ascii(sweep, odd)
    if len(sweep) > LONGEST_SWEEP:
        raise SettingError(
            f"sweep={sweep[:24]}… has {len(sweep)} letters, more than {LONGEST_SWEEP}: it is in "
            "the names of folders, of Slurm's jobs and of wandb's runs, which take no more than "
            "128; use a shorter name."
        )


# The least value of each number that has one; where a setting may be null, null is fine.
LEAST = {
    "data.eval_tokens": 1,
    "resources.micro_batch_tokens": 1,
    "resources.threads": 1,
    "resources.devices": 1,
    "train.max_skipped": 1,
    "logging.log_every": 1,
    "logging.checkpoint_every": 1,
    "train.weight_decay": 0,
    "train.grad_clip": 0,
    "train.z_loss": 0,
    "train.skip_sigma": 0,
    "protocol.tolerance": 0,
    "protocol.gdn_key_multiple": 1,
    "protocol.mamba2_state": 1,
    "protocol.rope_theta": 1,
    "size.context": 1,
}


def _check_ranges(parts: dict[str, Any]) -> None:
    for name, least in LEAST.items():
        group, key = name.split(".")
        value = getattr(parts[group], key)
        if value is not None and value < least:
            raise SettingError(f"{name}={value} must be at least {least}.")
    if any(window < 0 for window in parts["protocol"].windows):
        raise SettingError(
            f"protocol.windows={list(parts['protocol'].windows)} must list windows in tokens, "
            "0 for full attention."
        )
    for group in ("mix", "size"):
        name = parts[group].name
        if not NAME.fullmatch(name):
            raise SettingError(
                f"{group}.name={name} must be letters, digits and underscores, as run folders are "
                "named by it."
            )


def too_many_epochs(spec: RunSpec) -> str:
    """Why a run is refused that reads its corpus too often, a sentence; empty where it is not."""
    epochs = spec.epochs
    if epochs is None or epochs <= spec.protocol.max_epochs:
        return ""
    assert spec.corpus is not None
    return (
        f"size={spec.size.name} reads {spec.recipe.tokens:,} tokens, {epochs:.1f} epochs of "
        f"the {spec.corpus.name} corpus ({spec.corpus.train_tokens:,}), more than "
        f"protocol.max_epochs={spec.protocol.max_epochs:g}; raise that, give a smaller last "
        "protocol.chinchilla, or a larger corpus."
    )
