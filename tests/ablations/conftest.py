"""A run small enough to train in a second or two, on the real code path."""

from pathlib import Path

import pytest
import yaml

from ablations.records import RunDirectory
from ablations.resolve import resolve

ROOT = Path(__file__).parents[2]


def settings(mix="transformer", size="50k", seed=0, **changes):
    """Settings as Hydra composes them; `changes` are dotted names with _ for the last dot."""

    def read(group, name):
        content = yaml.safe_load((ROOT / "conf" / group / f"{name}.yaml").read_text())
        content.pop("defaults", None)
        return content

    composed = {
        "sweep": "test", "seed": seed, "mix": read("mix", mix), "size": read("size", size),
        "protocol": read("protocol", "controlled"),
        "data": {"name": "auto", "path": None, "eval_tokens": 2048},
        "train": read("train", "adamw"),
        "evaluation": {},
        # fp32: some CPUs multiply in bf16 where they may, and tests compare to rounding.
        "resources": {"threads": 1, "device": "cpu", "precision": "fp32"},
        "logging": {"log_every": 1, "checkpoint_every": 3},
    }  # fmt: skip
    composed["size"]["context"] = 64
    composed["protocol"]["chinchilla"] = [0.002, 0.004, 0.008]
    composed["protocol"]["batch_tokens"] = 256
    for name, value in changes.items():
        group, key = name.split("__")
        composed[group][key] = value
    return composed


@pytest.fixture
def make_run(tmp_path):
    def make(mix="transformer", name=None, **changes):
        spec = resolve(settings(mix, **changes))
        run = RunDirectory(tmp_path / (name or spec.run_name))
        run.write_spec(spec.record())
        return run, spec

    return make
