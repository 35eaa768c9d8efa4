"""Tuning: searches find planted optima in few runs, and ladders take what they found."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from ablations import control
from ablations.confounds import Facts, confounds
from ablations.ladder import peak_lr
from ablations.optima import Trial, tuned_of
from ablations.records import read_sweep
from ablations.resolve import resolve
from ablations.spec import RunSpec, load
from ablations.tuning import SETTINGS, read_trials
from models.errors import SettingError
from sweeps import tuned as tuned_module
from sweeps.search import Wanted, next_value
from sweeps.tuned import with_optima
from tests.ablations.conftest import settings
from tests.sweeps.test_run import SMALL

ROOT = Path(__file__).parents[2]
N = {"50k": 49_696, "100k": 99_880, "200k": 200_700}


def search(
    loss: Callable[[str, float], float], wanted: Wanted, sizes: tuple[str, ...] = ("50k", "100k")
) -> dict[str, list[float]]:
    """The values, octaves, that a search tries at each size, three to begin with."""
    values = {size: [-1.0, 0.0, 1.0] for size in sizes}
    while True:
        trials = [
            Trial("a", size, N[size], 20 * N[size], seed, (2.0**x,), loss(size, x), (1.0,), N[size])
            for size in sizes
            for x in values[size]
            for seed in (0, 1)
        ]
        own = tuned_of(trials, ("lr",))["a"]
        cells = {cell.size: cell for cell in (*own.cells, *own.lost)}
        added = {size: next_value(own, cells[size], wanted, [-1.0, 0.0, 1.0]) for size in sizes}
        if not any(x is not None for x in added.values()):
            return values
        for size, x in added.items():
            if x is not None:
                values[size].append(x)


@pytest.mark.parametrize("best", [-2.6, -0.4, 0.3, 2.2])
def test_a_search_reaches_a_planted_optimum(best: float) -> None:
    rng = np.random.default_rng(0)
    noise: dict[tuple[str, float], float] = {}

    def loss(size: str, x: float) -> float:
        luck = noise.setdefault((size, x), 0.004 * rng.normal())
        return 2 + 0.05 * (x - best) ** 2 + luck

    values = search(loss, Wanted(width=2.0, values=9))
    for tried in values.values():
        assert min(tried) < best < max(tried)
        assert len(tried) <= 9


def test_a_search_ends_at_its_budget_and_where_nothing_is_lowest() -> None:
    rng = np.random.default_rng(3)
    flat = search(lambda *_: 2 + 0.01 * rng.normal(), Wanted(width=1.01, values=5))
    assert all(len(tried) == 5 for tried in flat.values())
    # Ever falling: four octaves beyond the first values, and no further.
    falling = search(lambda _, x: 2 - 0.05 * x, Wanted(values=50))
    assert all(max(tried) == 5.0 for tried in falling.values())


def test_a_search_goes_down_from_runs_that_diverge() -> None:
    """Also where nothing but the lowest value ends."""
    values = search(
        lambda _, x: 2 + 0.05 * (x + 2.3) ** 2 if x < -0.6 else math.inf,
        Wanted(width=2.0, values=9),
    )
    for tried in values.values():
        assert min(tried) < -2.3
        assert max(tried) == 1.0


def planted(mix: str, best: float, sizes: tuple[str, ...]) -> list[Trial]:
    """Runs whose loss is lowest at a multiple of the ladder's rate."""
    rng = np.random.default_rng(1)
    return [
        Trial(mix, size, N[size], 10 * N[size], seed, (rate * peak_lr(N[size]),),
              2 + 0.05 * math.log2(rate / best) ** 2 + 0.002 * rng.normal(), (peak_lr(N[size]),),
              N[size])
        for size in sizes
        for rate in (0.25, 0.5, 1.0, 2.0)
        for seed in (0, 1)
    ]  # fmt: skip


