"""The written example of docs/mixers.md, done as the page says: in a copy of the checkout with the
page's one line, and in a package that the checkout does not know."""

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from ablations.records import read_sweep
from ablations.resolve import resolve
from models.config import Blueprint
from models.errors import SettingError
from models.language_model import LanguageModel
from models.mix import Geometry, Mix, build_config
from models.settings import to_dict
from tests.ablations.conftest import settings

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "mixers.md").read_text()
SHORT = (
    "size.context=64", "protocol.batch_tokens=256", "data.eval_tokens=2048",
    "protocol.chinchilla=[0.002,0.004]", "resources.threads=1",
)  # fmt: skip


def write_mixer(folder: Path) -> None:
    """The files that the page has under headings with their names."""
    block = r"^## [^\n]*`retention/(\w+\.py)`$.*?```python\n(.*?)```"
    files = re.findall(block, PAGE, re.DOTALL | re.MULTILINE)
    assert [name for name, _ in files] == ["__init__.py", "layer.py", "confounds.py"]
    folder.mkdir(parents=True)
    for name, text in files:
        (folder / name).write_text(text)


@dataclass(frozen=True)
class Example:
    """The mixer, where one of the two ways puts it."""

    checkout: Path
    root: Path
    """The folder of the commands."""
    mixer: str
    mix: str
    conf: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        if self.root == self.checkout:
            return self.root / "models" / "mixers" / "retention"
        return self.root / "my_package" / "retention"

    def python(self, *arguments: str) -> subprocess.CompletedProcess:
        return python(self.root, self.checkout, *arguments)

    def sweep(self, *arguments: str) -> subprocess.CompletedProcess:
        return self.python(str(self.checkout / "sweeps" / "run.py"), *arguments, *self.conf)


def python(folder: Path, checkout: Path, *arguments: str) -> subprocess.CompletedProcess:
    """A command typed in `folder`, with the project installed from `checkout`."""
    environment = {
        "PYTHONPATH": str(checkout),
        "OMP_NUM_THREADS": "1",  # two threads on busy cores wait for one another
        "COLUMNS": "200",
    }
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, capture_output=True, text=True, check=False,
        timeout=300, env=os.environ | environment,
    )  # fmt: skip


