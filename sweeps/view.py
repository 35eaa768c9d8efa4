"""How a sweep looks while it runs and when it has ended: tables in a terminal, lines in a log."""

import contextlib
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

from rich.console import Console, Group
from rich.live import Live
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from ablations.records import RunDirectory, visible
from models.format import duration, percent
from sweeps.labels import labels
from sweeps.state import Look, slurm_log

PLAIN_EVERY_SECONDS = 15.0
COLUMNS = ("step", "tokens/s", "loss", "bpb", "LR", "point in", "done in")
LEAST = ("LR", "bpb", "point in", "attempts", "time", "tokens/s", "loss", "done in", "steps",
         "step")  # fmt: skip
"""Columns that a narrow terminal goes without, first to last."""


class PlainConsole(Console):
    """A console on which names and errors of runs are text: no escape sequence, no emoji."""

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(visible(text, keep="\n"), **options)


def console() -> Console:
    """Standard output, wide enough for a table where it is a file."""
    made = PlainConsole(highlight=False, markup=False, emoji=False)
    if not made.is_terminal:
        made.width = 120
    return made


def progress(status: dict[str, Any]) -> dict[str, str]:
    """What a run says of itself, by column, blanks where not known yet."""
    step, steps = status.get("step", 0), status.get("steps")
    tokens, seconds = status.get("tokens", 0), status.get("seconds")
    if not steps or not seconds:
        return {"step": "starting"} if status.get("state") == "running" else {}
    rate = status.get("tokens_per_second", tokens / seconds)
    shown = f"{rate:,.0f}" + (f" ({percent(status['mfu'], '.0f')} MFU)" if "mfu" in status else "")
    return {
        "step": f"{step:,}/{steps:,}",
        "tokens": f"{tokens:,}",
        "tokens/s": shown,
        "loss": f"{status['loss']:.3f}" if "loss" in status else "",
        "bpb": f"{status['bpb']:.3f}" if "bpb" in status else "",
        "LR": f"{status['lr']:.2e}" if "lr" in status else "",
        "point in": duration(status.get("eta_point")),
        "done in": duration(status.get("eta")),
    }


def counted(states: Sequence[str]) -> str:
    """`3 done, 1 failed`."""
    return ", ".join(f"{number} {state}" for state, number in Counter(states).items())


def fitted(table: Table, out: Console, least: Sequence[str]) -> Table:
    """`table` without as many of its columns, those of `least` worth in their order, as it takes to
    be no wider than the console."""
    for name in least:
        if Measurement.get(out, out.options.update(max_width=10_000), table).maximum <= out.width:
            break
        table.columns = [column for column in table.columns if column.header != name]
    return table


def live_table(looks: Sequence[Look], out: Console, *, waiting: bool = True) -> Group:
    """Runs that are not done yet; those that only wait their turn as `waiting` says."""
    notes = []
    table = Table(title=counted([look.state for look in looks]), title_justify="left")
    for name in ("run", "state", *COLUMNS, "attempts"):
        table.add_column(name, justify="left" if name in ("run", "state") else "right")
    called = labels([look.run for look in looks])
    for look in looks:
        if look.state in ("done", "new") or (look.state == "queued" and not waiting):
            continue
        told = progress(look.status) if look.state == "running" else {}
        cells = [told.get(name, "") for name in COLUMNS]
        table.add_row(called[str(look.run.path)], look.state, *cells, str(look.attempts or ""))
        if words := look.note or first_words(look):
            notes.append(f"{look.run.name}: {words}")
    return Group(fitted(table, out, LEAST), *notes)


def first_words(look: Look) -> str:
    """What a run that has no numbers yet said last: it may import, compile or unpack for long."""
    if look.state not in ("starting", "running") or look.status.get("seconds"):
        return ""
    with contextlib.suppress(OSError), look.run.log.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 2000))
        lines = file.read().decode(errors="replace").splitlines()
        return lines[-1] if lines else ""
    return ""


