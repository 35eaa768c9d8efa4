"""Sealed predictions: their scores against definitions, and what may not be sealed or scored."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import norm
from synthetic_sweeps import SIZES, TRUTH, SweepWriter, grid_points, write_ladder

from analysis.__main__ import main
from analysis.stats.score import crps, score
from analysis.study import sealed


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of sweeps, with one ladder of three sizes, `mini`; seals lie beside it."""
    monkeypatch.setattr("ablations.records.project_root", lambda: tmp_path)
    monkeypatch.chdir(tmp_path)
    write_ladder(SweepWriter(tmp_path / "runs" / "mini"))
    return tmp_path / "runs"


def D_of(size: str, multiple: float) -> float:
    return round(20 * multiple * SIZES[size] / 4096) * 4096


def seal(place: str, *more: str) -> int:
    return main(["predict", "sweep=mini", f"at={place}", "resamples=60", *more])


AT_400K = f"N={SIZES['400k']},D={D_of('400k', 1):.0f}"


def test_crps_of_a_normal_is_its_closed_form() -> None:
    """Gneiting and Raftery 2007, eq. 21 for N(mu, sd): sd (z (2 Phi(z) - 1) + 2 phi(z) - 1/√π)."""
    mu, sd = 2.0, 0.3
    values = norm.ppf((np.arange(20_000) + 0.5) / 20_000, mu, sd)
    for y in (1.2, 2.0, 2.4):
        z = (y - mu) / sd
        exact = sd * (z * (2 * norm.cdf(z) - 1) + 2 * norm.pdf(z) - 1 / math.sqrt(math.pi))
        assert crps(values, y) == pytest.approx(exact, rel=1e-3)
    assert crps([1.5], 1.2) == pytest.approx(0.3)


def test_z_counts_standard_deviations_of_log_loss() -> None:
    values = np.exp(norm.ppf((np.arange(5000) + 0.5) / 5000, 0.5, 0.02))
    result = score(tuple(values), 1.0, 2.0, math.exp(0.54))
    assert result.z == pytest.approx(2, rel=1e-3)
    assert result.hit
    assert not score(tuple(values), 1.0, 1.7, math.exp(0.54)).hit


