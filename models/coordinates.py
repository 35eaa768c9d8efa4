"""The coordinate check of a parametrization: `python -m models.coordinates mix=gdn3_attn1`.

Models of several widths, alike in all else, take some steps on the same tokens, and the root mean
square of every block's activations is set beside that of the other widths (Yang et al. 2022,
Tensor Programs V, appendix D.1). With the maximal update parametrization it depends on the width
in no step; with the standard one it grows with the width once weights have been updated.

What grows is the number of heads, at one head width, and with it the model's width, the MLP's and
the recurrent layers'; depth, vocabulary and context stay. Tokens are a Markov chain's, drawn from
the seed, so that there is something to learn and no corpus to read.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from models.command import ended, parse, setting
from models.config import Blueprint, ModelConfig, MupBase
from models.errors import SettingError
from models.format import write_table
from models.language_model import LanguageModel
from models.mix import Geometry, Mix, build_config
from models.mixers import MIXERS, lookup
from models.named import named
from models.parametrization import PARAMETRIZATIONS, check, parameter_groups, scales

WITHIN = 1.5
"""Largest over smallest activation over the widths that the project takes for equal."""
VOCAB, ROWS, TOKENS = 256, 8, 64
MLP_RATIO = 2
"""mlp_hidden over d_model, as at size 50k."""
PARTS = ("mixer", "mlp", "stream")
"""What is measured of a block: the outputs of mixer and MLP, before a norm behind them, and the
residual stream after the block."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Whether activations keep their size as a model gets wider, in the first steps of training.

    Rows are, for every mix and parametrization, the outputs of each block's mixer and MLP (before a
    norm behind them), the residual stream behind the block, and the logits. Columns are their root
    mean square after the last step at each width, and `ratio`, the largest over the smallest of the
    widths, in the step where that is largest. Logits are drawn smaller in wider models by the
    maximal update parametrization, so that only the others are judged: within 1.5.
    """

    EXAMPLES = (
        "mix=transformer,gdn3_attn1 widths=32,64,128,256 steps=10 parametrization=mup,standard",
        "widths=64,256 seeds=3 format=json",
    )
    mix: tuple[str, ...] = setting(
        (), "names in conf/mix, or mixers, which then stand in every layer; every mixer unless "
        "given", shape="A,B",
    )  # fmt: skip
    widths: tuple[int, ...] = setting((32, 64, 128, 256), "d_model of the models", least=1)
    steps: int = setting(10, "updates", least=1)
    parametrization: tuple[str, ...] = setting(
        ("standard", "mup"), "standard, mup", shape="A,B", choices=PARAMETRIZATIONS
    )
    lr: tuple[float, ...] = setting(
        (0.03,), "learning rate; one, or one for each width. 0.03 is the ladder's at N = 50k",
        above=0,
    )  # fmt: skip
    warmup: int = setting(25, "steps over which the rate rises from 0; 25 is the ladder's", least=0)
    base_width: int | None = setting(
        None, "d_model at which both parametrizations are the same, the first width unless given",
        least=1,
    )  # fmt: skip
    head_width: int = setting(16, "of attention's heads, at every width", least=2)
    layers: int = setting(4, "pairs of a mixer and an MLP", least=1)
    seeds: int = setting(1, "models of each width, whose squares are averaged", least=1)
    format: str = setting("table", "how it is printed", choices=("table", "markdown", "json"))


@dataclass(frozen=True)
class Coordinates:
    """Root mean squares of a mix's activations at several widths."""

    mix: str
    parametrization: str
    widths: tuple[int, ...]
    names: tuple[str, ...]
    """Of the activations, in the order of the blocks, the logits last."""
    values: Tensor
    """[widths, 1 + steps, names], before the first step and after each."""
    losses: tuple[float, ...]
    """Of the last step's batch, by width, in nats."""

    def ratios(self) -> Tensor:
        """The largest over the smallest width's, after each step: [steps, names]."""
        after = self.values[:, 1:]
        return after.amax(0) / after.amin(0)

    @property
    def ratio(self) -> float:
        """The largest of all steps and activations but the logits."""
        return self.ratios()[:, :-1].max().item()


def coordinates(
    mix: Mix, parametrization: str, asked: Settings, geometry: Geometry | None = None
) -> Coordinates:
    """Train a mix at every width and measure it after every step.

    Raises SettingError where the mix cannot be built at a width or has no rule.
    """
    lrs = asked.lr * len(asked.widths) if len(asked.lr) == 1 else asked.lr
    configs = [
        _config(mix, width, parametrization, asked, geometry or Geometry())
        for width in asked.widths
    ]
    values, losses = [], []
    for config, lr in zip(configs, lrs, strict=True):
        runs = [_train(config, lr, seed, asked) for seed in range(asked.seeds)]
        values.append(torch.stack([run for run, _ in runs]).square().mean(0).sqrt())
        losses.append(sum(loss for _, loss in runs) / asked.seeds)
    names = [f"block {i} {part}" for i, part in _measured(configs[0])]
    return Coordinates(
        mix.name, parametrization, asked.widths, (*names, "logits"), torch.stack(values),
        tuple(losses),
    )  # fmt: skip


def _config(
    mix: Mix, width: int, parametrization: str, asked: Settings, geometry: Geometry
) -> ModelConfig:
    if width % asked.head_width:
        raise SettingError(
            f"widths={width} must be a multiple of head_width={asked.head_width}, so that it is a "
            "whole number of heads."
        )
    size = Blueprint(
        f"width {width}", width, asked.layers, width // asked.head_width, MLP_RATIO * width,
        init="fan_in",
    )  # fmt: skip
    config = build_config(mix, size, geometry, VOCAB, TOKENS)
    if parametrization == "mup":
        base = MupBase(asked.base_width or asked.widths[0], asked.head_width, asked.layers)
        config = dataclasses.replace(config, mup=base)
        check(config)
    return config


