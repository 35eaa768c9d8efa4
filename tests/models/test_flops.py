"""Training FLOPs per token against torch's own counter, on a path where it counts every product.

torch's FlopCounterMode counts matrix products, forward and backward. It sees no triangular solve
and no tap of the short convolution, and takes attention for a full square. So the operators are
replaced by plain ones, under autograd, in which every product that the convention counts is a
matrix product of just that size: the convolution as windows times taps; the solve as forward
substitution, row by row; attention as one product a query with the keys it sees; the recurrences
in chunks. Left out, as in the convention, is what is no product: norms, softmax, SiLU, rotations,
decays. The replaced model must give the same logits as the model itself.
"""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from models.config import Blueprint
from models.cost import flops_per_token
from models.language_model import LanguageModel
from models.mix import Geometry, Mix, build_config
from models.mixer import chunk_tokens
from models.mixers import MIXERS

from .test_counts import PUBLISHED, PUBLISHED_NAMES, load_mix, load_size, rows
from .test_language_model import VARIED

TINY = Blueprint("tiny", 48, 4, 4, 80)
LADDER = Blueprint("ladder", 128, 4, 2, 256)  # heads as wide as the published ones
MIXES = [
    Mix("transformer", ("attn",)),
    Mix("gdn", ("gdn",)),
    Mix("mamba2", ("mamba2",)),
    Mix("gdn1_attn1", ("gdn", "attn"), last="attn"),
    Mix("gdn3_attn1", ("gdn", "gdn", "gdn", "attn"), last="attn"),
    Mix("mamba2x3_attn1", ("mamba2", "mamba2", "mamba2", "attn"), last="attn"),
    Mix("no_gate", ("gdn",), options={"gdn_output_gate": False}),
    Mix("kda3_mla1", ("kda", "kda", "kda", "mla")),
    Mix("no_positions", ("gdn", "attn"), options={"attn_rotary": 0.0}),
]


def convolution(x, weight, bias=None, offset=None):
    """x: [B, T, channels]; weight: [channels, J]. A product of [BT, J] and [J] a channel."""
    B, T, channels = x.shape
    J = weight.shape[1]
    windows = F.pad(x, (0, 0, J - 1, 0)).unfold(1, J, 1)  # [B, T, channels, J]
    y = windows.permute(2, 0, 1, 3).reshape(channels, B * T, J) @ weight.unsqueeze(-1)
    y = y.view(channels, B, T).permute(1, 2, 0)
    return F.silu(y if bias is None else y + bias)


def chunks(x, C):
    """[B, T, H, D] -> [B, H, N, C, D]; T a multiple of C."""
    return x.unflatten(1, (-1, C)).permute(0, 3, 1, 2, 4)


def decays(g, C):
    """Log decay from the chunk's start, and exp of that between i and j <= i."""
    log_decay = chunks(g.unsqueeze(-1), C).cumsum(-2)
    difference = log_decay - log_decay.mT
    above = torch.ones(C, C, dtype=torch.bool).triu(1)
    return log_decay, difference.masked_fill(above, -torch.inf).exp()


def walk(B, H, K, V, step, n):
    """States at the start of n chunks, [B, H, n, K, V], and the last. The first state has a
    gradient and the last is read, so that the first and the last chunk cost what any other does."""
    S = torch.zeros(B, H, K, V, requires_grad=True)
    starts = []
    for i in range(n):
        starts.append(S)
        S = step(i, S)
    return torch.stack(starts, 2), S


