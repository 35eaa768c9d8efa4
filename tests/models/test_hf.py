"""Exports open in transformers with our logits, generate as we would, and come back bit for bit."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from ablations.checkpoint import Checkpoints
from ablations.data.embedded import SEPARATOR
from ablations.data.prepared import write_prepared
from ablations.resolve import resolve
from models import hf
from models.config import Blueprint, MupBase
from models.errors import SettingError
from models.hf.__main__ import main
from models.hf.run import EMBEDDED_SEPARATOR
from models.language_model import LanguageModel
from models.mix import Geometry, Mix, build_config
from tests.ablations.conftest import settings as run_settings

from .test_whole_models import CONFIGS, GDN3, GROUPED, SIZE, WHOLE, tokens, varied

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

EXPECTED = {
    "transformer": "Olmo3ForCausalLM",
    "windows": "Olmo3ForCausalLM",
    "gdn3_attn1": "OlmoHybridForCausalLM",
    "positive": "OlmoHybridForCausalLM",
    "mamba2": "GraniteMoeHybridForCausalLM",
    "kimi_linear": "KimiLinearForCausalLM",
    "nemotron_h": "NemotronHForCausalLM",
    "qwen3_next": "Qwen3NextForCausalLM",
    "gdn1_gattn1": "ArchladderForCausalLM",
    "kda3_mla1": "ArchladderForCausalLM",
    "gdn": "ArchladderForCausalLM",
    "mamba2x3_attn1": "ArchladderForCausalLM",
    "ungated": "ArchladderForCausalLM",
    "three": "ArchladderForCausalLM",
}


@pytest.fixture(scope="module", autouse=True)
def modules_elsewhere(tmp_path_factory):
    """Remote code is copied to a cache before it is imported; not to the user's."""
    patch = pytest.MonkeyPatch()
    cache = str(tmp_path_factory.mktemp("modules"))
    patch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", cache)
    yield
    patch.undo()


def export(out, name="gdn3_attn1", **changes):
    model = varied(CONFIGS[name])
    options = {"context": 128, "separator": 0, "tokenizer": "bytes", **changes}
    said = hf.export(model.config, model.state_dict(), out, **options)
    return model, said


def opened(out, *, remote=False):
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        out, trust_remote_code=remote, output_loading_info=True
    )
    assert not any(info.values()), info
    return model


def continued(model, ids, n):
    """Greedy decoding by the definition: the whole sequence again for every token."""
    with torch.no_grad():
        for _ in range(n):
            ids = torch.cat([ids, model(ids)[:, -1:].argmax(-1)], dim=1)
    return ids


def comes_out_as(expected, ours, out):
    """Opened by transformers: the class, our logits, greedy decoding; read again: our bits."""
    remote = expected == "ArchladderForCausalLM"
    theirs = opened(out, remote=remote)
    assert type(theirs).__name__ == expected
    assert (out / "modeling_archladder.py").exists() == remote
    widths = theirs.config.hidden_size, theirs.config.num_hidden_layers, theirs.config.vocab_size
    assert widths == (ours.config.d_model, ours.config.n_layers, ours.config.vocab_size)
    assert theirs.config.max_position_embeddings == 128
    ids = tokens(2, 70)
    with torch.no_grad():
        actual, expected = theirs(ids).logits, ours(ids)
    assert expected.std() > 0.3
    assert (actual - expected).abs().max() <= 1e-4
    prompt = ids[:, :9]
    made = theirs.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=12, do_sample=False,
        eos_token_id=None,
    )  # fmt: skip
    assert torch.equal(made, continued(ours, prompt, 12))
    back = hf.load_pretrained(out, mixers=["elsewhere"])
    for (key, a), (_, b) in zip(ours.state_dict().items(), back.state_dict().items(), strict=True):
        assert torch.equal(a, b), key
    with torch.no_grad():
        assert torch.equal(back(ids), expected)
    return theirs


@pytest.mark.parametrize("name", EXPECTED)
def test_an_export_opens_with_our_logits_generates_and_comes_back(tmp_path, name):
    ours, (opened_as, difference) = export(tmp_path / "out", name)
    assert opened_as == EXPECTED[name]
    assert difference <= 1e-4
    comes_out_as(EXPECTED[name], ours, tmp_path / "out")


