"""What of its own environment a driver hands on: to workers, and to Slurm's commands.

A driver may itself be a task of a job, of torchrun or of mpirun. What such a launcher told the
driver of its place among others is not true of the driver's workers, and one that believed it would
wait for ranks that nobody starts, or have the user's own job queued again. So every variable by
which a launcher speaks to its processes is dropped. What is true of the machine (PATH, visible
GPUs, libraries, network interfaces, proxies) is handed on.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping

LAUNCHERS = (
    # Slurm and what submits to it, with what its commands read in place of options.
    *("SLURM_", "SLURMD_", "SBATCH_", "SALLOC_", "SRUN_", "SUBMITIT_"),
    *("SQUEUE_", "SCANCEL_", "SCONTROL_", "SINFO_"),
    # torchrun; MPI: Open MPI, PMI and PMIx, MPICH, MVAPICH, Intel MPI, Cray PALS.
    *("TORCHELASTIC_", "OMPI_COMM_", "OMPI_MCA_orte", "OMPI_UNIVERSE_", "PRTE_", "PMI_", "PMIX_"),
    *("MPI_LOCAL", "MPIR_", "MV2_COMM_", "I_MPI_HYDRA_", "PALS_"),
)
"""How names begin by which a launcher tells a process its place."""
RANKS = (
    *("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE"),
    *("ROLE_RANK", "ROLE_WORLD_SIZE", "ROLE_NAME", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT"),
)
"""The names that torchrun and those like it use, which begin in no way of their own."""
WHERE_SLURM_IS = ("SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_JWT")
"""Of this machine, not of a job: its configuration, and a token to speak to it with."""


def of_this_machine(environment: Mapping[str, str]) -> dict[str, str]:
    """`environment` without what a launcher told this process of its place among others."""
    return {
        name: value
        for name, value in environment.items()
        if name in WHERE_SLURM_IS or not (name in RANKS or name.startswith(LAUNCHERS))
    }


@contextlib.contextmanager
def handed_on() -> Iterator[None]:
    """This process's own environment is `of_this_machine` for as long as the block lasts: for a
    library that starts commands with it."""
    before = dict(os.environ)
    kept = of_this_machine(before)
    for name in before.keys() - kept.keys():
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update({name: before[name] for name in before.keys() - kept.keys()})
