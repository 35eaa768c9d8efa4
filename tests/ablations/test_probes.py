"""Probes: what they ask by definition, who can answer, and what a run records of them."""

import contextlib
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ablations.data.source import open_corpus
from ablations.data.windows import validation_windows
from ablations.distributed import World
from ablations.evaluate import budget
from ablations.evaluate.__main__ import main
from ablations.evaluate.budget import EvaluationSettings
from ablations.evaluate.loss import HeldOut, evaluate
from ablations.evaluate.positions import by_position, edges
from ablations.evaluate.probes import Probes, score
from ablations.evaluate.tasks import BUILD, DIGITS, Material, examples, material, pairs
from ablations.records import project_root
from ablations.resolve import resolve
from ablations.spec import load
from ablations.train import train
from models.errors import SettingError
from models.language_model import LanguageModel

from .conftest import settings

CPU = torch.device("cpu")
# Every probe of a 50k run, in about a second: its context is 64.
ALL = {"evaluation__probes": [*budget.PROBES], "evaluation__examples": 4,
       "evaluation__lengths": [64, 128], "evaluation__max_share": 100.0}  # fmt: skip


@pytest.fixture(scope="module")
def corpus():
    return open_corpus("embedded", None, project_root() / ".cache" / "corpora")


@pytest.fixture(scope="module")
def of(corpus):
    return material(corpus)


@pytest.fixture(scope="module")
def wordpiece():
    """A vocabulary of 5,000 ids, each of which occurs."""
    text = np.random.default_rng(0).permutation(np.repeat(np.arange(1, 5000), 10))
    return Material(text, np.arange(1, 4097))


class Fake:
    """A model that answers by a rule on the tokens before each place, with the nats of a guess."""

    def __init__(self, rule, vocab_size=256):
        self.rule, self.blocks, self.training = rule, (), False
        self.config = SimpleNamespace(vocab_size=vocab_size)

    def choices(self, tokens, at, candidates):
        best = [
            [self.rule(row[:place].tolist(), candidates) for place in places]
            for row, places in zip(tokens, at.tolist(), strict=True)
        ]
        return torch.full(at.shape, math.log(self.config.vocab_size)), torch.tensor(best)


def longest_match(before, _candidates):
    """What followed the last time that as much as possible of the end was read."""
    best, answer = -1, 0
    for end in range(len(before) - 1, 0, -1):
        length = 0
        while length < end and before[end - 1 - length] == before[-1 - length]:
            length += 1
        if length > best:
            best, answer = length, before[end]
    return answer


def judged(rule, probe, length, n, of):
    return score(Fake(rule), examples(probe, length, n, of), CPU, contextlib.nullcontext)


@pytest.mark.parametrize("probe", ["recall", "passkey"])
@pytest.mark.parametrize("length", [64, 200])
def test_a_model_that_looks_up_what_it_read_is_always_right(probe, length, of, wordpiece):
    for one in (of, wordpiece):
        found = judged(longest_match, probe, length, 6, one)
        assert found["accuracy"] == 1.0
        assert found["accuracy_se"] == 0.0


def test_copies_are_right_as_soon_as_the_second_reading_can_be_told(of):
    for length in (64, 129):
        asked = examples("copy", length, 8, of)
        wrong = [
            place
            for row, places in zip(asked.tokens, asked.at, strict=True)
            for place in places
            if longest_match(row[:place].tolist(), None) != row[place]
        ]
        # Two ids that stood side by side elsewhere in the segment mislead it for a moment.
        assert max(wrong, default=0) <= length - length // 2 + 3
    assert judged(longest_match, "copy", 128, 8, of)["first_accuracy"] < 0.1


def test_the_gain_of_a_second_reading_is_of_each_example_against_itself(of):
    asked = examples("repeat", 64, 9, of)

    class Twice(Fake):
        def choices(self, tokens, at, candidates):
            """Hard texts and easy ones; the second reading saves a nat, of every other one two."""
            hard = (tokens[:, :1] % 7).float()
            saved = torch.where(torch.arange(len(tokens)) % 2 == 0, 1.0, 2.0)[:, None]
            return hard + 5 - saved * (at >= 33), super().choices(tokens, at, candidates)[1]

    found = score(Twice(lambda *_: 0), asked, CPU, contextlib.nullcontext)
    assert found["gain"] == pytest.approx((5 * 1 + 4 * 2) / 9)
    assert found["gain"] == pytest.approx(found["first_nats"] - found["nats"])
    assert found["gain_se"] == pytest.approx(math.sqrt(20 / 81 / 9))


