"""Arms: a mix at each level of another treatment; what that treatment does to a saving."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy.interpolate import PchipInterpolator
from scipy.optimize import brentq
from scipy.stats import t as student
from synthetic_sweeps import SweepWriter

import analysis
from ablations.resolve import resolve
from ablations.spec import completed
from analysis.__main__ import main
from analysis.stats.interaction import interaction_free
from analysis.stats.laws import Chinchilla
from analysis.stats.savings import fit_free, matched_factor
from analysis.study.arms import Arms, with_arms
from analysis.study.load import Sweep, load_sweep
from analysis.study.source import from_frame, from_sweeps
from tests.ablations.conftest import settings

BETA = 0.35
SAVINGS = {0.25: 1.2, 1.0: 1.5}
"""Of gdn3_attn1 over transformer at each learning rate: the rate multiplies it by 1.25."""


def law(mix: str, rate: float) -> Chinchilla:
    """The rate changes the loss of both mixes, and the saving on top."""
    B = 90.0 * (1.3 if rate < 1 else 1.0)
    return Chinchilla(
        0.9, 60.0, 0.42, B * (SAVINGS[rate] ** -BETA if mix != "transformer" else 1), BETA
    )


def simulated(seed: int, noise: float = 0.001, seeds: int = 2) -> pd.DataFrame:
    """Two mixes at two rates; runs of a size and seed share half of their variance, by batches."""
    rng = np.random.default_rng(seed)
    rows = []
    for N in (5e4, 1e5, 2e5, 4e5):
        for run in range(seeds):
            batches = rng.normal()
            for mix in ("transformer", "gdn3_attn1"):
                for rate in SAVINGS:
                    luck = noise * (np.sqrt(0.5) * batches + np.sqrt(0.5) * rng.normal())
                    for multiple in (10, 20, 40, 80):
                        loss = float(law(mix, rate).loss(N, N * multiple))
                        own = np.exp(luck + 0.3 * noise * rng.normal())
                        rows.append((mix, rate, N, N * multiple, run, loss * own))
    return pd.DataFrame(rows, columns=["mix", "lr", "N", "D", "seed", "loss"])


@pytest.fixture(scope="module")
def two_rates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two mixes at three sizes, two learning rates and two seeds, as
    `treatments=[mix,protocol.lr_multiplier]` allows."""
    writer = SweepWriter(tmp_path_factory.mktemp("runs") / "rates")
    for mix in ("transformer", "gdn3_attn1"):
        for size in ("50k", "100k", "200k"):
            for rate in (0.25, 1.0):
                for seed in (0, 1):
                    writer.run(mix, size, seed, protocol={"lr_multiplier": rate})
    return writer.path


def test_only_seeds_are_averaged_and_only_inside_an_arm(two_rates: Path) -> None:
    sweep = from_sweeps([two_rates])
    names = [f"{mix}@lr_multiplier={rate}" for mix in ("gdn3_attn1", "transformer")
             for rate in ("0.25", "1")]  # fmt: skip
    assert list(dict.fromkeys(sweep.points["mix"])) == names == list(sweep.arms.by_name)
    for run in sweep.runs:
        own = sweep.points[sweep.points["run"] == run.name]
        rate = run.spec["protocol"]["lr_multiplier"]
        assert set(own["mix"]) == {f"{run.spec['mix']['name']}@lr_multiplier={rate:g}"}
    assert (sweep.points.groupby(["mix", "size", "D"])["seed"].nunique() == 2).all()


def test_savings_without_noise_are_those_of_each_level_and_their_ratio_the_interaction() -> None:
    ladder = analysis.load(simulated(0, noise=0.0, seeds=1), treatments="lr")
    found = ladder.savings(resamples=20)
    by_rate = found.table.groupby("lr")["value"]
    assert by_rate.mean()["0.25"] == pytest.approx(1.2, rel=1e-3)
    assert by_rate.mean()["1"] == pytest.approx(1.5, rel=1e-3)
    assert set(found.table["baseline"]) == {"transformer@lr=0.25", "transformer@lr=1"}
    assert "lr 1 in place of 0.25 multiplies the saving of gdn3_attn1 by 1.25" in repr(found)
    assert len(found.interactions) == 4
    for row in found.document["interactions"]:
        assert (row["level"], row["reference_level"]) == ("1", "0.25")
        assert row["value"] == pytest.approx(1.25, rel=1e-3)
        assert row["saving"] / row["reference_saving"] == pytest.approx(row["value"], rel=1e-12)


