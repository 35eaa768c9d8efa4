"""dry_run=true: what would be submitted or started, and in which environment; nothing is written.

Names that a submission gives are shown in capitals: JOB, and HASH of the code's copy.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console

from ablations import provenance
from ablations.spec import RunSpec
from sweeps import slurm, state
from sweeps.environment import of_this_machine
from sweeps.local import worker_command, worker_environment
from sweeps.plan import Plan


def show_dry(plan: Plan, runs_root: Path, command: str, console: Console) -> None:
    """Print each script for sbatch, or how runs are started here, for what is not done."""
    if not plan.todo:
        console.print("dry run: every run is done, nothing would be started")
    elif plan.cluster:
        _show_scripts(plan, runs_root, command, console)
    else:
        _show_processes(plan, runs_root, command, console)


def _show_scripts(plan: Plan, runs_root: Path, command: str, console: Console) -> None:
    assert plan.cluster is not None
    names = [f"{array.sweep}-JOB{number}" for number, array in enumerate(plan.arrays, 1)]
    for array, name in zip(plan.arrays, names, strict=True):
        sweep = runs_root / str(array.sweep)
        prepared = slurm.prepare(
            plan.cluster,
            array.shape,
            name,
            state.job_folder(sweep, name),
            state.machinery(sweep) / "code" / "HASH",
            {"ARCHLADDER_COMMAND": provenance.redact(command)},
            array.at_once,
            None if array.after is None else names[array.after],
        )
        console.print(f"\n# sbatch {name}: an element of the array for each of")
        for member in array.members:
            console.print(f"#   {_name(plan.todo[member].spec)}", soft_wrap=True)
        console.print(slurm.script(prepared, len(array.members)), soft_wrap=True)
    inherited = "unless cluster.extra says export=NONE, what this shell has"
    _show_rest(f"Jobs get what the scripts export and, {inherited}", console)


def _show_processes(plan: Plan, runs_root: Path, command: str, console: Console) -> None:
    sweep = runs_root / plan.todo[0].spec.sweep
    code = state.machinery(sweep) / "code" / "HASH"
    own = worker_environment(code, plan.threads, plan.parallel, provenance.redact(command), {})
    console.print(f"\n# {plan.parallel} at a time, {plan.devices} processes a run")
    _show_variables(own, console)
    for estimate in plan.todo:
        run = runs_root / estimate.spec.sweep / _name(estimate.spec)
        console.print(shlex.join(worker_command(run)), soft_wrap=True)
    _show_rest("Processes get these and what this shell has", console)


def _name(spec: RunSpec) -> str:
    """A run's name; its hash is known once its corpus is."""
    return spec.run_name if spec.corpus else f"{spec.run_name.rpartition('-')[0]}-HASH"


def _show_variables(variables: Mapping[str, str], console: Console) -> None:
    for name, value in variables.items():
        console.print(f"export {name}={shlex.quote(value)}", soft_wrap=True)


def _show_rest(words: str, console: Console) -> None:
    dropped = sorted(os.environ.keys() - of_this_machine(os.environ).keys())
    less = f", less {', '.join(dropped)}" if dropped else ""
    console.print(f"\n{words}{less}. Dry run: nothing is written or submitted.", soft_wrap=True)
