"""A second treatment is never averaged as if it were seeds."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from synthetic_sweeps import SweepWriter

from ablations.resolve import resolve
from ablations.spec import completed
from analysis.__main__ import main
from analysis.study.levels import at_level, levels
from analysis.study.load import load_sweep
from tests.ablations.conftest import settings


@pytest.fixture(scope="module")
def two_rates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two mixes at three sizes and two learning rates, as
    `treatments=[mix,protocol.lr_multiplier]` allows."""
    writer = SweepWriter(tmp_path_factory.mktemp("runs") / "rates")
    for mix in ("transformer", "gdn3_attn1"):
        for size in ("50k", "100k", "200k"):
            for rate in (0.25, 1.0):
                writer.run(mix, size, 0, protocol={"lr_multiplier": rate})
    return writer.path


@pytest.mark.parametrize("command", ["fit", "savings"])
def test_fits_and_savings_refuse_two_levels_and_take_one(
    two_rates: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, str(two_rates)]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "protocol.lr_multiplier=0.25, 1" in told
    assert "where=protocol.lr_multiplier=0.25" in told
    assert main([command, str(two_rates), "--where", "protocol.lr_multiplier=1"]) == 0


@pytest.mark.parametrize("command", ["report", "figures", "tables", "compare"])
def test_the_commands_of_a_sweep_refuse_two_levels(
    two_rates: Path, tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    where = [f"sweep={two_rates.name}", f"runs={two_rates.parent}"]
    out = [] if command == "compare" else [f"out={tmp_path / 'out'}"]
    assert main([command, *where, *out]) == 2
    assert "choose one level, where=protocol.lr_multiplier=0.25" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_one_level_is_that_level_alone(two_rates: Path) -> None:
    sweep = load_sweep(two_rates)
    assert levels(sweep.runs) == {"protocol.lr_multiplier": [0.25, 1.0]}
    one = at_level(sweep, {"protocol.lr_multiplier": "1.0"})
    assert len(one.runs) == 6
    assert set(one.points["run"]) == {run.name for run in one.runs}
    assert not levels(one.runs)


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("protocol.lr_multiplier=2", "leaves no run of sweep=rates; it has"),
        ("protocol.lr_multipler=1", "names no setting of sweep=rates"),
        ("protocol.lr_multiplier", "is not a setting; give one like protocol.lr_multiplier=1"),
    ],
)
def test_a_level_that_is_not_there_is_said_in_a_sentence(
    two_rates: Path, where: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["savings", str(two_rates), "--where", where]) == 2
    assert words in capsys.readouterr().err


def test_a_csv_has_columns_to_choose_by_and_no_settings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "points.csv"
    path.write_text("mix,N,D,loss\na,1,2,3\n")
    assert main(["fit", str(path), "--where", "train.optim=muon"]) == 2
    assert "where=train.optim names no column of points=" in capsys.readouterr().err


def test_the_advice_works_as_it_is_printed(
    two_rates: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["savings", str(two_rates)])
    advice = capsys.readouterr().err.split("choose one level, ")[1].rstrip(".\n")
    assert main(["savings", str(two_rates), advice]) == 0
    assert main(["fit", str(two_rates), advice, "loss=squares"]) == 0


def test_an_option_of_a_mixer_is_a_level_like_any_setting_its_default_too() -> None:
    gates = [resolve(settings("gdn3_attn1", mix__gdn_output_gate=gate)) for gate in (True, False)]
    runs = tuple(
        SimpleNamespace(mix="gdn3_attn1", size="50k", spec=completed(spec.record()))
        for spec in gates
    )
    assert levels(runs)["mix.gdn_output_gate"] == [False, True]  # type: ignore[arg-type]