def test_the_interval_of_an_interaction_holds_the_truth() -> None:
    # Of 20 intervals of 95 %, 16 or more hold it in all but three cases of 1000 (binomial).
    held = 0
    for seed in range(20):
        ladder = analysis.load(simulated(seed), treatments="lr")
        last = ladder.savings(resamples=100, seed=seed).document["interactions"][-1]
        held += last["low"] <= 1.25 <= last["high"]
    assert held >= 16


def test_an_interaction_from_seeds_is_the_ratio_of_their_savings() -> None:
    sweep = from_frame(simulated(3), treatments=["lr"])
    versus = sweep.arms.versus(dict.fromkeys(sweep.points["mix"]), "transformer")
    free = fit_free(sweep.points, versus)
    pairs = [(one.arm, one.reference) for one in sweep.arms.contrasts(versus)]
    assert pairs == [("gdn3_attn1@lr=1", "gdn3_attn1@lr=0.25")]
    ratios = interaction_free(free, pairs)
    for (size, seed), own in ratios[ratios["seed"] != "mean"].groupby(["size", "seed"]):
        both = free[(free["size"] == size) & (free["seed"] == seed)].set_index("mix")["value"]
        expected = both["gdn3_attn1@lr=1"] / both["gdn3_attn1@lr=0.25"]
        assert own["value"].iloc[0] == pytest.approx(expected, rel=1e-12)
    means = ratios[ratios["seed"] == "mean"]
    for size, own in ratios[ratios["seed"] != "mean"].groupby("size"):
        mean = means.loc[means["size"] == size, "value"].iloc[0]
        assert mean == pytest.approx(np.exp(np.log(own["value"]).mean()), rel=1e-12)
    # A seed that one arm lacks is in neither the mean nor its interval.
    lacking = free[(free["mix"] != "gdn3_attn1@lr=1") | (free["seed"] != "0")]
    alone = interaction_free(lacking, pairs)
    assert set(alone["seed"]) == {"1", "mean"}
    assert alone["value"].nunique() == alone["size"].nunique()
    # Of two crossed treatments an arm has two references, and a ratio over each.
    assert len(interaction_free(free, pairs * 2)) == 2 * len(ratios)
    assert ((means["low"] < means["value"]) & (means["value"] < means["high"])).all()


def test_a_baseline_may_be_one_arm() -> None:
    ladder = analysis.load(simulated(0, noise=0.0, seeds=1), treatments="lr")
    found = ladder.savings("transformer@lr=1", resamples=20)
    assert set(found.table["mix"]) == set(ladder.arms) - {"transformer@lr=1"}
    last = found.table[found.table["mix"] == "gdn3_attn1@lr=0.25"].iloc[-1]
    truth = matched_factor(law("transformer", 1.0), law("gdn3_attn1", 0.25), last["N"], last["D"])
    assert last["value"] == pytest.approx(float(truth), rel=1e-3)
    assert found.document["interactions"] == []
    assert found.interactions.empty


def test_levels_of_one_mix_are_compared_with_the_first() -> None:
    points = simulated(0, noise=0.0, seeds=1)
    ladder = analysis.load(points[points["mix"] == "transformer"], treatments="lr")
    found = ladder.savings(resamples=20).table
    assert set(found["mix"]) == {"transformer@lr=1"}
    assert set(found["baseline"]) == {"transformer@lr=0.25"}
    assert found["value"].to_numpy() == pytest.approx(1.3 ** (1 / BETA), rel=1e-3)


def test_an_arm_without_a_twin_is_said_and_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    points = simulated(1)
    alone = points[(points["mix"] != "transformer") | (points["lr"] == 1)]
    ladder = analysis.load(alone, treatments="lr")
    found = ladder.savings(resamples=20)
    assert set(found.table["mix"]) == {"gdn3_attn1@lr=1"}
    (told,) = [one for one in found.caveats if "no twin" in one]
    assert "gdn3_attn1@lr=0.25 has no twin, as no run of transformer is at lr=0.25" in told
    assert "transformer@lr=1" in told
    none = points[(points["mix"] == "transformer") == (points["lr"] == 1)]
    with pytest.raises(analysis.SettingError, match="has no twin"):
        analysis.load(none, treatments="lr").savings(resamples=20)


