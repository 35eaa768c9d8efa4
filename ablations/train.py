"""One controlled run: read the spec, train, evaluate at each milestone, write records.

The loop reads top to bottom: batch, gradient, skip or step, record; at a milestone evaluate and
keep a checkpoint. Nothing in it is random: initial weights are a function of seed and name,
batches of corpus, seed and step, so a run stopped anywhere and started again ends with the same
bits on the same devices and thread count.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.state_dict import (
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.tensor import DTensor

from ablations import formats, micro_batch, provenance, tracking
from ablations.checkpoint import Checkpoints
from ablations.data.order import Batches
from ablations.data.prepared import Corpus
from ablations.data.source import decoder, open_corpus, read_parts, token_texts
from ablations.data.verify import Part, Verification, verify
from ablations.distributed import Parallel, World, choose_parallel, environment, joined
from ablations.evaluate import budget
from ablations.evaluate.classes import classify
from ablations.evaluate.loss import evaluate, held_out
from ablations.evaluate.probes import Probes
from ablations.evaluate.samples import Samples
from ablations.feed import Feed, StepBatch
from ablations.hardware import (
    Hardware,
    arithmetic,
    choose_hardware,
    choose_operators,
)
from ablations.optim import (
    Outcome,
    OutlierRule,
    build_optimizers,
    decided_here,
    set_rate,
    step_unless,
)
from ablations.profiling import traced
from ablations.records import DamagedRecord, RunDirectory, project_root
from ablations.resources import cost_of_operators, no_room
from ablations.spec import RunSpec
from models.checkpoint_files import read_index, step_folder
from models.devices import mfu
from models.documents import Documents
from models.errors import SettingError
from models.format import percent
from models.language_model import LanguageModel
from models.ops import backend
from models.settings import to_dict

HEARTBEAT_SECONDS = 1.0
WAIT_SECONDS = 1.0
STOP_SECONDS = 20.0  # a stopped run's wait for its data to be verified; Slurm kills after 30
READ_EVERY = 50
"""Steps after which the host waits for a device's decisions, if nothing was logged before."""
FILES = ("metrics.jsonl", "points.jsonl", "probes.jsonl", "samples.jsonl")
PLACEMENT = ("device", "precision", "parallel", "backends", "compiled", "micro_batch_rows")
"""Of the manifest: what a run computed on and how, which decides how its sums round."""


class TrainingFailed(RuntimeError):
    """A run that cannot go on, in one sentence."""


@dataclass
class Progress:
    """Where a run is; all of it is in every checkpoint."""

    step: int = 0
    skipped_steps: int = 0
    skipped_in_a_row: int = 0
    data_hash: str = ""
    seconds: float = 0.0
    rule: dict[str, list[float]] = field(default_factory=lambda: {"losses": [], "norms": []})


def train(
    run: RunDirectory, spec: RunSpec, *, stop: Callable[[], bool], say: Callable[[str], None]
) -> str:
    """Bring a run to its end, from its last checkpoint if it has one.

    stop: asked after every step; when true the run saves and returns `preempted`.
    Returns the state it ended in, `done` or `preempted`. Raises SettingError on what the user can
    mend, TrainingFailed where the run diverged. Under torchrun or srun every rank calls this.
    """
    world = environment()
    if not world.first:
        say = _nothing
    hardware = choose_hardware(spec, world, say)
    kind = hardware.device.type
    with arithmetic(spec.resources.threads), joined(world, kind, stop) as together:
        if not together:
            if world.first:
                status = {k: v for k, v in run.read_status().items() if k != "error"}
                run.write_status(**{**status, "state": "preempted"})
            return "preempted"
        operators = choose_operators(spec, hardware)
        if operators is None:
            return Trainer(run, spec, hardware, world, say).run_to_end(stop)
        slow = cost_of_operators(operators.backends.values(), kind == "cuda")
        say(f"recurrent operators: {operators.reason}{f' Cost: {slow}.' if slow else ''}")
        with backend.using(operators):
            return Trainer(run, spec, hardware, world, say).run_to_end(stop)


def _nothing(_text: str) -> None:
    """What a rank other than the first says."""