def test_probes_compile_nothing_and_leave_blocks_compiled(corpus):
    compiled = []

    def backend(graph, _inputs):
        compiled.append(graph)
        return graph.forward

    model = LanguageModel(resolve(settings()).model)
    model.initialize(0)
    for block in model.blocks:
        block.compile(backend=backend)
    probes = Probes(
        EvaluationSettings(("copy", "positions"), (64, 128), 1), corpus, 64, device=CPU,
        autocast=contextlib.nullcontext,
    )  # fmt: skip
    assert len(list(probes.measure(model))) == 2 + 5
    assert not compiled
    assert model.training
    model(torch.zeros(1, 8, dtype=torch.long))
    assert compiled


def test_who_does_not_read_the_keys_is_right_by_chance(of):
    generator = torch.Generator().manual_seed(0)

    def guess(_before, candidates):
        return candidates[torch.randint(len(candidates), (), generator=generator)]

    def commonest(before, candidates):
        return max(candidates.tolist(), key=before.count)

    for probe, rule in (("recall", guess), ("recall", commonest), ("passkey", guess),
                        ("copy", guess)):  # fmt: skip
        found = judged(rule, probe, 192, 60, of)
        sd = math.sqrt(found["chance"] * (1 - found["chance"]) / found["predictions"])
        assert abs(found["accuracy"] - found["chance"]) < 4 * sd, probe
        assert found["nats"] == pytest.approx(math.log(256))


def test_the_standard_error_is_the_spread_over_other_examples(of):
    def half(before, candidates):
        """Right in rows whose second token is even: the answers of a row stand or fall together."""
        right = longest_match(before, candidates)
        return right if before[1] % 2 else candidates[0]

    runs = [judged(half, "passkey", 64, 320, of)["accuracy_se"]]
    many = examples("passkey", 64, 320, of)
    shares = [
        np.mean([int(half(row[:p].tolist(), [-1]) == row[p]) for row, places in zip(
            many.tokens[part], many.at[part], strict=True) for p in places])
        for part in np.split(np.arange(320), 20)
    ]  # fmt: skip
    assert runs[0] == pytest.approx(np.std(shares, ddof=1) / math.sqrt(20), rel=0.45)


@pytest.mark.parametrize("probe", BUILD)
def test_examples_have_their_length_and_more_of_them_begin_the_same(probe, of, wordpiece, corpus):
    for one, length in ((of, 64), (of, 131), (wordpiece, 96)):
        many = examples(probe, length, 7, one)
        few = examples(probe, length, 3, one)
        assert many.tokens.shape == (7, length)
        assert np.array_equal(many.tokens[:3], few.tokens)
        assert many.digest != few.digest
        assert (many.at >= 1).all()
        assert len({row.tobytes() for row in many.tokens}) == 7
        if many.candidates is not None:
            answers = np.take_along_axis(many.tokens, many.at, 1)
            assert np.isin(answers, many.candidates).all()
    assert corpus.separator not in examples(probe, 512, 8, of).tokens


