"""The envelope of training curves against brute force, known laws and published exponents."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import analysis
from ablations.records import SettingError
from analysis.__main__ import main
from analysis.stats.envelope import draw_envelope, fit_envelope
from analysis.stats.laws import Chinchilla
from analysis.study.load import load_csv

PORIAN = Path(__file__).parents[1] / "data" / "scaling" / "porian_refinedweb.csv"
EVEN = Chinchilla(1.7, 400.0, 0.3, 900.0, 0.3)  # N* = G C^0.5
UNEVEN = Chinchilla(1.7, 1376.0, 0.36, 400.0, 0.24)  # N* = G C^0.4


def ladder(
    law: Chinchilla, n_runs: int, n_points: int, rng: np.random.Generator, noise: float = 0.0
) -> pd.DataFrame:
    """Training curves of 2 to 400 tokens per parameter; noise of runs, half of it on points."""
    rows = []
    for run, N in enumerate(np.geomspace(2e7, 2e9, n_runs)):
        D = N * np.geomspace(2, 400, n_points)
        luck = rng.normal(0, noise) + rng.normal(0, noise / 2, n_points)
        loss = law.loss(N, D) * np.exp(luck)
        rows.append(
            pd.DataFrame({"mix": "m", "size": run, "run": run, "N": N, "D": D, "loss": loss})
        )
    return pd.concat(rows, ignore_index=True)


def test_each_budget_s_best_is_the_least_interpolated_loss_by_brute_force() -> None:
    points = ladder(EVEN, 6, 5, np.random.default_rng(0), 0.01)
    found = fit_envelope(points)["m"]
    for place in range(0, len(found.C), 97):
        C, candidates = found.C[place], []
        for _, run in points.groupby("run"):
            known = (6 * run["N"] * run["D"]).to_numpy()
            if known[0] <= C <= known[-1]:
                left = max(i for i in range(len(known) - 1) if known[i] <= C)
                share = np.log(C / known[left]) / np.log(known[left + 1] / known[left])
                first, second = run["loss"].iloc[left : left + 2]
                N = run["N"].iloc[0]
                candidates.append((first ** (1 - share) * second**share, N, C / (6 * N)))
        assert (found.loss[place], found.N[place], found.D[place]) == pytest.approx(
            min(candidates), rel=1e-9
        )
        sizes = [N for _, N, _ in candidates]
        assert found.inside[place] == (min(sizes) < min(candidates)[1] < max(sizes))


def test_the_exponents_are_those_of_a_line_through_the_budgets_that_count() -> None:
    found = fit_envelope(ladder(UNEVEN, 10, 6, np.random.default_rng(1), 0.001))["m"]
    C = np.log(found.C[found.inside])
    for values, exponent, factor in (
        (found.N, found.a, found.G_N),
        (found.D, found.b, found.G_D),
    ):
        slope, intercept = np.polyfit(C, np.log(values[found.inside]), 1)
        assert (exponent, np.log(factor)) == pytest.approx((slope, intercept), rel=1e-6)
    # C = 6 N D holds on every curve.
    assert found.a + found.b == pytest.approx(1)


@pytest.mark.parametrize(("law", "a"), [(EVEN, 0.5), (UNEVEN, 0.4)])
def test_close_sizes_without_noise_find_the_law_s_optimum(law: Chinchilla, a: float) -> None:
    found = fit_envelope(ladder(law, 40, 40, np.random.default_rng(0)))["m"]
    assert found.a == pytest.approx(a, abs=0.005)
    middle = float(np.sqrt(found.C[found.inside][0] * found.C[found.inside][-1]))
    # Sizes are 12 % apart.
    assert found.optimum(middle)[0] == pytest.approx(law.optimum(middle)[0], rel=0.06)


def test_budgets_whose_best_is_the_edge_of_the_sizes_would_bend_the_exponent() -> None:
    found = fit_envelope(ladder(EVEN, 16, 8, np.random.default_rng(0)))["m"]
    every = np.polyfit(np.log(found.C), np.log(found.N), 1)[0]
    assert abs(every - 0.5) > 10 * abs(found.a - 0.5)


def test_intervals_hold_the_simulated_exponent() -> None:
    # A binomial of 36 at 0.95 falls below 30 in one of a hundred tests, less often than that at the
    # wider coverage that resamples of fewer curves have.
    rng, held = np.random.default_rng(0), 0
    for seed in range(36):
        fits = fit_envelope(ladder(EVEN, 16, 8, rng, 0.001))
        low, high = draw_envelope(fits, 99, seed)["m"].exponents(0.95)[0]
        held += low < 0.5 < high
    assert held >= 30


def test_a_resample_is_the_envelope_of_the_runs_drawn() -> None:
    points = ladder(EVEN, 12, 6, np.random.default_rng(2), 0.002)
    fits = fit_envelope(points)
    draws = draw_envelope(fits, 5, seed=3)["m"]
    counts = np.random.default_rng(3).multinomial(12, np.full(12, 1 / 12), size=5)
    for row, count in enumerate(counts):
        drawn = points[points["run"].isin(np.flatnonzero(count))]
        # Budgets of a smaller table are spaced a little otherwise.
        again = fit_envelope(drawn)["m"]
        assert draws.a[row] == pytest.approx(again.a, abs=2e-3)
        assert draws.b[row] == pytest.approx(again.b, abs=2e-3)


@pytest.mark.parametrize(
    ("mix", "published"),
    [
        ("base_longwarm_kaplandecay", 0.701),
        ("base_shortwarm_kaplandecay", 0.604),
        ("tuned_shortwarm_constLR", 0.497),
    ],
)
def test_porian_s_exponents_by_isoflop_lie_in_the_envelope_s_interval(
    mix: str, published: float
) -> None:
    points = load_csv(PORIAN)
    fits = fit_envelope(points[points["mix"] == mix])
    assert fits[mix].a == pytest.approx(published, abs=0.01)
    low, high = draw_envelope(fits, 199)[mix].exponents(0.95)[0]
    assert low < published < high


@pytest.mark.parametrize(
    ("keep", "words"),
    [
        (lambda p: p.groupby("run").tail(1), "its runs have one point each"),
        (lambda p: p[p["run"] == 3], "its curves are of one size, N ="),
        (lambda p: p[p["run"] < 2], "reached by the curves of three or more sizes"),
    ],
)
def test_what_an_envelope_lacks_is_said(keep: object, words: str) -> None:
    points = ladder(EVEN, 8, 6, np.random.default_rng(0))
    with pytest.raises(SettingError, match=f"mix=m cannot be fitted by law=envelope.*{words}"):
        fit_envelope(keep(points))  # type: ignore[operator]


def test_the_command_and_python_say_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "curves.csv"
    ladder(EVEN, 10, 6, np.random.default_rng(0), 0.001).to_csv(path, index=False)
    assert main(["fit", str(path), "law=envelope", "resamples=49", "format=json"]) == 0
    document = json.loads(capsys.readouterr().out)
    laws = analysis.load(path).fit("envelope", resamples=49)
    assert laws.document["mixes"]["m"] == document["mixes"]["m"]
    assert any("cosine schedule" in note for note in document["notes"])
    steps = document["mixes"]["m"]["steps"]
    assert len(laws.table) == len(steps)
    sizes = [step["N"] for step in steps if step["budgets_used"]]
    assert len(set(sizes)) > 4
    assert len(laws.plot().axes) == 2


def test_a_mix_without_an_envelope_is_named_and_the_others_are_fitted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = ladder(EVEN, 10, 6, np.random.default_rng(0), 0.001)
    ends = good.groupby("run").tail(1).head(8).assign(mix="ends")
    for law, points in (("envelope", good), ("isoflop", isoflops())):
        other = ends[[*points.columns]]
        path = tmp_path / f"{law}.csv"
        pd.concat([other, points.assign(mix="m")]).to_csv(path, index=False)
        points.assign(mix="m").to_csv(tmp_path / "alone.csv", index=False)
        asked = [f"law={law}", "resamples=20", "format=json"]
        assert main(["fit", str(path), *asked]) == 0
        both = json.loads(capsys.readouterr().out)
        assert main(["fit", str(tmp_path / "alone.csv"), *asked]) == 0
        alone = json.loads(capsys.readouterr().out)
        assert both["mixes"] == alone["mixes"]
        (sentence,) = both["unfitted"].values()
        assert sentence.startswith(f"mix=ends cannot be fitted by law={law}: ")
        assert sentence in both["notes"]
        assert "unfitted" not in alone
        assert main(["fit", str(path), f"law={law}", "resamples=0", "format=csv"]) == 0
        assert capsys.readouterr().err == f"note: {sentence}\n"


def isoflops() -> pd.DataFrame:
    """Points at three budgets around the law's optimum."""
    rows = [
        ("m", f"{C:g}-{k}", N * k, C / (6 * N * k), float(EVEN.loss(N * k, C / (6 * N * k))))
        for C in (1e19, 1e20, 1e21)
        for N in [float(EVEN.optimum(C)[0])]
        for k in (0.25, 0.5, 1, 2, 4)
    ]
    return pd.DataFrame(rows, columns=["mix", "run", "N", "D", "loss"])


def test_a_mix_of_too_few_sizes_does_not_stop_the_law_of_the_others(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    good = ladder(UNEVEN, 5, 5, np.random.default_rng(0), 0.001)
    few = good[good["run"] < 1].assign(mix="few")
    path = tmp_path / "points.csv"
    pd.concat([few, good]).to_csv(path, index=False)
    for loss in ("huber", "student"):
        assert main(["fit", str(path), f"loss={loss}", "format=json"]) == 0
        both = json.loads(capsys.readouterr().out)
        good.to_csv(tmp_path / "good.csv", index=False)
        assert main(["fit", str(tmp_path / "good.csv"), f"loss={loss}", "format=json"]) == 0
        assert both["mixes"] == json.loads(capsys.readouterr().out)["mixes"]
        assert "mix=few cannot be fitted: it has 5 points" in both["unfitted"]["few"]
    # What the mixes share is of all of them.
    assert main(["fit", str(path), "model=shared_E"]) == 2
    assert "mix=few cannot be fitted" in capsys.readouterr().err
