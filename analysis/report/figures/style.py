"""One look for every figure: a colour, marker and line for each mix, sizes, and equal bytes.

Colours are Okabe & Ito's (2008), safe for colour-blind readers; markers and lines tell mixes apart
in grey as well. Text is embedded as TrueType (type 42), which venues ask for. Widths are those of a
column and of a page of two columns.
"""

from __future__ import annotations

import hashlib
import io
import json
import textwrap
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text

from ablations.records import visible, write_atomic
from analysis.foreign import csv_cells
from analysis.study.arms import MARK

DOUBLE_COLUMN_INCHES = 6.75
SINGLE_COLUMN_INCHES = 3.3
WIDTHS = {"double": DOUBLE_COLUMN_INCHES, "single": SINGLE_COLUMN_INCHES}
NOTE_POINTS = 6.5
LEGEND_POINTS, SMALL_LEGEND_POINTS = 8.0, 7.0
# Of a legend, in its type size: a handle, between handle and words, and between columns.
HANDLE_EMS, PAD_EMS, SPACING_EMS = 2.4, 0.6, 1.2
NOTE_SPACING = 1.35
RC: Any = {
    # Times, as most venues set their text, and narrow enough for a column; then what it lacks.
    "font.family": ["STIXGeneral", "DejaVu Serif"],
    "mathtext.fontset": "stix",
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    # The paper shows through: a page may be dark.
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.6,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "xtick.minor.size": 1.6,
    "ytick.minor.size": 1.6,
    "legend.fontsize": LEGEND_POINTS,
    "legend.frameon": False,
    "legend.handlelength": HANDLE_EMS,
    "legend.handletextpad": PAD_EMS,
    "legend.columnspacing": SPACING_EMS,
    "legend.labelspacing": 0.3,
    "legend.borderpad": 0.2,
    "lines.linewidth": 1.4,
    "pdf.fonttype": 42,
    "ps.fonttype": 42,
    "svg.fonttype": "path",
    "svg.hashsalt": "archladder",
    # Of a notebook; files have theirs below.
    "figure.dpi": 150,
    "savefig.dpi": 220,
    # A dollar in a name is a dollar.
    "text.parse_math": False,
}


@dataclass(frozen=True)
class Look:
    """How one mix is drawn."""

    colour: str
    marker: Any
    """As matplotlib has it: a letter, or (points, 1 for a star, degrees)."""
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
    "gdn3_attn1_nogate": Look("#882255", ">", (4, 4)),
    "gdn3_attn1_poseig": Look("#999933", "p", (9, 1)),
    "gdn3_attn1_poseig_nogate": Look("#44AA99", "h", (1, 3)),
    "gdn_nogate": Look("#332288", "d", (6, 1, 1, 1, 1, 1)),
    "gdn_poseig": Look("#6699CC", "*", (3, 3)),
    "gdn_poseig_nogate": Look("#AA4466", "8", (9, 3, 3, 3)),
    "transformer_prenorm": Look("#777777", "H", (2, 4)),
    "gdn3_attn1_prenorm": Look("#E8A07A", (4, 1, 0), (8, 2, 1, 2)),
    "kda": Look("#004488", (5, 1, 180), (7, 1, 1, 1)),
    "kda3_attn1": Look("#117733", (5, 0, 180), (6, 2, 2, 2)),
    "kda3_mla1": Look("#BB5566", (3, 1, 180), (3, 1.5)),
    "gdn3_gattn1": Look("#4477AA", (4, 1, 22), (4, 2, 1, 2)),
    "mamba2_swa1": Look("#B8A000", (7, 1, 0), (2, 3)),
    "qwen3_next": Look("#994455", (5, 1, 36), (8, 3)),
    "transformer_qwen3": Look("#555555", (8, 0, 22), (1, 2)),
    "nemotron_h": Look("#3D6B8E", (9, 1, 0), (12, 1, 1, 1)),
    "samba": Look("#8A6D1B", (12, 1, 0), (2, 1, 5, 1)),
    "kimi_linear": Look("#663333", (6, 0, 15), (10, 2)),
}
# For mixes without a look of their own.
SPARE = (
    Look("#0072B2", (3, 1, 0), (6, 4, 1, 4)),
    Look("#009E73", (4, 1, 45), (1, 2, 4, 2)),
    Look("#CC79A7", (6, 1, 0), (12, 2)),
    Look("#E69F00", (7, 0, 0), (2, 2, 6, 2)),
    Look("#56B4E9", (8, 1, 0), (1, 1, 1, 4)),
    Look("#7A5C00", (3, 0, 90), (10, 4, 2, 4)),
    Look("#D55E00", (10, 1, 0), (3, 2, 1, 2, 1, 2)),
)


