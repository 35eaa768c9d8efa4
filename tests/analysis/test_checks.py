"""Doubts about points: units, assumed runs, losses left out; laws that fewer points identify."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from synthetic_sweeps import TRUTH, grid_points

from analysis.__main__ import main
from analysis.stats.fit import fit, lacking
from analysis.stats.laws import Chinchilla
from analysis.stats.noise import lack_of_fit
from analysis.study.checks import doubts
from analysis.study.load import load_csv


def said(points: pd.DataFrame) -> list[str]:
    return [str(one) for one in doubts(points)]


def two_mixes() -> pd.DataFrame:
    return grid_points({name: TRUTH[name] for name in ("transformer", "gdn3_attn1")})


def test_points_of_one_unit_raise_no_doubt() -> None:
    assert said(two_mixes()) == []
    assert said(grid_points(TRUTH)) == []


@pytest.mark.parametrize("factor", [np.log(2), 1 / np.log(2)])
def test_a_mix_in_bits_beside_one_in_nats_is_named(factor: float) -> None:
    points = two_mixes()
    own = points["mix"] == "gdn3_attn1"
    points["loss"] = points["loss"].where(~own, points["loss"] * factor)
    (told,) = said(points)
    assert "as if it were counted in" in told
    three = grid_points(TRUTH)
    three["loss"] = three["loss"].where(three["mix"] != "gdn", three["loss"] / np.log(2))
    (told,) = said(three)
    assert "The loss of mix=gdn lies" in told
    assert "counted in bits and theirs in nats" in told


def test_a_large_saving_is_no_other_unit() -> None:
    points = two_mixes()
    own = points["mix"] == "gdn3_attn1"
    # An eighth lower in loss, more than any mix of one ladder is, and still far from ln 2.
    points["loss"] = points["loss"].where(~own, 0.875 * points["loss"])
    assert said(points) == []


@pytest.mark.parametrize("column", ["N", "D"])
def test_counts_in_millions_beside_ones_are_named(column: str) -> None:
    points = two_mixes()
    own = points["mix"] == "gdn3_attn1"
    points[column] = points[column].where(~own, points[column] / 1e6)
    found = " ".join(said(points))
    assert "mix=gdn3_attn1" in found
    assert "millions" in found or "another unit" in found


def test_rows_that_nothing_tells_apart_are_said_to_count_as_runs(tmp_path: Path) -> None:
    path = tmp_path / "points.csv"
    two_mixes()[["mix", "N", "D", "loss"]].to_csv(path, index=False)
    (told,) = said(load_csv(path))
    assert "the 3 budgets of a mix at one size count as checkpoints of one run" in told
    assert "give a column run" in told
    two_mixes().to_csv(path, index=False)
    assert said(load_csv(path)) == []


def test_empty_losses_are_left_out_and_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    points = two_mixes()
    exact = fit(points.drop([3, 7]), "free", "squares").mixes["transformer"].law
    points["loss"] = points["loss"].astype(object)
    points.loc[3, "loss"], points.loc[7, "loss"] = "", "inf"
    path = tmp_path / "points.csv"
    points.to_csv(path, index=False)
    assert main(["fit", str(path), "--loss", "squares", "--format", "json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["mixes"]["transformer"]["E"] == pytest.approx(float(exact.E), rel=1e-6)
    (left_out,) = [note for note in told["notes"] if note.startswith("Left out: 2 rows")]
    assert "line 5" in left_out
    assert "line 9" in left_out


def test_every_law_says_how_far_it_lies_off_its_points(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    points = two_mixes()
    points.loc[4, "loss"] *= 1.05
    path = tmp_path / "points.csv"
    points.to_csv(path, index=False)
    for law in ("chinchilla", "gamma"):
        assert main(["fit", str(path), "--law", law, "--loss", "huber", "--format", "json"]) == 0
        one = json.loads(capsys.readouterr().out)["mixes"][points["mix"][4]]
        # A robust law passes the bent point by: it alone is off, by 5 %.
        assert one["largest_error"] == pytest.approx(1 - 1 / 1.05, abs=0.003)
        assert one["rms"] == pytest.approx(np.log(1.05) / np.sqrt(12), rel=0.1)


def test_a_mix_of_two_sizes_is_fitted_where_the_others_tell_what_is_shared() -> None:
    points = grid_points({"a": TRUTH["transformer"], "b": TRUTH["gdn3_attn1"]})
    points = points[(points["mix"] == "a") | (points["N"] < 150_000)].reset_index(drop=True)
    assert "2 size(s), and E, A and alpha cannot be told apart" in lacking(
        points[points["mix"] == "b"]
    )
    law = fit(points, "shared", "squares").mixes["b"].law
    assert law.as_dict() == pytest.approx(TRUTH["gdn3_attn1"].as_dict(), rel=1e-3)
    # Nobody has three sizes: what is shared is not known either.
    with pytest.raises(Exception, match="cannot be fitted"):
        fit(points[points["N"] < 150_000].reset_index(drop=True), "shared", "squares")


def test_savings_hold_what_they_are_told_to(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "points.csv"
    two_mixes().to_csv(path, index=False)
    arguments = ["savings", str(path), "--resamples", "20", "--format", "json"]
    assert main([*arguments, "--fix", "E=0.9,alpha=0.42"]) == 0
    found = json.loads(capsys.readouterr().out)["savings"]
    assert all(one["value"] == pytest.approx(1.3, rel=1e-3) for one in found)
    assert "E = 0.9, alpha = 0.42 held" in found[0]["model"]
    assert main([*arguments, "--fix", "E=9"]) == 2


def test_losses_by_compute_alone_are_fitted_along_their_ray(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    C = np.geomspace(1e18, 1e21, 7)
    path = tmp_path / "points.csv"
    pd.DataFrame({"mix": "a", "C": C, "loss": 1.7 + 300 * C**-0.15}).to_csv(path, index=False)
    assert main(["fit", str(path), "--law", "ray", "--loss", "squares", "--format", "json"]) == 0
    one = json.loads(capsys.readouterr().out)["mixes"]["a"]
    assert (one["E"], one["kappa"]) == pytest.approx((1.7, 0.15), rel=1e-4)
    assert main(["fit", str(path), "--law", "ray", "--fix", "E=1.6", "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["mixes"]["a"]["E"] == 1.6
    assert main(["fit", str(path)]) == 2
    assert "has no column N, D" in capsys.readouterr().err


def test_a_mix_that_truly_saves_is_still_told_when_it_is_in_bits() -> None:
    base = TRUTH["transformer"]
    points = grid_points({"base": base, "mix": Chinchilla(0.9, 60.0, 0.42, 90.0 * 3**-0.35, 0.35)})
    points["loss"] = points["loss"].where(points["mix"] != "mix", points["loss"] / np.log(2))
    assert any("as if it were counted in" in told for told in said(points))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda points: points.assign(D=points["D"] / 1e9), "D of mix=gdn3_attn1, transformer"),
        (lambda points: points.assign(N=points["D"], D=points["N"]), "in each other's column"),
        (lambda points: points.assign(C=6e-12 * points["N"] * points["D"]), "times 6 N D"),
        (lambda points: points.assign(loss=2 + 0.1 * np.log(points["D"])), "does not fall with D"),
    ],
)
def test_what_no_ladder_has_is_named(
    change: Callable[[pd.DataFrame], pd.DataFrame], words: str
) -> None:
    assert any(words in told for told in said(change(two_mixes())))


def test_copied_seeds_and_sizes_of_other_n_are_named() -> None:
    points = two_mixes()
    again = points.assign(run=points["run"] + "-again", seed=1)
    (told,) = said(pd.concat([points, again], ignore_index=True))
    assert "copied rows are no seeds" in told
    other = points.assign(N=points["N"].where(points["mix"] == "transformer", 1.5 * points["N"]))
    assert any("stands for N = " in told for told in said(other))


def test_seeds_of_equal_losses_show_no_lack_of_fit() -> None:
    points = two_mixes()
    again = points.assign(run=points["run"] + "-again", seed=1)
    assert (
        lack_of_fit(fit(pd.concat([points, again], ignore_index=True), "free", "squares")) is None
    )


def test_a_size_has_one_n(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "points.csv"
    two_mixes().assign(size="small").to_csv(path, index=False)
    assert main(["fit", str(path)]) == 2
    assert "at size=small with N from 5e+04 to 4e+05" in capsys.readouterr().err


def test_a_ladder_of_one_budget_a_size_cannot_tell_n_from_d() -> None:
    N = np.repeat(np.geomspace(5e7, 4e8, 8), 2)
    for power in (1.0, 0.8):
        D = 20 * N**power * np.tile([1.0, 1.03], 8)
        assert "D given by N" in lacking(pd.DataFrame({"N": N, "D": D, "loss": 2.0}))
    # Published points with one budget each, over the plane, can.
    spread = pd.DataFrame({"N": N, "D": N * np.tile([10.0, 20.0], 8), "loss": 2.0})
    assert lacking(spread) == ""
