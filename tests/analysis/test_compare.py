"""What differed between runs is found, and told apart into treatment and confound."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from synthetic_sweeps import SweepWriter, write_ladder

from analysis.compare import Comparison, compare
from analysis.load import load_sweep


def compared(sweep: SweepWriter) -> Comparison:
    return compare(load_sweep(sweep.path), "transformer", "gdn3_attn1")


def edit(sweep: SweepWriter, mix: str, file: str, *keys: str, value: object) -> None:
    """Change one field in a file of every run of a mix."""
    for path in sweep.path.glob(f"{mix}-*/{file}"):
        # JSON is YAML too.
        top = fields = yaml.safe_load(path.read_text())
        for key in keys[:-1]:
            fields = fields[key]
        fields[keys[-1]] = value
        path.write_text(json.dumps(top))


def edit_points(path: Path, **values: object) -> None:
    rows = [json.loads(line) | values for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_controlled_pair_differs_in_the_treatment_alone(sweep: SweepWriter) -> None:
    write_ladder(sweep)
    found = compared(sweep)
    assert found.confounds == ()
    assert found.unknown == ()
    assert found.words == "none found"
    assert {told.split(":")[0] for told in found.treatment} == {
        "matched", "mix.name", "mix.pattern", "model.layers", "model.mlp_hidden",
    }  # fmt: skip
    assert len(found.pairs) == 6
    assert found.pairs["equal_tokens"].all()
    assert found.pairs["equal_batches"].all()
    assert found.pairs["N_percent"].abs().max() == 0


def test_unequal_n_is_a_confound_past_the_tolerance_of_the_protocol(sweep: SweepWriter) -> None:
    write_ladder(sweep, mixes=("transformer",))
    for size in ("50k", "100k", "200k"):
        sweep.run("gdn3_attn1", size, 0, n_factor=1.004 if size == "50k" else 1.27)
    assert compared(sweep).confounds == ("N: +27.0 % at size 100k, 200k",)


@pytest.mark.parametrize(
    ("file", "keys", "value", "told"),
    [
        ("spec.yaml", ("recipe", "peak_lr"), 1e-3, "recipe.peak_lr: 0.003 → 0.001"),
        ("spec.yaml", ("recipe", "batch_tokens"), 8192, "recipe.batch_tokens: 4096 → 8192"),
        ("spec.yaml", ("model", "d_model"), 64, "model.d_model: 32 → 64"),
        ("manifest.json", ("precision",), "bf16", "precision: fp32 → bf16"),
        ("manifest.json", ("versions", "torch"), "2.14", "versions.torch: 2.13 → 2.14"),
        ("manifest.json", ("device", "kind"), "cuda", "device.kind: cpu → cuda"),
        ("manifest.json", ("diff_sha256",), "ab" * 32, "diff_sha256:  → abababab"),
    ],
)
def test_any_other_field_that_differs_is_a_confound_with_its_values(
    sweep: SweepWriter, file: str, keys: tuple[str, ...], value: object, told: str
) -> None:
    write_ladder(sweep, sizes=("50k",))
    edit(sweep, "gdn3_attn1", file, *keys, value=value)
    assert compared(sweep).confounds == (told,)


def test_an_operator_that_one_mix_alone_uses_is_no_confound(sweep: SweepWriter) -> None:
    write_ladder(sweep, sizes=("50k",))
    edit(sweep, "gdn3_attn1", "manifest.json", "backends", value={"gated_delta_rule": "fla"})
    assert compared(sweep).confounds == ()


def test_other_batches_and_other_budgets_are_confounds(sweep: SweepWriter) -> None:
    write_ladder(sweep, sizes=("50k",), seeds=(0,))
    (path,) = sweep.path.glob("gdn3_attn1-*/points.jsonl")
    edit_points(path, data_hash="other")
    assert compared(sweep).confounds == ("batches: not equal in 50k/s0",)
    edit_points(path, D=1)
    assert "tokens: not equal in 50k/s0" in compared(sweep).confounds


def test_a_run_that_has_not_finished_is_compared_as_far_as_it_went(sweep: SweepWriter) -> None:
    write_ladder(sweep, mixes=("transformer",), sizes=("50k",))
    sweep.run("gdn3_attn1", "50k", 0, finished=2)
    found = compared(sweep)
    assert found.confounds == ()
    assert list(found.pairs["points"]) == [2]


def test_what_was_not_recorded_is_unknown_and_not_equal(sweep: SweepWriter) -> None:
    write_ladder(sweep, sizes=("50k",))
    for path in sweep.path.glob("*/manifest.json"):
        path.unlink()
    for path in sweep.path.glob("*/points.jsonl"):
        edit_points(path, data_hash="")
    found = compared(sweep)
    assert found.unknown == ("data hash", "manifest")
    assert found.words == "none found; not recorded: data hash, manifest"


def test_mixes_without_a_common_size_and_seed_say_so(sweep: SweepWriter) -> None:
    sweep.run("transformer", "50k", 0)
    sweep.run("gdn3_attn1", "100k", 0)
    assert compared(sweep).confounds == ("no size and seed was run with both mixes",)


def test_several_runs_of_one_mix_size_and_seed_are_a_confound(sweep: SweepWriter) -> None:
    sweep.run("transformer", "50k", 0)
    first = sweep.run("gdn3_attn1", "50k", 0, lr=1e-2).path
    first.rename(first.with_name("gdn3_attn1-50k-s0-ffffffff"))
    sweep.run("gdn3_attn1", "50k", 0)
    (told,) = compared(sweep).confounds
    assert "gdn3_attn1 50k/s0 ×2" in told
    assert "differing in recipe.peak_lr" in told
