"""From settings as composed to the spec of a run: what was set, and what the rules make of it.

Hydra composes a nested dict; `resolve` turns it once into the dataclasses of ablations/spec.py,
refusing unknown keys and impossible values, and adds the model and the recipe that follow.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import replace
from typing import Any

from ablations.data.source import decoder, required_path, summarize
from ablations.evaluate import budget
from ablations.ladder import Recipe, plan_recipe
from ablations.spec import (
    SETTINGS,
    DataSettings,
    Logging,
    ProtocolSettings,
    Resources,
    RunSpec,
    SizeSettings,
    TrainSettings,
    too_many_epochs,
)
from models import parametrization
from models.config import Blueprint, MupBase
from models.cost import parameters
from models.environment import expand
from models.errors import SettingError, not_ascii, one_of
from models.matching import match
from models.mix import TRANSFORMER, Geometry, Mix, build_config, check_rules_of, readable_settings
from models.settings import from_dict

NAME = re.compile(r"[A-Za-z0-9_.]+")
CORPORA = ("auto", "embedded", "tokens")
PRECISIONS = ("auto", "fp32", "bf16")
COMPILE = ("auto", "true", "false")
CHECKPOINTING = ("false", "true", "selective")
DEVICES = ("auto", "cpu", "cuda")
BACKENDS = ("auto", "naive", "chunked", "fla")
PARALLEL = ("auto", "ddp", "fsdp", "hsdp")
OPTIMIZERS = ("adamw", "muon")
EVAL_MODES = ("windows", "documents")
BY_RULE = {"lr": "lr_multiplier=", "batch": "batch_tokens="}
"""Setting that a run took from a tuning sweep -> how the ladder's word about it begins."""
LONGEST_SWEEP = 100
"""Letters: wandb takes 128 in a run's id, which is the sweep's name and the run's hash."""
WANDB = ("off", "auto", "offline", "online")


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
    mix: Mix = parts["mix"].reads()
    sweep, seed = settings.get("sweep", ""), settings.get("seed")
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        raise SettingError(f"seed={seed!r} must be a whole number of at least 0.")
    _check_sweep(sweep)
    size: SizeSettings = parts["size"]
    protocol: ProtocolSettings = parts["protocol"]
    data: DataSettings = parts["data"]
    train: TrainSettings = parts["train"]
    _check_choices(protocol, data, train, parts["resources"], parts["logging"])
    _check_ranges(parts)

    name = size.corpus if data.name == "auto" else data.name
    data = replace(data, name=name, path=data.path if name == "tokens" else None)
    corpus = None
    if name == "embedded" or data.path is not None or not plan_only:
        if name == "tokens":
            required_path(data.path)
        corpus = summarize(name, data.path)

    fields = [field.name for field in dataclasses.fields(ProtocolSettings)]
    rules = check_rules_of(protocol.options, mix.mixers(), fields)
    protocol = replace(protocol, options=rules)
    geometry = Geometry(protocol.windows, protocol.rope_theta, rules)
    matched = match(
        mix,
        size.blueprint,
        geometry,
        corpus.vocab_size if corpus else size.vocab_size,
        how=protocol.match,
        knob=protocol.knob,
        tolerance=protocol.tolerance,
        context=size.context,
    )
    if bool(protocol.tuning) != bool(protocol.over):
        raise SettingError(
            f"protocol.tuning={list(protocol.tuning)} and protocol.over={list(protocol.over)} go "
            "together: the tuning sweeps, and what is taken from them, like [tuning] and [lr]."
        )
    base, lr_N = _mup(mix, size, protocol, train, geometry, matched.config.vocab_size)
    model = replace(matched.config, mup=base)
    parametrization.check(model)
    recipe = _recipe(matched.N_target, size, protocol, train, lr_N)
    spec = RunSpec(
        sweep=sweep,
        mix=mix,
        size=size,
        protocol=protocol,
        data=data,
        train=train,
        seed=seed,
        model=model,
        recipe=recipe,
        corpus=corpus,
        matched=str(matched),
        evaluation=parts["evaluation"],
        resources=parts["resources"],
        logging=parts["logging"],
    )
    budget.check(spec.evaluation, spec.model, recipe.context, recipe.tokens, len(recipe.milestones))
    if spec.evaluation.samples and corpus:
        decoder(name, data.path)
    if not plan_only and (problem := too_many_epochs(spec)):
        raise SettingError(problem)
    return spec


def _mup(
    mix: Mix,
    size: SizeSettings,
    protocol: ProtocolSettings,
    train: TrainSettings,
    geometry: Geometry,
    vocab_size: int,
) -> tuple[MupBase | None, int | None]:
    """What the maximal update parametrization scales from, and the N by which it takes its rate;
    (None, None) for the standard one."""
    base = _mup_base(size, protocol, train)
    if base is None:
        return None, None
    blueprint = _blueprint_of(base, size)
    N = parameters(build_config(TRANSFORMER, blueprint, geometry, vocab_size))[0]
    hidden = _hidden_at(blueprint, mix, geometry, vocab_size, protocol, size.context)
    return replace(base, mlp_hidden=hidden), N


