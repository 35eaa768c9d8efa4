"""The preflight, the choice of a backend, and the command that reports both."""

import json
import subprocess
import sys

import pytest
import torch

from models import doctor
from models.errors import SettingError
from models.ops import backend, preflight

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A fresh cache, small inputs, and the process's choice put back."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(preflight, "inputs", small(preflight.inputs))
    monkeypatch.setattr(backend, "NAMES", dict(backend.NAMES))
    return tmp_path / "archladder"


def small(inputs):
    return lambda *arguments: [x[:, :37].contiguous() for x in inputs(*arguments)]


@pytest.fixture
def wrong_beta_gradient(monkeypatch):
    """A chunked gated delta rule whose output is right and whose gradient of beta is not."""
    right = preflight.IMPLEMENTATIONS["gated_delta_rule"]["chunked"]

    def wrong(q, k, v, g, beta, **options):
        return right(q, k, v, g, 0.5 * beta + 0.5 * beta.detach(), **options)

    monkeypatch.setitem(preflight.IMPLEMENTATIONS["gated_delta_rule"], "chunked", wrong)


def test_auto_on_a_cpu_takes_chunked_and_says_why():
    choice = backend.choose(CPU)
    assert (choice.gated_delta_rule, choice.ssd) == ("chunked", "chunked")
    assert choice.reason == (
        "chunked for gated_delta_rule and ssd: fla needs a CUDA device, and this is cpu."
    )
    assert "fla" not in sys.modules


def test_a_backend_asked_for_by_name_is_used(monkeypatch):
    choice = backend.choose("cpu", "naive")
    before = dict(backend.NAMES)
    with backend.using(choice):
        assert backend.NAMES == {"gated_delta_rule": "naive", "ssd": "naive"}
        monkeypatch.setattr(preflight, "IMPLEMENTATIONS", {"ssd": {"naive": lambda *x, **_: x}})
        assert backend.ssd(1, 2, 3, 4) == (1, 2, 3, 4)
    assert before == backend.NAMES


@pytest.mark.parametrize(
    ("wanted", "sentence"),
    [
        ("fast", "resources.backend=fast is none of auto, naive, chunked, fla."),
        (
            "fla",
            "resources.backend=fla cannot train here: gated_delta_rule: fla needs a CUDA device",
        ),
    ],
)
def test_a_backend_that_cannot_be_used_is_refused_in_one_sentence(wanted, sentence):
    with pytest.raises(SettingError) as refused:
        backend.choose(CPU, wanted)
    assert str(refused.value).startswith(sentence)
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize("wanted", ["auto", "chunked"])
def test_a_wrong_gradient_is_refused(wrong_beta_gradient, wanted):
    found = preflight.examine("gated_delta_rule", "chunked", CPU, torch.float32)
    assert found.errors["o"] < 1e-5
    assert found.errors["dbeta"] == pytest.approx(0.5, abs=1e-3)
    with pytest.raises(SettingError, match=r"off by 5\.0e-01 in dbeta, at most 1e-04 in float32"):
        backend.choose(CPU, wanted)
    assert doctor.main([]) == 1


def test_a_nan_is_wrong(monkeypatch):
    right = preflight.IMPLEMENTATIONS["ssd"]["chunked"]

    def wrong(*x, **options):
        o, S = right(*x, **options)
        return o * torch.nan, S

    monkeypatch.setitem(preflight.IMPLEMENTATIONS["ssd"], "chunked", wrong)
    assert "nan in o" in preflight.examine("ssd", "chunked", CPU, torch.float32).problem


def gpu_with(monkeypatch, problems):
    """As on a GPU where fla imports and these operators have these problems with it."""
    answers = {
        (operator, "fla"): preflight.Verdict(operator, "fla", "bfloat16", {}, problem)
        for operator, problem in problems.items()
    }
    right = preflight.Verdict("", "chunked", "bfloat16", {}, "")
    monkeypatch.setattr(
        preflight, "verdict", lambda operator, name, *_: answers.get((operator, name), right)
    )


def test_auto_takes_fla_where_it_is_right_and_chunked_for_the_operator_it_is_wrong_in(monkeypatch):
    gpu_with(monkeypatch, {"gated_delta_rule": "", "ssd": ""})
    choice = backend.choose("cuda")
    assert (choice.gated_delta_rule, choice.ssd) == ("fla", "fla")
    hopper = "fla raises RuntimeError: Triton >= 3.4.0 and < 3.7.1 on Hopper GPUs"
    gpu_with(monkeypatch, {"gated_delta_rule": "", "ssd": hopper})
    choice = backend.choose("cuda")
    assert (choice.gated_delta_rule, choice.ssd) == ("fla", "chunked")
    assert choice.reason == f"chunked for ssd: {hopper}."
    with pytest.raises(
        SettingError, match=r"resources\.backend=fla cannot train here: ssd: fla raises"
    ):
        backend.choose("cuda", "fla")


def test_whatever_a_kernel_raises_becomes_a_sentence(monkeypatch):
    def hopper(*_, **__):
        raise RuntimeError("Triton >= 3.4.0 and < 3.7.1 on Hopper GPUs\nproduces wrong results")

    monkeypatch.setitem(preflight.IMPLEMENTATIONS["ssd"], "fla", hopper)
    monkeypatch.setattr(preflight, "cannot_run", lambda *_: "")
    found = preflight.examine("ssd", "fla", CPU, torch.float32)
    assert found.problem == ("fla raises RuntimeError: Triton >= 3.4.0 and < 3.7.1 on Hopper GPUs")
    assert found.errors == {}


def test_the_preflight_runs_once_a_machine(cache, monkeypatch):
    runs = []
    examine = preflight.examine
    monkeypatch.setattr(preflight, "examine", lambda *x: (runs.append(x), examine(*x))[1])
    first = preflight.verdict("ssd", "chunked", CPU, torch.float32)
    assert preflight.verdict("ssd", "chunked", CPU, torch.float32) == first
    assert len(runs) == 1
    monkeypatch.setattr(preflight, "versions", lambda _: {"torch": "another"})
    preflight.verdict("ssd", "chunked", CPU, torch.float32)
    assert len(runs) == 2


@pytest.mark.parametrize("damage", ['{"cut', "[]", '{"ssd chunked torch.float32": {"x": 1}}', ""])
def test_a_damaged_cache_is_made_anew(cache, damage):
    first = preflight.verdict("ssd", "chunked", CPU, torch.float32)
    (kept,) = cache.iterdir()
    kept.write_text(damage)
    assert preflight.verdict("ssd", "chunked", CPU, torch.float32) == first
    assert json.loads(kept.read_text())["ssd chunked torch.float32"]["problem"] == ""


def test_a_cache_that_cannot_be_written_stops_nothing(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert preflight.verdict("ssd", "chunked", CPU, torch.float32).problem == ""


@pytest.mark.parametrize("form", ["table", "markdown"])
def test_the_doctor_names_versions_errors_and_what_auto_takes(capsys, form):
    assert doctor.main(["--format", form]) == 0
    printed = capsys.readouterr().out
    assert f"torch {torch.__version__}" in printed
    rows = [line for line in printed.splitlines() if "float" in line and "e-0" in line]
    assert len(rows) == 8
    assert all("yes" in row for row in rows)
    assert "auto takes chunked for the gated delta rule and chunked for ssd" in printed


def test_an_impossible_device_is_one_sentence_and_exit_code_2():
    run = subprocess.run(
        [sys.executable, "-m", "models.doctor", "--device", "toaster"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 2
    assert len(run.stderr.strip().splitlines()) == 1
    assert run.stderr.startswith("--device toaster: ")
