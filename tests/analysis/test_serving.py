"""When a mix pays, on numbers made by hand, and the command on a file made by hand."""

import json
from math import inf

import pytest

from analysis.__main__ import main
from analysis.stats.break_even import crossings, served_tokens


@pytest.mark.parametrize(
    ("training", "per_token", "after", "until", "words"),
    [
        # The baseline: 100 s of training, 2 s a token.
        (160, 1, 60, inf, "beyond 60 tokens"),  # 160 + 60 = 100 + 120
        (40, 5, 0, 20, "up to 20 tokens"),  # 40 + 100 = 100 + 40
        (90, 1, 0, inf, "always"),
        (100, 1, 0, inf, "always"),
        (120, 3, 0, 0, "never"),
        (100, 2, 0, 0, "never"),
    ],
)
def test_break_even_is_where_the_lines_meet(training, per_token, after, until, words):
    pays = served_tokens(training, per_token, 100, 2)
    assert (pays.after, pays.until) == (after, until)
    assert str(pays) == words


def test_contexts_of_equal_cost():
    assert crossings([1000, 2000, 3000], [4, 4, 4], [3, 5, 5]) == [1500]
    assert crossings([1000, 2000], [4, 4], [4, 5]) == [1000]
    assert crossings([1000, 2000], [4, 4], [1, 2]) == []


def document():
    rows = [
        {"mix": mix, "size": "1m", "batch": 2, "context": context, "cache_bytes": 10 * context,
         "prefill_tokens_per_second": 100.0, "decode_tokens_per_second": speed}
        for mix, speeds in {"transformer": (1.0, 0.5), "gdn3_attn1": (0.8, 0.8)}.items()
        for context, speed in zip((1000, 3000), speeds, strict=True)
    ]  # fmt: skip
    return {"device": "a machine", "dtype": "fp32", "threads": 1, "compiled": False, "rows": rows}


def test_the_command_draws_and_tells_when_a_mix_pays(tmp_path, capsys):
    (tmp_path / "speed.json").write_text(json.dumps(document()))
    words = ["serving", str(tmp_path / "speed.json"), f"out={tmp_path}", "format=json",
             "training=transformer=100,gdn3_attn1=175"]  # fmt: skip
    assert main(words) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    hybrid = {row["context"]: row for row in rows if row["mix"] == "gdn3_attn1"}
    assert hybrid[1000]["pays"] == "never"  # dearer to train here, and 1.25 s a token against 1
    assert hybrid[3000]["pays_after"] == pytest.approx(75 / (2 - 1.25))
    # Seconds a token: 1 to 2 against 1.25, a quarter of the way.
    assert hybrid[1000]["as_fast_at_context"] == "1500"
    assert {path.suffix for path in (tmp_path / "figures").iterdir()} == {
        ".pdf", ".png", ".svg", ".csv", ".json"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("baseline=gdn", "baseline=gdn"),
        ("training=gdn3_attn1=3", "lacks the baseline's"),
        ("training=other=3", "training=other"),
        ("size=60m", "size=60m"),
        ("batch=9", "batch=9"),
    ],
)
def test_bad_settings_are_sentences(tmp_path, capsys, word, said):
    (tmp_path / "speed.json").write_text(json.dumps(document()))
    assert main(["serving", str(tmp_path / "speed.json"), f"out={tmp_path / 'out'}", word]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"rows": []}', '{"rows": [{"mix": "gdn"}]}'])
def test_another_file_is_a_sentence(tmp_path, capsys, text):
    (tmp_path / "speed.json").write_text(text)
    assert main(["serving", str(tmp_path / "speed.json")]) == 2
    assert "models.speed" in capsys.readouterr().err
