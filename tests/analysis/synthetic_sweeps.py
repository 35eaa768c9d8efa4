"""Synthetic sweeps with the schema of docs/contracts.md and a law that is known."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ablations.formats import run_name
from ablations.records import RunDirectory
from analysis.stats.laws import Chinchilla

DATA = Path(__file__).parent.parent / "data" / "scaling"
# A byte-level ladder in miniature; token savings of gdn3_attn1 over transformer are 1.3 everywhere.
BETA = 0.35
TRUTH = {
    "transformer": Chinchilla(0.9, 60.0, 0.42, 90.0, BETA),
    "gdn3_attn1": Chinchilla(0.9, 60.0, 0.42, 90.0 * 1.3**-BETA, BETA),
    "gdn": Chinchilla(0.9, 66.0, 0.42, 90.0, BETA),
}
SIZES = {"50k": 50_112, "100k": 99_840, "200k": 201_024, "400k": 399_360}


@dataclass(frozen=True)
class SweepWriter:
    """Writes run directories as training would; noise sd is relative, for runs and for points, and
    `factor` multiplies a run's losses."""

    path: Path
    run_sd: float = 0.003
    point_sd: float = 0.001

    def run(
        self, mix: str, size: str, seed: int, multiples: tuple[float, ...] = (1, 2, 4),
        finished: int | None = None, state: str = "done", n_factor: float = 1.0,
        lr: float = 3e-3, protocol: dict[str, Any] | None = None, factor: float = 1.0,
    ) -> RunDirectory:  # fmt: skip
        N = round(SIZES[size] * n_factor)
        key = f"{mix}-{size}-{seed}{protocol or ''}"
        rng = np.random.default_rng(int(hashlib.sha256(key.encode()).hexdigest()[:8], 16))
        batch = 4096
        spec = (
            {
                "sweep": self.path.name,
                "mix": {"name": mix, "pattern": mix.split("_")},
                "size": {"name": size},
                "protocol": {
                    "name": "controlled", "tokens_per_parameter": 20, "schedule": "wsds",
                } | (protocol or {}),
                "data": {"name": "embedded"},
                "train": {"optimizer": "adamw"},
                "seed": seed,
                "model": {"layers": [mix] * 4, "d_model": 32, "mlp_hidden": 96 + len(mix)},
                "recipe": {
                    "N": SIZES[size],
                    "batch_tokens": batch, "context": 256, "peak_lr": lr,
                    "milestones": [{"chinchilla": c} for c in multiples],
                },
                "matched": f"mlp_hidden 96 to {96 + len(mix)}",
                "resources": {"threads": 1, "at_once": 2},
            }
        )  # fmt: skip
        run = RunDirectory(self.path / run_name(spec))
        run.write_spec(spec)
        run.write_manifest(
            {
                "run": run.name,
                "revision": "0123456789abcdef",
                "dirty": False,
                "diff_sha256": "",
                "versions": {"python": "3.11", "torch": "2.13"},
                "device": {"kind": "cpu", "name": "test CPU", "count": 1, "threads": 1},
                "precision": "fp32",
                "parallel": None,
                "micro_batch_rows": 16,
                "backends": {} if mix == "transformer" else {"gated_delta_rule": "chunked"},
                "counts": {"N": N, "flops_per_token": 6 * N},
                "data": {"name": "embedded", "fingerprint": "feedbeef" * 4},
                "command": f"python sweeps/run.py -m sweep={self.path.name}",
            }
        )
        luck = rng.normal(0, self.run_sd)
        for multiple in multiples[:finished]:
            step = round(20 * multiple * SIZES[size] / batch)
            D = step * batch
            rate = (protocol or {}).get("lr_multiplier") or 1.0
            loss = float(TRUTH[mix].loss(N, D)) * rate**0.1
            loss *= factor * np.exp(luck + rng.normal(0, self.point_sd))
            logged = {"step": step, "tokens": D, "lr": lr, "seconds": D / 5e4, "grad_norm": 0.4}
            run.append("metrics.jsonl", logged)
            run.append(
                "points.jsonl",
                {
                    "mix": mix, "size": size, "seed": seed, "step": step, "chinchilla": multiple,
                    "N": N, "N_total": N + 8192, "N_body": N - 8192, "D": D, "C": 6 * N * D,
                    "epochs": D / 3e7, "loss": loss, "bpb": loss / np.log(2),
                    "domains": {
                        "prose": {
                            "loss": loss, "bpb": loss / np.log(2), "tokens": 8192, "documents": 9,
                        }
                    },
                    "data_hash": f"{size}{seed}{step}", "skipped_steps": 0,
                },
            )  # fmt: skip
        done = state if finished is None else ("running" if state == "done" else state)
        run.write_status(done, step=0)
        return run


def write_ladder(
    sweep: SweepWriter,
    mixes: tuple[str, ...] = ("transformer", "gdn3_attn1"),
    sizes: tuple[str, ...] = ("50k", "100k", "200k"),
    seeds: tuple[int, ...] = (0, 1),
) -> None:
    """Every combination, finished."""
    for mix in mixes:
        for size in sizes:
            for seed in seeds:
                sweep.run(mix, size, seed)


def grid_points(laws: dict[str, Chinchilla], noise: float = 0.0, seed: int = 0) -> pd.DataFrame:
    """Four sizes, three budgets, exact or with independent noise."""
    rng = np.random.default_rng(seed)
    rows = [
        (mix, str(N), f"{mix}-{N}", N, D, float(law.loss(N, D)) * np.exp(noise * rng.normal()))
        for mix, law in laws.items()
        for N in (50_000, 100_000, 200_000, 400_000)
        for D in (20 * N, 40 * N, 80 * N)
    ]
    return pd.DataFrame(rows, columns=["mix", "size", "run", "N", "D", "loss"]).assign(seed=0)
