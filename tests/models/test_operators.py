"""The chunked operators against their definitions, against transformers, and at the edges."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from models.convolution import short_convolution
from models.ops import gated_delta_rule, ssd


def relative(actual, expected):
    return ((actual - expected).abs().max() / expected.abs().max().clamp_min(1e-12)).item()


def delta_inputs(B, T, H, K, V, dtype=torch.float64, seed=0, beta_max=2.0, strongest=2.0):
    generator = torch.Generator().manual_seed(seed)

    def rand(*shape):
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    def randn(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    q, k = (F.normalize(randn(B, T, H, K), dim=-1) for _ in range(2))
    arguments = [q, k, randn(B, T, H, V), -strongest * rand(B, T, H), beta_max * rand(B, T, H)]
    return [x.to(dtype) for x in arguments], randn(B, H, K, V).to(dtype)


def ssd_inputs(B, T, H, K, V, dtype=torch.float64, seed=0, strongest=2.0):
    (q, k, v, g, _), state = delta_inputs(B, T, H, K, V, dtype, seed, strongest=strongest)
    return [q[:, :, :1], k[:, :, :1], v, g], state


def values_and_gradients(function, arguments, state, **options):
    """Outputs, final state, and gradients of a fixed functional of both."""
    leaves = [x.clone().requires_grad_() for x in (*arguments, state)]
    o, S = function(*leaves[:-1], initial_state=leaves[-1], output_final_state=True, **options)
    weight_o = torch.arange(o.numel(), dtype=o.dtype).view_as(o).sin()
    weight_S = torch.arange(S.numel(), dtype=S.dtype).view_as(S).cos()
    ((o * weight_o).sum() + (S * weight_S).sum()).backward()
    return [o.detach(), S.detach(), *(x.grad for x in leaves)]


OPERATORS = {"gated_delta_rule": (gated_delta_rule, delta_inputs), "ssd": (ssd, ssd_inputs)}


@pytest.mark.parametrize("name", OPERATORS)
@settings(max_examples=25, deadline=None)
@given(
    B=st.integers(1, 2), T=st.integers(1, 40), H=st.integers(1, 3), K=st.integers(1, 6),
    V=st.integers(1, 7), chunk=st.sampled_from([1, 4, 8, 16, 64]), seed=st.integers(0, 99),
)  # fmt: skip
def test_chunked_equals_the_definition_in_value_and_gradient(name, B, T, H, K, V, chunk, seed):
    operator, inputs = OPERATORS[name]
    arguments, state = inputs(B, T, H, K, V, seed=seed)
    expected = values_and_gradients(operator.naive, arguments, state)
    actual = values_and_gradients(operator.chunked, arguments, state, chunk=chunk)
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", OPERATORS)
def test_float32_is_within_1e5_forward_and_1e4_backward(name):
    operator, inputs = OPERATORS[name]
    exact, state = inputs(2, 200, 3, 16, 32)
    expected = values_and_gradients(operator.naive, exact, state)
    single = [x.float() for x in exact]
    actual = values_and_gradients(operator.chunked, single, state.float())
    for i, (a, e) in enumerate(zip(actual, expected, strict=True)):
        assert relative(a.double(), e) < (1e-5 if i < 2 else 1e-4)


@pytest.mark.parametrize("name", OPERATORS)
def test_bfloat16_inputs_keep_float32_states(name):
    operator, inputs = OPERATORS[name]
    arguments, _ = inputs(2, 96, 2, 16, 32)
    half = [x.bfloat16() for x in arguments[:3]] + [x.float() for x in arguments[3:]]
    o, S = operator.chunked(*half, output_final_state=True)
    expected, _ = operator.naive(*[x.double() for x in half])
    assert o.dtype == torch.bfloat16
    assert S.dtype == torch.float32
    assert relative(o.double(), expected) < 2e-2


@pytest.mark.parametrize("name", OPERATORS)
def test_gradcheck(name):
    operator, inputs = OPERATORS[name]
    arguments, state = inputs(1, 7, 2, 3, 2)
    leaves = [x.requires_grad_() for x in (*arguments, state)]

    def function(*x):
        return operator.chunked(*x[:-1], initial_state=x[-1], output_final_state=True, chunk=4)

    assert torch.autograd.gradcheck(function, leaves)


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("strongest", [0.0, 1e-6, 50.0, 1e4])
def test_gates_at_the_edges_give_finite_values_and_gradients(name, strongest):
    operator, inputs = OPERATORS[name]
    arguments, state = inputs(1, 70, 2, 8, 8, torch.float32, strongest=strongest)
    if name == "gated_delta_rule":
        arguments[-1] = torch.full_like(arguments[-1], 1.999)
    for x in values_and_gradients(operator.chunked, arguments, state, chunk=32):
        assert x.isfinite().all()
    expected = values_and_gradients(operator.naive, arguments, state)[0]
    assert relative(operator.chunked(*arguments, initial_state=state)[0], expected) < 1e-4


def test_gated_delta_rule_equals_transformers():
    modeling = pytest.importorskip("transformers.models.olmo_hybrid.modeling_olmo_hybrid")
    published = modeling.torch_chunk_gated_delta_rule
    published = getattr(published, "__wrapped__", published)
    (q, k, v, g, beta), _ = delta_inputs(2, 130, 3, 16, 32, torch.float32)
    for x in (q, k, v, g, beta):
        x.requires_grad_()
    theirs, _ = published(q, k, v, g=g, beta=beta, use_qk_l2norm_in_kernel=False)
    weight = torch.randn(theirs.shape, generator=torch.Generator().manual_seed(1))
    expected = torch.autograd.grad((theirs * weight).sum(), (q, k, v, g, beta))
    ours, _ = gated_delta_rule.chunked(q, k, v, g, beta)
    actual = torch.autograd.grad((ours * weight).sum(), (q, k, v, g, beta))
    assert relative(ours, theirs) < 1e-5
    for a, e in zip(actual, expected, strict=True):
        assert relative(a, e) < 1e-4


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
