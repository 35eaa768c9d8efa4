"""From requests to their end: claim them, train or submit them, and watch the rest."""

import os
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from ablations.records import RunDirectory
from models.errors import SettingError
from sweeps import slurm, state, view
from sweeps.cluster import Local, Slurm
from sweeps.follow import follow
from sweeps.local import run_all
from sweeps.plan import gpus_of_this_machine
from sweeps.submit import LeftBehind, Request, to_slurm, to_this_machine

POLL_SECONDS = 1.0
"""Between looks at runs that another driver on this machine trains."""


def on_this_machine(
    requests: Sequence[Request],
    cluster: Local,
    parallel: int,
    threads: int,
    devices: int,
    command: str,
    console: Console,
    code: Path | None = None,
) -> bool:
    """Train what is not done or alive, then watch what other drivers train.

    parallel: runs at a time; threads: of the CPU, a process; devices: a run; code: of an earlier
    submission, None for the checkout's as it is now. Returns False where it was stopped before.
    """
    gpus = _gpu_names() if requests[0].spec["resources"]["device"] != "cpu" else []
    if gpus and devices > len(gpus):
        raise SettingError(
            f"run {requests[0].run.name} trains on {devices} GPUs, and {len(gpus)} are here; give "
            "the sweep's command again, which fits it to this machine."
        )
    how = {"runs_per_gpu": cluster.runs_per_gpu, "parallel": parallel, "threads": threads,
           "devices": devices}  # fmt: skip
    with to_this_machine(requests, how, command, code) as claim:
        if claim.alive:
            console.print(f"{len(claim.alive)} are trained by another process: watching them")
        states = run_all(
            [run.path for run in claim.begun],
            parallel,
            threads,
            command,
            console,
            devices=devices,
            gpus=gpus,
            runs_per_gpu=cluster.runs_per_gpu,
            code=claim.code,
        )
    stopped = any(
        states[run.name].get("state") in ("queued", "preempted")
        and not state.read_submission(run).get("cancelled")
        for run in claim.begun
    )
    if claim.alive and not stopped and not follow(claim.alive, POLL_SECONDS, console):
        console.print("detached: those runs go on")
        return False
    return not stopped


def _gpu_names() -> list[str]:
    """What CUDA_VISIBLE_DEVICES may hold of this machine's GPUs."""
    count = gpus_of_this_machine()[1]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if count and visible:
        return [name.strip() for name in visible.split(",")]
    return [str(number) for number in range(count)]


def on_slurm(
    requests: Sequence[Request],
    cluster: Slurm,
    at_once: int | None,
    command: str,
    console: Console,
    code: Path | None = None,
) -> None:
    """Submit what is not done or alive, and watch all of it until it ends or Ctrl-C detaches.

    at_once: runs at a time; code: as in `on_this_machine`.
    """
    runs = hand_to_slurm(requests, cluster, at_once, command, console, code)
    watch_slurm(runs, cluster.poll_seconds, console)


def hand_to_slurm(
    requests: Sequence[Request],
    cluster: Slurm,
    at_once: int | None,
    command: str,
    console: Console,
    code: Path | None = None,
) -> list[RunDirectory]:
    """Submit what is not done or alive; returns the runs to watch. Ctrl-C meanwhile takes all of
    it back."""
    if unread := slurm.unread():
        console.print(
            f"not read: {', '.join(unread)}; cluster.extra takes any option of sbatch",
            soft_wrap=True,
        )
    asked: list[int] = []
    try:
        with view.listening(asked):
            claim = to_slurm(requests, cluster, at_once, command, code, lambda: bool(asked))
    except (KeyboardInterrupt, SettingError) as error:
        if not asked or isinstance(error, LeftBehind):
            raise
        # A terminal's Ctrl-C also ends sbatch, which then looks as if it had refused.
        console.print("stopped: nothing is submitted")
        raise KeyboardInterrupt from error
    console.print(
        f"submitted {len(claim.begun)} to Slurm"
        + (f"; {len(claim.alive)} are there already" if claim.alive else "")
        + "; Ctrl-C detaches",
        soft_wrap=True,
    )
    return [*claim.begun, *claim.alive]


def watch_slurm(runs: Sequence[RunDirectory], poll_seconds: float, console: Console) -> None:
    """Show runs until they end or Ctrl-C detaches."""
    if not follow(runs, poll_seconds, console):
        names = " ".join(dict.fromkeys(run.path.parent.name for run in runs))
        console.print(
            f"detached: the runs go on; python sweeps/status.py {names} shows them, the same "
            "command attaches again"
        )
