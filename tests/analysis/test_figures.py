"""Figures against definitions: what a curve shows is recomputed from the law by another way."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.markers import CARETLEFTBASE, CARETRIGHTBASE
from scipy.optimize import brentq, minimize_scalar
from synthetic_sweeps import TRUTH, SweepWriter, grid_points, write_ladder

import analysis
from ablations.records import project_root
from analysis.report import figures, results
from analysis.report.figures.axes import by_size, hollow, power_of_ten, size_words
from analysis.report.figures.drawing import PICTURES, draw
from analysis.report.figures.rates import best_rate
from analysis.report.figures.savings import _budgets
from analysis.report.figures.style import (
    DOUBLE_COLUMN_INCHES,
    LOOKS,
    RC,
    SINGLE_COLUMN_INCHES,
    SPARE,
    caption,
    drawing,
    looks,
    save,
)
from analysis.stats.fit import fit
from analysis.stats.savings import places, token_range
from analysis.stats.uncertainty import bootstrap
from analysis.study import published
from analysis.study.findings import Findings, find
from analysis.study.load import load_sweep
from analysis.study.source import from_csv
from analysis.study.training import speed_by_context, spikes, stability
from models.format import scientific


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Findings:
    """A ladder of three mixes with little noise, one run of it still going."""
    writer = SweepWriter(tmp_path_factory.mktemp("runs") / "trial", run_sd=3e-4, point_sd=1e-4)
    write_ladder(writer, ("transformer", "gdn3_attn1", "gdn"), ("50k", "100k", "200k", "400k"))
    writer.run("transformer", "400k", 2, finished=2)
    return find(load_sweep(writer.path), "transformer", 40, 0, "python -m analysis figures")


def by_rows(figure: Figure) -> list[str]:
    """What a figure's legend says, as it is read: row by row."""
    figure.draw_without_rendering()
    entries = []
    for text in figure.legends[0].get_texts():
        box = text.get_window_extent()
        entries.append((-round((box.y0 + box.y1) / 20), box.x0, text.get_text()))
    return [words for *_, words in sorted(entries) if words]


def test_every_mix_has_a_look_of_its_own_also_in_grey() -> None:
    mixes = {path.stem for path in (project_root() / "conf" / "mix").glob("*.yaml")}
    assert LOOKS.keys() <= mixes
    assert len(mixes - LOOKS.keys()) <= len(SPARE)
    every = [*LOOKS.values(), *SPARE]
    assert len({look.marker for look in every}) == len(every)
    assert len({look.dashes for look in every}) == len(every)
    assert len({look.colour for look in LOOKS.values()}) == len(LOOKS)


def test_a_mix_looks_the_same_in_every_figure() -> None:
    assert looks(["gdn", "mine"])["gdn"] == looks(["transformer", "gdn"])["gdn"]
    assert looks(["mine", "other"])["mine"] == looks(["gdn", "other", "mine"])["mine"]


# Machado, Oliveira & Fernandes 2009: full protanopia, deuteranopia and tritanopia, linear RGB.
BLIND = {
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
               [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
               [-0.011820, 0.042940, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602],
               [0.004733, 0.691367, 0.303900]],
}  # fmt: skip
PRINCIPAL = ("transformer", "gdn3_attn1", "gdn", "mamba2", "gdn1_attn1", "gdn7_attn1")


@pytest.mark.parametrize("kind", BLIND)
def test_colours_of_the_principal_mixes_differ_to_colour_blind_readers(kind: str) -> None:
    def lab(colour: str) -> np.ndarray:
        rgb = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
        linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
        seen = np.clip(np.array(BLIND[kind]) @ linear, 0, 1)
        xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722],
                        [0.0193, 0.1192, 0.9505]]) @ seen / [0.9505, 1, 1.089]  # fmt: skip
        f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
        return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])

    seen = [lab(LOOKS[mix].colour) for mix in PRINCIPAL]
    distances = [np.linalg.norm(a - b) for i, a in enumerate(seen) for b in seen[:i]]
    # A difference of 10 (CIE 1976) is plain at a glance.
    assert min(distances) > 10


