"""The floors: a file imports from its own floor or from below, and planning loads no torch.

Nor are there circles of imports in models/, and what a mixer is stands in its folder alone.
"""

import ast
import graphlib
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from models.mixers import MIXERS

ROOT = Path(__file__).parent.parent
ALLOWED = {
    "models": {"models"},
    "ablations": {"models", "ablations"},
    "sweeps": {"models", "ablations", "sweeps"},
    "analysis": {
        "ablations.records",
        "ablations.confounds",
        "ablations.optima",
        "ablations.response",
        "ablations.tuning",
        "models.command",
        "models.format",
        "analysis",
    },
    "archladder": {"analysis", "archladder"},
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


@pytest.mark.parametrize(
    ("room", "above"), [("stats", ("study", "report")), ("study", ("report",))]
)
def test_a_room_of_the_analysis_stands_on_those_before_it(room, above):
    for path in sorted((ROOT / "analysis" / room).rglob("*.py")):
        for name in imports(path):
            assert not name.startswith(tuple(f"analysis.{later}" for later in above)), path


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
    "module",
    [
        "archladder",
        "analysis",
        "ablations.spec",
        "ablations.control",
        "sweeps.plan",
        "sweeps.local",
    ],
)
def test_planning_and_analysis_load_no_torch(module):
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


@pytest.mark.parametrize("module", ["sweeps.plan", "ablations.resolve", "analysis.study.load"])
def test_planning_and_analysis_load_nothing_of_corpus_preparation(module):
    made_by = ("adopt", "documents", "encode", "hub", "mix.", "overlap", "prepare.", "tokenizer")
    code = f"import sys, {module}; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.split()
    prefixes = tuple(f"ablations.data.{room}" for room in made_by)
    assert [name for name in loaded if f"{name}.".startswith(prefixes)] == []


@pytest.mark.parametrize(
    "setting",
    ["szie=50k", "sweep=größe", "train.lr=1", "steps=9", "protocol.learning_rate=1", "+mix.lr=1"],
)
def test_a_mistyped_setting_answers_before_numpy_is_loaded(setting):
    code = (
        f"import sys; sys.argv = ['run.py', {setting!r}]; from sweeps import run; "
        "assert run.main() == 2; assert not {'numpy', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)


def packages_of(module: str) -> set[str]:
    """The packages that Python runs on the way to a module."""
    parts = module.split(".")
    return {".".join(parts[:n]) for n in range(1, len(parts))}


def import_graph(package: Path) -> dict[str, set[str]]:
    """Module of a package -> its modules that it imports, wherever in the file.

    With those the packages around them, unless they are the importer's own. A `module:Class` in a
    mixer's record is named there so that it is not imported.
    """

    def module_name(path: Path) -> str:
        parts = path.relative_to(package.parent).with_suffix("").parts
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

    modules = {module_name(path): imports(path) for path in package.rglob("*.py")}
    graph = {}
    for module, names in modules.items():
        edges = names & modules.keys()
        edges |= {package for name in edges for package in packages_of(name)}
        graph[module] = edges - packages_of(module) - {module}
    return graph


def circle(graph: dict[str, set[str]]) -> list[str]:
    """Modules each of which imports the one before it, the first also the last; [] for none."""
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return []


def test_no_module_of_models_imports_one_that_imports_it():
    """Nor inside of functions or for type checkers alone: such circles are circles of thought."""
    graph = import_graph(ROOT / "models")
    # models.mixers imports its packages by their names, which stand in MIXERS.
    graph["models.mixers"] |= {f"models.mixers.{name}" for name in MIXERS}
    assert {"models.config", "models.mixers"} <= graph["models.mix"]
    assert circle(graph) == []


@pytest.mark.parametrize(
    ("text", "closes"),
    [
        ("from house.kitchen import cook", True),
        ("import house.kitchen", True),
        ("def eat():\n    from house import kitchen", True),
        ("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import house.kitchen", True),
        ("from house.kitchen.oven import heat", True),  # which runs house.kitchen
        ("import garden.kitchen", False),
    ],
)
def test_a_circle_is_found_wherever_an_import_stands(tmp_path, text, closes):
    for name, content in {
        "__init__": "", "kitchen/__init__": "from house.hall import door",
        "kitchen/oven": "from house.kitchen import cook", "hall": text,
    }.items():  # fmt: skip
        path = tmp_path / "house" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    assert bool(circle(import_graph(tmp_path / "house"))) == closes


WORDS = {"attn": "attn", "gdn": "gdn|delta_?net", "mamba2": "mamba"}
"""Mixer -> the words that speak of it, whatever they are part of."""
NAMES_OF_OLD = ("models/plain.py", "ablations/versions.py")
"""What reads records and models that were written when settings bore mixers' names."""
NAMES_OF_OTHERS = ("models/hf/native/", "analysis/study/olmo_hybrid")
"""What speaks of classes and tables that others published, by their names."""
LOOKS = ("analysis/report/figures/style.py",)


def words_of_code(path: Path) -> list[tuple[int, str]]:
    """(line, word or text) of names and string literals; comments and docstrings may cite.

    Less the names of mixes of conf/, which help texts use in examples.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = list(ast.walk(tree))
    prose = {id(n.value) for n in nodes if isinstance(n, ast.Expr)}
    mixes = {p.stem for p in (ROOT / "conf" / "mix").glob("*.yaml")} - MIXERS.keys()
    mix = re.compile(rf"\b({'|'.join(sorted(mixes, key=len, reverse=True))})\b")
    words = []
    for node in nodes:
        for _, value in ast.iter_fields(node):
            texts = value if isinstance(value, list) else [value]
            words += [
                (getattr(node, "lineno", 0), mix.sub("", text))
                for text in texts
                if isinstance(text, str) and id(node) not in prose
            ]
    return words


def named(path: Path, mixers: Iterable[str]) -> list[tuple[int, str]]:
    spoken = re.compile("|".join(WORDS.get(mixer, mixer) for mixer in mixers), re.IGNORECASE)
    return [(line, text) for line, text in words_of_code(path) if spoken.search(text)]


def nameless_files() -> list[Any]:
    """Files that may name no mixer."""
    free = (*NAMES_OF_OLD, *NAMES_OF_OTHERS, *LOOKS, "models/mixers/")
    return [
        pytest.param(
            path,
            id=relative,
        )
        for path in files()
        if not (relative := str(path.relative_to(ROOT))).startswith(free)
    ]


def test_every_mixer_has_words_that_speak_of_it():
    assert WORDS.keys() <= MIXERS.keys()
    layer = ROOT / "models" / "mixers" / "gdn" / "layer.py"
    told = {text for _, text in named(layer, ["gdn"])}
    assert {"GatedDeltaNet", "models.mixers.gdn.operator"} <= told


@pytest.mark.parametrize("path", nameless_files())
def test_mixers_are_named_in_their_folders_alone(path):
    assert named(path, MIXERS) == []


@pytest.mark.parametrize(
    "path", sorted((ROOT / "models" / "mixers").rglob("*/*.py")), ids=lambda p: str(p.name)
)
def test_a_mixers_folder_names_no_other(path):
    mixer = path.relative_to(ROOT / "models" / "mixers").parts[0]
    assert named(path, MIXERS.keys() - {mixer}) == []


def test_mixers_are_listed_in_one_line():
    hits = named(ROOT / "models" / "mixers" / "__init__.py", MIXERS)
    assert sorted(text for _, text in hits) == sorted(MIXERS)
    assert len({line for line, _ in hits}) == 1
