"""Settings become one frozen spec; identity, and sentences for what cannot be."""

from dataclasses import dataclass

import pytest

from ablations.resolve import resolve
from ablations.spec import load
from models.errors import SettingError
from models.settings import flatten, from_dict, to_dict

from .conftest import settings


@dataclass(frozen=True)
class Inner:
    width: int
    rate: float = 0.5


@dataclass(frozen=True)
class Outer:
    inner: Inner
    names: tuple[str, ...]
    maybe: int | None = None


def test_settings_round_trip_through_plain_values():
    data = {"inner": {"width": 3, "rate": 1}, "names": ["a"], "maybe": None}
    made = from_dict(Outer, data)
    assert made == Outer(Inner(3, 1.0), ("a",))
    assert from_dict(Outer, to_dict(made)) == made
    assert flatten(to_dict(made))["inner.rate"] == 1.0


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"inner": {"width": 3}, "names": [], "nme": 1}, "nme is not a setting.*names"),
        ({"inner": {"wdth": 3}, "names": []}, r"inner\.wdth is not a setting.*inner\.width"),
        ({"inner": {}, "names": []}, r"inner\.width is missing"),
        ({"inner": {"width": "x"}, "names": []}, r"inner\.width='x' must be a whole number"),
        ({"inner": {"width": 1.5}, "names": []}, "must be a whole number"),
        ({"inner": {"width": True}, "names": []}, "must be a whole number"),
        ({"inner": {"width": 1, "rate": float("nan")}, "names": []}, "must be finite"),
        ({"inner": {"width": 1}, "names": "ab"}, "must be a list"),
        ({"inner": 3, "names": []}, "must be a group"),
    ],
)
def test_wrong_settings_are_named_in_a_sentence(data, words):
    with pytest.raises(SettingError, match=words):
        from_dict(Outer, data)


def test_a_spec_comes_back_whole_from_its_file():
    spec = resolve(settings("gdn3_attn1"))
    assert load(to_dict(spec)) == spec
    assert load(to_dict(spec)).identity == spec.identity


def test_identity_leaves_out_resources_logging_and_paths_and_nothing_else():
    base = resolve(settings())
    same = settings(resources__threads=7, resources__compile="false", logging__log_every=3)
    same["sweep"] = "elsewhere"
    assert resolve(same).identity == base.identity
    assert resolve(settings(data__name="embedded")).identity == base.identity
    for changed in (
        settings("gdn3_attn1"),
        settings(seed=1),
        settings(protocol__lr_multiplier=0.5),
        settings(train__weight_decay=0.0),
        settings(data__eval_tokens=4096),
        settings(size__d_model=48, size__n_heads=2),
    ):
        assert resolve(changed).identity != base.identity


def test_what_the_rules_give_is_the_same_for_every_mix_of_a_size():
    specs = [resolve(settings(mix)) for mix in ("transformer", "gdn3_attn1", "mamba2")]
    assert len({spec.recipe for spec in specs}) == 1
    assert all(abs(spec.counts.N / spec.recipe.N - 1) <= 0.005 for spec in specs)


def test_a_large_size_without_a_corpus_can_be_planned_and_not_run():
    wanted = settings("gdn3_attn1", size="60m")
    wanted["size"]["context"], wanted["protocol"]["batch_tokens"] = 8192, None
    wanted["protocol"]["chinchilla"] = None
    spec = resolve(wanted, plan_only=True)
    assert spec.corpus is None
    assert spec.recipe.N == 57_422_208
    assert spec.recipe.tokens == pytest.approx(160 * 57_422_208, rel=1e-4)
    with pytest.raises(SettingError, match=r"ARCHLADDER_DATA"):
        resolve(wanted)


def test_a_large_size_on_the_embedded_corpus_has_its_real_N_and_epochs():
    wanted = settings(size="60m", data__name="embedded")
    wanted["size"]["context"], wanted["protocol"]["batch_tokens"] = 256, None
    wanted["protocol"]["chinchilla"] = None
    spec = resolve(wanted, plan_only=True)
    assert spec.model.vocab_size == 256
    assert spec.counts.N < 20e6
    assert spec.epochs == pytest.approx(spec.recipe.tokens / spec.corpus.train_tokens)
    with pytest.raises(SettingError, match=r"protocol\.max_epochs=4"):
        resolve(wanted)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seed": -1}, "seed=-1"),
        ({"data__name": "pile"}, "auto, embedded, tokens"),
        ({"data__eval_tokens": 0}, "eval_tokens=0"),
        ({"protocol__match": "width"}, "blueprint, flops, params"),
        ({"protocol__nope": 1}, "protocol.nope is not a setting"),
        ({"mix__pattern": ["attn", "lstm"]}, "lstm"),
        ({"resources__precision": "fp8"}, "auto, bf16, fp32"),
        ({"resources__micro_batch_tokens": 0}, "micro_batch_tokens=0"),
    ],
)
def test_unusable_settings_are_refused_in_a_sentence(changes, words):
    seed = changes.pop("seed", 0)
    with pytest.raises(SettingError, match=words):
        resolve(settings(seed=seed, **changes))


@pytest.mark.parametrize(
    ("sweep", "words"),
    [("größe", "'ö', which is outside ASCII"), ("s" * 101, "101 letters, more than 100"),
     ("a/b", "plain folder name"), ("a,b", "commas"), (".a", "plain folder name"), (3, "plain")],
)  # fmt: skip
def test_a_sweep_is_named_as_folders_and_slurm_can_be(sweep, words):
    with pytest.raises(SettingError, match=words):
        resolve(settings() | {"sweep": sweep})
    assert resolve(settings() | {"sweep": "s" * 100}).sweep == "s" * 100