def test_a_mix_that_does_not_read_a_treatment_is_the_twin_at_every_level() -> None:
    gates = [resolve(settings("gdn3_attn1", mix__gdn_output_gate=gate)) for gate in (True, False)]
    specs = [*gates, resolve(settings("transformer"))]
    runs = tuple(
        SimpleNamespace(
            name=f"run{place}", mix=spec.mix.name, size="50k", spec=completed(spec.record())
        )
        for place, spec in enumerate(specs)
    )
    points = pd.DataFrame(
        {"run": [run.name for run in runs], "mix": [run.mix for run in runs], "N": 1.0,
         "seed": 0, "D": 1.0}
    )  # fmt: skip
    arms = _arms_of(runs, points)
    names = ["transformer", "gdn3_attn1@gdn_output_gate=false", "gdn3_attn1@gdn_output_gate=true"]
    assert set(arms.by_name) == set(names)
    assert arms.versus(names, "transformer") == dict.fromkeys(names[1:], "transformer")
    (contrast,) = arms.contrasts(arms.versus(names, "transformer"))
    assert (contrast.reference_level, contrast.level) == ("false", "true")


def _arms_of(runs: tuple[SimpleNamespace, ...], points: pd.DataFrame) -> Arms:
    from dataclasses import make_dataclass

    made = make_dataclass("Run", ["name", "mix", "size", "spec"], frozen=True)
    own = tuple(made(run.name, run.mix, run.size, run.spec) for run in runs)
    return with_arms(Sweep("s", Path(), points, own)).arms  # type: ignore[arg-type]


def test_an_empty_level_of_a_mix_that_has_others_is_a_level_with_a_twin() -> None:
    points = simulated(0, noise=0.0, seeds=1)
    points["lr"] = points["lr"].where(points["lr"] == 1)  # the other rate is not recorded
    ladder = analysis.load(points, treatments="lr")
    assert ladder.arms == [f"{mix}@lr={level}" for mix in ("gdn3_attn1", "transformer")
                           for level in ("1", "none")]  # fmt: skip
    table = ladder.savings(resamples=20).table
    assert (table["baseline"].str.partition("@")[2] == table["mix"].str.partition("@")[2]).all()
    own = table[table["mix"] == "gdn3_attn1@lr=none"]
    assert own["value"].to_numpy() == pytest.approx([1.2] * 4, rel=1e-3)


def test_null_in_a_spec_is_a_level_and_not_the_mix_itself(tmp_path: Path) -> None:
    writer = SweepWriter(tmp_path / "rates")
    for mix in ("transformer", "gdn3_attn1"):
        for rate in (None, 1.0):
            writer.run(mix, "50k", 0, protocol={"lr_multiplier": rate})  # type: ignore[dict-item]
    arms = from_sweeps([writer.path]).arms
    versus = arms.versus(arms.by_name, "transformer")
    at = "{}@lr_multiplier={}".format
    assert versus == {at("gdn3_attn1", x): at("transformer", x) for x in ("1", "null")}


def test_two_arms_of_one_name_are_refused() -> None:
    points = simulated(0, seeds=1)
    other = points[points["lr"] == 1].assign(mix="gdn3_attn1@lr=1", lr=None)
    with pytest.raises(analysis.SettingError, match="would be called gdn3_attn1@lr=1"):
        analysis.load(pd.concat([points, other], ignore_index=True), treatments="lr")


def test_levels_that_python_alone_takes_for_one_number_stay_two() -> None:
    points = simulated(0, seeds=1)
    points["lr"] = points["lr"].map({0.25: "1_0", 1.0: "10"})
    assert len(analysis.load(points, treatments="lr").arms) == 4


@pytest.mark.parametrize("treatments", [3, None, [1]])
def test_treatments_that_are_no_names_are_refused(treatments: object) -> None:
    with pytest.raises(analysis.SettingError, match="names no columns"):
        analysis.load(simulated(0, seeds=1), treatments=treatments)  # type: ignore[arg-type]


def test_levels_may_be_lists_and_a_treatment_may_be_named_twice() -> None:
    points = simulated(0, seeds=1)
    points["lr"] = points["lr"].map(lambda rate: [rate, 2])
    ladder = analysis.load(points, treatments=["lr", "lr"])
    assert ladder.arms[0] == "gdn3_attn1@lr=0.25/2"


