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
from sweeps.cluster import FROM_SITE, Shape, Slurm
from sweeps.environment import handed_on, of_this_machine

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
    names = sorted(names)
    said = _ask("squeue", "-h", "-r", "-t", "all", "-n", ",".join(names), "-o", columns)
    # It may fail with exit code 0, and then prints an empty queue.
    if said.problem or "squeue: error" in said.errors:
        return None
    found, unread = {}, False
    for line in said.text.splitlines():
        number, index, state, reason, nodes, name = (line.split("|", 5) + [""] * 5)[:6]
        if name in names:
            found[name, int(index) if index.isdigit() else 0] = Job(number, state, reason, nodes)
        else:
            unread = True
    # A site may greet before it answers; where it only greets, nothing was answered.
    return None if unread and not found else found


def cancel(ids: Sequence[str]) -> str:
    """scancel; a job that has ended meanwhile is no error. Returns why it could not be done."""
    return _ask("scancel", "-Q", *ids).problem if ids else ""


def cancel_named(names: Iterable[str]) -> str:
    """scancel by the names of job arrays, whether or not their numbers ever came back. Returns why
    it could not be done."""
    problems = [_ask("scancel", "-Q", f"--name={name}").problem for name in names]
    return next(filter(None, problems), "")


def requeue(job: str) -> str:
    """Queue a job again, from inside it. Returns why it could not be done."""
    return _ask("scontrol", "requeue", job).problem


def unread() -> list[str]:
    """Names of variables that sbatch would obey and that a submission does not."""
    read = (*FROM_SITE, "SBATCH_RESERVATION", "SBATCH_CLUSTERS")
    return sorted(n for n in os.environ if n.startswith("SBATCH_") and n not in read)


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
    _check_cluster()
    tried: dict[Shape, str] = {}
    for size, run in sizes.items():
        tried.setdefault(cluster.shape(size), run)
    for shape, run in tried.items():
        text = _executor(cluster, shape, "test", Path("/tmp"), [])._make_submission_file_text(
            "true", "test"
        )
        asked = _ask("sbatch", "--test-only", text=text)
        if asked.problem:
            raise SettingError(f"Slurm refuses run {run} ({shape}): {asked.problem}.")


def _check_cluster() -> None:
    """Raise SettingError where this shell speaks to another cluster than this machine's: jobs are
    submitted, watched and cancelled here, also from a shell that says something else."""
    for name in ("SLURM_CLUSTERS", "SBATCH_CLUSTERS"):
        if wanted := os.environ.get(name):
            found = re.search(r"^ClusterName\s*=\s*(\S+)", _config(), re.MULTILINE)
            here = found[1] if found else "unknown"
            if wanted != here:
                raise SettingError(
                    f"{name}={wanted} is another cluster than this machine's ({here}), where jobs "
                    f"would go; submit from a login node of {wanted}, or unset {name}."
                )


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

    Raises SettingError with Slurm's words where it refuses.
    """
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    from sweeps import worker

    executor = prepare(cluster, shape, job, folder, code, environment, at_once, after)
    try:
        # As in `check`. What sbatch says is in the error.
        with handed_on(), contextlib.redirect_stderr(io.StringIO()):
            submitted = executor.map_array(worker.under_slurm, [str(path) for path in runs])
    except (FailedSubmissionError, FailedJobError, subprocess.SubprocessError) as error:
        words = _words(str(error)) or f"sbatch said nothing for {ASK_SECONDS} s"
        raise SettingError(f"Slurm refuses {runs[0].name} ({shape}): {words}.") from error
    return str(submitted[0].job_id).partition("_")[0]


def prepare(
    cluster: Slurm,
    shape: Shape,
    job: str,
    folder: Path,
    code: Path,
    environment: Mapping[str, str],
    at_once: int,
    after: str | None = None,
) -> Any:
    """What submits an array named `job`; nothing is asked of Slurm or written yet.

    folder: for scripts and logs; at_once: elements that may run at a time; after: the number of an
    array that has to end first.
    """
    exports = {
        "PYTHONPATH": str(code), "OMP_NUM_THREADS": str(shape.cpus),
        "MKL_NUM_THREADS": str(shape.cpus), **environment,
        # A job begins in the folder it was submitted from: without this Python would look there
        # first, and find the checkout's code instead of the copy.
        "PYTHONSAFEPATH": "1",
        # What is set here reaches the ranks also where `extra` keeps the shell's own out of jobs.
        "SLURM_EXPORT_ENV": "ALL",
    }  # fmt: skip
    lines = [f"export {name}={shlex.quote(value)}" for name, value in exports.items()]
    executor = _executor(cluster, shape, job, folder, lines)
    executor.update_parameters(array_parallelism=at_once)
    if after:
        extra = executor.parameters["additional_parameters"]
        extra["dependency"] = ",".join(filter(None, [extra.get("dependency"), f"afterany:{after}"]))
    return executor


def script(prepared: Any, elements: int) -> str:
    """The text that sbatch would be given for an array of so many elements."""
    if elements > 1:
        prepared.parameters["map_count"] = elements
    return str(prepared._make_submission_file_text(prepared._submitit_command_str, "dry"))


def elements() -> int:
    """Most elements of one array at this site."""
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", _config(), re.MULTILINE)
    # 0 where the site takes no arrays: then a job a run.
    return max(1, min(MOST_ELEMENTS, int(found[1]) - 1)) if found else MOST_ELEMENTS


def _config() -> str:
    return _ask("scontrol", "show", "config").text


def _executor(cluster: Slurm, shape: Shape, job: str, folder: Path, lines: list[str]) -> Any:
    import submitit

    shape = shape.expanded()
    logging.getLogger("submitit").setLevel(logging.ERROR)
    # submitit would wait for ever, and for the lock of the sweep so would everybody else.
    submitit.SlurmExecutor._make_submission_command = _sbatch  # type: ignore[method-assign,assignment]
    # Whether Slurm is here `check` says; a dry run asks what would be submitted from anywhere.
    submitit.SlurmExecutor.affinity = classmethod(lambda _cls: 2)  # type: ignore[method-assign,assignment]
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


def _sbatch(_executor: Any, script: Path) -> list[str]:
    return ["timeout", "-k", "5", str(ASK_SECONDS), "sbatch", str(script)]


def _words(said: str) -> str:
    """What Slurm said, in a line."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    told = [re.sub(r"^(sbatch|allocation failure): (error: )?", "", line) for line in lines
            if line.startswith(("sbatch:", "allocation failure:"))]  # fmt: skip
    return "; ".join(dict.fromkeys(told or lines)).rstrip(".")


@dataclass(frozen=True)
class _Answer:
    """What a command of Slurm printed; `problem` is why it did not do as asked, in a line."""

    text: str = ""
    errors: str = ""
    problem: str = ""


def _ask(*command: str, text: str | None = None) -> _Answer:
    """Run a command of Slurm in the environment that submissions are made in."""
    tool = command[0]
    try:
        done = subprocess.run(
            command, input=text, capture_output=True, text=True, errors="replace", check=False,
            timeout=ASK_SECONDS, env=of_this_machine(os.environ),
        )  # fmt: skip
    except FileNotFoundError:
        return _Answer(problem=f"{tool} is not found here")
    except subprocess.TimeoutExpired:
        return _Answer(problem=f"{tool} said nothing for {ASK_SECONDS} s")
    except OSError as error:
        return _Answer(problem=f"{tool} cannot be started ({error.strerror})")
    problem = ""
    if done.returncode:
        problem = _words(done.stderr) or f"{tool} ended with code {done.returncode}"
    return _Answer(done.stdout, done.stderr, problem)
