"""The rule that skips steps, by its definition, and steps not taken without the host knowing."""

import json
import math

import numpy as np
import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.utils._python_dispatch import TorchDispatchMode

from ablations import optim
from ablations import train as training
from ablations.optim import ENOUGH, WINDOW, OutlierRule, step_unless
from ablations.train import TrainingFailed, train
from models.language_model import LanguageModel

from .test_train import final, finish, rows, without_time

CPU = torch.device("cpu")


def on_device(monkeypatch):
    """Take the way of a GPU, where no decision may be read."""
    for module in (optim, training):
        monkeypatch.setattr(module, "decided_here", lambda _: False)


def decide(rule, step, loss, norm):
    given = (torch.tensor(loss, dtype=torch.float64), torch.tensor(norm, dtype=torch.float32))
    return bool(rule.skips(step, *given))


class Definition:
    """Six standard deviations above the mean of the last 128, one step at a time on the host."""

    def __init__(self):
        self.past = []

    def skips(self, *now):
        if not all(map(math.isfinite, now)):
            return True
        last = self.past[-WINDOW:]
        self.past.append(now)
        return len(last) >= ENOUGH and any(
            value > np.mean(values) + 6 * np.std(values, ddof=1)
            for value, values in zip(now, zip(*last, strict=True), strict=True)
        )


