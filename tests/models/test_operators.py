"""The chunked operators against their definitions, against transformers, and at the edges."""

import importlib.util
import itertools
import sys
from pathlib import Path
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from models.convolution import short_convolution
from models.mixers.gdn import gated_delta_rule
from models.mixers.kda import kimi_delta_attention
from models.mixers.mamba2 import ssd
from models.ops import chunks

KERNELS = Path(sys.prefix) / "fla"


def relative(actual, expected):
    """Norm of the error over norm of what is expected, in float64."""
    expected = expected.double()
    return ((actual.double() - expected).norm() / expected.norm().clamp_min(1e-30)).item()


def delta_inputs(B, T, H, K, V, dtype=torch.float64, seed=0, beta_max=2.0, strongest=2.0):
    generator = torch.Generator().manual_seed(seed)

    def rand(*shape):
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    def randn(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    q, k = (F.normalize(randn(B, T, H, K), dim=-1) for _ in range(2))
    arguments = [q, k, randn(B, T, H, V), -strongest * rand(B, T, H), beta_max * rand(B, T, H)]
    return [x.to(dtype) for x in arguments], randn(B, H, K, V).to(dtype)


def ssd_inputs(B, T, H, K, V, dtype=torch.float64, seed=0, strongest=2.0, groups=1):
    (q, k, v, g, _), state = delta_inputs(B, T, H, K, V, dtype, seed, strongest=strongest)
    return [q[:, :, :groups], k[:, :, :groups], v, g], state


def values_and_gradients(function, arguments, state=None, **options):
    """Outputs, final state, and gradients of a fixed functional of both; no state where None."""
    leaves = [x.clone().requires_grad_() for x in arguments]
    if state is None:
        o, none = function(*leaves, **options)
        assert none is None
        weight = torch.arange(o.numel(), dtype=o.dtype).view_as(o).sin()
        return [o.detach(), *torch.autograd.grad((o * weight).sum(), leaves)]
    leaves.append(state.clone().requires_grad_())
    o, S = function(*leaves[:-1], initial_state=leaves[-1], output_final_state=True, **options)
    weight_o = torch.arange(o.numel(), dtype=o.dtype).view_as(o).sin()
    weight_S = torch.arange(S.numel(), dtype=S.dtype).view_as(S).cos()
    ((o * weight_o).sum() + (S * weight_S).sum()).backward()
    return [o.detach(), S.detach(), *(x.grad for x in leaves)]


def kimi_inputs(B, T, H, K, V, dtype=torch.float64, seed=0, strongest=2.0):
    (q, k, v, g, beta), state = delta_inputs(B, T, H, K, V, dtype, seed, strongest=strongest)
    generator = torch.Generator().manual_seed(seed)
    channels = torch.rand(B, T, H, K, generator=generator, dtype=torch.float64)
    return [q, k, v, g.unsqueeze(-1) * channels.to(dtype), beta], state


OPERATORS = {
    "gated_delta_rule": (gated_delta_rule, delta_inputs),
    "kimi_delta_attention": (kimi_delta_attention, kimi_inputs),
    "ssd": (ssd, ssd_inputs),
}


@pytest.mark.parametrize("name", OPERATORS)
@settings(max_examples=25, deadline=None)
@given(
    B=st.integers(1, 2), T=st.integers(1, 40), H=st.integers(1, 3), K=st.integers(1, 6),
    V=st.integers(1, 7), chunk=st.sampled_from([1, 4, 8, 16, 64]), seed=st.integers(0, 99),
    in_cache=st.sampled_from([1, 200, 400_000]),
)  # fmt: skip
def test_chunked_equals_the_definition_in_value_and_gradient(
    name, B, T, H, K, V, chunk, seed, in_cache
):
    operator, inputs = OPERATORS[name]
    arguments, state = inputs(B, T, H, K, V, seed=seed)
    expected = values_and_gradients(operator.naive, arguments, state)
    with mock.patch.object(chunks, "VALUES_IN_CACHE", in_cache):
        actual = values_and_gradients(operator.chunked, arguments, state, chunk=chunk)
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-9, atol=1e-10)


def documents_of(B, T, generator):
    """cu_seqlens with every row's border in it, and up to three more."""
    inner = torch.randint(0, B * T + 1, (3,), generator=generator)
    return torch.cat([torch.arange(B + 1) * T, inner]).unique()