def test_an_arm_without_a_law_is_drawn_by_its_marks(tmp_path: Path) -> None:
    points = simulated(0)
    more = points[(points["lr"] == 1) & (points["N"] == 5e4)].assign(lr=2.0)
    path = tmp_path / "points.csv"
    pd.concat([points, more], ignore_index=True).to_csv(path, index=False)
    told = ["figures", str(path), "treatments=lr", "only=savings", "resamples=20"]
    assert main([*told, f"out={tmp_path / 'out'}"]) == 0
    shown = pd.read_csv(tmp_path / "out/figures/savings.csv")
    assert "gdn3_attn1@lr=2" in set(shown.loc[shown["kind"] == "measured", "mix"])


def test_settings_that_always_move_together_are_one_treatment() -> None:
    points = simulated(0, seeds=1).assign(warmup=lambda table: (table["lr"] * 100).astype(int))
    ladder = analysis.load(points, treatments=["lr", "warmup"])
    assert ladder.arms[0] == "gdn3_attn1@lr=0.25"
    assert "lr (with warmup) = 0.25, 1" in repr(ladder)


def test_two_treatments_are_crossed_and_each_contrast_holds_the_other() -> None:
    points = pd.concat(
        [simulated(0, 0.0, 1).assign(optimizer=name) for name in ("adamw", "muon")],
        ignore_index=True,
    )
    sweep = from_frame(points, treatments=["lr", "optimizer"])
    versus = sweep.arms.versus(dict.fromkeys(sweep.points["mix"]), "transformer")
    assert versus["gdn3_attn1@lr=1,optimizer=muon"] == "transformer@lr=1,optimizer=muon"
    found = {(one.reference, one.arm) for one in sweep.arms.contrasts(versus)}
    at = "gdn3_attn1@lr={},optimizer={}".format
    assert found == {
        (at(0.25, "adamw"), at(1, "adamw")), (at(0.25, "muon"), at(1, "muon")),
        (at(0.25, "adamw"), at(0.25, "muon")), (at(1, "adamw"), at(1, "muon")),
    }  # fmt: skip


def test_points_for_people_have_the_mix_by_its_name_and_can_be_read_again(
    two_rates: Path, tmp_path: Path
) -> None:
    ladder = analysis.load(two_rates)
    assert ladder.mixes == ["gdn3_attn1", "transformer"]
    assert set(ladder.points["mix"]) == {"gdn3_attn1", "transformer"}
    path = tmp_path / "points.csv"
    ladder.points.drop(columns="arm").to_csv(path, index=False)
    again = analysis.load(path, treatments=["protocol.lr_multiplier"])
    assert again.arms == ladder.arms
    ours, theirs = (one.savings(resamples=20).table["value"] for one in (ladder, again))
    assert ours.to_numpy() == pytest.approx(theirs.to_numpy(), rel=1e-9)