def in_the_checkout(tmp: Path) -> Example:
    copy = tmp / "checkout"
    for folder in ("models", "ablations", "sweeps", "conf", "analysis"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    lines = copy / "models" / "mixers" / "__init__.py"
    (after,) = re.findall(r"```python\n(NAMES = .*)\n```", PAGE)
    text, n = re.subn(r"^NAMES = .*$", after, lines.read_text(), flags=re.MULTILINE)
    assert n == 1
    lines.write_text(text)
    mix, _ = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    (copy / "conf" / "mix" / "retention3_attn1.yaml").write_text(mix)
    return Example(copy, copy, "retention", "retention3_attn1")


def in_a_package(tmp: Path) -> Example:
    _, mix = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    (tmp / "mine" / "my_conf" / "mix").mkdir(parents=True)
    (tmp / "mine" / "my_conf" / "mix" / "my_retention.yaml").write_text(mix)
    return Example(
        ROOT, tmp / "mine", "my_package.retention", "my_retention", ("--config-dir", "my_conf")
    )


@pytest.fixture(scope="module", params=[in_the_checkout, in_a_package])
def example(request, tmp_path_factory) -> Example:
    made = request.param(tmp_path_factory.mktemp("example"))
    write_mixer(made.folder)
    return made


@pytest.fixture(scope="module")
def runs(example, tmp_path_factory):
    """A transformer and the example's mix, trained for a few steps each by the sweep command."""
    with (example.folder / "layer.py").open("a") as file:
        file.write("\nprint(f'the layer comes from {__file__}')\n")  # for the log of the run
    folder = tmp_path_factory.mktemp("runs")
    swept = example.sweep(
        "-m", f"mix=transformer,{example.mix}", "size=50k", "sweep=mine", *SHORT, f"runs={folder}"
    )
    assert swept.returncode == 0, swept.stdout + swept.stderr
    return folder


def run_of(mix: str, runs: Path):
    (run,) = [r for r in read_sweep(runs / "mine") if r.name.startswith(mix)]
    return run


def without_spaces(text: str) -> str:
    return " ".join(text.split())


# Of size 50k, width 32 and two heads of 16, with the MLP of 56 that the match finds: three layers
# of q, k, v, o and gate and a norm of a head; one of attention with norms on q and k; MLPs; two
# norms a layer and the last; the head of 256 tokens.
N = 3 * (5 * 32**2 + 16) + (4 * 32**2 + 2 * 32) + 4 * 3 * 32 * 56 + 9 * 32 + 256 * 32


def test_it_plans_with_its_confounds(example, tmp_path):
    planned = example.sweep(
        "-m", f"mix=transformer,{example.mix}", "size=50k", "plan=true", f"runs={tmp_path}/runs"
    )
    assert planned.returncode == 0, planned.stderr
    assert not any(tmp_path.iterdir())
    shown = without_spaces(planned.stdout)
    assert f"matched: {example.mix} 50k: mlp_hidden 64 → 56 (N -0.290%)" in shown
    assert f"norm placement: {example.mix} 0 of 4 → 3 of 4" in shown
    # The second head keeps 1 - 2^-6 a token: half after 44 tokens of 256.
    halved = next(t for t in range(1, 256) if (1 - 2**-6) ** t <= 0.5)
    memory = re.search(rf"memory: {example.mix} (\S+) %", shown)
    assert float(memory[1]) == pytest.approx(100 * (halved / 256 - 1), abs=0.5)


def test_the_table_of_mixes_counts_it(example):
    done = example.python(
        "-m", "models", f"mix={example.mix}", "size=50k", "--format", "csv", *example.conf
    )
    assert done.returncode == 0, done.stderr
    header, row = (line.split(",") for line in done.stdout.splitlines())
    assert int(row[header.index("N")]) == N


def test_the_doctor_finds_nothing_wrong(example):
    done = example.python("-m", "models.doctor", "--mixer", example.mixer)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "right  decoding in pieces is one pass" in done.stdout
    assert "auto takes" in done.stdout
    assert "wrong" not in done.stdout


@pytest.mark.slow
def test_it_trains_with_the_layer_it_was_submitted_with(runs, example):
    run = run_of(example.mix, runs)
    assert run.state == "done"
    assert [point["N"] for point in run.rows("points.jsonl")] == [N, N]
    (source,) = set(re.findall("the layer comes from (.*)", (run.path / "log.txt").read_text()))
    code = Path(json.loads((run.path / "submission.json").read_text())["code"])
    assert Path(source).is_relative_to(code)
    assert (code / example.folder.relative_to(example.root) / "confounds.py").is_file()


@pytest.mark.slow
def test_its_runs_are_read_where_it_is_not_installed(runs, example, tmp_path):
    done = python(
        tmp_path, ROOT, "-m", "analysis", "compare", "sweep=mine", f"runs={runs}", "format=json"
    )
    assert done.returncode == 0, done.stderr
    compared = json.loads(done.stdout)
    assert "Left out" not in compared
    assert f"{example.mix} against transformer" in compared
    assert "3 of 4" in done.stdout
    status = python(tmp_path, ROOT, str(ROOT / "sweeps/status.py"), "mine", f"--runs={runs}")
    assert status.returncode == 0, status.stderr
    assert "2 done" in without_spaces(status.stdout)
    assert "damaged" not in status.stdout


COMPARES = """
import importlib
import sys
importlib.import_module(sys.argv[1])
from analysis.__main__ import main
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.slow
def test_its_own_confound_is_reported_where_it_was_imported_and_records_import_nothing(
    runs, example
):
    asked = ["compare", "sweep=mine", f"runs={runs}"]
    told = "retention's slowest head forgets half in 44 of 64 tokens (50k)"
    done = example.python("-m", "analysis", *asked)
    assert done.returncode == 0, done.stderr
    in_the_project = "." not in example.mixer
    assert (told in done.stdout) == in_the_project
    module = f"models.mixers.{example.mixer}" if in_the_project else example.mixer
    done = example.python("-c", COMPARES, module, *asked)
    assert done.returncode == 0, done.stderr
    assert told in done.stdout


LOADS = """
import sys
from pathlib import Path
import torch
from transformers import AutoModelForCausalLM
from models.hf import load_pretrained

ours = load_pretrained(Path(sys.argv[1]), mixers=["my_package"])
theirs = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True).eval()
tokens = torch.randint(0, 256, (2, 40), generator=torch.Generator().manual_seed(0))
with torch.no_grad():
    torch.testing.assert_close(theirs(tokens).logits, ours(tokens), rtol=1e-4, atol=1e-4)
