"""Training and decoding on one GPU, over mixes, sizes and contexts, in one command that resumes.

    python benchmarks/gpu.py                                      # all of it, into results.json
    python benchmarks/gpu.py size=50k mix=transformer,gdn3_attn1 context=256 device=cpu seconds=1
    python benchmarks/gpu.py only=table into=docs/performance.md  # the tables of what there is

The cells that matter most come first: transformer and gdn3_attn1 at 1b and 60m, context 8k, then
32k, then the rest, then decoding. `out` is written before and after each cell, with its tables as
Markdown beside it. The same command again goes on after the last cell. Tokens are random.

A step is a run's: passes as large as the memory holds, forward with z-loss, backward, clipping,
the ladder's optimizer, the operators that a run would choose. Its parts are timed by CUDA events
(perf_counter on a CPU). Our forward pass makes the head's gradients, so parts compare between
mixes and not with the peer.
"""

from __future__ import annotations

import collections
import dataclasses
import gc
import itertools
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from train_step import Training, operators, ours, peer_of, random_tokens, said_of, specification

from ablations import micro_batch
from ablations.distributed import World
from ablations.hardware import Hardware, arithmetic, choose_hardware
from ablations.records import write_atomic
from ablations.resources import no_room
from ablations.spec import RunSpec
from models import roofline, speed
from models.command import ended, parse, setting, spelled, tokens_of
from models.devices import GPUS, gpu_kind, mfu
from models.errors import SettingError
from models.format import byte_count, percent, write_table
from models.format import count as short_count
from models.named import CONF, named

