"""python -m models: its table against published counts, and what it refuses."""

import csv
import io
import json
import re
import subprocess
import sys

import pytest

from ablations.resolve import resolve
from models.__main__ import COLUMNS, main
from models.errors import SettingError

from ..ablations.conftest import settings
from .test_counts import MIXES, PUBLISHED_NAMES, ROOT, rows

FIRST = "mix,size,N,N_total,N_body,flops_per_token,state_bytes,kv_bytes,residual"


def ask(capsys, *arguments):
    code = main([*arguments])
    out, err = capsys.readouterr()
    return code, out, err


def read(text):
    return {(row["mix"], row["size"]): row for row in csv.DictReader(io.StringIO(text))}


def test_the_published_ladder_as_csv(capsys):
    code, out, err = ask(capsys, "protocol=olmo_hybrid", "--format", "csv")
    assert (code, err) == (0, "")
    header = out.splitlines()[0]
    assert header.startswith(FIRST)
    assert header.endswith(",moved")
    found = read(out)
    table = {r["arch"]: r for r in rows("table22_param_counts_M.csv")}
    for arch, mix in PUBLISHED_NAMES.items():
        for size in ("60M", "100M", "190M", "370M", "600M", "760M", "1B"):
            row = found[mix, size.lower()]
            assert round(int(row["N"]) / 1e6) == int(table[arch][size])
            assert row["moved"] == "nothing"
    # 16 query heads of 128, three layers in four at a window of 4096; two bytes, keys and values.
    assert int(found["transformer", "1b"]["kv_bytes"]) == 2 * 2 * 2048 * (12 * 4096 + 4 * 8192)
    # Four layers in sixteen, all of them full; states of 128 × 256 and three inputs of the taps.
    hybrid = found["gdn3_attn1", "1b"]
    assert int(hybrid["kv_bytes"]) == 2 * 2 * 2048 * 4 * 8192
    assert int(hybrid["state_bytes"]) == 12 * 16 * (4 * 128 * 256 + 2 * 3 * 512)


def test_every_mix_at_every_size_is_listed_transformer_first_and_matched(capsys):
    _, out, _ = ask(capsys, "--format=csv")
    listed = [(row["size"], row["mix"]) for row in csv.DictReader(io.StringIO(out))]
    mixes = sorted(MIXES, key=lambda m: (m != "transformer", m))
    assert [mix for size, mix in listed if size == "50k"] == mixes
    sizes = list(dict.fromkeys(size for size, _ in listed))
    assert sizes[:4] == ["50k", "100k", "width64", "200k"]  # by N
    assert sizes[-3:] == ["600m", "760m", "1b"]
    assert all(abs(float(row["residual"])) <= 0.005 for row in read(out).values())


@pytest.mark.parametrize("style", ["table", "markdown"])
def test_a_table_for_readers(capsys, style):
    code, out, _ = ask(capsys, "size=1b", "mix=gdn3_attn1", "context=32768", "--format", style)
    assert code == 0
    assert "mlp_hidden 8192 → 7168" in out
    assert " 1 GiB " in out  # four layers of 2 · 2 · 2048 bytes, 32k of them


def test_an_impossible_row_leaves_the_others_standing(capsys):
    arguments = ("protocol=olmo_hybrid", "protocol.match=params", "size=60m", "mix=transformer,gdn")
    code, out, err = ask(capsys, *arguments, "--format", "csv")
    found = read(out)
    assert code == 2
    assert found["transformer", "60m"]["N"] == "57422208"
    assert found["gdn", "60m"]["N"] == ""
    assert "cannot be matched" in found["gdn", "60m"]["moved"]
    assert err == f"error: {found['gdn', '60m']['moved']}\n"


def test_settings_of_the_block_are_set_like_any_other(capsys):
    """A block's settings on the command line, against their parameters written out."""
    code, out, err = ask(
        capsys, "size=50k", "mix=transformer", "mix.norm=inputs", "mix.attn_qk_norm=none",
        "mix.mlp=relu2", "mix.pattern=*-", "protocol.match=blueprint", "--format", "csv",
    )  # fmt: skip
    assert (code, err) == (0, "")
    d, hidden, vocab, depth = 32, 64, 256, 4
    body = depth * (4 * d * d + 2 * d * hidden + 2 * d) + d
    assert int(read(out)["transformer", "50k"]["N_body"]) == body
    assert int(read(out)["transformer", "50k"]["N"]) == body + vocab * d
    # A kind of one's own: half of the layers keep 8 tokens of the context's 256.
    kinds = "mix.kinds={swa: {mixer: attn, letter: W, window: 8}}"
    code, out, _ = ask(
        capsys, "size=50k", "mix=transformer", kinds, "mix.pattern=W*", "--format", "csv"
    )
    assert int(read(out)["transformer", "50k"]["kv_bytes"]) == 2 * 2 * d * 2 * (8 + 256)


def test_help_names_every_column(capsys):
    code, out, _ = ask(capsys, "--help")
    assert code == 0
    assert all(name in out for name in COLUMNS[2:])


