"""One of four ranks of test_distributed.py: what sharding leaves as it is, to the bit."""

import torch

from ablations.distributed import Parallel, World, environment, joined
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
        model.recompute = bf16  # which gathers a block again, and computes the same
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


if __name__ == "__main__":
    torch.set_num_threads(1)
    world = environment()
    world = World(world.rank, world.size, world.rank % 2, 2)  # as if on two nodes
    spec = resolve(settings("gdn3_attn1"))
    with joined(world, "cpu", lambda: False):
        for how in ("fsdp", "hsdp"):
            gathers_in_bf16_change_no_bit(world, how, spec)
