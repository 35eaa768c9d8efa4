"""The worked example of docs/mixers.md, run as it stands there."""

import re
import sys
from pathlib import Path

import pytest
import torch

from models import mixers
from models.config import Blueprint, Geometry, Mix, build_config
from models.cost import decode_bytes, parameters
from models.language_model import LanguageModel
from models.matching import match

from .test_language_model import spread

PAGE = Path(__file__).parents[2] / "docs" / "mixers.md"
SIZE = Blueprint("x", 64, 4, 2, 96)


@pytest.fixture
def retention(tmp_path, monkeypatch):
    file, line = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (tmp_path / "retention.py").write_text(file)
    monkeypatch.syspath_prepend(str(tmp_path))
    entry = eval("{" + line.replace("models.retention", "retention") + "}", {"Mixer": mixers.Mixer})
    monkeypatch.setitem(mixers.MIXERS, "retention", entry["retention"])
    yield Mix("retention3_attn1", ("retention", "retention", "retention", "attn"), last="attn")
    sys.modules.pop("retention", None)


def definition(layer, x):
    """Retention as its paper's recurrent form, eq. 3 and 6, a token at a time."""
    B, T, d = x.shape
    H = layer.n_heads
    q, k, v = layer.qkv_proj(x).view(B, T, 3, H, d // H).unbind(2)
    gamma = 1 - 2.0 ** (-5 - torch.arange(H, dtype=torch.float64))
    state = torch.zeros(B, H, d // H, d // H, dtype=torch.float64)
    out = []
    for t in range(T):
        write = torch.einsum("bhk,bhv->bhkv", k[:, t].double(), v[:, t].double())
        state = gamma[:, None, None] * state + write
        out.append(torch.einsum("bhk,bhkv->bhv", q[:, t].double(), state) * (d // H) ** -0.5)
    o = torch.stack(out, 1)
    o = o / (o.square().mean(-1, keepdim=True) + layer.eps).sqrt() * layer.o_norm
    return layer.o_proj(o.flatten(2).float())


def test_the_worked_example_is_a_mixer_like_any_other(retention):
    config = build_config(retention, SIZE, Geometry(), 256)
    model = LanguageModel(config)
    model.initialize(0)
    spread(model)
    x = torch.randn(2, 40, 64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(
        model.blocks[0].mixer(x), definition(model.blocks[0].mixer, x), rtol=1e-4, atol=1e-4
    )
    assert parameters(config)[1] == sum(p.numel() for p in model.parameters())
    tokens = torch.randint(0, 256, (2, 24), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        expected = model(tokens)
        cache = model.new_cache(2, 24)
        model.extend(tokens[:, :9], cache)
        for t in range(9, 24):
            logits = model.extend(tokens[:, t : t + 1], cache)
            torch.testing.assert_close(logits, expected[:, t], rtol=1e-4, atol=1e-4)
    assert cache.nbytes == 2 * sum(decode_bytes(config, 24, 4))
    matched = match(retention, SIZE, Geometry(), 256, context=64)
    assert abs(matched.residual) <= 0.005
