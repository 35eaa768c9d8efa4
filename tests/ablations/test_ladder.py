"""The ladder's rules against the published code's values, and the schedule's shape."""

import csv
from itertools import pairwise
from pathlib import Path

import pytest

from ablations import ladder
from ablations.ladder import plan_recipe
from models.errors import SettingError

DATA = Path(__file__).parents[1] / "data" / "olmo_hybrid" / "ladder_hparams_from_code.csv"


def rows():
    with DATA.open() as file:
        return list(csv.DictReader(file))


def recipe(N=1_000_000, **changes):
    settings = {
        "context": 128, "chinchilla": (0.5, 1, 2), "tokens_per_parameter": 20.0,
        "decay_fraction": 0.1, "lr_multiplier": 1.0, "batch": None, "weight_decay": 0.1,
        "grad_clip": 1.0, "z_loss": 1e-5, "skip_sigma": 6.0,
    }  # fmt: skip
    return plan_recipe(N, **{**settings, **changes})


@pytest.mark.parametrize("row", rows(), ids=lambda r: r["size"])
def test_rules_give_the_published_ladders_values(row):
    N = int(row["N_transformer_incl_lmhead"])
    assert ladder.batch_tokens(N) == int(row["target_batch_tokens"])
    assert ladder.peak_lr(N) == pytest.approx(float(row["peak_lr"]), rel=1e-12)
    assert ladder.beta2(ladder.batch_tokens(N)) == float(row["beta2"])
    assert ladder.warmup_tokens(N) == int(row["warmup_tokens"])
    multiples = (0.5, 1.0, 2.0, 4.0, 8.0)
    made = recipe(N, context=8192, chinchilla=multiples)
    for milestone in made.milestones:
        published = int(row[f"D_{milestone.chinchilla:g}xC"])
        assert abs(milestone.step * made.batch_tokens - published) <= made.batch_tokens


def test_wsds_warms_up_once_holds_and_decays_before_every_point():
    made = recipe()
    lrs = [made.lr(step) for step in range(1, made.steps + 1)]
    assert lrs[0] == pytest.approx(made.peak_lr / made.warmup_steps)
    assert max(lrs) == made.peak_lr
    previous = 0
    for milestone in made.milestones:
        period = milestone.step - previous
        decay = lrs[milestone.decay_from : milestone.step]
        assert len(decay) == pytest.approx(0.1 * period, abs=1)
        differences = {round(a - b, 12) for a, b in pairwise(decay)}
        assert len(differences) <= 1  # linear
        assert 0 < decay[-1] <= made.peak_lr / len(decay)
        assert lrs[milestone.decay_from - 1] == made.peak_lr
        if milestone.step < made.steps:
            assert lrs[milestone.step] == made.peak_lr  # jumps back, no second warm-up
        previous = milestone.step


def test_each_point_is_at_its_multiple_of_the_budget_within_a_batch():
    made = recipe(chinchilla=(0.25, 0.5, 1, 4))
    for milestone in made.milestones:
        wanted = milestone.chinchilla * 20 * made.N
        assert abs(milestone.step * made.batch_tokens - wanted) <= made.batch_tokens / 2
    assert (
        made.tokens
        == made.steps * made.batch_tokens
        == made.milestones[-1].step * (made.batch_instances * made.context)
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"chinchilla": ()}, "positive multiples"),
        ({"chinchilla": (-1.0,)}, "positive multiples"),
        ({"chinchilla": (2.0, 1.0)}, "must rise"),
        ({"chinchilla": (1.0, 1.0)}, "must rise"),
        ({"chinchilla": (1e-6,)}, "less than one batch"),
        ({"tokens_per_parameter": -20.0}, "tokens_per_parameter=-20"),
        ({"lr_multiplier": 0.0}, "lr_multiplier=0"),
        ({"batch": -5}, "batch_tokens=-5"),
        ({"decay_fraction": 0.0}, "decay_fraction=0"),
        ({"context": 0}, "context=0"),
    ],
)
def test_impossible_budgets_are_refused_in_a_sentence(changes, words):
    with pytest.raises(SettingError, match=words):
        recipe(**changes)


def test_a_cosine_ends_at_a_tenth_with_its_one_point():
    made = recipe(schedule="cosine", chinchilla=(1,))
    (milestone,) = made.milestones
    assert milestone.step == made.steps
    lrs = [made.lr(step) for step in range(1, made.steps + 1)]
    assert max(lrs) == pytest.approx(made.peak_lr)
    assert lrs[-1] == pytest.approx(0.1 * made.peak_lr)
    middle = made.lr((made.steps + made.warmup_steps) // 2)
    assert middle == pytest.approx(0.55 * made.peak_lr, rel=0.02)
    with pytest.raises(SettingError, match="one multiple a run"):
        recipe(schedule="cosine")
    with pytest.raises(SettingError, match=r"protocol\.schedule=linear"):
        recipe(schedule="linear")


def test_a_batch_is_a_multiple_of_what_devices_need():
    for multiple in (1, 8, 64):
        made = recipe(N=57_422_208, context=8192, batch_multiple=multiple)
        assert made.batch_instances % multiple == 0
        rounding = abs(made.batch_tokens - ladder.batch_tokens(57_422_208)) / 8192
        assert rounding <= multiple / 2 or made.batch_instances == multiple


def test_what_is_set_by_hand_is_recorded_beside_the_rule():
    assert recipe().by_hand == ()
    made = recipe(batch=4096, lr_multiplier=0.5, tokens_per_parameter=10.0)
    rule = ladder.batch_tokens(1_000_000)
    assert made.by_hand == (
        f"batch_tokens=4096 (the ladder: {rule})",
        "lr_multiplier=0.5 (the ladder: 1)",
        "tokens_per_parameter=10 (the ladder: 20)",
    )


@pytest.mark.parametrize(("schedule", "multiples"), [("wsds", (0.5, 1, 2)), ("cosine", (1,))])
def test_a_try_ends_where_it_is_told_with_a_whole_schedule_of_its_own(schedule, multiples):
    ladders = recipe(schedule=schedule, chinchilla=multiples, batch=4096)
    made = recipe(schedule=schedule, chinchilla=multiples, batch=4096, max_steps=700)
    assert (made.steps, made.tokens, made.ladder_steps) == (700, 700 * 4096, ladders.steps)
    (end,) = made.milestones
    assert (end.step, end.chinchilla) == (700, pytest.approx(700 * 4096 / (20 * made.N)))
    # The rate rises as the ladder's does, and ends as low as at a point of the ladder.
    assert [made.lr(s) for s in range(1, 200)] == [ladders.lr(s) for s in range(1, 200)]
    floor = 0.1 * made.peak_lr if schedule == "cosine" else made.peak_lr / (0.1 * 700)
    assert made.lr(700) <= floor * (1 + 1e-6)


def test_a_run_of_the_ladder_is_no_try_however_many_steps_are_allowed():
    whole = recipe()
    assert whole.ladder_steps is None
    for steps in (whole.steps, whole.steps + 1, 10**9):
        assert recipe(max_steps=steps) == whole
    assert recipe(max_steps=whole.steps - 1).ladder_steps == whole.steps
