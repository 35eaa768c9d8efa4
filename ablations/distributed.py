"""Several devices: who this process is, how the model lies over them, and how sums are made.

A batch is a function of its step alone, so a rank takes its share of the rows and nothing has to
be sent. Gradients are summed in float32. Every rank computes the same loss, norm and decision;
rank 0 writes the records.

- `ddp`: the model whole on every device (Li et al. 2020).
- `fsdp`: weights, gradients and moments sharded over all devices (fully_shard, FSDP2).
- `hsdp`: sharded within a node, replicated over nodes.

In bf16 the matrices of the blocks' linear layers are gathered in bf16 and widened where they
arrive: half the bytes, and the same products, as autocast rounds the matrices anyway. What is
computed in float32 (norms, decays, step sizes, convolutions, embedding) is gathered in float32, and
so is the head, which probes read in float32.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from ablations.resources import check_ranks
from models.errors import SettingError
from models.language_model import LanguageModel

T = TypeVar("T")
BYTES_A_PARAMETER = 16  # float32 weight, gradient and AdamW's two moments
PATIENCE = timedelta(minutes=10)
"""How long ranks wait for one another: longer than a checkpoint takes, shorter than a night."""
LINGER_SECONDS = 2.0
"""How long a first rank that was stopped stays to be heard by ranks that come after it."""
SHARE_FOR_STATE = 0.5  # of a device's memory, the rest for activations


@dataclass(frozen=True)
class World:
    """This process among those that train a run together."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @property
    def first(self) -> bool:
        """Whether this process writes the records."""
        return self.rank == 0

    def share(self, rows: int) -> slice:
        """This rank's rows of a global batch; some have one more where it does not divide.

        Raises SettingError where there are more ranks than rows.
        """
        check_ranks(self.size, rows)
        return slice(self.rank * rows // self.size, (self.rank + 1) * rows // self.size)

    def largest_share(self, rows: int) -> int:
        """Rows of the rank that has most."""
        return -(-rows // self.size)

    def passes(self, n: int, rows: int) -> Iterator[tuple[slice, bool]]:
        """Of n rows, `rows` a rank and pass: this rank's, and whether they count.

        A rank with nothing left computes the first row for nothing: sharded weights need all.
        """
        for start in range(self.rank * rows, n + self.rank * rows, rows * self.size):
            yield (slice(start, start + rows), True) if start < n else (slice(0, 1), False)

    def sum(self, value: Tensor) -> Tensor:
        """The sum over ranks, in place."""
        if self.size > 1:
            dist.all_reduce(value)
        return value

    def gather(self, value: T) -> list[T]:
        """What every rank gives, the same list on all; `value` must pickle."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def any(self, flag: bool) -> bool:
        """Whether it is true on any rank; they wait for one another, and for no device."""
        if self.size == 1:
            return flag
        value = torch.tensor(float(flag))
        dist.all_reduce(value, op=dist.ReduceOp.MAX)
        return bool(value.item())


def environment() -> World:
    """Who torchrun, or Slurm's srun, says this process is; alone where neither started it.

    Raises SettingError where what they say cannot be.
    """
    env = os.environ
    world = World()
    if "RANK" in env and "WORLD_SIZE" in env:
        size = _number("WORLD_SIZE", 1)
        local = _number("LOCAL_RANK", 0), _number("LOCAL_WORLD_SIZE", size)
        world = World(_number("RANK", 0), size, *local)
    # Those of the step: a batch script also sees its job's task count, and is not a task.
    elif (size := _number("SLURM_STEP_NUM_TASKS", 1)) > 1:
        nodes = max(1, _number("SLURM_STEP_NUM_NODES", 1))
        local = _number("SLURM_LOCALID", 0), max(1, size // nodes)
        world = World(_number("SLURM_PROCID", 0), size, *local)
    if world.rank >= world.size:
        raise SettingError(f"rank {world.rank} is none of {world.size} ranks (RANK, WORLD_SIZE).")
    return world


def _number(name: str, missing: int) -> int:
    value = os.environ.get(name, str(missing))
    if not value.isdecimal():
        raise SettingError(
            f"{name}={value!r} must be a whole number, as torchrun and srun set it; unset it for "
            "a process that trains alone."
        )
    return int(value)


@contextlib.contextmanager
def joined(world: World, device_kind: str, stop: Callable[[], bool]) -> Iterator[bool]:
    """The process group while a run trains; nothing for a process alone.

    False where `stop` was true on some rank before all had come. Raises SettingError where they do
    not come within PATIENCE.
    """
    if world.size == 1 or dist.is_initialized():
        yield True
        return
    store = _meet(world, stop)
    if store is None:
        yield False
        return
    if device_kind == "cuda":
        torch.cuda.set_device(world.local_rank)
    # gloo beside nccl: stops and checkpoints are agreed over the CPU while the devices compute.
    backend = "cpu:gloo,cuda:nccl" if device_kind == "cuda" else "gloo"
    dist.init_process_group(
        backend, store=store, rank=world.rank, world_size=world.size, timeout=PATIENCE
    )
    try:
        yield True
    finally:
        dist.destroy_process_group()


def _meet(world: World, stop: Callable[[], bool]) -> dist.Store | None:
    """Where ranks tell each other their addresses, once all are there; None where one was stopped.

    torch's own meeting cannot be interrupted: a signal waits until it is over.
    """
    host, port = _meeting_point()
    deadline = time.monotonic() + PATIENCE.total_seconds()
    store, arrived = None, 1
    while time.monotonic() < deadline:
        if store is None:
            store = _store(world, host, port)
        if store is not None:
            try:
                verdict = _verdict(store, world, arrived, stop())
            except dist.DistError:
                return None  # the first rank has left
            if verdict:
                store.set_timeout(PATIENCE)
                if verdict == b"together":
                    return store
                if world.first:
                    # Its store goes with it: ranks that come a moment later are to hear it too.
                    time.sleep(LINGER_SECONDS)
                return None
            arrived = 0
        elif stop():
            return None
        time.sleep(0.05)
    minutes = PATIENCE.total_seconds() / 60
    raise SettingError(
        f"rank {world.rank} waited {minutes:.0f} min at {host}:{port} for the others of the "
        f"{world.size} that its environment names (RANK and WORLD_SIZE, or those of a Slurm step); "
        "start them all, or this one without these variables."
    )


def _verdict(store: dist.Store, world: World, arrived: int, stopping: bool) -> bytes:
    """What the ranks agreed on, `together` or `stopped`; nothing yet where some are missing."""
    if store.add("arrived", arrived) == world.size:
        return store.compare_set("verdict", "", "together")
    if stopping:
        return store.compare_set("verdict", "", "stopped")
    return store.get("verdict") if store.check(["verdict"]) else b""


def _store(world: World, host: str, port: int) -> dist.Store | None:
    """The first rank's store, or the one that torchrun keeps; None where it is not there yet."""
    kept = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    hosting = world.first and not kept
    if not hosting:
        # torch says every failed attempt to connect: knock first.
        try:
            socket.create_connection((host, port), timeout=1.0).close()
        except OSError:
            return None
    try:
        store = dist.TCPStore(
            host, port, world.size, hosting, timeout=timedelta(seconds=2), wait_for_workers=False
        )
    except dist.DistError as error:
        if not hosting:
            return None
        raise SettingError(
            f"MASTER_PORT={port} cannot be listened on here ({str(error).splitlines()[0]}); give "
            "a free one."
        ) from error
    return dist.PrefixStore(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), store)


def _meeting_point() -> tuple[str, int]:
    """Host and port of the first rank: as torchrun says, else made of Slurm's job and step."""
    env = os.environ
    if "MASTER_ADDR" in env:
        return env["MASTER_ADDR"], _number("MASTER_PORT", 29500)
    nodes = env.get("SLURM_STEP_NODELIST") or env.get("SLURM_JOB_NODELIST", "localhost")
    # One port a job and step, so that two on a node do not meet.
    job, step = _number("SLURM_JOB_ID", 0), _number("SLURM_STEP_ID", 0)
    return _first_host(nodes), 20_000 + (job + 7919 * step) % 20_000


def _first_host(nodes: str) -> str:
    """The first host of a Slurm node list such as `gpu[003-006,9],login1`."""
    match = re.match(r"([^\[,]+)(?:\[([^\],-]+))?", nodes)
    assert match, nodes
    return match[1] + (match[2] or "")


def choose_parallel(
    wanted: str, parameters: int, world: World, memory_bytes: int | None
) -> str | None:
    """None for one device; else `wanted`, `auto` being ddp where weights and moments fit.

    memory_bytes: of one device, None where it is not known (a CPU).
    """
    if world.size == 1:
        return None
    if wanted == "hsdp" and world.size == world.local_size:
        return "fsdp"  # one node: nothing to replicate over
    if wanted != "auto":
        return wanted
    fits = memory_bytes is None or parameters * BYTES_A_PARAMETER < memory_bytes * SHARE_FOR_STATE
    return "ddp" if fits else "fsdp"


class Parallel:
    """A model laid over devices: its losses, and when its gradients are summed."""

    def __init__(
        self,
        model: LanguageModel,
        how: str | None,
        world: World,
        device: torch.device,
        *,
        bf16: bool = False,
    ) -> None:
        """bf16: whether the model computes in bf16, by autocast."""
        self.model, self.how = model, how
        self._forward: Any = model.loss
        if how == "ddp":
            ids = [device.index or 0] if device.type == "cuda" else None
            self._forward = DistributedDataParallel(
                _Loss(model), device_ids=ids, gradient_as_bucket_view=True
            )
        elif how in ("fsdp", "hsdp"):
            nodes = world.size // world.local_size
            shape = (nodes, world.local_size) if how == "hsdp" else (world.size,)
            names = ("replicate", "shard")[-len(shape) :]
            mesh = init_device_mesh(device.type, shape, mesh_dim_names=names)
            for block in model.blocks:
                fully_shard(block, mesh=mesh)
                for method in ("new_state", "extend"):
                    register_fsdp_forward_method(block, method)
            fully_shard(model, mesh=mesh)
            model.sharded = True
            if bf16:
                for linear in filter(_is_linear, model.blocks.modules()):
                    _gather_in_bf16(linear.weight)
            for method in ("loss", "losses", "choices", "new_cache", "extend"):
                register_fsdp_forward_method(model, method)
            self._forward = model.loss

    def loss(self, *arguments: Any, last: bool = True, **options: Any) -> tuple[Tensor, Tensor]:
        """LanguageModel.loss; gradients are summed over ranks only in the backward pass of the
        `last` micro-batch of a step."""
        if self.how in ("fsdp", "hsdp"):
            self.model.set_requires_gradient_sync(last)  # type: ignore[operator]
        elif self.how == "ddp":
            self._forward.require_backward_grad_sync = last
        return self._forward(*arguments, **options)


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear)


