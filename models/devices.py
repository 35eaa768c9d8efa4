"""What is known of devices without asking them. No torch."""

from __future__ import annotations

import re
from dataclasses import dataclass

GB = 1e9


@dataclass(frozen=True)
class Gpu:
    """A kind of GPU, by its vendor's data sheet; only the peak must be known."""

    peak_flops: float
    """Dense bf16 peak in FLOP/s, sums in float32."""
    bandwidth: float | None = None
    """Of its memory, bytes a second."""
    memory_bytes: float | None = None
    """Of the model that has most. A run asks the device itself."""
    link: float | None = None
    """Bytes a second that it sends to other GPUs of its node while it receives as many."""
    efficiency: float = 0.6
    """Share of the MFU possible by models/roofline.py that a plan assumes. nanochat's published MFU
    at 135M to 1.7B on H100 is 0.62 to 0.65 of it (tests/models/test_roofline.py). Not yet measured
    with this project."""


BLACKWELL = 0.3
"""Efficiency of Olmo Hybrid 7B on 512 B200: 10.96k tokens a second each, 21 % of the peak, where a
hybrid of that size could have about 80 %."""

# Sources: NVIDIA's data sheets (Grace Blackwell GB300 and GB200 NVL72, HGX B300 and B200, H200,
# H100, GH200, A100, L40S, RTX PRO 6000 Blackwell editions), its white papers of Ada and of RTX
# Blackwell (which give the GeForce cards' rate with float32 sums, half of what they advertise),
# and AMD's data sheet of MI300X. H20 is sold in China alone; its figures are those of resellers.
# Peaks with sparsity are halved. PCIe 4.0 moves 32 GB/s each way, 5.0 64 GB/s.
GPUS = {
    "GB300": Gpu(2500e12, 8000 * GB, 279 * GB, 900 * GB, BLACKWELL),
    "B300": Gpu(2250e12, 7700 * GB, 270 * GB, 900 * GB, BLACKWELL),
    "GB200": Gpu(2500e12, 8000 * GB, 186 * GB, 900 * GB, BLACKWELL),
    "B200": Gpu(2250e12, 7700 * GB, 180 * GB, 900 * GB, BLACKWELL),
    "GH200": Gpu(990e12, 4000 * GB, 96 * GB, 450 * GB),
    "H200 NVL": Gpu(835e12, 4800 * GB, 141 * GB, 450 * GB),
    "H200": Gpu(989e12, 4800 * GB, 141 * GB, 450 * GB),
    "H100 PCIe": Gpu(756e12, 2000 * GB, 80 * GB, 64 * GB),
    "H100 NVL": Gpu(835e12, 3900 * GB, 94 * GB, 300 * GB),
    "H100": Gpu(989e12, 3350 * GB, 80 * GB, 450 * GB),
    "H20": Gpu(148e12, 4000 * GB, 96 * GB, 450 * GB),
    "A100": Gpu(312e12, 2039 * GB, 80 * GB, 300 * GB),
    "L40S": Gpu(362e12, 864 * GB, 48 * GB, 32 * GB),
    "RTX PRO 6000 Blackwell Server": Gpu(503.8e12, 1597 * GB, 96 * GB, 64 * GB),
    "RTX PRO 6000 Blackwell Max-Q": Gpu(438.9e12, 1792 * GB, 96 * GB, 64 * GB),
    "RTX PRO 6000": Gpu(503.8e12, 1792 * GB, 96 * GB, 64 * GB),
    "RTX 5090": Gpu(209.5e12, 1792 * GB, 32 * GB, 64 * GB),
    "RTX 4090": Gpu(165e12, 1008 * GB, 24 * GB, 32 * GB),
    "MI300X": Gpu(1307.4e12, 5300 * GB, 192 * GB, 448 * GB),
}
"""By words of the name that the driver gives; the first that fits."""


def gpu_kind(name: str) -> str | None:
    """The kind in GPUS of a device by its name, None where it is not known.

    A kind is whole words of the name: H20 is not in NVIDIA H200. A laptop's GPU is another than
    the card it is named after.
    """
    if "Laptop" in name:
        return None
    return next((k for k in GPUS if re.search(rf"(?<!\w){re.escape(k)}(?!\w)", name)), None)


def peak_flops(name: str) -> float | None:
    """Dense bf16 peak in FLOP/s of a device by its name, None where it is not known."""
    kind = gpu_kind(name)
    return GPUS[kind].peak_flops if kind else None


def mfu(name: str, devices: int, flops: float, seconds: float) -> float | None:
    """Model FLOPs utilization, to four digits (Chowdhery et al. 2022, appendix B): training FLOPs
    done in so many seconds, as `models.cost` counts them, over what devices of that name could do.

    None where their peak is not known.
    """
    peak = peak_flops(name)
    return float(f"{flops / (seconds * devices * peak):.4g}") if peak and seconds > 0 else None
