"""A block of documents: what one process tokenizes at a time, and where reading goes on."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

BLOCK_BYTES = 4 << 20
BLOCK_ROWS = 1024


@dataclass(frozen=True)
class Block:
    """Consecutive records of one file."""

    file: int
    """Index among the files of its source."""
    first: int
    """Number of its first record in the file, from 1: a line, or a row."""
    position: Any
    """Where the next block of the file begins, as JSON: a byte of the unpacked file, a row, or what
    a stream needs to go on."""
    records: int
    consumed: int
    """Bytes of the file read so far, for progress."""
    payload: Any = field(repr=False)
    """Whole lines as bytes, or a list of texts (str, bytes or None)."""


def texts_of(column: Any) -> Iterator[list[Any]]:
    """A column's values (a pyarrow Array), a block's worth at a time; strings as bytes.

    Bytes because Arrow does not promise that a string is UTF-8, and a block tells what is not.
    """
    import pyarrow as pa  # type: ignore[import-untyped,unused-ignore]
    import pyarrow.compute as pc  # type: ignore[import-untyped,unused-ignore]

    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    text_types = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    if any(is_text(column.type) for is_text in text_types):
        column = column.cast(pa.large_binary())
    sizes = np.zeros(len(column), dtype=np.int64)
    if pa.types.is_large_binary(column.type):
        sizes = pc.fill_null(pc.binary_length(column), 0).to_numpy(zero_copy_only=False)
    ends = np.cumsum(sizes)
    first = 0
    while first < len(column):
        limit = BLOCK_BYTES + (int(ends[first - 1]) if first else 0)
        fitting = int(np.searchsorted(ends, limit, side="right"))
        last = min(max(first + 1, fitting), first + BLOCK_ROWS)
        yield column.slice(first, last - first).to_pylist()
        first = last