class Trainer:
    """A run being trained by this process, alone or with other ranks."""

    def __init__(
        self,
        run: RunDirectory,
        spec: RunSpec,
        hardware: Hardware,
        world: World,
        say: Callable[[str], None],
    ) -> None:
        self.run, self.spec, self.hardware, self.world, self.say = run, spec, hardware, world, say
        self.plain_spec = to_dict(spec)
        self.recipe, self.device = spec.recipe, hardware.device
        self.cache_dir = project_root() / ".cache" / "corpora"
        self.corpus = open_corpus(spec.data.name, spec.data.path, self.cache_dir)
        _check_corpus(spec, self.corpus)
        # All of the held-out text is read below; the training files are verified meanwhile.
        verify(read_parts(spec.data.name, spec.data.path, self.cache_dir))
        recipe = self.recipe
        self.share = world.share(recipe.batch_instances)
        how = choose_parallel(
            spec.resources.parallel, spec.counts.N_total, world, hardware.memory_bytes
        )
        self.memory = micro_batch.counted(spec, hardware, how, world)
        self.rows = micro_batch.choose_rows(
            spec,
            world.largest_share(recipe.batch_instances),
            hardware,
            self.memory,
            world,
            self._manifest_before(),
        )
        self.batches = Batches(
            self.corpus.train,
            self.corpus.fingerprint,
            recipe.context,
            recipe.batch_instances,
            spec.seed,
        )
        self.domains = held_out(
            self.corpus, recipe.context, spec.data.eval_tokens, spec.data.eval_mode
        )
        texts = token_texts(spec.data.name, spec.data.path, self.corpus)
        self.classes = classify(self.domains, self.corpus.separator, texts)
        self.separator = self.corpus.separator if spec.data.document_mask else None
        self.probes = self._probes() if spec.evaluation.probes else None
        self.samples: Samples | None = None
        if spec.evaluation.samples:
            decode = decoder(spec.data.name, spec.data.path)
            self.samples = Samples(spec.evaluation, self.corpus, decode, hardware.autocast)
        self.milestones = {m.step: m for m in recipe.milestones}

        self.model = LanguageModel(spec.model)
        self.model.initialize(spec.seed)
        self.model.to(self.device)
        self.model.recompute = spec.resources.activation_checkpointing
        if hardware.compiled:
            self.model.compile_blocks()
            self.model.head_compiled = self.device.type == "cuda"
        self.parallel = Parallel(
            self.model, how, world, self.device, bf16=hardware.precision == "bf16"
        )
        self.optimizers = build_optimizers(self.model, recipe, spec.train.optim)
        self.checkpoints = Checkpoints(run.checkpoints, keep_steps=set(self.milestones))
        self.progress = Progress()
        self.verified = False
        """Whether what this run reads is known to be whole."""
        self._resume()
        self._try_micro_batch()
        self.recent: list[float] = []
        """Seconds of the last steps, for the rate that is shown."""
        self.last_bpb: float | None = None

    def _probes(self) -> Probes:
        spec, recipe = self.spec, self.recipe
        share = budget.share_of_run(
            spec.evaluation, spec.model, recipe.context, recipe.tokens, len(recipe.milestones)
        )
        self.say(f"probes at every point: {percent(share)} of training's FLOPs")
        return Probes(
            spec.evaluation, self.corpus, recipe.context, device=self.device,
            autocast=self.hardware.autocast, separator=self.separator, world=self.world,
        )  # fmt: skip

    @property
    def parts(self) -> int:
        """Passes of a step: those of the rank that has most sequences."""
        return -(-self.world.largest_share(self.recipe.batch_instances) // self.rows)

    def _try_micro_batch(self) -> None:
        """On a GPU whose memory chose the micro-batch: one pass as a step has it, and half as many
        sequences where they do not fit."""
        memory, recipe = self.hardware.memory_bytes, self.recipe
        chosen = memory is not None and self.spec.resources.micro_batch_tokens is None
        # Ranks meet inside the passes of a sharded model: one that fails there would not return.
        if (
            not chosen
            or self.parallel.how in ("fsdp", "hsdp")
            or self.progress.step == recipe.steps
        ):
            return
        batch = torch.from_numpy(self.batches.batch(self.progress.step)[self.share])

        def attempt(rows: int) -> None:
            tokens = batch[:rows].to(self.device)
            inputs, targets = tokens[:, :-1], tokens[:, 1:]
            documents = None
            if self.separator is not None:
                documents = Documents.after(self.separator, inputs)
            with micro_batch.as_in_training(self.model, self.optimizers):
                with self.hardware.autocast():
                    loss, _ = self.parallel.loss(
                        inputs, targets, documents, weight=1.0, z_loss=recipe.z_loss, last=False
                    )
                loss.backward()

        share = self.world.largest_share(recipe.batch_instances)
        rows = micro_batch.rows_that_run(self.rows, share, attempt, self.world.any)
        if not rows:
            self.rows = 1
            raise self._no_room()
        halved = f", as {self.rows} did not fit" if rows < self.rows else ""
        self.rows = rows
        self.say(f"micro-batch: {rows} of {share} sequences, by the GPU's memory{halved}")

    def _no_room(self) -> SettingError:
        return no_room(self.spec, self.rows, self.memory, self.hardware.memory_bytes or 0)

    def run_to_end(self, stop: Callable[[], bool]) -> str:
        """Train until the last step, or until `stop` says so on any rank."""
        self.tracker: tracking.Tracker = tracking.Silent()
        remade = self._remake_points()
        if self.world.first:
            if remade or self.progress.step < self.recipe.steps or not self._manifest_before():
                self._write_manifest()
            spec, counts = self.spec, self.spec.counts
            config = {
                **to_dict(spec),
                **to_dict(counts),
                "C": spec.recipe.tokens * counts.flops_per_token,
            }
            self.tracker = tracking.start(spec.logging.wandb, self.run.path, spec.sweep, config)
        try:
            with self._feed() as feed, self._trace() as after_a_step:
                state = self._loop(feed, stop, after_a_step)
        except torch.OutOfMemoryError:
            raise self._no_room() from None
        except Exception:
            # A damaged file may hold ids beyond the vocabulary, or make a run diverge: say so then.
            self.verification.wait(STOP_SECONDS)
            if self.verification.error is not None:
                raise SettingError(self.verification.error) from None
            raise
        finally:
            try:
                self.checkpoints.wait()
            finally:
                self.tracker.finish()
        missing = formats.lacking(self.plain_spec, dict.fromkeys(self._recorded()))
        if state == "done" and missing:
            self._status("running")
            raise TrainingFailed(
                f"{missing}, and no whole checkpoint of it is kept to evaluate again; the other "
                "points stay, and without its checkpoints/ the run trains from its beginning"
            )
        self._status(state)
        return state

    def _loop(self, feed: Feed, stop: Callable[[], bool], after_a_step: Callable[[], None]) -> str:
        recipe, progress, spec = self.recipe, self.progress, self.spec
        heartbeat = 0.0
        self.rule = OutlierRule(recipe.skip_sigma, spec.train.max_skipped, self.device)
        self.rule.restore(progress.rule, progress.skipped_steps, progress.skipped_in_a_row)
        at_once, known = decided_here(self.device), {}
        logged = progress.step, progress.seconds
        self.verification = Verification(self._files_to_verify)
        while progress.step < recipe.steps:
            begun = time.perf_counter()
            step = progress.step + 1
            batch = feed.take()
            progress.data_hash = batch.data_hash
            skip = self.rule.skips(step, *self._gradient(batch))
            lr = recipe.lr(step)
            for optimizer in self.optimizers:
                set_rate(optimizer, lr)
                step_unless(optimizer, skip)
                optimizer.zero_grad(set_to_none=True)
            milestone = self.milestones.get(step)
            logs = milestone or step % spec.logging.log_every == 0 or step == recipe.steps
            due = step % spec.logging.checkpoint_every == 0
            if at_once or logs or due or step % READ_EVERY == 0:
                outcome = self._read_outcome()
                known = {"loss": outcome.loss, "lr": lr}
            elapsed = time.perf_counter() - begun
            progress.step, progress.seconds = step, progress.seconds + elapsed
            self.recent = [*self.recent[-19:], elapsed]

            if logs:
                tokens = (step - logged[0]) * recipe.batch_tokens
                seconds = progress.seconds - logged[1]
                logged = step, progress.seconds
                self._record(
                    "metrics.jsonl",
                    {
                        "step": step,
                        "tokens": step * recipe.batch_tokens,
                        "loss": outcome.loss,
                        "grad_norm": outcome.grad_norm,
                        "lr": lr,
                        "skipped_steps": progress.skipped_steps,
                        "seconds": round(progress.seconds, 4),
                        "tokens_per_second": round(tokens / seconds, 1),
                        **self._mfu(tokens, seconds),
                    },
                )
            if milestone:
                if not self._verified(stop):
                    return "preempted"
                self._take_point(milestone.chinchilla)
            ending = stop() or self.verification.error is not None
            stopping = self.world.any(ending) and step < recipe.steps
            # While steps are being skipped the checkpoint before is the last good one.
            if milestone or (due and not progress.skipped_in_a_row) or stopping:
                if not self._verified(stop):
                    return "preempted"
                self._read_outcome()
                self._save()
            after_a_step()
            if stopping:
                return "preempted"
            if time.monotonic() - heartbeat > HEARTBEAT_SECONDS:
                heartbeat = time.monotonic()
                self._status("running", **known)
        return "done"

    def _feed(self) -> Feed:
        """The batches that are left, read ahead; hashed by the rank that writes the records."""
        progress = self.progress
        return Feed(
            self.batches, progress.step, self.recipe.steps,
            share=self.share, rows=self.rows, passes=self.parts, separator=self.separator,
            data_hash=progress.data_hash if self.world.first else None, device=self.device,
        )  # fmt: skip

    def _trace(self) -> AbstractContextManager[Callable[[], None]]:
        steps = self.spec.resources.profile
        left = self.recipe.steps - self.progress.step
        wanted = steps if self.world.first and left else None
        return traced(wanted, self.run.path, self.device, self.say)

    def _files_to_verify(self) -> list[Part]:
        """What this run reads of its corpus: the work of one rank a node."""
        if self.world.local_rank:
            return []
        data = self.spec.data
        read = self.batches.files_read(self.recipe.steps)
        return read_parts(data.name, data.path, self.cache_dir, read)

    def _verified(self, stop: Callable[[], bool]) -> bool:
        """Wait until the data read is known to be whole: nothing is kept that was trained on
        other data. False where a stop would have to wait too long: the last steps are lost.

        Raises SettingError on every rank where a file is damaged.
        """
        begun, told = time.monotonic(), False
        while not self.verified:
            through = self.verification.wait(WAIT_SECONDS)
            # Each rank's clock began at another time: all leave by what all were told.
            late = time.monotonic() - begun > STOP_SECONDS
            ranks = self.world.gather((through, self.verification.error, stop(), late))
            for _, error, _, _ in ranks:
                if error:
                    raise SettingError(error)
            self.verified = all(rank[0] for rank in ranks)
            if self.verified:
                break
            if any(rank[2] for rank in ranks):
                if any(rank[3] for rank in ranks):
                    self.say("stopped before the data was verified; no step since is kept")
                    return False
            elif not told:
                told = True
                self.say("waiting until the corpus is verified, once a machine")
            self._status("running")
        return True

    def _gradient(self, batch: StepBatch) -> tuple[Tensor, Tensor]:
        """Gradients of the mean loss over a global batch, a micro-batch at a time.

        Returns (training loss without z-loss, gradient norm before clipping), over all ranks, on
        the device.
        """
        recipe, n = self.recipe, batch.predictions
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        for i, part in enumerate(batch.parts, 1):
            # Ranks average their gradients, so each weighs its own by how many there are.
            weight = self.world.size / n if part.counts else 0.0
            with self.hardware.autocast():
                loss, nll = self.parallel.loss(
                    part.inputs, part.targets, part.documents,
                    weight=weight, z_loss=recipe.z_loss, last=i == len(batch.parts),
                )  # fmt: skip
            loss.backward()
            if part.counts:
                total += nll.double().sum()
        # A GPU divides by a plain number by multiplying with its inverse.
        mean = self.world.sum(total) / torch.full_like(total, n)
        limit = recipe.grad_clip or float("inf")
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), limit)
        if isinstance(norm, DTensor):
            norm = norm.full_tensor()
        return mean, norm

    def _read_outcome(self) -> Outcome:
        """What became of the steps up to here; waits for them.

        Raises TrainingFailed where too many in a row were skipped.
        """
        outcome = self.rule.read()
        self.progress.skipped_steps = outcome.skipped
        self.progress.skipped_in_a_row = outcome.skipped_in_a_row
        if outcome.diverged:
            step, loss, grad_norm = outcome.diverged
            raise TrainingFailed(
                f"diverged: {self.spec.train.max_skipped} steps in a row up to {step} were skipped "
                f"(train.max_skipped), the last with loss {loss:.4g} and gradient norm "
                f"{grad_norm:.4g}; the checkpoints before are kept"
            )
        return outcome

    def _take_point(self, chinchilla: float) -> None:
        spec, progress, counts = self.spec, self.progress, self.spec.counts
        measured = evaluate(
            self.model,
            self.domains,
            device=self.device,
            autocast=self.hardware.autocast,
            separator=self.separator,
            world=self.world,
            classes=self.classes,
            **self._evaluation_pass(),
        )
        D = progress.step * self.recipe.batch_tokens
        point = {
            "mix": spec.mix.name,
            "size": spec.size.name,
            "seed": spec.seed,
            "step": progress.step,
            "chinchilla": chinchilla,
            "N": counts.N,
            "N_total": counts.N_total,
            "N_body": counts.N_body,
            "D": D,
            "C": D * counts.flops_per_token,
            "epochs": D / len(self.corpus.train),
            "repeated_tokens": self.batches.repeated_tokens(progress.step),
            **measured,
            "data_hash": progress.data_hash,
            "skipped_steps": progress.skipped_steps,
        }
        self._record("points.jsonl", point)
        self.last_bpb = point["bpb"]
        is_try = self.recipe.ladder_steps is not None
        what = "end of a try, no point of the ladder," if is_try else "point"
        self.say(
            f"{what} {chinchilla:g}x Chinchilla: {D:,} tokens, "
            f"loss {point['loss']:.4f}, {point['bpb']:.4f} bits per byte"
        )
        if self.probes is not None:
            for row in self.probes.measure(self.model):
                self._record("probes.jsonl", {"step": progress.step, **row})
        if self.samples is not None:
            for row in self.samples.rows(self.model):
                self._record("samples.jsonl", {"step": progress.step, **row})

    def _evaluation_pass(self) -> dict[str, Any]:
        """On a GPU as many sequences as a micro-batch has, which fit without activations too."""
        if self.hardware.memory_bytes is None:
            return {}
        return {"batch_tokens": self.rows * self.recipe.context}

    def _record(self, file: str, row: dict[str, Any]) -> None:
        if not self.world.first:
            return
        self.run.append(file, row)
        if file == "samples.jsonl" or row["step"] <= self.last_tracked_step[file]:
            return  # the tracker has this row, with these numbers, from before a stop
        tokens = row["step"] * self.recipe.batch_tokens
        if file == "points.jsonl":
            place = f"at {row['chinchilla']:g}x"
            self.tracker.summarize(
                {f"{place}/{name}": row[name] for name in ("loss", "bpb", "D", "C")}
            )
            row = {
                "step": row["step"],
                "eval/loss": row["loss"],
                "eval/bpb": row["bpb"],
                **{f"eval/{name}/bpb": sums["bpb"] for name, sums in row["domains"].items()},
            }
        elif file == "probes.jsonl":
            by_position = row["probe"] == "positions"
            name = f"positions/{row['from']}" if by_position else f"{row['probe']}/{row['length']}"
            value = row["bpb"] if by_position else row["accuracy"]
            row = {"step": row["step"], f"probes/{name}": value}
        self.tracker.log({**row, "tokens": tokens})

    def _state(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "optimizer": get_optimizer_state_dict(self.model, self.optimizers),
            "progress": dict(vars(self.progress)),
        }

    def _save(self) -> None:
        self.progress.rule = self.rule.state()
        self.checkpoints.save(self.progress.step, self._state())

    def _resume(self) -> None:
        steps = self.recipe.steps
        # Killed behind the last point, a run has its last checkpoint to write yet.
        killed = self.run.read_status().get("step", steps) < steps
        kept = any(self.run.checkpoints.glob("step-*"))
        killed, kept = self.checkpoints.from_first((killed, kept))
        if set(self.milestones) == set(self._recorded()) and not (killed and kept):
            self.progress.step = steps
            self.say("every point is recorded: nothing to train")
        elif kept:
            self._take_newest()
        # Rows past the checkpoint are written anew, to the same bits.
        self.last_tracked_step = dict.fromkeys(FILES, self.progress.step)
        if self.world.first:
            for file in FILES:
                self._keep_rows(file)

    def _keep_rows(self, file: str) -> None:
        """Rows up to the checkpoint stay; what is none of this run's is dropped, and said."""
        rows, faults = list(self.run.rows(file)), self.run.faults(file)
        if file == "points.jsonl":
            points, others = formats.sound_points(rows, self.plain_spec)
            rows, faults = list(points.values()), faults + others
        steps = [row["step"] for row in rows if row["step"] <= self.recipe.steps]
        self.last_tracked_step[file] = max([self.progress.step, *steps])
        kept = [row for row in rows if row["step"] <= self.progress.step]
        for fault in faults:
            self.say(f"warning: {fault}; dropped")
        if (self.run.path / file).exists():
            self.run.write_rows(file, kept)

    def _take_newest(self) -> None:
        """Weights, optimizer and progress of the newest whole checkpoint, where there is one."""
        state = self._state()
        step, warnings = self.checkpoints.load(state)
        for warning in warnings:
            self.say(f"warning: {warning}")
        # Asking an optimizer for its state gave it one; without a checkpoint it has none.
        self.optimizers = build_optimizers(self.model, self.recipe, self.spec.train.optim)
        if step is not None:
            self.model.load_state_dict(state["model"])
            set_optimizer_state_dict(
                self.model, self.optimizers, optim_state_dict=state["optimizer"]
            )
            self.progress = Progress(**state["progress"])
            self.say(f"resumed at step {self.progress.step}")

    def _recorded(self) -> list[int]:
        """Steps of the run's points, by the first rank, which writes them."""
        points: dict[int, Any] = {}
        if self.world.first:
            points, _ = formats.sound_points(list(self.run.rows("points.jsonl")), self.plain_spec)
        return self.checkpoints.from_first(list(points))

    def _remake_points(self) -> bool:
        """Evaluate again, from the checkpoints kept of them, milestones behind that have no point.

        Returns whether there were such.
        """
        recorded, remade = self._recorded(), False
        for step in [s for s in self.milestones if s <= self.progress.step and s not in recorded]:
            state = self._state()
            if reason := self.checkpoints.load_step(step, state):
                self.say(f"warning: the point of step {step} is lost, and its checkpoint: {reason}")
                continue
            self.model.load_state_dict(state["model"])
            self.progress = Progress(**state["progress"])
            self.say(f"the point of step {step} is lost: its checkpoint is evaluated again")
            if self.world.first and self.probes is not None:
                self._drop("probes.jsonl", step, ("probe", "length"), set(self.probes.wanted))
            if self.world.first and self.samples is not None:
                self._drop("samples.jsonl", step, (), {()})
            self._take_point(self.milestones[step].chinchilla)
            remade = True
        if remade:
            self._take_newest()
        if self.world.first:
            for file in ("points.jsonl", "probes.jsonl", "samples.jsonl") if remade else ():
                self._put(file, self.run.rows(file))
            self._remake_metrics()
        return remade

    def _drop(self, file: str, step: int, key: tuple[str, ...], again: set[Any]) -> None:
        """Make room for the rows of a step that are about to be made again; the others stay."""
        rows = list(self.run.rows(file))
        kept = [r for r in rows if r["step"] != step or tuple(r[name] for name in key) not in again]
        if kept != rows:
            self.run.write_rows(file, kept)

    def _remake_metrics(self) -> None:
        """A row at each milestone behind, where it is lost, with what its checkpoint knows."""
        rows = list(self.run.rows("metrics.jsonl"))
        logged = {row["step"] for row in rows}
        lost = [s for s in self.milestones if s <= self.progress.step and s not in logged]
        for step in lost:
            with contextlib.suppress(OSError, ValueError, KeyError):  # a torn one is warned of
                told = read_index(step_folder(self.run.checkpoints, step))["values"]["progress"]
                rows.append(
                    {
                        "step": step,
                        "tokens": step * self.recipe.batch_tokens,
                        "lr": self.recipe.lr(step),
                        "skipped_steps": told["skipped_steps"],
                        "seconds": round(told["seconds"], 4),
                    }
                )
        if lost:
            self._put("metrics.jsonl", rows)
        if not self.progress.seconds:  # nothing was trained: what was measured then stays
            self.progress.seconds = max((row.get("seconds") or 0.0 for row in rows), default=0.0)

    def _put(self, file: str, rows: Iterable[dict[str, Any]]) -> None:
        """Replace a file's rows, in the order of their steps; none leave it as it is."""
        if ordered := sorted(rows, key=lambda row: row["step"]):
            self.run.write_rows(file, ordered)

    def _write_manifest(self) -> None:
        run, spec, hardware, world = self.run, self.spec, self.hardware, self.world
        code, diff = provenance.code(project_root())
        # One file a diff: a run resumed by changed code keeps both.
        if diff:
            name = f"code-{code['diff_sha256'][:8]}.diff"
            run.write(name, diff)
        if before := self._manifest_before():
            start = {key: before[key] for key in (*code, *PLACEMENT) if key in before}
            earlier = [*before.get("earlier", []), start]
        else:
            # What the steps behind were made by is not known any more, and must not seem to be.
            earlier = [{"revision": "not recorded"}] if self.progress.step else []
        run.write_manifest(
            {
                "run": run.name,
                **code,
                "versions": provenance.versions(),
                "device": {
                    "kind": hardware.device.type,
                    "name": hardware.name,
                    "count": world.size,
                    "threads": torch.get_num_threads(),
                    "runs_at_once": int(os.environ.get("ARCHLADDER_RUNS_AT_ONCE", "1")),
                },
                "precision": hardware.precision,
                "parallel": self.parallel.how,
                "backends": backend.in_use(),
                "compiled": hardware.compiled,
                "micro_batch_rows": self.rows,
                "counts": to_dict(spec.counts),
                "data": {
                    "name": spec.data.name,
                    "fingerprint": self.corpus.fingerprint,
                    "train_tokens": len(self.corpus.train),
                    "vocab_size": self.corpus.vocab_size,
                },
                "matched": spec.matched,
                "earlier": earlier,
                "command": provenance.redact(os.environ.get("ARCHLADDER_COMMAND", "")),
            }
        )

    def _manifest_before(self) -> dict[str, Any]:
        """The manifest of the start before; empty where there is none that can be read."""
        try:
            before = self.run.read_manifest()
        except (FileNotFoundError, DamagedRecord):
            return {}
        return before if before.get("run", self.run.name) == self.run.name else {}

    def _mfu(self, tokens: int, seconds: float) -> dict[str, float]:
        """`mfu` of so many tokens trained in so many seconds, where the devices' peak is known."""
        flops = tokens * self.spec.counts.flops_per_token
        share = mfu(self.hardware.name, self.world.size, flops, seconds)
        return {} if share is None else {"mfu": share}

    def _status(self, state: str, **extra: float) -> None:
        if not self.world.first:
            return
        progress, recipe = self.progress, self.recipe
        # The last step is told of once all of it is kept, which `_resume` relies on.
        step = min(progress.step, recipe.steps - 1) if state == "running" else progress.step
        if self.recent:
            a_step = sum(self.recent) / len(self.recent)
            rate = recipe.batch_tokens / a_step
            next_point = min(
                (s for s in self.milestones if s > progress.step), default=recipe.steps
            )
            extra["tokens_per_second"] = round(rate, 1)
            extra["eta_point"] = round((next_point - progress.step) * a_step, 1)
            extra["eta"] = round((recipe.steps - progress.step) * a_step, 1)
            extra |= self._mfu(recipe.batch_tokens, a_step)
        if self.last_bpb is not None:
            extra["bpb"] = self.last_bpb
        self.run.write_status(
            state,
            step=step,
            steps=recipe.steps,
            tokens=step * recipe.batch_tokens,
            seconds=round(progress.seconds, 2),
            heartbeat=time.time(),
            **extra,
        )


def _check_corpus(spec: RunSpec, corpus: Corpus) -> None:
    assert spec.corpus is not None
    if corpus.fingerprint != spec.corpus.fingerprint:
        raise SettingError(
            f"data={spec.data.name} holds another corpus (fingerprint {corpus.fingerprint[:12]}) "
            f"than when this run was planned ({spec.corpus.fingerprint[:12]}); plan it again."
        )
