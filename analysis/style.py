"""One look for every figure: a colour, marker and line for each mix, sizes, and equal bytes.

Colours are Okabe & Ito's (2008), safe for colour-blind readers; markers and lines tell mixes apart
in grey as well. Text is embedded as TrueType (type 42), which venues ask for.
"""

from __future__ import annotations

import hashlib
import json
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ablations.records import write_atomic

DOUBLE_COLUMN_INCHES = 6.75
RC: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.6,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "xtick.minor.size": 1.6,
    "ytick.minor.size": 1.6,
    "legend.fontsize": 7.5,
    "legend.frameon": False,
    "lines.linewidth": 1.4,
    "pdf.fonttype": 42,
    "ps.fonttype": 42,
    "svg.fonttype": "path",
    "svg.hashsalt": "archladder",
    "savefig.dpi": 220,
    "figure.constrained_layout.use": True,
}


@dataclass(frozen=True)
class Look:
    """How one mix is drawn."""

    colour: str
    marker: str
    dashes: tuple[float, ...]

    @property
    def line(self) -> tuple[int, tuple[float, ...] | None]:
        """A matplotlib line style."""
        return (0, self.dashes or None)


LOOKS = {
    "transformer": Look("#000000", "o", ()),
    "gdn3_attn1": Look("#D55E00", "s", (5, 1.5)),
    "gdn": Look("#0072B2", "^", (2, 1.2)),
    "mamba2": Look("#009E73", "D", (5, 1.5, 1, 1.5)),
    "mamba2x3_attn1": Look("#CC79A7", "v", (3, 1, 1, 1, 1, 1)),
    "gdn1_attn1": Look("#E69F00", "P", (7, 2)),
    "gdn7_attn1": Look("#56B4E9", "X", (1, 1)),
    "gdn3_attn1_middle": Look("#7A5C00", "<", (4, 1, 2, 1)),
}
SPARE = ("#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A5C00", "#D55E00")
SPARE_MARKERS = ("^", "D", "v", "P", "X", "<", "s")


def looks(mixes: Iterable[str]) -> dict[str, Look]:
    """The look of each mix; a mix without one of its own takes a spare by its place."""
    found = {}
    for place, mix in enumerate(mixes):
        spare = place % len(SPARE)
        other = Look(SPARE[spare], SPARE_MARKERS[spare], (3 + spare, 1.5))
        found[mix] = LOOKS.get(mix, other)
    return found


def caption(figure: Figure, text: str, width: int = 150) -> None:
    """Small type under a figure: the command, the data, the confounds."""
    lines = "\n".join(textwrap.wrap(text, width, break_on_hyphens=False))
    figure.supxlabel(lines, x=0.005, ha="left", fontsize=5.5, color="#555555", linespacing=1.35)


def panel_title(axes: Axes, text: str) -> None:
    axes.set_title(text, loc="left", fontweight="bold")


def save(figure: Figure, stem: Path, data: pd.DataFrame, provenance: dict[str, Any]) -> list[Path]:
    """Write PDF, PNG and SVG with equal bytes for equal input, the CSV shown and its provenance."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    undated: dict[str, dict[str, Any]] = {
        "pdf": {"CreationDate": None, "Producer": None, "Creator": None},
        "png": {"Software": None},
        "svg": {"Date": None, "Creator": None},
    }
    # One layout for all three files: laying out is most of the time.
    with matplotlib.rc_context(RC):
        figure.draw_without_rendering()
    figure.set_layout_engine("none")
    paths = []
    for kind, metadata in undated.items():
        path = stem.with_suffix(f".{kind}")
        with matplotlib.rc_context(RC):
            figure.savefig(path, metadata=metadata)
        paths.append(path)
    text = csv_text(data)
    write_atomic(stem.with_suffix(".csv"), text)
    facts = provenance | {"csv_sha256": hashlib.sha256(text.encode()).hexdigest()}
    write_atomic(stem.with_suffix(".json"), json.dumps(facts, indent=1, sort_keys=True) + "\n")
    return paths


def csv_text(data: pd.DataFrame) -> str:
    """A table as CSV with eight significant digits, enough to redraw and to check."""
    return data.to_csv(index=False, float_format="%.8g", lineterminator="\n")