def plain(looks: Sequence[Look]) -> str:
    """The same in a line."""
    parts = [counted([look.state for look in looks])]
    for look in looks:
        if look.state == "running":
            told = [f"{name} {value}" for name, value in progress(look.status).items() if value]
            parts.append(" ".join([look.run.name, *told, look.note]).rstrip())
        if words := first_words(look):
            parts.append(f"{look.run.name} {words}")
    return " | ".join(parts)


def summary(looks: Sequence[Look], out: Console) -> None:
    """Each run's end, and a line with its log for each that is not done."""
    table = Table(title="Runs", title_justify="left")
    for name in ("run", "state", "steps", "loss", "bpb", "tokens/s", "time", "attempts"):
        table.add_column(name, justify="left" if name in ("run", "state") else "right")
    called = labels([look.run for look in looks])
    for look in looks:
        point = last_point(look.run)
        told = progress(look.status)
        table.add_row(
            called[str(look.run.path)],
            look.state,
            told.get("step", "").split("/")[0] if look.state == "done" else told.get("step", ""),
            f"{point['loss']:.4f}" if "loss" in point else "",
            f"{point['bpb']:.4f}" if "bpb" in point else "",
            told.get("tokens/s", ""),
            duration(look.status.get("seconds")),
            str(look.attempts or ""),
        )
    out.print(fitted(table, out, LEAST))
    for look in looks:
        if look.state in ("failed", "lost", "cancelled", "preempted", "damaged") or look.note:
            out.print(line(look), soft_wrap=True)
    for folder in dict.fromkeys(look.run.path.parent for look in looks):
        out.print(f"runs: {folder}/RUN", soft_wrap=True)


def last_point(run: RunDirectory) -> dict[str, Any]:
    """The newest row of points.jsonl; empty without one."""
    rows = list(run.rows("points.jsonl"))
    return rows[-1] if rows else {}


def line(look: Look) -> str:
    """What became of a run, in a line with its log."""
    if look.state == "done":
        point = last_point(look.run)
        result = f", loss {point['loss']:.4f}" if "loss" in point else ""
        result += f"; {look.note}" if look.note else ""
        return f"done    {look.run.name}  {duration(look.status.get('seconds', 0))}{result}"
    reason = look.note or look.status.get("error", "")
    reason = "" if reason == look.state else reason
    words = {"preempted": "stopped", "failed": "failed "}
    word = words.get(look.state, look.state)
    where = f"  (log: {log(look)})" if log(look).is_file() else ""
    return f"{word} {look.run.name}{f'  {reason}' if reason else ''}{where}"


def log(look: Look) -> Path:
    """Where a run's last words are: its own log, or Slurm's where it never began to write one."""
    if look.run.log.is_file() or look.submission.get("launcher") != "slurm":
        return look.run.log
    return slurm_log(look.run, look.submission) or look.run.log


class Display:
    """Runs on a console while they go on: a table that is redrawn, or now and then a line."""

    def __init__(self, out: Console) -> None:
        self.out = out
        self.live = (
            Live(console=out, refresh_per_second=4, transient=True) if out.is_terminal else None
        )
        self.shown = time.monotonic()
        self.said: set[str] = set()

    def __enter__(self) -> Self:
        if self.live:
            self.live.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        if self.live:
            self.live.stop()

    def is_due(self, seconds: float) -> bool:
        """Whether it is time to look again: every so many seconds, for lines less often."""
        return time.monotonic() - self.shown > (seconds if self.live else PLAIN_EVERY_SECONDS)

    def show(self, looks: Sequence[Look]) -> None:
        """What was found."""
        self.shown = time.monotonic()
        if self.live:
            self.live.update(live_table(looks, self.out, waiting=False))
        else:
            self.out.print(plain(looks), soft_wrap=True)

    def once(self, text: str) -> None:
        """Print a line the first time it is true."""
        if text not in self.said:
            self.said.add(text)
            self.out.print(text, soft_wrap=True)


@contextlib.contextmanager
def listening(asked: list[int]) -> Iterator[None]:
    """Ctrl-C, TERM and, except under nohup, a closed terminal become entries of `asked`."""
    before = {
        number: signal.signal(number, lambda received, _frame: asked.append(received))
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
