"""Whole models against transformers' own classes: logits, and the gradient of every parameter."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from models.config import Blueprint
from models.hf.convert import config_json
from models.hf.native import granite, native_class, olmo3
from models.hf.native.weights import to_folder
from models.language_model import LanguageModel
from models.mix import Geometry, Mix, build_config

SIZE = Blueprint("x", 64, 4, 4, 96, init="fan_in")
GROUPED = Blueprint("x", 64, 4, 4, 96, n_kv_heads=2, init="fan_in")
WHOLE, WINDOWS = Geometry(), Geometry(windows=(8, 8, 0), rope_theta=10_000.0)
GDN3 = ("gdn", "gdn", "gdn", "attn")
POSITIVE = {"gdn_allow_neg_eigval": False, "attn_rotary": 0}
KIMI = {"norm_eps": 1e-5, "options": {"kda_width": "square"}}
QWEN = {
    "attn_qk_norm": "head",
    "attn_rotary": 0.25,
    "attn_output_gate": True,
    "gdn_allow_neg_eigval": False,
    "gdn_norm_eps": 1e-6,
}
NEMOTRON = Mix(
    "x", "M*-", placement="spread", attention=0.1, norm="inputs", norm_eps=1e-5, mlp="relu2",
    options={
        "attn_rotary": 0.0, "attn_qk_norm": "none", "mamba2_groups": 8, "mamba2_bias": False,
    },
)  # fmt: skip
CONFIGS = {
    name: build_config(mix, size, geometry, 256)
    for name, mix, size, geometry in (
        ("transformer", Mix("x", ("attn",)), SIZE, WHOLE),
        ("windows", Mix("x", ("attn",)), GROUPED, WINDOWS),
        ("gdn3_attn1", Mix("x", GDN3), GROUPED, WHOLE),
        ("positive", Mix("x", GDN3, options=POSITIVE), SIZE, WHOLE),
        ("mamba2", Mix("x", ("mamba2",)), SIZE, WHOLE),
        ("mamba2x3_attn1", Mix("x", ("mamba2", "mamba2", "mamba2", "attn")), SIZE, WHOLE),
        ("gdn", Mix("x", ("gdn",)), SIZE, WHOLE),
        (
            "ungated",
            Mix("x", ("gdn", "attn"), options={"gdn_output_gate": False}),
            GROUPED,
            WINDOWS,
        ),
        ("kimi_linear", Mix("x", "KKK+", norm="inputs", **KIMI), SIZE, WHOLE),
        ("qwen3_next", Mix("x", "GGG*", norm="inputs", options=QWEN), GROUPED, WHOLE),
        ("gdn1_gattn1", Mix("x", "G*", options={"attn_output_gate": True}), SIZE, WHOLE),
        ("nemotron_h", NEMOTRON, Blueprint("x", 64, 4, 8, 96, init="fan_in"), WHOLE),
        ("kda3_mla1", Mix("x", "K+"), SIZE, WHOLE),
        (
            "three",
            Mix("x", ("gdn", "attn", "mamba2", "attn"), options={"attn_rotary": 0}),
            GROUPED,
            WINDOWS,
        ),
    )
}


def varied(config):
    """A model of which every parameter and eps shows in the logits.

    No norm is one, no bias zero, and what the first norms read is small.
    """
    model = LanguageModel(config)
    model.initialize(0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
        model.embedding.weight.mul_(0.05)
    return model


def tokens(*shape):
    return torch.randint(1, 256, shape, generator=torch.Generator().manual_seed(2))


def published(config):
    """transformers' class for a model, without weights of its own."""
    transformers = pytest.importorskip("transformers")
    settings = config_json(config, context=512, eos=None)
    library = transformers.AutoConfig.for_model(settings.pop("model_type"), **settings)
    return transformers.AutoModelForCausalLM.from_config(library)