@torch.no_grad()
def _gather_in_bf16(weight: DTensor) -> None:
    """Have FSDP gather a sharded float32 weight in bf16; the whole weight is float32 again.

    FSDP asks the local tensor for these two functions (fsdp_pre_all_gather). A policy of its own
    (MixedPrecisionPolicy) would round every parameter of a block, or need gradients of one dtype.
    """
    local: Any = weight._local_tensor  # to_local() is another view of it

    def before(
        mesh: DeviceMesh, size: torch.Size, _stride: Any, _module: Any, _policy: Any
    ) -> tuple[tuple[Tensor], None]:
        rows = -(-size[0] // mesh.size())  # of every rank; the last ones may have fewer
        if len(local) == rows:
            return (local.bfloat16(),), None
        padded = local.new_zeros((rows, *local.shape[1:]), dtype=torch.bfloat16)
        padded[: len(local)] = local
        return (padded,), None

    def after(
        gathered: tuple[Tensor], _metadata: None, dtype: torch.dtype, *, out: Tensor | None = None
    ) -> tuple[Tensor, tuple[Tensor]] | None:
        if out is None:
            whole = gathered[0].to(dtype)
            return whole, (whole,)
        # Autograd holds this tensor, and is not to see that it is filled again.
        with torch.no_grad(), torch.autograd._unsafe_preserve_version_counter(out):
            out.copy_(gathered[0][: len(out)])
        return None

    local.fsdp_pre_all_gather, local.fsdp_post_all_gather = before, after


class _Loss(nn.Module):
    """DistributedDataParallel sums the gradients of what its `forward` reads."""

    def __init__(self, model: LanguageModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, *arguments: Any, **options: Any) -> tuple[Tensor, Tensor]:
        return self.model.loss(*arguments, **options)
