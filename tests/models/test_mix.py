"""Patterns, kinds of a mix's own and settings of mixers: what they come to, and what is refused."""

import re
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.config import MLP, Blueprint
from models.errors import SettingError
from models.mix import Geometry, Mix, build_config, check_rules_of
from models.mixers import MIXERS
from models.settings import from_dict

SIZE = Blueprint("x", 64, 4, 2, 96)
NAMES = {"*": "attn", "G": "gdn", "M": "mamba2", "-": MLP}
SLIDING = {"swa": {"mixer": "attn", "window": 8, "letter": "W"}}


def read(**content):
    """A mix as it is read from a file or a command line."""
    return from_dict(Mix, {"name": "x", **content}, "mix")


def config_of(mix, size=SIZE, geometry=Geometry()):  # noqa: B008
    return build_config(mix, size, geometry, 256)


@settings(deadline=None)
@given(st.text("*GM-", min_size=1, max_size=8).filter(lambda letters: set(letters) != {"-"}))
def test_letters_are_the_list_of_the_kinds_they_stand_for(letters):
    n_layers = len(letters)
    listed = Mix("x", tuple(NAMES[letter] for letter in letters))
    assert Mix("x", letters) == listed
    size = Blueprint("x", 64, n_layers, 2, 96)
    assert config_of(Mix("x", letters), size) == config_of(listed, size)