LOCAL = {"local": {"mixer": "attn", "window": 8}}
WIDER = {"wider": {"mixer": "attn", "window": 16}}
UNTURNED = {"unturned": {"mixer": "attn", "rotary": 0}}
OURS, OLMO = "ArchladderForCausalLM", "Olmo3ForCausalLM"
BLOCKS = {
    "norms on inputs": (OURS, Mix("x", ("attn",), norm="inputs")),
    "norms on outputs": (OURS, Mix("x", GDN3, norm="outputs")),
    "norms of Mamba2 on outputs": (OURS, Mix("x", ("mamba2",), norm="outputs")),
    "squared ReLU": (OURS, Mix("x", ("attn",), mlp="relu2")),
    "squared ReLU in a hybrid": (OURS, Mix("x", GDN3, mlp="relu2")),
    "no MLP": (OURS, Mix("x", ("mamba2",), mlp="none")),
    "MLPs of their own": (OURS, Mix("x", "M-M-M-*-")),
    "QK-norm by head": (OURS, Mix("x", ("attn",), options={"attn_qk_norm": "head"})),
    "no QK-norm": (OURS, Mix("x", GDN3, options={"attn_qk_norm": "none"})),
    "half of a head turned": (OURS, Mix("x", ("attn",), options={"attn_rotary": 0.5})),
    "half turned in a hybrid": (OURS, Mix("x", GDN3, options={"attn_rotary": 0.5})),
    "some layers turned": (OURS, Mix("x", ("unturned", "attn"), kinds=UNTURNED)),
    "windows of a kind": (OLMO, Mix("x", ("local", "attn"), kinds=LOCAL)),
    "windows of two": (OURS, Mix("x", ("local", "wider", "attn", "attn"), kinds=LOCAL | WIDER)),
    "windows in a hybrid": (OURS, Mix("x", ("gdn", "local"), kinds=LOCAL)),
    "eps of attention": (OLMO, Mix("x", ("attn",), norm_eps=1e-5)),
    "eps of a hybrid": ("OlmoHybridForCausalLM", Mix("x", GDN3, norm_eps=1e-5)),
    "eps of Mamba2": ("GraniteMoeHybridForCausalLM", Mix("x", ("mamba2",), norm_eps=1e-5)),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_a_block_is_exported_natively_where_the_class_has_it_exactly(tmp_path, name):
    expected, mix = BLOCKS[name]
    ours = varied(build_config(mix, GROUPED, Geometry(rope_theta=10_000.0), 256))
    opened_as, _ = hf.export(ours.config, ours.state_dict(), tmp_path / "out", context=128)
    assert opened_as == expected
    comes_out_as(expected, ours, tmp_path / "out")


@pytest.mark.parametrize("name", ["three", "mamba2x3_attn1", "gdn"])
def test_the_wrapper_pads_decodes_and_trains(tmp_path, name):
    ours, _ = export(tmp_path / "out", name)
    theirs = opened(tmp_path / "out", remote=True)
    prompts = [tokens(1, 23)[0], tokens(1, 40)[0][31:], tokens(1, 3)[0]]
    longest = max(map(len, prompts))
    ids = torch.stack([F.pad(p, (longest - len(p), 0), value=7) for p in prompts])
    mask = torch.stack([F.pad(torch.ones_like(p), (longest - len(p), 0)) for p in prompts])
    made = theirs.generate(ids, attention_mask=mask, max_new_tokens=90, do_sample=False,
                           eos_token_id=None)  # fmt: skip
    searched = {"attention_mask": mask, "max_new_tokens": 8, "num_beams": 3, "do_sample": False}
    beams = [
        theirs.generate(ids, **searched, eos_token_id=None, use_cache=cached)
        for cached in (True, False)
    ]
    assert torch.equal(*beams)
    for row, prompt in zip(made, prompts, strict=True):
        expected = continued(ours, prompt[None], 90)[0]
        assert torch.equal(row[longest - len(prompt) :], expected)
    ids = tokens(2, 50)
    theirs.train()(ids, labels=ids).loss.backward()
    ours.losses(ids[:, :-1], ids[:, 1:])[0].mean().backward()
    gradients = {n: p.grad for n, p in theirs.named_parameters()}
    for key, parameter in ours.named_parameters():
        scale = parameter.grad.abs().max()
        assert (gradients[key] - parameter.grad).abs().max() / scale < 1e-3, key


@pytest.mark.parametrize("name", ["gdn3_attn1", "mamba2", "kda3_mla1"])
def test_a_model_with_mup_is_exported_as_any_other(tmp_path, name):
    """Its factors are in its weights: the same class, and the logits of one without."""
    config = CONFIGS[name]
    scaled = dataclasses.replace(config, mup=MupBase(config.d_model // 2, config.head_dim // 2, 1))
    ours = LanguageModel(scaled)
    ours.initialize(0)
    expected, _ = hf.export(config, ours.state_dict(), tmp_path / "plain", context=128)
    opened_as, _ = hf.export(scaled, ours.state_dict(), tmp_path / "out", context=128)
    assert opened_as == expected
    theirs = [
        opened(tmp_path / out, remote=opened_as == "ArchladderForCausalLM")
        for out in ("plain", "out")
    ]
    ids = tokens(2, 70)
    with torch.no_grad():
        logits = ours(ids)
        assert all((one(ids).logits - logits).abs().max() <= 1e-4 for one in theirs)
    prompt = ids[:, :9]
    made = theirs[1].generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=8, do_sample=False,
        eos_token_id=None,
    )  # fmt: skip
    assert torch.equal(made, continued(ours, prompt, 8))


def test_a_model_made_from_the_config_alone_starts_as_ours(tmp_path):
    ours, _ = export(tmp_path / "out", "three")
    config = transformers.AutoConfig.from_pretrained(tmp_path / "out", trust_remote_code=True)
    torch.manual_seed(7)
    theirs = transformers.AutoModelForCausalLM.from_config(config, trust_remote_code=True)
    ours.initialize(7)
    for key, weight in ours.state_dict().items():
        assert torch.equal(theirs.state_dict()[key], weight), key


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("side", ["left", "right"])
def test_pads_leave_no_trace_in_logits(tmp_path, cached, side):
    ours, _ = export(tmp_path / "out", "three")
    theirs = opened(tmp_path / "out", remote=True)
    rows = [tokens(1, 30)[0], tokens(1, 41)[0][20:], tokens(1, 2)[0]]
    ends = [(30 - len(row), 0) if side == "left" else (0, 30 - len(row)) for row in rows]
    ids = torch.stack([F.pad(row, end, value=5) for row, end in zip(rows, ends, strict=True)])
    mask = torch.stack([F.pad(torch.ones_like(r), e) for r, e in zip(rows, ends, strict=True)])
    with torch.no_grad():
        logits = theirs(ids, attention_mask=mask, use_cache=cached).logits
        for row, real, actual in zip(rows, mask.bool(), logits, strict=True):
            assert (actual[real] - ours(row[None])[0]).abs().max() <= 1e-4
        last = theirs(ids, attention_mask=mask, use_cache=cached, logits_to_keep=1).logits
    # A product of one row may round otherwise than one of thirty, as it does on some CPUs.
    assert (last - logits[:, -1:]).abs().max() <= 1e-5


def test_a_sequence_in_pieces_has_the_logits_of_the_whole(tmp_path):
    ours, _ = export(tmp_path / "out", "three")
    theirs = opened(tmp_path / "out", remote=True)
    ids, cache, pieces = tokens(2, 200), None, []
    with torch.no_grad():
        for piece in ids.split([3, 70, 1, 126], dim=1):
            out = theirs(piece, past_key_values=cache)
            cache = out.past_key_values
            pieces.append(out.logits)
        assert (torch.cat(pieces, 1) - ours(ids)).abs().max() <= 1e-4
    assert cache.get_seq_length() == 200


def test_what_transformers_saves_of_an_export_opens_and_comes_back(tmp_path):
    ours, _ = export(tmp_path / "out", "gdn")
    opened(tmp_path / "out", remote=True).save_pretrained(tmp_path / "saved")
    comes_out_as("ArchladderForCausalLM", ours, tmp_path / "saved")


def test_an_export_says_what_it_needs_where_archladder_is_not_installed(tmp_path, monkeypatch):
    # A folder of that name has not been opened before in this process.
    export(tmp_path / "alone", "gdn")
    monkeypatch.setitem(sys.modules, "models.hf", None)
    with pytest.raises(ImportError, match="This model needs archladder: in a clone of it run"):
        opened(tmp_path / "alone", remote=True)


MEAN = '''
"""The mean of what came before, a share of it kept: a mixer of nobody's."""
from dataclasses import dataclass

import torch
from torch import nn

from models.mixer import Mixer


@dataclass(frozen=True)
class Settings:
    share: float = 0.5


class Mean(nn.Module):
    def __init__(self, config, index):
        super().__init__()
        self.share = config.settings(index).share
        self.proj = nn.Linear(config.d_model, config.d_model, bias=False)

    def forward(self, x, documents=None):
        y = self.proj(x)
        counts = torch.arange(1, x.shape[1] + 1)[:, None]
        return y - self.share * y.cumsum(1) / counts

    def new_state(self, batch, capacity, dtype):
        return {"sum": self.proj.weight.new_zeros(batch, self.proj.in_features)}

    def extend(self, x, state, new):
        y = self.proj(x)
        sums = state["sum"][:, None] + (y * new.valid[..., None]).cumsum(1)
        counts = new.seen[:, None] + 1 + torch.arange(x.shape[1])
        state["sum"] = sums[:, -1]
        return y - self.share * sums / counts[..., None]

    @staticmethod
    def initial(name, shape, generator):
        return None


MIXER = Mixer(
    name="mean", layer="elsewhere.mean:Mean", norm="inputs", options=Settings, saved=Settings,
    settings=lambda options, rules, place: options,
    parameters=lambda config, layer: config.d_model**2,
    flops=lambda config, layer, context: 2 * config.d_model**2,
    decode_bytes=lambda config, layer, context, element: (4 * config.d_model, 0),
    activation_bytes=lambda config, layer, context, element: 2 * config.d_model * element,
)
'''


def test_a_mixer_of_ones_own_exports_and_opens_where_its_package_is(tmp_path, monkeypatch):
    package = tmp_path / "packages" / "elsewhere"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "mean.py").write_text(MEAN)
    with monkeypatch.context() as patch:
        patch.syspath_prepend(str(package.parent))
        mix = Mix("x", ("mean", "attn"), kinds={"mean": {"mixer": "elsewhere.mean", "share": 0.3}})
        ours = varied(build_config(mix, SIZE, WHOLE, 256))
        hf.export(ours.config, ours.state_dict(), tmp_path / "out", context=128)
        theirs = comes_out_as("ArchladderForCausalLM", ours, tmp_path / "out")
        ids = tokens(2, 12)
        ids[1, :5] = 0
        made = theirs.generate(
            ids, attention_mask=(ids > 0).long(), max_new_tokens=9, do_sample=False,
            eos_token_id=None,
        )  # fmt: skip
        assert torch.equal(made[1:, 5:], continued(ours, ids[1:, 5:], 9))
    for name in ("elsewhere.mean", "elsewhere"):
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(SettingError, match=r"run code of the package elsewhere; .*mixers=els"):
        hf.load_pretrained(tmp_path / "out")
    with pytest.raises(SettingError, match=r"mixer=elsewhere\.mean cannot be imported"):
        hf.load_pretrained(tmp_path / "out", mixers=["elsewhere"])


def older_form(config):
    """A model as it was written when the settings of all mixers stood side by side."""
    settings = {kind.mixer: kind.settings for kind in config.kinds.values()}
    attn, gdn, mamba2 = (settings.get(mixer) for mixer in ("attn", "gdn", "mamba2"))
    return {
        "vocab_size": config.vocab_size, "d_model": config.d_model, "n_heads": config.n_heads,
        "n_kv_heads": attn.n_kv_heads, "mlp_hidden": config.mlp_hidden,
        "layers": list(config.layers), "windows": [attn.window(i) for i in range(config.n_layers)],
        "rope_theta": attn.rope_theta, "init": config.init,
        "gdn_key_dim": gdn.key_dim if gdn else 16, "gdn_value_dim": gdn.value_dim if gdn else 32,
        "gdn_output_gate": gdn.output_gate if gdn else True,
        "gdn_allow_neg_eigval": gdn.allow_neg_eigval if gdn else True,
        "mamba2_state": mamba2.state if mamba2 else 32,
        "mamba2_head_dim": mamba2.head_dim if mamba2 else 32,
        "conv_kernel": 4, "norm_eps": config.norm_eps, "gated_norm_eps": 1e-5,
    }  # fmt: skip


@pytest.mark.parametrize("name", ["three", "ungated", "mamba2x3_attn1"])
def test_a_folder_of_the_older_form_is_imported(tmp_path, name):
    ours, _ = export(tmp_path / "out", name)
    file = tmp_path / "out" / "config.json"
    content = json.loads(file.read_text())
    content["architecture"] = older_form(ours.config)
    file.write_text(json.dumps(content))
    back = hf.load_pretrained(tmp_path / "out")
    ids = tokens(2, 70)
    with torch.no_grad():
        assert torch.equal(back(ids), ours(ids))


@pytest.fixture(scope="module")
def byte_folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("bytes") / "out"
    export(out, "transformer")
    return out


def test_the_tokenizer_of_a_byte_corpus_is_bytes(byte_folder):
    tokenizer = transformers.AutoTokenizer.from_pretrained(byte_folder)

    @settings(max_examples=200, deadline=None)
    @given(st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
    def check(text):
        ids = tokenizer.encode(text)
        assert ids == list(text.encode())
        assert tokenizer.decode(ids) == text

    check()
    every = "".join(map(chr, range(0x250))) + "\r\n \u2028 'll  𝕏 ﬁ e\u0301"
    assert tokenizer.encode(every) == list(every.encode())
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (SEPARATOR, SEPARATOR)
    assert EMBEDDED_SEPARATOR == SEPARATOR
    assert transformers.GenerationConfig.from_pretrained(byte_folder).eos_token_id == SEPARATOR


def test_a_separator_beyond_the_bytes_is_a_token_of_its_own(tmp_path):
    config = build_config(Mix("x", ("attn",)), SIZE, WHOLE, 257)
    weights = varied(config).state_dict()
    options = {"context": 64, "separator": 256, "tokenizer": "bytes"}
    hf.export(config, weights, tmp_path / "out", **options)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.encode("a\0é<|endoftext|>") == [97, 0, 0xC3, 0xA9, 256]
    assert tokenizer.eos_token_id == 256
    with pytest.raises(SettingError, match="vocab_size=256"):
        hf.byte_tokenizer(256, 256)


def make_run(folder, mix="gdn3_attn1", steps=(3, 7), **changes):
    """A run directory as training leaves it, with untrained weights."""
    spec = resolve(run_settings(mix, **changes))
    folder.mkdir()
    (folder / "spec.yaml").write_text(yaml.safe_dump(spec.record()))
    checkpoints = Checkpoints(folder / "checkpoints", keep_steps=set(steps))
    for step in steps:
        model = LanguageModel(spec.model)
        model.initialize(step)
        checkpoints.save(step, {"model": model.state_dict(), "progress": {"step": step}})
    checkpoints.wait()
    return spec


def command(*words):
    return subprocess.run(
        [sys.executable, "-m", "models.hf", *map(str, words)], capture_output=True, text=True,
        check=False, cwd=Path(__file__).parents[2],
    )  # fmt: skip


@pytest.mark.slow
def test_the_command_exports_a_run_and_imports_the_folder(tmp_path, capsys):
    spec = make_run(tmp_path / "run")
    told = command("export", tmp_path / "run", tmp_path / "out")
    assert told.returncode == 0, told.stderr
    assert told.stdout.startswith(f"{tmp_path}/out: step 7 as OlmoHybridForCausalLM")
    assert "Traceback" not in told.stderr
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "out").encode("é") == [0xC3, 0xA9]
    assert opened(tmp_path / "out").config.max_position_embeddings == spec.recipe.context
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "3"), "checkpoint=3"]) == 0
    assert main(["import", str(tmp_path / "3"), str(tmp_path / "back")]) == 0
    model = LanguageModel(spec.model)
    model.initialize(3)
    back = hf.load_pretrained(tmp_path / "back")
    assert all(map(torch.equal, model.state_dict().values(), back.state_dict().values()))
    capsys.readouterr()


