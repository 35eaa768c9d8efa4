"""Checkpoints: whole or passed over, the same bits back, on any number of processes."""

import errno
import hashlib
import json
import math
import os
import random
import shutil
import subprocess
from pathlib import Path

import pytest
import safetensors.torch
import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from ablations.checkpoint import Checkpoints
from models.checkpoint_files import damage, read_model, step_folder, steps

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


def build(seed=0, steps=0):
    """A model with a parameter too small to shard, its AdamW, and `steps` updates."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for _ in range(steps):
        model(torch.randn(4, 5)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer


def state_of(model, optimizer, **progress):
    return {
        "model": get_model_state_dict(model),
        "optimizer": get_optimizer_state_dict(model, optimizer),
        "progress": progress,
    }


def named_tensors(state):
    """Every tensor of a state, whole, by its path."""
    found = {}

    def walk(value, path):
        if isinstance(value, DTensor):
            value = value.full_tensor()
        if isinstance(value, torch.Tensor):
            found[path] = value.detach().clone()
        elif isinstance(value, dict):
            for key, part in value.items():
                walk(part, (*path, key))

    walk(state, ())
    return found


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name, tensor in a.items():
        assert tensor.dtype == b[name].dtype, name
        assert torch.equal(tensor, b[name]), name


def saved(folder, *numbers, **options):
    """Checkpoints of the steps `numbers`, each with its step in every weight."""
    options.setdefault("keep_steps", set(numbers))
    checkpoints = Checkpoints(folder, **options)
    for step in numbers:
        checkpoints.save(step, tiny(step))
    checkpoints.wait()
    return checkpoints


def tiny(value=0):
    return {"model": {"w": torch.full((3, 4), float(value))}, "progress": {"step": value}}


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_every_bit_comes_back_and_plain_values_as_they_were(tmp_path):
    odd = torch.tensor([0x7FC12345, 0x00000001, -0x80000000], dtype=torch.int64)
    tensors = {
        "nan_payload_and_denormal": odd.to(torch.int32).view(torch.float32),
        "half": torch.randn(3, 5).to(torch.bfloat16),
        "scalar": torch.tensor(3.0),
        "none": torch.empty(0, 4),
        "turned": torch.randn(4, 6).T,
        "part": torch.randn(10)[2:5],
        "flags": torch.tensor([True, False, True]),
        "ids": torch.arange(7),
    }
    values = {
        "seconds": 0.1 + 0.2, "nan": math.nan, "inf": math.inf, "text": "é\n", "none": None,
        "rule": {"losses": [1.5, 2.5], "empty": []}, "deep": [[1, [2]], {"a": True}],
    }  # fmt: skip
    groups = [{"lr": 1e-3, "betas": (0.9, 0.95), "params": ["a"]}]
    optimizer = {"state": {}, "param_groups": groups}
    checkpoints = Checkpoints(tmp_path, keep_steps=set())
    checkpoints.save(3, {"model": tensors, "optimizer": optimizer, "progress": values})
    checkpoints.wait()
    none = [{"lr": 0.0, "betas": (0.0, 0.0), "params": []}]
    into = {
        "model": {name: torch.zeros_like(tensor) for name, tensor in tensors.items()},
        "optimizer": {"state": {}, "param_groups": none},
        "progress": {"seconds": 0.0, "gone": 1},
    }
    before, progress = dict(into["model"]), into["progress"]
    assert Checkpoints(tmp_path, keep_steps=set()).load(into) == (3, [])
    for name, tensor in tensors.items():
        assert into["model"][name] is before[name], "not in place"
        raw = [t.contiguous().reshape(-1).view(torch.uint8) for t in (tensor, before[name])]
        assert torch.equal(*raw), name
    assert math.isnan(progress.pop("nan"))
    values.pop("nan")
    assert progress == values
    assert into["optimizer"]["param_groups"] == groups


def test_training_goes_on_while_it_is_written_and_does_not_change_it(tmp_path):
    state = tiny(1)
    checkpoints = Checkpoints(tmp_path, keep_steps=set())
    checkpoints.save(1, state)
    state["model"]["w"].zero_()
    state["progress"]["step"] = 99
    checkpoints.wait()
    assert checkpoints.load(state) == (1, [])
    assert state["model"]["w"].eq(1).all()
    assert state["progress"] == {"step": 1}


def test_the_shards_are_safetensors_by_its_own_library(tmp_path):
    model, optimizer = build(steps=2)
    checkpoints = Checkpoints(tmp_path, keep_steps=set())
    checkpoints.save(2, state_of(model, optimizer))
    checkpoints.wait()
    found = safetensors.torch.load_file(tmp_path / "step-00000002" / "shard-00000.safetensors")
    expected = named_tensors(state_of(model, optimizer))
    assert_same({".".join(path): tensor for path, tensor in expected.items()}, found)
    assert_same(model.state_dict(), read_model(tmp_path))
    assert_same(model.state_dict(), read_model(tmp_path / "step-00000002"))
    assert_same(model.state_dict(), read_model(tmp_path, step=2))


def test_the_checksums_are_those_of_the_files(tmp_path):
    saved(tmp_path, 1)
    folder = tmp_path / "step-00000001"
    sums = json.loads((folder / "checksums.json").read_text())
    assert sorted([*sums, "checksums.json"]) == names(folder)
    for name, found in sums.items():
        assert found == hashlib.sha256((folder / name).read_bytes()).hexdigest()


def test_one_changed_byte_anywhere_is_seen(tmp_path):
    saved(tmp_path, 1)
    folder = tmp_path / "step-00000001"
    generator = random.Random(0)
    assert damage(folder) is None
    for name in names(folder):
        content = (folder / name).read_bytes()
        for i in range(len(content)):
            changed = bytearray(content)
            changed[i] ^= generator.randrange(1, 256)
            (folder / name).write_bytes(changed)
            assert damage(folder) is not None, f"byte {i} of {name}"
        for cut in {0, 1, len(content) // 2, len(content) - 1}:
            (folder / name).write_bytes(content[:cut])
            assert damage(folder) is not None, f"{name} cut to {cut}"
        (folder / name).write_bytes(content + b"\0")
        assert damage(folder) is not None
        (folder / name).write_bytes(content)
    assert damage(folder) is None


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before_with_one_warning(tmp_path):
    saved(tmp_path, 1, 2, 3, 4, 5)
    shard = step_folder(tmp_path, 5) / "shard-00000.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    (step_folder(tmp_path, 4) / "index.json").unlink()
    (step_folder(tmp_path, 3) / "checksums.json").unlink()
    state = tiny()
    step, warnings = Checkpoints(tmp_path, keep_steps=set()).load(state)
    assert step == 2
    assert state["progress"] == {"step": 2}
    assert state["model"]["w"].eq(2).all()
    reasons = ("shard-00000.safetensors is not what", "index.json is missing", "checksums.json is")
    for warning, number, reason in zip(warnings, (5, 4, 3), reasons, strict=True):
        assert f"step-{number:08d}" in warning
        assert reason in warning
    assert torch.equal(read_model(tmp_path)["w"], state["model"]["w"])
    with pytest.raises(ValueError, match=r"index\.json is missing"):
        read_model(tmp_path, step=4)
    with pytest.raises(FileNotFoundError, match="step-00000009"):
        read_model(tmp_path, step=9)


def test_a_damaged_checkpoint_is_replaced_and_does_not_count_as_kept(tmp_path):
    saved(tmp_path, 1, 2, 3, keep_latest=3)
    (step_folder(tmp_path, 3) / "index.json").write_text("{}")
    checkpoints = Checkpoints(tmp_path, keep_steps=set(), keep_latest=2)
    assert checkpoints.load(tiny())[0] == 2
    checkpoints.save(4, tiny(4))
    checkpoints.wait()
    assert names(tmp_path) == ["step-00000002", "step-00000004"]
    (step_folder(tmp_path, 4) / "index.json").write_text("{}")
    checkpoints = Checkpoints(tmp_path, keep_steps=set(), keep_latest=2)
    assert checkpoints.load(tiny())[0] == 2
    checkpoints.save(4, tiny(40))
    checkpoints.wait()
    assert checkpoints.load(state := tiny()) == (4, [])
    assert state["progress"] == {"step": 40}


def test_without_a_checkpoint_nothing_is_loaded(tmp_path):
    state = tiny(7)
    assert Checkpoints(tmp_path / "absent", keep_steps=set()).load(state) == (None, [])
    assert state["progress"] == {"step": 7}
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        read_model(tmp_path)


def test_a_file_that_cannot_be_read_is_an_error_and_not_a_torn_checkpoint(tmp_path, monkeypatch):
    saved(tmp_path, 1, 2)

    def fails(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("hashlib.file_digest", fails)
    with pytest.raises(OSError, match="Input/output"):
        Checkpoints(tmp_path, keep_steps=set()).load(tiny())


def test_another_model_or_shape_is_refused(tmp_path):
    saved(tmp_path, 1)
    checkpoints = Checkpoints(tmp_path, keep_steps=set())
    with pytest.raises(ValueError, match=r"model\.v"):
        checkpoints.load({"model": {"w": torch.zeros(3, 4), "v": torch.zeros(1)}})
    with pytest.raises(ValueError, match=r"[Ss]ize"):
        checkpoints.load({"model": {"w": torch.zeros(4, 3)}})


def test_the_latest_and_the_points_are_kept(tmp_path):
    saved(tmp_path, *range(1, 9), keep_steps={2, 5}, keep_latest=2)
    assert steps(tmp_path) == [2, 5, 7, 8]


def test_what_a_kill_left_is_removed_and_never_read(tmp_path):
    saved(tmp_path, 1)
    half = tmp_path / "step-00000002.tmp"
    shutil.copytree(tmp_path / "step-00000001", half)
    (tmp_path / "step-00000000.old.tmp").mkdir()
    assert steps(tmp_path) == [1]
    assert torch.equal(read_model(tmp_path)["w"], torch.ones(3, 4))
    assert half.exists(), "reading alone removes nothing"
    Checkpoints(tmp_path, keep_steps=set())
    assert names(tmp_path) == ["step-00000001"]


def test_a_failed_write_is_told_and_leaves_the_ones_before(tmp_path, monkeypatch):
    checkpoints = saved(tmp_path, 1)
    with monkeypatch.context() as patch:

        def full(*_):
            raise OSError(errno.ENOSPC, "No space left on device")

        patch.setattr("os.fsync", full)
        checkpoints.save(2, tiny(2))
        with pytest.raises(OSError, match="No space left") as raised:
            checkpoints.save(3, tiny(3))
        assert "step-00000002.tmp" in raised.value.filename
    assert names(tmp_path) == ["step-00000001"]
    checkpoints.save(4, tiny(4))
    checkpoints.wait()
    assert checkpoints.load(tiny()) == (4, [])


def test_all_is_on_disk_before_it_has_its_name_and_the_name_before_anything_is_removed(
    tmp_path, monkeypatch
):
    checkpoints = saved(tmp_path, 1, keep_steps=set(), keep_latest=1)
    calls = []

    def watch(name):
        real = getattr(os, name)

        def watched(target, *rest, **options):
            path = Path(f"/proc/self/fd/{target}").readlink() if name == "fsync" else Path(target)
            calls.append((name, str(path).removeprefix(str(tmp_path)).strip("/")))
            return real(target, *rest, **options)

        monkeypatch.setattr(os, name, watched)

    for name in ("fsync", "rename", "unlink"):
        watch(name)
    checkpoints.save(2, tiny(2))
    checkpoints.wait()
    beside, whole = "step-00000002.tmp", "step-00000002"
    named = calls.index(("rename", beside))
    files = {f"{beside}/{name}" for name in names(tmp_path / whole)}
    assert {path for call, path in calls[:named] if call == "fsync"} == {beside, *files}
    assert calls[named - 2 : named] == [("fsync", f"{beside}/checksums.json"), ("fsync", beside)]
    assert calls[named + 1] == ("fsync", "")
    assert all(call == "fsync" for call, _ in calls[:named])
    assert steps(tmp_path) == [2]


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 1 MB, where this machine lets us mount one."""
    path = tmp_path / "disk"
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(path)]
    if os.geteuid() or not shutil.which("mount"):
        pytest.skip("only root may mount")
    if subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    yield path
    subprocess.run(["umount", str(path)], check=True)