def test_curves_of_loss_join_means_and_points_of_open_runs_are_crossed(found: Findings) -> None:
    figure, table = figures.loss_against_flops(found.points)
    assert len(table) == len(found.points)
    size = found.points["size"].iloc[0]
    own = found.points[(found.points["mix"] == "gdn") & (found.points["size"] == size)]
    means = [own.loc[own["D"] == D, "loss"].mean() for D in sorted(set(own["D"]))]
    lines = [line for line in figure.axes[0].lines if line.get_linestyle() != "None"]
    assert any(
        np.size(line.get_ydata()) == len(means) and np.allclose(line.get_ydata(), means)
        for line in lines
    )
    crossed = [line for line in figure.axes[0].lines if line.get_marker() == "x"]
    assert sum(len(line.get_xdata()) for line in crossed) == 2
    told = by_rows(figure)
    assert told[-1] == "run not finished"


def test_savings_against_loss_are_ratios_of_two_inversions(found: Findings) -> None:
    fit, draws = found.study.fit, found.study.draws
    assert fit is not None
    assert draws is not None
    _, table = figures.savings_against_loss(fit, draws, "transformer", 200_000)
    for row in table.iloc[::17].itertuples():
        tokens = [
            brentq(lambda D, law=fit.mixes[m].law, row=row: law.loss(row.N, D) - row.target_loss,
                   1e4, 1e12)
            for m in ("transformer", row.mix)
        ]  # fmt: skip
        assert row.value == pytest.approx(tokens[0] / tokens[1], rel=1e-6)
        assert row.low <= row.value <= row.high
    inside = table[table["in_range"]]
    assert inside["D_baseline"].between(3e6, 2e7).all()
    assert set(inside["mix"]) == {"gdn3_attn1", "gdn"}


def test_the_frontier_is_the_least_loss_at_each_budget_of_flops(found: Findings) -> None:
    fit, draws = found.study.fit, found.study.draws
    assert fit is not None
    assert draws is not None
    _, table = figures.frontier(fit, draws)
    for row in table.iloc[::29].itertuples():
        law, per = fit.mixes[row.mix].law, row.flops_per_N_D
        assert per == pytest.approx(6, rel=1e-9)
        best = minimize_scalar(
            lambda log_n, law=law, row=row, per=per: float(
                law.loss(np.exp(log_n), row.C / per / np.exp(log_n))
            ),
            bracket=(np.log(row.N) - 1, np.log(row.N) + 1),
        )
        assert row.loss == pytest.approx(best.fun, rel=1e-10)
        assert pytest.approx(row.C) == per * row.N * row.D
    points, inside = fit.points, table[table["in_range"]]
    assert 0 < len(inside) < len(table)
    for name in ("N", "D"):
        assert inside[name].between(points[name].min(), points[name].max()).all()
    assert inside["C"].max() <= points["C"].max()


def test_contours_are_places_of_equal_loss(found: Findings) -> None:
    fit = found.study.fit
    assert fit is not None
    figure, table = figures.iso_loss(fit, "transformer")
    assert {axes.get_title(loc="left") for axes in figure.axes} == {"gdn3_attn1", "gdn"}
    for row in table.dropna().iloc[::97].itertuples():
        assert float(fit.mixes[row.mix].law.loss(row.N, row.D)) == pytest.approx(row.loss)
    shared = table.groupby(["against", "mix"])["loss"].unique().map(tuple)
    assert shared.nunique() == 1
    low, high = (found.points["D"].min(), found.points["D"].max())
    strong = [line for axes in figure.axes for line in axes.lines if line.get_linewidth() == 1.6]
    drawn = np.concatenate([line.get_ydata() for line in strong])
    assert low <= np.nanmin(drawn) < np.nanmax(drawn) <= high
    assert table["in_range"].sum() == np.isfinite(drawn).sum()


def test_coefficients_stand_inside_their_intervals_beside_published_ones(found: Findings) -> None:
    fit, draws = found.study.fit, found.study.draws
    assert fit is not None
    assert draws is not None
    theirs = published.table("table18_fits").query("model == 'free'").drop(columns="model")
    figure, table = figures.coefficients(fit, draws, published=theirs)
    ours = table[table["kind"] == "fitted"]
    assert len(ours) == 15
    assert set(table[table["kind"] == "published"]["mix"]) == {"transformer", "gdn3_attn1", "gdn"}
    white = [line for line in figure.axes[0].lines if line.get_markerfacecolor() == "white"]
    assert len(white) == 3


