"""A training step of one device, ours beside transformers' own classes in one process.

    python benchmarks/train_step.py [mix=transformer,gdn3_attn1] [size=50k,200k] [context=…]
                                    [tokens=…] [threads=1] [seconds=10] [peer=true] [compile=auto]
                                    [resources.precision=…] [peer_precision=…]

A step is what a run does: forward, loss with z-loss, backward, clipping, the run's optimizer; the
recurrent operators take the backends that the run would choose here, and the table names them. The
peer is the class of transformers that expresses the mix (Olmo3, OlmoHybrid, GraniteMoeHybrid,
KimiLinear), of the same widths and on the same batch, in a plain loop, not compiled: loss from
`labels`, clipping, AdamW. Steps of the two alternate. compile: our blocks only; `auto` compiles on
a GPU. tokens: of a step, else the ladder's batch on a CPU and 32,768 on a GPU. Both compute in
resources.precision, or the peer in peer_precision (fp32, bf16); the table names both.

Printed: median tokens per second, the peer's and the ratio, MFU where the device's peak is known,
and on a GPU the peak memory.
"""

from __future__ import annotations

import contextlib
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from ablations import provenance
from ablations.distributed import World
from ablations.hardware import Hardware, choose_hardware, choose_operators
from ablations.optim import build_optimizers
from ablations.resolve import resolve
from ablations.spec import RunSpec
from models.devices import mfu
from models.hf.convert import config_json
from models.hf.native import native_class
from models.language_model import LanguageModel
from models.ops import backend
from sweeps.compose import compose_sweep, of_the_run

OWN = (
    "mix",
    "size",
    "context",
    "tokens",
    "threads",
    "seconds",
    "compile",
    "peer",
    "peer_precision",
)


def specification(mix: str, size: str, settings: dict[str, str]) -> RunSpec:
    overrides = [f"mix={mix}", f"size={size}"]
    if "context" in settings:
        overrides.append(f"size.context={settings['context']}")
    if "compile" in settings:
        overrides.append(f"resources.compile={settings['compile']}")
    overrides += [f"{k}={v}" for k, v in settings.items() if k not in OWN]
    return resolve(of_the_run(compose_sweep(overrides)[0]), plan_only=True)


def nothing(_part: str) -> None:
    """After a part of a step whose parts are not timed."""


@dataclass
class Training:
    """A model with what trains it: the one loop for ours and for the peer."""

    name: str
    model: nn.Module
    optimizers: list[torch.optim.Optimizer]
    loss: Callable[[Tensor, int], Tensor]
    """Of rows of tokens [B, T + 1] that are one of so many equal passes: their share of the mean
    loss."""
    hardware: Hardware

    def step(self, passes: Sequence[Tensor], mark: Callable[[str], None] = nothing) -> None:
        """One step of a batch in passes; `mark` is told after each part of it."""
        for rows in passes:
            with self.hardware.autocast():
                loss = self.loss(rows, len(passes))
            mark("forward")
            loss.backward()
            mark("backward")
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        mark("optimizer")


def ours(spec: RunSpec, hardware: Hardware) -> Training:
    model = LanguageModel(spec.model)
    model.initialize(0)
    model.to(hardware.device)
    model.recompute = spec.resources.activation_checkpointing
    if hardware.compiled:
        model.compile_blocks()
        model.head_compiled = hardware.device.type == "cuda"
    optimizers = build_optimizers(model, spec.recipe, spec.train.optim)
    for group in (group for optimizer in optimizers for group in optimizer.param_groups):
        group["lr"] = 1e-4

    def loss(rows: Tensor, passes: int) -> Tensor:
        inputs, targets = rows[:, :-1], rows[:, 1:]
        weight = 1 / (targets.numel() * passes)
        return model.loss(inputs, targets, weight=weight, z_loss=1e-5)[0]

    return Training("archladder", model, optimizers, loss, hardware)


def peer_of(spec: RunSpec, hardware: Hardware) -> Training | None:
    """The peer's class and training, None where no class of the library expresses the mix."""
    if native_class(spec.model) is None:
        return None
    import transformers

    settings = config_json(spec.model, spec.recipe.context, None)
    library = transformers.AutoConfig.for_model(settings.pop("model_type"), **settings)
    library.use_cache = False
    model = transformers.AutoModelForCausalLM.from_config(library).to(hardware.device)
    model.train()

    def loss(rows: Tensor, passes: int) -> Tensor:
        inputs = rows[:, :-1].contiguous()
        return model(input_ids=inputs, labels=inputs).loss / passes

    adamw: torch.optim.Optimizer = torch.optim.AdamW(model.parameters(), 1e-4, fused=True)
    return Training(type(model).__name__, model, [adamw], loss, hardware)


