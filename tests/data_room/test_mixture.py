"""Mixtures: exact proportions over any stretch, each source in its own order, once an epoch."""

from __future__ import annotations

import json
from collections import Counter
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ablations.data.__main__ import main
from ablations.data.mixture import open_folder, parts
from ablations.data.order import Batches
from ablations.data.prepared import write_prepared
from ablations.data.source import summarize
from ablations.data.streams import MixedSource, Mixture, schedule
from models.errors import SettingError


@given(shares=st.lists(st.integers(1, 60), min_size=1, max_size=6))
@settings(max_examples=150, deadline=None)
def test_every_stretch_of_the_schedule_has_its_exact_share(shares: list[int]) -> None:
    turns = schedule(shares)
    total = sum(shares)
    assert Counter(turns.tolist()) == dict(enumerate(shares))
    for source, share in enumerate(shares):
        had = np.concatenate([[0], np.cumsum(turns == source)])
        exact = np.arange(total + 1) * share
        # Within one of the share at each position, so within two over any stretch.
        assert np.all(np.abs(had * total - exact) < total)


@given(
    sizes=st.lists(st.integers(8, 40), min_size=2, max_size=4),
    shares=st.lists(st.integers(1, 5), min_size=4, max_size=4),
    batch=st.integers(1, 7),
)
@settings(max_examples=20, deadline=None)
def test_a_mixture_reads_each_source_in_the_order_it_has_alone(
    sizes: list[int], shares: list[int], batch: int
) -> None:
    context = 3
    # Source k holds the numbers 1000 k, 1000 k + 1, ...
    sources = [
        MixedSource(str(k), np.arange(n * context + 1) + 1000 * k, f"{k:064}", shares[k])
        for k, n in enumerate(sizes)
    ]
    batches = Batches(Mixture(tuple(sources)), "ab" * 32, context, batch, seed=4)
    alone = [Batches(s.tokens, s.fingerprint, context, 1, seed=4) for s in sources]
    taken = [0] * len(sources)
    repeated = 0
    for step in range(20):
        assert batches.repeated_tokens(step) == repeated
        for row in batches.batch(step):
            k = int(row[0]) // 1000
            assert np.array_equal(row, alone[k].batch(taken[k])[0])
            repeated += context * (taken[k] >= sizes[k])
            taken[k] += 1
    assert np.array_equal(batches.batch(3), batches.batch(3))


def test_the_batches_of_one_corpus_do_not_depend_on_the_batch_size_in_a_mixture() -> None:
    mixture = Mixture(
        tuple(MixedSource(str(k), np.arange(301) + 1000 * k, f"{k:064}", k + 1) for k in (0, 1))
    )
    large, small = (Batches(mixture, "", 5, size, seed=1) for size in (12, 4))
    for step in range(9):
        parts = [small.batch(3 * step + i) for i in range(3)]
        assert np.array_equal(large.batch(step), np.concatenate(parts))


def test_weights_are_exact() -> None:
    assert parts({"a": "0.7", "b": "0.3"}) == [7, 3]
    assert parts({"a": "1/3", "b": "0.5"}) == [2, 3]
    assert parts({"a": "2", "b": "2"}) == [1, 1]
    found = parts({"a": "0.125", "b": "3e-1", "c": "1"})
    assert [Fraction(p, found[2]) for p in found] == [Fraction("0.125"), Fraction("0.3"), 1]


def corpus(path: Path, name: str, first: int, domain: str = "held", vocab_size: int = 256) -> Path:
    documents = [np.full(9, first + i) for i in range(30)]
    write_prepared(
        path, name=name, vocab_size=vocab_size, separator=0, train=documents,
        validation={domain: documents[:1]},
        token_bytes=None if vocab_size == 256 else np.ones(vocab_size, dtype=np.uint16),
    )  # fmt: skip
    return path


def mix(tmp_path: Path, *arguments: str) -> int:
    return main(["mix", f"out={tmp_path / 'm'}", *arguments])


def test_a_mixture_is_a_corpus_like_any_other(tmp_path: Path) -> None:
    a, b = corpus(tmp_path / "a", "a", 1), corpus(tmp_path / "b", "b", 100)
    assert mix(tmp_path, f"a=0.75:{a}", f"b=0.25:{b}", "name=both") == 0
    mixed = open_folder(tmp_path / "m", verify=True)
    assert set(mixed.validation) == {"a.held", "b.held"}
    # 300 tokens each; at 3 of 4 instances the first source repeats after 400.
    summary = summarize("tokens", str(tmp_path / "m"))
    assert (summary.train_tokens, summary.name) == (400, "both")
    batch = Batches(mixed.train, mixed.fingerprint, 4, 8, 0).batch(0)
    assert np.count_nonzero(batch.max(axis=1) >= 100) == 2


def test_what_cannot_be_mixed_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = corpus(tmp_path / "a", "a", 1), corpus(tmp_path / "b", "b", 1, vocab_size=300)
    for arguments, sentence in (
        ((f"a=1:{a}", f"b=1:{b}"), "made with different tokenizers (256 and 300 ids)"),
        ((f"a=-1:{a}",), "a=-1 is no weight; valid: a number above 0"),
        ((f"a=x:{a}",), "a=x is no weight"),
        ((f"a=1e999999999:{a}",), "a=1e999999999 is no weight"),
        ((f"a={a}",), "is no source; write NAME=WEIGHT:FOLDER"),
        ((f"a=0.123457:{a}", f"b=1:{a}"), "come out even after 1,123,457 instances"),
        (("a=1:/nowhere",), "is not a folder"),
        ((), "sources are not given"),
    ):
        assert mix(tmp_path, *arguments) == 2
        assert sentence in capsys.readouterr().err
        assert not (tmp_path / "m").exists()
    assert main(["mix", f"a=1:{a}", f"out={tmp_path / 'one'}"]) == 0
    assert mix(tmp_path, f"one=1:{tmp_path / 'one'}", f"a=1:{a}") == 2
    assert "one is a mixture itself; valid: prepared corpora" in capsys.readouterr().err


def test_a_source_that_changed_is_found(tmp_path: Path) -> None:
    a = corpus(tmp_path / "a", "a", 1)
    assert mix(tmp_path, f"a=1:{a}") == 0
    manifest = json.loads((a / "manifest.json").read_text())
    manifest["train"]["sha256"] = "0" * 64
    (a / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(SettingError, match="mixed of another corpus than"):
        open_folder(tmp_path / "m")


def test_a_source_under_one_instance_is_refused() -> None:
    mixture = Mixture((MixedSource("tiny", np.arange(5), "", 1), MixedSource("b", np.arange(50),
                       "", 1)))  # fmt: skip
    with pytest.raises(SettingError, match="tiny holds 5 training tokens, less than one instance"):
        Batches(mixture, "", 8, 2, 0)
