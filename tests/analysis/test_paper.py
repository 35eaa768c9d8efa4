"""Tables for a paper: seven columns at most, LaTeX that compiles, notes for what is not there."""

from __future__ import annotations

import contextlib
import io
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from synthetic_sweeps import DATA, TRUTH, SweepWriter, write_ladder
from test_probes import probe_run

from ablations.records import RunDirectory
from analysis.__main__ import main
from analysis.foreign import literal
from analysis.report.latex import Column, Paper, latex, name, tex
from analysis.report.paper import other_latex, report_latex
from analysis.report.results import results_table
from analysis.report.write import cells
from analysis.study.findings import Findings, find
from analysis.study.load import Sweep, load_sweep
from analysis.study.source import from_frame

XLSTM = DATA / "xlstm_tokenparam.csv"
CLASSES = {
    "article": r"\documentclass[twocolumn]{article}",
    "columns of 3.25 inches": r"\documentclass[twocolumn]{article}"
    r"\setlength{\textwidth}{6.75in}\setlength{\columnsep}{0.25in}\setlength{\oddsidemargin}{0pt}",
}
LONG = "hybrid_with_a_very_long_name_of_many_words_that_somebody_gave_it_3to1"
HOSTILE = r"[x]*{\input{/etc/passwd}}$a_b^c$ % # & ~ `**b**` | " + "ü中\x1b"


def points(
    mixes: int, sizes: int = 4, seeds: int = 2, lr: tuple[float, ...] = (), names: str = "mix"
) -> pd.DataFrame:
    """Points of a law with noise, each mix 10 % better than the last."""
    rng = np.random.default_rng(mixes + 10 * sizes)
    law = TRUTH["transformer"]
    rows = []
    for place in range(mixes):
        mix = "transformer" if not place else f"{names}_{place}"
        for rate in lr or (1.0,):
            for N in np.geomspace(5e4, 4e5, sizes):
                for seed in range(seeds):
                    luck = rng.normal(0, 0.002)
                    for ratio in (20, 40, 80):
                        loss = law.loss(N, ratio * N * 1.1**place * rate**0.2)
                        noise = np.exp(luck + rng.normal(0, 0.001))
                        rows.append(
                            (mix, f"{N:.0f}", N, ratio * N, float(loss) * noise, seed, rate)
                        )
    columns = ["mix", "size", "N", "D", "loss", "seed", "lr"]
    return pd.DataFrame(rows, columns=columns).drop(columns=[] if lr else "lr")


def studied(sweep: Sweep, resamples: int = 8) -> Findings:
    return find(sweep, "transformer", resamples, 0, "python -m analysis tables")


@pytest.fixture(scope="module")
def ladder(tmp_path_factory: pytest.TempPathFactory) -> Findings:
    """Runs with probes and a confound: the hybrid has 2 % more parameters."""
    writer = SweepWriter(tmp_path_factory.mktemp("runs") / "trial")
    write_ladder(writer, ("transformer",))
    for size in ("50k", "100k", "200k"):
        for seed in (0, 1):
            writer.run("gdn3_attn1", size, seed, n_factor=1.02)
    for run in load_sweep(writer.path).runs:
        probe_run(RunDirectory(writer.path / run.name), run.mix, run.seed)
    return studied(load_sweep(writer.path))


@pytest.fixture(scope="module")
def all_tables(ladder: Findings) -> dict[str, str]:
    """Every table of several ladders as LaTeX by name.

    Slow, as each ladder is fitted and resampled whole; shared by all tests.
    """
    five = points(5, sizes=3, seeds=1, names=LONG)
    five["mix"] = five["mix"].replace({f"{LONG}_1": HOSTILE})
    several = {
        "ladder": ladder,
        "arms": studied(from_frame(points(2, sizes=3, lr=(0.5, 2.0), names="gdn3_attn1"),
                                   treatments=["lr"])),
        "five": studied(from_frame(five)),
    }  # fmt: skip
    wide = studied(from_frame(points(2, sizes=9, seeds=1)))
    return {
        f"{which} {kind}": report_latex(kind, found.literal, table)
        for which, found in several.items()
        for kind, table in cells(found).items()
    } | {"wide results": report_latex("results_loss", wide, results_table(wide, "loss"))}


