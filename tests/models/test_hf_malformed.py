"""Folders that are no model are refused in a sentence, and nothing outside of one is read."""

import json
import os
import re
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from ablations.checkpoint import Checkpoints
from models import hf
from models.checkpoint_files import canonical, read_model
from models.config import Blueprint
from models.errors import SettingError
from models.hf.__main__ import main
from models.mix import Mix, build_config
from models.plain import model_from_plain
from models.settings import to_dict

from .test_whole_models import WHOLE, varied

pytest.importorskip("transformers")
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """One tiny valid export: a transformer."""
    config = build_config(Mix("x", ("attn",)), Blueprint("x", 16, 2, 2, 24), WHOLE, 40)
    out = tmp_path_factory.mktemp("export") / "whole"
    hf.export(config, varied(config).state_dict(), out, context=32)
    return out


def text(name: str, content: str | bytes):
    def change(folder: Path):
        data = content.encode() if isinstance(content, str) else content
        (folder / name).write_bytes(data)

    return change


def config(**changes):
    def change(folder: Path):
        content = json.loads((folder / CONFIG).read_text()) | changes
        content = {key: value for key, value in content.items() if value is not ...}
        (folder / CONFIG).write_text(json.dumps(content))

    return change


def header(edit: Callable[[dict], None]):
    def change(folder: Path):
        data = (folder / WEIGHTS).read_bytes()
        (length,) = struct.unpack("<Q", data[:8])
        content = json.loads(data[8 : 8 + length])
        edit(content)
        head = json.dumps(content).encode()
        (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(head)) + head + data[8 + length :])

    return change


def tensors(edit: Callable[[dict], None]):
    def change(folder: Path):
        from safetensors.torch import load_file, save_file

        weights = {name: w.clone() for name, w in load_file(folder / WEIGHTS).items()}
        edit(weights)
        save_file(weights, folder / WEIGHTS)

    return change


def index(file: object, copy_to: str | None = None):
    """An index that has all tensors in `file`."""

    def change(folder: Path):
        data = (folder / WEIGHTS).read_bytes()
        (length,) = struct.unpack("<Q", data[:8])
        names = json.loads(data[8 : 8 + length]).keys() - {"__metadata__"}
        (folder / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(names, file)}))
        (folder / WEIGHTS).rename(folder / (copy_to or "a.safetensors"))

    return change


def several(*changes):
    def change(folder: Path):
        for one in changes:
            one(folder)

    return change


def removed(name: str):
    return lambda folder: (folder / name).unlink()


def folder_for(name: str):
    return several(removed(name), lambda folder: (folder / name).mkdir())


def linked_out(name: str):
    def change(folder: Path):
        (folder / name).rename(folder.parent / "elsewhere")
        (folder / name).symlink_to("../elsewhere")

    return change


def in_rope(value: object):
    both = {"rope_type": "default", "rope_theta": value}
    return config(rope_parameters={"full_attention": both, "sliding_attention": both})


def cut(name: str):
    def change(folder: Path):
        (folder / name).write_bytes((folder / name).read_bytes()[:300])

    return change


