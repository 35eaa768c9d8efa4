"""Caveats of reports of simulated ladders, and what a report says against its own tables."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from synthetic_sweeps import DATA, TRUTH, SweepWriter, grid_points, write_ladder

from analysis.report import sections
from analysis.report.document import Block, Bullets, Heading, Linked, Table, Text, markdown
from analysis.report.figures.drawing import Gallery
from analysis.stats.laws import Chinchilla
from analysis.study.answer import caveats, control_caveats, twinless
from analysis.study.caveats import KINDS, Caveat, Severity, ranked
from analysis.study.checks import doubts
from analysis.study.findings import Findings, find
from analysis.study.source import from_csv, from_frame, from_sweeps

MOST_WORDS = 25
ROOT = Path(__file__).parents[2]


def bent(sweep: SweepWriter) -> None:
    """A ladder of seeds that agree with one another and not with the law."""
    write_ladder(sweep)
    for path in sweep.path.glob("*-100k-*/points.jsonl"):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        rows[1]["loss"] *= 1.05
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def at_rates(sweep: SweepWriter) -> None:
    """Two learning rates, each an arm, and a third that the baseline has no twin of."""
    for mix in ("transformer", "gdn3_attn1", "gdn"):
        for size in ("50k", "100k", "200k"):
            for rate in (1.0, 2.0) if mix != "gdn" else (1.0, 4.0):
                sweep.run(mix, size, 0, protocol={"lr_multiplier": rate})


def still_running(sweep: SweepWriter) -> None:
    write_ladder(sweep)
    sweep.run("gdn3_attn1", "200k", 2, finished=1)
    sweep.run("transformer", "200k", 2, finished=0, state="failed")
    broken = sweep.run("gdn3_attn1", "50k", 3)
    (broken.path / "points.jsonl").write_text('{"mix": 3}\n')


def one_mix_unfit(sweep: SweepWriter) -> None:
    write_ladder(sweep, mixes=("transformer", "gdn3_attn1"), seeds=(0,))
    write_ladder(sweep, mixes=("gdn",), sizes=("50k",), seeds=(0,))


SWEEPS: dict[str, Callable[[SweepWriter], None]] = {
    "two seeds": write_ladder,
    "one seed": lambda sweep: write_ladder(sweep, seeds=(0,)),
    "two sizes": lambda sweep: write_ladder(sweep, sizes=("50k", "100k")),
    "two sizes, one seed": lambda s: write_ladder(s, sizes=("50k", "100k"), seeds=(0,)),
    "saving below 1": lambda sweep: write_ladder(sweep, mixes=("transformer", "gdn")),
    "noisy": lambda sweep: write_ladder(SweepWriter(sweep.path, run_sd=0.05)),
    "law that fails": bent,
    "arms": at_rates,
    "still running": still_running,
    "one mix unfit": one_mix_unfit,
    "one mix": lambda sweep: write_ladder(sweep, mixes=("gdn",)),
}


def without_columns() -> pd.DataFrame:
    return grid_points(TRUTH, noise=0.002)[["mix", "N", "D", "loss"]]


def of_other_units() -> pd.DataFrame:
    points = grid_points({name: TRUTH[name] for name in ("transformer", "gdn3_attn1")})
    own = points["mix"] == "gdn3_attn1"
    points["loss"] = points["loss"].where(~own, points["loss"] / np.log(2))
    points["N"] = points["N"].where(own, 1.05 * points["N"])
    again = points[:2].assign(loss=lambda table: 1.001 * table["loss"])
    return pd.concat([points, again], ignore_index=True)[["mix", "size", "N", "D", "loss"]]


FRAMES: dict[str, Callable[[], pd.DataFrame]] = {
    "no columns": without_columns,
    "other units": of_other_units,
    "in millions": lambda: without_columns().assign(D=lambda t: t["D"] / 1e9),
    "copied": lambda: pd.concat(
        [grid_points(TRUTH), grid_points(TRUTH).assign(seed=1, run=lambda t: t["run"] + "-b")]
    ),
    "near sizes": lambda: near_sizes(),
}


def near_sizes() -> pd.DataFrame:
    """Each size twice, as architectures whose N differ by 0.9 %, with names of their own."""
    rows = []
    for name, factor in (("wide", 1.0), ("deep", 1.009)):
        own = grid_points(TRUTH, noise=0.002, seed=int(1000 * factor))
        rows.append(own.assign(N=factor * own["N"], run=name + "-" + own["run"]))
    return pd.concat(rows, ignore_index=True)[["mix", "run", "N", "D", "loss"]]


@dataclass(frozen=True)
class Told:
    """A report as found, its blocks and its Markdown."""

    found: Findings
    blocks: list[Block]
    text: str

    @property
    def keep(self) -> list[Caveat]:
        return caveats(self.found.study, self.found.sweep, self.found.comparisons)

    def section(self, title: str) -> list[Block]:
        """The blocks under a heading of level 2, or before the first for no title."""
        own: list[Block] = []
        here = ""
        for block in self.blocks:
            if isinstance(block, Heading) and block.level == 2:
                here = block.text
            elif here == title:
                own.append(block)
        return own


def told_of(found: Findings) -> Told:
    blocks = list(sections.report(found, Gallery()))
    return Told(found, blocks, markdown(blocks))


RECORDS = ("demo", "rate_by_mix", "xlstm")
QUICK = ("two sizes", "two sizes, one seed", "law that fails", "one mix unfit", "saving below 1")


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(QUICK, id="quick"),
        pytest.param(
            tuple(name for name in (*SWEEPS, *FRAMES, *RECORDS) if name not in QUICK),
            id="others",
            marks=pytest.mark.slow,
        ),
    ],
)
def reports(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Told]:
    """Reports of simulated ladders, of points alone, and of records that stand here."""
    folder = tmp_path_factory.mktemp("ladders")
    return {name: told_of(found_in(name, folder)) for name in request.param}


def found_in(name: str, folder: Path) -> Findings:
    if name in SWEEPS:
        writer = SweepWriter(folder / name.replace(" ", "_").replace(",", ""))
        SWEEPS[name](writer)
        sweep = from_sweeps([writer.path])
    elif name in FRAMES:
        sweep = from_frame(FRAMES[name]())
    elif name == "xlstm":
        sweep = from_csv(DATA / "xlstm_tokenparam.csv")
    else:
        sweep = from_sweeps([ROOT / "notebooks" / "records" / name])
    return find(sweep, "transformer", 30, 0, "python -m analysis report")


def test_every_kind_of_caveat_has_a_severity_and_a_section() -> None:
    assert set(sections.SHOWN_IN) == set(KINDS)
    assert set(sections.IN_TABLES) <= set(KINDS)


def test_what_overturns_an_answer_comes_before_what_shades_it() -> None:
    shuffled = [Caveat(kind, kind) for kind in sorted(KINDS)]
    severities = [one.severity for one in ranked(shuffled)]
    assert severities == sorted(severities, reverse=True)
    for worse, milder in (
        ("lack of fit", "one seed"), ("includes 1", "one seed"), ("one seed", "confounds"),
        ("extrapolated", "confounds"), ("confounds", "unfinished"),
    ):  # fmt: skip
        assert KINDS[worse] > KINDS[milder]
    assert max(Severity) == Severity.OVERTURNS


def test_caveats_are_short_ranked_said_once_and_lead_to_what_they_say(
    reports: dict[str, Told],
) -> None:
    kinds = set()
    for name, told in reports.items():
        keep = told.keep
        kinds |= {one.kind for one in keep}
        assert [one.severity for one in keep] == sorted((o.severity for o in keep), reverse=True)
        for one in keep:
            assert len(one.text.split()) <= MOST_WORDS, (name, one.text)
            # One sentence: it ends once.
            assert re.fullmatch(r".*[.?]", one.text), one.text
            assert not re.search(r"[.?!] [A-Z]", one.text), one.text
        # Nor the same sentence of another mix or arm.
        mixes = sorted(told.found.points["mix"].unique(), key=len, reverse=True)
        bare = [re.sub("|".join(map(re.escape, mixes)), "M", one.text) for one in keep]
        assert len(set(bare)) == len(bare), (name, bare)
        (linked,) = [one for one in told.blocks if isinstance(one, Linked)] if keep else [None]
        if linked is None:
            continue
        assert [text for text, _ in linked.items] == [one.text for one in keep]
        for (_, head), one in zip(linked.items, keep, strict=True):
            assert head in told.blocks
            if one.kind not in sections.IN_TABLES:
                shown = [b.items for b in told.section(head.text) if isinstance(b, Bullets)]
                assert set(one.more) <= {item for items in shown for item in items}
    if "arms" in reports:  # these meet with most of what there is to say
        missing = set(KINDS) - kinds
        assert missing <= {
            "unnamed", "incomplete", "epochs", "rising", "FLOPs", "lack of fit"
        }, missing  # fmt: skip
    else:
        assert {"lack of fit", "one seed", "extrapolated", "confounds"} <= kinds


def test_links_within_the_markdown_lead_to_headings_as_github_names_them(
    reports: dict[str, Told],
) -> None:
    for told in reports.values():
        headings = re.findall(r"^#+ (.*)$", told.text, re.MULTILINE)
        # GitHub: lower case, letters, digits, hyphens and spaces alone, spaces to hyphens.
        anchors = {re.sub(r"[^\w\- ]", "", one.lower()).replace(" ", "-") for one in headings}
        links = re.findall(r"\]\(#([^)]+)\)", told.text)
        assert set(links) <= anchors


def test_an_arms_caveat_is_said_once_and_names_the_arms(tmp_path: Path) -> None:
    found = found_in("arms", tmp_path)
    keep = control_caveats(found.comparisons)
    (confounds,) = [one for one in keep if one.kind == "confounds"]
    assert confounds.text == "Confounds of gdn@lr_multiplier=1: MLP width."
    (alone,) = twinless(found.study.arms, found.study.mixes, "transformer")
    assert alone.text.startswith("gdn@lr_multiplier=4: not compared")
    records = from_sweeps([ROOT / "notebooks" / "records" / "rate_by_mix"])
    found = find(records, "transformer", 30, 0, "")
    (both,) = [one for one in control_caveats(found.comparisons) if one.kind == "confounds"]
    assert "gdn3_attn1@lr_multiplier=0.5, gdn3_attn1@lr_multiplier=1: FLOPs" in both.text


def numbers(text: str) -> list[float]:
    return [float(one) for one in re.findall(r"-?\d+(?:\.\d+)?", text)]


def cells_of(blocks: list[Block], column: str) -> list[str]:
    """The cells of the columns whose name begins so."""
    return [
        str(cell)
        for block in blocks
        if isinstance(block, Table)
        for place, name in enumerate(block.cells.columns)
        if str(name).startswith(column)
        for cell in block.cells.iloc[:, place]
    ]


INTERVAL = re.compile(r"[\d.∞-]+ \[[^\]]+\]")


def test_the_intervals_of_the_answer_stand_in_the_tables_below(reports: dict[str, Told]) -> None:
    with_answers = 0
    for name, told in reports.items():
        leads = [one.text for one in told.section("") if isinstance(one, Text) and one.lead]
        assert leads
        tables = [
            *cells_of(told.section("Token savings"), "token savings ["),
            *cells_of(told.section("Token savings"), "savings, mean of seeds ["),
            *cells_of(told.section("What other treatments do to savings"), "ratio"),
        ]
        for lead in leads:
            for interval in INTERVAL.findall(lead):
                with_answers += 1
                assert interval in tables, (name, interval, tables)
    assert with_answers > 3


def test_no_interval_is_said_only_where_no_table_has_one(reports: dict[str, Told]) -> None:
    met = 0
    for name, told in reports.items():
        for title in {b.text for b in told.blocks if isinstance(b, Heading) and b.level == 2}:
            blocks = told.section(title)
            said = " ".join(b.text for b in blocks if isinstance(b, Text))
            if "an interval would need" in said:
                met += 1
                cells = cells_of(blocks, "savings, mean of seeds [")
                assert cells
                assert not any("[" in cell for cell in cells), (name, cells)
        leads = " ".join(b.text for b in told.section("") if isinstance(b, Text))
        for mixes in re.findall(r"No interval yet for ([^*]+?), as no law", leads):
            met += 1
            for mix in mixes.split(", "):
                rows = [
                    row
                    for block in told.section("Token savings")
                    if isinstance(block, Table)
                    for row in block.cells.to_dict("records")
                    if row.get("mix") == mix
                ]
                assert not any("[" in str(cell) for row in rows for cell in row.values())
    assert met


def test_verdicts_agree_with_the_intervals_they_judge(reports: dict[str, Told]) -> None:
    judged = 0
    for name, told in reports.items():
        for block in told.section(""):
            if not (isinstance(block, Text) and block.lead):
                continue
            for low, high, verdict in re.findall(
                r"\[([\d.]+), ([\d.∞]+)\] \(95 % interval[^)]*\); the (?:whole )?interval "
                r"(includes 1|excludes 1|is below 1)",
                block.text,
            ):
                judged += 1
                ends = float(low), float(high.replace("∞", "inf"))
                if verdict == "includes 1":
                    assert ends[0] <= 1 <= ends[1], (name, block.text)
                elif verdict == "excludes 1" and "multiplies" not in block.text:
                    assert ends[0] >= 1, (name, block.text)
                elif verdict == "is below 1":
                    assert ends[1] <= 1, (name, block.text)
        keep = {one.kind: one for one in told.keep}
        said = "includes 1: no saving" in " ".join(
            b.text for b in told.section("") if isinstance(b, Text) and b.lead
        )
        assert ("includes 1" in keep) == said, name
    assert judged > 2


def test_the_checklist_agrees_with_the_caveats(reports: dict[str, Told]) -> None:
    for name, told in reports.items():
        (table,) = [b for b in told.section("Reviewers' checklist") if isinstance(b, Table)]
        rows = {row["question"]: row for row in table.cells.to_dict("records")}
        kinds = {one.kind for one in told.keep}
        fails = rows["Does the law describe the points?"]["answer"] == "**no**"
        assert fails == ("lack of fit" in kinds), name
        if "one seed" in kinds:
            assert rows["Several seeds everywhere?"]["answer"] == "**no**", name
        if "three sizes" in kinds:
            assert rows["Nothing else differed?"]["answer"] in ("yes", "**no**", "not recorded")
        if "confounds" in kinds:
            assert rows["Nothing else differed?"]["answer"] == "**no**", name
        if "unfinished" in kinds:
            assert rows["Are all runs finished, and all points kept?"]["answer"] == "**no**", name


def test_names_in_what_was_left_out_are_text(tmp_path: Path) -> None:
    points = grid_points({"transformer": TRUTH["transformer"]})
    points = points.astype({"run": object, "loss": object})
    points.loc[3, "run"], points.loc[3, "loss"] = "**bold**<b>", np.nan
    found = find(from_frame(points), "transformer", 20, 0, "")
    text = told_of(found.literal).text
    assert r"run=\*\*bold\*\*\<b\>" in text


def test_sizes_that_count_as_one_are_named_with_how_far_they_differ() -> None:
    law = Chinchilla(0.9, 60.0, 0.42, 90.0, 0.35)
    rows = [
        ("a", run, factor * N, D, float(law.loss(factor * N, D)))
        for run, factor in (("wide", 1.0), ("deep", 1.009))
        for N in (1_030_000, 2_000_000, 4_000_000)
        for D in (20 * N, 40 * N, 80 * N)
        if N == 1_030_000 or run == "wide"
    ]
    frame = pd.DataFrame(rows, columns=["mix", "run", "N", "D", "loss"])
    told = {one.kind: one for one in doubts(from_frame(frame).points)}
    assert told["one size"].text == (
        "N = 1.03M and 1.039M of mix=a count as one size (they differ by 0.9 %)."
    )
    assert "deep, a" in told["as seeds"].more[0] or "deep" in told["as seeds"].more[0]
    # Sizes with names of their own, or further apart, are kept apart and nothing is said.
    named = frame.assign(size=frame["N"].astype(str), run=frame["run"] + frame["N"].astype(str))
    apart = frame.assign(N=frame["N"].where(frame["run"] == "wide", 1.03 * frame["N"]))
    for points in (named, apart):
        assert not {"one size", "as seeds"} & {
            one.kind for one in doubts(from_frame(points).points)
        }