def test_a_torn_checkpoint_is_passed_over_and_an_old_spec_still_read(tmp_path, capsys):
    spec = make_run(tmp_path / "run", "transformer")
    content = yaml.safe_load((tmp_path / "run" / "spec.yaml").read_text())
    content["model"] = older_form(spec.model)
    del content["model"]["n_kv_heads"], content["defaults"]
    (tmp_path / "run" / "spec.yaml").write_text(yaml.safe_dump(content))
    last = tmp_path / "run" / "checkpoints" / "step-00000007" / "shard-00000.safetensors"
    last.write_bytes(last.read_bytes()[:1000])
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "out")]) == 0
    told = capsys.readouterr()
    assert "step 3 as Olmo3ForCausalLM" in told.out
    assert told.err.startswith("warning: ")
    assert "step-00000007 cannot be read: shard-00000" in told.err
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "7"), "checkpoint=7"]) == 2
    assert "holds no checkpoint=7 that can be read" in capsys.readouterr().err


def test_defaults_that_a_run_was_trained_with_are_exported(tmp_path, capsys):
    """A later version may have others."""
    make_run(tmp_path / "run", "transformer", steps=(3,))
    file = tmp_path / "run" / "spec.yaml"
    content = yaml.safe_load(file.read_text())
    assert "norm_eps" not in content["model"]
    content["defaults"]["model"]["norm_eps"] = 1e-3
    file.write_text(yaml.safe_dump(content))
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "out")]) == 0
    assert json.loads((tmp_path / "out" / "config.json").read_text())["rms_norm_eps"] == 1e-3
    capsys.readouterr()