def test_recall_asks_each_value_of_equally_many_keys(of):
    asked = examples("recall", 192, 5, of)
    n = pairs(192, len(of.alphabet))
    assert n == 32
    for row in asked.tokens:
        told = row[: 3 * n].reshape(n, 3)
        assert len({tuple(pair) for pair in told[:, :2]}) == n
        assert set(np.unique(told[:, 2], return_counts=True)[1]) == {n // 8}
    assert not np.isin(asked.tokens[:, 0], asked.candidates).any()


def test_a_passkey_lies_at_any_depth_and_is_asked_at_the_end(of):
    asked = examples("passkey", 256, 40, of)
    assert len(asked.candidates) == DIGITS
    depths = []
    for row in asked.tokens:
        key = row[-9:].tobytes()
        (depth,) = [i for i in range(256 - 9) if row[i : i + 9].tobytes() == key]
        depths.append(depth / (256 - 18))
    assert min(depths) < 0.2
    assert max(depths) > 0.8


def test_a_text_too_small_for_the_probes_is_refused(of):
    with pytest.raises(SettingError, match="lengths has 100, which is longer"):
        examples("copy", 100, 1, Material(of.text[:99], of.alphabet))


@pytest.mark.parametrize("mix", ["transformer", "gdn3_attn1", "mamba2x3_attn1"])
def test_decoding_token_by_token_gives_the_same_answers(mix, of):
    model = LanguageModel(resolve(settings(mix)).model).eval()
    model.initialize(0)
    asked = examples("recall", 96, 2, of)
    tokens, at = torch.from_numpy(asked.tokens), torch.from_numpy(asked.at)
    candidates = torch.from_numpy(asked.candidates)
    with torch.no_grad():
        nats, best = model.choices(tokens, at, candidates)
        cache = model.new_cache(2, 96)
        logits = torch.stack([model.extend(tokens[:, i : i + 1], cache) for i in range(96)], 1)
    row = torch.arange(2)[:, None]
    decoded = logits[row, at - 1]
    expected = -decoded.log_softmax(-1).gather(-1, tokens.gather(1, at)[..., None])[..., 0]
    assert torch.allclose(nats, expected, atol=2e-5)
    assert torch.equal(best, candidates[decoded[..., candidates].argmax(-1)])


def test_buckets_of_positions_add_up_to_the_loss_of_their_windows(corpus):
    spec = resolve(settings("gdn3_attn1"))
    model = LanguageModel(spec.model)
    model.initialize(1)
    rows = by_position(
        model, corpus, 256, 64, 8, device=CPU, autocast=contextlib.nullcontext, separator=None,
        world=World(), batch_tokens=300,
    )  # fmt: skip
    assert [(row["from"], row["to"]) for row in rows] == [
        (0, 8), (8, 16), (16, 32), (32, 64), (64, 128), (128, 256)]  # fmt: skip
    assert edges(100, 64) == [0, 8, 16, 32, 64, 100]
    held = {
        name: HeldOut(*validation_windows(domain, 256, 2 * 256))
        for name, domain in corpus.validation.items()
    }
    whole = evaluate(model, held, device=CPU, autocast=contextlib.nullcontext)
    mean = sum(row["loss"] * (row["to"] - row["from"]) for row in rows) / 256
    assert mean == pytest.approx(whole["loss"], rel=1e-6)
    assert all(row["predictions"] == (row["to"] - row["from"]) * 8 for row in rows)
    # One bucket of all positions is bits per byte as every point has it.
    (one,) = by_position(
        model, corpus, 64, 512, 8, device=CPU, autocast=contextlib.nullcontext, separator=None,
        world=World(), batch_tokens=300,
    )  # fmt: skip
    held = {
        name: HeldOut(*validation_windows(domain, 64, 2 * 64))
        for name, domain in corpus.validation.items()
    }
    whole = evaluate(model, held, device=CPU, autocast=contextlib.nullcontext)
    assert one["bpb"] == pytest.approx(whole["bpb"], rel=1e-6)


def test_probes_cost_what_reading_their_tokens_costs():
    model = resolve(settings("gdn3_attn1")).model
    one = EvaluationSettings(("copy",), (64,), 5)
    # At the training context a forward pass is a third of a training step's FLOPs a token.
    share = budget.share_of_run(one, model, 64, 64_000, 3)
    assert share == pytest.approx(3 * 5 * 64 / 3 / 64_000)
    longer = EvaluationSettings(("copy",), (64, 256), 5)
    assert budget.share_of_run(longer, model, 64, 64_000, 3) > 5 * share
    assert budget.lengths(EvaluationSettings(), 256) == (64, 128, 256, 512, 1024)


def test_probes_leave_a_run_what_it_is(make_run):
    plain, spec = make_run("gdn3_attn1", name="plain")
    train(plain, spec, stop=lambda: False, say=lambda _: None)
    probed, with_probes = make_run("gdn3_attn1", name="probed", **ALL)
    assert with_probes.run_name == spec.run_name
    said = []
    stops = iter([False, False, False, False, True])
    assert train(probed, with_probes, stop=lambda: next(stops), say=said.append) == "preempted"
    train(probed, with_probes, stop=lambda: False, say=said.append)
    assert any("% of training's FLOPs" in line for line in said)
    same = [(run.path / "points.jsonl").read_bytes() for run in (plain, probed)]
    assert same[0] == same[1]
    assert not (plain.path / "probes.jsonl").exists()

    whole, _ = make_run("gdn3_attn1", name=f"whole/{spec.run_name}", **ALL)
    train(whole, with_probes, stop=lambda: False, say=lambda _: None)
    file = whole.path / "probes.jsonl"
    assert file.read_bytes() == (probed.path / "probes.jsonl").read_bytes()
    rows = list(whole.rows("probes.jsonl"))
    assert {row["step"] for row in rows} == {m.step for m in spec.recipe.milestones}
    assert {(row["probe"], row["length"]) for row in rows} == {
        *((p, n) for p in BUILD for n in (64, 128)), ("positions", 128)}  # fmt: skip

    # Measured after training, at the checkpoints that were kept, they are what they were.
    file.unlink()
    command = [str(whole.path), "lengths=64,128", "examples=4", "device=cpu"]
    assert main(command) == 0
    assert list(whole.rows("probes.jsonl")) == rows
    assert main(command) == 0
    assert main([*command, "probes=copy", "checkpoint=last"]) == 0
    assert list(whole.rows("probes.jsonl")) == rows


def test_every_mix_and_seed_answers_the_same_questions(make_run):
    asked = []
    for mix, seed in (("transformer", 0), ("mamba2", 1)):
        run, spec = make_run(mix, seed=seed, **ALL)
        train(run, spec, stop=lambda: False, say=lambda _: None)
        asked.append([(r["probe"], r["length"], r["digest"]) for r in run.rows("probes.jsonl")])
    assert asked[0] == asked[1]


def test_a_run_of_before_probes_is_read_and_named_as_it_was():
    content = resolve(settings()).record()
    before = load({key: value for key, value in content.items() if key != "evaluation"})
    assert before == resolve(settings())
    assert "evaluation" in content


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"probes": ["recal"]},
            "evaluation.probes=recal is not known; nearest: recall; valid: copy, passkey",
        ),
        ({"probes": ["copy", "copy"]}, "names a probe twice"),
        ({"examples": 0}, "evaluation.examples=0 must be above 0"),
        ({"lengths": [32]}, "evaluation.lengths=\\[32\\] must list lengths of at least 64"),
        ({"probes": ["copy"]}, "more than evaluation.max_share=0.1; ask for fewer"),
    ],
)
def test_a_mistake_is_a_sentence_before_anything_runs(change, sentence):
    with pytest.raises(SettingError, match=sentence):
        resolve(settings(**{f"evaluation__{key}": value for key, value in change.items()}))


