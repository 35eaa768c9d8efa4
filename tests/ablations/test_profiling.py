"""resources.profile: the trace holds the steps asked for, and no number depends on it."""

import gzip
import json
import re

import pytest

from ablations.profiling import FILE, STEPS_BEFORE
from ablations.resolve import resolve
from ablations.train import train
from models.errors import SettingError

from .conftest import settings

STEP = re.compile(r"ProfilerStep#(\d+)")


def trained(make_run, name, stop_after=None, **changes):
    run, spec = make_run(name=name, protocol__chinchilla=[0.003], **changes)
    said = []
    made = lambda: len(list(run.rows("metrics.jsonl")))  # noqa: E731
    train(run, spec, stop=lambda: made() == stop_after, say=said.append)
    return run, spec, said


def events(run):
    with gzip.open(run.path / FILE, "rt") as file:
        return json.load(file)["traceEvents"]


def steps(found):
    return sorted({int(m[1]) for e in found if (m := STEP.fullmatch(e.get("name", "")))})


def test_the_trace_holds_the_steps_asked_for_and_no_loss_depends_on_it(make_run):
    plain, spec, _ = trained(make_run, "plain")
    run, traced, said = trained(make_run, "traced", resources__profile=2)
    assert traced.identity == spec.identity
    found = events(run)
    assert steps(found) == [STEPS_BEFORE, STEPS_BEFORE + 1]  # counted from 0
    names = [e.get("name") for e in found]
    # One for each layer and direction of two steps at least.
    assert names.count("aten::mm") >= 2 * 2 * spec.model.n_layers
    assert [line for line in said if FILE in line] == [
        f"resources.profile: {FILE} holds 2 steps, after the first {STEPS_BEFORE}"
    ]
    assert not (plain.path / FILE).exists()
    assert not list(run.path.glob(".trace-*"))
    both = [[(r["step"], r["loss"], r["grad_norm"]) for r in one.rows("metrics.jsonl")]
            for one in (plain, run)]  # fmt: skip
    assert len(both[0]) == spec.recipe.steps > STEPS_BEFORE + 2
    assert both[0] == both[1]
    points = [(one.path / "points.jsonl").read_bytes() for one in (plain, run)]
    assert points[0] == points[1]


def test_a_start_that_ends_before_leaves_no_trace(make_run):
    run, _, said = trained(make_run, "cut", STEPS_BEFORE + 1, resources__profile=2)
    assert "resources.profile: no trace, as this start ended after step 6 of 7" in said
    assert not (run.path / FILE).exists()
    assert not list(run.path.glob(".trace-*"))


def test_no_steps_cannot_be_traced():
    with pytest.raises(SettingError, match=r"^resources\.profile=0 must be at least 1\.$"):
        resolve(settings(resources__profile=0))
