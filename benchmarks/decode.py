"""Decoding on a CPU, ours beside transformers' `generate` with its cache, in one process.

    python benchmarks/decode.py [mix=transformer,gdn3_attn1] [size=200k,1m] [batch=1,8]
                                [prompt=2048,8192] [new=256] [threads=2] [pairs=3] [compile=false]

Both run the same random weights in float32: the peer is what `models.hf.export` writes, opened by
AutoModelForCausalLM. The prompts are random tokens of equal length; decoding is greedy.

Printed: milliseconds of the prompt's pass (to the first token) and of a step, seconds of the whole,
and theirs over ours; a ratio is the median of pairs, ours and theirs in turn, times are the
fastest. The last column says whether the tokens are the same, or where they first differ and by
how much the peer preferred its token there, in logits. compile: ours takes its steps compiled.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ablations.provenance import cpu_name
from models.command import ended, parse, setting
from models.format import write_table
from models.generation import decode
from models.hf import export
from models.hf.convert import class_name
from models.hf.native import native_class
from models.language_model import LanguageModel
from models.named import named

COLUMNS = (
    *("mix", "size", "batch", "prompt", "prefill ms", "theirs", "ratio", "step ms", "theirs"),
    *("ratio", "whole s", "theirs", "ratio", "tokens"),
)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Decoding beside transformers' `generate` of the same weights."""

    mix: tuple[str, ...] = setting(("transformer", "gdn3_attn1"), "names in conf/mix")
    size: tuple[str, ...] = setting(("200k", "1m"), "names in conf/size")
    batch: tuple[int, ...] = setting((1, 8), "rows", least=1)
    prompt: tuple[int, ...] = setting((2048, 8192), "tokens of a prompt", least=1)
    new: int = setting(256, "tokens to decode", least=2)
    threads: int = setting(2, "of torch", least=1)
    pairs: int = setting(3, "runs of each, in turns", least=1)
    compile: bool = setting(False, "whether our steps are compiled")


@dataclass(frozen=True)
class Taken:
    """Tokens of one run and the times at which they were there, from its start, in seconds."""

    tokens: list[list[int]]
    times: list[float]

    @property
    def prefill(self) -> float:
        return self.times[0]

    @property
    def step(self) -> float:
        return (self.times[-1] - self.times[0]) / (len(self.times) - 1)

    @property
    def whole(self) -> float:
        return self.times[-1]


def ours(model: LanguageModel, prompts: Tensor, asked: Settings) -> Taken:
    times, start = [], time.perf_counter()
    out = []
    for token in decode(model, prompts, asked.new, compiled=asked.compile):
        out.append(token)
        times.append(time.perf_counter() - start)
    return Taken(torch.stack(out, 1).tolist(), times)


def theirs(model: Any, prompts: Tensor, asked: Settings) -> Taken:
    times: list[float] = []

    def note(_tokens: Tensor, logits: Tensor) -> Tensor:
        times.append(time.perf_counter() - start)
        return logits

    start = time.perf_counter()
    out = model.generate(
        prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=asked.new,
        min_new_tokens=asked.new, do_sample=False, use_cache=True, eos_token_id=None,
        pad_token_id=0, logits_processor=[note],
    )  # fmt: skip
    return Taken(out[:, prompts.shape[1] :].tolist(), times)


@torch.no_grad()
def agreement(mine: Taken, peers: Taken, model: Any, prompts: Tensor) -> str:
    """`same`, or the first place where tokens differ and the peer's margin there."""
    for place in range(len(mine.times)):
        for row, prompt in enumerate(prompts):
            if (token := mine.tokens[row][place]) == (other := peers.tokens[row][place]):
                continue
            read = [*prompt.tolist(), *peers.tokens[row][:place]]
            logits = model(torch.tensor([read]), logits_to_keep=1).logits[0, -1]
            return f"differ at {place}, by {logits[other] - logits[token]:.1e}"
    return "same"


def measure(model: LanguageModel, peer: Any, batch: int, prompt: int, asked: Settings) -> list[str]:
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(0, model.config.vocab_size, (batch, prompt), generator=generator)
    quick = Settings(**{**vars(asked), "new": 4})
    ours(model, prompts, quick)
    theirs(peer, prompts[:, :64], quick)
    pairs = [
        (ours(model, prompts, asked), theirs(peer, prompts, asked)) for _ in range(asked.pairs)
    ]
    cells = []
    parts: list[tuple[Callable[[Taken], float], float]] = [
        (lambda t: t.prefill, 1e3), (lambda t: t.step, 1e3), (lambda t: t.whole, 1.0)
    ]  # fmt: skip
    for part, unit in parts:
        both = [[part(taken) for taken in pair] for pair in pairs]
        cells += [f"{min(side) * unit:.3g}" for side in zip(*both, strict=True)]
        cells.append(f"{statistics.median(other / own for own, other in both):.2f}")
    return [*cells, agreement(*pairs[0], peer, prompts)]


def main(arguments: list[str]) -> int:
    return ended(lambda: run(parse(Settings, arguments, "python benchmarks/decode.py")))


def run(asked: Settings) -> None:
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(asked.threads)
    torch.set_flush_denormal(True)
    compiled = ", our steps compiled" if asked.compile else ""
    print(f"{cpu_name()}, torch {torch.__version__}, {asked.threads} threads, float32{compiled}")
    rows = []
    for one in named(asked.mix, asked.size):
        config = one.matched().config
        model = LanguageModel(config).eval()
        model.initialize(0)
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "exported"
            export(config, model.state_dict(), out, context=max(asked.prompt) + asked.new)
            remote = native_class(config) is None
            peer = AutoModelForCausalLM.from_pretrained(out, trust_remote_code=remote).eval()
        print(f"{one.mix.name} {one.size.name}: {class_name(native_class(config))}", flush=True)
        for batch in asked.batch:
            for prompt in asked.prompt:
                cells = measure(model, peer, batch, prompt, asked)
                rows.append([one.mix.name, one.size.name, str(batch), str(prompt), *cells])
                print("|", " | ".join(rows[-1]), "|", flush=True)
    print()
    print(write_table(COLUMNS, rows, "markdown", (0, 1, len(COLUMNS) - 1)), end="")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