NO_CONFIG = "holds no config.json that can be read"
NO_MODEL = "config.json is no olmo3 model's"
RANGE = "cannot be used; valid: a whole number from 1 to"
# Eight levels of ten aliases each: 10^8 values, of which str() would make gigabytes.
ALIASES = "a0: &a0 [x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join(10 * [f'*a{n - 1}'])}]\n" for n in range(1, 9)
) + "init: *a8\n"  # fmt: skip
MALFORMED = {
    "a file for a folder": (lambda f: (shutil.rmtree(f), f.write_text("")), NO_CONFIG),
    "no folder": (shutil.rmtree, NO_CONFIG),
    "no config": (removed(CONFIG), NO_CONFIG),
    "config empty": (text(CONFIG, ""), NO_CONFIG),
    "config cut": (cut(CONFIG), NO_CONFIG),
    "config binary": (text(CONFIG, bytes(range(256))), NO_CONFIG),
    "config nested without end": (text(CONFIG, "[" * 100_000), NO_CONFIG),
    "config a folder": (folder_for(CONFIG), NO_CONFIG),
    "config a link out": (linked_out(CONFIG), "config.json leads out of the folder"),
    "config a list": (text(CONFIG, "[]"), "config.json holds no names with values"),
    "config null": (text(CONFIG, "null"), "config.json holds no names with values"),
    "model_type a list": (config(model_type=["olmo3"]), "model_type=['olmo3'] is not known"),
    "model_type missing": (config(model_type=...), "model_type=None is not known"),
    "hidden_size missing": (config(hidden_size=...), "but its config.json makes it [40, 4096]"),
    "hidden_size text": (config(hidden_size="16"), NO_MODEL),
    "hidden_size null": (config(hidden_size=None), NO_MODEL),
    "hidden_size negative": (config(hidden_size=-16), f"hidden_size=-16 {RANGE}"),
    "heads zero": (config(num_attention_heads=0), f"num_attention_heads=0 {RANGE}"),
    "heads odd": (config(num_attention_heads=5), "n_heads=5 cannot be used; valid: what divides"),
    "layers huge": (config(num_hidden_layers=10**12, layer_types=...), f"layers=10{'0' * 11} "),
    "vocabulary huge": (config(vocab_size=10**40), f"{'0' * 9} cannot be used"),
    "layer types unknown": (config(layer_types=["quantum"] * 2), NO_MODEL),
    "layer types linear": (config(layer_types=["chunked_attention"] * 2), "layer_types=chunked"),
    "layer types few": (config(layer_types=["full_attention"]), NO_MODEL),
    "layer types numbers": (config(layer_types=[1, 2]), NO_MODEL),
    "rope a list": (config(rope_parameters=[1]), NO_MODEL),
    "rope base text": (in_rope("large"), "rope_theta=large cannot be used"),
    "rope base negative": (in_rope(-1.0), "rope_theta=-1.0 cannot be used"),
    "rope not read": (config(rope_parameters={"rope_theta": 3.0}), "rope_parameters={"),
    "eps NaN": (config(rms_norm_eps=float("nan")), "norm_eps=nan cannot be used"),
    "no weights": (removed(WEIGHTS), f"holds no {WEIGHTS}, nor {INDEX}"),
    "weights a pickle": (
        lambda f: (f / WEIGHTS).rename(f / "pytorch_model.bin"),
        "such as pytorch_model.bin, are not read, because opening them can run code",
    ),
    "weights empty": (text(WEIGHTS, ""), f"{WEIGHTS} cannot be read"),
    "weights cut": (cut(WEIGHTS), f"{WEIGHTS} cannot be read"),
    "weights a pointer": (text(WEIGHTS, "version https://git-lfs\n"), f"{WEIGHTS} cannot be read"),
    "weights a folder": (folder_for(WEIGHTS), f"holds no {WEIGHTS}"),
    "weights a pipe": (
        several(removed(WEIGHTS), lambda f: os.mkfifo(f / WEIGHTS)), f"holds no {WEIGHTS}"
    ),
    "weights a link out": (linked_out(WEIGHTS), f"{WEIGHTS} leads out of the folder"),
    "weights a link to itself": (
        several(removed(WEIGHTS), lambda f: (f / WEIGHTS).symlink_to(WEIGHTS)), "leads out of"
    ),
    "header too long": (text(WEIGHTS, struct.pack("<Q", 2**40) + b"{}"), "cannot be read"),
    "dtype unknown": (header(lambda h: h[HEAD].update(dtype="F128")), "cannot be read"),
    "shape of another size": (header(lambda h: h[HEAD].update(shape=[3])), "cannot be read"),
    "offsets overlap": (
        header(lambda h: h[HEAD].update(data_offsets=h[EMBEDDING]["data_offsets"])),
        "cannot be read",
    ),
    "tensor missing": (tensors(lambda w: w.pop(HEAD)), "lacks 1 tensors that a olmo3 model needs"),
    "tensor left over": (tensors(lambda w: w.update(x=torch.ones(2))), "has no use for 1 tensors"),
    "tensor transposed": (
        tensors(lambda w: w.update({HEAD: w[HEAD].t().contiguous()})),
        f"{HEAD} has shape [16, 40], but its config.json makes it [40, 16]",
    ),
    "tensor of integers": (
        tensors(lambda w: w.update({HEAD: w[HEAD].long()})),
        f"{HEAD} is of dtype int64; valid: float32, bfloat16, float16",
    ),
    "tensor NaN": (
        tensors(lambda w: w[HEAD].fill_(float("nan"))), f"values in {HEAD} that are not finite"
    ),
    "index names a file outside": (
        index("../a.safetensors", "../a.safetensors"), "../a.safetensors leads out of the folder"
    ),
    "index names a path": (index("/etc/passwd"), "/etc/passwd leads out of the folder"),
    "index names the folder": (index("."), ". leads out of the folder"),
    "index names a number": (index(3), "has no weight_map of tensors to files"),
    "index names no file": (index("b.safetensors"), "lacks b.safetensors, which its"),
    "index names too few": (
        several(index("a.safetensors"), text(INDEX, '{"weight_map": {"x": "a.safetensors"}}')),
        f"which {INDEX} does not say",
    ),
    "index empty": (several(index(""), text(INDEX, "")), f"holds no {INDEX} that can be read"),
    "index a list": (several(index(""), text(INDEX, "[]")), "holds no names with values"),
    "index without a map": (several(index(""), text(INDEX, "{}")), "has no weight_map"),
    "index beside one file": (
        text(INDEX, '{"weight_map": {}}'), f"holds both {WEIGHTS} and {INDEX}; remove one"
    ),
    "model.yaml broken": (text("model.yaml", "a: ["), "holds no model.yaml that can be read"),
    "model.yaml binary": (text("model.yaml", b"\xff\0"), "holds no model.yaml that can be read"),
    "model.yaml a list": (text("model.yaml", "[1]"), "model.yaml holds no names with values"),
    "model.yaml of aliases": (text("model.yaml", ALIASES), "holds no model.yaml that can be read"),
    "model.yaml tagged": (text("model.yaml", "!!bool a"), "holds no model.yaml that can be read"),
    "model.yaml of numbers": (text("model.yaml", "{1: 2, a: 3}"), "model.yaml holds 1; a model"),
}  # fmt: skip


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_folder_is_one_sentence_and_nothing_is_written(whole, tmp_path, capsys, name):
    change, sentence = MALFORMED[name]
    shutil.copytree(whole, tmp_path / "folder")
    change(tmp_path / "folder")
    before = sorted(tmp_path.iterdir())
    assert main(["import", str(tmp_path / "folder"), str(tmp_path / "out")]) == 2
    said = capsys.readouterr()
    assert sentence in said.err
    assert said.err.startswith("error: ")
    assert said.err.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before