def test_on_a_full_disk_the_save_says_so_and_goes_on_when_there_is_room(small_disk):
    def state(value, kilobytes):
        return {"model": {"w": torch.full((kilobytes, 256), float(value))}}

    checkpoints = Checkpoints(small_disk, keep_steps={1, 2, 3})
    checkpoints.save(1, state(1, 400))
    checkpoints.wait()
    checkpoints.save(2, state(2, 1500))
    with pytest.raises(OSError, match="No space left") as raised:
        checkpoints.wait()
    assert raised.value.errno == errno.ENOSPC
    assert names(small_disk) == ["step-00000001"]
    (small_disk / "other").write_bytes(bytes(500 * 1024))
    checkpoints.save(2, state(2, 400))
    with pytest.raises(OSError, match="No space left"):
        checkpoints.wait()
    assert names(small_disk) == ["other", "step-00000001"]
    assert checkpoints.load(state(0, 400)) == (1, [])
    (small_disk / "other").unlink()
    checkpoints.save(2, state(2, 400))
    checkpoints.wait()
    assert checkpoints.load(into := state(0, 400)) == (2, [])
    assert into["model"]["w"].eq(2).all()


@pytest.mark.slow
def test_one_process_and_two_sharded_ones_read_each_others_checkpoints(tmp_path):
    model, optimizer = build(seed=0, steps=3)
    state = state_of(model, optimizer, step=3)
    torch.save(named_tensors(state), tmp_path / "expected.pt")
    checkpoints = Checkpoints(tmp_path / "one", keep_steps=set())
    checkpoints.save(3, state)
    checkpoints.wait()
    torch.multiprocessing.spawn(two_ranks, (tmp_path,), nprocs=2)
    for kind in ("fsdp", "hsdp", "plain"):
        other, adamw = build(seed=1, steps=1)
        into = state_of(other, adamw, step=0)
        assert Checkpoints(tmp_path / kind, keep_steps=set()).load(into) == (4, [])
        assert_same(named_tensors(state), named_tensors(into))
        assert into["progress"] == {"step": 4, "kind": kind}
        assert_same(model.state_dict(), read_model(tmp_path / kind))
        # What is loaded in place trains on to the same bits.
        set_optimizer_state_dict(other, adamw, into["optimizer"])
        check, check_adamw = build(seed=0, steps=3)
        for m, o in ((other, adamw), (check, check_adamw)):
            m(torch.ones(2, 5)).sum().backward()
            o.step()
        assert_same(check.state_dict(), other.state_dict())