def test_a_corpus_of_ones_own_brings_its_separator_and_takes_its_tokenizer(tmp_path, capsys):
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {"<end>": 0, "a": 1, "b": 2, "?": 3}
    theirs = Tokenizer(models.WordLevel(words, unk_token="?"))
    theirs.pre_tokenizer = pre_tokenizers.Whitespace()
    theirs.save(str(tmp_path / "tokenizer.json"))
    import numpy as np

    stream = [np.array([1, 2, 1, 3] * 8000)]
    write_prepared(
        tmp_path / "corpus", name="words", vocab_size=4, separator=0, train=stream,
        validation={"v": stream}, tokenizer={"name": "words", "sha256": None},
        token_bytes=np.array([0, 1, 1, 1], np.uint16),
    )  # fmt: skip
    corpus = {"data__name": "tokens", "data__path": str(tmp_path / "corpus")}
    make_run(tmp_path / "run", steps=(1,), protocol__max_epochs=1e9, **corpus)
    words = ["export", str(tmp_path / "run")]
    assert main([*words, str(tmp_path / "without")]) == 0
    assert "without a tokenizer: give tokenizer=PATH" in capsys.readouterr().out
    assert not (tmp_path / "without" / "tokenizer.json").exists()
    assert main([*words, str(tmp_path / "with"), f"tokenizer={tmp_path}"]) == 0
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "with")
    assert tokenizer.encode("a b nothing") == [1, 2, 3]
    assert (tokenizer.eos_token, tokenizer.eos_token_id) == ("<end>", 0)
    manifest = tmp_path / "corpus" / "manifest.json"
    content = json.loads(manifest.read_text())
    content["tokenizer"]["sha256"] = "0" * 64
    manifest.write_text(json.dumps(content))
    capsys.readouterr()
    assert main([*words, str(tmp_path / "other"), f"tokenizer={tmp_path}"]) == 2
    assert "is another than the corpus was made with" in capsys.readouterr().err


