"""A name of a size stands for one blueprint, that of its file."""

import pytest

from ablations.resolve import resolve
from models.__main__ import Settings, table
from sweeps.compose import CONF, compose_sweep, of_the_run
from sweeps.sizes import name_by_blueprint

SIZES = sorted(path.stem for path in (CONF / "size").glob("*.yaml"))


def named(*overrides, folders=(CONF,)):
    composed = compose_sweep(overrides)
    told = name_by_blueprint(composed, folders)
    return [run["size"]["name"] for run in composed], told, composed


def test_every_size_is_called_by_its_name():
    names, told, _ = named(f"size={','.join(SIZES)}")
    assert names == SIZES
    assert told == []


def test_what_is_no_part_of_a_blueprint_leaves_a_size_its_name():
    names, told, _ = named("size=60m", "size.context=64,128", "size.lr_multiplier=2")
    assert names == ["60m", "60m"]
    assert told == []


def test_a_changed_blueprint_is_another_size_for_each_of_its_values():
    names, told, composed = named("size=60m", "size.d_model=64,384", "size.n_layers=4")
    assert names == ["60m_d_model_64_n_layers_4", "60m_n_layers_4"]
    assert len(told) == 2
    assert "size.name=NAME" in told[0]
    small, large = (resolve(of_the_run(run), plan_only=True) for run in composed)
    assert small.run_name.startswith("transformer-60m_d_model_64_n_layers_4-s0-")
    assert small.counts.N != large.counts.N


def test_a_name_of_ones_own_is_kept_and_anothers_is_not():
    assert named("size=60m", "size.d_model=64", "size.name=narrow")[0] == ["narrow"]
    assert named("size=50k", "size.name=100k")[0] != ["100k"]


def test_a_value_that_is_the_files_own_changes_no_name():
    assert named("size=60m", "size.d_model=384", "size.n_kv_heads=null")[0] == ["60m"]


def test_a_file_of_ones_own_is_what_its_name_stands_for(tmp_path):
    (tmp_path / "size").mkdir()
    own = (CONF / "size" / "50k.yaml").read_text().replace("name: 50k", "name: mine")
    (tmp_path / "size" / "mine.yaml").write_text(own)
    composed = compose_sweep(["size=mine", "size.mlp_hidden=64,96"], beside=tmp_path)
    name_by_blueprint(composed, [tmp_path, CONF])
    assert [run["size"]["name"] for run in composed] == ["mine", "mine_mlp_hidden_96"]


@pytest.mark.parametrize("change", [{"n_layers": 2}, {"n_heads": 4, "init": "normal"}])
def test_the_table_of_models_has_the_names_of_sweeps(change):
    changes = {f"size.{key}": str(value) for key, value in change.items()}
    asked = Settings(mix=("transformer",), size=("50k",), changes=changes)
    (row,), problems = table(asked)
    assert problems == []
    names, _, _ = named("size=50k", *(f"size.{key}={value}" for key, value in change.items()))
    assert [row["size"]] == names
