"""Optima of tuned settings in the analysis: from a CSV, from sweeps, and inside savings."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from synthetic_sweeps import DATA, SIZES, SweepWriter, write_ladder

from ablations.ladder import peak_lr
from ablations.records import SettingError
from analysis.__main__ import main
from analysis.report import sections
from analysis.report.checklist import checklist
from analysis.report.document import markdown
from analysis.report.figures import response_surfaces
from analysis.report.figures.drawing import Gallery
from analysis.study import at_optimum as at
from analysis.study import tuning
from analysis.study.findings import find
from analysis.study.load import load_sweep

RATES = (0.25, 0.5, 1.0, 2.0, 4.0)
BEST = {"transformer": 1.0, "gdn3_attn1": 0.5}
"""Multiples of the ladder's rate at which mixes train best."""
CURVATURE = 0.02
"""Share of the loss that an octave off costs."""


def factor(mix: str, rate: float, best: dict[str, float] = BEST) -> float:
    return 1 + CURVATURE * math.log2(rate / best[mix]) ** 2


def write_tuning(
    sweep: SweepWriter,
    best: dict[str, float] = BEST,
    sizes: tuple[str, ...] = ("50k", "100k", "200k"),
    rates: tuple[float, ...] = RATES,
    seeds: tuple[int, ...] = (10, 11),
) -> None:
    """A tuning sweep whose mixes train best at planted rates."""
    for mix in best:
        for size in sizes:
            for rate in rates:
                for seed in seeds:
                    sweep.run(
                        mix, size, seed, (1.0,), lr=rate * peak_lr(SIZES[size]),
                        protocol={"lr_multiplier": rate},
                        # The writer's losses rise with the rate by themselves.
                        factor=factor(mix, rate, best) / rate**0.1,
                    )  # fmt: skip


def grid(noise: float = 0.01, seeds: int = 2) -> pd.DataFrame:
    """Runs of anybody's grid: the optimum at lr = 0.01 (N / 1e8)^-0.4."""
    rng = np.random.default_rng(0)
    rows = []
    for N in (1e8, 2e8, 4e8):
        best = 0.01 * (N / 1e8) ** -0.4
        for lr in 0.01 * 2.0 ** np.arange(-3, 3):
            for seed in range(seeds):
                loss = 3 - 0.1 * math.log2(N / 1e8) + 0.05 * math.log2(lr / best) ** 2
                rows.append(("a", N, lr, loss + noise * rng.normal(), seed))
    return pd.DataFrame(rows, columns=["mix", "N", "lr", "loss", "seed"])


