"""S6 against its definition and transformers' Mamba, and Samba against an assembly of parts."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from models.config import Blueprint
from models.documents import Documents
from models.language_model import LanguageModel
from models.mix import Geometry, Mix, build_config
from models.mixers.s6 import selective_scan
from models.mixers.s6.operator import inputs

from .test_operators import relative, values_and_gradients

SIZE = Blueprint("x", 64, 4, 4, 96, init="fan_in")
WINDOW = 8
SAMBA = Mix(
    "samba", ("s6", "swa"), norm="inputs", norm_eps=1e-5,
    kinds={"swa": {"mixer": "attn", "window": WINDOW, "qk_norm": "none"}},
)  # fmt: skip


def arguments(T, dtype=torch.float64):
    x, dt, Bs, Cs, A = (y.to(dtype) for y in inputs(torch.device("cpu"), torch.float32))
    state = torch.randn(2, *A.shape, generator=torch.Generator().manual_seed(1), dtype=dtype)
    return [x[:, :T], 20 * dt[:, :T], Bs[:, :T], Cs[:, :T], A], state


@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_chunked_equals_the_definition_in_value_and_gradient(chunk):
    leaves, state = arguments(37)
    expected = values_and_gradients(selective_scan.naive, leaves, state)
    actual = values_and_gradients(selective_scan.chunked, leaves, state, chunk=chunk)
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-9, atol=1e-10)


def test_float32_is_within_1e5_forward_and_1e4_backward():
    single, state = arguments(157, torch.float32)
    exact = [x.double() for x in single]
    expected = values_and_gradients(selective_scan.naive, exact, state.double())
    actual = values_and_gradients(selective_scan.chunked, single, state)
    for i, (a, e) in enumerate(zip(actual, expected, strict=True)):
        assert relative(a, e) <= (1e-5 if i < 2 else 1e-4)


@pytest.mark.parametrize("form", ["naive", "chunked"])
def test_documents_are_as_if_each_were_alone(form):
    (x, dt, Bs, Cs, A), _ = arguments(20)
    borders = torch.tensor([0, 3, 20, 21, 40])

    def alone(x, dt, Bs, Cs, A):
        flat = [y.flatten(0, 1) for y in (x, dt, Bs, Cs)]
        rows = [
            selective_scan.naive(*(y[None, start:end] for y in flat), A)[0][0]
            for start, end in itertools.pairwise(borders.tolist())
        ]
        return torch.cat(rows).view_as(x), None

    expected = values_and_gradients(alone, [x, dt, Bs, Cs, A])
    actual = values_and_gradients(
        getattr(selective_scan, form), [x, dt, Bs, Cs, A], cu_seqlens=borders
    )
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-9, atol=1e-10)


def test_gradcheck_and_no_graph_break():
    leaves, state = arguments(5)
    leaves = [x[..., :3].clone().requires_grad_() for x in leaves[:4]] + [
        leaves[4][:3, :3].clone().requires_grad_()
    ]
    state = state[:, :3, :3].clone().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda *x: selective_scan.chunked(*x[:-1], 2, initial_state=x[-1], output_final_state=True),
        (*leaves, state),
    )
    compiled = torch.compile(
        lambda *x: selective_scan.chunked(*x), fullgraph=True, backend="aot_eager"
    )
    torch.testing.assert_close(compiled(*leaves)[0], selective_scan.naive(*leaves)[0])


class Samba(torch.nn.Module):
    """Of transformers' parts, as no class of its own has them side by side: Mamba's mixer and
    Mistral's attention in turn, Llama's norms and MLPs."""

    def __init__(self, config):
        super().__init__()
        mamba = pytest.importorskip("transformers.models.mamba.modeling_mamba")
        mistral = pytest.importorskip("transformers.models.mistral.modeling_mistral")
        llama = pytest.importorskip("transformers.models.llama.modeling_llama")
        d, H = config.d_model, config.n_heads
        s6 = config.kinds["s6"].settings
        rope = {"rope_type": "default", "rope_theta": config.kinds["swa"].settings.rope_theta}
        of_mamba = mamba.MambaConfig(
            hidden_size=d, state_size=s6.state, expand=2, conv_kernel=s6.conv_kernel,
            time_step_rank=s6.rank, use_bias=False, use_conv_bias=True, use_mambapy=False,
        )  # fmt: skip
        of_mistral = mistral.MistralConfig(
            hidden_size=d, num_attention_heads=H, num_key_value_heads=H, head_dim=d // H,
            sliding_window=WINDOW, rope_parameters=rope, attn_implementation="eager",
        )  # fmt: skip
        of_llama = llama.LlamaConfig(hidden_size=d, intermediate_size=config.mlp_hidden)
        self.embedding = torch.nn.Embedding(config.vocab_size, d)
        self.blocks = torch.nn.ModuleList()
        for i, kind in enumerate(config.layers):
            block = torch.nn.Module()
            block.mixer_norm, block.mlp_norm = (
                llama.LlamaRMSNorm(d, config.norm_eps) for _ in range(2)
            )
            block.mixer = (
                mamba.MambaMixer(of_mamba, i) if kind == "s6"
                else mistral.MistralAttention(of_mistral, i)
            )  # fmt: skip
            block.mlp = llama.LlamaMLP(of_llama)
            self.blocks.append(block)
        self.norm = llama.LlamaRMSNorm(d, config.norm_eps)
        self.head = torch.nn.Linear(d, config.vocab_size, bias=False)
        self.rotary = mistral.MistralRotaryEmbedding(of_mistral)
        self.kinds = config.layers

    def forward(self, ids):
        x = self.embedding(ids)
        T = ids.shape[1]
        tables = self.rotary(x, torch.arange(T)[None])
        back = torch.arange(T)[:, None] - torch.arange(T)
        # Flash attention's (w - 1, 0): a window of w tokens, itself included.
        mask = torch.zeros(T, T).masked_fill((back < 0) | (back > WINDOW - 1), -torch.inf)
        for block, kind in zip(self.blocks, self.kinds, strict=True):
            h = block.mixer_norm(x)
            if kind == "s6":
                x = x + block.mixer(h)
            else:
                x = x + block.mixer(h, tables, mask[None, None])[0]
            x = x + block.mlp(block.mlp_norm(x))
        return self.head(self.norm(x))


NAMES = {"conv": "conv1d.weight", "conv_bias": "conv1d.bias", "dt_bias": "dt_proj.bias"}


def renamed(weights):
    out = {}
    for name, weight in weights.items():
        stem, _, last = name.rpartition(".")
        out[f"{stem}.{NAMES.get(last, last)}"] = weight.unsqueeze(1) if last == "conv" else weight
    return out


def test_samba_equals_transformers_parts_in_logits_and_gradients():
    config = build_config(SAMBA, SIZE, Geometry(rope_theta=10_000.0), 256)
    ours = LanguageModel(config)
    ours.initialize(0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in ours.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
        ours.embedding.weight.mul_(0.05)
    theirs = Samba(config)
    theirs.load_state_dict(renamed(dict(ours.named_parameters())), strict=False)
    assert set(renamed(dict(ours.named_parameters()))) == {
        name for name, _ in theirs.named_parameters()
    }
    ids = torch.randint(0, 256, (2, 50), generator=torch.Generator().manual_seed(2))
    actual, expected = ours(ids), theirs(ids)
    assert actual.std() > 0.3
    assert (actual - expected).abs().max() < 1e-4
    targets = ids[:, 1:].flatten()
    F.cross_entropy(expected[:, :-1].flatten(0, 1), targets).backward()
    ours.losses(ids[:, :-1], ids[:, 1:])[0].mean().backward()
    gradients = renamed({name: p.grad for name, p in ours.named_parameters()})
    for name, parameter in theirs.named_parameters():
        scale = parameter.grad.abs().max()
        assert scale > 0, name
        assert (gradients[name] - parameter.grad).abs().max() / scale < 1e-3, name


def test_initial_values_are_the_published_ones():
    config = build_config(Mix("x", ("s6",)), Blueprint("x", 1024, 1, 4, 96), Geometry(), 256)
    model = LanguageModel(config)
    model.initialize(0)
    mixer = model.blocks[0].mixer
    torch.testing.assert_close(mixer.A_log.exp(), torch.arange(1.0, 17).expand(2048, 16))
    assert (mixer.D == 1).all()
    assert (mixer.conv_bias == 0).all()
    log_dt = F.softplus(mixer.dt_bias).log10()
    assert ((log_dt > -3.01) & (log_dt < -0.99)).all()
    assert log_dt.mean().item() == pytest.approx(-2, abs=3 * 2 / (12 * 2048) ** 0.5)
    weight = mixer.dt_proj.weight
    assert weight.abs().max() <= 64**-0.5
    assert weight.std().item() == pytest.approx((64 * 3) ** -0.5, rel=0.02)


def test_documents_keep_apart_in_the_layer():
    config = build_config(Mix("x", ("s6",)), SIZE, Geometry(), 256)
    model = LanguageModel(config)
    model.initialize(0)
    tokens = torch.randint(1, 256, (1, 30), generator=torch.Generator().manual_seed(0))
    starts = torch.zeros(1, 30, dtype=torch.bool)
    starts[0, [0, 11]] = True
    apart = model(tokens, Documents.from_starts(starts))
    torch.testing.assert_close(apart[:, 11:], model(tokens[:, 11:]), rtol=1e-4, atol=1e-5)