def test_report_figures_and_tables_go_by_arm(
    two_rates: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = [f"sweep={two_rates.name}", f"runs={two_rates.parent}", f"out={tmp_path}"]
    assert main(["report", *source, "resamples=40"]) == 0
    told = capsys.readouterr().out
    assert "lr_multiplier 1 in place of 0.25 multiplies the saving of gdn3_attn1 by" in told
    text = (tmp_path / "report.md").read_text(encoding="utf-8").replace("\\@", "@")
    assert "What other treatments do to savings" in text
    assert "gdn3_attn1@lr_multiplier=1 against transformer@lr_multiplier=1" in text
    assert "protocol.lr_multiplier: 0.25" not in text  # no difference between an arm and its twin
    table = pd.read_csv(tmp_path / "tables" / "interactions.csv")
    assert set(table["mix"]) == {"gdn3_attn1@lr_multiplier=1"}
    assert (tmp_path / "figures" / "interaction.pdf").exists()
    points = pd.read_csv(tmp_path / "tables" / "points.csv")
    assert set(points["mix"]) == {"gdn3_attn1", "transformer"}


def test_a_real_two_by_two_says_what_its_losses_say_by_hand() -> None:
    # Two mixes at two learning rates, three seeds, 50k and 100k (notebooks/records/README.md).
    ladder = analysis.load("notebooks/records/rate_by_mix")
    assert ladder.mixes == ["gdn3_attn1", "transformer"]
    assert len(ladder.arms) == 4
    points = ladder.points[ladder.points["size"] == "100k"]

    def saving(rate: float, seeds: list[int]) -> float:
        """Ratio of tokens at the lowest loss that both reach, means joined by a monotone cubic."""
        crossed = {}
        curves = {}
        for mix in ladder.mixes:
            own = points[(points["mix"] == mix) & (points["protocol.lr_multiplier"] == f"{rate:g}")]
            own = own[own["seed"].isin(seeds)]
            means = np.log(own["loss"]).groupby(np.log(own["D"])).mean()
            curves[mix] = PchipInterpolator(means.index, means.to_numpy())
        target = max(curve(curve.x[-1]) for curve in curves.values())
        for mix, curve in curves.items():
            ends = curve(curve.x[[0, -1]]) - target
            last = curve.x[-1]
            crossed[mix] = last if abs(ends[1]) < 1e-12 else brentq(
                lambda x, curve=curve: curve(x) - target, curve.x[0], last
            )  # fmt: skip
        return float(np.exp(crossed["transformer"] - crossed["gdn3_attn1"]))

    found = ladder.findings(resamples=20).study.interactions_free
    found = found[found["size"] == "100k"].set_index("seed")
    ratios = [saving(1, [seed]) / saving(0.5, [seed]) for seed in (0, 1, 2)]
    for seed, ratio in enumerate(ratios):
        assert found.loc[str(seed), "value"] == pytest.approx(ratio, rel=1e-3)
    mean = found.loc["mean"]
    assert mean["value"] == pytest.approx(np.exp(np.mean(np.log(ratios))), rel=1e-3)
    # The 50k ratios are bounds, so the scatter is that of three seeds at one size.
    reach = student.ppf(0.975, 2) * np.std(np.log(ratios), ddof=1) / np.sqrt(3)
    assert np.log(mean["high"] / mean["value"]) == pytest.approx(reach, rel=1e-2)


def test_one_level_is_that_level_alone(two_rates: Path) -> None:
    one = from_sweeps([two_rates], {"protocol.lr_multiplier": "1.0"})
    assert set(one.points["run"]) == {run.name for run in one.runs}
    assert len(one.runs) == 12
    assert not one.arms.treatments
    assert set(one.points["mix"]) == {"gdn3_attn1", "transformer"}
    both = from_sweeps([two_rates], {"protocol.lr_multiplier": ["0.25", "1"]})
    assert both.points.equals(from_sweeps([two_rates]).points)


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("protocol.lr_multiplier=2", "leaves no run of sweep=rates; it has"),
        ("protocol.lr_multiplier=1,protocol.lr_multiplier=2",
         "where=protocol.lr_multiplier=2 matches no run of sweep=rates"),
        ("protocol.lr_multipler=1", "names no setting of sweep=rates"),
        ("protocol.lr_multiplier", "is not a setting; give one like protocol.lr_multiplier=1"),
    ],
)  # fmt: skip
def test_a_level_that_is_not_there_is_said_in_a_sentence(
    two_rates: Path, where: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["savings", str(two_rates), "--where", where]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("treatments", "words"),
    [
        ("optimizer", "treatments=optimizer names no column of the DataFrame; it has mix, lr"),
        (
            "constant",
            "treatments=constant: no row of the DataFrame varies it (constant is 3 in all",
        ),
        ("mix", "treatments=mix is no treatment beside the mix"),
    ],
)
def test_a_treatment_that_no_row_varies_is_said_in_a_sentence(treatments: str, words: str) -> None:
    with pytest.raises(analysis.SettingError) as problem:
        analysis.load(simulated(0, seeds=1).assign(constant=3), treatments=treatments)
    assert words in str(problem.value)


def test_a_baseline_that_is_no_mix_and_no_arm_is_said_with_both() -> None:
    ladder = analysis.load(simulated(0, seeds=1), treatments="lr")
    with pytest.raises(analysis.SettingError, match=r"nor its arms: gdn3_attn1@lr=0.25") as problem:
        ladder.savings("gdn")
    assert "mixes with points: gdn3_attn1, transformer" in str(problem.value)