def test_a_seal_is_scored_by_the_run_that_came_after_it(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert seal(AT_400K, "seal=to_400k") == 0
    content = json.loads((runs.parent / "results" / "sealed" / "to_400k.json").read_text())
    assert content["sweeps"] == ["mini"]
    assert len(content["points"]) == 2 * 3 * 2 * 3
    capsys.readouterr()
    assert main(["ledger", "format=json"]) == 0
    before = json.loads(capsys.readouterr().out)["scores"]
    assert [row["loss"] for row in before] == [None, None]

    # The law holds for this run to within noise; the other is worse than any noise.
    sweep = SweepWriter(runs / "mini")
    sweep.run("transformer", "400k", 0)
    odd = sweep.run("gdn3_attn1", "400k", 0)
    rows = [json.loads(line) for line in (odd.path / "points.jsonl").read_text().splitlines()]
    text = "".join(json.dumps({**row, "loss": 1.3 * row["loss"]}) + "\n" for row in rows)
    (odd.path / "points.jsonl").write_text(text)
    assert main(["ledger", "format=json"]) == 0
    after = {row["mix"]: row for row in json.loads(capsys.readouterr().out)["scores"]}
    predicted = {one["mix"]: one for one in content["forecasts"]}
    for mix, row in after.items():
        x = np.array(predicted[mix]["values"])
        direct = np.abs(x - row["loss"]).mean() - np.abs(x[:, None] - x).mean() / 2
        assert row["crps"] == pytest.approx(direct, rel=1e-6)
    assert after["transformer"]["hit"] is True
    assert abs(after["transformer"]["z"]) < 3
    assert after["gdn3_attn1"]["hit"] is False
    assert after["gdn3_attn1"]["z"] > 5


def test_the_values_are_those_of_the_interval_of_one_more_run(runs: Path) -> None:
    assert seal(AT_400K, "seal=to_400k") == 0
    content = json.loads((runs.parent / "results" / "sealed" / "to_400k.json").read_text())
    for one, row in zip(content["forecasts"], content["predictions"], strict=True):
        values = one["values"]
        assert values == sorted(values)
        assert (one["low"], one["high"]) == (row["run_low"], row["run_high"])
        share = np.mean([one["low"] <= value <= one["high"] for value in values])
        assert share == pytest.approx(0.95, abs=0.011)


@pytest.mark.parametrize("kept", [(), ("50k", "100k", "400k")], ids=["all", "others"])
def test_a_place_that_a_run_has_reached_is_not_sealed(
    runs: Path, capsys: pytest.CaptureFixture[str], kept: tuple[str, ...]
) -> None:
    """Runs that the question leaves out were trained all the same."""
    sweep = SweepWriter(runs / "mini")
    for mix in ("transformer", "gdn3_attn1"):
        sweep.run(mix, "400k", 0)
    place = f"N={SIZES['200k']},D={D_of('200k', 2):.0f}"
    question = [f"where={','.join(f'size={size}' for size in kept)}"] if kept else []
    assert seal(place, "seal=late", *question) == 2
    assert "was reached by run" in capsys.readouterr().err
    assert not (runs.parent / "results").exists()


def test_no_prediction_is_scored_on_the_points_it_was_made_from(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert seal(AT_400K, "seal=to_400k") == 0
    path = runs.parent / "results" / "sealed" / "to_400k.json"
    content = json.loads(path.read_text())
    content["forecasts"][0] |= {"N": SIZES["50k"], "D": D_of("50k", 1)}
    path.write_text(json.dumps(content))
    assert main(["ledger"]) == 2
    assert "it was made from" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["../up", ".hidden", "a b", ""])
def test_a_seal_needs_a_name_of_a_file(
    runs: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    assert seal(AT_400K, f"seal={name}") == 2
    assert "seal=" in capsys.readouterr().err
    assert not (runs.parent / "results").exists()


def test_a_sealed_prediction_is_not_changed(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert seal(AT_400K, "seal=to_400k") == 0
    path = runs.parent / "results" / "sealed" / "to_400k.json"
    before = path.read_bytes()
    assert seal(AT_400K, "seal=to_400k", "level=0.8") == 2
    assert "is there already" in capsys.readouterr().err
    assert path.read_bytes() == before


def test_another_corpus_is_no_run_of_it(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert seal(AT_400K, "seal=to_400k") == 0
    SweepWriter(runs / "mini").run("transformer", "400k", 0)
    for manifest in (runs / "mini").glob("*/manifest.json"):
        manifest.write_text(manifest.read_text().replace("feedbeef", "deadbeef"))
    capsys.readouterr()
    assert main(["ledger", "format=json"]) == 0
    assert all(row["run"] == "" for row in json.loads(capsys.readouterr().out)["scores"])


def test_a_csv_s_prediction_can_be_sealed(runs: Path, tmp_path: Path) -> None:
    csv = tmp_path / "points.csv"
    grid_points(TRUTH, noise=0.002).to_csv(csv, index=False)
    asked = [str(csv), "at=N=1e6,D=2e7", "resamples=60"]
    assert main(["predict", *asked, "seal=mine"]) == 0
    (one,) = sealed.read_seals(tmp_path / "results" / "sealed")
    assert one.sweeps == ()
    assert {row.mix for row in one.forecasts} == {*TRUTH}


def test_what_is_no_seal_is_named(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = runs.parent / "results" / "sealed"
    assert main(["ledger"]) == 2
    assert "is no folder" in capsys.readouterr().err
    place.mkdir(parents=True)
    assert main(["ledger"]) == 0
    (place / "broken.json").write_text('{"version": 1}')
    assert main(["ledger"]) == 2
    assert "broken.json is no sealed prediction" in capsys.readouterr().err


def test_the_report_shows_the_scores(runs: Path, tmp_path: Path) -> None:
    assert seal(AT_400K, "seal=to_400k") == 0
    SweepWriter(runs / "mini").run("transformer", "400k", 0)
    assert main(["report", "sweep=mini", "out=out", "resamples=40"]) == 0
    page = (tmp_path / "out" / "report.md").read_text()
    section = page.split("## Sealed predictions")[1].split("\n## ")[0]
    (row,) = [line for line in section.splitlines() if "| transformer" in line]
    assert "| yes" in row
    (waits,) = [line for line in section.splitlines() if "| gdn3_attn1" in line]
    assert "to come" in waits
