"""The spec of one run: what the user set, and what the rules made of it, frozen.

`ablations.resolve` makes it, a run directory keeps it, and training reads nothing else. What a run
reads is its identity (`ablations.formats.identity`), so that a repeated command finds what it did
before. Fields with a default are settings that came later, or that few runs touch: at their
default they are no part of an identity.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ablations.evaluate.budget import EvaluationSettings
from ablations.formats import run_name
from ablations.ladder import Recipe
from ablations.versions import READ, VERSION, check_defaults, hash_of, identity, upgraded
from models.config import MLP, Blueprint, ModelConfig
from models.cost import Counts, count
from models.errors import SettingError
from models.mix import Mix, check_rules_of
from models.mixers import loaded
from models.plain import model_from_plain
from models.settings import from_dict, open_field, split_defaults, to_dict


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
class TunedSetting:
    """A setting that a run took from a tuning sweep, and what was known of its optimum then."""

    setting: str
    """Of ablations.tuning.SETTINGS."""
    sweep: str
    by: str
    """`size`: the mix was tuned at this size; `law`: by the law of its optima over others."""
    value: float
    low: float | None
    high: float | None
    """Ends of the interval; None where it is open."""
    curvature: float
    """Share of the loss that being off costs, per octave squared."""
    dof: int
    """Of the scatter that the interval rests on."""
    runs: int
    """Of this mix in the tuning sweep."""


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
    windows: tuple[int, ...]
    rope_theta: float
    knob: str = "mlp_hidden"
    """What the match moves: see models.matching."""
    schedule: str = "wsds"
    """`wsds`: a point at each multiple from one run; `cosine`: one multiple, one point a run."""
    batch_multiple: int = 1
    """Sequences that every batch is a multiple of, so that it divides over devices."""
    max_steps: int | None = None
    """Steps after which a run ends, for a try; such a run is none of the ladder's."""
    parametrization: str = "standard"
    """`standard`, or `mup`: initial values and rates by models/parametrization.py, at the ladder's
    peak rate for the base, whatever the size."""
    mup_base_width: int | None = None
    """d_model at which both are the same; None, here and below: the smallest size's of the ladder
    with this size's `init`."""
    mup_base_head_width: int | None = None
    mup_base_layers: int | None = None
    tuning: tuple[str, ...] = ()
    """Tuning sweeps, by name, whose optima the runs of each mix and size are trained at."""
    over: tuple[str, ...] = ()
    """The settings that are taken from them."""
    tuned: tuple[TunedSetting, ...] = ()
    """What was taken, frozen."""
    options: Mapping[str, Any] = open_field()
    """Rules of the mixers that the run has, `<mixer>_<rule>`."""


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
    """Tokens a forward pass takes on one device; null: what a GPU's memory holds."""
    activation_checkpointing: str = "false"
    """Compute blocks again in the backward pass instead of keeping their activations: `true`, all
    of them; `selective`, what is neither a matrix product nor attention."""
    backend: str = "auto"
    """Of the recurrent operators: see models.ops.backend."""
    devices: int | None = None
    """Devices that train one run together; null: all GPUs of this machine for a run alone."""
    parallel: str = "auto"
    """How a model lies over devices: see ablations.distributed."""
    threads: int | None = None
    profile: int | None = None
    """Steps that torch.profiler traces: see ablations.profiling."""


@dataclass(frozen=True)
class Logging:
    """What a run says and to whom; no part of its identity."""

    log_every: int = 10
    checkpoint_every: int = 500
    wandb: str = "off"


@dataclass(frozen=True)
class CorpusSummary:
    """What a plan and a run's identity need of a corpus."""

    name: str
    vocab_size: int
    fingerprint: str
    train_tokens: int
    """Tokens read before any is read again; of a mixture, before its first source repeats."""


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
        return identity(self.record())

    @property
    def run_name(self) -> str:
        return run_name(self.record())

    def plain(self) -> dict[str, Any]:
        """All settings as plain values."""
        return {"version": VERSION, **to_dict(self)}

    def record(self) -> dict[str, Any]:
        """The spec as a run directory keeps it: plain values, and apart from the others those
        fields of what it reads that are at their defaults."""
        plain, defaults = self.plain(), {}
        for group in READ:
            plain[group], defaults[group] = split_defaults(getattr(self, group))
        return {**plain, "defaults": defaults, "defaults_hash": hash_of(defaults)}


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


def load(content: Mapping[str, Any]) -> RunSpec:
    """The spec back from a run directory's spec.yaml, of this version or an earlier one.

    Raises SettingError where it is none.
    """
    if "defaults" in content:
        check_defaults(content)
    content = upgraded(content)
    del content["version"]
    content["model"] = model_from_plain(content.get("model"), "spec.model")
    spec = from_dict(RunSpec, content, "spec")
    # Options and rules that came later, at their defaults.
    mix = spec.mix.reads()
    rules = check_rules_of(spec.protocol.options, mix.mixers())
    return replace(spec, mix=mix, protocol=replace(spec.protocol, options=rules))


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


def completed(content: Mapping[str, Any]) -> dict[str, Any]:
    """A spec.yaml of any version in this version's terms, with the defaults of settings that came
    after it; what cannot be read as a spec, such as a mixer that is not installed here, as it is.
    """
    try:
        if _is_known(content):
            return load(content).plain()
    except SettingError:
        pass
    try:
        return upgraded(content)
    except SettingError:
        return dict(content)


def current_name(content: Mapping[str, Any]) -> str:
    """The name that a run of this spec.yaml, of any version, has today; empty where it cannot be
    read."""
    try:
        if content.get("version", 1) == VERSION:
            return run_name(content)
        return load(content).run_name if _is_known(content) else ""
    except SettingError:
        return ""


def _is_known(content: Mapping[str, Any]) -> bool:
    """Whether all mixers of a spec are known without importing what it names: a record of a run
    must not run code in whoever reads it."""
    kinds = [
        kind
        for group in ("model", "mix")
        if isinstance(part := content.get(group), Mapping)
        and isinstance(kinds := part.get("kinds"), Mapping)
        for kind in kinds.values()
    ]
    mixers = [kind.get("mixer") for kind in kinds if isinstance(kind, Mapping)]
    return all(mixer == MLP or loaded(mixer) is not None for mixer in mixers)