def test_no_torch_and_no_hydra_are_loaded():
    code = (
        "import sys; from models.__main__ import main; main(['mix=gdn', 'size=50k']);"
        "sys.exit(sum(name in sys.modules for name in ('torch', 'hydra', 'numpy')))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


# What cannot be, as a user types it, and as a sweep is given it.
IMPOSSIBLE = {
    "letter": (
        {"mix.pattern": "GGX*"}, r"mix.pattern=GGX\* has the letter X; valid: \* attn, G gd"),
    "last": ({"mix.last": "rwkv"}, "mix.last=rwkv is not known; valid: attn, gdn, "),
    "block": ({"mix.norm": "both"}, "mix.norm=both is not known; valid: inputs, outputs"),
    "mlp": ({"mix.mlp": "gelu"}, "mix.mlp=gelu is not known; valid: none, relu2, swiglu"),
    "no mlp": ({"mix.mlp": "none"}, "mix.mlp=none.*knob=mlp_hidden cannot match.*knob=heads"),
    "option": (
        {"mix.attn_qk_nrm": "head"}, "mix.attn_qk_nrm is not a setting; nearest .*mix.attn_qk_no"),
    "option's value": (
        {"mix.attn_qk_norm": "all"}, "mix.attn_qk_norm=all is not known; valid: full, head, none"),
    "share of a head": (
        {"mix.attn_rotary": 0.3}, "mix.attn_rotary=0.3 turns 4.8 of the 16 channels of a head"),
    "kind": (
        {"mix.kinds": {"swa": {"mixer": "attn", "windw": 8}}},
        "mix.swa_windw is not a setting; nearest of those that are: mix.swa_window"),
    "kind's mixer": (
        {"mix.kinds": {"own": {"mixer": "nobodys.mixer"}}},
        "mixer=nobodys.mixer cannot be imported .*in the folder of the command"),
    "rule": (
        {"protocol.gdn_key_multiple": 0}, "protocol.gdn_key_multiple=0 must be at least 1"),
    "rule of no layer here": (
        {"protocol.mamba2_state": -1}, "protocol.mamba2_state=-1 must be at least 1"),
    "rule's name": (
        {"protocol.gdn_key_multipl": 16},
        "protocol.gdn_key_multipl is not a setting; nearest .*protocol.gdn_key_multiple"),
    "negative window": ({"protocol.windows": [-1]}, r"protocol.windows=\[-1\] must be tokens"),
    "theta": ({"protocol.rope_theta": 0}, "protocol.rope_theta=0 must be above 0"),
    "unknown mixer": (
        {"mix.pattern": ["gdn", "rwkv"]}, "mixer=rwkv is not known; valid: attn, gdn, "),
    "depth": ({"mix.pattern": ["gdn", "gdn", "attn"], "mix.last": None}, "give 3 or 6, or set"),
    "heads": (
        {"size.n_heads": 3},
        "size.n_heads=3 must divide size.d_model=32.*d_model=30, or size.n_heads of 1, 2, 4"),
    "kv heads": ({"size.n_kv_heads": 3}, "size.n_kv_heads=3 is not known; valid: 1, 2"),
    "window": (
        {"protocol.windows": [512, 0]}, "windows=.512, 0. .*context=256 of size=50k.*at most 256"),
    "match": (
        {"protocol.gdn_key_multiple": 128},
        "cannot be matched .*mlp_hidden=1, leaves .*blueprint"),
    "match name": ({"protocol.match": "n"}, "protocol.match=n .*valid: blueprint, flops, params"),
    "knob name": ({"protocol.knob": "depth"}, "protocol.knob=depth .*valid: heads, mlp_hidden"),
    "type": ({"size.n_layers": "four"}, "size.n_layers=.*must be a whole number"),
    "setting": ({"size.depth": 4}, "size.depth is not a setting.*size.d_model"),
}  # fmt: skip


@pytest.mark.parametrize("case", IMPOSSIBLE)
def test_the_impossible_is_refused_in_a_sentence_by_the_table_and_by_a_sweep(capsys, case):
    changes, words = IMPOSSIBLE[case]
    typed = [f"{key}={json.dumps(value)}" for key, value in changes.items()]
    code, out, err = ask(capsys, "mix=gdn3_attn1", "size=50k", *typed)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert re.search(words, err)
    wanted = settings("gdn3_attn1", size__context=256)
    for name, value in changes.items():
        group, key = name.split(".")
        wanted[group][key] = value
    with pytest.raises(SettingError, match=words) as error:
        resolve(wanted)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["mix=rwkv"], "mix=rwkv is not known; valid: gdn, "),
        (["mix=gdn3attn1"], "mix=gdn3attn1 is not known; nearest: gdn3_attn1, "),
        (["size=60m,2b"], "size=2b is not known; valid: 100k, "),
        (["protocol=free"], "protocol=free is not known; valid: controlled, olmo_hybrid"),
        (
            ["protocol=controlled,olmo_hybrid"],
            "protocol=controlled,olmo_hybrid is not known; valid: controlled, olmo_hybrid",
        ),
        (["context=none"], "context=none must be a whole number of at least 1."),
        (["--format", "html"], "format=html is not known; valid: csv, json, markdown, table"),
        (["depth=3"], "depth is not a setting; valid: config_dir, context, format, mix"),
        (["60m"], "60m is not a setting; write key=value"),
        (["mix.pattern=[gdn"], "no value"),
        (["protocol=olmo_hybrid", "context=1024"], "give windows of at most 1024"),
    ],
)
def test_what_is_not_known_is_refused_with_what_is(capsys, arguments, words):
    code, out, err = ask(capsys, *arguments)
    assert (code, out) == (2, "")
    assert words in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    "word",
    ["protocol.max_steps=x", "protocol.schedule=wsds", "size.corpus=mine"],
)
def test_a_setting_that_no_count_depends_on_is_refused(capsys, word):
    code, out, err = ask(capsys, "size=50k", "mix=gdn", word)
    assert (code, out) == (2, "")
    assert err == f"error: {word} decides nothing of what a model is or costs; leave it out.\n"
