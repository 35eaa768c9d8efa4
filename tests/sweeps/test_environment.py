"""What a driver hands on of its environment, to workers and to Slurm's commands alike."""

import importlib.util
import os
import re
from pathlib import Path

import pytest

from models.errors import SettingError
from sweeps import slurm
from sweeps.cluster import parse, restore, to_dict
from sweeps.environment import handed_on, of_this_machine
from tests.sweeps.test_cluster import slurm as slurm_settings

MACHINE = {
    "PATH": "/bin", "CUDA_VISIBLE_DEVICES": "3", "OMP_NUM_THREADS": "4", "LD_LIBRARY_PATH": "/lib",
    "NCCL_SOCKET_IFNAME": "ib0", "HF_HOME": "/hf", "HYDRA_FULL_ERROR": "1", "SLURM_CONF": "/conf",
    "OMPI_MCA_btl": "tcp", "https_proxy": "p", "WANDB_MODE": "offline", "PBS_O_WORKDIR": "/",
}  # fmt: skip
SHELLS_OWN = ("_", "COLUMNS", "LINES")
LAUNCHED = {
    "srun": ["SLURM_PROCID", "SLURM_NTASKS", "SLURM_JOB_ID", "SLURMD_NODENAME", "SLURM_STEP_ID"],
    "shell": ["SBATCH_ACCOUNT", "SLURM_CLUSTERS", "SQUEUE_PARTITION", "SCANCEL_STATE", "SRUN_CPUS"],
    "mpirun": ["OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK", "MPI_LOCALRANKID", "PALS_RANKID"],
    "torchrun": ["RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT", "TORCHELASTIC_RUN_ID"],
}


@pytest.mark.parametrize("launcher", LAUNCHED)
def test_what_a_launcher_said_is_dropped_and_what_the_machine_has_is_kept(launcher):
    assert of_this_machine({**dict.fromkeys(LAUNCHED[launcher], "1"), **MACHINE}) == MACHINE


def test_nothing_of_what_torchrun_sets_is_handed_on():
    (torch,) = importlib.util.find_spec("torch").submodule_search_locations
    agent = Path(torch, "distributed", "elastic", "agent", "server", "local_elastic_agent.py")
    (environment,) = re.findall(r"worker_env = \{(.*?)\n +\}", agent.read_text(), re.DOTALL)
    names = re.findall(r'"([A-Z_]+)":', environment)
    assert {"RANK", "WORLD_SIZE", "TORCHELASTIC_USE_AGENT_STORE"} <= set(names)
    kept = of_this_machine(dict.fromkeys(names, "1"))
    assert all(name.startswith("TORCH_NCCL_") for name in kept), kept