Row = dict[str, Any]
MIXES = ("transformer", "gdn", "mamba2", "mamba2x3_attn1", "gdn3_attn1", "kda3_attn1")
"""Those of them that conf/mix has are measured unless others are asked for."""
KINDS = ("train", "peer", "decode", "decode_compiled")
FIRST = ("transformer", "gdn3_attn1"), ("1b", "60m"), (8192, 32768)
"""Mixes, sizes and contexts of the first cells."""
GPU_TOKENS = 2**17
WARM_UP = 3
TIMED = 3
"""Steps at least."""
BATCHES = (1, 8)
ENDS = "<!-- gpu.py -->", "<!-- end of gpu.py -->"
PARTS = ("forward", "backward", "optimizer")
TRAINING = (
    *("mix", "size", "context", "operators", "rows", "tokens/s", "MFU", "possible", "share"),
    *("forward ms", "backward ms", "optimizer ms", "memory"),
    *("peer", "its tokens/s", "ratio", "its memory"),
)
DECODING = ("mix", "size", "context", "batch", "steps", "prefill tok/s", "decode tok/s", "memory")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Training steps and decoding on this machine's GPU: one cell per mix, size and context.

    A cell of training holds tokens a second, MFU, the MFU that models/roofline.py gives for passes
    of as many sequences, seconds of forward, backward and optimizer (medians) and peak memory; a
    peer's cell the same of the class of transformers that expresses the mix. A cell of decoding
    holds what python -m models.speed measures. A cell that fails holds the reason, and the next
    goes on.
    """

    EXAMPLES = ("only=train size=1b context=8k", "only=table out=results.json")
    mix: tuple[str, ...] = setting(
        tuple(mix for mix in MIXES if (CONF / "mix" / f"{mix}.yaml").exists()), "names in conf/mix"
    )
    size: tuple[str, ...] = setting(("60m", "150m", "370m", "1b"), "names in conf/size")
    context: tuple[str, ...] = setting(("2k", "8k", "32k"), "tokens; 8k is 8192", shape="2k,8k")
    only: tuple[str, ...] = setting(
        KINDS, "cells of these kinds; table runs none and prints what `out` holds",
        choices=(*KINDS, "table"),
    )  # fmt: skip
    tokens: str | None = setting(
        None, "of a step, 128k on a GPU and the ladder's batch on a CPU unless given"
    )
    seconds: float = setting(10.0, "to time a cell's steps, after those that warm up", least=0)
    new: int = setting(64, "tokens decoded after a prompt", least=2)
    retry: bool = setting(False, "whether cells that failed are measured again")
    out: Path = setting(Path("results.json"), "the file of results; cells that it holds are kept")
    into: Path | None = setting(
        None,
        f"a Markdown file in which the tables replace what stands between {' and '.join(ENDS)}",
    )
    device: str | None = setting(
        None, "cuda where there is one, else cpu, unless given", choices=("cuda", "cpu")
    )
    threads: int | None = setting(None, "of torch, its own choice unless given", least=1)
    changes: Mapping[str, str] = setting(
        {}, "any of a run's resources and train settings",
        prefixes=("resources.", "train."), shape="VALUE",
    )  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """One row of the results."""

    kind: str
    mix: str
    size: str
    context: int

    def place(self) -> tuple[int, int]:
        """Smaller is sooner."""
        if self.kind.startswith("decode"):
            return 3, 0
        mixes, sizes, contexts = FIRST
        if self.mix not in mixes or self.size not in sizes or self.context not in contexts:
            return 2, 0
        return contexts.index(self.context), sizes.index(self.size)

    def __str__(self) -> str:
        return f"{self.kind} {self.mix} {self.size} {self.context:,}"


def cells_of(asked: Settings) -> list[Cell]:
    """Every cell, in the order in which they run; a peer after its mix."""
    contexts = [tokens_of("context", text) for text in asked.context]
    cuda = _cuda(asked)
    cells = [
        Cell(kind, mix, size, context)
        for context, size, mix, kind in itertools.product(contexts, asked.size, asked.mix, KINDS)
        if kind in asked.only and (cuda or kind != "decode_compiled")
    ]
    return sorted(cells, key=Cell.place)


class Results:
    """The file of rows, one a cell, device and conditions; written whole each time."""

    def __init__(self, path: Path, device: str, conditions: str) -> None:
        self.path, self.key = path, {"device": device, "conditions": conditions}
        self.rows: list[Row] = []
        if path.exists():
            try:
                self.rows = json.loads(path.read_text(encoding="utf-8"))["cells"]
                for row in self.rows:
                    _ = _cell(row), row["state"], row["device"], row["conditions"]
            except (OSError, ValueError, LookupError, TypeError):
                raise SettingError(f"out={path} holds no results of this command.") from None

    def drop_failed(self) -> None:
        own = self.key.items()
        self.rows = [r for r in self.rows if r["state"] != "failed" or not own <= r.items()]

    def state(self, cell: Cell) -> str:
        return next((r["state"] for r in self.rows if self._is_of(r, cell)), "")

    def put(self, cell: Cell, state: str, values: Row) -> None:
        row = {**dataclasses.asdict(cell), **self.key, "state": state, **values}
        self.rows = [r for r in self.rows if not self._is_of(r, cell)] + [row]
        write_atomic(self.path, json.dumps({"cells": self.rows}, indent=1) + "\n")
        write_atomic(self.path.with_suffix(".md"), tables(self.rows))

    def _is_of(self, row: Row, cell: Cell) -> bool:
        return row.items() >= (dataclasses.asdict(cell) | self.key).items()


def timed(training: Training, passes: Sequence[Tensor]) -> dict[str, float]:
    """Seconds of each part of one step."""
    cuda = passes[0].is_cuda
    marks: list[tuple[str, Any]] = []

    def mark(part: str) -> None:
        now: Any = time.perf_counter()
        if cuda:
            now = torch.cuda.Event(enable_timing=True)
            now.record()
        marks.append((part, now))

    mark("")
    training.step(passes, mark)
    if cuda:
        torch.cuda.synchronize()
    seconds = dict.fromkeys(PARTS, 0.0)
    for (_, before), (part, after) in itertools.pairwise(marks):
        seconds[part] += before.elapsed_time(after) / 1e3 if cuda else after - before
    return seconds


def fitting_rows(spec: RunSpec, hardware: Hardware, training: Training, batch: Tensor) -> int:
    """Sequences of a pass: as set, or as a run finds them, tried where a GPU's memory decides."""
    memory = micro_batch.counted(spec, hardware, None, World())
    share = len(batch)
    rows = micro_batch.choose_rows(spec, share, hardware, memory, World(), {})
    if hardware.memory_bytes is None or spec.resources.micro_batch_tokens is not None:
        return rows

    def attempt(rows: int) -> None:
        with micro_batch.as_in_training(training.model, training.optimizers):
            with hardware.autocast():
                loss = training.loss(batch[:rows], 1)
            loss.backward()

    found = micro_batch.rows_that_run(rows, share, attempt, bool)
    if not found:
        raise no_room(spec, 1, memory, hardware.memory_bytes)
    return found


