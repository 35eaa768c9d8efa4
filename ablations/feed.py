"""Batches on their way to the device: read by a thread, a step ahead of the one that computes.

Shapes: B rows of a micro-batch, T time.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from ablations.data.order import Batches, rolling_hash
from models.documents import Documents


@dataclass(frozen=True)
class MicroBatch:
    """What one forward pass reads. inputs, targets: [B, T] int64."""

    inputs: Tensor
    targets: Tensor
    documents: Documents | None
    counts: bool
    """False for a row that a rank computes for nothing, as sharded weights need all ranks."""


@dataclass(frozen=True)
class StepBatch:
    """A rank's share of a step's batch."""

    parts: list[MicroBatch]
    predictions: int
    """Of all ranks."""
    data_hash: str
    """Of all batches up to this one; empty on ranks that do not hash."""


class Feed:
    """The batches of steps first + 1 to last, in order.

    share: this rank's rows of a batch; rows: of a micro-batch, of which there are `passes` on every
    rank; separator: the token after which a document begins, where documents are kept apart;
    data_hash: of the batches before, None on ranks that do not hash. Close it, or use it as a
    context: its thread then ends.
    """

    def __init__(
        self,
        batches: Batches,
        first: int,
        last: int,
        *,
        share: slice,
        rows: int,
        passes: int,
        separator: int | None,
        data_hash: str | None,
        device: torch.device,
    ) -> None:
        self.batches, self.last = batches, last
        self.share, self.rows, self.passes, self.separator = share, rows, passes, separator
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._hash = data_hash
        self._thread = ThreadPoolExecutor(1, "batches")
        self._ahead: Future[tuple[StepBatch, Any]] | None = None
        self._step = first
        self._read_on()

    def __enter__(self) -> Feed:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def take(self) -> StepBatch:
        """The next step's batch. Raises what went wrong as it was read."""
        assert self._ahead is not None, "no step is left"
        batch, copied = self._ahead.result()
        self._read_on()
        if copied is not None:
            stream = torch.cuda.current_stream(self._device)
            stream.wait_event(copied)
            for part in batch.parts:
                for x in _tensors(part):
                    x.record_stream(stream)
        return batch

    def close(self) -> None:
        """Return when the thread has ended."""
        self._thread.shutdown(cancel_futures=True)

    def _read_on(self) -> None:
        self._ahead = None
        if self._step < self.last:
            self._ahead = self._thread.submit(self._read, self._step)
            self._step += 1

    def _read(self, step: int) -> tuple[StepBatch, Any]:
        """The batch, and where it is copied by a stream of its own, the event of its arrival."""
        if self._hash is None:
            rows = self.batches.batch(step, self.share)
        else:
            whole = self.batches.batch(step)
            self._hash = rolling_hash(self._hash, whole)
            rows = whole[self.share]
        if self._stream is None:
            return self._split(torch.from_numpy(rows), lambda x: x), None
        with torch.cuda.stream(self._stream):
            batch = self._split(torch.from_numpy(rows), self._send)
            return batch, self._stream.record_event()

    def _split(self, tokens: Tensor, send: Callable[[Tensor], Tensor]) -> StepBatch:
        """tokens: [rows, T + 1], on the CPU, where documents are found without a device's wait."""
        there = send(tokens)
        # Ranks meet in every pass of a sharded model: one with fewer rows repeats one for nothing.
        spans = [slice(at, at + self.rows) for at in range(0, len(tokens), self.rows)]
        parts: list[MicroBatch] = []
        for span in (*spans, *[slice(0, 1)] * (self.passes - len(spans))):
            documents = None
            if self.separator is not None:
                documents = Documents.after(self.separator, tokens[span, :-1]).moved(send)
            inputs, targets = there[span, :-1], there[span, 1:]
            parts.append(MicroBatch(inputs, targets, documents, len(parts) < len(spans)))
        return StepBatch(parts, self.batches.predictions, self._hash or "")

    def _send(self, x: Tensor) -> Tensor:
        return x.pin_memory().to(self._device, non_blocking=True)


def _tensors(part: MicroBatch) -> list[Tensor]:
    documents = part.documents or Documents()
    found = (part.inputs, part.targets, documents.index, documents.offset, documents.cu_seqlens)
    return [x for x in found if x is not None]
