"""What serving costs: decoding speed and the cache's memory against context, by mix."""

from __future__ import annotations

import pandas as pd

from analysis.report.figures.axes import Drawn, in_order, legend, log_axis, mix_handles
from analysis.report.figures.style import DOUBLE_COLUMN_INCHES, caption, drawing, looks, panel_title

PANELS = {
    "prefill_tokens_per_second": "prompt tokens per second",
    "decode_tokens_per_second": "new tokens per second",
    "cache_bytes": "bytes of the cache",
}


def serving_against_context(
    rows: pd.DataFrame, note: str = "", width: float = DOUBLE_COLUMN_INCHES
) -> Drawn:
    """Speed and memory against context; `rows` are those of models.speed, of one size and batch."""
    style = looks(in_order(rows["mix"]))
    wide = width > 4
    with drawing(width, 2.6 if wide else 6.0) as figure:
        panels = figure.subplots(*((1, 3) if wide else (3, 1)))
        for axes, (column, words) in zip(panels, PANELS.items(), strict=True):
            for mix, own in rows.groupby("mix", sort=False):
                look, own = style[str(mix)], own.sort_values("context")
                axes.plot(
                    own["context"], own[column], color=look.colour, ls=look.line,
                    marker=look.marker, ms=4, mew=0.7, mfc="none",
                )  # fmt: skip
            panel_title(axes, words)
            log_axis(axes, "context (tokens)")
            log_axis(axes, "", vertical=True)
        legend(figure, mix_handles(style, fitted=True))
        caption(figure, note)
    return figure, rows[["mix", "size", "batch", "context", *PANELS]]