@settings(deadline=None)
@given(st.integers(1, 24), st.sampled_from(["G-", "M-M-M-*-", "MM*-", "*--", "GGG-"]))
def test_mlps_of_their_own_double_the_depth(n_layers, letters):
    depth = 2 * n_layers
    pattern = [NAMES[letter] for letter in letters]
    if depth % len(letters):
        with pytest.raises(SettingError, match=rf"size\.n_layers={n_layers} .*two a layer; give"):
            Mix("x", letters).layers(n_layers)
        return
    config = config_of(Mix("x", letters), Blueprint("x", 64, n_layers, 2, 96))
    assert list(config.layers) == pattern * (depth // len(pattern))
    assert config.n_layers == depth
    for layer, kind in enumerate(config.layers):
        assert config.has_mlp(layer) == (kind == MLP)
        assert config.has_mixer(layer) == (kind != MLP)


@settings(deadline=None)
@given(st.integers(1, 24), st.text("*GM-", min_size=2, max_size=7))
def test_where_a_pattern_does_not_divide_the_depths_named_do(n_layers, letters):
    if set(letters) == {"-"}:
        return
    mix = Mix("x", letters)
    try:
        mix.layers(n_layers)
    except SettingError as error:
        (ways,) = re.findall(r"; give ([\d or]+), or set mix.last", str(error))
        for depth in map(int, ways.split(" or ")):
            assert mix.layers(depth)


def test_without_a_pattern_of_mlps_every_layer_has_one_unless_there_are_none():
    for mlp, has in (("swiglu", True), ("relu2", True), ("none", False)):
        config = config_of(Mix("x", "GM*", last="attn", mlp=mlp))
        assert [config.has_mlp(i) for i in range(4)] == [has] * 4
        assert config.mlp_hidden == (96 if has else 0)


def test_norms_stand_where_each_mixer_was_published_or_where_the_mix_says():
    published = {"attn": "outputs", "gdn": "inputs", "mamba2": "inputs", MLP: "inputs"}
    kinds = config_of(Mix("x", "GM*-")).kinds
    assert {name: kind.norm for name, kind in kinds.items()} == published
    for norm in ("inputs", "outputs"):
        kinds = config_of(Mix("x", "GM*-", norm=norm)).kinds
        assert {kind.norm for kind in kinds.values()} == {norm}


def test_the_last_layer_is_what_last_says_also_behind_mlps():
    assert Mix("x", "GGG", last="attn").layers(5) == ("gdn",) * 4 + ("attn",)
    assert Mix("x", "M-*", last=MLP).layers(2)[-1] == MLP
    with pytest.raises(SettingError, match=r"mix\.last=attn would take the place of an MLP"):
        Mix("x", "M-M-", last="attn")


def test_a_kind_of_the_mixs_own_is_its_mixer_with_its_settings():
    mix = read(pattern="GW*W", kinds=SLIDING, attn_qk_norm="none", swa_qk_norm="head")
    config = config_of(mix)
    assert config.layers == ("gdn", "swa", "attn", "swa")
    swa, attn = config.kinds["swa"], config.kinds["attn"]
    assert (swa.mixer, attn.mixer) == ("attn", "attn")
    assert [swa.settings.window(i) for i in range(4)] == [0, 8, 0, 8]
    assert [attn.settings.window(i) for i in range(4)] == [0, 0, 0, 0]
    assert (swa.settings.qk_norm, attn.settings.qk_norm) == ("head", "none")
    listed = read(pattern=["gdn", "swa", "attn", "swa"], kinds=SLIDING)
    assert listed.pattern == mix.pattern


def test_an_option_under_a_kinds_name_outweighs_its_definition():
    assert read(pattern="W", kinds=SLIDING, swa_window=3).options_of("swa").window == 3
    assert read(pattern="W", kinds=SLIDING).options_of("swa").window == 8


def test_a_protocols_windows_go_by_the_mixers_index_and_spare_the_last():
    geometry = Geometry(windows=(5, 7))
    windows = config_of(Mix("x", "*-*-*-*-"), geometry=geometry).settings(0).windows
    assert windows == (5, 0, 7, 0, 5, 0, 0, 0)
    assert config_of(Mix("x", "*"), geometry=geometry).settings(0).windows == (5, 7, 5, 0)
    # A window of the mix's own is no rule of the protocol's.
    swa = config_of(Mix("x", "W", kinds=SLIDING), geometry=geometry).settings(0)
    assert swa.windows == (8, 8, 8, 8)


def test_a_window_may_be_a_share_of_the_context():
    half = {"swa": {"mixer": "attn", "letter": "W", "window_share": 0.5}}
    for context in (256, 8192):
        config = build_config(Mix("x", "MW", kinds=half), SIZE, Geometry(), 256, context)
        assert config.settings(1).windows == (0, context // 2) * 2
    with pytest.raises(SettingError, match="needs a training context"):
        build_config(Mix("x", "MW", kinds=half), SIZE, Geometry(), 256)


def test_rotary_positions_may_be_rounded_to_pairs():
    size = Blueprint("x", 80, 4, 4, 96)  # heads of 20, a quarter of which is 5
    options = {"attn_rotary": 0.25, "attn_rotary_exact": False}
    config = build_config(Mix("x", "*", options=options), size, Geometry(), 256)
    assert config.settings(0).rotary * 20 == pytest.approx(4)
    with pytest.raises(SettingError, match="turns 5 of the 20 channels"):
        build_config(Mix("x", "*", options={"attn_rotary": 0.25}), size, Geometry(), 256)


@pytest.mark.parametrize(
    ("n_layers", "share", "attention"),
    # Of Nemotron-H 8B's 52 layers four attend, 24 each are Mamba2 and MLPs.
    [(4, 0.08, 2), (8, 0.08, 2), (12, 0.08, 2), (16, 0.08, 2), (16, 0.125, 4), (26, 0.08, 4)],
)
def test_spread_keeps_the_rules_of_nemotron_h(n_layers, share, attention):
    """First is Mamba2, last an MLP, attention directly before an MLP, as many MLPs as Mamba2."""
    mix = Mix("x", "M*-", placement="spread", attention=share, mlp="relu2")
    layers = mix.layers(n_layers)
    assert len(layers) == 2 * n_layers
    assert layers.count("attn") == attention
    assert layers.count("mamba2") == layers.count("mlp") == n_layers - attention // 2
    assert (layers[0], layers[-1]) == ("mamba2", "mlp")
    assert all(layers[i + 1] == "mlp" for i, kind in enumerate(layers) if kind == "attn")


def test_spread_at_the_depth_of_nemotron_h_8b_is_its_string():
    published = "M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M-"
    spread = Mix("x", "M*-", placement="spread", attention=0.08, mlp="relu2")
    assert spread.layers(26) == Mix("x", published, mlp="relu2").layers(26)


def test_middle_takes_any_kind_that_attends():
    mix = Mix("x", "GGGW", placement="middle", last="swa", kinds=SLIDING)
    assert mix.layers(8) == ("gdn", "gdn", "gdn", "swa", "swa", "gdn", "gdn", "swa")


def test_what_a_mix_does_not_read_is_left_out():
    options = {"gdn_output_gate": False, "attn_rotary": 0.5, "swa_window": 3}
    kinds = SLIDING | {"other": {"mixer": "gdn"}}
    # And what it reads is written out, so that a default is a value like any other.
    gdn = {"gdn_output_gate": False, "gdn_allow_neg_eigval": True}
    gdn |= {"gdn_gate_activation": "silu", "gdn_norm_eps": 1e-5, "gdn_dt_init": "log_uniform"}
    assert Mix("x", "G", options=options, kinds=kinds).reads() == Mix("x", "G", options=gdn)
    swa = {"mixer": "attn", "rotary": 1.0, "qk_norm": "full", "window": 3}
    swa |= {"rotary_exact": True, "window_share": None, "output_gate": False}
    read = Mix("x", "G", last="swa", options=options, kinds=kinds).reads()
    assert read == Mix("x", "G", last="swa", options=gdn, kinds={"swa": swa})
    assert read.reads() == read
    # What is left out changes no model.
    mix = Mix("x", "GW", options=options, kinds=kinds)
    assert config_of(mix) == config_of(mix.reads())


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """Packages outside of the project: a mixer, and one that holds none."""
    folder = tmp_path / "my_mixers"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "still.py").write_text(
        """from dataclasses import dataclass

from models.mixer import Mixer


@dataclass(frozen=True)
class Options:
    share: float = 1.0


@dataclass(frozen=True)
class Rules:
    width: int = 4


@dataclass(frozen=True)
class Settings:
    width: int


MIXER = Mixer(
    name="still",
    layer="my_mixers.still:Still",
    norm="inputs",
    options=Options,
    rules=Rules,
    saved=Settings,
    settings=lambda options, rules, place: Settings(round(options.share * rules.width)),
    parameters=lambda config, layer: config.settings(layer).width,
    flops=lambda config, layer, context: 0.0,
    decode_bytes=lambda config, layer, context, element_bytes: (0, 0),
    activation_bytes=lambda config, layer, context, element_bytes: 0.0,
)
"""
    )
    (folder / "empty.py").write_text("")
    (folder / "other.py").write_text("MIXER = 'still'\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    for name in [name for name in sys.modules if name.split(".")[0] == "my_mixers"]:
        del sys.modules[name]


@pytest.mark.usefixtures("packages")
def test_a_mixer_of_ones_own_stands_under_its_dotted_path():
    kinds = {"still": {"mixer": "my_mixers.still", "letter": "Z", "share": 0.5}}
    mix = read(pattern="Z*", kinds=kinds)
    geometry = Geometry(options={"still_width": 6})
    config = config_of(mix, geometry=geometry)
    assert config.kinds["still"].mixer == "my_mixers.still"
    assert config.settings(0).width == 3
    assert check_rules_of(geometry.options, mix.mixers()) == {"still_width": 6}
    # A protocol that names a rule of a mixer nobody brought is refused.
    with pytest.raises(SettingError, match=r"protocol\.still_width is not a setting"):
        check_rules_of(geometry.options, Mix("x", "*").mixers())


WRONG_MIXER = {
    "no such module": (
        "my_mixers.rwkv",
        "mixer=my_mixers.rwkv cannot be imported .*in the fold",
    ),
    "no such package": (
        "nobodys.rwkv",
        "mixer=nobodys.rwkv cannot be imported .*in the fold",
    ),
    "no record": ("my_mixers.empty", "mixer=my_mixers.empty holds no MIXER, a models.mixer.Mixer"),
    "another record": ("my_mixers.other", "mixer=my_mixers.other holds no MIXER"),
    "relative": (".still", "mixer=.still is not known; valid: attn"),
    "a name": ("rwkv", "mixer=rwkv is not known; valid: attn, gdn, .*, or the dotted path"),
}


@pytest.mark.usefixtures("packages")
@pytest.mark.parametrize("case", WRONG_MIXER)
def test_a_mixer_that_cannot_be_had_is_refused_in_a_sentence(case):
    path, words = WRONG_MIXER[case]
    refused({"pattern": "*", "kinds": {"still": {"mixer": path}}}, words)


def refused(content, words):
    with pytest.raises(SettingError, match=words) as error:
        config_of(read(**content))
    assert str(error.value).endswith(".")
    assert "\n" not in str(error.value)


WRONG = {
    "letter": ({"pattern": "GGX*"}, r"mix.pattern=GGX\* has the letter X; valid: \* attn, G gdn, .*"
               "- mlp, or a list of attn, gdn, "),
    "a name for letters": ({"pattern": "gdn"}, "mix.pattern=gdn has the letter g; valid: "),
    "letter of a kind that is not there": (
        {"pattern": "GW"}, "mix.pattern=GW has the letter W; valid: "),
    "unknown in a list": ({"pattern": ["gdn", "rwkv"]}, "rwkv is not known; valid: attn, gdn, "),
    "empty": ({"pattern": ""}, "mix.pattern of x is empty"),
    "period": ({"pattern": "GG*"}, "size.n_layers=4 is not a multiple of the 3 .*give 3 or 6"),
    "period of sublayers": (
        {"pattern": "M-M-*-"}, "size.n_layers=4 .* 6 sublayers of mix=x, two a layer; give 3 or 6"),
    "last": ({"pattern": "GGG*", "last": "rwkv"}, "mix.last=rwkv is not known; valid: attn, gdn"),
    "last a letter": ({"pattern": "GGG*", "last": "*"}, r"mix.last=\* is not known; valid: attn"),
    "last an mlp": ({"pattern": "GGG*", "last": "mlp"}, "mix.last=mlp is not known; .*valid: attn"),
    "only mlps": ({"pattern": "--"}, "mix.pattern of x has no mixer"),
    "mlps of no kind": ({"pattern": "G-", "mlp": "none"}, "mix.mlp=none, but mix.pattern of x has"),
    "middle": (
        {"pattern": "GG", "placement": "middle"}, r"mix.placement=middle needs .*\(attn, "),
    "middle with mlps": (
        {"pattern": "G-*-", "placement": "middle"}, "mix.placement=middle has no place for MLPs"),
    "spread without a share": (
        {"pattern": "M*-", "placement": "spread"}, "mix.attention and mix.placement=spread go"),
    "a share without spread": ({"pattern": "M*", "attention": 0.1}, "mix.attention and mix.placem"),
    "spread of two": (
        {"pattern": "M-", "placement": "spread", "attention": 0.1}, "mix.placement=spread needs a"),
    "spread of a share too large": (
        {"pattern": "M*-", "placement": "spread", "attention": 0.7}, "mix.attention=0.7 must be"),
    "placement": ({"pattern": "G", "placement": "top"}, "mix.placement=top .*interleaved, middle"),
    "norm": ({"pattern": "G", "norm": "both"}, "mix.norm=both is not known; valid: inputs, outpu"),
    "mlp": ({"pattern": "G", "mlp": "gelu"}, "mix.mlp=gelu is not known; valid: none, relu2, swi"),
    "two windows": ({"pattern": "*", "attn_window": 8, "attn_window_share": 0.5}, "both set"),
    "share": ({"pattern": "*", "attn_window_share": 1.5}, "mix.attn_window_share=1.5 must be "),
    "eps": ({"pattern": "G", "norm_eps": 0}, "mix.norm_eps=0 must be above 0"),
    "option": (
        {"pattern": "*", "attn_qk_nrm": "head"},
        "mix.attn_qk_nrm is not a setting; nearest of those that are: mix.attn_qk_norm"),
    "option's value": (
        {"pattern": "*", "attn_qk_norm": "all"}, "mix.attn_qk_norm=all .*valid: full, head, none"),
    "option's type": (
        {"pattern": "G", "gdn_output_gate": 3}, "mix.gdn_output_gate=3 must be true or false"),
    "rotary": ({"pattern": "*", "attn_rotary": 1.5}, "mix.attn_rotary=1.5 must be a share .*0 to"),
    "rotary of this head": (
        {"pattern": "*", "attn_rotary": 0.3}, "mix.attn_rotary=0.3 turns 9.6 of the 32 channels"),
    "window": ({"pattern": "*", "attn_window": -1}, "mix.attn_window=-1 must be tokens, or 0"),
    "kind's option": (
        {"pattern": "W", "kinds": {"swa": {"mixer": "attn", "letter": "W", "windw": 8}}},
        "mix.swa_windw is not a setting; nearest of those that are: mix.swa_window"),
    "kind's option by its name": (
        {"pattern": "W", "kinds": SLIDING, "swa_windw": 8},
        "mix.swa_windw is not a setting; nearest of those that are: mix.swa_window"),
    "kind's value": (
        {"pattern": "W", "kinds": {"swa": {"mixer": "attn", "letter": "W", "window": "all"}}},
        "mix.swa_window='all' must be a whole number"),
    "kind without mixer": (
        {"pattern": "*", "kinds": {"swa": {"window": 8}}}, "mix.kinds.swa=.* must name a mixer"),
    "kind of a mixer's name": (
        {"pattern": "*", "kinds": {"attn": {"mixer": "attn"}}}, "mix.kinds.attn must be a name of"),
    "kind named mlp": (
        {"pattern": "*", "kinds": {"mlp": {"mixer": "attn"}}}, "mix.kinds.mlp must be a name of"),
    "kind with a dot": (
        {"pattern": "*", "kinds": {"a.b": {"mixer": "attn"}}}, "mix.kinds.a.b must be a name of"),
    "kind a number": (
        {"pattern": "*", "kinds": {3: {"mixer": "attn"}}}, "mix.kinds.3 must be a name of"),
    "letter of another": (
        {"pattern": "*", "kinds": {"swa": {"mixer": "attn", "letter": "G"}}},
        r"mix.kinds.swa.letter='G' must be .*taken: \* attn, G gdn, .*- mlp"),
    "letter of an mlp": (
        {"pattern": "*", "kinds": {"swa": {"mixer": "attn", "letter": "-"}}},
        "mix.kinds.swa.letter='-' must be one character"),
    "letter twice": (
        {"pattern": "*", "kinds": {**SLIDING, "far": {"mixer": "attn", "letter": "W"}}},
        "mix.kinds.far.letter='W' must be .*W swa"),
    "letters": (
        {"pattern": "*", "kinds": {"swa": {"mixer": "attn", "letter": "SW"}}},
        "mix.kinds.swa.letter='SW' must be one character"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_a_mix_that_cannot_be_is_refused_in_a_sentence(case):
    refused(*WRONG[case])


@pytest.mark.parametrize(
    ("geometry", "words"),
    [
        (lambda: Geometry(windows=(512, -1)), r"protocol.windows=\[512, -1\] must be tokens"),
        (lambda: Geometry(rope_theta=0.0), "protocol.rope_theta=0 must be above 0"),
        (lambda: Geometry(options={"gdn_key_multiple": 0}),
         "protocol.gdn_key_multiple=0 must be at least 1"),
        (lambda: Geometry(options={"mamba2_state": -1}), "protocol.mamba2_state=-1 must be at"),
        (lambda: Geometry(options={"gdn_key_multiple": "wide"}),
         "protocol.gdn_key_multiple='wide' must be a whole number"),
        (lambda: Geometry(options={"gdn_key_multipl": 16}),
         "protocol.gdn_key_multipl is not a setting; nearest .*: protocol.gdn_key_multiple"),
    ],
)  # fmt: skip
def test_a_protocols_rules_that_cannot_be_are_refused_in_a_sentence(geometry, words):
    with pytest.raises(SettingError, match=words) as error:
        check_rules_of(geometry().options, MIXERS.values())
    assert "\n" not in str(error.value)
