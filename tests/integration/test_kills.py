"""A run killed twenty times, at any moment, ends with the bits of one that was never killed.

Each kill is a SIGKILL that the training process sends itself, so that it lands where it is meant
to: at a random moment after a random step, or inside a write, of which a part then stands on disk
as it would after a power cut, or before or after a rename or a removal. The processes are forked
from one that has torch imported already, which makes a restart cost a second and not five.
"""

import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import safetensors.torch

from ablations.records import RunDirectory
from ablations.resolve import resolve
from models.checkpoint_files import damage, step_folder, steps
from models.settings import to_dict
from tests.ablations.conftest import settings

ROOT = Path(__file__).parents[2]
MIXES = ("transformer", "gdn", "mamba2", "gdn3_attn1")
# Where a kill lands: a call, and a part of the path it is about. Four of these and one random
# moment for each mix; over the four mixes every place comes twice or more.
PLACES = (
    ("fsync", "metrics.jsonl"), ("fsync", "points.jsonl"), ("fsync", "status.json"),
    ("fsync", "shard-"), ("fsync", "index.json"), ("fsync", "checksums.json"),
    ("rename", ".tmp"), ("rename", "/step-"), ("unlink", "/step-"), ("rmdir", "/step-"),
)  # fmt: skip
KILLS = 5  # a mix

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs Linux's /proc"),
]


