"""A mixer's package goes along with the code that workers import."""

import os
import subprocess
import sys

import pytest

from models.errors import SettingError
from sweeps import freeze


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch):
    (tmp_path / "project" / "models").mkdir(parents=True)
    (tmp_path / "project" / "models" / "__init__.py").touch()
    monkeypatch.setattr(freeze, "project_root", lambda: tmp_path / "project")


@pytest.fixture(params=["with __init__.py", "without"])
def package(tmp_path, monkeypatch, request):
    """Elsewhere, as an installed package is."""
    folder = tmp_path / "elsewhere" / "layers_of_mine"
    (folder / "mixer").mkdir(parents=True)
    if request.param == "with __init__.py":
        (folder / "__init__.py").touch()
    (folder / "helper.py").write_text("VALUE = 1\n")
    (folder / "mixer" / "__init__.py").write_text("from layers_of_mine.helper import VALUE\n")
    (folder / "mixer" / "table.bin").write_bytes(b"data")
    (folder / "__pycache__").mkdir()
    (folder / "__pycache__" / "old.pyc").write_bytes(b"x")
    (folder / ".venv").mkdir()
    (folder / ".venv" / "other.py").touch()
    monkeypatch.syspath_prepend(str(folder.parent))
    yield folder
    sys.modules.pop("layers_of_mine", None)


def spec(*mixers):
    kinds = {f"kind{i}": {"mixer": mixer, "norm": "inputs"} for i, mixer in enumerate(mixers)}
    return {"model": {"kinds": kinds}}


def test_packages_are_those_of_mixers_from_outside_of_the_project():
    specs = [spec("attn", "mlp", "b.c.mixer"), spec("a.mixer", "models.mixers.gdn", "b.other")]
    assert freeze.packages_of(specs) == ["a", "b"]


def test_a_copied_package_is_imported_as_it_was(package, tmp_path):
    frozen = freeze.freeze(tmp_path / "code", ["layers_of_mine"])
    copied = {str(p.relative_to(frozen)) for p in (frozen / "layers_of_mine").rglob("*.*")}
    there = {f"layers_of_mine/{name}" for name in ("helper.py", "mixer/__init__.py")}
    top = {"layers_of_mine/__init__.py"} if (package / "__init__.py").exists() else set()
    assert copied == there | top | {"layers_of_mine/mixer/table.bin"}
    (package / "helper.py").write_text("VALUE = 2\n")
    said = subprocess.run(
        [sys.executable, "-c", "import layers_of_mine.mixer as m; print(m.VALUE, m.__file__)"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(frozen), str(package.parent)])},
        cwd=tmp_path, capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    assert said[0] == "1"
    assert said[1].startswith(str(frozen))


def test_the_hash_covers_the_package(package, tmp_path):
    without = freeze.freeze(tmp_path / "code")
    first = freeze.freeze(tmp_path / "code", ["layers_of_mine"])
    assert freeze.freeze(tmp_path / "code", ["layers_of_mine"]) == first != without
    (package / "helper.py").write_text("VALUE = 2\n")
    assert freeze.freeze(tmp_path / "code", ["layers_of_mine"]) != first
    assert freeze.freeze(tmp_path / "code") == without


@pytest.mark.parametrize("name", ["nowhere_at_all", "zipfile"])
def test_a_package_without_a_folder_is_refused_in_a_sentence(tmp_path, name):
    with pytest.raises(SettingError, match=f"^package {name}, which a mix takes a mixer from, is"):
        freeze.freeze(tmp_path / "code", [name])