def test_a_csv_of_anybodys_has_optima_and_their_law(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "grid.csv"
    grid().to_csv(path, index=False)
    assert main(["tune", str(path), "format=json"]) == 0
    document = json.loads(capsys.readouterr().out)
    rows = document["optima"]
    assert [row["N"] for row in rows] == [1e8, 2e8, 4e8]
    for row in rows:
        assert {"mix", "size", "D", "setting", "multiplier", "edge"} <= row.keys()
        assert row["edge"] is False
        assert row["multiplier"] == pytest.approx(row["value"] / peak_lr(row["N"]))
        assert row["low"] <= 0.01 * (row["N"] / 1e8) ** -0.4 <= row["high"]
    (law,) = document["laws"]
    assert law["low"] <= -0.4 <= law["high"]
    assert law["quantity"] == "N"


def test_a_minimum_at_the_edge_is_no_minimum(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = grid(0.001)
    path = tmp_path / "grid.csv"
    for bar in (0.004, 0.006):  # two values of each size, three of each
        table[table["lr"] < bar].to_csv(path, index=False)
        assert main(["tune", str(path), "format=json"]) == 0
        rows = json.loads(capsys.readouterr().out)["optima"]
        assert all(row["edge"] is True and row["side"] == "high" for row in rows)
        assert all(row["value"] is None for row in rows)
    assert main(["tune", str(path)]) == 0
    assert "no minimum" in capsys.readouterr().out


def test_rows_without_seeds_and_diverged_ones_are_read(tmp_path: Path) -> None:
    table = grid().drop(columns="seed")
    table.loc[table["lr"] == table["lr"].max(), "loss"] = math.nan
    found = tuning.of_frame(table)
    assert [row["edge"] for row in found.optima] == [False] * 3
    assert any("6 runs diverged" in one for one in found.notes)
    assert found.tuned["a"].cells[0].runs == 12


def test_columns_and_rows_are_chosen_and_two_settings_found(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    rows = [
        ("a", 1e8, lr, bs, 2 + 0.05 * math.log2(lr / 0.01) ** 2 + 0.05 * math.log2(bs / 64) ** 2)
        for lr in (0.0025, 0.005, 0.01, 0.02, 0.04)
        for bs in (16, 32, 64, 128, 256)
    ]
    table = pd.DataFrame(rows, columns=["arch", "params", "rate", "bs", "loss"])
    table["loss"] += 0.002 * rng.normal(size=len(table))
    found = tuning.of_frame(
        table, "points=x", ("rate", "bs"), columns={"mix": "arch", "N": "params"}
    )
    values = {row["setting"]: row["value"] for row in found.optima}
    assert values["rate"] == pytest.approx(0.01, rel=0.1)
    assert values["bs"] == pytest.approx(64, rel=0.1)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda t: t.drop(columns="lr"), "no column lr"),
        (lambda t: t.drop(columns="N"), "no column N"),
        (lambda t: t.assign(lr=0.01, seed=range(len(t))), "one value of lr"),
        (lambda t: t.assign(lr=-1.0), "lr=-1.0 in row 1"),
        (lambda t: t.assign(lr=math.inf), "lr=inf in row 1"),
        (lambda t: t.assign(N="big"), "N=big in row 1"),
        (lambda t: t.assign(mix=[None] + ["a"] * (len(t) - 1)), "no mix in row 1"),
        (lambda t: t.iloc[:0], "no rows"),
        (lambda t: pd.concat([t, t.iloc[:1]]), "a run twice"),
    ],
)
def test_a_table_that_tells_no_optimum_is_refused(change: object, named: str) -> None:
    with pytest.raises(SettingError, match=named):
        tuning.of_frame(change(grid()))  # type: ignore[operator]


def test_a_size_whose_runs_all_diverged_has_no_minimum_and_harms_no_other() -> None:
    table = grid()
    for N in (1e8, 4e8):
        lost = table.assign(loss=table["loss"].where(table["N"] != N))
        rows = {row["N"]: row["edge"] for row in tuning.of_frame(lost).optima}
        assert rows == {n: n == N for n in (1e8, 2e8, 4e8)}
    flat = tuning.of_frame(grid().assign(loss=2.0))
    assert {row["side"] for row in flat.optima} == {"flat"}


def test_a_sweep_has_optima_in_multiples_of_the_ladders_rule(sweep: SweepWriter) -> None:
    write_tuning(replace(sweep, run_sd=0.004))
    found = tuning.of_sweep(sweep.path)
    held = 0
    for row in found.optima:
        low, high = (row[end] / peak_lr(SIZES[row["size"]]) for end in ("low", "high"))
        held += low <= BEST[row["mix"]] <= high
        assert row["multiplier"] == pytest.approx(BEST[row["mix"]], rel=0.1)
        # Losses are 1.6 to 2.1 nats there.
        assert row["half"] == pytest.approx(CURVATURE * 1.85, rel=0.4)
    assert held >= 5  # of 6
    figure, table = response_surfaces(found.tuned)
    assert set(table["kind"]) == {"run", "curve", "optimum"}
    assert len(figure.axes) == 4


def test_an_unfinished_sweep_is_refused_unless_asked_for(sweep: SweepWriter) -> None:
    write_tuning(sweep)
    sweep.run("gdn", "50k", 0, finished=0, protocol={"lr_multiplier": 0.5})
    with pytest.raises(SettingError, match="unfinished"):
        tuning.of_sweep(sweep.path)
    assert tuning.of_sweep(sweep.path, unfinished=True).optima