print(ours.config.layers, ours.blocks[0].mixer)
"""


@pytest.mark.slow
@pytest.mark.parametrize("example", [in_a_package], indirect=True)
def test_it_is_exported_and_loaded_again(runs, example, tmp_path, monkeypatch):
    pytest.importorskip("transformers")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    out = str(tmp_path / "exported")
    done = example.python("-m", "models.hf", "export", str(run_of(example.mix, runs).path), out)
    assert done.returncode == 0, done.stdout + done.stderr
    loaded = example.python("-c", LOADS, out)
    assert loaded.returncode == 0, loaded.stdout + loaded.stderr
    assert "('retention', 'retention', 'retention', 'attn') Retention(" in loaded.stdout


def test_a_package_that_is_not_there_is_one_sentence(tmp_path):
    example = in_a_package(tmp_path)
    done = example.sweep(f"mix={example.mix}", "size=50k", f"runs={tmp_path}/runs")
    assert done.returncode == 2
    assert done.stderr.startswith("error: mixer=my_package.retention cannot be imported (No module")
    assert "in the folder of the command, on PYTHONPATH or installed." in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "runs").exists()


@pytest.fixture
def record(tmp_path, monkeypatch):
    """The record of the page's mixer, imported here."""
    write_mixer(tmp_path / "page_of_mixers" / "retention")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield importlib.import_module("page_of_mixers.retention").MIXER
    for name in [name for name in sys.modules if name.split(".")[0] == "page_of_mixers"]:
        del sys.modules[name]


def definition(layer, x):
    """Retention as its paper's recurrent form, eq. 6 and 8, a token at a time."""
    B, T, d = x.shape
    H = layer.n_heads
    q, k, v = layer.qkv_proj(x).view(B, T, 3, H, d // H).unbind(2)
    gamma = 1 - 2.0 ** (-5 - torch.arange(H, dtype=torch.float64))
    state = torch.zeros(B, H, d // H, d // H, dtype=torch.float64)
    out = []
    for t in range(T):
        write = torch.einsum("bhk,bhv->bhkv", k[:, t].double(), v[:, t].double())
        state = gamma[:, None, None] * state + write
        out.append(torch.einsum("bhk,bhkv->bhv", q[:, t].double(), state) * (d // H) ** -0.5)
    o = torch.stack(out, 1)
    o = o / (o.square().mean(-1, keepdim=True) + layer.eps).sqrt() * layer.o_norm
    gate = layer.g_proj(x)
    return layer.o_proj(o.flatten(2).float() * gate * gate.sigmoid())


SIZE = Blueprint("x", 64, 2, 4, 96)


def mix_of(record, **options):
    kinds = {"retention": {"mixer": "page_of_mixers.retention", **options}}
    return Mix("x", ("retention", "attn"), kinds=kinds)


def test_its_layer_is_the_papers_recurrence(record):
    model = LanguageModel(build_config(mix_of(record), SIZE, Geometry(), 256))
    model.initialize(0)
    x = torch.randn(2, 80, 64, generator=torch.Generator().manual_seed(1))
    layer = model.blocks[0].mixer
    torch.testing.assert_close(layer(x), definition(layer, x), rtol=1e-4, atol=1e-4)


def test_its_option_and_rule_reach_the_layer(record):
    geometry = Geometry(options={"retention_first_exponent": 3})
    config = build_config(mix_of(record, output_gate=False), SIZE, geometry, 256)
    layer = LanguageModel(config).blocks[0].mixer
    assert layer.g_proj is None
    assert layer.first_exponent == 3
    assert record.parameters(config, 0) == sum(p.numel() for p in layer.parameters())
    beyond = Geometry(options={"retention_first_exponent": 0})
    with pytest.raises(SettingError, match=r"^protocol\.retention_first_exponent=0 must"):
        build_config(mix_of(record), SIZE, beyond, 256)


def test_its_settings_are_part_of_a_runs_identity_where_they_are_not_defaults(record):
    def identity(**rules):
        composed = settings() | {"mix": to_dict(mix_of(record))}
        composed["protocol"] |= rules
        return resolve(composed).identity

    assert identity() == identity(retention_first_exponent=5)
    assert identity() != identity(retention_first_exponent=4)
