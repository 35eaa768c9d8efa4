"""Probes in the analysis: what is read, how it is averaged, and when it is shown."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest
from synthetic_sweeps import SweepWriter, write_ladder

from ablations.records import RunDirectory
from analysis.report import figures, sections
from analysis.report.document import markdown
from analysis.report.figures.drawing import PICTURES, Gallery, draw
from analysis.report.write import cells, numbers
from analysis.study import probes
from analysis.study.findings import Findings, find
from analysis.study.load import load_sweep

LENGTHS = (64, 256, 1024)
PICTURE = {picture.name: picture for picture in PICTURES}


def row(probe: str, length: int, accuracy: float, **more: Any) -> dict[str, Any]:
    repeated = probe in ("copy", "repeat")
    return {
        "probe": probe, "version": 1, "length": length, "context": 256, "examples": 32,
        "predictions": 320, "candidates": 8, "chance": 0.125, "accuracy": accuracy,
        "accuracy_se": (accuracy * (1 - accuracy) / 100) ** 0.5, "nats": 2.0, "nats_se": 0.1,
        "first_accuracy": 0.4 if repeated else None, "first_nats": 3.0 if repeated else None,
        "gain": 1.0 if repeated else None, "gain_se": 0.1 if repeated else None,
        "digest": f"{probe}{length}", **more,
    }  # fmt: skip


def bucket(begin: int, end: int, bpb: float) -> dict[str, Any]:
    return {
        "probe": "positions", "version": 1, "length": 1024, "context": 256, "examples": 32,
        "from": begin, "to": end, "predictions": 32 * (end - begin), "loss": bpb, "loss_se": 0.1,
        "bpb": bpb, "bpb_se": 0.02, "digest": "windows",
    }  # fmt: skip


def probe_run(run: RunDirectory, mix: str, seed: int) -> None:
    """What a hybrid that recalls at all lengths, and a transformer that ends at 256, record."""
    for point in run.rows("points.jsonl"):
        for length in LENGTHS:
            good = mix != "transformer" or length <= 256
            run.append(
                "probes.jsonl",
                {"step": point["step"]}
                | row("recall", length, (0.8 if good else 0.12) + seed / 20),
            )
            run.append("probes.jsonl", {"step": point["step"]} | row("repeat", length, 0.41))
        for begin, end in ((0, 256), (256, 1024)):
            worse = 1.5 if mix == "transformer" and begin else 1.0
            run.append("probes.jsonl", {"step": point["step"]} | bucket(begin, end, 2.0 * worse))


def probed(sweep: SweepWriter) -> Findings:
    write_ladder(sweep, sizes=("50k", "100k"))
    for run in load_sweep(sweep.path).runs:
        probe_run(RunDirectory(sweep.path / run.name), run.mix, run.seed)
    return find(load_sweep(sweep.path), "transformer", 20, 0, "python -m analysis figures")


def test_accuracies_are_means_of_seeds_at_the_largest_common_budget(sweep: SweepWriter) -> None:
    write_ladder(sweep, sizes=("50k",))
    for run in load_sweep(sweep.path).runs:
        directory = RunDirectory(sweep.path / run.name)
        steps = [point["step"] for point in directory.rows("points.jsonl")]
        # The hybrid was probed at every point, the transformer not at its last.
        for place, step in enumerate(steps if run.mix != "transformer" else steps[:-1]):
            accuracy = 0.1 * (place + 1) + 0.02 * run.seed
            directory.append("probes.jsonl", {"step": step} | row("recall", 64, 0.9))
            directory.append("probes.jsonl", {"step": step} | row("recall", 64, accuracy))
        directory.append("probes.jsonl", {"step": 7} | row("recall", 64, 0.99))
    table = probes.accuracies(probes.read_probes(load_sweep(sweep.path)))
    assert list(table["mix"]) == ["gdn3_attn1", "transformer"]
    assert table["accuracy"].to_numpy() == pytest.approx(0.21)
    assert (table["seeds"] == 2).all()
    assert table["D"].nunique() == 1


@pytest.mark.parametrize("right", [0, 3, 17, 40])
def test_the_interval_of_one_prediction_an_example_is_wilson_s(right: int) -> None:
    share, n = np.array([right / 40]), np.array([40.0])
    se = np.sqrt(share * (1 - share) / n)
    low, high = probes.wilson(share, probes.trials(share, se, n, n))
    theirs = binomtest(right, 40).proportion_ci(method="wilson")
    assert (low[0], high[0]) == pytest.approx((theirs.low, theirs.high), abs=1e-6)


def test_predictions_that_stand_and_fall_together_count_as_one() -> None:
    share, examples, predictions = np.array([0.25]), np.array([50.0]), np.array([500.0])
    apart = np.sqrt(share * (1 - share) / predictions)
    together = np.sqrt(share * (1 - share) / examples)
    assert probes.trials(share, apart, predictions, examples) == pytest.approx(500)
    assert probes.trials(share, together, predictions, examples) == pytest.approx(50)
    assert probes.trials(np.array([1.0]), np.array([0.0]), predictions, examples) == 50


def test_the_newest_version_of_the_examples_counts_alone(sweep: SweepWriter) -> None:
    run = sweep.run("transformer", "50k", 0)
    step = next(iter(run.rows("points.jsonl")))["step"]
    run.append("probes.jsonl", {"step": step} | row("recall", 64, 0.3, version=2))
    run.append("probes.jsonl", {"step": step} | row("recall", 128, 0.3))
    assert list(probes.read_probes(load_sweep(sweep.path))["length"]) == [64]


def test_the_figure_shows_means_intervals_chance_and_the_context(sweep: SweepWriter) -> None:
    found = probed(sweep)
    means = probes.largest(probes.accuracies(found.probes))
    figure, table = figures.probe_accuracy(means, probes.largest(found.probes))
    assert set(table["size"]) == {"100k"}
    recall, repeat = figure.axes
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["recall", "repeat"]
    hybrid = table[(table["mix"] == "gdn3_attn1") & (table["probe"] == "recall")]
    assert hybrid["accuracy"].to_numpy() == pytest.approx(0.825)
    assert ((hybrid["low"] < 0.825) & (hybrid["high"] > 0.825)).all()
    drawn = [line.get_ydata() for line in recall.lines]
    assert any(np.allclose(y, 0.825) for y in drawn if len(y) == 3)
    assert any(np.array_equal(y, [0.125, 0.125]) for y in drawn)
    assert any(list(line.get_xdata()) == [256, 256] for line in recall.lines)
    # Both seeds of a mix at each length, as marks of their own; the first reading of repeats.
    assert sum(len(line.get_xdata()) == 6 and line.get_ls() == "None" for line in recall.lines) == 2
    assert any(np.allclose(line.get_ydata(), 0.4) for line in repeat.lines if len(line.get_ydata()))
    for width in (3.3, 6.75):
        drawn_figure, _ = figures.probe_accuracy(means, found.probes, "a note", width)
        assert drawn_figure.get_size_inches()[0] == width


def test_loss_by_position_is_drawn_by_bucket(sweep: SweepWriter) -> None:
    found = probed(sweep)
    figure, table = figures.loss_by_position(probes.largest(probes.by_position(found.probes)))
    own = table.set_index(["mix", "from"])["bpb"]
    assert own[("transformer", 256)] == pytest.approx(3.0)
    assert own[("gdn3_attn1", 256)] == pytest.approx(2.0)
    assert any(list(line.get_ydata()) == [2.0, 3.0] for line in figure.axes[0].lines)


def test_a_report_has_probes_where_they_are_recorded(sweep: SweepWriter, tmp_path: Any) -> None:
    found = probed(sweep)
    gallery = draw(found, tmp_path, ("probes", "positions"))
    assert set(gallery.shown) == {"probes", "positions"}
    assert "95 % over examples" in gallery.shown["probes"].note
    text = markdown(sections.report(found, gallery))
    assert "## Probes" in text
    assert "recall (transformer up to 256 tokens, gdn3_attn1 up to 1024 tokens)" in text
    assert "repeat (" not in text
    assert "Not the same examples" not in text
    assert "| recall | 100k | transformer | 0.125 | 0.8" in text
    assert "| repeat | 50k | transformer | 1.000 ± 0.196 |" in text
    assert cells(found)["probes"].shape == (8, 7)
    assert set(numbers(found)["positions"]["mix"]) == {"transformer", "gdn3_attn1"}


def test_a_report_without_records_says_what_would_make_them(sweep: SweepWriter) -> None:
    write_ladder(sweep, sizes=("50k",))
    found = find(load_sweep(sweep.path), "transformer", 20, 0, "python -m analysis report")
    assert found.probes.empty
    gallery = draw(found, sweep.path.parent / "out", ("probes", "positions"))
    text = markdown(sections.report(found, gallery))
    assert "## Probes" not in text
    assert "`probes`, `positions`: no probes are recorded; `python -m ablations.evaluate`" in text
    assert "probes" not in cells(found)


def test_other_examples_for_another_run_are_named(sweep: SweepWriter) -> None:
    for mix in ("transformer", "gdn3_attn1"):
        run = sweep.run(mix, "50k", 0)
        step = next(iter(run.rows("points.jsonl")))["step"]
        other = {"digest": mix, "examples": 16} if mix == "gdn3_attn1" else {}
        run.append("probes.jsonl", {"step": step} | row("recall", 64, 0.3, **other))
        run.append("probes.jsonl", {"step": step} | row("copy", 64, 0.3))
    found = find(load_sweep(sweep.path), "transformer", 20, 0, "python -m analysis report")
    assert probes.not_alike(found.probes) == ["recall at 64"]
    assert "Runs were not asked the same: recall" in PICTURE["probes"].words(found)
    text = markdown(sections.report(found, Gallery()))
    assert "Not the same examples for every run: recall at 64;" in text


def test_a_mix_probed_at_another_budget_is_named(sweep: SweepWriter) -> None:
    for mix, place in (("transformer", 0), ("gdn3_attn1", 2)):
        run = sweep.run(mix, "50k", 0)
        step = [point["step"] for point in run.rows("points.jsonl")][place]
        run.append("probes.jsonl", {"step": step} | row("recall", 64, 0.3))
    found = find(load_sweep(sweep.path), "transformer", 20, 0, "python -m analysis report")
    text = markdown(sections.report(found, Gallery()))
    assert "other budgets than the other mixes: gdn3_attn1 at recall, size 50k." in text


def test_points_alone_have_no_probes(sweep: SweepWriter) -> None:
    write_ladder(sweep, sizes=("50k",))
    alone = replace(load_sweep(sweep.path), runs=())
    found = find(alone, "transformer", 20, 0, "python -m analysis report")
    assert found.probes.empty
    gallery = draw(found, sweep.path.parent / "out", ("probes",))
    assert "these are points alone" in gallery.lacking["probes"]
