"""Whether a headerless file of token ids is of the integer width that it is read with.

Read too narrow, the upper halves of ids are tokens of their own: zeros at every second or fourth
place, which no vocabulary forbids. Read too wide, or with its bytes in the other order, a file
holds ids beyond the vocabulary, unless that has all the ids there are.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ablations.data.manifest import DTYPES

WIDEST = 8  # bytes
# Widest first: a file of zeros in its upper halves fits every narrower reading too.
READINGS = {
    "uint64": "<u8", "big-endian uint64": ">u8", "uint32": "<u4", "big-endian uint32": ">u4",
    "uint16": "<u2", "big-endian uint16": ">u2", "uint8": "<u1",
}  # fmt: skip
STRETCHES = 64
STRETCH_BYTES = 1 << 14
# Chance puts the ids that are not 0 at every second place alone once in 2^31.
FEWEST_NONZERO = 32
# So many without one separator are no chance either, however long the documents.
ENOUGH_NONZERO = 4096
FEWEST_TO_COMPARE = 4096
ALIKE = 0.2  # total variation between even and odd places; bytes of one id differ by 0.5 and more
ENTROPY_BITS = 1.0  # by which the upper bytes of ids vary less than the lower ones, at least


@dataclass(frozen=True)
class Misread:
    """A reading that fits a file better than the one assumed."""

    fits: str
    why: str
    possible: bool = True
    """Whether the reading assumed gives no id beyond the vocabulary either."""


def misread(path: Path, offset: int, dtype: str, vocab_size: int, separator: int) -> Misread | None:
    """What fits a sample of a file's bytes better than ids of `dtype` do; None for nothing.

    offset: bytes before the first id. Reads 1 MB.
    """
    size = path.stat().st_size - offset
    raw = _sample(path, offset, size)
    read = {name: raw.view(code) for name, code in READINGS.items() if size % int(code[2]) == 0}
    inside = {name: ids for name, ids in read.items() if int(ids.max(initial=0)) < vocab_size}
    assumed, width = read[dtype], np.dtype(DTYPES[dtype]).itemsize
    nonzero = int(np.count_nonzero(assumed))
    if dtype in inside:
        for name, ids in inside.items():
            known = nonzero >= ENOUGH_NONZERO or bool((ids == separator).any())
            if ids.itemsize > width and nonzero >= FEWEST_NONZERO and known:
                share = 100 * (1 - nonzero / len(assumed))
                return Misread(name, f"{share:.0f} % of its ids are 0, in a regular pattern")
        swapped = f"big-endian {dtype}"
        if swapped in inside and len(assumed) >= FEWEST_TO_COMPARE:
            lower, upper = _entropy(raw[0::width]), _entropy(raw[width - 1 :: width])
            if lower + ENTROPY_BITS < upper:
                return Misread(swapped, "the lower bytes of its ids vary less than the upper ones")
        return None
    largest = int(assumed.max(initial=0))
    for name, ids in inside.items():
        holds = vocab_size <= int(np.iinfo(ids.dtype).max) + 1
        if holds and (ids.itemsize >= width or _stationary(ids)):
            return Misread(name, f"its ids reach {largest:,}", possible=False)
    return None


def _sample(path: Path, offset: int, size: int) -> np.ndarray:
    """Stretches of a file's bytes, spread evenly, each from a whole id on; uint8."""
    whole = size // WIDEST * WIDEST
    raw = np.memmap(path, np.uint8, "r", offset, (whole,)) if whole else np.empty(0, np.uint8)
    if whole <= STRETCHES * STRETCH_BYTES:
        return np.array(raw)
    spots = np.linspace(0, (whole - STRETCH_BYTES) // WIDEST, STRETCHES).astype(np.int64) * WIDEST
    return np.concatenate([raw[spot : spot + STRETCH_BYTES] for spot in spots.tolist()])


def _entropy(values: np.ndarray) -> float:
    """Bits of a byte's distribution."""
    share = np.bincount(values, minlength=256) / len(values)
    share = share[share > 0]
    return float(-(share * np.log2(share)).sum())


def _stationary(ids: np.ndarray) -> bool:
    """Whether even and odd places hold the same ids equally often, as places in a text do and the
    halves of wider ids do not."""
    if len(ids) < FEWEST_TO_COMPARE:
        return False
    length = int(ids.max()) + 1
    even, odd = (np.bincount(ids[first::2], minlength=length) for first in (0, 1))
    return float(np.abs(even / even.sum() - odd / odd.sum()).sum() / 2) < ALIKE