def test_an_end_that_the_search_has_set_is_marked(found: Findings) -> None:
    fit, draws = found.study.fit, found.study.draws
    assert fit is not None
    assert draws is not None
    wide = np.linspace(0.3, 2.6, draws.resamples).clip(0, 2.0)
    laws = draws.laws | {"gdn": replace(draws.laws["gdn"], alpha=wide)}
    figure, _ = figures.coefficients(fit, replace(draws, laws=laws))
    left, right = (
        [sum(line.get_marker() == arrow for line in axes.lines) for axes in figure.axes]
        for arrow in (CARETLEFTBASE, CARETRIGHTBASE)
    )
    assert (left, right) == ([0] * 5, [0, 0, 1, 0, 0])


def test_bits_per_byte_are_compared_at_the_budget_that_all_mixes_reached(found: Findings) -> None:
    _, table = figures.bpb_by_domain(found.points)
    assert set(table["domain"]) == {"mean", "prose"}
    last = found.points[(found.points["chinchilla"] == 4) & (found.points["state"] == "done")]
    assert len(table) == 2 * len(last)
    own = table[(table["domain"] == "mean") & (table["mix"] == "gdn") & (table["size"] == "50k")]
    expected = last[(last["mix"] == "gdn") & (last["size"] == "50k")]["bpb"]
    assert sorted(own["bpb"]) == pytest.approx(sorted(expected))


def test_spikes_are_six_standard_deviations_from_the_128_before() -> None:
    rng = np.random.default_rng(0)
    norms = pd.Series(1 + 0.1 * rng.normal(size=400))
    norms[300], norms[350] = 2.5, 1.45
    expected = [
        i >= 16
        and abs(norms[i] - norms[max(0, i - 128) : i - 1].mean())
        >= 6 * norms[max(0, i - 128) : i - 1].std(ddof=1)
        for i in range(400)
    ]
    assert list(spikes(norms)) == expected
    assert list(np.flatnonzero(spikes(norms))) == [300]
    rows = {"step": range(1, 401), "tokens": range(400), "loss": 1.0, "tokens_per_second": 1.0}
    table = pd.DataFrame(rows | {"grad_norm": norms, "skipped_steps": 4}).assign(
        run="r", mix="gdn", size="50k", seed=0
    )
    (one,) = stability(table).itertuples()
    assert (one.spike_percent, one.skipped_percent) == (pytest.approx(100 / 384), 1.0)


def test_speed_is_drawn_where_contexts_differ(found: Findings) -> None:
    (picture,) = (one for one in PICTURES if one.name == "throughput")
    assert "one context length only (256)" in picture.lacks(found)
    runs = tuple(
        replace(run, spec=run.spec | {"recipe": {"context": 256 * 2**run.seed}})
        for run in found.sweep.runs
    )
    speeds = speed_by_context(replace(found.sweep, runs=runs))
    assert sorted(set(speeds["context"])) == [256, 512, 1024]
    assert speeds["tokens_per_second"].to_numpy() == pytest.approx(5e4)
    _, table = figures.throughput_against_context(speeds, found.sizes, "here")
    assert len(table) == len(found.sweep.runs)


def test_a_frontier_of_designs_joins_the_efficient_ones() -> None:
    ladders = pd.DataFrame(
        {"sizes": "a", "chinchilla": "1", "seeds": [1, 1, 3, 3], "gpu_hours": [1.0, 2.0, 3.0, 0.5],
         "width": [1.5, 1.6, 1.1, 1.2], "efficient": [True, False, True, True],
         "in_range": [True, True, True, False]}
    )  # fmt: skip
    figure, _ = figures.design_frontier(ladders, target_width=1.2)
    assert list(figure.axes[0].lines[0].get_xdata()) == [1.0, 3.0]


def test_a_paper_s_column_is_as_wide_as_it_says_and_a_note_adds_height_only(
    found: Findings, tmp_path: Path
) -> None:
    draw(found, tmp_path, ("loss",), SINGLE_COLUMN_INCHES, with_note=False)
    width = re.search(r'<svg [^>]*width="([\d.]+)pt"', (tmp_path / "loss.svg").read_text())
    assert width is not None
    assert float(width[1]) == pytest.approx(72 * 3.3, abs=0.1)
    panels = []
    for note in ("", "a word of what was done, " * 30):
        with drawing(4.0, 2.0) as figure:
            figure.subplots().plot([1, 2])
            caption(figure, note)
        save(figure, tmp_path / "one", pd.DataFrame(), {})
        box = figure.axes[0].get_window_extent()
        panels.append((box.width, box.height))
    assert panels[0] == pytest.approx(panels[1], rel=1e-3)


