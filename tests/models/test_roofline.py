"""The model of a step against what torch's dispatcher counts, and against published MFU."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from models import roofline
from models.config import Blueprint
from models.cost import flops_per_token, parameters
from models.devices import GPUS, Gpu
from models.language_model import LanguageModel
from models.mix import Geometry, Mix, build_config
from models.mixer import Mixer
from models.mixers import MIXERS
from models.roofline import main, step, step_parts

V, CONTEXT, ROWS = 1000, 512, 2
SIZE = Blueprint("x", 256, 4, 4, 768)
MIXES = [
    Mix("transformer", ("attn",)),
    Mix("relu2", ("attn",), mlp="relu2"),
    Mix("gdn", ("gdn",)),
    Mix("no_gate", ("gdn",), options={"gdn_output_gate": False}),
    Mix("mamba2", ("mamba2",)),
    Mix("hybrid", ("gdn", "gdn", "mamba2", "attn")),
]
PRODUCTS = {torch.ops.aten.mm, torch.ops.aten.addmm}


class Products(TorchDispatchMode):
    """FLOPs, and bytes in and out, of matrix products whose one side is a batch's tokens."""

    def __init__(self):
        super().__init__()
        self.bytes = self.flops = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket in PRODUCTS:
            # addmm's first argument is a bias.
            a, b = args[-2:]
            self.flops += 2 * a.shape[0] * a.shape[1] * b.shape[1]
            self.bytes += a.nbytes + b.nbytes + out.nbytes
        return out


def built(mix, context=CONTEXT):
    config = build_config(mix, SIZE, Geometry(), V)
    with torch.device("meta"):
        model = LanguageModel(config).to(torch.bfloat16)
        tokens = torch.zeros(ROWS, context, dtype=torch.long)
    return config, model, tokens


def no_operator(*inputs, **_):
    """Of the value's shape, and with a gradient for every input; no matrix product."""
    return inputs[2] * sum(x.sum() for x in inputs), None


@pytest.mark.parametrize("mix", MIXES, ids=lambda mix: mix.name)
def test_products_move_and_compute_what_the_dispatcher_counts(mix, monkeypatch):
    """Embedding to last norm: the products of mixers and MLPs, in bf16 on the meta device."""
    monkeypatch.setattr("models.mixers.gdn.layer.gated_delta_rule", no_operator)
    monkeypatch.setattr("models.mixers.mamba2.layer.ssd", no_operator)
    config, model, tokens = built(mix)
    with Products() as counted:
        model.features(tokens).sum().backward()
    n = tokens.numel()
    parts = step_parts(config, CONTEXT, n, ROWS)
    of = [parts[name] for name in ("projections", "mlp")]
    assert sum(part.flops for part in of) == pytest.approx(counted.flops, rel=0.01)
    # Beside the products' own traffic the model counts casts of float32 weights and of gradients:
    # 10 bytes read and written before them and after, where a bf16 product moves 2 three times.
    weights = sum(part.flops for part in of) / 6 / n
    casts = weights * (roofline.WEIGHT_PASS - 6)
    assert sum(part.bytes for part in of) - casts == pytest.approx(counted.bytes, rel=0.05)


@pytest.mark.parametrize("mix", MIXES, ids=lambda mix: mix.name)
def test_flops_of_all_parts_are_those_of_the_counts_and_what_is_made_again(mix):
    config, _, _ = built(mix)
    parts = step_parts(config, CONTEXT, CONTEXT, 1)
    whole, model = sum(p.flops for p in parts.values()), flops_per_token(config, CONTEXT) * CONTEXT
    again = parts["operator"].flops
    assert model < whole <= model + 0.25 * again + 1e-6 * model


def test_flops_of_a_transformer_are_torchs_but_for_the_half_of_the_scores_that_none_sees():
    config, model, tokens = built(MIXES[0], context=2048)
    with FlopCounterMode(display=False) as counter:
        model(tokens).sum().backward()
    parts = step_parts(config, 2048, tokens.numel(), ROWS)
    counted = counter.get_total_flops()
    # On the meta device attention is batched products, forward and backward, of whole squares.
    attention = counter.get_flop_counts()["Global"][torch.ops.aten.bmm]
    assert attention == 3 * 4 * 2048**2 * SIZE.d_model * SIZE.n_layers * ROWS
    done = counted - attention + attention / 2 * 3.5 / 3
    assert sum(p.flops for p in parts.values()) == pytest.approx(done, rel=0.01)