def test_a_library_that_starts_commands_is_given_the_same(monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    before = dict(os.environ)
    with handed_on():
        assert dict(os.environ) == of_this_machine(before)
        os.environ["SET_INSIDE"] = "1"
    assert os.environ.pop("SET_INSIDE")
    assert dict(os.environ) == before


@pytest.fixture
def tool(tmp_path, monkeypatch):
    """Put a command in front of all others: a shell script by its lines. Where one is put there
    are no others but the shell's."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("cat", "env", "sleep", "timeout", "sh"):
        (real,) = [p for p in ("/bin", "/usr/bin") if Path(p, name).exists()][:1]
        (folder / name).symlink_to(Path(real, name))
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setattr(slurm, "ASK_SECONDS", 0.5)

    def put(name, *lines, interpreter="/bin/sh"):
        (folder / name).write_text("\n".join([f"#!{interpreter}", *lines]) + "\n")
        (folder / name).chmod(0o755)

    return put


def test_a_check_and_a_submission_are_made_in_the_same_environment(tool, tmp_path, monkeypatch):
    names = [name for names in LAUNCHED.values() for name in names]
    for name in names:
        if name != "SLURM_CLUSTERS":  # refused, below
            monkeypatch.setenv(name, "mine")
    monkeypatch.setenv("SLURM_CONF", "/conf")
    seen = tmp_path / "seen"
    tool("sbatch", f"case $1 in --*) env >{seen}-1;; *) env >{seen}-2;; esac", "echo job 5")
    for name in ("srun", "squeue", "scancel"):
        tool(name)
    cluster = parse(slurm_settings())
    slurm.check(cluster, {"50k": "run"})
    folder = tmp_path / "job"
    given = [tmp_path / "a", tmp_path / "b"]
    assert slurm.submit(cluster, cluster.default, "j", folder, given, tmp_path, {}, 1) == "5"
    checked, submitted = (
        # COLUMNS and LINES come with readline, which something may import in between.
        {line for line in file.read_text().splitlines() if line.split("=")[0] not in SHELLS_OWN}
        for file in sorted(tmp_path.glob("seen*"))
    )
    assert checked == submitted
    assert "SLURM_CONF=/conf" in checked
    assert not [line for line in checked if line.partition("=")[0] in names]


def test_what_conf_leaves_open_the_shell_may_say_and_the_record_keeps(monkeypatch):
    for name in ("PARTITION", "ACCOUNT", "QOS", "RESERVATION", "TIMELIMIT"):
        monkeypatch.setenv(f"SBATCH_{name}", f"my-{name.lower()}")
    cluster = parse(slurm_settings(partition="gpu", sizes={"1b": {"qos": "large"}}))
    for size, qos in (("50k", "my-qos"), ("1b", "large")):
        shape = cluster.shape(size)
        assert (shape.partition, shape.account, shape.qos) == ("gpu", "my-account", qos)
        assert shape.extra == ("reservation=my-reservation",)
    assert slurm.unread() == ["SBATCH_TIMELIMIT"]
    for name in ("ACCOUNT", "RESERVATION"):
        monkeypatch.setenv(f"SBATCH_{name}", "another")
    assert restore(to_dict(cluster)) == cluster
    again = parse(slurm_settings(extra=["reservation=r", "account=a"]))
    assert (again.default.account, again.default.extra) == (None, ("reservation=r", "account=a"))


def test_another_cluster_than_this_machines_is_refused(tool, monkeypatch):
    for name in ("sbatch", "srun", "squeue", "scancel"):
        tool(name)
    tool("scontrol", "echo 'ClusterName             = here'")
    for name in ("SLURM_CLUSTERS", "SBATCH_CLUSTERS"):
        monkeypatch.setenv(name, "there")
        with pytest.raises(SettingError, match=rf"{name}=there is another .* machine's \(here\)"):
            slurm.check(parse(slurm_settings()), {"50k": "run"})
        monkeypatch.setenv(name, "here")
        slurm.check(parse(slurm_settings()), {"50k": "run"})


BROKEN = {
    "missing": None,
    "hanging": ["exec sleep 9"],
    "failing": ["echo 'it: error: no controller' >&2", "exit 1"],
    "wordless": ["exit 3"],
}


@pytest.fixture(params=[*BROKEN, "no program"])
def broken(request, tool):
    """A cluster's commands, all of them broken in one way."""
    for name in ("sbatch", "srun", "squeue", "scancel", "scontrol"):
        if request.param == "no program":
            tool(name, interpreter="/nowhere")
        elif BROKEN[request.param]:
            tool(name, *BROKEN[request.param])
    return request.param


def test_a_broken_command_of_slurm_is_a_sentence_and_no_answer(broken, tmp_path):
    assert slurm.jobs(["a"]) is None
    assert slurm.elements() == slurm.MOST_ELEMENTS
    for problem in (slurm.cancel(["1"]), slurm.cancel_named(["a"]), slurm.requeue("1")):
        assert problem
        assert "\n" not in problem
    cluster = parse(slurm_settings())
    with pytest.raises(SettingError) as refused:
        slurm.check(cluster, {"50k": "run"})
    assert "\n" not in str(refused.value)
    if broken in ("hanging", "failing", "wordless"):  # a check finds the others
        with pytest.raises(SettingError, match="Slurm refuses a"):
            slurm.submit(cluster, cluster.default, "j", tmp_path, [tmp_path / "a"], tmp_path, {}, 1)


@pytest.mark.parametrize(
    "lines",
    [
        # As squeue does for a cluster that it cannot reach: exit code 0 and no job.
        ["echo \"squeue: error: 'x' can't be reached now\" >&2"],
        ["echo Welcome to the cluster"],
        ["printf '\\377\\376'"],
    ],
)
def test_rubbish_is_no_empty_queue(tool, lines):
    tool("squeue", *lines)
    assert slurm.jobs(["a"]) is None


def test_a_queue_is_read_between_other_lines_and_whatever_the_shell_filters(tool, monkeypatch):
    monkeypatch.setenv("SQUEUE_PARTITION", "other")
    tool("squeue", 'echo "Welcome|to|the|cluster"', "echo 'warning: slow' >&2",
         'test "$SQUEUE_PARTITION" || echo "7_1|1|RUNNING|None|n1|a"')  # fmt: skip
    assert slurm.jobs(["a"]) == {("a", 1): slurm.Job("7_1", "RUNNING", "None", "n1")}
    tool("squeue")
    assert slurm.jobs(["a"]) == {}


def test_a_site_without_arrays_takes_a_run_a_job(tool):
    tool("scontrol", "echo 'MaxArraySize            = 0'")
    assert slurm.elements() == 1