def answered(*arguments: str) -> str:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert main([*arguments, "format=latex"]) == 0
    return out.getvalue()


ANSWERS = {
    "chinchilla": ("fit", "POINTS"),
    "gamma": ("fit", str(XLSTM), "law=gamma"),
    "ray": ("fit", "POINTS", "law=ray", "ratio=20"),
    "N": ("fit", "ONE_D", "law=N"),
    "D": ("fit", "ONE_N", "law=D"),
    "envelope": ("fit", "CURVES", "law=envelope", "resamples=20"),
    "isoflop": ("fit", "ISOFLOP", "law=isoflop", "resamples=20"),
    "all models": ("fit", "POINTS", "model=all", "resamples=2"),
    "savings": ("savings", "ARMS", "treatments=lr", "resamples=20"),
    "far savings": ("savings", "POINTS", "at=N=1e12,D=2e13", "resamples=20"),
    "places": ("predict", "POINTS", "at=N=1e9,D=2e10", "at=C=1e21", "resamples=20"),
    "compare": ("compare", "POINTS", "resamples=20"),
}


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What commands print as LaTeX, one of each law; slow for the same reason."""
    folder = tmp_path_factory.mktemp("points")
    table = points(2, sizes=3)
    iso = [
        ("transformer", N, C / 6 / N, float(TRUTH["transformer"].loss(N, C / 6 / N)))
        for C in (1e12, 1e13, 1e14) for N in np.geomspace(1e4, 3e7, 9)
    ]  # fmt: skip
    curves = [
        ("transformer", N, D, float(TRUTH["transformer"].loss(N, D)))
        for N in np.geomspace(1e4, 3e6, 6) for D in np.geomspace(1e5, 1e9, 30)
    ]  # fmt: skip
    files = {
        "POINTS": table,
        "ARMS": points(2, sizes=3, lr=(0.5, 2.0), names=LONG),
        "ONE_N": table[table["N"] == table["N"].max()],
        "ONE_D": table[["mix", "N", "loss", "seed"]][::3].assign(D=1e9),
        "CURVES": pd.DataFrame(curves, columns=["mix", "N", "D", "loss"]),
        "ISOFLOP": pd.DataFrame(iso, columns=["mix", "N", "D", "loss"]),
    }
    for key, own in files.items():
        own.to_csv(folder / f"{key}.csv", index=False)
    return {
        key: answered(*(str(folder / f"{word}.csv") if word in files else word
                                for word in command))
        for key, command in ANSWERS.items()
    }  # fmt: skip


def floats(text: str) -> Iterator[str]:
    yield from re.findall(r"\\begin\{table\*?\}.*?\\end\{table\*?\}", text, re.DOTALL)


def rows_of(float_: str) -> list[list[str]]:
    """Cells of the head and the rows, between the rules."""
    body = float_[float_.index(r"\toprule") : float_.index(r"\bottomrule")]
    lines = [line for line in body.splitlines() if line.endswith(r" \\")]
    return [re.split(r" & ", line.removesuffix(r" \\")) for line in lines]


def check(text: str) -> None:
    """What every table must be, as far as its text shows."""
    assert text.isascii()
    found = list(floats(text))
    assert found
    labels = re.findall(r"\\label\{(.+?)\}", text)
    assert len(labels) == len(set(labels)) == len(found)
    for own in found:
        assert r"\caption{" in own
        opened = re.findall(r"\\begin\{(.+?)\}", own)
        assert sorted(opened) == sorted(re.findall(r"\\end\{(.+?)\}", own))
        assert own.replace(r"\{", "").replace(r"\}", "").count("{") == own.replace(
            r"\{", "").replace(r"\}", "").count("}")  # fmt: skip
        assert own.replace(r"\$", "").count("$") % 2 == 0
        head, *rows = rows_of(own)
        assert 1 <= len(head) <= 7
        assert rows
        for cells_ in (head, *rows):
            assert len(cells_) == len(head)
            for cell in cells_:
                bare = re.sub(r"\$[^$]*\$", "", cell.replace(r"\$", ""))
                assert not re.search(r"(?<!\\)[_%#&^]", bare), cell
                assert r"\texttt" in cell or not re.search(r"\b[\d.]+e[+-]?\d", bare), cell
        assert not re.search(r"\de\+", own)


def test_every_table_of_a_report_is_one_a_paper_can_print(all_tables: dict[str, str]) -> None:
    assert len(all_tables) > 30
    for key, text in all_tables.items():
        try:
            check(text)
        except AssertionError as error:
            raise AssertionError(f"{key}: {error}\n{text}") from error


def test_what_commands_answer_is_too(answers: dict[str, str]) -> None:
    for key, text in answers.items():
        try:
            check(text)
        except AssertionError as error:
            raise AssertionError(f"{key}: {error}\n{text}") from error


@pytest.mark.parametrize("layout", CLASSES)
def test_they_compile_and_nothing_reaches_into_a_margin(
    layout: str, all_tables: dict[str, str], answers: dict[str, str], tmp_path: Path
) -> None:
    if not shutil.which("pdflatex"):
        pytest.skip("pdflatex is not installed, so no table was compiled")
    body = "\n\\clearpage\n".join((all_tables | answers).values())
    compiled(CLASSES[layout], body, tmp_path)


def compiled(document_class: str, body: str, folder: Path) -> None:
    text = (
        f"{document_class}\\usepackage{{booktabs,array}}\\begin{{document}}\n{body}\n"
        "\\end{document}\n"
    )
    (folder / "paper.tex").write_text(text)
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper.tex"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace")
    log = (folder / "paper.log").read_text(errors="replace")
    assert done.returncode == 0, log[-3000:]
    wide = [line for line in re.findall(r"Overfull \\hbox \(([\d.]+)pt.*", log) if float(line) > 5]
    assert not wide, re.findall(r"Overfull \\hbox.*(?:\n.*){3}", log)
    assert "Float too large" not in log
    assert "Missing character" not in log


def test_numbers_and_names_are_set_as_a_paper_has_them() -> None:
    assert tex("1.4e+08 [2e-05, ∞]") == r"$1.4 \times 10^{8}$ [$2 \times 10^{-5}$,~$\infty$]"
    assert tex("-0.12 %, +0.3 %") == r"$-0.12$\,\%, +0.3\,\%"
    assert tex("β at C^0.512, N* and R²") == r"$\beta$ at $C^{0.512}$, $N^{*}$ and $R^{2}$"
    assert tex("L = E + A/N^α + B/D^β at 10¹⁸") == (
        r"$L = E + A/N^{\alpha} + B/D^{\beta}$ at 10$^{1}$$^{8}$"
    )
    assert tex("**1.32 [0.67, 4.02]** ±") == r"\textbf{1.32 [0.67,~4.02]} $\pm$"
    assert tex("alpha, A mix along N") == "alpha, A mix along $N$"
    assert name("gdn3_attn1@lr=1e-3") == r"\texttt{gdn3\_attn1@lr=1e-3}"
    assert name("–") == tex("–") == "--"
    assert tex("Čeština, 中") == r"\v{C}e\v{s}tina, \textbackslash{}u4e2d"


def test_wide_cells_wrap_and_a_long_table_goes_on() -> None:
    wide = [f"1.4e+0{i} [1.2e-10, 3.4e+12]" for i in range(6)]
    columns = [Column("Mix", ["gdn3_attn1"] * 6, names=True), *(Column(c, wide) for c in "ABK")]
    text = latex([Paper(columns, "Wide.", "wide")])
    assert r"\begin{table*}" in text
    shares = [float(one) for one in re.findall(r"p\{([\d.]+)\\linewidth\}", text)]
    assert len(shares) >= 3
    assert sum(shares) < 1
    names = [f"m{i}" for i in range(120)]
    narrow = [Column("Mix", names, names=True), Column("N", ["1"] * 120)]
    text = latex([Paper(narrow, "Long.", "long", ["A note."])])
    parts = list(floats(text))
    assert len(parts) > 1
    assert [row[0] for part in parts for row in rows_of(part)[1:]] == [*map(name, names)]
    captions = [f"Long ({i} of {len(parts)})." for i in range(1, len(parts) + 1)]
    assert re.findall(r"\\caption\{(.+)\}", text) == captions
    assert all("A note." in part for part in parts)
    assert "table*" not in text


def test_what_is_unidentified_is_a_dash_with_its_reason_beneath(tmp_path: Path) -> None:
    few = tmp_path / "few.csv"
    table = pd.read_csv(XLSTM)
    table = table[table["tokens_per_param"] <= 100]
    table.to_csv(few, index=False)
    found = studied(from_frame(table), resamples=3)
    for text, cell in (
        (answered("fit", str(few)), "--"),
        (report_latex("fits", found.literal, cells(found)["fits"]), "-- ["),
    ):
        own = next(floats(text))
        rows = {row[0]: row for row in rows_of(own)}
        assert rows[r"\texttt{transformer}"][rows["Mix"].index("$E$")].startswith(cell)
        assert "--: unidentified" in own
        assert re.search(r"transformer: \$?E\$? is unidentified: .*at zero", own)


def test_savings_keep_intervals_and_what_lies_outside(tmp_path: Path) -> None:
    path = tmp_path / "points.csv"
    points(2).to_csv(path, index=False)
    far = ("savings", str(path), "at=N=1e5,D=4e6", "at=N=1.2e6,D=4.8e7", "resamples=40")
    first = next(floats(answered(*far)))
    head, near, beyond = rows_of(first)
    assert head == ["Mix", "$N$", "$D$", "Saving", "$P(> 1)$", "Range"]
    for row in (near, beyond):
        value, low, high = map(float, re.findall(r"[\d.]+", row[3]))
        assert low < value < high
    assert near[-1] == "in range"
    # Sizes end at N = 4e5.
    assert re.match(r"extrapolated: \$?N\$? \$\\times\$3", beyond[-1])
    assert "an interval that includes 1 shows none" in first
    assert r"95\,\%" in first


def test_what_changes_a_reading_stands_beneath(all_tables: dict[str, str]) -> None:
    assert "One seed: no interval." in all_tables["five results_loss"]
    assert "One seed a size" in all_tables["five fits"]
    assert "One seed a size" not in all_tables["ladder fits"]
    for kind in ("savings", "fit_free"):
        told = all_tables[f"ladder {kind}"]
        assert re.search(r"Confounds of gdn3\\_attn1 against transformer: .*\\%", told)
    assert "not recorded" in all_tables["five savings"]


def test_a_law_that_fails_is_told_beneath_its_savings(
    ladder: Findings, all_tables: dict[str, str]
) -> None:
    lack = ladder.study.lack
    assert lack is not None
    told = "The law does not describe these points (lack of fit, $F$ = "
    assert told not in all_tables["ladder savings"]
    kept = vars(ladder.study)
    try:
        kept["lack"] = replace(lack, p=1e-6)
        # Another object, as this one keeps a copy of its study.
        text = report_latex("savings", replace(ladder), cells(ladder)["savings"])
    finally:
        kept["lack"] = lack
    assert told in next(floats(text))


def test_columns_that_a_paper_has_no_room_for_are_named(all_tables: dict[str, str]) -> None:
    assert re.search(r"% Not shown: .*epochs.*; see points.csv\.", all_tables["ladder points"])


def test_no_name_is_a_command_and_none_moves_a_row() -> None:
    text = other_latex(pd.DataFrame({"mix": literal([HOSTILE, "[2pt]"]), "x": ["1", "2"]}))
    check(text)
    assert r"\textbackslash{}input\{/etc/passwd\}" in text.replace(r"\allowbreak{}", "")
    assert r"\texttt{{[}2pt]}" in text