def test_runs_that_diverged_are_read_as_such(sweep: SweepWriter) -> None:
    write_tuning(sweep, {"transformer": 1.0})
    run = sweep.run("transformer", "50k", 10, (1.0,), finished=0, protocol={"lr_multiplier": 8.0},
                    lr=8 * peak_lr(SIZES["50k"]))  # fmt: skip
    run.write_status("failed", step=3, error="diverged: 50 steps in a row were skipped")
    found = tuning.of_sweep(sweep.path)
    assert found.tuned["transformer"].cells[0].diverged == 1


def at_one_rate(tmp_path: Path, best: dict[str, float] = BEST, salt: str = "") -> SweepWriter:
    """A ladder with every mix at the ladder's rate, in runs/one."""
    ladder = SweepWriter(tmp_path / "runs" / f"one{salt}", run_sd=0.002)
    for mix in best:
        for size in ("50k", "100k", "200k"):
            for seed in (0, 1, 2):
                ladder.run(mix, size, seed, lr=peak_lr(SIZES[size]), factor=factor(mix, 1.0, best))
    return ladder


def test_a_report_has_both_savings(tmp_path: Path) -> None:
    tune = SweepWriter(tmp_path / "runs" / "tuning", run_sd=0.002)
    write_tuning(tune)
    ladder = at_one_rate(tmp_path)
    found = find(load_sweep(ladder.path), "transformer", 200, 0, "report")
    both = at.at_optimum(found.sweep, tune.path, "transformer", resamples=200)
    assert not both.retrained
    # The hybrid lay an octave off, the transformer not at all.
    assert both.excess["gdn3_attn1", "100k"].best == pytest.approx(CURVATURE, rel=0.35)
    assert both.excess["transformer", "100k"].best < 0.2 * CURVATURE
    before = found.study.free.set_index(["mix", "size", "seed"])["value"]
    after = both.free.set_index(["mix", "size", "seed"])["value"]
    key = ("gdn3_attn1", "100k", "mean")
    assert after[key] > before[key] * 1.05
    shown = replace(found, tuned=both)
    text = markdown(list(sections.report(shown, Gallery())))
    assert "Each mix at its own optimum" in text
    row = checklist(shown).set_index("question").loc["Was every mix tuned as well?"]
    assert row["answer"] == "yes"
    assert "transformer 30 runs" in row["evidence"]


def test_a_ladder_trained_at_its_optima_is_read_itself(tmp_path: Path) -> None:
    ladder = at_one_rate(tmp_path)
    own = SweepWriter(tmp_path / "runs" / "own", run_sd=0.002)
    for mix, best in BEST.items():
        for size in ("50k", "100k", "200k"):
            for seed in (0, 1, 2):
                rate = best * peak_lr(SIZES[size])
                taken = {"setting": "lr", "sweep": "tuning", "by": "size", "value": rate,
                         "low": rate / 1.3, "high": rate * 1.3, "curvature": 0.05, "dof": 20,
                         "runs": 30}  # fmt: skip
                protocol = {"tuned": [taken], "tuning": ["tuning"], "lr_multiplier": best}
                own.run(mix, size, seed, lr=rate, protocol=protocol)
    both = at.at_optimum(load_sweep(ladder.path), own.path, "transformer", resamples=200)
    assert both.retrained
    one = both.excess["gdn3_attn1", "50k"]
    assert one.best == 0
    assert one.optimum == pytest.approx(0.5)
    # a · E[off²] with off of Student's t, whose reach is log2 1.3.
    expected = 0.05 * (math.log2(1.3) / 2.086) ** 2 * 20 / 18
    assert one.draws.mean() == pytest.approx(expected, rel=0.3)
    values = both.free.set_index(["mix", "size"])
    assert (values["low"] < values["value"]).all()