def test_a_ladder_of_the_paper_s_sizes_is_set_beside_it(tmp_path: Path) -> None:
    writer = SweepWriter(tmp_path / "trial")
    write_ladder(writer, sizes=("50k", "100k", "200k"))
    sweep = load_sweep(writer.path)
    assert published.savings(sweep) is None
    names = {"50k": "60m", "100k": "100m", "200k": "190m"}
    points = sweep.points.assign(size=sweep.points["size"].map(names))
    sweep = replace(sweep, points=points)
    found = find(sweep, "transformer", 30, 0, "c")
    theirs = published.savings(sweep)
    assert theirs is not None
    assert set(theirs["mix"]) == {"gdn3_attn1"}
    (picture,) = (one for one in PICTURES if one.name == "savings")
    figure, table = picture.draw(found, "", 6.75)
    shown = table[table["kind"] == "published"]
    assert list(shown["value"]) == [1.32, 1.57, 1.68, 1.75, 1.82, 1.89]
    assert "published" in [text.get_text() for text in figure.legends[0].get_texts()]
    beside = results.published_table(found)
    assert beside is not None
    row = beside[(beside["mix"] == "gdn3_attn1") & (beside["size"] == "190m")].iloc[0]
    assert (row["N, paper"], row["BPB, paper's suites"]) == ("254M", "0.891")


def test_a_figure_that_cannot_be_drawn_says_what_is_missing(tmp_path: Path) -> None:
    writer = SweepWriter(tmp_path / "trial")
    write_ladder(writer, sizes=("50k",))
    found = find(load_sweep(writer.path), "transformer", 30, 0, "c")
    gallery = draw(found, tmp_path / "out", ("fits", "frontier"))
    assert gallery.shown == {}
    assert "1 size(s), and E, A and alpha cannot be told apart" in gallery.lacking["frontier"]


PORIAN = Path(__file__).parents[1] / "data" / "scaling" / "porian_refinedweb.csv"


@pytest.fixture(scope="module")
def porian() -> analysis.Ladder:
    mixes = ["base_longwarm_kaplandecay", "tuned_shortwarm_constLR"]
    return analysis.load(PORIAN, where={"mix": mixes})


def test_isoflop_curves_are_marked_at_their_least_loss(porian: analysis.Ladder) -> None:
    laws = porian.fit("isoflop", loss="squares", resamples=49)
    answer = laws._answer
    assert answer.parabolas is not None
    assert answer.points is not None
    figure, table = figures.isoflop(
        answer.points, answer.parabolas, answer.draws, 0.95, "squares", width=SINGLE_COLUMN_INCHES
    )
    minima = table[table["kind"] == "minimum"]
    for row in minima.itertuples():
        own = table[(table["mix"] == row.mix) & (table["C"] == row.C)]
        curve = own[own["kind"] == "fitted"]
        assert row.loss <= curve["loss"].min() <= row.loss * 1.001
        powers = np.polyfit(
            np.log((points := own[own["kind"] == "measured"])["N"]), points["loss"], 2,
            w=1 / points["loss"],
        )  # fmt: skip
        assert np.log(row.N) == pytest.approx(-powers[1] / (2 * powers[0]), rel=1e-4)
        assert row.low <= row.high
    for mix, one in laws.document["mixes"].items():
        inside = [budget["C"] for budget in one["budgets"] if budget["inside"]]
        assert list(minima[minima["mix"] == mix]["C"]) == pytest.approx(inside)
        law = table[(table["kind"] == "power law") & (table["mix"] == mix)]
        assert law["N"].to_numpy() == pytest.approx(one["G_N"] * law["C"] ** one["a"])
        assert (law["low"] < law["high"]).all()
    assert by_rows(figure)[:4] == [
        "1.25×$10^{16}$", "2.5×$10^{16}$", "5×$10^{16}$", "$10^{17}$",
    ]  # fmt: skip
    exponents = [text.get_text() for text in figure.axes[-1].get_legend().get_texts()]
    assert re.search(r"tuned_shortwarm_constLR, a = 0\.\d+ \[0\.\d+, 0\.\d+\]", exponents[1])


