"""Is a trained ladder any good? Held-out bits per byte by size and tokens, beside xz and bzip2.

    python benchmarks/sanity.py [sweep=NAME] [runs=DIR]

First the means over domains: they should fall with tokens inside a run and with size at equal
multiples of the Chinchilla budget, and where they do not a line says so. Then every domain of each
run's last point beside the compressors, which see the same held-out text, a domain at a time: once
alone, and once after the domain's training text, whose compressed size is taken off. The models
have read D tokens of the training text and not the held-out text. bzip2 looks back 900 kB at most,
so the training text hardly helps it; xz -9 looks back 64 MiB, all of it.
"""

from __future__ import annotations

import bz2
import lzma
import sys
from itertools import pairwise
from typing import Any

from ablations.data.embedded import open_embedded
from ablations.records import project_root, read_sweep, readable

COMPRESSORS = {
    "xz -9": lambda text: len(lzma.compress(text, preset=9)),
    "bzip2 -9": lambda text: len(bz2.compress(text, 9)),
}


def compressed() -> dict[str, dict[str, float]]:
    """Bits per byte of held-out text by compressor and domain."""
    corpus = open_embedded(project_root() / ".cache" / "corpora")
    train = corpus.train.tobytes()
    rows: dict[str, dict[str, float]] = {}
    for name, compress in COMPRESSORS.items():
        base = compress(train)
        alone, after = {}, {}
        for domain in corpus.validation.values():
            text = domain.tokens.tobytes()
            alone[domain.name] = 8 * compress(text) / domain.bytes
            after[domain.name] = 8 * (compress(train + text) - base) / domain.bytes
        rows[f"{name}, held-out text alone"] = alone
        rows[f"{name}, after the training text"] = after
    return rows


def mean(values: dict[str, float]) -> float:
    return sum(values.values()) / len(values)


def show_ladder(points: list[dict[str, Any]]) -> None:
    """Mean bits per byte by mix, size and multiple, and where it does not fall."""
    bpb: dict[tuple[str, int, str, int, float], float] = {}
    for p in points:
        bpb[p["mix"], p["N"], p["size"], p["seed"], p["chinchilla"]] = p["bpb"]
    multiples = sorted({key[4] for key in bpb})
    print("| mix | size | seed | " + " | ".join(f"{m:g}× Chinchilla" for m in multiples) + " |")
    print("| --- | --- | ---: |" + " ---: |" * len(multiples))
    runs = sorted({key[:4] for key in bpb})
    for run in runs:
        cells = [f"{bpb[(*run, m)]:.3f}" if (*run, m) in bpb else "" for m in multiples]
        print(f"| {run[0]} | {run[2]} | {run[3]} | " + " | ".join(cells) + " |")
    rises = []
    for mix, N, size, seed in runs:
        there = [m for m in multiples if (mix, N, size, seed, m) in bpb]
        for a, b in pairwise(there):
            if bpb[mix, N, size, seed, b] >= bpb[mix, N, size, seed, a]:
                rises.append(f"{mix} {size} seed {seed} from {a:g}× to {b:g}×")
    for (mix, *_, seed), m in sorted({((k[0], k[3]), k[4]) for k in bpb}):
        ladder = [(run, bpb[(*run, m)]) for run in runs if (run[0], run[3]) == (mix, seed)
                  and (*run, m) in bpb]  # fmt: skip
        for (a, high), (b, low) in pairwise(ladder):
            if low >= high:
                rises.append(f"{mix} seed {seed} from {a[2]} to {b[2]} at {m:g}×")
    print("\nIt falls everywhere with tokens and with size." if not rises else
          "\nIt does not fall: " + "; ".join(rises) + ".")  # fmt: skip


def main(arguments: list[str]) -> None:
    readable()
    settings = dict(argument.split("=", 1) for argument in arguments)
    rows = compressed()
    if "sweep" in settings:
        folder = project_root() / settings.get("runs", "runs") / settings["sweep"]
        by_run = [list(run.rows("points.jsonl")) for run in read_sweep(folder)]
        show_ladder([point for points in by_run for point in points])
        print()
        for point in sorted((p[-1] for p in by_run if p), key=lambda p: (p["N"], p["mix"])):
            label = (
                f"{point['mix']} {point['size']} seed {point['seed']}, D = {point['D'] / 1e6:.2f}M"
            )
            rows[label] = {name: d["bpb"] for name, d in point["domains"].items()}
    domains = list(next(iter(rows.values())))
    print("| bits per byte | " + " | ".join(domains) + " | mean |")
    print("| --- |" + " ---: |" * (len(domains) + 1))
    for label, values in rows.items():
        cells = " | ".join(f"{values[d]:.3f}" for d in domains)
        print(f"| {label} | {cells} | {mean(values):.3f} |")


if __name__ == "__main__":
    main(sys.argv[1:])
