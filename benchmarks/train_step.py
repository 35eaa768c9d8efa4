"""A training step of one device, ours beside transformers' own classes in one process.

    python benchmarks/train_step.py [mix=transformer,gdn3_attn1] [size=50k,200k] [context=…]
                                    [tokens=…] [threads=1] [seconds=10] [peer=true] [compile=auto]
                                    [resources.precision=…] [peer_precision=…]

A step is what a run does: forward, loss with z-loss, backward, clipping, AdamW. The peer is the
class of transformers that expresses the mix (Olmo3, OlmoHybrid, GraniteMoeHybrid), of the same
widths and on the same batch, in a plain loop, not compiled: loss from `labels`, clipping, the same
AdamW. Steps of the two alternate. compile: our blocks only; `auto` compiles on a GPU. tokens: of a
step, else the ladder's batch on a CPU and 32,768 on a GPU. Both compute in resources.precision,
or the peer in peer_precision (fp32, bf16); the table names both.

Printed: median tokens per second, the peer's and the ratio, MFU where the device's peak is known,
and on a GPU the peak memory.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

import torch

from ablations import provenance
from ablations.distributed import World
from ablations.hardware import choose_hardware
from ablations.resolve import resolve
from ablations.spec import RunSpec
from models.devices import mfu
from models.hf.convert import config_json
from models.hf.native import native_class
from models.language_model import LanguageModel
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


def our_step(spec: RunSpec, batch: torch.Tensor) -> Callable[[], None]:
    hardware = choose_hardware(spec, World(), print)
    model = LanguageModel(spec.model)
    model.initialize(0)
    model.to(batch.device)
    if hardware.compiled:
        model.compile_blocks()
        model.head_compiled = batch.device.type == "cuda"
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, fused=True)
    inputs, targets = batch[:, :-1], batch[:, 1:]

    def step() -> None:
        with hardware.autocast():
            loss, _ = model.loss(inputs, targets, weight=1 / targets.numel(), z_loss=1e-5)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def their_step(spec: RunSpec, batch: torch.Tensor) -> tuple[str, Callable[[], None]] | None:
    """The peer's class and step, None where no class of the library expresses the mix."""
    if native_class(spec.model) is None:
        return None
    import transformers

    settings = config_json(spec.model, spec.recipe.context, None)
    library = transformers.AutoConfig.for_model(settings.pop("model_type"), **settings)
    library.use_cache = False
    model = transformers.AutoModelForCausalLM.from_config(library).to(batch.device)
    model.train()
    hardware = choose_hardware(spec, World(), print)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, fused=True)
    inputs = batch[:, :-1].contiguous()

    def step() -> None:
        with hardware.autocast():
            loss = model(input_ids=inputs, labels=inputs).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return type(model).__name__, step


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
    columns = ["size", "mix", "context", "precision", "tokens/s"]
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
            shape = (max(1, round(tokens / context)), context + 1)
            generator = torch.Generator().manual_seed(0)
            batch = torch.randint(0, spec.model.vocab_size, shape, generator=generator).to(device)
            steps, peer = [our_step(spec, batch)], None
            if cuda:
                torch.cuda.reset_peak_memory_stats()
                steps[0]()
                memory = torch.cuda.max_memory_allocated() / 2**30
            if settings.get("peer", "true") == "true" and (peer := their_step(theirs, batch)):
                steps.append(peer[1])
            taken = alternate(steps, float(settings.get("seconds", "10")), cuda)
            rates = [shape[0] * context / t for t in taken]
            ours, its = (choose_hardware(s, World(), print).precision for s in (spec, theirs))
            row = [size, mix, str(context), ours, f"{rates[0]:,.0f}"]
            ratio = f"{rates[0] / rates[1]:.2f}" if peer else ""
            row += [peer[0], its, f"{rates[1]:,.0f}", ratio] if peer else [""] * 4
            if cuda:
                share = mfu(name, 1, spec.counts.flops_per_token * rates[0], 1.0)
                row += ["" if share is None else f"{share:.1%}", f"{memory:.1f}"]
            print("| " + " | ".join(row) + " |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
