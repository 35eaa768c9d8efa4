"""The chunked operators against transformers' plain PyTorch functions, in one process.

    python benchmarks/operators.py [batch=8] [heads=4] [key=48] [value=96] [threads=1] [compile=0]

For the gated delta rule, Kimi Delta Attention and SSD, float32 and bfloat16, three lengths: median
milliseconds of a forward pass and of forward and backward, a run of ours and one of theirs in turn.
Then the peak memory of each at T 4096: by how much the resident set of a fresh process, its inputs
made, grows at most over a forward and backward pass (VmHWM, on Linux).

Theirs are what transformers falls back to without kernels: `torch_chunk_gated_delta_rule` of Olmo
Hybrid and `chunk_kimi_delta_attention` of Kimi Linear (chunks of 64), and `mamba2_chunk_scan` of
Mamba2 at that model's default chunk of 256. The second takes minutes at the defaults: batch=2.
compile=1 adds ours under torch.compile, where T is at most 1024.

On a CUDA device: fla, our chunked form (compiled up to T 4096: its walk over chunks is unrolled)
and causal scaled_dot_product_attention of the same width, bfloat16, 1k to 32k tokens at 32k
tokens a batch.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from models.mixers.gdn.operator import OPERATOR as GATED_DELTA_RULE
from models.mixers.kda.operator import OPERATOR as KIMI_DELTA_ATTENTION
from models.mixers.mamba2.operator import OPERATOR as SSD
from models.ops import preflight
from models.terminal import readable

LENGTHS = (256, 1024, 4096)
COLUMNS = ("fla", "chunked", "attention")
OPERATORS = {operator.name: operator for operator in (GATED_DELTA_RULE, KIMI_DELTA_ATTENTION, SSD)}
OURS = {name: operator.chunked for name, operator in OPERATORS.items()}
DEFAULTS = {"batch": 8, "heads": 4, "key": 48, "value": 96, "threads": 1, "compile": 0}


def theirs(operator: str) -> Callable[..., Any]:
    if operator == "gated_delta_rule":
        from transformers.models.olmo_hybrid import modeling_olmo_hybrid as olmo_hybrid

        rule = olmo_hybrid.torch_chunk_gated_delta_rule
        rule = getattr(rule, "__wrapped__", rule)
        return lambda q, k, v, g, beta: rule(q, k, v, g=g, beta=beta)
    if operator == "kimi_delta_attention":
        from transformers.models.kimi_linear import modeling_kimi_linear as kimi_linear

        kimi = kimi_linear.chunk_kimi_delta_attention
        kimi = getattr(kimi, "__wrapped__", kimi)
        return lambda q, k, v, g, beta: kimi(q, k, v, g=g, beta=beta)
    from transformers.models.mamba2 import modeling_mamba2 as mamba2

    scan = mamba2.mamba2_chunk_scan
    scan = getattr(scan, "__wrapped__", scan)
    # dt multiplies v and the decay there; here it is already in both.
    return lambda q, k, v, g: (scan(v, torch.ones_like(g), g, k, q, chunk_size=256),)


def inputs(operator: str, T: int, dtype: torch.dtype, s: dict[str, int]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    B, H, K, V = s["batch"], s["heads"], s["key"], s["value"]
    groups = 1 if operator == "ssd" else H
    q, k = (F.normalize(torch.randn(B, T, groups, K, generator=generator), dim=-1) for _ in "qk")
    v = torch.randn(B, T, H, V, generator=generator)
    g, beta = (torch.rand(B, T, H, generator=generator) for _ in range(2))
    if operator == "kimi_delta_attention":
        g = torch.rand(B, T, H, K, generator=generator)
    gates = [-g] if operator == "ssd" else [-g, beta]
    return [x.requires_grad_() for x in (q.to(dtype), k.to(dtype), v.to(dtype), *gates)]


def timed(function: Callable[..., Any], leaves: list[Tensor]) -> tuple[float, float]:
    """Milliseconds of the forward pass, and of both."""
    synchronize = torch.cuda.synchronize if leaves[0].is_cuda else lambda: None
    start = time.perf_counter()
    out = function(*leaves)[0]
    synchronize()
    forward = time.perf_counter() - start
    torch.autograd.grad(out.sum(), leaves)
    synchronize()
    return 1e3 * forward, 1e3 * (time.perf_counter() - start)


def medians(
    functions: dict[str, Callable[..., Any]], leaves: list[Tensor], repeats: int
) -> dict[str, tuple[float, float]]:
    """In turn, so that a busy moment of the machine falls on all; the first round is left out."""
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in functions}
    for _ in range(repeats + 1):
        for name, function in functions.items():
            taken[name].append(timed(function, leaves))
    return {
        name: (statistics.median(f for f, _ in t[1:]), statistics.median(b for _, b in t[1:]))
        for name, t in taken.items()
    }


def peak_megabytes(operator: str, who: str, dtype: str, s: dict[str, int]) -> float:
    command = [sys.executable, __file__, "peak", operator, who, dtype, json.dumps(s)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(run.stdout.splitlines()[-1])


def print_peak(operator: str, who: str, dtype: str, s: dict[str, int]) -> None:
    torch.set_num_threads(s["threads"])
    function = OURS[operator] if who == "ours" else theirs(operator)
    timed(function, inputs(operator, 64, getattr(torch, dtype), s))
    leaves = inputs(operator, 4096, getattr(torch, dtype), s)
    before = peak_resident_megabytes()
    timed(function, leaves)
    print(peak_resident_megabytes() - before)


def peak_resident_megabytes() -> float:
    """VmHWM of Linux; getrusage's would be the parent's where that was larger."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def on_cpu(s: dict[str, int]) -> None:
    torch.set_num_threads(s["threads"])
    print(
        "| operator | inputs | T | forward, ms: ours | theirs | both, ms: ours | theirs | ratio |"
    )
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for operator in OURS:
        for dtype in (torch.float32, torch.bfloat16):
            name = str(dtype).removeprefix("torch.")
            for T in LENGTHS:
                leaves = inputs(operator, T, dtype, s)
                functions = {"ours": OURS[operator], "theirs": theirs(operator)}
                if s["compile"] and T <= 1024:
                    functions["compiled"] = torch.compile(OURS[operator], fullgraph=True)
                found = medians(functions, leaves, max(3, 4096 // T))
                f, b = found["theirs"]
                for who in ("ours", "compiled"):
                    if who in found:
                        title = operator if who == "ours" else f"{operator}, compiled"
                        forward, both = found[who]
                        print(
                            f"| {title} | {name} | {T} | {forward:.0f} | {f:.0f} | {both:.0f} "
                            f"| {b:.0f} | {b / both:.2f} |",
                            flush=True,
                        )
    print("\n| operator | inputs | peak at T 4096, MB: ours | theirs | share |")
    print("| --- | --- | ---: | ---: | ---: |")
    for operator in OURS:
        for name in ("float32", "bfloat16"):
            ours, other = (peak_megabytes(operator, who, name, s) for who in ("ours", "theirs"))
            print(f"| {operator} | {name} | {ours:.0f} | {other:.0f} | {ours / other:.2f} |")


def on_gpu() -> None:
    device, tokens, H, K, V = torch.device("cuda"), 32768, 8, 96, 192
    print("versions:", preflight.versions(device))
    print(
        "| operator | T | fla, ms | chunked, ms | SDPA, ms |\n| --- | ---: | ---: | ---: | ---: |"
    )
    for operator in OURS:
        without_fla = preflight.examine(OPERATORS[operator], "fla", device, torch.bfloat16).problem
        if without_fla:
            print(f"{operator}: no fla, {without_fla}", file=sys.stderr)
        for T in (1024, 2048, 4096, 8192, 16384, 32768):
            s = {"batch": tokens // T, "heads": H, "key": K, "value": V}
            leaves = inputs(operator, T, torch.bfloat16, s)
            leaves = [x.detach().to(device).requires_grad_() for x in leaves]
            chunked = OURS[operator]
            functions = {"chunked": torch.compile(chunked) if T <= 4096 else chunked}
            if not without_fla:
                functions["fla"] = OPERATORS[operator].form("fla")
            found = medians(functions, leaves, 5)
            heads = [
                torch.randn(tokens // T, H, T, 128, device=device, dtype=torch.bfloat16)
                for _ in range(3)
            ]

            def attention(*x: Tensor) -> tuple[Tensor]:
                return (F.scaled_dot_product_attention(*x, is_causal=True),)

            qkv = [x.requires_grad_() for x in heads]
            found |= medians({"attention": attention}, qkv, 5)
            cells = (f"{found[n][1]:.2f}" if n in found else "–" for n in COLUMNS)
            print(f"| {operator} | {T} | {' | '.join(cells)} |", flush=True)


def main(arguments: list[str]) -> None:
    readable()
    if arguments[:1] == ["peak"]:
        print_peak(*arguments[1:4], json.loads(arguments[4]))
        return
    s = DEFAULTS | {key: int(value) for key, value in (a.split("=", 1) for a in arguments)}
    if torch.cuda.is_available():
        on_gpu()
    else:
        on_cpu(s)


if __name__ == "__main__":
    main(sys.argv[1:])