def test_what_cannot_be_exported_is_a_sentence_and_leaves_nothing(tmp_path, capsys):
    make_run(tmp_path / "run", "transformer", steps=(3,))
    make_run(tmp_path / "empty", "transformer", steps=())
    (tmp_path / "taken").mkdir()
    (tmp_path / "large.json").write_text(json.dumps(hf.byte_tokenizer(301, 300)))
    before = sorted(tmp_path.iterdir())
    run, out = str(tmp_path / "run"), str(tmp_path / "out")
    for words, sentence in (
        ((), "a command is missing; valid: export, import"),
        (("export", run), "OUT is missing: python -m models.hf export RUN_DIR OUT"),
        (("export", out, run + "2"), "is not a run directory"),
        (("export", str(tmp_path / "empty"), out), "holds no checkpoint"),
        (("export", run, out, "checkpoint=4"), "checkpoint=4 is not known; valid: 3, last"),
        (("export", run, str(tmp_path / "taken")), "exists already"),
        (("export", run, out, "tokenizer=nowhere"), "tokenizer=nowhere is no tokenizer.json"),
        (("export", run, out, f"tokenizer={tmp_path}/large.json"), "has ids up to 300"),
        (("import", run, out), "holds no config.json"),
        (
            ("import", run, out, "checkpoint=3"),
            "checkpoint is not a setting; valid: folder, format",
        ),
    ):
        assert main(list(words)) == 2, words
        told = capsys.readouterr().err
        assert sentence in told
        assert told.startswith("error: ")
        assert told.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before