def test_a_column_that_was_varied_and_is_not_named_is_doubted() -> None:
    caveats = analysis.load(simulated(0)).savings(resamples=20).caveats
    assert any("differ in the column lr" in one and "treatments=lr" in one for one in caveats)
    named = analysis.load(simulated(0), treatments="lr").savings(resamples=20).caveats
    assert not any("differ in the column" in one for one in named)


def test_a_csv_has_columns_to_choose_by_and_no_settings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "points.csv"
    path.write_text("mix,N,D,loss\na,1,2,3\n")
    assert main(["fit", str(path), "--where", "train.optim=muon"]) == 2
    assert "where=train.optim names no column of points=" in capsys.readouterr().err


def test_json_of_a_csv_by_arms_has_interactions(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "points.csv"
    simulated(2).to_csv(path, index=False)
    told = ["savings", str(path), "treatments=lr", "resamples=40", "format=json", "level=0.8"]
    assert main(told) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["level"] == 0.8
    assert {row["of_mix"] for row in document["savings"]} == {"gdn3_attn1"}
    assert {row["lr"] for row in document["savings"]} == {"0.25", "1"}
    assert {row["mix"] for row in document["interactions"]} == {"gdn3_attn1@lr=1"}


def test_a_higher_level_widens_intervals_and_moves_no_value() -> None:
    ladder = analysis.load(simulated(2), treatments="lr")
    narrow, wide = (ladder.savings(resamples=200, level=level).table for level in (0.5, 0.95))
    assert narrow["value"].equals(wide["value"])
    assert (narrow["low"] > wide["low"]).all()
    assert (narrow["high"] < wide["high"]).all()


def test_a_sweep_of_mixes_alone_has_no_arms(tmp_path: Path) -> None:
    writer = SweepWriter(tmp_path / "mixes")
    for mix in ("transformer", "gdn3_attn1"):
        writer.run(mix, "50k", 0)
    one, other = load_sweep(writer.path), from_sweeps([writer.path])
    assert one.points.equals(other.points)
    assert not other.arms.by_name


def test_the_reference_level_of_ratios_is_the_first_or_the_one_chosen(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "points.csv"
    simulated(0, noise=0.0).to_csv(path, index=False)
    asked = ["savings", str(path), "treatments=lr", "resamples=20"]
    found = {}
    for words in ([], ["reference=lr=1.0"]):
        assert main([*asked, *words, "format=json"]) == 0
        rows = json.loads(capsys.readouterr().out)["interactions"]
        (found[bool(words)],) = (row for row in rows if row["N"] == 2e5)
    first, chosen = found[False], found[True]
    assert (first["level"], first["reference_level"]) == ("1", "0.25")
    assert (chosen["level"], chosen["reference_level"]) == ("0.25", "1")
    # The rate multiplies the saving by 1.25, everywhere.
    assert first["value"] == pytest.approx(1.25, rel=1e-3)
    assert chosen["value"] == pytest.approx(1 / 1.25, rel=1e-3)
    assert main(asked) == 0
    assert "ratios of two, over lr=0.25 (reference=lr=1 chooses another" in capsys.readouterr().out
    python = analysis.load(path, treatments="lr").savings(resamples=20, reference={"lr": 1})
    assert set(python.interactions["reference_level"]) == {"1"}


def test_levels_of_one_mix_are_compared_with_the_one_chosen() -> None:
    points = simulated(0, seeds=1)
    own = points[points["mix"] == "gdn3_attn1"]
    arms = from_frame(own, treatments=["lr"]).arms
    names = ["gdn3_attn1@lr=0.25", "gdn3_attn1@lr=1"]
    assert arms.versus(names, "gdn3_attn1") == {names[1]: names[0]}
    assert arms.over({"lr": "1"}).versus(names, "gdn3_attn1") == {names[0]: names[1]}


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        ("lr=7", "reference=lr=7 is no level of lr; give one of them, 0.25, 1."),
        ("optim=adam", "reference=optim=adam names no treatment; varied were lr."),
    ],
)
def test_a_reference_that_is_not_there_is_said(
    reference: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "points.csv"
    simulated(0, seeds=1).to_csv(path, index=False)
    asked = ["savings", str(path), f"reference={reference}"]
    assert main([*asked, "treatments=lr"]) == 2
    assert words in capsys.readouterr().err
    assert main(asked) == 2
    assert "names a level, and nothing but the mix was varied" in capsys.readouterr().err
