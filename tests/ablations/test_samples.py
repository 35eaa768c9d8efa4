"""Samples: the same prompts for all, greedy by definition, and no part of what a run is."""

import json
from contextlib import nullcontext

import numpy as np
import pytest
import torch

from ablations.data.prepared import write_prepared
from ablations.data.source import decoder, open_corpus
from ablations.evaluate.budget import PROMPT_TOKENS, EvaluationSettings
from ablations.evaluate.samples import Samples, prompts
from ablations.records import project_root
from ablations.resolve import resolve
from ablations.train import train
from models.checkpoint_files import read_model
from models.errors import SettingError
from models.language_model import LanguageModel
from models.text import visible

from .conftest import settings

ASKED = {"evaluation__samples": 3, "evaluation__sample_tokens": 12}


@pytest.fixture(scope="module")
def corpus():
    return open_corpus("embedded", None, project_root() / ".cache" / "corpora")


def trained(make_run, mix="gdn3_attn1", name=None, **changes):
    run, spec = make_run(mix, name=name, **changes)
    assert train(run, spec, stop=lambda: False, say=lambda _: None) == "done"
    return run, spec


def test_a_prompt_is_the_beginning_of_a_held_out_document(corpus):
    found = prompts(corpus, 6)
    assert [p.domain for p in found[:4]] == sorted(corpus.validation)
    for prompt in found:
        domain = corpus.validation[prompt.domain]
        data = bytes([domain.separator]) + np.asarray(domain.tokens[:]).astype(np.uint8).tobytes()
        assert len(prompt.tokens) == PROMPT_TOKENS
        assert bytes([domain.separator, *prompt.tokens]) in data
    assert [p.tokens.tolist() for p in prompts(corpus, 2)] == [
        p.tokens.tolist() for p in found[:2]
    ]  # fmt: skip
    assert len({p.tokens.tobytes() for p in found}) == 6


def test_samples_are_greedy_and_leave_a_run_what_it_is(make_run):
    plain, spec = trained(make_run, name="plain")
    sampled, with_samples = make_run("gdn3_attn1", name="sampled", **ASKED)
    assert with_samples.run_name == spec.run_name
    stops = iter([False, False, False, False, True])
    assert train(sampled, with_samples, stop=lambda: next(stops), say=lambda _: None) == "preempted"
    assert train(sampled, with_samples, stop=lambda: False, say=lambda _: None) == "done"
    points = [(run.path / "points.jsonl").read_bytes() for run in (plain, sampled)]
    assert points[0] == points[1]
    assert not (plain.path / "samples.jsonl").exists()

    whole, _ = trained(make_run, name="whole", **ASKED)
    file = whole.path / "samples.jsonl"
    assert file.read_bytes() == (sampled.path / "samples.jsonl").read_bytes()
    rows = list(whole.rows("samples.jsonl"))
    milestones = [m.step for m in spec.recipe.milestones]
    assert [(r["step"], r["sample"]) for r in rows] == [
        (s, i) for s in milestones for i in range(3)
    ]

    # By definition: the whole text again for every token, its likeliest next one added.
    model = LanguageModel(spec.model)
    model.load_state_dict(read_model(whole.checkpoints, milestones[-1]))
    decode = decoder("embedded", None)
    corpus = open_corpus("embedded", None, project_root() / ".cache" / "corpora")
    for row, prompt in zip(rows[-3:], prompts(corpus, 3), strict=True):
        ids = torch.tensor(prompt.tokens)[None]
        with torch.no_grad():
            for _ in range(12):
                ids = torch.cat([ids, model(ids)[:, -1:].argmax(-1)], 1)
        text = decode(ids[0, PROMPT_TOKENS:].tolist())
        assert row["continuation"] == visible(text, keep="\n\t")
        assert row["prompt"] == visible(decode(prompt.tokens.tolist()), keep="\n\t")

    # A point that is lost is evaluated again, and its samples with it, once.
    lines = (whole.path / "points.jsonl").read_text().splitlines(keepends=True)
    (whole.path / "points.jsonl").write_text("".join(lines[1:]))
    assert train(whole, with_samples, stop=lambda: False, say=lambda _: None) == "done"
    assert list(whole.rows("samples.jsonl")) == rows