@pytest.fixture
def tuning(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tuning sweep in which the transformer is best at the ladder's rate, the hybrid at 0.6."""
    both = [
        *planted("transformer", 1.0, ("50k", "100k")), *planted("gdn3_attn1", 0.6, ("50k", "100k"))
    ]  # fmt: skip
    monkeypatch.setattr(tuned_module, "read_trials", lambda *_, **__: both)  # no folder is read


def specs(**changes: object) -> list[RunSpec]:
    asked = [
        settings(mix, size, protocol__tuning=["tuning"], protocol__over=["lr"], **changes)
        for mix in ("transformer", "gdn3_attn1")
        for size in ("50k", "100k", "200k")
    ]
    before = [resolve(one) for one in asked]
    return [resolve(one) for one in with_optima(asked, before, Path("no_runs"))]


@pytest.mark.usefixtures("tuning")
def test_runs_take_their_mixs_optimum_and_keep_whence() -> None:
    for spec in specs():
        (one,) = spec.protocol.tuned
        best = {"transformer": 1.0, "gdn3_attn1": 0.6}[spec.mix.name]
        assert spec.recipe.peak_lr / peak_lr(spec.recipe.N) == pytest.approx(best, rel=0.06)
        assert spec.recipe.peak_lr == pytest.approx(one.value, rel=1e-5)
        assert one.low < one.value < one.high
        assert not any("lr_multiplier" in words for words in spec.recipe.by_hand)
        assert one.by == ("law" if spec.size.name == "200k" else "size")
        assert (one.sweep, one.runs) == ("tuning", 16)


@pytest.mark.usefixtures("tuning")
def test_control_lets_what_was_taken_differ_and_nothing_else() -> None:
    made = {spec.run_name: spec.plain() for spec in specs()}
    control.check(made, ["mix"])
    for field, value in (("grad_clip", 2.0), ("weight_decay", 0.3)):
        changed = {name: json.loads(json.dumps(spec)) for name, spec in made.items()}
        next(iter(changed.values()))["train"][field] = value
        with pytest.raises(SettingError, match=rf"train\.{field}"):
            control.check(changed, ["mix"])
    without = {name: json.loads(json.dumps(spec)) for name, spec in made.items()}
    for spec in without.values():
        spec["protocol"]["tuning"] = []
    with pytest.raises(SettingError, match="protocol"):
        control.check(without, ["mix"])


@pytest.mark.usefixtures("tuning")
def test_rates_that_differ_are_listed() -> None:
    facts = [Facts(spec.plain(), spec.counts.N, 1.0) for spec in specs()]
    listed = {one.name: one for one in confounds(facts, "transformer", "gdn3_attn1")}
    assert all(-0.45 < off < -0.35 for off in listed["learning rate"].magnitudes)


@pytest.mark.usefixtures("tuning")
def test_a_mix_that_was_not_tuned_is_named() -> None:
    asked = [settings("mamba2", "50k", protocol__tuning=["tuning"], protocol__over=["lr"])]
    with pytest.raises(SettingError, match="mix=mamba2"):
        with_optima(asked, [resolve(asked[0])], Path("no_runs"))


@pytest.mark.usefixtures("tuning")
def test_a_rate_given_beside_a_tuning_is_refused() -> None:
    with pytest.raises(SettingError, match=r"protocol\.lr_multiplier"):
        specs(protocol__lr_multiplier=2.0)


def test_an_open_interval_is_kept_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(2)
    trials = [
        replace(one, loss=2 + 0.004 * math.log2(one.values[0] / one.rules[0] / 1.2) ** 2
                + 0.004 * rng.normal())
        for one in planted("transformer", 1.0, ("50k",))
    ]  # fmt: skip
    (own,) = tuned_of(trials, ("lr",)).values()
    one = own.optima[0]
    assert np.isinf(one.low[0]) != np.isinf(one.high[0])  # one end is open
    monkeypatch.setattr(tuned_module, "read_trials", lambda *_, **__: trials)
    asked = [settings("transformer", "50k", protocol__tuning=["t"], protocol__over=["lr"])]
    (made,) = [resolve(s) for s in with_optima(asked, [resolve(asked[0])], Path("no_runs"))]
    again = load(yaml.safe_load(yaml.safe_dump(made.record())))
    assert again.protocol.tuned == made.protocol.tuned
    assert None in (made.protocol.tuned[0].low, made.protocol.tuned[0].high)


def test_an_edge_is_no_optimum_to_train_at(monkeypatch: pytest.MonkeyPatch) -> None:
    edge = planted("transformer", 8.0, ("50k",))
    monkeypatch.setattr(tuned_module, "read_trials", lambda *_, **__: edge)
    asked = [settings("transformer", "50k", protocol__tuning=["t"], protocol__over=["lr"])]
    with pytest.raises(SettingError, match="no minimum"):
        with_optima(asked, [resolve(asked[0])], Path("no_runs"))


def tune(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k != "ARCHLADDER_DATA"}
    return subprocess.run(
        [sys.executable, "sweeps/tune.py", *arguments], cwd=ROOT, capture_output=True, text=True,
        env=environment, check=False, timeout=300,
    )  # fmt: skip


def test_the_command_trains_round_after_round_and_then_nothing_more(tmp_path: Path) -> None:
    asked = ("mix=transformer", *SMALL[1:], "size=50k", "over=lr", "values=4", "width=1.01",
             f"runs={tmp_path}/runs", "sweep=t")  # fmt: skip
    planned = tune(*asked, "plan=true")
    assert planned.returncode == 0, planned.stderr
    assert "at most 4" in planned.stdout
    assert not any(tmp_path.iterdir())
    done = tune(*asked)
    assert done.returncode == 0, done.stderr
    trials = read_trials(tmp_path / "runs" / "t")
    rates = sorted(trial.values[0] / trial.rules[0] for trial in trials)
    assert len(rates) == 4
    assert {0.5, 1.0, 2.0} <= {round(rate, 6) for rate in rates}
    before = {run.name: (run.path / "points.jsonl").stat().st_mtime_ns
              for run in read_sweep(tmp_path / "runs" / "t")}  # fmt: skip
    # A round that was stopped is ended before the next one is chosen.
    stopped = read_sweep(tmp_path / "runs" / "t")[-1]
    stopped.write_status("preempted", step=0)
    (stopped.path / "points.jsonl").unlink()
    again = tune(*asked)
    assert again.returncode == 0, again.stderr
    after = {run.name: (run.path / "points.jsonl").stat().st_mtime_ns
             for run in read_sweep(tmp_path / "runs" / "t")}  # fmt: skip
    assert after.keys() == before.keys()
    assert {name for name in after if after[name] != before[name]} == {stopped.name}


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("over=colour",), "over=colour"),
        (("over=lr,batch",), "one at a time"),
        (("start=1",), "start=1"),
        (("values=3.7",), "values=3.7"),
        (("protocol=tuned", "protocol.tuning=[]"), "protocol.tuning"),
        (("start=1,two",), "start=two"),
        (("width=0.5",), "width=0.5"),
        (("protocol.lr_multiplier=2",), "protocol.lr_multiplier"),
        (("budget=1", "protocol.chinchilla=[1]"), "budget=1"),
        (("mix=nothing",), "mix"),
        (("mix=gdn", "train.grad_clip=1,2"), "more than once"),
    ],
)
def test_what_cannot_be_tuned_is_one_sentence(arguments: tuple[str, ...], named: str) -> None:
    done = tune("size=50k", *arguments)
    assert done.returncode == 2
    assert named in done.stderr
    assert done.stderr.count("\n") == 1


def test_settings_come_out_as_they_were_asked_for() -> None:
    lr, decay, batch = (SETTINGS[name] for name in ("lr", "weight_decay", "batch"))
    spec = resolve(settings(protocol__lr_multiplier=0.5)).plain()
    assert lr.set_to(2 * peak_lr(49_696), spec) == 2.0
    assert decay.set_to(0.1, spec) == 0.1
    assert batch.set_to(2048.4, spec) == 2048
