"""What differed between runs is found, and told apart into treatment and confound."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from synthetic_sweeps import SweepWriter, write_ladder

from ablations.formats import run_name
from ablations.records import RunDirectory
from analysis.study.compare import Comparison, compare, control_table
from analysis.study.load import load_sweep


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
        if file == "spec.yaml":
            named_by_its_spec(RunDirectory(path.parent))


def named_by_its_spec(run: RunDirectory) -> None:
    """Another spec is another run."""
    moved = RunDirectory(run.path.rename(run.path.with_name(run_name(run.spec_as_written()))))
    moved.write_manifest(moved.read_manifest() | {"run": moved.name})


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
    found = compared(sweep)
    assert found.confounds == (
        "parameters: +27.0 % at size 100k, 200k", "FLOPs: +27.0 % at size 100k, 200k",
    )  # fmt: skip
    assert [one.name for one in found.named] == ["parameters", "FLOPs"]
    assert list(found.pairs["N_percent"].round(1)) == [0.4, 27.0, 27.0]


@pytest.mark.parametrize(
    ("file", "keys", "value", "told"),
    [
        ("spec.yaml", ("recipe", "peak_lr"), 1e-3, "recipe.peak_lr: 0.003 → 0.001"),
        ("spec.yaml", ("model", "d_model"), 64, "model width: +100.0 %"),
        ("spec.yaml", ("model", "norm_eps"), 1e-5, "model.norm_eps: absent → 1e-05"),
        ("spec.yaml", ("train", "optimizer"), "muon", "train.optimizer: adamw → muon"),
        ("manifest.json", ("precision",), "bf16", "precision: fp32 → bf16"),
        ("manifest.json", ("versions", "torch"), "2.14", "versions.torch: 2.13 → 2.14"),
        ("manifest.json", ("device", "kind"), "cuda", "device.kind: cpu → cuda"),
        ("manifest.json", ("device", "count"), 2, "device.count: 1 → 2"),
        ("manifest.json", ("device", "threads"), 4, "device.threads: 1 → 4"),
        ("manifest.json", ("parallel",), "fsdp", "parallel: None → fsdp"),
        ("manifest.json", ("micro_batch_rows",), 4, "micro_batch_rows: 16 → 4"),
        ("manifest.json", ("revision",), "f" * 40, "revision: 0123456789abcdef → ffffffff"),
        (
            "manifest.json",
            ("data", "fingerprint"),
            "0" * 32,
            "data.fingerprint: feedbeef → 00000000",
        ),
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


def edit_rows(path: Path, at: int, **values: object) -> None:
    """Change the row `at` of a .jsonl file and all behind it."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[at:] = [row | values for row in rows[at:]]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize(
    ("file", "values", "what", "told"),
    [
        ("points", {"data_hash": "other"}, "batches", "batches: not equal from step 489"),
        ("metrics", {"tokens": 1}, "tokens", "tokens: 2002944 → 1 from step 489"),
        ("metrics", {"lr": 2e-3}, "learning rate", "learning rate: 0.003 → 0.002 from step 489"),
        ("points", {"skipped_steps": 3}, "skipped steps", "skipped steps: 0 → 3 from step 489"),
        ("points", {"domains": {"prose": {"loss": 3.0, "tokens": 4096, "documents": 9}}},
         "evaluation tokens", "evaluation tokens: prose 8192 in 9 documents → prose 4096 in 9 "
         "documents from step 489"),
        ("points", {"domains": {"code": {"loss": 3.0, "tokens": 8192, "documents": 9}}},
         "evaluation tokens", "evaluation tokens: code absent → code 8192 in 9 documents from "
         "step 489"),
    ],
)  # fmt: skip
def test_what_was_recorded_differently_is_found_with_step_values_and_runs(
    sweep: SweepWriter, file: str, values: dict[str, object], what: str, told: str
) -> None:
    write_ladder(sweep, sizes=("50k",))
    (path,) = sweep.path.glob(f"gdn3_attn1-50k-s1-*/{file}.jsonl")
    edit_rows(path, 1, **values)
    found = compared(sweep)
    assert [line for line in found.confounds if line.startswith(what)] == [f"{told} in 50k/s1"]
    (finding,) = (one for one in found.findings if one.what == what)
    assert finding.step == 489
    assert finding.runs[1] == path.parent.name
    assert finding.runs[0].startswith("transformer-50k-s1-")
    table = control_table(found)
    (row,) = table[table["confound"] == what].to_dict("records")
    assert path.parent.name in row["what it does, or runs"]


def test_tokens_that_differ_at_a_step_are_found(sweep: SweepWriter) -> None:
    write_ladder(sweep, sizes=("50k",), seeds=(0,))
    for path in sweep.path.glob("gdn3_attn1-*/points.jsonl"):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        doubled = [row | {"D": 2 * row["D"], "C": 2 * row["C"]} for row in rows]
        path.write_text("".join(json.dumps(row) + "\n" for row in doubled))
    edit(sweep, "gdn3_attn1", "spec.yaml", "recipe", "batch_tokens", value=8192)
    (finding,) = (one for one in compared(sweep).findings if one.what == "D")
    assert str(finding) == "D: 1003520 → 2007040 from step 245"
    assert "recipe.batch_tokens: 4096 → 8192" in compared(sweep).confounds


