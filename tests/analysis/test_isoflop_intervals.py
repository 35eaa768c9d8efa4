"""Intervals of isoFLOP exponents against published exponents, refits and simulated truth."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis.__main__ import main
from analysis.stats.isoflop_draws import draw_isoflop
from analysis.stats.laws import Chinchilla
from analysis.stats.rays import Minimum, fit_isoflop
from analysis.study.load import load_csv

PORIAN = Path(__file__).parents[1] / "data" / "scaling" / "porian_refinedweb.csv"
# Porian et al. 2024 (arXiv 2406.19146), RefinedWeb: exponents of N*(C).
PUBLISHED = {
    "base_longwarm_kaplandecay": 0.701,
    "base_shortwarm_kaplandecay": 0.604,
    "base_shortwarm_matchedcosine": 0.571,
    "tuned_shortwarm_constLR": 0.497,
}


def test_porian_s_exponents_come_out_and_lie_in_the_intervals() -> None:
    points = load_csv(PORIAN)
    laws = fit_isoflop(points, minimum="akima")
    draws = draw_isoflop(points, minimum="akima", resamples=499)
    assert set(laws) == set(PUBLISHED)
    for mix, published in PUBLISHED.items():
        # They weight budgets by, and take medians over, simulated noise, and search a grid of 25
        # sizes between neighbours: worth 0.002 here, a quarter of the smallest standard error.
        assert laws[mix].a == pytest.approx(published, abs=0.002)
        low, high = draws[mix].exponents(0.95)[0]
        assert low < published < high
        assert high - low < 0.08


def test_the_exponents_differ_between_the_first_and_the_last_recipe() -> None:
    draws = draw_isoflop(load_csv(PORIAN), minimum="akima", resamples=199)
    lowest_kaplan = draws["base_longwarm_kaplandecay"].exponents(0.95)[0][0]
    assert lowest_kaplan > draws["tuned_shortwarm_constLR"].exponents(0.95)[0][1]


def ladder(
    rng: np.random.Generator, run_noise: float, point_noise: float, n_budgets: int = 5
) -> pd.DataFrame:
    """Twelve runs whose curves are read at each budget; their noise is of log loss."""
    law = Chinchilla(1.7, 400.0, 0.3, 900.0, 0.3)  # equal exponents: N* = G C^0.5
    N, C = np.geomspace(2e7, 4e9, 12), np.geomspace(1e18, 1e20, n_budgets)
    run = np.repeat(np.arange(12), n_budgets)
    N, C = N[run], np.tile(C, 12)
    D = C / (6 * N)
    near = np.abs(np.log(N / law.optimum(C)[0])) < np.log(8)
    noise = rng.normal(0, run_noise, 12)[run] + rng.normal(0, point_noise, len(run))
    loss = law.loss(N, D) * np.exp(noise)
    table = pd.DataFrame({"mix": "m", "size": run, "run": run, "N": N, "D": D, "loss": loss})
    return table[near].reset_index(drop=True)


@pytest.mark.parametrize(
    ("loss", "minimum"), [("squares", "parabola"), ("huber", "parabola"), ("squares", "akima")]
)
def test_a_resample_is_the_fit_of_a_table_that_repeats_its_runs(
    loss: str, minimum: Minimum
) -> None:
    points = ladder(np.random.default_rng(1), 0.003, 0.001)
    draws = draw_isoflop(points, loss, 1e-3, minimum, 6, seed=3)["m"]  # type: ignore[arg-type]
    counts = np.random.default_rng(3).multinomial(12, np.full(12, 1 / 12), size=6)
    for i, count in enumerate(counts):
        repeated = points.loc[np.repeat(points.index, count[points["run"]])]
        law = fit_isoflop(repeated, loss, 1e-3, minimum)["m"]  # type: ignore[arg-type]
        assert draws.a[i] == pytest.approx(law.a, abs=1e-5)
        assert draws.b[i] == pytest.approx(law.b, abs=1e-5)
        N_star = np.exp(draws.log_G_N[i]) * 1e19 ** draws.a[i]
        assert pytest.approx(law.optimum(1e19)[0], rel=1e-4) == N_star


def test_intervals_hold_the_simulated_exponent_and_optimum() -> None:
    # 95 % intervals by percentiles of a dozen runs are a little short; a binomial of 100 at 0.9
    # falls below 82 less than once in a hundred.
    rng = np.random.default_rng(0)
    truth = Chinchilla(1.7, 400.0, 0.3, 900.0, 0.3)
    exponents, optima = 0, 0
    for i in range(100):
        draws = draw_isoflop(ladder(rng, 0.003, 0.001), resamples=199, seed=i)["m"]
        low, high = draws.exponents(0.95)[0]
        exponents += low < 0.5 < high
        low, high = draws.optimum(1e19, 0.95)[0]
        optima += low < truth.optimum(1e19)[0] < high
    assert exponents >= 82
    assert optima >= 82


def test_rows_of_one_run_drawn_singly_give_too_narrow_an_interval() -> None:
    # Twenty readings of a curve know no more of the run's luck than one.
    points = ladder(np.random.default_rng(2), 0.005, 0.0, n_budgets=20)
    by_run = draw_isoflop(points, resamples=299)["m"]
    rows = points.assign(run=np.arange(len(points)))
    by_row = draw_isoflop(rows, resamples=299)["m"]
    C = 1e19
    width_by_run, width_by_row = (
        float(np.diff(np.log(draws.optimum(C, 0.95)[0]))[0]) for draws in (by_run, by_row)
    )
    assert width_by_run > 1.5 * width_by_row


def test_json_has_the_intervals_and_level_narrows_them(capsys: pytest.CaptureFixture[str]) -> None:
    def fitted(*arguments: str) -> dict:
        common = ["fit", str(PORIAN), "--law", "isoflop", "--loss", "squares", "--format", "json"]
        resamples = [] if "--resamples" in arguments else ["--resamples", "99"]
        assert main([*common, *resamples, *arguments]) == 0
        return json.loads(capsys.readouterr().out)

    wide, narrow = fitted(), fitted("--level", "0.5")
    assert (wide["level"], wide["resamples"], wide["seed"]) == (0.95, 99, 0)
    for mix, one in wide["mixes"].items():
        other = narrow["mixes"][mix]
        assert one["a"] == other["a"]
        assert one["a_low"] < other["a_low"] < other["a_high"] < one["a_high"]
        assert one["b_low"] < other["b_low"] < other["b_high"] < one["b_high"]
        for budget in one["budgets"]:
            assert budget["N_star_low"] < budget["N_star_high"]
            assert budget["D_star_low"] < budget["D_star_high"]
            assert budget["N_star"] == pytest.approx(one["G_N"] * budget["C"] ** one["a"])
    assert fitted("--seed", "1")["mixes"][mix]["a_low"] != wide["mixes"][mix]["a_low"]
    none = fitted("--resamples", "0")["mixes"][mix]
    assert none["a"] == wide["mixes"][mix]["a"]
    assert none["a_low"] is none["budgets"][0]["N_star_low"] is None


def test_the_table_says_the_intervals_and_which_points_are_a_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", str(PORIAN), "--law", "isoflop", "--resamples", "49"]) == 0
    text = capsys.readouterr().out
    assert "N_star_low" in text
    assert re.search(r"tuned_shortwarm_constLR: a from 0\.\d{4} to 0\.\d{4}, b from", text)
    assert "Intervals of 95 %: bootstrap of whole runs, 49 resamples, seed 0." in text
    path = tmp_path / "runless.csv"
    pd.read_csv(PORIAN).drop(columns="run").to_csv(path, index=False)
    assert main(["fit", str(path), "--law", "isoflop", "--resamples", "49"]) == 0
    assert "points of one mix and size are taken as one run." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--law", "isoflop", "--level", "95"], "level=95 must be a share above 0 and below 1"),
        (["--law", "isoflop", "--minimum", "spline"], "minimum=spline is not known; valid: "),
        (["--minimum", "akima"], "minimum=akima needs law=isoflop, not chinchilla."),
    ],
)
def test_what_cannot_be_done_is_said(
    capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    assert main(["fit", str(PORIAN), *arguments]) == 2
    assert words in capsys.readouterr().err
