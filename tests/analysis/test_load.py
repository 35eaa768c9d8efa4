"""Reading sweeps and CSVs: what is joined, what is left out, what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from synthetic_sweeps import SweepWriter, write_ladder

from ablations import formats
from ablations.records import RunDirectory, SettingError
from ablations.spec import load as load_spec
from analysis.commands.common import Points, read
from analysis.study.join import join
from analysis.study.load import load_csv, load_sweep
from analysis.study.source import from_sweeps

DEMO = Path(__file__).parents[2] / "notebooks" / "records" / "demo"


def test_a_sweep_becomes_a_row_a_point_with_seconds_joined_by_step(sweep: SweepWriter) -> None:
    write_ladder(sweep, sizes=("50k",))
    loaded = load_sweep(sweep.path)
    assert len(loaded.points) == 2 * 2 * 3
    assert len(loaded.runs) == 4
    assert np.allclose(loaded.points["seconds"], loaded.points["D"] / 5e4)
    assert np.allclose(loaded.points["loss/prose"], loaded.points["loss"])
    assert set(loaded.points["state"]) == {"done"}
    assert {run.n_planned for run in loaded.runs} == {3}


def test_unfinished_runs_and_cut_lines_are_read_as_far_as_they_go(sweep: SweepWriter) -> None:
    run = sweep.run("transformer", "50k", 0, finished=2)
    with (run.path / "points.jsonl").open("a") as file:
        file.write('{"mix": "transformer", "si')
    loaded = load_sweep(sweep.path)
    assert list(loaded.points["chinchilla"]) == [1, 2]
    assert loaded.runs[0].state == "running"
    assert (loaded.runs[0].n_points, loaded.runs[0].n_planned) == (2, 3)


def test_points_that_diverged_are_left_out_and_named(sweep: SweepWriter) -> None:
    run = sweep.run("transformer", "50k", 0)
    row = list(run.rows("points.jsonl"))[-1]
    diverged = {"step": 9999, "D": 9999 * 4096, "C": 6 * row["N"] * 9999 * 4096}
    run.append("points.jsonl", row | diverged | {"loss": float("nan"), "domains": {}})
    loaded = load_sweep(sweep.path)
    assert len(loaded.points) == 3
    assert "at step 9999" in loaded.dropped[0]


def test_a_sweep_without_points_says_what_its_runs_do(sweep: SweepWriter) -> None:
    sweep.run("transformer", "50k", 0, finished=0)
    with pytest.raises(SettingError, match=r"sweep=trial has no points yet \(1 running\)"):
        load_sweep(sweep.path)


def test_a_sweep_that_is_not_there_is_named_with_those_that_are(sweep: SweepWriter) -> None:
    sweep.run("transformer", "50k", 0)
    with pytest.raises(SettingError, match=r"sweep=other is not in .*trial"):
        load_sweep(sweep.path.parent / "other")


def test_a_csv_without_runs_takes_mix_size_and_seed_for_one(tmp_path: Path) -> None:
    path = tmp_path / "points.csv"
    path.write_text("mix,N,D,loss\na,1e6,1e7,3\na,1.005e6,2e7,2.8\nb,1e6,1e7,3.1\nb,3e6,1e7,3\n")
    points = load_csv(path)
    assert points["run"].nunique() == 3
    assert points["size"].nunique() == 2


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("mix,N,loss\na,1,2\n", "has no column D; it has mix, N, loss"),
        ("mix,N,D,loss\n", "holds no rows"),
        (
            "mix,N,D,loss\na,1e6,0,3\na,1e6,1e7,3\n",
            r"a positive finite number for D in row 1 \(line 2 of the file\), where it is D=0\.",
        ),
        ("mix,N,D,loss\na,1e6,1e7,3\na,-1,1e7,3\n", r"for N in row 2 \(line 3 .*it is N=-1\."),
        (
            "mix,N,D,loss\na,1e6,1e7,0\na,1e6,1e7,word\n",
            r"for loss in row 1, 2 \(line 2, 3 of the file\), where it is loss=0 at first",
        ),
        ("mix,N,D,loss\na,1e6,1e7,three\n", r"for loss in row 1 .*loss=three"),
        ("mix,N,D,loss\na,1e6,inf,3\n", r"for D in row 1 .*D=inf"),
        ("mix,N,D,loss\n\na,1e6,1e7,3\n\na,1e6,1e7,-3\n", r"in row 2 \(line 5 of the file\)"),
        ("mix,N,D,loss\n,1e6,1e7,3\n", "a name for mix in row 1"),
        ("mix,run,N,D,loss\na,,1e6,1e7,3\na,r,1e6,2e7,3\n", "a name for run in row 1"),
        ("mix,N,D,loss,weight\na,1e6,1e7,3,0\n", "a positive finite number for weight in row 1"),
        ("mix|N|D|loss\na|1|2|3\n", r"has no column mix, N, D, loss; it has mix\|N\|D"),
        ("mix,N,D,loss\n" + "a,1,1,-1\n" * 12, "row 1, 2, 3, 4, 5, 6, 7, 8 and 4 more"),
        ("", "is not a CSV"),
        ("mix,N,N ,D,loss\na,1e6,1e6,1e7,3\n", "has more than one column N"),
        ("mix,N,D,loss,seed\na,1e6,1e7,3,\na,1e6,2e7,3,0\n", "a name for seed in row 1"),
        (
            "mix,N,D,loss,C\na,1e6,1e7,3,much\n",
            r"number for C in row 1 .*it is C=much",
        ),
        (
            "mix,N,D,loss,seed\na,1e6,1e7,3,0\na,1e6,2e7,3,0\na,1e6,1e7,3,0\n",
            r"holds rows twice \(line 4 of the file\)",
        ),
    ],
)
def test_a_csv_that_cannot_be_used_is_refused_in_a_sentence(
    tmp_path: Path, text: str, sentence: str
) -> None:
    path = tmp_path / "points.csv"
    path.write_text(text)
    with pytest.raises(SettingError, match=sentence) as caught:
        load_csv(path)
    assert str(caught.value).count("\n") == 0


def test_spaces_around_names_and_numbers_do_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "points.csv"
    path.write_text("mix, N, D , loss\na, 1e6, 2e7, 3\n\n")
    assert load_csv(path)[["N", "D", "loss"]].to_numpy().tolist() == [[1e6, 2e7, 3.0]]


@pytest.mark.parametrize(("mark", "decimal"), [(";", ","), (";", "."), ("\t", "."), (",", ".")])
def test_columns_may_be_separated_as_spreadsheets_do(
    tmp_path: Path, mark: str, decimal: str
) -> None:
    rows = [("mix", "N", "D", "loss"), ("transformer ", "1e6", "2.5e7", "3.25")]
    rows.append((" gdn", "1000000", "25000000", "3.125"))
    path = tmp_path / "points.csv"
    text = "\r\n".join(mark.join(row).replace(".", decimal) for row in rows)
    path.write_text(text, encoding="utf-8-sig")
    points = load_csv(path).set_index("mix")
    assert points.loc["transformer", ["N", "D", "loss"]].tolist() == [1e6, 2.5e7, 3.25]
    assert points.loc["gdn", ["N", "D", "loss"]].tolist() == [1e6, 2.5e7, 3.125]


def test_points_come_from_a_csv_or_from_the_folder_of_a_sweep(
    sweep: SweepWriter, tmp_path: Path
) -> None:
    write_ladder(sweep, sizes=("50k",))
    points = read(Points(points=str(sweep.path))).points
    assert len(points) == 12
    points.to_csv(tmp_path / "points.csv", index=False)
    again = read(Points(points=str(tmp_path / "points.csv"))).points
    assert np.allclose(again["loss"], points["loss"])


def test_points_without_seeds_may_be_equal(tmp_path: Path) -> None:
    path = tmp_path / "points.csv"
    path.write_text("mix,N,D,loss\na,1e6,1e7,3\na,1e6,1e7,3\n")
    assert len(load_csv(path)) == 2


def test_a_damaged_record_is_named(sweep: SweepWriter) -> None:
    write_ladder(sweep, sizes=("50k",), seeds=(0,))
    (spec, *_) = sorted(sweep.path.glob("*/spec.yaml"))
    spec.write_text("mix: [")
    loaded = load_sweep(sweep.path)
    assert loaded.dropped == (f"run {spec.parent.name}: spec.yaml is no YAML",)
    assert spec.parent.name not in {run.name for run in loaded.runs} | set(loaded.points["run"])


@pytest.mark.parametrize("ending", ["-copy", " (1)", ".bak", "-2"])
def test_copied_run_folders_are_no_further_evidence(sweep: SweepWriter, ending: str) -> None:
    write_ladder(sweep, sizes=("50k",))
    alone = load_sweep(sweep.path)
    for path in list(sweep.path.iterdir()):
        shutil.copytree(path, path.with_name(path.name + ending))
    loaded = load_sweep(sweep.path)
    pd.testing.assert_frame_equal(loaded.points, alone.points)
    assert loaded.runs == alone.runs
    assert len(loaded.dropped) == 4
    for run in alone.runs:
        words = f"run {run.name}{ending}: a copy of run {run.name}, which is read from"
        assert any(told.startswith(words) for told in loaded.dropped)


def test_a_spec_whose_hash_is_not_its_folders_is_refused_by_name_and_the_rest_goes_on(
    sweep: SweepWriter,
) -> None:
    write_ladder(sweep, sizes=("50k",))
    path = sorted(sweep.path.iterdir())[0]
    spec = (path / "spec.yaml").read_text()
    (path / "spec.yaml").write_text(spec.replace("peak_lr: 0.003", "peak_lr: 0.001"))
    loaded = load_sweep(sweep.path)
    (told,) = loaded.dropped
    assert told.startswith(f"run {path.name}: spec.yaml is of run gdn3_attn1-50k-s0-")
    assert len(loaded.runs) == 3


def test_specs_of_an_earlier_version_have_the_identity_that_it_gave_them() -> None:
    """Recorded by code that knew fewer settings: nothing of them is refused."""
    demo = load_sweep(DEMO)
    assert (len(demo.runs), demo.dropped) == (12, ())
    spec = RunDirectory(DEMO / demo.runs[0].name).spec_as_written()
    given = formats.identity(spec)
    assert demo.runs[0].name.endswith(given)
    assert formats.identity({**spec, "another": 1}) != given
    assert load_spec(spec).identity != given


@pytest.mark.parametrize(
    ("edit", "told"),
    [
        ({"seed": 7}, "points.jsonl has a point of another run (seed=7)"),
        ({"mix": "gdn"}, "points.jsonl has a point of another run (mix=gdn)"),
        ({"epochs": 9.0, "again": True}, "points.jsonl has two points of step 245, which differ"),
        ({"N": 7}, "points.jsonl has at step 245 N=7, and manifest.json 50112"),
        ({"C": 7}, "points.jsonl has at step 245 C=7, and by manifest.json it is 3.0173e+11"),
        ({"D": 10**6}, "points.jsonl has at step 245 a D that is not its steps of 4,096 tokens"),
        (
            {"domains": {"a": {"nats": 6.0, "tokens": 2, "loss": 3.0}}},
            "points.jsonl has at step 245 a loss that its domains do not give",
        ),
        (
            {"domains": {"a": {"nats": 6.0, "bytes": 2, "bpb": 3.0}}},
            "points.jsonl has at step 245 a bpb of a domain that its sums do not give",
        ),
        ({"loss": "3"}, "points.jsonl line 1 has loss='3', which is no number"),
    ],
)
def test_points_that_are_not_the_runs_own_leave_it_out(
    sweep: SweepWriter, edit: dict[str, object], told: str
) -> None:
    write_ladder(sweep, sizes=("50k",))
    path = sorted(sweep.path.iterdir())[0]
    rows = list(RunDirectory(path).rows("points.jsonl"))
    changed = [rows[0] | edit, *rows[1:], *(rows[:1] if "again" in edit else [])]
    (path / "points.jsonl").write_text("".join(json.dumps(row) + "\n" for row in changed))
    assert load_sweep(sweep.path).dropped == (f"run {path.name}: {told}",)


def test_a_done_run_has_a_point_at_each_milestone_or_is_left_out(tmp_path: Path) -> None:
    shutil.copytree(DEMO, tmp_path / "demo")
    path = sorted((tmp_path / "demo").iterdir())[0]
    lines = (path / "points.jsonl").read_text().splitlines(keepends=True)
    (path / "points.jsonl").write_text("".join(lines[:2]))
    step = json.loads(lines[2])["step"]
    loaded = load_sweep(tmp_path / "demo")
    assert loaded.dropped == (f"run {path.name}: points.jsonl lacks the point of step {step}",)
    # A run that goes on has them yet to come.
    (path / "status.json").write_text('{"state": "running"}')
    assert load_sweep(tmp_path / "demo").dropped == ()


def test_a_run_that_lies_in_two_sweeps_counts_once(sweep: SweepWriter, tmp_path: Path) -> None:
    write_ladder(sweep, sizes=("50k",))
    shutil.copytree(sweep.path, tmp_path / "runs" / "other")
    loaded = [load_sweep(sweep.path), load_sweep(tmp_path / "runs" / "other")]
    joined = join(loaded)
    assert set(joined.points["run"]) == {f"trial/{run.name}" for run in loaded[0].runs}
    assert len(joined.runs) == 4
    name = loaded[0].runs[0].name
    assert f"run other/{name}: it is run trial/{name}, with the same losses" in joined.dropped


def test_the_same_training_under_another_name_counts_once(sweep: SweepWriter) -> None:
    """A setting that changed no number, such as a limit that was not reached."""
    write_ladder(sweep, sizes=("50k",))
    first = load_sweep(sweep.path).runs[0]
    sweep.run(first.mix, first.size, first.seed, lr=1e-2)  # whose losses are drawn the same
    loaded = load_sweep(sweep.path)
    assert len(loaded.runs) == 4
    assert loaded.dropped[0].endswith("with the same losses")


def test_a_csv_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="is not there"):
        load_csv(tmp_path / "none.csv")


def as_a_try(run: RunDirectory, steps: int) -> None:
    """The run's records as if protocol.max_steps had ended it, under the name that it then has."""
    spec = run.spec_as_written()
    spec["protocol"]["max_steps"] = steps
    spec["recipe"] |= {"steps": steps, "ladder_steps": 9999}
    manifest = run.read_manifest() | {"run": formats.run_name(spec)}
    tried = RunDirectory(run.path.rename(run.path.with_name(formats.run_name(spec))))
    tried.write_spec(spec)
    tried.write_manifest(manifest)


def test_a_try_enters_no_fit_unless_it_is_asked_for(sweep: SweepWriter) -> None:
    write_ladder(sweep)
    ladder = load_sweep(sweep.path)
    for mix, steps in (("gdn", 7), ("gdn", 8), ("gdn3_attn1", 7)):
        as_a_try(sweep.run(mix, "400k", steps, multiples=(1,)), steps)
    loaded = from_sweeps([sweep.path])
    pd.testing.assert_frame_equal(loaded.points, ladder.points)
    assert len(loaded.dropped) == 3
    assert "a try of 7 steps and none of the ladder; where=protocol.max_steps=7" in str(
        loaded.dropped
    )
    assert set(from_sweeps([sweep.path], {"protocol.max_steps": 7}).points["seed"]) == {7}
