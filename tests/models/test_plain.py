"""Models as plain values: read back as they were, from records of every version, or refused."""

import json
from dataclasses import replace

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from models.config import Blueprint, ModelConfig
from models.cost import parameters
from models.errors import SettingError
from models.language_model import LanguageModel
from models.matching import match
from models.mix import Geometry, Mix, build_config
from models.plain import model_from_plain
from models.settings import flatten, from_dict, merge, split_defaults, to_dict

from .test_counts import MIXES, ROOT, load_mix, load_size
from .test_language_model import SLIDING, VARIED

SIZE = Blueprint("x", 64, 4, 2, 96)
RECORDS = sorted((ROOT / "notebooks" / "records" / "demo").glob("*/spec.yaml"))
GEOMETRIES = {"full": Geometry(), "windows": Geometry(windows=(128, 128, 0))}


def configs(mix):
    """The mix at two sizes and in two protocols."""
    for size, vocab in map(load_size, ("50k", "60m")):
        for geometry in GEOMETRIES.values():
            yield build_config(mix, size, geometry, vocab, 8192)


@pytest.mark.parametrize(
    "mix", [*map(load_mix, MIXES), *VARIED], ids=[*MIXES, *(mix.name for mix in VARIED)]
)
def test_every_model_is_read_back_as_it_was(mix):
    for config in configs(mix):
        plain = to_dict(config)
        for text in (json.loads(json.dumps(plain)), yaml.safe_load(yaml.safe_dump(plain))):
            assert model_from_plain(text, "spec.yaml") == config
        # Nor are fields at their defaults needed, of the model or of a mixer.
        kept, defaults = split_defaults(config)
        assert model_from_plain(kept, "spec.yaml") == config
        assert model_from_plain(merge(kept, defaults), "spec.yaml") == config


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.parent.name)
def test_a_record_of_an_earlier_version_holds_the_model_that_its_settings_give_today(path):
    spec = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert "kinds" not in spec["model"]
    size = spec["size"]
    fields = ("name", "d_model", "n_layers", "n_heads", "mlp_hidden", "n_kv_heads", "init")
    blueprint = Blueprint(**{name: size[name] for name in fields})
    mix = load_mix(spec["mix"]["name"])
    geometry = Geometry(windows=tuple(spec["protocol"]["windows"]))
    today = match(mix, blueprint, geometry, spec["model"]["vocab_size"]).config
    assert model_from_plain(spec["model"], "spec.yaml") == today


def earlier(**changes):
    """A model as it was written while the settings of all mixers stood side by side."""
    return {
        "vocab_size": 256, "d_model": 64, "n_heads": 4, "n_kv_heads": 2, "mlp_hidden": 96,
        "layers": ["gdn", "attn", "mamba2", "attn"], "windows": [0, 9, 0, 0],
        "rope_theta": 500000.0, "init": "normal", "gdn_key_dim": 16, "gdn_value_dim": 32,
        "gdn_output_gate": True, "gdn_allow_neg_eigval": True, "mamba2_state": 32,
        "mamba2_head_dim": 32, "conv_kernel": 4, "norm_eps": 1e-6, "gated_norm_eps": 1e-5,
    } | changes  # fmt: skip


def test_every_setting_of_an_earlier_version_comes_to_where_it_belongs():
    mix = Mix("x", ("gdn", "attn", "mamba2", "attn"))
    size = Blueprint("x", 64, 4, 4, 96, n_kv_heads=2)
    config = build_config(mix, size, Geometry(windows=(9,)), 256)
    assert model_from_plain(earlier(), "spec.yaml") == config
    changed = model_from_plain(
        earlier(
            gdn_output_gate=False, gdn_allow_neg_eigval=False, gdn_key_dim=8, gdn_value_dim=24,
            mamba2_state=48, mamba2_head_dim=40, rope_theta=None, conv_kernel=3, norm_eps=1e-5,
            gated_norm_eps=1e-4,
        ),
        "spec.yaml",
    )  # fmt: skip
    gdn, attn, mamba2 = (changed.kinds[name].settings for name in ("gdn", "attn", "mamba2"))
    assert (gdn.key_dim, gdn.value_dim, gdn.conv_kernel, gdn.norm_eps) == (8, 24, 3, 1e-4)
    assert (gdn.output_gate, gdn.allow_neg_eigval) == (False, False)
    shape = (mamba2.state, mamba2.head_dim, mamba2.conv_kernel, mamba2.norm_eps)
    assert shape == (48, 40, 3, 1e-4)
    assert (attn.rope_theta, attn.n_kv_heads, attn.windows) == (None, 2, (0, 9, 0, 0))
    assert changed.norm_eps == 1e-5


def without(plain, *path):
    """A copy of nested groups less what stands at `path`."""
    key, *rest = path
    if not rest:
        return {name: value for name, value in plain.items() if name != key}
    return plain | {key: without(plain[key], *rest)}