SETTINGS = "kinds.attn.settings"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("vocab_size", 2.5), ("d_model", True), ("n_heads", 3), ("mlp_hidden", 10**30),
        ("mlp", "relu9"), ("init", ["normal"]), ("norm_eps", 0.0), ("norm_eps", None),
        ("layers", ["attn", "quantum"]), ("layers", "attn"), ("layers", []), ("kinds", [1]),
        ("kinds.attn.norm", "inside"), ("kinds.attn.mixer", "quantum"), ("kinds.attn.mixer", "..x"),
        (f"{SETTINGS}.n_kv_heads", 10**30), (f"{SETTINGS}.windows", [0]),
        (f"{SETTINGS}.windows", [0, -1]), (f"{SETTINGS}.windows", None),
        (f"{SETTINGS}.rope_theta", 0), (f"{SETTINGS}.rope_theta", [1]),
        (f"{SETTINGS}.rotary", 0.3), (f"{SETTINGS}.rotary", 1.5), (f"{SETTINGS}.qk_norm", "row"),
    ],
)  # fmt: skip
def test_a_model_of_ours_with_an_impossible_value_is_named(whole, key, value):
    values = to_dict(hf.load_pretrained(whole).config)
    assert to_dict(model_from_plain(values, "here")) == values
    *groups, name = key.split(".")
    group = values
    for part in groups:
        group = group[part]
    group[name] = value
    with pytest.raises(
        SettingError, match=rf"^(here.*{name}|mixer={re.escape(str(value))} .*; valid: )"
    ):
        model_from_plain(values, "here")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("n_kv_heads", 10**30), ("layers", ["attn", "quantum"]), ("layers", "attn"),
        ("layers", []), ("windows", [0]), ("windows", [0, -1]), ("windows", None),
        ("rope_theta", 0), ("rope_theta", [1]), ("norm_eps", 0.0),
    ],
)  # fmt: skip
def test_an_impossible_value_in_a_model_of_the_older_form_is_named(key, value):
    values = {
        "vocab_size": 40, "d_model": 16, "n_heads": 2, "n_kv_heads": 2, "mlp_hidden": 24,
        "layers": ["attn", "attn"], "windows": [0, 0], "rope_theta": 1e4, "init": "normal",
        "gdn_key_dim": 16, "gdn_value_dim": 32, "gdn_output_gate": True,
        "gdn_allow_neg_eigval": True, "mamba2_state": 16, "mamba2_head_dim": 16,
        "conv_kernel": 4, "norm_eps": 1e-6, "gated_norm_eps": 1e-5,
    }  # fmt: skip
    assert model_from_plain(values, "here").settings(0).rope_theta == 1e4
    with pytest.raises(SettingError, match=f"^here.*{key}"):
        model_from_plain(values | {key: value}, "here")


