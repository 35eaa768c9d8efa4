"""The optimizers with the ladder's weight-decay groups, and the rule by which a step is skipped."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate
from torch.optim._muon import _adjust_lr, _zeropower_via_newtonschulz

from ablations.ladder import Recipe
from models.language_model import LanguageModel
from models.mixers import lookup
from models.parametrization import parameter_groups, scales

WINDOW = 128  # steps; Olmo Hybrid's SkipStepAdamW
ENOUGH = WINDOW // 2  # before that many, nothing is an outlier


def build_optimizers(
    model: LanguageModel, recipe: Recipe, optim: str = "adamw"
) -> list[torch.optim.Optimizer]:
    """The optimizers of a run, at learning rate 0 (the loop sets it).

    `adamw`: one AdamW, with no decay on the embedding (Olmo Hybrid's ladder) nor on the
    parameters that a mixer names (as their authors mark them), and in a model with the maximal
    update parametrization a rate, decay and eps of each by its rule. `muon`: Muon (Jordan et al.
    2024) for the matrices inside the blocks, its update scaled to AdamW's root mean square (Liu
    et al. 2025) so that one learning rate serves both, and that AdamW for everything else.
    """
    matrices: list[nn.Parameter] = []
    decayed: list[nn.Parameter] = []
    undecayed: list[nn.Parameter] = []
    exempt = undecayed_names(model)
    if model.config.mup is not None:
        return [_scaled_adamw(model, recipe, exempt)]
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
    muon = Muon(matrices, lr=0.0, weight_decay=recipe.weight_decay, adjust_lr_fn="match_rms_adamw")
    return [adamw, muon]


def _scaled_adamw(
    model: LanguageModel, recipe: Recipe, exempt: Collection[str]
) -> torch.optim.Optimizer:
    groups = parameter_groups(
        model.named_parameters(),
        scales(model.config),
        undecayed=lambda name: name.startswith("embedding.") or name in exempt,
        weight_decay=recipe.weight_decay,
        eps=recipe.eps,
    )
    betas = (recipe.beta1, recipe.beta2)
    return torch.optim.AdamW(groups, lr=0.0, betas=betas, eps=recipe.eps, fused=True)


def set_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every group its share of a learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)


class Muon(torch.optim.Muon):
    """torch's Muon, also of matrices that are sharded over devices.

    Its update is a function of a whole matrix. Momentum is kept and applied in shards; each update
    is gathered, orthogonalised on every device alike, and of the result each keeps its own rows. So
    the update of given gradients is that of one device to the bit.
    """

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        if not any(isinstance(p, DTensor) for group in self.param_groups for p in group["params"]):
            return super().step(closure)
        assert closure is None
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._step_sharded(parameter, group)
        return None

    def _step_sharded(self, parameter: DTensor, group: dict[str, Any]) -> None:
        gradient, state = parameter.grad, self.state[parameter]
        assert isinstance(gradient, DTensor)
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        momentum = state["momentum_buffer"]
        momentum.lerp_(gradient, 1 - group["momentum"])
        update = gradient.lerp(momentum, group["momentum"]) if group["nesterov"] else momentum
        rounded = update.bfloat16()  # as the iteration begins: half as much to gather
        assert isinstance(rounded, DTensor)
        whole = _zeropower_via_newtonschulz(
            rounded.full_tensor(), group["ns_coefficients"], group["ns_steps"], group["eps"]
        )
        mesh, placements = parameter.device_mesh, parameter.placements
        replicas = DTensor.from_local(whole, mesh, [Replicate()] * mesh.ndim, run_check=False)
        lr = _adjust_lr(group["lr"], group["adjust_lr_fn"], parameter.shape)
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.add_(replicas.redistribute(placements=placements), alpha=-lr)


def undecayed_names(model: LanguageModel) -> set[str]:
    """Parameters of mixers that take no weight decay, by the mixers' records."""
    config = model.config
    return {
        f"blocks.{layer}.mixer.{name}"
        for layer in range(config.n_layers)
        if config.has_mixer(layer)
        for name in lookup(config.kind(layer).mixer).undecayed
    }


def step_unless(optimizer: torch.optim.Optimizer, skip: Tensor) -> None:
    """`optimizer.step()`, and nothing where `skip` (0-d bool) is true.

    On a GPU the host does not learn which: it goes on while the decision is being made.
    """
    if decided_here(skip.device):
        if not skip:
            optimizer.step()
    else:
        _step_unless_on_device(optimizer, skip)


