"""How fast a model serves here: `python -m models.speed mix=transformer,gdn3_attn1 context=1k,4k`.

Each model is built with random weights and decoded greedily: a prompt of `context` tokens in one
pass, then `new` tokens a step at a time. Models take turns, so that what else the machine does
falls on all of them. What the cache holds is measured, and set beside models/cost.py's count.
"""

from __future__ import annotations

import contextlib
import json
import platform
import shutil
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.command import ended, parse, setting, tokens_of
from models.config import ModelConfig
from models.cost import decode_bytes, parameters
from models.errors import SettingError
from models.format import byte_count, write_table
from models.format import count as short_count
from models.generation import decode
from models.language_model import LanguageModel
from models.named import named
from models.ops import backend

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
COLUMNS = (
    "mix", "size", "N", "context", "batch", "prefill_tokens_per_second",
    "decode_tokens_per_second", "first_token_seconds", "cache_bytes", "state_bytes_counted",
    "kv_bytes_counted", "cache_differs_bytes", "peak_bytes",
)  # fmt: skip
WORDS = {"_tokens_per_second": " tok/s", "_seconds": "", "_bytes": "", "_counted": " (counted)"}
Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How fast models serve on this machine, and what their caches hold.

    Columns
      prefill_tokens_per_second  of prompts, all rows together
      decode_tokens_per_second   of new tokens after the prompt, all rows together
      first_token_seconds        from the prompt to the first token
      cache_bytes                what the cache of all rows holds after the last token
      state_bytes_counted, kv_bytes_counted   the same, as models/cost.py counts it, all rows
      cache_differs_bytes        cache_bytes less the two; 0 where the count is right
      peak_bytes                 most memory of the device meanwhile; not told on a CPU
    """

    EXAMPLES = ("mix=transformer,gdn3_attn1 size=1m context=1k,4k batch=1,8", "format=json")
    mix: tuple[str, ...] = setting(("transformer", "gdn3_attn1"), "names in conf/mix", shape="A,B")
    size: tuple[str, ...] = setting(("1m",), "names in conf/size", shape="A,B")
    protocol: str = setting("controlled", "a name in conf/protocol")
    context: tuple[str, ...] = setting(
        ("1k", "4k"), "tokens of a prompt, 1k for 1024", example="1k,4k"
    )
    batch: tuple[int, ...] = setting((1, 8), "rows decoded side by side", least=1)
    new: int = setting(64, "tokens decoded after the prompt", least=2)
    repeats: int = setting(3, "of each, in turns; medians are shown", least=1)
    device: str | None = setting(None, "cuda where there is one, else cpu, unless given")
    dtype: str | None = setting(
        None, "of the weights, bf16 on a GPU and fp32 elsewhere unless given", choices=tuple(DTYPES)
    )
    threads: int | None = setting(None, "of torch on a CPU, its own choice unless given", least=1)
    compile: bool = setting(False, "whether steps run as one compiled graph of fixed shapes")
    config_dir: Path | None = setting(None, "a folder with files that come before conf/'s")
    format: str = setting(
        "table", "how it is printed", choices=("table", "csv", "markdown", "json")
    )


def main(arguments: list[str]) -> int:
    """Exit code 0, or 2 on a setting that cannot be used."""
    return ended(lambda: _run(parse(Settings, arguments, "python -m models.speed")))


def _run(asked: Settings) -> None:
    document = measure(asked)
    if asked.format == "json":
        print(json.dumps(document, indent=1))
        return
    if asked.format == "csv":
        cells = [["" if row[name] is None else str(row[name]) for name in COLUMNS]
                 for row in document["rows"]]  # fmt: skip
        print(write_table(COLUMNS, cells, "csv"), end="")
        return
    print(_conditions(document))
    names = [_heading(name) for name in COLUMNS]
    print(write_table(names, map(_readable, document["rows"]), asked.format, (0, 1)), end="")


def measure(asked: Settings) -> dict[str, Any]:
    """What was measured, a row a model, context and batch, and where; JSON's values alone.

    Raises SettingError for a setting that cannot be used here.
    """
    contexts = [tokens_of("context", text) for text in asked.context]
    device = _device(asked.device)
    cuda = device.type == "cuda"
    if asked.compile and not cuda and not any(map(shutil.which, ("g++", "clang++", "c++"))):
        raise SettingError("compile=true needs a C++ compiler, and none is found; valid: false.")
    dtype = asked.dtype or ("bf16" if cuda else "fp32")
    configs = {
        (one.mix.name, one.size.name): one.matched().config
        for one in named(asked.mix, asked.size, asked.protocol, config_dir=asked.config_dir)
    }
    choice = backend.choose(device)
    with _threads(asked.threads), backend.using(choice):
        models = {}
        for key, config in configs.items():
            model = LanguageModel(config).eval()
            model.initialize(0)
            models[key] = model.to(device, DTYPES[dtype])
        rows = []
        for context in contexts:
            for batch in asked.batch:
                rows += _turns(models, configs, context, batch, asked)
        return {
            "device": torch.cuda.get_device_name(device) if cuda else _cpu_name(),
            "dtype": dtype, "threads": None if cuda else torch.get_num_threads(),
            "compiled": asked.compile, "torch": torch.__version__, "new": asked.new,
            "repeats": asked.repeats, "rows": rows,
        }  # fmt: skip


def _turns(
    models: dict[tuple[str, str], LanguageModel],
    configs: dict[tuple[str, str], ModelConfig],
    context: int,
    batch: int,
    asked: Settings,
) -> list[Row]:
    """One row a model: medians of runs taken in turns after one to warm up."""
    taken: dict[tuple[str, str], list[_Run]] = {key: [] for key in models}
    for turn in range(asked.repeats + 1):
        for key, model in models.items():
            run = _decode(model, context, batch, asked)
            if turn:
                taken[key].append(run)
    rows = []
    for (mix, size), runs in taken.items():
        config = configs[mix, size]
        first = statistics.median(run.first for run in runs)
        rest = statistics.median(run.rest for run in runs)
        state, kv = decode_bytes(config, context + asked.new, runs[0].element_bytes)
        cache = runs[0].cache_bytes
        rows.append(
            {
                "mix": mix, "size": size, "N": parameters(config)[0], "context": context,
                "batch": batch, "prefill_tokens_per_second": batch * context / first,
                "decode_tokens_per_second": batch * (asked.new - 1) / rest,
                "first_token_seconds": first, "cache_bytes": cache,
                "state_bytes_counted": batch * state, "kv_bytes_counted": batch * kv,
                "cache_differs_bytes": cache - batch * (state + kv),
                "peak_bytes": max((run.peak for run in runs if run.peak), default=None),
            }
        )  # fmt: skip
    return rows


@dataclass(frozen=True)
class _Run:
    first: float
    """Seconds to the first token."""
    rest: float
    """Seconds of the others."""
    cache_bytes: int
    element_bytes: int
    peak: int | None


def _decode(model: LanguageModel, context: int, batch: int, asked: Settings) -> _Run:
    weight = model.head.weight
    device, cuda = weight.device, weight.is_cuda
    generator = torch.Generator().manual_seed(0)
    shape = (batch, context)
    prompts = torch.randint(0, model.config.vocab_size, shape, generator=generator).to(device)
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    with torch.inference_mode():
        cache = model.new_cache(batch, context + asked.new)
    start = time.perf_counter()
    steps: Iterator[Tensor] = decode(model, prompts, asked.new, cache=cache, compiled=asked.compile)
    next(steps)
    if cuda:
        torch.cuda.synchronize()
    first = time.perf_counter() - start
    for _ in steps:
        pass
    if cuda:
        torch.cuda.synchronize()
    rest = time.perf_counter() - start - first
    peak = torch.cuda.max_memory_allocated() if cuda else None
    return _Run(first, rest, cache.nbytes, weight.element_size(), peak)


def _device(name: str | None) -> torch.device:
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise SettingError(f"device={name} cannot be used: {reason}.") from None
    return device


def _cpu_name() -> str:
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if "model name" in line)
    return platform.processor() or platform.machine()


@contextlib.contextmanager
def _threads(wanted: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(wanted or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _conditions(document: dict[str, Any]) -> str:
    threads = document["threads"]
    on = document["device"] + ("" if threads is None else f", {threads} threads")
    steps = "compiled" if document["compiled"] else "not compiled"
    return (
        f"{on}, torch {document['torch']}, {document['dtype']}, steps {steps}; "
        f"{document['new']} new tokens, medians of {document['repeats']}\n"
    )


def _heading(name: str) -> str:
    for long, short in WORDS.items():
        name = name.replace(long, short)
    return name.replace("_", " ")


def _readable(row: Row) -> list[str]:
    cells = []
    for name in COLUMNS:
        value = row[name]
        if value is None:
            cells.append("–")
        elif isinstance(value, str):
            cells.append(value)
        elif name.endswith("_seconds"):
            cells.append(f"{value:.3g} s")
        elif "bytes" in name:
            cells.append(byte_count(value))
        else:
            cells.append(short_count(value, 4 if name == "N" else 3))
    return cells


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
