"""Training tokens per second of one process, by mix and size.

    python benchmarks/train_step.py [mix=transformer,gdn,mamba2,gdn3_attn1] [size=50k,200k]
                                    [threads=1] [seconds=5]

A step is what a run does: forward, loss with z-loss, backward, clipping, AdamW; batch and context
by the ladder's rules. Printed: the median over steps of wall seconds, and the ratio to the first
mix named.
"""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path

import torch
import yaml

from ablations.ladder import batch_tokens
from ablations.records import project_root
from models.config import Blueprint, Geometry, Mix
from models.language_model import LanguageModel
from models.matching import match


def load(group: str, name: str) -> dict[str, object]:
    path: Path = project_root() / "conf" / group / f"{name}.yaml"
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def seconds_per_step(mix: str, size: str, seconds: float) -> tuple[float, int]:
    """(median seconds a step, tokens a step)."""
    layers, blueprint = load("mix", mix), load("size", size)
    keys = ("name", "d_model", "n_layers", "n_heads", "mlp_hidden", "init")
    layers["pattern"] = tuple(layers["pattern"])
    matched = match(
        Mix(**layers),
        Blueprint(**{key: blueprint[key] for key in keys}),
        Geometry(),
        blueprint["vocab_size"],
    )
    model = LanguageModel(matched.config)
    model.initialize(0)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, fused=True)
    context = blueprint["context"]
    rows = max(1, round(batch_tokens(matched.N_target) / context))
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, blueprint["vocab_size"], (rows, context + 1), generator=generator)
    taken: list[float] = []
    begun = time.perf_counter()
    while time.perf_counter() - begun < seconds or len(taken) < 4:
        start = time.perf_counter()
        nll, squared = model.losses(tokens[:, :-1], tokens[:, 1:])
        (nll.mean() + 1e-5 * squared.mean()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        taken.append(time.perf_counter() - start)
    return statistics.median(taken[2:]), rows * context


def main(arguments: list[str]) -> None:
    settings = dict(argument.split("=", 1) for argument in arguments)
    torch.set_num_threads(int(settings.get("threads", "1")))
    torch.set_flush_denormal(True)
    mixes = settings.get("mix", "transformer,gdn,mamba2,gdn3_attn1").split(",")
    print("| size | mix | tokens/s | ratio |\n| --- | --- | ---: | ---: |")
    for size in settings.get("size", "50k,200k").split(","):
        first = None
        for mix in mixes:
            step, tokens = seconds_per_step(mix, size, float(settings.get("seconds", "5")))
            first = first or step
            print(f"| {size} | {mix} | {tokens / step:,.0f} | {first / step:.2f} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