@pytest.mark.parametrize("name", OPERATORS)
@settings(max_examples=25, deadline=None)
@given(
    B=st.integers(1, 2), T=st.integers(1, 40), H=st.integers(1, 3), chunk=st.sampled_from([4, 16]),
    seed=st.integers(0, 99), implementation=st.sampled_from(["naive", "chunked"]),
)  # fmt: skip
def test_documents_are_as_if_each_were_alone(name, B, T, H, chunk, seed, implementation):
    operator, inputs = OPERATORS[name]
    arguments, _ = inputs(B, T, H, 3, 4, seed=seed)
    borders = documents_of(B, T, torch.Generator().manual_seed(seed))
    options = {"chunk": chunk} if implementation == "chunked" else {}
    function = getattr(operator, implementation)
    states = torch.randn(len(borders) - 1, H, 3, 4, dtype=torch.float64)

    def alone(*x, initial_state=None, output_final_state=False):
        flat = [y.flatten(0, 1) for y in x]
        runs = [
            operator.naive(
                *(y[None, start:end] for y in flat), output_final_state=output_final_state,
                initial_state=None if initial_state is None else initial_state[i : i + 1],
            )
            for i, (start, end) in enumerate(itertools.pairwise(borders.tolist()))
        ]  # fmt: skip
        o = torch.cat([o[0] for o, _ in runs]).view_as(x[2])
        return o, torch.cat([S for _, S in runs]) if output_final_state else None

    for state in (None, states):
        expected = values_and_gradients(alone, arguments, state)
        with mock.patch.object(chunks, "VALUES_IN_CACHE", 200):  # several stretches
            actual = values_and_gradients(function, arguments, state, cu_seqlens=borders, **options)
        for a, e in zip(actual, expected, strict=True):
            torch.testing.assert_close(a, e, rtol=1e-9, atol=1e-10)


