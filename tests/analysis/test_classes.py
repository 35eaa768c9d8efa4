"""Losses by class of token in the analysis, on ladders whose classes have laws that are known."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.stats import ttest_rel
from synthetic_sweeps import BETA, TRUTH, SweepWriter, write_ladder

from ablations.records import RunDirectory, SettingError
from analysis.__main__ import main
from analysis.report import sections
from analysis.report.document import markdown
from analysis.report.figures.drawing import Gallery, draw
from analysis.report.write import cells, numbers
from analysis.stats.laws import Chinchilla
from analysis.study import classes
from analysis.study.findings import find
from analysis.study.load import load_sweep

SHARES = {"a": 0.25, "b": 0.5}
"""Of each domain the share of its tokens in class `new`; the others are `old`."""
SAVING = {"new": 1.0, "old": 1.6}


def law(mix: str, name: str) -> Chinchilla:
    base = TRUTH["transformer"]
    B = base.B if mix == "transformer" else base.B * SAVING[name] ** -BETA
    return replace(base, E=base.E + (name == "new"), B=B)


def classified(sweep: SweepWriter, noise: float = 0.0, **ladder: Any) -> None:
    """A ladder whose hybrid saves 1.6 times the tokens on old tokens, and none on new ones."""
    write_ladder(sweep, sizes=("50k", "100k"), **ladder)
    for run in load_sweep(sweep.path).runs:
        directory = RunDirectory(sweep.path / run.name)
        rows = list(directory.rows("points.jsonl"))
        for row in rows:
            rng = np.random.default_rng([row["seed"], row["step"], len(run.mix)])
            domains = {}
            for domain, share in SHARES.items():
                tokens = {"new": round(8000 * share), "old": 8000 - round(8000 * share)}
                own = {}
                for name, n in tokens.items():
                    loss = float(law(run.mix, name).loss(row["N"], row["D"]))
                    own[name] = [n * loss * np.exp(noise * rng.normal()), n, 2 * n]
                nats = sum(one[0] for one in own.values())
                domains[domain] = {
                    "nats": nats, "tokens": 8000, "bytes": 16000, "loss": nats / 8000,
                    "bpb": nats / np.log(2) / 16000, "classes": {"repeat": own},
                }  # fmt: skip
            # A class of which one domain has too few tokens to be heard.
            nats = domains["a"]["nats"]
            domains["a"]["classes"]["rare"] = {"it": [90.0, 1, 2], "other": [nats - 90, 7999, 0]}
            domains["b"]["classes"]["rare"] = {"it": [domains["b"]["nats"], 8000, 16000]}
            for measure in ("loss", "bpb"):
                row[measure] = sum(one[measure] for one in domains.values()) / 2
            row["domains"] = domains
        directory.write_rows("points.jsonl", rows)


def test_savings_and_differences_of_each_class_are_those_of_its_law(sweep: SweepWriter) -> None:
    classified(sweep)
    found = load_sweep(sweep.path)
    table = classes.by_class(classes.read_classes(found), {"gdn3_attn1": "transformer"})
    rows = {(one["partition"], one["class"]): one for one in table.to_dict("records")}
    assert list(rows) == [("all", "all"), ("repeat", "new"), ("repeat", "old"),
                          ("rare", "it"), ("rare", "other")]  # fmt: skip
    assert (table["size"] == "100k").all()
    N, D = table["N"][0], table["D"][0]
    for name, saving in SAVING.items():
        one = rows["repeat", name]
        laws = law("transformer", name), law("gdn3_attn1", name)
        expected = [float(own.loss(N, D)) for own in laws]
        assert [one["loss_baseline"], one["loss"]] == pytest.approx(expected)
        assert one["bpb"] == pytest.approx(expected[1] / np.log(2) / 2)
        assert one["difference"] == pytest.approx(expected[1] - expected[0], abs=1e-12)
        assert one["saving"] == pytest.approx(saving, rel=0.01)
    assert rows["repeat", "new"]["share"] == pytest.approx(np.mean(list(SHARES.values())))
    parts = rows["repeat", "new"]["part"] + rows["repeat", "old"]["part"]
    assert parts == pytest.approx(rows["all", "all"]["difference"])
    whole = {mix: float(0.5 * law(mix, "new").loss(N, D) + 0.5 * law(mix, "old").loss(N, D))
             for mix in ("transformer", "gdn3_attn1")}  # fmt: skip
    assert rows["rare", "it"]["loss"] == pytest.approx(whole["gdn3_attn1"])
    assert rows["rare", "it"]["loss_baseline"] == pytest.approx(whole["transformer"])
    points = found.points[found.points["size"] == "100k"]
    at = points[points["D"] == points["D"].max()].groupby("mix")["loss"].mean()
    overall = at["gdn3_attn1"] - at["transformer"]
    assert rows["all", "all"]["difference"] == pytest.approx(overall)


def test_the_interval_of_one_size_is_the_paired_t_test_s(sweep: SweepWriter) -> None:
    classified(sweep, noise=0.01, seeds=(0, 1, 2, 3))
    recorded = classes.read_classes(load_sweep(sweep.path))
    own = recorded[recorded["size"] == "100k"]
    table = classes.by_class(own, {"gdn3_attn1": "transformer"}, 0.9)
    one = table[table["class"] == "new"].iloc[0]
    last = own[(own["class"] == "new") & (own["D"] == own["D"].max())]
    losses = (last["nats"] / last["tokens"]).groupby([last["mix"], last["seed"]]).mean()
    test = ttest_rel(losses["gdn3_attn1"], losses["transformer"])
    assert (one["low"], one["high"]) == pytest.approx(tuple(test.confidence_interval(0.9)))
    assert one["seeds"] == 4
    # Beside another size the scatter is known by more degrees of freedom.
    both = classes.by_class(recorded, {"gdn3_attn1": "transformer"}, 0.9)
    assert both[both["class"] == "new"].iloc[0]["difference"] == one["difference"]


def test_the_command_answers_and_refuses_in_a_sentence(
    sweep: SweepWriter, capsys: pytest.CaptureFixture[str]
) -> None:
    classified(sweep)
    folder = f"points={sweep.path}"
    assert main(["classes", folder, "only=repeat/old", "format=json"]) == 0
    told = json.loads(capsys.readouterr().out)["classes"]
    assert [(one["partition"], one["class"]) for one in told] == [("all", "all"), ("repeat", "old")]
    for form in ("table", "csv", "latex"):
        assert main(["classes", folder, f"format={form}"]) == 0
        assert "old" in capsys.readouterr().out
    for asked, sentence in (
        ("only=repeat/16+", "class without held-out tokens; repeat has new, old."),
        ("only=repaet", "valid: rare, repeat."),
        ("baseline=gdn", "gdn"),
    ):
        assert main(["classes", folder, asked]) == 2
        assert sentence in capsys.readouterr().err
    recorded = classes.read_classes(load_sweep(sweep.path))
    with pytest.raises(SettingError, match="without held-out tokens"):
        classes.chosen(recorded, ["rare/that"])


def test_a_sweep_without_classes_is_told_so_and_its_report_has_no_section(
    sweep: SweepWriter, capsys: pytest.CaptureFixture[str]
) -> None:
    write_ladder(sweep, sizes=("50k",))
    assert main(["classes", f"points={sweep.path}"]) == 2
    assert "has no losses by class of token" in capsys.readouterr().err
    found = find(load_sweep(sweep.path), "transformer", 20, 0, "python -m analysis report")
    assert found.classes.empty
    gallery = draw(found, sweep.path / "out", only=("classes",))
    assert "by class of token" in gallery.lacking["classes"]
    assert "Which tokens pay" not in markdown(list(sections.report(found.literal, gallery)))


def test_the_report_has_a_section_a_table_and_a_figure(sweep: SweepWriter) -> None:
    classified(sweep, noise=0.002)
    found = find(load_sweep(sweep.path), "transformer", 20, 0, "python -m analysis report")
    gallery = draw(found, sweep.path / "out", only=("classes",))
    assert gallery.shown["classes"].stem.with_suffix(".png").exists()
    text = markdown(list(sections.report(found.literal, Gallery())))
    assert "## Which tokens pay" in text
    assert "size 100k" in text
    table = cells(found)["classes"]
    assert list(table["class"]) == ["all", "new", "old", "it", "other"]
    assert numbers(found)["classes"]["saving"].notna().all()
