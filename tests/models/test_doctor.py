"""The preflight, the choice of a backend, and the command that reports both."""

import dataclasses
import importlib
import json
import subprocess
import sys

import pytest
import torch

from models import doctor, mixers
from models.config import Blueprint
from models.errors import SettingError
from models.language_model import LanguageModel
from models.mix import Geometry, Mix, build_config
from models.mixers.gdn import operator as gdn
from models.mixers.mamba2 import operator as mamba2
from models.ops import backend, preflight
from models.ops.operator import Operator, operators_of

CPU = torch.device("cpu")
MIXERS = mixers.MIXERS


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A fresh cache, small inputs, two operators whichever others there are, and the process's
    choice put back."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    few = {name: mixers.MIXERS[name] for name in ("attn", "gdn", "mamba2")}
    monkeypatch.setattr(mixers, "MIXERS", few)
    for module in (gdn, mamba2):
        replace(monkeypatch, module, inputs=small(module.inputs))
    monkeypatch.setattr(backend, "NAMES", dict(backend.NAMES))
    return tmp_path / "cache" / "archladder"


def replace(monkeypatch, module, **fields):
    """The module's operator with other fields, wherever it is looked up."""
    monkeypatch.setattr(module, "OPERATOR", dataclasses.replace(module.OPERATOR, **fields))


def small(inputs):
    return lambda *arguments: [x[:, :37].contiguous() for x in inputs(*arguments)]


@pytest.fixture
def wrong_beta_gradient(monkeypatch):
    """A chunked gated delta rule whose output is right and whose gradient of beta is not."""
    right = gdn.OPERATOR.chunked

    def wrong(q, k, v, g, beta, **options):
        return right(q, k, v, g, 0.5 * beta + 0.5 * beta.detach(), **options)

    replace(monkeypatch, gdn, chunked=wrong)


def test_auto_on_a_cpu_takes_chunked_and_says_why():
    choice = backend.choose(CPU)
    assert choice.backends == {"gated_delta_rule": "chunked", "ssd": "chunked"}
    assert choice.reason == (
        "chunked for gated_delta_rule and ssd: fla needs a CUDA device, and this is cpu."
    )
    assert "fla" not in sys.modules


def test_a_backend_asked_for_by_name_is_used(monkeypatch):
    choice = backend.choose("cpu", "naive")
    before = backend.in_use()
    assert before == {"gated_delta_rule": "chunked", "ssd": "chunked"}
    with backend.using(choice):
        assert backend.in_use() == {"gated_delta_rule": "naive", "ssd": "naive"}
        replace(monkeypatch, mamba2, naive=lambda *x, **_: x)
        assert mamba2.ssd(1, 2, 3, 4) == (1, 2, 3, 4)
    assert before == backend.in_use()


@pytest.mark.parametrize(
    ("module", "call"), [(gdn, "gated_delta_rule"), (mamba2, "ssd")], ids=["gdn", "mamba2"]
)
@pytest.mark.parametrize("name", ["naive", "chunked"])
def test_a_compiled_call_takes_the_backend_in_use_without_a_graph_break(module, call, name):
    operator = module.OPERATOR
    inputs = operator.inputs(CPU, torch.float32)
    expected = {form: operator.form(form)(*inputs)[0] for form in ("naive", "chunked")}
    assert not torch.equal(expected["naive"], expected["chunked"])  # they round otherwise
    compiled = torch.compile(getattr(module, call), fullgraph=True, backend="aot_eager")
    with backend.using(backend.Choice({operator.name: name}, "")):
        assert torch.equal(compiled(*inputs)[0], expected[name])
    assert torch.equal(compiled(*inputs)[0], expected["chunked"])


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
    found = preflight.examine(gdn.OPERATOR, "chunked", CPU, torch.float32)
    assert found.errors["o"] < 1e-5
    assert found.errors["dbeta"] == pytest.approx(0.5, abs=1e-3)
    with pytest.raises(SettingError, match=r"off by 5\.0e-01 in dbeta, at most 1e-04 in float32"):
        backend.choose(CPU, wanted)
    assert doctor.main([]) == 1