def two_ranks(rank: int, folder: Path) -> None:
    """Loads what one process saved, sharded and replicated, and saves it again."""
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    expected = torch.load(folder / "expected.pt")
    meshes = {
        "fsdp": init_device_mesh("cpu", (2,)),
        "hsdp": init_device_mesh("cpu", (2, 1), mesh_dim_names=("replicate", "shard")),
        "plain": None,
    }
    for kind, mesh in meshes.items():
        model, optimizer = build(seed=5)
        if mesh is not None:
            fully_shard(model[0], mesh=mesh)
            fully_shard(model, mesh=mesh)
            optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        state = state_of(model, optimizer, step=0)
        sharded = [isinstance(w, DTensor) for w in state["model"].values()]
        assert all(sharded) if mesh is not None else not any(sharded)
        assert Checkpoints(folder / "one", keep_steps=set()).load(state) == (3, [])
        assert_same(expected, named_tensors(state))
        state["progress"] = {"step": 4, "kind": kind}
        checkpoints = Checkpoints(folder / kind, keep_steps=set())
        checkpoints.save(4, state)
        checkpoints.wait()
        there = names(folder / kind / "step-00000004")
        assert [name for name in there if name.startswith("shard")] == [
            "shard-00000.safetensors",
            "shard-00001.safetensors",
        ] or kind == "hsdp"
        fresh = state_of(model, optimizer, step=0)
        assert checkpoints.load(fresh) == (4, [])
        assert_same(expected, named_tensors(fresh))
    # An error of one rank is an error of both, and a damaged shard is passed over by both.
    was = os.fsync
    if rank == 1:
        os.fsync = lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left"))
    checkpoints.save(5, state)
    with pytest.raises(OSError, match="No space left"):
        checkpoints.wait()
    os.fsync = was
    dist.barrier()
    assert names(folder / "plain") == ["step-00000004"]
    checkpoints.save(6, state)
    checkpoints.wait()
    if rank == 0:
        shard = step_folder(folder / "plain", 6) / "shard-00001.safetensors"
        shard.write_bytes(shard.read_bytes()[:-1])
    dist.barrier()
    step, warnings = checkpoints.load(state)
    assert (step, len(warnings)) == (4, 1)
    dist.barrier()
    if rank == 0:
        shutil.rmtree(step_folder(folder / "plain", 6))
    dist.destroy_process_group()
