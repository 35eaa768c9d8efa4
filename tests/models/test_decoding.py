"""Decoding from the cache gives what one teacher-forced pass gives, for every mix."""

import dataclasses
import shutil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.config import Blueprint
from models.cost import decode_bytes
from models.decoding import Cache
from models.generation import decode, generate
from models.mix import Geometry, Mix
from models.mixers.attn.layer import Attention
from models.mixers.gdn.layer import GatedDeltaNet

from .test_language_model import ALL, VARIED, build, spread

GROUPED = Blueprint("grouped", 64, 4, 4, 96, n_kv_heads=2)
WINDOWS = Geometry(windows=(6, 0))
POSITIVE = Mix(
    "positive", ("gdn",), options={"gdn_allow_neg_eigval": False, "gdn_output_gate": False}
)
NO_POSITIONS = Mix("nope", ("gdn", "attn"), last="attn", options={"attn_rotary": 0.0})
CASES = {
    **{mix.name: {"mix": mix} for mix in (*ALL, *VARIED, POSITIVE, NO_POSITIONS)},
    "windows": {"mix": ALL[0], "geometry": WINDOWS},
    "grouped": {"mix": ALL[1], "size": GROUPED},
}


@pytest.fixture(params=CASES.values(), ids=CASES)
def model(request):
    return spread(build(**request.param)).eval()


def tokens(*shape, seed=0):
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def test_steps_equal_the_teacher_forced_pass(model):
    stream = tokens(2, 40)
    expected = model(stream)
    cache = model.new_cache(2, 40)
    for t in range(40):
        logits = model.extend(stream[:, t : t + 1], cache)
        torch.testing.assert_close(logits, expected[:, t], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_unequal_prompts_in_one_pass_then_steps(model):
    lengths, more = [1, 2, 19, 7], 9
    streams = [tokens(n + more, seed=n) for n in lengths]
    padded = torch.full((4, max(lengths)), 3)
    for row, (stream, n) in enumerate(zip(streams, lengths, strict=True)):
        padded[row, :n] = stream[:n]
    cache = model.new_cache(4, max(lengths) + more)
    logits = [model.extend(padded, cache, torch.tensor(lengths))]
    for step in range(more):
        column = torch.stack([s[n + step] for s, n in zip(streams, lengths, strict=True)])
        logits.append(model.extend(column[:, None], cache))
    for row, (stream, n) in enumerate(zip(streams, lengths, strict=True)):
        expected = model(stream[None])[0, n - 1 :]
        actual = torch.stack([step[row] for step in logits])
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(cuts=st.lists(st.integers(1, 12), min_size=1, max_size=6), case=st.sampled_from([*CASES]))
@torch.no_grad()
def test_a_stream_may_be_read_in_any_pieces(cuts, case):
    model = spread(build(**CASES[case])).eval()
    stream = tokens(1, sum(cuts))
    cache = model.new_cache(1, sum(cuts))
    for piece in stream.split(cuts, dim=1):
        logits = model.extend(piece, cache)
    torch.testing.assert_close(logits, model(stream)[:, -1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["attn", "mla"])
@pytest.mark.parametrize("window", [0, 6, 30])
@torch.no_grad()
def test_a_last_layer_may_leave_out_all_but_the_last_tokens(kind, window):
    kinds = {"layer": {"mixer": kind, "window": window}}
    model = spread(build(Mix("last", ("layer",), kinds=kinds))).eval()
    layer, T = model.blocks[0].mixer, 21
    x = torch.randn(2, 2 * T, model.config.d_model, generator=torch.Generator().manual_seed(0))
    expected = layer(x)
    cache = Cache([layer.new_state(2, 2 * T, torch.float32)], torch.zeros(2).long(), 2 * T)
    for i, tokens in enumerate(x.split(T, 1), 1):  # into an empty cache, then after what it holds
        new = dataclasses.replace(cache.take(2, T, None), last_only=True)
        out = layer.extend(tokens, cache.layers[0], new)
        cache.took(new, T)
        torch.testing.assert_close(out, expected[:, i * T - 1 : i * T], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_mixer_without_a_step_function_takes_steps_by_extend(monkeypatch):
    model = spread(build(ALL[1])).eval()
    prompts = tokens(2, 9)
    expected = torch.stack(list(decode(model, prompts, 5)), 1)
    for mixer in (GatedDeltaNet, Attention):
        monkeypatch.delattr(mixer, "step_function")
    assert torch.stack(list(decode(model, prompts, 5)), 1).tolist() == expected.tolist()


@torch.no_grad()
def test_blocks_take_steps_alone_where_weights_are_sharded():
    model = spread(build(ALL[1])).eval()
    prompts = tokens(2, 9)
    expected = torch.stack(list(decode(model, prompts, 5)), 1)
    model.sharded = True
    cache = model.new_cache(2, 14)
    actual = torch.stack(list(decode(model, prompts, 5, cache=cache)), 1)
    assert cache.step is None, "it would keep weights that are gathered for one call"
    assert actual.tolist() == expected.tolist()


def test_the_cache_takes_the_bytes_that_are_counted(model):
    for element, dtype in ((4, torch.float32), (2, torch.bfloat16)):
        for capacity in (4, 64):
            cache = model.new_cache(3, capacity, dtype)
            kv = sum(
                t.nbytes for s in cache.layers for n, t in s.items() if n in ("k", "v", "latent")
            )
            state, counted = decode_bytes(model.config, capacity, element)
            assert (3 * state, 3 * counted) == (cache.nbytes - kv, kv)


def test_generation_continues_each_prompt_alone_as_in_a_batch(model):
    prompts = [[5], [1, 2, 3, 4, 5, 6, 7, 8, 9], [9, 8]]
    together = generate(model, prompts, 6)
    for prompt, new in zip(prompts, together, strict=True):
        stream = list(prompt)
        for _ in range(6):
            with torch.no_grad():
                stream.append(model(torch.tensor([stream]))[0, -1].argmax().item())
        assert new == stream[len(prompt) :]


def test_drawn_tokens_follow_the_seed():
    model = spread(build(ALL[1])).eval()
    one, same, other = (
        generate(model, [[1, 2]], 20, temperature=1.0, seed=seed) for seed in (0, 0, 1)
    )
    assert one == same != other


def test_a_cache_refuses_what_does_not_fit():
    model = build(ALL[0])
    with pytest.raises(ValueError, match="5 tokens after 0 do not fit a cache of 4"):
        model.extend(tokens(1, 5), model.new_cache(1, 4))
    with pytest.raises(ValueError, match="2 rows for a cache of 1"):
        model.extend(tokens(2, 1), model.new_cache(1, 4))
    with pytest.raises(ValueError, match="at least one token"):
        generate(model, [[1], []], 3)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler")
def test_compiled_steps_give_the_tokens_of_eager_ones():
    model = spread(build(ALL[1])).eval()
    prompts = tokens(2, 9)
    eager = torch.stack(list(decode(model, prompts, 5)), 1)
    with torch._dynamo.config.patch(error_on_recompile=True):  # one graph serves every step
        compiled = torch.stack(list(decode(model, prompts, 5, compiled=True)), 1)
    assert compiled.tolist() == eager.tolist()