def test_a_nan_is_wrong(monkeypatch):
    right = mamba2.OPERATOR.chunked

    def wrong(*x, **options):
        o, S = right(*x, **options)
        return o * torch.nan, S

    replace(monkeypatch, mamba2, chunked=wrong)
    assert "nan in o" in preflight.examine(mamba2.OPERATOR, "chunked", CPU, torch.float32).problem


def gpu_with(monkeypatch, problems):
    """As on a GPU where fla imports and these operators have these problems with it."""
    answers = {
        (operator, "fla"): preflight.Verdict(operator, "fla", "bfloat16", {}, problem)
        for operator, problem in problems.items()
    }
    right = preflight.Verdict("", "chunked", "bfloat16", {}, "")
    monkeypatch.setattr(
        preflight, "verdict", lambda operator, name, *_: answers.get((operator.name, name), right)
    )


def test_auto_takes_fla_where_it_is_right_and_chunked_for_the_operator_it_is_wrong_in(monkeypatch):
    gpu_with(monkeypatch, {"gated_delta_rule": "", "ssd": ""})
    choice = backend.choose("cuda")
    assert choice.backends == {"gated_delta_rule": "fla", "ssd": "fla"}
    hopper = "fla raises RuntimeError: Triton >= 3.4.0 and < 3.7.1 on Hopper GPUs"
    gpu_with(monkeypatch, {"gated_delta_rule": "", "ssd": hopper})
    choice = backend.choose("cuda")
    assert choice.backends == {"gated_delta_rule": "fla", "ssd": "chunked"}
    assert choice.reason == f"chunked for ssd: {hopper}."
    with pytest.raises(
        SettingError, match=r"resources\.backend=fla cannot train here: ssd: fla raises"
    ):
        backend.choose("cuda", "fla")


def test_whatever_a_kernel_raises_becomes_a_sentence(monkeypatch):
    def hopper(*_, **__):
        raise RuntimeError("Triton >= 3.4.0 and < 3.7.1 on Hopper GPUs\nproduces wrong results")

    replace(monkeypatch, mamba2, fla=hopper)
    monkeypatch.setattr(preflight, "cannot_run", lambda *_: "")
    found = preflight.examine(mamba2.OPERATOR, "fla", CPU, torch.float32)
    assert found.problem == ("fla raises RuntimeError: Triton >= 3.4.0 and < 3.7.1 on Hopper GPUs")
    assert found.errors == {}


def test_the_preflight_runs_once_a_machine(cache, monkeypatch):
    runs = []
    examine = preflight.examine
    monkeypatch.setattr(preflight, "examine", lambda *x: (runs.append(x), examine(*x))[1])
    first = preflight.verdict(mamba2.OPERATOR, "chunked", CPU, torch.float32)
    assert preflight.verdict(mamba2.OPERATOR, "chunked", CPU, torch.float32) == first
    assert len(runs) == 1
    monkeypatch.setattr(preflight, "versions", lambda _: {"torch": "another"})
    preflight.verdict(mamba2.OPERATOR, "chunked", CPU, torch.float32)
    assert len(runs) == 2


@pytest.mark.parametrize("damage", ['{"cut', "[]", '{"ssd chunked torch.float32": {"x": 1}}', ""])
def test_a_damaged_cache_is_made_anew(cache, damage):
    first = preflight.verdict(mamba2.OPERATOR, "chunked", CPU, torch.float32)
    (kept,) = cache.iterdir()
    kept.write_text(damage)
    assert preflight.verdict(mamba2.OPERATOR, "chunked", CPU, torch.float32) == first
    assert json.loads(kept.read_text())["ssd chunked torch.float32"]["problem"] == ""