def decided_here(device: torch.device) -> bool:
    """Whether to read a tensor of this device takes no waiting."""
    return device.type == "cpu"


@torch.no_grad()
def _step_unless_on_device(optimizer: torch.optim.Optimizer, skip: Tensor) -> None:
    if isinstance(optimizer, torch.optim.AdamW):
        # The fused kernel's own way, meant for loss scaling: it leaves everything as it was.
        optimizer.found_inf = skip.float()  # type: ignore[attr-defined]
        optimizer.step()
        return
    kept = []
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is not None:
                state = optimizer.state[parameter]
                momentum = state.setdefault("momentum_buffer", torch.zeros_like(parameter.grad))
                kept += [(x, x.clone()) for x in map(_own, (parameter, momentum))]
    optimizer.step()
    for now, before in kept:
        now.copy_(torch.where(skip, before, now))


def _own(tensor: Tensor) -> Tensor:
    """This device's shard of a sharded tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


@dataclass(frozen=True)
class Outcome:
    """What the rule made of the steps up to one."""

    loss: float
    grad_norm: float
    skipped: int
    """Of the run."""
    skipped_in_a_row: int
    diverged: tuple[int, float, float] | None
    """Step, loss and gradient norm where the run had diverged, None where it has not."""


class OutlierRule:
    """Says which steps to skip: loss or gradient norm over `sigma` standard deviations above the
    mean of the last 128 steps, or not finite (Olmo Hybrid's SkipStepAdamW, the same in every mix).

    All of it is decided and counted where the loss lies, so that the host need not wait for it. A
    run has diverged once `max_skipped` steps in a row were skipped.
    """

    def __init__(self, sigma: float, max_skipped: int, device: torch.device) -> None:
        self.sigma, self.max_skipped = sigma, max_skipped
        nan = float("nan")
        self._past = torch.full((2, WINDOW), nan, dtype=torch.float64, device=device)
        """Losses and norms, the newest last; NaN where there were fewer."""
        self._counts = torch.zeros(2, dtype=torch.float64, device=device)
        """Steps skipped, in all and in a row."""
        self._diverged = torch.zeros(3, dtype=torch.float64, device=device)
        """Step, loss and norm; 0 before."""
        self._last = torch.full((2,), nan, dtype=torch.float64, device=device)

    def skips(self, step: int, loss: Tensor, grad_norm: Tensor) -> Tensor:
        """Whether to skip this step, 0-d bool; remembers it either way, unless it is not finite."""
        now = torch.stack([loss.double(), grad_norm.double()])
        finite = now.isfinite().all()
        skip = ~finite
        if self.sigma > 0:
            past = self._past
            n = (~past[:1].isnan()).sum()
            mean = past.nansum(1, keepdim=True) / n
            deviation = ((past - mean).square().nansum(1, keepdim=True) / (n - 1)).sqrt()
            above = now > (mean + self.sigma * deviation).squeeze(1)
            skip = skip | ((n >= ENOUGH) & above.any())
        moved = torch.cat([self._past[:, 1:], now.unsqueeze(1)], dim=1)
        self._past = torch.where(finite, moved, self._past)
        total, in_a_row = self._counts
        in_a_row = torch.where(skip, in_a_row + 1, 0.0)
        self._counts = torch.stack([total + skip, in_a_row])
        first = (in_a_row >= self.max_skipped) & (self._diverged[0] == 0)
        here = torch.cat([now.new_full((1,), step), now])
        self._diverged = torch.where(first, here, self._diverged)
        self._last = now
        return skip

    def read(self) -> Outcome:
        """Waits for the steps up to here."""
        values = torch.cat([self._last, self._counts, self._diverged]).tolist()
        loss, norm, skipped, in_a_row, at, *there = values
        diverged = (int(at), there[0], there[1]) if at else None
        return Outcome(loss, norm, int(skipped), int(in_a_row), diverged)

    def state(self) -> dict[str, list[float]]:
        losses, norms = ([x for x in row if x == x] for row in self._past.tolist())
        return {"losses": losses, "norms": norms}

    def restore(self, state: dict[str, list[float]], skipped: int, skipped_in_a_row: int) -> None:
        """Go on from a `state` and the counts of then."""
        for row, values in zip(self._past, (state["losses"], state["norms"]), strict=True):
            if values:
                row[-len(values) :] = row.new_tensor(values)
        self._counts.copy_(self._counts.new_tensor([skipped, skipped_in_a_row]))
