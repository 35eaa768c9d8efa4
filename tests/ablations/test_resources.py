"""What a machine lacks for a run, said before anything is written."""

import shutil

import pytest

from ablations.resolve import resolve
from ablations.resources import check_here, checkpoint_bytes, kept_bytes, micro_batch_rows
from ablations.train import train
from models.errors import SettingError

from .conftest import settings


def test_a_micro_batch_that_does_not_divide_is_refused():
    assert micro_batch_rows(None, 64, 4) == 4
    assert micro_batch_rows(128, 64, 4) == 2
    for wrong in (100, 192, 512):
        with pytest.raises(SettingError, match=f"={wrong} does not divide .* valid: 64, 128, 256"):
            micro_batch_rows(wrong, 64, 4)


@pytest.mark.parametrize(("mix", "optim"), [("gdn3_attn1", "adamw"), ("transformer", "muon")])
def test_a_run_keeps_the_bytes_that_the_plan_says(make_run, mix, optim):
    run, spec = make_run(mix, train__optim=optim, logging__checkpoint_every=5)
    train(run, spec, stop=lambda: False, say=lambda _: None)
    held = sum(f.stat().st_size for f in run.checkpoints.glob("step-*/shard*"))
    one = held / len(list(run.checkpoints.glob("step-*")))
    # Names and shapes are 4 % of so small a one, and with muon the norms keep two numbers.
    assert checkpoint_bytes(spec) == pytest.approx(one, rel=0.06)
    assert kept_bytes(spec) == pytest.approx(held, rel=0.06)


def test_a_disk_without_room_and_a_device_that_is_not_there_are_said_first(tmp_path, monkeypatch):
    spec = resolve(settings())
    check_here([spec], 1, 0, tmp_path)
    usage = shutil.disk_usage(tmp_path)._replace(free=kept_bytes(spec) - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(SettingError, match=r"free, and the checkpoints of these runs take"):
        check_here([spec], 1, 0, tmp_path / "not" / "there" / "yet")
    with pytest.raises(SettingError, match=r"resources.device=cuda is not on this machine"):
        check_here([resolve(settings(resources__device="cuda"))], 1, 0, tmp_path)
    assert list(tmp_path.iterdir()) == []