def test_what_else_was_varied_makes_surfaces_of_their_own(sweep: SweepWriter) -> None:
    for rate in RATES:
        for seed in (0, 1):
            for decay in (0.1, 0.2):
                sweep.run(
                    "gdn", "50k", seed, (1.0,), lr=rate * peak_lr(SIZES["50k"]),
                    protocol={"lr_multiplier": rate, "decay_fraction": decay},
                    factor=factor("gdn", rate, {"gdn": 4 * decay}) / rate**0.1,
                )  # fmt: skip
    # A setting that only one mix has makes no arms of the other.
    for rate in RATES:
        sweep.run("transformer", "50k", 0, (1.0,), lr=rate * peak_lr(SIZES["50k"]),
                  protocol={"lr_multiplier": rate}, factor=factor("transformer", rate))  # fmt: skip
    found = {row["mix"]: row for row in tuning.of_sweep(sweep.path).optima}
    assert "transformer" in found
    assert found["gdn@decay_fraction=0.1"]["multiplier"] == pytest.approx(0.4, rel=0.15)
    assert found["gdn@decay_fraction=0.2"]["multiplier"] == pytest.approx(0.8, rel=0.15)


def test_mixes_that_were_not_tuned_are_left_out_and_named(tmp_path: Path) -> None:
    tune = SweepWriter(tmp_path / "runs" / "tuning", run_sd=0.002)
    write_tuning(tune)
    ladder = at_one_rate(tmp_path)
    for size in ("50k", "100k", "200k"):
        for seed in (0, 1):
            ladder.run("gdn", size, seed, lr=peak_lr(SIZES[size]))
    both = at.at_optimum(load_sweep(ladder.path), tune.path, "transformer", resamples=100)
    assert both.left_out == ("gdn",)
    assert set(both.free["mix"]) == {"gdn3_attn1"}
    assert {one.mix for one in both.savings} == {"gdn3_attn1"}


def test_a_report_takes_no_excess_from_an_edge_or_where_nothing_was_fitted(tmp_path: Path) -> None:
    tune = SweepWriter(tmp_path / "runs" / "tuning", run_sd=0.002)
    write_tuning(tune, rates=(0.25, 0.3, 0.35))
    ladder = load_sweep(at_one_rate(tmp_path).path)
    with pytest.raises(SettingError, match="no minimum of mix="):
        at.at_optimum(ladder, tune.path, "transformer")
    # The ladder's rate lies beyond the curve: what was measured there stands, else it is refused.
    far = SweepWriter(tmp_path / "runs" / "far", run_sd=0.002)
    low = {"transformer": 0.2, "gdn3_attn1": 0.2}
    write_tuning(far, low, rates=(0.1, 0.15, 0.2, 0.3, 0.4))
    with pytest.raises(SettingError, match="tune there too"):
        at.at_optimum(ladder, far.path, "transformer")
    for mix in low:
        for size in ("50k", "100k", "200k"):
            far.run(mix, size, 10, (1.0,), lr=peak_lr(SIZES[size]),
                    protocol={"lr_multiplier": 1.0}, factor=2.0)  # fmt: skip
    both = at.at_optimum(ladder, far.path, "transformer", resamples=100)
    for one in both.excess.values():
        assert one.best == pytest.approx(0.5, abs=0.02)
        assert one.draws.mean() == pytest.approx(0.5, abs=0.03)


def test_a_ladder_trained_otherwise_than_the_tuning_is_refused(tmp_path: Path) -> None:
    tune = SweepWriter(tmp_path / "runs" / "tuning")
    write_tuning(tune)
    ladder = SweepWriter(tmp_path / "runs" / "other")
    for mix in BEST:
        ladder.run(mix, "50k", 0, lr=peak_lr(SIZES["50k"]), protocol={"schedule": "cosine"})
    for run in tune.path.iterdir():
        assert run.is_dir()
    with pytest.raises(SettingError, match=r"protocol\.schedule=cosine"):
        at.at_optimum(load_sweep(ladder.path), tune.path, "transformer")