def changed(plain, value, *path):
    key, *rest = path
    return plain | {key: changed(plain[key], value, *rest) if rest else value}


PLAIN = to_dict(build_config(Mix("x", "GW*M", kinds=SLIDING), SIZE, Geometry(windows=(9,)), 256))
SUBLAYERS = to_dict(build_config(Mix("x", "G-"), SIZE, Geometry(), 256))
BROKEN = {
    "no group": ([], "spec.yaml is not a group"),
    "one more": (PLAIN | {"depth": 4}, "spec.yaml holds depth; a model has d_model"),
    "one less": (without(PLAIN, "kinds"), "spec.yaml"),
    "no size": (without(PLAIN, "d_model"), "spec.yaml lacks d_model; a model has"),
    "width": (PLAIN | {"d_model": "wide"}, "d_model=wide cannot be used; valid: a whole number"),
    "size": (PLAIN | {"d_model": 1 << 40}, "d_model=1099511627776 cannot be used; valid: a whole"),
    "vocab": (PLAIN | {"vocab_size": True}, "vocab_size=True cannot be used; valid: a whole numb"),
    "hidden": (PLAIN | {"mlp_hidden": 0}, "mlp_hidden=0 cannot be used; valid: a whole number fro"),
    "heads": (PLAIN | {"n_heads": 3}, "n_heads=3 cannot be used; valid: what divides d_model=64"),
    "eps": (PLAIN | {"norm_eps": -1}, "norm_eps=-1 cannot be used; valid: a positive finite numb"),
    "init": (PLAIN | {"init": "zero"}, "init=zero cannot be used; valid: normal, fan_in"),
    "mlp": (PLAIN | {"mlp": "gelu"}, "mlp=gelu cannot be used; valid: swiglu, relu2, none"),
    "no layers": (PLAIN | {"layers": []}, r"layers=\[\] cannot be used; valid: 1 to 4096 of gdn"),
    "layers": (PLAIN | {"layers": "GW*M"}, r"layers=GW\*M cannot be used; valid: 1 to 4096 of"),
    "a layer": (PLAIN | {"layers": ["gdn", 3]}, r"layers=\['gdn', 3\] cannot be used; valid: 1 to"),
    "a layer of no kind": (PLAIN | {"layers": ["gdn", "rwkv"]}, "layers=.* cannot be used; valid"),
    "a kind of no layer": (PLAIN | {"layers": ["gdn"]}, "layers=.* cannot be used; valid: 1 to"),
    "too deep": (
        PLAIN | {"layers": PLAIN["layers"] * 2000}, "layers=.* cannot be used; valid: 1 to 4096"),
    "kinds": (PLAIN | {"kinds": ["gdn"]}, r"kinds=\['gdn'\] cannot be used; valid: a group"),
    "a kind": (changed(PLAIN, "gdn", "kinds", "gdn"), "kinds.gdn='gdn' must be a group"),
    "a kind's norm": (
        changed(PLAIN, "both", "kinds", "gdn", "norm"), "kinds.gdn's norm=both cannot be used; va"),
    "a kind's mixer": (
        changed(PLAIN, "rwkv", "kinds", "gdn", "mixer"), "mixer=rwkv is not known; valid: attn"),
    "a kind's mixer elsewhere": (
        changed(PLAIN, "nobodys.rwkv", "kinds", "gdn", "mixer"),
        "mixer=nobodys.rwkv cannot be imported"),
    "a kind without mixer": (
        without(PLAIN, "kinds", "gdn", "mixer"), "kinds.gdn.mixer is missing"),
    "a mixer without settings": (
        changed(PLAIN, None, "kinds", "gdn", "settings"), "gdn.settings=None must be a group"),
    "a mixer's setting less": (
        without(PLAIN, "kinds", "gdn", "settings", "key_dim"), "gdn.settings.key_dim is missing"),
    "a mixer's setting more": (
        changed(PLAIN, 3, "kinds", "gdn", "settings", "keydim"),
        "settings.keydim is not a setting; nearest of those that are: .*settings.key_dim"),
    "a mixer's number": (
        changed(PLAIN, 0, "kinds", "gdn", "settings", "key_dim"), "key_dim=0 cannot be used; val"),
    "a mixer's huge number": (
        changed(PLAIN, 1 << 30, "kinds", "mamba2", "settings", "state"),
        "state=1073741824 cannot be used; valid: a whole number up to"),
    "theta": (
        changed(PLAIN, 0, "kinds", "attn", "settings", "rope_theta"), "rope_theta=0.0 cannot be"),
    "windows": (
        changed(PLAIN, [9, 9], "kinds", "attn", "settings", "windows"),
        r"windows=\(9, 9\) cannot be used; valid: 4 of them"),
    "a window": (
        changed(PLAIN, [9, -1, 0, 0], "kinds", "attn", "settings", "windows"),
        "windows=.*-1.* cannot be used; valid: tokens"),
    "rotary": (
        changed(PLAIN, 1.5, "kinds", "swa", "settings", "rotary"), "rotary=1.5 cannot be used; v"),
    "rotary of this head": (
        changed(PLAIN, 0.3, "kinds", "swa", "settings", "rotary"),
        "rotary=0.3 cannot be used; valid: a share that makes an even number of the 32 channels"),
    "qk_norm": (
        changed(PLAIN, "all", "kinds", "swa", "settings", "qk_norm"), "qk_norm=all cannot be used; "
        "valid: full, head, none"),
    "kv heads": (
        changed(PLAIN, 3, "kinds", "attn", "settings", "n_kv_heads"), "n_kv_heads=3 cannot be use"),
    "an mlp of no kind": (SUBLAYERS | {"mlp": "none"}, "mlp=none cannot be used; valid: a kind of"),
    "an mlp with a mixer": (
        changed(SUBLAYERS, "gdn", "kinds", "mlp", "mixer"), "kinds.mlp.settings=None must be a gr"),
    "an mlp that is a mixer": (
        changed(SUBLAYERS, SUBLAYERS["kinds"]["gdn"], "kinds", "mlp"),
        "kinds.mlp.mixer=gdn cannot be used; valid: mlp for mlp alone"),
    "a mixer that is an mlp": (
        changed(SUBLAYERS, "mlp", "kinds", "gdn", "mixer"),
        "kinds.gdn.mixer=mlp cannot be used; valid: mlp for mlp alone"),
    "earlier mixer": (earlier(layers=["rwkv"]), r"layers=\['rwkv'\] cannot be used; valid: layers"),
    "earlier layers": (earlier(layers=3), "layers=3 cannot be used; valid: a list of mixers"),
    "earlier layer": (earlier(layers=[["gdn"]]), "layers=.* cannot be used; valid: a list of mixe"),
    "earlier windows": (earlier(windows=3), "windows=3"),
    "earlier window": (earlier(windows=["far", 0, 0, 0]), "windows"),
    "earlier width": (earlier(gdn_key_dim="wide"), "key_dim='wide' must be a whole number"),
    "earlier setting": (earlier(depth=4), "spec.yaml holds depth"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_no_model_is_refused_in_a_sentence(case):
    plain, words = BROKEN[case]
    with pytest.raises(SettingError, match=words) as error:
        model_from_plain(plain, "spec.yaml")
    assert "\n" not in str(error.value)
    assert str(error.value).endswith(".")


@settings(max_examples=300, deadline=None)
@given(
    plain=st.sampled_from([PLAIN, SUBLAYERS, earlier()]),
    value=st.sampled_from(
        [None, True, -1, 0, 1, 3, 0.5, 1e300, float("nan"), "", "x", [], [3], ["gdn"], {}, {"a": 1}]
    ),
    data=st.data(),
)
def test_whatever_stands_in_a_place_the_end_is_a_model_or_a_sentence(plain, value, data):
    paths = [tuple(name.split(".")) for name in flatten(plain)]
    path = data.draw(st.sampled_from(paths))
    broken = changed(plain, value, *path[: data.draw(st.integers(1, len(path)))])
    try:
        config = model_from_plain(broken, "spec.yaml")
    except SettingError:
        return
    with torch.device("meta"):
        model = LanguageModel(config)
    assert sum(p.numel() for p in model.parameters()) == parameters(config)[1]


def test_split_and_merged_settings_are_the_settings():
    """Of mixes with settings of every form: fields, groups, and names that others define."""
    mixes = [
        *map(load_mix, MIXES), *VARIED,
        replace(VARIED[0], options={"gdn_output_gate": True, "attn_rotary": 0.5}),
    ]  # fmt: skip
    geometries = [*GEOMETRIES.values(), Geometry(options={"gdn_key_multiple": 128})]
    for value in (*mixes, *geometries, *(c for mix in mixes for c in configs(mix))):
        kept, defaults = split_defaults(value)
        assert merge(kept, defaults) == to_dict(value)
        if not isinstance(value, ModelConfig):  # whose kinds model_from_plain reads
            assert from_dict(type(value), merge(kept, defaults)) == value
            assert from_dict(type(value), kept) == value


def test_nothing_at_its_default_is_kept():
    mix = Mix("x", "GW", kinds=SLIDING, options={"gdn_output_gate": True})
    kept, defaults = split_defaults(mix)
    # An option of a mixer has no default that the mix knows.
    assert kept == {
        "name": "x", "pattern": ["gdn", "swa"], "kinds": SLIDING, "gdn_output_gate": True
    }  # fmt: skip
    assert set(defaults) == {"placement", "attention", "last", "norm", "mlp", "norm_eps"}
    kept, defaults = split_defaults(build_config(mix, SIZE, Geometry(), 256))
    assert "mlp" not in kept
    assert kept["kinds"]["gdn"]["settings"] == {"key_dim": 32, "value_dim": 64}
    assert defaults["kinds"]["gdn"]["settings"]["output_gate"] is True
