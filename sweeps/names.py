"""Names of settings: those there are, and what somebody meant who gave another. No numpy."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ablations.spec import SETTINGS
from models.errors import SettingError
from models.mix import readable_settings
from models.settings import flatten
from sweeps.cluster import Local, Shape, Slurm
from sweeps.compose import DRIVER

GROUPS = ("mix", "size", "protocol", "data", "train", "cluster", "experiment")
"""Folders of conf/, an option of each to be chosen."""
NEAR = 0.6
"""Share of letters in common from which a second and third name are worth telling."""
OPEN = ("mix.kinds", "cluster.sizes")
"""Settings whose keys the user names."""
HABITS = (
    (
        "lr learning_rate max_lr peak_lr base_lr",
        "protocol.lr_multiplier",
        "it multiplies the rate that the ladder's rule gives a size",
    ),
    (
        "steps max_iters n_steps num_steps train_steps total_steps iters max_steps num_iterations "
        "epochs num_epochs tokens n_tokens max_tokens train_tokens budget",
        "protocol.chinchilla, protocol.max_steps",
        "the first sets its length in multiples of 20 tokens per parameter, the second ends a try",
    ),
    (
        "warmup warmup_steps warmup_ratio warmup_iters min_lr lr_decay scheduler lr_scheduler",
        "protocol.schedule, protocol.decay_fraction",
        "the warm-up is one token per parameter by rule",
    ),
    (
        "batch_size bs batch global_batch_size train_batch_size",
        "protocol.batch_tokens",
        "batches are counted in tokens, by the ladder's rule where it is null",
    ),
    (
        "micro_batch_size device_batch_size grad_accum gradient_accumulation_steps",
        "resources.micro_batch_tokens",
        "what one forward pass takes changes no batch",
    ),
    ("optimizer opt", "train=muon, train=adamw", "an optimizer comes with its constants"),
    ("wd decay", "train.weight_decay", "it is one number at every size"),
    ("clip clip_grad max_grad_norm gradient_clip_val", "train.grad_clip", "the norm is clipped"),
    (
        "n_layer num_layers num_hidden_layers layers depth",
        "size.n_layers",
        "a size is the blueprint of its transformer",
    ),
    (
        "d_model dim hidden_size hidden_dim n_embd embed_dim width",
        "size.d_model",
        "a size is the blueprint of its transformer",
    ),
    (
        "n_head num_heads num_attention_heads heads",
        "size.n_heads",
        "a size is the blueprint of its transformer",
    ),
    (
        "d_ff ffn_dim intermediate_size mlp_ratio",
        "size.mlp_hidden",
        "it is the transformer's, and the match moves it for other mixes",
    ),
    (
        "seq_len seq_length sequence_length block_size max_seq_len ctx context_length n_ctx",
        "size.context",
        "it is the length of a training sequence",
    ),
    ("seeds random_seed", "seed", "several are several runs: -m seed=0,1,2"),
    (
        "arch architecture model model_name mixer layer_type attention",
        "mix",
        "a mix says which mixer stands in which layer; python -m models lists them",
    ),
    ("model_size scale preset params", "size", "sizes are named by N, like size=60m"),
    (
        "dataset dataset_path data_dir data_path corpus",
        "data.path",
        "it names the folder of a prepared corpus, with data=tokens",
    ),
    ("tokenizer vocab_size", "data", "a corpus brings its tokenizer and vocabulary"),
    (
        "gpus n_gpus num_gpus ngpus devices world_size nproc_per_node",
        "cluster.gpus, resources.devices",
        "GPUs train one run together, by the first on Slurm and by the second here",
    ),
    ("num_nodes n_nodes nnodes", "cluster.nodes", "nodes train one run together, on Slurm"),
    ("time time_limit walltime timeout", "cluster.minutes", "it is the limit of a Slurm job"),
    (
        "jobs n_jobs num_workers workers parallel concurrency",
        "max_parallel",
        "it bounds the runs at a time",
    ),
    ("launcher slurm", "cluster=slurm", "where a sweep runs is a group"),
    ("dtype bf16 fp16 amp mixed_precision", "resources.precision", "auto is bf16 where it is fast"),
    ("torch_compile jit", "resources.compile", "auto compiles on a GPU"),
    (
        "gradient_checkpointing remat",
        "resources.activation_checkpointing",
        "true recomputes each block in the backward pass, selective its cheap operations",
    ),
    (
        "profiler trace use_profiler profile_steps",
        "resources.profile",
        "it is the steps that torch.profiler traces",
    ),
    (
        "name run_name exp_name experiment_name project wandb_project",
        "sweep",
        "it names the folder of all runs that are compared",
    ),
    ("out_dir output_dir save_dir log_dir", "runs", "it is the folder that sweeps lie in"),
    ("log_interval log_every_n_steps", "logging.log_every", "it is in steps"),
    ("save_interval save_every save_steps", "logging.checkpoint_every", "it is in steps"),
    (
        "eval_interval eval_every eval_steps",
        "protocol.chinchilla",
        "a run is evaluated at each of its multiples",
    ),
    ("use_wandb report_to", "logging.wandb", "it is off, auto, offline or online"),
    (
        "resume resume_from load_from",
        "sweep",
        "the same command again goes on with what was stopped in it",
    ),
    ("dry dryrun plan_only", "plan=true", "it shows what a sweep would cost and starts nothing"),
)
"""(names that other codebases have, what to set here, why)."""


def settings_of_all() -> list[str]:
    """Every setting by its dotted name, the mixers' own that come with the project included."""
    options, rules = readable_settings({})
    clusters = {f"cluster.{name}" for cls in (Local, Slurm, Shape) for name in _fields(cls)}
    return sorted(
        {"sweep", "seed", *GROUPS, *DRIVER}
        | {f"{group}.{name}" for group, cls in SETTINGS.items() for name in _fields(cls)}
        | {f"mix.{name}" for name in options}
        | {f"protocol.{name}" for name in rules}
        | clusters - {"cluster.default"}
    )


