"""Every mixer keeps the contract of docs/mixers.md, and one that breaks a part of it is named."""

import dataclasses
import sys
import types

import pytest
import torch

from models import doctor
from models.contract import check
from models.mixers import MIXERS
from models.mixers.attn.layer import Attention
from models.mixers.gdn.layer import GatedDeltaNet


@pytest.mark.parametrize("mixer", MIXERS)
def test_every_mixer_of_the_project_keeps_the_contract(mixer):
    checks = check(mixer)
    assert len(checks) == 11
    assert [str(line) for line in checks if not line.right] == []


class Acausal(GatedDeltaNet):
    """Each token also sees the mean of its row."""

    def forward(self, x, documents=None):
        return super().forward(x, documents) + x.mean(1, keepdim=True)


class OneDocument(GatedDeltaNet):
    def forward(self, x, documents=None):  # noqa: ARG002
        return super().forward(x)


class ReadsPadding(GatedDeltaNet):
    def extend(self, x, state, new):
        valid = torch.ones_like(new.valid)
        return super().extend(x, state, dataclasses.replace(new, valid=valid))


class Forgets(GatedDeltaNet):
    """Decoding begins each piece with an empty state."""

    def extend(self, x, state, new):
        state |= {name: torch.zeros_like(tensor) for name, tensor in state.items()}
        return super().extend(x, state, new)

    def step_function(self):
        return self.extend


class Unused(GatedDeltaNet):
    def __init__(self, config, index):
        super().__init__(config, index)
        self.unused = torch.nn.Parameter(torch.ones(3))


class HalfState(GatedDeltaNet):
    def new_state(self, batch, capacity, dtype):
        state = super().new_state(batch, capacity, dtype)
        return state | {"state": state["state"].to(torch.bfloat16)}


class WholeCache(Attention):
    """Keys and values of the whole context where a window needs fewer."""

    def new_state(self, batch, capacity, dtype):
        window, self.window = self.window, 0
        state = super().new_state(batch, capacity, dtype)
        self.window = window
        return state


class NotANumber(GatedDeltaNet):
    def forward(self, x, documents=None):
        return super().forward(x, documents) * torch.nan


class Raises(GatedDeltaNet):
    def extend(self, *_):
        raise RuntimeError("no decoding\nyet")


@pytest.fixture
def broken(monkeypatch):
    """A function that gives a mixer of the project another layer or record, and its path."""

    def make(mixer, layer_class=None, **changes):
        module = types.ModuleType("broken.mixer")
        if layer_class is not None:
            module.Layer = layer_class
            changes["layer"] = "broken.mixer:Layer"
        module.MIXER = dataclasses.replace(MIXERS[mixer], **{"name": "broken", **changes})
        monkeypatch.setitem(sys.modules, "broken", types.ModuleType("broken"))
        monkeypatch.setitem(sys.modules, "broken.mixer", module)
        return "broken.mixer"

    return make


PIECES, PADDING = "decoding in pieces is one pass", "padding leaves no trace"
FUTURE = "no token changes what came before it"
DOCUMENTS = "documents are read as if alone"
GRADIENTS = "every parameter has a gradient"
ROLES = "every parameter has a role, or none has"
BYTES, COUNTED = "decode_bytes, counted = allocated", "parameters, counted = built"


@pytest.mark.parametrize(
    ("mixer", "layer", "wrong"),
    [
        ("gdn", Acausal, {FUTURE, DOCUMENTS, PIECES, PADDING}),
        ("gdn", OneDocument, {DOCUMENTS}),
        ("gdn", ReadsPadding, {PADDING}),
        ("gdn", Forgets, {PIECES, PADDING}),
        ("gdn", Unused, {GRADIENTS, COUNTED, ROLES}),
        ("gdn", HalfState, {BYTES, PIECES, PADDING}),
        ("attn", WholeCache, {BYTES}),
        ("gdn", NotANumber, {FUTURE, DOCUMENTS, PIECES, PADDING, GRADIENTS}),
        ("gdn", Raises, {PIECES, PADDING}),
    ],
)
def test_a_layer_that_breaks_the_contract_is_wrong_in_just_that(broken, mixer, layer, wrong):
    assert {line.what for line in check(broken(mixer, layer)) if not line.right} == wrong


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"parameters": lambda *_: 7}, f"wrong  {COUNTED}: 7 for 34,344"),
        ({"undecayed": ("A_lag",)}, "wrong  names in undecayed exist: not A_lag"),
        ({"confounds": ("models.confound:no",)}, "in confounds exist: not models.confound:no"),
        ({"layer": "models.mixers.gdn.layer:No"}, "layer is built and drawn: raises SettingError"),
    ],
)
def test_a_record_that_is_not_its_layers_is_named_and_the_doctor_ends_with_1(
    broken, capsys, changes, said
):
    assert doctor.main(["--mixer", broken("gdn", operators=(), **changes)]) == 1
    assert said in capsys.readouterr().out


def test_settings_that_do_not_come_back_from_a_record_are_refused(broken, capsys):
    assert doctor.main(["--mixer", broken("gdn", saved=MIXERS["attn"].saved)]) == 2
    assert "saved of mixer broken.key_dim is not a setting" in capsys.readouterr().err
