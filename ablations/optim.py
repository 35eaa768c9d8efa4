"""The optimizers with the ladder's weight-decay groups, and the rule by which a step is skipped."""

from __future__ import annotations

import math
from collections import deque

import torch
from torch import nn

from ablations.ladder import Recipe
from models.language_model import LanguageModel
from models.mixers import lookup

WINDOW = 128  # steps; Olmo Hybrid's SkipStepAdamW
ENOUGH = WINDOW // 2  # before that many, nothing is an outlier


def build_optimizers(
    model: LanguageModel, recipe: Recipe, optim: str = "adamw"
) -> list[torch.optim.Optimizer]:
    """The optimizers of a run, at learning rate 0 (the loop sets it).

    `adamw`: one AdamW, with no decay on the embedding (Olmo Hybrid's ladder) nor on the
    parameters that a mixer names (as their authors mark them). `muon`: Muon (Jordan et al.
    2024) for the matrices inside the blocks, its update scaled to AdamW's root mean square (Liu
    et al. 2025) so that one learning rate serves both, and that AdamW for everything else.
    """
    matrices: list[nn.Parameter] = []
    decayed: list[nn.Parameter] = []
    undecayed: list[nn.Parameter] = []
    exempt = undecayed_names(model)
    for name, parameter in model.named_parameters():
        role = name.rsplit(".", 1)[-1]
        if (
            optim == "muon"
            and name.startswith("blocks.")
            and role == "weight"
            and parameter.dim() == 2
            and name not in exempt
        ):
            matrices.append(parameter)
        elif name.startswith("embedding.") or name in exempt:
            undecayed.append(parameter)
        else:
            decayed.append(parameter)
    adamw = torch.optim.AdamW(
        [
            {"params": decayed, "weight_decay": recipe.weight_decay},
            {"params": undecayed, "weight_decay": 0.0},
        ],
        lr=0.0,
        betas=(recipe.beta1, recipe.beta2),
        eps=recipe.eps,
        fused=True,
    )
    if not matrices:
        return [adamw]
    muon = torch.optim.Muon(
        matrices, lr=0.0, weight_decay=recipe.weight_decay, adjust_lr_fn="match_rms_adamw"
    )
    return [adamw, muon]


def undecayed_names(model: LanguageModel) -> set[str]:
    """Parameters of mixers that take no weight decay, by the mixers' records."""
    config = model.config
    return {
        f"blocks.{layer}.mixer.{name}"
        for layer in range(config.n_layers)
        if config.has_mixer(layer)
        for name in lookup(config.kind(layer).mixer).undecayed
    }


class OutlierRule:
    """Says which steps to skip: loss or gradient norm over `sigma` standard deviations above the
    mean of the last 128 steps, or not finite (Olmo Hybrid's SkipStepAdamW, the same in every mix).
    """

    def __init__(self, sigma: float) -> None:
        self.sigma = sigma
        self.losses: deque[float] = deque(maxlen=WINDOW)
        self.norms: deque[float] = deque(maxlen=WINDOW)

    def skips(self, loss: float, grad_norm: float) -> bool:
        """Whether to skip this step; remembers it either way, unless it is not finite."""
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            return True
        outlier = self.sigma > 0 and (
            _is_outlier(loss, self.losses, self.sigma)
            or _is_outlier(grad_norm, self.norms, self.sigma)
        )
        self.losses.append(loss)
        self.norms.append(grad_norm)
        return outlier

    def state(self) -> dict[str, list[float]]:
        return {"losses": list(self.losses), "norms": list(self.norms)}

    def restore(self, state: dict[str, list[float]]) -> None:
        self.losses.extend(state["losses"])
        self.norms.extend(state["norms"])


def _is_outlier(value: float, past: deque[float], sigma: float) -> bool:
    if len(past) < ENOUGH:
        return False
    mean = sum(past) / len(past)
    deviation = math.sqrt(sum((x - mean) ** 2 for x in past) / (len(past) - 1))
    return value > mean + sigma * deviation