def hybrid_of_theirs(**changes):
    """An Olmo Hybrid that transformers initialised, not we."""
    torch.manual_seed(0)
    config = {
        "vocab_size": 90, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 2, "linear_key_head_dim": 16,
        "linear_value_head_dim": 32, "max_position_embeddings": 64, "pad_token_id": None,
        "eos_token_id": 1, "initializer_range": 0.2,
        "rope_parameters": {"rope_type": "default", "rope_theta": None}, **changes,
    }  # fmt: skip
    return transformers.OlmoHybridForCausalLM(transformers.OlmoHybridConfig(**config))


def test_a_folder_that_transformers_wrote_in_pieces_is_imported(tmp_path):
    theirs = hybrid_of_theirs()
    theirs.save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    ours = hf.load_pretrained(tmp_path)
    assert ours.config.layers == GDN3
    assert ours.config.kinds["attn"].settings.rope_theta is None
    ids = tokens(2, 40) % 90
    with torch.no_grad():
        assert (ours(ids) - theirs(ids).logits).abs().max() <= 1e-4
    next(tmp_path.glob("*.safetensors")).unlink()
    with pytest.raises(SettingError, match="lacks model-0000"):
        hf.load_pretrained(tmp_path)


def test_import_takes_a_joined_convolution_and_null_rope_as_transformers_does(tmp_path):
    from safetensors.torch import save_file

    theirs = hybrid_of_theirs()
    config = json.loads(theirs.config.to_json_string())
    config["rope_parameters"] = None  # what transformers reads as a base of 10,000
    (tmp_path / "config.json").write_text(json.dumps(config))
    weights = {name: weight.contiguous() for name, weight in theirs.state_dict().items()}
    assert any(name.endswith("linear_attn.conv1d.weight") for name in weights)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    reopened = opened(tmp_path)
    ours = hf.load_pretrained(tmp_path)
    assert ours.config.kinds["attn"].settings.rope_theta == 10_000.0
    ids = tokens(2, 40) % 90
    with torch.no_grad():
        assert (ours(ids) - reopened(ids).logits).abs().max() <= 1e-4
    weights.pop("model.layers.1.linear_attn.A_log")
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(
        SettingError, match=r"lacks 1 tensors .* model\.layers\.1\.linear_attn\.A_log"
    ):
        hf.load_pretrained(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(SettingError, match="can run code"):
        hf.load_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"tie_word_embeddings": True}, "tie_word_embeddings=True cannot be ours; valid: False"),
        ({"attention_bias": True}, "attention_bias=True cannot be ours"),
        ({"linear_num_value_heads": 8}, "linear_num_value_heads=8 cannot be ours; valid: 4"),
        (
            {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}},
            "rope_type default",
        ),
        ({"model_type": "llama"}, "model_type=llama is not known; valid: archladder, granite"),
    ],
)
def test_what_our_model_cannot_be_is_not_imported(tmp_path, changes, sentence):
    config = json.loads(hybrid_of_theirs().config.to_json_string())
    (tmp_path / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(SettingError, match=sentence):
        hf.load_pretrained(tmp_path)


def test_the_smallest_shapes_export(tmp_path):
    """One head, a vocabulary that is no multiple of anything, a single layer."""
    config = build_config(Mix("x", ("mamba2",)), Blueprint("x", 34, 1, 1, 7), WHOLE, 11)
    hf.export(config, varied(config).state_dict(), tmp_path / "out", context=3)
    assert opened(tmp_path / "out").config.eos_token_id is None
