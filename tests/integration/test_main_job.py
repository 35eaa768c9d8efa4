"""The whole way: sweep, records, report; and a corpus of the user's own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ablations.data.prepared import write_prepared
from ablations.records import read_sweep

ROOT = Path(__file__).parents[2]
SHORT = (
    "size.context=64", "protocol.batch_tokens=256", "data.eval_tokens=2048",
    "protocol.chinchilla=[0.002,0.004,0.008]",
)  # fmt: skip


def run(*command, **environment):
    return subprocess.run(
        [sys.executable, *command], cwd=ROOT, capture_output=True, text=True, check=False,
        timeout=300, env={**os.environ, **environment},
    )  # fmt: skip


@pytest.mark.slow
def test_from_sweep_to_report(tmp_path):
    swept = run(
        "sweeps/run.py", "-m", "mix=transformer,gdn3_attn1", "size=50k,100k,200k", "sweep=whole",
        *SHORT, f"runs={tmp_path}/runs",
    )  # fmt: skip
    assert swept.returncode == 0, swept.stdout + swept.stderr
    runs = read_sweep(tmp_path / "runs" / "whole")
    assert len(runs) == 6
    seen = {}
    for directory in runs:
        for point in directory.rows("points.jsonl"):
            seen.setdefault((point["size"], point["step"]), set()).add(point["data_hash"])
    assert all(len(hashes) == 1 for hashes in seen.values())

    reported = run(
        "-m", "analysis", "report", "sweep=whole", f"runs={tmp_path}/runs", f"out={tmp_path}/out",
        "resamples=100",
    )  # fmt: skip
    assert reported.returncode == 0, reported.stdout + reported.stderr
    text = (tmp_path / "out" / "report.md").read_text()
    assert "python sweeps/run.py -m mix=transformer,gdn3_attn1" in text
    assert "mlp_hidden" in text
    figures = {p.name for p in (tmp_path / "out" / "figures").iterdir()}
    for stem in ("loss", "fits", "savings"):
        assert {f"{stem}.png", f"{stem}.pdf", f"{stem}.csv", f"{stem}.json"} <= figures
    provenance = json.loads((tmp_path / "out" / "figures" / "savings.json").read_text())
    assert provenance["sweep"] == "whole"


@pytest.mark.slow
def test_a_corpus_of_ones_own_is_named_by_setting_or_environment(tmp_path):
    generator = np.random.default_rng(0)

    def documents(n):
        return (generator.integers(1, 400, 600) for _ in range(n))

    write_prepared(
        tmp_path / "corpus", name="made", vocab_size=400, separator=0, train=documents(60),
        validation={"a": documents(6)}, tokenizer={"name": "made", "sha256": None},
        token_bytes=np.array([0] + [3] * 399),
    )  # fmt: skip
    command = (
        "sweeps/run.py", "mix=gdn", "size=50k", "data=tokens", "resources.threads=1", *SHORT,
    )  # fmt: skip
    by_setting = run(*command, f"data.path={tmp_path}/corpus", f"runs={tmp_path}/a")
    assert by_setting.returncode == 0, by_setting.stdout + by_setting.stderr
    by_name = run(*command, f"runs={tmp_path}/b", ARCHLADDER_DATA=f"{tmp_path}/corpus")
    assert by_name.returncode == 0, by_name.stdout + by_name.stderr
    (one,), (two,) = (read_sweep(tmp_path / x / "default") for x in "ab")
    assert one.name == two.name
    point = list(one.rows("points.jsonl"))[-1]
    assert point == list(two.rows("points.jsonl"))[-1]
    assert point["N_total"] - point["N"] == 400 * 32
    # Every predicted token but the separators is three bytes long.
    sums = point["domains"]["a"]
    assert 0.98 * 3 * sums["tokens"] < sums["bytes"] <= 3 * sums["tokens"]
