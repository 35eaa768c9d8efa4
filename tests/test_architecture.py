"""The floors: a file imports from its own floor or from below, and planning loads no torch."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ALLOWED = {
    "models": {"models"},
    "ablations": {"models", "ablations"},
    "sweeps": {"models", "ablations", "sweeps"},
    "analysis": {"ablations.records", "ablations.confounds", "analysis"},
}
ROOMS = tuple(ALLOWED)
# Where torch may be imported: what computes with it, and nothing that plans or reads.
TORCH = ("models/", "ablations/")


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def files() -> list[Path]:
    return sorted(p for room in ROOMS for p in (ROOT / room).rglob("*.py"))


@pytest.mark.parametrize("path", files(), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_come_from_the_same_floor_or_below(path):
    room = path.relative_to(ROOT).parts[0]
    for name in imports(path):
        if name.split(".")[0] not in ROOMS:
            continue
        # `from ablations import records` shows as both `ablations` and `ablations.records`.
        below = any(
            name == a or name.startswith(f"{a}.") or a.startswith(f"{name}.") for a in ALLOWED[room]
        )
        assert below, f"{path.relative_to(ROOT)} imports {name}"


@pytest.mark.parametrize("path", files(), ids=lambda p: str(p.relative_to(ROOT)))
def test_torch_stays_on_the_lower_floors_and_kernels_beside_their_operators(path):
    relative = str(path.relative_to(ROOT))
    kernels = relative.startswith("models/ops/") or path.match("models/mixers/*/fla.py")
    for name in imports(path):
        top = name.split(".")[0]
        assert top != "torch" or relative.startswith(TORCH), f"{relative} imports torch"
        assert top not in ("fla", "triton") or kernels, relative


OPERATORS_UNNAMED = (
    *sorted(str(p.relative_to(ROOT)) for p in (ROOT / "models/ops").glob("*.py")),
    "models/doctor.py",
    "ablations/hardware.py",
    "ablations/train.py",
    "ablations/evaluate/__main__.py",
)


@pytest.mark.parametrize("file", OPERATORS_UNNAMED)
def test_what_serves_every_operator_names_none_and_no_mixer(file):
    from models.mixers import MIXERS
    from models.ops.operator import operators_of

    names = {*MIXERS, *operators_of()}
    words = set()
    for node in ast.walk(ast.parse((ROOT / file).read_text(encoding="utf-8"))):
        for field in ("id", "attr", "arg", "name", "module", "value"):  # identifiers and strings
            if isinstance(text := getattr(node, field, None), str):
                words.update(re.split(r"[.:]", text))
    assert len(names) >= 5
    assert not names & words


@pytest.mark.parametrize(
    "module", ["analysis", "ablations.spec", "ablations.control", "sweeps.plan", "sweeps.local"]
)
def test_planning_and_analysis_load_no_torch(module):
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


@pytest.mark.parametrize("module", ["sweeps.plan", "ablations.resolve", "analysis.load"])
def test_planning_and_analysis_load_nothing_of_corpus_preparation(module):
    made_by = ("adopt", "documents", "encode", "hub", "mix.", "overlap", "prepare.", "tokenizer")
    code = f"import sys, {module}; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.split()
    prefixes = tuple(f"ablations.data.{room}" for room in made_by)
    assert [name for name in loaded if f"{name}.".startswith(prefixes)] == []


@pytest.mark.parametrize("setting", ["szie=50k", "sweep=größe"])
def test_a_mistyped_setting_answers_before_numpy_is_loaded(setting):
    code = (
        f"import sys; sys.argv = ['run.py', {setting!r}]; from sweeps import run; "
        "assert run.main() == 2; assert not {'numpy', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)