def test_every_law_has_a_figure(porian: analysis.Ladder, tmp_path: Path) -> None:
    for law, panels in (("isoflop", 3), ("envelope", 3), ("chinchilla", 4)):
        assert len(porian.fit(law, resamples=29).plot().axes) == panels
    N = np.geomspace(1e8, 1e10, 7)
    for axis, held in (("N", {"N": N, "D": 2e10}), ("D", {"N": 1e9, "D": 20 * N})):
        points = pd.DataFrame({"mix": "m", "loss": 2 + 1e2 / N**0.3} | held)
        (axes,) = analysis.load(points).fit(axis).plot().axes
        assert axes.get_xlabel().startswith(f"{axis}, ")


def test_errors_on_what_was_left_out_are_drawn_on_one_scale(found: Findings) -> None:
    figure, table = figures.heldout(found.holdout)
    for axes, name in zip(figure.axes, ("predicted", "line"), strict=True):
        drawn = np.concatenate([
            line.get_xydata() for line in axes.lines if line.get_marker() not in ("None", "")
        ])  # fmt: skip
        expected = np.column_stack(
            [found.holdout["loss"], 100 * (found.holdout[name] / found.holdout["loss"] - 1)]
        )
        known = expected[np.isfinite(expected).all(axis=1)]
        drawn = drawn[np.isfinite(drawn).all(axis=1)]
        assert sorted(map(tuple, drawn)) == pytest.approx(np.array(sorted(map(tuple, known))))
        assert axes.get_ylim() == figure.axes[0].get_ylim()
        assert np.abs(drawn[:, 1]).max() < axes.get_ylim()[1]
    assert len(table) == len(found.holdout) > 0


def test_a_ladder_without_equal_budgets_has_no_isoflop_figure(
    found: Findings, tmp_path: Path
) -> None:
    gallery = draw(found, tmp_path, ("isoflop", "heldout"))
    assert list(gallery.shown) == ["heldout"]
    assert re.search(
        r"no sizes at equal C .* transformer: it has \d+ budgets C", gallery.lacking["isoflop"]
    )


@pytest.mark.parametrize(
    ("flops", "digits", "words"),
    [(1e18, 1, "10¹⁸"), (2e18, 1, "2×10¹⁸"), (9.99e18, 2, "10¹⁹"), (1.25e-3, 3, "1.25×10⁻³")],
)
def test_flops_are_powers_of_ten(flops: float, digits: int, words: str) -> None:
    assert scientific(flops, digits) == words


def test_a_power_of_ten_is_set_as_mathematics_where_it_is_a_label(found: Findings) -> None:
    assert power_of_ten(1e20) == "$10^{20}$"
    assert power_of_ten(1.25e-3, 3) == "1.25×$10^{−3}$"
    figure, _ = figures.loss_against_flops(found.points)
    figure.draw_without_rendering()
    labels = [one for one in figure.axes[0].get_xticklabels() if one.get_text()]
    assert labels
    assert all("$10^{" in one.get_text() and one.get_parse_math() for one in labels)


def grey(colour: str) -> float:
    return float(np.dot(to_rgb(colour), (0.299, 0.587, 0.114)))


@pytest.mark.parametrize("mixes", [("gdn",), ("transformer", "gdn3_attn1", "gdn")])
def test_sizes_darken_in_order_and_the_legend_names_them_so(
    found: Findings, mixes: tuple[str, ...]
) -> None:
    points = found.points[found.points["mix"].isin(mixes)]
    shuffled = points.sample(frac=1, random_state=1)
    colours, _ = by_size(shuffled, looks(mixes))
    for mix in mixes:
        shown = [grey(colours[mix, size]) for size in ("50k", "100k", "200k", "400k")]
        # A step of 0.05 is seen between neighbours on paper.
        assert (np.diff(shown) < -0.05).all()
        assert shown[0] < 0.8
    for width in (SINGLE_COLUMN_INCHES, DOUBLE_COLUMN_INCHES):
        figure, _ = figures.loss_against_tokens(shuffled, width=width)
        told = [words for words in by_rows(figure) if words.startswith("size ")]
        assert told == ["size 50k", "size 100k", "size 200k", "size 400k"]
        drawn = {line.get_color() for line in figure.axes[0].lines if line.get_linewidth() == 1.2}
        assert drawn == set(colours.values())