def test_a_mistake_in_the_command_is_a_sentence(make_run, capsys, tmp_path, corpus):
    run, spec = make_run()

    def refused(*arguments):
        assert main(list(arguments)) == 2
        return capsys.readouterr().err

    assert "neither a run directory" in refused(str(tmp_path / "nowhere"))
    assert "holds no checkpoint; train it first" in refused(str(run.path))
    train(run, spec, stop=lambda: False, say=lambda _: None)
    assert "probe is not a setting; nearest: probes" in refused(str(run.path), "probe=copy")
    assert "checkpoint=7 is not known; valid: " in refused(str(run.path), "checkpoint=7")
    assert "examples=few must be a whole number" in refused(str(run.path), "examples=few")
    assert "device=tpu is not known" in refused(str(run.path), "device=tpu")
    room = min(len(domain.tokens) for domain in corpus.validation.values()) - 1
    assert f"at most {room:,} tokens" in refused(str(run.path), "lengths=9999999")
    with run.lock():
        assert "is being trained now" in refused(str(run.path))
    (tmp_path / "copied").symlink_to(run.path)
    assert f"cannot be probed: a copy of run {run.name}" in refused(str(tmp_path / "copied"))
    assert not (run.path / "probes.jsonl").exists()


def test_lengths_that_follow_from_the_context_are_left_out_where_text_ends(corpus):
    def lengths(context, **more):
        settings = EvaluationSettings(("copy",), **more)
        return Probes(settings, corpus, context, device=CPU, autocast=contextlib.nullcontext)

    assert lengths(65536).lengths == (16384, 32768, 65536, 131072)