def _measured(config: ModelConfig) -> list[tuple[int, str]]:
    """(block, what of it), in the order in which a forward pass makes them."""
    return [
        (layer, part)
        for layer in range(config.n_layers)
        for part in PARTS
        if (part != "mixer" or config.has_mixer(layer)) and (part != "mlp" or config.has_mlp(layer))
    ]


def _train(config: ModelConfig, lr: float, seed: int, asked: Settings) -> tuple[Tensor, float]:
    """Activations before the first step and after each, [1 + steps, names], and the last loss."""
    model = LanguageModel(config)
    model.initialize(seed)
    undecayed = {
        f"blocks.{layer}.mixer.{name}"
        for layer in range(config.n_layers)
        if config.has_mixer(layer)
        for name in lookup(config.kind(layer).mixer).undecayed
    }
    groups = parameter_groups(
        model.named_parameters(),
        scales(config),
        undecayed=lambda name: name.startswith("embedding.") or name in undecayed,
        weight_decay=0.1,
        eps=1e-8,
    )
    optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.99), eps=1e-8, fused=True)
    tokens = markov_tokens(seed, (asked.steps + 1) * ROWS)
    held, *batches = tokens.split(ROWS)
    rows, loss = [_measure(model, held)], 0.0
    for step, batch in enumerate(batches, 1):
        rate = lr * min(1.0, step / max(1, asked.warmup))
        for group in optimizer.param_groups:
            group["lr"] = rate * group["lr_scale"]
        total, nll = model.loss(
            batch[:, :-1], batch[:, 1:], weight=1 / (ROWS * TOKENS), z_loss=1e-5
        )
        optimizer.zero_grad(set_to_none=True)
        total.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        rows.append(_measure(model, held))
        loss = nll.mean().item()
    return torch.stack(rows), loss


@torch.no_grad()
def _measure(model: LanguageModel, tokens: Tensor) -> Tensor:
    """Root mean squares of the activations of tokens [B, T], in the order of `_measured`."""
    seen: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
        seen.append(output.float().square().mean().sqrt())

    parts = [
        part
        for block in model.blocks
        for part in (block.mixer, block.mlp, block)
        if part is not None
    ]
    hooks = [part.register_forward_hook(keep) for part in parts]
    try:
        keep(model, None, model(tokens))
    finally:
        for hook in hooks:
            hook.remove()
    return torch.stack(seen)


def markov_tokens(seed: int, rows: int) -> Tensor:
    """[rows, TOKENS + 1] of a chain whose next token depends on the one before."""
    generator = torch.Generator().manual_seed(seed)
    following = (3 * torch.randn(VOCAB, VOCAB, generator=generator)).softmax(-1)
    tokens = [torch.randint(0, VOCAB, (rows,), generator=generator)]
    for _ in range(TOKENS):
        tokens.append(torch.multinomial(following[tokens[-1]], 1, generator=generator)[:, 0])
    return torch.stack(tokens, 1)


def main(arguments: list[str] | None = None) -> int:
    """Print the check; 2 where a setting cannot be used, with a sentence on stderr."""
    words = sys.argv[1:] if arguments is None else arguments
    return ended(lambda: _print(parse(Settings, words, "python -m models.coordinates")))


def _print(asked: Settings) -> int:
    if len(asked.widths) < 2 or len(set(asked.widths)) < len(asked.widths):
        raise SettingError("widths must be two different ones or more, like 32,128.")
    if len(asked.lr) not in (1, len(asked.widths)):
        raise SettingError(
            f"lr must be one rate, or one for each of the {len(asked.widths)} widths."
        )
    mixes = [_mix(name) for name in asked.mix or MIXERS]
    results = [
        coordinates(mix, parametrization, asked)
        for mix in mixes
        for parametrization in asked.parametrization
    ]
    print(_json(results) if asked.format == "json" else _text(results, asked), end="")
    return 0


def _mix(name: str) -> Mix:
    """A mix of conf/, or a mixer in every layer."""
    if name in MIXERS:
        return Mix(name, (name,))
    return named((name,))[0].mix


def _text(results: Sequence[Coordinates], asked: Settings) -> str:
    rows = [
        (
            result.mix, result.parametrization, name,
            *(f"{value:.3g}" for value in result.values[:, -1, i].tolist()),
            f"{result.ratios()[:, i].max():.2f}",
        )
        for result in results
        for i, name in enumerate(result.names)
    ]  # fmt: skip
    columns = ("mix", "parametrization", "activation", *map(str, asked.widths), "ratio")
    table = write_table(columns, rows, asked.format, (0, 1, 2))
    verdicts = [
        f"{result.mix} {result.parametrization}: activations of blocks within "
        f"{result.ratio:.2f} over widths {asked.widths[0]} to {asked.widths[-1]}, "
        f"{'at most' if result.ratio <= WITHIN else 'more than'} {WITHIN}\n"
        for result in results
    ]
    return table + "\n" + "".join(verdicts)


def _json(results: Sequence[Coordinates]) -> str:
    """Every activation at every width after every step, the start first."""
    content = [
        {
            "mix": result.mix,
            "parametrization": result.parametrization,
            "ratio": result.ratio,
            "losses": dict(zip(map(str, result.widths), result.losses, strict=True)),
            "activations": {
                name: {
                    str(width): result.values[w, :, i].tolist()
                    for w, width in enumerate(result.widths)
                }
                for i, name in enumerate(result.names)
            },
        }
        for result in results
    ]
    return json.dumps(content, indent=1) + "\n"


if __name__ == "__main__":
    sys.exit(main())
