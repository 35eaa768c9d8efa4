"""One of four ranks of test_distributed.py: what sharding leaves as it is, to the bit."""

import torch

from ablations.distributed import Parallel, World, environment, joined
from ablations.optim import _step_unless_on_device, build_optimizers
from ablations.resolve import resolve
from models.language_model import LanguageModel
from tests.ablations.conftest import settings


def gathers_in_bf16_change_no_bit(world, how, spec):
    """Losses and gradients of two micro-batches under autocast, beside gathers in float32."""
    results = []
    for bf16 in (False, True):
        model = LanguageModel(spec.model)
        model.initialize(0)
        parallel = Parallel(model, how, world, torch.device("cpu"), bf16=bf16)
        if bf16:  # a block is gathered again for what it computes again, which is the same
            model.recompute = {"fsdp": "selective", "hsdp": "true"}[how]
        arrived = {}

        def note(module, _inputs, arrived=arrived):
            if hasattr(module, "A_log"):
                arrived["decay"] = module.A_log.detach().clone()
                arrived["matrix"] = module.q_proj.weight.detach().clone()

        for block in model.blocks:
            block.mixer.register_forward_pre_hook(note)
        generator = torch.Generator().manual_seed(world.rank)
        losses = []
        for last in (False, True):
            tokens = torch.randint(0, spec.model.vocab_size, (2, 33), generator=generator)
            with torch.autocast("cpu", torch.bfloat16):
                loss, _ = parallel.loss(
                    tokens[:, :-1], tokens[:, 1:], weight=1 / 64, z_loss=1e-5, last=last
                )
            loss.backward()
            losses.append(loss.detach())
        rounded = arrived["matrix"].bfloat16().float()
        assert torch.equal(arrived["matrix"], rounded) == bf16
        assert not torch.equal(arrived["decay"], arrived["decay"].bfloat16().float())
        assert all(p.to_local().dtype == torch.float32 for p in model.parameters())
        grads = [parameter.grad.full_tensor() for parameter in model.parameters()]
        results.append([*losses, *grads])
    for wide, narrow in zip(*results, strict=True):
        assert wide.dtype == narrow.dtype == torch.float32
        assert torch.equal(wide, narrow)


def muon_is_that_of_one_device(world, how, spec):
    """Weights and momenta after given gradients; a step left out by the device among them."""
    alone, sharded = LanguageModel(spec.model), LanguageModel(spec.model)
    for model in (alone, sharded):
        model.initialize(0)
    Parallel(sharded, how, world, torch.device("cpu"))
    pairs = [build_optimizers(model, spec.recipe, "muon") for model in (alone, sharded)]
    assert [[type(o).__name__ for o in pair] for pair in pairs] == [["AdamW", "Muon"]] * 2
    for optimizer in pairs[0] + pairs[1]:
        for group in optimizer.param_groups:
            group["lr"] = 0.01
    generator = torch.Generator().manual_seed(0)
    for skipped in (False, True, False):
        for whole, cut in zip(alone.parameters(), sharded.parameters(), strict=True):
            whole.grad = torch.randn(whole.shape, generator=generator)
            rows = slices(cut, whole.grad)
            cut.grad = type(cut.data).from_local(
                rows, cut.device_mesh, cut.placements, shape=cut.shape, stride=cut.stride()
            )
        for theirs, ours in zip(*pairs, strict=True):
            if not skipped:
                theirs.step()
            _step_unless_on_device(ours, torch.tensor(skipped))
    for whole, cut in zip(alone.parameters(), sharded.parameters(), strict=True):
        assert torch.equal(whole, cut.full_tensor())
    theirs, ours = (pair[1].state for pair in pairs)
    assert len(theirs) == len(ours) > 4
    for whole, cut in zip(theirs.values(), ours.values(), strict=True):
        assert cut["momentum_buffer"].to_local().numel() < whole["momentum_buffer"].numel()
        assert torch.equal(whole["momentum_buffer"], cut["momentum_buffer"].full_tensor())


def slices(cut, whole):
    """This rank's rows."""
    mesh = cut.device_mesh
    place, rows = mesh.get_coordinate()[-1], whole.chunk(mesh.size(-1))
    return rows[place].clone() if place < len(rows) else whole[:0]


if __name__ == "__main__":
    torch.set_num_threads(1)
    world = environment()
    world = World(world.rank, world.size, world.rank % 2, 2)  # as if on two nodes
    spec = resolve(settings("gdn3_attn1"))
    with joined(world, "cpu", lambda: False):
        for how in ("fsdp", "hsdp"):
            gathers_in_bf16_change_no_bit(world, how, spec)
            muon_is_that_of_one_device(world, how, spec)
