"""Slurm through its own commands, and submitit to write and submit job arrays.

No sacct: a site without accounting keeps ended jobs in squeue for a while (MinJobAge), which is
all that is asked for here. Shapes and limits: conf/cluster.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.errors import SettingError
from sweeps.arrays import MOST_ELEMENTS
from sweeps.cluster import Shape, Slurm

ENDED = (
    *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL"),
    *("OUT_OF_MEMORY", "PREEMPTED", "REVOKED", "TIMEOUT"),
)
ASK_SECONDS = 60


@dataclass(frozen=True)
class Job:
    """One element of a job array, as squeue shows it."""

    id: str
    state: str
    reason: str
    nodes: str

    @property
    def alive(self) -> bool:
        return self.state not in ENDED

    def __str__(self) -> str:
        reason = f", {self.reason}" if self.reason not in ("", "None") else ""
        return f"Slurm job {self.id}: {self.state}{reason}"


def jobs(names: Iterable[str]) -> dict[tuple[str, int], Job] | None:
    """{(job name, index in its array): job}; None where Slurm cannot be asked."""
    columns = "%i|%K|%T|%r|%N|%j"
    said = _ask("squeue", "-h", "-r", "-t", "all", "-n", ",".join(sorted(names)), "-o", columns)
    if said is None:
        return None
    found = {}
    for line in said.splitlines():
        number, index, state, reason, nodes, name = line.split("|", 5)
        found[name, int(index) if index.isdigit() else 0] = Job(number, state, reason, nodes)
    return found


def cancel(ids: Sequence[str]) -> None:
    """scancel; a job that has ended meanwhile is no error."""
    if ids:
        _ask("scancel", *ids)


def cancel_named(names: Iterable[str]) -> None:
    """scancel by the names of job arrays, whether or not their numbers ever came back."""
    for name in names:
        _ask("scancel", f"--name={name}")


def check(cluster: Slurm, sizes: Mapping[str, str]) -> None:
    """Raise SettingError, with Slurm's own words, where it is not here or refuses a shape.

    sizes: {size: name of a run of it}. Nothing is submitted or written.
    """
    for tool in ("sbatch", "squeue", "srun", "scancel"):
        if not shutil.which(tool):
            raise SettingError(
                f"cluster.launcher=slurm needs Slurm, and {tool} is not found here; submit from a "
                "login node, or set cluster=local."
            )
    tried: dict[Shape, str] = {}
    for size, run in sizes.items():
        tried.setdefault(cluster.shape(size), run)
    for shape, run in tried.items():
        text = _executor(cluster, shape, "test", Path("/tmp"), [])._make_submission_file_text(
            "true", "test"
        )
        try:
            asked = subprocess.run(
                ["sbatch", "--test-only"], input=text, capture_output=True, text=True, check=False,
                timeout=ASK_SECONDS,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise SettingError(
                f"Slurm does not answer: sbatch said nothing for {ASK_SECONDS} s; nothing is "
                "submitted until it does (sinfo)."
            ) from error
        if asked.returncode:
            raise SettingError(f"Slurm refuses run {run} ({shape}): {_words(asked.stderr)}.")


def submit(
    cluster: Slurm,
    shape: Shape,
    job: str,
    folder: Path,
    runs: Sequence[Path],
    code: Path,
    environment: Mapping[str, str],
    at_once: int,
    after: str | None = None,
) -> str:
    """One job array named `job`, an element a run in the order given. Returns its number.

    folder: for scripts and logs; at_once: elements that may run at a time; after: the number of an
    array that has to end first. Raises SettingError with Slurm's words where it refuses.
    """
    from submitit.core.utils import FailedJobError, FailedSubmissionError
    from submitit.helpers import clean_env

    from sweeps import worker

    exports = {
        "PYTHONPATH": str(code), "OMP_NUM_THREADS": str(shape.cpus),
        "MKL_NUM_THREADS": str(shape.cpus), **environment,
        # A job begins in the folder it was submitted from: without this Python would look there
        # first, and find the checkout's code instead of the copy.
        "PYTHONSAFEPATH": "1",
    }  # fmt: skip
    lines = [f"export {name}={shlex.quote(value)}" for name, value in exports.items()]
    executor = _executor(cluster, shape, job, folder, lines)
    executor.update_parameters(array_parallelism=at_once)
    if after:
        extra = executor.parameters["additional_parameters"]
        extra["dependency"] = ",".join(filter(None, [extra.get("dependency"), f"afterany:{after}"]))
    try:
        # A driver that itself runs inside a job must not hand its own job's variables on; where
        # Slurm's configuration is, is no such variable. What sbatch says is in the error.
        place = {name: os.environ[name] for name in ("SLURM_CONF",) if name in os.environ}
        with clean_env(), contextlib.redirect_stderr(io.StringIO()):
            os.environ.update(place)
            submitted = executor.map_array(worker.under_slurm, [str(path) for path in runs])
    except (FailedSubmissionError, FailedJobError, subprocess.SubprocessError) as error:
        raise SettingError(f"Slurm refuses {runs[0].name} ({shape}): {_words(str(error))}.") from (
            error
        )
    return str(submitted[0].job_id).partition("_")[0]


def elements() -> int:
    """Most elements of one array at this site."""
    said = _ask("scontrol", "show", "config") or ""
    found = re.search(r"MaxArraySize\s*=\s*(\d+)", said)
    return min(MOST_ELEMENTS, int(found[1]) - 1) if found else MOST_ELEMENTS


def _executor(cluster: Slurm, shape: Shape, job: str, folder: Path, lines: list[str]) -> Any:
    import submitit

    shape = shape.expanded()
    logging.getLogger("submitit").setLevel(logging.ERROR)
    extra: dict[str, Any] = {"requeue": True}
    for option in shape.extra:
        name, _, value = option.removeprefix("--").partition("=")
        extra[name] = value or True
    executor = submitit.SlurmExecutor(folder)
    executor.update_parameters(
        job_name=job,
        time=shape.minutes,
        nodes=shape.nodes,
        ntasks_per_node=shape.ranks_per_node,
        gpus_per_node=shape.gpus or None,
        cpus_per_task=shape.cpus,
        mem=None if shape.memory_gb is None else f"{round(shape.memory_gb * 1024)}M",
        partition=shape.partition,
        account=shape.account,
        qos=shape.qos,
        constraint=shape.constraint,
        setup=[*shape.setup, *lines],
        # A limit of a minute or two leaves less than the warning asks for.
        signal_delay_s=min(cluster.warn_seconds, shape.minutes * 50),
        stderr_to_stdout=True,
        wckey=None,
        # Ranks wait for one another: one that failed takes its run with it.
        srun_args=["--kill-on-bad-exit=1", f"--cpus-per-task={shape.cpus}"],
        additional_parameters=extra,
    )
    return executor


def _words(said: str) -> str:
    """What Slurm said, in a line."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    told = [re.sub(r"^(sbatch|allocation failure): (error: )?", "", line) for line in lines
            if line.startswith(("sbatch:", "allocation failure:"))]  # fmt: skip
    return "; ".join(dict.fromkeys(told or lines)).rstrip(".")


def _ask(*command: str) -> str | None:
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=ASK_SECONDS
        )
        if done.returncode == 0:
            return done.stdout
    return None