def trace(n, seed=0):
    """Losses and norms of a run with outliers, small ones and large, and what is no number."""
    generator = np.random.default_rng(seed)
    values = np.stack([3 + generator.standard_normal(n) / 10, np.exp(generator.standard_normal(n))])
    for kind in (5.0, 1e6, math.nan, math.inf):
        for which in (0, 1):
            values[which, generator.integers(0, n, n // 40)] = kind
    return values[0].tolist(), np.float32(values[1]).tolist()


@pytest.mark.parametrize("seed", range(3))
def test_the_rule_skips_what_its_definition_does_also_after_a_resume(seed):
    rule, definition, skipped, in_a_row = OutlierRule(6.0, 10**9, CPU), Definition(), 0, 0
    for step, (loss, norm) in enumerate(zip(*trace(500, seed), strict=True), 1):
        expected = definition.skips(loss, norm)
        assert decide(rule, step, loss, norm) == expected, step
        skipped, in_a_row = skipped + expected, in_a_row + 1 if expected else 0
        outcome = rule.read()
        assert (outcome.skipped, outcome.skipped_in_a_row) == (skipped, in_a_row)
        assert outcome.diverged is None
        if step % 37 == 0:
            kept = json.loads(json.dumps(rule.state()))
            remembered = list(map(list, zip(*definition.past[-WINDOW:], strict=True)))
            assert [kept["losses"], kept["norms"]] == remembered
            rule = OutlierRule(6.0, 10**9, CPU)
            rule.restore(kept, skipped, in_a_row)
    assert skipped > 20


def test_outliers_are_never_skipped_before_the_rule_has_seen_enough():
    rule = OutlierRule(6.0, 50, CPU)
    assert not any(decide(rule, i, 100.0 if i == 10 else 3.0, 1.0) for i in range(ENOUGH))
    never = OutlierRule(0.0, 50, CPU)
    assert not any(decide(never, i, 10.0**i, 1.0) for i in range(2 * ENOUGH))
    assert decide(never, 1, math.nan, 1.0)


def test_a_run_that_had_diverged_is_known_however_late_it_is_asked():
    rule = OutlierRule(6.0, 3, CPU)
    for step, loss in enumerate([3.0, math.nan, math.nan, 3.0, math.nan, math.nan, math.inf, 3.0]):
        decide(rule, step, loss, 2.0)
    outcome = rule.read()
    assert outcome.diverged == (6, math.inf, 2.0)
    assert (outcome.skipped, outcome.skipped_in_a_row) == (5, 0)


def optimizers():
    generator = torch.Generator().manual_seed(0)
    weights = [torch.nn.Parameter(torch.randn(8, 6, generator=generator)) for _ in range(3)]
    muon = torch.optim.Muon(weights[:1], 0.02, adjust_lr_fn="match_rms_adamw")
    return weights, [torch.optim.AdamW(weights[1:], 0.01, fused=True), muon]


def test_a_step_that_is_not_taken_on_the_device_leaves_what_the_hosts_leaves(monkeypatch):
    """Weights, moments and step counts, to the bit; the first step skipped as well."""
    skips, results = [True, False, True, False, False, True, True, False], []
    for device in (False, True):
        with monkeypatch.context() as patched:
            if device:
                on_device(patched)
            weights, pair = optimizers()
            generator = torch.Generator().manual_seed(1)
            for skip in skips:
                for weight in weights:
                    weight.grad = torch.randn(weight.shape, generator=generator)
                    weight.grad *= math.nan if skip else 1.0
                for optimizer in pair:
                    step_unless(optimizer, torch.tensor(skip))
        states = [o.state[w][k] for o in pair for w in o.state for k in sorted(o.state[w])]
        results.append([*weights, *states])
    assert len(results[0]) == len(results[1]) == 3 + 2 * 3 + 1
    for host, device in zip(*results, strict=True):
        assert torch.equal(host, device)
        assert host.isfinite().all()


@pytest.fixture
def alone_in_a_group(tmp_path):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


def test_a_sharded_step_is_not_taken_on_the_device(monkeypatch, alone_in_a_group):
    on_device(monkeypatch)
    layer = fully_shard(torch.nn.Linear(4, 4), mesh=init_device_mesh("cpu", (1,)))
    adamw = torch.optim.AdamW(layer.parameters(), 0.01, fused=True)
    kept = []
    for skip in (False, True, False):
        layer(torch.ones(2, 4)).sum().backward()
        step_unless(adamw, torch.tensor(skip))
        adamw.zero_grad()
        kept.append(layer.weight.full_tensor().detach().clone())
    assert torch.equal(kept[0], kept[1])
    assert not torch.equal(kept[1], kept[2])


def planted(monkeypatch, factors):
    """Losses times a factor in some forward passes of training, by number."""
    whole, passes = LanguageModel.loss, iter(range(10**9))

    def loss(self, *arguments, **options):
        value, nll = whole(self, *arguments, **options)
        scale = factors.get(next(passes), 1.0)
        return value * scale, nll * scale

    monkeypatch.setattr(LanguageModel, "loss", loss)


class Reads(TorchDispatchMode):
    """Operations whose result the host waits for."""

    WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero")

    def __init__(self):
        super().__init__()
        self.names, self.allowed = [], 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function._schema.name.removeprefix("aten::")
        if name in self.WAITING and not self.allowed:
            self.names.append(name)
        return function(*args, **(kwargs or {}))

    def allow(self, method):
        def allowed(*arguments, **options):
            self.allowed += 1
            try:
                return method(*arguments, **options)
            finally:
                self.allowed -= 1

        return allowed


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_run_that_decides_on_the_device_keeps_the_bits_of_one_that_does_not(
    make_run, monkeypatch, optimizer
):
    """With outliers, stopped and resumed after the first; and in between no step is waited for."""
    monkeypatch.setattr(optim, "ENOUGH", 5)
    results = []
    for name in ("host", "device"):
        with monkeypatch.context() as patched:
            planted(patched, {8: 100.0, 9: math.nan, 15: math.inf})
            run, spec = make_run(name=name, train__optim=optimizer, logging__log_every=4)
            if name == "host":
                finish(run, spec)
            else:
                on_device(patched)
                reads = Reads()
                for method in ("_read_outcome", "_take_point", "_save", "__init__"):
                    allowed = reads.allow(getattr(training.Trainer, method))
                    patched.setattr(training.Trainer, method, allowed)
                with reads:
                    stop = lambda run=run: len(rows(run)) >= 3  # noqa: E731
                    assert train(run, spec, stop=stop, say=lambda _: None) == "preempted"
                    finish(run, spec)
                assert reads.names == []
            results.append((final(run), list(map(without_time, rows(run)))))
    assert results[0][0] != {}
    assert results[0] == results[1]
    assert results[0][1][-1]["skipped_steps"] == 3


def test_a_diverged_run_is_told_at_the_latest_when_the_device_is_next_asked(make_run, monkeypatch):
    on_device(monkeypatch)
    monkeypatch.setattr(training, "READ_EVERY", 6)
    planted(monkeypatch, {2: math.nan, 3: math.nan})
    run, spec = make_run(
        train__max_skipped=2, logging__log_every=1000, logging__checkpoint_every=1000,
        protocol__chinchilla=[0.008],
    )  # fmt: skip
    asked = []
    with pytest.raises(TrainingFailed, match=r"diverged: 2 steps in a row up to 4 .* loss nan"):
        train(run, spec, stop=lambda: bool(asked.append(0)), say=lambda _: None)
    assert len(asked) == 5, "the loop had ended five steps, and asked in the sixth"
    assert not rows(run)