def test_tuned_of_another_corpus_or_mix_is_refused(tmp_path: Path) -> None:
    tune = SweepWriter(tmp_path / "runs" / "tuning")
    write_tuning(tune, {"gdn": 1.0})
    ladder = SweepWriter(tmp_path / "runs" / "ladder")
    write_ladder(ladder)
    with pytest.raises(SettingError, match="shows no optimum of mix="):
        at.at_optimum(load_sweep(ladder.path), tune.path, "transformer")


def test_the_law_of_a_published_grid_comes_out() -> None:
    """Li et al. 2025 (arXiv 2503.04715): lr = 1.79 N^-0.713 D^0.307, batch = 0.58 D^0.571, within
    0.09 % of the lowest loss."""
    found = tuning.of_csv(DATA / "steplaw.csv", ("lr", "bs"), within=0.02)
    exponents = {(row["setting"], row["quantity"]): row for row in found.laws}
    for quantity, published in (("N", -0.713), ("D", 0.307)):
        row = exponents["lr", quantity]
        assert row["low"] <= published <= row["high"]
    assert exponents["bs", "D"]["exponent"] == pytest.approx(0.571, abs=0.05)
    own = found.tuned["dense"]
    assert own.response is not None
    excess = []
    for k, cell in enumerate(own.cells):
        rate, batch = 1.79 * cell.N**-0.713 * cell.D**0.307, 0.58 * cell.D**0.571 / 2048
        excess.append(own.response.excess(k, np.log2([rate, batch])))
    assert np.mean(excess) < 0.0009


@pytest.mark.slow
def test_savings_at_each_mixs_own_optimum_cover_the_truth() -> None:
    """Simulated campaigns: tuning runs, then a ladder at the rates that they say; intervals that
    leave the doubt about the optimum out hold the truth less often."""
    held = simulate_savings(campaigns=200, draws=300)
    assert 0.92 <= held["with"] <= 0.98
    assert held["without"] < 0.85


def simulate_savings(campaigns: int, draws: int) -> dict[str, float]:
    """Share of campaigns whose 95 % interval of the saving at 200k holds the truth, 1.3.

    Rates are few and noisy, so that the doubt about the optimum is a large part of it.
    """
    from synthetic_sweeps import TRUTH

    from ablations.optima import Trial, tuned_of
    from analysis.stats.savings import fit_free

    count = {"with": 0, "without": 0}
    for campaign in range(campaigns):
        rng = np.random.default_rng([campaign, 5])
        trials, rows = [], []
        for mix in BEST:
            for size, N in list(SIZES.items())[:3]:
                loss = float(TRUTH[mix].loss(N, 20 * N))
                for rate in (0.25, 0.5, 1.0, 2.0):
                    noisy = loss * factor(mix, rate) * math.exp(0.012 * rng.normal())
                    trials.append(Trial(mix, size, N, 20 * N, 0, (rate,), noisy, (1.0,), N))
        tuned = tuned_of(trials, ("lr",))
        excess = {}
        for mix, own in tuned.items():
            assert own.response is not None
            drawn = own.response.drawn(rng, draws)
            for k, cell in enumerate(own.cells):
                x = own.optima[k].x
                off = 2.0 ** float(x[0])
                share = np.minimum(own.response.excess_draws(k, x, drawn), 0.5)
                excess[mix, cell.size] = at.Excess(0.0, share, off, off, off, off, "", 12)
                for seed, multiple in product(range(8), (1, 2, 4)):
                    if cell.size == "200k":
                        D = 20 * multiple * cell.N
                        loss = float(TRUTH[mix].loss(cell.N, D)) * factor(mix, off)
                        loss *= math.exp(0.002 * rng.normal())
                        rows.append((mix, cell.size, seed, cell.N, D, loss))
        points = pd.DataFrame(rows, columns=["mix", "size", "seed", "N", "D", "loss"])
        free = fit_free(points, "transformer")
        versus = {"gdn3_attn1": "transformer"}
        both = {
            "without": free[free["seed"] == "mean"],
            "with": at.widened(points, free, versus, excess),
        }
        for name, table in both.items():
            row = table.iloc[0]
            count[name] += bool(row["low"] <= 1.3 <= row["high"])
    return {name: n / campaigns for name, n in count.items()}