# Of an arm's levels after the first: how far its mix's colour goes towards white, and dashes.
LEVELS = ((0.45, (1, 1)), (0.25, (6, 1, 1, 1)), (0.6, (3, 3)), (0.35, (8, 3)))


def looks(mixes: Iterable[str]) -> dict[str, Look]:
    """The look of each mix; a mix without one of its own takes a spare by alphabet.

    Arms of one mix share its marker, and the further levels have paler colours and own dashes.
    """
    names = list(mixes)
    arms = {name: name.partition(MARK)[0] for name in names}
    others = sorted({mix for mix in arms.values() if mix not in LOOKS})
    own = {mix: SPARE[place % len(SPARE)] for place, mix in enumerate(others)}
    seen: dict[str, int] = {}
    found = {}
    for name, mix in arms.items():
        place = seen[mix] = seen.get(mix, -1) + 1
        found[name] = _of_level(LOOKS.get(mix) or own[mix], place)
    return found


def _of_level(look: Look, place: int) -> Look:
    if not place:
        return look
    white, dashes = LEVELS[(place - 1) % len(LEVELS)]
    red, green, blue = (part * (1 - white) + white for part in to_rgb(look.colour))
    return replace(look, colour=to_hex((red, green, blue)), dashes=dashes)


class ShownFigure(Figure):
    """A figure that a notebook shows without `%matplotlib inline`, which pyplot's alone need."""

    def _repr_png_(self) -> bytes:
        image = io.BytesIO()
        with matplotlib.rc_context(RC):
            self.savefig(image, format="png", dpi="figure")
        return image.getvalue()


@contextmanager
def drawing(width: float, height: float) -> Iterator[Figure]:
    """An empty figure of a size in inches, and the style as long as it is drawn."""
    with matplotlib.rc_context(RC):
        yield ShownFigure(figsize=(width, height), layout="constrained")


def caption(figure: Figure, text: str) -> None:
    """Small type under a figure: the command, the data, the confounds. Nothing for no text.

    The figure grows by as much, so that its panels stay as they are without.
    """
    if not text:
        return
    width, height = figure.get_size_inches()
    lines = textwrap.wrap(text, round(22.5 * width), break_on_hyphens=False)
    added = (len(lines) * NOTE_POINTS * NOTE_SPACING + 4) / 72
    figure.set_size_inches(width, height + added)
    share = added / (height + added)
    engine = figure.get_layout_engine()
    if engine is not None:
        engine.set(rect=(0, share, 1, 1 - share))  # type: ignore[call-arg]
    figure.text(
        0.03 / width, share - 2 / 72 / (height + added), "\n".join(lines), gid="note", va="top",
        ha="left", fontsize=NOTE_POINTS, color="#555555", linespacing=NOTE_SPACING,
        in_layout=False,
    )  # fmt: skip


def panel_title(axes: Axes, text: str) -> None:
    axes.set_title(text, loc="left", color="#333333")


def save(figure: Figure, stem: Path, data: pd.DataFrame, provenance: dict[str, Any]) -> list[Path]:
    """Write PDF, PNG and SVG with equal bytes for equal input, the CSV shown and its provenance."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    undated: dict[str, dict[str, Any]] = {
        "pdf": {"CreationDate": None, "Producer": None, "Creator": None},
        "png": {"Software": None},
        "svg": {"Date": None, "Creator": None},
    }
    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        text.set_text(visible(text.get_text(), keep="\n"))
    # One layout for all three files: laying out is most of the time.
    with matplotlib.rc_context(RC):
        figure.draw_without_rendering()
    figure.set_layout_engine(None)
    paths = []
    for kind, metadata in undated.items():
        path = stem.with_suffix(f".{kind}")
        with matplotlib.rc_context(RC):
            figure.savefig(path, metadata=metadata)
        paths.append(path)
    shown = csv_text(data)
    write_atomic(stem.with_suffix(".csv"), shown)
    facts = provenance | {"csv_sha256": hashlib.sha256(shown.encode()).hexdigest()}
    write_atomic(stem.with_suffix(".json"), json.dumps(facts, indent=1, sort_keys=True) + "\n")
    return paths


def csv_text(data: pd.DataFrame) -> str:
    """A table as CSV with eight significant digits, enough to redraw and to check."""
    return csv_cells(data).to_csv(index=False, float_format="%.8g", lineterminator="\n")
