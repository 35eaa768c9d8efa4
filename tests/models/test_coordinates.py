"""The coordinate check: what a width changes in the first steps, with muP and without."""

import json

import pytest
import torch

from models.coordinates import Settings, _mix, coordinates, main, markov_tokens
from models.mixers import MIXERS

QUICK = Settings(widths=(64, 256), layers=1, steps=6, warmup=12)


@pytest.mark.parametrize("mixer", MIXERS)
def test_activations_keep_their_size_with_mup_and_not_without(mixer):
    """A factor of four in width. Without, updates of hidden matrices have that much more terms."""
    with_mup, without = (coordinates(_mix(mixer), p, QUICK) for p in ("mup", "standard"))
    assert with_mup.ratio < 1.5 < without.ratio
    assert all(loss < torch.log(torch.tensor(256.0)).item() + 1 for loss in with_mup.losses)
    assert with_mup.names == ("block 0 mixer", "block 0 mlp", "block 0 stream", "logits")


def test_at_the_base_width_both_are_the_same_to_the_bit():
    asked = Settings(widths=(32, 64), layers=1, steps=2)
    mup, standard = (coordinates(_mix("attn"), p, asked) for p in ("mup", "standard"))
    assert torch.equal(mup.values[0], standard.values[0])
    assert not torch.equal(mup.values[1], standard.values[1])


def test_values_are_the_activations_of_the_start_first():
    """With no rate nothing moves; activations before the first step are those after the last."""
    asked = Settings(widths=(32, 64), layers=1, steps=2, lr=(1e-30,))
    result = coordinates(_mix("gdn"), "standard", asked)
    assert result.values.shape == (2, 3, 4)
    assert torch.allclose(result.values[:, 0], result.values[:, -1], rtol=1e-6)
    expected = result.values[:, 1].amax(0) / result.values[:, 1].amin(0)
    assert torch.allclose(result.ratios()[0], expected)


def test_the_command_says_every_activation_and_a_verdict(capsys):
    words = ["mix=transformer", "widths=32,64", "layers=1", "steps=1", "lr=0.03,0.02"]
    assert main(words) == 0
    told = capsys.readouterr().out
    assert told.count("transformer") == 2 * 4 + 2
    assert "transformer mup: activations of blocks within 1." in told
    assert main([*words, "format=json", "parametrization=mup"]) == 0
    (result,) = json.loads(capsys.readouterr().out)
    assert result["parametrization"] == "mup"
    assert len(result["activations"]["block 0 stream"]["64"]) == 2


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["widths=32"], "widths must be two different ones"),
        (["widths=32,40"], "widths=40 must be a multiple of head_width=16"),
        (["lr=0.1,0.2", "widths=32,64,128"], "one for each of the 3 widths"),
        (["mix=nothing"], "mix=nothing"),
        (["parametrization=sp"], "parametrization=sp"),
    ],
)
def test_what_cannot_be_checked_is_a_sentence(words, sentence, capsys):
    assert main(words) == 2
    told = capsys.readouterr().err
    assert sentence in told
    assert len(told.splitlines()) == 1


def test_tokens_follow_the_one_before():
    """A chain has fewer pairs than independent tokens would."""
    tokens = markov_tokens(0, 64)
    assert tokens.shape == (64, 65)
    pairs = torch.stack([tokens[:, :-1].flatten(), tokens[:, 1:].flatten()], 1)
    shuffled = torch.stack([pairs[:, 0], pairs[torch.randperm(len(pairs)), 1]], 1)
    assert len(pairs.unique(dim=0)) < 0.8 * len(shuffled.unique(dim=0))