def test_a_cache_that_cannot_be_written_stops_nothing(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert preflight.verdict(mamba2.OPERATOR, "chunked", CPU, torch.float32).problem == ""


@pytest.mark.parametrize("form", ["table", "markdown"])
def test_the_doctor_names_versions_errors_and_what_auto_takes(capsys, form):
    assert doctor.main(["--format", form]) == 0
    printed = capsys.readouterr().out
    assert f"torch {torch.__version__}" in printed
    rows = [line for line in printed.splitlines() if "float" in line and "e-0" in line]
    assert len(rows) == 8
    assert all("yes" in row for row in rows)
    assert "auto takes chunked for gated_delta_rule and chunked for ssd" in printed


def test_an_impossible_device_is_one_sentence_and_exit_code_2():
    run = subprocess.run(
        [sys.executable, "-m", "models.doctor", "--device", "toaster"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 2
    assert len(run.stderr.strip().splitlines()) == 1
    assert run.stderr.startswith("error: device=toaster cannot be used: ")


def running_sum(v, *, initial_state=None, output_final_state=False, cu_seqlens=None):
    """o_t = S_t = S_{t-1} + v_t, token by token; v: [B, T, D]. Documents lie in one row."""
    B, T, _ = v.shape
    borders = [T * b for b in range(B + 1)] if cu_seqlens is None else cu_seqlens.tolist()
    S, out = initial_state, []
    for t, x in enumerate(v.flatten(0, 1)):
        S = x if t in borders else S + x
        out.append(S)
    return torch.stack(out).view_as(v), S if output_final_state else None


def cumulative_sum(v, *, initial_state=None, output_final_state=False, cu_seqlens=None):
    """`running_sum` by differences of one cumulative sum."""
    B, T, _ = v.shape
    if cu_seqlens is None:
        cu_seqlens = T * torch.arange(B + 1)
    total = torch.cat([v.new_zeros(1, v.shape[-1]), v.flatten(0, 1).double().cumsum(0)])
    start = torch.repeat_interleave(cu_seqlens[:-1], cu_seqlens.diff())
    o = (total[1:] - total[start]).view_as(v).to(v.dtype)
    return o, o[-1, -1] if output_final_state else None


def ignores_documents(v, *, cu_seqlens=None, **options):
    return cumulative_sum(v, **options)


def ones(device, dtype):
    return [torch.ones(2, 9, 3, device=device, dtype=dtype)]


RUNNING_SUM = Operator("running_sum", running_sum, cumulative_sum, ones, ("y", "dv"))
"""An operator from outside of models/, without kernels."""
OWN = {"running_sum": RUNNING_SUM}


def test_an_operator_from_elsewhere_is_examined():
    assert preflight.examine(RUNNING_SUM, "chunked", CPU, torch.float32).problem == ""
    wrong = dataclasses.replace(RUNNING_SUM, chunked=ignores_documents)
    examined = preflight.examine(wrong, "chunked", CPU, torch.float32)
    assert set(examined.errors) == {"y", "dv"}
    # Its output is held to the bound of outputs, whatever it is called.
    assert "in y, at most 1e-05 in float32" in examined.problem


def test_an_operator_from_elsewhere_is_chosen_and_used_beside_the_others():
    choice = backend.choose(CPU, operators=operators_of() | OWN)
    assert choice.backends["running_sum"] == "chunked"
    assert choice.reason.endswith("; running_sum: it has no fla form.")
    assert backend.form_in_use(RUNNING_SUM) is cumulative_sum
    with backend.using(backend.choose(CPU, "naive", operators=OWN)):
        assert backend.form_in_use(RUNNING_SUM) is running_sum
        assert backend.in_use() == {
            "gated_delta_rule": "chunked", "ssd": "chunked", "running_sum": "naive"
        }  # fmt: skip
    assert "running_sum" not in backend.in_use()
    with pytest.raises(SettingError, match=r"running_sum: it has no fla form\.$"):
        backend.choose(CPU, "fla", operators=OWN)


MIXER_OF_ONES_OWN = """
import dataclasses
from models.mixers import MIXERS
MIXER = dataclasses.replace(MIXERS["gdn"], name="own", operators=({operators}))
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A function that writes a user's package own.mixer whose record has these operators."""
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "own" / "mixer").mkdir(parents=True)

    def write(operators):
        text = MIXER_OF_ONES_OWN.format(operators=operators)
        (tmp_path / "own" / "mixer" / "__init__.py").write_text(text)
        importlib.invalidate_caches()
        return tmp_path / "own" / "mixer"

    yield write
    for name in [name for name in sys.modules if name.split(".")[0] == "own"]:
        del sys.modules[name]


def test_the_doctor_examines_a_mixer_of_ones_own_by_its_dotted_path(package, capsys):
    package(f"{__name__!r} + ':RUNNING_SUM',")
    assert doctor.main(["--mixer", "own.mixer,mamba2"]) == 0
    printed = capsys.readouterr().out
    (titles,) = (line.split() for line in printed.splitlines() if "backend" in line)
    assert titles == ["operator", "backend", "inputs", *["y", "dv", "o", "dq", "dk", "dg", "right"]]
    rows = [line.split()[:2] for line in printed.splitlines() if "float" in line and "yes" in line]
    forms = ["naive", "naive", "chunked", "chunked"]
    assert rows == [[name, form] for name in ("running_sum", "ssd") for form in forms]
    assert "auto takes chunked for running_sum and chunked for ssd" in printed


def test_the_doctor_says_of_a_mixer_without_operators_that_it_has_none(capsys):
    assert doctor.main(["--mixer", "attn"]) == 0
    assert "no recurrent operator" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("operators", "asked", "sentence"),
    [
        ("", "mamba3", "mixer=mamba3 is not known; valid: attn, gdn, mamba2, or the dotted path"),
        ("", "own.missing", "mixer=own.missing cannot be imported (No module named"),
        ("", "json.decoder", "mixer=json.decoder holds no MIXER"),
        ("", "..mixer", "mixer=..mixer is not known"),
        ("'own.mixer:NONE',", "own.mixer", "mixer=own.mixer names the operator own.mixer:NONE, "),
        ("'own.no:X',", "own.mixer", "mixer=own.mixer names the operator own.no:X, which cannot"),
        ("'math:pi',", "own.mixer", "mixer=own.mixer names the operator math:pi, which is no"),
        (
            "'tests.models.test_doctor:ANOTHER_SSD',",
            "mamba2,own.mixer",
            "mixer=own.mixer has an operator named ssd, and so has another mixer",
        ),
    ],
)
def test_a_mixer_that_cannot_be_examined_is_one_sentence_and_exit_code_2(
    package, capsys, operators, asked, sentence
):
    package(operators.replace("tests.models.test_doctor", __name__))
    assert doctor.main(["--mixer", asked]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith(f"error: {sentence}")
    assert len(printed.splitlines()) == 1


ANOTHER_SSD = dataclasses.replace(RUNNING_SUM, name="ssd")


def test_a_verdict_is_dropped_when_a_file_beside_an_operator_of_ones_own_changes(
    package, monkeypatch
):
    folder = package("")
    (folder / "forms.py").write_text(
        f"import {__name__} as forms\n"
        "def chunked(*inputs, **options):\n"
        "    return forms.cumulative_sum(*inputs, **options)\n"
    )
    forms = importlib.import_module("own.mixer.forms")
    operator = dataclasses.replace(RUNNING_SUM, chunked=forms.chunked)
    runs = []
    examine = preflight.examine
    monkeypatch.setattr(preflight, "examine", lambda *x: (runs.append(x), examine(*x))[1])
    for _ in range(2):
        preflight.verdict(operator, "chunked", CPU, torch.float32)
    assert len(runs) == 1
    (folder / "kernel.py").write_text("# what forms.py may import\n")
    preflight.verdict(operator, "chunked", CPU, torch.float32)
    assert len(runs) == 2


def test_a_verdict_on_code_without_a_file_is_not_kept(cache):
    typed = {"__name__": "typed_in", "cumulative_sum": cumulative_sum}
    exec("def chunked(*inputs, **options): return cumulative_sum(*inputs, **options)", typed)
    operator = dataclasses.replace(RUNNING_SUM, chunked=typed["chunked"])
    assert preflight.verdict(operator, "chunked", CPU, torch.float32).problem == ""
    assert not cache.exists()


@pytest.mark.parametrize("mixer", MIXERS)
def test_a_mixers_record_names_the_operators_that_its_layers_call(mixer, monkeypatch):
    monkeypatch.setattr(mixers, "MIXERS", MIXERS)
    called = set()
    form_in_use = backend.form_in_use
    monkeypatch.setattr(
        backend,
        "form_in_use",
        lambda operator: (called.add(operator.name), form_in_use(operator))[1],
    )
    config = build_config(Mix("x", (mixer,)), Blueprint("x", 64, 2, 2, 96), Geometry(), 256)
    LanguageModel(config)(torch.zeros(1, 5, dtype=torch.long))
    assert called == set(operators_of([mixer]))
