"""A mistyped setting is answered with what exists: names of the table are held against conf/."""

import random
import re

import pytest

from models.errors import SettingError
from models.settings import flatten
from sweeps.compose import compose_sweep
from sweeps.names import GROUPS, HABITS, check_names, not_a_setting, settings_of_all


def composed_names():
    """Every name that Hydra composes from the files of conf/, with each cluster."""
    runs = [compose_sweep([f"cluster={name}"], several=False)[0] for name in ("local", "slurm")]
    names = {name for run in runs for name in flatten(run)}
    return {name for name in names if not name.startswith("cluster.sizes")}


def test_every_setting_of_conf_is_known():
    assert composed_names() <= {*settings_of_all()}
    check_names(compose_sweep(["-m", "cluster=slurm", "mix=gdn,mamba2"][1:]))


def test_every_habit_points_at_settings_that_hydra_takes():
    files = composed_names() | {*GROUPS}
    for names, to, _ in HABITS:
        for setting in to.split(", "):
            name, equals, _ = setting.partition("=")
            assert name in files, setting
            if equals:
                compose_sweep([setting], several=False)
        # A name that is right where it stands would never be asked about.
        assert not {*names.split()} & settings_without_a_group(), names


def settings_without_a_group():
    return {name for name in settings_of_all() if "." not in name}


def test_no_habit_is_listed_twice():
    names = [name for names, _, _ in HABITS for name in names.split()]
    assert len(names) == len({*names})


@pytest.mark.parametrize(
    ("given", "meant"),
    [("train.lr", "protocol.lr_multiplier"), ("max_lr", "protocol.lr_multiplier"),
     ("protocol.learning_rate", "protocol.lr_multiplier"), ("steps", "protocol.chinchilla"),
     ("epochs", "protocol.chinchilla"), ("batch_size", "protocol.batch_tokens"),
     ("n_layer", "size.n_layers"), ("model.hidden_size", "size.d_model"), ("seeds", "seed"),
     ("arch", "mix"), ("dataset", "data.path"), ("gpus", "cluster.gpus")],
)  # fmt: skip
def test_habits_of_other_codebases_are_answered_with_a_reason(given, meant):
    words = str(not_a_setting(given))
    assert re.search(
        rf"^{re.escape(given)} is not a setting; usually meant: {meant}\b.*, as ", words
    )


@pytest.mark.parametrize("seed", range(4))
def test_a_slip_of_a_finger_is_answered_with_the_setting(seed):
    draw = random.Random(seed)
    for setting in settings_of_all():
        group, dot, last = setting.rpartition(".")
        if len(last) < 6:
            continue
        place = draw.randrange(len(last) - 1)
        swapped = last[:place] + last[place + 1] + last[place] + last[place + 2 :]
        if swapped != last:
            near = str(not_a_setting(group + dot + swapped)).partition("nearest by name: ")[2]
            assert setting in re.split("[,;] ", near)


def test_a_name_in_the_wrong_group_is_answered_with_the_right_one():
    assert "nearest by name: train.weight_decay" in str(not_a_setting("protocol.weight_decay"))


def test_a_setting_of_another_cluster_is_none_of_this_one():
    assert "cluster=slurm has it" in str(not_a_setting("cluster.gpus"))


@pytest.mark.parametrize(
    "override", ["+train.lr=1", "+steps=3", "++protocol.lr=1", "++mix.gdn_gate=1"]
)
def test_a_plus_makes_no_setting(override):
    name = override.lstrip("+").partition("=")[0]
    with pytest.raises(SettingError, match=f"{name} is not a setting"):
        check_names(compose_sweep([override], several=False))


def test_a_kind_of_ones_own_brings_its_options():
    kinds = "++mix.kinds.near={mixer: attn}"
    check_names(compose_sweep([kinds, "++mix.near_window=8"], several=False))
    with pytest.raises(SettingError, match=r"mix\.near_windw is not .*nearest.*mix\.near_window"):
        check_names(compose_sweep([kinds, "++mix.near_windw=8"], several=False))