def _mup_base(
    size: SizeSettings, protocol: ProtocolSettings, train: TrainSettings
) -> MupBase | None:
    """What the maximal update parametrization scales from; None for the standard one."""
    settings = {
        "d_model": protocol.mup_base_width,
        "head_dim": protocol.mup_base_head_width,
        "n_layers": protocol.mup_base_layers,
    }
    given = {name: value for name, value in settings.items() if value is not None}
    if protocol.parametrization != "mup":
        if given:
            raise SettingError(
                "protocol.mup_base_width, mup_base_head_width and mup_base_layers are read with "
                "protocol.parametrization=mup alone; give that, or leave them out."
            )
        return None
    if train.optim != "adamw":
        raise SettingError(
            f"protocol.parametrization=mup has its rates for train.optim=adamw alone, and "
            f"train.optim={train.optim} is set; give one of the two another value."
        )
    base = replace(parametrization.BASES[size.init], **given)
    if base.d_model % base.head_dim or base.head_dim % 2:
        raise SettingError(
            f"protocol.mup_base_head_width={base.head_dim} must be even and divide "
            f"protocol.mup_base_width={base.d_model}; both are those of the ladder's smallest size "
            "unless given."
        )
    return base


def _blueprint_of(base: MupBase, size: SizeSettings) -> Blueprint:
    """The transformer of the base: its MLP as wide for it as that of the ladder's smallest size, so
    that every size has one base."""
    return replace(
        size.blueprint,
        d_model=base.d_model,
        n_heads=base.d_model // base.head_dim,
        n_kv_heads=None,
        n_layers=base.n_layers,
        mlp_hidden=max(1, round(parametrization.MLP_RATIOS[size.init] * base.d_model)),
    )


def _hidden_at(
    blueprint: Blueprint,
    mix: Mix,
    geometry: Geometry,
    vocab_size: int,
    protocol: ProtocolSettings,
    context: int,
) -> int:
    """The MLP's width of a mix at the base, matched as at its size; the transformer's where no
    width matches there."""
    try:
        return match(
            mix, blueprint, geometry, vocab_size, how=protocol.match, knob=protocol.knob,
            tolerance=protocol.tolerance, context=context,
        ).config.mlp_hidden  # fmt: skip
    except SettingError:
        return blueprint.mlp_hidden


def _recipe(
    N: int,
    size: SizeSettings,
    protocol: ProtocolSettings,
    train: TrainSettings,
    lr_N: int | None = None,
) -> Recipe:
    """How the transformer of N parameters is trained, and every mix of its size with it.

    Where the protocol leaves a setting open, the size has it. lr_N: the N that the rule for the
    learning rate reads, N unless given.
    """
    lr = size.lr_multiplier if protocol.lr_multiplier is None else protocol.lr_multiplier
    recipe = plan_recipe(
        N,
        context=size.context,
        chinchilla=size.chinchilla if protocol.chinchilla is None else protocol.chinchilla,
        tokens_per_parameter=protocol.tokens_per_parameter,
        decay_fraction=protocol.decay_fraction,
        lr_multiplier=lr,
        lr_N=lr_N,
        batch=protocol.batch_tokens,
        batch_multiple=protocol.batch_multiple,
        schedule=protocol.schedule,
        max_steps=protocol.max_steps,
        weight_decay=train.weight_decay,
        grad_clip=train.grad_clip,
        z_loss=train.z_loss,
        skip_sigma=train.skip_sigma,
    )
    # What a tuning sweep says follows the mix by rule.
    ruled = tuple(BY_RULE[one.setting] for one in protocol.tuned if one.setting in BY_RULE)
    return replace(recipe, by_hand=tuple(w for w in recipe.by_hand if not w.startswith(ruled)))


def each_its_own(settings: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The settings of every run of a sweep, less those that only mixers of other runs read.

    On the command line `mix.<kind>_<option>` and `protocol.<mixer>_<rule>` are set for all runs.
    """
    known: dict[str, set[str]] = {"mix": set(), "protocol": set()}
    own: list[dict[str, set[str]]] = []
    for one in settings:
        options, rules = readable_settings(one.get("mix", {}))
        own.append({"mix": options, "protocol": rules})
        known["mix"] |= options
        known["protocol"] |= rules
    return [
        {
            group: {k: v for k, v in values.items() if k in mine[group] or k not in known[group]}
            if group in mine and isinstance(values, dict)
            else values
            for group, values in one.items()
        }
        for one, mine in zip(settings, own, strict=True)
    ]


def _check_choices(
    protocol: ProtocolSettings,
    data: DataSettings,
    train: TrainSettings,
    resources: Resources,
    logging: Logging,
) -> None:
    for name, value, valid in (
        (
            "protocol.parametrization",
            protocol.parametrization,
            parametrization.PARAMETRIZATIONS,
        ),
        ("data.name", data.name, CORPORA),
        ("data.eval_mode", data.eval_mode, EVAL_MODES),
        ("resources.device", resources.device, DEVICES),
        ("resources.precision", resources.precision, PRECISIONS),
        ("resources.compile", resources.compile, COMPILE),
        (
            "resources.activation_checkpointing",
            resources.activation_checkpointing,
            CHECKPOINTING,
        ),
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
    "resources.profile": 1,
    "train.max_skipped": 1,
    "logging.log_every": 1,
    "logging.checkpoint_every": 1,
    "train.weight_decay": 0,
    "train.grad_clip": 0,
    "train.z_loss": 0,
    "train.skip_sigma": 0,
    "protocol.tolerance": 0,
    "protocol.max_steps": 1,
    "protocol.mup_base_width": 1,
    "protocol.mup_base_head_width": 1,
    "protocol.mup_base_layers": 1,
    "size.context": 1,
}


def _check_ranges(parts: dict[str, Any]) -> None:
    for name, least in LEAST.items():
        group, key = name.split(".")
        value = getattr(parts[group], key)
        if value is not None and value < least:
            raise SettingError(f"{name}={value} must be at least {least}.")
    for group in ("mix", "size"):
        name = parts[group].name
        if not NAME.fullmatch(name):
            raise SettingError(
                f"{group}.name={name} must be letters, digits and underscores, as run folders are "
                "named by it."
            )