def gated_delta_rule(q, k, v, g, beta, **_):
    B, T, H, K = q.shape
    V = v.shape[-1]
    C = chunk_tokens(V, T)
    log_decay, decay = decays(g, C)
    q, k, v = chunks(q, C) * K**-0.5, chunks(k, C), chunks(v, C)
    beta = chunks(beta.unsqueeze(-1), C)
    k_beta = k * beta
    system = (k_beta @ k.mT) * decay
    rhs = torch.cat([v * beta, k_beta * log_decay.exp()], dim=-1)
    solved = rhs[..., :1, :]
    for i in range(1, C):
        row = rhs[..., i : i + 1, :] - system[..., i : i + 1, :i] @ solved
        solved = torch.cat([solved, row], dim=-2)
    writes, erases = solved.split([V, K], dim=-1)
    last = log_decay[..., -1:, :]
    k_end = k * (last - log_decay).exp()
    written = []

    def step(i, S):
        written.append(writes[:, :, i] - erases[:, :, i] @ S)
        return S * last[:, :, i].exp() + k_end[:, :, i].mT @ written[-1]

    starts, S = walk(B, H, K, V, step, T // C)
    o = (q * log_decay.exp()) @ starts + ((q @ k.mT) * decay) @ torch.stack(written, 2)
    return o.permute(0, 2, 3, 1, 4).reshape(B, T, H, V) + 0 * S.sum(), S


def kimi_delta_attention(q, k, v, g, beta, **_):
    """Products of the same sizes as with one decay a head, which is how it is written here."""
    B, T, H, K = q.shape
    C = chunk_tokens(v.shape[-1], T)
    G = chunks(g, C).cumsum(-2)
    q_, k_, v_ = chunks(q, C) * K**-0.5, chunks(k, C), chunks(v, C)
    beta = chunks(beta.unsqueeze(-1), C)
    # Decays of these weights are mild: dividing by them is exact enough, and one product.
    q_in, k_in, k_out = q_ * G.exp(), k_ * G.exp(), k_ * (-G).exp()
    strict = torch.ones(C, C, dtype=torch.bool).tril(-1)
    system = ((k_in * beta) @ k_out.mT) * strict
    rhs = torch.cat([v_ * beta, k_in * beta], dim=-1)
    solved = rhs[..., :1, :]
    for i in range(1, C):
        row = rhs[..., i : i + 1, :] - system[..., i : i + 1, :i] @ solved
        solved = torch.cat([solved, row], dim=-2)
    writes, erases = solved.split([v.shape[-1], K], dim=-1)
    k_end = k_ * (G[..., -1:, :] - G).exp()
    written = []

    def step(i, S):
        written.append(writes[:, :, i] - erases[:, :, i] @ S)
        return S * G[:, :, i, -1, :, None].exp() + k_end[:, :, i].mT @ written[-1]

    starts, S = walk(B, H, K, v.shape[-1], step, T // C)
    causal = torch.ones(C, C, dtype=torch.bool).tril()
    o = q_in @ starts + ((q_in @ k_out.mT) * causal) @ torch.stack(written, 2)
    return o.permute(0, 2, 3, 1, 4).reshape(B, T, H, -1) + 0 * S.sum(), S


def ssd(q, k, v, g, **_):
    B, T, H, V = v.shape
    K = q.shape[-1]
    C = chunk_tokens(V, T)
    log_decay, decay = decays(g, C)
    heads = H // q.shape[2]
    scores = (chunks(q, C) @ chunks(k, C).mT).repeat_interleave(heads, 1)  # once for each group
    q, k = (chunks(x, C).repeat_interleave(heads, 1) for x in (q, k))
    v = chunks(v, C)
    last = log_decay[..., -1:, :]
    written = k.mT @ (v * (last - log_decay).exp())

    def step(i, S):
        return S * last[:, :, i].exp() + written[:, :, i]

    starts, S = walk(B, H, K, V, step, T // C)
    o = (q @ starts) * log_decay.exp() + (scores * decay) @ v
    return o.permute(0, 2, 3, 1, 4).reshape(B, T, H, V) + 0 * S.sum(), S


def selective_scan(x, dt, Bs, Cs, A, **_):
    """Write and read of the state as products, a token at a time."""
    h = torch.zeros(len(x), *A.shape, requires_grad=True)
    out = []
    for t in range(x.shape[1]):
        write = (dt[:, t] * x[:, t]).unsqueeze(-1) @ Bs[:, t].unsqueeze(1)
        h = (dt[:, t].unsqueeze(-1) * A).exp() * h + write
        out.append((h @ Cs[:, t].unsqueeze(-1)).squeeze(-1))
    return torch.stack(out, 1), h


def attention(q, k, v, attn_mask=None, dropout_p=0.0, is_causal=False, **_):
    """A query at a time, with the keys it sees and no others."""
    T, group = q.shape[2], q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(group, 1) for x in (k, v))
    out = []
    for i in range(T):
        seen = torch.arange(T) <= i if attn_mask is None else attn_mask.view(T, T)[i]
        first = int(seen.nonzero()[0])
        keys, values = k[:, :, first : i + 1], v[:, :, first : i + 1]
        scores = q[:, :, i : i + 1] @ keys.mT * q.shape[-1] ** -0.5
        out.append(scores.softmax(-1) @ values)
    return torch.cat(out, 2)


@pytest.fixture
def plain(monkeypatch):
    for mixer in ("gdn", "kda", "mamba2", "s6"):
        monkeypatch.setattr(f"models.mixers.{mixer}.layer.short_convolution", convolution)
    monkeypatch.setattr("models.mixers.gdn.layer.gated_delta_rule", gated_delta_rule)
    monkeypatch.setattr("models.mixers.kda.layer.kimi_delta_attention", kimi_delta_attention)
    monkeypatch.setattr("models.mixers.mamba2.layer.ssd", ssd)
    monkeypatch.setattr("models.mixers.s6.layer.selective_scan", selective_scan)
    monkeypatch.setattr(F, "scaled_dot_product_attention", attention)
    # Values as wide as keys are a kernel's wish and no product of the model.
    monkeypatch.setattr("models.attention.attend.widened", lambda v, _width: v)


def counted(run):
    with FlopCounterMode(display=False) as counter:
        run().sum().backward()
    return counter.get_total_flops()


# One head of keys to two of queries, and windows, so that both are in the count.
@pytest.mark.parametrize("mixer", [*MIXERS, "window", "grouped", "gated", "groups"])
def test_a_mixers_training_flops_are_those_of_its_products(plain, mixer):
    context = 128
    name = mixer if mixer in MIXERS else "mamba2" if mixer == "groups" else "attn"
    geometry = Geometry(windows=(24,) if mixer == "window" else ())
    size = replace(LADDER, n_kv_heads=1 if mixer == "grouped" else None)
    if mixer == "groups":
        size = replace(size, n_heads=8)
    options = {"attn_output_gate": mixer == "gated", "mamba2_groups": 2 if mixer == "groups" else 1}
    config = build_config(Mix("x", (name,), options=options), size, geometry, 256)
    layer = MIXERS[name].layer_class()(config, 0)
    for parameter in layer.parameters():
        torch.nn.init.uniform_(parameter, 0.01, 0.1)
    x = torch.randn(1, context, size.d_model, requires_grad=True)
    expected = 3 * MIXERS[name].flops(config, 0, context) * context
    assert expected == pytest.approx(counted(lambda: layer(x)), rel=1e-9)


@pytest.mark.parametrize(
    ("mix", "size"),
    [*((mix, TINY) for mix in MIXES), *((mix, LADDER) for mix in VARIED)],
    ids=lambda x: x.name,
)
def test_a_models_training_flops_are_those_of_its_products(mix, size, request):
    config = build_config(mix, size, Geometry(windows=(24, 0)), 200)
    model = LanguageModel(config)
    model.initialize(0)
    tokens = torch.randint(0, 200, (1, 64), generator=torch.Generator().manual_seed(0))
    logits = model(tokens)
    request.getfixturevalue("plain")
    torch.testing.assert_close(model(tokens), logits, rtol=1e-3, atol=1e-5)
    expected = flops_per_token(config, 64) * 64
    assert expected == pytest.approx(counted(lambda: model(tokens)), rel=1e-9)


@pytest.mark.parametrize("row", rows("param_flop_counts_from_code.csv"),
                         ids=lambda r: f"{r['arch']}-{r['size']}")  # fmt: skip
def test_the_published_forward_flops_are_ours_and_the_terms_that_the_docs_name(row):
    size, V = load_size(row["size"].lower())
    config = build_config(load_mix(PUBLISHED_NAMES[row["arch"]]), size, PUBLISHED, V)
    d, H, T = size.d_model, size.n_heads, 8192

    def more(layer):
        """What the published count has more of, in multiply-adds per token."""
        settings = config.settings(layer)
        match config.layers[layer]:
            case "attn":
                # Softmax over half a context; on the diagonal the mean query sees half a key less.
                return 2.5 * H * T / 2 - d
            case "gdn":
                # Chunks of 256, and a whole square for the triangular solve and one more for its
                # keys.
                k, v = H * settings.key_dim, H * settings.value_dim
                return 256 * (3 * k + 2 * v) - (64 * (2 * k + v) + 63 / 2 * (k + v))
            case "mamba2":
                # Chunks of 256 at both products, and the state's read and write twice.
                inner, state = H * settings.head_dim, settings.state
                ours = 64 * (state + inner) + 2 * inner * state
                return 256 * 2 * inner + 4 * inner * state - ours

    embedding = d * V  # the look-up as if it were a product
    forward = flops_per_token(config, T) / 3
    published = forward + 2 * (embedding + sum(map(more, range(config.n_layers))))
    assert published == int(row["fwd_flops_per_token_parallel"])