def test_documents_may_be_padded_with_empty_ones():
    arguments, _ = delta_inputs(2, 20, 2, 3, 4)
    borders = torch.tensor([0, 7, 20, 40])
    padded = torch.cat([borders, borders[-1:].expand(3)])
    expected = values_and_gradients(gated_delta_rule.naive, arguments, cu_seqlens=borders)
    actual = values_and_gradients(gated_delta_rule.chunked, arguments, cu_seqlens=padded, chunk=8)
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_ssd_groups_share_q_and_k_among_their_heads(groups):
    arguments, state = ssd_inputs(2, 37, 4, 5, 6, groups=groups)
    expected = values_and_gradients(ssd.naive, arguments, state)
    actual = values_and_gradients(ssd.chunked, arguments, state, chunk=8)
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-9, atol=1e-10)
    heads = [x.repeat_interleave(4 // groups, dim=2) for x in arguments[:2]]
    torch.testing.assert_close(ssd.naive(*heads, *arguments[2:], initial_state=state)[0], actual[0])


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("T", [1, 31, 200, 600])
def test_float32_is_within_1e5_forward_and_1e4_backward(name, T):
    operator, inputs = OPERATORS[name]
    single, state = inputs(2, T, 2, 16, 32, torch.float32)
    expected = values_and_gradients(operator.naive, [x.double() for x in single], state.double())
    actual = values_and_gradients(operator.chunked, single, state)
    for i, (a, e) in enumerate(zip(actual, expected, strict=True)):
        assert relative(a, e) <= (1e-5 if i < 2 else 1e-4)


@pytest.mark.parametrize("name", OPERATORS)
def test_bfloat16_inputs_are_within_2e2_and_keep_float32_states(name):
    operator, inputs = OPERATORS[name]
    arguments, _ = inputs(2, 96, 2, 16, 32)
    half = [x.bfloat16() for x in arguments[:3]] + [x.float() for x in arguments[3:]]
    o, S = operator.chunked(*half, output_final_state=True)
    assert o.dtype == torch.bfloat16
    assert S.dtype == torch.float32
    leaves = [x.requires_grad_() for x in half]
    exact = [x.detach().double().requires_grad_() for x in half]
    weight = torch.randn(o.shape, generator=torch.Generator().manual_seed(1)).bfloat16()
    expected_o = operator.naive(*exact)[0]
    expected = torch.autograd.grad(expected_o, exact, weight.double())
    actual_o = operator.chunked(*leaves)[0]
    actual = torch.autograd.grad(actual_o, leaves, weight)
    for a, e in zip((actual_o, *actual), (expected_o, *expected), strict=True):
        assert relative(a, e) <= 2e-2


@pytest.mark.parametrize("form", ["naive", "chunked"])
@pytest.mark.parametrize("name", OPERATORS)
def test_autocast_around_an_operator_changes_no_bit(name, form):
    """A run computes in bfloat16 by autocast, which would round float32 states and solves."""
    operator, inputs = OPERATORS[name]
    arguments, state = inputs(2, 70, 2, 16, 32, torch.float32)
    half = [x.bfloat16() for x in arguments[:3]] + arguments[3:]
    function = getattr(operator, form)
    expected = values_and_gradients(function, half, state)
    within = torch.autocast("cpu", torch.bfloat16)(function)
    actual = values_and_gradients(within, half, state)
    for a, e in zip(actual, expected, strict=True):
        assert a.dtype == e.dtype
        assert torch.equal(a, e)


@pytest.mark.parametrize("name", OPERATORS)
def test_gradcheck(name):
    operator, inputs = OPERATORS[name]
    arguments, state = inputs(1, 7, 2, 3, 2)
    leaves = [x.requires_grad_() for x in (*arguments, state)]

    def function(*x):
        return operator.chunked(*x[:-1], initial_state=x[-1], output_final_state=True, chunk=4)

    assert torch.autograd.gradcheck(function, leaves)
    borders = torch.tensor([0, 2, 3, 7])
    assert torch.autograd.gradcheck(
        lambda *x: operator.chunked(*x, cu_seqlens=borders, chunk=4)[0], leaves[:-1]
    )


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("strongest", [0.0, 1e-6, 50.0, 1e4, "mixed"])
def test_gates_and_write_strengths_at_the_edges(name, strongest):
    """Gates near 0, very negative, and both in one chunk; write strengths near 2."""
    operator, inputs = OPERATORS[name]
    mixed = strongest == "mixed"
    arguments, state = inputs(1, 70, 2, 8, 8, torch.float32, strongest=0.1 if mixed else strongest)
    if mixed:
        arguments[3][:, ::9] = -1e4
    if name != "ssd":
        arguments[-1] = torch.full_like(arguments[-1], 1.999)
    exact = [x.double() for x in arguments]
    expected = values_and_gradients(operator.naive, exact, state.double())
    actual = values_and_gradients(operator.chunked, arguments, state, chunk=32)
    for i, (a, e) in enumerate(zip(actual, expected, strict=True)):
        assert a.isfinite().all()
        assert relative(a, e) <= (1e-5 if i < 2 else 1e-4) or e.norm() < 1e-6


@pytest.mark.parametrize("name", OPERATORS)
def test_the_same_bits_twice_and_in_the_layout_of_a_layer(name):
    """q and k of a layer are views of one tensor."""
    operator, inputs = OPERATORS[name]
    arguments, state = inputs(2, 75, 4, 16, 32, torch.float32)
    views = [torch.stack([x, x], dim=2)[:, :, 0] for x in arguments]
    first = values_and_gradients(operator.chunked, arguments, state)
    for other in (arguments, views):
        again = values_and_gradients(operator.chunked, other, state)
        for a, b in zip(first, again, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("name", OPERATORS)
def test_compiles_without_a_graph_break(name):
    operator, inputs = OPERATORS[name]
    arguments, _ = inputs(2, 12, 2, 4, 8)
    borders = torch.tensor([0, 9, 12, 24])

    def function(*x):
        return operator.chunked(*x, chunk=8, cu_seqlens=borders)

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    expected = values_and_gradients(function, arguments)
    for a, e in zip(values_and_gradients(compiled, arguments), expected, strict=True):
        torch.testing.assert_close(a, e)


@pytest.fixture(scope="module")
def olmo_hybrid():
    return pytest.importorskip("transformers.models.olmo_hybrid.modeling_olmo_hybrid")


@pytest.mark.parametrize("form", ["torch_chunk", "torch_recurrent"])
def test_gated_delta_rule_equals_transformers(olmo_hybrid, form):
    published = getattr(olmo_hybrid, f"{form}_gated_delta_rule")
    published = getattr(published, "__wrapped__", published)
    (q, k, v, g, beta), state = delta_inputs(2, 130, 3, 16, 32, torch.float32)

    def theirs(q, k, v, g, beta, initial_state, output_final_state):
        return published(q, k, v, g=g, beta=beta, initial_state=initial_state,
                         output_final_state=output_final_state)  # fmt: skip

    expected = values_and_gradients(theirs, [q, k, v, g, beta], state)
    actual = values_and_gradients(gated_delta_rule.chunked, [q, k, v, g, beta], state)
    for i, (a, e) in enumerate(zip(actual, expected, strict=True)):
        assert relative(a, e) <= (1e-5 if i < 2 else 1e-4)


@pytest.mark.parametrize("decay", [28, 200, 840])
def test_a_decay_for_each_channel_of_any_strength_loses_no_digit(decay):
    """Log decays of -decay in a chunk of 64, where dividing by decays overflows from 88 on."""
    single, state = kimi_inputs(1, 140, 2, 16, 24, torch.float32, strongest=4 * decay / 64)
    assert single[3][:, :64].sum(1).mean().item() == pytest.approx(-decay, rel=0.2)
    exact = [x.double() for x in single]
    expected = values_and_gradients(kimi_delta_attention.naive, exact, state.double())
    for chunk in (16, 64):
        actual = values_and_gradients(kimi_delta_attention.chunked, single, state, chunk=chunk)
        for i, (a, e) in enumerate(zip(actual, expected, strict=True)):
            assert relative(a, e) <= (1e-6 if i < 2 else 1e-4)


def test_a_decay_alike_in_all_channels_is_that_of_the_gated_delta_rule():
    (q, k, v, g, beta), state = delta_inputs(2, 45, 2, 5, 6)
    expected = values_and_gradients(gated_delta_rule.naive, [q, k, v, g, beta], state)

    def of_heads(q, k, v, g, beta, **options):
        channels = g.unsqueeze(-1).expand_as(k)
        return kimi_delta_attention.chunked(q, k, v, channels, beta, chunk=16, **options)

    actual = values_and_gradients(of_heads, [q, k, v, g, beta], state)
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("form", ["chunk", "recurrent"])
def test_kimi_delta_attention_equals_transformers(form):
    modeling = pytest.importorskip("transformers.models.kimi_linear.modeling_kimi_linear")
    published = getattr(modeling, f"{form}_kimi_delta_attention")
    published = getattr(published, "__wrapped__", published)
    (q, k, v, g, beta), state = kimi_inputs(2, 130, 3, 16, 32, torch.float32)

    def theirs(q, k, v, g, beta, initial_state, output_final_state):
        return published(q, k, v, g=g, beta=beta, initial_state=initial_state,
                         output_final_state=output_final_state)  # fmt: skip

    expected = values_and_gradients(theirs, [q, k, v, g, beta], state)
    actual = values_and_gradients(kimi_delta_attention.chunked, [q, k, v, g, beta], state)
    for i, (a, e) in enumerate(zip(actual, expected, strict=True)):
        assert relative(a, e) <= (1e-5 if i < 2 else 1e-4)


@pytest.mark.parametrize("form", ["recurrent", "chunk"])
def test_kimi_delta_attention_equals_flas_naive_functions(form, monkeypatch):
    """By path, as fla itself cannot be imported without a Triton driver."""
    naive = KERNELS / "fla" / "ops" / "kda" / "naive.py"
    if not naive.exists():
        pytest.skip(f"fla is not in {KERNELS}: make .venv/dev puts it there")
    monkeypatch.syspath_prepend(str(KERNELS))
    pytest.importorskip("einops")
    module = importlib.util.module_from_spec(
        importlib.util.spec_from_file_location("naive_kda", naive)
    )
    module.__spec__.loader.exec_module(module)
    (q, k, v, g, beta), state = kimi_inputs(2, 128, 3, 16, 32, torch.float32)
    published = getattr(module, f"naive_{form}_kda")
    expected, final = published(q, k, v, g, beta, initial_state=state, output_final_state=True)
    actual, S = kimi_delta_attention.chunked(
        q, k, v, g, beta, initial_state=state, output_final_state=True
    )
    assert relative(actual, expected) <= 1e-5
    assert relative(S, final) <= 1e-5


@pytest.mark.parametrize("groups", [1, 2])
def test_ssd_equals_transformers_mamba2(groups):
    modeling = pytest.importorskip("transformers.models.mamba2.modeling_mamba2")
    published = modeling.mamba2_chunk_scan
    published = getattr(published, "__wrapped__", published)
    arguments, state = ssd_inputs(2, 130, 4, 16, 32, torch.float32, groups=groups)

    def theirs(q, k, v, g, initial_state, output_final_state):
        one = torch.ones_like(g)  # dt, which multiplies v and A there
        o, S = published(v, one, g, k, q, chunk_size=32, initial_states=initial_state.mT,
                         return_final_states=output_final_state)  # fmt: skip
        return o, S.mT

    expected = values_and_gradients(theirs, arguments, state)
    actual = values_and_gradients(ssd.chunked, arguments, state)
    for i, (a, e) in enumerate(zip(actual, expected, strict=True)):
        assert relative(a, e) <= (1e-5 if i < 2 else 1e-4)


def test_short_convolution_equals_torchs_depthwise_convolution():
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (
        torch.randn(*shape, generator=generator, dtype=torch.float64, requires_grad=True)
        for shape in ((2, 9, 6), (6, 4), (6,))
    )
    expected = F.conv1d(F.pad(x.mT, (3, 0)), weight.unsqueeze(1), bias, groups=6).mT
    torch.testing.assert_close(short_convolution(x, weight, bias), F.silu(expected))
    assert torch.autograd.gradcheck(short_convolution, (x, weight, bias))
    assert torch.autograd.gradcheck(short_convolution, (x[:, :2].detach().requires_grad_(), weight))