def train_cell(cell: Cell, asked: Settings) -> Row:
    """A step of ours, or of the peer's class."""
    settings = {**asked.changes, "resources.device": "cuda" if _cuda(asked) else "cpu"}
    spec = specification(cell.mix, cell.size, {"context": str(cell.context), **settings})
    hardware = choose_hardware(spec, World(), _say)
    with operators(spec, hardware) as backends:
        training = ours(spec, hardware) if cell.kind == "train" else peer_of(spec, hardware)
        if training is None:
            raise SettingError(f"no class of transformers expresses mix={cell.mix}.")
        default = GPU_TOKENS if _cuda(asked) else spec.recipe.batch_tokens
        tokens = tokens_of("tokens", asked.tokens) if asked.tokens else default
        batch = random_tokens(spec, max(1, tokens // cell.context), hardware.device)
        rows = fitting_rows(spec, hardware, training, batch)
        # Passes of one shape: another would be compiled by itself.
        passes = batch[: len(batch) // rows * rows].split(rows)
        for _ in range(WARM_UP):
            training.step(passes)
        if _cuda(asked):
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        taken: list[dict[str, float]] = []
        begun = time.perf_counter()
        while len(taken) < TIMED or time.perf_counter() - begun < asked.seconds:
            taken.append(timed(training, passes))
    seconds = statistics.median(sum(one.values()) for one in taken)
    tokens = len(passes) * rows * cell.context
    peak = torch.cuda.max_memory_allocated() if _cuda(asked) else None
    return {
        "model": training.name, "precision": hardware.precision, "compiled": hardware.compiled,
        "backends": backends, "rows": rows, "passes": len(passes), "tokens": tokens,
        "steps": len(taken), "seconds": seconds, "tokens_per_second": tokens / seconds,
        "mfu": mfu(hardware.name, 1, spec.counts.flops_per_token * tokens, seconds),
        "possible_mfu": possible(spec, hardware, tokens, rows),
        **{f"{part}_seconds": statistics.median(one[part] for one in taken) for part in PARTS},
        "peak_bytes": peak,
    }  # fmt: skip


def possible(spec: RunSpec, hardware: Hardware, tokens: int, rows: int) -> float | None:
    """MFU of a step at the GPU's limits; None where they are not known, or not of bf16."""
    kind = gpu_kind(hardware.name)
    if kind is None or GPUS[kind].bandwidth is None or hardware.precision != "bf16":
        return None
    return roofline.step(
        spec.model, spec.recipe.context, GPUS[kind], batch_tokens=tokens, rows=rows,
        recompute=spec.resources.activation_checkpointing == "true",
    ).mfu  # fmt: skip


def decode_cell(cell: Cell, asked: Settings) -> Row:
    """What models.speed measures of a prompt of the context and `new` tokens after it."""
    wanted = speed.Settings(
        mix=(cell.mix,), size=(cell.size,), context=(str(cell.context),), batch=BATCHES,
        new=asked.new, device="cuda" if _cuda(asked) else "cpu", threads=asked.threads,
        compile=cell.kind == "decode_compiled",
    )  # fmt: skip
    document = speed.measure(wanted)
    return {"precision": document["dtype"], "batches": document["rows"]}


def measure(cell: Cell, asked: Settings) -> tuple[str, Row]:
    """The state and values of a cell; a failure is a sentence in it."""
    run = decode_cell if cell.kind.startswith("decode") else train_cell
    try:
        return "done", run(cell, asked)
    except torch.OutOfMemoryError:
        return "failed", {"error": "the device's memory did not hold it."}
    except Exception as error:  # whatever a compiler, kernel or library refuses
        lines = str(error).strip().splitlines() or [""]
        name = "" if isinstance(error, SettingError) else f"{type(error).__name__}: "
        return "failed", {"error": name + lines[0]}


def main(arguments: list[str]) -> int:
    return ended(lambda: run(parse(Settings, arguments, "python benchmarks/gpu.py")))


def run(asked: Settings) -> int:
    if asked.device == "cuda" and not torch.cuda.is_available():
        raise SettingError("device=cuda is not on this machine; valid here: cpu.")
    if asked.tokens:
        tokens_of("tokens", asked.tokens)
    named(asked.mix, asked.size)  # a name that is none is refused before any cell
    hardware = Hardware(torch.device("cuda" if _cuda(asked) else "cpu"), "", False)
    # What cells are is apart from which are asked for, how long each is timed and where they lie.
    apart = ("mix", "size", "context", "only", "seconds", "retry", "out", "into", "device")
    conditions = f"torch {torch.__version__} {spelled(asked, apart)}".strip()
    results = Results(asked.out, hardware.name, conditions)
    if asked.into:  # one that cannot be filled is refused before any cell
        fill(asked.into, tables(results.rows))
    if asked.retry:
        results.drop_failed()
    cells = [cell for cell in cells_of(asked) if results.state(cell) not in ("done", "failed")]
    # A cell that killed the process before comes last: it may do so again.
    cells.sort(key=lambda cell: results.state(cell) == "begun")
    with arithmetic(asked.threads):
        for number, cell in enumerate(cells, 1):
            results.put(cell, "begun", {})
            state, values = measure(cell, asked)
            results.put(cell, state, values)
            rate = values.get("tokens_per_second")
            outcome = values.get("error") or (f"{_rate(rate)} tokens/s" if rate else state)
            _say(f"{number} of {len(cells)}: {cell}: {outcome}")
            if not _answers(asked):
                # After a fault of a kernel nothing else runs in this process.
                _say("the device does not answer after this cell; a new process goes on")
                words = [w for w in sys.argv if not w.lstrip("-").startswith("retry")]
                os.execv(sys.executable, [sys.executable, *words])
    print("\n" + tables(results.rows), end="")
    if asked.into:
        fill(asked.into, tables(results.rows))
    return 0


def fill(path: Path, text: str) -> None:
    """Put the text between the two marks of a file.

    Raises SettingError where the file is not there or has not both marks once.
    """
    page = path.read_text(encoding="utf-8") if path.is_file() else ""
    if [page.count(end) for end in ENDS] != [1, 1]:
        raise SettingError(f"into={path} must be a file with {ENDS[0]} and {ENDS[1]}, each once.")
    before, rest = page.split(ENDS[0])
    after = rest.split(ENDS[1])[1]
    write_atomic(path, f"{before}{ENDS[0]}\n\n{text}\n{ENDS[1]}{after}")


def _answers(asked: Settings) -> bool:
    """Free memory; whether the device still works, which it may not after a kernel's fault."""
    gc.collect()
    torch.compiler.reset()
    if _cuda(asked):
        try:
            torch.cuda.empty_cache()
            torch.cuda.synchronize()
        except RuntimeError:
            return False
    return True


def _cuda(asked: Settings) -> bool:
    return asked.device != "cpu" and torch.cuda.is_available()


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def tables(rows: Sequence[Row]) -> str:
    """Markdown: training and decoding of each device and conditions, and what failed."""
    machines = collections.defaultdict(list)
    for row in rows:
        machines[row["device"], row["conditions"]].append(row)
    parts = []
    for (device, conditions), own in machines.items():
        parts.append(f"{device}, {conditions}\n")
        for names, lines, left in (
            (TRAINING, _training(own), (0, 1, 3, 13)), (DECODING, _decoding(own), (0, 1, 4))
        ):  # fmt: skip
            if cells := list(lines):
                parts.append(write_table(names, cells, "markdown", left))
        failed = [f"- {_cell(r)}: {r['error']}\n" for r in own if r["state"] == "failed"]
        failed += [f"- {_cell(r)}: begun, not ended\n" for r in own if r["state"] == "begun"]
        if failed:
            parts.append("".join(failed))
    return "\n".join(parts)


def _cell(row: Row) -> Cell:
    return Cell(row["kind"], row["mix"], row["size"], row["context"])


def _training(rows: Sequence[Row]) -> Iterator[list[str]]:
    done = {_cell(row): row for row in rows if row["state"] == "done"}
    for cell, row in done.items():
        if cell.kind != "train":
            continue
        reached = row["mfu"] / row["possible_mfu"] if row["possible_mfu"] and row["mfu"] else None
        line = [cell.mix, cell.size, f"{cell.context:,}", said_of(row["backends"])]
        line.append(f"{row['passes']} × {row['rows']}")
        line.append(_rate(row["tokens_per_second"]))
        line += [_or_dash(x, _share) for x in (row["mfu"], row["possible_mfu"], reached)]
        line += [f"{1e3 * row[f'{part}_seconds']:.3g}" for part in PARTS]
        line.append(_or_dash(row["peak_bytes"], byte_count))
        peer = done.get(dataclasses.replace(cell, kind="peer"))
        if peer is None:
            yield [*line, *["–"] * 4]
            continue
        ratio = row["tokens_per_second"] / peer["tokens_per_second"]
        line += [peer["model"], _rate(peer["tokens_per_second"]), f"{ratio:.2f}"]
        yield [*line, _or_dash(peer["peak_bytes"], byte_count)]


def _decoding(rows: Sequence[Row]) -> Iterator[list[str]]:
    for row in rows:
        for one in row.get("batches", ()):
            steps = "compiled" if row["kind"] == "decode_compiled" else "eager"
            line = [row["mix"], row["size"], f"{row['context']:,}", str(one["batch"]), steps]
            line += [_rate(one[f"{name}_tokens_per_second"]) for name in ("prefill", "decode")]
            yield [*line, _or_dash(one["peak_bytes"], byte_count)]


def _rate(value: float) -> str:
    return short_count(value, 3)


def _share(value: float) -> str:
    return percent(value, ".0f")


def _or_dash(value: Any, shown: Callable[[Any], str]) -> str:
    return "–" if value is None else shown(value)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
