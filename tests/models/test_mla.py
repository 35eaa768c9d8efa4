"""Latent attention against transformers' own, and what its cache holds."""

import pytest
import torch

from models.config import Blueprint
from models.documents import Documents
from models.mix import Geometry, Mix, build_config
from models.mixers.mla.layer import LatentAttention

SIZE = Blueprint("x", 64, 2, 4, 96)
MIX = Mix("latent", ("mla",))


def layer_and_config(**options):
    config = build_config(Mix("latent", ("mla",), options=options), SIZE, Geometry(), 256)
    layer = LatentAttention(config, 0)
    generator = torch.Generator().manual_seed(0)
    for p in layer.parameters():
        torch.nn.init.normal_(p, 1.0 if p.dim() == 1 else 0.0, 0.2, generator=generator)
    return layer, config


def test_equal_to_transformers_in_value_and_gradient():
    kimi = pytest.importorskip("transformers.models.kimi_linear.modeling_kimi_linear")
    layer, config = layer_and_config()
    s, H = config.settings(0), config.n_heads
    library = kimi.KimiLinearConfig(
        hidden_size=64, num_attention_heads=H, num_key_value_heads=H, q_lora_rank=None,
        qk_rope_head_dim=s.shared_dim, kv_lora_rank=s.latent_dim, v_head_dim=s.value_dim,
        qk_nope_head_dim=s.key_dim, attn_implementation="eager",
    )  # fmt: skip
    other = kimi.KimiLinearAttention(library, 0)
    names = {
        "q_proj": "q_proj", "kv_a_proj_with_mqa": "kv_a_proj", "kv_a_layernorm": "kv_norm",
        "kv_b_proj": "kv_b_proj", "o_proj": "o_proj",
    }  # fmt: skip
    other.load_state_dict(
        {f"{a}.weight": layer.state_dict()[f"{b}.weight"] for a, b in names.items()}
    )
    x = torch.randn(2, 20, 64, generator=torch.Generator().manual_seed(1))
    causal = torch.full((20, 20), -torch.inf).triu(1)[None, None]
    ours, theirs = layer(x), other(x, attention_mask=causal)[0]
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    direction = torch.randn(ours.shape, generator=torch.Generator().manual_seed(2))
    ours.backward(direction)
    theirs.backward(direction)
    for a, b in names.items():
        torch.testing.assert_close(
            getattr(layer, b).weight.grad, getattr(other, a).weight.grad, rtol=1e-4, atol=1e-4
        )


def test_a_query_meets_latents_as_it_meets_whole_keys_and_values():
    """With weights that are not small, where a wrong scale or part would show."""
    layer, _ = layer_and_config()
    x = torch.randn(2, 9, 64, generator=torch.Generator().manual_seed(1))
    whole = layer(x)
    q, latents = layer._queries(x), layer._latents(x)
    mask = torch.ones(9, 9, dtype=torch.bool).tril()[None, None]
    torch.testing.assert_close(layer._merge(layer._attend_latents(q, latents, mask)), whole)


def test_the_cache_is_one_latent_a_token_for_all_heads():
    _, config = layer_and_config()
    layer = LatentAttention(config, 0)
    state = layer.new_state(3, 50, torch.float32)
    D = config.head_dim
    assert {name: tuple(t.shape) for name, t in state.items()} == {
        "latent": (3, 1, 50, 4 * D + D // 2)
    }


def test_a_window_hides_what_lies_before_it():
    layer, _ = layer_and_config(mla_window=5)
    x = torch.randn(1, 12, 64, generator=torch.Generator().manual_seed(1))
    changed = x.clone()
    changed[:, 6] += 1
    difference = (layer(x, Documents()) - layer(changed, Documents())).abs().amax((0, 2))
    assert (difference > 1e-6).nonzero().flatten().tolist() == [6, 7, 8, 9, 10]
