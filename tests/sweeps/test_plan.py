"""A plan's costs against what they are by hand and on disk, and the prepared sweeps' own words."""

import dataclasses
import functools
import re
from pathlib import Path

import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from rich.console import Console

from ablations.data.embedded import embedded_manifest
from ablations.records import RunDirectory
from ablations.resolve import resolve
from models import roofline
from models.cost import count
from models.devices import GPUS
from models.errors import SettingError
from models.settings import to_dict
from sweeps import plan as planning
from sweeps.cluster import parse
from sweeps.compose import compose_sweep, of_the_run
from sweeps.errors import sentence
from sweeps.experiment import check_experiment
from sweeps.plan import IMPORT_SECONDS, START_SECONDS, make_plan, measured_rates, show, show_arrays
from tests.sweeps.test_cluster import slurm as slurm_settings

ROOT = Path(__file__).parents[2]
PRESETS = {
    "demo": 2 * 3 * 2,
    "hybrid_ladder": 4 * 5 * 3,
    "olmo_hybrid": 8 * 7,
    "hybrids_2026": 6 * 3 * 2,
    "kda_or_gdn": 2 * 4 * 3,
    "as_published": 6 * 3 * 2,
    "ratio": 5 * 3 * 3,
    "gdn_parts": 4 * 4 * 3,
    "tune_lr": 4 * 4,
    "norm_place": 4 * 3 * 2,
    "rate_by_mix": 2 * 2 * 2 * 3,
    "mup_transfer": 2 * 4 * 2 * 5,
}


@functools.cache
def specs(*overrides):
    """Hydra takes a tenth of a second a combination; several tests ask for the same sweep."""
    return [resolve(of_the_run(c), plan_only=True) for c in compose_sweep(overrides)]


def planned(*overrides, runs_root=Path("/nowhere"), **options):
    return make_plan(specs(*overrides), runs_root, None, **options)


def shown(plan, width=120):
    console = Console(width=width, highlight=False, markup=False)
    with console.capture() as capture:
        show(plan, console)
    return capture.get()


@pytest.fixture(autouse=True)
def no_machine(monkeypatch):
    """No corpus and no GPU of the machine that tests run on."""
    monkeypatch.delenv("ARCHLADDER_DATA", raising=False)
    monkeypatch.setattr(planning, "gpus_of_this_machine", lambda: (None, 0))


@pytest.mark.parametrize("name", PRESETS)
def test_a_prepared_sweep_plans_and_costs_what_its_file_says(name):
    plan = planned(f"experiment={name}")
    assert len(plan.estimates) == PRESETS[name]
    assert len({e.spec.run_name for e in plan.estimates}) == PRESETS[name]
    head = (ROOT / "conf" / "experiment" / f"{name}.yaml").read_text()
    for word in ("# Question:", "# Command:", "# Cost:", "# Expect:"):
        assert word in head
    if told := re.search(r"(\d+) runs, ([\d,]+) H200 hours .*?; ([\d.]+) TB", head, re.DOTALL):
        runs, hours, terabytes = (float(number.replace(",", "")) for number in told.groups())
        assert runs == PRESETS[name]
        assert sum(e.gpu_hours for e in plan.estimates) == pytest.approx(hours, rel=0.005)
        assert sum(e.checkpoint_bytes for e in plan.estimates) / 1e12 == pytest.approx(
            terabytes, abs=0.05
        )
        part, hours = re.search(r"size=([\w,]+): ([\d,]+) hours", head).groups()
        some = [e.gpu_hours for e in plan.estimates if e.spec.size.name in part.split(",")]
        assert sum(some) == pytest.approx(float(hours.replace(",", "")), rel=0.005)
    else:
        assert name in ("demo", "norm_place", "tune_lr", "rate_by_mix", "mup_transfer")


def test_every_experiment_is_among_those_tested():
    assert {p.stem for p in (ROOT / "conf" / "experiment").glob("*.yaml")} == PRESETS.keys()


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("experiment=olmo_hybrid", "protocol=controlled"), "defined by protocol=olmo_hybrid"),
        (("experiment=ratio", "protocol=controlled,olmo_hybrid"), "defined by protocol=controlled"),
        (("experiment=ratio,demo",), "several experiments"),
        (("experiment=ratio", "experiment=demo"), "several experiments"),
        (("experiment=olmo_hybrid", "protocol.match=params"), "defined by protocol=olmo_hybrid"),
        (("experiment=demo", "data.eval_tokens=4096"), "defined by data.eval_tokens=16384"),
        (("mix=[gdn,mamba2]",), "write -m mix=gdn,mamba2"),
    ],
)
def test_an_override_that_makes_another_sweep_of_an_experiment_is_refused(overrides, words):
    with pytest.raises(SettingError, match=words):
        compose_sweep(overrides)


