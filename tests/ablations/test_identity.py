"""A run is known by what it reads, whatever version wrote it and whatever else is set."""

import copy
import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

from ablations.control import check, check_same
from ablations.formats import run_name
from ablations.records import RunDirectory, directory_of, read_sweep, record_for
from ablations.resolve import resolve
from ablations.spec import completed, current_name, load
from ablations.train import train
from ablations.versions import VERSION
from analysis.study.load import load_sweep
from models.errors import SettingError
from models.mixers import MIXERS
from sweeps.compose import compose_sweep, of_the_run

from .conftest import settings

RECORDS = Path(__file__).parents[2] / "notebooks" / "records" / "demo"
FOLDERS = sorted(path.name for path in RECORDS.iterdir())


@pytest.fixture
def demo(tmp_path):
    """The committed records, as a sweep of their name."""
    shutil.copytree(RECORDS, tmp_path / "demo")
    return tmp_path


def extended(value, *, default, to):
    """The same dataclass object with a field more, of that default, set `to` something."""
    cls = dataclasses.make_dataclass(
        type(value).__name__, [("later", int, dataclasses.field(default=default))],
        bases=(type(value),), frozen=True,
    )  # fmt: skip
    fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    return cls(**fields, later=to)


def changed_kind(spec, **changes):
    kind = dataclasses.replace(spec.model.kinds["gdn"], **changes)
    model = dataclasses.replace(spec.model, kinds={**spec.model.kinds, "gdn": kind})
    return dataclasses.replace(spec, model=model)


def with_a_field(spec, where, to):
    """A spec of a later version of the code, one of whose dataclasses has a field more."""
    if where == "kind":
        kind = extended(spec.model.kinds["gdn"], default=3, to=to)
        model = dataclasses.replace(spec.model, kinds={**spec.model.kinds, "gdn": kind})
        return dataclasses.replace(spec, model=model)
    if where == "settings":
        inner = spec.model.kinds["gdn"].settings
        return changed_kind(spec, settings=extended(inner, default=3, to=to))
    group = extended(getattr(spec, where), default=3, to=to)
    return dataclasses.replace(spec, **{where: group})


@pytest.mark.parametrize("where", ["model", "recipe", "train", "data", "kind", "settings"])
def test_a_field_added_with_a_default_leaves_every_identity_as_it_was(where):
    spec = resolve(settings("gdn3_attn1"))
    assert with_a_field(spec, where, to=3).identity == spec.identity
    assert with_a_field(spec, where, to=4).identity != spec.identity


@pytest.mark.parametrize("where", ["mix", "size", "protocol", "resources", "logging", "evaluation"])
def test_a_field_of_what_training_does_not_read_is_no_part_of_an_identity(where):
    spec = resolve(settings("gdn3_attn1"))
    assert with_a_field(spec, where, to=4).identity == spec.identity


@pytest.mark.parametrize(
    ("setting", "value", "reads"),
    [
        ("protocol__mamba2_state", 64, "mamba2"),
        ("protocol__gdn_key_multiple", 8, "gdn3_attn1"),
        ("mix__gdn_output_gate", False, "gdn3_attn1"),
        ("mix__gdn_allow_neg_eigval", False, "gdn"),
        ("mix__attn_rotary", 0.5, "transformer"),
        ("protocol__rope_theta", 1e4, "gdn3_attn1"),
    ],
)
def test_a_setting_is_in_the_identity_of_the_mix_that_reads_it_alone(setting, value, reads):
    # Where these rules make a difference: at d_model 32 a state of 64 is cut to 16, and heads of 12
    # are rounded up to 16 either way.
    wide = {"size__d_model": 272, "size__n_heads": 4, "size__mlp_hidden": 1024}
    for mix in ("transformer", "gdn", "gdn3_attn1", "mamba2", "mamba2x3_attn1"):
        base = resolve(settings(mix, **wide))
        after = resolve(settings(mix, **wide, **{setting: value}))
        mixers = {kind.mixer for kind in base.model.kinds.values()}
        attention = "attn" in mixers and setting.split("__")[1] in (
            "attn_rotary", "rope_theta"
        )  # fmt: skip
        own = attention or any(f"__{mixer}_" in setting for mixer in mixers)
        assert (after.identity != base.identity) == own, mix
        # What is not read is not recorded either, so that a name still stands for one mix.
        if not own:
            assert after.mix == base.mix
            assert after.protocol.options == base.protocol.options
    assert resolve(settings(reads, **wide, **{setting: value})).identity != (
        resolve(settings(reads, **wide)).identity
    )


def test_an_option_written_out_at_its_default_is_the_same_mix():
    written = resolve(settings("gdn3_attn1", mix__gdn_output_gate=True))
    assert written == resolve(settings("gdn3_attn1"))