def test_every_mix_and_seed_continues_the_same_prompts(make_run):
    asked = []
    for mix, seed in (("transformer", 0), ("mamba2", 1)):
        run, _ = trained(make_run, mix, seed=seed, **ASKED)
        asked.append([(r["step"], r["domain"], r["prompt"]) for r in run.rows("samples.jsonl")])
    assert asked[0] == asked[1]


def test_control_characters_of_a_corpus_are_text_in_the_file(make_run, tmp_path):
    """Bytes that a terminal would obey, and halves of characters."""
    wild = np.frombuffer(b"\x1b[31mred\x07\r\n\xff\xe2\x80 " * 4 + b"\x00", np.uint8)
    corpus = write_prepared(
        tmp_path / "wild", name="wild", vocab_size=256, separator=0, train=[wild[:-1]],
        validation={"v": [wild[:-1]]},
    )  # fmt: skip
    model = LanguageModel(resolve(settings()).model)
    model.initialize(0)
    decode = decoder("tokens", str(tmp_path / "wild"))
    row = next(Samples(EvaluationSettings(samples=1), corpus, decode, nullcontext).rows(model))
    assert row["prompt"].startswith("\\x1b[31mred\\x07\\r\n\ufffd")
    for text in (row["prompt"], row["continuation"]):
        assert all(c in "\n\t" or c.isprintable() for c in text)
    assert json.loads(json.dumps(row)) == row


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"samples": -1}, "evaluation.samples=-1 must be at least 0"),
        ({"samples": 1, "sample_tokens": 0}, "evaluation.sample_tokens=0 must be at least 1"),
        ({"samples": "few"}, "evaluation.samples"),
        ({"samples": 5000}, "evaluation.samples=5000 would cost .* of the run's training FLOPs"),
    ],
)
def test_a_mistake_is_a_sentence_before_anything_runs(change, sentence):
    with pytest.raises(SettingError, match=sentence):
        resolve(settings(**{f"evaluation__{key}": value for key, value in change.items()}))


def test_more_prompts_than_documents_are_a_sentence(tmp_path):
    documents = [np.arange(1, 41, dtype=np.int64)] * 2
    corpus = write_prepared(
        tmp_path / "small", name="small", vocab_size=64, separator=0, train=documents,
        validation={"v": [*documents, np.array([1, 2])]},
    )  # fmt: skip
    assert len(prompts(corpus, 2)) == 2
    with pytest.raises(SettingError, match=r"evaluation.samples=3 needs 3 .* valid: at most 2"):
        prompts(corpus, 3)


def test_a_corpus_of_words_is_sampled_as_words_and_refused_without_its_tokenizer(tmp_path):
    from tokenizers import Tokenizer, models

    theirs = Tokenizer(models.WordLevel({"<end>": 0, "a": 1, "é": 2, "?": 3}, unk_token="?"))
    stream = [np.array([1, 2, 1, 3] * 8000)]
    folder = tmp_path / "corpus"
    write_prepared(
        folder, name="words", vocab_size=4, separator=0, train=stream, validation={"v": stream},
        tokenizer={"name": "words", "sha256": None, "file": "tokenizer.json"},
        token_bytes=np.array([0, 1, 2, 1], np.uint16),
    )  # fmt: skip
    corpus = {"data__name": "tokens", "data__path": str(folder), "protocol__max_epochs": 1e9}
    with pytest.raises(SettingError, match=r"holds no tokenizer.json.*valid: evaluation.samples=0"):
        resolve(settings(**corpus, evaluation__samples=1))
    resolve(settings(**corpus))
    theirs.save(str(folder / "tokenizer.json"))
    resolve(settings(**corpus, evaluation__samples=1))
    assert decoder("tokens", str(folder))([2, 1, 0]) == "é a <end>"