def test_a_snapshot_of_a_cache_may_link_to_its_blobs(whole, tmp_path):
    snapshot, blobs = tmp_path / "snapshots" / "1a2b", tmp_path / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for name in (CONFIG, WEIGHTS):
        shutil.copy(whole / name, blobs / name[:3])
        (snapshot / name).symlink_to(f"../../blobs/{name[:3]}")
    assert hf.load_pretrained(snapshot).config == hf.load_pretrained(whole).config


def test_a_malformed_tokenizer_is_named(tmp_path, whole):
    config = hf.load_pretrained(whole)
    for content in ("", "[]", "{}", '{"model": 3}'):
        (tmp_path / "tokenizer.json").write_text(content)
        with pytest.raises(SettingError, match=r"tokenizer=.* cannot be read"):
            hf.export(
                config.config, config.state_dict(), tmp_path / "out", context=8,
                tokenizer=tmp_path / "tokenizer.json",
            )  # fmt: skip
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "change",
    [
        lambda piece: piece.update(file="../secret"),
        lambda piece: piece.update(file="secret"),
        lambda piece: piece.update(begin=-8),
        lambda piece: piece.update(begin=10**9),
        lambda piece: piece.update(sizes=[1, 1]),
        lambda piece: piece.update(offsets=[10**6, 0]),
        lambda piece: piece.pop("begin"),
        lambda piece: piece.update(more=1),
    ],
)
def test_pieces_of_a_checkpoint_lie_in_its_own_files(tmp_path, change):
    """Its sums agree, as those of a folder that somebody made on purpose would."""
    import hashlib

    checkpoints = Checkpoints(tmp_path, keep_steps={1})
    checkpoints.save(1, {"model": {"w": torch.ones(4, 4)}, "progress": {"step": 1}})
    checkpoints.wait()
    (folder,) = tmp_path.glob("step-*")
    for place in (tmp_path / "secret", folder / "secret"):
        place.write_bytes(b"0" * 4096)
    content = json.loads((folder / "index.json").read_text())
    change(content["tensors"]["model.w"]["pieces"][0])
    (folder / "index.json").write_text(json.dumps(content))
    sums = json.loads((folder / "checksums.json").read_text())
    sums["index.json"] = hashlib.sha256((folder / "index.json").read_bytes()).hexdigest()
    (folder / "checksums.json").write_bytes(canonical(sums))
    with pytest.raises(ValueError, match=r"index\.json is no checkpoint's"):
        read_model(tmp_path, 1)


@pytest.mark.parametrize(
    "content", ["", "[]", "model: 3", "a: [", "\x00", ALIASES,
                {"model": {}, "recipe": [], "data": {}},
                {"model": [], "recipe": {"context": 8}, "data": {"name": "x"}, "corpus": [1]}],
)  # fmt: skip
def test_a_malformed_spec_is_no_run_directory(tmp_path, capsys, content):
    text = content if isinstance(content, str) else yaml.safe_dump(content)
    (tmp_path / "spec.yaml").write_text(text)
    assert main(["export", str(tmp_path), str(tmp_path / "out")]) == 2
    assert "is not a run directory" in capsys.readouterr().err