def test_runs_of_one_identity_train_to_the_same_bits_whatever_else_their_specs_say(tmp_path):
    spec = resolve(settings("gdn3_attn1", logging__checkpoint_every=100))
    other = dataclasses.replace(
        spec,
        mix=dataclasses.replace(spec.mix, pattern=("mamba2",), norm="outputs", last=None),
        size=dataclasses.replace(
            spec.size, d_model=48, n_layers=9, mlp_hidden=5, vocab_size=7, context=8,
            chinchilla=(9.0,), lr_multiplier=3.0, init="normal", corpus="tokens",
        ),
        protocol=dataclasses.replace(
            spec.protocol, name="x", match="blueprint", tolerance=0.4, chinchilla=(1.0,),
            tokens_per_parameter=3.0, decay_fraction=0.9, lr_multiplier=5.0, batch_tokens=64,
            max_epochs=0.1, windows=(3,), rope_theta=2.0, knob="heads", schedule="cosine",
            batch_multiple=7, options={},
        ),
        matched="otherwise",
    )  # fmt: skip
    assert other.identity == spec.identity
    assert other.record() != spec.record()
    points = []
    for name, one in (("a", spec), ("b", other)):
        run = RunDirectory(tmp_path / name)
        assert train(run, one, stop=lambda: False, say=lambda _: None) == "done"
        points.append((run.path / "points.jsonl").read_bytes())
    assert points[0] == points[1]


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_record_of_the_first_version_keeps_the_name_that_version_gave_it(folder):
    written = RunDirectory(RECORDS / folder).spec_as_written()
    assert "version" not in written
    assert run_name(written) == folder
    assert RunDirectory(RECORDS / folder).problem() == ""


def test_the_committed_records_of_the_demo_are_found_skipped_and_reported(demo):
    specs = [resolve(of_the_run(c)) for c in compose_sweep(["experiment=demo"])]
    runs = [directory_of(demo, spec) for spec in specs]
    assert sorted(run.name for run in runs) == FOLDERS
    assert {run.state for run in runs} == {"done"}
    for spec, run in zip(specs, runs, strict=True):
        check_same(run.name, run.read_spec(), spec.plain())
        assert current_name(run.spec_as_written()) == spec.run_name != run.name
    there = {run.name: run.read_spec() for run in read_sweep(demo / "demo")}
    check(there | {run.name: s.plain() for run, s in zip(runs, specs, strict=True)}, ["mix"])
    points = load_sweep(demo / "demo").points
    assert len(points) == 36
    assert set(points["run"]) == set(FOLDERS)


def test_a_record_of_the_first_version_says_what_the_same_run_says_today(demo):
    for composed in compose_sweep(["experiment=demo"]):
        spec = resolve(of_the_run(composed))
        was = load(directory_of(demo, spec).spec_as_written())
        same = ("mix", "size", "protocol", "train", "seed", "model", "recipe", "corpus")
        assert all(getattr(was, group) == getattr(spec, group) for group in same)


def test_settings_of_the_first_version_keep_their_meaning():
    first = RunDirectory(RECORDS / FOLDERS[0]).spec_as_written()
    first["mix"] |= {"attn_rope": False, "gdn_output_gate": False}
    first["model"] |= {"rope_theta": None, "gdn_output_gate": False}
    spec = load(first)
    assert spec.mix.options == {
        "attn_rotary": 0, "attn_qk_norm": "full", "attn_window": None,
        "gdn_output_gate": False, "gdn_allow_neg_eigval": True, "gdn_gate_activation": "silu",
        "gdn_norm_eps": 1e-5, "gdn_dt_init": "log_uniform", "attn_rotary_exact": True,
        "attn_window_share": None, "attn_output_gate": False,
    }  # fmt: skip
    assert spec.model.kinds["attn"].settings.rope_theta is None
    assert not spec.model.kinds["gdn"].settings.output_gate
    assert spec.protocol.options == {"gdn_key_multiple": 16}


def test_a_run_begun_by_the_first_version_goes_on_in_its_folder(demo):
    folder = next(f for f in FOLDERS if f.startswith("transformer-50k-s0"))
    run = RunDirectory(demo / "demo" / folder)
    run.write_status("preempted")
    (run.path / "points.jsonl").unlink()
    spec = load(run.spec_as_written())
    assert directory_of(demo, spec) == run
    run.write_spec(record_for(run, spec))
    assert run.problem() == ""
    assert load(run.spec_as_written()) == spec
    assert directory_of(demo, spec) == run


def test_a_copy_under_another_name_is_still_told(demo):
    spec = load(RunDirectory(demo / "demo" / FOLDERS[0]).spec_as_written())
    copied = demo / "demo" / spec.run_name.replace(spec.identity, "0" * 8)
    shutil.copytree(demo / "demo" / FOLDERS[0], copied)
    assert "copy of run" in RunDirectory(copied).problem()


def test_a_spec_of_a_later_version_is_refused_and_says_so():
    later = resolve(settings()).record() | {"version": VERSION + 1}
    with pytest.raises(SettingError, match=f"version {VERSION + 1}, and this code reads 1 to"):
        load(later)