@pytest.mark.parametrize("width", [SINGLE_COLUMN_INCHES, DOUBLE_COLUMN_INCHES])
@pytest.mark.parametrize(
    "name", ["savings", "savings_loss", "loss", "bpb", "fits", "heldout", "iso_loss", "frontier"]
)
def test_a_legend_covers_no_axes_and_stays_on_the_paper(
    found: Findings, name: str, width: float
) -> None:
    (picture,) = (one for one in PICTURES if one.name == name)
    figure, _ = picture.draw(found, "", width)
    check_legend(figure)


def check_legend(figure: Figure) -> None:
    figure.draw_without_rendering()
    (legend,) = figure.legends
    box, paper = legend.get_window_extent(), figure.bbox
    assert paper.x0 <= box.x0 < box.x1 <= paper.x1 + 1
    assert paper.y0 <= box.y0 < box.y1 <= paper.y1 + 1
    for axes in figure.axes:
        assert axes.get_legend() is None
        assert not box.overlaps(axes.get_window_extent())
        assert not axes.get_tightbbox().y1 > box.y0 or not box.overlaps(axes.get_tightbbox())


def test_five_arms_with_long_names_fit_a_column_and_leave_the_panel_its_height(
    found: Findings,
) -> None:
    own = found.points[found.points["mix"] == "gdn"]
    heights = []
    for names in (["gdn"], [f"gdn3_attn1_poseig_nogate@lr_multiplier={2**i}" for i in range(5)]):
        points = pd.concat([own.assign(mix=name) for name in names])
        figure, _ = figures.loss_against_tokens(points, width=SINGLE_COLUMN_INCHES)
        check_legend(figure)
        heights.append(figure.axes[0].get_window_extent().height)
        assert set(names) <= set(by_rows(figure)) or names == ["gdn"]
    assert heights[1] > 0.85 * heights[0]


def test_marks_shrink_and_fade_as_their_number_grows() -> None:
    look = LOOKS["gdn"]
    few, many, most = (hollow(look, of=count) for count in (10, 600, 6000))
    assert few == hollow(look)
    for name in ("ms", "mew", "alpha"):
        assert few[name] > many[name] > most[name] > 0
    # Ten times the marks cover less than five times the paper.
    assert 6000 * most["ms"] ** 2 < 5 * 600 * many["ms"] ** 2


def test_savings_are_drawn_at_the_measured_budgets_and_smoothly_between_them() -> None:
    sizes, ratios = np.array([1e8, 2e8, 4e8, 8e8]), np.array([20.0, 60.0, 50.0, 50.0])
    points = pd.DataFrame(
        {"mix": "transformer", "size": ["a", "b", "c", "d"], "N": sizes, "D": ratios * sizes}
    )
    measured = [D for _, _, D in places(points, "transformer")]
    assert _budgets(points, "transformer", sizes) == pytest.approx(measured, rel=1e-12)
    assert _budgets(points, "transformer", sizes) == pytest.approx(
        token_range(points, "transformer", sizes)[1], rel=1e-12
    )
    N = np.geomspace(5e7, 2e9, 5001)
    per = _budgets(points, "transformer", N) / N
    assert 20 * (1 - 1e-9) <= per.min() <= per.max() <= 60 * (1 + 1e-9)
    assert per[N > 8e8] == pytest.approx(50)

    def slopes(at: float, budget: Callable[[np.ndarray], np.ndarray]) -> tuple[float, float]:
        x = np.log(at) + np.array([-1e-5, 0, 1e-5])
        left, right = np.diff(np.log(budget(np.exp(x)))) / 1e-5
        return float(left), float(right)

    for at in sizes:
        left, right = slopes(at, lambda n: _budgets(points, "transformer", n))
        assert left == pytest.approx(right, abs=1e-3)
    left, right = slopes(2e8, lambda n: token_range(points, "transformer", n)[1])
    assert abs(left - right) > 1