@contextlib.contextmanager
def operators(spec: RunSpec, hardware: Hardware) -> Iterator[dict[str, str]]:
    """The recurrent operators' backends that a run would train with here, in force meanwhile."""
    choice = choose_operators(spec, hardware)
    if choice is None:
        yield {}
        return
    with backend.using(choice):
        yield dict(choice.backends)


def said_of(backends: Mapping[str, str]) -> str:
    """Each recurrent operator's backend, for a table; a dash where there is none."""
    return ", ".join(f"{name}: {form}" for name, form in backends.items()) or "–"


def random_tokens(spec: RunSpec, rows: int, device: torch.device) -> Tensor:
    """[rows, context + 1], the same for every mix of a vocabulary."""
    generator = torch.Generator().manual_seed(0)
    shape = (rows, spec.recipe.context + 1)
    return torch.randint(0, spec.model.vocab_size, shape, generator=generator).to(device)


def alternate(steps: list[Callable[[], None]], seconds: float, cuda: bool) -> list[float]:
    """Median seconds of each, taken in turns after two of each to warm up."""
    taken: list[list[float]] = [[] for _ in steps]
    begun = time.perf_counter()
    while time.perf_counter() - begun < seconds * len(steps) or len(taken[-1]) < 5:
        for own, step in zip(taken, steps, strict=True):
            start = time.perf_counter()
            step()
            if cuda:
                torch.cuda.synchronize()
            own.append(time.perf_counter() - start)
            if len(taken[-1]) == 2:
                begun = time.perf_counter()
    return [statistics.median(own[2:]) for own in taken]


def main(arguments: list[str]) -> None:
    settings = dict(argument.split("=", 1) for argument in arguments)
    torch.set_num_threads(int(settings.get("threads", "1")))
    torch.set_flush_denormal(True)
    cuda = torch.cuda.is_available() and settings.get("resources.device") != "cpu"
    device = torch.device("cuda" if cuda else "cpu")
    name = torch.cuda.get_device_name() if cuda else provenance.cpu_name()
    print(f"{name}, torch {torch.__version__}, {torch.get_num_threads()} CPU threads\n")
    columns = ["size", "mix", "context", "operators", "precision", "tokens/s"]
    columns += ["peer", "its precision", "its tokens/s", "ratio"]
    columns += ["MFU", "GiB"] if cuda else []
    print("| " + " | ".join(columns) + " |\n|" + " --- |" * len(columns))
    for size in settings.get("size", "50k,200k").split(","):
        for mix in settings.get("mix", "transformer,gdn,mamba2,gdn3_attn1").split(","):
            spec = specification(mix, size, settings)
            theirs = spec
            if "peer_precision" in settings:
                precision = {"resources.precision": settings["peer_precision"]}
                theirs = specification(mix, size, settings | precision)
            context = spec.recipe.context
            tokens = int(settings.get("tokens", 32768 if cuda else spec.recipe.batch_tokens))
            batch = random_tokens(spec, max(1, round(tokens / context)), device)
            hardware, its = (choose_hardware(s, World(), print) for s in (spec, theirs))
            with operators(spec, hardware) as backends:
                trained, peer = [ours(spec, hardware)], None
                if cuda:
                    torch.cuda.reset_peak_memory_stats()
                    trained[0].step([batch])
                    memory = torch.cuda.max_memory_allocated() / 2**30
                if settings.get("peer", "true") == "true" and (peer := peer_of(theirs, its)):
                    trained.append(peer)
                steps = [partial(one.step, [batch]) for one in trained]
                taken = alternate(steps, float(settings.get("seconds", "10")), cuda)
            rates = [len(batch) * context / t for t in taken]
            row = [
                size,
                mix,
                str(context),
                said_of(backends),
                hardware.precision,
                f"{rates[0]:,.0f}",
            ]
            ratio = f"{rates[0] / rates[1]:.2f}" if peer else ""
            row += [peer.name, its.precision, f"{rates[1]:,.0f}", ratio] if peer else [""] * 4
            if cuda:
                share = mfu(name, 1, spec.counts.flops_per_token * rates[0], 1.0)
                row += ["" if share is None else f"{share:.1%}", f"{memory:.1f}"]
            print("| " + " | ".join(row) + " |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