def test_a_mixer_that_is_not_installed_here_leaves_its_run_readable(tmp_path):
    record = resolve(settings("gdn3_attn1")).record()
    gone = copy.deepcopy(record)
    gone["model"]["kinds"]["gdn"]["mixer"] = "nobodys.mixer"
    gone["mix"]["kinds"] = {"gdn": {"mixer": "nobodys.mixer"}}
    run = RunDirectory(tmp_path / run_name(gone))
    run.write_spec(gone)
    assert run.problem() == ""
    said = run.read_spec()
    assert said["model"]["kinds"]["gdn"]["mixer"] == "nobodys.mixer"
    assert said["model"]["norm_eps"] == 1e-6  # of those at their defaults
    assert completed(gone) == said


def test_a_default_that_became_another_is_told_before_a_run_counts_as_done():
    spec = resolve(settings())
    there = spec.plain()
    there["train"] |= {"max_skipped": 7}
    with pytest.raises(SettingError, match=r"train\.max_skipped of run x is 7, and 50 would"):
        check_same("x", there, spec.plain())
    there = spec.plain()
    there["data"] |= {"path": "/elsewhere", "name": "tokens"}
    check_same("x", there, spec.plain())


def test_what_is_at_its_default_stands_in_the_file_and_comes_back():
    record = yaml.safe_load(yaml.safe_dump(resolve(settings("gdn3_attn1")).record()))
    assert record["defaults"]["model"]["kinds"]["gdn"]["settings"]["output_gate"] is True
    assert "output_gate" not in record["model"]["kinds"]["gdn"]["settings"]
    assert completed(record) == resolve(settings("gdn3_attn1")).plain()


def test_a_record_imports_nothing_that_it_names(tmp_path, monkeypatch):
    (tmp_path / "evil").mkdir()
    (tmp_path / "evil" / "__init__.py").touch()
    (tmp_path / "evil" / "mixer.py").write_text("raise SystemExit('ran')")
    monkeypatch.syspath_prepend(str(tmp_path))
    for earlier in (True, False):
        spec = resolve(settings("gdn3_attn1")).record()
        spec["model"]["kinds"]["gdn"]["mixer"] = "evil.mixer"
        if earlier:
            del spec["version"]
        run = RunDirectory(tmp_path / "sweep" / run_name(spec))
        run.write_spec(spec)
        assert run.read_spec()["model"]["kinds"]["gdn"]["mixer"] == "evil.mixer"
        assert run.problem() == ""
        assert directory_of(tmp_path, resolve(settings("gdn3_attn1") | {"sweep": "sweep"}))
    with pytest.raises(SettingError, match=r"evil\.mixer cannot be imported .*SystemExit"):
        load(spec)


@pytest.mark.parametrize("group", ["model", "train"])
def test_defaults_that_were_edited_are_damage(tmp_path, group):
    record = resolve(settings("gdn3_attn1")).record()
    run = RunDirectory(tmp_path / run_name(record))
    run.write_spec(record)
    assert run.problem() == ""
    if group == "model":
        record["defaults"]["model"]["kinds"]["gdn"]["settings"]["allow_neg_eigval"] = False
    else:
        record["defaults"]["train"]["optim"] = "muon"
    assert run_name(record) == run.name  # no identity holds them
    run.write_spec(record)
    assert "defaults are not those that it was written with" in run.problem()
    with pytest.raises(SettingError, match="defaults are not those"):
        load(record)


def test_a_run_of_a_later_version_is_damaged_here(tmp_path):
    record = resolve(settings()).record() | {"version": VERSION + 1}
    run = RunDirectory(tmp_path / run_name(record))
    run.write_spec(record)
    assert f"version {VERSION + 1}" in run.problem()


def test_of_two_folders_of_one_run_the_done_one_is_found(demo):
    folder = next(f for f in FOLDERS if f.startswith("transformer-50k-s0"))
    stem = folder.rpartition("-")[0]
    shutil.copytree(demo / "demo" / folder, demo / "demo" / f"{stem}-00000000")
    spec = load(RunDirectory(demo / "demo" / folder).spec_as_written())
    assert directory_of(demo, spec).name == folder


def test_settings_worked_out_as_another_type_have_one_identity(monkeypatch):
    base = resolve(settings("gdn"))

    def settings_of(options, rules, place, own=MIXERS["gdn"].settings):
        made = own(options, rules, place)
        return dataclasses.replace(made, key_dim=float(made.key_dim), norm_eps=np.float64(1e-5))

    monkeypatch.setitem(MIXERS, "gdn", dataclasses.replace(MIXERS["gdn"], settings=settings_of))
    again = resolve(settings("gdn"))
    assert again.identity == base.identity
    assert yaml.safe_load(yaml.safe_dump(again.record())) == base.record()


def test_a_try_is_another_run_and_one_that_reaches_the_ladders_end_is_the_same():
    ladders = resolve(settings("gdn"))
    assert resolve(settings("gdn", protocol__max_steps=3)).identity != ladders.identity
    enough = resolve(settings("gdn", protocol__max_steps=ladders.recipe.steps))
    assert enough.run_name == ladders.run_name
    with pytest.raises(SettingError, match=r"protocol\.max_steps=0 must be at least 1"):
        resolve(settings("gdn", protocol__max_steps=0))