def test_the_best_rate_is_that_of_the_parabola_through_the_lowest_three() -> None:
    rates = np.array([2, 0.25, 1, 0.5, 8])
    losses = 3 + 0.2 * np.log(rates / 0.7) ** 2
    losses[-1] = 50
    assert best_rate(rates, losses) == pytest.approx((0.7, 3.0))
    assert best_rate(rates[:3], np.array([1.0, 2.0, 3.0])) is None
    assert best_rate(np.array([1.0, 2.0]), np.array([1.0, 2.0])) is None


def test_loss_against_the_rate_is_at_the_last_common_budget(
    found: Findings, tmp_path: Path
) -> None:
    (picture,) = (one for one in PICTURES if one.name == "rate")
    assert picture.lacks(found).startswith("no learning rate is varied")
    rows = [
        {"mix": mix, "lr": lr, "N": N, "D": D, "run": f"{mix}{lr}{N}{seed}", "seed": seed,
         "loss": 2 + best + (np.log(lr / best)) ** 2 + 1e9 / D + 0.01 * seed}
        for mix, best in (("a", 0.02), ("b", 0.022))
        for lr in (0.01, 0.02, 0.04)
        for N in (1e8, 2e8)
        for D in (1e9, 2e9, 4e9)
        for seed in (0, 1)
        if D < 4e9 or lr > 0.01
    ]  # fmt: skip
    path = tmp_path / "rates.csv"
    pd.DataFrame(rows).to_csv(path, index=False)
    own = find(from_csv(path, treatments=("lr",)), "a", 30, 0, "c")
    assert picture.lacks(own) == ""
    figure, table = picture.draw(own, "", SINGLE_COLUMN_INCHES)
    measured = table[table["kind"] == "measured"]
    assert set(measured["D"]) == {2e9}
    assert set(measured["seeds"]) == {2}
    assert measured["sd"].to_numpy() == pytest.approx(0.01 / np.sqrt(2))
    least = table[table["kind"] == "parabola"]
    assert len(least) == 4
    for row in least.itertuples():
        best = {"a": 0.02, "b": 0.022}[row.mix]
        assert row.rate == pytest.approx(best)
        assert row.loss == pytest.approx(2 + best + 0.5 + 0.005)
    assert by_rows(figure)[-2:] == ["± sd of seeds", "least of a parabola"]
    check_legend(figure)


def test_no_two_sizes_are_shown_alike() -> None:
    assert size_words(["60000000", "1.2e9"]) == {"60000000": "60M", "1.2e9": "1.2B"}
    assert size_words(["100000", "100100"]) == {"100000": "100k", "100100": "100.1k"}
    assert size_words(["1e8", "100000000", "tiny"]) == {
        "1e8": "1e8", "100000000": "100000000", "tiny": "tiny",
    }  # fmt: skip
    assert size_words(["nan", "inf", "7"]) == {"nan": "nan", "inf": "inf", "7": "7"}


def test_one_column_cuts_no_name_and_covers_no_panel() -> None:
    base, *others = (f"{mix}@lr_multiplier=0.5,optimizer=muon" for mix in TRUTH)
    laws = dict(zip((base, *others), TRUTH.values(), strict=True))
    one = fit(grid_points(laws, 2e-3), "free", "squares")
    draws = bootstrap(one, "wild", resamples=20)
    for figure, _ in (
        figures.iso_loss(one, base, width=SINGLE_COLUMN_INCHES),
        figures.frontier(one, draws, width=SINGLE_COLUMN_INCHES),
        figures.coefficients(one, draws, width=SINGLE_COLUMN_INCHES),
    ):
        with matplotlib.rc_context(RC):
            figure.draw_without_rendering()
        (legend,) = figure.legends
        whole, box = figure.bbox, legend.get_window_extent()
        assert whole.x0 <= box.x0 and box.x1 <= whole.x1 and box.y1 <= whole.y1 + 1  # noqa: PT018
        for axes in figure.axes:
            assert axes.get_tightbbox().y1 <= box.y0 + 1
            assert axes.get_window_extent().width > 0.3 * whole.width
            inside = axes.get_window_extent()
            for text in axes.texts:
                own = text.get_window_extent()
                assert inside.x0 <= own.x0 and own.x1 <= inside.x1 + 1  # noqa: PT018
                assert inside.y0 - 1 <= own.y0