class Assembled(torch.nn.Module):
    """Mamba2 and attention, which no class has side by side: Granite's layers between Olmo 3's."""

    def __init__(self, config):
        super().__init__()
        granite = pytest.importorskip(
            "transformers.models.granitemoehybrid.modeling_granitemoehybrid"
        )
        olmo = pytest.importorskip("transformers.models.olmo3.modeling_olmo3")
        attn, ssm = config.kinds["attn"].settings, config.kinds["mamba2"].settings
        common = {
            "vocab_size": config.vocab_size, "hidden_size": config.d_model, "pad_token_id": None,
            "num_attention_heads": config.n_heads, "num_key_value_heads": attn.n_kv_heads,
            "num_hidden_layers": config.n_layers, "rms_norm_eps": config.norm_eps,
        }  # fmt: skip
        rope = {"rope_type": "default", "rope_theta": attn.rope_theta}
        attention = olmo.Olmo3Config(
            **common, intermediate_size=config.mlp_hidden, sliding_window=512,
            layer_types=["full_attention"] * config.n_layers,
            rope_parameters={"full_attention": rope, "sliding_attention": rope},
        )  # fmt: skip
        attention._attn_implementation = "sdpa"
        mamba2 = granite.GraniteMoeHybridConfig(
            **common, shared_intermediate_size=config.mlp_hidden, num_local_experts=0,
            layer_types=["linear_attention"] * config.n_layers, mamba_chunk_size=16,
            mamba_n_heads=config.n_heads, mamba_d_head=ssm.head_dim, mamba_n_groups=1,
            mamba_d_state=ssm.state, mamba_proj_bias=True,
        )  # fmt: skip
        self.model = torch.nn.Module()
        self.model.embed_tokens = torch.nn.Embedding(config.vocab_size, config.d_model)
        self.model.layers = torch.nn.ModuleList(
            olmo.Olmo3DecoderLayer(attention, i)
            if mixer == "attn"
            else granite.GraniteMoeHybridDecoderLayer(mamba2, i)
            for i, mixer in enumerate(config.layers)
        )
        for layer in self.model.layers:
            if hasattr(layer, "mamba"):
                layer.mamba.norm.variance_epsilon = ssm.norm_eps
        self.model.norm = olmo.Olmo3RMSNorm(config.d_model, config.norm_eps)
        self.lm_head = torch.nn.Linear(config.d_model, config.vocab_size, bias=False)
        self.rotary = olmo.Olmo3RotaryEmbedding(attention)

    def forward(self, ids):
        x = self.model.embed_tokens(ids)
        positions = torch.arange(ids.shape[1])[None]
        tables = self.rotary(x, positions, "full_attention")
        for layer in self.model.layers:
            x = layer(x, attention_mask=None, position_embeddings=tables)
        return self.lm_head(self.model.norm(x))


@pytest.mark.parametrize(
    "name",
    [
        "transformer",
        "windows",
        "gdn3_attn1",
        "positive",
        "mamba2",
        "mamba2x3_attn1",
        "kimi_linear",
        "qwen3_next",
        "nemotron_h",
    ],
)
def test_model_equals_transformers_in_logits_and_gradients(name):
    config = CONFIGS[name]
    ours = varied(config)
    assembled = name == "mamba2x3_attn1"
    theirs = Assembled(config) if assembled else published(config)
    # Assembled layers bear the names of the classes they come from.
    both = {**granite.CLASS.layer_names, **olmo3.CLASS.layer_names}
    native = replace(granite.CLASS, layer_names=both) if assembled else native_class(config)

    def renamed(weights):
        return native.join(to_folder(native, config, weights))

    # A class may store a weight less one, and a gradient is of the weight itself.
    shifts = renamed({n: torch.zeros_like(p) for n, p in ours.named_parameters()})

    names = {id(p): n for n, p in theirs.named_parameters()}
    weights = renamed(dict(ours.named_parameters()))
    assert set(weights) == set(names.values())
    theirs.load_state_dict(weights)
    ids = tokens(2, 70)
    expected = theirs(ids) if assembled else theirs(ids, use_cache=False).logits
    actual = ours(ids)
    assert actual.std() > 0.3
    assert (actual - expected).abs().max() < 1e-4
    F.cross_entropy(expected[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
    # Their last position is fed but never scored; causality makes the gradients the same.
    ours.losses(ids[:, :-1], ids[:, 1:])[0].mean().backward()
    gradients = renamed({n: p.grad for n, p in ours.named_parameters()})
    for target, parameter in theirs.named_parameters():
        scale = parameter.grad.abs().max()
        assert scale > 0, target
        gradient = gradients[target] - shifts[target]
        assert (gradient - parameter.grad).abs().max() / scale < 1e-3, target


def test_nemotron_h_steps_in_transformers_as_it_reads_at_once():
    """The class bounds dt from below where it reads many tokens, and not token by token."""
    config = CONFIGS["nemotron_h"]
    assert config.settings(0).groups == 2
    ours = varied(config)
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            if name.endswith("dt_bias"):
                parameter.fill_(-9)  # dt of about 1e-4, below the 1e-3 that the class has by itself
    theirs = published(config).eval()
    native = native_class(config)
    theirs.load_state_dict(native.join(to_folder(native, config, dict(ours.named_parameters()))))
    ids = tokens(2, 20)
    with torch.no_grad():
        read = ours(ids)
        torch.testing.assert_close(theirs(ids, use_cache=False).logits, read, rtol=0, atol=1e-4)
        state, steps = None, []
        for t in range(ids.shape[1]):
            out = theirs(ids[:, t : t + 1], past_key_values=state, use_cache=True)
            state = out.past_key_values
            steps.append(out.logits)
    torch.testing.assert_close(torch.cat(steps, 1), read, rtol=0, atol=1e-4)