def check_names(composed: Sequence[Mapping[str, Any]]) -> None:
    """Raise SettingError for a setting of a run that is none, as with `+` before it."""
    known = set(settings_of_all())
    for settings in composed:
        mix = settings.get("mix")
        options, rules = readable_settings(mix if isinstance(mix, Mapping) else {})
        own = {f"mix.{name}" for name in options} | {f"protocol.{name}" for name in rules}
        for name in flatten(settings):
            if name not in known | own and not name.startswith(OPEN):
                raise not_a_setting(name, known | own)


def not_a_setting(name: str, valid: Iterable[str] = ()) -> SettingError:
    """The sentence for `name`: what it usually means elsewhere, and the nearest settings."""
    every = settings_of_all()
    group, _, last = name.rpartition(".")
    if not valid and name in every:
        other = "cluster=slurm has it" if group == "cluster" else f"+{name}=… sets it all the same"
        return SettingError(f"{name} is not in the option of {group} that was chosen; {other}.")
    meant = next(((to, why) for names, to, why in HABITS if last.lower() in names.split()), None)
    usually = f"; usually meant: {meant[0]}, as {meant[1]}" if meant else ""
    near = ", ".join(_nearest(name, {*valid} or every))
    return SettingError(
        f"{name} is not a setting{usually}; nearest by name: {near}; all: "
        "python sweeps/run.py --cfg job."
    )


def _nearest(name: str, valid: Iterable[str]) -> list[str]:
    """At most three settings, by the whole name or by what stands behind its last dot."""

    def alike(setting: str) -> float:
        whole = difflib.SequenceMatcher(None, name, setting).ratio()
        ends = name.rpartition(".")[2], setting.rpartition(".")[2]
        # A group that is right decides between settings of one name.
        return max(whole, 0.95 * difflib.SequenceMatcher(None, *ends).ratio())

    first, *others = sorted(valid, key=lambda setting: (-alike(setting), setting))
    return [first, *(setting for setting in others[:2] if alike(setting) > NEAR)]


def _fields(cls: type) -> list[str]:
    return [f.name for f in dataclasses.fields(cls) if not f.metadata.get("open")]
