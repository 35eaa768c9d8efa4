"""Is a trained model any good? Its held-out bits per byte beside xz -9 and bzip2 -9.

    python benchmarks/compression.py [sweep=NAME] [runs=DIR]

The compressors see the same held-out text as the models, a domain at a time: once alone, and once
after the domain's training text, whose compressed size is taken off. The models have read the
training text (D tokens of it) and not the held-out text. bzip2 looks back 900 kB at most, so the
training text hardly helps it; xz -9 looks back 64 MiB, all of it.
"""

from __future__ import annotations

import bz2
import lzma
import sys

from ablations.data.embedded import open_embedded
from ablations.records import project_root, read_sweep

COMPRESSORS = {
    "xz -9": lambda text: len(lzma.compress(text, preset=9)),
    "bzip2 -9": lambda text: len(bz2.compress(text, 9)),
}


def main(arguments: list[str]) -> None:
    settings = dict(argument.split("=", 1) for argument in arguments)
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
    runs_root = project_root() / settings.get("runs", "runs")
    if "sweep" in settings:
        for run in read_sweep(runs_root / settings["sweep"]):
            for point in run.rows("points.jsonl"):
                label = (
                    f"{point['mix']} {point['size']} seed {point['seed']} D={point['D'] / 1e6:.2f}M"
                )
                rows[label] = {name: d["bpb"] for name, d in point["domains"].items()}
    domains = list(corpus.validation)
    print("| bits per byte | " + " | ".join(domains) + " | mean |")
    print("| --- |" + " ---: |" * (len(domains) + 1))
    for label, values in rows.items():
        mean = sum(values.values()) / len(values)
        cells = " | ".join(f"{values[d]:.3f}" for d in domains)
        print(f"| {label} | {cells} | {mean:.3f} |")


if __name__ == "__main__":
    main(sys.argv[1:])