def test_finished_runs_of_other_budgets_are_a_confound(sweep: SweepWriter) -> None:
    write_ladder(sweep, mixes=("transformer",), sizes=("50k",), seeds=(0,))
    sweep.run("gdn3_attn1", "50k", 0, multiples=(1, 2, 8))
    assert compared(sweep).confounds[-1] == "tokens: points at other steps in 50k/s0"


def test_code_that_changed_while_a_run_was_stopped_is_a_confound(sweep: SweepWriter) -> None:
    write_ladder(sweep, sizes=("50k",), seeds=(0,))
    (path,) = sweep.path.glob("gdn3_attn1-*")
    run = RunDirectory(path)
    before = {"revision": "a" * 40, "diff_sha256": "", "device": run.read_manifest()["device"]}
    run.write_manifest(run.read_manifest() | {"earlier": [before]})
    found = compared(sweep)
    (told,) = found.confounds
    assert told == "revision within a run: aaaaaaaa → 0123456789abcdef"
    assert found.findings[0].runs == (path.name,)


def test_where_arms_were_placed_otherwise_the_table_says_what_that_does(sweep: SweepWriter) -> None:
    write_ladder(sweep, sizes=("50k",))
    edit(sweep, "gdn3_attn1", "manifest.json", "device", "count", value=2)
    told = control_table(compared(sweep))["what it does, or runs"]
    assert len(told) == 2
    assert all(line.startswith("rounds otherwise, which can move a held-out loss") for line in told)


def test_a_run_that_went_on_elsewhere_is_a_confound(sweep: SweepWriter) -> None:
    write_ladder(sweep, sizes=("50k",), seeds=(0,))
    (path,) = sweep.path.glob("gdn3_attn1-*")
    run = RunDirectory(path)
    told = run.read_manifest()
    before = {key: told[key] for key in ("revision", "diff_sha256", "device", "precision")}
    run.write_manifest(told | {"earlier": [before | {"precision": "bf16", "micro_batch_rows": 8}]})
    assert compared(sweep).confounds == (
        "precision within a run: bf16 → fp32", "micro_batch_rows within a run: 8 → 16",
    )  # fmt: skip


def test_a_micro_batch_that_was_not_recorded_is_unknown_unless_it_was_set(
    sweep: SweepWriter,
) -> None:
    write_ladder(sweep, sizes=("50k",), seeds=(0,))
    for path in sweep.path.glob("*/manifest.json"):
        content = json.loads(path.read_text())
        del content["micro_batch_rows"]
        path.write_text(json.dumps(content))
    assert compared(sweep).unknown == ("micro_batch_rows",)
    for mix, tokens in (("transformer", 1024), ("gdn3_attn1", 4096)):
        edit(sweep, mix, "spec.yaml", "resources", "micro_batch_tokens", value=tokens)
    assert compared(sweep).unknown == ()
    assert compared(sweep).confounds == ("micro_batch_rows: 4 → 16",)


def test_where_only_some_pairs_differ_they_are_named(sweep: SweepWriter) -> None:
    write_ladder(sweep)
    (path,) = sweep.path.glob("gdn3_attn1-100k-s1-*/manifest.json")
    content = json.loads(path.read_text())
    content["device"]["kind"] = "cuda"
    path.write_text(json.dumps(content))
    assert compared(sweep).confounds == ("device.kind: cpu → cuda in 100k/s1",)


def test_what_the_protocol_brings_along_is_told_with_its_size(sweep: SweepWriter) -> None:
    write_ladder(sweep, sizes=("50k",))
    for mix, mixer in (("transformer", "attn"), ("gdn3_attn1", "gdn")):
        layers = [mixer] * 3 + ["attn"]
        edit(sweep, mix, "spec.yaml", "model", "layers", value=layers)
        windows = [8 if one == "attn" else 0 for one in layers[:3]] + [0]
        edit(sweep, mix, "spec.yaml", "model", "windows", value=windows)
    found = compared(sweep)
    assert found.confounds == (
        "windows: 3 of 4 → 0 of 1", "norm placement: 0 of 4 → 3 of 4",
    )  # fmt: skip
    assert "model.windows" not in " ".join(found.treatment)
    assert "window of 8 tokens" in control_table(found)["what differs"][0]


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
    assert found.unknown == ("batches", "manifest")
    assert found.words == "none found; not recorded: batches, manifest"


def test_learning_rates_and_evaluation_that_were_not_recorded_are_unknown(
    sweep: SweepWriter,
) -> None:
    write_ladder(sweep, sizes=("50k",))
    for path in sweep.path.glob("*/metrics.jsonl"):
        path.unlink()
    for path in sweep.path.glob("*/points.jsonl"):
        edit_points(path, domains={})
    assert compared(sweep).unknown == ("evaluation tokens", "learning rate", "tokens")


def test_mixes_without_a_common_size_and_seed_say_so(sweep: SweepWriter) -> None:
    sweep.run("transformer", "50k", 0)
    sweep.run("gdn3_attn1", "100k", 0)
    assert compared(sweep).confounds == ("no size and seed was run with both mixes",)


def test_several_runs_of_one_mix_size_and_seed_are_a_confound(sweep: SweepWriter) -> None:
    sweep.run("transformer", "50k", 0)
    edit_points(sweep.run("gdn3_attn1", "50k", 0, lr=1e-2).path / "points.jsonl", loss=2.5)
    sweep.run("gdn3_attn1", "50k", 0)
    (told,) = (line for line in compared(sweep).confounds if line.startswith("several runs"))
    assert "gdn3_attn1 50k/s0 ×2" in told
    assert "differing in recipe.peak_lr" in told
