"""What a table calls runs tells them apart, by what was set and not by a hash."""

import re
import shutil

import pytest
from rich.console import Console

from ablations.records import RunDirectory
from ablations.resolve import resolve
from sweeps import state, view
from sweeps.labels import labels
from tests.ablations.conftest import settings


@pytest.fixture
def written(tmp_path):
    def write(*composed):
        runs = []
        for one in composed:
            spec = resolve(one)
            run = RunDirectory(tmp_path / "trial" / spec.run_name)
            run.write_spec(spec.record())
            run.write_status("done")
            runs.append(run)
        return runs

    return write


def test_runs_of_several_mixes_and_seeds_are_called_by_those(written):
    runs = written(*(settings(mix, seed=s) for mix in ("gdn", "transformer") for s in (0, 1)))
    assert sorted(labels(runs).values()) == [
        "gdn-50k-s0", "gdn-50k-s1", "transformer-50k-s0", "transformer-50k-s1"
    ]  # fmt: skip


def test_what_else_differs_is_told_by_its_setting(written):
    runs = written(
        settings("gdn", protocol__lr_multiplier=0.5),
        settings("gdn", protocol__lr_multiplier=2.0, train__optim="muon"),
        settings("gdn", seed=1),
    )
    assert list(labels(runs).values()) == [
        "gdn-50k-s0 protocol.lr_multiplier=0.5 train.optim=adamw",
        "gdn-50k-s0 protocol.lr_multiplier=2.0 train.optim=muon",
        "gdn-50k-s1",
    ]


def test_no_two_runs_are_ever_called_the_same(written, tmp_path):
    runs = written(settings("gdn"), settings("gdn", train__z_loss=0.5))
    twice = tmp_path / "other" / runs[0].name
    shutil.copytree(runs[0].path, twice)
    (runs[1].path / "spec.yaml").write_text("[")
    for group in (runs, [*runs, RunDirectory(twice)]):
        called = labels(group)
        assert len({*called.values()}) + (len(group) > 2) == len(group)
    odd = RunDirectory(tmp_path / "trial" / "of-my-own-name")
    assert labels([odd]) == {str(odd.path): "of-my-own-name"}


def test_the_tables_of_a_sweep_have_no_hashes(written):
    looks = state.look(written(settings("gdn"), settings("gdn", train__z_loss=0.5)))
    console = Console(width=160, highlight=False, markup=False)
    with console.capture() as capture:
        view.summary(looks, console)
    rows = [line for line in capture.get().splitlines() if line.startswith("│ gdn-50k")]
    assert len(rows) == 2
    assert "train.z_loss=0.5" in rows[1]
    assert not any(re.search(r"-[0-9a-f]{8}\b", row) for row in rows)