# karpathy/nanochat: depth d, width 64 d, context 2048, 8 H100, its MFU as published.
@pytest.mark.parametrize(("depth", "published"), [(12, 0.419), (18, 0.46), (32, 0.51)])
def test_published_mfu_is_the_stated_share_of_what_is_possible(depth, published):
    mix = Mix("nanochat", ("attn",), mlp="relu2", norm="inputs")
    size = Blueprint("x", 64 * depth, depth, depth // 2, 256 * depth)
    config = build_config(mix, size, Geometry(), 65536)
    found = step(config, 2048, GPUS["H100"], gpus=8)
    assert published == pytest.approx(found.mfu * GPUS["H100"].efficiency, rel=0.1)


def test_a_step_takes_the_longer_of_bytes_and_flops_and_never_beats_the_peak():
    config, _, _ = built(MIXES[0])
    endless = Gpu(1e15, bandwidth=1e30, memory_bytes=8e10, link=1e30)
    found = step(config, CONTEXT, endless)
    # All that is above the model's FLOPs is scores made again.
    assert 0.9 < found.mfu < 1
    slow = replace(endless, bandwidth=1e9)
    assert step(config, CONTEXT, slow).total == pytest.approx(
        sum(p.bytes for name, p in found.parts.items() if name != "sums") / 1e9, rel=0.01
    )
    h100 = GPUS["H100"]
    assert step(config, CONTEXT, h100, recompute=True).total > step(config, CONTEXT, h100).total
    alone, shared = (step(config, CONTEXT, h100, gpus=n) for n in (1, 8))
    assert alone.parts["sums"].bytes == 0
    assert shared.parts["sums"].bytes == 2 * 4 * parameters(config)[1] * 7 / 8
    assert shared.mfu < alone.mfu
    small = step(config, CONTEXT, replace(h100, memory_bytes=4e9))
    assert small.rows < alone.rows
    assert small.total > alone.total, "weights are read in every pass"


def test_a_mixer_that_names_no_products_has_its_parameters_in_one():
    config, _, _ = built(MIXES[0])
    unnamed: Mixer = replace(MIXERS["attn"], products=None)
    by_name, by_default = (
        sum(i * o for i, o in roofline.products(mixer, config, 0))
        for mixer in (MIXERS["attn"], unnamed)
    )
    assert by_default == pytest.approx(by_name, rel=0.01)


def test_the_command_prints_a_row_a_model_and_its_parts(capsys):
    words = ["mix=transformer,gdn3_attn1", "size=60m,1b", "gpu=H100", "context=2k,8k"]
    assert main(words) == 0
    text = capsys.readouterr().out
    assert len([line for line in text.splitlines() if line.startswith(("transf", "gdn3"))]) == 8
    assert "A model of one H100 at its limits, not a measurement" in text
    assert main([*words, "format=json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["context"] for row in rows] == [2048] * 4 + [8192] * 4
    for row in rows:
        assert set(row["parts"]) == set(roofline.PARTS)
        assert row["seconds"] == pytest.approx(sum(p["seconds"] for p in row["parts"].values()))
        assert row["tokens_per_second"] == pytest.approx(row["tokens"] / row["seconds"])
        assert 0 < row["mfu"] < 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["gpu=H101"], "gpu=H101 is not known; nearest: H100; valid: A100, B200, B300"),
        (["context=8q"], "context=8q must be tokens, like 8192 or 8k."),
        (["batch=0"], "batch=0 must be tokens"),
        (["size=9b"], "size=9b is not known"),
        (["gpus=0"], "gpus=0 must be a whole number of at least 1"),
    ],
)
def test_what_cannot_be_is_a_sentence(words, said, capsys):
    assert main(words) == 2
    assert said in capsys.readouterr().err


def test_no_torch_is_loaded():
    code = (
        "import sys; from models.roofline import main; main(['mix=gdn', 'size=1b']);"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_the_table_in_the_docs_is_what_the_command_prints(capsys):
    text = (Path(__file__).parents[2] / "docs" / "performance.md").read_text(encoding="utf-8")
    (words,) = re.findall(r"`python -m models.roofline (mix=.*?)`", text)
    assert main(words.split()) == 0
    table, _, _ = capsys.readouterr().out.rpartition("\n\n")
    assert table in text
