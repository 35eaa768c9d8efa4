"""How far a preparation is, on stderr."""

import time
from collections.abc import Iterable
from typing import Self

from ablations.data.blocks import Block
from ablations.data.shards import ShardWriter
from models.format import count


class Bar:
    """Progress on stderr: share of the source read, tokens a second, time left."""

    def __init__(self, sizes: list[list[int]], streams: Iterable[ShardWriter], shown: bool) -> None:
        """sizes: bytes of each file of each stage, 0 where not known; streams: what is written."""
        self._streams, self._shown = list(streams), shown
        self._before: dict[tuple[int, int], int] = {}
        total = 0
        for stage, files in enumerate(sizes):
            for file, size in enumerate(files):
                self._before[stage, file] = total
                total += size
        self._total = total if all(min(files) for files in sizes) else None
        self._begun, self._tokens = time.monotonic(), self._count()

    def _count(self) -> int:
        return sum(stream.tokens for stream in self._streams)

    def __enter__(self) -> Self:
        if self._shown:
            from rich.console import Console
            from rich.progress import (
                BarColumn,
                DownloadColumn,
                Progress,
                TextColumn,
                TimeRemainingColumn,
            )

            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                DownloadColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeRemainingColumn(),
                console=Console(stderr=True),
            )
            self._progress.start()
            self._task = self._progress.add_task("preparing", total=self._total, rate="")
        return self

    def __exit__(self, *_: object) -> None:
        if self._shown:
            self._progress.stop()

    def moved(self, stage: int, block: Block) -> None:
        if not self._shown:
            return
        seconds = time.monotonic() - self._begun
        rate = (self._count() - self._tokens) / max(seconds, 1e-9)
        self._progress.update(
            self._task,
            completed=self._before[stage, block.file] + block.consumed,
            rate=f"{count(rate, 3)} tokens/s",
        )
