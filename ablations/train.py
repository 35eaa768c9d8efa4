"""One controlled run: read the spec, train, evaluate at each milestone, write records.

The loop reads top to bottom: batch, gradient, skip or step, record; at a milestone evaluate and
keep a checkpoint. Nothing in it is random: initial weights are a function of seed and name,
batches of corpus, seed and step, so a run stopped anywhere and started again ends with the same
bits on the same device and thread count.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch

from ablations import checkpoint, provenance, tracking
from ablations.data.order import Batches, rolling_hash
from ablations.data.prepared import Corpus
from ablations.data.source import open_corpus
from ablations.evaluate.loss import evaluate, held_out
from ablations.optim import OutlierRule, build_adamw
from ablations.records import RunDirectory, project_root
from ablations.settings import to_dict
from ablations.spec import RunSpec
from models.errors import SettingError
from models.language_model import LanguageModel
from models.ops import backend

MICRO_BATCH_TOKENS = {"cpu": 8192, "cuda": 32768}
HEARTBEAT_SECONDS = 1.0


@dataclass
class Progress:
    """Where a run is; all of it is in every checkpoint."""

    step: int = 0
    skipped_steps: int = 0
    data_hash: str = ""
    seconds: float = 0.0
    rule: dict[str, list[float]] = field(default_factory=lambda: {"losses": [], "norms": []})


@dataclass(frozen=True)
class Hardware:
    """What the resources came to on this machine."""

    device: torch.device
    precision: str
    compiled: bool

    def autocast(self) -> AbstractContextManager[Any]:
        if self.precision == "fp32":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)


def choose_hardware(spec: RunSpec, say: Callable[[str], None]) -> Hardware:
    """Device, precision and compilation by the resources; `auto` by what this machine has."""
    wanted = spec.resources.device
    if wanted == "cuda" and not torch.cuda.is_available():
        raise SettingError("resources.device=cuda is not on this machine; valid here: auto, cpu.")
    kind = "cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu"
    precision = spec.resources.precision
    if precision == "auto":
        # Without matrix units for it, bf16 on a CPU is emulated and several times slower.
        fast = kind == "cuda" or torch.cpu._is_amx_tile_supported()
        precision = "bf16" if fast else "fp32"
    compiled = spec.resources.compile == "true" or (
        spec.resources.compile == "auto" and kind == "cuda"
    )
    if compiled and kind == "cpu" and not any(map(shutil.which, ("g++", "clang++", "c++"))):
        say("no C++ compiler found: training eagerly, without torch.compile")
        compiled = False
    return Hardware(torch.device(kind), precision, compiled)


def train(
    run: RunDirectory, spec: RunSpec, *, stop: Callable[[], bool], say: Callable[[str], None]
) -> str:
    """Bring a run to its end, from its last checkpoint if it has one.

    stop: asked after every step; when true the run saves and returns `preempted`.
    Returns the state it ended in: `done`, `preempted`, or `failed` is raised as an exception.
    """
    hardware = choose_hardware(spec, say)
    with _arithmetic(spec.resources.threads):
        return _train(run, spec, hardware, stop, say)


@contextlib.contextmanager
def _arithmetic(threads: int | None) -> Iterator[None]:
    """Denormals flushed to zero and `threads` in use; what the process had before comes back.

    Underflowing decay factors otherwise cost a CPU many times a normal multiplication. The flag
    is the whole thread's, so a caller that goes on to do other arithmetic needs it restored.
    """
    before = torch.get_num_threads()
    flushed = sys.float_info.min / 2 == 0.0
    torch.set_flush_denormal(True)
    if threads:
        torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_flush_denormal(flushed)
        torch.set_num_threads(before)


def _train(
    run: RunDirectory,
    spec: RunSpec,
    hardware: Hardware,
    stop: Callable[[], bool],
    say: Callable[[str], None],
) -> str:
    corpus = open_corpus(spec.data.name, spec.data.path, project_root() / ".cache" / "corpora")
    assert spec.corpus is not None
    if corpus.fingerprint != spec.corpus.fingerprint:
        raise SettingError(
            f"data={spec.data.name} holds another corpus (fingerprint {corpus.fingerprint[:12]}) "
            f"than when this run was planned ({spec.corpus.fingerprint[:12]}); plan it again."
        )
    model = LanguageModel(spec.model)
    model.initialize(spec.seed)
    model.to(hardware.device)
    optimizer = build_adamw(model, spec.recipe)
    progress = _resume(run, model, optimizer, say)
    _write_manifest(run, spec, hardware, corpus)
    if hardware.compiled:
        for block in model.blocks:
            block.compile(dynamic=False)
    tracker = tracking.start(spec.logging.wandb, run.path, spec.sweep, to_dict(spec))
    try:
        state = _loop(run, spec, hardware, corpus, model, optimizer, progress, stop, say, tracker)
    finally:
        tracker.finish()
    _status(run, spec, state, progress)
    return state


def _loop(
    run: RunDirectory,
    spec: RunSpec,
    hardware: Hardware,
    corpus: Corpus,
    model: LanguageModel,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    stop: Callable[[], bool],
    say: Callable[[str], None],
    tracker: tracking.Tracker,
) -> str:
    recipe = spec.recipe
    batches = Batches(
        corpus.train, corpus.fingerprint, recipe.context, recipe.batch_instances, spec.seed
    )
    domains = held_out(corpus, recipe.context, spec.data.eval_tokens)
    milestones = {m.step: m for m in recipe.milestones}
    rule = OutlierRule(recipe.skip_sigma)
    rule.restore(progress.rule)
    micro = spec.resources.micro_batch_tokens or MICRO_BATCH_TOKENS[hardware.device.type]
    rows = max(1, micro // recipe.context)
    flops = spec.counts.flops_per_token
    heartbeat = 0.0

    while progress.step < recipe.steps:
        begun = time.perf_counter()
        step = progress.step + 1
        batch = batches.batch(step - 1)
        progress.data_hash = rolling_hash(progress.data_hash, batch)
        loss, grad_norm = _gradient(model, batch, rows, recipe.z_loss, recipe.grad_clip, hardware)
        lr = recipe.lr(step)
        if rule.skips(loss, grad_norm):
            progress.skipped_steps += 1
        else:
            for group in optimizer.param_groups:
                group["lr"] = lr
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        elapsed = time.perf_counter() - begun
        progress.step, progress.seconds = step, progress.seconds + elapsed

        milestone = milestones.get(step)
        if milestone or step % spec.logging.log_every == 0 or step == recipe.steps:
            row = {
                "step": step,
                "tokens": step * recipe.batch_tokens,
                "loss": loss,
                "grad_norm": grad_norm,
                "lr": lr,
                "skipped_steps": progress.skipped_steps,
                "seconds": round(progress.seconds, 4),
                "tokens_per_second": round(recipe.batch_tokens / elapsed, 1),
            }
            run.append("metrics.jsonl", row)
            tracker.log(row)
        if milestone:
            measured = evaluate(model, domains, device=hardware.device, autocast=hardware.autocast)
            point = _point(spec, progress, milestone.chinchilla, measured, flops)
            run.append("points.jsonl", point)
            tracker.log({"step": step, "eval/loss": point["loss"], "eval/bpb": point["bpb"]})
            say(
                f"point {milestone.chinchilla:g}x Chinchilla: {point['D']:,} tokens, "
                f"loss {point['loss']:.4f}, {point['bpb']:.4f} bits per byte"
            )
        stopping = stop() and step < recipe.steps
        if milestone or step % spec.logging.checkpoint_every == 0 or stopping:
            progress.rule = rule.state()
            _save(run, model, optimizer, progress, set(milestones))
        if stopping:
            return "preempted"
        if time.monotonic() - heartbeat > HEARTBEAT_SECONDS:
            heartbeat = time.monotonic()
            _status(run, spec, "running", progress, loss=loss, lr=lr)
    return "done"


def _gradient(
    model: LanguageModel,
    batch: Any,
    rows: int,
    z_loss: float,
    grad_clip: float,
    hardware: Hardware,
) -> tuple[float, float]:
    """Gradients of the mean loss over a global batch, `rows` sequences at a time.

    Returns (training loss without z-loss, gradient norm before clipping).
    """
    tokens = torch.from_numpy(batch).to(hardware.device)
    n = tokens[:, 1:].numel()
    total = 0.0
    for part in tokens.split(rows):
        with hardware.autocast():
            nll, z2 = model.losses(part[:, :-1], part[:, 1:])
        ((nll.sum() + z_loss * z2.sum()) / n).backward()
        total += nll.detach().double().sum().item()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), grad_clip or float("inf"))
    return total / n, norm.item()


def _point(
    spec: RunSpec,
    progress: Progress,
    chinchilla: float,
    measured: dict[str, Any],
    flops_per_token: float,
) -> dict[str, Any]:
    counts, D = spec.counts, progress.step * spec.recipe.batch_tokens
    assert spec.corpus is not None
    return {
        "mix": spec.mix.name,
        "size": spec.size.name,
        "seed": spec.seed,
        "step": progress.step,
        "chinchilla": chinchilla,
        "N": counts.N,
        "N_total": counts.N_total,
        "N_body": counts.N_body,
        "D": D,
        "C": D * flops_per_token,
        "epochs": D / spec.corpus.train_tokens,
        **measured,
        "data_hash": progress.data_hash,
        "skipped_steps": progress.skipped_steps,
    }


def _save(
    run: RunDirectory,
    model: LanguageModel,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    milestones: set[int],
) -> None:
    content = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "progress": vars(progress),
    }
    checkpoint.save(run.checkpoints, progress.step, content)
    checkpoint.prune(run.checkpoints, milestones)


def _resume(
    run: RunDirectory,
    model: LanguageModel,
    optimizer: torch.optim.Optimizer,
    say: Callable[[str], None],
) -> Progress:
    content, warnings = checkpoint.load_latest(run.checkpoints)
    for warning in warnings:
        say(f"warning: {warning}")
    if content is None:
        progress = Progress()
    else:
        model.load_state_dict(content["model"])
        optimizer.load_state_dict(content["optimizer"])
        progress = Progress(**content["progress"])
        say(f"resumed at step {progress.step}")
    # Rows past the checkpoint are written anew, to the same bits.
    for file in ("metrics.jsonl", "points.jsonl"):
        if (run.path / file).exists():
            run.truncate(file, progress.step)
    return progress


def _write_manifest(run: RunDirectory, spec: RunSpec, hardware: Hardware, corpus: Corpus) -> None:
    code, diff = provenance.code(project_root())
    # One file a diff: a run resumed by changed code keeps both.
    if diff:
        name = f"code-{code['diff_sha256'][:8]}.diff"
        (run.path / name).write_text(diff, encoding="utf-8")
    try:
        before = run.read_manifest()
        earlier = [*before["earlier"], {k: before[k] for k in (*code, "device")}]
    except (FileNotFoundError, KeyError):
        earlier = []
    kind = hardware.device.type
    name = torch.cuda.get_device_name() if kind == "cuda" else provenance.cpu_name()
    run.write_manifest(
        {
            "run": run.name,
            **code,
            "versions": provenance.versions(),
            "device": {
                "kind": kind,
                "name": name,
                "threads": torch.get_num_threads(),
                "runs_at_once": int(os.environ.get("ARCHLADDER_RUNS_AT_ONCE", "1")),
            },
            "precision": hardware.precision,
            "backends": backend.NAMES,
            "compiled": hardware.compiled,
            "counts": to_dict(spec.counts),
            "data": {
                "name": spec.data.name,
                "fingerprint": corpus.fingerprint,
                "train_tokens": len(corpus.train),
                "vocab_size": corpus.vocab_size,
            },
            "matched": spec.matched,
            "earlier": earlier,
            "command": provenance.redact(os.environ.get("ARCHLADDER_COMMAND", "")),
        }
    )


def _status(
    run: RunDirectory, spec: RunSpec, state: str, progress: Progress, **extra: float
) -> None:
    run.write_status(
        state,
        step=progress.step,
        steps=spec.recipe.steps,
        tokens=progress.step * spec.recipe.batch_tokens,
        seconds=round(progress.seconds, 2),
        heartbeat=time.time(),
        **extra,
    )