@pytest.mark.parametrize("content", ["", "- 1\n", "mix: gdn\n"])
def test_an_experiment_of_ones_own_says_what_its_file_lacks(tmp_path, content):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(content)
    asked = OverridesParser.create().parse_overrides(["experiment=mine"])
    with pytest.raises(SettingError, match=r"must begin with .* @package _global_"):
        check_experiment(asked, tmp_path)


def test_broken_yaml_is_named_by_file_and_line(tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\nsweep: [a\nb: 1\n")
    asked = OverridesParser.create().parse_overrides(["experiment=mine"])
    with pytest.raises(yaml.YAMLError) as raised:
        check_experiment(asked, tmp_path)
    assert f"of {tmp_path}/experiment/mine.yaml is no YAML" in sentence(raised.value)


def test_an_experiment_may_be_narrowed_widened_and_changed_under_another_name():
    assert len(compose_sweep(["experiment=ratio", "mix=gdn", "size=60m", "seed=0,1,2,3"])) == 4
    (other,) = compose_sweep(
        ["experiment=olmo_hybrid", "protocol=controlled", "mix=gdn", "size=60m", "sweep=mine"]
    )
    assert (other["sweep"], other["protocol"]["name"]) == ("mine", "controlled")
    (same,) = compose_sweep(["experiment=ratio", "protocol=controlled", "mix=gdn", "size=60m",
                             "seed=0"])  # fmt: skip
    assert same["sweep"] == "ratio"


def test_olmo_hybrid_shows_its_confounds_under_the_plan():
    text = " ".join(shown(planned("experiment=olmo_hybrid")).split())
    assert "Confounds against transformer" in text
    assert "gdn3_attn1 +15.8 to +40.9 %" in text
    assert "gdn1_attn1 12 of 16 → 4 of 8" in text
    assert "gdn3_attn1_middle 12 of 16 → 3 of 5" in text
    controlled = shown(planned("experiment=hybrid_ladder"))
    assert "windows:" not in controlled
    assert "parameters:" not in controlled


def share_of_peak(spec, gpu, devices=1):
    """What a model of the step allows, times the stated efficiency."""
    step = roofline.step(
        spec.model, spec.recipe.context, GPUS[gpu], batch_tokens=spec.recipe.batch_tokens,
        gpus=devices,
    )  # fmt: skip
    return step.mfu * GPUS[gpu].efficiency


def test_gpu_hours_are_flops_over_the_stated_share_of_the_peak():
    (one,) = planned("mix=gdn3_attn1", "size=1b").estimates
    flops = one.spec.counts.flops_per_token * one.spec.recipe.tokens
    assert one.mfu == share_of_peak(one.spec, "H200")
    assert one.gpu_hours == pytest.approx(flops / (one.mfu * 989e12) / 3600)
    a100s = parse(slurm_settings(gpu_kind="A100", gpus=8))
    (other,) = planned("size=1b", cluster=a100s).estimates
    assert other.gpu_hours == pytest.approx(
        other.flops / (share_of_peak(other.spec, "A100") * 312e12) / 3600
    )
    assert other.gpus == 8
    assert "A100 h" in shown(planned("size=1b", cluster=a100s))


def test_a_plan_says_what_share_of_the_peak_it_takes_and_why():
    text = " ".join(shown(planned("mix=transformer", "size=60m,1b")).split())
    assert re.search(
        r"3\d % to 5\d % of 989 TFLOP/s on one H200, 60 % of what a model of the step allows "
        r"\(python -m models.roofline\)",
        text,
    )


def test_a_plan_for_slurm_tells_its_time_there_and_none_here():
    cluster = parse(slurm_settings(gpu_kind="H100", sizes={"1b": {"gpus": 8}}))
    runs = specs("mix=transformer", "size=60m,1b", "seed=0,1")
    plan = make_plan(runs, Path("/nowhere"), None, cluster)
    for e in plan.estimates:
        flops = e.spec.counts.flops_per_token * e.spec.recipe.tokens
        ranks = 8 if e.spec.size.name == "1b" else 1
        share = share_of_peak(e.spec, "H100", ranks)
        assert e.seconds == pytest.approx(flops / (share * 989e12 * ranks))
    assert plan.hours == max(e.seconds for e in plan.estimates) / 3600
    # Three at a time: two of the larger, or the smaller would wait for no reason.
    three = make_plan(runs, Path("/nowhere"), 3, cluster)
    assert {(len(a.members), a.shape.gpus, a.at_once) for a in three.arrays} == {
        (2, 8, 2), (2, 1, 1)
    }  # fmt: skip
    text = shown(three)
    assert "on Slurm (3 at a time" in text
    assert "here" not in text
    assert "years" not in text
    console = Console(width=120, highlight=False, markup=False)
    with console.capture() as capture:
        show_arrays(three, console)
    told = capture.get()
    assert "2 × (1 node × 8 GPUs, 240 min) for 1b, 2 at a time; up to " in told
    assert "at most 3 runs at a time in all" in told


def test_a_cpu_of_a_cluster_is_as_fast_as_its_cores():
    cluster = parse(slurm_settings(gpus=0, cpus=4))
    (e,) = make_plan(specs("size=50k"), Path("/nowhere"), None, cluster).estimates
    assert e.gpus is None
    begins = IMPORT_SECONDS + START_SECONDS
    assert e.seconds == pytest.approx((e.flops + e.evaluation_flops) / (4 * 8e9) + begins)


def test_one_run_of_1m_trains_here_in_the_time_that_was_measured(monkeypatch):
    monkeypatch.setattr(planning, "cores", lambda: 2)
    plan = planned("mix=gdn3_attn1", "size=1m")
    # 7,061 tokens/s on two threads: docs/performance.md.
    assert plan.hours * 3600 == pytest.approx(plan.estimates[0].spec.recipe.tokens / 7061, rel=0.2)
    assert plan.hours < 2  # max_local_hours


def test_a_narrow_terminal_loses_columns_and_no_figures():
    plan = planned("mix=transformer,gdn3_attn1_middle", "size=50k,1b")
    for width in (80, 60):
        rows = [line for line in shown(plan, width).splitlines() if line.startswith(" gdn3")]
        assert rows
        assert not any("…" in row for row in rows)
        assert "years" in rows[1]  # how long, to the last


def test_totals_by_mix_are_sums_of_its_sizes():
    text = shown(planned("mix=transformer,gdn", "size=60m,100m", "seed=0,1"))
    plan = planned("mix=gdn", "size=60m,100m", "seed=0,1")
    (row,) = (line for line in text.splitlines() if re.match(r"\s*gdn +all", line))
    assert "0 of 4" in row
    assert f"{sum(e.flops for e in plan.estimates):.3g}".replace("+", "") in row
    assert f"~{sum(e.gpu_hours for e in plan.estimates):.1f}" in row


def test_nothing_of_the_table_is_cut_on_a_line_of_120():
    assert "…" not in shown(planned("experiment=gdn_parts"))
    assert "…" not in shown(planned("mix=transformer,gdn3_attn1_middle", "size=50k,1b"))


def finished(root, spec, *, seconds, tokens=None, kind="cpu", name="CPU", count=1):
    run = RunDirectory(root / "before" / f"{spec.run_name}-{kind}{count}{name.replace(' ', '')}")
    run.write_spec(spec.record())
    device = {"kind": kind, "name": name, "count": count}
    run.write_manifest({"counts": to_dict(spec.counts), "device": device})
    run.write_status("done", tokens=tokens or spec.recipe.tokens, seconds=seconds)
    return run


def test_hours_follow_a_measured_run_of_that_mix_and_size(tmp_path):
    plan = planned("mix=gdn", "size=50k,100k", "seed=0,1")
    finished(tmp_path, plan.estimates[0].spec, seconds=50.0)
    again = planned("mix=gdn", "size=50k,100k", "seed=0,1", runs_root=tmp_path)
    assert [e.measured for e in again.estimates] == [e.spec.size.name == "50k" for e in
                                                     plan.estimates]  # fmt: skip
    seconds = [
        50.0 * (1 + e.evaluation_flops / e.flops) + START_SECONDS for e in again.estimates[:2]
    ]
    assert [e.seconds for e in again.estimates if e.measured] == pytest.approx(seconds)
    assert "others as measured" in shown(again)


def test_rates_are_a_device_and_of_its_own_kind(tmp_path):
    spec = planned("size=50k").estimates[0].spec
    key = ("transformer", spec.counts.N, 256)
    gpu = {"kind": "cuda", "name": "NVIDIA H200"}
    finished(tmp_path, spec, seconds=100.0, tokens=10_000)
    finished(tmp_path, spec, seconds=10.0, tokens=80_000, count=8, **gpu)
    finished(tmp_path, spec, seconds=10.0, tokens=5, kind="cuda", name="NVIDIA A100-SXM4-80GB")
    assert measured_rates(tmp_path, "cpu") == {key: 100.0}
    assert measured_rates(tmp_path, "cuda", "H200") == {key: 1000.0}
    (tmp_path / "before" / "broken").mkdir()
    RunDirectory(tmp_path / "before" / "broken").write_status("done", tokens=1, seconds=1)
    assert measured_rates(tmp_path, "cpu") == {key: 100.0}


def test_what_is_done_is_not_to_do_and_what_has_begun_is_said(tmp_path):
    plan = planned("mix=gdn", "size=50k", "seed=0,1,2", "sweep=s")
    for estimate, state in zip(plan.estimates, ("done", "preempted", None), strict=True):
        if state:
            run = RunDirectory(tmp_path / "s" / estimate.spec.run_name)
            run.write_spec(estimate.spec.record())
            run.write_status(state)
        if state == "done":
            for milestone in estimate.spec.recipe.milestones:
                D = milestone.step * estimate.spec.recipe.batch_tokens
                run.append("points.jsonl", {"step": milestone.step, "N": 1, "D": D, "loss": 1.0})
    again = planned("mix=gdn", "size=50k", "seed=0,1,2", "sweep=s", runs_root=tmp_path)
    assert len(again.todo) == 2
    assert "3 runs, 1 done, 1 begun and going on" in shown(again)


def test_a_sweep_takes_no_less_than_its_longest_run():
    one = planned("size=50k").estimates[0]
    estimates = tuple(dataclasses.replace(one, seconds=s) for s in (3600.0, 60.0, 60.0))
    assert planning.Plan(estimates, 3, 1).hours == 1.0
    assert planning.Plan(estimates, 1, 1).hours == pytest.approx(3720 / 3600)


def test_a_plan_says_which_runs_would_be_refused_for_their_epochs():
    text = shown(planned("mix=gdn", "size=50k,1m", "protocol.max_epochs=0.1"))
    (line,) = [line for line in text.splitlines() if line.startswith("would be refused: ")]
    assert "size=1m" in line
    assert "protocol.max_epochs=0.1" in line


def test_a_plan_says_which_sizes_it_only_tries():
    text = shown(planned("mix=gdn", "size=50k,1m", "protocol.max_steps=40"))
    assert "tries: 40 steps, no point of the ladder" in text
    plan = planned("mix=gdn", "size=50k,1m", "protocol.max_steps=2000")
    assert [e.spec.recipe.ladder_steps is None for e in plan.estimates] == [True, False]
    assert "tries (1m): 2000 steps" in shown(plan)
    assert "tries" not in shown(planned("mix=gdn", "size=50k"))


def test_days_follow_the_gpus_that_one_has():
    runs = specs("mix=transformer", "size=1b", "seed=0,1,2,3")
    cluster = parse(slurm_settings(gpu_kind="H100", sizes={"1b": {"gpus": 8}}))
    free = make_plan(runs, Path("/nowhere"), None, cluster)
    for most, rounds in ((32, 1), (16, 2), (24, 2), (8, 4)):
        bound = make_plan(runs, Path("/nowhere"), None, dataclasses.replace(cluster, max_gpus=most))
        assert bound.hours == pytest.approx(rounds * free.hours)
        assert bound.hours_of_gpus == pytest.approx(free.hours_of_gpus)
        assert f"on at most {most} GPUs" in shown(bound, 300)
    # GPU-hours are those of one GPU, however many share a run, and some for summing gradients.
    alone = sum(e.gpu_hours for e in free.estimates)
    assert alone < free.hours_of_gpus < 1.05 * alone
    # A limit on runs holds beside it.
    both = make_plan(runs, Path("/nowhere"), 1, dataclasses.replace(cluster, max_gpus=32))
    assert both.hours == pytest.approx(4 * free.hours)


def test_a_run_alone_is_given_no_more_gpus_than_it_may_have(monkeypatch):
    monkeypatch.setattr(planning, "gpus_of_this_machine", lambda: ("H100", 8))
    alone = specs("size=1b")
    assert make_plan(alone, Path("/nowhere"), None).devices == 8
    assert make_plan(alone, Path("/nowhere"), None, max_gpus=3).devices == 3


@pytest.mark.parametrize(
    ("mix", "gpus", "backend", "installed", "words"),
    [
        ("gdn", 1, "auto", True, "fla, where a check on the node finds it right, else chunked."),
        (
            "gdn",
            1,
            "auto",
            False,
            "chunked, as fla is not installed here; .*pip install '\\.\\[gpu\\]'",
        ),
        ("gdn", 1, "chunked", True, "chunked, as asked for; chunked is plain PyTorch, slower"),
        ("gdn", 0, "auto", True, "chunked, the form for a CPU."),
        ("gdn", 0, "naive", False, "naive, as asked for; naive, .*10 to 30 times as long"),
        ("transformer", 1, "auto", False, None),
    ],
)
def test_a_plan_says_which_operators_will_be_used(
    mix, gpus, backend, installed, words, monkeypatch
):
    found = object() if installed else None
    monkeypatch.setattr(planning.importlib.util, "find_spec", lambda _: found)
    cluster = parse(slurm_settings(gpus=gpus))
    asked = specs(f"mix={mix}", "size=60m", f"resources.backend={backend}")
    text = shown(make_plan(asked, Path("/nowhere"), None, cluster), 300)
    told = [line for line in text.splitlines() if line.startswith("recurrent operators: ")]
    assert len(told) == (words is not None)
    assert words is None or re.match(f"recurrent operators: {words}", told[0])


def test_evaluation_is_a_forward_pass_over_the_held_out_text_at_every_point():
    held_out = [part["tokens"] for part in embedded_manifest()["validation"].values()]
    (all_of_it,) = planned("size=50k").estimates
    points, flops = 3, all_of_it.spec.counts.flops_per_token
    assert all_of_it.evaluation_flops == pytest.approx(points * sum(held_out) * flops / 3)
    (some,) = planned("size=50k", "data.eval_tokens=2048").estimates
    assert some.evaluation_flops == pytest.approx(points * 4 * 2048 * flops / 3)
    more = all_of_it.evaluation_flops - some.evaluation_flops
    assert all_of_it.seconds - some.seconds == pytest.approx(more / (8e9 * planning.cores()))
    (probed,) = planned(
        "size=50k", "evaluation.probes=[recall]", "evaluation.lengths=[64]"
    ).estimates
    assert probed.evaluation_flops - all_of_it.evaluation_flops == pytest.approx(
        points * 32 * 64 * count(probed.spec.model, 64).flops_per_token / 3
    )


def test_a_plan_says_what_its_hours_hold():
    here = shown(planned("size=50k"), 400)
    assert (
        f"of training's FLOPs), {START_SECONDS:g} s to start a run, and once 6 s of imports" in here
    )
    nodes = shown(planned("size=50k", cluster=parse(slurm_settings(gpus=0, cpus=1))), 400)
    assert f"of training's FLOPs) and {IMPORT_SECONDS + START_SECONDS:g} s to start a run" in nodes


def test_imports_are_waited_for_once_here_and_by_each_run_on_a_node():
    one, six = (planned("size=50k", f"seed={seeds}") for seeds in ("0", "0,1,2,3,4,5"))
    a_run = one.estimates[0].seconds
    assert one.hours * 3600 == pytest.approx(a_run + IMPORT_SECONDS)
    assert six.hours * 3600 == pytest.approx(
        6 / six.parallel * six.estimates[0].seconds + IMPORT_SECONDS
    )
    assert planning.Plan((), 2, 1, before_seconds=9.0).hours == 0.0
    there = shown(planned("size=60m", cluster=parse(slurm_settings(gpus=1))), 400)
    assert "evaluation only once a corpus is named; not starting and compiling" in there
