"""What models.speed says of models that it decodes here; no timing is asserted."""

import json

import pytest

from models.cost import decode_bytes
from models.named import named
from models.speed import main

ASKED = ["mix=transformer,mamba2x3_attn1", "size=50k", "context=16,24", "batch=1,2", "new=3",
         "repeats=1", "threads=1"]  # fmt: skip


def test_the_cache_holds_what_the_counts_say(capsys):
    assert main([*ASKED, "format=json"]) == 0
    document = json.loads(capsys.readouterr().out)
    rows = document["rows"]
    assert len(rows) == 8
    assert (document["dtype"], document["threads"], document["compiled"]) == ("fp32", 1, False)
    configs = {one.mix.name: one.matched().config for one in named(["transformer"], ["50k"])}
    for row in rows:
        assert row["cache_differs_bytes"] == 0
        assert row["decode_tokens_per_second"] > 0
        if row["mix"] in configs:
            state, kv = decode_bytes(configs[row["mix"]], row["context"] + 3, 4)
            assert row["cache_bytes"] == row["batch"] * (state + kv)


def test_a_table_names_device_and_type(capsys):
    assert main(["mix=gdn", "size=50k", "context=8", "batch=1", "new=2", "repeats=1",
                 "dtype=bf16"]) == 0  # fmt: skip
    out = capsys.readouterr().out
    assert "bf16" in out
    assert "not compiled" in out


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("context=1x", "context=1x must be tokens"),
        ("context=0", "context=0 must be tokens"),
        ("mix=nothing", "mix=nothing"),
        ("device=abacus", "device=abacus cannot be used"),
        ("dtype=int4", "dtype=int4"),
        ("batch=0", "batch=0"),
    ],
)
def test_bad_input_is_a_sentence(word, said, capsys):
    assert main(["size=50k", word]) == 2
    assert said in capsys.readouterr().err
