"""Laws by training FLOPs against the laws in N and D that they are cuts of."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ablations.records import SettingError
from analysis.stats.fit import fit
from analysis.stats.laws import Chinchilla
from analysis.stats.rays import Minimum, curve_at, fit_axis, fit_isoflop, fit_rays
from analysis.study.load import load_csv

CASES = Path(__file__).parents[1] / "data" / "cases"
# Equal exponents: along a ray and at the optimum the loss is then an exact power of C.
EVEN = Chinchilla(1.7, 400.0, 0.3, 900.0, 0.3)
UNEVEN = Chinchilla(1.7, 400.0, 0.34, 900.0, 0.28)


def points_at(law: Chinchilla, N: np.ndarray, D: np.ndarray, mix: str = "gdn") -> pd.DataFrame:
    sizes = pd.Series(N).map("{:.4g}".format)
    return pd.DataFrame(
        {"mix": mix, "size": sizes, "run": sizes, "N": N, "D": D, "loss": law.loss(N, D)}
    )


def test_along_a_ray_equal_exponents_give_a_power_of_compute() -> None:
    N = np.geomspace(6e7, 1e9, 7)
    found = fit_rays(points_at(EVEN, N, 20 * N))["gdn"]
    # N = (C / 120)^(1/2), D = 20 N.
    K = 400 * 120**0.15 + 900 * (120 / 400) ** 0.15
    assert pytest.approx(1.7, rel=1e-6) == found.law.E
    assert found.law.kappa == pytest.approx(0.15, rel=1e-6)
    assert pytest.approx(K, rel=1e-5) == found.law.K
    assert found.constant == pytest.approx(20)
    assert found.terms.starts_agreeing == 1


def test_a_ray_is_picked_out_of_several_and_must_be_where_there_are() -> None:
    N = np.geomspace(6e7, 1e9, 7)
    both = pd.concat([points_at(EVEN, N, 20 * N), points_at(EVEN, N, 160 * N)])
    assert fit_rays(both, ratio=160)["gdn"].terms.n == 7
    words = "law=ray needs points of one D / N, and those of mix=gdn have 20, 160"
    with pytest.raises(SettingError, match=re.escape(words)):
        fit_rays(both)
    with pytest.raises(SettingError, match="it has 0 points at 0 values of C"):
        fit_rays(both, ratio=80)


def test_compute_is_the_points_own_where_they_say_it() -> None:
    N = np.geomspace(6e7, 1e9, 7)
    points = points_at(EVEN, N, 20 * N)
    own = fit_rays(points.assign(C=8 * N * 20 * N))["gdn"].law
    product = fit_rays(points)["gdn"].law
    assert pytest.approx(own.K, rel=1e-5) == product.K * (8 / 6) ** 0.15


def isoflops(law: Chinchilla, spread: float = 4.0) -> pd.DataFrame:
    parts = []
    for C in (1e18, 1e19, 1e20, 1e21):
        N = law.optimum(C)[0] * np.geomspace(1 / spread, spread, 9)
        parts.append(points_at(law, N, C / (6 * N)))
    return pd.concat(parts, ignore_index=True)


def test_isoflop_parabolas_find_the_law_s_optimum() -> None:
    # A law with equal exponents is symmetric in log N about its optimum: the parabola is exact.
    found = fit_isoflop(isoflops(EVEN))["gdn"]
    assert found.a == pytest.approx(0.5, abs=1e-9)
    assert found.b == pytest.approx(0.5, abs=1e-9)
    N, D = found.optimum(1e22)
    assert pytest.approx(tuple(map(float, EVEN.optimum(1e22))), rel=1e-6) == (N, D)


def test_unequal_exponents_bias_the_place_and_not_the_slope() -> None:
    # Where each budget is sampled alike about its optimum the parabola is off by one factor.
    found = fit_isoflop(isoflops(UNEVEN, spread=8))["gdn"]
    assert found.a == pytest.approx(0.28 / 0.62, abs=2e-3)
    assert found.b == pytest.approx(0.34 / 0.62, abs=2e-3)
    factor = found.optimum(1e20)[0] / UNEVEN.optimum(1e20)[0]
    assert factor == pytest.approx(1, abs=0.2)
    assert factor != pytest.approx(1, abs=0.005)


def test_a_minimum_outside_the_sizes_is_not_used() -> None:
    points = isoflops(EVEN)
    best = EVEN.optimum(1e21)[0]
    cut = points[~((6 * points["N"] * points["D"] > 9e20) & (points["N"] > 0.7 * best))]
    found = fit_isoflop(cut)["gdn"]
    assert [one.inside for one in found.parabolas] == [True, True, True, False]
    assert found.a == pytest.approx(0.5, abs=1e-9)


def test_one_budget_has_no_exponent() -> None:
    points = isoflops(EVEN)
    one = points[6 * points["N"] * points["D"] < 2e18]
    with pytest.raises(SettingError, match="it has 1 budgets C with three or more sizes"):
        fit_isoflop(one)


def test_whole_numbers_do_not_wrap_around(tmp_path: Path) -> None:
    path = CASES / "overflow.csv"
    found = fit_isoflop(load_csv(path))["t"]
    assert found.optimum(1e21)[1] == pytest.approx(6.94e10, rel=1e-3)
    floats = tmp_path / "floats.csv"
    pd.read_csv(path).astype({"N": float, "D": float}).to_csv(floats, index=False)
    assert fit_isoflop(load_csv(floats)) == {"t": found}
    # Straight from a caller's table of whole numbers too.
    table = pd.read_csv(path).assign(size="s", run="r")
    assert fit_isoflop(table)["t"].optimum(1e21)[1] == pytest.approx(6.94e10, rel=1e-3)


@pytest.mark.parametrize("loss", ["huber", "absolute", "student"])
def test_a_loss_that_diverged_does_not_move_a_robust_parabola(loss: str) -> None:
    points = isoflops(EVEN)
    points.loc[1, "loss"] *= 1.2
    exact, pulled = fit_isoflop(isoflops(EVEN))["gdn"], fit_isoflop(points)["gdn"]
    robust = fit_isoflop(points, loss)["gdn"]  # type: ignore[arg-type]
    assert pytest.approx(exact.parabolas[0].N, rel=0.01) == robust.parabolas[0].N
    assert robust.a == pytest.approx(0.5, abs=0.002)
    assert abs(np.log(pulled.parabolas[0].N / exact.parabolas[0].N)) > 0.25


def test_one_axis_gives_the_other_s_term_to_E() -> None:
    N, D = np.geomspace(6e7, 1e9, 8), np.geomspace(1e9, 1e11, 8)
    by_n = fit_axis(points_at(UNEVEN, N, np.full(8, 2e10)), "N")["gdn"]
    assert (by_n.law.E, by_n.law.K, by_n.law.kappa) == pytest.approx(
        (1.7 + 900 / 2e10**0.28, 400, 0.34), rel=1e-3
    )
    by_d = fit_axis(points_at(UNEVEN, np.full(8, 3e8), D), "D")["gdn"]
    assert (by_d.law.E, by_d.law.K, by_d.law.kappa) == pytest.approx(
        (1.7 + 400 / 3e8**0.34, 900, 0.28), rel=1e-3
    )
    assert (by_n.constant, by_d.constant) == pytest.approx((2e10, 3e8))
    assert by_n.terms.starts_agreeing == 1


def test_what_is_at_a_bound_is_named_as_the_law_names_it() -> None:
    N = np.geomspace(6e7, 1e9, 8)
    points = points_at(UNEVEN, N, np.full(8, 2e10))
    bent = points.assign(loss=3 * np.exp(-0.15 * np.log(N / 6e7) - 0.02 * np.log(N / 6e7) ** 2))
    assert fit_axis(bent, "N")["gdn"].terms.at_bound == ("E",)
    rising = fit_axis(points.assign(loss=3 * (N / 6e7) ** 0.1), "N")["gdn"].terms.at_bound
    assert rising
    assert set(rising) <= {"E", "A", "alpha"}


@pytest.mark.parametrize(
    ("axis", "words"),
    [
        ("N", "law=N needs points of one D, and those of mix=gdn have 1e9, 1e10; choose one"),
        ("D", "law=D needs points of one N, and those of mix=gdn have 1e8, 1e9; choose one"),
    ],
)
def test_one_axis_is_refused_where_the_other_varies(axis: str, words: str) -> None:
    N, D = (one.ravel() for one in np.meshgrid([1e8, 1e9], [1e9, 1e10]))
    with pytest.raises(SettingError, match=re.escape(words)):
        fit_axis(points_at(UNEVEN, N, D), axis)  # type: ignore[arg-type]
    few = points_at(UNEVEN, np.full(2, 1e8), np.full(2, 1e9))
    with pytest.raises(SettingError, match=f"law={axis}: it has 2 points at 1 values of {axis}"):
        fit_axis(few, axis)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("N", "D", "law"),
    [
        (np.full(8, 3e8), np.geomspace(1e9, 1e11, 8), "D"),
        (np.geomspace(1e8, 1e10, 8), np.full(8, 2e10), "N"),
        (np.geomspace(1e8, 1e10, 8), 20 * np.geomspace(1e8, 1e10, 8), "ray"),
        (np.full(5, 3e8), np.geomspace(1e9, 1e11, 5), "D"),
        (np.geomspace(1e8, 1e10, 5), np.full(5, 2e10), "N"),
    ],
)
def test_a_law_in_both_is_refused_with_the_law_that_would_do(
    N: np.ndarray, D: np.ndarray, law: str
) -> None:
    with pytest.raises(SettingError, match=f"or fit law={law}[.]"):
        fit(points_at(UNEVEN, N, D))


@pytest.mark.parametrize("minimum", ["parabola", "akima"])
def test_the_curve_of_a_budget_goes_through_its_minimum(minimum: Minimum) -> None:
    points = isoflops(UNEVEN)
    least = fit_isoflop(points, "huber", minimum=minimum)["gdn"].parabolas[1]
    own = points[np.isclose(6 * points["N"] * points["D"], least.C)]
    around = least.N * np.array([1, 0.98, 1.02])
    curve = curve_at(around, own, "huber", 1e-3, minimum)
    assert curve[0] == pytest.approx(least.loss, rel=1e-9)
    assert curve[0] < min(curve[1:])