@pytest.fixture(scope="module")
def fork():
    """Start `target(*arguments)` in a fork of a process that has imported everything."""
    context = multiprocessing.get_context("forkserver")
    # The optimizers import torch._dynamo, which takes longer than the run.
    preload = ["tests.integration.test_kills", "ablations.train", "torch._dynamo"]
    context.set_forkserver_preload(preload)
    before = dict(os.environ)
    os.environ.update(PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1")

    def start(target, *arguments):
        process = context.Process(target=target, args=arguments)
        process.start()
        process.join(120)
        code = process.exitcode
        process.kill()
        assert code is not None, "the run hangs"
        return code

    yield start
    os.environ.clear()
    os.environ.update(before)


def make(folder, mix):
    composed = settings(
        mix, data__eval_tokens=256, logging__checkpoint_every=2, protocol__batch_tokens=64
    )
    composed["size"]["context"] = 32
    composed["protocol"]["chinchilla"] = [0.0003, 0.0006, 0.0012]
    spec = resolve(composed)
    run = RunDirectory(folder)
    run.write_spec(to_dict(spec))
    return run, spec


def work(path, log, kill=None):
    """`python -m sweeps.worker PATH`, in this process."""
    from sweeps import worker

    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    if kill is not None:
        arm(**kill)
    os._exit(worker.main(path))


def arm(step, call, part, when, seed):
    """Have this process killed at the first `call` about `part` after `step` (0: any) is recorded.

    call: fsync, rename, unlink, rmdir, or moment; when: before, after, or cut (fsync only: the
    file is left with a part of its last line).
    """
    generator = random.Random(seed)
    armed = threading.Event()
    if step == 0:
        armed.set()

    def die():
        os.kill(os.getpid(), signal.SIGKILL)

    def after_a_moment():
        time.sleep(generator.uniform(0, 0.05))
        die()

    def watch(name):
        real = getattr(os, name)

        def watched(target, *rest, **options):
            about = opened(target) if name == "fsync" else str(target)
            if options.get("dir_fd") is not None:
                about = f"{opened(options['dir_fd'])}/{about}"
            mine = armed.is_set() and name == call and part in about
            if mine and when == "cut":
                content = Path(about).read_bytes()
                begin = content.rfind(b"\n", 0, -1) + 1
                os.truncate(about, generator.randrange(begin, len(content)))
            if mine and when != "after":
                die()
            result = real(target, *rest, **options)
            if mine:
                die()
            if about.endswith("metrics.jsonl") and name == "fsync" and not armed.is_set():
                last = Path(about).read_bytes().splitlines()[-1]
                if json.loads(last)["step"] >= step:
                    armed.set()
                    if call == "moment":
                        threading.Thread(target=after_a_moment, daemon=True).start()
            return result

        setattr(os, name, watched)

    for name in ("fsync", "rename", "unlink", "rmdir"):
        watch(name)


def opened(descriptor):
    return str(Path(f"/proc/self/fd/{descriptor}").readlink())


def plan(mix, last_step):
    """The kills of a mix, in the order of the steps behind which they come."""
    number = MIXES.index(mix)
    generator = random.Random(number)
    turn = [PLACES[(4 * number + i) % len(PLACES)] for i in range(KILLS - 1)]
    kills = []
    for call, part in [*turn, ("moment", "")]:
        when = generator.choice(["before", "cut" if call == "fsync" else "after"])
        early = call == "moment" or "points" in part  # those that need some steps to come
        step = generator.randrange(1, last_step // 2 if early else last_step - 6)
        if "status" in part:
            step = 0  # written behind the first step, then once a second
        kills.append(
            {"step": step, "call": call, "part": part, "when": when, "seed": generator.random()}
        )
    return sorted(kills, key=lambda kill: kill["step"])


def last(run):
    """Tensors by safetensors' own reader, and the other values, of the newest checkpoint."""
    folder = step_folder(run.checkpoints, steps(run.checkpoints)[-1])
    assert damage(folder) is None
    index = json.loads((folder / "index.json").read_text())
    index["values"]["progress"].pop("seconds")
    return safetensors.torch.load_file(folder / "shard-00000.safetensors"), index["values"]


def assert_same(one, other):
    """Two finished runs: weights, optimizer, points, records and kept checkpoints."""
    (a, values_a), (b, values_b) = last(one), last(other)
    assert a.keys() == b.keys()
    assert {name.split(".")[0] for name in a} == {"model", "optimizer"}
    for name in a:
        assert a[name].numpy().tobytes() == b[name].numpy().tobytes(), name
    assert values_a == values_b
    assert (one.path / "points.jsonl").read_bytes() == (other.path / "points.jsonl").read_bytes()
    metrics = [list(map(without_time, run.rows("metrics.jsonl"))) for run in (one, other)]
    assert metrics[0] == metrics[1]
    kept = [sorted(path.name for path in run.checkpoints.iterdir()) for run in (one, other)]
    assert kept[0] == kept[1]
    assert other.read_status()["state"] == "done"


def without_time(row):
    return {k: v for k, v in row.items() if k not in ("seconds", "tokens_per_second")}


@pytest.mark.parametrize("mix", MIXES)
def test_a_run_killed_anywhere_ends_with_the_bits_of_one_never_killed(tmp_path, fork, mix):
    whole, spec = make(tmp_path / "whole", mix)
    assert fork(work, str(whole.path), str(tmp_path / "whole.txt")) == 0
    killed, _ = make(tmp_path / "killed", mix)
    log = tmp_path / "killed.txt"
    for kill in plan(mix, spec.recipe.steps):
        code = fork(work, str(killed.path), str(log), kill)
        assert code == -signal.SIGKILL, f"{kill}: exit code {code}\n{log.read_text()}"
    if mix == MIXES[0]:  # once as a user would start it again
        command = [sys.executable, "-m", "sweeps.worker", str(killed.path)]
        subprocess.run(command, check=True, cwd=ROOT, capture_output=True)
    else:
        assert fork(work, str(killed.path), str(log)) == 0, log.read_text()

    assert_same(whole, killed)
    assert len(list(killed.rows("metrics.jsonl"))) == spec.recipe.steps


@pytest.fixture
def small_disk(tmp_path):
    """Mount a disk of so many bytes, or give a mounted one that many."""
    path = tmp_path / "disk"
    path.mkdir()
    if os.geteuid() or not shutil.which("mount"):
        pytest.skip("only root may mount")

    def of(size):
        options = f"{'remount,' * path.is_mount()}size={size}"
        command = ["mount", "-t", "tmpfs", "-o", options, "none", str(path)]
        if subprocess.run(command, check=False, capture_output=True).returncode:
            pytest.skip("mounting is not allowed here")
        return path

    yield of
    if path.is_mount():
        subprocess.run(["umount", str(path)], check=True)


def test_on_a_full_disk_a_run_says_so_and_goes_on_when_there_is_room(tmp_path, fork, small_disk):
    whole, _ = make(tmp_path / "whole", "transformer")
    assert fork(work, str(whole.path), str(tmp_path / "whole.txt")) == 0
    used = sum(path.stat().st_size for path in whole.path.rglob("*") if path.is_file())
    cut, _ = make(small_disk(used // 2) / "cut", "transformer")
    log = tmp_path / "cut.txt"
    assert fork(work, str(cut.path), str(log)) == 1
    said = log.read_text()
    assert "No space left on device" in said
    assert "the last whole checkpoint is kept" in said
    assert "Traceback" not in said
    assert steps(cut.checkpoints)
    small_disk(4 * used)
    assert fork(work, str(cut.path), str(log)) == 0
    assert "resumed at step" in log.read_text()
    assert_same(whole, cut)


def test_every_place_is_hit_and_twenty_kills_in_all():
    kills = [kill for mix in MIXES for kill in plan(mix, 20)]
    assert len(kills) == 20
    assert {(kill["call"], kill["part"]) for kill in kills} == {*PLACES, ("moment", "")}
    assert sum(kill["when"] == "cut" for kill in kills) >= 3
