"""What an environment variable holds is in no identity, no folder's name and no record."""

import json

import pytest
import yaml
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ablations.data.source import required_path, summarize
from models.environment import expand
from models.errors import SettingError
from models.settings import to_dict
from sweeps import slurm, submit
from sweeps.cluster import parse, restore
from sweeps.cluster import to_dict as recorded
from sweeps.compose import compose_sweep
from sweeps.errors import sentence
from sweeps.variables import settings_of
from tests.sweeps.test_cluster import slurm as slurm_settings
from tests.sweeps.test_submit import checkout, controller, requests  # noqa: F401

SECRET = "hunter2-hunter2"


@pytest.fixture(autouse=True)
def variables(monkeypatch):
    monkeypatch.setenv("MINE", SECRET)
    monkeypatch.setenv("RATE", "0.5")
    monkeypatch.setenv("ARCHLADDER_DATA", "/data/corpus")
    monkeypatch.delenv("UNSET", raising=False)


def read(**content):
    return settings_of(OmegaConf.create(content))


@pytest.mark.parametrize(
    ("content", "setting"),
    [
        ({"sweep": "a-${oc.env:MINE}"}, "sweep"),
        ({"mix": {"name": "${oc.env:MINE}"}}, "mix.name"),
        ({"train": {"weight_decay": "${oc.decode:${oc.env:RATE}}"}}, "train.weight_decay"),
        ({"seed": "${oc.decode:${oc.env:UNSET,1}}"}, "seed"),
        ({"sweep": "${data.path}", "data": {"path": "${oc.env:MINE}"}}, "sweep"),
        ({"sweep": "${logging.wandb}", "logging": {"wandb": "${oc.env:MINE}"}}, "sweep"),
        ({"data": {"path": "x", "name": "${oc.env:MINE}"}}, "data.name"),
        ({"resources": {"device": "${oc.env:UNSET,cpu}"}}, "resources.device"),
        ({"evaluation": {"probes": ["recall", "${oc.env:MINE}"]}}, "evaluation.probes[1]"),
        ({"treatments": ["${oc.env:MINE}"]}, "treatments[0]"),
        ({"train": {"z_loss": "${oc.select:${oc.env:MINE},0.1}"}}, "train.z_loss"),
        ({"size": {"name": "${${oc.env:UNSET,mix}.name}"}, "mix": {"name": "m"}}, "size.name"),
        ({"cluster": {"setup": ["export A=${oc.env:MINE}"]}}, "cluster.setup[0]"),
    ],
)
def test_a_variable_in_what_decides_or_is_recorded_is_refused_by_name(content, setting):
    with pytest.raises(SettingError) as error:
        read(**content)
    assert str(error.value).startswith(setting)
    assert SECRET not in str(error.value)


def test_places_keep_the_names_of_variables_and_all_else_is_resolved():
    settings = read(
        seed=3,
        runs="/scratch/${oc.env:MINE}",
        data={"path": "${oc.env:MINE}/${seed}"},
        logging={"wandb": "${oc.env:MINE}", "log_every": "${oc.decode:${oc.env:UNSET,5}}"},
        cluster={"account": "${oc.env:MINE}", "qos": "${oc.env:UNSET,null}",
                 "extra": ["a=${oc.env:UNSET,b}"], "gpus": "${oc.decode:${oc.env:RATE}}"},
    )  # fmt: skip
    assert SECRET not in json.dumps(settings)
    assert settings["data"]["path"] == "${oc.env:MINE}/3"
    assert settings["cluster"]["account"] == settings["logging"]["wandb"] == "${oc.env:MINE}"
    assert settings["cluster"]["qos"] is None
    assert (settings["cluster"]["gpus"], settings["logging"]["log_every"]) == (0.5, 5)
    assert expand(settings["cluster"]["extra"][0], "cluster.extra") == "a=b"
    assert expand(settings["runs"], "runs") == f"/scratch/{SECRET}"


def test_the_projects_own_variable_is_a_path_and_recorded_as_one():
    assert read(data={"path": "${oc.env:ARCHLADDER_DATA,null}"})["data"]["path"] == "/data/corpus"


def test_a_variable_that_is_not_set_is_named_with_its_setting():
    with pytest.raises(SettingError, match=r"data.path=\$\{oc.env:GONE\} names .* GONE"):
        required_path("${oc.env:GONE}")
    with pytest.raises(SettingError, match=r"data.path=/no/\$\{oc.env:MINE\} is not a folder"):
        summarize("tokens", "/no/${oc.env:MINE}")
    with pytest.raises((HydraException, OmegaConfBaseException)) as error:
        compose_sweep(["data.path=${oc.env:GONE}"])
    assert "data.path names the environment variable GONE" in sentence(error.value)


def test_a_submission_has_the_variables_names_and_slurm_is_asked_for_what_they_hold(
    controller, checkout, tmp_path  # noqa: F811
):  # fmt: skip
    cluster = parse(slurm_settings(account="${oc.env:MINE}", extra=["comment=${oc.env:MINE}"]))
    asked = requests(tmp_path / "sweep", 0)
    asked[0].spec["data"]["path"] = "here/${oc.env:MINE}"
    submit.to_slurm(asked, cluster, None, "run.py cluster.account='${oc.env:MINE}'")
    for file in (tmp_path / "sweep").rglob("*"):
        assert not file.is_file() or SECRET.encode() not in file.read_bytes(), file
    how = json.loads((asked[0].run.path / "submission.json").read_text())["how"]["cluster"]
    assert restore(how) == restore(recorded(cluster)) == cluster
    path = asked[0].run.read_spec()["data"]["path"]
    assert path.endswith("here/${oc.env:MINE}")
    assert required_path(path).is_absolute()
    assert required_path(path).name == SECRET
    script = slurm._executor(cluster, cluster.default, "job", tmp_path, [])
    text = script._make_submission_file_text("true", "test")
    assert f"--account={SECRET}" in text
    assert f"--comment={SECRET}" in text


def test_an_environment_that_hydra_would_set_for_a_job_is_refused(tmp_path):
    (tmp_path / "config.yaml").write_text("hydra: {job: {env_copy: [MINE]}}\nseed: 0\n")
    with pytest.raises(SettingError, match="env_copy"):
        compose_sweep(["+a=${hydra:job.env_set.MINE}"], conf=tmp_path)
    params = {"hydra": {"sweeper": {"params": {"seed": "${oc.decode:${oc.env:RATE}}"}}}, "seed": 0}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(params))
    with pytest.raises(SettingError, match=r"hydra.sweeper.params.* environment"):
        compose_sweep([], conf=tmp_path)


def test_no_identity_depends_on_the_environment(monkeypatch):
    from ablations.resolve import resolve
    from sweeps.compose import of_the_run

    (settings,) = compose_sweep(["logging.wandb=${oc.env:WANDB_HOW,off}"])
    spec = resolve(of_the_run(settings))
    monkeypatch.setenv("WANDB_HOW", "offline")
    (again,) = compose_sweep(["logging.wandb=${oc.env:WANDB_HOW,off}"])
    assert resolve(of_the_run(again)).identity == spec.identity
    assert to_dict(resolve(of_the_run(again)))["logging"]["wandb"] == "${oc.env:WANDB_HOW,off}"
